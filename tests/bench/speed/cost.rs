//! What objblk costs at a store that bills by request: a model of the requests of four loads, checked
//! against what the engine asks of a real S3 server, and what they cost at list prices.
//!
//! [`predict`] knows the geometry of volumes (chunks, frames, leaves of the map) and the engine's rules of
//! when it asks; it counts nothing. If it is wrong by more than [`TOLERANCE`], the model or the engine
//! has changed: the part fails.

use crate::contest::{Report, Settings};
use crate::disk::{Dice, MIB, PAGE, noise};
use crate::store::Place;
use crate::table::{print, row};
use futures::{StreamExt, stream};
use objblk::device::{BlockDevice, WriteFlags};
use objblk::format::VolumeId;
use objblk::units::{SECTOR_SIZE, Sector};
use objblk::volume::{ProfileUse, Volume, VolumeOptions};
use std::ops::{Add, Mul};
use std::time::{Duration, Instant};

/// Dollars for a PUT or LIST, for a GET or HEAD, and for a GB that is kept for a month: list prices of
/// Amazon S3 Standard, us-east-1, in 2026. A DELETE costs nothing.
const PUT_PRICE: f64 = 0.005 / 1000.0;
const GET_PRICE: f64 = 0.0004 / 1000.0;
const STORAGE_PRICE: f64 = 0.023;

/// How far a prediction may be off: that part of it, and in any case so many requests.
const TOLERANCE: f64 = 0.25;
const FEW: f64 = 3.0;

const KIB: f64 = 1024.0;
const FRAME: f64 = 64.0 * KIB;
const CHUNK: f64 = 4096.0 * KIB;
const LEAF_SPAN: f64 = 64.0 * 1024.0 * KIB;
const MAP_PAGE_SPAN: f64 = 1024.0 * LEAF_SPAN;
const MAP_OBJECT: f64 = 4096.0 * KIB;
/// Bytes of an extent in a leaf.
const EXTENT: f64 = 16.0;
/// What one GET fetches at most of what is read ahead.
const RUN: f64 = 1024.0 * KIB;
const GIB: f64 = 1024.0 * 1024.0 * KIB;
/// Slots that an attach looks at to find the log's end.
const SLOTS_AHEAD: f64 = 32.0;
/// Seconds between two heartbeats.
const HEARTBEAT: f64 = 10.0;
/// Chunks with less than this part of the nominal size are merged, once there are so many of them.
const SMALL: f64 = 1.0 / 8.0;
const SMALL_ALLOWED: f64 = 256.0;

/// Requests by kind.
#[derive(Clone, Copy, Debug, Default)]
struct Requests {
    put: f64,
    get: f64,
    list: f64,
    head: f64,
    delete: f64,
}

