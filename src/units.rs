//! Units: the numbers that must not be mixed up.
//!
//! Everything inside objblk is counted in 512-byte **sectors**, whatever the logical block size a
//! volume shows to its users; bytes appear only at the edges (object sizes, CLI sizes, buffers).
//! [`Sector`] is a position, [`SectorCount`] a length, [`SectorRange`] both; [`Seq`] is a slot of
//! a volume's log and [`Epoch`] one owner's term. Mixing them does not compile.
//!
//! Invariant: a [`SectorRange`] never wraps around; it is made through a checked constructor.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes in a sector, the unit of addresses inside objblk.
pub const SECTOR_SIZE: u64 = 512;

/// log2 of [`SECTOR_SIZE`].
pub const SECTOR_SHIFT: u32 = 9;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A position on a volume, in sectors of 512 bytes (an LBA with 512-byte blocks).
    Sector
}
number! {
    /// A length, in sectors of 512 bytes.
    SectorCount
}
number! {
    /// A slot of a volume's log. Slots are dense: the volume is the sequence of its slots.
    Seq
}
number! {
    /// One owner's term. Claimed by create-if-absent, never reused.
    Epoch
}

impl Seq {
    /// The slot after this one.
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl Epoch {
    /// The epoch a new owner claims after this one.
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

impl Sector {
    /// The position `count` sectors further, or `None` where it would not fit 64 bits.
    pub fn checked_add(self, count: SectorCount) -> Option<Sector> {
        self.0.checked_add(count.0).map(Sector)
    }

    /// The byte offset of this sector.
    pub fn bytes(self) -> u64 {
        self.0 << SECTOR_SHIFT
    }
}

impl SectorCount {
    /// The length in bytes.
    pub fn bytes(self) -> u64 {
        self.0 << SECTOR_SHIFT
    }

    /// The count that covers exactly `bytes`, or `None` where `bytes` is not a whole number of
    /// sectors.
    pub fn from_bytes(bytes: u64) -> Option<SectorCount> {
        bytes.is_multiple_of(SECTOR_SIZE).then_some(SectorCount(bytes >> SECTOR_SHIFT))
    }
}

/// A run of sectors, possibly empty, that does not wrap around.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SectorRange {
    start: Sector,
    len: SectorCount,
}

impl SectorRange {
    /// The run of `len` sectors at `start`; `None` where its end does not fit 64 bits of bytes.
    pub fn new(start: Sector, len: SectorCount) -> Option<SectorRange> {
        let end = start.0.checked_add(len.0)?;
        (end <= u64::MAX >> SECTOR_SHIFT).then_some(SectorRange { start, len })
    }

    /// The run from `start` to `end` (exclusive); empty where `end` is before `start`.
    pub fn between(start: Sector, end: Sector) -> SectorRange {
        let len = SectorCount(end.0.saturating_sub(start.0));
        SectorRange { start, len }
    }

    /// The run that a byte offset and length name; `None` where either is not whole sectors or
    /// the end does not fit.
    pub fn from_bytes(offset: u64, len: u64) -> Option<SectorRange> {
        let start = Sector(SectorCount::from_bytes(offset)?.0);
        SectorRange::new(start, SectorCount::from_bytes(len)?)
    }

    /// First sector.
    pub fn start(self) -> Sector {
        self.start
    }

    /// Number of sectors.
    pub fn len(self) -> SectorCount {
        self.len
    }

    /// The sector after the last one.
    pub fn end(self) -> Sector {
        Sector(self.start.0 + self.len.0)
    }

    /// True where there is no sector in it.
    pub fn is_empty(self) -> bool {
        self.len.0 == 0
    }

    /// The sectors in both ranges; empty where they do not meet.
    pub fn intersect(self, other: SectorRange) -> SectorRange {
        SectorRange::between(self.start.max(other.start), self.end().min(other.end()))
    }
}

impl fmt::Display for SectorRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sectors {}..{}", self.start, self.end())
    }
}

/// Size of a volume's logical block: the smallest unit its users may address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockSize {
    /// 512 bytes.
    #[default]
    B512,
    /// 4096 bytes.
    B4096,
}

impl BlockSize {
    /// The block size of that many bytes, if it is one.
    pub fn from_bytes(bytes: u32) -> Option<BlockSize> {
        match bytes {
            512 => Some(BlockSize::B512),
            4096 => Some(BlockSize::B4096),
            _ => None,
        }
    }

    /// Bytes in a block.
    pub fn bytes(self) -> u32 {
        match self {
            BlockSize::B512 => 512,
            BlockSize::B4096 => 4096,
        }
    }

    /// Sectors in a block.
    pub fn sectors(self) -> SectorCount {
        SectorCount(u64::from(self.bytes()) >> SECTOR_SHIFT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_refuse_to_wrap() {
        assert!(SectorRange::new(Sector(u64::MAX), SectorCount(1)).is_none());
        assert!(SectorRange::from_bytes(u64::MAX - 511, 512).is_none());
        assert!(SectorRange::from_bytes(1, 512).is_none());
        let r = SectorRange::from_bytes(1024, 512).unwrap();
        assert_eq!((r.start(), r.len(), r.end()), (Sector(2), SectorCount(1), Sector(3)));
    }

    #[test]
    fn intersections() {
        let a = SectorRange::new(Sector(10), SectorCount(10)).unwrap();
        let b = SectorRange::new(Sector(15), SectorCount(10)).unwrap();
        assert_eq!(a.intersect(b), SectorRange::between(Sector(15), Sector(20)));
        let far = SectorRange::new(Sector(30), SectorCount(1)).unwrap();
        assert!(a.intersect(far).is_empty());
    }
}
