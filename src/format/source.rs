//! The source of a volume: an image outside the pool that the volume begins as.
//!
//! `volume.json` says where the image is. What of it the volume has is in the volume's own log: its map
//! goes on behind the largest size that a volume may have, with **marks** that nobody but the engine
//! reads or writes:
//!
//! | sector of the marks | holds |
//! | --- | --- |
//! | 0 | [`COMPLETE`] and zeros, once the image is needed no more; otherwise nothing |
//! | 1.. | a bit for each block of the image, the first one the lowest of its byte: the volume has it |
//!
//! A block that has no bit reads as the image does, and the map has nothing there. Being part of the
//! map, the marks are in every prefix of the log, snapshot and clone together with what they speak of. A
//! mark is written behind the block that it is for. The bits behind the last block are zeros.

use super::codec::{FormatError, FormatResult, Problem};
use super::volume::VOLUME_SIZE_MAX;
use crate::units::{SECTOR_SIZE, Sector, SectorCount, SectorRange};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// First sector of the marks.
const MARKS: Sector = Sector(VOLUME_SIZE_MAX / SECTOR_SIZE);

/// What sector 0 of the marks begins with, once the image is needed no more.
pub const COMPLETE: &[u8; 16] = b"source: complete";

/// The smallest block, in bytes.
const BLOCK_MIN: u64 = 64 << 10;

/// The most blocks that an image has: what is known of it takes 2 MiB of memory.
const BLOCKS_MAX: u64 = 1 << 24;

const BITS_PER_SECTOR: u64 = SECTOR_SIZE * 8;

/// The longest address or identity, in bytes.
const TEXT_MAX: usize = 8 << 10;

/// Where an image is, and how much of the volume it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceObject {
    /// Its address.
    pub url: String,
    /// Its size, in bytes. What the volume has behind it begins as zeros.
    pub size: u64,
    /// What tells it from another image, or from itself once it was changed.
    pub identity: String,
    /// Size of its blocks, in bytes: a power of two.
    pub block: u64,
}

impl SourceObject {
    /// The image at `url`.
    pub fn new(url: String, size: u64, identity: String) -> SourceObject {
        let block = size.div_ceil(BLOCKS_MAX).next_power_of_two().max(BLOCK_MIN);
        SourceObject { url, size, identity, block }
    }

    /// Checks every value.
    pub(super) fn check(&self) -> FormatResult<()> {
        let bad = |field, value: String| {
            let problem = Problem::Value(value);
            Err(FormatError { object: "volume", field, offset: 0, problem })
        };
        if self.size == 0 || self.size > VOLUME_SIZE_MAX {
            return bad("source size", self.size.to_string());
        }
        let right = self.block.is_power_of_two()
            && (BLOCK_MIN..=VOLUME_SIZE_MAX).contains(&self.block)
            && self.size.div_ceil(self.block) <= BLOCKS_MAX;
        if !right {
            return bad("source block", self.block.to_string());
        }
        match [&self.url, &self.identity].iter().find(|text| text.len() > TEXT_MAX) {
            Some(text) => bad("source url", format!("{} bytes are too many", text.len())),
            None => Ok(()),
        }
    }

    /// Number of blocks.
    pub fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block)
    }

    /// Sectors that hold something of the image.
    pub fn sectors(&self) -> SectorRange {
        SectorRange::between(Sector(0), Sector(self.size.div_ceil(SECTOR_SIZE)))
    }

    /// The sectors of a run of blocks, those of them that hold something of the image.
    pub fn range_of(&self, blocks: &Range<u64>) -> SectorRange {
        let per = self.block / SECTOR_SIZE;
        let range = SectorRange::between(Sector(blocks.start * per), Sector(blocks.end * per));
        range.intersect(self.sectors())
    }

    /// The blocks that `range` touches.
    pub fn touched(&self, range: SectorRange) -> Range<u64> {
        let (range, per) = (range.intersect(self.sectors()), self.block / SECTOR_SIZE);
        match range.is_empty() {
            true => 0..0,
            false => range.start().0 / per..range.end().0.div_ceil(per),
        }
    }

    /// The sector that says that the image is needed no more.
    pub fn complete_mark() -> SectorRange {
        SectorRange::between(MARKS, Sector(MARKS.0 + 1))
    }

    /// The sectors of the bits of `blocks`.
    pub fn marks_of(blocks: &Range<u64>) -> SectorRange {
        let first = MARKS.0 + 1;
        let start = first + blocks.start / BITS_PER_SECTOR;
        SectorRange::between(Sector(start), Sector(first + blocks.end.div_ceil(BITS_PER_SECTOR)))
    }

    /// The block whose bit is the first one of a sector of bits.
    pub fn first_block_of(mark: Sector) -> u64 {
        (mark.0 - MARKS.0 - 1) * BITS_PER_SECTOR
    }
}

/// Whether `range` is one of marks.
pub fn is_of_marks(range: SectorRange) -> bool {
    let most = SectorCount(1 + BLOCKS_MAX / BITS_PER_SECTOR);
    range.start() >= MARKS && range.end().0 <= MARKS.0 + most.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(size: u64) -> SourceObject {
        SourceObject::new("file:///a".into(), size, "1".into())
    }

    #[test]
    fn blocks_grow_with_the_image() {
        assert_eq!(source(1).block, 64 << 10);
        assert_eq!(source(1 << 40).block, 64 << 10);
        assert_eq!(source((1 << 40) + 1).block, 128 << 10);
        let largest = source(VOLUME_SIZE_MAX);
        assert_eq!(largest.blocks(), BLOCKS_MAX);
        assert!(largest.check().is_ok());
        assert!(is_of_marks(SourceObject::marks_of(&(0..BLOCKS_MAX))));
        assert!(is_of_marks(SourceObject::complete_mark()));
    }

    #[test]
    fn the_last_block_may_be_short() {
        let source = source((128 << 10) + 700);
        assert_eq!(source.blocks(), 3);
        assert_eq!(source.range_of(&(2..3)), SectorRange::between(Sector(256), Sector(258)));
        assert_eq!(source.touched(SectorRange::between(Sector(257), Sector(900))), 2..3);
        assert_eq!(source.touched(SectorRange::between(Sector(258), Sector(900))), 0..0);
        assert_eq!(source.touched(SectorRange::between(Sector(127), Sector(129))), 0..2);
    }

    #[test]
    fn impossible_values_are_refused() {
        let good = source(1 << 20);
        for bad in [
            SourceObject { size: 0, ..good.clone() },
            SourceObject { size: VOLUME_SIZE_MAX + 1, ..good.clone() },
            SourceObject { block: 0, ..good.clone() },
            SourceObject { block: 96 << 10, ..good.clone() },
            SourceObject { size: 2 << 40, ..good.clone() },
            SourceObject { url: "x".repeat(TEXT_MAX + 1), ..good.clone() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        assert!(good.check().is_ok());
    }
}
