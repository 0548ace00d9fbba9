//! What is in a ring whose writer is gone.

use super::format::{BatchHeader, RingId, SegmentHeader, Superblock};
use super::slots::{last_slot, read_slot};
use super::stage::{Present, Used};
use super::{
    BatchNumber, DATA, Geometry, Place, SUPERBLOCK_LEN, SegmentNumber, SlotIndex, Stage, Term,
};
use crate::cipher::{LocalKey, Run};
use crate::error::{Error, Result};
use crate::format::VolumeId;
use crate::journal::disk::{BLOCK, Blocks, Disk};
use crate::units::Seq;
use std::ops::Range;
use std::sync::Arc;

/// A ring as its last writer left it.
#[derive(Debug)]
pub struct Found {
    superblock: Superblock,
    /// By which it is opened and sealed, where it is sealed and somebody has it.
    key: Option<Arc<LocalKey>>,
    geometry: Geometry,
    /// The last batch.
    last: Option<BatchHeader>,
    /// Slots before this one are known to be in the store.
    committed: SlotIndex,
    present: Present,
}

/// A segment, read.
#[derive(Debug, Default)]
struct Segment {
    last: Option<BatchHeader>,
    batches: Vec<(Place, SlotIndex, SlotIndex)>,
    next: BatchNumber,
    filled: u64,
}

fn damaged(disk: &dyn Disk, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let error = Error::corrupt(format!("the journal {} is damaged", disk.name())).because(why);
    error.hint(
        "it is kept; without it, attach with --takeover: writes that only it has are lost then",
    )
}

/// What is looked for on a disk, and by which key it is verified.
#[derive(Clone, Copy)]
struct Ring<'a> {
    disk: &'a dyn Disk,
    id: RingId,
    geometry: Geometry,
    sealed: bool,
    key: Option<&'a LocalKey>,
}

fn unreadable(disk: &dyn Disk, why: std::io::Error) -> Error {
    Error::failed(format!("cannot read the journal {}", disk.name())).because(why)
}

fn unwritable(disk: &dyn Disk, why: std::io::Error) -> Error {
    let error = Error::failed(format!("cannot write the journal {}", disk.name())).because(why);
    error.hint("use a journal on another disk, or attach with --durability object")
}

async fn read_superblock(disk: &dyn Disk) -> Result<Option<Superblock>> {
    let mut found: Option<Superblock> = None;
    let mut wrong = Vec::new();
    for copy in [0, 1] {
        let place = copy * SUPERBLOCK_LEN as u64;
        let blocks = disk.read(place, SUPERBLOCK_LEN).await.map_err(|e| unreadable(disk, e))?;
        match Superblock::parse(blocks.bytes()) {
            Ok(superblock)
                if found.as_ref().is_none_or(|f| f.generation < superblock.generation) =>
            {
                found = Some(superblock);
            }
            Ok(_) => {}
            Err(e) => wrong.push((e, blocks.bytes().iter().all(|byte| *byte == 0))),
        }
    }
    match (found, wrong.pop()) {
        (Some(found), _) => Ok(Some(found)),
        // The first superblock of all was cut off: nothing else was written yet.
        (None, Some((_, true))) | (None, None) => Ok(None),
        (None, Some((e, false))) => Err(damaged(disk, e)),
    }
}

async fn write_superblock(disk: &dyn Disk, superblock: &Superblock) -> Result<()> {
    let Some(bytes) = superblock.encode() else {
        let text = format!("the journal {} has no room for one more claim", disk.name());
        return Err(Error::failed(text).hint("attach once when the store answers"));
    };
    let mut blocks = Blocks::zeroed(SUPERBLOCK_LEN);
    blocks.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
    let place = (superblock.generation + 1) % 2 * SUPERBLOCK_LEN as u64;
    disk.write(place, blocks).await.map(drop).map_err(|e| unwritable(disk, e))
}

/// Notes that an epoch is going to be claimed with `nonce` for this ring; makes a new ring where
/// `found` has none, or where it is `None`. `key`: that of an encrypted volume.
///
/// # Errors
/// Usage: the disk is too small. Failed: it cannot be written, or is sealed and there is no key, or is not
/// and there is one.
pub async fn note_claim(
    disk: &dyn Disk,
    (volume, key): (VolumeId, Option<&Arc<LocalKey>>),
    found: Option<Found>,
    nonce: &str,
) -> Result<Found> {
    if let Some(found) = &found {
        found.check_sealed(disk, key.is_some())?;
    }
    let mut found = match found {
        Some(found) if found.last.is_some() => found,
        other => {
            let Some(geometry) = Geometry::for_size(disk.size()) else {
                let least = super::SIZE_MIN >> 20;
                let text = format!("the journal {} is too small", disk.name());
                return Err(Error::usage(text).hint(format!("it needs at least {} MiB", least + 1)));
            };
            // The superblocks of a ring that is given up are still there.
            let before = match other {
                Some(found) => Some(found.superblock),
                None => read_superblock(disk).await?,
            };
            let generation = before.map_or(0, |before| before.generation);
            Found::blank((volume, key.cloned()), geometry, nonce, generation)
        }
    };
    found.key = key.cloned();
    found.superblock.generation += 1;
    found.superblock.claims.push(nonce.into());
    write_superblock(disk, &found.superblock).await?;
    Ok(found)
}

