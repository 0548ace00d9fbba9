//! The journal proper: a ring on a local disk that holds the changes of every slot of the log that
//! the store has not taken, exactly as the slot's chunk holds them.
//!
//! ```text
//! superblock │ superblock │ segment │ segment │ ...           places, used in turn
//!                           header │ batch │ batch │ ...      each batch one durable write
//!                                    header, entries, crc
//! ```
//!
//! Everything that was staged since the last write goes into one batch, so flushes that come
//! together share a write. Entries are those of [`crate::journal::entry`]; the slots of the log
//! follow each other, with a mark at each end.
//!
//! Contract: when the write of a batch has returned, its entries are found again by
//! [`Found::read`], whatever happens to process, kernel and power, until every slot in its segment
//! is committed.
//!
//! **Torn tail.** Batches have running numbers, and one is written when the one before is durable.
//! So the first batch that is not there or does not verify ends the journal: it was never
//! acknowledged. If a batch with a higher number, or the header of a later segment, shows that it
//! was durable once, then the journal is damaged, and nothing of it is used.
//!
//! **Slots.** A slot has an index that counts all slots of the ring. A batch names its [`Term`]: the
//! owner's epoch, and which index its first slot of the log had. So a successor knows which indexes
//! are in the log already, and takes the rest over one by one into its own first slots.
//!
//! **Reuse.** The header of a segment is durable before anything else is written there. Until then
//! the place holds an old segment, whole; it is not needed any more, since a segment is used again
//! when all its slots are committed. [`Stage::has_room`] keeps what was acknowledged from ever
//! finding no place.
//!
//! **Encrypted volumes.** Their rings are sealed, batch by batch ([`crate::cipher`]): who has not the key sees how much
//! is there and whether it is whole, and can neither read nor change it unnoticed. That is done by whoever writes
//! the batch, not by whoever stages a change.

mod format;
mod read;
mod slots;
mod stage;

pub use format::{
    BATCH_HEADER_LEN, BatchHeader, RingId, SEALED_BATCH_LEN, SUPERBLOCK_LEN, Seal, SegmentHeader,
    Superblock,
};
pub use read::{Found, note_claim};
pub use slots::{Slots, read_slot};
pub use stage::{PIECE_MAX, Place, Stage, Write};

use crate::journal::disk::BLOCK;
use crate::units::{Epoch, Seq};

/// Smallest and largest segment, in bytes.
const SEGMENT: (u64, u64) = (1 << 20, 16 << 20);
/// Segments that a ring has at least.
const SEGMENTS_MIN: u64 = 4;
/// Where the first segment begins.
const DATA: u64 = 2 * SUPERBLOCK_LEN as u64;

/// Smallest ring, in bytes.
pub const SIZE_MIN: u64 = DATA + SEGMENTS_MIN * SEGMENT.0;

/// Counts the slots of a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotIndex(pub u64);

/// Counts the batches of a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BatchNumber(pub u64);

/// Counts the segments of a ring that were ever begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentNumber(pub u64);

impl SlotIndex {
    /// The next one.
    pub fn next(self) -> SlotIndex {
        SlotIndex(self.0 + 1)
    }
}

impl BatchNumber {
    /// The next one.
    pub fn next(self) -> BatchNumber {
        BatchNumber(self.0 + 1)
    }
}

/// Which slots of the log the slots of a ring are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// The owner's epoch.
    pub epoch: Epoch,
    /// The first slot of the log that it may use.
    pub first: Seq,
    /// What that slot is in the ring.
    pub base: SlotIndex,
}

impl Term {
    /// The slot of the log that `index` is; those before the term are in the log.
    pub fn seq(&self, index: SlotIndex) -> Seq {
        Seq(self.first.0 + index.0.saturating_sub(self.base.0))
    }

    /// What `seq`, a slot of this term, is in the ring.
    pub fn index(&self, seq: Seq) -> SlotIndex {
        SlotIndex(self.base.0 + seq.0.saturating_sub(self.first.0))
    }
}

/// How a disk is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a segment.
    pub segment: u64,
    /// Number of segments.
    pub segments: u32,
}

impl Geometry {
    /// For a new ring on a disk of `size` bytes. `None` where that is less than [`SIZE_MIN`].
    pub fn for_size(size: u64) -> Option<Geometry> {
        let sixteenth = size / 16 / BLOCK as u64 * BLOCK as u64;
        let segment = sixteenth.clamp(SEGMENT.0, SEGMENT.1);
        let segments = u32::try_from(size.checked_sub(DATA)? / segment).unwrap_or(u32::MAX);
        Geometry { segment, segments }.checked(size)
    }

    /// Itself, if a disk of `size` bytes can be divided like this.
    pub fn checked(self, size: u64) -> Option<Geometry> {
        let (least, most) = SEGMENT;
        let right = (least..=most).contains(&self.segment)
            && self.segment.is_multiple_of(BLOCK as u64)
            && u64::from(self.segments) >= SEGMENTS_MIN
            && self.segment * u64::from(self.segments) + DATA <= size;
        right.then_some(self)
    }

    /// Where a segment lies.
    pub fn place(&self, number: SegmentNumber) -> u64 {
        DATA + number.0 % u64::from(self.segments) * self.segment
    }
}
