//! Clones, rollbacks and flattening, in any order with everything else: no state ever changes, and in the
//! end nothing is left that nobody needs.

use crate::rig::{CHUNK, Rig, owner, pattern, range, read, write};
use objblk::clock::{Clock, SystemClock};
use objblk::device::BlockDevice;
use objblk::doctor::Doctor;
use objblk::error::{ErrorKind, Result};
use objblk::format::frame::Compression;
use objblk::format::keys;
use objblk::format::{SnapshotId, VolumeId};
use objblk::host::Host;
use objblk::mutant::{self, Mutant};
use objblk::pool::{Executioner, NewVolume, Pool, VolumeName};
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::store::{Op, Store, StoreErrorKind, list_all};
use objblk::units::BlockSize;
use objblk::volume::{Env, Mode, Stores, Volume, VolumeOptions, list_snapshots};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const SIZE: u64 = 2 << 20;
pub const BLOCK: u64 = 8;
pub const BLOCKS: usize = (SIZE / 512 / BLOCK) as usize;

pub type Image = Vec<u64>;

pub fn name(text: &str) -> VolumeName {
    text.parse().unwrap()
}

/// A volume, open, and what all of its states hold, by block.
pub struct Member {
    pub id: VolumeId,
    pub volume: Volume,
    pub now: Image,
    pub snapshots: BTreeMap<String, Image>,
}

/// Volumes that were made of each other.
pub struct Family {
    pub rig: Rig,
    pub pool: Pool,
    pub rng: StdRng,
    pub members: BTreeMap<String, Member>,
    stamp: u64,
    clock: Arc<dyn Clock>,
}

impl Family {
    pub async fn new(seed: u64) -> Family {
        Family::by(seed, Arc::new(SystemClock)).await
    }

    pub async fn by(seed: u64, clock: Arc<dyn Clock>) -> Family {
        let rig = Rig::new(seed, SIZE).await;
        rig.memory.delete(&[keys::volume(rig.id)]).await.unwrap();
        let pool = Pool::init(rig.store.clone(), false).await.unwrap();
        let (block_size, chunk_size) = (BlockSize::default(), CHUNK);
        let compression = [Compression::None, Compression::Lz4][(seed % 2) as usize];
        let new = NewVolume { size: SIZE, block_size, chunk_size, compression, mirrored: false };
        let id = pool.create(&name("v0"), new).await.unwrap();
        let rng = StdRng::seed_from_u64(seed);
        let members = BTreeMap::new();
        let mut family = Family { rig, pool, rng, members, stamp: 0, clock };
        let volume = family.open(id, 1, false).await.unwrap();
        let now = vec![0; BLOCKS];
        let member = Member { id, volume, now, snapshots: BTreeMap::new() };
        family.members.insert("v0".into(), member);
        family
    }

    fn stores(&self) -> (Env, Stores) {
        let runtime = tokio::runtime::Handle::current();
        (Env { runtime, clock: self.clock.clone() }, Stores::one(self.rig.store.clone()))
    }

    pub async fn open(&self, id: VolumeId, pid: u32, takeover: bool) -> Result<Volume> {
        let mode = Mode::ReadWrite { takeover };
        self.open_with(id, pid, VolumeOptions { mode, ..self.rig.options.clone() }).await
    }

    pub async fn open_with(
        &self,
        id: VolumeId,
        pid: u32,
        options: VolumeOptions,
    ) -> Result<Volume> {
        let (env, stores) = self.stores();
        Volume::open(env, stores, id, owner(pid), options).await
    }

    pub fn pick(&mut self) -> String {
        self.members.keys().choose(&mut self.rng).unwrap().clone()
    }

    fn pick_snapshot(&mut self, of: &str) -> Option<String> {
        self.members[of].snapshots.keys().choose(&mut self.rng).cloned()
    }

