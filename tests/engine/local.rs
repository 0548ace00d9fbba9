//! Durability before the store: journals, successors, outages, failing disks.

use crate::disk::MemoryDisk;
use crate::rig::{Rig, pattern, range, read, write};
use objblk::device::BlockDevice;
use objblk::error::ErrorKind;
use objblk::format::chunk::RECORDS_MAX;
use objblk::format::keys;
use objblk::store::Op;
use objblk::store::StoreErrorKind;
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::volume::{Durability, JournalOptions, Mode, Volume};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::time::Duration;

pub const JOURNAL: u64 = 16 << 20;
const SECTORS: u64 = 64 << 10;

pub fn with_journal(rig: &mut Rig, disk: &MemoryDisk) {
    let disk = Arc::new(disk.clone());
    rig.options.journal = Some(JournalOptions { disk, max_lag_bytes: None, max_lag: None });
}

async fn rig(disk: &MemoryDisk) -> Rig {
    let mut rig = Rig::new(1, SECTORS * 512).await;
    with_journal(&mut rig, disk);
    rig
}

/// No chunk reaches the store.
pub fn outage(rig: &Rig) {
    let fault = Fault::Fail(Moment::Before, StoreErrorKind::Unavailable);
    let log = format!("{}log/", keys::volume_prefix(rig.id));
    rig.faults.add(Rule::new(fault).on(&[Op::Put]).below(log));
}

