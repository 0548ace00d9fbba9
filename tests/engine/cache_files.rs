//! The disk cache on real files: what was put in, or nothing; never other bytes.
//!
//! The files are in the build folder, which must be on a file system with direct I/O.

use async_trait::async_trait;
use bytes::Bytes;
use objblk::cache::FrameId;
use objblk::cache::disk::entry::{Geometry, MAGIC, SET_LEN};
use objblk::cache::disk::{Claim, DiskCache, FrameKey, Slots};
use objblk::direct::Blocks;
use objblk::error::ErrorKind;
use objblk::format::VolumeId;
use objblk::format::keys::ChunkId;
use objblk::units::{Epoch, Seq};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Handle;

/// One set of 64 slots.
const SMALL: u64 = (4 << 20) + (8 << 10);
/// Two of them.
const TWO: u64 = (8 << 20) + (12 << 10);

fn disk() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn open(folder: &Path, size: u64) -> DiskCache {
    DiskCache::open(folder, size, Handle::current()).unwrap()
}

/// Lets go of a cache: its writer, a task of this runtime, has a share in the files.
async fn close(cache: DiskCache) {
    drop(cache);
    tokio::task::yield_now().await;
}

/// Of that size: once nobody uses one of another size any more, which counts of uses do for a moment.
async fn open_anew(folder: &Path, size: u64) -> DiskCache {
    for _ in 0..500 {
        let cache = open(folder, size);
        if cache.size() == size {
            return cache;
        }
        close(cache).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("somebody still uses the cache");
}

fn key(number: u64) -> FrameKey {
    let volume = VolumeId::from_bytes([number as u8 % 3; 16]);
    let chunk = ChunkId { volume, epoch: Epoch(1 + number % 2), seq: Seq(number / 5) };
    let claim = Claim::of_nonce(if number.is_multiple_of(7) { "one" } else { "another" });
    FrameKey { frame: FrameId { chunk, index: number as u32 }, claim }
}

/// Of all lengths that a frame may have; some are no whole blocks.
fn payload(number: u64) -> Bytes {
    let len = match number % 4 {
        0 => 64 << 10,
        1 => 512,
        2 => (64 << 10) - 512,
        _ => 4096 * (1 + number as usize % 15),
    };
    (0..len).map(|at| (number as usize * 31 + at / 7) as u8).collect()
}

async fn put(cache: &DiskCache, number: u64) {
    cache.offer(key(number), &payload(number), None);
    cache.settle().await;
}

/// Whether the payload is there; if so, it is the right one.
async fn has(cache: &DiskCache, number: u64) -> bool {
    let found = cache.get(&[key(number)], None).await.remove(0);
    found.is_some_and(|found| {
        assert!(found == payload(number), "the cache gives other bytes for {number}");
        true
    })
}

async fn count(cache: &DiskCache, numbers: std::ops::Range<u64>) -> usize {
    let mut there = 0;
    for number in numbers {
        there += usize::from(has(cache, number).await);
    }
    there
}

#[tokio::test]
async fn frames_are_found_by_every_handle_and_after_opening_again() {
    let folder = disk();
    let place = folder.path().join("cache");
    let cache = open(&place, TWO);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&place), mode(&place.join("frames"))), (0o700, 0o600));
    assert_eq!((cache.size(), cache.failure()), (TWO, None));
    for number in 0..40 {
        put(&cache, number).await;
    }
    let other = open(&place, TWO);
    assert_eq!(count(&other, 0..40).await, 40);
    let keys: Vec<FrameKey> = (38..42).map(key).collect();
    let found = cache.get(&keys, None).await;
    let there: Vec<bool> = found.iter().map(Option::is_some).collect();
    assert_eq!(there, [true, true, false, false]);
    close(cache).await;
    close(other).await;
    let cache = open(&place, TWO);
    assert_eq!(count(&cache, 0..40).await, 40);
    // Neither another claim of the epoch nor another volume has the same frame.
    let others = [
        FrameKey { claim: Claim::of_nonce("nobody"), ..key(1) },
        FrameKey { frame: FrameId { index: 77, ..key(1).frame }, ..key(1) },
    ];
    assert_eq!(cache.get(&others, None).await, [None, None]);
}

