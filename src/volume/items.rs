//! Decoded items of map objects: cached, loaded once for all who wait.

use super::gather::runs;
use super::options::{MapStatus, Stores};
use crate::cache::{FifoCache, Lighten};
use crate::error::{Error, Result};
use crate::flight::{Flights, Lead, Turn};
use crate::format::FormatError;
use crate::format::lineage::Lineage;
use crate::format::map_object::{ItemKind, check_item};
use crate::format::page::{
    ChunkPage, Extent, ItemRef, MapPage, parse_chunk_page, parse_leaf, parse_map_page,
};
use crate::log::fetch::unsealed;
use crate::log::suspects::Suspects;
use crate::map::{ItemSource, Missing};
use crate::store::{GetRange, Key, Store, StoreError, StoreErrorKind};
use bytes::Bytes;
use futures::future::join_all;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A decoded item.
#[derive(Clone, Debug)]
pub enum Item {
    /// A leaf.
    Leaf(Arc<Vec<Extent>>),
    /// A map page.
    MapPage(Arc<MapPage>),
    /// A chunk page.
    ChunkPage(Arc<ChunkPage>),
}

impl Item {
    fn weight(&self) -> u64 {
        let bytes = match self {
            Item::Leaf(extents) => size_of_val(extents.as_slice()),
            Item::MapPage(entries) => size_of_val(entries.as_slice()),
            Item::ChunkPage(entries) => size_of_val(entries.as_slice()),
        };
        bytes as u64 + 128
    }
}

impl Lighten for Item {}

/// Why an item could not be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ItemError {
    /// The map object is not in the store (a newer checkpoint may have replaced it).
    #[error("map object {0} is missing from the store")]
    Missing(Key),
    /// It is damaged.
    #[error("map object {0} is damaged: {1}")]
    Damaged(Key, FormatError),
    /// The store refuses or gave up.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The task that loaded it was ended.
    #[error("the volume is closing")]
    Abandoned,
}

impl From<ItemError> for Error {
    fn from(e: ItemError) -> Error {
        match e {
            ItemError::Missing(_) | ItemError::Damaged(..) => Error::corrupt(e.to_string()),
            ItemError::Store(e) => e.into(),
            ItemError::Abandoned => Error::failed(e.to_string()),
        }
    }
}

type ItemResult<T> = std::result::Result<T, ItemError>;

/// The items of one volume's map, loaded on demand.
#[derive(Debug)]
pub struct Items {
    lineage: Lineage,
    stores: Stores,
    cache: FifoCache<ItemRef, Item>,
    flights: Flights<ItemRef, ItemResult<Item>>,
    capacity: u64,
    /// Bytes of checkpoints that were stored.
    written: AtomicU64,
    /// Map objects of which one copy was damaged, and another one was read.
    pub suspects: Suspects,
}

impl Items {
    /// Items that a volume of this lineage names, of which at most `capacity` bytes are kept.
    pub fn new(lineage: Lineage, stores: &Stores, capacity: u64) -> Items {
        let (stores, cache) = (stores.clone(), FifoCache::new(capacity));
        let (flights, written) = (Flights::default(), AtomicU64::new(0));
        let suspects = Suspects::default();
        Items { lineage, stores, cache, flights, capacity, written, suspects }
    }

