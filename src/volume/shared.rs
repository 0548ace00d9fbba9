//! What all parts of an open volume share, and its background tasks.

use super::checkpoint::{self, Checkpointer};
use super::collect::Collection;
use super::hydrate::Hydration;
use super::items::Items;
use super::local;
use super::options::{Durability, Env, JournalStatus, Stores, VolumeOptions, VolumeStatus};
use super::profile::{ProfileUse, Recorder};
use super::readahead::Readers;
use super::room::Limits;
use super::schedule::Schedule;
use super::scrub::Scrub;
use super::snapshots::Snapshots;
use super::state::{Phase, State};
use super::tier::Tier;
use crate::cache::{FrameCache, FrameId};
use crate::cipher::LocalKey;
use crate::error::{Error, ErrorKind, Result};
use crate::flight::Flights;
use crate::format::VolumeId;
use crate::format::chunk::FRAME_SIZE;
use crate::format::keys::{self, ChunkId};
use crate::format::lineage::Lineage;
use crate::format::volume::VolumeObject;
use crate::journal::mirror::{Mirror, Unneeded};
use crate::log::SealedChunk;
use crate::log::fetch::{FetchResult, Fetcher};
use crate::log::upload::UploadSink;
use crate::mutant::{self, Mutant};
use crate::store::StoreErrorKind;
use crate::sync::{Mutex, MutexGuard, Notified, Notify};
use crate::units::{Epoch, SECTOR_SIZE, Seq};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::task::AbortHandle;

#[derive(Debug)]
pub(super) struct Shared {
    pub id: VolumeId,
    /// The owner's term; 0 for read-only.
    pub epoch: Epoch,
    pub description: VolumeObject,
    /// Of the description.
    pub lineage: Lineage,
    pub env: Env,
    pub stores: Stores,
    pub options: VolumeOptions,
    /// Of the options.
    pub limits: Limits,
    state: Mutex<State>,
    /// The commit point moved, or the volume failed. Wakes in the order of asking, so that a
    /// simulated world replays exactly.
    progress: Notify,
    pub frames: FrameCache,
    /// The cache behind `frames`.
    pub disk: Option<Tier>,
    /// What seals the local files of an encrypted volume.
    pub local_key: Option<Arc<LocalKey>>,
    pub frame_flights: Flights<FrameId, FetchResult<Bytes>>,
    pub fetcher: Fetcher,
    pub items: Arc<Items>,
    pub readers: Readers,
    /// Notes what is read, where the options say so.
    pub recorder: Option<Recorder>,
    /// The journal has something to write, or may have room for it.
    pub journal_due: Notify,
    /// The open chunk has its first change.
    pub changed: Notify,
    /// Users wait for the collector.
    pub moves_due: Notify,
    /// A checkpoint should begin.
    pub checkpoint_due: Notify,
    pub checkpointer: tokio::sync::Mutex<Checkpointer>,
    pub collection: Collection,
    snapshots: Mutex<Snapshots>,
    /// What the volume lacks of its source, if it lacks anything.
    hydration: OnceLock<Arc<Hydration>>,
    pub schedule: Schedule,
    pub scrub: Scrub,
    /// Held while files of the mirror are removed.
    shortening: Mutex<()>,
    tasks: Mutex<Vec<AbortHandle>>,
}

/// What [`Shared::new`] is made of.
pub(super) struct Parts {
    pub description: VolumeObject,
    pub epoch: Epoch,
    pub env: Env,
    pub stores: Stores,
    pub options: VolumeOptions,
    pub state: State,
    pub items: Arc<Items>,
    pub checkpointer: Checkpointer,
    pub snapshots: Snapshots,
}

impl Shared {
    pub fn new(parts: Parts) -> Shared {
        let chunk_size = parts.description.chunk_size;
        let collection = Collection::new(parts.options.collection, chunk_size);
        let local_key = local::local_key(&*parts.stores.setup, parts.description.id);
        Shared {
            id: parts.description.id,
            epoch: parts.epoch,
            lineage: parts.description.lineage(),
            description: parts.description,
            fetcher: Fetcher::default(),
            frames: FrameCache::new(parts.options.cache_bytes),
            disk: parts.options.disk_cache.clone().map(|cache| Tier::new(cache, local_key.clone())),
            local_key,
            frame_flights: Flights::default(),
            items: parts.items,
            env: parts.env,
            stores: parts.stores,
            readers: Readers::new(),
            recorder: (parts.options.profile == Some(ProfileUse::Record)).then(Recorder::default),
            limits: Limits::of(&parts.options, chunk_size),
            options: parts.options,
            state: Mutex::new(parts.state),
            progress: Notify::new(),
            journal_due: Notify::new(),
            changed: Notify::new(),
            moves_due: Notify::new(),
            checkpoint_due: Notify::new(),
            checkpointer: tokio::sync::Mutex::new(parts.checkpointer),
            collection,
            snapshots: Mutex::new(parts.snapshots),
            hydration: OnceLock::new(),
            schedule: Schedule::new(),
            scrub: Scrub::default(),
            shortening: Mutex::new(()),
            tasks: Mutex::new(Vec::new()),
        }
    }

