//! What this version writes equals the golden files, and the golden files read back. A change of
//! a golden file is a change of the format: it needs a new version, and the old file stays.
//!
//! Chunks are compared up to their payload, which is the sample's.

use crate::samples::{self, golden, path};
use objblk::format::checkpoint::{Checkpoint, Point};
use objblk::format::chunk::{self, ChunkHeader, FRAME_SIZE};
use objblk::format::fence::Fence;
use objblk::format::frame::Compression;
use objblk::format::key_slots::KeySlots;
use objblk::format::keys::{self, MapObjectId};
use objblk::format::map_object::{ItemKind, parse_directory};
use objblk::format::mirror::MirrorState;
use objblk::format::page::{parse_chunk_page, parse_leaf, parse_map_page};
use objblk::format::pool::{
    ImportObject, NameObject, PoolObject, TombstoneObject, TrashEntry, TrashStep, end_json,
    parse_json,
};
use objblk::format::profile::Profile;
use objblk::format::received::ReceivedObject;
use objblk::format::replica::ReplicaObject;
use objblk::format::request::{AnswerObject, DecisionObject, RequestObject};
use objblk::format::schedule::ScheduleObject;
use objblk::format::scrub::ScrubObject;
use objblk::format::snapshot::{SnapshotEntry, SnapshotObject};
use objblk::format::stores::{StoreObject, StoresObject, TermPlacement};
use objblk::format::volume::{EpochObject, VolumeObject};
use objblk::seal::VolumeKey;
use objblk::units::{Epoch, Seq};

fn hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| line.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n";
    bytes.chunks(32).map(line).collect()
}

/// The header of a chunk; other objects whole.
fn shown(name: &str, bytes: &[u8]) -> Vec<u8> {
    let len =
        if name.starts_with("chunk") { chunk::header_len(bytes).unwrap() } else { bytes.len() };
    bytes[..len].to_vec()
}

#[test]
fn this_version_writes_the_golden_bytes() {
    // Written once for a new object or version: OBJBLK_WRITE_GOLDEN=1 creates missing files.
    let create = std::env::var_os("OBJBLK_WRITE_GOLDEN").is_some();
    let all = [samples::binary(), samples::journal(), samples::cache(), samples::stream()];
    for (name, bytes) in
        all.concat().into_iter().chain([samples::sealed(), samples::sealed_mirror()])
    {
        let bytes = shown(name, &bytes);
        if create && !path(name).exists() {
            std::fs::write(path(name), hex(&bytes)).unwrap();
        }
        assert_eq!(hex(&bytes), hex(&golden(name)), "{name}");
    }
    for (name, bytes) in samples::json() {
        if create && !path(name).exists() {
            std::fs::write(path(name), &bytes).unwrap();
        }
        assert_eq!(String::from_utf8(bytes).unwrap(), std::fs::read_to_string(path(name)).unwrap());
    }
}

#[test]
fn golden_sealed_object_and_key_slots_open() {
    let (by, key) = samples::sealing();
    let opened = by.open(&key, &golden("sealed-v1.hex")).unwrap();
    assert_eq!(Fence::parse(&opened), Ok(samples::fence()));
    let slots = std::fs::read(path("key-slots.json")).unwrap();
    assert_eq!(KeySlots::parse(&slots), Ok(samples::key_slots()));
    let signed = std::fs::read(path("volume-signed.json")).unwrap();
    let signed = VolumeObject::parse(&signed).unwrap();
    assert!(VolumeKey::new([7; 32]).signing().has_signed(&signed));
    assert!(!VolumeKey::new([8; 32]).signing().has_signed(&signed));
}

#[test]
fn golden_chunk_reads_back() {
    let header = ChunkHeader::parse(&golden("chunk-v1.hex")).unwrap();
    assert_eq!((header.epoch.0, header.seq.0, header.committed.0), (3, 0x1234, 0x1230));
    assert_eq!(header.records, samples::records());
    assert_eq!((header.frames.entries.len(), header.payload_sectors()), (2, 130));
    let payload = samples::payload();
    for (index, frame) in payload.chunks(FRAME_SIZE).enumerate() {
        assert!(header.frames.open(index, frame).unwrap() == frame);
    }
    assert_eq!(header.object_len(), samples::chunk().len() as u64);
}

