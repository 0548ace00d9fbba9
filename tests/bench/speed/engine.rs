//! The engine alone, on one thread and a store in memory, against a disk in memory through the same
//! calls: each request is polled where it is made, as a ublk queue's thread does it.

use crate::contest::{Report, Settings, take_turns};
use crate::disk::{Dice, Ground, MIB, PAGE, noise};
use objblk::device::ram::RamDisk;
use objblk::device::{BlockDevice, WriteFlags};
use objblk::store::memory::MemoryStore;
use objblk::units::{BlockSize, SECTOR_SIZE, Sector, SectorCount};
use objblk::volume::{Volume, VolumeOptions};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

pub const SIZE: u64 = 256 * MIB;
pub const PAGES: u64 = SIZE / PAGE as u64;
/// What the processor's caches hold of it: reads of no more show what the engine itself costs, those
/// of the whole disk wait for memory most of the time.
const HOT: u64 = 8 * MIB / PAGE as u64;
/// Requests between two looks at the clock.
const BATCH: u64 = 4096;
/// What is written in one go: less than writers may be ahead of the store.
pub const BURST: u64 = 64 * MIB / PAGE as u64;
/// Bursts of a turn; the store keeps all of it in memory.
const BURSTS: u32 = 16;
/// A large request of a ublk device, and how many buffers for such take turns.
const LARGE: usize = 512 << 10;
const IN_FLIGHT: usize = 16;
const LIMIT: &str = "RAM disk";

/// Does a request here and now; the runtime has to help only if it must wait.
pub fn inline<T>(ground: &Ground, request: impl Future<Output = T>) -> T {
    let mut request = pin!(request);
    match request.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => ground.wait(request),
    }
}

pub fn sector(page: u64) -> Sector {
    Sector(page * PAGE as u64 / SECTOR_SIZE)
}

pub fn ground() -> Ground {
    Ground { runtime: Ground::runtime(), store: Arc::new(MemoryStore::new()) }
}

pub fn options() -> VolumeOptions {
    // All of the disk is cached, and nothing is done for its age.
    VolumeOptions {
        cache_bytes: 2 * SIZE,
        dirty_bytes: 2 * BURST * PAGE as u64,
        checkpoint_after: Duration::from_secs(3600),
        ..VolumeOptions::default()
    }
}

/// Random reads of the first `pages` for a while: millions a second.
pub fn reads(ground: &Ground, device: &impl BlockDevice, pages: u64, turn: Duration) -> f64 {
    let (mut dice, mut page, mut done) = (Dice::new(1), [0; PAGE], 0);
    let begun = Instant::now();
    while begun.elapsed() < turn {
        for _ in 0..BATCH {
            inline(ground, device.read(sector(dice.below(pages)), &mut page)).unwrap();
        }
        done += BATCH;
    }
    done as f64 / 1e6 / begun.elapsed().as_secs_f64()
}

/// Large reads in order, for a while: GB a second.
fn large_reads(ground: &Ground, device: &impl BlockDevice, turn: Duration) -> f64 {
    let (mut buffers, mut done) = (vec![vec![0; LARGE]; IN_FLIGHT], 0_u64);
    let begun = Instant::now();
    while begun.elapsed() < turn {
        for buffer in &mut buffers {
            let at = Sector(done % SIZE / SECTOR_SIZE);
            inline(ground, device.read(at, buffer)).unwrap();
            done += LARGE as u64;
        }
    }
    done as f64 / 1e9 / begun.elapsed().as_secs_f64()
}

/// How long so many random writes take.
fn writes(ground: &Ground, device: &impl BlockDevice, dice: &mut Dice, count: u64) -> Duration {
    let page = noise(PAGE);
    let begun = Instant::now();
    for _ in 0..count {
        let at = sector(dice.below(PAGES));
        inline(ground, device.write(at, &page, WriteFlags::default())).unwrap();
    }
    begun.elapsed()
}