    /// The state, locked.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it changes the volume's state")
    }

    /// What the volume lacks of its source, if it lacks anything.
    pub fn hydration(&self) -> Option<&Arc<Hydration>> {
        self.hydration.get()
    }

    /// The volume lacks something of its source.
    pub fn hydrates(&self, hydration: Hydration) {
        // It is told once, when the volume is opened.
        let _ = self.hydration.set(Arc::new(hydration));
    }

    /// The snapshots, locked: for a moment, and last where the state is locked as well.
    pub fn snapshots(&self) -> MutexGuard<'_, Snapshots> {
        self.snapshots.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn is_read_only(&self) -> bool {
        self.epoch == Epoch(0)
    }

    /// Waits until every slot before `target` is committed.
    pub async fn wait_committed(&self, target: Seq) -> Result<()> {
        loop {
            let progress = self.next_progress();
            {
                let state = self.state();
                if state.commit.next() >= target {
                    return Ok(());
                }
                if let Phase::Failed(why) = &state.phase {
                    return Err(Error::new(why.kind(), why.to_string()));
                }
            }
            progress.await;
        }
    }

    /// Why the volume has failed.
    pub fn failure(&self) -> Error {
        match &self.state().phase {
            Phase::Failed(why) => Error::new(why.kind(), why.to_string()),
            _ => Error::failed("the volume is closed"),
        }
    }

    /// Has everybody who waits look again.
    pub fn wake(&self) {
        self.progress.notify_waiters();
    }

    /// Waits for the commit point to move or the volume to fail, from the moment of this call on.
    pub fn next_progress(&self) -> Notified<'_> {
        // Woken by `notify_waiters` from its creation on, polled or not.
        self.progress.notified()
    }

    /// Fails all requests, now and later.
    pub fn fail(&self, why: Error) {
        tracing::error!(volume = %self.id, "the device fails all I/O: {why}");
        self.state().fail(why);
        self.wake();
    }

    pub fn abandon(&self) -> u64 {
        let lost = self.state().abandon();
        self.wake();
        lost
    }

    /// Begins the background tasks of an owner.
    pub fn start_tasks(self: &Arc<Shared>, uploader: impl Future<Output = ()> + Send + 'static) {
        let runtime = &self.env.runtime;
        let tasks = [
            runtime.spawn(uploader).abort_handle(),
            runtime.spawn(local::write_journal(self.clone())).abort_handle(),
            runtime.spawn(seal_by_age(self.clone())).abort_handle(),
            runtime.spawn(watch_owner(self.clone(), self.options.watch_every)).abort_handle(),
            runtime.spawn(checkpoint::task(self.clone())).abort_handle(),
        ];
        self.tasks.lock().unwrap_or_else(|e| e.into_inner()).extend(tasks);
    }

    /// Begins one more.
    pub fn start_task(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.note_task(self.env.runtime.spawn(task).abort_handle());
    }

    /// Does `work` to its end, whether or not its caller waits; only the end of the volume ends it.
    ///
    /// # Errors
    /// Those of the work; those of the volume where it has ended.
    pub async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let task = self.env.runtime.spawn(work);
        self.note_task(task.abort_handle());
        task.await.unwrap_or_else(|_| Err(self.failure()))
    }

    fn note_task(&self, task: AbortHandle) {
        let mut tasks = self.tasks.lock().unwrap_or_else(|e| e.into_inner());
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    pub fn stop_tasks(&self) {
        self.state().uploads = None;
        for task in self.tasks.lock().unwrap_or_else(|e| e.into_inner()).drain(..) {
            task.abort();
        }
    }

    pub fn chunk_id(&self, state: &State, seq: Seq) -> ChunkId {
        self.lineage.chunk(seq, state.terms.epoch_of(seq))
    }

    pub fn status(&self) -> VolumeStatus {
        let (cache_hits, cache_misses) = self.frames.hits_and_misses();
        let cache_bytes = self.frames.bytes();
        let state = self.state();
        VolumeStatus {
            size: state.size.bytes(),
            epoch: self.epoch.0,
            read_only: self.is_read_only(),
            dirty_bytes: state.dirty(),
            lag_ms: millis(state.lag()),
            max_dirty_bytes: state.most.0.max(state.dirty()),
            max_lag_ms: millis(state.most.1.max(state.lag())),
            durability: match state.working_journal() {
                Some(_) => Durability::Local,
                None => Durability::Object,
            },
            journal: self.journal_status(&state),
            next_seq: state.commit.next().0,
            failure: match &state.phase {
                Phase::Failed(why) => Some(why.to_string()),
                _ => None,
            },
            recoverable: state.mirror.is_some() && state.check().is_ok(),
            fenced: matches!(&state.phase, Phase::Failed(why) if why.kind() == ErrorKind::Fenced),
            cache_hits,
            cache_misses,
            cache_bytes,
            disk_cache: self.disk.as_ref().map(Tier::status),
            map: self.items.status(state.map.changes()),
            space: self.collection.status(&state),
            scrub: self.scrub.status(),
            source: self.hydration().map(|hydration| hydration.status()),
        }
    }

    fn journal_status(&self, state: &State) -> Option<JournalStatus> {
        let (options, stage) = (self.options.journal.as_ref()?, state.journal.as_ref()?);
        Some(JournalStatus {
            path: options.disk.name(),
            size: options.disk.size(),
            used_bytes: stage.used_bytes(),
            failure: state.journal_failure.clone(),
        })
    }

    /// Lets the mirror forget what the store has, or the journal.
    pub fn shorten_mirror(&self) {
        // One after the other: a successor must find no gap between segments.
        let _turn = self.shortening.lock().unwrap_or_else(|e| e.into_inner());
        let unneeded = self.state().shorten_mirror();
        if unneeded.is_empty() {
            return;
        }
        let spares: Vec<Unneeded> = unneeded.into_iter().filter_map(Unneeded::retire).collect();
        let left = match &mut self.state().mirror {
            Some(mirror) => mirror.keep(spares, self.limits.dirty_bytes),
            None => spares,
        };
        left.into_iter().for_each(Unneeded::remove);
    }

    /// Gives back the memory that waits for writes: the volume is idle.
    pub(super) fn give_back(&self) {
        let (payloads, files) = {
            let mut state = self.state();
            (state.open.take_spares(), state.mirror.as_mut().map(Mirror::take_spares))
        };
        drop(payloads);
        files.into_iter().flatten().for_each(Unneeded::remove);
    }

    pub(super) fn cache_payload(&self, chunk: &SealedChunk) {
        let id = ChunkId { volume: self.id, epoch: self.epoch, seq: chunk.seq };
        chunk.payload.for_each_part(FRAME_SIZE, |index, frame| {
            self.frames.insert(FrameId { chunk: id, index }, frame);
        });
    }

    /// The store has this chunk: it goes to the disk cache as well.
    fn offer_payload(&self, chunk: &SealedChunk) {
        let Some(disk) = &self.disk else { return };
        let id = ChunkId { volume: self.id, epoch: self.epoch, seq: chunk.seq };
        chunk.payload.for_each_part(FRAME_SIZE, |index, frame| {
            disk.offer(FrameId { chunk: id, index }, frame);
        });
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[async_trait]
impl UploadSink for Shared {
    fn window(&self) -> Seq {
        let state = self.state();
        Seq(state.commit.next().0 + self.limits.window(&state, self.description.chunk_size))
    }

    async fn chunk(&self, seq: Seq) -> Result<Arc<SealedChunk>> {
        self.sealed_chunk(seq).await
    }

    fn stored(&self, chunk: &SealedChunk) {
        let sectors = (chunk.payload.len() as u64 / SECTOR_SIZE) as u32;
        self.state().payloads.insert(chunk.seq, sectors);
        self.cache_payload(chunk);
        self.offer_payload(chunk);
    }

    fn uploaded(&self, seq: Seq) {
        let due = {
            let mut state = self.state();
            state.uploaded(seq);
            state.map.changes() >= self.options.checkpoint_extents
                || state.slots_since_checkpoint >= self.options.checkpoint_slots
                || state.traffic.is_much()
        };
        self.shorten_mirror();
        self.wake();
        self.journal_due.notify_one();
        if due {
            self.checkpoint_due.notify_one();
        }
    }

    fn lost(&self, why: Error) {
        self.fail(why);
    }
}

/// Seals a chunk that has waited long enough to be filled.
async fn seal_by_age(shared: Arc<Shared>) {
    loop {
        shared.changed.notified().await;
        let seq = shared.state().open.seq();
        tokio::time::sleep(shared.options.seal_after).await;
        let mut state = shared.state();
        if state.open.seq() == seq && state.open.is_changed() {
            state.seal();
        }
    }
}

/// Looks now and then whether somebody claimed the next epoch; if so, tries to commit a chunk,
/// which shows whether the claimant has fenced this owner.
async fn watch_owner(shared: Arc<Shared>, every: Option<Duration>) {
    let Some(every) = every else { return };
    let next = keys::epoch(shared.id, shared.epoch.next());
    loop {
        tokio::time::sleep(every).await;
        if mutant::on(Mutant::WatchIgnored) {
            continue;
        }
        match shared.stores.live.head(&next).await {
            Ok(_) => {
                let Ok(target) = shared.state().probe() else { return };
                if shared.wait_committed(target).await.is_err() {
                    return;
                }
            }
            Err(e) if e.kind == StoreErrorKind::NotFound => {}
            Err(e) => tracing::warn!("cannot look whether this owner was fenced: {e}"),
        }
    }
}
