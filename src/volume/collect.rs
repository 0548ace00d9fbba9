//! Collection at work: when, how far, and at what pace. What it knows and wants is
//! [`gc`](crate::gc)'s; how chunks are emptied is in [`victims`].
//!
//! After each checkpoint the collector learns the pages of live counts that it changed. While the
//! bound is exceeded it empties victims, in batches; they die with the next checkpoint. Without
//! changes there is no checkpoint, so an idle volume is not looked at; nor is one that is only read.
//!
//! How moves and users take turns is [`pace`](super::pace)'s. While the victims of one batch are
//! moved, those of the next are read, as background work of the store's limiter.

use super::Volume;
use super::checkpoint;
use super::options::SpaceStatus;
use super::pace::{Pace, Tempo, hold_back, patiently};
use super::shared::Shared;
use super::state::State;
use super::victims::{self, Batch};
use crate::error::{Error, ErrorKind, Result};
use crate::format::checkpoint::Checkpoint;
use crate::format::page::ItemRef;
use crate::gc::{Candidate, Choice, Cost, Knowledge, Limits, Space};
use crate::sync::{Mutex, Notify};
use crate::units::{SECTOR_SIZE, Seq};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Sectors that are moved in one batch, unless one chunk has more: two batches bound memory.
const BATCH: u64 = (16 << 20) / SECTOR_SIZE;
/// Turns of `collect` after which what is left is left: somebody writes as fast.
const ROUNDS: usize = 64;

/// The newest checkpoint of this owner.
#[derive(Clone, Debug)]
struct Seen {
    next: Seq,
    live: u64,
    /// What had been appended when it began.
    appended: u64,
    root: Arc<BTreeMap<u64, ItemRef>>,
    /// The newest snapshot, or an ancestor, has every slot before.
    kept_before: Seq,
    /// Sectors in chunks, once they are counted.
    stored: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Work {
    pub knowledge: Knowledge,
    /// The bound was exceeded and is not met yet.
    active: bool,
    /// There were too many small chunks, and some can still be merged.
    merging: bool,
    /// What is read already.
    next: Option<(Batch, Tempo)>,
}

/// The collector of a volume.
#[derive(Debug)]
pub(super) struct Collection {
    /// A checkpoint was made.
    due: Notify,
    seen: Mutex<Option<Seen>>,
    /// Chunks that were emptied.
    pub chunks: AtomicUsize,
    /// How often the whole map was asked for what is live.
    pub sweeps: AtomicUsize,
    /// Somebody waits until all is collected.
    pub hurried: AtomicUsize,
    pub work: tokio::sync::Mutex<Work>,
    limits: Option<Limits>,
}

/// What a collection has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Collected {
    /// Chunks that were emptied.
    pub chunks: u64,
    /// Bytes that were moved out of them.
    pub moved_bytes: u64,
    /// Bytes in chunks before.
    pub stored_before: u64,
    /// Bytes in chunks.
    pub stored_bytes: u64,
    /// Of them, those that the volume's contents are.
    pub live_bytes: u64,
}

impl Collected {
    /// Bytes that are stored for each one that is live.
    pub fn ratio(&self) -> Option<f64> {
        (self.live_bytes > 0).then(|| self.stored_bytes as f64 / self.live_bytes as f64)
    }
}

impl Collection {
    pub fn new(limits: Option<Limits>, chunk_size: u64) -> Collection {
        let choice = limits.map_or(Choice::default(), |limits| limits.choice);
        let knowledge = Knowledge::new(choice, (chunk_size / SECTOR_SIZE) as u32);
        Collection {
            due: Notify::new(),
            seen: Mutex::new(None),
            chunks: AtomicUsize::new(0),
            sweeps: AtomicUsize::new(0),
            hurried: AtomicUsize::new(0),
            work: tokio::sync::Mutex::new(Work {
                knowledge,
                active: false,
                merging: false,
                next: None,
            }),
            limits,
        }
    }

    /// A checkpoint was made, of all that was appended until then.
    pub fn look_at(&self, shared: &Shared, checkpoint: &Checkpoint, appended: u64) {
        let Some(limits) = &self.limits else { return };
        let live = checkpoint.live.0;
        shared.state().traffic.interval = limits.interval(live);
        let root = Arc::new(checkpoint.chunk_root.iter().copied().collect());
        let first = shared.lineage.first_slot();
        let kept_before = checkpoint.snapshots.last().map_or(first, |newest| newest.next);
        let seen = Seen { next: checkpoint.next, live, appended, root, kept_before, stored: None };
        *self.seen.lock().unwrap_or_else(|e| e.into_inner()) = Some(seen);
        self.due.notify_one();
    }