/// What is read of them is fixed; an encoder may come to write other bytes.
#[test]
fn golden_compressed_chunks_open() {
    let create = std::env::var_os("OBJBLK_WRITE_GOLDEN").is_some();
    for compression in [Compression::Lz4, Compression::Zstd(19)] {
        let name = format!("chunk-{}-v1.hex", compression.codec().name());
        if create && !path(&name).exists() {
            std::fs::write(path(&name), hex(&samples::compressed_chunk(compression))).unwrap();
        }
        let bytes = golden(&name);
        let header = ChunkHeader::parse(&bytes).unwrap();
        assert_eq!((header.frames.codec, header.payload_sectors()), (compression.codec(), 258));
        assert_eq!(header.object_len(), bytes.len() as u64);
        let (mut at, mut payload) = (header.header_len as usize, Vec::new());
        for (index, entry) in header.frames.entries.iter().enumerate() {
            let frame = &bytes[at..at + entry.encoded_len as usize];
            payload.extend_from_slice(&header.frames.open(index, frame).unwrap());
            at += frame.len();
        }
        assert!(payload == samples::mixed_payload());
        let lens: Vec<u32> = header.frames.entries.iter().map(|e| e.encoded_len).collect();
        // Text, zeros, and noise.
        assert!(lens[0] < 16_000 && lens[1] < 400 && lens[2] == 1024, "{lens:?}");
    }
}

#[test]
fn golden_fence_checkpoint_and_profile_read_back() {
    assert_eq!(Fence::parse(&golden("fence-v1.hex")).unwrap(), samples::fence());
    let checkpoint = Checkpoint::parse(&golden("checkpoint-v1.hex")).unwrap();
    assert_eq!(checkpoint, samples::checkpoint());
    assert_eq!(Profile::parse(&golden("profile-v1.hex")).unwrap(), samples::profile());
}

#[test]
fn golden_snapshots_read_back() {
    let snapshot = SnapshotObject::parse(&golden("snapshot-v1.hex")).unwrap();
    assert_eq!(snapshot, samples::snapshot());
    let checkpoint = Checkpoint::parse(&golden("checkpoint-snapshots-v1.hex")).unwrap();
    assert_eq!(checkpoint, samples::checkpoint_with_snapshots());
    let checkpoint = Checkpoint::parse(&golden("checkpoint-past-v2.hex")).unwrap();
    assert_eq!(checkpoint, samples::checkpoint_with_past());
}

#[test]
fn golden_map_object_reads_back() {
    let bytes = golden("map-object-v1.hex");
    let object = MapObjectId { epoch: Epoch(3), number: 1 };
    let entries = parse_directory(samples::volume(), object, &bytes).unwrap();
    let kinds: Vec<_> = entries.iter().map(|e| (e.kind, e.index)).collect();
    assert_eq!(kinds, [(ItemKind::Leaf, 5), (ItemKind::MapPage, 0), (ItemKind::ChunkPage, 2)]);
    let item = |at: usize| &bytes[entries[at].offset as usize..][..entries[at].len as usize];
    assert_eq!(parse_leaf(item(0)).unwrap(), samples::leaf());
    let page = parse_map_page(item(1)).unwrap();
    assert_eq!(page.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [5, 1023]);
    assert_eq!(parse_chunk_page(item(2)).unwrap(), samples::chunk_page());
}

#[test]
fn golden_json_reads_back() {
    let read = |name: &str| std::fs::read(path(name)).unwrap();
    assert!(PoolObject::parse(&read("pool.json")).unwrap().fencing);
    let several = PoolObject::parse(&read("pool-several.json")).unwrap();
    assert_eq!(several.features.incompat, 0x4000);
    assert_eq!(VolumeObject::parse(&read("volume.json")).unwrap().size, 100 << 30);
    let clone = VolumeObject::parse(&read("clone.json")).unwrap();
    assert_eq!(clone.ancestors.len(), 2);
    assert_eq!(clone.origin().unwrap().next.0, 300);
    let source = VolumeObject::parse(&read("sourced.json")).unwrap().source.unwrap();
    assert_eq!((source.blocks(), &*source.url), (49152, "nbd://golden:10809/debian"));
    let name: NameObject = parse_json("name", &read("name.json")).unwrap();
    assert_eq!(name.volume, samples::volume());
    assert_eq!(EpochObject::parse(&read("epoch.json")).unwrap().owner(), "process 42 on host thor");
    let tombstone: TombstoneObject = parse_json("tombstone", &read("tombstone.json")).unwrap();
    assert_eq!(tombstone.name, "data");
    let import: ImportObject = parse_json("import", &read("import.json")).unwrap();
    assert_eq!((import.volume, import.source), (samples::volume(), "/images/debian.raw".into()));
    assert_eq!(ReceivedObject::parse(&read("received.json")).unwrap(), samples::received());
    assert_eq!(ReplicaObject::parse(&read("replica.json")).unwrap(), samples::replica());
    let entry = TrashEntry::parse(&read("trash-entry.json")).unwrap();
    assert_eq!((entry.step, entry.name.as_deref()), (TrashStep::Deleted, Some("data")));
    assert_eq!(ScrubObject::parse(&read("scrub.json")).unwrap(), samples::scrub());
    let schedule = ScheduleObject::parse(&read("schedule.json")).unwrap();
    let rules: Vec<_> = schedule.rules.iter().map(|rule| (rule.period(), rule.keep)).collect();
    assert_eq!((schedule.number, rules), (3, vec![("1h".into(), 24), ("1d".into(), 7)]));
    assert_eq!(StoresObject::parse(&read("stores.json")).unwrap(), samples::stores());
    let store = StoreObject::parse(&read("store.json")).unwrap();
    assert_eq!((store.pool, store.id.to_string()), (samples::volume(), "00000b0b".into()));
    let state = MirrorState::parse(&read("mirror-state.json")).unwrap();
    assert_eq!(state, samples::mirror_state());
    assert_eq!((state.number, state.joining.unwrap().generation), (3, 3));
    assert_eq!(TermPlacement::parse(&read("placement.json")).unwrap().stores, 2);
    assert_eq!(RequestObject::parse(&read("request.json")).unwrap(), samples::request());
    let decisions = ["decision.json", "decision-withdrawn.json", "decision-passed-over.json"];
    let decisions = decisions.map(|name| DecisionObject::parse(&read(name)).unwrap());
    assert_eq!(decisions, samples::decisions());
    assert_eq!(AnswerObject::parse(&read("answer.json")).unwrap(), samples::answer());
}

