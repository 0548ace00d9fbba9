//! Objects of the store.
//!
//! A fuzzer does not guess checksums: where an object has one, the body tries the input as it is
//! and once more with the checksum put right, so that the fields behind it are reached.

use super::alloc::Bound;
use objblk::format::checkpoint::Checkpoint;
use objblk::format::chunk::{self, ChunkHeader, ChunkParts};
use objblk::format::codec::{Reader, Writer};
use objblk::format::fence::Fence;
use objblk::format::frame::{Codec, Compression, FRAME_SIZE, FrameTable, frame_payload_len};
use objblk::format::key_slots::KeySlots;
use objblk::format::keys::{ChunkId, MapObjectId};
use objblk::format::map_object::{
    DirectoryEntry, ItemKind, MapObjectBuilder, check_item, parse_directory,
};
use objblk::format::mirror::MirrorState;
use objblk::format::page::{
    ItemRef, encode_chunk_page, encode_leaf, encode_map_page, parse_chunk_page, parse_leaf,
    parse_map_page,
};
use objblk::format::pool::{
    ImportObject, NameObject, PoolObject, TombstoneObject, TrashEntry, encode_json, end_json,
    parse_json,
};
use objblk::format::profile::Profile;
use objblk::format::received::ReceivedObject;
use objblk::format::record::Record;
use objblk::format::replica::ReplicaObject;
use objblk::format::request::{AnswerObject, DecisionObject, RequestObject};
use objblk::format::schedule::ScheduleObject;
use objblk::format::scrub::ScrubObject;
use objblk::format::sealed;
use objblk::format::snapshot::SnapshotObject;
use objblk::format::stores::{StoreObject, StoresObject, TermPlacement};
use objblk::format::volume::{EpochObject, VolumeObject};
use objblk::format::{FormatResult, VolumeId};
use objblk::seal::VolumeKey;
use objblk::units::{Epoch, Seq};
use std::fmt::Debug;

/// An error's text, and vectors that grow by doubling.
pub(super) const TABLES: Bound = Bound { factor: 4, constant: 4096 };

/// The smallest record has 4 bytes and takes 24 in memory, in a vector that grows by doubling.
const RECORDS: Bound = Bound { factor: 16, constant: 4096 };

/// A frame's payload, and an error's text. What the C library of Zstandard takes is not counted.
const FRAMES: Bound = Bound { factor: 4, constant: FRAME_SIZE + 4096 };

/// Texts are copied, with room to grow.
const JSON: Bound = Bound { factor: 4, constant: 4096 };

/// A table of four bytes takes 64 in a table that grows by doubling; what was read is written again, to see how
/// long it is.
const STORES: Bound = Bound { factor: 32, constant: 256 << 10 };

/// Longest payload that is made up to encode a chunk again, in sectors.
const PAYLOAD_MAX: u32 = 4096;

/// A copy of `bytes` with the crc32c of `from..at` at `at`, if that lies inside.
pub(super) fn repaired(bytes: &[u8], from: usize, at: usize) -> Option<Vec<u8>> {
    let crc = crc32c::crc32c(bytes.get(from..at)?).to_le_bytes();
    let mut bytes = bytes.to_vec();
    bytes.get_mut(at..at + 4)?.copy_from_slice(&crc);
    Some(bytes)
}

/// A copy of `bytes` with a right checksum in its last four.
fn repaired_end(bytes: &[u8]) -> Option<Vec<u8>> {
    repaired(bytes, 0, bytes.len().checked_sub(4)?)
}

pub fn chunk(data: &[u8]) {
    check_chunk(data);
    let crc_at = chunk::header_len(data).ok().and_then(|len| len.checked_sub(4));
    if let Some(bytes) = crc_at.and_then(|at| repaired(data, 0, at)) {
        check_chunk(&bytes);
    }
}

fn check_chunk(bytes: &[u8]) {
    let parsed = RECORDS.check(bytes.len(), || ChunkHeader::parse(bytes));
    let Ok(header) = parsed else { return };
    let mut at = header.header_len as usize;
    let sectors = header.payload_sectors();
    for (index, entry) in header.frames.entries.iter().enumerate() {
        let len = entry.encoded_len as usize;
        let encoded = bytes.get(at..at + len).unwrap_or_default();
        check_frame(&header.frames, index, encoded);
        // The same, as if somebody had made it up together with its checksum.
        if encoded.len() == len {
            let mut frames = header.frames.clone();
            frames.entries[index].crc = crc32c::crc32c(encoded);
            check_frame(&frames, index, encoded);
        }
        at += len;
    }
    assert_eq!(header.object_len(), at as u64);
    if sectors > PAYLOAD_MAX {
        return;
    }
    let again = ChunkParts {
        volume: header.volume,
        epoch: header.epoch,
        seq: header.seq,
        committed: header.committed,
        sealed_at_ms: header.sealed_at_ms,
        records: &header.records,
        compression: match header.frames.codec {
            Codec::None => Compression::None,
            Codec::Lz4 => Compression::Lz4,
            Codec::Zstd => Compression::Zstd(1),
        },
    };
    let again = again.encode(&vec![0; sectors as usize * 512]);
    // The frame table is another one, since the payload is made up.
    let table = header.header_len as usize - 4 - 8 * header.frames.entries.len();
    assert_eq!(again[..table], bytes[..table]);
    let back = ChunkHeader::parse(&again).expect("what was encoded parses");
    assert_eq!(ChunkHeader { frames: header.frames.clone(), ..back }, header);
}

