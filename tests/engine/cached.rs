//! Volumes with a disk cache: reads without the store, and never other bytes than the store's.

use crate::rig::{Rig, pattern, read, write};
use objblk::cache::disk::DiskCache;
use objblk::format::frame::Compression;
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::store::memory::MemoryStore;
use objblk::store::{GetRange, Op, Store, StoreErrorKind, list_all};
use objblk::units::SectorCount;
use objblk::volume::{DiskCacheStatus, Mode, Volume};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const SIZE: u64 = 64 << 20;
/// Sectors of a full chunk of the rig, and chunks that are written.
const CHUNK: u64 = 512;
const CHUNKS: u64 = 12;

fn disk() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn with_cache(rig: &mut Rig, folder: &Path) {
    let cache = DiskCache::open(folder, 32 << 20, tokio::runtime::Handle::current()).unwrap();
    // No frame is found in memory when the volume is opened again, and few while it is open.
    rig.options.cache_bytes = 256 << 10;
    rig.options.disk_cache = Some(Arc::new(cache));
}

async fn fill(volume: &Volume, stamp: u64) {
    for i in 0..CHUNKS {
        write(volume, i * CHUNK, &pattern(i * CHUNK, CHUNK, stamp)).await.unwrap();
    }
}

/// Everything reads as [`fill`] wrote it, in pieces of `step` sectors.
async fn check(volume: &Volume, stamp: u64, step: usize) {
    for start in (0..CHUNKS * CHUNK).step_by(step) {
        let got = tokio::time::timeout(Duration::from_secs(30), read(volume, start, step as u64));
        let got = got.await.expect("a read waits for the store").unwrap();
        assert!(got == pattern(start, step as u64, stamp), "sectors {start}..");
    }
}

/// Nothing more is read of the log.
fn cut_off(rig: &Rig) {
    let fail = Fault::Fail(Moment::Before, StoreErrorKind::Unavailable);
    let log = format!("volumes/{}/log/", rig.id);
    rig.faults.add(Rule::new(fail).on(&[Op::Get]).below(log));
}

fn status(volume: &Volume) -> DiskCacheStatus {
    volume.status().disk_cache.expect("it has a disk cache")
}

/// What is written goes into the cache without a GET, and another process finds it there.
#[tokio::test]
async fn what_was_written_is_read_without_the_store() {
    let (mut rig, folder) = (Rig::new(1, SIZE).await, disk());
    with_cache(&mut rig, folder.path());
    let volume = rig.open().await;
    fill(&volume, 1).await;
    volume.close().await.unwrap();
    for mode in [Mode::ReadOnly, Mode::ReadWrite { takeover: false }] {
        with_cache(&mut rig, folder.path());
        let volume = rig.open_as(2, mode).await.unwrap();
        let before = rig.faults.counts();
        cut_off(&rig);
        check(&volume, 1, 64).await;
        check(&volume, 1, 8).await;
        assert_eq!(rig.faults.counts(), before, "{mode:?}: the log was read");
        rig.faults.clear();
        let status = status(&volume);
        assert!(status.hits >= CHUNKS * 4 && status.misses == 0, "{status:?}");
        volume.close().await.unwrap();
    }
}

/// What was read once from the store is there the next time; of a run that is there in part, the rest
/// comes from the store.
#[tokio::test]
async fn what_was_read_is_read_without_the_store() {
    let (mut rig, folder) = (Rig::new(2, SIZE).await, disk());
    let volume = rig.open().await;
    fill(&volume, 1).await;
    volume.close().await.unwrap();
    with_cache(&mut rig, folder.path());
    // Owners before the last one: their claims are looked up.
    rig.take_over(7).await.close().await.unwrap();
    let volume = rig.take_over(8).await;
    for start in (0..CHUNKS * CHUNK).step_by(384) {
        assert!(read(&volume, start, 8).await.unwrap() == pattern(start, 8, 1));
    }
    // Whoever closes waits until what was read is in the cache.
    volume.close().await.unwrap();
    let volume = rig.take_over(9).await;
    check(&volume, 1, 512).await;
    let seen = status(&volume);
    assert!(seen.misses > 0 && seen.hits > 0, "{seen:?}");
    volume.close().await.unwrap();
    let volume = rig.open_as(10, Mode::ReadWrite { takeover: false }).await.unwrap();
    cut_off(&rig);
    check(&volume, 1, 128).await;
}