impl Found {
    fn blank(
        (volume, key): (VolumeId, Option<Arc<LocalKey>>),
        geometry: Geometry,
        nonce: &str,
        generation: u64,
    ) -> Found {
        let Geometry { segment, segments } = geometry;
        let ring = RingId::of_claim(nonce);
        let (claims, sealed) = (Vec::new(), key.is_some());
        let superblock = Superblock { volume, ring, generation, segment, segments, sealed, claims };
        let (last, committed) = (None, SlotIndex(0));
        Found { superblock, key, geometry, last, committed, present: Present::default() }
    }

    /// Reads a ring. `None` where there is none on the disk. What is sealed is verified by `key`, where that is
    /// its volume's; without, it can be seen what is there, and no changes can be had.
    ///
    /// # Errors
    /// Corrupt: it is damaged, other than at its tail. Failed: it cannot be read.
    pub async fn read(disk: &dyn Disk, key: Option<&Arc<LocalKey>>) -> Result<Option<Found>> {
        let Some(superblock) = read_superblock(disk).await? else { return Ok(None) };
        let geometry = Geometry { segment: superblock.segment, segments: superblock.segments };
        let Some(geometry) = geometry.checked(disk.size()) else {
            return Err(damaged(disk, format!("{geometry:?} on {} bytes", disk.size())));
        };
        let is_its = |key: &&Arc<LocalKey>| superblock.volume.bytes() == key.volume();
        let key = key.filter(|_| superblock.sealed).filter(is_its).cloned();
        let (id, sealed) = (superblock.ring, superblock.sealed);
        let blank = Found::blank((superblock.volume, key.clone()), geometry, "", 0);
        let mut found = Found { superblock, ..blank };
        let ring = Ring { disk, id, geometry, sealed, key: key.as_deref() };
        let headers = read_headers(ring).await?;
        let Some(newest) = headers.last() else {
            check_not_begun(ring, (SegmentNumber(0), BatchNumber(0))).await?;
            return Ok(Some(found));
        };
        let mut segment = read_segment(ring, newest).await?;
        let following = SegmentNumber(newest.number.0 + 1);
        check_not_begun(ring, (following, segment.next)).await?;
        if segment.last.is_none()
            && let [.., before, _] = &headers[..]
        {
            segment = read_segment(ring, before).await?;
        }
        let told = segment.last.map_or(SlotIndex(0), |batch| batch.committed);
        found.committed = told.max(newest.committed);
        // The newest segment may have no batch yet, and be the only one that is needed.
        found.last = segment.last;
        // The first slot that is needed may have begun in the segment before the one it is named in.
        let tail = headers.partition_point(|header| header.slot < found.committed).max(1) - 1;
        if headers[tail].number.0 > 0 && headers[tail].slot > found.committed {
            return Err(damaged(disk, "a segment is missing"));
        }
        found.take_in(ring, &headers[tail..]).await?;
        Ok(Some(found))
    }

    async fn take_in(&mut self, ring: Ring<'_>, headers: &[SegmentHeader]) -> Result<()> {
        for (at, header) in headers.iter().enumerate() {
            let segment = read_segment(ring, header).await?;
            if let Some(following) = headers.get(at + 1)
                && segment.next != following.batch
            {
                let (has, needs) = (segment.next.0, following.batch.0);
                return Err(damaged(ring.disk, format!("batch {has} of {needs} is lost")));
            }
            let last = segment.batches.iter().map(|(_, _, last)| *last).max();
            let last = last.unwrap_or(header.slot).max(header.slot);
            self.present.used.push_back(Used { number: header.number, last });
            for (place, first, last) in segment.batches {
                for slot in first.max(self.committed).0..=last.0 {
                    self.present.places.entry(SlotIndex(slot)).or_default().push(place);
                }
            }
            self.last = segment.last.or(self.last);
            (self.present.next, self.present.filled) = (segment.next, segment.filled);
        }
        Ok(())
    }

    /// The volume.
    pub fn volume(&self) -> VolumeId {
        self.superblock.volume
    }

