//! What goes into a ring: entries that wait for a write, and which segments are in use. Pure.

use super::format::{BATCH_HEADER_LEN, BatchHeader, RingId, SEALED_BATCH_LEN, SegmentHeader};
use super::{BatchNumber, Geometry, SegmentNumber, SlotIndex, Term};
use crate::cipher::Run;
use crate::journal::disk::{BLOCK, Blocks};
use crate::journal::entry::{self, Change, HEAD_LEN};
use crate::mutant::{self, Mutant};
use crate::units::Seq;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Largest payload of an entry, in bytes.
pub const PIECE_MAX: usize = 256 << 10;
/// Bytes of entries at which a batch takes no more.
const BATCH_FULL: usize = 256 << 10;
/// Largest batch: what was there before the last entry, and its end of a slot.
pub const BATCH_MAX: usize =
    (SEALED_BATCH_LEN + BATCH_FULL + PIECE_MAX + 2 * HEAD_LEN).next_multiple_of(BLOCK);
/// Batches that wait at which writers wait.
const WAITING_MAX: usize = 8;
/// Buffers that are kept for later batches.
const SPARE: usize = 4;

/// Where a batch lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its first byte on the disk.
    pub offset: u64,
    /// Its bytes, whole blocks.
    pub len: u32,
}

/// What is to be written next; nothing else may be written before it is durable.
#[derive(Debug)]
pub struct Write {
    /// To be durable before the batch is written: the header of a new segment and its place.
    pub segment: Option<(u64, Blocks)>,
    /// Where the batch goes.
    pub place: Place,
    /// The batch, once [`Write::finish`] was called.
    pub blocks: Blocks,
    header: BatchHeader,
    /// What seals it, until it is sealed, and the slot of its last entry.
    seals: Option<(Arc<Run>, SlotIndex)>,
}

impl Write {
    /// Completes the batch: seals what is to be sealed, and puts its header before it. Apart from [`Stage::take`],
    /// because that and the checksum take time.
    pub fn finish(&mut self) {
        let batch = self.blocks.bytes_mut();
        if let Some((run, last)) = self.seals.take() {
            let entries = SEALED_BATCH_LEN..SEALED_BATCH_LEN + self.header.len as usize;
            self.header.seal(&run, (self.place.offset, last), &mut batch[entries]);
        }
        self.header.put(batch);
    }
}

/// Entries that wait to be written together.
#[derive(Debug)]
struct Batch {
    /// The slot of the first entry, and of the last one.
    slots: (SlotIndex, SlotIndex),
    /// Entries, behind the place of the header.
    blocks: Blocks,
    len: usize,
    /// The slot whose end was staged last.
    ended: Option<SlotIndex>,
}

/// A segment in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Used {
    pub number: SegmentNumber,
    /// The last slot that has an entry in it.
    pub last: SlotIndex,
}

/// A ring being written.
#[derive(Debug)]
pub struct Stage {
    ring: RingId,
    /// What seals the ring, if it is sealed.
    run: Option<Arc<Run>>,
    geometry: Geometry,
    term: Term,
    /// Those that wait, in order.
    waiting: VecDeque<Batch>,
    /// Number of the next one to be taken.
    next: BatchNumber,
    /// Batches before this one are wanted durable.
    wanted: BatchNumber,
    /// Batches before this one are durable.
    durable: BatchNumber,
    /// What becomes durable next.
    taken: Option<(Place, (SlotIndex, SlotIndex), Option<SlotIndex>)>,
    /// The slot that entries go to.
    slot: SlotIndex,
    /// Slots before this one have all their entries in durable batches.
    complete: SlotIndex,
    committed: SlotIndex,
    /// `committed` as the last batch says it.
    told: SlotIndex,
    /// Bytes of the last segment in use that are written.
    filled: u64,
    used: VecDeque<Used>,
    /// Durable batches that have entries of slots that are not committed.
    places: BTreeMap<SlotIndex, Vec<Place>>,
    spare: Vec<Blocks>,
}

/// What a ring has when it is written on.
#[derive(Debug, Default)]
pub(super) struct Present {
    pub next: BatchNumber,
    pub filled: u64,
    pub used: VecDeque<Used>,
    pub places: BTreeMap<SlotIndex, Vec<Place>>,
}

impl Stage {
    pub(super) fn new(
        (ring, run): (RingId, Option<Run>),
        geometry: Geometry,
        term: Term,
        present: Present,
    ) -> Stage {
        let next_slot = present.places.last_key_value().map(|(slot, _)| slot.next());
        let slot = next_slot.unwrap_or(term.base).max(term.base);
        let mut stage = Stage::at(slot, (ring, run), geometry, term, present);
        stage.commit(term.first);
        // The term itself has to be written.
        stage.waiting.push_back(stage.empty_batch());
        stage.want_all();
        stage
    }

