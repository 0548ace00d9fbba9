//! Scrubbing: everything is read at its rate, by one owner after the other; damage is found, told and mended.

use crate::compressed::examined;
use crate::mend::{chunks, disk, fill, pool_of};
use crate::rig::{Rig, owner, read, write};
use objblk::cache::disk::DiskCache;
use objblk::clock::Clock;
use objblk::doctor::Doctor;
use objblk::format::SnapshotId;
use objblk::mutant::{self, Mutant};
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::store::{Key, Op, Store};
use objblk::volume::{
    Env, Mode, ScrubOptions, ScrubStatus, Stores, Volume, VolumeOptions, scrubbed,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const SIZE: u64 = 8 << 20;
/// Sectors of a full chunk.
const CHUNK: u64 = 512;
const CHUNKS: u64 = 12;
const HOUR: Duration = Duration::from_secs(3600);

/// Tells the time of the test.
#[derive(Debug)]
struct Ticking(Instant);

impl Clock for Ticking {
    fn now_ms(&self) -> u64 {
        1_700_000_000_000 + self.0.elapsed().as_millis() as u64
    }
}

async fn open(rig: &Rig, begun: Instant, pid: u32, options: VolumeOptions) -> Volume {
    let (runtime, clock) = (tokio::runtime::Handle::current(), Arc::new(Ticking(begun)));
    let stores = Stores::one(rig.store.clone());
    Volume::open(Env { runtime, clock }, stores, rig.id, owner(pid), options).await.unwrap()
}

fn scrubbing(rig: &Rig, rate: u64) -> VolumeOptions {
    let scrub = Some(ScrubOptions { rate, every: HOUR });
    VolumeOptions { scrub, ..rig.options.clone() }
}

fn status(volume: &Volume) -> ScrubStatus {
    volume.status().scrub.expect("it is scrubbed")
}

/// Waits for a pass to end.
async fn passed(volume: &Volume) -> ScrubStatus {
    let before = status(volume).last;
    for _ in 0..100_000 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = status(volume);
        if now.last.is_some() && now.last != before {
            return now;
        }
    }
    panic!("no pass ends: {:?}", status(volume));
}

/// A closed volume of full chunks, of which a snapshot needs some that were overwritten since.
async fn filled(seed: u64) -> Rig {
    let mut rig = Rig::new(seed, SIZE).await;
    rig.options.collection = None;
    let volume = rig.open().await;
    fill(&volume, 0..CHUNKS).await;
    volume.make_snapshot(SnapshotId::from_bytes([1; 16]), "a").await.unwrap();
    write(&volume, 0, &crate::rig::pattern(0, CHUNK, 50)).await.unwrap();
    volume.close().await.unwrap();
    rig
}

