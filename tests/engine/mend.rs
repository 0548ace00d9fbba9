//! Repair: what is damaged and found elsewhere is whole again, bit for bit; the rest is an error and named;
//! whoever dies on the way, and whoever comes after, does no harm.

use crate::compressed::examined;
use crate::rig::{Rig, pattern, read, write};
use objblk::cache::FrameId;
use objblk::cache::disk::{Claim, DiskCache, FrameKey};
use objblk::device::BlockDevice;
use objblk::doctor::{Doctor, Report};
use objblk::format::frame::Compression;
use objblk::format::keys::{self, ChunkId};
use objblk::format::pool::{NameObject, encode_json};
use objblk::mutant::{self, Mutant};
use objblk::pool::Pool;
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::store::{GetRange, Key, Op, Store, StoreErrorKind, list_all};
use objblk::volume::{Mended, Mending, Mode, Volume, VolumeOptions};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const SIZE: u64 = 8 << 20;
/// Sectors of a full chunk of the rig, and of a frame.
const CHUNK: u64 = 512;
const FRAME: u64 = 128;
const CHUNKS: u64 = 12;

pub fn disk() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn cache(folder: &Path) -> Arc<DiskCache> {
    let runtime = tokio::runtime::Handle::current();
    Arc::new(DiskCache::open(folder, 32 << 20, runtime).unwrap())
}

/// A pool that knows the rig's volume as `v`.
pub async fn pool_of(rig: &Rig) -> Pool {
    let pool = Pool::init(rig.store.clone(), false).await.unwrap();
    let body = encode_json(&NameObject { volume: rig.id });
    rig.memory.put(&Key::new("names/v").unwrap(), body.into()).await.unwrap();
    pool
}

/// Fills chunks `which`, each by itself, and waits until the store has them.
pub async fn fill(volume: &Volume, which: std::ops::Range<u64>) {
    for i in which {
        write(volume, i * CHUNK, &pattern(i * CHUNK, CHUNK, i)).await.unwrap();
    }
    volume.flush().await.unwrap();
}

/// Names of the chunks that hold data, in the order of the log.
pub async fn chunks(rig: &Rig) -> Vec<String> {
    let mut chunks = rig.objects("log/").await;
    chunks.sort_by_key(|name| name.rsplit('/').next().map(str::to_owned));
    let mut full = Vec::new();
    for name in chunks {
        if rig.object(&name).await.len() > 1024 {
            full.push(name);
        }
    }
    full
}

fn keys_of(names: &[String]) -> Vec<Key> {
    names.iter().map(|name| Key::new(name).unwrap()).collect()
}

