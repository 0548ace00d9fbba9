//! Taking a volume over from an owner that is at work, by one that is further from the store.

use crate::rig::{Rig, owner, pattern, read, write};
use objblk::clock::SystemClock;
use objblk::device::BlockDevice;
use objblk::error::ErrorKind;
use objblk::store::fault::{Fault, FaultStore, Moment, Rule};
use objblk::store::{Op, Store, StoreErrorKind};
use objblk::volume::{Env, Mode, Stores, Volume, VolumeOptions};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A store like the rig's, and so much further away.
async fn open_far(rig: &Rig, far: &FaultStore, each: u64) -> objblk::error::Result<Volume> {
    let ms = Duration::from_millis;
    far.handle().add(Rule::new(Fault::Delay { at: Moment::Before, from: ms(each), to: ms(each) }));
    let store: Arc<dyn Store> = Arc::new(far.clone());
    let env = Env { runtime: tokio::runtime::Handle::current(), clock: Arc::new(SystemClock) };
    let options = VolumeOptions { mode: Mode::ReadWrite { takeover: true }, ..rig.options.clone() };
    let stores = Stores::one(store);
    Volume::open(env, stores, rig.id, owner(2), options).await
}

/// Writes and flushes, every few milliseconds, until that fails or is over. Says how often it was done.
async fn work(volume: &Volume, done: &AtomicU64, over: &AtomicBool) {
    for number in 1.. {
        if over.load(Ordering::SeqCst) {
            return;
        }
        let flushed = async {
            write(volume, number % 100, &pattern(number % 100, 1, number)).await?;
            volume.flush().await
        };
        if flushed.await.is_err() {
            return;
        }
        done.store(number, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn busy_owner_is_overtaken() {
    for distance in [1, 20, 100] {
        let mut rig = Rig::new(1, 1 << 20).await;
        // As rarely as owners do, or the far one never gets to read a checkpoint before the next.
        rig.options.checkpoint_slots = VolumeOptions::default().checkpoint_slots;
        rig.options.checkpoint_extents = VolumeOptions::default().checkpoint_extents;
        let far = FaultStore::new(Arc::new(rig.memory.clone()), 2);
        let old = rig.open().await;
        let (done, over) = (AtomicU64::new(0), AtomicBool::new(false));
        let taken = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let limit = Duration::from_secs(30);
            let taken = tokio::time::timeout(limit, open_far(&rig, &far, distance)).await;
            over.store(true, Ordering::SeqCst);
            taken
        };
        let (taken, ()) = tokio::join!(taken, work(&old, &done, &over));
        let new = taken.expect("the takeover never ends").unwrap();
        let done = done.load(Ordering::SeqCst);
        assert!(done > 100, "the old owner did {done} flushes");
        let at = done % 100;
        let found = read(&new, at, 1).await.unwrap();
        let later = (1..=2).any(|more| found == pattern(at, 1, done + more * 100));
        assert!(found == pattern(at, 1, done) || later, "flush {done} is lost");
        new.close().await.unwrap();
        let again = rig.open().await;
        assert_eq!(read(&again, at, 1).await.unwrap(), found);
        again.close().await.unwrap();
    }
}

/// A slot that was missing when it was looked at, and that its owner has filled since.
#[tokio::test(start_paused = true)]
async fn slot_that_is_filled_late_is_no_damage() {
    let rig = Rig::new(1, 1 << 20).await;
    let far = FaultStore::new(Arc::new(rig.memory.clone()), 2);
    let old = rig.open().await;
    for number in 0..8 {
        write(&old, number, &pattern(number, 1, 7)).await.unwrap();
        old.flush().await.unwrap();
    }
    let log = rig.objects("log/").await;
    let mut log: Vec<&String> = log.iter().collect();
    log.sort_by_key(|name| name.rsplit('/').next().unwrap().to_owned());
    let unseen = log[log.len() - 3];
    let late = Rule::new(Fault::Fail(Moment::Before, StoreErrorKind::NotFound));
    let late = far.handle().add(late.on(&[Op::Get]).below(unseen.as_str()).times(1));
    let new = open_far(&rig, &far, 1).await.unwrap();
    assert_eq!(late.hits(), 1);
    for number in 0..8 {
        assert_eq!(read(&new, number, 1).await.unwrap(), pattern(number, 1, 7), "{number}");
    }
    new.close().await.unwrap();
    old.abandon();
}

/// However long the old owner was away: the fence is where it was, or it would go on behind it.
#[tokio::test(start_paused = true)]
async fn fence_outlives_checkpoints_and_terms() {
    let rig = Rig::new(1, 1 << 20).await;
    let old = rig.open().await;
    write(&old, 0, &pattern(0, 1, 1)).await.unwrap();
    old.flush().await.unwrap();
    // It is about to write more when it is paused: its watch sees nothing.
    let pause = rig.faults.add(
        Rule::new(Fault::Hold(Moment::Before))
            .below(objblk::format::keys::epoch(rig.id, objblk::units::Epoch(2)).as_str())
            .on(&[Op::Head]),
    );
    for pid in 2..5 {
        let new = rig.take_over(pid).await;
        for number in 0..100 {
            write(&new, 8 + number % 3, &pattern(8 + number % 3, 1, number + 2)).await.unwrap();
            new.flush().await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        new.close().await.unwrap();
    }
    write(&old, 0, &pattern(0, 1, 9)).await.unwrap();
    let flushed = old.flush().await;
    assert!(flushed.is_err(), "an owner that was fenced acknowledges a flush");
    pause.release();
    let again = rig.take_over(6).await;
    assert_eq!(read(&again, 0, 1).await.unwrap(), pattern(0, 1, 1));
    again.close().await.unwrap();
}

/// Who claimed an epoch, slept, and wakes up when a later owner has written much: it finds that out
/// from the log, and puts no fence into that owner's way.
#[tokio::test(start_paused = true)]
async fn a_claimant_that_slept_gives_way_to_later_owners() {
    let mut rig = Rig::new(1, 1 << 20).await;
    // The later owner's term is long.
    rig.options.checkpoint_slots = VolumeOptions::default().checkpoint_slots;
    rig.options.checkpoint_extents = VolumeOptions::default().checkpoint_extents;
    let far = FaultStore::new(Arc::new(rig.memory.clone()), 2);
    // It looks for checkpoints before its claim and after it.
    let checkpoints = format!("volumes/{}/checkpoints/", rig.id);
    let sleep = Rule::new(Fault::Hold(Moment::Before)).on(&[Op::List]).below(checkpoints);
    let sleep = far.handle().add(sleep.skip(1).times(1));
    let later = async {
        sleep.held(1).await;
        rig.take_over(3).await.close().await.unwrap();
        let owner = rig.open_as(4, Mode::ReadWrite { takeover: false }).await.unwrap();
        for number in 0..200 {
            write(&owner, number, &pattern(number, 1, 7)).await.unwrap();
            owner.flush().await.unwrap();
        }
        sleep.release();
        owner
    };
    let (sleeper, owner) = tokio::join!(open_far(&rig, &far, 1), later);
    let error = sleeper.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    for number in 200..400 {
        write(&owner, number, &pattern(number, 1, 7)).await.unwrap();
        owner.flush().await.unwrap();
    }
    owner.close().await.unwrap();
    let again = rig.open().await;
    assert_eq!(read(&again, 0, 400).await.unwrap(), pattern(0, 400, 7));
}
