//! Pools of several stores: nothing is lost or missed, whoever moves, dies, sleeps or knows an old version.

#[path = "several/world.rs"]
mod world;

use crate::rig::{owner, pattern, read, write};
use async_trait::async_trait;
use bytes::Bytes;
use objblk::clock::SystemClock;
use objblk::device::BlockDevice;
use objblk::doctor::Doctor;
use objblk::error::{ErrorKind, Result};
use objblk::format::features::{Access, Features};
use objblk::format::pool::PoolObject;
use objblk::format::stores::{StoreEntry, StoreId};
use objblk::format::volume::VolumeObject;
use objblk::format::{VolumeId, keys, pool};
use objblk::host::Host;
use objblk::pool::Pool;
use objblk::pool::several::{Held, Moved, NewStore, Progress, Several};
use objblk::spread::members::{Layers, Opener};
use objblk::spread::{Asker, Spread};
use objblk::store::memory::MemoryStore;
use objblk::store::{GetRange, Key, Op, Store, StoreError, StoreErrorKind, StoreResult, list_all};
use objblk::volume::{Env, Mode, Stores, Volume, VolumeOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::time::Duration;
use world::*;

/// Writes an image, a piece a chunk.
async fn fill(volume: &Volume, image: &mut [u8], stamp: u64) {
    for piece in 0..PIECES {
        let data = pattern(piece * PIECE, PIECE, stamp);
        write(volume, piece * PIECE, &data).await.unwrap();
        volume.flush().await.unwrap();
        image[(piece * PIECE * 512) as usize..][..data.len()].copy_from_slice(&data);
    }
}

/// A pool with one store; its volume was written to in several terms, one of which ended with its owner's death.
async fn filled() -> (World, Vec<u8>) {
    let world = World::new().await;
    let mut image = vec![0; (PIECES * PIECE * 512) as usize];
    let process = world.now().await;
    let volume = process.open(world.id, 1, TAKE).await.unwrap();
    fill(&volume, &mut image, 1).await;
    volume.abandon();
    let volume = process.open(world.id, 2, TAKE).await.unwrap();
    fill(&volume, &mut image, 2).await;
    volume.close().await.unwrap();
    (world, image)
}

/// Does `work` in processes that die at each of its requests in turn. After each death the volume must hold the image, and
/// the next process finishes the work.
async fn at_every_step<F: Future<Output = Result<()>>>(
    world: &World,
    image: &[u8],
    work: impl Fn(Arc<Process>) -> F,
    done: impl AsyncFn(&World),
) {
    let cut = Cut::never();
    let whole = world.fork().await;
    let process = Arc::new(whole.process(&cut).await);
    let before = cut.used();
    work(process).await.unwrap();
    let steps = cut.used() - before;
    done(&whole).await;
    assert!(steps > 100, "{steps} requests");
    let mut deaths = 0;
    for step in 0..steps {
        for late in [false, true] {
            let world = world.fork().await;
            let cut = Cut { late, ..Cut::never() };
            let process = Arc::new(world.process(&cut).await);
            cut.allow(step);
            let died = work(process).await;
            deaths += usize::from(died.is_err());
            world.holds(image).await;
            // Those who died are known to be dead.
            let process = Arc::new(world.now().await);
            for mover in list_all(&world.places[URLS[0]], keys::MOVING).await.unwrap() {
                world.places[URLS[0]].delete(&[mover.key]).await.unwrap();
            }
            work(process).await.unwrap_or_else(|e| panic!("step {step}, late {late}: {e}"));
            world.holds(image).await;
            assert_eq!(world.copies().await, 0, "step {step}, late {late}");
            done(&world).await;
        }
    }
    assert!(deaths > 20, "{deaths} deaths");
    eprintln!("{steps} requests, {deaths} deaths");
}

#[tokio::test(start_paused = true)]
async fn adding_a_store_survives_death_at_every_step() {
    let (world, image) = filled().await;
    let add = |process: Arc<Process>| async move {
        // One that is there already is what is to be finished.
        match process.add(1).await {
            Err(e)
                if e.kind() == ErrorKind::Exists && process.spread.version().object.number == 1 => {
            }
            added => drop(added?),
        }
        process.rebalance().await.map(drop)
    };
    at_every_step(&world, &image, add, async |world: &World| {
        let process = world.now().await;
        let census = process.several.census().await.unwrap();
        assert_eq!(census.len(), 2);
        // Where each object lies follows from names that are drawn anew each time.
        assert!(census.iter().all(|held| held.to_move.objects == 0 && held.settled.objects > 0));
        assert_eq!(process.spread.version().object.number, 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn draining_and_removing_a_store_survives_death_at_every_step() {
    let (world, mut image) = filled().await;
    let process = world.now().await;
    let id = process.add(1).await.unwrap().id;
    process.rebalance().await.unwrap();
    // A term of the version with two stores, which ends with a death.
    let volume = process.open(world.id, 3, TAKE).await.unwrap();
    fill(&volume, &mut image, 3).await;
    volume.abandon();
    let volume = process.open(world.id, 4, TAKE).await.unwrap();
    fill(&volume, &mut image, 4).await;
    volume.close().await.unwrap();
    let drain = move |process: Arc<Process>| async move {
        if process.spread.version().object.stores[1].removed {
            return Ok(());
        }
        process.several.weigh(id, 0).await?;
        // The volume is placed by the newest version from now on.
        if !process.several.writers(id, true).await?.is_empty() {
            process.renew(world_id()).await?;
        }
        process.rebalance().await?;
        process.several.remove(id, &Host::local()?).await
    };
    at_every_step(&world, &image, drain, async |world: &World| {
        let left = list_all(&world.places[URLS[1]], "").await.unwrap();
        assert!(left.iter().all(|object| object.size < 1024), "{left:?}");
        let process = world.now().await;
        assert!(process.spread.version().object.stores[1].removed);
        assert_eq!(process.several.census().await.unwrap().len(), 1);
        // Nobody needs it any more.
        let mut world = world.fork().await;
        world.places.insert(URLS[1], MemoryStore::new());
        let report = Doctor::new(&world.now().await.pool, true, None).check_all().await.unwrap();
        assert!(report.clean, "{report:?}");
    })
    .await;
}

fn world_id() -> VolumeId {
    VolumeId::from_random([7; 16])
}

#[tokio::test(start_paused = true)]
async fn an_added_store_gets_its_share_and_nothing_else_moves() {
    let world = World::new().await;
    let process = world.now().await;
    let volume = process.open(world.id, 1, TAKE).await.unwrap();
    for n in 0..6000u64 {
        write(&volume, n * 8, &pattern(n * 8, 8, 1)).await.unwrap();
        volume.flush().await.unwrap();
    }
    volume.close().await.unwrap();
    let total = process.held(StoreId::HOME).await.bytes();
    for (place, share) in [(1, 1.0 / 2.0), (2, 1.0 / 3.0)] {
        let id = process.add(place).await.unwrap().id;
        let moved = process.rebalance().await.unwrap();
        let ideal = total as f64 * share;
        let ratio = moved.bytes as f64 / ideal;
        eprintln!("store {place}: moved {} of {total} bytes, {ratio:.3} of the ideal", moved.bytes);
        assert!((0.95..1.05).contains(&ratio), "{ratio}");
        // And the fences, which are copied.
        let held = process.held(id).await.settled.bytes;
        assert!((moved.bytes..moved.bytes + 1024).contains(&held), "{held}");
        assert_eq!(process.rebalance().await.unwrap().bytes, 0);
        assert!(moved.waiting.is_empty() && moved.damaged.is_empty());
    }
    let b = process.spread.version().object.stores[1].id;
    let had = process.held(b).await.bytes();
    process.several.weigh(b, 0).await.unwrap();
    let moved = process.rebalance().await.unwrap().bytes;
    assert!((moved..moved + 1024).contains(&had), "{moved} of {had}");
    assert_eq!(process.held(b).await.bytes(), 0);
}

/// An owner and its successor of whom either may know an older version: the slot of the fence is decided in one store.
#[tokio::test(start_paused = true)]
async fn owner_and_successor_of_different_versions_do_not_miss_each_other() {
    for round in 0..24u64 {
        let world = World::new().await;
        let (early, old) = (world.now().await, world.now().await);
        let early_owner = round % 3 == 0;
        let early_volume = match early_owner {
            true => Some(early.open(world.id, 1, TAKE).await.unwrap()),
            false => None,
        };
        let admin = world.now().await;
        admin.add(1).await.unwrap();
        let volume = match early_volume {
            Some(volume) => volume,
            // Knows of two stores before it claims, or of none.
            None if round % 3 == 1 => admin.open(world.id, 1, TAKE).await.unwrap(),
            None => early.open(world.id, 1, TAKE).await.unwrap(),
        };
        let mut image = vec![0; (PIECES * PIECE * 512) as usize];
        // So that the fence comes to any slot, in either store; also before the first write.
        for piece in 0..round / 3 * 3 {
            let data = pattern(piece * PIECE, PIECE, round);
            write(&volume, piece * PIECE, &data).await.unwrap();
            volume.flush().await.unwrap();
            image[(piece * PIECE * 512) as usize..][..data.len()].copy_from_slice(&data);
        }
        let successor = match round % 2 {
            0 => old.open(world.id, 2, TAKE).await.unwrap(),
            _ => admin.open(world.id, 2, TAKE).await.unwrap(),
        };
        write(&volume, 0, &pattern(0, 8, 99)).await.unwrap();
        assert!(volume.flush().await.is_err(), "round {round}: the owner was not fenced");
        assert!(read(&successor, 0, PIECES * PIECE).await.unwrap() == image, "round {round}");
        let last = pattern(0, PIECE, 7);
        write(&successor, 0, &last).await.unwrap();
        successor.flush().await.unwrap();
        successor.close().await.unwrap();
        image[..last.len()].copy_from_slice(&last);
        world.holds(&image).await;
        world.now().await.rebalance().await.unwrap();
        world.holds(&image).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_attached_volume_is_used_while_its_objects_move() {
    for early in [true, false] {
        let world = World::new().await;
        let mut added = Vec::new();
        if !early {
            added.push(world.now().await.add(1).await.unwrap().id);
        }
        let process = world.now().await;
        let volume = process.open(world.id, 1, TAKE).await.unwrap();
        let mut image = vec![0; (PIECES * PIECE * 512) as usize];
        fill(&volume, &mut image, 1).await;
        let mut rng = StdRng::seed_from_u64(5);
        let mut moved = 0;
        for round in 0..12u64 {
            // Somebody else, of whom the owner hears by missing an object.
            let admin = world.now().await;
            match round {
                1 | 4 if added.len() < 2 => {
                    added.push(admin.add(1 + added.len()).await.unwrap().id);
                }
                6 => admin.several.weigh(added[0], 0).await.unwrap(),
                8 => admin.several.weigh(StoreId::HOME, 0).await.unwrap(),
                10 => admin.several.weigh(StoreId::HOME, 50).await.unwrap(),
                _ => {}
            }
            let moving = async { moved += admin.rebalance().await.unwrap().bytes };
            let using = use_it(&volume, &mut image, &mut rng, round + 2);
            tokio::join!(moving, using);
        }
        assert!(moved > image.len() as u64, "{moved}");
        volume.close().await.unwrap();
        world.holds(&image).await;
        world.now().await.rebalance().await.unwrap();
        world.holds(&image).await;
        assert_eq!(world.copies().await, 0);
    }
}

/// Reads, and writes half the time.
async fn use_it(volume: &Volume, image: &mut [u8], rng: &mut StdRng, stamp: u64) {
    for _ in 0..40 {
        let piece = rng.random_range(0..PIECES);
        let at = (piece * PIECE * 512) as usize;
        if rng.random_bool(0.5) {
            let data = pattern(piece * PIECE, PIECE, stamp);
            write(volume, piece * PIECE, &data).await.unwrap();
            volume.flush().await.unwrap();
            image[at..][..data.len()].copy_from_slice(&data);
        }
        let there = read(volume, piece * PIECE, PIECE).await.unwrap();
        assert!(there == image[at..][..there.len()], "stamp {stamp}, piece {piece}");
    }
}

#[tokio::test(start_paused = true)]
async fn stores_that_cannot_be_added_or_removed_are_refused() {
    let (world, image) = filled().await;
    let process = world.now().await;
    let refused = |outcome: Result<StoreEntry>, words: &str| {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exists);
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(process.add(0).await, "it is store home of this pool");
    let junk = Key::new("holiday.jpg").unwrap();
    world.places[URLS[1]].put(&junk, Bytes::from_static(b"x")).await.unwrap();
    refused(process.add(1).await, "it is not empty");
    world.places[URLS[1]].delete(&[junk]).await.unwrap();
    Pool::init(Arc::new(world.places[URLS[2]].clone()), false).await.unwrap();
    refused(process.add(2).await, "a pool was made in it");
    let id = process.add(1).await.unwrap().id;
    refused(process.add(1).await, "of this pool already");
    process.rebalance().await.unwrap();
    let local = Host::local().unwrap();
    let kind = |outcome: Result<()>| outcome.unwrap_err().kind();
    assert_eq!(kind(process.several.remove(StoreId::HOME, &local).await), ErrorKind::Usage);
    assert_eq!(kind(process.several.remove(id, &local).await), ErrorKind::Usage);
    assert_eq!(
        kind(process.several.remove(StoreId::of_number(1), &local).await),
        ErrorKind::NotFound
    );
    process.several.weigh(id, 0).await.unwrap();
    assert_eq!(kind(process.several.weigh(StoreId::HOME, 0).await), ErrorKind::Usage);
    let error = process.several.remove(id, &local).await.unwrap_err();
    assert!(error.to_string().contains("still holds"), "{error}");
    process.rebalance().await.unwrap();
    // Somebody else may be moving by an older version.
    let far = keys::moving(uuid::Uuid::new_v4());
    let body = Bytes::from(pool::encode_json(&owner(77)));
    world.places[URLS[0]].put(&far, body).await.unwrap();
    let error = process.several.remove(id, &local).await.unwrap_err();
    assert!(error.to_string().contains("process 77 on host rig is moving"), "{error}");
    world.places[URLS[0]].delete(&[far]).await.unwrap();
    process.several.remove(id, &local).await.unwrap();
    refused(process.add(1).await, "which was removed");
    world.holds(&image).await;
}

/// A pool of one store is open to older versions of objblk until others come; one that was given several by an
/// older one shuts them out when these are changed.
#[tokio::test(start_paused = true)]
async fn older_versions_are_shut_out_once_there_are_several_stores() {
    let (world, image) = filled().await;
    let home = world.places[URLS[0]].clone();
    let object = async || {
        let bytes = home.get(&keys::pool(), GetRange::All).await.unwrap();
        PoolObject::parse(&bytes).unwrap()
    };
    let before = object().await;
    assert_eq!(before.features, Features::default());
    // Two hosts at once.
    let (one, two) = (world.now().await, world.now().await);
    let (b, c) = tokio::join!(one.add(1), two.add(2));
    let (b, _) = (b.unwrap(), c.unwrap());
    let several = Features { incompat: Features::SEVERAL, ..Features::default() };
    let after = PoolObject { features: several, ..before.clone() };
    assert_eq!(object().await, after);
    world.holds(&image).await;
    let newer = Features { incompat: Features::SEVERAL | 1 << 62, ..several };
    for (features, refused) in [(Features::default(), None), (newer, Some("0x4000000000000000"))] {
        // As an older one left it; as a newer one has made it while this one had it open.
        let process = world.now().await;
        let other = PoolObject { features, ..before.clone() };
        home.put(&keys::pool(), Bytes::from(pool::encode_json(&other))).await.unwrap();
        let weight = if refused.is_some() { 30 } else { 50 };
        match (process.several.weigh(b.id, weight).await, refused) {
            (Ok(()), None) => assert_eq!(object().await, after),
            (Err(error), Some(bits)) => {
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                assert!(error.to_string().contains(bits), "{error}");
                assert_eq!(object().await, other);
                assert_eq!(process.spread.version().object.number, 3);
                let error = Pool::open(Arc::new(home.clone())).await.unwrap_err();
                assert!(error.to_string().contains(bits), "{error}");
            }
            (outcome, _) => panic!("{outcome:?}"),
        }
    }
}

/// A place that is another store than it was is refused before anything is read or written there.
#[tokio::test(start_paused = true)]
async fn swapped_stores_are_noticed() {
    let (mut world, image) = filled().await;
    let process = world.now().await;
    process.add(1).await.unwrap();
    process.add(2).await.unwrap();
    process.rebalance().await.unwrap();
    world.holds(&image).await;
    let (b, c) = (world.places[URLS[1]].clone(), world.places[URLS[2]].clone());
    world.places.extend([(URLS[1], c.clone()), (URLS[2], b.clone())]);
    let (had_b, had_c) = (b.object_count(), c.object_count());
    let swapped = world.now().await;
    let error = swapped.spread.verify().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Store);
    assert!(error.to_string().contains("it is store "), "{error}");
    let volume = swapped.open(world.id, 8, TAKE).await;
    assert!(volume.is_err());
    // One that was wiped, or is not mounted, is away.
    world.places.extend([(URLS[1], MemoryStore::new()), (URLS[2], c.clone())]);
    let away = world.now().await.spread.verify().await.unwrap();
    assert_eq!(away.iter().map(|entry| &*entry.url).collect::<Vec<_>>(), [URLS[1]]);
    assert_eq!((b.object_count(), c.object_count()), (had_b, had_c));
    world.places.extend([(URLS[1], b)]);
    world.holds(&image).await;
}
