//! The images of a pool: which there are, and those that are in use.
//!
//! One that is in use is a target of its own. Opening and closing of one image exclude each other;
//! different images do not wait for one another.

use crate::cache::disk::DiskCache;
use crate::daemon::control::Outcome;
use crate::daemon::orders::Order;
use crate::daemon::rundir::RunDir;
use crate::daemon::spec::{DoorSpec, TargetSpec};
use crate::daemon::target::Target;
use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::snapshot::SnapshotEntry;
use crate::frontend::fuse::{Catalogue, Facts, Image, ImageName, Lease};
use crate::host::Host;
use crate::pool::backend::Backend;
use crate::pool::{Info, Standing, VolumeSpec, standing};
use crate::volume::{Volume, list_snapshots};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long an image stays open that nobody uses.
const LINGER: Duration = Duration::from_secs(3);

/// The images of a mount.
pub(super) struct Images {
    backend: Backend,
    cache: Option<Arc<DiskCache>>,
    run_dir: RunDir,
    each: TargetSpec,
    dir: PathBuf,
    slots: Mutex<HashMap<String, Arc<Slot>>>,
    closed: AtomicBool,
}

/// One image, open or not.
#[derive(Default)]
struct Slot {
    running: tokio::sync::Mutex<Option<Running>>,
    /// Tells its target to end; beside the lock, which whoever waits for that end holds.
    ordering: Mutex<Option<UnboundedSender<Order>>>,
}

/// An image in use.
struct Running {
    id: VolumeId,
    image: Arc<Image<Volume>>,
    volume: Volume,
    /// When it was last changed before that.
    changed_at_ms: u64,
    task: JoinHandle<Outcome>,
}

impl Slot {
    fn order(&self, force: bool) {
        let ordering = self.ordering.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ordering) = &*ordering {
            // One that has ended needs none.
            let _ = ordering.send(Order { force, client: None });
        }
    }

    fn orders_go_to(&self, ordering: UnboundedSender<Order>) {
        *self.ordering.lock().unwrap_or_else(PoisonError::into_inner) = Some(ordering);
    }
}

impl Running {
    /// It serves, has not failed and is not just ending.
    async fn is_of_use(&self) -> bool {
        let serves = !self.task.is_finished() && self.volume.status().failure.is_none();
        serves && !self.image.is_retired().await
    }

    async fn ended(self) -> Outcome {
        let failed = |e| Outcome { trouble: Some(format!("{e}")), ..Outcome::default() };
        self.task.await.unwrap_or_else(failed)
    }
}

