//! Who goes first where the store answers slowly and to few at once.

use crate::rig::{Rig, owner, pattern, read, write};
use objblk::clock::SystemClock;
use objblk::device::BlockDevice;
use objblk::store::fault::{Fault, FaultStore, Moment, Rule};
use objblk::store::limit::{Bounds, Class, Limiter};
use objblk::store::retry::{RetryPolicy, RetryStore};
use objblk::store::{Op, Store};
use objblk::volume::{Env, Mode, Stores, Volume, VolumeOptions};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

const SIZE: u64 = 64 << 20;
/// Sectors of a full chunk of the rig.
const CHUNK: u64 = 512;
const TRIP: Duration = Duration::from_millis(20);

/// The volume, read through a store that is a round trip away and takes two requests at once.
async fn far_away(rig: &Rig) -> Volume {
    let faulty = FaultStore::new(Arc::new(rig.memory.clone()), 1);
    let far = Fault::Delay { at: Moment::After, from: TRIP, to: TRIP };
    faulty.handle().add(Rule::new(far).on(&[Op::Get]));
    let limiter = Arc::new(Limiter::new(Bounds { total: 2, writes: 1 }));
    let store = |class| {
        let rng = StdRng::seed_from_u64(1);
        let retry = RetryStore::new(Arc::new(faulty.clone()), RetryPolicy::default(), rng);
        Arc::new(retry.through(limiter.clone(), class)) as Arc<dyn Store>
    };
    let (live, background) = (store(Class::Foreground), store(Class::Background));
    let stores = Stores { setup: live.clone(), live, background };
    let env = Env { runtime: tokio::runtime::Handle::current(), clock: Arc::new(SystemClock) };
    let options =
        VolumeOptions { mode: Mode::ReadOnly, cache_bytes: 32 << 20, ..rig.options.clone() };
    Volume::open(env, stores, rig.id, owner(2), options).await.unwrap()
}

/// A successor reads a long log ahead and puts its fence meanwhile: what it reads must not keep the
/// turn that the fence needs.
#[tokio::test(start_paused = true)]
async fn a_takeover_needs_few_turns() {
    let rig = Rig::new(1, SIZE).await;
    let rig = Rig { options: VolumeOptions { checkpoint_slots: 1000, ..rig.options }, ..rig };
    let volume = rig.open().await;
    for number in 0..200 {
        write(&volume, 0, &pattern(0, 8, number)).await.unwrap();
        volume.flush().await.unwrap();
    }
    drop(volume);
    for total in [1, 2, 4, 12] {
        let limiter = Arc::new(Limiter::new(Bounds { total, writes: 1 }));
        let far = FaultStore::new(Arc::new(rig.memory.clone()), 1);
        far.handle().add(Rule::new(Fault::Delay { at: Moment::After, from: TRIP, to: TRIP }));
        let store = |class| {
            let policy =
                RetryPolicy { deadline: Some(Duration::from_secs(60)), ..RetryPolicy::default() };
            let retry = RetryStore::new(Arc::new(far.clone()), policy, StdRng::seed_from_u64(1));
            Arc::new(retry.through(limiter.clone(), class)) as Arc<dyn Store>
        };
        let (setup, background) = (store(Class::Foreground), store(Class::Background));
        let stores = Stores { live: setup.clone(), setup, background };
        let env = Env { runtime: tokio::runtime::Handle::current(), clock: Arc::new(SystemClock) };
        let mode = Mode::ReadWrite { takeover: true };
        let options = VolumeOptions { mode, ..rig.options.clone() };
        let volume = Volume::open(env, stores, rig.id, owner(total as u32), options).await.unwrap();
        assert_eq!(read(&volume, 0, 8).await.unwrap(), pattern(0, 8, 199), "{total} at once");
        volume.abandon();
    }
}

async fn timed(volume: &Volume, start: u64) -> Duration {
    let begun = Instant::now();
    assert_eq!(read(volume, start, 8).await.unwrap(), pattern(start, 8, start / CHUNK));
    begun.elapsed()
}

/// What is being read ahead has to wait for others; who turns out to need it must not.
#[tokio::test(start_paused = true)]
async fn a_read_that_joins_the_readahead_does_not_wait_like_it() {
    let rig = Rig::new(1, SIZE).await;
    let volume = rig.open().await;
    for chunk in 0..SIZE / 512 / CHUNK {
        write(&volume, chunk * CHUNK, &pattern(chunk * CHUNK, CHUNK, chunk)).await.unwrap();
    }
    volume.close().await.unwrap();
    let volume = far_away(&rig).await;
    // A sequential reader: the next four chunks are asked for.
    for start in [0, 8] {
        timed(&volume, start).await;
    }
    // Others keep the store busy.
    let mut readers = JoinSet::new();
    for reader in 0..4 {
        let volume = volume.clone();
        readers.spawn(async move {
            for turn in 0..25 {
                timed(&volume, (20 + 4 * turn + reader) * CHUNK).await;
            }
        });
    }
    tokio::time::sleep(TRIP / 10).await;
    let joined = timed(&volume, 3 * CHUNK).await;
    let alone = timed(&volume, 10 * CHUNK).await;
    println!("{joined:?} for what was being read ahead, {alone:?} for what was not");
    assert!(joined <= alone * 2, "{joined:?}, not {alone:?}");
    readers.join_all().await;
}