/// A pool that was copied, or put back from a copy: both have the same volumes, epochs and slots, with
/// other bytes in them.
#[tokio::test]
async fn copies_of_a_pool_do_not_see_each_others_frames() {
    for encrypted in [false, true] {
        copies_of_a_pool(encrypted).await;
    }
}

async fn rig(seed: u64, encrypted: bool) -> Rig {
    match encrypted {
        true => Rig::encrypted(seed, SIZE, Compression::None).await,
        false => Rig::new(seed, SIZE).await,
    }
}

async fn copies_of_a_pool(encrypted: bool) {
    let (mut rig, mut other) = (rig(3, encrypted).await, rig(3, encrypted).await);
    let folder = disk();
    let volume = rig.open().await;
    fill(&volume, 1).await;
    volume.close().await.unwrap();
    let copy = MemoryStore::new();
    for object in list_all(&rig.memory, "").await.unwrap() {
        let body = rig.memory.get(&object.key, GetRange::All).await.unwrap();
        copy.put_if_absent(&object.key, body).await.unwrap();
    }
    for object in list_all(&copy, "").await.unwrap() {
        let body = copy.get(&object.key, GetRange::All).await.unwrap();
        other.memory.put(&object.key, body).await.unwrap();
    }
    for (rig, pid, stamp) in [(&mut rig, 10, 10), (&mut other, 20, 20)] {
        with_cache(rig, folder.path());
        let mode = Mode::ReadWrite { takeover: false };
        let volume = rig.open_as(pid, mode).await.unwrap();
        check(&volume, 1, 256).await;
        fill(&volume, stamp).await;
        volume.close().await.unwrap();
    }
    let names = rig.objects("log/").await;
    assert_eq!(names, other.objects("log/").await, "chunks of both have the same names");
    for (rig, stamp) in [(&mut rig, 10), (&mut other, 20)] {
        with_cache(rig, folder.path());
        for mode in [Mode::ReadOnly, Mode::ReadWrite { takeover: false }] {
            let volume = rig.open_as(30, mode).await.unwrap();
            check(&volume, stamp, 64).await;
            let seen = status(&volume);
            assert!(seen.hits > 0 && seen.misses == 0, "{seen:?}");
            volume.close().await.unwrap();
        }
    }
}

/// Damage in the cache is no damage: the store has it.
#[tokio::test]
async fn a_damaged_cache_reads_right_and_heals() {
    for encrypted in [false, true] {
        damaged(rig(4, encrypted).await).await;
    }
}

async fn damaged(mut rig: Rig) {
    let folder = disk();
    with_cache(&mut rig, folder.path());
    let volume = rig.open().await;
    fill(&volume, 1).await;
    volume.close().await.unwrap();
    let frames = File::options().write(true).open(folder.path().join("frames")).unwrap();
    let size = frames.metadata().unwrap().len();
    for at in (0..size).step_by(128 << 10) {
        frames.write_all_at(&[0x5a; 700], at + 4096).unwrap();
    }
    let index = File::options().write(true).open(folder.path().join("index")).unwrap();
    for at in (4096..index.metadata().unwrap().len()).step_by(5 * 64) {
        index.write_all_at(&[0xa5], at + 17).unwrap();
    }
    with_cache(&mut rig, folder.path());
    let volume = rig.take_over(2).await;
    check(&volume, 1, 8).await;
    let seen = status(&volume);
    assert!(seen.misses > 10 && seen.hits > 10 && seen.failure.is_none(), "{seen:?}");
    volume.close().await.unwrap();
    let volume = rig.take_over(3).await;
    cut_off(&rig);
    check(&volume, 1, 64).await;
}

/// A cache whose files are cut off while it is used: it is used no more, and nothing fails.
#[tokio::test]
async fn a_cache_that_fails_is_told_and_reads_go_to_the_store() {
    let (mut rig, folder) = (Rig::new(5, SIZE).await, disk());
    with_cache(&mut rig, folder.path());
    let volume = rig.open().await;
    fill(&volume, 1).await;
    volume.close().await.unwrap();
    with_cache(&mut rig, folder.path());
    let volume = rig.take_over(2).await;
    let frames = File::options().write(true).open(folder.path().join("frames")).unwrap();
    frames.set_len(0).unwrap();
    check(&volume, 1, 64).await;
    let failure = status(&volume).failure.expect("it says so");
    assert!(failure.contains("is used no more"), "{failure}");
    fill(&volume, 2).await;
    check(&volume, 2, 64).await;
    volume.resize(SectorCount(SIZE / 512)).await.unwrap();
    volume.close().await.unwrap();
}