    /// A stage whose next entry belongs to `slot`.
    pub(super) fn at(
        slot: SlotIndex,
        (ring, run): (RingId, Option<Run>),
        geometry: Geometry,
        term: Term,
        present: Present,
    ) -> Stage {
        Stage {
            ring,
            run: run.map(Arc::new),
            geometry,
            term,
            waiting: VecDeque::new(),
            next: present.next,
            wanted: present.next,
            durable: present.next,
            taken: None,
            slot,
            complete: slot,
            committed: SlotIndex(0),
            told: SlotIndex(0),
            filled: present.filled,
            used: present.used,
            places: present.places,
            spare: Vec::new(),
        }
    }

    /// What the ring has now, where everything staged was written.
    pub(super) fn into_present(self) -> Present {
        let Stage { next, filled, used, places, .. } = self;
        Present { next, filled, used, places }
    }

    /// The term.
    pub fn term(&self) -> Term {
        self.term
    }

    /// The slot of the log that entries go to.
    pub fn seq(&self) -> Seq {
        self.term.seq(self.slot)
    }

    /// Bytes of a batch before its entries.
    fn lead(&self) -> usize {
        if self.run.is_some() { SEALED_BATCH_LEN } else { BATCH_HEADER_LEN }
    }

    /// Bytes of a batch with so many of entries.
    fn padded(&self, entries: usize) -> u64 {
        (self.lead() + entries).next_multiple_of(BLOCK) as u64
    }

    fn empty_batch(&self) -> Batch {
        let blocks = Blocks::zeroed(BLOCK);
        Batch { slots: (self.slot, self.slot), blocks, len: 0, ended: None }
    }

    /// Whether a change with `payload` bytes finds a place, whatever is still to be written.
    pub fn has_room(&self, payload: usize) -> bool {
        let waiting: u64 = self.waiting.iter().map(|batch| self.padded(batch.len)).sum();
        let needed = waiting + self.padded(payload + 2 * HEAD_LEN);
        // One is kept for marks that nobody asks for.
        let free = u64::from(self.geometry.segments).saturating_sub(self.used.len() as u64 + 1);
        // Each segment may end with a rest that is too short for the next batch.
        let usable = self.geometry.segment - (BLOCK + BATCH_MAX) as u64;
        self.waiting.len() < WAITING_MAX && needed <= free * usable
    }

    /// Stages a change of the present slot, of at most [`PIECE_MAX`] bytes, for which there is
    /// room.
    pub fn push(&mut self, change: Change<'_>) {
        let (head, payload) = change.encode();
        self.append(&head, payload);
    }

    /// The present slot has no more changes; the next one begins.
    pub fn end_slot(&mut self) {
        self.append(&entry::slot_end(), &[]);
        if let Some(batch) = self.waiting.back_mut() {
            batch.ended = Some(self.slot);
        }
        self.slot = self.slot.next();
    }

    fn append(&mut self, head: &[u8; HEAD_LEN], payload: &[u8]) {
        let fits = |batch: &Batch| batch.len < BATCH_FULL;
        if !self.waiting.back().is_some_and(fits) {
            let mut batch = self.empty_batch();
            batch.blocks = self.spare.pop().unwrap_or_else(|| Blocks::zeroed(BATCH_MAX));
            self.waiting.push_back(batch);
        }
        let lead = self.lead();
        let (slot, Some(batch)) = (self.slot, self.waiting.back_mut()) else { return };
        if batch.len == 0 {
            batch.slots.0 = slot;
        }
        batch.slots.1 = slot;
        let at = lead + batch.len;
        let end = at + head.len() + payload.len();
        batch.blocks.grow(end.max(BATCH_MAX));
        let bytes = batch.blocks.bytes_mut();
        bytes[at..at + head.len()].copy_from_slice(head);
        bytes[at + head.len()..end].copy_from_slice(payload);
        batch.len = end - lead;
    }

    /// Everything that was staged is durable when all batches before this one are.
    pub fn staged(&self) -> BatchNumber {
        BatchNumber(self.next.0 + self.waiting.len() as u64)
    }

    /// Batches before this one are durable.
    pub fn durable(&self) -> BatchNumber {
        self.durable
    }

    /// Everything staged so far has to become durable. It is when all batches before the returned
    /// one are.
    pub fn want_all(&mut self) -> BatchNumber {
        self.wanted = self.staged();
        self.wanted
    }

    /// Whether something has to be written: entries that somebody wants to be durable or that are
    /// many, or the news that all slots are committed, without which somebody elsewhere would be
    /// thought to lack something.
    pub fn is_due(&self) -> bool {
        self.next < self.wanted
            || self.waiting.len() > 1
            || (self.told < self.committed && self.is_all_committed())
    }

