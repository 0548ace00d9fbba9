//! Volumes in two stores: whichever of them vanishes, whoever takes over, nothing acknowledged is lost, and no two owners
//! acknowledge.

#[path = "mirror/damaged.rs"]
mod damaged;
#[path = "mirror/reads.rs"]
mod reads;
#[path = "mirror/replaced.rs"]
mod replaced;
#[path = "mirror/rescued.rs"]
mod rescued;
#[path = "mirror/world.rs"]
mod world;

use crate::rig::{owner, pattern, read, write};
use async_trait::async_trait;
use bytes::Bytes;
use objblk::clock::SystemClock;
use objblk::device::BlockDevice;
use objblk::doctor::Doctor;
use objblk::error::{Error, ErrorKind, Result};
use objblk::format::VolumeId;
use objblk::format::frame::Compression;
use objblk::format::keys;
use objblk::format::mirror::MirrorState;
use objblk::format::pool;
use objblk::format::stores::{StoreEntry, StoreId};
use objblk::mirror::Mirror;
use objblk::mutant::{self, Mutant};
use objblk::pool::several::{NewStore, Several};
use objblk::pool::{NewVolume, Pool};
use objblk::spread::members::{Layers, Opener};
use objblk::spread::{Asker, Spread};
use objblk::store::fault::{Fault, FaultStore, Moment, Rule};
use objblk::store::memory::MemoryStore;
use objblk::store::{
    GetRange, ObjectInfo, Op, Store, StoreError, StoreErrorKind, StoreResult, list_all,
};
use objblk::volume::{Env, Mode, ScrubOptions, Stores, Volume, VolumeOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use tokio::time::timeout;
use world::*;

#[tokio::test(start_paused = true)]
async fn every_object_is_in_both_stores() {
    let world = World::new().await;
    let process = world.now().await;
    let volume = process.open(world.id, 1).await.unwrap();
    for piece in 0..PIECES {
        assert!(put(&volume, piece, piece + 1, 5).await);
    }
    volume.close().await.unwrap();
    // What is overwritten is so in both stores, or not at all.
    let store = &**process.pool.store();
    for body in ["one", "another"] {
        store.put(&keys::profile(world.id), Bytes::from(body)).await.unwrap();
        let there = store.get(&keys::profile(world.id), GetRange::All).await.unwrap();
        assert_eq!(there, body);
    }
    let checkpoint = list_all(store, &keys::checkpoints(world.id)).await.unwrap().remove(0).key;
    let refused = store.put(&checkpoint, Bytes::from_static(b"x")).await.unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::Invalid);
    world.is_twice(&process).await;
    store.delete(&[keys::profile(world.id)]).await.unwrap();
    let report = Doctor::new(&process.pool, true, None).check_all().await.unwrap();
    assert!(report.clean, "{report:?}");
    // Nothing but its description is where other volumes are.
    for place in &world.places {
        for object in list_all(place, keys::VOLUMES).await.unwrap() {
            assert_eq!(object.key, keys::volume(world.id));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn either_store_may_vanish_and_come_back() {
    for lost in [HOME, FAR] {
        let world = World::new().await;
        let process = world.now().await;
        let volume = process.open(world.id, 1).await.unwrap();
        for piece in 0..PIECES {
            assert!(put(&volume, piece, 1, 5).await);
        }
        process.reach.set(lost, false);
        let begun = tokio::time::Instant::now();
        assert!(put(&volume, 0, 2, 60).await, "{lost}");
        let stalled = begun.elapsed();
        let little = Duration::from_secs(1);
        assert!((PATIENCE - little..PATIENCE * 2).contains(&stalled), "{stalled:?}");
        for piece in 1..PIECES {
            assert!(put(&volume, piece, 2, 1).await);
            assert!(has(&volume, piece, 2).await);
        }
        process.reach.set(lost, true);
        process.resynced(world.id).await;
        assert!(put(&volume, 3, 3, 1).await);
        // Now it is the other one that is needed no more.
        process.reach.set(1 - lost, false);
        assert!(put(&volume, 4, 3, 60).await);
        for piece in 0..PIECES {
            assert!(has(&volume, piece, if piece == 3 || piece == 4 { 3 } else { 2 }).await);
        }
        process.reach.set(1 - lost, true);
        process.resynced(world.id).await;
        volume.close().await.unwrap();
        world.is_twice(&process).await;
        let next = world.now().await;
        let volume = next.open(world.id, 2).await.unwrap();
        assert!(has(&volume, 4, 3).await && has(&volume, 5, 2).await);
        volume.close().await.unwrap();
        let report = Doctor::new(&next.pool, true, None).check_all().await.unwrap();
        assert!(report.clean, "{report:?}");
    }
}

/// Who sees one store only, and reads there that the other one is complete too, is refused; who sees the one that is complete
/// alone, is not.
#[tokio::test(start_paused = true)]
async fn a_taker_needs_all_that_is_in_sync() {
    let world = World::new().await;
    let first = world.now().await;
    let volume = first.open(world.id, 1).await.unwrap();
    assert!(put(&volume, 0, 1, 5).await);
    let other = world.now().await;
    other.reach.set(FAR, false);
    let refused = other.open(world.id, 2).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Store, "{refused}");
    first.reach.set(HOME, false);
    assert!(put(&volume, 0, 2, 60).await);
    // Home says what it knew before.
    let refused = other.open(world.id, 2).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Store, "{refused}");
    assert!(put(&volume, 1, 2, 1).await, "nobody has taken anything");
    other.reach.set(FAR, true);
    let taken = other.open(world.id, 2).await.unwrap();
    assert!(has(&taken, 0, 2).await && has(&taken, 1, 2).await);
    assert!(!put(&volume, 1, 3, 60).await, "it was fenced");
    assert!(put(&taken, 2, 4, 5).await);
    other.resynced(world.id).await;
    taken.close().await.unwrap();
    world.is_twice(&other).await;
    volume.abandon();
}

/// A store that answers and has nothing is no copy.
#[tokio::test(start_paused = true)]
async fn a_store_that_was_wiped_is_not_in_sync() {
    for wiped in [HOME, FAR] {
        let world = World::new().await;
        let process = world.now().await;
        let volume = process.open(world.id, 1).await.unwrap();
        assert!(put(&volume, 0, 1, 5).await);
        volume.close().await.unwrap();
        let place = &world.places[wiped];
        for object in list_all(place, &keys::mirror(world.id)).await.unwrap() {
            place.delete(&[object.key]).await.unwrap();
        }
        let refused = world.now().await.open(world.id, 2).await.err().map(|e| e.to_string());
        assert!(refused.as_ref().is_some_and(|e| e.contains("wiped, or is not")), "{refused:?}");
    }
}

/// A chunk that was never acknowledged lies in a store that was left out, in the slot in which the other one has a fence.
async fn what_is_in_the_way_gives_way() {
    let world = World::new().await;
    let dead = world.now().await;
    let volume = dead.open(world.id, 1).await.unwrap();
    assert!(put(&volume, 0, 1, 5).await);
    dead.reach.set(FAR, false);
    assert!(!put(&volume, 1, 2, 5).await, "it is in one store only");
    dead.reach.set(HOME, false);
    volume.abandon();
    // Its last act.
    dead.reach.left.store(-1, SeqCst);
    let state = world.now().await.mirror.state(world.id).await.unwrap().unwrap();
    let alone = state.without(state.replicas[HOME], state.term).unwrap();
    let key = keys::mirror_state(world.id, alone.number);
    world.places[FAR].put(&key, pool::encode_json(&alone).into()).await.unwrap();
    let next = world.now().await;
    let volume = next.open(world.id, 2).await.unwrap();
    assert!(has(&volume, 0, 1).await && has(&volume, 1, 0).await);
    assert!(put(&volume, 2, 3, 5).await);
    next.resynced(world.id).await;
    // Without a checkpoint, so that its successors read that slot.
    volume.abandon();
    let check = async |volume: &Volume| {
        assert!(has(volume, 0, 1).await && has(volume, 1, 0).await && has(volume, 2, 3).await);
    };
    world.each_alone(check).await;
    let there = list_all(&world.places[HOME], &keys::mirror(world.id)).await.unwrap();
    let is_anew = |object: &ObjectInfo| {
        let is_slot = object.key.as_str().contains("/log/");
        is_slot && keys::parse_mirror_generation(world.id, &object.key).is_some()
    };
    assert_eq!(there.iter().filter(|object| is_anew(object)).count(), 1, "{there:?}");
}

fn paused<T>(work: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().unwrap();
    let work = async { timeout(Duration::from_secs(10_000), work).await };
    runtime.block_on(work).expect("it hangs")
}

#[test]
fn what_is_left_in_a_store_that_comes_back_is_not_read() {
    paused(what_is_in_the_way_gives_way());
}

/// A scene in which a store leaves and comes back; returns what was acknowledged.
async fn scene(
    world: &World,
    process: &Process,
    acked: &std::cell::RefCell<Vec<u64>>,
) -> Option<()> {
    let volume = process.open(world.id, 5).await.ok()?;
    let put_all = async |stamp: u64, pieces: std::ops::Range<u64>| {
        for piece in pieces {
            if !put(&volume, piece, stamp, 120).await {
                return None;
            }
            acked.borrow_mut()[piece as usize] = stamp;
        }
        Some(())
    };
    let played = async {
        put_all(2, 0..4).await?;
        process.reach.set(HOME, false);
        put_all(3, 2..6).await?;
        process.reach.set(HOME, true);
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if process.mirror.state(world.id).await.ok()??.in_sync.len() == 2 {
                break;
            }
        }
        put_all(4, 4..8).await
    };
    let played = played.await;
    match played {
        Some(()) => timeout(Duration::from_secs(100), volume.close()).await.ok()?.ok(),
        None => {
            volume.abandon();
            None
        }
    }
}

