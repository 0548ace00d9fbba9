//! What an encrypted volume leaves on the disks of its host: its journal and its frames in a cache hold nothing in the
//! clear, serve nobody without the key, and no damage of them is ever read as data.

use crate::disk::MemoryDisk;
use crate::local::{JOURNAL, outage, settled, with_journal};
use crate::rig::{Rig, pattern, read, write};
use objblk::cache::FrameId;
use objblk::cache::disk::entry::{ENTRY_LEN, SET_LEN};
use objblk::cache::disk::{Claim, DiskCache, FrameKey};
use objblk::cipher::LocalKey;
use objblk::device::BlockDevice;
use objblk::error::ErrorKind;
use objblk::format::VolumeId;
use objblk::format::frame::Compression;
use objblk::format::keys::{self, ChunkId};
use objblk::journal::disk::BLOCK;
use objblk::journal::ring::{Found, SUPERBLOCK_LEN, note_claim};
use objblk::seal::{Keyring, SealStore, VolumeKey};
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::store::memory::MemoryStore;
use objblk::store::{GetRange, Op, Store, StoreErrorKind, list_all};
use objblk::units::{Epoch, Seq};
use objblk::volume::{Mode, Volume};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Handle;

const SIZE: u64 = 1 << 20;
const SECRET: &[u8] = b"what nobody else may read, at any price";
const READ_WRITE: Mode = Mode::ReadWrite { takeover: false };

