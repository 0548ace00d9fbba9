//! `objblk trash`: list, bring back, remove for good.

use super::delete::{executioner, removed};
use super::{Context, args, confirm, duration, render, size};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::pool::{Child, Deleted, Executioner, Pool, TrashState, Trashed, VolumeName};
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;
use serde_json::json;
use std::io::IsTerminal;
use std::time::Duration;

/// How long the making of a volume may take before it counts as cut off.
const GRACE: Duration = Duration::from_secs(24 * 3600);

/// Volumes that are looked at in parallel.
const PARALLEL: usize = 8;

/// Names that a question shows.
const SHOWN: usize = 10;

#[derive(Debug, Serialize)]
struct Line {
    name: Option<String>,
    id: VolumeId,
    /// kept, expired, removing, lost, unfinished, remains, damaged
    state: &'static str,
    health: String,
    size: Option<u64>,
    used: Option<u64>,
    snapshots: Option<usize>,
    deleted_at_ms: Option<u64>,
    expires_at_ms: Option<u64>,
    /// Clones that keep it from being removed
    needed_by: Vec<String>,
}

fn state(trashed: &Trashed) -> (&'static str, String) {
    let (state, health) = match &trashed.state {
        TrashState::Kept if trashed.is_expired() => ("expired", "ok"),
        TrashState::Kept => ("kept", "ok"),
        TrashState::Removing => ("removing", "its removal was begun"),
        TrashState::Lost => ("lost", "it was in use, not deleted, and has lost its name"),
        TrashState::Unfinished => ("unfinished", "its making was cut off"),
        TrashState::Remains => ("remains", "objects of a volume that is gone"),
        TrashState::Damaged(e) => return ("damaged", e.to_string()),
    };
    (state, health.into())
}

async fn line(pool: &Pool, trashed: &Trashed) -> Result<Line> {
    let (mut state, mut health) = state(trashed);
    let label = trashed.label();
    let info = match trashed.state {
        TrashState::Kept | TrashState::Lost | TrashState::Unfinished => {
            match pool.look(&label, trashed.id).await {
                Err(e) if e.kind() == ErrorKind::Store => return Err(e),
                // It is encrypted, and is not opened for this.
                Err(e) if matches!(e.kind(), ErrorKind::Usage | ErrorKind::Failed) => {
                    health = e.to_string();
                    None
                }
                Err(e) => {
                    (state, health) = ("damaged", e.to_string());
                    None
                }
                Ok(info) => Some(info),
            }
        }
        _ => None,
    };
    let needed_by = match &info {
        Some(_) => pool.children(trashed.id).await?.iter().map(Child::label).collect(),
        None => Vec::new(),
    };
    let ownership = info.as_ref().map(|info| &info.ownership);
    Ok(Line {
        name: trashed.name.clone(),
        id: trashed.id,
        state,
        health,
        size: ownership.map(|ownership| ownership.size.bytes()),
        used: ownership.map(|ownership| ownership.live.bytes()),
        snapshots: ownership.map(|ownership| ownership.snapshots),
        deleted_at_ms: trashed.deleted_at_ms,
        expires_at_ms: trashed.expires_at_ms,
        needed_by,
    })
}

pub(super) async fn list(context: &Context, orphans: bool) -> Result<()> {
    let pool = context.open().await?.pool;
    let found = if orphans { pool.orphans().await? } else { pool.trash().await? };
    let lines = stream::iter(&found).map(|trashed| line(&pool, trashed)).buffered(PARALLEL);
    let lines: Vec<Line> = lines.try_collect().await?;
    context.show(&lines, || table(&lines))
}

fn table(lines: &[Line]) -> String {
    fn or_dash<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
        value.map_or_else(|| "-".into(), show)
    }
    let row = |line: &Line| {
        let clones = line.needed_by.join(", ");
        vec![
            or_dash(line.name.clone(), |name| name),
            or_dash(line.size, size::show),
            or_dash(line.used, size::show),
            or_dash(line.deleted_at_ms, render::time),
            or_dash(line.expires_at_ms, render::time),
            line.state.into(),
            if clones.is_empty() { "-".into() } else { clones },
            line.id.to_string(),
        ]
    };
    let header = ["NAME", "SIZE", "USED", "DELETED", "EXPIRES", "STATE", "CLONES", "ID"];
    render::table(&header, &[1, 2], lines.iter().map(row).collect())
}

