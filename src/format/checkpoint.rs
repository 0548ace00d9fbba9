//! Checkpoints: the state of a volume as of a position of its log.
//!
//! ```text
//!   0  8 magic "OBJBLKCP"      56  8 live sectors
//!   8  2 version               64  8 time, ms since 1970
//!  10  1 closed (0 or 1)       72  4 number of snapshots
//!  11  5 zero                  76  5 x 4 counts of the tables below
//!  16 16 volume id             96    terms:       {first seq u64, epoch u64}
//!  32  8 epoch                       map objects: {epoch u64, number u32, total u32, live u32}
//!  40  8 next seq                    map root:    {page index u32, item}
//!  48  8 size in sectors             chunk root:  {page index u64, item}
//!                                    garbage:     {kind u32, a u64, b u64}
//!                                    snapshots:   see [`snapshot`](super::snapshot)
//!                                    4 crc32c of all before
//! ```
//!
//! That is version 1. Version 2 keeps the past: at 96 come the retention time in ms (8), the number of points
//! (4) and 4 zero bytes before the tables, and after the snapshots
//!
//! ```text
//!                                    points:      {next seq u64, epoch u64, time u64, freed slots u64}
//! ```
//!
//! A **point** is an older checkpoint that is kept, ascending. Who knows version 1 only would delete it, and
//! must not touch the volume: a checkpoint is of version 2 exactly if it has a retention time or points.
//!
//! `epoch` and `next seq` are the position: every slot before `next seq` is in the map, and the
//! log goes on at `next seq` in `epoch`. An item is described in [`page`](super::page). A **term** says in
//! which epoch the slots from its first seq on were written, up to the next term, and so how the objects
//! are named; the last slot of a term but the last one is its fence. **Garbage** is what nothing reachable
//! names any more as of this checkpoint and what may not have been deleted yet: the next owner
//! deletes it again; kinds are 1 (b slots from slot a on), 2 (map object of epoch a, number b), 3 (a snapshot,
//! whose id the 16 bytes are). With points it is only what this checkpoint freed since the last of them, and is
//! kept as long as one of them is there. What only a snapshot needs is neither referenced here nor garbage.
//!
//! Size is bounded by what the volume holds in pages (64 GiB each), never by its leaves, and by the
//! number of its snapshots.

use super::codec::{FormatResult, Reader, Writer, check_trailing_crc};
use super::keys::MapObjectId;
use super::page::{ITEM_REF_LEN, ItemRef, SEQ_MAX};
use super::snapshot::SnapshotEntry;
use super::volume::VOLUME_SIZE_MAX;
use super::{SnapshotId, VolumeId};
use crate::units::{Epoch, SECTOR_SIZE, SectorCount, Seq};
use std::collections::BTreeSet;

/// First bytes of a checkpoint.
pub const MAGIC: &[u8; 8] = b"OBJBLKCP";
const VERSION: u16 = 1;
/// That of one that keeps the past.
const VERSION_WITH_PAST: u16 = 2;
const OBJECT: &str = "checkpoint";

/// The slots from `first` on were written in `epoch` (until the next term begins).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// First slot.
    pub first: Seq,
    /// Its epoch.
    pub epoch: Epoch,
}

/// How much of a map object is still referenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapObjectUse {
    /// The object.
    pub object: MapObjectId,
    /// Bytes of items it was written with.
    pub total: u32,
    /// Bytes of items that are referenced.
    pub live: u32,
}

/// Objects that nothing reachable names any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Garbage {
    /// Log slots `first..first + count`, named by the terms they were written in.
    Slots {
        /// First slot.
        first: Seq,
        /// Number of slots.
        count: u64,
    },
    /// A map object.
    Map(MapObjectId),
    /// The object of a snapshot.
    Snapshot(SnapshotId),
}

/// An older checkpoint that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Its position.
    pub next: Seq,
    /// The epoch in which the log goes on there.
    pub epoch: Epoch,
    /// When it was made, in milliseconds since 1970.
    pub made_at_ms: u64,
    /// How many slots its garbage has.
    pub freed: u64,
}

/// Bytes of a point.
const POINT_LEN: usize = 32;

