//! One sample of every object, with every field set to something that shows.

#[path = "samples/local.rs"]
mod local;

pub use local::*;

use objblk::format::checkpoint::{Checkpoint, Garbage, MapObjectUse, Point, Term};
use objblk::format::chunk::ChunkParts;
use objblk::format::features::Features;
use objblk::format::fence::Fence;
use objblk::format::frame::Compression;
use objblk::format::key_slots::{Kdf, KeySlot, KeySlots};
use objblk::format::keys::{ChunkId, MapObjectId, RequestId};
use objblk::format::lineage::Ancestor;
use objblk::format::map_object::{ItemKind, MapObjectBuilder};
use objblk::format::mirror::MirrorState;
use objblk::format::page::{
    ChunkPage, ChunkUse, Extent, ItemRef, Location, encode_chunk_page, encode_leaf, encode_map_page,
};
use objblk::format::pool::{
    ImportObject, NameObject, PoolKind, PoolObject, TRASH_VERSION, TombstoneObject, TrashEntry,
    TrashStep, encode_json,
};
use objblk::format::profile::Profile;
use objblk::format::received::ReceivedObject;
use objblk::format::record::Record;
use objblk::format::replica::{Position, Promoted, ReplicaObject, Shipped};
use objblk::format::request::{AnswerObject, AskedBy, Decision, DecisionObject, RequestObject};
use objblk::format::schedule::{Rule, ScheduleObject};
use objblk::format::scrub::{ScrubObject, ScrubPass};
use objblk::format::snapshot::{SnapshotEntry, SnapshotObject};
use objblk::format::source::SourceObject;
use objblk::format::stores::{StoreEntry, StoreId, StoreObject, StoresObject, TermPlacement};
use objblk::format::stream::{StreamEntry, StreamHeader, StreamPosition, StreamState};
use objblk::format::volume::{EpochObject, VolumeObject};
use objblk::format::{SnapshotId, VolumeId};
use objblk::journal::mirror;
use objblk::journal::ring::{
    BATCH_HEADER_LEN, BatchHeader, BatchNumber, RingId, SEALED_BATCH_LEN, SegmentHeader,
    SegmentNumber, SlotIndex, Superblock, Term as RingTerm,
};
use objblk::seal::VolumeKey;
use objblk::store::Key;
use objblk::units::{BlockSize, Epoch, Sector, SectorCount, SectorRange, Seq};
use std::path::PathBuf;

