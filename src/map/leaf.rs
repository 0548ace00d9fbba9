//! Extents of one leaf: lookup, and merging changes into it.

use super::Source;
use super::overlay::Target;
use crate::format::page::{Extent, LEAF_SECTORS, Location};
use crate::units::Seq;

/// A change of a leaf: `len` sectors at `start` (from the leaf's start) are now `target`.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// First sector, from the leaf's start.
    pub start: u32,
    /// Number of sectors.
    pub len: u32,
    /// What they are now.
    pub target: Target,
}

/// Calls `piece(start, len, location)` for each run of `start..end` (sectors from the leaf's
/// start), in order; a run without location is a hole.
pub fn lookup(
    extents: &[Extent],
    start: u32,
    end: u32,
    piece: &mut dyn FnMut(u32, u32, Option<Location>),
) {
    let mut at = start;
    let first = position(extents, start);
    for extent in &extents[first..] {
        if extent.start() >= end {
            break;
        }
        if extent.start() > at {
            piece(at, extent.start() - at, None);
            at = extent.start();
        }
        let stop = extent.end().min(end);
        let location = extent.location().advance(u64::from(at - extent.start()));
        piece(at, stop - at, Some(location));
        at = stop;
    }
    if at < end {
        piece(at, end - at, None);
    }
}

/// Index of the first extent that ends behind `start`.
///
/// Small writes all over a leaf leave extents that are spread evenly, and thousands of them: the search
/// begins where it would be then, and widens. A bisection would touch a dozen cache lines.
fn position(extents: &[Extent], start: u32) -> usize {
    let is_before = |at: &usize| extents.get(*at).is_some_and(|e| e.end() <= start);
    let mut from = start as usize * extents.len() / LEAF_SECTORS as usize;
    let (mut to, mut step) = (from, 1);
    if is_before(&from) {
        while is_before(&to) {
            from = to + 1;
            to += step;
            step *= 2;
        }
    } else {
        while from > 0 && !is_before(&(from - 1)) {
            to = from - 1;
            from = from.saturating_sub(step);
            step *= 2;
        }
    }
    let (from, to) = (from.min(extents.len()), to.min(extents.len()));
    from + extents[from..to].partition_point(|e| e.end() <= start)
}

/// Where `start..end` (sectors from the leaf's start, not empty) is, if it is one run.
pub fn single(extents: &[Extent], start: u32, end: u32) -> Option<Source> {
    let first = position(extents, start);
    match extents.get(first) {
        Some(extent) if extent.start() <= start && end <= extent.end() => {
            Some(Source::Data(extent.location().advance(u64::from(start - extent.start()))))
        }
        Some(extent) if extent.start() < end => None,
        _ => Some(Source::Hole),
    }
}

/// The leaf after `changes` (ascending, not overlapping). `count(seq, delta)` is told how many
/// sectors of each chunk became live or dead.
pub fn merge(old: &[Extent], changes: &[Change], count: &mut dyn FnMut(Seq, i64)) -> Vec<Extent> {
    let mut new: Vec<Extent> = Vec::with_capacity(old.len() + changes.len());
    let mut rest = old.iter().copied();
    let mut current = rest.next();
    for change in changes {
        let end = change.start + change.len;
        while let Some(extent) = current.filter(|extent| extent.start() < end) {
            if extent.start() < change.start {
                push(&mut new, cut(extent, extent.start(), extent.end().min(change.start)));
            }
            let (dead, dead_end) = (extent.start().max(change.start), extent.end().min(end));
            if dead < dead_end {
                count(extent.location().seq, -i64::from(dead_end - dead));
            }
            if extent.end() > end {
                current = Some(cut(extent, end, extent.end()));
                break;
            }
            current = rest.next();
        }
        if let Target::Data(location) = change.target {
            count(location.seq, i64::from(change.len));
            push(&mut new, Extent::new(change.start, change.len, location));
        }
    }
    current.into_iter().chain(rest).for_each(|extent| push(&mut new, extent));
    new
}

fn cut(extent: Extent, start: u32, end: u32) -> Extent {
    let location = extent.location().advance(u64::from(start - extent.start()));
    Extent::new(start, end - start, location)
}