fn fill(ground: &Ground, device: &impl BlockDevice, order: impl Iterator<Item = u64>) {
    let page = noise(PAGE);
    for number in order {
        inline(ground, device.write(sector(number), &page, WriteFlags::default())).unwrap();
    }
    inline(ground, device.flush()).unwrap();
}

fn ram() -> RamDisk {
    RamDisk::new(SectorCount(SIZE / SECTOR_SIZE), BlockSize::B512)
}

/// A volume that was written in this order, attached anew and read once: all of it is cached.
fn cached(ground: &Ground, order: impl Iterator<Item = u64>) -> Volume {
    let id = ground.create(SIZE);
    let volume = ground.open(id, options());
    fill(ground, &volume, order);
    ground.wait(volume.close()).unwrap();
    let volume = ground.open(id, options());
    let mut page = [0; PAGE];
    for number in 0..PAGES {
        inline(ground, volume.read(sector(number), &mut page)).unwrap();
    }
    volume
}

fn cached_reads(settings: &Settings, report: &mut Report) {
    let turn = settings.turn(2.0);
    let orders: [(&str, Vec<u64>); 2] = [
        ("written in order", (0..PAGES).collect()),
        ("written at random", Dice::new(2).shuffled(PAGES)),
    ];
    for (name, order) in orders {
        let ground = ground();
        let volume = cached(&ground, order.into_iter());
        let ram = ram();
        fill(&ground, &ram, 0..PAGES);
        let misses = volume.status().cache_misses;
        for (part, pages) in [("", PAGES), (", 8 MiB of it", HOT)] {
            let figures = take_turns(
                settings.rounds,
                [&mut || reads(&ground, &volume, pages, turn), &mut || {
                    reads(&ground, &ram, pages, turn)
                }],
            );
            let work = format!("cached 4 KiB random reads, {name}{part}");
            report.add(&work, "M/s", LIMIT, figures);
        }
        let figures = take_turns(
            settings.rounds,
            [&mut || large_reads(&ground, &volume, turn), &mut || large_reads(&ground, &ram, turn)],
        );
        report.add(&format!("cached 512 KiB reads in order, {name}"), "GB/s", LIMIT, figures);
        assert_eq!(volume.status().cache_misses, misses, "all reads are of cached frames");
        ground.wait(volume.close()).unwrap();
    }
}

/// A new volume (its store's memory is freed each time) that takes `bursts` of writes, flushed in
/// between: millions a second while they last.
fn written(bursts: u32, count: u64) -> f64 {
    let ground = ground();
    let volume = ground.open(ground.create(SIZE), options());
    let mut dice = Dice::new(3);
    let mut took = Duration::ZERO;
    for _ in 0..bursts {
        took += writes(&ground, &volume, &mut dice, count);
        ground.wait(volume.flush()).unwrap();
    }
    ground.wait(volume.close()).unwrap();
    (u64::from(bursts) * count) as f64 / 1e6 / took.as_secs_f64()
}

fn buffered_writes(settings: &Settings, report: &mut Report) {
    let (ground, ram) = (ground(), ram());
    fill(&ground, &ram, 0..PAGES);
    let all = u64::from(BURSTS) * BURST;
    for (name, bursts, count) in
        [("bursts of 64 MiB", BURSTS, BURST), ("1 GiB without a pause", 1, all)]
    {
        let mut dice = Dice::new(3);
        let figures = take_turns(
            settings.rounds,
            [&mut || written(bursts, count), &mut || {
                all as f64 / 1e6 / writes(&ground, &ram, &mut dice, all).as_secs_f64()
            }],
        );
        report.add(&format!("buffered 4 KiB random writes, {name}"), "M/s", LIMIT, figures);
    }
}

pub fn run(settings: &Settings, report: &mut Report) {
    cached_reads(settings, report);
    buffered_writes(settings, report);
}