pub async fn settled(volume: &Volume) {
    while volume.status().dirty_bytes > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_flush_is_durable_before_the_store_has_it() {
    let disk = MemoryDisk::new(JOURNAL);
    let rig = rig(&disk).await;
    let volume = rig.open().await;
    assert_eq!(volume.status().durability, Durability::Local);
    outage(&rig);
    let data = pattern(100, 50, 1);
    write(&volume, 100, &data).await.unwrap();
    volume.flush().await.unwrap();
    write(&volume, 120, &pattern(120, 4, 2)).await.unwrap();
    assert!(volume.status().dirty_bytes > 0);
    volume.abandon();
    rig.faults.clear();
    // Nobody has to take anything over: the journal says who had it.
    let volume = rig.open_as(2, Mode::ReadWrite { takeover: false }).await.unwrap();
    assert_eq!(read(&volume, 100, 50).await.unwrap(), data);
    settled(&volume).await;
    volume.close().await.unwrap();
    rig.memory_only().open_as(3, Mode::ReadWrite { takeover: false }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn chunks_leave_memory_in_an_outage_and_come_back() {
    let disk = MemoryDisk::new(JOURNAL);
    let mut rig = rig(&disk).await;
    rig.options.cache_bytes = 0;
    let volume = rig.open().await;
    outage(&rig);
    let mut written = 0;
    // Five times the memory that may wait for the store.
    while written < 5 << 20 {
        let start = written / 512;
        write(&volume, start, &pattern(start, 128, 3)).await.unwrap();
        written += 128 * 512;
    }
    volume.flush().await.unwrap();
    let status = volume.status();
    assert!(status.dirty_bytes >= written, "{status:?}");
    assert!(status.journal.as_ref().unwrap().used_bytes >= written, "{status:?}");
    for start in (0..written / 512).step_by(128) {
        assert_eq!(read(&volume, start, 128).await.unwrap(), pattern(start, 128, 3), "at {start}");
    }
    rig.faults.clear();
    settled(&volume).await;
    assert_eq!(volume.status().journal.unwrap().used_bytes, 0);
    let used = disk.writes();
    volume.close().await.unwrap();
    assert!(used > 10);
    let elsewhere = rig.memory_only().open_as(9, Mode::ReadOnly).await.unwrap();
    for start in (0..written / 512).step_by(128) {
        assert_eq!(read(&elsewhere, start, 128).await.unwrap(), pattern(start, 128, 3));
    }
}

/// Writers wait when the journal is full and go on when the store takes chunks.
#[tokio::test(start_paused = true)]
async fn a_full_journal_makes_writers_wait() {
    let disk = MemoryDisk::new(JOURNAL);
    let rig = rig(&disk).await;
    let volume = rig.open().await;
    outage(&rig);
    let writer = tokio::spawn({
        let volume = volume.clone();
        async move {
            for turn in 0..80u64 {
                // One place again and again: the journal fills, the chunk does not.
                let start = turn % 3 * 512;
                write(&volume, start, &pattern(start, 512, turn)).await.unwrap();
                volume.flush().await.unwrap();
            }
        }
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!writer.is_finished(), "the journal took more than it has room for");
    assert!(volume.status().journal.unwrap().used_bytes <= JOURNAL);
    rig.faults.clear();
    writer.await.unwrap();
    assert_eq!(read(&volume, 0, 512).await.unwrap(), pattern(0, 512, 78));
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn lag_is_bounded_where_that_is_asked_for() {
    let disk = MemoryDisk::new(JOURNAL);
    let mut rig = rig(&disk).await;
    let limit = Some(Duration::from_secs(5));
    let disk = Arc::new(disk.clone());
    rig.options.journal =
        Some(JournalOptions { disk, max_lag_bytes: Some(300 << 10), max_lag: limit });
    let volume = rig.open().await;
    outage(&rig);
    write(&volume, 0, &pattern(0, 64, 1)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(volume.status().lag_ms >= 6000);
    let late = write(&volume, 64, &[1; 512]);
    assert!(tokio::time::timeout(Duration::from_secs(30), late).await.is_err(), "older than 5 s");
    rig.faults.clear();
    settled(&volume).await;
    outage(&rig);
    for turn in 0..3 {
        write(&volume, turn * 200, &pattern(turn * 200, 200, 2)).await.unwrap();
    }
    let data = pattern(2000, 200, 2);
    let more = write(&volume, 2000, &data);
    assert!(tokio::time::timeout(Duration::from_secs(3), more).await.is_err(), "over 300 KiB");
    rig.faults.clear();
    settled(&volume).await;
    write(&volume, 2000, &[1; 512]).await.unwrap();
    volume.close().await.unwrap();
}

/// What a disk that fails had acknowledged stays durable; what comes later is the store's.
#[tokio::test(start_paused = true)]
async fn a_failed_journal_is_never_trusted_again() {
    let disk = MemoryDisk::new(JOURNAL);
    let rig = rig(&disk).await;
    let volume = rig.open().await;
    write(&volume, 0, &pattern(0, 8, 1)).await.unwrap();
    volume.flush().await.unwrap();
    disk.fail_after(0);
    write(&volume, 8, &pattern(8, 8, 2)).await.unwrap();
    volume.flush().await.unwrap();
    let status = volume.status();
    assert_eq!(status.durability, Durability::Object);
    assert!(status.journal.unwrap().failure.unwrap().contains("the disk is broken"));
    assert_eq!(status.dirty_bytes, 0, "a flush that is not in the store");
    outage(&rig);
    write(&volume, 16, &pattern(16, 8, 3)).await.unwrap();
    let flush = volume.flush();
    assert!(tokio::time::timeout(Duration::from_secs(60), flush).await.is_err());
    rig.faults.clear();
    volume.flush().await.unwrap();
    volume.abandon();
    let volume = rig.memory_only().take_over(2).await;
    assert_eq!(read(&volume, 16, 8).await.unwrap(), pattern(16, 8, 3));
}

/// A slot with as many records as a chunk takes: the successor's has one more, of its term.
#[tokio::test(start_paused = true)]
async fn a_chunk_that_is_full_of_records_is_gone_on_from() {
    let disk = MemoryDisk::new(JOURNAL);
    let mut rig = rig(&disk).await;
    rig.options.dirty_bytes = 64 << 20;
    let volume = rig.open().await;
    write(&volume, 0, &[1; 512]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    outage(&rig);
    // Data is what a chunk without room for it does not take.
    for sector in 0..RECORDS_MAX as u64 / 4 - 2 {
        volume.discard(range(sector % SECTORS, 1)).await.unwrap();
        if sector % 1000 == 0 {
            volume.flush().await.unwrap();
        }
    }
    write(&volume, 7, &pattern(7, 1, 2)).await.unwrap();
    volume.flush().await.unwrap();
    volume.abandon();
    rig.faults.clear();
    let volume = rig.open_as(2, Mode::ReadWrite { takeover: false }).await.unwrap();
    assert_eq!(read(&volume, 7, 1).await.unwrap(), pattern(7, 1, 2));
    assert_eq!(read(&volume, 0, 1).await.unwrap(), vec![0; 512]);
    settled(&volume).await;
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_superseded_journal_is_kept_and_refused() {
    let disk = MemoryDisk::new(JOURNAL);
    let rig = rig(&disk).await;
    let volume = rig.open().await;
    outage(&rig);
    write(&volume, 0, &pattern(0, 8, 1)).await.unwrap();
    volume.flush().await.unwrap();
    volume.abandon();
    rig.faults.clear();
    let elsewhere = rig.memory_only().take_over(7).await;
    assert_eq!(read(&elsewhere, 0, 8).await.unwrap(), vec![0; 8 * 512]);
    let before = disk.bytes();
    for takeover in [false, true] {
        let error = rig.open_as(2, Mode::ReadWrite { takeover }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fenced);
        assert!(error.to_string().contains("journal discard"), "{error}");
    }
    assert!(disk.bytes() == before, "a refused journal was written");
    elsewhere.close().await.unwrap();
}

/// Everything is in the store: nothing is refused although somebody else had the volume.
#[tokio::test(start_paused = true)]
async fn a_superseded_journal_with_nothing_in_it_is_used_again() {
    let disk = MemoryDisk::new(JOURNAL);
    let rig = rig(&disk).await;
    let volume = rig.open().await;
    write(&volume, 0, &pattern(0, 8, 1)).await.unwrap();
    volume.flush().await.unwrap();
    settled(&volume).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    volume.abandon();
    rig.memory_only().take_over(7).await.close().await.unwrap();
    let volume = rig.open_as(2, Mode::ReadWrite { takeover: false }).await.unwrap();
    assert_eq!(read(&volume, 0, 8).await.unwrap(), pattern(0, 8, 1));
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn leaving_keeps_in_the_journal_what_the_store_lacks() {
    let disk = MemoryDisk::new(JOURNAL);
    let rig = rig(&disk).await;
    let volume = rig.open().await;
    outage(&rig);
    write(&volume, 0, &pattern(0, 64, 1)).await.unwrap();
    let left = volume.leave().await;
    assert_eq!(left.lost_bytes, 0);
    assert!(left.kept_bytes >= 64 * 512);
    rig.faults.clear();
    let volume = rig.open_as(2, Mode::ReadWrite { takeover: false }).await.unwrap();
    assert_eq!(read(&volume, 0, 64).await.unwrap(), pattern(0, 64, 1));
    volume.close().await.unwrap();
}

fn seeds(count: u64) -> std::ops::Range<u64> {
    match std::env::var("OBJBLK_SEED") {
        Ok(seed) => seed.parse().map(|s: u64| s..s + 1).expect("OBJBLK_SEED is a number"),
        Err(_) => 0..count,
    }
}

/// A run of owners on one disk, each cut off at some write of the disk: whatever the disk held then,
/// and whatever the store has taken, all that was flushed is there, in order.
#[tokio::test(start_paused = true)]
async fn successors_find_everything_that_was_flushed() {
    for seed in seeds(20) {
        eprintln!("replay: OBJBLK_SEED={seed} cargo test --test engine successors_find");
        lives(seed).await;
    }
}

const SPAN: u64 = 3000;

async fn lives(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut disk = MemoryDisk::new(JOURNAL);
    let mut rig = Rig::any(seed, SECTORS * 512).await;
    rig.options.dirty_bytes = [64 << 10, 1 << 20][rng.random_range(0..2)];
    rig.options.seal_after = Duration::from_millis([5, 2000][rng.random_range(0..2)]);
    // Stamps that each sector may have: the flushed one and what was written later.
    let mut allowed: Vec<Vec<u64>> = vec![vec![0]; SPAN as usize];
    let mut stamp = 0;
    for pid in 1..8 {
        with_journal(&mut rig, &disk);
        rig.faults.clear();
        let volume = rig.open_as(pid, Mode::ReadWrite { takeover: false }).await.unwrap();
        check(&volume, &mut allowed).await;
        if rng.random_bool(0.7) {
            outage(&rig);
        }
        disk.keep_history();
        for _ in 0..rng.random_range(1..30) {
            let len = rng.random_range(1..300);
            let start = rng.random_range(0..SPAN - len);
            stamp += 1;
            write(&volume, start, &pattern(start, len, stamp)).await.unwrap();
            (start..start + len).for_each(|s| allowed[s as usize].push(stamp));
            if rng.random_bool(0.3) {
                volume.flush().await.unwrap();
                allowed.iter_mut().for_each(|a| *a = vec![*a.last().unwrap()]);
                disk.keep_history();
            }
        }
        let tail = rng.random_range(0..400);
        tokio::time::sleep(Duration::from_millis(tail)).await;
        volume.abandon();
        // Any content since the last flush: power was lost right then. (What the store took later
        // stays there: a PUT may arrive at any time.)
        disk = MemoryDisk::with(disk.held(|writes| rng.random_range(0..=writes)));
    }
}

/// Reads everything; what is found is what is allowed from now on.
async fn check(volume: &Volume, allowed: &mut [Vec<u64>]) {
    let bytes = read(volume, 0, SPAN).await.unwrap();
    for (sector, (bytes, allowed)) in bytes.chunks(512).zip(allowed).enumerate() {
        let stamp = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
        let expected = match stamp {
            0 => vec![0; 512],
            stamp => pattern(sector as u64, 1, stamp),
        };
        assert!(bytes == expected, "sector {sector} is torn");
        assert!(allowed.contains(&stamp), "sector {sector} has {stamp}, not one of {allowed:?}");
        *allowed = vec![stamp];
    }
}

/// A batch that was durable once is not there any more: nothing is guessed.
#[tokio::test(start_paused = true)]
async fn a_damaged_journal_is_refused() {
    let disk = MemoryDisk::new(JOURNAL);
    let rig = rig(&disk).await;
    let volume = rig.open().await;
    outage(&rig);
    for turn in 0..4 {
        write(&volume, turn * 8, &pattern(turn * 8, 8, 1)).await.unwrap();
        volume.flush().await.unwrap();
    }
    volume.abandon();
    rig.faults.clear();
    let intact = disk.bytes();
    // Superblocks, the segment's header, the term, and then the first flush.
    let first = (64 << 10) + 2 * 4096;
    for at in [first + 8, first + 100, first + 3000] {
        let mut bytes = intact.clone();
        bytes[at] ^= 1;
        let mut rig = rig.memory_only();
        with_journal(&mut rig, &MemoryDisk::with(bytes));
        let error = rig.open_as(2, Mode::ReadWrite { takeover: true }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
    let volume = rig.open_as(3, Mode::ReadWrite { takeover: false }).await.unwrap();
    assert_eq!(read(&volume, 0, 32).await.unwrap(), pattern(0, 32, 1));
}