#[tokio::test(start_paused = true)]
async fn death_at_every_step_of_leaving_and_coming_back() {
    let world = World::new().await;
    let whole = world.fork().await;
    let reach = Reach::new();
    let process = whole.process(&reach).await.unwrap();
    let before = reach.left.load(SeqCst);
    let acked = std::cell::RefCell::new(vec![0; PIECES as usize]);
    scene(&whole, &process, &acked).await.unwrap();
    let steps = before - reach.left.load(SeqCst);
    assert!(steps > 100, "{steps} requests");
    let mut deaths = 0;
    for step in 0..steps {
        for late in [false, true] {
            let world = world.fork().await;
            let reach = Reach { late, ..Reach::new() };
            let process = world.process(&reach).await.unwrap();
            reach.left.store(step, SeqCst);
            let acked = std::cell::RefCell::new(vec![0; PIECES as usize]);
            let lived = timeout(Duration::from_secs(900), scene(&world, &process, &acked)).await;
            deaths += usize::from(!matches!(lived, Ok(Some(()))));
            reach.left.store(-1, SeqCst);
            let next = world.now().await;
            let volume = next.open(world.id, 9).await;
            let volume = volume.unwrap_or_else(|e| panic!("step {step}, late {late}: {e}"));
            let acked = acked.into_inner();
            for (piece, stamp) in acked.iter().enumerate() {
                // What was under way when it died may be there.
                let mut fits = false;
                for stamp in [*stamp, 2, 3, 4] {
                    fits |= stamp >= acked[piece] && has(&volume, piece as u64, stamp).await;
                }
                assert!(fits, "step {step}, late {late}: piece {piece} is not {stamp}");
            }
            assert!(put(&volume, 0, 9, 60).await, "step {step}, late {late}");
            next.resynced(world.id).await;
            volume.close().await.unwrap();
            world.each_alone(async |volume| assert!(has(volume, 0, 9).await)).await;
            let report = Doctor::new(&next.pool, true, None).check_all().await.unwrap();
            assert!(report.clean, "step {step}, late {late}: {report:?}");
        }
    }
    assert!(deaths > 20, "{deaths} deaths");
    eprintln!("{steps} requests, {deaths} deaths");
}