/// The state of a volume as of a position of its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch in which the log goes on at `next`.
    pub epoch: Epoch,
    /// First slot that is not in the map.
    pub next: Seq,
    /// The owner of `epoch` left in order at this position.
    pub closed: bool,
    /// Size of the volume.
    pub size: SectorCount,
    /// Sectors of the volume that hold data.
    pub live: SectorCount,
    /// When it was made, in milliseconds since 1970.
    pub made_at_ms: u64,
    /// How slots are named, ascending.
    pub terms: Vec<Term>,
    /// Every map object that is referenced.
    pub map_objects: Vec<MapObjectUse>,
    /// Map pages, ascending.
    pub map_root: Vec<(u32, ItemRef)>,
    /// Chunk pages, ascending.
    pub chunk_root: Vec<(u64, ItemRef)>,
    /// What may still have to be deleted.
    pub garbage: Vec<Garbage>,
    /// What is kept for ever, in the order in which it was made.
    pub snapshots: Vec<SnapshotEntry>,
    /// How long past states are kept, in milliseconds; 0: they are not.
    pub retention_ms: u64,
    /// Older checkpoints that are kept, the oldest first; some of the oldest may be gone.
    pub points: Vec<Point>,
}

impl Checkpoint {
    /// This one as a point of later ones.
    pub fn point(&self) -> Point {
        let slots = |garbage: &Garbage| match garbage {
            Garbage::Slots { count, .. } => *count,
            Garbage::Map(_) | Garbage::Snapshot(_) => 0,
        };
        let freed = self.garbage.iter().map(slots).fold(0, u64::saturating_add);
        Point { next: self.next, epoch: self.epoch, made_at_ms: self.made_at_ms, freed }
    }

    /// The points that are there, the oldest first, of the checkpoints that `is_there` tells of.
    ///
    /// They are deleted the oldest first. So one behind which another one is missing was deleted, and has been
    /// stored again since: by a request that came late, or twice. What it needs is gone.
    pub fn points_there(&self, is_there: impl Fn(&Point) -> bool) -> &[Point] {
        let gone = self.points.iter().rposition(|point| !is_there(point));
        &self.points[gone.map_or(0, |gone| gone + 1)..]
    }

    fn version(&self) -> u16 {
        match self.retention_ms == 0 && self.points.is_empty() {
            true => VERSION,
            false => VERSION_WITH_PAST,
        }
    }

    /// The state of a new volume: nothing written, epoch 0 owned by nobody.
    pub fn initial(volume: VolumeId, size: SectorCount) -> Checkpoint {
        Checkpoint {
            volume,
            epoch: Epoch(0),
            next: Seq(0),
            closed: true,
            size,
            live: SectorCount(0),
            made_at_ms: 0,
            terms: vec![Term { first: Seq(0), epoch: Epoch(0) }],
            map_objects: Vec::new(),
            map_root: Vec::new(),
            chunk_root: Vec::new(),
            garbage: Vec::new(),
            snapshots: Vec::new(),
            retention_ms: 0,
            points: Vec::new(),
        }
    }

