//! The past: every moment of it reads as it was, as long as it is kept, and costs nothing afterwards.

use crate::rig::{Rig, owner, pattern, range, read, write};
use crate::schedule::{HOUR, Watch, pass, watch};
use objblk::clock::Clock;
use objblk::device::BlockDevice;
use objblk::error::ErrorKind;
use objblk::format::SnapshotId;
use objblk::format::checkpoint::Checkpoint;
use objblk::units::Seq;
use objblk::volume::{Env, Mode, Moment, Stores, Volume, VolumeOptions, past};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::time::Duration;

const SIZE: u64 = 2 << 20;
const BLOCK: u64 = 8;
const BLOCKS: usize = (SIZE / 512 / BLOCK) as usize;

/// A volume and what it held at moments of its past, by block.
struct Story {
    rig: Rig,
    clock: Arc<Watch>,
    rng: StdRng,
    volume: Volume,
    owners: u32,
    now: Vec<u64>,
    stamp: u64,
    /// Position and time after a flush, and what there was.
    moments: Vec<(Seq, u64, Vec<u64>)>,
}

async fn open(
    rig: &Rig,
    clock: &Arc<Watch>,
    pid: u32,
    at: Option<Moment>,
) -> Result<Volume, objblk::error::Error> {
    let env = Env { runtime: tokio::runtime::Handle::current(), clock: clock.clone() };
    let mode = Mode::ReadWrite { takeover: true };
    let options = VolumeOptions { mode, at, ..rig.options.clone() };
    Volume::open(env, Stores::one(rig.store.clone()), rig.id, owner(pid), options).await
}

impl Story {
    async fn new(seed: u64, hours: u64) -> Story {
        let (rig, clock) = (Rig::new(seed, SIZE).await, watch());
        let volume = open(&rig, &clock, 1, None).await.unwrap();
        volume.retain(Some(Duration::from_millis(hours * HOUR))).await.unwrap();
        let (now, rng) = (vec![0; BLOCKS], StdRng::seed_from_u64(seed));
        Story { rig, clock, rng, volume, owners: 1, now, stamp: 0, moments: Vec::new() }
    }

    async fn change(&mut self, times: usize) {
        for _ in 0..times {
            let block = self.rng.random_range(0..BLOCKS);
            let start = block as u64 * BLOCK;
            if self.rng.random_bool(0.15) {
                self.volume.discard(range(start, BLOCK)).await.unwrap();
                self.now[block] = 0;
                continue;
            }
            self.stamp += 1;
            write(&self.volume, start, &pattern(start, BLOCK, self.stamp)).await.unwrap();
            self.now[block] = self.stamp;
        }
        self.volume.flush().await.unwrap();
        let slot = Seq(self.volume.status().next_seq);
        self.moments.push((slot, self.clock.now_ms(), self.now.clone()));
        // What comes next is later, by the clock.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    async fn next_owner(&mut self, crash: bool) {
        match crash {
            true => drop(self.volume.abandon()),
            false => self.volume.close().await.unwrap(),
        }
        self.owners += 1;
        self.volume = open(&self.rig, &self.clock, self.owners, None).await.unwrap();
    }

    async fn verify(&self, moment: Moment, expected: &[u64]) {
        let view = open(&self.rig, &self.clock, 99, Some(moment)).await.unwrap();
        let all = read(&view, 0, SIZE / 512).await.unwrap();
        for (block, stamp) in expected.iter().enumerate() {
            let start = block as u64 * BLOCK;
            let found = &all[start as usize * 512..][..BLOCK as usize * 512];
            let right = match stamp {
                0 => found.iter().all(|byte| *byte == 0),
                stamp => found == pattern(start, BLOCK, *stamp),
            };
            assert!(right, "block {block} at {moment:?}");
        }
        view.close().await.unwrap();
    }

    async fn verify_all(&self) {
        for (slot, time, expected) in &self.moments {
            self.verify(Moment::Slot(*slot), expected).await;
            self.verify(Moment::Time(*time), expected).await;
        }
    }