pub(super) async fn restore(context: &Context, what: &str, new: Option<&str>) -> Result<()> {
    let new: Option<VolumeName> = new.map(str::parse).transpose()?;
    let pool = context.open().await?.pool;
    let trashed = pool.find_in_trash(what).await?;
    let name = match (new, &trashed.name) {
        (Some(new), _) => new,
        (None, Some(name)) => name.parse()?,
        (None, None) => {
            let text = format!("nobody knows what volume {} was called", trashed.id);
            return Err(Error::usage(text).hint("name it with --as NEW"));
        }
    };
    pool.restore(trashed.id, &name).await.map_err(|e| match e.kind() {
        crate::error::ErrorKind::Exists => e.hint("restore it under another name with --as NEW"),
        _ => e,
    })?;
    context.show(&json!({ "name": name, "id": trashed.id }), || name.to_string())
}

pub(super) async fn empty(context: &Context, empty: args::Empty) -> Result<()> {
    let older = empty.older_than.as_deref();
    let older = older.map(|text| duration::parse("--older-than", text)).transpose()?;
    let backend = context.open().await?;
    let chosen = choose(&backend.pool, &empty, older).await?;
    if !chosen.is_empty() {
        confirm::confirm(&question(&chosen), empty.yes)?;
    }
    let by = executioner(&backend, empty.force)?;
    let single = empty.what.len() == 1;
    let (gone, mut kept) = remove(&backend.pool, chosen, &by).await;
    if single && let Some((_, e)) = kept.pop() {
        return Err(e);
    }
    let removed_line = |(trashed, deleted): &(Trashed, Deleted)| {
        json!({
            "name": trashed.name, "id": trashed.id,
            "objects": deleted.objects, "bytes": deleted.bytes,
        })
    };
    let kept_line = |(trashed, e): &(Trashed, Error)| json!({ "name": trashed.name, "id": trashed.id, "why": e.to_string() });
    let document = json!({
        "removed": gone.iter().map(removed_line).collect::<Vec<_>>(),
        "kept": kept.iter().map(kept_line).collect::<Vec<_>>(),
    });
    context.show(&document, || {
        let lines = gone.iter().map(|(trashed, deleted)| removed(&trashed.label(), *deleted));
        let lines: Vec<String> = lines.collect();
        if lines.is_empty() { "nothing was removed".into() } else { lines.join("\n") }
    })?;
    for (trashed, e) in kept.iter().skip(1) {
        eprintln!("objblk: {} stays: {e}", trashed.label());
    }
    match kept.into_iter().next() {
        Some((trashed, e)) => Err(e.context(format!("{} stays", trashed.label()))),
        None => Ok(()),
    }
}

/// What the arguments mean.
async fn choose(pool: &Pool, empty: &args::Empty, older: Option<Duration>) -> Result<Vec<Trashed>> {
    if !empty.what.is_empty() {
        let mut chosen: Vec<Trashed> = Vec::new();
        for what in &empty.what {
            let found = pool.find_in_trash(what).await?;
            if chosen.iter().all(|other| other.id != found.id) {
                chosen.push(found);
            }
        }
        return Ok(chosen);
    }
    let is_older = |trashed: &Trashed, than| trashed.age().is_some_and(|age| age >= than);
    if empty.orphans {
        let mut orphans = pool.orphans().await?;
        orphans.retain(|orphan| match orphan.state {
            TrashState::Unfinished => is_older(orphan, older.unwrap_or(GRACE)),
            TrashState::Remains => true,
            _ => false,
        });
        return Ok(orphans);
    }
    let mut chosen = pool.trash().await?;
    // What was begun is finished in any case.
    chosen.retain(|trashed| match trashed.state {
        TrashState::Removing => true,
        TrashState::Lost => false,
        _ if empty.expired => trashed.is_expired(),
        _ => older.is_none_or(|than| is_older(trashed, than)),
    });
    Ok(chosen)
}

fn question(chosen: &[Trashed]) -> String {
    let mut names: Vec<String> = chosen.iter().take(SHOWN).map(Trashed::label).collect();
    if chosen.len() > SHOWN {
        names.push(format!("{} more", chosen.len() - SHOWN));
    }
    format!("removing {} for good", names.join(", "))
}

/// Removes them, clones before what they were made of. Returns what is gone and what stays.
async fn remove(
    pool: &Pool,
    chosen: Vec<Trashed>,
    by: &Executioner,
) -> (Vec<(Trashed, Deleted)>, Vec<(Trashed, Error)>) {
    let (mut gone, mut left) = (Vec::new(), chosen);
    let show = std::io::stderr().is_terminal();
    loop {
        let (before, mut kept) = (gone.len(), Vec::new());
        for trashed in left {
            if show {
                eprintln!("removing {}", trashed.label());
            }
            match pool.purge(&trashed, by).await {
                Ok(deleted) => gone.push((trashed, deleted)),
                Err(e) => kept.push((trashed, e)),
            }
        }
        // One that is gone may have been what kept another one.
        if kept.is_empty() || gone.len() == before {
            return (gone, kept);
        }
        left = kept.into_iter().map(|(trashed, _)| trashed).collect();
    }
}