    /// Whether it is sealed.
    pub fn is_sealed(&self) -> bool {
        self.superblock.sealed
    }

    /// Checks that it is sealed if, and only if, its volume is encrypted.
    ///
    /// # Errors
    /// Failed: it is not so.
    pub fn check_sealed(&self, disk: &dyn Disk, encrypted: bool) -> Result<()> {
        let (name, volume) = (disk.name(), self.superblock.volume);
        let text = match (self.superblock.sealed, encrypted) {
            (true, true) | (false, false) => return Ok(()),
            (true, false) => format!(
                "the journal {name} is sealed by the key of volume {volume}, which was not given"
            ),
            (false, true) => format!(
                "the journal {name} is not sealed, and its volume {volume} is encrypted: it was \
                 written by somebody without the key"
            ),
        };
        Err(Error::failed(text).hint(
            "it is kept: attach with the key of the volume it was written for, or give up what it \
             holds with `objblk journal discard`",
        ))
    }

    fn run(&self) -> Option<Run> {
        self.key.as_ref().map(|key| key.begin_run(self.superblock.ring.bytes()))
    }

    /// The term of its last writer, if anything was written.
    pub fn term(&self) -> Option<Term> {
        self.last.map(|batch| batch.term)
    }

    /// Whether an epoch was claimed with `nonce` for this ring.
    pub fn is_own_claim(&self, nonce: &str) -> bool {
        self.superblock.claims.iter().any(|claim| claim == nonce)
    }

    /// The first slot that the log does not have, where the last term ended at the slot `end` of the
    /// log. `None`: the log lacks what it had once.
    pub fn first_lacking(&self, end: Seq) -> Option<SlotIndex> {
        let first = self.term()?.index(end);
        (first >= self.committed).then_some(first)
    }

    /// The slots that have entries and may not be in the store, and the bytes of their batches.
    pub fn uncommitted(&self) -> (u64, u64) {
        let places: Vec<&Place> = self.present.places.values().flatten().collect();
        let bytes = places.iter().map(|place| u64::from(place.len)).sum();
        (self.present.places.len() as u64, bytes)
    }

    /// The slot after the last one that has an entry.
    pub fn next_slot(&self) -> SlotIndex {
        let last = self.present.places.last_key_value().map(|(slot, _)| slot.next());
        last.unwrap_or_default().max(self.committed)
    }

    /// The number of the batch after the last one.
    pub fn next_batch(&self) -> BatchNumber {
        self.present.next
    }

    /// Where the last writer was: the slot of its next entry, and the changes of that slot which are
    /// there.
    ///
    /// # Errors
    /// Failed: it cannot be read. Corrupt.
    pub async fn position(&self, disk: &dyn Disk) -> Result<(SlotIndex, usize)> {
        // The last batch may be one without entries.
        let began = self.last.map_or(self.committed, |batch| batch.slot.max(self.committed));
        let Some((slot, places)) = self.present.places.last_key_value() else {
            return Ok((began, 0));
        };
        if *slot < began {
            return Ok((began, 0));
        }
        let slots = read_slot(disk, (*slot, places.clone()), self.key.as_deref()).await;
        let slots = slots.map_err(|e| unreadable(disk, e))?;
        let there = slots.changes().map_err(|e| damaged(disk, e))?.len();
        let has_ended = slots.has_ended().map_err(|e| damaged(disk, e))?;
        Ok(if has_ended { (slot.next(), 0) } else { (*slot, there) })
    }

    /// Goes on where the last writer was, in its term, with an entry of `slot`; slots of the log
    /// before `end` are in the store. `None` where nothing was ever written. Everything that is
    /// staged has to be written, and then [`Found::extended`].
    pub fn extend(&mut self, end: Seq, slot: SlotIndex) -> Option<Stage> {
        let term = self.term()?;
        let ring = (self.superblock.ring, self.run());
        let present = std::mem::take(&mut self.present);
        let mut stage = Stage::at(slot, ring, self.geometry, term, present);
        stage.commit(end);
        Some(stage)
    }

    /// Takes back what [`Found::extend`] gave.
    pub fn extended(&mut self, stage: Stage) {
        self.present = stage.into_present();
    }

    /// Goes on writing it, in a term whose first slots of the log are the slots from `term.base`
    /// on. The first batch taken makes that known.
    pub fn resume(self, term: Term) -> Stage {
        Stage::new((self.superblock.ring, self.run()), self.geometry, term, self.present)
    }

