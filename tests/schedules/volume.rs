//! Group flush and back-pressure: writers, flushers and a store that takes chunks in any order.
//!
//! The engine's state, its lock and what waits for commits are the product's files. Not here:
//! reads, checkpoints, and the task that puts chunks (here each PUT is a thread that reports to the
//! same sink).

#![allow(dead_code)]

#[path = "../../src/volume/backlog.rs"]
mod backlog;
#[path = "../../src/volume/local.rs"]
mod local;
#[path = "../../src/volume/readahead.rs"]
mod readahead;
#[path = "../../src/volume/room.rs"]
mod room;
#[path = "../../src/volume/shared.rs"]
mod shared;
#[path = "../../src/volume/state.rs"]
mod state;
#[path = "../../src/volume/tier.rs"]
mod tier;
#[path = "../../src/volume/write.rs"]
mod write;

mod options {
    pub(super) use objblk::volume::{
        DiskCacheStatus, Durability, Env, JournalStatus, SpaceStatus, Stores, VolumeOptions,
        VolumeStatus,
    };
}

/// No owner comes after another one here.
mod takeover {
    use crate::journal::ring::Stage;
    use crate::units::Seq;

    #[derive(Debug)]
    pub(super) struct TakenOver {
        pub stage: Stage,
        pub slots: Vec<(Seq, u64)>,
    }
}

/// No checkpoints are made here.
mod checkpoint {
    use super::shared::Shared;
    use std::sync::Arc;

    #[derive(Debug)]
    pub(super) struct Checkpointer;

    pub(super) async fn task(_: Arc<Shared>) {}
}

/// Nor is anything collected.
mod collect {
    use super::options::SpaceStatus;
    use super::state::State;
    use objblk::gc::Limits;

    #[derive(Debug)]
    pub(super) struct Collection;

    impl Collection {
        pub fn new(_: Option<Limits>, _: u64) -> Collection {
            Collection
        }

        pub fn status(&self, _: &State) -> SpaceStatus {
            SpaceStatus::default()
        }
    }
}

/// Nothing is read here.
mod items {
    use objblk::volume::MapStatus;

    #[derive(Debug)]
    pub(super) struct Items;

    impl Items {
        pub fn status(&self, changes: usize) -> MapStatus {
            MapStatus { changes, ..MapStatus::default() }
        }
    }
}

/// Nor recorded.
mod profile {
    pub(super) use objblk::volume::ProfileUse;

    #[derive(Debug, Default)]
    pub(super) struct Recorder;
}

/// Nor kept.
mod snapshots {
    #[derive(Debug, Default)]
    pub(super) struct Snapshots;
}

/// Nor fetched from elsewhere.
mod hydrate {
    use objblk::volume::SourceStatus;

    #[derive(Debug)]
    pub(super) struct Hydration;

    impl Hydration {
        pub fn status(&self) -> SourceStatus {
            unreachable!("no volume here has a source")
        }
    }
}

/// Nor made by themselves.
mod schedule {
    #[derive(Debug)]
    pub(super) struct Schedule;

    impl Schedule {
        pub fn new() -> Schedule {
            Schedule
        }
    }
}

/// Nor verified.
mod scrub {
    use objblk::volume::ScrubStatus;

    #[derive(Debug, Default)]
    pub(super) struct Scrub(());

    impl Scrub {
        pub fn status(&self) -> Option<ScrubStatus> {
            None
        }
    }
}

use crate::clock::SystemClock;
use crate::error::{Error, ErrorKind};
use crate::format::VolumeId;
use crate::format::checkpoint::Term;
use crate::format::features::Features;
use crate::format::volume::VolumeObject;
use crate::log::upload::UploadSink;
use crate::log::{OpenChunk, Terms};
use crate::map::{Base, Map};
use crate::store::memory::MemoryStore;
use crate::units::{Epoch, Sector, SectorCount, SectorRange, Seq};
use shared::{Parts, Shared};
use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;
use state::State;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// First slot of this owner.
const FIRST: u64 = 5;
const CHUNK: u64 = 256 << 10;
const SECTORS: u64 = 1 << 16;

/// Needed to make a volume; nothing runs on it.
static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().build().unwrap());

/// A volume, and what its store holds. The lock is looked at between two steps only.
#[derive(Clone)]
struct World {
    shared: Arc<Shared>,
    stored: Arc<Mutex<BTreeSet<u64>>>,
}

