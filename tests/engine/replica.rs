//! Replicas in a second pool: whatever is cut off, repeated or late, what is read there is a state that the source had,
//! and once it is promoted it is nobody else's.

#[path = "replica/world.rs"]
mod world;

use crate::rig::{Rig, owner, pattern, read, write};
use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use objblk::clock::SystemClock;
use objblk::device::BlockDevice;
use objblk::doctor::Doctor;
use objblk::error::{ErrorKind, Result};
use objblk::format::pool::{NameObject, encode_json};
use objblk::format::replica::ReplicaObject;
use objblk::format::volume::VolumeObject;
use objblk::format::{SnapshotId, VolumeId, keys};
use objblk::mutant::{self, Mutant};
use objblk::pool::Pool;
use objblk::replica::{Place, Round, Way};
use objblk::seal::{Keyring, SealStore, VolumeKey};
use objblk::store::memory::MemoryStore;
use objblk::store::{
    GetRange, Key, ListPage, ObjectInfo, Op, Store, StoreError, StoreErrorKind, StoreResult,
    list_all,
};
use objblk::units::{Epoch, Seq};
use objblk::volume::{
    Env, Mode, Moment, Stores, Volume, VolumeOptions, list_snapshots, past, replica_state,
};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::time::Duration;
use tokio::sync::Mutex;
use world::*;

/// A round that dies at any of its requests leaves the state before or the one after it, and the next one goes on.
async fn dies_anywhere(mut world: World) {
    assert_eq!(world.check().await, 0, "what it was made with");
    let volume = world.rig.open().await;
    world.change(&volume, 200).await;
    world.snapshot(&volume).await;
    world.change(&volume, 20).await;
    world.flush(&volume).await;
    world.ship().await;
    let before = world.check().await;
    assert_eq!(before, world.flushed, "with the log behind the checkpoint");
    world.change(&volume, 300).await;
    volume.delete_snapshot("s1").await.unwrap();
    volume.close().await.unwrap();
    world.flushed = world.writes.len() as u64;
    let mut deaths = 0;
    for left in 0.. {
        let mut came_to_its_end = false;
        for late in [false, true] {
            let fork = world.fork().await;
            let mortal = Shipper { left, late, ..Shipper::immortal() };
            came_to_its_end = fork.round(&mortal).await.is_ok();
            let found = fork.check().await;
            assert!(found == before || found == world.flushed, "{found} after {left} requests");
            fork.ship().await;
            assert_eq!(fork.check().await, world.flushed, "after {left} requests");
            assert!(fork.extra().await.is_empty(), "nothing is left of it");
            deaths += u32::from(!came_to_its_end);
        }
        if came_to_its_end {
            break;
        }
    }
    assert!(deaths > 40, "{deaths}");
}

#[test]
fn a_round_may_die_at_any_request() {
    for seed in [0, 1] {
        block_on(async { dies_anywhere(World::new(seed).await).await });
        block_on(async { dies_anywhere(World::of_clone(seed).await).await });
    }
}

/// The owner overwrites everything while it is shipped, and deletes what nobody needs then.
async fn the_source_goes_on(seed: u64) {
    let mut world = World::new(seed).await;
    let volume = world.rig.open().await;
    world.change(&volume, 400).await;
    volume.close().await.unwrap();
    let shipped = world.writes.len();
    let rig = world.rig.memory_only();
    let volume = rig.open().await;
    let meanwhile = Box::pin(async move {
        for (block, stamp) in (0..BLOCKS).zip(shipped as u64 + 1..) {
            let start = block * BLOCK;
            write(&volume, start, &pattern(start, BLOCK, stamp)).await.unwrap();
        }
        volume.close().await.unwrap();
    });
    world.writes.extend(0..BLOCKS);
    let shipper = Shipper::immortal();
    *shipper.meanwhile.lock().await = Some(meanwhile);
    world.round(&shipper).await.unwrap();
    assert!(shipper.meanwhile.lock().await.is_none(), "it happened");
    assert_eq!(world.check().await, world.writes.len() as u64, "as what was lost was needed");
}

