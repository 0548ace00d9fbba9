//! The overlay: changed extents that are not in the base yet, over the whole volume.
//!
//! One entry covers a run of any length, so discarding a whole volume is one entry.
//! Invariant: entries are not empty, do not overlap, and neighbours that continue each other are
//! one entry.

use crate::format::page::Location;
use crate::units::{Sector, SectorCount, SectorRange};
use std::collections::BTreeMap;

/// What a run of sectors was changed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Zeros: trimmed or zeroed.
    Zero,
    /// Data in a chunk.
    Data(Location),
}

impl Target {
    /// The target of what begins `sectors` into the run.
    fn advance(self, sectors: u64) -> Target {
        match self {
            Target::Zero => Target::Zero,
            Target::Data(location) => Target::Data(location.advance(sectors)),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    end: u64,
    target: Target,
}

/// The entries on both sides of a run, the left one with its position.
type Neighbours = (Option<(u64, Entry)>, Option<Entry>);

/// Changed extents, sorted by position.
#[derive(Debug, Default)]
pub struct Overlay {
    entries: BTreeMap<u64, Entry>,
}

impl Overlay {
    /// Number of extents.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True where nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// `range` is now `target`, whatever it was.
    pub fn insert(&mut self, range: SectorRange, target: Target) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end, mut target) = (range.start().0, range.end().0, target);
        let (left, right) = match self.apart(start, end) {
            Some(neighbours) => neighbours,
            None => {
                self.cut(start, end);
                let left = self.entries.range(..start).next_back().map(|(at, e)| (*at, *e));
                (left, self.entries.get(&end).copied())
            }
        };
        if let Some((at, entry)) = left
            && entry.end == start
            && entry.target.advance(start - at) == target
        {
            target = entry.target;
            start = at;
        }
        if let Some(right) = right
            && target.advance(end - start) == right.target
        {
            self.entries.remove(&end);
            end = right.end;
        }
        self.entries.insert(start, Entry { end, target });
    }

    /// As [`Overlay::insert`]; quicker where `range` is one entry whose new target continues none beside it.
    pub fn replace(&mut self, range: SectorRange, target: Target) {
        match self.entries.get_mut(&range.start().0) {
            Some(entry) if entry.end == range.end().0 => entry.target = target,
            _ => self.insert(range, target),
        }
    }

    /// The entry before `start..end` and the one that begins at `end`, where there are such; `None`
    /// where something between them is known. One walk down the tree: most writes are of this kind.
    fn apart(&self, start: u64, end: u64) -> Option<Neighbours> {
        let mut before = self.entries.range(..=end).rev().map(|(at, entry)| (*at, *entry));
        let mut left = before.next();
        let right = left.filter(|(at, _)| *at == end).map(|(_, entry)| entry);
        if right.is_some() {
            left = before.next();
        }
        left.is_none_or(|(_, entry)| entry.end <= start).then_some((left, right))
    }

    /// Removes all knowledge of `start..end`.
    fn cut(&mut self, start: u64, end: u64) {
        if let Some((&left, &entry)) = self.entries.range(..start).next_back()
            && entry.end > start
        {
            self.entries.insert(left, Entry { end: start, ..entry });
            if entry.end > end {
                let target = entry.target.advance(end - left);
                self.entries.insert(end, Entry { end: entry.end, target });
                return;
            }
        }
        while let Some((&at, &entry)) = self.entries.range(start..end).next() {
            self.entries.remove(&at);
            if entry.end > end {
                let target = entry.target.advance(end - at);
                self.entries.insert(end, Entry { end: entry.end, target });
                return;
            }
        }
    }

    /// Length of the first run of `range` (not empty) that is one change, with its target, or
    /// that is not changed at all.
    pub fn first(&self, range: SectorRange) -> (SectorCount, Option<Target>) {
        let (start, end) = (range.start().0, range.end().0);
        if let Some((&left, entry)) = self.entries.range(..=start).next_back()
            && entry.end > start
        {
            let target = entry.target.advance(start - left);
            return (SectorCount(entry.end.min(end) - start), Some(target));
        }
        let next = self.entries.range(start..end).next().map_or(end, |(&at, _)| at);
        (SectorCount(next - start), None)
    }

