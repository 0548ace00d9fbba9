//! Reads that only the disk cache can answer, against bare direct reads of its file: of what it reads
//! itself, whole frames of 64 KiB, and of as little as was asked for.
//!
//! The file is in the target directory, which has to be on a disk for this to say anything.

use crate::contest::{Report, Settings, take_turns};
use crate::disk::{Dice, Ground, MIB, PAGE, noise};
use nix::fcntl::OFlag;
use objblk::cache::disk::DiskCache;
use objblk::device::{BlockDevice, WriteFlags};
use objblk::direct::Blocks;
use objblk::store::memory::MemoryStore;
use objblk::units::{SECTOR_SIZE, Sector};
use objblk::volume::{Volume, VolumeOptions};
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const SIZE: u64 = 256 * MIB;
const FRAME: usize = 64 << 10;

/// `depth` of these at once, again and again; thousands a second.
fn rate(depth: u64, turn: Duration, request: impl Fn(&mut Dice) + Sync) -> f64 {
    let done = AtomicU64::new(0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for seed in 0..depth {
            let (done, request) = (&done, &request);
            scope.spawn(move || {
                let mut dice = Dice::new(seed * 7919 + begun.elapsed().subsec_nanos() as u64);
                while begun.elapsed() < turn {
                    request(&mut dice);
                    done.fetch_add(1, Relaxed);
                }
            });
        }
    });
    done.load(Relaxed) as f64 / 1e3 / begun.elapsed().as_secs_f64()
}

/// Reads of the volume, which nearly all have to be found on the disk.
fn cached(ground: &Ground, volume: &Volume, depth: u64, turn: Duration) -> f64 {
    let pages = SIZE / PAGE as u64;
    let read = |dice: &mut Dice| {
        let mut page = [0; PAGE];
        let at = Sector(dice.below(pages) * PAGE as u64 / SECTOR_SIZE);
        ground.wait(volume.read(at, &mut page)).unwrap();
    };
    rate(depth, turn, read)
}

fn bare(frames: &File, len: usize, depth: u64, turn: Duration) -> f64 {
    let places = frames.metadata().unwrap().len() / len as u64;
    let read = |dice: &mut Dice| {
        let mut blocks = Blocks::zeroed(len);
        frames.read_exact_at(blocks.bytes_mut(), dice.below(places) * len as u64).unwrap();
    };
    rate(depth, turn, read)
}

fn open(ground: &Ground, folder: &Path) -> VolumeOptions {
    let cache = DiskCache::open(folder, 2 * SIZE, ground.runtime.handle().clone()).unwrap();
    // Memory holds next to nothing of it.
    VolumeOptions {
        cache_bytes: MIB,
        disk_cache: Some(Arc::new(cache)),
        ..VolumeOptions::default()
    }
}

pub fn run(settings: &Settings, report: &mut Report) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let ground = Ground { runtime: Ground::runtime(), store: Arc::new(MemoryStore::new()) };
    let id = ground.create(SIZE);
    let volume = ground.open(id, VolumeOptions::default());
    let data = noise(MIB as usize);
    for at in (0..SIZE).step_by(MIB as usize) {
        let write = volume.write(Sector(at / SECTOR_SIZE), &data, WriteFlags::default());
        ground.wait(write).unwrap();
    }
    ground.wait(volume.close()).unwrap();
    // Read once; then the cache is opened again, as after a restart.
    let volume = ground.open(id, open(&ground, folder.path()));
    let mut buffer = vec![0; MIB as usize];
    for at in (0..SIZE).step_by(MIB as usize) {
        ground.wait(volume.read(Sector(at / SECTOR_SIZE), &mut buffer)).unwrap();
        let cache = volume.status().disk_cache.unwrap();
        assert!(cache.failure.is_none(), "{cache:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    ground.wait(volume.close()).unwrap();
    let volume = ground.open(id, open(&ground, folder.path()));
    let mut options = File::options();
    let direct = options.read(true).custom_flags(OFlag::O_DIRECT.bits());
    let frames = direct.open(folder.path().join("frames")).unwrap();
    let turn = settings.turn(3.0);
    for depth in [1, 32] {
        for (limit, len) in [("bare 64 KiB reads", FRAME), ("bare 4 KiB reads", PAGE)] {
            let figures = take_turns(
                settings.rounds,
                [&mut || cached(&ground, &volume, depth, turn), &mut || {
                    bare(&frames, len, depth, turn)
                }],
            );
            let work = format!("4 KiB random reads from the disk cache, {depth} at once");
            report.add(&work, "k/s", limit, figures);
        }
    }
    let cache = volume.status().disk_cache.unwrap();
    println!("{} frames were found in the cache, {} were not", cache.hits, cache.misses);
    assert!(cache.hits > 100 * cache.misses, "{cache:?}");
    ground.wait(volume.close()).unwrap();
}
