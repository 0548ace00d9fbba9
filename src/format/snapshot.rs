//! Snapshots: a state of a volume that is kept.
//!
//! An **entry**, as the table of a checkpoint has it:
//!
//! ```text
//!  0 16 snapshot id (not zero) 40  8 sectors that hold data
//! 16  8 position: next seq     48  8 oldest slot of which it may need the name
//! 24  8 time, ms since 1970    56 16 the snapshot before (zero: none)
//! 32  8 size in sectors        72  1 flags: 1 deleted, 2 base
//!                              73  1 length of the name (1 to 128);  74 n the name
//! ```
//!
//! Each state came from the one before it. After a rollback several states came from one: they are a
//! tree, of which the volume now is a leaf. The **base** is the snapshot that the volume now came from.
//! A **deleted** one is nobody's any more, and kept as long as several others came from it.
//!
//! The **object** has the state itself, which is a checkpoint:
//!
//! ```text
//!  0  8 magic "OBJBLKSN"       16 16 volume id
//!  8  2 version                32    the entry
//! 10  6 zero                         the checkpoint, with its own crc;  4 crc32c of all before
//! ```
//!
//! The checkpoint in it names no garbage, no snapshots and no past.

use super::checkpoint::Checkpoint;
use super::codec::{FormatResult, Reader, Writer, check_trailing_crc};
use super::keys::{NAME_MAX, is_valid_name};
use super::page::SEQ_MAX;
use super::volume::VOLUME_SIZE_MAX;
use super::{SnapshotId, VolumeId};
use crate::units::{SECTOR_SIZE, SectorCount, Seq};

/// First bytes of a snapshot.
pub const MAGIC: &[u8; 8] = b"OBJBLKSN";
const VERSION: u16 = 1;
const OBJECT: &str = "snapshot";

/// What is known of a snapshot without its object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotEntry {
    /// The snapshot.
    pub id: SnapshotId,
    /// Its name, unique among those of the volume.
    pub name: String,
    /// Every slot before this one is in it.
    pub next: Seq,
    /// When it was made, in milliseconds since 1970.
    pub made_at_ms: u64,
    /// Size of the volume then.
    pub size: SectorCount,
    /// Sectors that held data.
    pub live: SectorCount,
    /// The oldest slot whose name it may need.
    pub oldest: Seq,
    /// The snapshot that it came from.
    pub before: Option<SnapshotId>,
    /// It was deleted, and several others came from it.
    pub deleted: bool,
    /// The volume now came from it.
    pub base: bool,
}

const DELETED: u8 = 1;
const BASE: u8 = 2;
const NONE: [u8; 16] = [0; 16];

impl SnapshotEntry {
    /// Bytes of the shortest one.
    pub(super) const LEN_MIN: usize = 75;

    pub(super) fn encode(&self, w: &mut Writer) {
        w.put(&self.id.bytes()).u64(self.next.0).u64(self.made_at_ms);
        w.u64(self.size.0).u64(self.live.0).u64(self.oldest.0);
        w.put(&self.before.map_or(NONE, SnapshotId::bytes));
        w.u8((u8::from(self.deleted) * DELETED) | (u8::from(self.base) * BASE));
        w.u8(self.name.len() as u8).put(self.name.as_bytes());
    }

    pub(super) fn parse(r: &mut Reader<'_>) -> FormatResult<SnapshotEntry> {
        let id = SnapshotId::from_bytes(r.bytes16("snapshot")?);
        let (next, made_at_ms) = (Seq(r.u64("snapshot position")?), r.u64("snapshot time")?);
        let (size, live) = (r.u64("snapshot size")?, r.u64("snapshot live sectors")?);
        let oldest = Seq(r.u64("snapshot oldest slot")?);
        if next.0 > SEQ_MAX || oldest > next {
            return Err(r.bad("snapshot position", format!("{oldest} to {next}")));
        }
        if size > VOLUME_SIZE_MAX / SECTOR_SIZE {
            return Err(r.bad("snapshot size", size));
        }
        let before = r.bytes16("snapshot before")?;
        let before = (before != NONE).then(|| SnapshotId::from_bytes(before));
        let flags = r.u8("snapshot flags")?;
        if flags & !(DELETED | BASE) != 0 {
            return Err(r.bad("snapshot flags", flags));
        }
        let (deleted, base) = (flags & DELETED != 0, flags & BASE != 0);
        let len = usize::from(r.u8("snapshot name length")?);
        if len > NAME_MAX {
            return Err(r.bad("snapshot name length", len));
        }
        let name = std::str::from_utf8(r.take("snapshot name", len)?).ok();
        let Some(name) = name.filter(|name| is_valid_name(name)) else {
            return Err(r.bad("snapshot name", "not a name"));
        };
        let (size, live, name) = (SectorCount(size), SectorCount(live), name.into());
        Ok(SnapshotEntry { id, name, next, made_at_ms, size, live, oldest, before, deleted, base })
    }
}

/// A state of a volume that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotObject {
    /// What the table of snapshots says of it.
    pub entry: SnapshotEntry,
    /// The state.
    pub checkpoint: Checkpoint,
}

impl SnapshotObject {
    /// Keeps the state of `last` under `name`.
    pub fn new(id: SnapshotId, name: &str, made_at_ms: u64, last: &Checkpoint) -> SnapshotObject {
        let (garbage, snapshots, points) = (Vec::new(), Vec::new(), Vec::new());
        let checkpoint = Checkpoint { garbage, snapshots, points, retention_ms: 0, ..last.clone() };
        let entry = SnapshotEntry {
            id,
            name: name.into(),
            next: last.next,
            made_at_ms,
            size: last.size,
            live: last.live,
            oldest: last.terms.first().map_or(Seq(0), |term| term.first).min(last.next),
            before: last.snapshots.iter().find(|before| before.base).map(|before| before.id),
            deleted: false,
            base: false,
        };
        SnapshotObject { entry, checkpoint }
    }

    /// The object's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.put(MAGIC).u16(VERSION).zeros(6).put(&self.checkpoint.volume.bytes());
        self.entry.encode(&mut w);
        w.put(&self.checkpoint.encode()).crc();
        w.finish()
    }

    /// Parses a whole snapshot object.
    pub fn parse(bytes: &[u8]) -> FormatResult<SnapshotObject> {
        let mut r = Reader::new(OBJECT, bytes);
        r.magic(MAGIC)?;
        r.version(VERSION)?;
        let mut r = Reader::new(OBJECT, check_trailing_crc(OBJECT, bytes)?);
        r.take("magic and version", 10)?;
        r.reserved("reserved", 6)?;
        let volume = VolumeId::from_bytes(r.bytes16("volume")?);
        let entry = SnapshotEntry::parse(&mut r)?;
        let checkpoint = Checkpoint::parse(r.take("checkpoint", r.remaining())?)?;
        let is_its = checkpoint.volume == volume
            && checkpoint.next == entry.next
            && checkpoint.size == entry.size
            && checkpoint.garbage.is_empty()
            && checkpoint.snapshots.is_empty()
            && checkpoint.points.is_empty()
            && checkpoint.retention_ms == 0;
        match is_its {
            true => Ok(SnapshotObject { entry, checkpoint }),
            false => Err(r.bad("checkpoint", "not that of the snapshot")),
        }
    }
}