#[test]
fn what_vanishes_while_it_is_shipped_is_not_missed() {
    for seed in 0..3 {
        block_on(the_source_goes_on(seed));
    }
}

/// Promoted, it is written to and read by itself, whatever its senders still do.
async fn late_requests(seed: u64) {
    let mut world = World::new(seed).await;
    let volume = world.rig.open().await;
    world.change(&volume, 150).await;
    world.snapshot(&volume).await;
    world.change(&volume, 30).await;
    world.flush(&volume).await;
    world.ship().await;
    world.change(&volume, 250).await;
    volume.delete_snapshot("s1").await.unwrap();
    volume.close().await.unwrap();
    let volume = world.rig.take_over(3).await;
    world.change(&volume, 30).await;
    world.flush(&volume).await;
    // A sender falls asleep before it deletes what is of no use any more.
    let before = world.fork().await;
    world.ship().await;
    let extra = before.extra().await;
    assert!(!extra.is_empty());
    for key in &extra {
        let body = before.target.get(key, GetRange::All).await.unwrap();
        let _ = world.target.put_if_absent(key, body).await;
    }
    let promoted_at = world.flushed;
    // The source goes on, in the same term and in others, and ships as far as it gets.
    world.change(&volume, 40).await;
    world.flush(&volume).await;
    let sleeper = world.way(&Shipper::immortal()).await;
    let state = world.promote().await;
    assert!(state.promoted.as_ref().unwrap().epoch > Epoch(1 << 40));
    world.put_everything_late().await;
    let e = sleeper.round().await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Fenced, "{e}");
    let options =
        VolumeOptions { mode: Mode::ReadWrite { takeover: false }, ..world.rig.options.clone() };
    let there = world.open_there(options.clone()).await.unwrap();
    assert_eq!(world.stamp(&there).await, promoted_at, "and not what came late");
    volume.close().await.unwrap();
    world.put_everything_late().await;
    // From here on the two differ.
    let (mut own, source) = (world.fork().await, world.writes.clone());
    own.target = world.target.clone();
    own.writes.truncate(promoted_at as usize);
    own.change(&there, 200).await;
    own.snapshot(&there).await;
    world.target.delete(&extra).await.unwrap();
    own.change(&there, 10).await;
    there.close().await.unwrap();
    world.put_everything_late().await;
    assert_eq!(own.check().await, own.writes.len() as u64);
    assert_ne!(source, own.writes);
    // Whoever has it later finds the same.
    for pid in 1..3 {
        let there = own.open_there(options.clone()).await.unwrap();
        assert_eq!(own.stamp(&there).await, own.writes.len() as u64, "{pid}");
        own.change(&there, 20).await;
        own.flush(&there).await;
        there.abandon();
        let takes = VolumeOptions { mode: TAKE, ..options.clone() };
        let there = own.open_there(takes).await.unwrap();
        assert_eq!(own.stamp(&there).await, own.writes.len() as u64, "{pid}");
        there.close().await.unwrap();
        own.check().await;
    }
    assert!(!own.pool_there().await.promote(&name(), "far").await.unwrap().1, "once is enough");
}

#[test]
fn what_comes_late_is_nothing_to_a_promoted_one() {
    for seed in 0..3 {
        block_on(late_requests(seed));
    }
}

/// Who promotes may die at any request: it is promoted, or it is not, and then can be.
async fn promotion_dies_anywhere() {
    let mut world = World::new(1).await;
    let volume = world.rig.open().await;
    world.change(&volume, 60).await;
    world.flush(&volume).await;
    world.ship().await;
    let mut deaths = 0;
    for left in 0.. {
        let mut came_to_its_end = false;
        for late in [false, true] {
            let fork = world.fork().await;
            let left = Arc::new(AtomicI64::new(left));
            let meanwhile = Meanwhile::default();
            let mortal = Mortal { inner: fork.there(), left, late, meanwhile };
            let promoted = async {
                let pool = Pool::open(Arc::new(mortal)).await?;
                pool.promote(&name(), "dead").await
            };
            came_to_its_end = promoted.await.is_ok();
            deaths += u32::from(!came_to_its_end);
            assert_eq!(fork.check().await, world.flushed);
            let by_the_dead = fork.state().await.promoted.is_some();
            let (state, is_new) = fork.pool_there().await.promote(&name(), "far").await.unwrap();
            assert_eq!(is_new, !by_the_dead);
            assert_eq!(state.promoted.unwrap().by, if is_new { "far" } else { "dead" });
            assert_eq!(fork.ship_refused().await, ErrorKind::Fenced);
            let options = VolumeOptions { mode: TAKE, ..fork.rig.options.clone() };
            let there = fork.open_there(options).await.unwrap();
            assert_eq!(fork.stamp(&there).await, world.flushed);
            there.close().await.unwrap();
            assert_eq!(fork.check().await, world.flushed);
        }
        if came_to_its_end {
            break;
        }
    }
    assert!(deaths > 6, "{deaths}");
    volume.abandon();
}