async fn examine(pool: &Pool) -> Report {
    Doctor::new(pool, true, None).check_all().await.unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Harm {
    Flip,
    Cut,
    Long,
    Header,
    Gone,
}

const HARMS: [Harm; 5] = [Harm::Flip, Harm::Cut, Harm::Long, Harm::Header, Harm::Gone];

async fn harm(rig: &Rig, name: &str, harm: Harm) {
    let mut body = rig.object(name).await.to_vec();
    let len = body.len();
    match harm {
        Harm::Flip => body[len - 77] ^= 4,
        Harm::Cut => body.truncate(len - len / 5),
        Harm::Long => body.extend_from_slice(&[7; 100]),
        Harm::Header => body[60] ^= 1,
        Harm::Gone => {
            rig.memory.delete(&keys_of(&[name.to_owned()])).await.unwrap();
            return;
        }
    }
    rig.replace(name, body).await;
}

/// Opens the volume with the cache in `folder`, mends, and closes it.
async fn mend(rig: &Rig, folder: Option<&Path>, names: &[String]) -> Vec<Mended> {
    let options = VolumeOptions { disk_cache: folder.map(cache), ..rig.options.clone() };
    let volume = rig.open_with(7, options).await.unwrap();
    let mended = volume.mend(&keys_of(names)).await.unwrap();
    volume.close().await.unwrap();
    let order = |name: &String| mended.iter().find(|m| m.object == *name).unwrap().clone();
    assert_eq!(mended.len(), names.len());
    names.iter().map(order).collect()
}

/// What is read of chunk `i` by an owner without any cache: whether each of its frames is right.
async fn whole_frames(volume: &Volume, i: u64) -> [bool; 4] {
    let mut whole = [false; 4];
    for (frame, whole) in (0..).zip(&mut whole) {
        let start = i * CHUNK + frame * FRAME;
        if let Ok(found) = read(volume, start, FRAME).await {
            assert!(found == pattern(start, FRAME, i), "wrong bytes from sector {start} on");
            *whole = true;
        }
    }
    whole
}

#[tokio::test]
async fn what_a_cache_has_is_whole_again_bit_for_bit() {
    let all = [Compression::None, Compression::Lz4, Compression::Zstd(7)];
    for (encrypted, compression) in all.into_iter().map(|c| (false, c)).chain([(true, all[1])]) {
        let mut rig = match encrypted {
            true => Rig::encrypted(1, SIZE, compression).await,
            false => Rig::with(1, SIZE, compression).await,
        };
        rig.options.collection = None;
        let (pool, folder) = (pool_of(&rig).await, disk());
        let options =
            VolumeOptions { disk_cache: Some(cache(folder.path())), ..rig.options.clone() };
        let volume = rig.open_with(1, options).await.unwrap();
        fill(&volume, 0..CHUNKS).await;
        volume.close().await.unwrap();
        let names = chunks(&rig).await;
        assert_eq!(names.len() as u64, CHUNKS);
        let mut before = Vec::new();
        for (name, kind) in names.iter().zip(HARMS.into_iter().cycle()) {
            before.push(rig.object(name).await);
            harm(&rig, name, kind).await;
        }
        let what = format!("{compression}, encrypted: {encrypted}");
        assert!(examine(&pool).await.damage_count() >= 9, "{what}");
        let mended = mend(&rig, Some(folder.path()), &names).await;
        for ((mended, kind), whole) in mended.iter().zip(HARMS.into_iter().cycle()).zip(before) {
            let what = format!("{what}: {kind:?}: {mended:?}");
            match kind {
                Harm::Header | Harm::Gone => {
                    assert_eq!(mended.how, Mending::Moved, "{what}");
                    assert_eq!(mended.moved_bytes, CHUNK * 512, "{what}");
                }
                // Of a sealed object nothing is seen of what is behind its end, nor of its size.
                _ if encrypted => assert_ne!(mended.how, Mending::Lost, "{what}"),
                _ => {
                    assert_eq!(mended.how, Mending::PutBack, "{what}");
                    assert!(rig.object(&mended.object).await == whole, "{what}");
                }
            }
        }
        let volume = rig.open().await;
        for i in 0..CHUNKS {
            assert_eq!(whole_frames(&volume, i).await, [true; 4], "{what}: chunk {i}");
        }
        volume.close().await.unwrap();
        let report = examine(&pool).await;
        assert!(report.clean, "{what}: {report:#?}");
        // Once more, there is nothing to do.
        let again = mend(&rig, Some(folder.path()), &chunks(&rig).await).await;
        assert!(again.iter().all(|mended| mended.how == Mending::Whole), "{what}: {again:?}");
    }
}

#[tokio::test]
async fn what_is_found_nowhere_stays_an_error_and_is_named() {
    let rig = Rig::new(2, SIZE).await;
    let (pool, folder) = (pool_of(&rig).await, disk());
    let cached = CHUNKS / 2;
    let options = VolumeOptions { disk_cache: Some(cache(folder.path())), ..rig.options.clone() };
    let volume = rig.open_with(1, options).await.unwrap();
    fill(&volume, 0..cached).await;
    volume.close().await.unwrap();
    let volume = rig.open_as(2, Mode::ReadWrite { takeover: false }).await.unwrap();
    fill(&volume, cached..CHUNKS).await;
    volume.close().await.unwrap();
    let names = chunks(&rig).await;
    for (name, i) in names.iter().zip(0..) {
        harm(&rig, name, if i % 2 == 0 { Harm::Flip } else { Harm::Gone }).await;
    }
    let mended = mend(&rig, Some(folder.path()), &names).await;
    for (mended, i) in mended.iter().zip(0..) {
        let lost = match (i < cached, i % 2) {
            (true, _) => 0,
            (false, 0) => FRAME * 512,
            (false, _) => CHUNK * 512,
        };
        assert_eq!(
            (mended.how == Mending::Lost, mended.lost_bytes),
            (lost > 0, lost),
            "{mended:?}"
        );
    }
    let volume = rig.open_as(3, Mode::ReadWrite { takeover: false }).await.unwrap();
    for i in 0..CHUNKS {
        let whole = match (i < cached, i % 2) {
            (true, _) => [true; 4],
            (false, 0) => [true, true, true, false],
            (false, _) => [false; 4],
        };
        assert_eq!(whole_frames(&volume, i).await, whole, "chunk {i}");
    }
    // The report names these sectors and no others.
    let report = examine(&pool).await;
    let affected = &report.volumes[0].affected;
    let named: Vec<(u64, u64)> =
        affected[0].runs.iter().map(|run| (run.sector, run.sector + run.count)).collect();
    let mut lost: Vec<(u64, u64)> = Vec::new();
    for i in cached..CHUNKS {
        let start = i * CHUNK + if i % 2 == 0 { CHUNK - FRAME } else { 0 };
        match lost.last_mut().filter(|last| last.1 == start) {
            Some(last) => last.1 = (i + 1) * CHUNK,
            None => lost.push((start, (i + 1) * CHUNK)),
        }
    }
    assert_eq!((affected.len(), named), (1, lost), "{report:#?}");
    // A write heals.
    fill(&volume, cached..CHUNKS).await;
    for i in 0..CHUNKS {
        assert_eq!(whole_frames(&volume, i).await, [true; 4], "chunk {i}");
    }
    volume.close().await.unwrap();
    assert!(examined(&pool).await);
}

/// What is damaged, and nobody needs any more, is left behind: the rest of its chunk is moved, and the chunk goes.
#[tokio::test(start_paused = true)]
async fn a_chunk_of_which_the_damage_was_overwritten_is_emptied() {
    let rig = Rig::new(9, SIZE).await;
    let pool = pool_of(&rig).await;
    let volume = rig.open().await;
    fill(&volume, 0..2).await;
    volume.close().await.unwrap();
    let names = chunks(&rig).await;
    harm(&rig, &names[0], Harm::Flip).await;
    let volume = rig.open().await;
    let start = CHUNK - FRAME;
    write(&volume, start, &pattern(start, FRAME, 0)).await.unwrap();
    volume.close().await.unwrap();
    let report = examine(&pool).await;
    assert!(!report.clean && report.volumes[0].affected.is_empty(), "{report:#?}");
    let mended = mend(&rig, None, &names[..1]).await;
    assert_eq!((mended[0].how, mended[0].moved_bytes), (Mending::Moved, (CHUNK - FRAME) * 512));
    let report = examine(&pool).await;
    assert!(report.clean, "{report:#?}");
    let volume = rig.open().await;
    for i in 0..2 {
        assert_eq!(whole_frames(&volume, i).await, [true; 4]);
    }
}

/// A cache that has something else under the right name: nothing of it goes into the store.
fn with_a_wrong_payload(mistake: Option<Mutant>) -> (Option<Mending>, bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let work = async {
        let rig = Rig::new(3, SIZE).await;
        let volume = rig.open().await;
        fill(&volume, 0..2).await;
        volume.close().await.unwrap();
        let names = chunks(&rig).await;
        harm(&rig, &names[0], Harm::Flip).await;
        let damaged = rig.object(&names[0]).await;
        let folder = disk();
        let key = Key::new(&names[0]).unwrap();
        let (seq, epoch) = keys::parse_slot(rig.id, &key).unwrap();
        let frame = FrameId { chunk: ChunkId { volume: rig.id, epoch, seq }, index: 3 };
        let wrong = cache(folder.path());
        wrong.offer(FrameKey { frame, claim: Claim::of_nonce("1") }, &[9; 64 << 10], None);
        wrong.settle().await;
        let options = VolumeOptions { disk_cache: Some(wrong), ..rig.options.clone() };
        let volume = rig.open_with(5, options).await.unwrap();
        let mended = volume.mend(&[key]).await;
        volume.abandon();
        let how = mended.ok().map(|mended| mended[0].how);
        (how, rig.object(&names[0]).await == damaged)
    };
    mutant::with(mistake, || runtime.block_on(work))
}

#[test]
fn nothing_is_put_back_that_is_not_proved() {
    assert_eq!(with_a_wrong_payload(None), (Some(Mending::Lost), true));
    let mistaken = with_a_wrong_payload(Some(Mutant::MendUnproved));
    assert_ne!(mistaken, (Some(Mending::Lost), true), "the mistake is not noticed");
}

/// What users write meanwhile, or wrote since, is never replaced by what a cache has.
#[tokio::test(start_paused = true)]
async fn in_use_it_is_mended_from_memory_and_writes_win() {
    let mut rig = Rig::new(4, SIZE).await;
    rig.options.cache_bytes = 16 << 20;
    let pool = pool_of(&rig).await;
    let volume = rig.open().await;
    fill(&volume, 0..CHUNKS).await;
    let names = chunks(&rig).await;
    for (name, kind) in names.iter().zip([Harm::Gone, Harm::Flip, Harm::Header]) {
        harm(&rig, name, kind).await;
    }
    let newer = pattern(100, 200, 99);
    write(&volume, 100, &newer).await.unwrap();
    let damaged = keys_of(&names[..3]);
    let (mended, late) = tokio::join!(volume.mend(&damaged), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let late = pattern(1100, 50, 98);
        write(&volume, 1100, &late).await.unwrap();
        late
    });
    let how: Vec<Mending> = mended.unwrap().iter().map(|mended| mended.how).collect();
    assert!(how.contains(&Mending::PutBack) && !how.contains(&Mending::Lost), "{how:?}");
    volume.close().await.unwrap();
    let mut expected: Vec<u8> = (0..CHUNKS).flat_map(|i| pattern(i * CHUNK, CHUNK, i)).collect();
    expected[100 * 512..300 * 512].copy_from_slice(&newer);
    expected[1100 * 512..1150 * 512].copy_from_slice(&late);
    let volume = rig.open().await;
    assert!(read(&volume, 0, CHUNKS * CHUNK).await.unwrap() == expected);
    volume.close().await.unwrap();
    assert!(examined(&pool).await);
}