    fn is_all_committed(&self) -> bool {
        self.committed >= self.slot
    }

    /// Takes what is to be written next. `None` where nothing waits, where a write is under way, or
    /// where there is no place until more is committed.
    pub fn take(&mut self) -> Option<Write> {
        if self.taken.is_some() || !self.is_due() {
            return None;
        }
        let len = self.waiting.front().map_or(0, |batch| batch.len);
        let padded = self.padded(len);
        let begun = self.used.back().copied();
        let goes_on = begun.is_some() && self.filled + padded <= self.geometry.segment;
        if !goes_on && self.used.len() >= self.geometry.segments as usize {
            return None;
        }
        let batch = self.waiting.pop_front().unwrap_or_else(|| self.empty_batch());
        let segment = if goes_on { None } else { Some(self.begin_segment(begun, batch.slots.0)) };
        let start = self.geometry.place(self.used.back().map_or(SegmentNumber(0), |u| u.number));
        let place = Place { offset: start + self.filled, len: padded as u32 };
        self.filled += padded;
        if let Some(used) = self.used.back_mut() {
            used.last = used.last.max(batch.slots.1);
        }
        let header = BatchHeader {
            ring: self.ring,
            number: self.next,
            term: self.term,
            slot: batch.slots.0,
            committed: self.committed,
            durable: self.durable,
            len: batch.len as u32,
            seal: None,
        };
        self.next = self.next.next();
        self.told = self.committed;
        self.taken = Some((place, batch.slots, batch.ended));
        let mut blocks = batch.blocks;
        blocks.truncate(padded as usize);
        blocks.bytes_mut()[self.lead() + batch.len..].fill(0);
        let seals = self.run.clone().map(|run| (run, batch.slots.1));
        Some(Write { segment, place, blocks, header, seals })
    }

    fn begin_segment(&mut self, last: Option<Used>, slot: SlotIndex) -> (u64, Blocks) {
        let number = SegmentNumber(last.map_or(0, |last| last.number.0 + 1));
        self.used.push_back(Used { number, last: slot });
        self.filled = BLOCK as u64;
        let (ring, batch, committed) = (self.ring, self.next, self.committed);
        let offset = self.geometry.place(number);
        let mut header = SegmentHeader { ring, number, batch, slot, committed, seal: None };
        if let Some(run) = &self.run {
            header.seal(run, offset);
        }
        let mut block = Blocks::zeroed(BLOCK);
        let bytes = header.encode();
        block.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
        (offset, block)
    }

    /// What was taken last is durable; gives its buffer back.
    pub fn written(&mut self, blocks: Blocks) {
        let Some((place, (first, last), ended)) = self.taken.take() else { return };
        self.durable = self.next;
        for slot in first.max(self.committed).0..=last.0 {
            self.places.entry(SlotIndex(slot)).or_default().push(place);
        }
        if let Some(ended) = ended {
            self.complete = ended.next();
        }
        if self.spare.len() < SPARE {
            self.spare.push(blocks);
        }
        self.recycle();
    }

    /// Slots of the log before `seq` are in the store: their places may be used again.
    pub fn commit(&mut self, seq: Seq) {
        self.committed = self.committed.max(self.term.index(seq));
        self.places = self.places.split_off(&self.committed);
        self.recycle();
    }

    fn recycle(&mut self) {
        // The last one is being written.
        while self.used.len() > 1
            && self.used.front().is_some_and(|used| {
                used.last < self.committed || mutant::on(Mutant::SegmentReusedEarly)
            })
        {
            self.used.pop_front();
        }
    }

    /// All changes of the slots of the log before this one are durable.
    pub fn complete(&self) -> Seq {
        self.term.seq(self.complete)
    }

    /// Whether all changes of the slot `seq` are durable.
    pub fn is_complete(&self, seq: Seq) -> bool {
        self.term.index(seq) < self.complete
    }

    /// The slot of the ring that `seq` is, and the batches that have its entries.
    pub fn places(&self, seq: Seq) -> (SlotIndex, Vec<Place>) {
        let index = self.term.index(seq);
        (index, self.places.get(&index).cloned().unwrap_or_default())
    }

    /// Bytes that hold what is not committed, with what waits to be written.
    pub fn used_bytes(&self) -> u64 {
        let waiting: u64 = self.waiting.iter().map(|batch| self.padded(batch.len)).sum();
        let last = if self.used.is_empty() { 0 } else { self.filled };
        let others = (self.used.len() as u64).saturating_sub(1) * self.geometry.segment;
        if self.is_all_committed() { 0 } else { others + last + waiting }
    }
}
