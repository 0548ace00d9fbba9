//! An idle volume asks its store for nothing but whether it was taken over.

use crate::rig::{Rig, owner, pattern, range, read, write};
use objblk::clock::SystemClock;
use objblk::device::BlockDevice;
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
    // Neither flushed nor full: it is sealed by its age.
    write(volume, 7, &pattern(7, 1, 99)).await.unwrap();
    read(volume, 0, 2000).await.unwrap();
}

async fn is_quiet(every: Option<Duration>, beats: u64) {
    let mut rig = Rig::new(1, SIZE).await;
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
    assert_eq!(volume.status().map_changes, 0, "a checkpoint was made");
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