/// What is known of the volume.
#[derive(Default)]
struct Model {
    acked: BTreeMap<u64, u64>,
    /// Written later, and perhaps there.
    perhaps: BTreeMap<u64, Vec<u64>>,
}

struct Owner {
    process: Process,
    volume: Volume,
    /// Written, and not flushed yet.
    written: BTreeMap<u64, u64>,
}

impl Owner {
    async fn put(&mut self, model: &mut Model, piece: u64, stamp: u64) -> bool {
        model.perhaps.entry(piece).or_default().push(stamp);
        self.written.insert(piece, stamp);
        let done = put(&self.volume, piece, stamp, 45).await;
        if done {
            for (piece, stamp) in std::mem::take(&mut self.written) {
                model.acked.insert(piece, stamp);
                model.perhaps.remove(&piece);
            }
        }
        done
    }
}

/// Owners and takers at random, of which each reaches what it reaches.
async fn random(seed: u64) -> (u32, u32) {
    let mut rng = StdRng::seed_from_u64(seed);
    let world = World::new().await;
    let mut model = Model::default();
    let mut deposed: Vec<Owner> = Vec::new();
    let mut present: Option<Owner> = None;
    let (mut stamp, mut flushed, mut taken) = (0, 0, 0);
    for step in 0..40 {
        stamp += 1;
        let piece = rng.random_range(0..PIECES);
        match (rng.random_range(0..12), &mut present) {
            (0..5, Some(owner)) => {
                flushed += u32::from(owner.put(&mut model, piece, stamp).await);
            }
            (5..7, Some(owner)) => {
                owner.process.reach.set(rng.random_range(0..2), rng.random_bool(0.6));
            }
            (7, Some(_)) | (0..8, None) => {
                let stray = (seed % 2 == 1).then(|| rng.random::<u64>() >> 1);
                let reach = Reach { stray, ..Reach::new() };
                let process = world.process(&reach).await.unwrap();
                if rng.random() {
                    let _ = process.mirror.state(world.id).await;
                }
                let cut = rng.random_range(0..4);
                if cut < 2 {
                    reach.set(cut, false);
                }
                if let Ok(volume) = process.open(world.id, 10 + step).await {
                    taken += 1;
                    deposed.extend(present.take());
                    present = Some(Owner { process, volume, written: BTreeMap::new() });
                }
            }
            (8, _) => {
                if let Some(owner) = deposed.last_mut() {
                    if rng.random() {
                        owner.process.reach.set(rng.random_range(0..2), rng.random());
                    }
                    let done = put(&owner.volume, piece, 1000 + stamp, 45).await;
                    assert!(!done, "seed {seed}, step {step}: two owners acknowledge");
                }
            }
            (9, Some(owner)) if rng.random_bool(0.3) => {
                owner.volume.abandon();
                present = None;
            }
            _ => tokio::time::sleep(Duration::from_secs(rng.random_range(1..20))).await,
        }
    }
    let owners = deposed.into_iter().chain(present).collect();
    all_is_there(&world, seed, &model, owners).await;
    (flushed, taken)
}