/// Whoever repairs dies at each of its requests in turn, before or after the store has done it.
#[tokio::test]
async fn a_repair_survives_death_at_every_request() {
    let mut rig = Rig::new(5, SIZE).await;
    rig.options.collection = None;
    let (pool, folder) = (pool_of(&rig).await, disk());
    let with_cache =
        || VolumeOptions { disk_cache: Some(cache(folder.path())), ..rig.options.clone() };
    let volume = rig.open_with(1, with_cache()).await.unwrap();
    fill(&volume, 0..3).await;
    volume.close().await.unwrap();
    let names = chunks(&rig).await;
    for (name, kind) in names.iter().zip([Harm::Flip, Harm::Gone, Harm::Header]) {
        harm(&rig, name, kind).await;
    }
    let mut objects = Vec::new();
    for object in list_all(&rig.memory, "").await.unwrap() {
        let body = rig.memory.get(&object.key, GetRange::All).await.unwrap();
        objects.push((object.key, body));
    }
    let (mut deaths, mut ended) = (0, 0);
    for step in 0..200 {
        let moment = if step % 2 == 0 { Moment::Before } else { Moment::After };
        let all: Vec<Key> =
            list_all(&rig.memory, "").await.unwrap().into_iter().map(|o| o.key).collect();
        rig.memory.delete(&all).await.unwrap();
        for (key, body) in &objects {
            rig.memory.put(key, body.clone()).await.unwrap();
        }
        let volume = rig.open_with(10, with_cache()).await.unwrap();
        rig.faults.add(Rule::new(Fault::Fail(moment, StoreErrorKind::Denied)).skip(step / 2));
        let keys = keys_of(&names);
        let work = tokio::time::timeout(Duration::from_millis(150), volume.mend(&keys)).await;
        let died = !matches!(work, Ok(Ok(_)));
        deaths += u32::from(died);
        volume.abandon();
        rig.faults.clear();
        let takeover = VolumeOptions { mode: Mode::ReadWrite { takeover: true }, ..with_cache() };
        let volume = rig.open_with(11, takeover).await.unwrap();
        let mended = volume.mend(&keys).await.unwrap();
        assert!(mended.iter().all(|m| m.how != Mending::Lost), "step {step}: {mended:?}");
        volume.close().await.unwrap();
        let volume = rig.open_as(12, Mode::ReadOnly).await.unwrap();
        for i in 0..3 {
            assert_eq!(whole_frames(&volume, i).await, [true; 4], "step {step}: chunk {i}");
        }
        volume.abandon();
        let report = examine(&pool).await;
        assert!(report.clean, "step {step}: {report:#?}");
        ended = if died { 0 } else { ended + 1 };
        if ended == 4 {
            break;
        }
    }
    eprintln!("{deaths} deaths");
    assert!(deaths > 10 && ended == 4, "{deaths} deaths, {ended}");
}

