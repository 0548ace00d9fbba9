//! Extents of one leaf: lookup, and merging changes into it.

use super::overlay::Target;
use crate::format::page::{Extent, Location};
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
    let first = extents.partition_point(|e| e.end() <= start);
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

    fn flatten(extents: &[Extent]) -> Vec<Option<Location>> {
        let mut sectors = Vec::new();
        lookup(extents, 0, SPAN as u32, &mut |start, len, location| {
            assert_eq!(start as usize, sectors.len());
            sectors.extend((0..len).map(|n| location.map(|l| l.advance(n.into()))));
        });
        sectors
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