/// Where the stores of `stores.json` have these slots: by version, `store` or `store@generation`. Worked out once more by
/// `python3`, with `hashlib.md5` and logarithms of 60 digits.
#[test]
fn objects_are_placed_as_ever() {
    let placement = samples::stores().placement();
    let golden = std::fs::read_to_string(path("placement.txt")).unwrap();
    let mut lines = String::new();
    for seq in 0..64 {
        let key = keys::slot(samples::volume(), Seq(seq), Epoch(5));
        let stay = |version| {
            let stay = placement.stay(version, &key).unwrap();
            format!("{}@{}", stay.store, stay.generation)
        };
        lines += &format!("{key} {} {} {}\n", stay(0), stay(1), stay(2));
    }
    assert_eq!(lines, golden);
}

#[test]
fn a_newer_version_is_refused_as_such() {
    for (name, mut bytes) in samples::binary() {
        bytes[8] = if name.starts_with("checkpoint") { 3 } else { 2 };
        let error = match name {
            "chunk-v1.hex" => ChunkHeader::parse(&bytes).map(drop),
            "fence-v1.hex" => Fence::parse(&bytes).map(drop),
            name if name.starts_with("checkpoint") => Checkpoint::parse(&bytes).map(drop),
            "snapshot-v1.hex" => SnapshotObject::parse(&bytes).map(drop),
            "profile-v1.hex" => Profile::parse(&bytes).map(drop),
            _ => {
                let object = MapObjectId { epoch: Epoch(3), number: 1 };
                parse_directory(samples::volume(), object, &bytes).map(drop)
            }
        };
        let text = error.unwrap_err().to_string();
        let newer = format!("needs a newer objblk: `version` at byte 8 is {}", bytes[8]);
        assert!(text.contains(&newer), "{name}: {text}");
    }
    let (_, json) = samples::json().into_iter().find(|(name, _)| *name == "volume.json").unwrap();
    let text = String::from_utf8(json).unwrap().replace("\"version\": 1", "\"version\": 2");
    let (body, _) = text.split_once(",\n  \"crc32c\"").unwrap();
    let error = VolumeObject::parse(&end_json(body.into())).unwrap_err();
    assert!(error.to_string().contains("needs a newer objblk"), "{error}");
}

/// Whatever else a newer objblk has put into an object, this one names the feature that it lacks.
#[test]
fn a_feature_of_a_newer_objblk_is_refused_by_its_name() {
    let says = |name: &str, bit: u64, names: &str| {
        let (_, json) = samples::json().into_iter().find(|(sample, _)| *sample == name).unwrap();
        let text = String::from_utf8(json).unwrap();
        let text = text.replace("\"incompat\": 0", &format!("\"incompat\": {}", 1_u64 << bit));
        let (body, _) = text.split_once(",\n  \"crc32c\"").unwrap();
        let newer = end_json(format!("{body},\n  \"shards\": 7{names}").into());
        let error = match name {
            "pool.json" => PoolObject::parse(&newer).unwrap_err(),
            _ => VolumeObject::parse(&newer).unwrap_err(),
        };
        error.to_string()
    };
    for name in ["pool.json", "volume.json"] {
        let named = says(name, 40, ",\n  \"feature_names\": { \"40\": \"erasure-coding\" }");
        let expected =
            "needs a newer objblk: `features` at byte 0 is erasure-coding (incompat bit 40)";
        assert!(named.contains(expected), "{named}");
        // What is no name is not shown.
        for names in ["", ",\n  \"feature_names\": { \"40\": \"\\u001b[31m\" }"] {
            let text = says(name, 40, names);
            assert!(text.ends_with("`features` at byte 0 is incompat bit 40"), "{text}");
        }
        // One that is known is not to blame.
        assert!(says(name, 8, "").contains("shards"), "{}", says(name, 8, ""));
    }
}