/// A frame gives its payload, all of it, or an error; its checksum decides first.
fn check_frame(frames: &FrameTable, index: usize, encoded: &[u8]) {
    let entry = frames.entries[index];
    let opened = FRAMES.check(0, || frames.open(index, encoded));
    let sound = encoded.len() == entry.encoded_len as usize && crc32c::crc32c(encoded) == entry.crc;
    let payload = frame_payload_len(frames.payload_sectors, index);
    match opened {
        Ok(opened) => assert!(sound && opened.len() == payload),
        Err(why) => assert!(!sound || encoded.len() != payload, "{why}"),
    }
}

/// The payload's length in sectors, then records.
pub fn record(data: &[u8]) {
    let Some((payload, records)) = data.split_first_chunk::<4>() else { return };
    let payload = u32::from_le_bytes(*payload);
    let mut reader = Reader::new("chunk", records);
    loop {
        let from = reader.offset();
        let parsed = TABLES.check(0, || Record::parse(&mut reader, payload));
        let Ok(record) = parsed else { return };
        let mut again = Writer::default();
        record.encode(&mut again);
        assert_eq!(again.finish(), records[from..reader.offset()], "{record:?}");
        if let Record::Data { range, offset } = record {
            assert!(u64::from(offset) + range.len().0 <= u64::from(payload), "{record:?}");
        }
    }
}

pub fn fence(data: &[u8]) {
    let check = |bytes: &[u8]| {
        if let Ok(fence) = TABLES.check(bytes.len(), || Fence::parse(bytes)) {
            assert_eq!(fence.encode(), bytes);
        }
    };
    check(data);
    repaired_end(data).iter().for_each(|bytes| check(bytes));
}

/// As it is, with the crc of the whole repaired, and with that of the checkpoint in it as well.
pub fn snapshot(data: &[u8]) {
    let check = |bytes: &[u8]| {
        if let Ok(snapshot) = TABLES.check(bytes.len(), || SnapshotObject::parse(bytes)) {
            assert_eq!(snapshot.encode(), bytes);
        }
    };
    check(data);
    repaired_end(data).iter().for_each(|bytes| check(bytes));
    let (Some(name), Some(end)) = (data.get(88), data.len().checked_sub(8)) else { return };
    let inside = repaired(data, 89 + usize::from(*name), end);
    let both = inside.and_then(|bytes| repaired_end(&bytes));
    both.iter().for_each(|bytes| check(bytes));
}

pub fn profile(data: &[u8]) {
    let check = |bytes: &[u8]| {
        if let Ok(profile) = TABLES.check(bytes.len(), || Profile::parse(bytes)) {
            assert_eq!(profile.encode(), bytes);
        }
    };
    check(data);
    repaired_end(data).iter().for_each(|bytes| check(bytes));
}

pub fn checkpoint(data: &[u8]) {
    let check = |bytes: &[u8]| {
        if let Ok(checkpoint) = TABLES.check(bytes.len(), || Checkpoint::parse(bytes)) {
            assert_eq!(checkpoint.encode(), bytes);
        }
    };
    check(data);
    repaired_end(data).iter().for_each(|bytes| check(bytes));
}

/// Offset of the directory of what may be a map object.
fn directory_at(bytes: &[u8]) -> Option<usize> {
    let trailer = bytes.len().checked_sub(16)?;
    let count = bytes.get(trailer..trailer + 4)?.try_into().ok().map(u32::from_le_bytes)?;
    trailer.checked_sub((count as usize).checked_mul(20)?)
}

pub fn map_object(data: &[u8]) {
    check_map_object(data);
    let Some(directory) = directory_at(data) else { return };
    let head = repaired(data, 0, 44);
    let both = head.and_then(|bytes| repaired(&bytes, directory, bytes.len() - 4));
    both.iter().for_each(|bytes| check_map_object(bytes));
}