/// How many bits are flipped: `OBJBLK_FLIPS`, or these.
fn flips(few: usize) -> usize {
    std::env::var("OBJBLK_FLIPS").map_or(few, |flips| flips.parse().unwrap())
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

/// Bits of information in a byte, as far as their frequencies tell.
fn entropy(bytes: &[u8]) -> f64 {
    let mut counts = [0u64; 256];
    bytes.iter().for_each(|byte| counts[*byte as usize] += 1);
    let share = |count: &u64| *count as f64 / bytes.len() as f64;
    counts.iter().filter(|count| **count > 0).map(share).map(|p| -p * p.log2()).sum()
}

/// What seals local files, for who has this key.
fn local_key(id: VolumeId, byte: u8) -> Arc<LocalKey> {
    let ring = Arc::new(Keyring::default());
    ring.add([id], VolumeKey::new([byte; 32]));
    let store = SealStore::new(Arc::new(MemoryStore::new()), ring, StdRng::seed_from_u64(1));
    store.local_key(&keys::volume(id)).unwrap()
}

/// A volume with so many acknowledged writes that only its journal has, and what it held after each.
struct Left {
    rig: Rig,
    disk: MemoryDisk,
    states: Vec<Vec<u8>>,
}

async fn leave(rig: Rig, writes: usize) -> Left {
    let (mut rig, disk) = (rig, MemoryDisk::new(JOURNAL));
    with_journal(&mut rig, &disk);
    let volume = rig.open().await;
    outage(&rig);
    let (mut rng, mut states) = (StdRng::seed_from_u64(8), vec![vec![0; SIZE as usize]]);
    for _ in 0..writes {
        let len = rng.random_range(1..40) * 512;
        let at = rng.random_range(0..(SIZE as usize - len) / 512);
        let turn = rng.random_range(0..SECRET.len());
        let data: Vec<u8> = SECRET.iter().copied().cycle().skip(turn).take(len).collect();
        write(&volume, at as u64, &data).await.unwrap();
        volume.flush().await.unwrap();
        let mut state = states.last().unwrap().clone();
        state[at * 512..at * 512 + len].copy_from_slice(&data);
        states.push(state);
    }
    volume.abandon();
    rig.faults.clear();
    Left { rig, disk, states }
}

impl Left {
    /// A copy of all of it, with these bytes as its journal.
    async fn copy(&self, journal: Vec<u8>) -> (Rig, MemoryDisk) {
        let mut rig = Rig::encrypted(2, SIZE, Compression::None).await;
        for object in list_all(&self.rig.memory, "").await.unwrap() {
            let body = self.rig.memory.get(&object.key, GetRange::All).await.unwrap();
            rig.memory.put(&object.key, body).await.unwrap();
        }
        let disk = MemoryDisk::with(journal);
        with_journal(&mut rig, &disk);
        (rig, disk)
    }
}

/// What is in use of a journal, but for headers.
fn bodies(journal: &[u8]) -> Vec<u8> {
    let blocks = journal[2 * SUPERBLOCK_LEN..].chunks(BLOCK);
    let used = blocks.filter_map(|block| Some((block, block.iter().rposition(|byte| *byte > 0)?)));
    used.flat_map(|(block, last)| block.get(152..=last).unwrap_or_default()).copied().collect()
}

#[tokio::test(start_paused = true)]
async fn the_journal_of_an_encrypted_volume_tells_nothing() {
    let plain = leave(Rig::with(1, SIZE, Compression::None).await, 50).await;
    assert!(contains(&plain.disk.bytes(), SECRET), "the test looks in the right place");
    let left = leave(Rig::encrypted(1, SIZE, Compression::None).await, 50).await;
    let bytes = left.disk.bytes();
    for what in [&SECRET[..12], &SECRET[20..32]] {
        assert!(!contains(&bytes, what));
    }
    let (sealed, clear) = (entropy(&bodies(&bytes)), entropy(&bodies(&plain.disk.bytes())));
    println!("{sealed:.3} bits in a byte behind the headers, {clear:.3} of a plain volume");
    assert!(sealed > 7.95 && clear < 5.5, "{sealed} {clear}");
    let volume = left.rig.open_as(2, READ_WRITE).await.unwrap();
    assert!(read(&volume, 0, SIZE / 512).await.unwrap() == *left.states.last().unwrap());
    settled(&volume).await;
    volume.close().await.unwrap();
    assert!(!contains(&left.disk.bytes(), &SECRET[..12]), "nor once it was gone on from");
}

/// Each process seals under a salt of its own, whatever became of what the one before wrote.
#[tokio::test(start_paused = true)]
async fn every_run_of_a_journal_has_its_own_salt() {
    let left = leave(Rig::encrypted(1, SIZE, Compression::None).await, 4).await;
    for pid in 2..6 {
        let volume = left.rig.open_as(pid, READ_WRITE).await.unwrap();
        outage(&left.rig);
        write(&volume, 0, &pattern(0, 8, pid.into())).await.unwrap();
        volume.flush().await.unwrap();
        volume.abandon();
        left.rig.faults.clear();
    }
    let bytes = left.disk.bytes();
    let batches = bytes.chunks(BLOCK).filter(|block| block.starts_with(b"OBJBLKBA"));
    let mut salts: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
    for batch in batches {
        let numbers = salts.entry(&batch[104..136]).or_default();
        assert!(!numbers.contains(&&batch[32..40]), "a number comes once in a run");
        numbers.push(&batch[32..40]);
    }
    assert_eq!(salts.len(), 5, "five owners wrote");
}

/// Who has not the key sees what is there, is told so in words, and changes nothing.
#[tokio::test(start_paused = true)]
async fn a_sealed_journal_without_its_key_is_kept() {
    let left = leave(Rig::encrypted(1, SIZE, Compression::None).await, 20).await;
    let (disk, before, id) = (&left.disk, left.disk.bytes(), left.rig.id);
    let right = local_key(id, 3);
    let whole = Found::read(disk, Some(&right)).await.unwrap().unwrap();
    let blind = Found::read(disk, None).await.unwrap().unwrap();
    assert!(blind.is_sealed() && whole.is_sealed());
    assert_eq!((blind.volume(), blind.uncommitted()), (id, whole.uncommitted()));
    assert_eq!((blind.term(), blind.next_slot()), (whole.term(), whole.next_slot()));
    assert!(blind.uncommitted().1 > 20 * 4096);
    let refused = blind.position(disk).await.unwrap_err();
    assert!(refused.to_string().contains("key of its volume was not given"), "{refused}");
    let refused = note_claim(disk, (id, None), Some(blind), "nobody").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Failed, "{refused}");
    assert!(refused.to_string().contains("is sealed by the key of volume"), "{refused}");
    let wrong = Found::read(disk, Some(&local_key(id, 4))).await.unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Corrupt, "{wrong}");
    assert!(wrong.to_string().contains("was not sealed here by the key"), "{wrong}");
    // A journal in the clear does not become that of an encrypted volume.
    let plain = leave(Rig::with(1, SIZE, Compression::None).await, 3).await;
    let (rig, forged) = left.copy(plain.disk.bytes()).await;
    let refused = rig.open_as(2, READ_WRITE).await.unwrap_err();
    assert!(refused.to_string().contains("is not sealed"), "{refused}");
    assert!(forged.bytes() == plain.disk.bytes() && disk.bytes() == before);
    let volume = left.rig.open_as(2, READ_WRITE).await.unwrap();
    assert!(read(&volume, 0, SIZE / 512).await.unwrap() == *left.states.last().unwrap());
    volume.close().await.unwrap();
}

