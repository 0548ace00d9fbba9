//! Snapshots and clones on a real S3 server: what one costs, whether the thousandth costs more, how long
//! writers wait meanwhile, and how fast the last of a chain of clones is beside a flat volume.

use crate::contest::{Report, Settings, take_turns};
use crate::disk::{Dice, Ground, MIB, PAGE, noise};
use crate::store::Place;
use crate::table::{print, row};
use objblk::device::{BlockDevice, WriteFlags};
use objblk::format::frame::Compression;
use objblk::format::{SnapshotId, VolumeId};
use objblk::pool::{NewVolume, Pool, VolumeName};
use objblk::store::list_all;
use objblk::units::{BlockSize, SECTOR_SIZE, Sector};
use objblk::volume::{Volume, VolumeOptions, list_snapshots};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A large volume with a map of as many extents as 100 GiB have that were written 256 KiB at a time, of which
/// snapshots are made under writes.
const LARGE: u64 = 1 << 40;
const EXTENTS: u64 = 409_600;
const PAUSES: usize = 20;
/// Snapshots of one volume.
const MANY: usize = 1000;
/// Volumes that are read.
const IMAGE: u64 = 256 * MIB;
const DEPTH: usize = 10;
const CLONES: u64 = 100;

struct Family {
    place: Place,
    pool: Pool,
}

impl Family {
    fn new() -> Family {
        let place = Place::new(None);
        let store = place.ground.store.clone();
        let pool = place.ground.wait(Pool::init(store, false)).unwrap();
        Family { place, pool }
    }

    fn ground(&self) -> &Ground {
        &self.place.ground
    }

    fn create(&self, name: &str, size: u64) -> VolumeId {
        let (block_size, chunk_size) = (BlockSize::default(), 4 * MIB);
        let compression = Compression::None;
        let new = NewVolume { size, block_size, chunk_size, compression, mirrored: false };
        self.ground().wait(self.pool.create(&volume_name(name), new)).unwrap()
    }

    fn clone_of(&self, of: &str, snapshot: &str, name: &str) -> VolumeId {
        let (of, name) = (volume_name(of), volume_name(name));
        self.ground().wait(self.pool.clone_volume(&of, snapshot, &name)).unwrap()
    }

    fn open(&self, id: VolumeId) -> Volume {
        self.ground().open(id, VolumeOptions::default())
    }

    fn snapshot(&self, volume: &Volume, name: &str) {
        let id = SnapshotId::from_random(rand::random());
        self.ground().wait(volume.make_snapshot(id, name)).unwrap();
    }

    fn close(&self, volume: &Volume) {
        self.ground().wait(volume.close()).unwrap();
    }

    /// Bytes in the bucket.
    fn stored(&self) -> u64 {
        let all = self.ground().wait(list_all(&*self.ground().store, "volumes/")).unwrap();
        all.iter().map(|object| object.size).sum()
    }

    /// Fills the volume with noise, a snapshot of which is `golden`.
    fn golden(&self, name: &str) -> VolumeId {
        let id = self.create(name, IMAGE);
        let volume = self.open(id);
        self.ground().wait(async {
            for at in (0..IMAGE).step_by(4 * MIB as usize) {
                write(&volume, at, &noise(4 * MIB as usize)).await;
            }
        });
        self.snapshot(&volume, "golden");
        self.close(&volume);
        id
    }
}

fn volume_name(text: &str) -> VolumeName {
    text.parse().unwrap()
}