#[tokio::test]
async fn what_is_used_outlasts_a_scan() {
    let folder = disk();
    let cache = open(folder.path(), SMALL);
    for number in 0..16 {
        put(&cache, number).await;
    }
    for _ in 0..3 {
        assert_eq!(count(&cache, 0..16).await, 16);
    }
    for number in 100..164 {
        put(&cache, number).await;
    }
    assert_eq!(count(&cache, 0..16).await, 16, "a scan pushed out what is used");
    assert_eq!(count(&cache, 100..164).await, 48, "the rest of the slots has the scan's end");
    // What is used no more makes room in the end.
    for number in 200..600 {
        put(&cache, number).await;
    }
    assert_eq!(count(&cache, 0..16).await, 0);
}

/// What a model run does.
#[derive(Clone, Debug)]
enum Step {
    Put(u64),
    Look(u64),
    OpenAgain,
    /// These bytes of a file become others.
    Damage {
        frames: bool,
        at: prop::sample::Index,
        len: usize,
        byte: u8,
    },
    /// A file's part becomes a copy of another part of it.
    Move {
        frames: bool,
        from: prop::sample::Index,
        to: prop::sample::Index,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        6 => (0..200u64).prop_map(Step::Put),
        6 => (0..200u64).prop_map(Step::Look),
        1 => Just(Step::OpenAgain),
        1 => (any::<bool>(), at(), 1..10_000usize, any::<u8>())
            .prop_map(|(frames, at, len, byte)| Step::Damage { frames, at, len, byte }),
        1 => (any::<bool>(), at(), at()).prop_map(|(frames, from, to)| Step::Move { frames, from, to }),
    ]
}

fn file(folder: &Path, frames: bool) -> File {
    let name = if frames { "frames" } else { "index" };
    File::options().read(true).write(true).open(folder.join(name)).unwrap()
}

async fn run(steps: Vec<Step>) {
    let folder = disk();
    let mut cache = open(folder.path(), TWO);
    for step in steps {
        match step {
            Step::Put(number) => put(&cache, number).await,
            Step::Look(number) => drop(has(&cache, number).await),
            Step::OpenAgain => {
                close(cache).await;
                cache = open(folder.path(), TWO);
            }
            Step::Damage { frames, at, len, byte } => {
                let file = file(folder.path(), frames);
                let size = file.metadata().unwrap().len() as usize;
                // By its first bytes an index is known: one with others is somebody else's.
                let first = if frames { 0 } else { MAGIC.len() };
                let at = first + at.index(size - first);
                let len = len.min(size - at);
                file.write_all_at(&vec![byte; len], at as u64).unwrap();
            }
            Step::Move { frames, from, to } => {
                let file = file(folder.path(), frames);
                let unit = if frames { 64 << 10 } else { 64 };
                let units = file.metadata().unwrap().len() as usize / unit;
                // The head stays: without it the whole cache begins anew.
                let first = if frames { 0 } else { 64 };
                let place =
                    |at: prop::sample::Index| ((first + at.index(units - first)) * unit) as u64;
                let mut bytes = vec![0; unit];
                file.read_exact_at(&mut bytes, place(from)).unwrap();
                file.write_all_at(&bytes, place(to)).unwrap();
            }
        }
        assert_eq!(cache.failure(), None);
    }
    // It heals: what is put in now is there.
    for number in 1000..1010 {
        put(&cache, number).await;
        assert!(has(&cache, number).await, "{number}");
    }
    // A damaged head begins a new cache, whatever is in the files.
    close(cache).await;
    let cache = open(folder.path(), TWO);
    count(&cache, 0..200).await;
    put(&cache, 1).await;
    assert!(has(&cache, 1).await);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_gives_the_exact_payload_or_none(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps));
    }
}

