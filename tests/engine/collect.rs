//! The collector: space is bounded, contents stay, users go first.

use crate::rig::{Rig, pattern, range, read, write};
use objblk::device::BlockDevice;
use objblk::error::ErrorKind;
use objblk::format::keys;
use objblk::gc::{Choice, Limits};
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::store::metrics::MetricsStore;
use objblk::store::{Op, list_all};
use objblk::volume::{Mode, SpaceStatus, Volume};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::time::Duration;

/// Sectors of a write.
const BLOCK: u64 = 8;
const SECOND: Duration = Duration::from_secs(1);

fn limits(bound_percent: u32, slack_bytes: u64) -> Limits {
    Limits { bound_percent, slack_bytes, choice: Choice::CostBenefit }
}

async fn rig(size: u64, limits: Limits) -> Rig {
    let mut rig = Rig::new(1, size).await;
    (rig.options.checkpoint_extents, rig.options.checkpoint_slots) = (1 << 20, 1 << 20);
    rig.options.collection = Some(limits);
    rig
}

/// Bytes of all chunks that are stored.
async fn stored(rig: &Rig) -> u64 {
    let prefix = format!("{}log/", keys::volume_prefix(rig.id));
    let all = list_all(&rig.memory, &prefix).await.unwrap();
    all.iter().map(|object| object.size).sum()
}

/// A user who knows what every block holds.
struct User {
    stamps: Vec<u64>,
    rng: StdRng,
    next: u64,
}

impl User {
    fn new(blocks: u64, seed: u64) -> User {
        User { stamps: vec![0; blocks as usize], rng: StdRng::seed_from_u64(seed), next: 1 }
    }

    async fn fill(&mut self, volume: &Volume) {
        for at in 0..self.stamps.len() {
            self.write(volume, at).await;
        }
        volume.flush().await.unwrap();
    }

    async fn write(&mut self, volume: &Volume, at: usize) {
        let start = at as u64 * BLOCK;
        write(volume, start, &pattern(start, BLOCK, self.next)).await.unwrap();
        self.stamps[at] = self.next;
        self.next += 1;
    }

    /// `skewed`: nine of ten writes go to a tenth of the volume.
    async fn overwrite(&mut self, volume: &Volume, writes: u64, skewed: bool) {
        let all = self.stamps.len();
        for _ in 0..writes {
            let hot = skewed && self.rng.random_bool(0.9);
            let at = self.rng.random_range(0..if hot { all / 10 } else { all });
            self.write(volume, at).await;
        }
    }

    async fn verify(&self, volume: &Volume) {
        for (at, stamp) in self.stamps.iter().enumerate() {
            let start = at as u64 * BLOCK;
            let expected = match stamp {
                0 => vec![0; BLOCK as usize * 512],
                stamp => pattern(start, BLOCK, *stamp),
            };
            assert!(read(volume, start, BLOCK).await.unwrap() == expected, "block {at}");
        }
    }
}

/// Chunks hold what the bound says, and what came since the last checkpoint.
fn most(live: u64, limits: Limits) -> u64 {
    let interval = limits.slack_bytes.max(live / 8);
    // What waits for its turn, and the headers.
    live * u64::from(limits.bound_percent) / 100 + interval * 3 / 2 + (3 << 20) + live / 50
}

/// What became of a volume that was written to at random until it was steady.
struct Steady {
    amplification: f64,
    /// The most that was stored, by what is live.
    highest: f64,
}

async fn steady(size: u64, limits: Limits, skewed: bool) -> Steady {
    let mut rig = rig(size, limits).await;
    let metrics = Arc::new(MetricsStore::new(rig.store.clone()));
    rig.store = metrics.clone();
    let volume = rig.open().await;
    let blocks = size / 512 / BLOCK;
    let mut user = User::new(blocks, 1);
    user.fill(&volume).await;
    user.overwrite(&volume, blocks * 2, skewed).await;
    let before = volume.status().space;
    let put = || metrics.snapshot().operations["put"].bytes as f64;
    let put_before = put();
    let mut highest = 0;
    for _ in 0..32 {
        user.overwrite(&volume, blocks / 8, skewed).await;
        highest = highest.max(stored(&rig).await);
    }
    let after = volume.status().space;
    let part = |f: fn(&SpaceStatus) -> u64| (f(&after) - f(&before)) as f64;
    let written = part(|s| s.written_bytes);
    let appended = (written + part(|s| s.moved_bytes)) / written;
    // Headers, the map and checkpoints count as well.
    let amplification = (put() - put_before) / written;
    let times = highest as f64 / size as f64;
    let Limits { bound_percent, choice, .. } = limits;
    println!(
        "bound {bound_percent} %, {choice:?}, skewed {skewed}: {:.0} MiB written, for each \
         byte {appended:.3} appended and {amplification:.3} put, at most {times:.3} x live stored",
        written / 1048576.0
    );
    assert!(highest <= most(size, limits), "{highest} of {}", most(size, limits));
    user.verify(&volume).await;
    volume.close().await.unwrap();
    Steady { amplification, highest: times }
}