/// Objects that are no chunks: what they say is known, or nothing depends on them.
#[tokio::test(start_paused = true)]
async fn a_fence_is_made_again_and_hints_go() {
    let rig = Rig::new(6, SIZE).await;
    let pool = pool_of(&rig).await;
    let volume = rig.open().await;
    fill(&volume, 0..2).await;
    volume.abandon();
    let volume = rig.take_over(2).await;
    fill(&volume, 2..4).await;
    volume.close().await.unwrap();
    let mut fences = Vec::new();
    for name in rig.objects("log/").await {
        if rig.object(&name).await.starts_with(objblk::format::fence::MAGIC) {
            fences.push(name);
        }
    }
    fences.sort();
    assert!(examined(&pool).await && fences.len() >= 2, "{fences:?}");
    harm(&rig, &fences[0], Harm::Flip).await;
    rig.memory.delete(&keys_of(&fences[1..2])).await.unwrap();
    rig.replace(keys::profile(rig.id).as_str(), b"nothing".to_vec()).await;
    rig.replace(keys::scrub(rig.id, 3).as_str(), b"{}".to_vec()).await;
    let report = examine(&pool).await;
    let damages = &report.volumes[0].damages;
    let damaged: Vec<String> = damages.iter().filter_map(|d| d.object.clone()).collect();
    assert!(damaged.len() >= 3 && report.volumes[0].affected.is_empty(), "{report:#?}");
    let how: Vec<Mending> = mend(&rig, None, &damaged).await.iter().map(|m| m.how).collect();
    assert!(how.iter().all(|how| matches!(how, Mending::Made | Mending::Removed)), "{how:?}");
    let report = examine(&pool).await;
    assert!(report.clean, "{report:#?}");
    let volume = rig.open().await;
    for i in 0..4 {
        assert_eq!(whole_frames(&volume, i).await, [true; 4]);
    }
}