    pub async fn change(&mut self, of: &str, times: usize) {
        for _ in 0..times {
            let block = self.rng.random_range(0..self.members[of].now.len());
            let start = block as u64 * BLOCK;
            let trim = self.rng.random_bool(0.2);
            self.stamp += 1;
            let member = self.members.get_mut(of).unwrap();
            if trim {
                member.volume.discard(range(start, BLOCK)).await.unwrap();
                member.now[block] = 0;
            } else {
                write(&member.volume, start, &pattern(start, BLOCK, self.stamp)).await.unwrap();
                member.now[block] = self.stamp;
            }
        }
    }

    pub fn snapshot_id(&mut self) -> SnapshotId {
        SnapshotId::from_random(self.rng.random())
    }

    pub async fn snapshot(&mut self, of: &str) {
        let id = self.snapshot_id();
        self.stamp += 1;
        let called = format!("s{}", self.stamp);
        let member = self.members.get_mut(of).unwrap();
        member.volume.make_snapshot(id, &called).await.unwrap();
        member.snapshots.insert(called, member.now.clone());
    }

    pub async fn clone_one(&mut self, of: &str) {
        let Some(snapshot) = self.pick_snapshot(of) else { return };
        self.stamp += 1;
        let called = format!("v{}", self.stamp);
        let made = self.pool.clone_volume(&name(of), &snapshot, &name(&called)).await;
        let id = made.unwrap();
        let volume = self.open(id, 1, false).await.unwrap();
        let now = self.members[of].snapshots[&snapshot].clone();
        let member = Member { id, volume, now, snapshots: BTreeMap::new() };
        self.members.insert(called, member);
    }

    pub async fn roll_back(&mut self, of: &str) {
        let Some(snapshot) = self.pick_snapshot(of) else { return };
        let id = self.snapshot_id();
        self.stamp += 1;
        let kept = format!("before{}", self.stamp);
        let done = self.members[of].volume.roll_back(&snapshot, (id, &kept)).await;
        done.unwrap();
        let volume = self.open(self.members[of].id, 1, false).await.unwrap();
        let member = self.members.get_mut(of).unwrap();
        member.snapshots.insert(kept, member.now.clone());
        member.now = member.snapshots[&snapshot].clone();
        member.volume = volume;
    }

    /// Deletes a snapshot; or it is refused because clones need it.
    pub async fn delete_snapshot(&mut self, of: &str) {
        let Some(snapshot) = self.pick_snapshot(of) else { return };
        let children = self.pool.children(self.members[of].id).await.unwrap();
        let needed = children.iter().any(|child| child.snapshot == snapshot);
        let member = self.members.get_mut(of).unwrap();
        match member.volume.delete_snapshot(&snapshot).await {
            Ok(_) => {
                assert!(!needed, "{of}@{snapshot} has clones");
                member.snapshots.remove(&snapshot);
            }
            Err(e) => assert!(needed && e.kind() == ErrorKind::Busy, "{of}@{snapshot}: {e}"),
        }
    }

    pub async fn flatten(&mut self, of: &str) {
        let member = &self.members[of];
        let done = member.volume.flatten(&mut |_| ()).await.unwrap();
        if done.done {
            self.pool.leave_origin(member.id).await.unwrap();
        }
    }

    /// Deletes a volume with its snapshots; or it is refused because clones need it.
    pub async fn delete(&mut self, of: &str) -> bool {
        self.members[of].volume.close().await.unwrap();
        let id = self.members[of].id;
        let needed = !self.pool.children(id).await.unwrap().is_empty();
        let (env, stores) = self.stores();
        let by = Executioner { env, stores, host: Host::local().unwrap(), force: true };
        match self.pool.delete_now(&name(of), &by).await {
            Ok(_) => {
                assert!(!needed, "{of} has clones");
                self.members.remove(of);
                true
            }
            Err(e) => {
                assert!(needed && e.kind() == ErrorKind::Busy, "{of}: {e}");
                let volume = self.open(id, 1, false).await.unwrap();
                self.members.get_mut(of).unwrap().volume = volume;
                false
            }
        }
    }