/// More frames than slots, all handles at once: every slot is fought for.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn handles_that_race_for_slots_never_give_other_bytes() {
    let folder = disk();
    let caches: Vec<_> = (0..3).map(|_| Arc::new(open(folder.path(), SMALL))).collect();
    let hits = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..6u64 {
        let (cache, hits) = (caches[task as usize % 3].clone(), hits.clone());
        tasks.spawn(async move {
            let mut rng = StdRng::seed_from_u64(task);
            for round in 0..400 {
                let number = rng.random_range(0..150);
                match has(&cache, number).await {
                    true => drop(hits.fetch_add(1, Relaxed)),
                    false => cache.offer(key(number), &payload(number), None),
                }
                if round % 50 == 0 {
                    cache.settle().await;
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert!(caches.iter().all(|cache| cache.failure().is_none()));
    assert!(hits.load(Relaxed) > 100, "{hits:?} hits");
}

/// A disk that fails or hangs on demand.
#[derive(Debug)]
struct Bad {
    slots: Arc<dyn Slots>,
    read: Option<i32>,
    write: Option<i32>,
    hangs: bool,
}

#[async_trait]
impl Slots for Bad {
    async fn read(&self, offset: u64, len: usize) -> io::Result<Blocks> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        match self.read {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => self.slots.read(offset, len).await,
        }
    }

    async fn write(&self, offset: u64, blocks: Blocks) -> io::Result<()> {
        match self.write {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => self.slots.write(offset, blocks).await,
        }
    }
}

fn bad(folder: &Path, read: Option<i32>, write: Option<i32>, hangs: bool) -> DiskCache {
    let wrap = |slots| Arc::new(Bad { slots, read, write, hangs }) as Arc<dyn Slots>;
    DiskCache::open_over(folder, SMALL, Handle::current(), wrap).unwrap()
}

#[tokio::test]
async fn a_disk_that_fails_turns_the_cache_off() {
    let folder = disk();
    let cache = bad(folder.path(), None, Some(nix::libc::ENOSPC), false);
    put(&cache, 1).await;
    assert!(cache.failure().unwrap().contains("No space left"), "{:?}", cache.failure());
    assert!(!has(&cache, 1).await);
    // A healthy process finds nothing that was not written.
    let sound = open(folder.path(), SMALL);
    assert!(!has(&sound, 1).await);
    put(&sound, 2).await;
    let cache = bad(folder.path(), Some(nix::libc::EIO), None, false);
    assert!(!has(&cache, 3).await && cache.failure().is_none(), "nothing was read");
    assert!(!has(&cache, 2).await);
    let why = cache.failure().unwrap();
    assert!(why.contains("is used no more: Input/output error"), "{why}");
    put(&cache, 4).await;
    assert!(!has(&sound, 4).await && has(&sound, 2).await);
}

#[tokio::test]
async fn files_that_were_cut_turn_the_cache_off() {
    for frames in [true, false] {
        let folder = disk();
        let cache = open(folder.path(), SMALL);
        put(&cache, 4).await;
        file(folder.path(), frames).set_len(4096).unwrap();
        assert!(!has(&cache, 4).await);
        assert!(cache.failure().is_some(), "frames: {frames}");
        close(cache).await;
        let cache = open(folder.path(), SMALL);
        assert!(!has(&cache, 4).await);
        put(&cache, 5).await;
        assert!(has(&cache, 5).await, "it was not made anew");
    }
}

/// What is durable when the power fails while a cache is made.
#[tokio::test]
async fn a_cache_that_was_not_finished_begins_anew() {
    let folder = disk();
    for frames in [None, Some(0), Some(4096), Some(SMALL)] {
        fs::write(folder.path().join("index"), MAGIC).unwrap();
        match frames {
            Some(len) => file(folder.path(), true).set_len(len).unwrap(),
            None => assert!(!folder.path().join("frames").exists()),
        }
        let cache = open(folder.path(), SMALL);
        assert!(!has(&cache, 4).await);
        put(&cache, 4).await;
        assert!(has(&cache, 4).await, "frames: {frames:?}");
        close(cache).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_is_done_without() {
    let folder = disk();
    let sound = open(folder.path(), SMALL);
    put(&sound, 1).await;
    close(sound).await;
    let cache = bad(folder.path(), None, None, true);
    let begun = tokio::time::Instant::now();
    for lookup in 1..=8 {
        assert_eq!(cache.failure(), None, "at lookup {lookup}");
        assert!(!has(&cache, 1).await);
    }
    assert!(cache.failure().unwrap().contains("does not answer"), "{:?}", cache.failure());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let begun = tokio::time::Instant::now();
    assert!(!has(&cache, 1).await);
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_folder_of_somebody_else_is_left_alone() {
    let refused = |folder: &Path, words: &str| {
        let error = DiskCache::open(folder, SMALL, Handle::current()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Failed, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    let folder = disk();
    fs::write(folder.path().join("frames"), "a film").unwrap();
    refused(folder.path(), "it has `frames` and no index; choose another --cache-dir");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    fs::write(folder.path().join("index"), "").unwrap();
    refused(folder.path(), "it has `frames` and no index");
    for index in ["of a book", &"of a long book ".repeat(1000)] {
        fs::write(folder.path().join("index"), index).unwrap();
        refused(folder.path(), "its index begins with other bytes");
        assert_eq!(fs::read(folder.path().join("index")).unwrap(), index.as_bytes());
    }
    assert_eq!(fs::read(folder.path().join("frames")).unwrap(), b"a film");

    // That of a newer objblk, whole.
    let folder = disk();
    close(open(folder.path(), SMALL)).await;
    let index = file(folder.path(), false);
    let mut head = [0; 60];
    index.read_exact_at(&mut head, 0).unwrap();
    head[8] += 1;
    index.write_all_at(&[&head[..], &crc32c::crc32c(&head).to_le_bytes()].concat(), 0).unwrap();
    refused(folder.path(), "needs a newer objblk");
    // The same head, damaged.
    index.write_all_at(&[0xff], 20).unwrap();
    let cache = open(folder.path(), SMALL);
    put(&cache, 1).await;
    assert!(has(&cache, 1).await);

    let nowhere = disk();
    refused(&nowhere.path().join("not/mounted"), "cannot make the cache folder");
    fs::write(nowhere.path().join("file"), "mine").unwrap();
    refused(&nowhere.path().join("file"), "cannot use the cache");
    assert_eq!(fs::read(nowhere.path().join("file")).unwrap(), b"mine");
}

#[tokio::test]
async fn a_full_disk_is_told_and_nothing_is_left_behind() {
    let folder = disk();
    let error = DiskCache::open(folder.path(), 1 << 50, Handle::current()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("the file system has") && text.contains("--cache-size"), "{text}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    let error = DiskCache::open(folder.path(), SMALL - 1, Handle::current()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
}

#[tokio::test]
async fn another_size_begins_anew_unless_others_use_it() {
    let folder = disk();
    let cache = open(folder.path(), SMALL);
    put(&cache, 1).await;
    let second = open(folder.path(), TWO);
    assert_eq!(second.size(), SMALL, "the first one uses it");
    assert!(has(&second, 1).await);
    close(cache).await;
    close(second).await;
    let larger = open_anew(folder.path(), TWO).await;
    assert!(!has(&larger, 1).await);
    put(&larger, 2).await;
    close(larger).await;
    let geometry = Geometry::within(SMALL).unwrap();
    let cache = open_anew(folder.path(), SMALL).await;
    assert!(!has(&cache, 2).await);
    let len = |name| fs::metadata(folder.path().join(name)).unwrap().len();
    assert_eq!((len("frames"), len("index")), (geometry.frames_len(), 2 * SET_LEN as u64));
}

/// Processes that find no cache at the same time make one.
#[test]
fn a_cache_is_made_once_however_many_come() {
    let folder = disk();
    let open_it = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let cache = open(folder.path(), SMALL);
            put(&cache, 1).await;
            // While another one writes the same slot, it is a miss.
            let _ = has(&cache, 1).await;
            close(cache).await;
        });
    };
    std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(open_it))));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert!(runtime.block_on(async { has(&open(folder.path(), SMALL), 1).await }));
}
