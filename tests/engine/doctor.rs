//! The doctor: no false alarm whatever a family of volumes goes through, and no damage that it misses.

use crate::clones::{BLOCK, BLOCKS, Family, Image, contents};
use crate::rig::{owner, read};
use bytes::Bytes;
use objblk::clock::SystemClock;
use objblk::doctor::{Doctor, Report};
use objblk::error::ErrorKind;
use objblk::format::VolumeId;
use objblk::pool::Pool;
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::store::memory::MemoryStore;
use objblk::store::{GetRange, Key, Op, Store, list_all};
use objblk::volume::{Env, Mode, Stores, Volume, VolumeOptions};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// What a state should hold.
struct Expected {
    id: VolumeId,
    snapshot: Option<String>,
    /// It has no owner: it can be read without one.
    closed: bool,
    image: Image,
}

/// A family's pool, with nobody at it any more.
struct Remains {
    objects: Vec<(Key, Bytes)>,
    states: BTreeMap<String, Expected>,
}

impl Remains {
    /// Of a family that was through everything; the first of its volumes was not closed.
    async fn new(seed: u64) -> Remains {
        let mut family = Family::new(seed).await;
        for step in 0..24 {
            let of = family.pick();
            match step % 8 {
                0 | 4 | 6 => family.change(&of, 120).await,
                1 => family.snapshot(&of).await,
                2 if family.members.len() < 3 => family.clone_one(&of).await,
                3 => family.crash(&of).await,
                5 => drop(family.members[&of].volume.collect(Some(100)).await.unwrap()),
                7 => family.roll_back(&of).await,
                _ => {}
            }
        }
        family.examine().await;
        let first = family.members.keys().next().unwrap().clone();
        family.crash(&first).await;
        family.change(&first, 40).await;
        for (name, member) in &family.members {
            match *name == first {
                true => {
                    objblk::device::BlockDevice::flush(&member.volume).await.unwrap();
                    member.volume.abandon();
                }
                false => member.volume.close().await.unwrap(),
            }
        }
        family.examine().await;
        let mut states = BTreeMap::new();
        for (name, member) in &family.members {
            let (id, closed) = (member.id, *name != first);
            let image = member.now.clone();
            states.insert(name.clone(), Expected { id, snapshot: None, closed, image });
            for (snapshot, image) in &member.snapshots {
                let (called, image) = (format!("{name}@{snapshot}"), image.clone());
                let snapshot = Some(snapshot.clone());
                states.insert(called, Expected { id, snapshot, closed: true, image });
            }
        }
        let mut objects = Vec::new();
        for object in list_all(&family.rig.memory, "").await.unwrap() {
            let body = family.rig.memory.get(&object.key, GetRange::All).await.unwrap();
            objects.push((object.key, body));
        }
        Remains { objects, states }
    }

    async fn copy(&self) -> MemoryStore {
        let store = MemoryStore::new();
        for (key, body) in &self.objects {
            store.put(key, body.clone()).await.unwrap();
        }
        store
    }

    /// Sectors, by block, that cannot be read of each state; everything else is what it should be.
    ///
    /// Of one that lost its newest checkpoint an owner who takes it over cannot know that: it may find an
    /// older state. The doctor knows.
    async fn unreadable(
        &self,
        store: &MemoryStore,
        what: &str,
        told: &Told,
    ) -> BTreeMap<String, BTreeSet<u64>> {
        let mut found = BTreeMap::new();
        // What has to be taken over, and so changed, is read last.
        let mut states: Vec<_> = self.states.iter().collect();
        states.sort_by_key(|(_, state)| !state.closed);
        for (name, state) in states {
            let looked = tokio::time::timeout(Duration::from_secs(60), look(store, state)).await;
            let (lost, other) = looked.unwrap_or_else(|_| panic!("{what}: {name} hangs"));
            let is_whole = told.get(name).is_some_and(|(whole, _)| *whole);
            let is_known = is_whole && what.contains("/checkpoints/");
            assert!(other.is_empty() || is_known, "{what}: {name} has other bytes: {other:?}");
            if !lost.is_empty() {
                found.insert(name.clone(), lost);
            }
        }
        found
    }
}