#[test]
fn whoever_promotes_may_die_at_any_request() {
    block_on(promotion_dies_anywhere());
}

/// Its past is that of the source as far as it was shipped, then its own.
async fn the_past(seed: u64) {
    let mut world = World::new(seed).await;
    let volume = world.rig.open().await;
    volume.retain(Some(Duration::from_secs(3600))).await.unwrap();
    let pieces = async |world: &mut World, volume: &Volume, times: usize| {
        for _ in 0..times {
            world.change(volume, 25).await;
            world.flush(volume).await;
        }
    };
    pieces(&mut world, &volume, 12).await;
    volume.close().await.unwrap();
    let volume = world.rig.take_over(2).await;
    pieces(&mut world, &volume, 5).await;
    world.ship().await;
    let promoted_at = world.flushed;
    pieces(&mut world, &volume, 5).await;
    let end = world.promote().await.shipped.end.next;
    world.put_everything_late().await;
    let mut own = world.fork().await;
    own.target = world.target.clone();
    own.writes.truncate(promoted_at as usize);
    let options = VolumeOptions { mode: TAKE, ..own.rig.options.clone() };
    let there = own.open_there(options).await.unwrap();
    pieces(&mut own, &there, 8).await;
    there.close().await.unwrap();
    own.check().await;
    let (oldest, _) = past(&*own.there(), own.rig.id).await.unwrap().oldest.unwrap();
    assert!(oldest < end);
    let mut seen = Vec::new();
    for slot in oldest.0.. {
        let at = Some(Moment::Slot(Seq(slot)));
        match own.open_there(VolumeOptions { at, ..own.rig.options.clone() }).await {
            Ok(view) => seen.push(own.stamp(&view).await),
            Err(e) if e.kind() == ErrorKind::NotFound => break,
            Err(e) => panic!("slot {slot}: {e}"),
        }
    }
    assert!(seen.is_sorted(), "{seen:?}");
    assert!(seen.len() > 25 && seen.contains(&promoted_at), "{seen:?}");
    assert_eq!(seen.last(), Some(&(own.writes.len() as u64)));
    volume.abandon();
}

#[test]
fn any_moment_of_a_promoted_one_can_be_read() {
    for seed in 0..3 {
        block_on(the_past(seed));
    }
}

