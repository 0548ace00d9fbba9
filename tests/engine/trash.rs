//! The trash: deleting, restoring and removing, cut off at every request that they make.

use crate::rig::{CHUNK, Rig, owner, pattern, read, write};
use objblk::clock::{Clock, SystemClock};
use objblk::error::{ErrorKind, Result};
use objblk::format::frame::Compression;
use objblk::format::keys;
use objblk::format::pool::{TombstoneObject, encode_json};
use objblk::format::{SnapshotId, VolumeId};
use objblk::host::Host;
use objblk::pool::{Executioner, KEEP, NewVolume, Pool, TrashState, Trashed, VolumeName};
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::store::{GetRange, Store, list_all};
use objblk::units::BlockSize;
use objblk::volume::{Env, Mode, Stores, Volume, VolumeOptions, find_snapshot};
use std::sync::Arc;
use std::time::Duration;

const SIZE: u64 = 2 << 20;
const SECTORS: u64 = 64;

pub fn name(text: &str) -> VolumeName {
    text.parse().unwrap()
}

/// A pool with the volume `data`, which holds something and has a snapshot of something else.
pub struct World {
    pub rig: Rig,
    pub pool: Pool,
    pub id: VolumeId,
}

impl World {
    pub async fn new(seed: u64) -> World {
        let rig = Rig::new(seed, SIZE).await;
        rig.memory.delete(&[keys::volume(rig.id)]).await.unwrap();
        let pool = Pool::init(rig.store.clone(), false).await.unwrap();
        let id = pool.create(&name("data"), size()).await.unwrap();
        let world = World { rig, pool, id };
        let volume = world.open(id).await.unwrap();
        write(&volume, 0, &pattern(0, SECTORS, 1)).await.unwrap();
        volume.make_snapshot(SnapshotId::from_bytes([1; 16]), "old").await.unwrap();
        write(&volume, 0, &pattern(0, SECTORS, 2)).await.unwrap();
        volume.close().await.unwrap();
        world
    }

    pub async fn open(&self, id: VolumeId) -> Result<Volume> {
        let options =
            VolumeOptions { mode: Mode::ReadWrite { takeover: true }, ..self.rig.options.clone() };
        let by = self.by();
        Volume::open(by.env, by.stores, id, owner(1), options).await
    }

    pub fn by(&self) -> Executioner {
        let env = Env { runtime: tokio::runtime::Handle::current(), clock: Arc::new(SystemClock) };
        let stores = Stores::one(self.rig.store.clone());
        // Whoever was cut off runs in this process, and would count as alive.
        Executioner { env, stores, host: Host::local().unwrap(), force: true }
    }

    pub async fn delete(&self, called: &str) -> Result<()> {
        self.pool.delete(&name(called), KEEP, &self.by()).await.map(drop)
    }

    pub async fn trashed(&self) -> Result<Trashed> {
        self.pool.find_in_trash(&self.id.to_string()).await
    }

    pub async fn purge(&self) -> Result<()> {
        let trashed = self.trashed().await?;
        self.pool.purge(&trashed, &self.by()).await.map(drop)
    }

    /// The volume has all that it ever had, snapshot included.
    pub async fn is_whole(&self, id: VolumeId, stamp: u64) {
        let volume = self.open(id).await.unwrap();
        assert!(read(&volume, 0, SECTORS).await.unwrap() == pattern(0, SECTORS, stamp));
        volume.close().await.unwrap();
        find_snapshot(&*self.rig.store, self.id, "old").await.unwrap();
        let options = VolumeOptions { snapshot: Some("old".into()), ..self.rig.options.clone() };
        let by = self.by();
        let old = Volume::open(by.env, by.stores, self.id, owner(2), options).await.unwrap();
        assert!(read(&old, 0, SECTORS).await.unwrap() == pattern(0, SECTORS, 1));
    }

    pub async fn left(&self) -> Vec<String> {
        let all = list_all(&self.rig.memory, "").await.unwrap();
        all.into_iter().map(|object| object.key.as_str().to_owned()).collect()
    }

