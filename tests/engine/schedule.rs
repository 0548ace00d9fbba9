//! Schedules: the owner makes what is due and deletes what is more than is kept, whoever that is.

use crate::rig::{Rig, owner, pattern, read, write};
use objblk::clock::Clock;
use objblk::error::ErrorKind;
use objblk::format::schedule::Rule;
use objblk::format::{SnapshotId, VolumeId, keys};
use objblk::store::{Key, Store};
use objblk::volume::{Env, Mode, Stores, Volume, VolumeOptions, kept_snapshots, schedule};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::Instant;

const MINUTE: u64 = 60_000;
pub const HOUR: u64 = 60 * MINUTE;
const SIZE: u64 = 1 << 20;
/// When tests begin: a day does.
const BEGIN: u64 = 1_000_008 * HOUR;

/// The time of the test's runtime, and what somebody has set the clock ahead.
#[derive(Debug)]
pub struct Watch {
    begun: Instant,
    ahead: AtomicU64,
}

impl Clock for Watch {
    fn now_ms(&self) -> u64 {
        BEGIN + self.ahead.load(Relaxed) + self.begun.elapsed().as_millis() as u64
    }
}

pub fn watch() -> Arc<Watch> {
    Arc::new(Watch { begun: Instant::now(), ahead: AtomicU64::new(0) })
}

async fn open(rig: &Rig, pid: u32, clock: &Arc<Watch>) -> Volume {
    let env = Env { runtime: tokio::runtime::Handle::current(), clock: clock.clone() };
    let mode = Mode::ReadWrite { takeover: true };
    let options = VolumeOptions { mode, ..rig.options.clone() };
    let stores = Stores::one(rig.store.clone());
    let volume = Volume::open(env, stores, rig.id, owner(pid), options).await.unwrap();
    volume.keep_schedule();
    volume
}

fn rule(minutes: u64, keep: u32) -> Rule {
    Rule { every_ms: minutes * MINUTE, keep }
}

/// The periods of `minutes` in which the snapshots of that rule were made, by position.
fn periods(volume: &Volume, minutes: u64) -> Vec<u64> {
    let prefix = format!("auto-{}-", rule(minutes, 1).period());
    let made = volume.snapshots().into_iter().filter(|entry| entry.name.starts_with(&prefix));
    made.map(|entry| (entry.made_at_ms - BEGIN) / (minutes * MINUTE)).collect()
}

pub async fn pass(minutes: u64) {
    tokio::time::sleep(Duration::from_millis(minutes * MINUTE)).await;
}

#[tokio::test(start_paused = true)]
async fn snapshots_are_made_and_deleted_by_their_rules() {
    let (rig, clock) = (Rig::new(1, SIZE).await, watch());
    let volume = open(&rig, 1, &clock).await;
    volume.make_snapshot(SnapshotId::from_bytes([1; 16]), "mine").await.unwrap();
    pass(2).await;
    assert_eq!(volume.snapshots().len(), 1, "without a schedule none is made");
    volume.set_schedule(vec![rule(60, 3), rule(24 * 60, 2)]).await.unwrap();
    pass(1).await;
    assert_eq!((periods(&volume, 60), periods(&volume, 24 * 60)), (vec![0], vec![0]));
    for hour in 1..=49u64 {
        pass(50).await;
        write(&volume, 0, &pattern(0, 8, hour)).await.unwrap();
        pass(10).await;
        assert_eq!(*periods(&volume, 60).last().unwrap(), hour, "within the hour");
    }
    assert_eq!(periods(&volume, 60), [47, 48, 49]);
    assert_eq!(periods(&volume, 24 * 60), [1, 2]);
    assert_eq!(volume.snapshots().len(), 6, "nobody's other snapshot is touched");
    let mut names = volume.snapshots().into_iter().map(|entry| entry.name);
    let view = names.rfind(|name| name.starts_with("auto-1h-"));
    let options = VolumeOptions { snapshot: view, ..rig.options.clone() };
    let view = rig.open_with(9, options).await.unwrap();
    assert_eq!(read(&view, 0, 8).await.unwrap(), pattern(0, 8, 49));

    // Less is kept from the moment on in which that is set, of what there is too.
    volume.set_schedule(vec![rule(60, 1)]).await.unwrap();
    pass(1).await;
    assert_eq!(periods(&volume, 60), [49]);
    volume.set_schedule(Vec::new()).await.unwrap();
    pass(300).await;
    assert_eq!((periods(&volume, 60), periods(&volume, 24 * 60)), (vec![49], vec![1, 2]));
    volume.close().await.unwrap();
}

/// What is due follows from what there is: neither a crash nor time without an owner makes two, or many.
#[tokio::test(start_paused = true)]
async fn a_schedule_outlives_its_owners() {
    let (rig, clock) = (Rig::new(2, SIZE).await, watch());
    let volume = open(&rig, 1, &clock).await;
    volume.set_schedule(vec![rule(60, 24)]).await.unwrap();
    pass(1).await;
    volume.abandon();
    let volume = open(&rig, 2, &clock).await;
    pass(10).await;
    assert_eq!(periods(&volume, 60), [0]);
    volume.close().await.unwrap();
    pass(300).await;
    let volume = open(&rig, 3, &clock).await;
    pass(1).await;
    assert_eq!(periods(&volume, 60), [0, 5]);
    // A clock that was wrong for a while costs a snapshot too many, and stops nothing.
    clock.ahead.store(24_000 * HOUR, Relaxed);
    pass(2).await;
    clock.ahead.store(0, Relaxed);
    pass(60).await;
    assert_eq!(periods(&volume, 60), [0, 5, 24_005, 6]);
    volume.close().await.unwrap();
}

