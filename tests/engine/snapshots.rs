//! Snapshots: they stay as they were, whatever becomes of the volume, and keep nothing once deleted.

use crate::rig::{Rig, pattern, read, write};
use objblk::device::BlockDevice;
use objblk::error::ErrorKind;
use objblk::format::checkpoint::Checkpoint;
use objblk::format::{SnapshotId, keys};
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::store::{Op, list_all};
use objblk::volume::{Mode, Volume, VolumeOptions, list_snapshots};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::time::Duration;

const SIZE: u64 = 4 << 20;
const SECTORS: u64 = SIZE / 512;
const BLOCK: u64 = 8;

fn id(number: u64) -> SnapshotId {
    SnapshotId::from_bytes((u128::from(number) + 1).to_le_bytes())
}

/// Its checkpoint was cut off with it: whoever still asks gets an error, and no more.
#[tokio::test(start_paused = true)]
async fn an_abandoned_volume_makes_no_snapshot() {
    let rig = Rig::new(1, SIZE).await;
    let volume = rig.open().await;
    write(&volume, 0, &pattern(0, 8, 1)).await.unwrap();
    let hold = Rule::new(Fault::Hold(Moment::Before)).on(&[Op::Put]);
    let hold = rig.faults.add(hold.below(keys::checkpoints(rig.id)));
    let (first, id) = (volume.clone(), |n| SnapshotId::from_bytes([n; 16]));
    let first = tokio::spawn(async move { first.make_snapshot(id(1), "a").await });
    hold.held(1).await;
    volume.abandon();
    assert!(first.await.unwrap().is_err());
    let e = volume.make_snapshot(id(2), "b").await.unwrap_err();
    assert!(e.to_string().contains("abandoned"), "{e}");
    assert!(volume.status().failure.is_some(), "its state can be read");
}

/// A volume and what all of its states hold, by block.
struct Story {
    rig: Rig,
    rng: StdRng,
    now: Vec<u64>,
    stamp: u64,
    made: BTreeMap<String, Vec<u64>>,
}

impl Story {
    async fn new(seed: u64) -> Story {
        let rig = Rig::new(seed, SIZE).await;
        let now = vec![0; (SECTORS / BLOCK) as usize];
        Story { rig, rng: StdRng::seed_from_u64(seed), now, stamp: 0, made: BTreeMap::new() }
    }

    async fn change(&mut self, volume: &Volume, times: usize) {
        for _ in 0..times {
            let block = self.rng.random_range(0..self.now.len());
            let start = block as u64 * BLOCK;
            if self.rng.random_bool(0.15) {
                let range = crate::rig::range(start, BLOCK);
                volume.discard(range).await.unwrap();
                self.now[block] = 0;
                continue;
            }
            self.stamp += 1;
            write(volume, start, &pattern(start, BLOCK, self.stamp)).await.unwrap();
            self.now[block] = self.stamp;
        }
    }

    async fn snapshot(&mut self, volume: &Volume) {
        let number = self.stamp + 1000 * self.made.len() as u64 + 1;
        let name = format!("s{number}");
        volume.make_snapshot(id(number), &name).await.unwrap();
        self.made.insert(name, self.now.clone());
    }

    async fn open(&self, name: &str) -> Volume {
        let options = VolumeOptions { snapshot: Some(name.into()), ..self.rig.options.clone() };
        self.rig.open_with(9, options).await.unwrap()
    }

    async fn verify(&self, volume: &Volume, image: &[u64], what: &str) {
        for (block, stamp) in image.iter().enumerate() {
            let start = block as u64 * BLOCK;
            let wanted = match stamp {
                0 => vec![0; (BLOCK * 512) as usize],
                stamp => pattern(start, BLOCK, *stamp),
            };
            assert!(read(volume, start, BLOCK).await.unwrap() == wanted, "{what}: block {block}");
        }
    }

    async fn verify_all(&self, volume: &Volume) {
        self.verify(volume, &self.now, "now").await;
        let listed = list_snapshots(&*self.rig.store, self.rig.id).await.unwrap();
        let listed: Vec<&str> = listed.iter().map(|entry| &*entry.name).collect();
        assert_eq!(listed.len(), self.made.len(), "{listed:?}");
        for (name, image) in &self.made {
            self.verify(&self.open(name).await, image, name).await;
        }
    }

    async fn newest_checkpoint(&self) -> Checkpoint {
        let all = self.rig.objects("checkpoints/").await;
        Checkpoint::parse(&self.rig.object(&all[0]).await).unwrap()
    }

    /// Without snapshots there is nothing in the store but what the volume needs now.
    async fn assert_nothing_kept(&self, volume: &Volume) {
        volume.collect(Some(100)).await.unwrap();
        let checkpoint = self.newest_checkpoint().await;
        assert!(self.rig.objects("snapshots/").await.is_empty());
        assert_eq!(self.rig.objects("map/").await.len(), checkpoint.map_objects.len());
        let log = format!("{}log/", keys::volume_prefix(self.rig.id));
        let stored: u64 =
            list_all(&self.rig.memory, &log).await.unwrap().iter().map(|object| object.size).sum();
        let live = checkpoint.live.bytes();
        eprintln!("{stored} bytes stored, {live} live: {:.2}", stored as f64 / live as f64);
        assert!(stored <= live * 14 / 10 + (64 << 10), "{stored} bytes stored, {live} live");
    }
}