fn push(extents: &mut Vec<Extent>, next: Extent) {
    if let Some(last) = extents.last_mut()
        && last.end() == next.start()
        && last.location().advance(u64::from(last.len())) == next.location()
    {
        *last = Extent::new(last.start(), last.len() + next.len(), last.location());
        return;
    }
    extents.push(next);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::page::{encode_leaf, parse_leaf};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const SPAN: usize = 200;

    /// What [`single`] should say, by all of `start..end`.
    fn is_single(sectors: &[Option<Location>]) -> Option<Source> {
        let first = sectors[0];
        let place = |n: usize| first.map(|l| l.advance(n as u64));
        let one = sectors.iter().enumerate().all(|(n, at)| *at == place(n));
        one.then_some(first.map_or(Source::Hole, Source::Data))
    }

    fn flatten(extents: &[Extent]) -> Vec<Option<Location>> {
        let mut sectors = Vec::new();
        lookup(extents, 0, SPAN as u32, &mut |start, len, location| {
            assert_eq!(start as usize, sectors.len());
            sectors.extend((0..len).map(|n| location.map(|l| l.advance(n.into()))));
        });
        sectors
    }

    #[test]
    fn a_position_is_found_however_extents_are_spread() {
        let place = |seq: u64| Location { seq: Seq(seq), offset: 0 };
        let leaf = LEAF_SECTORS as u32;
        let even: Vec<Extent> =
            (0..leaf / 8).map(|n| Extent::new(n * 8, 8, place(n.into()))).collect();
        let at = |at: u32| Extent::new(at, 1, place(at.into()));
        let low: Vec<Extent> = (0..500).map(|n| at(n * 3)).collect();
        let high: Vec<Extent> = (0..500).map(|n| at(leaf - 1500 + n * 3)).collect();
        let both = [low.as_slice(), high.as_slice()].concat();
        for extents in [even, low, high, both, vec![at(7)], vec![]] {
            for start in (0..leaf).filter(|at| at % 61 < 3 || *at < 2000 || *at > leaf - 2000) {
                let expected = extents.partition_point(|e| e.end() <= start);
                assert_eq!(position(&extents, start), expected, "{start} of {}", extents.len());
            }
        }
    }

    fn rounds() -> impl Strategy<Value = Vec<BTreeMap<u32, (u32, Option<u32>)>>> {
        let change = (1u32..30, prop::option::of(0u32..4));
        prop::collection::vec(prop::collection::btree_map(0u32..150, change, 1..8), 1..8)
    }

    proptest! {
        /// Merging equals an array, the counts equal a recount, and the bytes round-trip.
        #[test]
        fn equals_an_array(rounds in rounds()) {
            let mut extents = Vec::new();
            let mut model = vec![None; SPAN];
            let mut live: BTreeMap<Seq, i64> = BTreeMap::new();
            for (round, changes) in rounds.into_iter().enumerate() {
                let mut list: Vec<Change> = Vec::new();
                for (start, (len, kind)) in changes {
                    let start = list.last().map_or(start, |c| start.max(c.start + c.len));
                    let len = len.min(SPAN as u32 - start);
                    if len == 0 { continue; }
                    let seq = |k| Seq((round as u64) * 8 + u64::from(k));
                    let target = match kind {
                        Some(k) => Target::Data(Location { seq: seq(k), offset: start }),
                        None => Target::Zero,
                    };
                    for n in 0..len {
                        model[(start + n) as usize] = match target {
                            Target::Data(l) => Some(l.advance(n.into())),
                            Target::Zero => None,
                        };
                    }
                    list.push(Change { start, len, target });
                }
                extents = merge(&extents, &list, &mut |seq, delta| {
                    *live.entry(seq).or_default() += delta;
                });
                extents = parse_leaf(&encode_leaf(&extents)).unwrap();
                prop_assert_eq!(&flatten(&extents), &model);
                for start in 0..SPAN as u32 {
                    for end in [start + 1, start + 8, SPAN as u32] {
                        let Some(sectors) = model.get(start as usize..end as usize) else { continue };
                        prop_assert_eq!(single(&extents, start, end), is_single(sectors));
                    }
                }
            }
            let mut recount: BTreeMap<Seq, i64> = BTreeMap::new();
            for location in model.iter().flatten() {
                *recount.entry(location.seq).or_default() += 1;
            }
            live.retain(|_, n| *n != 0);
            prop_assert_eq!(live, recount);
        }
    }
}