async fn write(volume: &Volume, at: u64, data: &[u8]) {
    volume.write(Sector(at / SECTOR_SIZE), data, WriteFlags::default()).await.unwrap();
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn quantile(times: &mut [f64], part: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    times[((times.len() - 1) as f64 * part) as usize]
}

/// Times of single writes while `work` goes on.
fn writing(family: &Family, volume: &Volume, work: impl FnOnce()) -> Vec<f64> {
    let ended = Arc::new(AtomicBool::new(false));
    let writer = {
        let (volume, ended) = (volume.clone(), ended.clone());
        family.ground().runtime.spawn(async move {
            let (mut dice, data, mut times) = (Dice::new(3), noise(PAGE), Vec::new());
            while !ended.load(Ordering::Relaxed) {
                let begun = Instant::now();
                write(&volume, dice.below(LARGE / PAGE as u64) * PAGE as u64, &data).await;
                times.push(ms(begun.elapsed()));
                // About 8 MiB a second: as a host does, not as much as the store takes.
                tokio::time::sleep(Duration::from_micros(400)).await;
            }
            times
        })
    };
    work();
    ended.store(true, Ordering::Relaxed);
    family.ground().wait(writer).unwrap()
}

/// How long writers wait while snapshots are made.
fn pauses(family: &Family) {
    let volume = family.open(family.create("large", LARGE));
    family.ground().wait(async {
        let (mut dice, data) = (Dice::new(1), noise(PAGE));
        for _ in 0..EXTENTS {
            write(&volume, dice.below(LARGE / PAGE as u64) * PAGE as u64, &data).await;
        }
        volume.flush().await.unwrap();
    });
    family.snapshot(&volume, "first");
    let mut alone = writing(family, &volume, || std::thread::sleep(Duration::from_secs(10)));
    let (mut made, puts) = (Vec::new(), family.place.count("put"));
    let mut beside = writing(family, &volume, || {
        for number in 0..PAUSES {
            let begun = Instant::now();
            family.snapshot(&volume, &format!("s{number}"));
            made.push(ms(begun.elapsed()));
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let puts = (family.place.count("put") - puts) / PAUSES as f64;
    family.close(&volume);
    let mut rows = vec![row(&[&"1 TiB, 4 KiB writes at random", &"p50 ms", &"p99 ms", &"max ms"])];
    for (name, times) in [
        ("a write, alone", &mut alone),
        ("a write, while snapshots are made", &mut beside),
        ("a snapshot", &mut made),
    ] {
        let figures = [0.5, 0.99, 1.0].map(|part| format!("{:.3}", quantile(times, part)));
        rows.push(row(&[&name, &figures[0], &figures[1], &figures[2]]));
    }
    print("\nsnapshots under writes", &rows);
    println!("  {puts:.1} PUTs for each, those of the writes meanwhile included");
}

/// Times of what is done with the first ones and with the last ones.
fn thousand(family: &Family, report: &mut Report) {
    let id = family.create("many", IMAGE);
    let volume = family.open(id);
    let (mut dice, data) = (Dice::new(2), noise(PAGE));
    let ground = family.ground();
    let timed = |work: &mut dyn FnMut()| {
        let begun = Instant::now();
        work();
        1000.0 / ms(begun.elapsed())
    };
    let look = |snapshot: &str| {
        let options = VolumeOptions { snapshot: Some(snapshot.into()), ..VolumeOptions::default() };
        family.close(&ground.open(id, options));
    };
    let list = || drop(ground.wait(list_snapshots(&*ground.store, id)).unwrap());
    let (mut made, mut listed, mut opened) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..MANY {
        let at = dice.below(IMAGE / PAGE as u64) * PAGE as u64;
        ground.wait(write(&volume, at, &data));
        made.push(timed(&mut || family.snapshot(&volume, &format!("s{number}"))));
        if !(5..MANY - 5).contains(&number) {
            listed.push(timed(&mut || list()));
            opened.push(timed(&mut || look(&format!("s{number}"))));
        }
    }
    let delete = |number: usize| {
        let name = format!("s{}", number * 387 % MANY);
        timed(&mut || drop(ground.wait(volume.delete_snapshot(&name)).unwrap()))
    };
    let deleted: Vec<f64> = (0..MANY).map(delete).collect();
    family.close(&volume);
    for (work, figures, each) in [
        ("making a snapshot", made, 100),
        ("listing them", listed, 5),
        ("opening one", opened, 5),
        ("deleting one, in no order", deleted, 100),
    ] {
        // Of deletions the last ones are those with few left.
        let (first, last) = (figures[..each].to_vec(), figures[figures.len() - each..].to_vec());
        report.add(&format!("{work}: the 1000th"), "1/s", "the first", [last, first]);
    }
}

/// A chain of clones beside a flat volume.
fn chain(family: &Family, settings: &Settings, report: &mut Report) {
    family.golden("flat");
    family.golden("base");
    let puts = family.place.count("put");
    let (stored, begun) = (family.stored(), Instant::now());
    let mut id = family.clone_of("base", "golden", "c1");
    let (took, puts) = (ms(begun.elapsed()), family.place.count("put") - puts);
    println!("\na clone of {} MiB: {took:.0} ms, {puts} PUTs, {} bytes", IMAGE / MIB, {
        family.stored() - stored
    });
    let mut dice = Dice::new(4);
    for depth in 1..DEPTH {
        let volume = family.open(id);
        family.ground().wait(async {
            for _ in 0..IMAGE / MIB / 16 {
                let at = dice.below(IMAGE / MIB) * MIB;
                write(&volume, at, &noise(MIB as usize)).await;
            }
        });
        family.snapshot(&volume, "s");
        family.close(&volume);
        id = family.clone_of(&format!("c{depth}"), "s", &format!("c{}", depth + 1));
    }
    let flat = family.clone_of("flat", "golden", "beside");
    let cold = |id: VolumeId| {
        let volume = family.open(id);
        let begun = Instant::now();
        family.ground().wait(read_all(&volume));
        let rate = IMAGE as f64 / 1e6 / begun.elapsed().as_secs_f64();
        family.close(&volume);
        rate
    };
    // The first attach makes a first checkpoint.
    for id in [id, flat] {
        cold(id);
    }
    let figures = take_turns(settings.rounds, [&mut || cold(id), &mut || cold(flat)]);
    report.add("the tenth of a chain, read cold in order", "MB/s", "a clone", figures);
    let options = || VolumeOptions { cache_bytes: 2 * IMAGE, ..VolumeOptions::default() };
    let volumes = [id, flat].map(|id| family.ground().open(id, options()));
    volumes.iter().for_each(|volume| family.ground().wait(read_all(volume)));
    let warm = |volume: &Volume| family.ground().wait(read_pages(volume, settings.turn(2.0)));
    let [chain, flat] = &volumes;
    let figures = take_turns(settings.rounds, [&mut || warm(chain), &mut || warm(flat)]);
    report.add("the same, 4 KiB at random, cached", "1/s", "a clone", figures);
    volumes.iter().for_each(|volume| family.close(volume));
}

async fn read_all(volume: &Volume) {
    let mut data = vec![0; MIB as usize];
    for at in (0..IMAGE).step_by(data.len()) {
        volume.read(Sector(at / SECTOR_SIZE), &mut data).await.unwrap();
    }
}

async fn read_pages(volume: &Volume, turn: Duration) -> f64 {
    let (mut dice, mut page, begun) = (Dice::new(5), [0; PAGE], Instant::now());
    let mut done = 0.0;
    while begun.elapsed() < turn {
        for _ in 0..1000 {
            let at = dice.below(IMAGE / PAGE as u64) * PAGE as u64;
            volume.read(Sector(at / SECTOR_SIZE), &mut page).await.unwrap();
        }
        done += 1000.0;
    }
    done / begun.elapsed().as_secs_f64()
}

/// Machines that boot from one image: each reads some of it and writes a MiB.
fn fleet(family: &Family) {
    let before = family.stored();
    family.golden("image");
    let image = family.stored() - before;
    for number in 0..CLONES {
        let volume = family.open(family.clone_of("image", "golden", &format!("vm{number}")));
        family.ground().wait(async {
            let mut data = vec![0; MIB as usize];
            for at in (0..8 * MIB).step_by(data.len()) {
                volume.read(Sector(at / SECTOR_SIZE), &mut data).await.unwrap();
            }
            write(&volume, number * MIB, &noise(MIB as usize)).await;
        });
        family.close(&volume);
    }
    let all = family.stored() - before;
    let each = (all - image) / CLONES;
    println!(
        "\n{CLONES} clones of an image of {} MiB, each with a MiB of its own: {} MiB stored, {} KiB for \
         each",
        image / MIB,
        all / MIB,
        each >> 10
    );
}

pub fn run(settings: &Settings, report: &mut Report) {
    let family = Family::new();
    pauses(&family);
    thousand(&family, report);
    chain(&family, settings, report);
    fleet(&family);
    family.ground().wait(family.place.bucket.remove());
}
