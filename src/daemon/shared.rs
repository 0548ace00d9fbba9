use super::control::{Phase, SnapshotAction, SnapshotReport, TargetStatus, VolumeReport};
use super::desk::Desks;
use super::door::Door;
use super::spec::TargetSpec;
use super::state::{Attached, Serving};
use crate::error::{Error, ErrorKind, Result};
use crate::format::schedule::Rule;
use crate::format::{SnapshotId, VolumeId};
use crate::frontend::fuse::Image;
use crate::pool::backend::Backend;
use crate::store::Key;
use crate::units::{SECTOR_SIZE, SectorCount};
use crate::volume::{Collected, Durability, Flattened, Mended, Volume};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::RwLock;

/// What a target serves, as its main loop and its control socket both see it.
#[derive(Debug)]
pub(super) struct Shared {
    phase: Mutex<Phase>,
    volumes: Vec<(Attached, Volume)>,
    backend: Backend,
    token: u64,
    successor: Option<TargetSpec>,
    /// Empty once it was stopped.
    door: RwLock<Option<Door>>,
    /// Held while a volume grows: one that two let grow must not shrink between them.
    growing: tokio::sync::Mutex<()>,
    pub(super) desks: Desks,
}

impl Shared {
    /// Of at least one volume. `token` marks the block device, if there is one; `successor` is to
    /// bring it back if this process dies.
    pub(super) fn new(
        volumes: Vec<(Attached, Volume)>,
        door: Door,
        backend: Backend,
        (token, successor): (u64, Option<TargetSpec>),
    ) -> Shared {
        let (phase, door) = (Mutex::new(Phase::Attached), RwLock::new(Some(door)));
        volumes.iter().for_each(|(_, volume)| volume.keep_schedule());
        let (growing, desks) = (tokio::sync::Mutex::default(), Desks::default());
        Shared { phase, volumes, backend, token, successor, door, growing, desks }
    }

    /// The volume by which the target's files are named.
    pub(super) fn first(&self) -> VolumeId {
        self.volumes[0].0.id
    }

    /// The store and its layers.
    pub(super) fn store(&self) -> &Backend {
        &self.backend
    }

    /// That volume.
    pub(super) fn opened(&self) -> Volume {
        self.volumes[0].1.clone()
    }