impl Images {
    pub(super) fn new(
        (backend, cache): (Backend, Option<Arc<DiskCache>>),
        run_dir: &RunDir,
        each: TargetSpec,
        dir: &Path,
    ) -> Images {
        let (run_dir, dir) = (run_dir.clone(), dir.to_owned());
        let (slots, closed) = (Mutex::default(), AtomicBool::new(false));
        Images { backend, cache, run_dir, each, dir, slots, closed }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<String, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn every_slot(&self) -> Vec<Arc<Slot>> {
        self.slots().values().cloned().collect()
    }

    /// Of those that are just being opened or closed nothing is said.
    fn volumes_in_use(&self) -> Vec<Volume> {
        let slots = self.every_slot();
        let volume =
            |slot: &Arc<Slot>| Some(slot.running.try_lock().ok()?.as_ref()?.volume.clone());
        slots.iter().filter_map(volume).collect()
    }

    /// Bytes that the store does not have yet.
    pub(super) fn dirty_bytes(&self) -> u64 {
        self.volumes_in_use().iter().map(|volume| volume.status().dirty_bytes).sum()
    }

    /// Makes durable what was written. Errors: store; a volume that failed meanwhile is passed over,
    /// as there is nothing to be done for it.
    pub(super) async fn flush(&self) -> Result<()> {
        for volume in self.volumes_in_use() {
            if let Err(e) = volume.flush().await
                && volume.status().failure.is_none()
            {
                let message = "cannot make durable what was written";
                return Err(Error::new(ErrorKind::Store, message).because(e));
            }
        }
        Ok(())
    }

    /// Closes all of them for good. Returns what came of all together.
    pub(super) async fn close(&self, force: bool) -> Outcome {
        self.closed.store(true, SeqCst);
        let slots = self.every_slot();
        slots.iter().for_each(|slot| slot.order(force));
        let mut all = Outcome::default();
        for slot in slots {
            let Some(running) = slot.running.lock().await.take() else { continue };
            // It may have been opened just before.
            slot.order(force);
            let one = running.ended().await;
            all.lost_bytes += one.lost_bytes;
            all.kept_bytes += one.kept_bytes;
            all.fenced |= one.fenced;
            all.failure = all.failure.or(one.failure);
            all.trouble = all.trouble.or(one.trouble);
        }
        all
    }

    /// Has those that are being closed give up what the store does not take.
    pub(super) fn force(&self) {
        self.every_slot().iter().for_each(|slot| slot.order(true));
    }

    /// Where an image is to be found.
    fn path(&self, name: &VolumeSpec) -> PathBuf {
        match name.snapshot() {
            None => self.dir.join(format!("{name}.raw")),
            Some(snapshot) => {
                let folder = self.dir.join(".snapshots").join(name.volume().as_str());
                folder.join(format!("{snapshot}.raw"))
            }
        }
    }

    async fn start(&self, name: &VolumeSpec, slot: &Slot) -> Result<Running> {
        let spec = TargetSpec {
            volumes: vec![name.clone()],
            read_only: self.each.read_only || name.snapshot().is_some(),
            door: DoorSpec::File { path: self.path(name) },
            ..self.each.clone()
        };
        let (ordering, orders) = unbounded_channel();
        let ground = (self.backend.clone(), self.cache.clone());
        let ears = (ordering.clone(), orders);
        let changed_at_ms = self.look(name).await?.changed_at_ms;
        let target = Target::start_on(&spec, ground, self.run_dir.clone(), ears).await?;
        let id = target.shared.first();
        let file = target.shared.file().await;
        let (_, image) = file.expect("a target of a file has one until it ends");
        let volume = target.shared.opened();
        slot.orders_go_to(ordering);
        let task = tokio::spawn(target.run());
        Ok(Running { id, image, volume, changed_at_ms, task })
    }

    /// What is known of an image that is in use here, without asking the store.
    fn facts_in_use(&self, name: &VolumeSpec) -> Option<Facts> {
        let slot = self.slots().get(name.as_str()).cloned()?;
        let running = slot.running.try_lock().ok()?;
        let Running { id, image, volume, changed_at_ms, .. } = running.as_ref()?;
        let (now, shape) = (volume.status(), volume.geometry());
        if now.failure.is_some() {
            return None;
        }
        let used = now.space.live_bytes.unwrap_or_default();
        let attributes = vec![
            ("name", name.to_string()),
            ("id", id.to_string()),
            ("state", "open".into()),
            ("epoch", now.epoch.to_string()),
            ("block_size", shape.block_size.bytes().to_string()),
            ("chunk_size", shape.optimal_io.to_string()),
            ("used", used.to_string()),
            ("dirty", now.dirty_bytes.to_string()),
        ];
        let (size, read_only) = (shape.size.bytes(), shape.read_only);
        let changed_at_ms = image.changed_at_ms().max(*changed_at_ms);
        Some(Facts { id: id.bytes(), size, used, read_only, changed_at_ms, attributes })
    }

    async fn look(&self, name: &VolumeSpec) -> Result<Facts> {
        let Some(snapshot) = name.snapshot() else {
            let info = self.backend.pool.info(&name.volume()).await?;
            return self.facts_of(&info, name);
        };
        let entries = self.snapshots_of(name).await?;
        let found = entries.into_iter().find(|entry| entry.name == snapshot);
        let entry =
            found.ok_or_else(|| Error::not_found(format!("there is no snapshot {name}")))?;
        let used = entry.live.bytes();
        let attributes = vec![
            ("name", name.to_string()),
            ("id", entry.id.to_string()),
            ("state", "snapshot".into()),
            ("seq", entry.next.to_string()),
            ("used", used.to_string()),
        ];
        Ok(Facts {
            id: entry.id.bytes(),
            size: entry.size.bytes(),
            used,
            read_only: true,
            changed_at_ms: entry.made_at_ms,
            attributes,
        })
    }

    fn facts_of(&self, info: &Info, name: &VolumeSpec) -> Result<Facts> {
        let (volume, ownership) = (&info.volume, &info.ownership);
        let state = match standing(ownership, &Host::local()?) {
            Standing::Free => "free",
            Standing::Orphaned(_) => "unclean",
            Standing::OwnedHere(_) | Standing::OwnedElsewhere(_) => "in-use",
        };
        let used = ownership.live.bytes();
        let attributes = vec![
            ("name", name.to_string()),
            ("id", volume.id.to_string()),
            ("state", state.into()),
            ("epoch", ownership.epoch.to_string()),
            ("block_size", volume.block_size.to_string()),
            ("chunk_size", volume.chunk_size.to_string()),
            ("used", used.to_string()),
            ("snapshots", ownership.snapshots.to_string()),
        ];
        Ok(Facts {
            id: volume.id.bytes(),
            size: ownership.size.bytes(),
            used,
            read_only: self.each.read_only,
            changed_at_ms: ownership.checkpoint_at_ms.max(volume.created_at_ms),
            attributes,
        })
    }

    /// The snapshots of the volume of `name`.
    async fn snapshots_of(&self, name: &VolumeSpec) -> Result<Vec<SnapshotEntry>> {
        let (id, _) = self.backend.pool.lookup(&name.volume()).await?;
        let mut entries = list_snapshots(&*self.backend.stores.setup, id).await?;
        entries.retain(|entry| !entry.deleted);
        Ok(entries)
    }
}

/// Closes an image once nobody has used it for a while.
async fn close_when_idle(slot: Arc<Slot>, image: Arc<Image<Volume>>) {
    let mut leases = image.leases();
    loop {
        if leases.wait_for(|leases| *leases == 0).await.is_err() {
            return;
        }
        if timeout(LINGER, leases.wait_for(|leases| *leases > 0)).await.is_ok() {
            continue;
        }
        let mut running = slot.running.lock().await;
        if running.as_ref().is_none_or(|now| !Arc::ptr_eq(&now.image, &image)) {
            return;
        }
        if *leases.borrow() > 0 {
            continue;
        }
        slot.order(false);
        if let Some(ending) = running.take() {
            let outcome = ending.ended().await;
            if let Some(trouble) = outcome.failure.or(outcome.trouble) {
                tracing::error!("closed after its last use: {trouble}");
            }
        }
        return;
    }
}

/// The name of an image; none where it cannot be one.
fn spec(name: &ImageName) -> Option<VolumeSpec> {
    name.to_string().parse().ok()
}

impl Catalogue for Images {
    type Device = Volume;