#[tokio::test(start_paused = true)]
async fn snapshots_stay_as_they_were_until_they_are_deleted_in_any_order() {
    for seed in 0..8 {
        eprintln!("replay: seed {seed}");
        let mut story = Story::new(seed).await;
        let mut volume = story.rig.open().await;
        let mut pid = 1;
        for _ in 0..30 {
            let writes = story.rng.random_range(0..400);
            story.change(&volume, writes).await;
            match story.rng.random_range(0..10) {
                0..4 => story.snapshot(&volume).await,
                4..6 => {
                    let names: Vec<String> = story.made.keys().cloned().collect();
                    if let Some(name) = names.choose(&mut story.rng) {
                        volume.delete_snapshot(name).await.unwrap();
                        story.made.remove(name);
                    }
                }
                6 => drop(volume.collect(Some(100)).await.unwrap()),
                7 => {
                    volume.flush().await.unwrap();
                    volume.abandon();
                    pid += 1;
                    volume = story.rig.take_over(pid).await;
                }
                8 => {
                    volume.close().await.unwrap();
                    volume = story.rig.open().await;
                }
                _ => story.verify_all(&volume).await,
            }
        }
        story.verify_all(&volume).await;
        while !story.made.is_empty() {
            let names: Vec<String> = story.made.keys().cloned().collect();
            let name = names.choose(&mut story.rng).unwrap();
            volume.delete_snapshot(name).await.unwrap();
            story.made.remove(name);
            story.verify_all(&volume).await;
        }
        story.assert_nothing_kept(&volume).await;
        story.verify(&volume, &story.now, "in the end").await;
        volume.close().await.unwrap();
    }
}

/// What was acknowledged is there after a crash, made or deleted, before any later checkpoint.
#[tokio::test(start_paused = true)]
async fn a_crash_forgets_neither_a_snapshot_nor_its_deletion() {
    let mut story = Story::new(1).await;
    let volume = story.rig.open().await;
    story.change(&volume, 300).await;
    story.snapshot(&volume).await;
    volume.abandon();
    // Damage on the way is no reason to do without it.
    let objects = format!("{}snapshots/", keys::volume_prefix(story.rig.id));
    story.rig.faults.add(Rule::new(Fault::Truncate).on(&[Op::Get]).below(objects).times(2));
    let refused = story.rig.open_as(3, Mode::ReadWrite { takeover: true }).await.map(drop);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Corrupt);
    let volume = story.rig.take_over(2).await;
    assert_eq!(volume.snapshots().len(), 1);
    story.now = story.made.values().next().unwrap().clone();
    story.verify_all(&volume).await;
    story.change(&volume, 300).await;
    let name = volume.snapshots()[0].name.clone();
    volume.flush().await.unwrap();
    volume.delete_snapshot(&name).await.unwrap();
    volume.abandon();
    let volume = story.rig.take_over(3).await;
    assert!(volume.snapshots().is_empty());
    story.made.clear();
    story.verify_all(&volume).await;
    story.assert_nothing_kept(&volume).await;
}

#[tokio::test(start_paused = true)]
async fn names_and_views_are_refused_with_a_reason() {
    let mut story = Story::new(2).await;
    let volume = story.rig.open().await;
    story.change(&volume, 10).await;
    volume.make_snapshot(id(1), "a").await.unwrap();
    let again = volume.make_snapshot(id(2), "a").await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Exists, "{again}");
    let none = volume.delete_snapshot("b").await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound, "{none}");
    let options = VolumeOptions { snapshot: Some("b".into()), ..story.rig.options.clone() };
    let none = story.rig.open_with(9, options).await.map(drop).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound, "{none}");
    let view = story.open("a").await;
    assert!(view.status().read_only && view.geometry().read_only);
    for refused in [view.make_snapshot(id(3), "c").await, view.delete_snapshot("a").await] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Usage);
    }
    view.close().await.unwrap();
    volume.close().await.unwrap();
}

/// While the store is slow to take the map, users go on, and what they write is not in the snapshot.
#[tokio::test(start_paused = true)]
async fn users_go_on_while_a_snapshot_is_made() {
    let mut story = Story::new(3).await;
    let volume = story.rig.open().await;
    story.change(&volume, 200).await;
    let map = format!("{}map/", keys::volume_prefix(story.rig.id));
    let slow = Fault::Delay {
        at: Moment::Before,
        from: Duration::from_secs(3),
        to: Duration::from_secs(3),
    };
    story.rig.faults.add(Rule::new(slow).on(&[Op::Put]).below(map));
    let then = story.now.clone();
    let making = {
        let volume = volume.clone();
        tokio::spawn(async move { volume.make_snapshot(id(1), "a").await })
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begun = tokio::time::Instant::now();
    story.change(&volume, 100).await;
    volume.flush().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1) && !making.is_finished());
    making.await.unwrap().unwrap();
    story.made.insert("a".into(), then);
    story.verify_all(&volume).await;
    volume.close().await.unwrap();
}