/// Writes, flushes, snapshots, new owners and rounds that are cut off; in the end the source vanishes.
async fn anything(mut world: World) -> u64 {
    let mut volume = world.rig.open().await;
    let (mut shipped, mut rounds, mut seen) = (0, 0, 0);
    for _ in 0..25 {
        match world.rng.random_range(0..12) {
            0..4 => {
                let times = world.rng.random_range(1..120);
                world.change(&volume, times).await;
            }
            4..6 => world.flush(&volume).await,
            6 => world.snapshot(&volume).await,
            7 => {
                if let Some(old) = volume.snapshots().first().map(|entry| entry.name.clone()) {
                    volume.delete_snapshot(&old).await.unwrap();
                    world.flushed = world.writes.len() as u64;
                }
            }
            8 => {
                volume.close().await.unwrap();
                world.flushed = world.writes.len() as u64;
                volume = world.rig.take_over(rounds as u32 + 2).await;
            }
            _ => {
                let left = match world.rng.random_bool(0.5) {
                    true => i64::MAX,
                    false => world.rng.random_range(0..60),
                };
                let late = world.rng.random_bool(0.5);
                let with_key = world.rng.random_bool(0.7);
                let flushed = world.flushed;
                let shipper = Shipper { left, late, with_key, ..Shipper::immortal() };
                let done = world.round(&shipper).await;
                assert!(done.is_ok() || left < i64::MAX, "{done:?}");
                let found = world.check().await;
                assert!(found >= seen, "it goes back from {seen} to {found}");
                seen = found;
                if done.is_ok() && (with_key || !world.description().await.is_encrypted()) {
                    assert!(found >= flushed, "what was flushed before is in it");
                    shipped = found;
                    rounds += 1;
                }
            }
        }
    }
    if world.state().await.shipped.seen_at_ms == 0 {
        return 0;
    }
    // The source is gone; what it had acknowledged since is lost.
    world.promote().await;
    let options = VolumeOptions { mode: TAKE, ..world.rig.options.clone() };
    let there = world.open_there(options).await.unwrap();
    let found = world.stamp(&there).await;
    assert!(found >= shipped && found == seen, "{found}, {shipped}, {seen}");
    world.writes.truncate(found as usize);
    world.change(&there, 100).await;
    there.close().await.unwrap();
    assert_eq!(world.check().await, world.writes.len() as u64);
    volume.abandon();
    rounds
}

#[test]
fn a_replica_is_always_a_prefix() {
    let mut rounds = 0;
    for seed in 0..16 {
        block_on(async { rounds += anything(World::new(seed).await).await });
        block_on(async { rounds += anything(World::of_clone(seed).await).await });
    }
    assert!(rounds > 64, "{rounds}");
}

#[test]
fn a_replica_is_written_by_nobody_and_refused_by_others() {
    block_on(async {
        let mut world = World::new(0).await;
        let volume = world.rig.open().await;
        world.change(&volume, 50).await;
        world.flush(&volume).await;
        let promoted = world.pool_there().await.promote(&name(), "far").await;
        assert_eq!(promoted.unwrap_err().kind(), ErrorKind::Busy, "nothing was shipped");
        world.ship().await;
        let options = VolumeOptions { mode: TAKE, ..world.rig.options.clone() };
        let e = world.open_there(options).await.unwrap_err();
        assert!(e.kind() == ErrorKind::Busy && e.to_string().contains("objblk promote"), "{e}");
        // Another volume, and a source that was put back to what it was.
        let pool = world.pool_there().await;
        let mut other = world.description().await;
        other.id = VolumeId::from_bytes([4; 16]);
        let e = pool.begin_replica(&name(), &other, (world.pool, "there", &[])).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Exists, "{e}");
        let volume_here = world.description().await;
        assert!(
            !pool.begin_replica(&name(), &volume_here, (world.pool, "there", &[])).await.unwrap()
        );
        let slot = world.rig.objects("log/").await.pop().unwrap();
        world.rig.replace(&slot, vec![1; 40]).await;
        let e = world.round(&Shipper::immortal()).await.unwrap_err();
        assert!(e.kind() == ErrorKind::Corrupt && e.to_string().contains("another object"), "{e}");
        volume.abandon();
    });
}

/// Each mistake has to be noticed by the scene that is made for it.
#[test]
fn mistakes_are_noticed() {
    let is_noticed = |mistake, scene: &dyn Fn()| {
        mutant::with(Some(mistake), || catch_unwind(AssertUnwindSafe(scene)).is_err())
    };
    let scenes: [(Mutant, &dyn Fn()); 4] = [
        (Mutant::ShippedToldEarly, &|| {
            block_on(async { dies_anywhere(World::new(0).await).await })
        }),
        (Mutant::ShippedDeletesEarly, &|| {
            block_on(async { dies_anywhere(World::new(0).await).await })
        }),
        (Mutant::ShippedLossIgnored, &|| block_on(the_source_goes_on(0))),
        (Mutant::PromotedLogNotCut, &|| block_on(late_requests(0))),
    ];
    for (mistake, scene) in scenes {
        assert!(is_noticed(mistake, scene), "{mistake:?}");
    }
}