    /// What is called `data` goes, and nothing is left of anything.
    pub async fn wind_up(&self) {
        for (called, _) in self.pool.names().await.unwrap() {
            self.delete(&called).await.unwrap();
        }
        for _ in 0..2 {
            for trashed in self.pool.trash().await.unwrap() {
                // Clones first: those that they need are for the second time.
                drop(self.pool.purge(&trashed, &self.by()).await);
            }
        }
        for orphan in self.pool.orphans().await.unwrap() {
            self.pool.purge(&orphan, &self.by()).await.unwrap();
        }
        assert_eq!(self.left().await, ["objblk.json"]);
    }
}

pub fn size() -> NewVolume {
    NewVolume {
        size: SIZE,
        block_size: BlockSize::default(),
        chunk_size: CHUNK,
        compression: Compression::Lz4,
        mirrored: false,
    }
}

/// Lets `work` get as far as its request `number`, which then hangs: before it takes effect, or after. What
/// hangs takes effect late, when nobody waits for it any more. Returns whether the work was done before that.
async fn cut_off<T>(
    world: &World,
    (number, moment): (u64, Moment),
    work: impl Future<Output = Result<T>>,
) -> bool {
    let held = world.rig.faults.add(Rule::new(Fault::Hold(moment)).skip(number));
    let done = tokio::time::timeout(Duration::from_secs(40), work).await;
    let done = done.is_ok_and(|done| done.map_err(|e| panic!("{number}: {e}")).is_ok());
    world.rig.faults.clear();
    drop(held);
    tokio::time::sleep(Duration::from_secs(1)).await;
    done
}

async fn resolves(world: &World) -> bool {
    let names = world.pool.names().await.unwrap();
    assert!(names.iter().all(|(called, id)| called == "data" && *id == world.id), "{names:?}");
    !names.is_empty()
}

/// Both ways to cut off the request of this number, for every number until the work is done before it.
const BOTH: [Moment; 2] = [Moment::Before, Moment::After];