impl World {
    fn new(dirty_bytes: u64) -> (World, UnboundedReceiver<Seq>) {
        let store = Arc::new(MemoryStore::new());
        let env = options::Env { runtime: RUNTIME.handle().clone(), clock: Arc::new(SystemClock) };
        let description = VolumeObject {
            version: 1,
            id: VolumeId::from_bytes([7; 16]),
            size: SECTORS * 512,
            block_size: 512,
            chunk_size: CHUNK,
            features: Features::default(),
            created_at_ms: 0,
            ancestors: Vec::new(),
            source: None,
            mac: None,
        };
        let (sender, sealed) = unbounded_channel();
        let open = OpenChunk::first_of_term(Seq(FIRST), CHUNK);
        let terms = Terms::new(vec![Term { first: Seq(0), epoch: Epoch(1) }]);
        let map = Map::new(Base::default());
        let size = SectorCount(SECTORS);
        let parts = Parts {
            description,
            epoch: Epoch(1),
            env,
            stores: options::Stores::one(store),
            options: options::VolumeOptions { dirty_bytes, ..options::VolumeOptions::default() },
            state: State::new(size, map, open, terms, Some(sender)),
            items: Arc::new(items::Items),
            checkpointer: checkpoint::Checkpointer,
            snapshots: snapshots::Snapshots,
        };
        let shared = Arc::new(Shared::new(parts));
        (World { shared, stored: Arc::default() }, sealed)
    }

    /// A store that takes every chunk, each by a thread of its own. Ends with the volume.
    fn serve(&self, mut sealed: UnboundedReceiver<Seq>) -> thread::JoinHandle<usize> {
        let world = self.clone();
        thread::spawn(move || {
            let mut puts = Vec::new();
            while let Some(seq) = block_on(sealed.recv()) {
                let chunk = block_on(world.shared.sealed_chunk(seq)).unwrap();
                let world = world.clone();
                puts.push(thread::spawn(move || {
                    // Long enough now and then that as many are in flight as there may be.
                    (0..thread_rng().gen_range(0..SLOWEST)).for_each(|_| thread::yield_now());
                    assert!(world.stored.lock().unwrap().insert(chunk.seq.0), "put twice");
                    let seq = chunk.seq;
                    world.shared.stored(&chunk);
                    drop(chunk);
                    world.shared.uploaded(seq);
                }));
            }
            let count = puts.len();
            puts.into_iter().for_each(|put| put.join().unwrap());
            count
        })
    }

    /// Ends what [`World::serve`] began. Returns the number of chunks.
    fn end(&self, store: thread::JoinHandle<usize>) -> usize {
        self.shared.state().uploads = None;
        store.join().unwrap()
    }

    /// Writes `sectors` at a place of the caller's own; the slot that holds the last of them.
    fn write(&self, at: u64, sectors: u64) -> Result<u64, ()> {
        block_on(self.shared.write(Sector(at), &vec![1; sectors as usize * 512])).map_err(drop)?;
        let last = SectorRange::between(Sector(at + sectors - 1), Sector(at + sectors));
        Ok(self.shared.state().map.covering(last).expect("it was just written").seq.0)
    }

    /// Everything up to `slot` is in the store.
    fn is_stored(&self, slot: u64) -> bool {
        let stored = self.stored.lock().unwrap();
        (FIRST..=slot).all(|seq| stored.contains(&seq))
    }

    /// Everything that was sealed has left memory, and all of it is committed.
    fn check_quiet(&self) {
        let state = self.shared.state();
        assert!(state.sealed.is_empty(), "{} chunks are left in memory", state.sealed.len());
        assert_eq!(state.commit.next(), state.open.seq());
    }
}

/// Steps that a PUT takes at most.
const SLOWEST: usize = 60;

/// The fewest chunks that a schedule took for its flushes.
static FEWEST: AtomicUsize = AtomicUsize::new(usize::MAX);
/// Flushes that found so many chunks in flight that they waited for their turn.
static QUEUED: AtomicUsize = AtomicUsize::new(0);
const FLUSHES: usize = 8;

