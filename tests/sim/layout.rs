//! Which sectors of the volume are used: a few runs that lie far apart, so that a small image
//! spans leaves and pages of the map and their borders. And what is in a sector.

use crate::model::Stamp;
use objblk::format::page::{LEAF_SECTORS, LEAVES_PER_PAGE};
use objblk::units::{Sector, SectorCount, SectorRange};
use std::ops::Range;

/// A run of sectors: where it is on the volume, and in the image.
#[derive(Clone, Debug)]
struct Run {
    lba: u64,
    index: Range<usize>,
}

/// The sectors of the volume that the image stands for.
#[derive(Clone, Debug)]
pub struct Layout {
    runs: Vec<Run>,
}

impl Layout {
    /// `sectors` in all: together at the start, or (`spread`) over borders of leaves and pages.
    pub fn new(sectors: usize, spread: bool) -> Layout {
        let page = LEAF_SECTORS * LEAVES_PER_PAGE;
        let quarter = sectors / 4;
        let places = match spread {
            false => vec![(0, sectors)],
            true => vec![
                (0, quarter),
                (LEAF_SECTORS - quarter as u64 / 2, quarter),
                (page - quarter as u64 / 3, quarter),
                (page + 5 * LEAF_SECTORS, sectors - 3 * quarter),
            ],
        };
        let mut index = 0;
        let run = |(lba, len): (u64, usize)| {
            index += len;
            Run { lba, index: index - len..index }
        };
        Layout { runs: places.into_iter().map(run).collect() }
    }

    pub fn sectors(&self) -> usize {
        self.runs.last().map_or(0, |run| run.index.end)
    }

    fn run_of(&self, index: usize) -> &Run {
        let at = self.runs.partition_point(|run| run.index.end <= index);
        &self.runs[at.min(self.runs.len() - 1)]
    }

    fn lba(&self, index: usize) -> u64 {
        let run = self.run_of(index);
        run.lba + (index - run.index.start) as u64
    }

    /// The volume's size if its image has `sectors`.
    pub fn size(&self, sectors: usize) -> SectorCount {
        SectorCount(self.lba(sectors - 1) + 1)
    }

    /// As much of `sectors` as is in one run.
    pub fn clip(&self, sectors: Range<usize>) -> Range<usize> {
        sectors.start..sectors.end.min(self.run_of(sectors.start).index.end)
    }

    /// From the first of `sectors` to the last, with what is between them.
    pub fn range(&self, sectors: &Range<usize>) -> SectorRange {
        let (start, end) = (self.lba(sectors.start), self.lba(sectors.end - 1) + 1);
        SectorRange::between(Sector(start), Sector(end))
    }

    /// The sectors of the image in `range`.
    pub fn indices(&self, range: SectorRange) -> Range<usize> {
        let index = |lba: u64| {
            let inside = |run: &Run| {
                let offset = lba.saturating_sub(run.lba).min(run.index.len() as u64);
                run.index.start + offset as usize
            };
            let after = self.runs.partition_point(|run| run.lba <= lba);
            if after == 0 { 0 } else { inside(&self.runs[after - 1]) }
        };
        index(range.start().0)..index(range.end().0)
    }

    /// The sector of the image at `lba`.
    pub fn index(&self, lba: u64) -> Option<usize> {
        let found = self.indices(SectorRange::between(Sector(lba), Sector(lba + 1)));
        (!found.is_empty()).then_some(found.start)
    }
}

/// What a write of `sectors` with `stamp` writes.
pub fn fill(sectors: Range<usize>, stamp: Stamp) -> Vec<u8> {
    let mut data = Vec::with_capacity(sectors.len() * 512);
    for sector in sectors {
        let word = u64::from(stamp) << 32 | sector as u64;
        data.extend_from_slice(&word.to_le_bytes().repeat(64));
    }
    data
}

/// The stamp in what was read of `sector`, or what is wrong with it.
pub fn stamp_of(sector: usize, data: &[u8]) -> Result<Stamp, String> {
    let (words, rest) = data.as_chunks::<8>();
    let first = u64::from_le_bytes(words[0]);
    if !rest.is_empty() || words.iter().any(|word| u64::from_le_bytes(*word) != first) {
        return Err(format!("sector {sector} is torn or damaged: {:02x?}...", &data[..16]));
    }
    let (stamp, at) = ((first >> 32) as Stamp, (first & 0xffff_ffff) as usize);
    if first == 0 || stamp != 0 && at == sector {
        return Ok(stamp);
    }
    Err(format!("sector {sector} holds what was written to {at} by change {stamp}"))
}

/// The stamps of what was read from `start` on.
pub fn stamps(start: usize, data: &[u8]) -> Result<Vec<Stamp>, String> {
    data.chunks(512).zip(start..).map(|(data, sector)| stamp_of(sector, data)).collect()
}

mod tests {
    use super::*;

    #[test]
    fn layout_maps_both_ways() {
        for spread in [false, true] {
            let layout = Layout::new(64, spread);
            assert_eq!(layout.sectors(), 64);
            for sector in 0..64 {
                assert_eq!(layout.index(layout.lba(sector)), Some(sector));
                assert_eq!(layout.indices(layout.range(&(sector..64))), sector..64);
            }
            assert_eq!(layout.index(layout.size(64).0), None);
        }
        let data = fill(3..5, 7);
        assert_eq!(stamps(3, &data), Ok(vec![7, 7]));
        assert!(stamps(4, &data).is_err());
        assert!(stamps(3, &[&data[..8], &[0; 504]].concat()).is_err());
    }
}