    /// The object's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.put(MAGIC).u16(self.version()).u8(u8::from(self.closed)).zeros(5);
        w.put(&self.volume.bytes()).u64(self.epoch.0).u64(self.next.0).u64(self.size.0);
        w.u64(self.live.0).u64(self.made_at_ms);
        w.u32(self.snapshots.len() as u32);
        w.u32(self.terms.len() as u32).u32(self.map_objects.len() as u32);
        w.u32(self.map_root.len() as u32).u32(self.chunk_root.len() as u32);
        w.u32(self.garbage.len() as u32);
        if self.version() == VERSION_WITH_PAST {
            w.u64(self.retention_ms).u32(self.points.len() as u32).zeros(4);
        }
        for term in &self.terms {
            w.u64(term.first.0).u64(term.epoch.0);
        }
        for MapObjectUse { object, total, live } in &self.map_objects {
            w.u64(object.epoch.0).u32(object.number).u32(*total).u32(*live);
        }
        for (index, item) in &self.map_root {
            w.u32(*index);
            item.encode(&mut w);
        }
        for (index, item) in &self.chunk_root {
            w.u64(*index);
            item.encode(&mut w);
        }
        for garbage in &self.garbage {
            match garbage {
                Garbage::Slots { first, count } => w.u32(1).u64(first.0).u64(*count),
                Garbage::Map(object) => w.u32(2).u64(object.epoch.0).u64(u64::from(object.number)),
                Garbage::Snapshot(id) => w.u32(3).put(&id.bytes()),
            };
        }
        self.snapshots.iter().for_each(|snapshot| snapshot.encode(&mut w));
        for Point { next, epoch, made_at_ms, freed } in &self.points {
            w.u64(next.0).u64(epoch.0).u64(*made_at_ms).u64(*freed);
        }
        w.crc();
        w.finish()
    }

    /// Parses a whole checkpoint object.
    pub fn parse(bytes: &[u8]) -> FormatResult<Checkpoint> {
        let mut r = Reader::new(OBJECT, bytes);
        r.magic(MAGIC)?;
        let has_past = r.version_of(&[VERSION, VERSION_WITH_PAST])? == VERSION_WITH_PAST;
        let mut r = Reader::new(OBJECT, check_trailing_crc(OBJECT, bytes)?);
        r.take("magic and version", 10)?;
        let closed = match r.u8("closed")? {
            0 => false,
            1 => true,
            other => return Err(r.bad("closed", other)),
        };
        r.reserved("reserved", 5)?;
        let mut checkpoint = Checkpoint {
            volume: VolumeId::from_bytes(r.bytes16("volume")?),
            epoch: Epoch(r.u64("epoch")?),
            next: Seq(r.u64("next seq")?),
            closed,
            size: SectorCount(r.u64("size")?),
            live: SectorCount(r.u64("live sectors")?),
            made_at_ms: r.u64("time")?,
            terms: Vec::new(),
            map_objects: Vec::new(),
            map_root: Vec::new(),
            chunk_root: Vec::new(),
            garbage: Vec::new(),
            snapshots: Vec::new(),
            retention_ms: 0,
            points: Vec::new(),
        };
        let snapshots = r.count("snapshot count", SnapshotEntry::LEN_MIN)?;
        if checkpoint.next.0 > SEQ_MAX {
            return Err(r.bad("next seq", checkpoint.next));
        }
        if checkpoint.size.0 > VOLUME_SIZE_MAX / SECTOR_SIZE {
            return Err(r.bad("size", checkpoint.size));
        }
        let counts = Counts::parse(&mut r)?;
        let points = if has_past { checkpoint.parse_past(&mut r)? } else { 0 };
        checkpoint.terms = parse_terms(&mut r, counts.terms)?;
        checkpoint.parse_tables(&mut r, &counts)?;
        checkpoint.snapshots = parse_snapshots(&mut r, snapshots, checkpoint.next)?;
        checkpoint.points = parse_points(&mut r, points, checkpoint.next)?;
        r.end()?;
        Ok(checkpoint)
    }

    /// The part of the head that says what is kept of the past; the number of points.
    fn parse_past(&mut self, r: &mut Reader<'_>) -> FormatResult<usize> {
        self.retention_ms = r.u64("retention time")?;
        let points = r.count("point count", POINT_LEN)?;
        r.reserved("reserved", 4)?;
        if self.retention_ms == 0 && points == 0 {
            return Err(r.bad("point count", "none, and no retention time"));
        }
        Ok(points)
    }

    fn parse_tables(&mut self, r: &mut Reader<'_>, counts: &Counts) -> FormatResult<()> {
        for _ in 0..counts.map_objects {
            let object = parse_map_object_id(r)?;
            let (total, live) = (r.u32("map object size")?, r.u32("map object live bytes")?);
            self.map_objects.push(MapObjectUse { object, total, live });
        }
        for _ in 0..counts.map_root {
            let index = r.u32("map page index")?;
            if self.map_root.last().is_some_and(|(last, _)| *last >= index) {
                return Err(r.bad("map page index", index));
            }
            self.map_root.push((index, ItemRef::parse(r)?));
        }
        for _ in 0..counts.chunk_root {
            let index = r.u64("chunk page index")?;
            if self.chunk_root.last().is_some_and(|(last, _)| *last >= index) {
                return Err(r.bad("chunk page index", index));
            }
            self.chunk_root.push((index, ItemRef::parse(r)?));
        }
        for _ in 0..counts.garbage {
            self.garbage.push(parse_garbage(r)?);
        }
        Ok(())
    }
}