    fn seen(&self) -> Option<Seen> {
        self.seen.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    fn counted(&self, next: Seq, stored: u64) {
        let mut seen = self.seen.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(seen) = seen.as_mut().filter(|seen| seen.next == next) {
            seen.stored = Some(stored);
        }
    }

    pub fn status(&self, state: &State) -> SpaceStatus {
        let seen = self.seen();
        let traffic = &state.traffic;
        let since = |seen: &Seen| traffic.appended - seen.appended;
        let stored = seen.as_ref().and_then(|seen| Some(seen.stored? + since(seen)));
        let live = seen.as_ref().map(|seen| seen.live);
        let by = |a: u64, b: u64| (b > 0).then(|| a as f64 / b as f64);
        SpaceStatus {
            stored_bytes: stored.map(|n| n * SECTOR_SIZE),
            live_bytes: live.map(|n| n * SECTOR_SIZE),
            ratio: stored.zip(live).and_then(|(stored, live)| by(stored, live)),
            bound: self.limits.map(|limits| f64::from(limits.bound_percent) / 100.0),
            written_bytes: traffic.written * SECTOR_SIZE,
            moved_bytes: traffic.moved * SECTOR_SIZE,
            collected_chunks: self.chunks.load(Relaxed) as u64,
            write_amplification: by(traffic.appended, traffic.written),
            writers_wait: state.line.hold < u64::MAX,
        }
    }
}

/// Begins the collector of an owner.
pub(super) fn start(shared: &Arc<Shared>) {
    if let (Some(limits), false) = (shared.options.collection, shared.is_read_only()) {
        shared.start_task(task(shared.clone(), limits));
    }
}

async fn task(shared: Arc<Shared>, limits: Limits) {
    loop {
        shared.collection.due.notified().await;
        let mut pace = Pace::new(&shared, Tempo::steady(0));
        loop {
            match round(&shared, &limits, &mut pace).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) if shared.state().check().is_err() => return,
                Err(why) => {
                    // Nobody waits for what is not going on.
                    pace.go_on(Tempo::steady(0));
                    tracing::warn!(volume = %shared.id, "collection stops for now: {why}");
                    // What is damaged is looked at again when there is something new.
                    if why.kind() != ErrorKind::Store {
                        break;
                    }
                    tokio::time::sleep(checkpoint::RETRY_AFTER).await;
                }
            }
        }
    }
}

/// Empties one batch of victims, and reads the next. False: there is nothing to be done.
async fn round(shared: &Arc<Shared>, limits: &Limits, pace: &mut Pace<'_>) -> Result<bool> {
    let mut work = patiently(shared, shared.collection.work.lock()).await;
    // Those of a round before were emptied, or are not going to be.
    work.knowledge.begin(&[]);
    let Some((mut batch, tempo)) = (match work.next.take() {
        Some(next) => Some(next),
        None => read(shared, limits, &mut work).await?,
    }) else {
        return Ok(false);
    };
    work.knowledge.begin(batch.chosen());
    pace.go_on(tempo);
    let moving = victims::relocate_all(shared, &mut batch, pace);
    let (moved, next) = tokio::join!(moving, read(shared, limits, &mut work));
    pace.step_aside();
    moved?;
    victims::settle(shared, &mut work.knowledge, batch).await?;
    work.next = next?;
    Ok(true)
}

/// Chooses victims, and reads them.
async fn read(
    shared: &Arc<Shared>,
    limits: &Limits,
    work: &mut Work,
) -> Result<Option<(Batch, Tempo)>> {
    let Some(seen) = learn(shared, &mut work.knowledge).await? else { return Ok(None) };
    let since = shared.state().traffic.appended - seen.appended;
    let Space { kept, live } = work.knowledge.space();
    let space = Space { kept: kept + since, live };
    let (chosen, cost) = plan(work, limits, space, seen.next);
    if chosen.is_empty() {
        return Ok(None);
    }
    let tempo = Tempo {
        rate: limits.rate_percent(space, cost),
        sectors: cost.moved,
        // Who asks for more than the volume's own bound has nobody wait for it.
        is_strict: shared.options.collection.is_some_and(|own| own.is_far(space)),
    };
    if tempo.is_strict {
        hold_back(shared);
    }
    let batch = victims::read(shared, &mut work.knowledge, chosen).await?;
    Ok(Some((batch, tempo)))
}

