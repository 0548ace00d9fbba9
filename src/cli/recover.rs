//! Bringing back the devices of dead targets.

use super::{Context, attach, render};
use crate::daemon::client::find;
use crate::daemon::{KnownTarget, Ready, RunDir, TargetSpec};
use crate::error::Result;
use crate::seal::{KeyGiven, KeyPlace, ask, has_terminal};
use serde_json::json;

pub(super) async fn recover(context: &Context, what: Option<&str>) -> Result<()> {
    let run_dir = RunDir::open()?;
    let targets = match what {
        Some(what) => vec![find(&run_dir, what, context.named_store()?.as_deref())?],
        None => run_dir.targets()?.into_iter().filter(KnownTarget::is_recoverable).collect(),
    };
    if targets.is_empty() {
        eprintln!("objblk: no device on this host waits to be recovered");
    }
    let (mut documents, mut lines, mut failure) = (Vec::new(), Vec::new(), None);
    for target in &targets {
        let volume = &target.state.volumes[0];
        let outcome = match target.alive {
            true => {
                eprintln!("objblk: process {} serves {}", target.state.pid, volume.name);
                Ok(target.state.pid)
            }
            false => bring_back(context, target).map(|ready| ready.pid),
        };
        let document = json!({
            "name": volume.name, "id": volume.id, "device": volume.device, "link": volume.link,
            "pid": outcome.as_ref().ok(), "recovered": outcome.is_ok() && !target.alive,
            "error": outcome.as_ref().err().map(ToString::to_string),
        });
        documents.push(document);
        match outcome {
            Ok(_) => lines.push(format!("{} {}", volume.device, volume.name)),
            // The last one becomes the program's own error.
            Err(e) => {
                if let Some(earlier) = failure.replace(e) {
                    eprintln!("objblk: {earlier}");
                }
            }
        }
    }
    match (what, context.global.json) {
        (Some(_), true) => render::json(&documents[0])?,
        (None, true) => render::json(&documents)?,
        (_, false) if lines.is_empty() => {}
        (_, false) => render::print(&lines.join("\n"))?,
    }
    failure.map_or(Ok(()), Err)
}

fn bring_back(context: &Context, target: &KnownTarget) -> Result<Ready> {
    let state = &target.state;
    let name = &state.volumes[0].name;
    // Without a successor's orders the target says why it cannot be.
    let mut spec = match &state.successor {
        Some(successor) => successor.clone(),
        None => TargetSpec {
            recover: Some(state.volumes[0].id),
            ..attach::plain(context.location()?, name.clone())
        },
    };
    let is_asked = spec.key.as_ref().is_some_and(|key| *key.place() == KeyPlace::Asked);
    let answer = || ask(&format!("Passphrase of {name}: ")).map(KeyGiven::answered);
    spec.key = match context.global.key.key()? {
        Some(given) => Some(given),
        None if is_asked && has_terminal() => Some(answer()?),
        None => spec.key,
    };
    attach::background(context, &spec)
}