fn check_map_object(bytes: &[u8]) {
    let Some(head) = bytes.first_chunk::<48>() else { return };
    let number = |at: usize| head[at..at + 4].try_into().map(u32::from_le_bytes);
    let (Ok(low), Ok(high), Ok(number)) = (number(32), number(36), number(40)) else { return };
    let epoch = Epoch(u64::from(high) << 32 | u64::from(low));
    let mut id = [0; 16];
    id.copy_from_slice(&head[16..32]);
    let (volume, object) = (VolumeId::from_bytes(id), MapObjectId { epoch, number });
    let parsed = TABLES.check(bytes.len(), || parse_directory(volume, object, bytes));
    let Ok(entries) = parsed else { return };
    let directory = bytes.len() - 16 - 20 * entries.len();
    let mut builder = MapObjectBuilder::new(volume, object);
    let mut end = 48;
    for DirectoryEntry { kind, index, offset, len } in entries {
        let at = offset as usize..offset as usize + len as usize;
        let item = &bytes[at.clone()];
        match kind {
            ItemKind::Leaf => check_leaf(item),
            ItemKind::MapPage => check_map_page(item),
            ItemKind::ChunkPage => check_chunk_page(item),
        }
        let place = ItemRef { object, offset, len, crc: crc32c::crc32c(item) };
        assert!(check_item(place, item).is_ok());
        if at.start != end {
            return;
        }
        assert_eq!(builder.add(kind, index, item), place);
        end = at.end;
    }
    // Only what a writer produces has its items back to back.
    if end == directory {
        assert_eq!(builder.finish(), bytes);
    }
}

pub fn page(data: &[u8]) {
    check_leaf(data);
    check_map_page(data);
    check_chunk_page(data);
}

fn check_leaf(bytes: &[u8]) {
    if let Ok(leaf) = TABLES.check(bytes.len(), || parse_leaf(bytes)) {
        assert_eq!(encode_leaf(&leaf), bytes);
    }
}

fn check_map_page(bytes: &[u8]) {
    if let Ok(page) = TABLES.check(bytes.len(), || parse_map_page(bytes)) {
        assert_eq!(encode_map_page(&page), bytes);
    }
}

fn check_chunk_page(bytes: &[u8]) {
    if let Ok(page) = TABLES.check(bytes.len(), || parse_chunk_page(bytes)) {
        assert_eq!(encode_chunk_page(&page), bytes);
    }
}

/// Every object that is JSON, as it is and with the checksum that it should have.
pub fn json(data: &[u8]) {
    json_as_it_is(data);
    json_as_it_is(&end_json(data.to_vec()));
}

fn json_as_it_is(data: &[u8]) {
    check_json(data, PoolObject::parse, encode_json);
    check_json(data, VolumeObject::parse, encode_json);
    check_json(data, EpochObject::parse, encode_json);
    check_json(data, ReceivedObject::parse, encode_json);
    check_json(data, ReplicaObject::parse, encode_json);
    check_json(data, ScheduleObject::parse, encode_json);
    check_json(data, ScrubObject::parse, encode_json);
    check_json(data, StoreObject::parse, encode_json);
    check_json(data, TermPlacement::parse, encode_json);
    check_json(data, MirrorState::parse, encode_json);
    let stores = STORES.check(data.len(), || StoresObject::parse(data));
    if let Ok(stores) = stores {
        assert_eq!(StoresObject::parse(&encode_json(&stores)), Ok(stores));
    }
    check_json(data, |bytes| parse_json::<NameObject>("name", bytes), encode_json);
    check_json(data, |bytes| parse_json::<ImportObject>("import", bytes), encode_json);
    check_json(data, |bytes| parse_json::<TombstoneObject>("tombstone", bytes), encode_json);
    check_json(data, TrashEntry::parse, encode_json);
    check_json(data, KeySlots::parse, encode_json);
    check_json(data, RequestObject::parse, encode_json);
    check_json(data, DecisionObject::parse, encode_json);
    check_json(data, AnswerObject::parse, encode_json);
}

/// Segments as they are, and what opens: nothing, but for the one that the corpus has.
pub fn sealed(data: &[u8]) {
    let header = sealed::check_header(data).is_ok();
    let behind = data.get(sealed::HEADER_LEN..).unwrap_or_default();
    let Ok(segments) = TABLES.check(data.len(), || sealed::split(behind, sealed::HEADER_LEN))
    else {
        return;
    };
    let bytes: u64 = segments.iter().map(|segment| segment.body.len() as u64).sum();
    let last = segments.len().saturating_sub(1);
    assert!(segments[..last].iter().all(|segment| !segment.is_short));
    if let Some(plain) = sealed::plain_len(data.len() as u64) {
        assert_eq!((plain, sealed::segments(plain)), (bytes, segments.len() as u64));
    }
    let key = VolumeKey::new(std::array::from_fn(|at| at as u8));
    let volume = VolumeId::from_bytes(*b"0123456789abcdef");
    let name = ChunkId { volume, epoch: Epoch(3), seq: Seq(0x1234) }.key();
    if TABLES.check(data.len(), || key.open(&name, data)).is_ok() {
        assert!(header && segments.len() == 1, "{} bytes open", data.len());
    }
}

fn check_json<T: Debug + PartialEq>(
    data: &[u8],
    parse: fn(&[u8]) -> FormatResult<T>,
    encode: fn(&T) -> Vec<u8>,
) {
    if let Ok(object) = JSON.check(data.len(), || parse(data)) {
        assert_eq!(parse(&encode(&object)), Ok(object));
    }
}
