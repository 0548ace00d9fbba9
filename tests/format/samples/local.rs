//! What lies on disks of a host, and in its memory: disk cache, journal, recovery mirror.

use super::*;
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk};
use objblk::cache::FrameId;
use objblk::cache::disk::entry::{Entry, Geometry};
use objblk::cache::disk::{Claim, FrameKey};
use objblk::cipher::{LocalKey, Run};
use objblk::journal::entry::{Change, continued, slot_end};
use objblk::journal::mirror::sealed::Sealer;
use rand::SeedableRng;
use rand::rngs::StdRng;

pub fn cache_entry() -> Entry {
    let chunk = ChunkId { volume: volume(), epoch: Epoch(3), seq: Seq(0x1234) };
    let key = FrameKey {
        frame: FrameId { chunk, index: 0x0506 },
        claim: Claim::of_nonce("00ff1234567890abcdef"),
    };
    Entry { uses: 2, ..Entry::new(key, &sector()) }
}

/// Of an encrypted volume, with the payload as it lies in [`CACHE_SLOT`].
pub fn sealed_cache_entry() -> (Entry, Vec<u8>) {
    let mut payload = sector();
    let entry = Entry::seal(cache_entry().key, &mut payload, (&local_key(), CACHE_SLOT));
    (Entry { uses: 1, ..entry }, payload)
}

/// Where the sealed sample of the cache is.
pub const CACHE_SLOT: u64 = 0x0708;

/// A head and entries of the index of a disk cache, by the name of their golden file.
pub fn cache() -> Vec<(&'static str, Vec<u8>)> {
    let head = Geometry { sets: 0x0304_0506 }.encode();
    let entry = cache_entry().encode().to_vec();
    let sealed = sealed_cache_entry().0.encode().to_vec();
    vec![
        ("cache-head-v1.hex", head),
        ("cache-entry-v1.hex", entry),
        ("cache-entry-sealed-v1.hex", sealed),
    ]
}

/// The id of the ring of the samples.
const RING: [u8; 16] = *b"00ff1234567890ab";

fn ring() -> RingId {
    RingId::of_claim("00ff1234567890abcdef")
}

pub fn superblock() -> Superblock {
    Superblock {
        volume: volume(),
        ring: ring(),
        generation: 0x0102_0304_0506_0708,
        segment: 1 << 20,
        segments: 7,
        sealed: false,
        claims: vec!["00ff1234567890abcdef".into(), "another".into()],
    }
}

/// Of the ring of an encrypted volume.
pub fn sealed_superblock() -> Superblock {
    Superblock { sealed: true, ..superblock() }
}

pub fn segment_header() -> SegmentHeader {
    SegmentHeader {
        ring: ring(),
        number: SegmentNumber(0x11),
        batch: BatchNumber(0x2222),
        slot: SlotIndex(0x3333),
        committed: SlotIndex(0x3330),
        seal: None,
    }
}

/// By which what is sealed of the journal and the cache is.
pub fn local_key() -> LocalKey {
    let derives = Prk::new_less_safe(HKDF_SHA256, &std::array::from_fn::<u8, 32, _>(|at| at as u8));
    LocalKey::new(volume().bytes(), derives, StdRng::seed_from_u64(1))
}

/// Where the sealed samples of the journal lie.
pub const OFFSET: u64 = 0x10_1000;

fn run() -> Run {
    local_key().run(RING, std::array::from_fn(|at| 0xc0 + at as u8))
}

fn sealed_segment() -> Vec<u8> {
    let mut header = segment_header();
    header.seal(&run(), OFFSET);
    header.encode()
}

fn sealed_batch() -> Vec<u8> {
    let mut batch = vec![0; SEALED_BATCH_LEN];
    batch.extend(encoded_changes());
    batch.extend(slot_end());
    let mut header = batch_header();
    header.seal(&run(), (OFFSET, header.slot), &mut batch[SEALED_BATCH_LEN..]);
    header.put(&mut batch);
    batch
}

pub fn sector() -> Vec<u8> {
    (0..512u32).map(|i| (i * 7) as u8).collect()
}

/// One change of each kind.
pub fn changes(data: &[u8]) -> Vec<Change<'_>> {
    vec![
        Change::Data { start: Sector(1 << 33), offset: 0x0809, data },
        Change::Zero(range(0, 8)),
        Change::Trim(range(4096, 1 << 33)),
        Change::Resize(SectorCount(1 << 30)),
    ]
}

fn encoded_changes() -> Vec<u8> {
    let data = sector();
    let entries = changes(&data).into_iter().map(|change| change.encode());
    entries.flat_map(|(head, payload)| [&head[..], payload].concat()).collect()
}

pub fn batch_header() -> BatchHeader {
    BatchHeader {
        ring: ring(),
        number: BatchNumber(0x2223),
        term: RingTerm { epoch: Epoch(3), first: Seq(0x1234), base: SlotIndex(0x3331) },
        slot: SlotIndex(0x3334),
        committed: SlotIndex(0x3332),
        durable: BatchNumber(0x2221),
        len: (encoded_changes().len() + slot_end().len()) as u32,
        seal: None,
    }
}

/// Without the zeros that fill its last block.
fn batch() -> Vec<u8> {
    let mut batch = vec![0; BATCH_HEADER_LEN];
    batch.extend(encoded_changes());
    batch.extend(slot_end());
    batch_header().put(&mut batch);
    batch
}

pub fn mirror_header() -> mirror::Header {
    mirror::Header { volume: volume(), epoch: Epoch(3), seq: Seq(0x1234) }
}

/// A segment of the mirror of an encrypted volume, by the name of its golden file.
pub fn sealed_mirror() -> (&'static str, Vec<u8>) {
    let run = local_key().mirror(std::array::from_fn(|at| 0xd0 + at as u8));
    let mut sealer = Sealer::new(run, mirror_header());
    let (mut bytes, data) = (sealer.header().to_vec(), sector());
    for change in changes(&data) {
        let (head, sealed) = sealer.seal(change).unwrap();
        bytes.extend_from_slice(&[head, sealed].concat());
    }
    bytes.extend(continued());
    bytes.extend(b"\0nothing");
    ("mirror-segment-v5.hex", bytes)
}

/// What the journal is made of, by the name of its golden file.
pub fn journal() -> Vec<(&'static str, Vec<u8>)> {
    let (header, end) = (mirror_header().encode(), [&continued()[..], b"\0nothing"].concat());
    let mirror = [header, encoded_changes(), end].concat();
    vec![
        ("journal-superblock-v1.hex", superblock().encode().unwrap()),
        ("journal-segment-v1.hex", segment_header().encode()),
        ("journal-batch-v1.hex", batch()),
        ("journal-superblock-sealed-v1.hex", sealed_superblock().encode().unwrap()),
        ("journal-segment-v2.hex", sealed_segment()),
        ("journal-batch-v2.hex", sealed_batch()),
        ("mirror-segment-v4.hex", mirror),
    ]
}