    async fn volumes(&self) -> Result<Vec<String>> {
        Ok(self.backend.pool.names().await?.into_iter().map(|(name, _)| name).collect())
    }

    async fn snapshots(&self, volume: &str) -> Result<Vec<String>> {
        let name: VolumeSpec = volume.parse()?;
        let entries = self.snapshots_of(&name).await?;
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }

    async fn find(&self, name: &ImageName) -> Result<Option<Facts>> {
        let Some(name) = spec(name) else { return Ok(None) };
        if let Some(facts) = self.facts_in_use(&name) {
            return Ok(Some(facts));
        }
        match self.look(&name).await {
            // Busy: its deletion was begun.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Busy) => Ok(None),
            // It is encrypted, and what was given does not open it.
            Err(e) if matches!(e.kind(), ErrorKind::Usage | ErrorKind::Failed) => {
                tracing::warn!("{name} is left out: {e}");
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    async fn open(&self, name: &ImageName) -> Result<Lease<Volume>> {
        let missing = || Error::not_found(format!("there is no {name}"));
        let name = spec(name).ok_or_else(missing)?;
        let slot = Arc::clone(self.slots().entry(name.to_string()).or_default());
        let mut running = slot.running.lock().await;
        if self.closed.load(SeqCst) {
            return Err(Error::failed("the directory is being unmounted"));
        }
        if let Some(now) = &*running
            && now.is_of_use().await
        {
            return Ok(now.image.lease());
        }
        if let Some(ending) = running.take() {
            // One that has failed has nothing to end for but this; its users have had their errors.
            slot.order(false);
            ending.ended().await;
        }
        let started = self.start(&name, &slot).await?;
        let (image, lease) = (Arc::clone(&started.image), started.image.lease());
        *running = Some(started);
        drop(running);
        tokio::spawn(close_when_idle(slot, image));
        Ok(lease)
    }
}