async fn child_of(rig: &Rig, entry: SnapshotId) -> Key {
    let child = keys::child(rig.id, entry, VolumeId::from_random([9; 16]));
    rig.memory.put_if_absent(&child, bytes::Bytes::new()).await.unwrap();
    child
}

#[tokio::test(start_paused = true)]
async fn snapshots_with_clones_stay_until_those_are_gone() {
    let (rig, clock) = (Rig::new(3, SIZE).await, watch());
    let volume = open(&rig, 1, &clock).await;
    volume.set_schedule(vec![rule(60, 2)]).await.unwrap();
    pass(1).await;
    let child = child_of(&rig, volume.snapshots()[0].id).await;
    pass(240).await;
    assert_eq!(periods(&volume, 60), [0, 3, 4]);
    rig.memory.delete(&[child]).await.unwrap();
    pass(60).await;
    assert_eq!(periods(&volume, 60), [4, 5]);
    volume.close().await.unwrap();
}

/// A deposed owner makes no more snapshots and sets no schedule; the newest one is the one that counts.
#[tokio::test(start_paused = true)]
async fn only_the_owner_keeps_the_schedule() {
    let (rig, clock) = (Rig::new(4, SIZE).await, watch());
    let old = open(&rig, 1, &clock).await;
    for keep in 1..=3 {
        old.set_schedule(vec![rule(60, keep)]).await.unwrap();
    }
    assert_eq!(rig.objects("schedules/").await.len(), 1, "older ones are deleted");
    let new = open(&rig, 2, &clock).await;
    assert_eq!(schedule(&*rig.store, rig.id).await.unwrap(), [rule(60, 3)]);
    let refused = old.set_schedule(vec![rule(30, 1)]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced, "{refused}");
    assert_eq!(schedule(&*rig.store, rig.id).await.unwrap(), [rule(60, 3)]);
    pass(130).await;
    assert_eq!(periods(&new, 60).last(), Some(&2));
    let odd = new.set_schedule(vec![rule(60, 0)]).await.unwrap_err();
    assert_eq!(odd.kind(), ErrorKind::Usage, "{odd}");
    // One that is damaged makes no snapshots, and is replaced by the next.
    let name = rig.objects("schedules/").await.remove(0);
    rig.replace(&name, b"{}".to_vec()).await;
    let damaged = schedule(&*rig.store, rig.id).await.unwrap_err();
    assert_eq!(damaged.kind(), ErrorKind::Corrupt, "{damaged}");
    new.set_schedule(vec![rule(60, 4)]).await.unwrap();
    assert_eq!(schedule(&*rig.store, rig.id).await.unwrap(), [rule(60, 4)]);
    new.close().await.unwrap();
}

/// What a volume was before a rollback goes when its time has come, unless somebody keeps it or a clone needs it.
#[tokio::test(start_paused = true)]
async fn snapshots_expire_unless_they_are_kept() {
    let (rig, clock) = (Rig::new(7, SIZE).await, watch());
    let mut volume = open(&rig, 1, &clock).await;
    let until = |hours: u64| BEGIN + hours * HOUR;
    let expiring = |hours: u64, number| SnapshotId::expiring(until(hours), [number; 7]);
    volume.make_snapshot(SnapshotId::from_bytes([1; 16]), "mine").await.unwrap();
    for (number, name) in ["old", "needed", "wanted", "young"].into_iter().enumerate() {
        let hours = if name == "young" { 100 } else { 2 };
        volume.make_snapshot(expiring(hours, number as u8), name).await.unwrap();
    }
    let refused = volume.keep_snapshot("mine").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Usage, "{refused}");
    assert_eq!(volume.keep_snapshot("none").await.unwrap_err().kind(), ErrorKind::NotFound);
    volume.keep_snapshot("wanted").await.unwrap();
    volume.keep_snapshot("wanted").await.unwrap();
    let child = child_of(&rig, expiring(2, 1)).await;
    let names = |volume: &Volume| -> Vec<String> {
        volume.snapshots().into_iter().map(|entry| entry.name).collect()
    };
    pass(118).await;
    assert_eq!(names(&volume).len(), 5, "it is too early");
    pass(4).await;
    assert_eq!(names(&volume), ["mine", "needed", "wanted", "young"]);
    // The next owner goes on, also for the time without one.
    volume.close().await.unwrap();
    rig.memory.delete(&[child]).await.unwrap();
    volume = open(&rig, 2, &clock).await;
    pass(2).await;
    assert_eq!(names(&volume), ["mine", "wanted", "young"]);
    let kept = kept_snapshots(&*rig.store, rig.id).await.unwrap();
    assert_eq!(kept.into_iter().collect::<Vec<_>>(), [expiring(2, 2)]);
    volume.delete_snapshot("wanted").await.unwrap();
    assert!(kept_snapshots(&*rig.store, rig.id).await.unwrap().is_empty());
    pass(60 * 100).await;
    assert_eq!(names(&volume), ["mine"]);
    volume.close().await.unwrap();
}