    pub async fn crash(&mut self, of: &str) {
        let member = self.members.get_mut(of).unwrap();
        member.volume.flush().await.unwrap();
        member.volume.abandon();
        let id = member.id;
        let volume = self.open(id, 2, true).await.unwrap();
        self.members.get_mut(of).unwrap().volume = volume;
    }

    /// Something happens to one of them.
    pub async fn step(&mut self) {
        let of = self.pick();
        match self.rng.random_range(0..16) {
            0..4 => {
                let times = self.rng.random_range(0..200);
                self.change(&of, times).await;
            }
            4..6 => self.snapshot(&of).await,
            6..8 if self.members.len() < 6 => self.clone_one(&of).await,
            8 | 9 => self.roll_back(&of).await,
            10 => self.delete_snapshot(&of).await,
            11 => drop(self.members[&of].volume.collect(Some(100)).await.unwrap()),
            12 => self.flatten(&of).await,
            13 if self.members.len() > 1 => drop(self.delete(&of).await),
            14 => self.crash(&of).await,
            _ => self.verify().await,
        }
    }

    pub async fn flush(&self) {
        for member in self.members.values() {
            member.volume.flush().await.unwrap();
        }
    }

    pub async fn close(&mut self) {
        for member in self.members.values() {
            member.volume.close().await.unwrap();
        }
    }

    /// What all states hold, by `NAME` and `NAME@SNAP`.
    pub fn images(&self) -> BTreeMap<String, Vec<u8>> {
        let mut images = BTreeMap::new();
        for (of, member) in &self.members {
            images.insert(of.clone(), bytes(&member.now));
            for (snapshot, image) in &member.snapshots {
                images.insert(format!("{of}@{snapshot}"), bytes(image));
            }
        }
        images
    }

    /// Whether the volume holds exactly that.
    async fn is_like(&self, volume: &Volume, image: &Image) -> bool {
        for (block, stamp) in image.iter().enumerate() {
            let start = block as u64 * BLOCK;
            if read(volume, start, BLOCK).await.unwrap() != contents(start, *stamp) {
                return false;
            }
        }
        true
    }

    pub async fn verify(&self) {
        for (of, member) in &self.members {
            check(&member.volume, &member.now, of).await;
            let listed = list_snapshots(&*self.rig.store, member.id).await.unwrap();
            assert_eq!(listed.len(), member.snapshots.len(), "{of}: {listed:?}");
            for (snapshot, image) in &member.snapshots {
                let options =
                    VolumeOptions { snapshot: Some(snapshot.clone()), ..self.rig.options.clone() };
                let view = self.open_with(member.id, 9, options).await.unwrap();
                check(&view, image, &format!("{of}@{snapshot}")).await;
            }
        }
        self.examine().await;
    }

    /// The doctor finds nothing wrong with it, whatever happened to it and whoever has it.
    pub async fn examine(&self) {
        let report = Doctor::new(&self.pool, true, None).check_all().await.unwrap();
        assert!(report.clean, "{report:#?}");
    }
}

pub fn contents(start: u64, stamp: u64) -> Vec<u8> {
    match stamp {
        0 => vec![0; (BLOCK * 512) as usize],
        stamp => pattern(start, BLOCK, stamp),
    }
}

fn bytes(image: &Image) -> Vec<u8> {
    let block = |(block, stamp): (usize, &u64)| contents(block as u64 * BLOCK, *stamp);
    image.iter().enumerate().flat_map(block).collect()
}

pub async fn check(volume: &Volume, image: &Image, what: &str) {
    for (block, stamp) in image.iter().enumerate() {
        let start = block as u64 * BLOCK;
        let found = read(volume, start, BLOCK).await.unwrap();
        assert!(found == contents(start, *stamp), "{what}: block {block}");
    }
}

/// The life of a family, from its first volume to its last.
async fn live(seed: u64) {
    let mut family = Family::new(seed).await;
    for _ in 0..60 {
        family.step().await;
    }
    family.verify().await;
    wind_up(family).await;
}

fn run(seed: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().start_paused(true).build().unwrap();
    runtime.block_on(live(seed));
}