    /// Where the whole of `range` lies contiguously in one chunk.
    pub fn covering(&self, range: SectorRange) -> Option<Location> {
        let start = range.start().0;
        let (&at, entry) = self.entries.range(..=start).next_back()?;
        match entry.target {
            Target::Data(location) if entry.end >= range.end().0 => {
                Some(location.advance(start - at))
            }
            _ => None,
        }
    }

    /// Every change that meets `range`, cut to it, ascending.
    pub fn changes(&self, range: SectorRange) -> impl Iterator<Item = (SectorRange, Target)> + '_ {
        let first = self.entries.range(..range.start().0).next_back();
        first.into_iter().chain(self.entries.range(range.start().0..range.end().0)).filter_map(
            move |(&at, entry)| {
                let whole = SectorRange::between(Sector(at), Sector(entry.end));
                let cut = whole.intersect(range);
                (!cut.is_empty()).then(|| (cut, entry.target.advance(cut.start().0 - at)))
            },
        )
    }

    /// The first position at or after `at` that is changed.
    pub fn next_change(&self, at: Sector) -> Option<Sector> {
        if let Some((_, entry)) = self.entries.range(..at.0).next_back()
            && entry.end > at.0
        {
            return Some(at);
        }
        self.entries.range(at.0..).next().map(|(&at, _)| Sector(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Seq;
    use proptest::prelude::*;

    fn data(seq: u64, offset: u32) -> Target {
        Target::Data(Location { seq: Seq(seq), offset })
    }

    fn range(start: u64, len: u64) -> SectorRange {
        SectorRange::new(Sector(start), SectorCount(len)).unwrap()
    }

    #[test]
    fn neighbours_that_continue_join() {
        let mut o = Overlay::default();
        o.insert(range(0, 8), data(1, 0));
        o.insert(range(16, 8), data(1, 16));
        o.insert(range(8, 8), data(1, 8));
        assert_eq!(o.len(), 1);
        assert_eq!(o.covering(range(4, 16)), Some(Location { seq: Seq(1), offset: 4 }));
        o.insert(range(8, 8), Target::Zero);
        assert_eq!(o.len(), 3);
        assert_eq!(o.covering(range(4, 8)), None);
    }

    #[test]
    fn a_change_far_away_is_none_of_a_range() {
        let mut o = Overlay::default();
        o.insert(range(0, 8), data(1, 8));
        o.insert(range(1 << 41, 8), data(1, 16));
        let changes: Vec<_> = o.changes(range(1 << 41, 1 << 17)).collect();
        assert_eq!(changes, [(range(1 << 41, 8), data(1, 16))]);
    }

    proptest! {
        #[test]
        fn equals_an_array(ops in prop::collection::vec((0u64..64, 1u64..40, 0u64..4), 1..60)) {
            let mut o = Overlay::default();
            let mut model = [None; 128];
            for (i, (start, len, kind)) in ops.into_iter().enumerate() {
                let target = if kind == 0 { Target::Zero } else { data(kind, i as u32 * 64) };
                o.insert(range(start, len), target);
                for n in 0..len {
                    model[(start + n) as usize] = Some(target.advance(n));
                }
            }
            for (at, expected) in model.iter().enumerate() {
                let (len, found) = o.first(range(at as u64, 1));
                prop_assert_eq!((len.0, found), (1, *expected));
            }
            let mut seen = [None; 128];
            for (r, target) in o.changes(range(3, 100)) {
                for n in 0..r.len().0 {
                    seen[(r.start().0 + n) as usize] = Some(target.advance(n));
                }
            }
            prop_assert_eq!(&seen[3..103], &model[3..103]);
            let mut ends: Vec<_> = o.entries.iter().map(|(a, e)| (*a, e.end, e.target)).collect();
            ends.windows(2).for_each(|w| {
                assert!(w[0].1 <= w[1].0);
                assert!(w[0].1 < w[1].0 || w[0].2.advance(w[0].1 - w[0].0) != w[1].2);
            });
            ends.dedup();
            prop_assert_eq!(ends.len(), o.len());
        }
    }
}
