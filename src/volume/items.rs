//! Decoded items of map objects: cached, loaded once for all who wait.

use super::options::Stores;
use crate::cache::FifoCache;
use crate::error::{Error, Result};
use crate::flight::{Flights, Turn};
use crate::format::map_object::{ItemKind, check_item};
use crate::format::page::{
    ChunkPage, Extent, ItemRef, MapPage, parse_chunk_page, parse_leaf, parse_map_page,
};
use crate::format::{FormatError, VolumeId, keys};
use crate::map::{ItemSource, Missing};
use crate::store::{GetRange, Store, StoreError, StoreErrorKind};
use std::sync::Arc;

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

/// Why an item could not be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ItemError {
    /// The map object is not in the store (a newer checkpoint may have replaced it).
    #[error("map object {0} is missing from the store")]
    Missing(crate::store::Key),
    /// It is damaged.
    #[error("map object {0} is damaged: {1}")]
    Damaged(crate::store::Key, FormatError),
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

/// The items of one volume's map, loaded on demand.
#[derive(Debug)]
pub struct Items {
    volume: VolumeId,
    stores: Stores,
    cache: FifoCache<ItemRef, Item>,
    flights: Flights<ItemRef, std::result::Result<Item, ItemError>>,
}

impl Items {
    /// Items of `volume`, of which at most `capacity` bytes are kept.
    pub fn new(volume: VolumeId, stores: &Stores, capacity: u64) -> Items {
        let (stores, cache) = (stores.clone(), FifoCache::new(capacity));
        Items { volume, stores, cache, flights: Flights::default() }
    }

    /// Loads what the lookup of a user missed.
    pub async fn load(&self, missing: Missing) -> std::result::Result<(), ItemError> {
        let (kind, item) = match missing {
            Missing::MapPage(item) => (ItemKind::MapPage, item),
            Missing::Leaf(item) => (ItemKind::Leaf, item),
        };
        self.get(&*self.stores.live, kind, item).await.map(drop)
    }

    /// A leaf, for a checkpoint, as are those that follow.
    pub async fn leaf(&self, item: ItemRef) -> Result<Arc<Vec<Extent>>> {
        match self.get(&*self.stores.background, ItemKind::Leaf, item).await? {
            Item::Leaf(leaf) => Ok(leaf),
            other => Err(wrong_kind(other)),
        }
    }

    /// A map page.
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

    async fn get(
        &self,
        store: &dyn Store,
        kind: ItemKind,
        item: ItemRef,
    ) -> std::result::Result<Item, ItemError> {
        if let Some(found) = self.cache.with(&item, true, Item::clone) {
            return Ok(found);
        }
        match self.flights.join(item) {
            Turn::Follow(wait) => {
                let _urgent = store.hurry(&keys::map_object(self.volume, item.object));
                wait.await.unwrap_or(Err(ItemError::Abandoned))
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

    async fn fetch(
        &self,
        store: &dyn Store,
        kind: ItemKind,
        item: ItemRef,
    ) -> std::result::Result<Item, ItemError> {
        let key = keys::map_object(self.volume, item.object);
        let range = GetRange::Part { offset: item.offset.into(), len: item.len.into() };
        let bytes = match store.get(&key, range).await {
            Ok(bytes) => bytes,
            Err(e) if e.kind == StoreErrorKind::NotFound => return Err(ItemError::Missing(key)),
            // The object ends before the item.
            Err(e) if e.kind == StoreErrorKind::Range => bytes::Bytes::new(),
            Err(e) => return Err(e.into()),
        };
        let damaged = |e| ItemError::Damaged(key.clone(), e);
        check_item(item, &bytes).map_err(damaged)?;
        Ok(match kind {
            ItemKind::Leaf => Item::Leaf(Arc::new(parse_leaf(&bytes).map_err(damaged)?)),
            ItemKind::MapPage => Item::MapPage(Arc::new(parse_map_page(&bytes).map_err(damaged)?)),
            ItemKind::ChunkPage => {
                Item::ChunkPage(Arc::new(parse_chunk_page(&bytes).map_err(damaged)?))
            }
        })
    }
}

fn wrong_kind(item: Item) -> Error {
    Error::corrupt(format!("two items of the map have one place: {item:.40?}"))
}

impl ItemSource for Items {
    fn map_page(&self, item: ItemRef) -> Option<Arc<MapPage>> {
        let look = |item: &Item| match item {
            Item::MapPage(page) => Some(page.clone()),
            _ => None,
        };
        self.cache.with(&item, true, look)?
    }

    fn leaf(&self, item: ItemRef) -> Option<Arc<Vec<Extent>>> {
        let look = |item: &Item| match item {
            Item::Leaf(leaf) => Some(leaf.clone()),
            _ => None,
        };
        self.cache.with(&item, true, look)?
    }
}
