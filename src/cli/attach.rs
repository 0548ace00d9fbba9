//! Attaching and detaching.

use super::{Context, args, render, size};
use crate::daemon::client::{detach as end, find};
use crate::daemon::{
    DoorSpec, KnownTarget, Outcome, Phase, Ready, RunDir, TargetSpec, default_heartbeat,
    default_map_bytes, run_foreground, spawn,
};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::VolumeSpec;
use crate::settings::Location;
use serde_json::json;
use std::io::{IsTerminal, Write};

/// The memory for cached data where nothing is said.
const CACHE_BYTES: u64 = 64 << 20;

/// A volume on a block device, with nothing said.
pub(super) fn plain(location: Location, name: VolumeSpec) -> TargetSpec {
    TargetSpec {
        location,
        volumes: vec![name],
        read_only: false,
        at: None,
        takeover: false,
        recover: None,
        cache_bytes: CACHE_BYTES,
        map_bytes: default_map_bytes(),
        profile: None,
        disk_cache: None,
        door: DoorSpec::Ublk { queues: 1, depth: 128, recovery: true },
        journal: None,
        io_timeout: None,
        heartbeat: default_heartbeat(),
        lazy: false,
        scrub: None,
        key: None,
    }
}

/// Starts a target in the background.
pub(super) fn background(context: &Context, spec: &TargetSpec) -> Result<Ready> {
    let supervised = matches!(spec.door, DoorSpec::Ublk { recovery: true, .. });
    let verb = if supervised && !spec.read_only { "supervise" } else { "target" };
    spawn(spec, &background_arguments(context, verb))
}

/// How this program is called for `verb` in the background.
pub(super) fn background_arguments<'a>(context: &Context, verb: &'a str) -> Vec<&'a str> {
    let verbose = (0..context.global.verbose).map(|_| "-v");
    std::iter::once(verb).chain(verbose).collect()
}

pub(super) async fn attach(context: &Context, attach: args::Attach) -> Result<()> {
    let volumes = attach.open.views(vec![attach.name.parse()?])?;
    let (queues, depth, recovery) = (attach.queues, attach.depth, !attach.no_recovery);
    let door = DoorSpec::Ublk { queues, depth, recovery };
    let key = match attach.foreground {
        true => context.given()?,
        false => context.given_for(&volumes[0].volume()).await?,
    };
    let spec = TargetSpec { key, ..attach.open.target(context.location()?, volumes, door)? };
    let show = |ready: &Ready| {
        let volume = &ready.volumes[0];
        let document = json!({
            "name": volume.name, "id": volume.id, "device": volume.device, "link": volume.link,
            "read_only": volume.read_only, "pid": ready.pid,
        });
        context.show(&document, || volume.device.clone())
    };
    match attach.foreground {
        true => ended(run_foreground(&spec, show).await?),
        false => show(&background(context, &spec)?),
    }
}

/// The result of a target that ran in the foreground.
pub(super) fn ended(outcome: Outcome) -> Result<()> {
    match (outcome.failure, outcome.trouble) {
        (None, None) if outcome.lost_bytes == 0 => Ok(()),
        (failure, trouble) => {
            let why = failure.or(trouble).unwrap_or_else(|| "ended by force".into());
            let lost = size::show(outcome.lost_bytes);
            let kind = if outcome.fenced { ErrorKind::Fenced } else { ErrorKind::Failed };
            Err(Error::new(kind, format!("{why}; {lost} were never stored")))
        }
    }
}

pub(super) async fn detach(context: &Context, what: &str, force: bool) -> Result<()> {
    let run_dir = RunDir::open()?;
    let target = find(&run_dir, what, context.named_store()?.as_deref())?;
    let outcome = if target.alive {
        let mut progress = Progress::new();
        let ended = end(&target, force, |phase, dirty| progress.show(phase, dirty)).await;
        progress.clear();
        ended?
    } else {
        let kept = target.is_recoverable();
        if kept && !force {
            return Err(target.kept(&target.state.volumes[0].name));
        }
        run_dir.remove_dead(&target)?;
        let journaled = target.state.successor.as_ref().is_some_and(|spec| spec.journal.is_some());
        let lost = match (kept, journaled) {
            (false, _) => "",
            (true, false) => "; what it had not stored is lost",
            (true, true) => "; what it had not flushed is lost, its journal is kept",
        };
        eprintln!("objblk: process {} was dead: removed what it left{lost}", target.state.pid);
        Outcome::default()
    };
    warn(&target, what, &outcome);
    let documents = target.state.volumes.iter().map(|volume| {
        json!({
            "name": volume.name, "id": volume.id, "device": volume.device,
            "lost_bytes": outcome.lost_bytes, "kept_bytes": outcome.kept_bytes,
            "failure": outcome.failure,
            "trouble": outcome.trouble, "was_dead": !target.alive,
        })
    });
    let documents: Vec<_> = documents.collect();
    match (&documents[..], context.global.json) {
        (_, false) => Ok(()),
        ([one], true) => render::json(one),
        (several, true) => render::json(several),
    }
}

fn warn(target: &KnownTarget, what: &str, outcome: &Outcome) {
    let also = target.state.volumes.iter().filter(|v| v.name.as_str() != what && v.device != what);
    let also: Vec<&str> = also.map(|volume| volume.name.as_str()).collect();
    if target.state.volumes.len() > 1 {
        eprintln!(
            "objblk: one server served them together, so these ended too: {}",
            also.join(", ")
        );
    }
    tell(outcome);
}

/// Says what did not go well.
pub(super) fn tell(outcome: &Outcome) {
    if let Some(failure) = &outcome.failure {
        eprintln!("objblk: {failure}");
    }
    if let Some(trouble) = &outcome.trouble {
        eprintln!("objblk: not ended in order: {trouble}");
    }
    if outcome.kept_bytes > 0 {
        eprintln!(
            "objblk: the journal keeps {} for the next attach on this host",
            size::show(outcome.kept_bytes)
        );
    }
    if outcome.lost_bytes > 0 {
        eprintln!("objblk: {} were never stored and are lost", size::show(outcome.lost_bytes));
    }
}

/// One line on a terminal that says how a detach goes.
pub(super) struct Progress {
    terminal: bool,
    shown: bool,
}

impl Progress {
    pub(super) fn new() -> Progress {
        Progress { terminal: std::io::stderr().is_terminal(), shown: false }
    }

    pub(super) fn show(&mut self, phase: Phase, dirty_bytes: u64) {
        if self.terminal {
            let left = size::show(dirty_bytes);
            let stays = match phase {
                Phase::Flushing => ", Ctrl-C leaves it attached",
                _ => "",
            };
            self.line(&format!("{}: {left} to store{stays}", phase.name()));
            self.shown = true;
        }
    }

    pub(super) fn clear(&mut self) {
        if self.shown {
            self.line("");
        }
    }

    fn line(&self, text: &str) {
        let mut terminal = std::io::stderr().lock();
        // Progress that cannot be shown is none.
        let _ = write!(terminal, "\r\x1b[K{text}").and_then(|()| terminal.flush());
    }
}