    /// Whose objects the items may be in.
    pub fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// `bytes` of a checkpoint were stored.
    pub fn count_written(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Relaxed);
    }

    /// Figures of the map, which has so many changes.
    pub fn status(&self, changes: usize) -> MapStatus {
        MapStatus {
            changes,
            cached_bytes: self.cache.weight(),
            budget_bytes: self.capacity,
            written_bytes: self.written.load(Relaxed),
        }
    }

    /// Loads what the lookup of a user missed.
    pub async fn load(&self, missing: Missing) -> ItemResult<()> {
        let (kind, item) = match missing {
            Missing::MapPage(item) => (ItemKind::MapPage, item),
            Missing::Leaf(item) => (ItemKind::Leaf, item),
        };
        self.get(&*self.stores.live, kind, item).await.map(drop)
    }

    /// Leaves, for a checkpoint, which replaces them: they are not kept. Neighbours take one GET.
    pub async fn leaves(&self, wanted: &[ItemRef]) -> Vec<Result<Arc<Vec<Extent>>>> {
        let mut leads = Vec::new();
        let ask = |item: &ItemRef| {
            if let Some(found) = self.cache.with(item, true, |found| Some(found.clone())) {
                return Asked::Found(found);
            }
            Asked::Waits(match self.flights.join(*item) {
                Turn::Follow(wait) => wait,
                Turn::Lead(lead) => {
                    let wait = lead.follow();
                    leads.push(lead);
                    wait
                }
            })
        };
        let asked: Vec<Asked> = wanted.iter().map(ask).collect();
        leads.sort_unstable_by_key(|lead| *lead.key());
        let runs = runs(leads, |lead| *lead.key());
        join_all(runs.into_iter().map(|run| self.fetch_leaves(run))).await;
        let mut leaves = Vec::with_capacity(asked.len());
        for asked in asked {
            let item = match asked {
                Asked::Found(item) => Ok(item),
                Asked::Waits(wait) => wait.await.unwrap_or(Err(ItemError::Abandoned)),
            };
            leaves.push(match item {
                Ok(Item::Leaf(leaf)) => Ok(leaf),
                Ok(other) => Err(wrong_kind(other)),
                Err(why) => Err(why.into()),
            });
        }
        leaves
    }

    /// Answers for leaves of one map object that are near each other, by one GET.
    async fn fetch_leaves(&self, run: Vec<Lead<ItemRef, ItemResult<Item>>>) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return };
        let (first, last) = (*first.key(), *last.key());
        let store = &*self.stores.background;
        let key = self.lineage.map_object(first.object);
        let len = u64::from(last.offset) + u64::from(last.len) - u64::from(first.offset);
        let range = GetRange::Part { offset: first.offset.into(), len };
        let got = store.get(&key, range).await;
        for lead in run {
            let item = *lead.key();
            let from = (item.offset - first.offset) as usize;
            let leaf = match got.as_ref().map(|bytes| bytes.get(from..from + item.len as usize)) {
                Ok(Some(bytes)) => decode(&key, ItemKind::Leaf, item, bytes),
                // By itself it may still be there, or a better error.
                Ok(None) => self.fetch(store, ItemKind::Leaf, item).await,
                Err(e)
                    if matches!(
                        e.kind,
                        StoreErrorKind::Range | StoreErrorKind::Damaged | StoreErrorKind::NotFound
                    ) =>
                {
                    self.fetch(store, ItemKind::Leaf, item).await
                }
                Err(e) => Err(e.clone().into()),
            };
            lead.done(match leaf {
                Err(ItemError::Damaged(..)) => self.fetch(store, ItemKind::Leaf, item).await,
                leaf => leaf,
            });
        }
    }

    /// A map page, for a checkpoint, as is what follows.
    pub async fn map_page(&self, item: ItemRef) -> Result<Arc<MapPage>> {
        match self.get(&*self.stores.background, ItemKind::MapPage, item).await? {
            Item::MapPage(page) => Ok(page),
            other => Err(wrong_kind(other)),
        }
    }

    /// A chunk page.
    pub async fn chunk_page(&self, item: ItemRef) -> Result<Arc<ChunkPage>> {
        match self.get(&*self.stores.background, ItemKind::ChunkPage, item).await? {
            Item::ChunkPage(page) => Ok(page),
            other => Err(wrong_kind(other)),
        }
    }

    /// Keeps an item that was just written.
    pub fn keep(&self, item: ItemRef, value: Item) {
        let weight = value.weight();
        self.cache.insert(item, value, weight);
    }

    async fn get(&self, store: &dyn Store, kind: ItemKind, item: ItemRef) -> ItemResult<Item> {
        if let Some(found) = self.cache.with(&item, true, |found| Some(found.clone())) {
            return Ok(found);
        }
        match self.flights.join(item) {
            Turn::Follow(wait) => {
                let _urgent = store.hurry(&self.lineage.map_object(item.object));
                let loaded = wait.await.unwrap_or(Err(ItemError::Abandoned));
                if let Ok(value) = &loaded {
                    // A checkpoint, which may lead, keeps nothing.
                    self.keep(item, value.clone());
                }
                loaded
            }
            Turn::Lead(lead) => {
                let loaded = self.fetch(store, kind, item).await;
                if let Ok(value) = &loaded {
                    self.keep(item, value.clone());
                }
                lead.done(loaded.clone());
                loaded
            }
        }
    }

    /// One GET; one more where what came is damaged: damage in transit and damage in the store look
    /// the same once, only the second is final. Then another copy, where there are several.
    async fn fetch(&self, store: &dyn Store, kind: ItemKind, item: ItemRef) -> ItemResult<Item> {
        let fetched = match self.fetch_once(store, kind, item).await {
            Err(ItemError::Damaged(..)) => self.fetch_once(store, kind, item).await,
            fetched => fetched,
        };
        if !matches!(fetched, Err(ItemError::Damaged(..) | ItemError::Missing(_))) {
            return fetched;
        }
        let key = self.lineage.map_object(item.object);
        for copy in store.copies(&key) {
            if let Ok(found) = self.fetch_once(&*copy, kind, item).await {
                self.suspects.note(key);
                return Ok(found);
            }
        }
        fetched
    }

    async fn fetch_once(
        &self,
        store: &dyn Store,
        kind: ItemKind,
        item: ItemRef,
    ) -> ItemResult<Item> {
        let key = self.lineage.map_object(item.object);
        let range = GetRange::Part { offset: item.offset.into(), len: item.len.into() };
        let bytes = match store.get(&key, range).await {
            Ok(bytes) => bytes,
            Err(e) if e.kind == StoreErrorKind::NotFound => return Err(ItemError::Missing(key)),
            // The object ends before the item.
            Err(e) if e.kind == StoreErrorKind::Range => Bytes::new(),
            Err(e) if e.kind == StoreErrorKind::Damaged => {
                return Err(ItemError::Damaged(key, unsealed("sealed map object", e)));
            }
            Err(e) => return Err(e.into()),
        };
        decode(&key, kind, item, &bytes)
    }
}