#[tokio::test(start_paused = true)]
async fn a_deletion_that_is_cut_off_leaves_the_volume_in_use_or_in_the_trash() {
    for moment in BOTH {
        let mut outcomes = [0, 0];
        for number in 0.. {
            let world = World::new(number).await;
            let done = cut_off(&world, (number, moment), world.delete("data")).await;
            let in_use = resolves(&world).await;
            outcomes[usize::from(in_use)] += 1;
            if in_use {
                assert!(!done);
                world.pool.lookup(&name("data")).await.unwrap();
                let refused = world.trashed().await.unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");
                world.is_whole(world.id, 2).await;
                world.delete("data").await.unwrap();
            }
            assert!(matches!(world.trashed().await.unwrap().state, TrashState::Kept));
            // The name is free, and the volume needs another one.
            world.pool.create(&name("data"), size()).await.unwrap();
            let taken = world.pool.restore(world.id, &name("data")).await.unwrap_err();
            assert_eq!(taken.kind(), ErrorKind::Exists, "{taken}");
            world.pool.restore(world.id, &name("back")).await.unwrap();
            world.is_whole(world.id, 2).await;
            world.wind_up().await;
            if done {
                break;
            }
        }
        assert!(outcomes.iter().all(|count| *count > 1), "{outcomes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_restoration_that_is_cut_off_is_done_or_not() {
    for moment in BOTH {
        let mut outcomes = [0, 0];
        for number in 0.. {
            let world = World::new(number).await;
            world.delete("data").await.unwrap();
            let to = name("data");
            let done = cut_off(&world, (number, moment), world.pool.restore(world.id, &to)).await;
            let in_use = resolves(&world).await;
            outcomes[usize::from(in_use)] += 1;
            assert!(in_use || !done);
            if in_use {
                let again = world.pool.restore(world.id, &to).await.unwrap_err();
                assert_eq!(again.kind(), ErrorKind::Exists, "{again}");
            } else {
                world.pool.restore(world.id, &to).await.unwrap();
            }
            world.is_whole(world.id, 2).await;
            // Deleted anew, it is new in the trash.
            let before = SystemClock.now_ms();
            world.delete("data").await.unwrap();
            assert!(world.trashed().await.unwrap().deleted_at_ms.unwrap() >= before);
            world.wind_up().await;
            if done {
                break;
            }
        }
        assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
    }
}

/// It can be brought back whole, or only be removed; nothing in between.
#[tokio::test(start_paused = true)]
async fn a_removal_that_is_cut_off_has_not_begun_or_is_finished() {
    for (moment, at_once) in BOTH.into_iter().flat_map(|moment| [(moment, false), (moment, true)]) {
        let (mut outcomes, mut in_use) = ([0, 0], 0);
        for number in 0.. {
            let world = World::new(number).await;
            let done = if at_once {
                let (by, called) = (world.by(), name("data"));
                cut_off(&world, (number, moment), world.pool.delete_now(&called, &by)).await
            } else {
                world.delete("data").await.unwrap();
                cut_off(&world, (number, moment), world.purge()).await
            };
            if done {
                assert_eq!(world.left().await, ["objblk.json"]);
                break;
            }
            if at_once && resolves(&world).await {
                in_use += 1;
                world.is_whole(world.id, 2).await;
                world.wind_up().await;
                continue;
            }
            let called = name("data");
            match world.pool.restore(world.id, &called).await {
                Ok(()) => {
                    outcomes[0] += 1;
                    world.is_whole(world.id, 2).await;
                    world.wind_up().await;
                }
                Err(e) if e.kind() == ErrorKind::Corrupt => {
                    // The description is gone; its tombstone was the last to go.
                    assert!(
                        world.left().await.iter().all(|key| !key.starts_with("volumes/")),
                        "{e}"
                    );
                    outcomes[1] += 1;
                    world.wind_up().await;
                }
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::Busy, "{number}: {e}");
                    outcomes[1] += 1;
                    let refused = world.pool.lookup(&called).await.unwrap_err();
                    assert_eq!(refused.kind(), ErrorKind::NotFound, "{number}: {refused}");
                    assert!(matches!(world.trashed().await.unwrap().state, TrashState::Removing));
                    let left = world.pool.left_over(&called).await.unwrap().unwrap();
                    world.pool.purge(&left, &world.by()).await.unwrap();
                    assert_eq!(world.left().await, ["objblk.json"], "{number}");
                }
            }
        }
        assert!(outcomes.iter().all(|count| *count > 3), "{outcomes:?}");
        assert_eq!(in_use > 3, at_once);
    }
}

/// As an objblk without a trash left it: a tombstone, and a name or none.
#[tokio::test(start_paused = true)]
async fn a_deletion_of_an_older_version_is_finished() {
    for named in [true, false] {
        let world = World::new(0).await;
        let tombstone = TombstoneObject { name: "data".into(), deleted_at_ms: 1 };
        let body = encode_json(&tombstone).into();
        world.rig.memory.put_if_absent(&keys::trash(world.id), body).await.unwrap();
        if !named {
            world.rig.memory.delete(&[keys::name("data").unwrap()]).await.unwrap();
        }
        let refused = world.pool.lookup(&name("data")).await.unwrap_err();
        let kind = if named { ErrorKind::Busy } else { ErrorKind::NotFound };
        assert_eq!(refused.kind(), kind, "{refused}");
        let refused = world.pool.restore(world.id, &name("back")).await.unwrap_err();
        assert!(matches!(refused.kind(), ErrorKind::Busy | ErrorKind::Exists), "{refused}");
        let left = world.pool.left_over(&name("data")).await.unwrap().unwrap();
        world.pool.purge(&left, &world.by()).await.unwrap();
        assert_eq!(world.left().await, ["objblk.json"]);
    }
}

