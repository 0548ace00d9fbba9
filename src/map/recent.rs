//! The leaves that were looked up last, at hand. Pure.
//!
//! A lookup in the tree asks for a page and a leaf by the names of immutable objects: two locks and two
//! tables. Most lookups are near the ones before them, so a few leaves are kept by their index.
//! Invariant: what is in here is of the base that it was noted for; a new base begins with nothing.

use crate::format::page::Extent;
use std::sync::Arc;

/// Leaves that are kept, one for each of so many classes of indexes.
const PLACES: usize = 64;
/// Extents of all of them at most: 8 MiB.
const EXTENTS_MAX: usize = 512 << 10;

/// A leaf and its index.
type Entry = (u64, Arc<Vec<Extent>>);

/// See the module.
#[derive(Debug, Default)]
pub struct Recent {
    places: Vec<Option<Entry>>,
    extents: usize,
}

impl Recent {
    /// The leaf, if it is one of these.
    pub fn leaf(&self, index: u64) -> Option<&[Extent]> {
        match self.places.get(index as usize % PLACES)? {
            Some((of, leaf)) if *of == index => Some(leaf),
            _ => None,
        }
    }

    /// The leaf of `index` was looked up. A leaf that is large is not kept.
    pub fn note(&mut self, index: u64, leaf: &Arc<Vec<Extent>>) {
        if leaf.len() > EXTENTS_MAX / PLACES * 4 {
            return;
        }
        if self.extents + leaf.len() > EXTENTS_MAX || self.places.is_empty() {
            self.places.clear();
            self.places.resize(PLACES, None);
            self.extents = 0;
        }
        let before = self.places[index as usize % PLACES].replace((index, leaf.clone()));
        self.extents += leaf.len();
        self.extents -= before.map_or(0, |(_, leaf)| leaf.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::page::Location;
    use crate::units::Seq;

    fn leaf(extents: usize, seq: u64) -> Arc<Vec<Extent>> {
        let extent = |n| Extent::new(n as u32, 1, Location { seq: Seq(seq), offset: 0 });
        Arc::new((0..extents).map(extent).collect())
    }

    #[test]
    fn a_leaf_is_found_by_its_own_index_only() {
        let mut recent = Recent::default();
        assert_eq!(recent.leaf(3), None);
        recent.note(3, &leaf(2, 7));
        assert_eq!(recent.leaf(3).map(<[Extent]>::len), Some(2));
        assert_eq!(recent.leaf(3 + PLACES as u64), None);
        recent.note(3 + PLACES as u64, &leaf(5, 8));
        assert_eq!(recent.leaf(3), None);
        assert_eq!(recent.leaf(3 + PLACES as u64).map(<[Extent]>::len), Some(5));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut recent = Recent::default();
        for index in 0..1000 {
            recent.note(index, &leaf(16 << 10, index));
            let kept = recent.places.iter().flatten().map(|(_, leaf)| leaf.len()).sum::<usize>();
            assert!(kept == recent.extents && kept <= EXTENTS_MAX);
            assert!(recent.leaf(index).is_some());
        }
        recent.note(1, &leaf(EXTENTS_MAX / PLACES * 4 + 1, 1));
        assert_eq!(recent.leaf(1), None, "it is too large");
    }
}
