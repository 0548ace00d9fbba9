//! Following a state's map from its root, beside the state before it: what both share is not read.

use super::flaw::{Flaw, Found};
use super::state::State;
use crate::error::Result;
use crate::format::page::{
    Extent, ItemRef, LEAF_SECTORS, LEAVES_PER_PAGE, MapPage, parse_leaf, parse_map_page,
};
use crate::map::base::leaf_range;
use crate::store::Store;
use crate::units::{Sector, SectorRange};
use futures::stream::{self, StreamExt};
use std::collections::{BTreeMap, BTreeSet};

/// Leaves that are read at the same time, of at most 2 MiB each.
pub(super) const PARALLEL: usize = 16;

/// What is met on the way, in the order of sectors.
#[derive(Debug)]
pub(super) enum Step<'a> {
    /// This part of the map is that of the state before.
    Same(SectorRange),
    /// An item that the state before does not have.
    New(ItemRef),
    /// An item that only the state before has.
    Gone(ItemRef),
    /// A leaf, with what it was in the state before.
    Leaf { range: SectorRange, new: &'a [Extent], old: &'a [Extent] },
    /// A part of the map that cannot be read.
    Bad { range: SectorRange, item: ItemRef, what: &'static str, flaw: &'a Flaw },
    /// A part of the map of the state before cannot be read.
    Unknown,
}

/// The sectors that a map page covers.
fn page_range(index: u32) -> SectorRange {
    let sectors = LEAVES_PER_PAGE * LEAF_SECTORS;
    let start = u64::from(index) * sectors;
    SectorRange::between(Sector(start), Sector(start + sectors))
}

/// A leaf in which two states differ.
#[derive(Clone, Copy, Debug)]
struct Pair {
    index: u64,
    new: Option<ItemRef>,
    old: Option<ItemRef>,
}

/// Follows the map of `new`. Where `old` is given, what it shares with `new` is passed over.
///
/// # Errors
/// Those of the store that tell nothing of an object.
pub(super) async fn walk(
    store: &dyn Store,
    old: Option<&State>,
    new: &State,
    step: &mut (dyn FnMut(Step<'_>) + Send),
) -> Result<()> {
    let none = BTreeMap::new();
    let old_root = old.map_or(&none, |old| &old.map_root);
    let pages: BTreeSet<u32> = new.map_root.keys().chain(old_root.keys()).copied().collect();
    for index in pages {
        let (item, before) = (new.map_root.get(&index), old_root.get(&index));
        if item == before {
            step(Step::Same(page_range(index)));
            continue;
        }
        if let Some(item) = before {
            step(Step::Gone(*item));
        }
        if let Some(item) = item {
            step(Step::New(*item));
        }
        let page = page(store, new, item).await?;
        // What hides the page before is of no interest but to the accounts.
        let page_before = page_before(store, old, before, step).await?;
        match (page, item) {
            (Err(flaw), Some(item)) => {
                let (range, what, flaw) = (page_range(index), "a page of the map", &flaw);
                step(Step::Bad { range, item: *item, what, flaw });
            }
            (page, _) => {
                let pairs = pairs(index, page.unwrap_or_default(), page_before, step);
                leaves(store, old, new, pairs, step).await?;
            }
        }
    }
    Ok(())
}

async fn page(store: &dyn Store, of: &State, item: Option<&ItemRef>) -> Result<Found<MapPage>> {
    match item {
        None => Ok(Ok(MapPage::new())),
        Some(item) => of.item(store, *item, parse_map_page).await,
    }
}

async fn page_before(
    store: &dyn Store,
    old: Option<&State>,
    item: Option<&ItemRef>,
    step: &mut (dyn FnMut(Step<'_>) + Send),
) -> Result<MapPage> {
    let Some(old) = old else { return Ok(MapPage::new()) };
    Ok(page(store, old, item).await?.unwrap_or_else(|_| {
        step(Step::Unknown);
        MapPage::new()
    }))
}

fn pairs(
    page: u32,
    new: MapPage,
    old: MapPage,
    step: &mut (dyn FnMut(Step<'_>) + Send),
) -> Vec<Pair> {
    let (new, old): (BTreeMap<u32, ItemRef>, BTreeMap<u32, ItemRef>) =
        (new.into_iter().collect(), old.into_iter().collect());
    let slots: BTreeSet<u32> = new.keys().chain(old.keys()).copied().collect();
    let mut pairs = Vec::new();
    for slot in slots {
        let index = u64::from(page) * LEAVES_PER_PAGE + u64::from(slot);
        let pair = Pair { index, new: new.get(&slot).copied(), old: old.get(&slot).copied() };
        if pair.new == pair.old {
            step(Step::Same(leaf_range(index)));
            continue;
        }
        if let Some(item) = pair.old {
            step(Step::Gone(item));
        }
        if let Some(item) = pair.new {
            step(Step::New(item));
        }
        pairs.push(pair);
    }
    pairs
}

async fn leaves(
    store: &dyn Store,
    old: Option<&State>,
    new: &State,
    pairs: Vec<Pair>,
    step: &mut (dyn FnMut(Step<'_>) + Send),
) -> Result<()> {
    let load = |pair: Pair| async move {
        let (now, before) = (leaf(store, Some(new), pair.new), leaf(store, old, pair.old));
        let (now, before) = futures::try_join!(now, before)?;
        Ok::<_, crate::error::Error>((pair, now, before))
    };
    // Boxed, as the compiler cannot tell otherwise that it may be sent.
    let mut loaded = stream::iter(pairs).map(load).buffered(PARALLEL).boxed();
    while let Some(loaded) = loaded.next().await {
        let (pair, now, before) = loaded?;
        let range = leaf_range(pair.index);
        let before = before.unwrap_or_else(|_| {
            step(Step::Unknown);
            Vec::new()
        });
        match (now, pair.new) {
            (Err(flaw), Some(item)) => {
                let (what, flaw) = ("a leaf of the map", &flaw);
                step(Step::Bad { range, item, what, flaw });
            }
            (now, _) => {
                let new = now.unwrap_or_default();
                step(Step::Leaf { range, new: &new, old: &before });
            }
        }
    }
    Ok(())
}

async fn leaf(
    store: &dyn Store,
    of: Option<&State>,
    item: Option<ItemRef>,
) -> Result<Found<Vec<Extent>>> {
    match (of, item) {
        (Some(of), Some(item)) => of.item(store, item, parse_leaf).await,
        _ => Ok(Ok(Vec::new())),
    }
}
