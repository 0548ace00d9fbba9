//! Parsers are total: any bytes give a value or an error; any change of a valid object's covered
//! bytes is noticed. Inputs are arbitrary bytes, and valid objects that were cut, changed, and
//! given a right checksum again so that the change reaches the fields.

use crate::samples;
use objblk::format::FormatResult;
use objblk::format::checkpoint::Checkpoint;
use objblk::format::chunk::{self, ChunkHeader};
use objblk::format::fence::Fence;
use objblk::format::frame::Compression;
use objblk::format::key_slots::KeySlots;
use objblk::format::keys::MapObjectId;
use objblk::format::map_object::parse_directory;
use objblk::format::page::{
    encode_chunk_page, encode_leaf, encode_map_page, parse_chunk_page, parse_leaf, parse_map_page,
};
use objblk::format::pool::{NameObject, PoolObject, TombstoneObject, TrashEntry, parse_json};
use objblk::format::profile::Profile;
use objblk::format::received::ReceivedObject;
use objblk::format::replica::ReplicaObject;
use objblk::format::sealed;
use objblk::format::snapshot::SnapshotObject;
use objblk::format::volume::{EpochObject, VolumeObject};
use objblk::units::Epoch;
use proptest::prelude::*;

fn map_directory(bytes: &[u8]) -> FormatResult<()> {
    let object = MapObjectId { epoch: Epoch(3), number: 1 };
    parse_directory(samples::volume(), object, bytes).map(drop)
}

/// Feeds `bytes` to every parser. What a parser of items accepts must encode to the same bytes.
fn parse_all(bytes: &[u8]) {
    let _ = ChunkHeader::parse(bytes);
    let _ = Fence::parse(bytes);
    if let Ok(checkpoint) = Checkpoint::parse(bytes) {
        assert_eq!(checkpoint.encode(), bytes);
    }
    if let Ok(snapshot) = SnapshotObject::parse(bytes) {
        assert_eq!(snapshot.encode(), bytes);
    }
    if let Ok(profile) = Profile::parse(bytes) {
        assert_eq!(profile.encode(), bytes);
    }
    let _ = map_directory(bytes);
    if let Ok(leaf) = parse_leaf(bytes) {
        assert_eq!(encode_leaf(&leaf), bytes);
    }
    if let Ok(page) = parse_map_page(bytes) {
        assert_eq!(encode_map_page(&page), bytes);
    }
    if let Ok(page) = parse_chunk_page(bytes) {
        assert_eq!(encode_chunk_page(&page), bytes);
    }
    let _ = PoolObject::parse(bytes);
    let _ = VolumeObject::parse(bytes);
    let _ = EpochObject::parse(bytes);
    let _ = ReceivedObject::parse(bytes);
    let _ = ReplicaObject::parse(bytes);
    let _ = parse_json::<NameObject>("name", bytes);
    let _ = parse_json::<TombstoneObject>("tombstone", bytes);
    let _ = TrashEntry::parse(bytes);
    let _ = KeySlots::parse(bytes);
    let _ = sealed::check_header(bytes);
    let (by, key) = samples::sealing();
    let _ = by.open(&key, bytes);
}

fn objects() -> Vec<(&'static str, Vec<u8>)> {
    let compressed = [("chunk-lz4", Compression::Lz4), ("chunk-zstd", Compression::Zstd(3))];
    let compressed = compressed.map(|(name, how)| (name, samples::compressed_chunk(how)));
    samples::binary().into_iter().chain(compressed).collect()
}

/// Where the checksum of a sample lies, and where what it covers begins.
fn checksum(name: &str, bytes: &[u8]) -> (usize, usize) {
    let end = match name {
        name if name.starts_with("chunk") => chunk::header_len(bytes).unwrap(),
        _ => bytes.len(),
    };
    let start = if name.starts_with("map") { bytes.len() - 16 - 3 * 20 } else { 0 };
    (start, end - 4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        parse_all(&bytes);
    }

    #[test]
    fn changed_objects(
        which in 0..10usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
        repair in any::<bool>(),
    ) {
        let (name, mut bytes) = objects().swap_remove(which);
        let (start, crc_at) = checksum(name, &bytes);
        for (at, value) in changes {
            let at = start + at.index(crc_at - start);
            bytes[at] = value;
        }
        if repair {
            let crc = crc32c::crc32c(&bytes[start..crc_at]);
            bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        parse_all(&bytes);
    }

    #[test]
    fn a_single_changed_bit_is_noticed(which in 0..10usize, at in any::<prop::sample::Index>()) {
        let (name, mut bytes) = objects().swap_remove(which);
        let (start, crc_at) = checksum(name, &bytes);
        let bit = at.index((crc_at + 4 - start) * 8);
        bytes[start + bit / 8] ^= 1 << (bit % 8);
        let noticed = match name {
            name if name.starts_with("chunk") => ChunkHeader::parse(&bytes).is_err(),
            "fence-v1.hex" => Fence::parse(&bytes).is_err(),
            name if name.starts_with("checkpoint") => {
                Checkpoint::parse(&bytes).is_err()
            }
            "profile-v1.hex" => Profile::parse(&bytes).is_err(),
            "snapshot-v1.hex" => SnapshotObject::parse(&bytes).is_err(),
            _ => map_directory(&bytes).is_err(),
        };
        prop_assert!(noticed, "{} bit {}", name, bit);
    }
}

#[test]
fn every_truncation_is_noticed() {
    for (name, bytes) in objects() {
        let (_, crc_at) = checksum(name, &bytes);
        for len in 0..crc_at + 4 {
            let bytes = &bytes[..len];
            let noticed = match name {
                name if name.starts_with("chunk") => ChunkHeader::parse(bytes).is_err(),
                "fence-v1.hex" => Fence::parse(bytes).is_err(),
                name if name.starts_with("checkpoint") => Checkpoint::parse(bytes).is_err(),
                "profile-v1.hex" => Profile::parse(bytes).is_err(),
                "snapshot-v1.hex" => SnapshotObject::parse(bytes).is_err(),
                _ => map_directory(bytes).is_err(),
            };
            assert!(noticed, "{name} cut to {len} bytes");
        }
    }
}

/// Whatever is done to a sealed object, it does not open, and nothing breaks.
#[test]
fn any_change_of_a_sealed_object_is_noticed() {
    let ((by, key), (_, whole)) = (samples::sealing(), samples::sealed());
    assert!(by.open(&key, &whole).is_ok());
    for bit in 0..whole.len() * 8 {
        let mut changed = whole.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(by.open(&key, &changed).is_err(), "bit {bit}");
    }
    for len in 0..whole.len() {
        assert!(by.open(&key, &whole[..len]).is_err(), "cut to {len}");
    }
}

/// The digits of a checksum are written in one way only.
#[test]
fn any_changed_bit_of_a_json_object_is_noticed() {
    for (name, bytes) in samples::json() {
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let parsed = parse_json::<serde_json::Value>("json", &changed);
            assert!(parsed.is_err(), "{name} bit {bit}");
        }
    }
}