/// In the end, in each of the copies.
async fn all_is_there(world: &World, seed: u64, model: &Model, owners: Vec<Owner>) {
    let process = world.now().await;
    let volume = process.open(world.id, 99).await;
    let volume = volume.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    for owner in &owners {
        owner.volume.abandon();
    }
    for piece in 0..PIECES {
        let acked = model.acked.get(&piece).copied().unwrap_or(0);
        let mut fits = has(&volume, piece, acked).await;
        for stamp in model.perhaps.get(&piece).into_iter().flatten() {
            fits |= has(&volume, piece, *stamp).await;
        }
        assert!(fits, "seed {seed}: piece {piece} has lost {acked}");
    }
    assert!(put(&volume, 0, 5000, 60).await, "seed {seed}");
    process.resynced(world.id).await;
    let mut expected = Vec::new();
    for piece in 0..PIECES {
        expected.push(read(&volume, piece * PIECE, PIECE).await.unwrap());
    }
    volume.close().await.unwrap();
    // What was never acknowledged may be in the one that decides alone.
    let same = async |volume: &Volume| {
        for (piece, expected) in (0..PIECES).zip(&expected) {
            let there = read(volume, piece * PIECE, PIECE).await.unwrap();
            assert!(there == *expected, "seed {seed}: piece {piece} of one copy");
        }
    };
    world.each_alone(same).await;
}

fn run_random(seeds: std::ops::Range<u64>) -> (u32, u32) {
    let mut all = (0, 0);
    for seed in seeds {
        let (flushed, taken) = paused(random(seed));
        all = (all.0 + flushed, all.1 + taken);
    }
    all
}

#[test]
fn owners_and_takers_with_cut_links_lose_nothing() {
    let seeds = std::env::var("OBJBLK_SEEDS").map_or(40, |n| n.parse().unwrap());
    let (flushed, taken) = run_random(0..seeds);
    assert!(u64::from(flushed) > seeds * 2 && u64::from(taken) > seeds, "{flushed} {taken}");
    eprintln!("{flushed} flushes, {taken} owners");
}

/// Each mistake has to be noticed by some seed, or by that scene.
#[test]
fn mistakes_are_noticed() {
    let is_noticed = |mistake, work: &dyn Fn()| {
        mutant::with(Some(mistake), || catch_unwind(AssertUnwindSafe(work)).is_err())
    };
    for mistake in
        [Mutant::ReplicaLeftUnrecorded, Mutant::ReplicaStaleRead, Mutant::ReplicaTakenAlone]
    {
        let seed = |seed: &u64| {
            is_noticed(mistake, &|| {
                run_random(*seed..*seed + 1);
            })
        };
        let noticed = (0..100).find(seed);
        assert!(noticed.is_some(), "{mistake:?} is not noticed");
        eprintln!("{mistake:?}: seed {noticed:?}");
    }
    assert!(is_noticed(Mutant::ReplicaStaleKept, &|| paused(what_is_in_the_way_gives_way())));
}