/// Puts the checksums right, as somebody does who changes a journal on purpose.
fn repair(journal: &mut [u8]) {
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap()) as usize;
    for at in (0..journal.len()).step_by(BLOCK) {
        let rest = &mut journal[at..];
        let crc =
            |parts: &[&[u8]]| parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part));
        match &rest[..8] {
            b"OBJBLKBA" => {
                let end = 152 + number(&rest[88..92]);
                if let Some(behind) = rest.get(96..end) {
                    let crc = crc(&[&rest[..92], behind]);
                    rest[92..96].copy_from_slice(&crc.to_le_bytes());
                }
            }
            b"OBJBLKSG" => {
                let crc = crc(&[&rest[..112]]);
                rest[112..116].copy_from_slice(&crc.to_le_bytes());
            }
            b"OBJBLKJR" => {
                let end = number(&rest[12..16]);
                if (80..SUPERBLOCK_LEN).contains(&end) {
                    let crc = crc(&[&rest[..end - 4]]);
                    rest[end - 4..end].copy_from_slice(&crc.to_le_bytes());
                }
            }
            _ => {}
        }
    }
}

/// Any one bit of the journal, every other time with its checksums put right: whoever goes on from it has all that
/// was written, but for the last batch where that seems to be cut off, or is refused. `OBJBLK_FLIPS` is how many there
/// are.
#[tokio::test(start_paused = true)]
async fn no_flipped_bit_of_a_sealed_journal_is_gone_on_from() {
    let left = leave(Rig::encrypted(1, SIZE, Compression::None).await, 12).await;
    let (whole, last) = (left.disk.bytes(), left.states.len() - 1);
    let used: Vec<usize> = (0..whole.len())
        .step_by(512)
        .filter(|at| whole[*at..at + 512].iter().any(|b| *b > 0))
        .collect();
    let mut rng = StdRng::seed_from_u64(7);
    let (mut refused, mut shorter, mut same, flips) = (0, 0, 0, flips(300));
    for flip in 0..flips {
        let mut bytes = whole.clone();
        // Every fourth one is in a header.
        let in_block = if flip / 2 % 4 == 0 { 152 } else { 512 };
        let at = used[rng.random_range(0..used.len())] + rng.random_range(0..in_block);
        bytes[at] ^= 1 << rng.random_range(0..8);
        let forged = flip % 2 == 1;
        if forged {
            repair(&mut bytes);
        }
        let (rig, _) = left.copy(bytes).await;
        let what = format!("flip {flip} at byte {at}");
        let volume = match rig.open_as(2, READ_WRITE).await {
            Ok(volume) => volume,
            Err(_) => {
                refused += 1;
                continue;
            }
        };
        let found = read(&volume, 0, SIZE / 512).await.unwrap();
        match left.states.iter().rposition(|state| *state == found) {
            Some(state) if state == last => same += 1,
            Some(state) => {
                // As if its write had been cut off.
                assert_eq!(
                    state + 1,
                    last,
                    "{what}: more than the last batch is lost without a word"
                );
                shorter += 1;
            }
            None => panic!("{what}: wrong bytes"),
        }
        Volume::abandon(&volume);
    }
    println!(
        "{flips} flips: {refused} refused, {shorter} end it earlier, {same} harmless, 0 wrong bytes"
    );
    assert!(refused > flips / 4 && same > 0);
}

fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn with_cache(rig: &mut Rig, folder: &Path) {
    let cache = DiskCache::open(folder, 32 << 20, Handle::current()).unwrap();
    rig.options.cache_bytes = 256 << 10;
    rig.options.disk_cache = Some(Arc::new(cache));
}

fn file(folder: &Path, name: &str) -> File {
    File::options().read(true).write(true).open(folder.join(name)).unwrap()
}

fn bytes(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// What an encrypted volume puts into a cache cannot be read there, and is a hit for who has the key only.
#[tokio::test]
async fn the_cache_of_an_encrypted_volume_tells_nothing() {
    let (mut rig, place) = (Rig::encrypted(1, 16 << 20, Compression::Lz4).await, folder());
    with_cache(&mut rig, place.path());
    let volume = rig.open().await;
    let text: Vec<u8> = SECRET.iter().copied().cycle().take(4 << 20).collect();
    write(&volume, 0, &text).await.unwrap();
    volume.close().await.unwrap();
    let frames = bytes(&file(place.path(), "frames"));
    let index = bytes(&file(place.path(), "index"));
    let used: Vec<u8> =
        frames.chunks(BLOCK).filter(|b| b.iter().any(|x| *x > 0)).flatten().copied().collect();
    assert!(used.len() >= text.len(), "{} bytes are in use", used.len());
    assert!(!contains(&frames, &SECRET[..12]) && !contains(&index, &rig.id.bytes()));
    let found = entropy(&used);
    println!("{} bytes in use, {found:.4} bits in a byte", used.len());
    assert!(found > 7.99, "{found}");
    with_cache(&mut rig, place.path());
    let volume = rig.open_as(2, READ_WRITE).await.unwrap();
    let fail = Fault::Fail(Moment::Before, StoreErrorKind::Unavailable);
    rig.faults.add(Rule::new(fail).on(&[Op::Get]).below(format!("volumes/{}/log/", rig.id)));
    assert!(read(&volume, 0, text.len() as u64 / 512).await.unwrap() == text);
    let seen = volume.status().disk_cache.unwrap();
    assert!(seen.hits > 0 && seen.misses == 0, "{seen:?}");
    rig.faults.clear();
    volume.close().await.unwrap();
}

/// One of 40 frames of an encrypted volume.
fn key(number: u64) -> FrameKey {
    let volume = VolumeId::from_random([7; 16]);
    let chunk = ChunkId { volume, epoch: Epoch(1), seq: Seq(number / 4) };
    FrameKey { frame: FrameId { chunk, index: number as u32 }, claim: Claim::of_nonce("one") }
}

fn payload(number: u64) -> Vec<u8> {
    let len = if number.is_multiple_of(3) { 512 * (1 + number as usize) } else { 64 << 10 };
    (0..len).map(|at| (number as usize * 31 + at / 7) as u8).collect()
}

const FRAMES: u64 = 40;
/// One set of 64 slots.
const SMALL: u64 = (4 << 20) + (8 << 10);

async fn filled(place: &Path, by: &Arc<LocalKey>) -> DiskCache {
    let cache = DiskCache::open(place, SMALL, Handle::current()).unwrap();
    for number in 0..FRAMES {
        cache.offer(key(number), &payload(number), Some(by));
    }
    cache.settle().await;
    cache
}

/// Frames that are there, all of them right.
async fn there(cache: &DiskCache, by: Option<&Arc<LocalKey>>, what: &str) -> u64 {
    let mut count = 0;
    for number in 0..FRAMES {
        if let Some(found) = cache.get(&[key(number)], by).await.remove(0) {
            assert!(found == payload(number), "{what}: other bytes for frame {number}");
            count += 1;
        }
    }
    count
}

/// Until uses are counted no more, which is done beside.
async fn calm(cache: &DiskCache, by: &Arc<LocalKey>) {
    for _ in 0..5 {
        assert_eq!(there(cache, Some(by), "whole").await, FRAMES);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The slot of each frame's entry, and the entry.
fn entries(index: &File) -> Vec<(u64, Vec<u8>)> {
    let all = bytes(index);
    let entries =
        all[SET_LEN..].chunks(ENTRY_LEN).zip(0..).map(|(entry, slot)| (slot, entry.to_vec()));
    entries.filter(|(_, entry)| entry.iter().any(|byte| *byte > 0)).collect()
}

fn put_entry(index: &File, slot: u64, entry: &[u8]) {
    let mut entry = entry.to_vec();
    let crc = crc32c::crc32c(&entry[..60]);
    entry[60..].copy_from_slice(&crc.to_le_bytes());
    index.write_all_at(&entry, SET_LEN as u64 + slot * ENTRY_LEN as u64).unwrap();
}

#[tokio::test]
async fn a_sealed_frame_is_a_miss_without_its_key_and_in_any_other_place() {
    let (place, by) = (folder(), local_key(key(0).frame.chunk.volume, 3));
    let cache = filled(place.path(), &by).await;
    assert_eq!(there(&cache, Some(&by), "whole").await, FRAMES);
    assert_eq!(there(&cache, None, "without a key").await, 0);
    calm(&cache, &by).await;
    let (index, frames) = (file(place.path(), "index"), file(place.path(), "frames"));
    let all = entries(&index);
    let slot_of = |slot: u64| {
        let mut bytes = vec![0; 64 << 10];
        frames.read_exact_at(&mut bytes, slot * (64 << 10)).unwrap();
        bytes
    };
    // An entry with its payload, in a free slot.
    let ((from, entry), to) = (&all[0], 63);
    assert!(all.iter().all(|(slot, _)| *slot != to));
    frames.write_all_at(&slot_of(*from), to * (64 << 10)).unwrap();
    put_entry(&index, *from, &[0; ENTRY_LEN]);
    put_entry(&index, to, entry);
    assert_eq!(there(&cache, Some(&by), "moved").await, FRAMES - 1);
    // One that says that it is another frame, of which it has the payload.
    let ((one, first), (other, second)) = (&all[1], &all[2]);
    frames.write_all_at(&slot_of(*other), one * (64 << 10)).unwrap();
    let mut mixed = second.clone();
    mixed[16..44].copy_from_slice(&first[16..44]);
    put_entry(&index, *one, &mixed);
    assert_eq!(there(&cache, Some(&by), "exchanged").await, FRAMES - 2);
    // What fails is let go, and comes again.
    drop(cache);
    tokio::task::yield_now().await;
    let cache = filled(place.path(), &by).await;
    assert_eq!(there(&cache, Some(&by), "healed").await, FRAMES);
    // Another key sees none of them, and its looks make room for its own.
    let other = local_key(key(0).frame.chunk.volume, 4);
    assert_eq!(there(&cache, Some(&other), "another key").await, 0);
}

/// Any one bit of index or frames, with the checksum of the entry put right every other time: the right bytes or a
/// miss. `OBJBLK_FLIPS` is how many there are.
#[tokio::test]
async fn no_flipped_bit_of_a_sealed_cache_is_read() {
    let (place, by) = (folder(), local_key(key(0).frame.chunk.volume, 3));
    let cache = filled(place.path(), &by).await;
    calm(&cache, &by).await;
    let (index, frames) = (file(place.path(), "index"), file(place.path(), "frames"));
    let (all, sealed) = (entries(&index), bytes(&frames));
    let mut rng = StdRng::seed_from_u64(7);
    let (mut missed, mut harmless, flips) = (0, 0, flips(300));
    for flip in 0..flips {
        let (slot, entry) = &all[rng.random_range(0..all.len())];
        let number = u32::from_le_bytes(entry[40..44].try_into().unwrap());
        let number = u64::from(number);
        let (mut changed, at) = (entry.clone(), *slot as usize * (64 << 10));
        let (bit, forged) = (1 << rng.random_range(0..8), flip % 2 == 0);
        match flip % 4 {
            0 | 1 => changed[rng.random_range(0..ENTRY_LEN)] ^= bit,
            _ => {
                let place = at + rng.random_range(0..payload(number).len());
                frames.write_all_at(&[sealed[place] ^ bit], place as u64).unwrap();
            }
        }
        if forged {
            let len = u32::from_le_bytes(changed[44..48].try_into().unwrap()) as usize;
            let mut now = vec![0; len.min(64 << 10)];
            frames.read_exact_at(&mut now, at as u64).unwrap();
            changed[48..52].copy_from_slice(&crc32c::crc32c(&now).to_le_bytes());
            put_entry(&index, *slot, &changed);
        } else {
            index.write_all_at(&changed, SET_LEN as u64 + slot * ENTRY_LEN as u64).unwrap();
        }
        match cache.get(&[key(number)], Some(&by)).await.remove(0) {
            Some(found) => {
                assert!(found == payload(number), "flip {flip}: other bytes for frame {number}");
                harmless += 1;
            }
            None => missed += 1,
        }
        // Uses are counted beside.
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(cache.failure().is_none());
        // As it was.
        frames.write_all_at(&sealed[at..at + (64 << 10)], at as u64).unwrap();
        put_entry(&index, *slot, entry);
    }
    println!("{flips} flips: {missed} misses, {harmless} harmless, 0 wrong bytes");
    assert!(missed > flips * 9 / 10, "{missed}");
    assert_eq!(there(&cache, Some(&by), "after").await, FRAMES);
}

/// Every file below a folder, as it is.
fn files(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for path in crate::recover::entries(folder) {
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push((path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    found
}

/// What is acknowledged and not flushed is in the mirror, sealed, and comes back by the key alone.
#[tokio::test(start_paused = true)]
async fn the_mirror_of_an_encrypted_volume_tells_nothing() {
    let place = tempfile::tempdir().unwrap();
    let mirror = place.path().join("mirror");
    let mut rig = Rig::encrypted(1, SIZE, Compression::None).await;
    rig.options.mirror = Some(mirror.clone());
    let volume = rig.open().await;
    outage(&rig);
    let text: Vec<u8> = SECRET.iter().copied().cycle().take(600 << 10).collect();
    for (piece, at) in text.chunks(20 << 10).zip((0..).step_by(40)) {
        write(&volume, at, piece).await.unwrap();
    }
    volume.abandon();
    rig.faults.clear();
    let left = files(&mirror);
    let sum: usize = left.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(sum > text.len(), "{sum} bytes are there");
    for (path, bytes) in &left {
        assert!(!contains(bytes, &SECRET[..12]), "{}", path.display());
    }
    // One bit of a change, its checksums not being those of what is sealed: it is damage.
    let (path, bytes) = left.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
    let mut flipped = bytes.clone();
    flipped[4000] ^= 1;
    std::fs::write(path, flipped).unwrap();
    let refused = rig.open_as(2, Mode::Recover).await.unwrap_err();
    assert!(refused.to_string().contains("not sealed by the key"), "{refused}");
    std::fs::write(path, bytes).unwrap();
    let volume = rig.open_as(2, Mode::Recover).await.unwrap();
    assert!(read(&volume, 0, text.len() as u64 / 512).await.unwrap() == text);
    assert!(files(&mirror).iter().all(|(_, bytes)| !contains(bytes, &SECRET[..12])));
    volume.close().await.unwrap();
}
