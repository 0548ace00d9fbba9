//! Random writes until a volume was overwritten several times and collection goes on all the time, beside bare
//! PUTs of whole chunks before and after. What is written is written once more by the collector, and read by
//! it before: beside PUTs alone there is no ratio of one.
//!
//! The volume is of 10 GiB, so the server has to have 25 GB ([`ROOM`]): CEPH_SIZE, with an OBJBLK_LAB of its
//! own. Where it has less, the part is left out, which is said.

use crate::contest::{Report, Settings};
use crate::disk::{Dice, MIB, PAGE, noise};
use crate::store::{CHUNK, Place, put};
use crate::table::{print, row};
use objblk::device::{BlockDevice, WriteFlags};
use objblk::units::{SECTOR_SIZE, Sector};
use objblk::volume::{SpaceStatus, Volume, VolumeOptions};
use std::sync::Arc;
use std::time::{Duration, Instant};

const DISK: u64 = 10 << 30;
/// What the server needs.
const ROOM: u64 = 25_000_000_000;
/// Writers at the same time, as a queue of 32 has.
const WRITERS: u64 = 32;
/// Parts of the time that are told apart.
const PARTS: u32 = 6;
const BARE: Duration = Duration::from_secs(10);

/// Figures of a part of the time.
struct Stage {
    rate: f64,
    puts: f64,
    /// Stored for each byte that is live, at the end of it.
    stored: Option<f64>,
    /// Appended by all for each byte that users wrote.
    appended: f64,
}

/// Writes pages at random until `end`.
async fn write(volume: Volume, noise: Arc<Vec<u8>>, seed: u64, end: Instant) {
    let mut dice = Dice::new(seed);
    while Instant::now() < end {
        let page = dice.below((noise.len() / PAGE) as u64) as usize * PAGE;
        let at = Sector(dice.below(DISK / PAGE as u64) * (PAGE as u64 / SECTOR_SIZE));
        volume.write(at, &noise[page..page + PAGE], WriteFlags::default()).await.unwrap();
    }
}

fn stage(place: &Place, volume: &Volume, noise: &Arc<Vec<u8>>, time: Duration, seed: u64) -> Stage {
    let (before, puts, begun) = (volume.status().space, place.count("put"), Instant::now());
    let end = begun + time;
    place.ground.wait(async {
        let one = |lane| write(volume.clone(), noise.clone(), seed * WRITERS + lane, end);
        futures::future::join_all((0..WRITERS).map(one).map(tokio::spawn)).await;
    });
    let after = volume.status().space;
    let part = |of: fn(&SpaceStatus) -> u64| (of(&after) - of(&before)) as f64;
    let written = part(|space| space.written_bytes);
    Stage {
        rate: written / 1e6 / begun.elapsed().as_secs_f64(),
        puts: (place.count("put") - puts) / (written / (1u64 << 30) as f64),
        stored: after.ratio,
        appended: 1.0 + part(|space| space.moved_bytes) / written,
    }
}

fn shown(stages: &[Stage], time: Duration) {
    let heading = ["s", "MB/s", "PUTs/GiB", "stored/live", "appended/written"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for (number, stage) in (1..).zip(stages) {
        let stored = stage.stored.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        let end = (time * number).as_secs();
        let [rate, puts] = [stage.rate, stage.puts].map(|figure| format!("{figure:.0}"));
        rows.push(row(&[&end, &rate, &puts, &stored, &format!("{:.2}", stage.appended)]));
    }
    print("\nrandom writes on and on", &rows);
}

pub fn run(settings: &Settings, report: &mut Report) {
    let place = Place::new(None);
    let room = place.room();
    if room < ROOM {
        println!("left out: sustained, because the server has {room} bytes, and it takes {ROOM}");
        place.ground.wait(place.bucket.remove());
        return;
    }
    let time = settings.turn(180.0) / PARTS;
    let before = put(&place, BARE);
    let id = place.ground.create(DISK);
    let volume = place.ground.open(id, VolumeOptions::default());
    let data = Arc::new(noise((16 * MIB) as usize));
    let stages: Vec<Stage> =
        (1..=PARTS).map(|part| stage(&place, &volume, &data, time, part.into())).collect();
    volume.abandon();
    place.empty();
    let bare = f64::midpoint(before, put(&place, BARE));
    shown(&stages, time);
    let mean = stages.iter().map(|stage| stage.rate).sum::<f64>() / f64::from(PARTS);
    let last = stages.last().map_or(0.0, |stage| stage.rate);
    for (work, rate) in [("on and on", mean), ("on and on, at the end", last)] {
        let work = format!("4 KiB random writes over 10 GiB {work}");
        report.add(&work, "MB/s", "PUTs of 4 MiB", [vec![rate], vec![bare]]);
    }
    let full = ((1 << 30) / CHUNK) as f64;
    let puts = stages.iter().map(|stage| stage.puts).fold(0.0, f64::max);
    report.add("PUTs for them, less is better", "/GiB", "full chunks", [vec![puts], vec![full]]);
    place.ground.wait(place.bucket.remove());
}