#[tokio::test(start_paused = true)]
async fn random_writes_stay_within_the_bound() {
    let uniform = steady(24 << 20, limits(140, 1 << 20), false).await;
    assert!(uniform.amplification < 2.4, "{}", uniform.amplification);
    let skewed = steady(24 << 20, limits(140, 1 << 20), true).await;
    assert!(skewed.amplification < uniform.amplification, "{}", skewed.amplification);
    assert!(skewed.highest > 1.2, "the bound is used");
}

/// What is put for each byte written. OBJBLK_FULL=1: with several bounds, on a larger volume.
#[tokio::test(start_paused = true)]
async fn write_amplification_of_collection() {
    let full = std::env::var_os("OBJBLK_FULL").is_some();
    let (size, bounds) =
        if full { (256 << 20, &[160, 140, 150, 170][..]) } else { (32 << 20, &[160][..]) };
    for bound_percent in bounds {
        for choice in [Choice::Greedy, Choice::CostBenefit] {
            for skewed in [false, true] {
                let limits =
                    Limits { bound_percent: *bound_percent, slack_bytes: size / 64, choice };
                let found = steady(size, limits, skewed).await;
                let most = if *bound_percent >= 160 { 1.65 } else { 2.2 };
                assert!(found.amplification < most, "{}", found.amplification);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn trims_make_the_bucket_shrink() {
    let size = 24u64 << 20;
    let limits = limits(140, 1 << 20);
    let rig = rig(size, limits).await;
    let volume = rig.open().await;
    let mut user = User::new(size / 512 / BLOCK, 1);
    user.fill(&volume).await;
    let full = stored(&rig).await;
    assert!(full >= size);
    for at in 0..user.stamps.len() {
        // Three of four, so that every chunk keeps something.
        if at % 4 != 0 {
            volume.discard(range(at as u64 * BLOCK, BLOCK)).await.unwrap();
            user.stamps[at] = 0;
        }
    }
    tokio::time::sleep(rig.options.checkpoint_after * 4).await;
    let left = stored(&rig).await;
    assert!(left <= most(size / 4, limits) && left < full / 2, "{full} -> {left}");
    user.verify(&volume).await;
    volume.discard(range(0, size / 512)).await.unwrap();
    volume.close().await.unwrap();
    let left = stored(&rig).await;
    assert!(left < 4096, "an empty volume keeps {left} bytes");
}

/// What flushes leave behind becomes few chunks.
#[tokio::test(start_paused = true)]
async fn small_chunks_are_merged() {
    let rig = rig(64 << 20, limits(140, 1 << 20)).await;
    let volume = rig.open().await;
    let mut user = User::new(1000, 1);
    for at in 0..600 {
        user.write(&volume, at).await;
        volume.flush().await.unwrap();
    }
    // Some have been merged meanwhile.
    let before = volume.status().next_seq;
    assert!(before >= 600, "{before}");
    tokio::time::sleep(rig.options.checkpoint_after * 4).await;
    let after = rig.objects("log/").await.len();
    println!("{before} -> {after} chunks, {:?}", volume.status().space);
    assert!(after < 40, "{before} -> {after} chunks");
    let space = volume.status().space;
    assert!(space.moved_bytes <= space.written_bytes * 11 / 10, "once is enough: {space:?}");
    user.verify(&volume).await;
    volume.close().await.unwrap();
    user.verify(&rig.open().await).await;
}

/// On several threads: whatever is written while it is moved wins.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_and_moves_race() {
    let size = 8u64 << 20;
    let rig = rig(size, limits(100, 0)).await;
    let volume = rig.open().await;
    let mut users: Vec<User> = Vec::new();
    let mut done = Vec::new();
    // While users write most of what they write.
    let collector = {
        let volume = volume.clone();
        tokio::spawn(async move {
            let mut moved = 0;
            while volume.status().space.written_bytes < 70_000 * BLOCK * 512 {
                moved += volume.collect(Some(100)).await.unwrap().moved_bytes;
                tokio::task::yield_now().await;
            }
            moved
        })
    };
    // Each has every fourth block, so that their chunks are shared.
    for lane in 0..4 {
        let volume = volume.clone();
        done.push(tokio::spawn(async move {
            let mut user = User::new(size / 512 / BLOCK, lane);
            while user.next < 20_000 {
                let at = user.rng.random_range(0..user.stamps.len() as u64 / 4) * 4 + lane;
                user.write(&volume, at as usize).await;
                if user.next.is_multiple_of(500) {
                    volume.flush().await.unwrap();
                }
            }
            user
        }));
    }
    for user in done {
        users.push(user.await.unwrap());
    }
    assert!(collector.await.unwrap() > 0, "nothing was moved");
    volume.flush().await.unwrap();
    let all = together(&users);
    all.verify(&volume).await;
    // What only the log has is right as well.
    volume.abandon();
    let next = rig.take_over(2).await;
    all.verify(&next).await;
    next.collect(Some(100)).await.unwrap();
    next.close().await.unwrap();
    all.verify(&rig.open().await).await;
}

/// What cannot be read is left where it is, and the rest of the volume is collected.
#[tokio::test(start_paused = true)]
async fn a_damaged_chunk_is_left_alone() {
    let size = 4u64 << 20;
    let mut rig = rig(size, limits(1000, 1 << 30)).await;
    rig.options.cache_bytes = 0;
    let volume = rig.open().await;
    let mut user = User::new(size / 512 / BLOCK, 1);
    user.fill(&volume).await;
    let chunks = rig.objects("log/").await;
    for at in (0..user.stamps.len()).step_by(2) {
        user.write(&volume, at).await;
    }
    volume.flush().await.unwrap();
    // In the middle of the third chunk of the fill, whose first block is 128.
    let damaged = chunks[3].clone();
    let mut body = rig.object(&damaged).await.to_vec();
    let at = body.len() - 100_000;
    body[at] ^= 1;
    rig.replace(&damaged, body).await;
    let done = volume.collect(Some(100)).await.unwrap();
    assert!(done.chunks > 8, "{done:?}");
    assert!(rig.objects("log/").await.contains(&damaged), "the damaged one is still there");
    let (mut whole, mut lost) = (0, 0);
    for (at, stamp) in user.stamps.iter().enumerate() {
        let start = at as u64 * BLOCK;
        match read(&volume, start, BLOCK).await {
            Ok(data) => {
                assert!(data == pattern(start, BLOCK, *stamp), "block {at}");
                whole += 1;
            }
            Err(_) => lost += 1,
        }
    }
    // A frame holds sixteen blocks, of which every second is still there.
    assert_eq!((whole, lost), (user.stamps.len() - 8, 8));
}

/// While the store takes nothing, moves leave most of the memory to writers.
#[tokio::test(start_paused = true)]
async fn moves_leave_room_for_writers() {
    let size = 8u64 << 20;
    let rig = rig(size, limits(1000, 1 << 30)).await;
    let volume = rig.open().await;
    let mut user = User::new(size / 512 / BLOCK, 1);
    user.fill(&volume).await;
    user.overwrite(&volume, 4000, false).await;
    volume.flush().await.unwrap();
    let log = format!("{}log/", keys::volume_prefix(rig.id));
    // The checkpoint that comes first has its chunks already.
    let held = rig.faults.add(Rule::new(Fault::Hold(Moment::Before)).on(&[Op::Put]).below(log));
    let collecting = {
        let volume = volume.clone();
        tokio::spawn(async move { volume.collect(Some(100)).await })
    };
    tokio::time::sleep(Duration::from_secs(600)).await;
    let dirty = volume.status().dirty_bytes;
    assert!(dirty <= rig.options.dirty_bytes / 2 + (256 << 10), "{dirty}");
    let before = tokio::time::Instant::now();
    user.overwrite(&volume, 16, false).await;
    assert!(before.elapsed() < Duration::from_secs(1));
    held.release();
    let done = collecting.await.unwrap().unwrap();
    assert!(done.chunks > 0 && done.stored_bytes < done.stored_before, "{done:?}");
    user.verify(&volume).await;
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn only_owners_collect() {
    let rig = rig(4 << 20, limits(140, 0)).await;
    rig.open().await.close().await.unwrap();
    let view = rig.open_as(2, Mode::ReadOnly).await.unwrap();
    assert_eq!(view.collect(None).await.unwrap_err().kind(), ErrorKind::Usage);
    let owner = rig.open().await;
    assert_eq!(owner.collect(Some(99)).await.unwrap_err().kind(), ErrorKind::Usage);
    let nothing = owner.collect(None).await.unwrap();
    assert_eq!((nothing.chunks, nothing.stored_bytes, nothing.ratio()), (0, 0, None));
}

/// A read is slower than all that happens to what it reads: that is overwritten and deleted before it
/// comes, again and again.
#[tokio::test(start_paused = true)]
async fn a_slow_read_follows_what_it_reads() {
    let mut rig = rig(4 << 20, limits(100, 1 << 20)).await;
    rig.options.cache_bytes = 0;
    let volume = rig.open().await;
    write(&volume, 0, &pattern(0, 8, 0)).await.unwrap();
    volume.flush().await.unwrap();
    let late = Fault::Delay { at: Moment::Before, from: SECOND, to: SECOND };
    rig.faults.add(Rule::new(late).on(&[Op::Get]).below(keys::volume_prefix(rig.id) + "log/"));
    let reader = tokio::spawn({
        let volume = volume.clone();
        async move { read(&volume, 0, 8).await }
    });
    // Between two requests of the reader, so that it never finds the data in memory.
    tokio::time::sleep(SECOND / 2).await;
    for stamp in 1..9 {
        write(&volume, 0, &pattern(0, 8, stamp)).await.unwrap();
        volume.flush().await.unwrap();
        volume.collect(Some(100)).await.unwrap();
        assert!(!reader.is_finished(), "it came before stamp {stamp}");
        tokio::time::sleep(SECOND).await;
    }
    assert!(reader.await.unwrap().unwrap() == pattern(0, 8, 8));
    volume.close().await.unwrap();
}

/// Who asks for a collection and loses patience leaves a volume that works.
#[tokio::test(start_paused = true)]
async fn a_collection_that_is_called_off_harms_nothing() {
    let rig = rig(4 << 20, limits(160, 1 << 30)).await;
    let volume = rig.open().await;
    let mut user = User::new((4 << 20) / 512 / BLOCK, 3);
    user.fill(&volume).await;
    let slow = Fault::Delay { at: Moment::Before, from: SECOND / 100, to: SECOND / 20 };
    rig.faults.add(Rule::new(slow));
    for patience in 1..60 {
        user.overwrite(&volume, 20, false).await;
        let patience = Duration::from_millis(5 * patience);
        let collected = tokio::time::timeout(patience, volume.collect(Some(100))).await;
        assert!(collected.is_err() || patience > SECOND / 10, "too quick to be called off");
    }
    volume.collect(Some(100)).await.unwrap();
    user.verify(&volume).await;
    volume.close().await.unwrap();
    user.verify(&rig.open().await).await;
}

/// What is damaged on the way, and whole in the store, keeps nobody from opening a volume.
#[tokio::test(start_paused = true)]
async fn damage_on_the_way_is_not_final() {
    let rig = rig(4 << 20, limits(160, 1 << 20)).await;
    for (round, name) in ["volume.json", "epochs/", "checkpoints/"].into_iter().enumerate() {
        let volume = rig.open().await;
        write(&volume, 0, &pattern(0, 8, round as u64)).await.unwrap();
        volume.close().await.unwrap();
        let damage = Rule::new(Fault::Truncate).on(&[Op::Get]).times(1);
        let damaged = rig.faults.add(damage.below(keys::volume_prefix(rig.id) + name));
        let volume = rig.open().await;
        assert_eq!(damaged.hits(), 1, "{name}");
        assert_eq!(read(&volume, 0, 8).await.unwrap(), pattern(0, 8, round as u64));
        volume.close().await.unwrap();
    }
}

/// Writers of a crowd.
const LANES: u64 = 32;

/// What became of a crowd.
struct Crowd {
    users: Vec<User>,
    /// The most that was stored.
    highest: u64,
    /// They had to wait for collection.
    waited: bool,
}

/// Writers at the same time, each with every [`LANES`]th of the first `size` bytes, until all of that was
/// written `times` over.
async fn crowd(rig: &Rig, volume: &Volume, (size, times): (u64, u64)) -> Crowd {
    let (blocks, lanes) = (size / 512 / BLOCK, LANES);
    let lane = |lane| {
        let volume = volume.clone();
        tokio::spawn(async move {
            let mut user = User::new(blocks, lane);
            for _ in 0..blocks * times / lanes {
                let at = user.rng.random_range(0..blocks / lanes) * lanes + lane;
                user.write(&volume, at as usize).await;
            }
            user
        })
    };
    let crowd: Vec<_> = (0..lanes).map(lane).collect();
    let (mut highest, mut waited) = (0, false);
    while crowd.iter().any(|user| !user.is_finished()) {
        tokio::time::sleep(SECOND / 10).await;
        highest = highest.max(stored(rig).await);
        waited |= volume.status().space.writers_wait;
    }
    let mut users = Vec::new();
    for user in crowd {
        users.push(user.await.unwrap());
    }
    Crowd { users, highest, waited }
}

/// All that the users of a crowd wrote.
fn together(users: &[User]) -> User {
    let lanes = users.len();
    let mut all = User::new(users[0].stamps.len() as u64, 0);
    for (lane, user) in users.iter().enumerate() {
        (lane..all.stamps.len()).step_by(lanes).for_each(|at| all.stamps[at] = user.stamps[at]);
    }
    all
}

fn slow(ops: &[Op], ms: u32) -> Rule {
    let (from, to) = (SECOND * ms / 1000, SECOND * ms / 500);
    Rule::new(Fault::Delay { at: Moment::Before, from, to }).on(ops)
}

/// Users whom only the store slows down, be it quicker to read from or slower: the bound holds.
#[tokio::test(start_paused = true)]
async fn a_crowd_of_writers_stays_within_the_bound() {
    let (size, limits) = (24u64 << 20, limits(160, 1 << 20));
    for read_ms in [10, 100] {
        let rig = rig(size, limits).await;
        let volume = rig.open().await;
        rig.faults.add(slow(&[Op::Put], 20));
        rig.faults.add(slow(&[Op::Get], read_ms));
        let Crowd { users, highest, waited } = crowd(&rig, &volume, (size, 6)).await;
        let space = volume.status().space;
        let times = highest as f64 / size as f64;
        println!("reads of {read_ms} ms: {times:.2} x live, waited: {waited}, {space:?}");
        assert!(waited, "nobody was held up");
        // What is written between a look at the space and what comes of it: a few round trips.
        let most = most(size, limits) + (5 << 20);
        assert!(highest <= most, "{highest} of {most}");
        rig.faults.clear();
        together(&users).verify(&volume).await;
        tokio::time::sleep(rig.options.checkpoint_after * 4).await;
        assert!(!volume.status().space.writers_wait, "for whom?");
        volume.close().await.unwrap();
    }
}

/// Collection of a store from which nothing can be read holds up writers for a moment only.
#[tokio::test(start_paused = true)]
async fn who_cannot_collect_holds_up_nobody() {
    let (size, limits) = (24u64 << 20, limits(160, 1 << 20));
    let rig = rig(size, limits).await;
    let volume = rig.open().await;
    rig.faults.add(slow(&[Op::Put], 20));
    rig.faults.add(slow(&[Op::Get], 400));
    crowd(&rig, &volume, (size, 3)).await;
    let log = format!("{}log/", keys::volume_prefix(rig.id));
    let held = rig.faults.add(Rule::new(Fault::Hold(Moment::Before)).on(&[Op::Get]).below(log));
    let before = tokio::time::Instant::now();
    let highest = crowd(&rig, &volume, (size, 3)).await.highest;
    println!("{:?}, {highest} bytes stored", before.elapsed());
    assert!(before.elapsed() < 20 * SECOND, "{:?}", before.elapsed());
    assert!(highest > most(size, limits), "collection went on");
    held.release();
    rig.faults.clear();
    tokio::time::sleep(rig.options.checkpoint_after * 4).await;
    let left = stored(&rig).await;
    assert!(left <= most(size, limits), "{left} bytes are left");
    volume.close().await.unwrap();
}