    /// The superblock of a term that has begun: its claim is the only one that counts.
    ///
    /// # Errors
    /// Failed: it cannot be written.
    pub async fn settle(disk: &dyn Disk, nonce: &str) -> Result<()> {
        let Some(mut superblock) = read_superblock(disk).await? else {
            return Err(damaged(disk, "it has no superblock any more"));
        };
        superblock.generation += 1;
        superblock.claims = vec![nonce.to_owned()];
        write_superblock(disk, &superblock).await
    }
}

/// The headers of the segments, from the oldest of an unbroken run to the newest.
async fn read_headers(ring: Ring<'_>) -> Result<Vec<SegmentHeader>> {
    let Ring { disk, geometry, .. } = ring;
    let mut headers = Vec::new();
    for at in 0..u64::from(geometry.segments) {
        let place = DATA + at * geometry.segment;
        let block = disk.read(place, BLOCK).await.map_err(|e| unreadable(disk, e))?;
        let Ok(header) = SegmentHeader::parse(block.bytes()) else { continue };
        let is_sealed = header.seal.is_some() == ring.sealed;
        if header.ring == ring.id && geometry.place(header.number) == place && is_sealed {
            if ring.key.is_some() {
                header.verify(ring.key, place).map_err(|e| damaged(disk, e))?;
            }
            headers.push(header);
        }
    }
    headers.sort_by_key(|header| header.number);
    let gap = headers.windows(2).rposition(|pair| pair[0].number.0 + 1 != pair[1].number.0);
    headers.drain(..gap.map_or(0, |gap| gap + 1));
    Ok(headers)
}

async fn read_segment(ring: Ring<'_>, header: &SegmentHeader) -> Result<Segment> {
    let Ring { disk, geometry, .. } = ring;
    let start = geometry.place(header.number);
    let len = geometry.segment as usize;
    let mut blocks = disk.read(start, len).await.map_err(|e| unreadable(disk, e))?;
    let mut segment = Segment { next: header.batch, ..Segment::default() };
    let mut at = BLOCK;
    while let Some((batch, range)) = batch_at(blocks.bytes(), at, ring) {
        if batch.number != segment.next {
            break;
        }
        let (offset, entries) = (start + at as u64, &mut blocks.bytes_mut()[range.clone()]);
        if ring.key.is_some() {
            batch.open(ring.key, offset, entries).map_err(|e| damaged(disk, e))?;
        }
        let last = match &batch.seal {
            Some((_, last)) => Some(*last).filter(|_| batch.len > 0),
            None => last_slot(batch.slot, entries).map_err(|e| damaged(disk, e))?,
        };
        let padded = (range.end - at).next_multiple_of(BLOCK);
        let place = Place { offset, len: padded as u32 };
        if let Some(last) = last {
            segment.batches.push((place, batch.slot, last));
        }
        (segment.last, segment.next) = (Some(batch), batch.number.next());
        at += padded;
    }
    segment.filled = at as u64;
    // One is written when the one before is durable: a later one shows that this one was.
    match numbers(blocks.bytes(), at, ring).find(|number| *number > segment.next) {
        Some(later) => {
            let why = format!("batch {} is lost, and {} is there", segment.next.0, later.0);
            Err(damaged(disk, why))
        }
        None => Ok(segment),
    }
}

/// A segment's header was durable before its first batch: where the segment `number` has no header,
/// a batch from `next` on shows that the header is lost, and everything in the segment with it.
async fn check_not_begun(
    ring: Ring<'_>,
    (number, next): (SegmentNumber, BatchNumber),
) -> Result<()> {
    let Ring { disk, geometry, .. } = ring;
    let (start, len) = (geometry.place(number), geometry.segment as usize);
    let blocks = disk.read(start, len).await.map_err(|e| unreadable(disk, e))?;
    match numbers(blocks.bytes(), BLOCK, ring).find(|batch| *batch >= next) {
        Some(batch) => {
            let why = format!("segment {} is lost, and batch {} is there", number.0, batch.0);
            Err(damaged(disk, why))
        }
        None => Ok(()),
    }
}

/// The numbers of the batches in a segment, from the byte `at` on.
fn numbers(segment: &[u8], at: usize, ring: Ring<'_>) -> impl Iterator<Item = BatchNumber> {
    let batches = (at..segment.len()).step_by(BLOCK);
    batches.filter_map(move |at| batch_at(segment, at, ring)).map(|(batch, _)| batch.number)
}

/// The header of a batch, and where its entries are.
fn batch_at(segment: &[u8], at: usize, ring: Ring<'_>) -> Option<(BatchHeader, Range<usize>)> {
    let (batch, entries) = BatchHeader::parse(segment.get(at..)?).ok()?;
    let from = at + batch.lead();
    let range = from..from + entries.len();
    let is_its = batch.ring == ring.id && batch.seal.is_some() == ring.sealed;
    is_its.then_some((batch, range))
}