    pub(super) fn attached(&self) -> Vec<Attached> {
        self.volumes.iter().map(|(attached, _)| attached.clone()).collect()
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    /// Bytes that the store does not have yet.
    pub(super) fn dirty_bytes(&self) -> u64 {
        self.volumes.iter().map(|(_, volume)| volume.status().dirty_bytes).sum()
    }

    /// Why a volume fails all requests, if one does.
    pub(super) fn failure(&self) -> Option<String> {
        self.volumes.iter().find_map(|(attached, volume)| {
            let why = volume.status().failure?;
            Some(format!("volume {}: {why}", attached.name))
        })
    }

    /// True where another owner has a volume.
    pub(super) fn is_fenced(&self) -> bool {
        self.volumes.iter().any(|(_, volume)| volume.status().fenced)
    }

    /// The volumes that have not failed.
    pub(super) fn sound(&self) -> Vec<Volume> {
        self.by_failure(false)
    }

    /// The volumes that have failed.
    pub(super) fn failed(&self) -> Vec<Volume> {
        self.by_failure(true)
    }

    fn by_failure(&self, failed: bool) -> Vec<Volume> {
        let volumes = self.volumes.iter().map(|(_, volume)| volume);
        volumes.filter(|volume| volume.status().failure.is_some() == failed).cloned().collect()
    }

    pub(super) async fn block_device(&self) -> Option<PathBuf> {
        let door = self.door.read().await;
        door.as_ref().and_then(Door::block_device).map(|(path, _)| path)
    }

    /// Who uses the frontend, where that is known, and where they do.
    pub(super) async fn user(&self) -> Option<(PathBuf, String)> {
        self.door.read().await.as_ref().and_then(Door::user)
    }

    /// The file that shows the volume, where it is one, and what it shows.
    pub(super) async fn file(&self) -> Option<(PathBuf, Arc<Image<Volume>>)> {
        self.door.read().await.as_ref().and_then(Door::file)
    }

    pub(super) async fn take_door(&self) -> Option<Door> {
        self.door.write().await.take()
    }

    /// Returns when the frontend has ended by itself.
    pub(super) async fn door_ended(&self) {
        match &*self.door.read().await {
            Some(door) => door.ended().await,
            None => std::future::pending().await,
        }
    }

    /// What the state file says.
    pub(super) async fn serving(&self) -> Serving {
        let door = self.door.read().await;
        let door = door.as_ref().expect("the frontend runs while the target is announced");
        let dev_id = door.block_device().map(|(_, dev_id)| dev_id);
        Serving {
            store: self.backend.pool.store().url(),
            frontend: door.kind(),
            dev_id,
            token: (dev_id.is_some() || self.successor.is_some()).then_some(self.token),
            successor: self.successor.clone(),
            volumes: self.attached(),
        }
    }

    /// Collects what is dead in the chunks of a volume. Errors: not found; those of the volume.
    pub(super) async fn collect(
        &self,
        id: VolumeId,
        bound_percent: Option<u32>,
    ) -> Result<Collected> {
        self.volume(id)?.collect(bound_percent).await
    }

    /// Has a clone do without its origin. Errors: not found; those of the volume.
    pub(super) async fn flatten(&self, id: VolumeId) -> Result<Flattened> {
        self.volume(id)?.flatten(&mut |_| ()).await
    }

    /// Makes whole what is damaged of a volume. Errors: usage, where one is no name; not found; those of the volume.
    pub(super) async fn mend(&self, id: VolumeId, objects: &[String]) -> Result<Vec<Mended>> {
        let key = |name: &String| {
            Key::new(name).ok_or_else(|| Error::usage(format!("{name:?} is no name of an object")))
        };
        let objects = objects.iter().map(key).collect::<Result<Vec<Key>>>()?;
        self.volume(id)?.mend(&objects).await
    }

    /// Does something about the snapshots of a volume. Errors: not found; those of the volume.
    pub(super) async fn snapshots(
        &self,
        id: VolumeId,
        (action, token): (SnapshotAction, SnapshotId),
    ) -> Result<Vec<SnapshotReport>> {
        act(self.volume(id)?, action, token).await
    }

    /// Lets a volume grow, then its block device, or has a virtual machine told; who is connected over NBD
    /// knows nothing of it. Returns its size before, in bytes. A volume that has that size already has its
    /// device looked at: an attempt before may have come no further.
    ///
    /// Errors: not found; usage, where it is larger already or that is no size; busy, where the frontend
    /// cannot; those of the volume; those of the frontend, where the volume has grown and the device has
    /// not.
    pub(super) async fn grow(&self, id: VolumeId, size: u64) -> Result<u64> {
        let (attached, volume) = self.served(id)?;
        let door = self.door.read().await;
        let text = format!("volume {} is attached", attached.name);
        // Held to the end, so that the device is not stopped meanwhile.
        let Some(door) = door.as_ref() else {
            return Err(Error::new(ErrorKind::Busy, format!("{text}, and being detached")));
        };
        door.check_growth().await.map_err(|e| {
            let text = format!("{text} by process {} as a block device", std::process::id());
            Error::new(ErrorKind::Busy, text).because(e)
        })?;
        let _turn = self.growing.lock().await;
        let old = volume.status().size;
        if size < old {
            let text = format!("{text} and has {old} bytes, more than that");
            return Err(Error::usage(text).hint("a volume shrinks only while it is detached"));
        }
        if !size.is_multiple_of(SECTOR_SIZE) {
            return Err(Error::usage(format!("{size} bytes are not whole sectors")));
        }
        let size = SectorCount(size / SECTOR_SIZE);
        if size.bytes() != old {
            volume.resize(size).await?;
            // Other hosts read the size there.
            if let Err(e) = volume.checkpoint().await {
                tracing::warn!("{} has grown, others see that later: {e}", attached.name);
            }
        }
        let shown = door.grow(size).await;
        shown.map_err(|e| e.context(format!("{} has grown, its device has not", attached.name)))?;
        Ok(old)
    }

    /// Sets the schedule of a volume. Errors: not found; those of the volume.
    pub(super) async fn set_schedule(&self, id: VolumeId, rules: Vec<Rule>) -> Result<()> {
        self.volume(id)?.set_schedule(rules).await
    }

    /// Sets how long the past of a volume is kept. Errors: not found; those of the volume.
    pub(super) async fn retain(&self, id: VolumeId, time_ms: Option<u64>) -> Result<()> {
        self.volume(id)?.retain(time_ms.map(Duration::from_millis)).await
    }

    /// The volumes, and what is said of them.
    pub(super) fn volumes(&self) -> &[(Attached, Volume)] {
        &self.volumes
    }

    fn volume(&self, id: VolumeId) -> Result<&Volume> {
        self.served(id).map(|(_, volume)| volume)
    }

    fn served(&self, id: VolumeId) -> Result<&(Attached, Volume)> {
        let served = self.volumes.iter().find(|(attached, _)| attached.id == id);
        served.ok_or_else(|| Error::not_found(format!("volume {id} is not served here")))
    }

    /// What `status` says.
    pub(super) async fn status(&self) -> TargetStatus {
        let door = self.door.read().await;
        let report = |(attached, volume): &(Attached, Volume)| {
            let now = volume.status();
            VolumeReport {
                name: attached.name.clone(),
                id: attached.id,
                device: attached.device.clone(),
                size: now.size,
                epoch: now.epoch,
                read_only: now.read_only,
                dirty_bytes: now.dirty_bytes,
                lag_ms: now.lag_ms,
                max_dirty_bytes: now.max_dirty_bytes,
                max_lag_ms: now.max_lag_ms,
                durable_locally: now.durability == Durability::Local,
                journal: now.journal,
                copies: self.backend.pace(attached.id),
                recoverable: now.recoverable,
                failure: now.failure,
                cache_hits: now.cache_hits,
                cache_misses: now.cache_misses,
                cache_bytes: now.cache_bytes,
                disk_cache: now.disk_cache,
                map: now.map,
                space: now.space,
                scrub: now.scrub,
                source: now.source,
                frontend: door.as_ref().map(|d| d.counters(&attached.name)).unwrap_or_default(),
            }
        };
        TargetStatus {
            phase: *self.phase.lock().unwrap_or_else(PoisonError::into_inner),
            volumes: self.volumes.iter().map(report).collect(),
            store: serde_json::to_value(self.backend.metrics()).unwrap_or_default(),
            paths: self.backend.paths().map(|paths| paths.store().report()),
        }
    }
}

/// Does something about the snapshots of an open volume. `token`: what one that is made is called.
///
/// Errors: those of the volume.
pub async fn act(
    volume: &Volume,
    action: SnapshotAction,
    token: SnapshotId,
) -> Result<Vec<SnapshotReport>> {
    let entries = match action {
        SnapshotAction::Make(name) => vec![volume.make_snapshot(token, &name).await?],
        SnapshotAction::Delete(name) => vec![volume.delete_snapshot(&name).await?],
        SnapshotAction::Keep(name) => vec![volume.keep_snapshot(&name).await?],
        SnapshotAction::List => volume.snapshots(),
    };
    Ok(entries.into_iter().map(SnapshotReport::from).collect())
}