impl Requests {
    fn by_kind(&self) -> [(&'static str, f64); 5] {
        let Requests { put, get, list, head, delete } = *self;
        [("put", put), ("get", get), ("list", list), ("head", head), ("delete", delete)]
    }

    /// So far.
    fn counted(place: &Place) -> Requests {
        let [put, get, list, head, delete] =
            ["put", "get", "list", "head", "delete"].map(|kind| place.count(kind));
        Requests { put, get, list, head, delete }
    }

    fn dollars(&self) -> f64 {
        (self.put + self.list) * PUT_PRICE + (self.get + self.head) * GET_PRICE
    }
}

impl Add for Requests {
    type Output = Requests;
    fn add(self, more: Requests) -> Requests {
        Requests {
            put: self.put + more.put,
            get: self.get + more.get,
            list: self.list + more.list,
            head: self.head + more.head,
            delete: self.delete + more.delete,
        }
    }
}

impl Mul<f64> for Requests {
    type Output = Requests;
    fn mul(self, by: f64) -> Requests {
        let [put, get, list, head, delete] = self.by_kind().map(|(_, count)| count * by);
        Requests { put, get, list, head, delete }
    }
}

/// What is done with a volume of `size` bytes that was written in order and closed, from its attach on.
#[derive(Clone, Copy, Debug)]
enum Load {
    /// 4 KiB at random, 30 % writes, a flush after each `batch` of them, all in frames of which `cache`
    /// bytes are kept; a checkpoint each `slots` chunks.
    Oltp { size: f64, cache: f64, writes: f64, batch: f64, slots: f64 },
    /// `volumes` boot: each reads `files` of `length` bytes in order, 64 KiB at a time, then `pieces` of
    /// less than a frame, in frames of their own. `replay`: after their profiles were fetched.
    Boot { volumes: f64, size: f64, files: f64, length: f64, pieces: f64, replay: bool },
    /// All of it in order.
    Backup { size: f64 },
    /// Nothing.
    Idle,
}

/// The requests of a load that takes so many seconds.
///
/// * **Attach:** description, owner, newest checkpoint (looked for twice: to tell the owner, and once
///   the epoch is claimed), and the slots behind it, all missing: GETs. Epoch and fence: PUTs. What
///   the owner before has left behind is deleted after a checkpoint; unfinished snapshots are listed for that.
/// * **Checkpoint:** a PUT for each 4 MiB of changed leaves and pages, one for itself, a look at the next
///   epoch, and one DELETE.
/// * **First reads:** a GET for each leaf and page of the map, and one for the frame table of each chunk.
/// * **Heartbeat:** a HEAD each 10 s.
///
/// It holds in fair weather: no request is made twice. Of the collector it knows that small chunks are
/// merged. Where more is overwritten than six tenths of the volume, each byte that is written is
/// written about 1.5 times as well, and PUTs grow by that.
fn predict(load: &Load, seconds: f64) -> Requests {
    let volumes = if let Load::Boot { volumes, .. } = load { *volumes } else { 1.0 };
    let beats = Requests { head: (seconds / HEARTBEAT).floor(), ..Requests::default() };
    let work = match *load {
        Load::Oltp { size, cache, writes, batch, slots } => {
            oltp(size, cache, writes, batch, slots) + first_reads(size, writes)
        }
        Load::Boot { size, files, length, pieces, replay, .. } => {
            boot(size, files, length, pieces, replay) + first_reads(size, files + pieces)
        }
        Load::Backup { size } => {
            first_reads(size, size / FRAME) + Requests { get: size / RUN, ..Requests::default() }
        }
        Load::Idle => Requests::default(),
    };
    (attach() + beats + work) * volumes
}

fn attach() -> Requests {
    let chunk_page = 1.0;
    let get = 4.0 + SLOTS_AHEAD + chunk_page;
    Requests { put: 2.0, get, list: 4.0, head: 1.0, delete: 0.0 } + checkpoint(1.0)
}

fn checkpoint(map_objects: f64) -> Requests {
    Requests { put: map_objects + 1.0, head: 1.0, delete: 1.0, ..Requests::default() }
}

/// The map, and the tables of those chunks that `reads` at random places meet.
fn first_reads(size: f64, reads: f64) -> Requests {
    let map = (size / LEAF_SPAN).ceil() + (size / MAP_PAGE_SPAN).ceil();
    let chunks = size / CHUNK;
    let get = map + chunks * (1.0 - (-reads / chunks).exp());
    Requests { get, ..Requests::default() }
}

/// Each flush is a PUT, each read that is not in the cache a GET. Chunks of flushes are merged later: of
/// each, header and frame table and frames are fetched, and what they held is written once more.
fn oltp(size: f64, cache: f64, writes: f64, batch: f64, slots: f64) -> Requests {
    let (flushes, page) = ((writes / batch).ceil(), PAGE as f64);
    let extents = (2.0 * writes).min(size / page);
    let map_objects = (extents * EXTENT / MAP_OBJECT).ceil();
    // The last two are those of a collection at the end.
    let checkpoints = (flushes / slots).floor() + 2.0;
    let small = if batch * page <= CHUNK * SMALL { flushes } else { 0.0 };
    let merged = if small > SMALL_ALLOWED + size / CHUNK / 4.0 { small } else { 0.0 };
    let get = misses(writes * 7.0 / 3.0, size / FRAME, cache / FRAME) + 3.0 * merged;
    let put = flushes + merged * batch * page / CHUNK;
    Requests { put, get, ..Requests::default() } + checkpoint(map_objects) * checkpoints
}

/// Reads that miss an empty cache with room for `cached` of `frames`, at random: each new frame until it
/// is full, then those that are not in it.
fn misses(reads: f64, frames: f64, cached: f64) -> f64 {
    let until_full = -frames * (1.0 - cached / frames).ln();
    if reads < until_full {
        return frames * (1.0 - (-reads / frames).exp());
    }
    cached + (reads - until_full) * (1.0 - cached / frames)
}

/// Each piece is a GET, unless something was read ahead there. A replay fetches the same frames, but files
/// by the MiB; what was read ahead behind a file is then cut up by pieces that are there already.
fn boot(size: f64, files: f64, length: f64, pieces: f64, replay: bool) -> Requests {
    let (reads, ahead, fetched) = read_ahead(length);
    let behind = fetched - length;
    let get = if replay {
        let windows = (behind / RUN).ceil() + behind / FRAME * pieces / (size / FRAME);
        1.0 + pieces + files * ((length / RUN).ceil() + windows)
    } else {
        files * (reads + ahead) + pieces * (1.0 - files * fetched / size)
    };
    Requests { get, ..Requests::default() }
}

/// Of a file that is read in order, 64 KiB at a time, with the default cache: GETs of what is read, GETs
/// of what is read ahead, and bytes that were fetched in all. From the third read on a window is fetched,
/// a larger one each time half of it was used, up to 8 MiB.
fn read_ahead(length: f64) -> (f64, f64, f64) {
    let (mut next, mut ahead, mut window) = (3.0 * FRAME, 3.0 * FRAME, RUN);
    let mut gets = 0.0;
    while next <= length {
        if ahead <= next + window / 2.0 {
            gets += ((next + window - ahead) / RUN).ceil();
            (ahead, window) = (next + window, (2.0 * window).min(8.0 * RUN));
        }
        next += FRAME;
    }
    (3.0, gets, ahead)
}

/// What the model is checked with: small enough for a test server, with a checkpoint early.
const SIZE: u64 = 256 * MIB;
const CACHE: u64 = 32 * MIB;
const BATCH: u64 = 16;
const FLUSHES: u64 = 384;
const SLOTS: u64 = 128;
const VOLUMES: usize = 3;
const FILES: u64 = 3;
const FILE: u64 = MIB;
const PIECES: usize = 300;
const IDLE: Duration = Duration::from_secs(60);

/// The load that is measured, and the same as large as it is billed.
fn loads() -> [(&'static str, Load, (&'static str, Load, f64)); 5] {
    let oltp = Load::Oltp {
        size: SIZE as f64,
        cache: CACHE as f64,
        writes: (FLUSHES * BATCH) as f64,
        batch: BATCH as f64,
        slots: SLOTS as f64,
    };
    let more = Load::Oltp {
        size: 4.0 * GIB,
        cache: 64.0 * MIB as f64,
        writes: GIB / PAGE as f64,
        batch: BATCH as f64,
        slots: 1024.0,
    };
    let boot = |volumes: usize, replay| Load::Boot {
        volumes: volumes as f64,
        size: SIZE as f64,
        files: FILES as f64,
        length: FILE as f64,
        pieces: PIECES as f64,
        replay,
    };
    let backup = Load::Backup { size: SIZE as f64 };
    [
        ("OLTP", oltp, ("GiB written, 4 KiB at a time", more, 3600.0)),
        ("boot storm", boot(VOLUMES, false), ("100 boots", boot(100, false), 10.0)),
        ("boot storm, replayed", boot(VOLUMES, true), ("100 boots", boot(100, true), 10.0)),
        ("backup", backup, ("GiB read", Load::Backup { size: GIB }, 10.0)),
        ("idle", Load::Idle, ("hour, attach included", Load::Idle, 3600.0)),
    ]
}