fn flushes() {
    let (world, sealed) = World::new(1 << 20);
    let store = world.serve(sealed);
    let clients: Vec<_> = (0..FLUSHES as u64)
        .map(|client| {
            let world = world.clone();
            thread::spawn(move || {
                let slot = world.write(client * 64, 8).unwrap();
                let target = world.shared.state().flush_target();
                QUEUED.fetch_add(usize::from(world.shared.state().open.seq() < target), Relaxed);
                block_on(world.shared.wait_committed(target)).unwrap();
                // No second flush: it would seal what this one should have had sealed.
                assert!(world.is_stored(slot), "a flush before its write was committed");
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert_eq!(world.shared.state().dirty(), 0);
    world.check_quiet();
    let chunks = world.end(store);
    assert!((1..=FLUSHES).contains(&chunks), "{chunks} chunks for {FLUSHES} flushes");
    FEWEST.fetch_min(chunks, Relaxed);
}

#[test]
fn flushes_wait_for_their_writes_and_share_chunks() {
    crate::explore(flushes);
    let (fewest, queued) = (FEWEST.load(Relaxed), QUEUED.load(Relaxed));
    eprintln!("{fewest} chunks at least for {FLUSHES} flushes; {queued} flushes waited their turn");
    assert!(queued > 0, "no schedule had enough chunks in flight");
    assert!(fewest < FLUSHES / 2, "{fewest} chunks or more for {FLUSHES} flushes in any schedule");
}

/// Writers that go on without flushing meet flushers; a probe seals now and then.
fn mixed() {
    let (world, sealed) = World::new(1 << 20);
    let store = world.serve(sealed);
    let clients: Vec<_> = (0..4u64)
        .map(|client| {
            let world = world.clone();
            thread::spawn(move || {
                let mut last = 0;
                for turn in 0..3 {
                    last = world.write(client * 64 + turn * 8, 8).unwrap();
                    if client == 0 {
                        let range = SectorRange::between(Sector(0), Sector(SECTORS));
                        let record = crate::format::record::Record::Trim(range);
                        // Others' places as well: only their maps change, not their slots.
                        block_on(world.shared.clear(
                            SectorRange::between(Sector(SECTORS - 8), Sector(SECTORS)),
                            record,
                        ))
                        .unwrap();
                    }
                    if client == 1 {
                        let target = world.shared.state().probe().unwrap();
                        block_on(world.shared.wait_committed(target)).unwrap();
                        assert!(world.is_stored(target.0 - 1));
                    }
                }
                block_on(world.shared.flush()).unwrap();
                assert!(world.is_stored(last), "a flush before its write was committed");
            })
        })
        .collect();
    let watcher = {
        let world = world.clone();
        thread::spawn(move || {
            let mut before = Seq(FIRST);
            for _ in 0..12 {
                let now = world.shared.state().commit.next();
                assert!(now >= before, "the commit point went back");
                assert!(now.0 == FIRST || world.is_stored(now.0 - 1), "told before it was stored");
                before = now;
            }
        })
    };
    clients.into_iter().for_each(|client| client.join().unwrap());
    watcher.join().unwrap();
    world.check_quiet();
    world.end(store);
}

#[test]
fn commits_are_told_in_order_and_never_early() {
    crate::explore(mixed);
}

/// Writers against a budget of one small chunk: each waits until the store has taken others'.
fn back_pressure() {
    let (world, sealed) = World::new(4 << 10);
    let store = world.serve(sealed);
    let clients: Vec<_> = (0..4u64)
        .map(|client| {
            let world = world.clone();
            thread::spawn(move || {
                for turn in 0..3 {
                    world.write(client * 64 + turn * 8, 8).unwrap();
                    // A write begins below the budget, so it is exceeded by one write at most.
                    let dirty = world.shared.state().dirty();
                    assert!(dirty <= (8 << 10) + 256, "{dirty} bytes are dirty");
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    block_on(world.shared.flush()).unwrap();
    world.check_quiet();
    world.end(store);
}

#[test]
fn writers_that_wait_for_room_go_on() {
    crate::explore(back_pressure);
}

/// A slot is lost to another owner at some moment: nobody hangs, and no flush lies.
fn loss() {
    let (world, sealed) = World::new(4 << 10);
    let store = world.serve(sealed);
    let clients: Vec<_> = (0..4u64)
        .map(|client| {
            let world = world.clone();
            thread::spawn(move || {
                for turn in 0..2 {
                    let Ok(slot) = world.write(client * 64 + turn * 8, 8) else { return };
                    match block_on(world.shared.flush()) {
                        Ok(()) => assert!(world.is_stored(slot), "a flush that lied"),
                        Err(_) => assert!(world.shared.status().failure.is_some()),
                    }
                }
            })
        })
        .collect();
    let thief = {
        let shared = world.shared.clone();
        thread::spawn(move || shared.lost(Error::new(ErrorKind::Fenced, "another owner")))
    };
    clients.into_iter().for_each(|client| client.join().unwrap());
    thief.join().unwrap();
    assert!(world.write(0, 8).is_err(), "a volume that lost a slot takes writes");
    assert!(block_on(world.shared.flush()).is_err(), "a volume that lost a slot flushes");
    world.end(store);
}

#[test]
fn a_loss_hangs_nobody_and_no_flush_lies() {
    crate::explore(loss);
}