/// Blocks that cannot be read, and blocks with other contents.
async fn look(store: &MemoryStore, state: &Expected) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let snapshot = state.snapshot.clone();
    let open = |mode| {
        let options = VolumeOptions { mode, snapshot: snapshot.clone(), ..Default::default() };
        let (runtime, clock) = (tokio::runtime::Handle::current(), Arc::new(SystemClock));
        let stores = Stores::one(Arc::new(store.clone()));
        Volume::open(Env { runtime, clock }, stores, state.id, owner(9), options)
    };
    let takeover = Mode::ReadWrite { takeover: true };
    let opened = match open(if state.closed { Mode::ReadOnly } else { takeover }).await {
        // Without its checkpoint it looks as if it had not been closed.
        Err(e) if e.kind() == ErrorKind::Busy => open(takeover).await,
        opened => opened,
    };
    let mut other = BTreeSet::new();
    let Ok(volume) = opened else { return ((0..BLOCKS as u64).collect(), other) };
    let mut lost = BTreeSet::new();
    for (block, stamp) in (0..).zip(&state.image) {
        match read(&volume, block * BLOCK, BLOCK).await {
            Err(_) => {
                lost.insert(block);
            }
            Ok(data) if data != contents(block * BLOCK, *stamp) => {
                other.insert(block);
            }
            Ok(_) => {}
        }
    }
    volume.abandon();
    (lost, other)
}

async fn examine(store: &MemoryStore, data: bool) -> Report {
    let pool = Pool::open(Arc::new(store.clone())).await.unwrap();
    Doctor::new(&pool, data, None).check_all().await.unwrap()
}

/// What a report says of each state: all of it cannot be attached; blocks that cannot be read.
type Told = BTreeMap<String, (bool, BTreeSet<u64>)>;

/// The blocks that the report says are lost; of states that cannot be attached, all.
fn told(report: &Report) -> Told {
    let affected = report.volumes.iter().flat_map(|volume| &volume.affected);
    let blocks = affected.map(|affected| {
        let runs = affected.runs.iter();
        let blocks =
            runs.flat_map(|run| run.sector / BLOCK..(run.sector + run.count).div_ceil(BLOCK));
        (affected.name.clone(), (affected.whole, blocks.collect()))
    });
    blocks.collect()
}

/// Damages a random object.
async fn damage(remains: &Remains, store: &MemoryStore, rng: &mut StdRng) -> (String, String) {
    let of_volumes = |key: &&(Key, Bytes)| key.0.as_str().starts_with("volumes/");
    let all: Vec<&(Key, Bytes)> = remains.objects.iter().filter(of_volumes).collect();
    // Kinds of objects are equally likely, few as there may be of one.
    let kind = |key: &Key| key.as_str().split('/').nth(2).unwrap().to_owned();
    let kinds: BTreeSet<String> = all.iter().map(|(key, _)| kind(key)).collect();
    let kinds: Vec<String> = kinds.into_iter().collect();
    let chosen = kinds.choose(rng).unwrap();
    let all: Vec<_> = all.into_iter().filter(|(key, _)| kind(key) == *chosen).collect();
    let (key, body) = all.choose(rng).unwrap();
    let mut changed = body.to_vec();
    let how = match rng.random_range(0..8) {
        0 => {
            store.delete(std::slice::from_ref(key)).await.unwrap();
            return (format!("{key} deleted"), key.to_string());
        }
        1 => {
            let (other, theirs) = all.choose(rng).unwrap();
            store.put(other, body.clone()).await.unwrap();
            changed = theirs.to_vec();
            format!("swapped with {other}")
        }
        2 => {
            let len = if rng.random_bool(0.2) { 0 } else { rng.random_range(0..=changed.len()) };
            changed.truncate(len);
            format!("cut at {len}")
        }
        _ if changed.is_empty() => "left as it is".into(),
        _ => {
            let at = rng.random_range(0..changed.len());
            changed[at] ^= 1 << rng.random_range(0..8);
            format!("flipped at {at}")
        }
    };
    store.put(key, changed.into()).await.unwrap();
    (format!("{key} {how}"), key.to_string())
}

