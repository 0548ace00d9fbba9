//! An idle volume asks its store for nothing but whether it was taken over.

use crate::rig::{Rig, owner, pattern, range, read, write};
use objblk::clock::SystemClock;
use objblk::device::BlockDevice;
use objblk::gc::Limits;
use objblk::store::metrics::MetricsStore;
use objblk::volume::{Env, Mode, Stores, Volume};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const SIZE: u64 = 64 << 20;
const HOUR: Duration = Duration::from_secs(3600);

/// A volume whose requests are counted.
async fn counted(rig: &Rig, mode: Mode) -> (Volume, Arc<MetricsStore>) {
    let metrics = Arc::new(MetricsStore::new(rig.store.clone()));
    let env = Env { runtime: tokio::runtime::Handle::current(), clock: Arc::new(SystemClock) };
    let mut options = rig.options.clone();
    options.mode = mode;
    let stores = Stores::one(metrics.clone());
    (Volume::open(env, stores, rig.id, owner(1), options).await.unwrap(), metrics)
}

fn requests(metrics: &MetricsStore) -> BTreeMap<String, u64> {
    let operations = metrics.snapshot().operations.into_iter();
    operations.map(|(name, operation)| (name, operation.requests)).collect()
}

/// What an hour of idleness costs, by operation.
async fn idle_hour(metrics: &MetricsStore) -> BTreeMap<String, u64> {
    let before = requests(metrics);
    tokio::time::sleep(HOUR).await;
    let after = requests(metrics).into_iter();
    after
        .map(|(name, count)| (name.clone(), count - before[&name]))
        .filter(|(_, n)| *n > 0)
        .collect()
}

/// Every kind of change, overwritten, so that there is garbage to collect as well.
async fn use_it(volume: &Volume) {
    for round in 0..20 {
        for at in 0..40 {
            write(volume, at * 64, &pattern(at * 64, 64, round)).await.unwrap();
        }
        volume.discard(range(round * 8, 8)).await.unwrap();
    }
    // Half of every chunk.
    for at in 0..40 {
        volume.discard(range(at * 64, 32)).await.unwrap();
    }
    // Neither flushed nor full: it is sealed by its age.
    write(volume, 7, &pattern(7, 1, 99)).await.unwrap();
    read(volume, 0, 2000).await.unwrap();
}

async fn is_quiet(every: Option<Duration>, beats: u64) {
    let mut rig = Rig::new(1, SIZE).await;
    // So eager that there is something to collect here.
    let eager = Limits { bound_percent: 100, slack_bytes: 0, ..Limits::default() };
    rig.options.collection = Some(eager);
    rig.options.watch_every = every;
    let expected: BTreeMap<String, u64> =
        [("head".to_owned(), beats)].into_iter().filter(|(_, n)| *n > 0).collect();
    let (volume, metrics) = counted(&rig, Mode::ReadWrite { takeover: false }).await;
    // Nothing was written yet, but that somebody came.
    tokio::time::sleep(rig.options.checkpoint_after * 3).await;
    assert_eq!(idle_hour(&metrics).await, expected, "before the first write");
    use_it(&volume).await;
    tokio::time::sleep(rig.options.checkpoint_after * 3).await;
    assert_eq!(volume.status().dirty_bytes, 0);
    assert_eq!(volume.status().map.changes, 0, "a checkpoint was made");
    let space = volume.status().space;
    assert!(space.collected_chunks > 0 && space.stored_bytes == space.live_bytes, "{space:?}");
    assert_eq!(idle_hour(&metrics).await, expected, "after the last checkpoint");
    volume.close().await.unwrap();
    assert_eq!(idle_hour(&metrics).await, BTreeMap::new(), "closed");
}

#[tokio::test(start_paused = true)]
async fn an_idle_volume_only_beats() {
    is_quiet(Some(Duration::from_secs(10)), 360).await;
    is_quiet(Some(Duration::from_secs(60)), 60).await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_volume_without_heartbeat_asks_for_nothing() {
    is_quiet(None, 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_view_asks_for_nothing() {
    let rig = Rig::new(1, SIZE).await;
    let volume = rig.open().await;
    use_it(&volume).await;
    volume.close().await.unwrap();
    let (view, metrics) = counted(&rig, Mode::ReadOnly).await;
    read(&view, 0, 2000).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(idle_hour(&metrics).await, BTreeMap::new());
}

/// Who goes first is decided by the store that a request is made to.
#[tokio::test(start_paused = true)]
async fn checkpoints_and_deletion_and_read_ahead_are_background_work() {
    let rig = Rig::new(1, SIZE).await;
    let (live, background) = (
        Arc::new(MetricsStore::new(rig.store.clone())),
        Arc::new(MetricsStore::new(rig.store.clone())),
    );
    let env = Env { runtime: tokio::runtime::Handle::current(), clock: Arc::new(SystemClock) };
    let stores =
        Stores { setup: rig.store.clone(), live: live.clone(), background: background.clone() };
    let mut options = rig.options.clone();
    (options.watch_every, options.cache_bytes) = (None, 4 << 20);
    let volume = Volume::open(env, stores, rig.id, owner(1), options).await.unwrap();
    use_it(&volume).await;
    write(&volume, 8192, &pattern(8192, 8192, 1)).await.unwrap();
    volume.flush().await.unwrap();
    tokio::time::sleep(rig.options.checkpoint_after * 3).await;
    let (users, others) = (requests(&live), requests(&background));
    let chunks = volume.status().next_seq;
    assert!(users["put"] > 0 && users["put"] <= chunks, "chunks only: {users:?} of {chunks}");
    assert_eq!((users["delete"], users["head"], users["list"]), (0, 0, 0), "{users:?}");
    assert!(others["put"] >= 2 && others["delete"] > 0, "a leaf, a checkpoint: {others:?}");

    // Pushes everything out of the cache, then reads in sequence.
    write(&volume, 65536, &pattern(65536, 16384, 2)).await.unwrap();
    volume.flush().await.unwrap();
    for at in (8192..12288).step_by(64) {
        assert_eq!(read(&volume, at, 64).await.unwrap(), pattern(at, 64, 1));
    }
    assert!(requests(&live)["get"] > users["get"], "the first reads");
    assert!(requests(&background)["get"] > others["get"], "what was read ahead");
    volume.close().await.unwrap();
}
