//! Writing the map's tree: changed leaves and pages into new map objects.

use super::items::{Item, Items};
use super::kept::Keeps;
use crate::error::{Error, Result};
use crate::format::VolumeId;
use crate::format::checkpoint::MapObjectUse;
use crate::format::keys::{self, MapObjectId};
use crate::format::map_object::{ItemKind, MapObjectBuilder, parse_directory};
use crate::format::page::{
    Extent, ItemRef, LEAF_SECTORS, LEAVES_PER_PAGE, encode_leaf, encode_map_page,
};
use crate::map::base::{leaf_index, leaf_range, page_of};
use crate::map::leaf::{Change, merge};
use crate::map::{Base, Overlay, Target};
use crate::store::{GetRange, Store};
use crate::units::{Epoch, Sector, SectorRange, Seq};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Bytes of items at which a map object is written and the next one begun.
const OBJECT_LEN: usize = 4 << 20;
/// Bytes of leaves loaded at the same time, but for one that is larger.
const LOAD_BYTES: u64 = 4 << 20;
/// Objects that one checkpoint empties at most.
const VICTIMS: usize = 8;

/// Packs items into map objects and keeps account of which are referenced.
pub(super) struct MapWriter<'a> {
    pub volume: VolumeId,
    pub epoch: Epoch,
    pub store: &'a dyn Store,
    pub items: &'a Items,
    /// Next unused number of this epoch.
    pub number: &'a mut u32,
    pub uses: BTreeMap<MapObjectId, MapObjectUse>,
    builder: Option<MapObjectBuilder>,
}

impl<'a> MapWriter<'a> {
    pub fn new(
        (volume, epoch): (VolumeId, Epoch),
        store: &'a dyn Store,
        items: &'a Items,
        number: &'a mut u32,
        uses: &[MapObjectUse],
    ) -> MapWriter<'a> {
        let uses = uses.iter().map(|u| (u.object, *u)).collect();
        MapWriter { volume, epoch, store, items, number, uses, builder: None }
    }

    /// Writes an item; it is in the store after [`MapWriter::finish`].
    pub async fn add(
        &mut self,
        kind: ItemKind,
        index: u64,
        bytes: &[u8],
        value: Item,
    ) -> Result<ItemRef> {
        if self.builder.as_ref().is_some_and(|b| b.len() + bytes.len() > OBJECT_LEN) {
            self.write_object().await?;
        }
        let builder = self.builder.get_or_insert_with(|| {
            let object = MapObjectId { epoch: self.epoch, number: *self.number };
            *self.number += 1;
            MapObjectBuilder::new(self.volume, object)
        });
        let item = builder.add(kind, index, bytes);
        let empty = MapObjectUse { object: item.object, total: 0, live: 0 };
        let used = self.uses.entry(item.object).or_insert(empty);
        used.total += item.len;
        used.live += item.len;
        self.items.keep(item, value);
        Ok(item)
    }

    /// The item is no longer referenced.
    pub fn release(&mut self, item: ItemRef) -> Result<()> {
        let used = self.uses.get_mut(&item.object);
        let left = used.as_ref().and_then(|used| used.live.checked_sub(item.len));
        match (used, left) {
            (Some(used), Some(left)) => {
                used.live = left;
                Ok(())
            }
            _ => Err(Error::corrupt(format!(
                "the checkpoint's account of map object {} does not add up",
                keys::map_object(self.volume, item.object)
            ))),
        }
    }

    async fn write_object(&mut self) -> Result<()> {
        let Some(builder) = self.builder.take() else { return Ok(()) };
        let key = keys::map_object(self.volume, builder.object());
        let body = Bytes::from(builder.finish());
        self.items.count_written(body.len());
        self.store.put_if_absent(&key, body).await?;
        Ok(())
    }

    /// Writes what is left. Returns the objects that are referenced, and those that no longer
    /// are.
    pub async fn finish(mut self) -> Result<(Vec<MapObjectUse>, Vec<MapObjectId>)> {
        self.write_object().await?;
        let (live, dead): (Vec<_>, Vec<_>) = self.uses.into_values().partition(|u| u.live > 0);
        Ok((live, dead.into_iter().map(|u| u.object).collect()))
    }
}