#[tokio::test(start_paused = true)]
async fn all_is_read_at_the_rate_and_noted() {
    let rig = filled(1).await;
    // What only the snapshot needs is among them.
    let names = chunks(&rig).await;
    assert_eq!(names.len() as u64, CHUNKS + 1);
    let mut bytes = 0;
    for name in &names {
        bytes += rig.object(name).await.len() as u64;
    }
    let no_delay = Fault::Delay { at: Moment::Before, from: Duration::ZERO, to: Duration::ZERO };
    let log = format!("volumes/{}/log/", rig.id);
    let begun = Instant::now();
    let volume = open(&rig, begun, 3, scrubbing(&rig, 64 << 10)).await;
    let gets = rig.faults.add(Rule::new(no_delay).on(&[Op::Get]).below(log));
    let last = passed(&volume).await.last.unwrap();
    let took = begun.elapsed().as_secs_f64();
    let least = bytes as f64 / f64::from(64 << 10);
    assert!((least - 1.0..least + 2.0).contains(&took), "{took} s of {least}");
    assert_eq!((last.chunks, last.bytes, last.damaged), (CHUNKS + 1, bytes, 0));
    assert!(gets.hits() >= names.len() as u64);
    assert_eq!(scrubbed(&*rig.store, rig.id).await.unwrap().unwrap().last, Some(last));
    assert_eq!(rig.objects("scrubs/").await.len(), 1, "older notes go");
    // Then it rests.
    let (before, hits) = (status(&volume), gets.hits());
    tokio::time::sleep(HOUR - Duration::from_secs(120)).await;
    assert_eq!((status(&volume), gets.hits()), (before, hits));
    assert_eq!(passed(&volume).await.last.unwrap().chunks, CHUNKS + 1);
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_next_owner_goes_on() {
    let rig = filled(2).await;
    let (rate, begun) = (16 << 10, Instant::now());
    let volume = open(&rig, begun, 3, scrubbing(&rig, rate)).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    let seen = status(&volume);
    assert!(seen.now.chunks >= 4 && seen.last.is_none(), "{seen:?}");
    volume.abandon();
    let options = scrubbing(&rig, rate);
    let options = VolumeOptions { mode: Mode::ReadWrite { takeover: true }, ..options };
    let volume = open(&rig, begun, 4, options).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let now = status(&volume);
    // At most what was done since the last note is done again.
    assert!(now.now.chunks + 4 >= seen.now.chunks && now.now.chunks >= 2, "{now:?} {seen:?}");
    assert_eq!(now.now.begun_at_ms, seen.now.begun_at_ms);
    let last = passed(&volume).await.last.unwrap();
    assert_eq!((last.chunks, last.damaged), (CHUNKS + 1, 0));
    volume.close().await.unwrap();
    // A note that is damaged costs a pass, no more.
    for name in rig.objects("scrubs/").await {
        rig.replace(&name, b"{}".to_vec()).await;
    }
    assert!(scrubbed(&*rig.store, rig.id).await.is_err());
    let volume = open(&rig, begun, 5, scrubbing(&rig, 64 << 20)).await;
    assert_eq!(passed(&volume).await.last.unwrap().chunks, CHUNKS + 1);
    assert!(scrubbed(&*rig.store, rig.id).await.unwrap().is_some());
    volume.close().await.unwrap();
}

/// Damages three chunks of which a cache has two, and scrubs. Returns what the scrub tells.
fn damaged(mistake: Option<Mutant>) -> (u64, u64, bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let work = async {
        let mut rig = Rig::new(3, SIZE).await;
        rig.options.collection = None;
        let (pool, folder) = (pool_of(&rig).await, disk());
        let cache = || {
            let runtime = tokio::runtime::Handle::current();
            Some(Arc::new(DiskCache::open(folder.path(), 32 << 20, runtime).unwrap()))
        };
        let options = VolumeOptions { disk_cache: cache(), ..rig.options.clone() };
        let volume = rig.open_with(1, options).await.unwrap();
        fill(&volume, 0..6).await;
        volume.close().await.unwrap();
        let volume = rig.open_as(2, Mode::ReadWrite { takeover: false }).await.unwrap();
        fill(&volume, 6..8).await;
        volume.close().await.unwrap();
        let names = chunks(&rig).await;
        let mut whole = rig.object(&names[1]).await.to_vec();
        let before = whole.clone();
        let end = whole.len();
        whole[end - 9] ^= 1;
        rig.replace(&names[1], whole).await;
        rig.memory.delete(&[Key::new(&names[4]).unwrap()]).await.unwrap();
        let mut lost = rig.object(&names[7]).await.to_vec();
        let end = lost.len();
        lost[end - 9] ^= 1;
        rig.replace(&names[7], lost).await;
        let options = VolumeOptions { disk_cache: cache(), ..scrubbing(&rig, 1 << 30) };
        let volume = rig.open_with(3, options).await.unwrap();
        let last = passed(&volume).await.last.unwrap();
        volume.close().await.unwrap();
        let put_back = rig.object(&names[1]).await == before;
        if mistake.is_none() {
            let report = Doctor::new(&pool, true, None).check_all().await.unwrap();
            let volume = &report.volumes[0];
            assert_eq!((volume.damages.len(), volume.affected.len()), (1, 1), "{report:#?}");
            assert_eq!(volume.affected[0].sectors, 128, "{report:#?}");
            assert!(
                volume.notes.iter().any(|n| n.contains("left 1 objects damaged")),
                "{report:#?}"
            );
            let volume = rig.open().await;
            assert!(read(&volume, 0, 7 * CHUNK).await.is_ok());
            assert!(read(&volume, 8 * CHUNK - 128, 8).await.is_err());
            fill(&volume, 7..8).await;
            volume.close().await.unwrap();
            assert!(examined(&pool).await);
        }
        (last.damaged, last.mended, put_back)
    };
    mutant::with(mistake, || runtime.block_on(work))
}

#[test]
fn damage_is_found_and_mended_where_a_cache_has_it() {
    assert_eq!(damaged(None), (3, 2, true));
    let mistaken = damaged(Some(Mutant::ScrubSkipsFrames));
    assert_ne!(mistaken, (3, 2, true), "the mistake is not noticed");
}

/// An owner who writes, collects and deletes while it scrubs: nothing is told to be damaged, and nothing waits.
#[tokio::test(start_paused = true)]
async fn what_goes_meanwhile_is_no_damage() {
    let rig = Rig::new(4, SIZE).await;
    let pool = pool_of(&rig).await;
    let slow = (Duration::ZERO, Duration::from_millis(40));
    let delay = Fault::Delay { at: Moment::Before, from: slow.0, to: slow.1 };
    rig.faults.add(Rule::new(delay).on(&[Op::Get]));
    let scrub = Some(ScrubOptions { rate: 1 << 30, every: Duration::from_millis(1) });
    let options = VolumeOptions { scrub, ..rig.options.clone() };
    let volume = open(&rig, Instant::now(), 1, options).await;
    let mut passes = 0;
    for round in 0..60 {
        let part = round % 3 * 4;
        fill(&volume, part..part + 4).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        if round % 7 == 0 {
            let id = SnapshotId::from_bytes([round as u8; 16]);
            volume.make_snapshot(id, &format!("s{round}")).await.unwrap();
        }
        if round % 7 == 5 {
            volume.delete_snapshot(&format!("s{}", round - 5)).await.unwrap();
        }
        volume.collect(Some(100)).await.unwrap();
        let now = status(&volume);
        let found = now.last.map_or(0, |last| last.damaged) + now.now.damaged;
        assert_eq!(found, 0, "round {round}: {now:?}");
        passes += u32::from(now.last.is_some_and(|last| last.chunks > 0));
    }
    assert!(passes > 20, "{passes} {:?}", status(&volume));
    rig.faults.clear();
    volume.close().await.unwrap();
    assert!(examined(&pool).await);
}