    /// Nothing is left but what is live, the newest checkpoint, and a short tail of the log.
    async fn assert_nothing_kept(&self, minutes: u64) {
        // Also not what is kept because it shares a chunk with what is live.
        self.volume.collect(Some(100)).await.unwrap();
        pass(minutes).await;
        let checkpoints = self.rig.objects("checkpoints/").await;
        assert_eq!(checkpoints.len(), 1, "{checkpoints:?}");
        let newest = Checkpoint::parse(&self.rig.object(&checkpoints[0]).await).unwrap();
        let maps = self.rig.objects("map/").await;
        assert_eq!(maps.len(), newest.map_objects.len(), "{maps:?}, {:?}", newest.map_objects);
        let chunks = self.rig.objects("log/").await.len();
        let most = 2 * SIZE / crate::rig::CHUNK + 16 + 2 * u64::from(self.owners);
        assert!(chunks as u64 <= most, "{chunks} of {most}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_moment_that_is_kept_reads_as_it_was() {
    for seed in 0..3 {
        let mut story = Story::new(seed, 100).await;
        for round in 0..24u64 {
            story.change(40).await;
            match story.rng.random_range(0..8) {
                0 => story.next_owner(true).await,
                1 => story.next_owner(false).await,
                2 => drop(story.volume.collect(Some(100)).await.unwrap()),
                3 => {
                    let id = SnapshotId::from_bytes([round as u8 + 1; 16]);
                    story.volume.make_snapshot(id, &format!("s{round}")).await.unwrap();
                }
                4 => {
                    if let Some(entry) = story.volume.snapshots().first() {
                        story.volume.delete_snapshot(&entry.name).await.unwrap();
                    }
                }
                5 => pass(30).await,
                _ => {}
            }
        }
        story.verify_all().await;
        story.next_owner(true).await;
        story.verify_all().await;
        let known = past(&*story.rig.store, story.rig.id).await.unwrap();
        assert_eq!(known.retention, Some(Duration::from_millis(100 * HOUR)));
        assert!(known.oldest.unwrap().0 <= story.moments[0].0);
        for entry in story.volume.snapshots() {
            story.volume.delete_snapshot(&entry.name).await.unwrap();
        }
        story.volume.retain(None).await.unwrap();
        story.change(1).await;
        pass(3).await;
        story.assert_nothing_kept(3).await;
        let last = story.moments.last().unwrap().clone();
        story.verify(Moment::Time(story.clock.now_ms()), &last.2).await;
        story.volume.close().await.unwrap();
    }
}

/// What is older than the retention time goes by itself, also of a volume that nobody writes to.
#[tokio::test(start_paused = true)]
async fn the_past_expires_and_its_space_comes_back() {
    let mut story = Story::new(7, 2).await;
    for _ in 0..6 {
        story.change(300).await;
        pass(30).await;
    }
    let moments = story.moments.clone();
    // Changes of three hours, of which two are kept, to the checkpoint.
    for (slot, time, expected) in &moments[3..] {
        story.verify(Moment::Slot(*slot), expected).await;
        story.verify(Moment::Time(*time), expected).await;
    }
    let (slot, time, _) = moments[0];
    for moment in [Moment::Slot(slot), Moment::Time(time)] {
        let refused = open(&story.rig, &story.clock, 9, Some(moment)).await.map(drop).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");
        assert!(refused.to_string().contains("the oldest moment is slot "), "{refused}");
    }
    let kept = story.rig.objects("log/").await.len();
    story.next_owner(true).await;
    pass(240).await;
    story.assert_nothing_kept(240).await;
    assert!(story.rig.objects("log/").await.len() * 2 < kept);
    let future = Moment::Slot(Seq(story.volume.status().next_seq + 1));
    let refused = open(&story.rig, &story.clock, 9, Some(future)).await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("has not come"), "{refused}");
    story.volume.retain(None).await.unwrap();
    let refused = open(&story.rig, &story.clock, 9, Some(Moment::Slot(slot))).await.map(drop);
    let refused = refused.unwrap_err();
    assert!(refused.to_string().contains("`objblk retain` keeps it"), "{refused}");
    story.volume.close().await.unwrap();
}

/// Points are few however many checkpoints there are, and what those freed that are none any more is freed.
#[tokio::test(start_paused = true)]
async fn points_are_few_and_forget_nothing() {
    let mut story = Story::new(8, 2000).await;
    for _ in 0..60 {
        story.change(40).await;
        pass(3).await;
    }
    // One in two hours would be enough.
    let points = story.rig.objects("checkpoints/").await.len();
    assert!(points <= 6, "{points}");
    for (slot, time, expected) in story.moments.iter().step_by(7) {
        story.verify(Moment::Slot(*slot), expected).await;
        story.verify(Moment::Time(*time), expected).await;
    }
    story.volume.retain(None).await.unwrap();
    story.change(1).await;
    pass(3).await;
    story.assert_nothing_kept(3).await;
    story.volume.close().await.unwrap();
}

/// Who was fenced is told so, and waits for nothing.
#[tokio::test(start_paused = true)]
async fn a_deposed_owner_changes_nothing_about_the_past() {
    let mut story = Story::new(9, 10).await;
    story.change(20).await;
    let deposed = open(&story.rig, &story.clock, 7, None).await.unwrap();
    let newer = open(&story.rig, &story.clock, 8, None).await.unwrap();
    let _ = deposed.flush().await;
    let (off, rules) = (deposed.retain(None).await, deposed.set_schedule(Vec::new()).await);
    for refused in [off.unwrap_err(), rules.unwrap_err()] {
        assert_eq!(refused.kind(), ErrorKind::Fenced, "{refused}");
    }
    deposed.abandon();
    story.volume.abandon();
    let known = past(&*story.rig.store, story.rig.id).await.unwrap();
    assert_eq!(known.retention, Some(Duration::from_millis(10 * HOUR)));
    newer.close().await.unwrap();
}

/// What the log goes back to is kept as long as a moment before that is, though nobody has that snapshot any more.
#[tokio::test(start_paused = true)]
async fn a_rollback_in_the_past_needs_its_snapshot() {
    let mut story = Story::new(10, 100).await;
    story.change(60).await;
    let made = story.volume.make_snapshot(SnapshotId::from_bytes([1; 16]), "s").await.unwrap();
    let then = story.now.clone();
    story.change(60).await;
    let kept = (SnapshotId::from_bytes([2; 16]), "before");
    story.volume.roll_back("s", kept).await.unwrap();
    story.now = then;
    story.volume = open(&story.rig, &story.clock, 2, None).await.unwrap();
    story.change(60).await;
    for name in ["s", "before"] {
        story.volume.delete_snapshot(name).await.unwrap();
    }
    pass(1).await;
    story.next_owner(true).await;
    pass(20).await;
    story.change(60).await;
    story.next_owner(false).await;
    pass(3).await;
    assert_eq!(story.volume.snapshots(), []);
    let object = objblk::format::keys::snapshot(story.rig.id, made.id).to_string();
    assert!(story.rig.objects("snapshots/").await.contains(&object));
    story.verify_all().await;
    // With the past it goes, too.
    story.volume.retain(None).await.unwrap();
    story.change(1).await;
    pass(3).await;
    assert_eq!(story.rig.objects("snapshots/").await, [""; 0]);
    story.volume.close().await.unwrap();
}
