//! Which blocks of its source a volume has. Pure.

use crate::format::source::SourceObject;
use crate::units::{SECTOR_SIZE, Sector, SectorRange};
use bitvec::prelude::{BitVec, Lsb0};
use std::ops::Range;

/// The blocks that a volume has, and those that are being worked on.
#[derive(Debug)]
pub(super) struct Present {
    source: SourceObject,
    bits: BitVec<u8, Lsb0>,
    absent: u64,
    /// Runs of blocks that somebody works on: what they hold is about to change.
    busy: Vec<Range<u64>>,
}

impl Present {
    /// What `marks` say: the sectors of all bits.
    pub fn new(source: SourceObject, marks: Vec<u8>) -> Present {
        let mut bits = BitVec::from_vec(marks);
        bits.resize(source.blocks() as usize, false);
        let absent = bits.count_zeros() as u64;
        Present { source, bits, absent, busy: Vec::new() }
    }

    /// Bytes of blocks that the volume lacks.
    pub fn absent_bytes(&self) -> u64 {
        (self.absent * self.source.block).min(self.source.size)
    }

    /// Whether the volume has everything.
    pub fn is_complete(&self) -> bool {
        self.absent == 0
    }

    /// Whether the volume has all that `range` touches.
    pub fn has(&self, range: SectorRange) -> bool {
        self.is_complete() || self.first_absent(self.source.touched(range), u64::MAX).is_none()
    }

    /// The first run of absent blocks among `blocks`, at most `max` of them.
    pub fn first_absent(&self, blocks: Range<u64>, max: u64) -> Option<Range<u64>> {
        let bits = self.bits.get(blocks.start as usize..blocks.end as usize)?;
        let start = bits.first_zero()?;
        let len = bits[start..].first_one().unwrap_or(bits.len() - start) as u64;
        let start = blocks.start + start as u64;
        Some(start..start + len.min(max))
    }

    /// The absent blocks that `range` covers only in part: they have to be brought before it changes.
    pub fn edges(&self, range: SectorRange) -> Vec<u64> {
        let touched = self.source.touched(range);
        let edges = [touched.start, touched.end.saturating_sub(1)];
        let mut found: Vec<u64> = Vec::new();
        for block in edges.into_iter().filter(|block| touched.contains(block)) {
            let whole = self.source.range_of(&(block..block + 1));
            let is_partial = whole.intersect(range) != whole;
            if is_partial && !self.bits[block as usize] && found.last() != Some(&block) {
                found.push(block);
            }
        }
        found
    }

    /// Has `blocks` for the caller alone, unless somebody works on some of them.
    pub fn take(&mut self, blocks: &Range<u64>) -> bool {
        let is_free =
            self.busy.iter().all(|busy| busy.end <= blocks.start || blocks.end <= busy.start);
        if is_free {
            self.busy.push(blocks.clone());
        }
        is_free
    }

    /// Gives them back.
    pub fn give_back(&mut self, blocks: &Range<u64>) {
        if let Some(at) = self.busy.iter().position(|busy| busy == blocks) {
            self.busy.swap_remove(at);
        }
    }

    /// The marks that say that the volume has `blocks` too, and where they are.
    pub fn marks_with(&self, blocks: &Range<u64>) -> (Sector, Vec<u8>) {
        let at = SourceObject::marks_of(blocks);
        let first = SourceObject::first_block_of(at.start());
        let last = (first + at.len().0 * SECTOR_SIZE * 8).min(self.source.blocks());
        let mut marks: BitVec<u8, Lsb0> = BitVec::repeat(false, at.len().bytes() as usize * 8);
        marks[..(last - first) as usize]
            .clone_from_bitslice(&self.bits[first as usize..last as usize]);
        marks[(blocks.start - first) as usize..(blocks.end - first) as usize].fill(true);
        (at.start(), marks.into_vec())
    }

    /// The volume has `blocks`.
    pub fn set(&mut self, blocks: &Range<u64>) {
        let bits = &mut self.bits[blocks.start as usize..blocks.end as usize];
        self.absent -= bits.count_zeros() as u64;
        bits.fill(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 64 << 10;

    fn present(blocks: u64) -> Present {
        let source = SourceObject::new("file:///a".into(), blocks * BLOCK - 100, "1".into());
        Present::new(source, Vec::new())
    }

    fn sectors(start: u64, end: u64) -> SectorRange {
        SectorRange::between(Sector(start), Sector(end))
    }

    #[test]
    fn what_was_set_is_there_and_in_the_marks() {
        let mut present = present(10_000);
        let (at, marks) = present.marks_with(&(4090..4100));
        assert_eq!(marks.len(), 1024);
        present.set(&(4090..4100));
        assert_eq!(present.absent_bytes(), (10_000 - 10) * BLOCK);
        assert!(present.has(sectors(4090 * 128, 4100 * 128)));
        assert!(!present.has(sectors(4090 * 128 - 1, 4100 * 128)));
        assert_eq!(present.first_absent(4090..10_000, 7), Some(4100..4107));
        let all = SourceObject::marks_of(&(0..10_000));
        let mut stored = vec![0; all.len().bytes() as usize];
        let from = (at.0 - all.start().0) as usize * 512;
        stored[from..from + marks.len()].copy_from_slice(&marks);
        let again = Present::new(present.source.clone(), stored);
        assert_eq!(again.bits, present.bits);
        present.set(&(0..10_000));
        assert!(present.is_complete() && present.has(sectors(0, u64::MAX / 1024)));
        assert_eq!(present.absent_bytes(), 0);
    }

    #[test]
    fn edges_are_what_is_covered_in_part() {
        let mut present = present(4);
        assert!(present.edges(sectors(0, 256)).is_empty());
        assert_eq!(present.edges(sectors(1, 256)), [0]);
        assert_eq!(present.edges(sectors(1, 2)), [0]);
        assert_eq!(present.edges(sectors(127, 257)), [0, 2]);
        // The last sector holds the end of the image.
        assert!(present.edges(sectors(384, 512)).is_empty());
        assert_eq!(present.edges(sectors(384, 511)), [3]);
        present.set(&(0..1));
        assert!(present.edges(sectors(1, 2)).is_empty());
        assert!(present.edges(sectors(512, 600)).is_empty());
    }

    #[test]
    fn who_works_on_blocks_has_them_alone() {
        let mut present = present(10);
        assert!(present.take(&(2..4)));
        assert!(!present.take(&(3..5)) && !present.take(&(0..10)));
        assert!(present.take(&(4..5)) && present.take(&(0..2)));
        present.give_back(&(2..4));
        assert!(present.take(&(3..4)));
    }
}
