//! What compression and encryption cost: a volume with it beside one without, on stores in memory. Its data is
//! such that a frame gets half as long. (`engine` compares the one without it with a disk in memory.)

use crate::contest::{Report, Settings, take_turns};
use crate::disk::{Dice, Ground, MIB, PAGE, noise};
use crate::engine::{BURST, PAGES, SIZE, ground, inline, options, reads, sector};
use nix::time::{ClockId, clock_gettime};
use objblk::device::{BlockDevice, WriteFlags};
use objblk::format::VolumeId;
use objblk::format::frame::Compression;
use objblk::seal::{Keyring, SealStore, VolumeKey};
use objblk::volume::Volume;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMIT: &str = "uncompressed";
const PLAIN: How = How { compression: Compression::None, sealed: false };
const ALL: [How; 4] = [
    How { compression: Compression::Lz4, sealed: false },
    How { compression: Compression::Zstd(3), sealed: false },
    How { compression: Compression::Lz4, sealed: true },
    How { compression: Compression::None, sealed: true },
];
/// Written in a turn, and by how many flushes.
const BURSTS: u64 = 4;

/// How a volume is stored.
#[derive(Clone, Copy)]
struct How {
    compression: Compression,
    sealed: bool,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.compression, if self.sealed { " + AES" } else { "" })
    }
}

/// A store of its own, and the volume on it.
fn made(how: How) -> (Ground, VolumeId) {
    let Ground { runtime, store } = ground();
    let ground = Ground { runtime, store: Arc::clone(&store) };
    let id = ground.create_with(SIZE, how.compression);
    if !how.sealed {
        return (ground, id);
    }
    let ring = Arc::new(Keyring::default());
    ring.add([id], VolumeKey::new([7; 32]));
    let store = Arc::new(SealStore::new(store, ring, StdRng::seed_from_u64(1)));
    (Ground { store, ..ground }, id)
}

/// Half of it is text that repeats, half is not.
fn page() -> Vec<u8> {
    let mut page = noise(PAGE);
    let lines = (0..).flat_map(|n: u64| format!("{n:04x} objblk keeps its bytes ").into_bytes());
    page.iter_mut().zip(lines).take(PAGE / 2).for_each(|(to, from)| *to = from);
    page
}

/// CPU time of this process so far, in seconds.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // Of users and of the kernel, in hundredths.
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

/// What this thread alone has used of a processor so far.
fn of_this_thread() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap())
}

/// What a turn of writes took.
struct Written {
    /// While they were being made.
    making: Duration,
    /// The processor's time of the thread that made them: none of what is done off it.
    hot: Duration,
    /// Seconds of the processor until they were stored.
    cpu: f64,
}

fn written(how: How) -> Written {
    let (ground, id) = made(how);
    let volume = ground.open(id, options());
    let pages: Vec<Vec<u8>> = (0..64).map(|_| page()).collect();
    let (mut dice, before) = (Dice::new(3), cpu());
    let [mut making, mut hot] = [Duration::ZERO; 2];
    for _ in 0..BURSTS {
        let (begun, used) = (Instant::now(), of_this_thread());
        for _ in 0..BURST {
            let (at, page) = (sector(dice.below(PAGES)), &pages[dice.below(64) as usize]);
            inline(&ground, volume.write(at, page, WriteFlags::default())).unwrap();
        }
        making += begun.elapsed();
        hot += of_this_thread() - used;
        ground.wait(volume.flush()).unwrap();
    }
    let cpu = cpu() - before;
    ground.wait(volume.close()).unwrap();
    Written { making, hot, cpu }
}

/// A volume of which all is cached.
fn cached(how: How) -> (Ground, Volume) {
    let (ground, id) = made(how);
    let volume = ground.open(id, options());
    for number in 0..PAGES {
        inline(&ground, volume.write(sector(number), &page(), WriteFlags::default())).unwrap();
    }
    ground.wait(volume.close()).unwrap();
    let (volume, mut page) = (ground.open(id, options()), [0; PAGE]);
    for number in 0..PAGES {
        inline(&ground, volume.read(sector(number), &mut page)).unwrap();
    }
    (ground, volume)
}

/// Reads all of a new volume that was written with it, from the store: GiB for a second of the processor.
fn cold(how: How) -> f64 {
    let (ground, id) = made(how);
    let (volume, pages) = (ground.open(id, options()), (0..64).map(|_| page()).collect::<Vec<_>>());
    for number in 0..PAGES {
        let page = &pages[number as usize % 64];
        inline(&ground, volume.write(sector(number), page, WriteFlags::default())).unwrap();
    }
    ground.wait(volume.close()).unwrap();
    let (volume, mut buf) = (ground.open(id, options()), vec![0; MIB as usize]);
    let before = cpu();
    for at in 0..SIZE / MIB {
        inline(&ground, volume.read(sector(at * MIB / PAGE as u64), &mut buf)).unwrap();
    }
    let took = cpu() - before;
    ground.wait(volume.close()).unwrap();
    SIZE as f64 / (1u64 << 30) as f64 / took
}

pub fn run(settings: &Settings, report: &mut Report) {
    let millions = |took: Duration| (BURSTS * BURST) as f64 / 1e6 / took.as_secs_f64();
    let gib = (BURSTS * BURST) as f64 * PAGE as f64 / (1u64 << 30) as f64;
    for how in ALL {
        let mut spent = [(); 2].map(|()| <[Vec<f64>; 2]>::default());
        let [ours, plain] = [how, PLAIN].map(|how| {
            move |[hot, spent]: &mut [Vec<f64>; 2]| {
                let written = written(how);
                hot.push(millions(written.hot));
                spent.push(gib / written.cpu);
                millions(written.making)
            }
        });
        let [mine, theirs] = &mut spent;
        let figures = take_turns(settings.rounds, [&mut || ours(mine), &mut || plain(theirs)]);
        report.add(&format!("4 KiB random writes, {how}"), "M/s", LIMIT, figures);
        let [[hot, spent], [plain_hot, plain_spent]] = spent;
        let work = format!("the same, of its thread's CPU time, {how}");
        report.add(&work, "M/s", LIMIT, [hot, plain_hot]);
        let work = format!("writes for a CPU second, {how}");
        report.add(&work, "GiB", LIMIT, [spent, plain_spent]);
        let figures = take_turns(settings.rounds, [&mut || cold(how), &mut || cold(PLAIN)]);
        report.add(&format!("cold reads for a CPU second, {how}"), "GiB", LIMIT, figures);
        let turn = settings.turn(2.0);
        let [ours, plain] = [how, PLAIN].map(cached);
        let figures = take_turns(
            settings.rounds,
            [&mut || reads(&ours.0, &ours.1, PAGES, turn), &mut || {
                reads(&plain.0, &plain.1, PAGES, turn)
            }],
        );
        report.add(&format!("cached 4 KiB reads, {how}"), "M/s", LIMIT, figures);
        [ours, plain].iter().for_each(|(ground, volume)| ground.wait(volume.close()).unwrap());
    }
}