/// An item that was asked for.
enum Asked {
    Found(Item),
    Waits(crate::sync::oneshot::Receiver<ItemResult<Item>>),
}

/// The item of that kind that `bytes` are, from the object `key`.
fn decode(key: &Key, kind: ItemKind, item: ItemRef, bytes: &[u8]) -> ItemResult<Item> {
    let damaged = |e| ItemError::Damaged(key.clone(), e);
    check_item(item, bytes).map_err(damaged)?;
    Ok(match kind {
        ItemKind::Leaf => Item::Leaf(Arc::new(parse_leaf(bytes).map_err(damaged)?)),
        ItemKind::MapPage => Item::MapPage(Arc::new(parse_map_page(bytes).map_err(damaged)?)),
        ItemKind::ChunkPage => Item::ChunkPage(Arc::new(parse_chunk_page(bytes).map_err(damaged)?)),
    })
}

fn wrong_kind(item: Item) -> Error {
    Error::corrupt(format!("two items of the map have one place: {item:.40?}"))
}

impl ItemSource for Items {
    fn map_page(&self, item: ItemRef) -> Option<Arc<MapPage>> {
        let look = |item: &mut Item| match item {
            Item::MapPage(page) => Some(page.clone()),
            _ => None,
        };
        self.cache.with(&item, true, look)
    }

    fn leaf(&self, item: ItemRef) -> Option<Arc<Vec<Extent>>> {
        let look = |item: &mut Item| match item {
            Item::Leaf(leaf) => Some(leaf.clone()),
            _ => None,
        };
        self.cache.with(&item, true, look)
    }
}