/// A newest checkpoint that is damaged goes where the one before it is there, with all that it names; and only
/// there.
#[tokio::test(start_paused = true)]
async fn a_damaged_checkpoint_goes_where_an_older_one_is_enough() {
    let mut rig = Rig::new(7, SIZE).await;
    rig.options.collection = None;
    let pool = pool_of(&rig).await;
    let volume = rig.open().await;
    fill(&volume, 0..6).await;
    volume.close().await.unwrap();
    // An owner who dies before it can delete what it needs no more.
    let refused = Fault::Fail(Moment::Before, StoreErrorKind::Denied);
    rig.faults.add(Rule::new(refused).on(&[Op::Delete]));
    let volume = rig.open().await;
    fill(&volume, 6..CHUNKS).await;
    volume.close().await.unwrap();
    rig.faults.clear();
    let checkpoints = rig.objects("checkpoints/").await;
    assert!(checkpoints.len() >= 2, "{checkpoints:?}");
    let newest = Key::new(&checkpoints[0]).unwrap();
    harm(&rig, &checkpoints[0], Harm::Flip).await;
    assert!(!examined(&pool).await);
    let doctor = Doctor::new(&pool, true, None);
    let name = "v".parse().unwrap();
    // Without one of the chunks that were written since, the older one is not enough.
    let last = chunks(&rig).await.pop().unwrap();
    let body = rig.object(&last).await;
    rig.memory.delete(&keys_of(std::slice::from_ref(&last))).await.unwrap();
    assert!(!doctor.is_whole_without(&name, &newest).await.unwrap());
    rig.replace(&last, body.to_vec()).await;
    let (maps, mut needed) = (rig.objects("map/").await, 0);
    for map in &maps {
        let body = rig.object(map).await;
        rig.memory.delete(&keys_of(std::slice::from_ref(map))).await.unwrap();
        needed += u32::from(!doctor.is_whole_without(&name, &newest).await.unwrap());
        rig.replace(map, body.to_vec()).await;
    }
    assert!(needed > 0, "{maps:?}");
    assert!(doctor.is_whole_without(&name, &newest).await.unwrap());
    rig.memory.delete(&[newest]).await.unwrap();
    let volume = rig.take_over(9).await;
    for i in 0..CHUNKS {
        assert_eq!(whole_frames(&volume, i).await, [true; 4], "chunk {i}");
    }
    volume.close().await.unwrap();
    let report = examine(&pool).await;
    assert!(report.clean, "{report:#?}");
}