fn sector(at: u64) -> Sector {
    Sector(at / SECTOR_SIZE)
}

async fn transactions(volume: &Volume) {
    let (mut dice, data) = (Dice::new(7), noise(PAGE));
    let mut place = || sector(dice.below(SIZE / PAGE as u64) * PAGE as u64);
    for _ in 0..FLUSHES {
        for _ in 0..BATCH {
            volume.write(place(), &data, WriteFlags::default()).await.unwrap();
        }
        let reads = (0..BATCH * 7 / 3).map(|_| (volume.clone(), place()));
        let read = |(volume, at): (Volume, Sector)| async move {
            volume.read(at, &mut [0; PAGE]).await.unwrap();
        };
        stream::iter(reads).map(read).buffer_unordered(8).collect::<Vec<()>>().await;
        volume.flush().await.unwrap();
    }
    volume.collect(None).await.unwrap();
}

/// One read after the other, as a loader does it.
async fn boot_trace(volume: Volume) {
    let mut frame = vec![0; FRAME as usize];
    for file in 0..FILES {
        let first = (file + 1) * SIZE / (FILES + 1) / CHUNK as u64 * CHUNK as u64;
        for at in (first..first + FILE).step_by(frame.len()) {
            volume.read(sector(at), &mut frame).await.unwrap();
        }
    }
    for piece in &Dice::new(8).shuffled(SIZE / FRAME as u64)[..PIECES] {
        volume.read(sector(piece * FRAME as u64), &mut frame[..4 * PAGE]).await.unwrap();
    }
}