/// Items to write again although nothing changed in them, to empty mostly dead map objects.
#[derive(Debug, Default)]
pub(super) struct Moves {
    objects: BTreeSet<MapObjectId>,
    leaves: BTreeSet<u64>,
    map_pages: BTreeSet<u32>,
    pub chunk_pages: BTreeSet<u64>,
}

impl Moves {
    /// Chooses objects of which less than half is referenced and that no snapshot keeps, and reads
    /// what is in them.
    pub async fn choose(writer: &MapWriter<'_>, keeps: &Keeps) -> Moves {
        let mut moves = Moves::default();
        let is_sparse = |u: &&MapObjectUse| u.live > 0 && u.live < u.total / 2;
        let sparse = writer.uses.values().filter(is_sparse).filter(|u| !keeps.map_object(u.object));
        for used in sparse.take(VICTIMS) {
            match directory(writer, used.object).await {
                Ok(entries) => {
                    moves.objects.insert(used.object);
                    for (kind, index) in entries {
                        moves.note(kind, index);
                    }
                }
                // Its items stay where they are; only space is lost.
                Err(why) => tracing::warn!("cannot empty a map object: {why}"),
            }
        }
        moves
    }

    fn note(&mut self, kind: ItemKind, index: u64) {
        match kind {
            ItemKind::Leaf => {
                self.leaves.insert(index);
            }
            ItemKind::MapPage => {
                self.map_pages.insert(index as u32);
            }
            ItemKind::ChunkPage => {
                self.chunk_pages.insert(index);
            }
        }
    }

    /// True where the item lies in an object that is being emptied.
    pub fn moves(&self, item: ItemRef) -> bool {
        self.objects.contains(&item.object)
    }
}

async fn directory(writer: &MapWriter<'_>, object: MapObjectId) -> Result<Vec<(ItemKind, u64)>> {
    let key = keys::map_object(writer.volume, object);
    let bytes = writer.store.get(&key, GetRange::All).await?;
    let entries = parse_directory(writer.volume, object, &bytes)
        .map_err(|e| Error::corrupt(format!("map object {key} is damaged")).because(e))?;
    Ok(entries.into_iter().map(|e| (e.kind, e.index)).collect())
}

/// Sectors of each chunk that became live (or dead, negative).
pub(super) type Deltas = BTreeMap<Seq, i64>;

/// Writes the leaves and pages that `changes` and `moves` touch. Returns the new base.
pub(super) async fn rewrite(
    base: &Base,
    changes: &Overlay,
    moves: &Moves,
    writer: &mut MapWriter<'_>,
    deltas: &mut Deltas,
) -> Result<Base> {
    let mut root = base.root.clone();
    for page in touched_pages(base, changes, moves) {
        let old_ref = root.get(&page).copied();
        let old = match old_ref {
            Some(item) => writer.items.map_page(item).await?,
            None => Arc::default(),
        };
        let mut entries: BTreeMap<u32, ItemRef> = old.iter().copied().collect();
        let touched = touched_leaves(page, &entries, changes, moves);
        let unmoved = old_ref.is_some_and(|item| !moves.moves(item));
        if touched.is_empty() && (unmoved || old_ref.is_none()) {
            continue;
        }
        rewrite_leaves(&touched, &mut entries, changes, writer, deltas).await?;
        if let Some(item) = old_ref {
            writer.release(item)?;
        }
        if entries.is_empty() {
            root.remove(&page);
            continue;
        }
        let new: Vec<(u32, ItemRef)> = entries.into_iter().collect();
        let bytes = encode_map_page(&new);
        let value = Item::MapPage(Arc::new(new));
        root.insert(page, writer.add(ItemKind::MapPage, page.into(), &bytes, value).await?);
    }
    Ok(Base { root })
}

async fn rewrite_leaves(
    touched: &BTreeSet<u64>,
    entries: &mut BTreeMap<u32, ItemRef>,
    changes: &Overlay,
    writer: &mut MapWriter<'_>,
    deltas: &mut Deltas,
) -> Result<()> {
    // Batches are loaded whole: a request that nobody attends to, while an object is written, would
    // keep its turn and what others want to share of it.
    for batch in batches(touched, entries) {
        for (index, item, leaf) in load_leaves(&batch, writer.items).await {
            let list = leaf_changes(index, changes);
            let new: Vec<Extent> =
                merge(&leaf?, &list, &mut |seq, n| *deltas.entry(seq).or_default() += n);
            if let Some(item) = item {
                writer.release(item)?;
            }
            let slot = page_of(index).1;
            if new.is_empty() {
                entries.remove(&slot);
                continue;
            }
            let bytes = encode_leaf(&new);
            let value = Item::Leaf(Arc::new(new));
            entries.insert(slot, writer.add(ItemKind::Leaf, index, &bytes, value).await?);
        }
    }
    Ok(())
}