/// A leaf follows from the headers of the chunks, unless one has gone that had a part in it: then it is not
/// guessed.
#[tokio::test(start_paused = true)]
async fn a_damaged_leaf_is_made_again_from_the_log() {
    for trimmed in [false, true] {
        let mut rig = Rig::new(8, SIZE).await;
        rig.options.collection = None;
        let pool = pool_of(&rig).await;
        let volume = rig.open().await;
        fill(&volume, 0..CHUNKS).await;
        let mut expected: Vec<u8> =
            (0..CHUNKS).flat_map(|i| pattern(i * CHUNK, CHUNK, i)).collect();
        for n in 0..40 {
            let start = n * 131 % 6000;
            let data = pattern(start, 7, 100 + n);
            write(&volume, start, &data).await.unwrap();
            expected[start as usize * 512..][..7 * 512].copy_from_slice(&data);
        }
        volume.flush().await.unwrap();
        if trimmed {
            volume.discard(crate::rig::range(3000, 10)).await.unwrap();
            expected[3000 * 512..3010 * 512].fill(0);
        }
        volume.close().await.unwrap();
        let mut damaged = Vec::new();
        for name in rig.objects("map/").await {
            let whole = rig.object(&name).await.to_vec();
            let mut body = whole.clone();
            body[60] ^= 1;
            rig.replace(&name, body).await;
            let report = examine(&pool).await;
            let is_it = |d: &objblk::doctor::Damage| {
                d.object.as_deref() == Some(name.as_str()) && d.what.starts_with("a leaf")
            };
            match report.volumes[0].damages.iter().any(is_it) {
                true => damaged.push(name),
                false => rig.replace(&name, whole).await,
            }
        }
        assert_eq!(damaged.len(), 1);
        let volume = rig.open_as(3, Mode::ReadWrite { takeover: false }).await.unwrap();
        assert!(read(&volume, 0, CHUNKS * CHUNK).await.is_err());
        let mended = volume.mend(&keys_of(&damaged)).await.unwrap();
        let found = read(&volume, 0, CHUNKS * CHUNK).await;
        if trimmed {
            assert!(mended.iter().all(|m| m.how == Mending::Lost) && found.is_err(), "{mended:?}");
            volume.abandon();
            continue;
        }
        assert!(mended.iter().all(|m| m.how == Mending::Made), "{mended:?}");
        assert!(found.unwrap() == expected);
        volume.close().await.unwrap();
        let report = examine(&pool).await;
        assert!(report.clean, "{report:#?}");
        let volume = rig.open().await;
        assert!(read(&volume, 0, CHUNKS * CHUNK).await.unwrap() == expected);
    }
}