#[test]
fn no_state_of_a_family_changes_and_nothing_is_left_of_the_dead() {
    let first = std::env::var("OBJBLK_SEED").ok().map(|seed| seed.parse().unwrap());
    for seed in first.map_or(0..12, |first| first..first + 1) {
        eprintln!("replay: OBJBLK_SEED={seed} cargo test --test engine no_state_of_a_family");
        run(seed);
    }
}

#[test]
fn mistakes_in_a_family_are_noticed() {
    let mistakes = [Mutant::BranchForgotten, Mutant::RollbackKeepsBase, Mutant::ChildrenIgnored];
    for mistake in mistakes {
        let is_noticed =
            |seed| mutant::with(Some(mistake), || std::panic::catch_unwind(|| run(seed)).is_err());
        let noticed = (0..40).find(|seed| is_noticed(*seed));
        let seed = noticed.unwrap_or_else(|| panic!("{mistake:?} was not noticed"));
        eprintln!("{mistake:?} was noticed by seed {seed}");
    }
}

/// Deletes all but one flat volume without snapshots.
async fn wind_up(mut family: Family) {
    let last = family.pick();
    while family.members.len() > 1 || !family.members[&last].snapshots.is_empty() {
        let all: Vec<String> = family.members.keys().cloned().collect();
        let of = all.choose(&mut family.rng).unwrap().clone();
        family.delete_snapshot(&of).await;
        family.flatten(&of).await;
        if of != last {
            family.delete(&of).await;
        }
        family.verify().await;
    }
    family.flatten(&last).await;
    let member = &family.members[&last];
    member.volume.collect(Some(100)).await.unwrap();
    let volumes = list_all(&family.rig.memory, "volumes/").await.unwrap();
    let own = keys::volume_prefix(member.id);
    for object in &volumes {
        assert!(object.key.as_str().starts_with(&own), "{} is left", object.key);
        let kept = ["snapshots/", "children/"].map(|part| format!("{own}{part}"));
        let is_kept = kept.iter().any(|part| object.key.as_str().starts_with(part));
        assert!(!is_kept, "{} is left", object.key);
    }
    let stored: u64 = volumes.iter().map(|object| object.size).sum();
    let live = member.now.iter().filter(|stamp| **stamp > 0).count() as u64 * BLOCK * 512;
    assert!(stored <= live * 14 / 10 + (256 << 10), "{stored} bytes stored, {live} live");
    check(&member.volume, &member.now, "in the end").await;
    member.volume.close().await.unwrap();
}

/// Whichever request is its last one: the volume is what it was or what the snapshot is, and no snapshot is
/// another one.
#[tokio::test(start_paused = true)]
async fn a_rollback_that_is_cut_off_is_done_or_not() {
    let mut outcomes = [0, 0];
    for request in 0..60 {
        let mut family = Family::new(request).await;
        family.change("v0", 60).await;
        family.snapshot("v0").await;
        family.change("v0", 60).await;
        let member = family.members.remove("v0").unwrap();
        member.volume.flush().await.unwrap();
        let (snapshot, then) = member.snapshots.first_key_value().unwrap();
        let dies = Rule::new(Fault::Hold(Moment::Before)).skip(request);
        let held = family.rig.faults.add(dies);
        let kept = (SnapshotId::from_bytes([1; 16]), "kept");
        let done = member.volume.roll_back(snapshot, kept);
        let done = tokio::time::timeout(Duration::from_secs(30), done).await;
        member.volume.abandon();
        family.rig.faults.clear();
        drop(held);
        let done = done.is_ok_and(|done| done.is_ok());
        let volume = family.open(member.id, 2, true).await.unwrap();
        let there: Vec<String> = volume.snapshots().into_iter().map(|e| e.name).collect();
        let is_back = family.is_like(&volume, then).await;
        assert!(is_back || !done, "request {request}");
        assert!(!is_back || there.contains(&"kept".into()), "request {request}");
        outcomes[usize::from(is_back)] += 1;
        let now = if is_back { then } else { &member.now };
        check(&volume, now, "now").await;
        let mut snapshots = member.snapshots.clone();
        if there.contains(&"kept".into()) {
            snapshots.insert("kept".into(), member.now.clone());
        }
        let now = now.clone();
        let member = Member { id: member.id, volume, now, snapshots };
        family.members.insert("v0".into(), member);
        family.change("v0", 60).await;
        family.members["v0"].volume.collect(Some(100)).await.unwrap();
        family.verify().await;
        wind_up(family).await;
    }
    assert!(outcomes.iter().all(|count| *count > 5), "{outcomes:?}");
}