/// A reader that is slow begins with a checkpoint that its owner replaces, with what is behind it in the log.
#[tokio::test(start_paused = true)]
async fn a_slow_reader_sees_no_log_that_seems_to_end() {
    let mut story = Story::new(6).await;
    let volume = story.rig.open().await;
    let hold = |rig: &Rig| {
        let log = format!("{}log/", keys::volume_prefix(rig.id));
        rig.faults.add(Rule::new(Fault::Hold(Moment::Before)).on(&[Op::Get]).below(log))
    };
    let list = |rig: &Rig| {
        let (store, id) = (rig.store.clone(), rig.id);
        tokio::spawn(async move { list_snapshots(&*store, id).await })
    };
    for count in [1, 0] {
        match count {
            1 => story.snapshot(&volume).await,
            _ => drop(volume.delete_snapshot(&volume.snapshots()[0].name).await.unwrap()),
        }
        let held = hold(&story.rig);
        let listed = list(&story.rig);
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Nothing is left of this that could prove what was there before it.
        volume.discard(crate::rig::range(0, BLOCK)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(300)).await;
        held.release();
        story.rig.faults.clear();
        assert_eq!(listed.await.unwrap().unwrap().len(), count);
    }
    volume.close().await.unwrap();
}

/// An object of a snapshot that rotted costs that snapshot, and no other data.
#[tokio::test(start_paused = true)]
async fn a_damaged_snapshot_harms_nothing_else() {
    let mut story = Story::new(4).await;
    let volume = story.rig.open().await;
    for _ in 0..3 {
        story.change(&volume, 300).await;
        story.snapshot(&volume).await;
    }
    let entries = volume.snapshots();
    let key = keys::snapshot(story.rig.id, entries[1].id);
    let mut body = story.rig.object(key.as_str()).await.to_vec();
    body[100] ^= 1;
    story.rig.replace(key.as_str(), body).await;
    volume.close().await.unwrap();
    story.made.remove(&entries[1].name);
    let options =
        VolumeOptions { snapshot: Some(entries[1].name.clone()), ..story.rig.options.clone() };
    let error = story.rig.open_with(9, options).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let volume = story.rig.open_as(2, Mode::ReadWrite { takeover: false }).await.unwrap();
    story.change(&volume, 2000).await;
    volume.delete_snapshot(&entries[1].name).await.unwrap();
    volume.collect(Some(100)).await.unwrap();
    story.verify_all(&volume).await;
    for at in [2, 0] {
        volume.delete_snapshot(&entries[at].name).await.unwrap();
        story.made.remove(&entries[at].name);
        volume.collect(Some(100)).await.unwrap();
        story.verify_all(&volume).await;
    }
    volume.close().await.unwrap();
}

/// What is done with the thousandth snapshot takes as many requests as with the first.
#[tokio::test(start_paused = true)]
async fn a_thousand_snapshots_cost_no_more_than_a_few() {
    const COUNT: usize = 1000;
    let mut story = Story::new(5).await;
    (story.rig.options.checkpoint_slots, story.rig.options.checkpoint_extents) = (64, 4096);
    let at_once = Fault::Delay { at: Moment::Before, from: Duration::ZERO, to: Duration::ZERO };
    let requests = story.rig.faults.add(Rule::new(at_once));
    let volume = story.rig.open().await;
    let mut made = Vec::new();
    for number in 0..COUNT {
        story.change(&volume, 4).await;
        let before = requests.hits();
        volume.make_snapshot(id(number as u64), &format!("s{number}")).await.unwrap();
        made.push(requests.hits() - before);
    }
    let least = |costs: &[u64]| costs.iter().copied().min().unwrap();
    let (first, last) = (least(&made[..100]), least(&made[COUNT - 100..]));
    assert!(last <= first + 1, "making one takes {first} requests at first, {last} in the end");
    let mut looks = Vec::new();
    for name in ["s0", "s999"] {
        let before = requests.hits();
        story.open(name).await.close().await.unwrap();
        looks.push(requests.hits() - before);
    }
    assert!(looks[1] <= looks[0] + 1, "opening takes {looks:?} requests");
    let mut deleted = Vec::new();
    for number in 0..COUNT - 1 {
        let before = requests.hits();
        // In no order at all.
        volume.delete_snapshot(&format!("s{}", number * 387 % COUNT)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        deleted.push(requests.hits() - before);
    }
    let (first, last) = (least(&deleted[..100]), least(&deleted[COUNT - 101..]));
    assert!(last <= first + 1, "deleting one takes {first} requests at first, {last} in the end");
    let left = volume.snapshots();
    assert_eq!(left.len(), 1);
    volume.delete_snapshot(&left[0].name).await.unwrap();
    story.assert_nothing_kept(&volume).await;
    story.verify(&volume, &story.now, "in the end").await;
    volume.close().await.unwrap();
}
