//! A state of a volume: the volume now, or one of its snapshots.

use super::flaw::{Flaw, Found};
use crate::error::Result;
use crate::format::FormatResult;
use crate::format::checkpoint::{Checkpoint, MapObjectUse};
use crate::format::keys::ChunkId;
use crate::format::lineage::Lineage;
use crate::format::map_object::check_item;
use crate::format::page::ItemRef;
use crate::log::Terms;
use crate::log::fetch::unsealed;
use crate::map::Overlay;
use crate::store::{GetRange, Store, StoreErrorKind};
use crate::units::{Sector, SectorCount, SectorRange, Seq};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is to be followed.
#[derive(Debug)]
pub(super) struct State {
    /// NAME or NAME@SNAP.
    pub name: String,
    pub lineage: Lineage,
    pub map_root: BTreeMap<u32, ItemRef>,
    pub chunk_root: BTreeMap<u64, ItemRef>,
    pub map_objects: Vec<MapObjectUse>,
    /// Every slot before this one may be named by the map's tree.
    pub next: Seq,
    pub live: SectorCount,
    pub terms: Terms,
    pub size: SectorCount,
    /// Size as of when the tree was made: what was cut off since is in `changes`.
    pub tree_size: SectorCount,
    /// What hides the tree.
    pub changes: Arc<Overlay>,
}

impl State {
    /// What a checkpoint says, without what the log has behind it.
    pub fn of(name: String, lineage: Lineage, checkpoint: &Checkpoint) -> State {
        State {
            name,
            lineage,
            map_root: checkpoint.map_root.iter().copied().collect(),
            chunk_root: checkpoint.chunk_root.iter().copied().collect(),
            map_objects: checkpoint.map_objects.clone(),
            next: checkpoint.next,
            live: checkpoint.live,
            terms: Terms::new(checkpoint.terms.clone()),
            size: checkpoint.size,
            tree_size: checkpoint.size,
            changes: Arc::default(),
        }
    }

    /// All its sectors.
    pub fn all(&self) -> SectorRange {
        SectorRange::between(Sector(0), Sector(self.size.0))
    }

    /// The chunk in a slot.
    pub fn chunk(&self, seq: Seq) -> ChunkId {
        self.lineage.chunk(seq, self.terms.epoch_of(seq))
    }

    /// Reads an item of its map; one that is damaged once more.
    ///
    /// # Errors
    /// Those of the store that tell nothing of the object.
    pub async fn item<T>(
        &self,
        store: &dyn Store,
        item: ItemRef,
        parse: fn(&[u8]) -> FormatResult<T>,
    ) -> Result<Found<T>> {
        let first = self.item_once(store, item, parse).await?;
        match first {
            Err(Flaw::Damaged(_)) => self.item_once(store, item, parse).await,
            first => Ok(first),
        }
    }

    async fn item_once<T>(
        &self,
        store: &dyn Store,
        item: ItemRef,
        parse: fn(&[u8]) -> FormatResult<T>,
    ) -> Result<Found<T>> {
        let key = self.lineage.map_object(item.object);
        // Of a length of zero no range can be asked for, and no item has it.
        let range = GetRange::Part { offset: item.offset.into(), len: u64::from(item.len.max(1)) };
        let bytes = match store.get(&key, range).await {
            Ok(bytes) => bytes,
            Err(e) if e.kind == StoreErrorKind::NotFound => return Ok(Err(Flaw::Missing)),
            // The object ends before the item.
            Err(e) if e.kind == StoreErrorKind::Range => bytes::Bytes::new(),
            Err(e) if e.kind == StoreErrorKind::Damaged => {
                return Ok(Err(Flaw::Damaged(unsealed("sealed map object", e))));
            }
            Err(e) => return Err(e.into()),
        };
        Ok(check_item(item, &bytes).and_then(|()| parse(&bytes)).map_err(Flaw::from))
    }
}