/// Whichever object is damaged, in whatever way: what cannot be read afterwards was told, nothing else was
/// told to be lost, and no other byte is ever read.
#[tokio::test(start_paused = true)]
async fn damage_is_told_and_what_it_reaches() {
    let (mut noticed, mut harmed) = (0, 0);
    let seeds = std::env::var("OBJBLK_SEED").map_or(0..4, |seed| {
        let seed = seed.parse().unwrap();
        seed..seed + 1
    });
    for seed in seeds {
        let remains = Remains::new(seed).await;
        let mut rng = StdRng::seed_from_u64(seed);
        for fault in 0..75 {
            let store = remains.copy().await;
            let (what, key) = damage(&remains, &store, &mut rng).await;
            let what = format!("OBJBLK_SEED={seed}, fault {fault}: {what}");
            let report = examine(&store, true).await;
            let told = told(&report);
            let lost = remains.unreadable(&store, &what, &told).await;
            for (name, blocks) in &lost {
                let Some((whole, told)) = told.get(name) else {
                    panic!("{what}: {name} is not told to be harmed: {report:#?}");
                };
                let silent: Vec<_> = blocks.difference(told).collect();
                assert!(
                    *whole || silent.is_empty(),
                    "{what}: {name}: blocks {silent:?} {report:#?}"
                );
            }
            for (name, (whole, blocks)) in told.iter().filter(|(name, _)| !name.contains(' ')) {
                let lost = lost.get(name).cloned().unwrap_or_default();
                assert!(*whole || *blocks == lost, "{what}: {name}: {blocks:?} {report:#?}");
            }
            assert!(!report.clean || lost.is_empty(), "{what}: {report:#?}");
            let must =
                ["volume.json", "/epochs/", "/snapshots/"].iter().any(|part| key.contains(part));
            // What an epoch says does not say which one it is.
            let same = what.ends_with(&format!("swapped with {key}"))
                || key.contains("/epochs/") && what.contains("swapped");
            assert!(!report.clean || !must || same, "{what} is not noticed: {report:#?}");
            noticed += u32::from(!report.clean);
            harmed += u32::from(!lost.is_empty());
        }
    }
    eprintln!("{noticed} faults of 300 were noticed, {harmed} did harm");
    assert!(noticed > 150 && harmed > 60, "{noticed} {harmed}");
}

/// Owners write, collect and delete while they are looked at.
#[tokio::test(start_paused = true)]
async fn what_an_owner_deletes_meanwhile_is_no_damage() {
    let (mut examined, mut deleted) = (0, 0);
    for seed in 0..8 {
        let mut family = Family::new(seed).await;
        family.change("v0", 200).await;
        family.snapshot("v0").await;
        family.change("v0", 200).await;
        family.clone_one("v0").await;
        let (from, to) = (Duration::ZERO, Duration::from_millis(30));
        let slow = Rule::new(Fault::Delay { at: Moment::Before, from, to });
        family.rig.faults.add(slow.on(&[Op::Get, Op::List]));
        let before = list_all(&family.rig.memory, "volumes/").await.unwrap();
        let doctor = Doctor::new(&family.pool, true, None);
        let examination = async {
            let mut sound = 0;
            for _ in 0..4 {
                match doctor.check_all().await {
                    Ok(report) => {
                        let busy = |v: &objblk::doctor::VolumeReport| v.error.is_some();
                        let busy = report.volumes.iter().any(busy);
                        assert!(report.clean || busy && report.damage_count() == 0, "{report:#?}");
                        sound += u32::from(report.clean);
                    }
                    Err(e) => panic!("seed {seed}: {e}"),
                }
            }
            sound
        };
        let work = async {
            loop {
                let of = family.pick();
                family.change(&of, 60).await;
                family.snapshot(&of).await;
                family.delete_snapshot(&of).await;
                family.members[&of].volume.collect(Some(100)).await.unwrap();
            }
        };
        tokio::select! {
            sound = examination => examined += sound,
            () = work => {}
        }
        let store = &family.rig.memory;
        for object in before {
            deleted += u32::from(store.head(&object.key).await.is_err());
        }
    }
    eprintln!("{examined} of 32 were whole, {deleted} objects went meanwhile");
    assert!(examined > 16 && deleted >= 8, "{examined} {deleted}");
}
