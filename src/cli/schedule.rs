//! Snapshots that the owner of a volume makes by itself.
//!
//! Whoever has the volume is asked to set the schedule, as for snapshots; it is read from the store.

use super::args::Schedule;
use super::snapshot::go_there;
use super::{Context, duration, owner, volume};
use crate::daemon::{Request, RunDir};
use crate::error::{Error, Result};
use crate::format::schedule::{Rule, problem};
use crate::pool::VolumeName;
use serde::Serialize;
use serde_json::json;

/// A rule, for people.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    every: String,
    every_ms: u64,
    keep: u32,
}

pub(super) fn shown(rules: &[Rule]) -> Vec<Shown> {
    let show =
        |rule: &Rule| Shown { every: rule.period(), every_ms: rule.every_ms, keep: rule.keep };
    rules.iter().map(show).collect()
}

pub(super) fn words(rules: &[Shown]) -> String {
    let words = |rule: &Shown| format!("every {} keep {}", rule.every, rule.keep);
    match rules {
        [] => "none".into(),
        rules => rules.iter().map(words).collect::<Vec<_>>().join(", "),
    }
}

/// Sets the schedule of a volume where one is given; shows it.
pub(super) async fn schedule(context: &Context, set: Schedule) -> Result<()> {
    let name: VolumeName = set.name.parse()?;
    let rules = match set.off || !set.every.is_empty() {
        true => change(context, &name, rules(&set)?).await?,
        false => {
            let backend = context.open().await?;
            let (id, _) = backend.pool.lookup(&name).await?;
            crate::volume::schedule(&*backend.stores.setup, id).await?
        }
    };
    let rules = shown(&rules);
    let document = json!({ "name": name, "schedule": rules });
    context.show(&document, || format!("{name}: {}", words(&rules)))
}

fn rules(set: &Schedule) -> Result<Vec<Rule>> {
    if set.every.len() != set.keep.len() {
        let (every, keep) = (set.every.len(), set.keep.len());
        return Err(Error::usage(format!("{every} --every and {keep} --keep do not match"))
            .hint("give each --every a --keep, as in --every 1h --keep 24 --every 1d --keep 7"));
    }
    let rule = |(every, keep): (&String, &u32)| {
        let every = duration::parse_some("--every", every)?;
        let every_ms = u64::try_from(every.as_millis()).unwrap_or(u64::MAX);
        Ok(Rule { every_ms, keep: *keep })
    };
    let rules = set.every.iter().zip(&set.keep).map(rule).collect::<Result<Vec<Rule>>>()?;
    match problem(&rules) {
        Some(problem) => Err(Error::usage(format!("this is no schedule: {problem}"))
            .hint("write it as --every 1h --keep 24 --every 1d --keep 7")),
        None => Ok(rules),
    }
}

/// Has the owner do it, or owns the volume for that time.
async fn change(context: &Context, name: &VolumeName, rules: Vec<Rule>) -> Result<Vec<Rule>> {
    let backend = context.open().await?;
    let (id, _) = backend.pool.lookup(name).await?;
    let request = Request::Schedule { volume: id, rules: rules.clone() };
    if let Some(reply) = owner::ask(context, &backend, (id, name), request).await? {
        return reply.set().map(|()| rules);
    }
    let held = RunDir::open()?.take(&[(id, name.clone().into())])?;
    let done = async {
        let volume = volume::own(&backend, id, name).await.map_err(go_there)?;
        let done = volume.set_schedule(rules.clone()).await;
        let closed = volume.close().await;
        done.and(closed)
    };
    let done = done.await;
    held.release();
    done.map(|()| rules)
}