/// A clone does not begin while its snapshot is being deleted, and is none of its children then.
#[tokio::test(start_paused = true)]
async fn a_clone_comes_too_late_or_keeps_its_origin() {
    let mut outcomes = [0, 0];
    for seed in 0..40 {
        let mut family = Family::new(seed).await;
        family.change("v0", 60).await;
        family.snapshot("v0").await;
        let (from, to) = (Duration::ZERO, Duration::from_millis(300));
        family.rig.faults.add(Rule::new(Fault::Delay { at: Moment::Before, from, to }));
        let member = &family.members["v0"];
        let (snapshot, image) = member.snapshots.first_key_value().unwrap();
        let (origin, new) = (name("v0"), name("v1"));
        let deletion = async {
            tokio::time::sleep(Duration::from_millis(100 * seed)).await;
            member.volume.delete_snapshot(snapshot).await
        };
        let clone = family.pool.clone_volume(&origin, snapshot, &new);
        let (cloned, deleted) = futures::join!(clone, deletion);
        family.rig.faults.clear();
        outcomes[usize::from(cloned.is_ok())] += 1;
        match cloned {
            Ok(clone) => {
                assert_eq!(deleted.unwrap_err().kind(), ErrorKind::Busy, "seed {seed}");
                let volume = family.open(clone, 1, false).await.unwrap();
                check(&volume, image, "the clone").await;
            }
            Err(e) => {
                assert!(matches!(e.kind(), ErrorKind::Busy | ErrorKind::NotFound), "{seed}: {e}");
                let there = family.pool.children(member.id).await.unwrap();
                assert!(there.is_empty(), "seed {seed}: {there:?}");
                // Both may give way to each other.
                drop(deleted);
            }
        }
    }
    assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
}

/// Whoever made it died before it had one.
#[tokio::test(start_paused = true)]
async fn a_clone_without_a_name_is_deleted_by_its_id() {
    let mut family = Family::new(0).await;
    family.change("v0", 60).await;
    family.snapshot("v0").await;
    let snapshot = family.pick_snapshot("v0").unwrap();
    let down = Fault::Fail(Moment::Before, StoreErrorKind::Unavailable);
    family.rig.faults.add(Rule::new(down).below(keys::NAMES).on(&[Op::Put]));
    let (origin, new) = (name("v0"), name("v1"));
    let cut_off = family.pool.clone_volume(&origin, &snapshot, &new);
    assert!(tokio::time::timeout(Duration::from_secs(3), cut_off).await.is_err());
    family.rig.faults.clear();
    let member = &family.members["v0"];
    let children = family.pool.children(member.id).await.unwrap();
    assert!(children.len() == 1 && children[0].name.is_none(), "{children:?}");
    let refused = member.volume.delete_snapshot(&snapshot).await.unwrap_err();
    assert!(refused.to_string().contains(&children[0].id.to_string()), "{refused}");
    let by = || {
        let (env, stores) = family.stores();
        Executioner { env, stores, host: Host::local().unwrap(), force: false }
    };
    let id = name(&children[0].id.to_string());
    let left = family.pool.left_over(&id).await.unwrap().unwrap();
    family.pool.purge(&left, &by()).await.unwrap();
    // A volume that has a name is not meant by its id.
    let named = name(&member.id.to_string());
    assert!(family.pool.left_over(&named).await.unwrap().is_none());
    let error = family.pool.find_in_trash(named.as_str()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    family.delete_snapshot("v0").await;
    wind_up(family).await;
}