/// A leaf, the item that it is in, and its index.
type Loaded = (u64, Option<ItemRef>, Result<Arc<Vec<Extent>>>);

/// A leaf that may be stored already.
type Place = (u64, Option<ItemRef>);

/// The leaves in `touched`, by how many are loaded at the same time.
fn batches(touched: &BTreeSet<u64>, entries: &BTreeMap<u32, ItemRef>) -> Vec<Vec<Place>> {
    let mut batches: Vec<Vec<Place>> = Vec::new();
    let mut room = 0;
    for index in touched {
        let item = entries.get(&page_of(*index).1).copied();
        let len = item.map_or(0, |item| u64::from(item.len));
        match batches.last_mut().filter(|_| len <= room) {
            Some(batch) => {
                batch.push((*index, item));
                room -= len;
            }
            None => {
                batches.push(vec![(*index, item)]);
                room = LOAD_BYTES.saturating_sub(len);
            }
        }
    }
    batches
}

async fn load_leaves(batch: &[Place], items: &Items) -> Vec<Loaded> {
    let stored: Vec<ItemRef> = batch.iter().filter_map(|(_, item)| *item).collect();
    let mut leaves = items.leaves(&stored).await.into_iter();
    let loaded = batch.iter().map(|(index, item)| {
        let leaf = item.and_then(|_| leaves.next()).unwrap_or_else(|| Ok(Arc::default()));
        (*index, *item, leaf)
    });
    loaded.collect()
}

fn leaf_changes(index: u64, changes: &Overlay) -> Vec<Change> {
    let span = leaf_range(index);
    let cut = |(range, target): (SectorRange, Target)| Change {
        start: (range.start().0 - span.start().0) as u32,
        len: range.len().0 as u32,
        target,
    };
    changes.changes(span).map(cut).collect()
}

const PAGE_SECTORS: u64 = LEAVES_PER_PAGE * LEAF_SECTORS;

fn everything() -> SectorRange {
    SectorRange::between(Sector(0), Sector(u64::MAX >> 9))
}

fn touched_pages(base: &Base, changes: &Overlay, moves: &Moves) -> BTreeSet<u32> {
    let mut pages = moves.map_pages.clone();
    pages.retain(|page| base.root.contains_key(page));
    pages.extend(moves.leaves.iter().map(|leaf| page_of(*leaf).0));
    for (range, target) in changes.changes(everything()) {
        let (first, last) = (range.start().0 / PAGE_SECTORS, (range.end().0 - 1) / PAGE_SECTORS);
        match target {
            Target::Data(_) => pages.extend((first..=last).map(|page| page as u32)),
            // A trim may span the whole volume; only what is there has to be touched.
            Target::Zero => {
                let last = last.min(u32::MAX.into());
                pages.extend(base.root.range(first as u32..=last as u32).map(|(page, _)| *page));
            }
        }
    }
    pages
}

fn touched_leaves(
    page: u32,
    entries: &BTreeMap<u32, ItemRef>,
    changes: &Overlay,
    moves: &Moves,
) -> BTreeSet<u64> {
    let first_leaf = u64::from(page) * LEAVES_PER_PAGE;
    let moved = entries.iter().filter(|(_, item)| moves.moves(**item));
    let mut leaves: BTreeSet<u64> = moved.map(|(slot, _)| first_leaf + u64::from(*slot)).collect();
    let start = u64::from(page) * PAGE_SECTORS;
    let span = SectorRange::between(Sector(start), Sector(start + PAGE_SECTORS));
    for (range, target) in changes.changes(span) {
        let (first, last) = (leaf_index(range.start()), leaf_index(Sector(range.end().0 - 1)));
        match target {
            Target::Data(_) => leaves.extend(first..=last),
            Target::Zero => {
                let slots = (first - first_leaf) as u32..=(last - first_leaf) as u32;
                let there = entries.range(slots).map(|(slot, _)| first_leaf + u64::from(*slot));
                leaves.extend(there);
            }
        }
    }
    leaves
}