/// Neither of them is in the trash, and what was in use is not swept.
#[tokio::test(start_paused = true)]
async fn orphans_are_told_apart() {
    let world = World::new(0).await;
    let empty = world.pool.create(&name("empty"), size()).await.unwrap();
    world.pool.create(&name("live"), size()).await.unwrap();
    world.delete("live").await.unwrap();
    for called in ["data", "empty"] {
        world.rig.memory.delete(&[keys::name(called).unwrap()]).await.unwrap();
    }
    let late = VolumeId::from_bytes([9; 16]);
    let slot = keys::slot(late, objblk::units::Seq(3), objblk::units::Epoch(1));
    world.rig.memory.put_if_absent(&slot, vec![0; 9].into()).await.unwrap();
    let mut orphans = world.pool.orphans().await.unwrap();
    orphans.sort_by_key(|orphan| [world.id, empty, late].iter().position(|id| *id == orphan.id));
    let states: Vec<_> = orphans.iter().map(|orphan| (orphan.id, &orphan.state)).collect();
    assert!(
        matches!(
            &*states,
            [
                (a, TrashState::Lost),
                (b, TrashState::Unfinished),
                (c, TrashState::Remains)
            ] if (*a, *b, *c) == (world.id, empty, late)
        ),
        "{states:?}"
    );
    assert!(orphans[0].age().is_none() && orphans[1].age().is_some());
    for orphan in &orphans[1..] {
        world.pool.purge(orphan, &world.by()).await.unwrap();
    }
    world.pool.restore(world.id, &name("found")).await.unwrap();
    assert!(world.pool.orphans().await.unwrap().is_empty());
    world.is_whole(world.id, 2).await;
    world.wind_up().await;
}

/// What was brought back is not in the trash if it loses its name, and a name that cannot be read may be its.
#[tokio::test(start_paused = true)]
async fn what_was_restored_is_not_swept() {
    let world = World::new(0).await;
    let key = keys::name("data").unwrap();
    world.pool.delete(&name("data"), Duration::ZERO, &world.by()).await.unwrap();
    assert!(world.trashed().await.unwrap().is_expired());
    world.pool.restore(world.id, &name("data")).await.unwrap();
    assert!(world.pool.trash().await.unwrap().is_empty());
    let body = world.rig.memory.get(&key, GetRange::All).await.unwrap();
    world.rig.memory.delete(std::slice::from_ref(&key)).await.unwrap();
    let lost = world.trashed().await.unwrap();
    assert!(matches!(lost.state, TrashState::Lost) && !lost.is_expired(), "{lost:?}");
    assert_eq!(lost.name.as_deref(), Some("data"));

    world.rig.memory.put(&key, body.slice(1..)).await.unwrap();
    let by = Executioner { force: false, ..world.by() };
    let refused = world.pool.purge(&lost, &by).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
    assert!(refused.to_string().contains("may be the volume called data"), "{refused}");
    world.rig.memory.put(&key, body).await.unwrap();
    world.is_whole(world.id, 2).await;
    world.wind_up().await;
}

/// An origin in the trash stays for as long as a clone needs it, and its clone in the trash needs it still.
#[tokio::test(start_paused = true)]
async fn an_origin_outlives_its_clones_in_the_trash() {
    let world = World::new(0).await;
    let clone = world.pool.clone_volume(&name("data"), "old", &name("vm")).await.unwrap();
    world.delete("data").await.unwrap();
    world.is_whole(clone, 1).await;
    let refused = world.purge().await.unwrap_err();
    assert!(refused.to_string().contains("clones need volume data: vm; delete or flatten"));
    world.delete("vm").await.unwrap();
    let refused = world.purge().await.unwrap_err();
    let words = "clones need volume data: vm in the trash; delete or flatten them first, and empty";
    assert!(refused.to_string().contains(words), "{refused}");
    world.pool.restore(clone, &name("vm")).await.unwrap();
    world.is_whole(clone, 1).await;
    world.wind_up().await;
}
