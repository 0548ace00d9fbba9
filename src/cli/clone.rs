//! Clones: volumes that begin as what a snapshot is, share its data, and may do without it later.

use super::{Context, clone_past, moment, owner, render, size, volume};
use crate::clock::SystemClock;
use crate::daemon::{Request, RunDir};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::pool::backend::Backend;
use crate::pool::{Child, VolumeName, VolumeSpec};
use crate::volume::Flattened;
use serde_json::json;
use std::io::IsTerminal;

/// Makes `new` of the snapshot `of`, whoever owns its volume; with `at`, of the volume `of` as it was then.
pub(super) async fn clone(
    context: &Context,
    of: &VolumeSpec,
    at: Option<&str>,
    new: &VolumeName,
) -> Result<()> {
    if let Some(at) = at {
        let moment = moment::parse(at, &SystemClock)?;
        let called = moment::view(of, moment)?;
        return clone_past::clone(context, (&of.volume(), moment, &called), new).await;
    }
    let snapshot = of.snapshot().ok_or_else(|| {
        Error::usage(format!("{of} names no snapshot")).hint(format!(
            "make one with `objblk snapshot create {of}@SNAP`, then clone that; or name a moment with --at"
        ))
    })?;
    let backend = context.open().await?;
    let made = backend.pool.clone_volume(&of.volume(), snapshot, new).await;
    let id = made.map_err(|e| e.context(format!("cannot clone {of}")))?;
    context.show(&json!({ "name": new, "id": id, "parent": of }), || new.to_string())
}

/// Shows the clones of a volume's snapshots, or of one of them.
pub(super) async fn children(context: &Context, of: &VolumeSpec) -> Result<()> {
    let backend = context.open().await?;
    let (id, _) = backend.pool.lookup(&of.volume()).await?;
    let mut children: Vec<Child> = backend.pool.children(id).await?;
    children.retain(|child| of.snapshot().is_none_or(|snapshot| child.snapshot == snapshot));
    let parent = |child: &Child| format!("{}@{}", of.volume(), child.snapshot);
    let documents: Vec<_> = children
        .iter()
        .map(|child| {
            let trashed = child.trashed.is_some();
            let (name, parent) = (&child.name, parent(child));
            json!({ "name": name, "id": child.id, "parent": parent, "trash": trashed })
        })
        .collect();
    context.show(&documents, || {
        let name = |child: &Child| match (&child.name, &child.trashed) {
            (None, None) => "-".into(),
            _ => child.label(),
        };
        let rows = children.iter().map(|c| vec![parent(c), name(c), c.id.to_string()]).collect();
        render::table(&["SNAPSHOT", "CLONE", "ID"], &[], rows)
    })
}

/// Has a clone do without its origin.
pub(super) async fn flatten(context: &Context, name: &VolumeName) -> Result<()> {
    let backend = context.open().await?;
    let (id, description) = backend.pool.lookup(name).await?;
    if description.origin().is_none() && description.source.is_none() {
        return Err(Error::usage(format!("{name} is no clone, and has no source")));
    }
    let request = Request::Flatten { volume: id };
    let flattened = match owner::ask(context, &backend, (id, name), request).await {
        Ok(Some(reply)) => reply.flattened(),
        Ok(None) => detached(&backend, &RunDir::open()?, (id, name)).await,
        Err(e) => Err(e),
    };
    let done = flattened.map_err(|e| e.context(format!("cannot flatten {name}")))?;
    if done.done {
        backend.pool.leave_origin(id).await?;
    }
    let document = json!({
        "name": name,
        "moved_bytes": done.moved_bytes,
        "done": done.done,
        "needed_by_snapshots": done.needed_by,
        "needed_by_past": done.past,
    });
    context.show(&document, || {
        let moved = size::show(done.moved_bytes);
        match done.needed_by.is_empty() {
            true if done.past => format!(
                "{name}: {moved} moved; what is kept of its past still needs the origin: end that with \
                 `objblk retain {name} off`, and flatten it again"
            ),
            true => format!("{name}: {moved} moved, needs its origin no more"),
            false => format!(
                "{name}: {moved} moved; its snapshots still need the origin: {}",
                done.needed_by.join(", ")
            ),
        }
    })
}

async fn detached(
    backend: &Backend,
    run_dir: &RunDir,
    (id, name): (VolumeId, &VolumeName),
) -> Result<Flattened> {
    let held = run_dir.take(&[(id, name.clone().into())])?;
    let show = std::io::stderr().is_terminal();
    let mut progress = |left: u64| {
        if show {
            eprint!("\r{name}: {} left to move \x1b[K", size::show(left));
        }
    };
    let flattened = async {
        let volume = volume::own(backend, id, name).await.map_err(go_there)?;
        let flattened = volume.flatten(&mut progress).await;
        let closed = volume.close().await;
        let flattened = flattened?;
        closed.map(|()| flattened)
    };
    let flattened = flattened.await;
    if show {
        eprintln!();
    }
    held.release();
    flattened
}

fn go_there(e: Error) -> Error {
    match e.kind() {
        ErrorKind::Busy => e.context("a volume is flattened by its owner"),
        _ => e,
    }
}
