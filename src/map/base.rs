//! The base: root of an immutable tree of map pages and leaves.

use super::Source;
use super::leaf;
use crate::format::page::{Extent, ItemRef, LEAF_SECTORS, LEAVES_PER_PAGE, MapPage};
use crate::units::{Sector, SectorRange};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Items of the tree that are in memory.
pub trait ItemSource {
    /// The map page, if it is in memory.
    fn map_page(&self, item: ItemRef) -> Option<Arc<MapPage>>;
    /// The leaf, if it is in memory.
    fn leaf(&self, item: ItemRef) -> Option<Arc<Vec<Extent>>>;
}

/// An item that a lookup needs and that is not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// A map page.
    MapPage(ItemRef),
    /// A leaf.
    Leaf(ItemRef),
}

/// Root of the map tree of a checkpoint: map pages by index.
#[derive(Clone, Debug, Default)]
pub struct Base {
    /// Where each page is; a page that is not there is a hole of 64 GiB.
    pub root: BTreeMap<u32, ItemRef>,
}

/// Index of the leaf that covers a sector.
pub fn leaf_index(at: Sector) -> u64 {
    at.0 / LEAF_SECTORS
}

/// The sectors that a leaf covers.
pub fn leaf_range(index: u64) -> SectorRange {
    SectorRange::between(Sector(index * LEAF_SECTORS), Sector((index + 1) * LEAF_SECTORS))
}

/// Page of a leaf, and its index in the page.
pub fn page_of(leaf: u64) -> (u32, u32) {
    ((leaf / LEAVES_PER_PAGE) as u32, (leaf % LEAVES_PER_PAGE) as u32)
}

/// The entry of `index` in a page.
pub fn find_leaf(page: &MapPage, index: u32) -> Option<ItemRef> {
    let at = page.binary_search_by_key(&index, |(i, _)| *i).ok()?;
    Some(page[at].1)
}

impl Base {
    /// The leaf of an index, if there is one: all of it is a hole otherwise.
    ///
    /// # Errors
    /// [`Missing`]: load it, and ask again.
    pub fn leaf(
        &self,
        index: u64,
        items: &dyn ItemSource,
    ) -> Result<Option<Arc<Vec<Extent>>>, Missing> {
        let (page, slot) = page_of(index);
        let Some(&page_ref) = self.root.get(&page) else { return Ok(None) };
        let page = items.map_page(page_ref).ok_or(Missing::MapPage(page_ref))?;
        let Some(leaf_ref) = find_leaf(&page, slot) else { return Ok(None) };
        items.leaf(leaf_ref).map(Some).ok_or(Missing::Leaf(leaf_ref))
    }

    /// Calls `piece` for each run of `range`, in order.
    ///
    /// # Errors
    /// [`Missing`]: the pieces before it were given; load it and ask for the rest.
    pub fn lookup(
        &self,
        range: SectorRange,
        items: &dyn ItemSource,
        piece: &mut dyn FnMut(SectorRange, Source),
    ) -> Result<(), Missing> {
        let mut at = range.start();
        while at < range.end() {
            let index = leaf_index(at);
            let (page, slot) = page_of(index);
            let Some(&page_ref) = self.root.get(&page) else {
                let page_end = Sector((u64::from(page) + 1) * LEAVES_PER_PAGE * LEAF_SECTORS);
                let run = SectorRange::between(at, range.end().min(page_end));
                piece(run, Source::Hole);
                at = run.end();
                continue;
            };
            let loaded = items.map_page(page_ref).ok_or(Missing::MapPage(page_ref))?;
            let run = SectorRange::between(at, range.end()).intersect(leaf_range(index));
            match find_leaf(&loaded, slot) {
                None => piece(run, Source::Hole),
                Some(leaf_ref) => {
                    let extents = items.leaf(leaf_ref).ok_or(Missing::Leaf(leaf_ref))?;
                    let origin = leaf_range(index).start().0;
                    let (start, end) = (run.start().0 - origin, run.end().0 - origin);
                    leaf::lookup(&extents, start as u32, end as u32, &mut |start, len, place| {
                        let start = Sector(origin + u64::from(start));
                        let run = SectorRange::between(start, Sector(start.0 + u64::from(len)));
                        piece(run, place.map_or(Source::Hole, Source::Data));
                    });
                }
            }
            at = run.end();
        }
        Ok(())
    }
}
