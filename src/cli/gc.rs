//! Collecting what is dead, on demand.

use super::{Context, owner, size, volume};
use crate::daemon::{Request, RunDir};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::pool::VolumeName;
use crate::pool::backend::Backend;
use crate::volume::Collected;
use serde_json::json;

/// What chunks hold after `--full`, in percent of what is live.
const NOTHING_DEAD: u32 = 100;

/// Has the volume's owner collect; owns it for that time, if nobody does.
pub(super) async fn gc(context: &Context, name: &VolumeName, full: bool) -> Result<()> {
    let bound_percent = full.then_some(NOTHING_DEAD);
    let backend = context.open().await?;
    let (id, _) = backend.pool.lookup(name).await?;
    let request = Request::Collect { volume: id, bound_percent };
    let collected = match owner::ask(context, &backend, (id, name), request).await {
        Ok(Some(reply)) => reply.collected(),
        Ok(None) => detached(&backend, &RunDir::open()?, (id, name), bound_percent).await,
        Err(e) => Err(e),
    };
    let done = collected.map_err(|e| e.context(format!("cannot collect {name}")))?;
    let document = json!({
        "name": name,
        "collected_chunks": done.chunks,
        "moved_bytes": done.moved_bytes,
        "stored_bytes_before": done.stored_before,
        "stored_bytes": done.stored_bytes,
        "live_bytes": done.live_bytes,
        "ratio": done.ratio(),
    });
    context.show(&document, || {
        let (before, after) = (size::show(done.stored_before), size::show(done.stored_bytes));
        let (live, moved) = (size::show(done.live_bytes), size::show(done.moved_bytes));
        let chunks = done.chunks;
        format!(
            "{name}: {before} -> {after} stored, {live} live; {moved} moved from {chunks} chunks"
        )
    })
}

async fn detached(
    backend: &Backend,
    run_dir: &RunDir,
    (id, name): (VolumeId, &VolumeName),
    bound_percent: Option<u32>,
) -> Result<Collected> {
    let held = run_dir.take(&[(id, name.clone().into())])?;
    let collected = async {
        let volume = volume::own(backend, id, name).await.map_err(go_there)?;
        let collected = volume.collect(bound_percent).await;
        let closed = volume.close().await;
        let collected = collected?;
        closed.map(|()| collected)
    };
    let collected = collected.await;
    held.release();
    collected
}

fn go_there(e: Error) -> Error {
    match e.kind() {
        ErrorKind::Busy => e.context("a volume is collected by its owner"),
        _ => e,
    }
}