fn boot_storm(place: &Place, ids: &[VolumeId], profile: Option<ProfileUse>) -> Vec<Volume> {
    let ground = &place.ground;
    let options = || VolumeOptions { profile, ..VolumeOptions::default() };
    let volumes: Vec<Volume> = ids.iter().map(|id| ground.open(*id, options())).collect();
    if profile == Some(ProfileUse::Replay) {
        settle(place);
    }
    ground.wait(futures::future::join_all(volumes.iter().cloned().map(boot_trace)));
    volumes
}

async fn read_all(volume: &Volume) {
    let mut data = vec![0; MIB as usize];
    for at in (0..SIZE).step_by(data.len()) {
        volume.read(sector(at), &mut data).await.unwrap();
    }
}

/// Waits until nothing is asked any more, but for heartbeats.
fn settle(place: &Place) {
    let busy = || Requests::counted(place).by_kind()[..2].iter().map(|(_, count)| count).sum();
    let mut before: f64 = -1.0;
    while before != busy() {
        before = busy();
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// What a load asks of the store, and how many seconds it takes.
fn measure(place: &Place, load: &Load, ids: &[VolumeId]) -> (Requests, f64) {
    let ground = &place.ground;
    let (before, begun) = (Requests::counted(place), Instant::now());
    let open = |options| ground.open(ids[0], options);
    let volumes = match load {
        Load::Oltp { .. } => {
            let (cache_bytes, checkpoint_slots) = (CACHE, SLOTS);
            let volume =
                open(VolumeOptions { cache_bytes, checkpoint_slots, ..VolumeOptions::default() });
            ground.wait(transactions(&volume));
            vec![volume]
        }
        Load::Boot { replay, .. } => boot_storm(place, ids, replay.then_some(ProfileUse::Replay)),
        Load::Backup { .. } => {
            let volume = open(VolumeOptions::default());
            ground.wait(read_all(&volume));
            vec![volume]
        }
        Load::Idle => {
            let volume = open(VolumeOptions::default());
            std::thread::sleep(IDLE);
            vec![volume]
        }
    };
    settle(place);
    let (counted, took) = (Requests::counted(place), begun.elapsed().as_secs_f64());
    close(place, volumes);
    (counted + before * -1.0, took)
}

fn close(place: &Place, volumes: Vec<Volume>) {
    for volume in volumes {
        place.ground.wait(volume.close()).unwrap();
    }
}

/// Adds what was counted of a load beside what was predicted, and says where that is wrong.
fn compare(name: &str, counted: Requests, predicted: Requests, report: &mut Report) {
    for ((kind, counted), (_, predicted)) in counted.by_kind().into_iter().zip(predicted.by_kind())
    {
        if counted == 0.0 && predicted == 0.0 {
            continue;
        }
        let kind = kind.to_uppercase();
        report.add(&format!("{name}, {kind}s"), "", "prediction", [vec![counted], vec![predicted]]);
        let off = (counted - predicted).abs();
        if off > FEW.max(predicted * TOLERANCE) {
            report.fail(format!("{name}: {counted} {kind}s, and {predicted:.0} were predicted"));
        }
    }
}

fn print_costs() {
    let mut rows =
        vec![row(&[&"load", &"for each", &"PUT", &"GET", &"LIST", &"HEAD", &"DELETE", &"$"])];
    for (name, _, (unit, load, seconds)) in loads() {
        let requests = predict(&load, seconds);
        let mut cells = row(&[&name, &unit]);
        cells.extend(requests.by_kind().map(|(_, count)| format!("{count:.0}")));
        cells.push(format!("{:.6}", requests.dollars()));
        rows.push(cells);
    }
    print("\nwhat it costs at the list prices of S3 Standard in 2026", &rows);
    let kept = STORAGE_PRICE * GIB / 1e9;
    println!(
        "  kept for a month: ${kept:.4} for each GiB of chunks, at most 1.6 times what is live"
    );
}

pub fn run(_: &Settings, report: &mut Report) {
    let place = Place::new(None);
    let ids: Vec<VolumeId> = (0..VOLUMES).map(|_| place.filled(SIZE)).collect();
    // Records what the replay fetches; a volume that was attached once has something to be deleted.
    close(&place, boot_storm(&place, &ids, Some(ProfileUse::Record)));
    // The one that writes comes last: the others are of volumes as they were made.
    for (name, load, _) in loads().into_iter().rev() {
        let (counted, seconds) = measure(&place, &load, &ids);
        compare(name, counted, predict(&load, seconds), report);
    }
    place.ground.wait(place.bucket.remove());
    print_costs();
    crate::sizes::print_table();
}
