//! Where two trees differ: what has another place, page by page and leaf by leaf.

use super::leaf;
use crate::format::page::{Extent, LEAF_SECTORS, Location};

/// Entries of two lists that ascend by key, each with those of the same key, where the two are not `same`.
pub fn differing<K: Ord + Copy, T: Copy>(
    old: &[(K, T)],
    new: &[(K, T)],
    same: impl Fn(T, T) -> bool,
) -> Vec<(K, Option<T>, Option<T>)> {
    let mut found = Vec::new();
    let (mut old, mut new) = (old.iter().copied().peekable(), new.iter().copied().peekable());
    loop {
        let (a, b) = (old.peek().map(|e| e.0), new.peek().map(|e| e.0));
        let Some(key) = [a, b].into_iter().flatten().min() else { return found };
        let a = old.next_if(|e| e.0 == key).map(|e| e.1);
        let b = new.next_if(|e| e.0 == key).map(|e| e.1);
        match (a, b) {
            (Some(a), Some(b)) if same(a, b) => {}
            _ => found.push((key, a, b)),
        }
    }
}

/// Calls `moved(start, len, from, to)` for each run of sectors (from the leaf's start) that is not in the
/// same place in both, in order. `same`: whether a slot means one chunk in both.
pub fn leaves(
    old: &[Extent],
    new: &[Extent],
    same: &dyn Fn(Location) -> bool,
    moved: &mut dyn FnMut(u32, u32, Option<Location>, Option<Location>),
) {
    let (mut olds, mut news) = (Runs::of(old), Runs::of(new));
    while let (Some(from), Some(to)) = (olds.first(), news.first()) {
        let len = from.1.min(to.1);
        let is_same = match (from.2, to.2) {
            (None, None) => true,
            (Some(a), Some(b)) => a == b && same(a),
            _ => false,
        };
        if !is_same {
            moved(from.0, len, from.2, to.2);
        }
        olds.pass(len);
        news.pass(len);
    }
}

/// A run: its start, its length, its place.
type Run = (u32, u32, Option<Location>);

/// The runs of a leaf, holes included, taken from the front in pieces.
struct Runs {
    left: std::vec::IntoIter<Run>,
    first: Option<Run>,
}

impl Runs {
    fn of(extents: &[Extent]) -> Runs {
        let mut all = Vec::with_capacity(2 * extents.len() + 1);
        leaf::lookup(extents, 0, LEAF_SECTORS as u32, &mut |start, len, place| {
            all.push((start, len, place));
        });
        let mut left = all.into_iter();
        Runs { first: left.next(), left }
    }

    fn first(&self) -> Option<Run> {
        self.first
    }

    fn pass(&mut self, sectors: u32) {
        self.first = match self.first {
            Some((start, len, place)) if len > sectors => {
                let place = place.map(|place| place.advance(sectors.into()));
                Some((start + sectors, len - sectors, place))
            }
            _ => self.left.next(),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Seq;
    use proptest::prelude::*;

    const SPAN: u32 = 120;

    fn extents() -> impl Strategy<Value = Vec<Extent>> {
        prop::collection::btree_map(0..SPAN, (1u32..20, 0u64..3, 0u32..4), 0..12).prop_map(|all| {
            let mut extents: Vec<Extent> = Vec::new();
            for (start, (len, seq, offset)) in all {
                let start = extents.last().map_or(start, |last| start.max(last.end()));
                extents.push(Extent::new(start, len, Location { seq: Seq(seq), offset }));
            }
            extents
        })
    }

    fn places(extents: &[Extent]) -> Vec<Option<Location>> {
        let mut places = Vec::new();
        leaf::lookup(extents, 0, 400, &mut |_, len, place| {
            places.extend((0..len).map(|n| place.map(|place| place.advance(n.into()))));
        });
        places
    }

    proptest! {
        /// Of each sector it is told exactly when it has another place, and in order.
        #[test]
        fn equals_a_comparison_of_sectors(old in extents(), new in extents(), foreign in 0u64..4) {
            let (olds, news) = (places(&old), places(&new));
            let mut told = vec![false; olds.len()];
            let mut end = 0;
            leaves(&old, &new, &|place| place.seq.0 != foreign, &mut |start, len, from, to| {
                assert!(start >= end && len > 0);
                end = start + len;
                for n in 0..len {
                    let at = (start + n) as usize;
                    assert_eq!(from.map(|place| place.advance(n.into())), olds[at]);
                    assert_eq!(to.map(|place| place.advance(n.into())), news[at]);
                    told[at] = true;
                }
            });
            for at in 0..olds.len() {
                let foreign = olds[at].is_some_and(|place| place.seq.0 == foreign);
                prop_assert_eq!(told[at], olds[at] != news[at] || foreign, "sector {}", at);
            }
        }

        #[test]
        fn differing_entries_are_those_of_a_comparison(
            old in prop::collection::btree_map(0u32..12, 0u8..3, 0..8),
            new in prop::collection::btree_map(0u32..12, 0u8..3, 0..8),
        ) {
            let list = |map: &std::collections::BTreeMap<u32, u8>| -> Vec<(u32, u8)> {
                map.iter().map(|(key, value)| (*key, *value)).collect()
            };
            let found = differing(&list(&old), &list(&new), |a, b| a == b);
            let all = (0..12).map(|key| (key, old.get(&key).copied(), new.get(&key).copied()));
            let wanted: Vec<_> = all.filter(|(_, a, b)| a != b).collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