fn plan(work: &mut Work, limits: &Limits, space: Space, now: Seq) -> (Vec<Candidate>, Cost) {
    work.active |= limits.is_due(space);
    let excess = limits.excess(space);
    if work.active && excess > 0 {
        let (chosen, cost) = work.knowledge.choose(limits, excess, BATCH, now);
        if !chosen.is_empty() {
            return (chosen, cost);
        }
    }
    work.active = false;
    // Not for every single one: as many as there are, once there are too many.
    work.merging |= work.knowledge.small_excess(space.live) > 0;
    if !work.merging {
        return Default::default();
    }
    let (chosen, cost) = work.knowledge.choose_small(BATCH);
    work.merging = !chosen.is_empty();
    (chosen, cost)
}

/// Learns what the newest checkpoint changed; `None` while there is none.
async fn learn(shared: &Shared, knowledge: &mut Knowledge) -> Result<Option<Seen>> {
    loop {
        let Some(seen) = shared.collection.seen() else { return Ok(None) };
        match learn_pages(shared, knowledge, &seen).await {
            Ok(()) => {
                shared.collection.counted(seen.next, knowledge.stored());
                return Ok(Some(seen));
            }
            // A newer checkpoint may have replaced a page meanwhile.
            Err(why) => match shared.collection.seen() {
                Some(newer) if newer.next != seen.next => {}
                _ => return Err(why),
            },
        }
    }
}

async fn learn_pages(shared: &Shared, knowledge: &mut Knowledge, seen: &Seen) -> Result<()> {
    knowledge.kept_before(seen.kept_before);
    for (index, item) in knowledge.outdated(&seen.root) {
        let page = patiently(shared, shared.items.chunk_page(item)).await?;
        knowledge.learn((index, item), &page, seen.next, seen.root.len());
    }
    Ok(())
}

/// Counts who waits for a collection.
struct Hurry<'a>(&'a AtomicUsize);

impl<'a> Hurry<'a> {
    fn new(hurried: &'a AtomicUsize) -> Hurry<'a> {
        hurried.fetch_add(1, Relaxed);
        Hurry(hurried)
    }
}

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Volume {
    /// Collects now, until what chunks hold is at most `bound_percent` of what is live (`None`: as
    /// the volume's options say), or nothing more is to be gained; then deletes what died.
    ///
    /// # Errors
    /// Usage: the volume is open read-only, or a bound below 100. Those of a checkpoint.
    ///
    /// Cancellation: what was moved is moved.
    pub async fn collect(&self, bound_percent: Option<u32>) -> Result<Collected> {
        let shared = &self.shared;
        if shared.is_read_only() {
            return Err(Error::usage("the volume is open read-only"));
        }
        let mut limits = shared.options.collection.unwrap_or_default();
        limits.bound_percent = bound_percent.unwrap_or(limits.bound_percent);
        limits.slack_bytes = 0;
        if limits.bound_percent < 100 {
            return Err(Error::usage("chunks cannot hold less than what is live"));
        }
        let _hurry = Hurry::new(&shared.collection.hurried);
        let chunks = || shared.collection.chunks.load(Relaxed) as u64;
        let moved = || shared.state().traffic.moved * SECTOR_SIZE;
        let (chunks_before, moved_before) = (chunks(), moved());
        let mut stored_before = None;
        for _ in 0..ROUNDS {
            // What died is deleted, and the rest counted again.
            checkpoint::run(shared, checkpoint::Kind::Running).await?;
            learn(shared, &mut shared.collection.work.lock().await.knowledge).await?;
            let stored = shared.status().space.stored_bytes;
            stored_before = stored_before.or(stored);
            let mut pace = Pace::new(shared, Tempo::steady(0));
            if !round(shared, &limits, &mut pace).await? {
                break;
            }
            while round(shared, &limits, &mut pace).await? {}
        }
        let space = shared.status().space;
        Ok(Collected {
            chunks: chunks() - chunks_before,
            moved_bytes: moved() - moved_before,
            stored_before: stored_before.unwrap_or_default(),
            stored_bytes: space.stored_bytes.unwrap_or_default(),
            live_bytes: space.live_bytes.unwrap_or_default(),
        })
    }
}
