//! The pool as a directory.

use super::attach::{self, Progress, ended, plain};
use super::{Context, args, render, size};
use crate::daemon::mount::{MountSpec, run, umount as end};
use crate::daemon::{Ready, TargetSpec, spawn};
use crate::error::{Error, Result};
use crate::pool::VolumeName;
use serde_json::json;

pub(super) async fn mount(context: &Context, mount: args::Mount) -> Result<()> {
    let open = &mount.open;
    if open.takeover {
        return Err(Error::usage(
            "a directory does not take volumes from others as they are opened",
        )
        .hint("take the volume over with `objblk serve nbd NAME --takeover`, and end that"));
    }
    let spec = MountSpec {
        dir: std::path::absolute(&mount.dir)
            .map_err(|e| Error::usage("the directory is no path").because(e))?,
        allow_other: mount.allow_other,
        each: TargetSpec {
            volumes: Vec::new(),
            read_only: open.read_only,
            cache_bytes: size::parse("--mem-cache", &open.mem_cache)?,
            map_bytes: open.map_bytes()?,
            profile: open.profile(),
            disk_cache: open.disk_cache()?,
            journal: open.journal()?,
            io_timeout: open.io_timeout()?,
            heartbeat: open.heartbeat()?,
            key: context.global.key.key()?,
            // Each is opened under its own name.
            ..plain(context.location()?, VolumeName::generate().into())
        },
    };
    let show = |ready: &Ready| {
        let dir = spec.dir.display().to_string();
        let document = json!({ "dir": dir, "read_only": spec.each.read_only, "pid": ready.pid });
        context.show(&document, || dir)
    };
    match mount.foreground {
        true => ended(run(&spec, show).await?),
        false => show(&spawn(&spec, &attach::background_arguments(context, "mount-target"))?),
    }
}

pub(super) async fn umount(context: &Context, umount: args::Umount) -> Result<()> {
    let mut progress = Progress::new();
    let ended = end(&umount.dir, umount.force, |phase, dirty| progress.show(phase, dirty)).await;
    progress.clear();
    let ended = ended?;
    if ended.was_dead {
        let dir = ended.dir.display();
        eprintln!("objblk: the process behind {dir} was dead: removed what it left");
    }
    attach::tell(&ended.outcome);
    if !context.global.json {
        return Ok(());
    }
    let outcome = &ended.outcome;
    render::json(&json!({
        "dir": ended.dir, "lost_bytes": outcome.lost_bytes, "kept_bytes": outcome.kept_bytes,
        "failure": outcome.failure, "trouble": outcome.trouble, "was_dead": ended.was_dead,
    }))
}