/// Where the golden file `name` lies.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// What a golden file of digits holds.
pub fn golden(name: &str) -> Vec<u8> {
    let text = std::fs::read_to_string(path(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}

pub fn volume() -> VolumeId {
    VolumeId::from_bytes(*b"0123456789abcdef")
}

fn range(start: u64, len: u64) -> SectorRange {
    SectorRange::new(Sector(start), SectorCount(len)).unwrap()
}

fn object(number: u32) -> MapObjectId {
    MapObjectId { epoch: Epoch(3), number }
}

fn item(number: u32) -> ItemRef {
    ItemRef { object: object(number), offset: 48, len: 20, crc: 0xdead_beef }
}

/// A pool's stores: one was added, and another one that weighs twice as much.
pub fn stores() -> StoresObject {
    let entry = |number: u32, url: &str| StoreEntry {
        id: StoreId::of_number(number),
        url: url.into(),
        endpoints: Vec::new(),
        region: None,
        removed: false,
    };
    let far = StoreEntry {
        endpoints: vec!["https://s3.example.org,priority=2".into()],
        region: Some("eu-1".into()),
        ..entry(0xb0b, "s3://disks/second")
    };
    let none = StoresObject::initial(volume(), "file:///srv/pool".into());
    let two = vec![none.stores[0].clone(), entry(0xa, "file:///mnt/second")];
    let one = none.next(two.clone(), vec![100, 100]).unwrap();
    one.next([two, vec![far]].concat(), vec![100, 100, 200]).unwrap()
}

/// The home store was away, and is being made complete.
pub fn mirror_state() -> MirrorState {
    let term = uuid::Uuid::from_bytes([9; 16]);
    let stores = [StoreId::HOME, StoreId::of_number(0xb0b)];
    let alone = MirrorState::first(volume(), stores, term).without(StoreId::HOME, term);
    alone.unwrap().joining(term).unwrap()
}

pub fn payload() -> Vec<u8> {
    (0..(64 << 10) + 1024u32).map(|i| (i / 512) as u8 ^ i as u8).collect()
}

pub fn records() -> Vec<Record> {
    vec![
        Record::EpochStart,
        Record::Data { range: range(8, 100), offset: 0 },
        Record::Data { range: range(1 << 40, 30), offset: 100 },
        Record::Zero(range(0, 8)),
        Record::Trim(range(4096, 1 << 33)),
        Record::Resize(SectorCount(1 << 30)),
        Record::Close,
    ]
}

pub fn chunk() -> Vec<u8> {
    let parts = ChunkParts {
        volume: volume(),
        epoch: Epoch(3),
        seq: Seq(0x1234),
        committed: Seq(0x1230),
        sealed_at_ms: 1_700_000_000_123,
        records: &records(),
        compression: Compression::None,
    };
    parts.encode(&payload())
}

/// A frame of text, one of zeros, and a short one of noise.
pub fn mixed_payload() -> Vec<u8> {
    let lines = (0..).map(|n| format!("{n}: objblk keeps its bytes in an object store\n"));
    let mut payload: Vec<u8> = lines.flat_map(String::into_bytes).take(64 << 10).collect();
    payload.resize(2 * (64 << 10), 0);
    let mut word = 0x1234_5678_9abc_def1u64;
    payload.extend((0..1024).map(|_| {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        (word >> 20) as u8
    }));
    payload
}

pub fn compressed_chunk(compression: Compression) -> Vec<u8> {
    let payload = mixed_payload();
    let sectors = payload.len() as u64 / 512;
    let parts = ChunkParts {
        volume: volume(),
        epoch: Epoch(3),
        seq: Seq(0x1235),
        committed: Seq(0x1231),
        sealed_at_ms: 1_700_000_000_124,
        records: &[Record::Data { range: range(64, sectors), offset: 0 }],
        compression,
    };
    parts.encode(&payload)
}

pub fn fence() -> Fence {
    Fence {
        volume: volume(),
        epoch: Epoch(3),
        seq: Seq(0x1235),
        next_epoch: Epoch(5),
        owner: "process 42 on host thor".into(),
    }
}

pub fn profile() -> Profile {
    Profile::new(volume(), &[0, 1, 2, 0x1234, 7, (16 << 30) - 1])
}

pub fn leaf() -> Vec<Extent> {
    let at = |seq, offset| Location { seq: Seq(seq), offset };
    vec![
        Extent::new(0, 8, at(1, 0)),
        Extent::new(8, 1, at((1 << 48) - 1, 131_071)),
        Extent::new(131_071, 1, at(7, 9)),
    ]
}

/// As older versions wrote it, which did not note how much is in a chunk.
pub fn chunk_page() -> ChunkPage {
    let used = |live| ChunkUse { live, payload: 0 };
    vec![(0, used(1)), (4095, used(8192))]
}

pub fn map_object() -> Vec<u8> {
    let mut builder = MapObjectBuilder::new(volume(), object(1));
    let leaf = builder.add(ItemKind::Leaf, 5, &encode_leaf(&leaf()));
    let page = encode_map_page(&[(5, leaf), (1023, item(0))]);
    builder.add(ItemKind::MapPage, 0, &page);
    builder.add(ItemKind::ChunkPage, 2, &encode_chunk_page(&chunk_page()));
    builder.finish()
}

pub fn checkpoint() -> Checkpoint {
    Checkpoint {
        volume: volume(),
        epoch: Epoch(3),
        next: Seq(0x1236),
        closed: true,
        size: SectorCount(1 << 30),
        live: SectorCount(130),
        made_at_ms: 1_700_000_000_456,
        terms: vec![
            Term { first: Seq(0), epoch: Epoch(1) },
            Term { first: Seq(0x1000), epoch: Epoch(3) },
        ],
        map_objects: vec![MapObjectUse { object: object(1), total: 200, live: 150 }],
        map_root: vec![(0, item(1)), (77, item(1))],
        chunk_root: vec![(1, item(1))],
        garbage: vec![Garbage::Slots { first: Seq(9), count: 3 }, Garbage::Map(object(0))],
        snapshots: Vec::new(),
        retention_ms: 0,
        points: Vec::new(),
    }
}

pub fn snapshot() -> SnapshotObject {
    let id = SnapshotId::from_bytes(*b"fedcba9876543210");
    SnapshotObject::new(id, "before-upgrade", 1_700_000_000_789, &checkpoint())
}

/// With all that a volume with snapshots has in it.
pub fn checkpoint_with_snapshots() -> Checkpoint {
    let base = SnapshotEntry { base: true, ..snapshot().entry };
    let id = |n| SnapshotId::from_bytes([n; 16]);
    let first = SnapshotEntry {
        id: id(1),
        name: "a".into(),
        next: Seq(7),
        deleted: true,
        base: false,
        ..base.clone()
    };
    let before = Some(first.id);
    let other = SnapshotEntry { id: id(2), name: "b".into(), before, base: false, ..base.clone() };
    let base = SnapshotEntry { before, ..base };
    let mut garbage = checkpoint().garbage;
    garbage.push(Garbage::Snapshot(SnapshotId::from_bytes([9; 16])));
    Checkpoint { garbage, snapshots: vec![first, other, base], ..checkpoint() }
}

/// With what is kept of the past.
pub fn checkpoint_with_past() -> Checkpoint {
    let point = |next, epoch, made_at_ms| Point {
        next: Seq(next),
        epoch: Epoch(epoch),
        made_at_ms,
        freed: next + 1,
    };
    let points = vec![point(3, 1, 1_699_999_000_000), point(4, 2, 1_699_999_900_000)];
    Checkpoint { retention_ms: 86_400_000, points, ..checkpoint_with_snapshots() }
}

pub fn replica() -> ReplicaObject {
    let at = |next, epoch| Position { next: Seq(next), epoch: Epoch(epoch) };
    ReplicaObject {
        version: 1,
        volume: VolumeId::from_bytes([7; 16]),
        number: 12,
        pool: VolumeId::from_bytes([8; 16]),
        from: "s3://disks as data".into(),
        shipped: Shipped {
            checkpoint: Some(at(4096, 3)),
            end: at(4101, 4),
            seen_at_ms: 1_763_700_000_000,
        },
        branches: vec![Epoch(2)],
        promoted: Some(Promoted {
            epoch: Epoch((1 << 40) + 4),
            at_ms: 1_763_700_060_000,
            by: "far".into(),
        }),
    }
}

pub fn received() -> ReceivedObject {
    ReceivedObject {
        source: volume(),
        snapshot: SnapshotId::from_bytes(*b"fedcba9876543210"),
        base: Some(SnapshotId::from_bytes([7; 16])),
        begun_in: Epoch(3),
    }
}

pub fn stream_header() -> StreamHeader {
    let state = |name: &str, id: &[u8; 16], size| StreamState {
        snapshot: SnapshotId::from_bytes(*id),
        name: name.into(),
        size: SectorCount(size),
        made_at_ms: 1_700_000_000_000 + size,
    };
    StreamHeader {
        volume: volume(),
        block_size: BlockSize::B512,
        chunk_size: 4 << 20,
        to: state("tuesday", b"fedcba9876543210", 1 << 30),
        base: Some(state("monday", b"0011223344556677", 1 << 29)),
    }
}

/// What the sample stream says.
pub fn stream_entries(data: &[u8]) -> Vec<StreamEntry> {
    vec![
        StreamEntry::Zeros(range(3, 1 << 20)),
        StreamEntry::Data { range: range((1 << 29) + 1, 1), crc: crc32c::crc32c(data) },
        StreamEntry::Data { range: range((1 << 30) - 1, 1), crc: crc32c::crc32c(data) },
        StreamEntry::End,
    ]
}

/// The golden stream, by the name of its file.
pub fn stream() -> Vec<(&'static str, Vec<u8>)> {
    let (header, data) = (stream_header(), sector());
    let mut bytes = header.encode();
    let mut position = StreamPosition::behind(&header, &bytes);
    for entry in stream_entries(&data) {
        bytes.extend(position.encode(entry));
        if let StreamEntry::Data { .. } = entry {
            bytes.extend(&data);
        }
    }
    vec![("stream-v1.hex", bytes)]
}

/// A plain volume, a clone, and one that began as an image.
fn descriptions(features: Features, created_at_ms: u64) -> [VolumeObject; 3] {
    let plain = VolumeObject {
        version: 1,
        id: volume(),
        size: 100 << 30,
        block_size: 4096,
        chunk_size: 4 << 20,
        features,
        created_at_ms,
        ancestors: Vec::new(),
        source: None,
        mac: None,
    };
    let ancestor = |n: u8| Ancestor {
        volume: VolumeId::from_bytes([n; 16]),
        snapshot: SnapshotId::from_bytes([n + 1; 16]),
        next: Seq(u64::from(n) * 100),
        epoch: Epoch(n.into()),
    };
    let clone = VolumeObject {
        features: Features { incompat: Features::CLONE, ..features },
        ancestors: vec![ancestor(1), ancestor(3)],
        ..plain.clone()
    };
    let (url, identity) = ("nbd://golden:10809/debian".into(), "3221225472 bytes".into());
    let sourced = VolumeObject {
        features: Features { incompat: Features::SOURCE, ..features },
        source: Some(SourceObject::new(url, 3 << 30, identity)),
        ..plain.clone()
    };
    [plain, clone, sourced]
}

pub fn json() -> Vec<(&'static str, Vec<u8>)> {
    let features = Features { compat: 0, ro_compat: 0, incompat: 0 };
    let created_at_ms = 1_700_000_000_000;
    let pool = PoolObject {
        kind: PoolKind::Pool,
        version: 1,
        id: volume(),
        features,
        fencing: true,
        created_at_ms,
    };
    let several = Features { incompat: Features::SEVERAL, ..features };
    let [description, clone, sourced] = descriptions(features, created_at_ms);
    let epoch = EpochObject {
        host: "thor".into(),
        boot_id: "5f3c".into(),
        pid: 42,
        pid_start: 99,
        claimed_at_ms: created_at_ms,
        nonce: "00ff".into(),
        journal: None,
    };
    let import = ImportObject {
        volume: volume(),
        source: "/images/debian.raw".into(),
        fingerprint: Some("raw 1024 1790000000000000000".into()),
        begun_at_ms: created_at_ms,
    };
    let rules = [(3_600_000, 24), (86_400_000, 7)];
    let rules = rules.map(|(every_ms, keep)| Rule { every_ms, keep }).to_vec();
    let schedule = ScheduleObject::new(volume(), 3, rules);
    let tombstone = TombstoneObject { name: "data".into(), deleted_at_ms: created_at_ms };
    let entry = TrashEntry {
        version: TRASH_VERSION,
        step: TrashStep::Deleted,
        name: Some("data".into()),
        deleted_at_ms: created_at_ms,
        expires_at_ms: created_at_ms + 7 * 86_400_000,
        cut_off: false,
    };
    vec![
        ("pool.json", encode_json(&pool)),
        ("pool-several.json", encode_json(&PoolObject { features: several, ..pool.clone() })),
        ("volume.json", encode_json(&description)),
        ("clone.json", encode_json(&clone)),
        ("sourced.json", encode_json(&sourced)),
        ("name.json", encode_json(&NameObject { volume: volume() })),
        ("epoch.json", encode_json(&epoch)),
        ("tombstone.json", encode_json(&tombstone)),
        ("import.json", encode_json(&import)),
        ("received.json", encode_json(&received())),
        ("replica.json", encode_json(&replica())),
        ("trash-entry.json", encode_json(&entry)),
        ("schedule.json", encode_json(&schedule)),
        ("scrub.json", encode_json(&scrub())),
        ("key-slots.json", encode_json(&key_slots())),
        ("key-slots-v2.json", encode_json(&KeySlots { version: 2, ..key_slots() })),
        ("volume-signed.json", encode_json(&signed(description))),
        ("stores.json", encode_json(&stores())),
        ("store.json", encode_json(&StoreObject::new(volume(), StoreId::of_number(0xb0b)))),
        ("mirror-state.json", encode_json(&mirror_state())),
        ("placement.json", encode_json(&TermPlacement::new(volume(), Epoch(5), 2))),
        ("request.json", encode_json(&request())),
        ("decision.json", encode_json(&decisions()[0])),
        ("decision-withdrawn.json", encode_json(&decisions()[1])),
        ("decision-passed-over.json", encode_json(&decisions()[2])),
        ("answer.json", encode_json(&answer())),
    ]
}

fn asked() -> RequestId {
    RequestId { epoch: Epoch(5), number: 2 }
}

/// Of somebody who wants a snapshot.
pub fn request() -> RequestObject {
    let order = format!(
        r#"{{"version":1,"message":{{"snapshots":{{"volume":"{}","action":{{"make":"monday"}}}}}}}}"#,
        volume()
    );
    let by =
        AskedBy { host: "thor".into(), pid: 42, at_ms: 1_700_000_000_000, nonce: "00ff".into() };
    RequestObject::new(volume(), asked(), order, by)
}

/// What can be decided about it.
pub fn decisions() -> [DecisionObject; 3] {
    let all = [
        Decision::Taken { token: SnapshotId::from_bytes([9; 16]) },
        Decision::Withdrawn { nonce: "00fe".into() },
        Decision::PassedOver { by: Epoch(6) },
    ];
    all.map(|decision| DecisionObject::new(volume(), asked(), decision))
}

/// What came of it.
pub fn answer() -> AnswerObject {
    let reply = r#"{"version":1,"message":{"refused":{"kind":"exists","message":"no"}}}"#;
    AnswerObject::new((volume(), asked()), (Epoch(6), 1_700_000_001_000), reply.into())
}

/// One of a second pass that is under way.
pub fn scrub() -> ScrubObject {
    let last = ScrubPass {
        begun_at_ms: 1_700_000_000_000,
        ended_at_ms: 1_700_000_060_000,
        chunks: 12,
        bytes: 12 << 22,
        damaged: 3,
        mended: 2,
    };
    let now = ScrubPass { begun_at_ms: 1_700_086_400_000, ended_at_ms: 1_700_086_460_000, ..last };
    let mut scrub = ScrubObject::new(volume());
    (scrub.number, scrub.next) = (5, Some(Seq(0x1234)));
    (scrub.now, scrub.last) = (now, Some(last));
    scrub
}

/// One slot of each kind.
/// What the description of an encrypted volume becomes in the store.
pub fn signed(plain: VolumeObject) -> VolumeObject {
    let features = Features { incompat: Features::ENCRYPTED, ..plain.features };
    VolumeKey::new([7; 32]).signing().sign(VolumeObject { features, ..plain })
}

pub fn key_slots() -> KeySlots {
    let bytes = |from: u8| std::array::from_fn(|at| from + at as u8);
    let slot = |number, label: &str, kdf| KeySlot {
        number,
        label: label.into(),
        made_at_ms: 1_700_000_000_000,
        kdf,
        wrapped: std::array::from_fn(|at| 100 + at as u8),
    };
    let passphrase = Kdf::Argon2id { salt: bytes(16), memory_kib: 65_536, passes: 3, lanes: 4 };
    let slots = vec![slot(0, "", passphrase), slot(2, "thor", Kdf::Hkdf { salt: bytes(32) })];
    KeySlots { version: 1, key: bytes(48), slots }
}

/// The key of the sealed sample, and what that is called.
pub fn sealing() -> (VolumeKey, Key) {
    let chunk = ChunkId { volume: volume(), epoch: Epoch(3), seq: Seq(0x1234) };
    (VolumeKey::new(std::array::from_fn(|at| at as u8)), chunk.key())
}

/// A fence, sealed.
pub fn sealed() -> (&'static str, Vec<u8>) {
    let (by, key) = sealing();
    let salt = std::array::from_fn(|at| 0xf0 + at as u8);
    ("sealed-v1.hex", by.seal(&key, &fence().encode(), salt).to_vec())
}

/// Every binary object and item by the name of its golden file.
pub fn binary() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("chunk-v1.hex", chunk()),
        ("fence-v1.hex", fence().encode()),
        ("map-object-v1.hex", map_object()),
        ("checkpoint-v1.hex", checkpoint().encode()),
        ("profile-v1.hex", profile().encode()),
        ("snapshot-v1.hex", snapshot().encode()),
        ("checkpoint-snapshots-v1.hex", checkpoint_with_snapshots().encode()),
        ("checkpoint-past-v2.hex", checkpoint_with_past().encode()),
    ]
}
