//! Where sectors are, as a range map: what the map of a volume is compared with.
//!
//! A place is kept as slot and distance from the sector's own number, which is the same for all
//! sectors of an extent: so the range map joins neighbours exactly where an extent continues.

use objblk::format::page::Location;
use objblk::map::{Piece, Source};
use objblk::units::{Sector, SectorCount, SectorRange, Seq};
use rangemap::RangeMap;
use std::collections::BTreeMap;
use std::ops::Range;

/// A place in the log, for the sector it is a value of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub seq: u64,
    distance: i64,
}

impl Place {
    /// The place of `sector` that is stored at `location`.
    pub fn new(sector: u64, location: Location) -> Place {
        Place { seq: location.seq.0, distance: i64::from(location.offset) - sector as i64 }
    }

    /// Where `sector` is stored.
    pub fn location(self, sector: u64) -> Location {
        let offset = u32::try_from(self.distance + sector as i64).unwrap();
        Location { seq: Seq(self.seq), offset }
    }
}

/// Sectors that hold data.
pub type Extents = RangeMap<u64, Place>;

/// The pieces that a lookup of `range` must give.
pub fn pieces(extents: &Extents, range: Range<u64>) -> Vec<Piece> {
    let cut = |run: &Range<u64>| run.start.max(range.start)..run.end.min(range.end);
    let data = extents.overlapping(&range).map(|(run, place)| {
        let run = cut(run);
        (run.clone(), Source::Data(place.location(run.start)))
    });
    let holes = extents.gaps(&range).map(|run| (run, Source::Hole));
    let mut all: Vec<_> = data.chain(holes).collect();
    all.sort_by_key(|(run, _)| run.start);
    let piece = |(run, source): (Range<u64>, _)| Piece { range: sectors(&run), source };
    all.into_iter().map(piece).collect()
}

/// Live sectors of each slot.
pub fn live(extents: &Extents) -> BTreeMap<u64, u64> {
    let mut live = BTreeMap::new();
    for (run, place) in extents.iter() {
        *live.entry(place.seq).or_default() += run.end - run.start;
    }
    live
}

pub fn sectors(range: &Range<u64>) -> SectorRange {
    SectorRange::new(Sector(range.start), SectorCount(range.end - range.start)).unwrap()
}
