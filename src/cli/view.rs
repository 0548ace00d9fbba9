//! A volume or one of its snapshots, to be read.

use crate::daemon::{RunDir, environment};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::snapshot::SnapshotEntry;
use crate::format::stream::{StreamHeader, StreamState};
use crate::format::volume::VolumeObject;
use crate::host::Host;
use crate::image::{Images, Outside};
use crate::pool::VolumeSpec;
use crate::pool::backend::Backend;
use crate::volume::{Mode, Moment, Volume, VolumeOptions, find_snapshot, list_snapshots, original};
use std::sync::Arc;

/// Memory for frames that are read in parts.
const CACHE_BYTES: u64 = 32 << 20;

/// A snapshot that is open to be read.
#[derive(Debug)]
pub(super) struct View {
    pub name: VolumeSpec,
    pub volume: Volume,
    pub id: VolumeId,
    pub entry: SnapshotEntry,
    description: VolumeObject,
}

impl View {
    /// Opens the snapshot. Errors: not found; those of opening one.
    pub async fn open(backend: &Backend, name: &VolumeSpec) -> Result<View> {
        let (id, description) = backend.pool.lookup(&name.volume()).await?;
        let snapshot = name.snapshot().ok_or_else(|| {
            Error::usage(format!("{name} names no snapshot"))
                .hint(format!("make one with `objblk snapshot create {name}@SNAP`"))
        })?;
        let found = find_snapshot(&*backend.stores.setup, id, snapshot).await;
        let found = found.map_err(|e| e.context(format!("cannot read {name}")))?;
        let entry = found.entry.clone();
        let stores = backend.stores.clone();
        let volume = Volume::open_snapshot(environment(), stores, found, options()).await?;
        Ok(View { name: name.clone(), volume, id, entry, description })
    }

    /// What it is, wherever copies of it are.
    async fn state(&self, backend: &Backend) -> Result<StreamState> {
        Ok(StreamState {
            snapshot: original(&*backend.stores.setup, self.id, self.entry.id).await?,
            name: self.entry.name.clone(),
            size: self.entry.size,
            made_at_ms: self.entry.made_at_ms,
        })
    }

    /// The header of a stream that leads from `base` to this one. Errors: usage, where it is not
    /// older; those of the store.
    pub async fn header(&self, backend: &Backend, base: Option<&View>) -> Result<StreamHeader> {
        if let Some(base) = base.filter(|base| base.entry.next >= self.entry.next) {
            let text = format!("{} is not older than {}", base.name, self.name);
            return Err(Error::usage(text).hint("name an older snapshot with --from"));
        }
        let base = match base {
            Some(base) => Some(base.state(backend).await?),
            None => None,
        };
        Ok(StreamHeader {
            volume: self.id,
            block_size: self.description.block(),
            chunk_size: self.description.chunk_size,
            to: self.state(backend).await?,
            base,
        })
    }

    /// The error of who reads it, if it was deleted meanwhile.
    pub async fn explain(&self, backend: &Backend, e: Error) -> Error {
        if e.kind() != ErrorKind::Corrupt {
            return e;
        }
        match list_snapshots(&*backend.stores.setup, self.id).await {
            Ok(entries) if !entries.iter().any(|entry| entry.id == self.entry.id) => {
                Error::not_found(format!("{} was deleted meanwhile", self.name))
            }
            _ => e,
        }
    }
}

/// The volume as it was at a moment. Errors: not found, where that is not kept.
pub(super) async fn at_moment(backend: &Backend, id: VolumeId, moment: Moment) -> Result<Volume> {
    let options = VolumeOptions { at: Some(moment), ..options() };
    let owner = Host::local()?.owner();
    Volume::open(environment(), backend.stores.clone(), id, owner, options).await
}

fn options() -> VolumeOptions {
    let images: Option<Arc<dyn Images>> = Some(Arc::new(Outside));
    VolumeOptions { cache_bytes: CACHE_BYTES, images, ..VolumeOptions::default() }
}

/// Does this with a volume or one of its snapshots. The volume as it is must be nobody's.
pub(super) async fn with<T>(
    backend: &Backend,
    name: &VolumeSpec,
    work: impl AsyncFnOnce(&Volume) -> Result<T>,
) -> Result<T> {
    if name.snapshot().is_some() {
        let view = View::open(backend, name).await?;
        let done = work(&view.volume).await;
        return match done {
            Err(e) => Err(view.explain(backend, e).await),
            done => done,
        };
    }
    let (id, _) = backend.pool.lookup(&name.volume()).await?;
    let snapshot_it = |e: Error| match e.kind() {
        ErrorKind::Busy => {
            let text = "only snapshots of a volume in use can be compared";
            Error::new(ErrorKind::Busy, text).because(e)
        }
        _ => e,
    };
    let held = RunDir::open()?.take(&[(id, name.clone())]).map_err(snapshot_it)?;
    let done = async {
        let options = VolumeOptions { mode: Mode::ReadOnly, ..options() };
        let owner = Host::local()?.owner();
        let opened = Volume::open(environment(), backend.stores.clone(), id, owner, options).await;
        work(&opened.map_err(snapshot_it)?).await
    };
    let done = done.await;
    held.release();
    done
}
