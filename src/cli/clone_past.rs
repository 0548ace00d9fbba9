//! Clones of what a volume was at a moment of its past.
//!
//! What is pinned for a clone is a snapshot, and there is none of that moment. So a snapshot is made of the volume
//! now, and a clone of that; then what differs is copied into the clone from the past, and last it gets its name.
//! It costs what has changed since, and nothing of the past is kept any longer for its sake.

use super::snapshot;
use super::view::{self, View};
use super::{Context, delete, render, size, volume};
use crate::clock::{Clock, SystemClock};
use crate::daemon::SnapshotAction;
use crate::error::{Error, Result};
use crate::format::VolumeId;
use crate::pool::backend::Backend;
use crate::pool::{VolumeName, VolumeSpec};
use crate::transfer::progress::Progress;
use crate::transfer::stream::{PutBack, put_back};
use crate::volume::{Moment, Volume};
use serde_json::json;

/// Makes `new` of the volume `of` as it was at a moment; `called` is what that is shown as.
pub(super) async fn clone(
    context: &Context,
    (of, moment, called): (&VolumeName, Moment, &VolumeSpec),
    new: &VolumeName,
) -> Result<()> {
    let backend = context.open().await?;
    let cannot = |e: Error| e.context(format!("cannot clone {called}"));
    let (id, _) = backend.pool.lookup(of).await?;
    // Whether that moment is there is known before anything is made.
    let past = view::at_moment(&backend, id, moment).await.map_err(cannot)?;
    let label = format!("clone-{}", render::stamp(SystemClock.now_ms()));
    let now: VolumeSpec = format!("{of}@{label}").parse()?;
    let made = snapshot::run(context, of, SnapshotAction::Make(label.clone())).await;
    made.map_err(|e| cannot(e.context(format!("cannot make {now}"))))?;
    match fill(&backend, (&past, &now), new).await {
        Ok((id, put)) => {
            let document = json!({
                "name": new, "id": id, "parent": now, "of": called,
                "data_bytes": put.data_bytes, "zero_bytes": put.zero_bytes,
            });
            let copied = size::show(put.data_bytes);
            eprintln!("objblk: {copied} that had changed since were copied; its parent is {now}");
            context.show(&document, || new.to_string())
        }
        Err(e) => {
            if let Err(left) = snapshot::run(context, of, SnapshotAction::Delete(label)).await {
                eprintln!("objblk: the snapshot {now} is left: {left}");
            }
            Err(cannot(e))
        }
    }
}

async fn fill(
    backend: &Backend,
    (past, now): (&Volume, &VolumeSpec),
    new: &VolumeName,
) -> Result<(VolumeId, PutBack)> {
    let base = View::open(backend, now).await?;
    let of = now.snapshot().unwrap_or_default();
    let begun = backend.pool.begin_clone(&now.volume(), of, new).await?;
    let filled = async {
        let volume = volume::own(backend, begun.id, new).await?;
        let progress = Progress::shown(None, format!("cloning into {new}"), false);
        let put = put_back(past, &base.volume, &volume, &|bytes| progress.add(bytes)).await;
        let closed = volume.close().await;
        if closed.is_err() {
            volume.abandon();
        }
        let put = put?;
        closed?;
        progress.finish();
        backend.pool.name_clone(&begun, new).await.map(|()| put)
    };
    match filled.await {
        Ok(put) => Ok((begun.id, put)),
        Err(e) => {
            if let Err(left) = discard(backend, begun.id).await {
                eprintln!(
                    "objblk: what was begun is left, delete it with `objblk delete {}`: {left}",
                    begun.id
                );
            }
            Err(e)
        }
    }
}

/// Removes a clone that has no name.
async fn discard(backend: &Backend, id: VolumeId) -> Result<()> {
    let by = delete::executioner(backend, true)?;
    match backend.pool.left_over(&id.to_string().parse()?).await? {
        Some(begun) => backend.pool.purge(&begun, &by).await.map(drop),
        None => Ok(()),
    }
}