#[test]
fn every_flipped_bit_of_a_description_is_noticed() {
    for (name, bytes) in samples::json() {
        for at in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            let parsed = match name {
                "pool.json" | "pool-several.json" => PoolObject::parse(&damaged).map(drop),
                "volume.json" | "clone.json" | "sourced.json" => {
                    VolumeObject::parse(&damaged).map(drop)
                }
                "epoch.json" => EpochObject::parse(&damaged).map(drop),
                "received.json" => ReceivedObject::parse(&damaged).map(drop),
                "replica.json" => ReplicaObject::parse(&damaged).map(drop),
                "schedule.json" => ScheduleObject::parse(&damaged).map(drop),
                "scrub.json" => ScrubObject::parse(&damaged).map(drop),
                "stores.json" => StoresObject::parse(&damaged).map(drop),
                "store.json" => StoreObject::parse(&damaged).map(drop),
                "mirror-state.json" => MirrorState::parse(&damaged).map(drop),
                "placement.json" => TermPlacement::parse(&damaged).map(drop),
                "request.json" => RequestObject::parse(&damaged).map(drop),
                name if name.starts_with("decision") => DecisionObject::parse(&damaged).map(drop),
                "answer.json" => AnswerObject::parse(&damaged).map(drop),
                "name.json" => parse_json::<NameObject>("name", &damaged).map(drop),
                "trash-entry.json" => TrashEntry::parse(&damaged).map(drop),
                _ => parse_json::<TombstoneObject>("tombstone", &damaged).map(drop),
            };
            // The digits of the checksum may be capital letters.
            let same = damaged.eq_ignore_ascii_case(&bytes);
            assert!(parsed.is_err() || same, "{name}: bit {at}");
        }
    }
}

/// Right checksums do not make absurd numbers true.
#[test]
fn numbers_beyond_their_limits_are_refused() {
    let intact = samples::checkpoint();
    let size = objblk::units::SectorCount(u64::MAX >> 9);
    let far = objblk::units::Seq(1 << 60);
    let entry = samples::snapshot().entry;
    let with = |entry| Checkpoint { snapshots: vec![entry], ..intact.clone() };
    let point = |next: &u64| Point { next: Seq(*next), epoch: Epoch(0), made_at_ms: 0, freed: 0 };
    let past = |points: &[u64]| Checkpoint {
        points: points.iter().map(point).collect(),
        ..intact.clone()
    };
    for (field, checkpoint) in [
        ("size", Checkpoint { size, ..intact.clone() }),
        ("next seq", Checkpoint { next: far, ..intact.clone() }),
        ("snapshot position", with(SnapshotEntry { next: far, ..entry.clone() })),
        ("snapshot position", with(SnapshotEntry { next: intact.next.next(), ..entry.clone() })),
        ("snapshot base", with(entry.clone())),
        ("snapshot before", with(SnapshotEntry { before: Some(entry.id), ..entry.clone() })),
        ("snapshot size", with(SnapshotEntry { size, ..entry.clone() })),
        ("point position", past(&[5, 5])),
        ("point position", past(&[intact.next.0])),
        ("snapshot name", with(SnapshotEntry { name: "a@b".into(), ..entry.clone() })),
        ("snapshot name length", with(SnapshotEntry { name: "x".repeat(129), ..entry.clone() })),
    ] {
        let error = Checkpoint::parse(&checkpoint.encode()).unwrap_err();
        assert_eq!(error.field, field);
    }
    let parts = objblk::format::chunk::ChunkParts {
        volume: samples::volume(),
        epoch: Epoch(1),
        seq: objblk::units::Seq(1),
        committed: objblk::units::Seq(0),
        sealed_at_ms: 0,
        records: &[objblk::format::record::Record::Resize(size)],
        compression: Compression::None,
    };
    assert_eq!(ChunkHeader::parse(&parts.encode(&[])).unwrap_err().field, "size");
}