struct Counts {
    terms: usize,
    map_objects: usize,
    map_root: usize,
    chunk_root: usize,
    garbage: usize,
}

impl Counts {
    fn parse(r: &mut Reader<'_>) -> FormatResult<Counts> {
        Ok(Counts {
            terms: r.count("term count", 16)?,
            map_objects: r.count("map object count", 20)?,
            map_root: r.count("map page count", 4 + ITEM_REF_LEN)?,
            chunk_root: r.count("chunk page count", 8 + ITEM_REF_LEN)?,
            garbage: r.count("garbage count", 20)?,
        })
    }
}

fn parse_terms(r: &mut Reader<'_>, count: usize) -> FormatResult<Vec<Term>> {
    let mut terms: Vec<Term> = Vec::with_capacity(count);
    for _ in 0..count {
        let term = Term { first: Seq(r.u64("term seq")?), epoch: Epoch(r.u64("term epoch")?) };
        if terms.last().is_some_and(|last| last.first >= term.first || last.epoch >= term.epoch) {
            return Err(r.bad("term", "not ascending"));
        }
        terms.push(term);
    }
    if terms.is_empty() {
        return Err(r.bad("term count", 0));
    }
    Ok(terms)
}

fn parse_snapshots(
    r: &mut Reader<'_>,
    count: usize,
    next: Seq,
) -> FormatResult<Vec<SnapshotEntry>> {
    let mut snapshots: Vec<SnapshotEntry> = Vec::with_capacity(count);
    let mut known = BTreeSet::new();
    for _ in 0..count {
        let snapshot = SnapshotEntry::parse(r)?;
        let descends = snapshots.last().is_some_and(|last| last.next > snapshot.next);
        if descends || snapshot.next > next {
            return Err(r.bad("snapshot position", snapshot.next));
        }
        let comes_from_nowhere = snapshot.before.is_some_and(|before| !known.contains(&before));
        if comes_from_nowhere || !known.insert(snapshot.id) {
            return Err(r.bad("snapshot before", snapshot.id));
        }
        snapshots.push(snapshot);
    }
    // They are one tree, and the volume now is a part of it.
    let roots = snapshots.iter().filter(|snapshot| snapshot.before.is_none()).count();
    let bases = snapshots.iter().filter(|snapshot| snapshot.base).count();
    if roots > 1 || bases != roots {
        return Err(r.bad("snapshot base", bases));
    }
    Ok(snapshots)
}

fn parse_points(r: &mut Reader<'_>, count: usize, next: Seq) -> FormatResult<Vec<Point>> {
    let mut points: Vec<Point> = Vec::with_capacity(count);
    for _ in 0..count {
        let (seq, epoch) = (Seq(r.u64("point position")?), Epoch(r.u64("point epoch")?));
        let ascends = points.last().is_none_or(|last| last.next < seq && last.epoch <= epoch);
        if !ascends || seq >= next {
            return Err(r.bad("point position", seq));
        }
        let (made_at_ms, freed) = (r.u64("point time")?, r.u64("point freed slots")?);
        points.push(Point { next: seq, epoch, made_at_ms, freed });
    }
    Ok(points)
}

fn parse_map_object_id(r: &mut Reader<'_>) -> FormatResult<MapObjectId> {
    Ok(MapObjectId { epoch: Epoch(r.u64("map object epoch")?), number: r.u32("number")? })
}

fn parse_garbage(r: &mut Reader<'_>) -> FormatResult<Garbage> {
    let kind = r.u32("garbage kind")?;
    if kind == 3 {
        return Ok(Garbage::Snapshot(SnapshotId::from_bytes(r.bytes16("garbage")?)));
    }
    let (a, b) = (r.u64("garbage")?, r.u64("garbage")?);
    match (kind, u32::try_from(b)) {
        (1, _) if a.checked_add(b).is_some() => Ok(Garbage::Slots { first: Seq(a), count: b }),
        (2, Ok(number)) => Ok(Garbage::Map(MapObjectId { epoch: Epoch(a), number })),
        _ => Err(r.bad("garbage kind", kind)),
    }
}
