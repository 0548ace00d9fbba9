//! What snapshots keep from being deleted.
//!
//! The states of a volume at its snapshots and now are a tree: each came from the one before it, and
//! after a rollback several came from one. Nothing that was lost comes back on the way from a state to
//! one that came from it, so an object that two of them need is needed by all between. Therefore
//! * what the volume loses is garbage unless its base, the snapshot that it came from, needs it;
//! * what a deleted snapshot needed is garbage unless one of its neighbours needs it: the one before it,
//!   and the one that came from it. Where several came from it, it stays until that is over.
//!
//! What belongs to an ancestor of a clone is never garbage of the clone.
//!
//! An object of a snapshot that cannot be read says nothing: then nothing is garbage on its account, which
//! costs space and no data.

use super::census::Runs;
use super::items::Items;
use super::snapshots;
use super::{Stores, look};
use crate::error::{ErrorKind, Result};
use crate::format::checkpoint::{Checkpoint, Garbage};
use crate::format::keys::MapObjectId;
use crate::format::lineage::Lineage;
use crate::format::page::{CHUNKS_PER_PAGE, ItemRef};
use crate::format::volume::VolumeObject;
use crate::format::{SnapshotId, VolumeId};
use crate::mutant::{self, Mutant};
use crate::store::{Key, Store};
use crate::units::Seq;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Bytes of items that are kept while a state is looked at.
const ITEMS: u64 = 1 << 20;

/// What a state of the volume needs.
#[derive(Debug)]
pub(super) struct Needed {
    map_objects: BTreeSet<MapObjectId>,
    chunk_root: BTreeMap<u64, ItemRef>,
}

/// `None`: that cannot be told.
pub(super) type Needs = Option<Arc<Needed>>;

impl Needed {
    pub fn by(checkpoint: &Checkpoint) -> Needed {
        let map_objects = checkpoint.map_objects.iter().map(|used| used.object).collect();
        Needed { map_objects, chunk_root: checkpoint.chunk_root.iter().copied().collect() }
    }

    /// Whether the state needs objects of ancestors.
    ///
    /// # Errors
    /// Store.
    pub async fn is_foreign(&self, items: &Items) -> Result<bool> {
        let lineage = items.lineage();
        if self.map_objects.iter().any(|object| !lineage.owns_map_object(*object)) {
            return Ok(true);
        }
        let first = lineage.first_slot();
        for page in self.chunk_root.keys().filter(|page| *page * CHUNKS_PER_PAGE < first.0) {
            let slots = slots(items, *page, self).await?;
            if slots.is_none_or(|slots| slots.iter().any(|seq| !lineage.owns_slot(*seq))) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether the state of the checkpoint `key` of a clone needs objects of its ancestors; `None`: there is no such checkpoint.
///
/// # Errors
/// Corrupt: it cannot be read. Store.
pub async fn needs_ancestors(
    store: &Arc<dyn Store>,
    description: &VolumeObject,
    key: &Key,
) -> Result<Option<bool>> {
    let found = look::read_checkpoint(&**store, description.id, key).await?;
    let Some(checkpoint) = found else { return Ok(None) };
    let items = Items::new(description.lineage(), &Stores::one(store.clone()), ITEMS);
    Ok(Some(Needed::by(&checkpoint).is_foreign(&items).await?))
}

/// What nothing of may become garbage.
#[derive(Clone, Debug)]
pub(super) struct Keeps {
    pub by_base: ByBase,
    pub lineage: Lineage,
}

/// What the base keeps.
#[derive(Clone, Debug)]
pub(super) enum ByBase {
    /// There is no snapshot.
    Nothing,
    /// What it needs.
    Needed(Arc<Needed>),
    /// It cannot be told.
    All,
}

impl Keeps {
    /// Whether a map object that is no longer referenced is kept.
    pub fn map_object(&self, object: MapObjectId) -> bool {
        if !self.lineage.owns_map_object(object) {
            return true;
        }
        match &self.by_base {
            ByBase::Nothing => false,
            ByBase::Needed(_) if mutant::on(Mutant::SnapshotMapNotKept) => false,
            ByBase::Needed(needed) => needed.map_objects.contains(&object),
            ByBase::All => true,
        }
    }

    /// Takes out of `gone`, slots of the chunk page `page` that hold nothing live any more, those that
    /// are kept.
    ///
    /// # Errors
    /// Store.
    pub async fn spare(&self, page: u64, gone: &mut BTreeSet<Seq>, items: &Items) -> Result<()> {
        gone.retain(|seq| self.lineage.owns_slot(*seq));
        match &self.by_base {
            ByBase::Nothing => {}
            ByBase::All => gone.clear(),
            ByBase::Needed(_) if gone.is_empty() => {}
            ByBase::Needed(needed) => match slots(items, page, needed).await? {
                Some(needed) => gone.retain(|seq| !needed.contains(seq)),
                None => gone.clear(),
            },
        }
        Ok(())
    }
}

/// Slots of a chunk page that a state needs; `None`: that cannot be told.
async fn slots(items: &Items, page: u64, needed: &Needed) -> Result<Option<BTreeSet<Seq>>> {
    let Some(item) = needed.chunk_root.get(&page) else { return Ok(Some(BTreeSet::new())) };
    match items.chunk_page(*item).await {
        Ok(entries) => {
            let seq = |slot: u32| Seq(page * CHUNKS_PER_PAGE + u64::from(slot));
            Ok(Some(entries.iter().map(|(slot, _)| seq(*slot)).collect()))
        }
        Err(why) if why.kind() == ErrorKind::Corrupt => {
            tracing::error!("what a snapshot needs cannot be told, more is kept: {why}");
            Ok(None)
        }
        Err(why) => Err(why),
    }
}

/// What a snapshot needs.
///
/// # Errors
/// Store.
pub(super) async fn needs(store: &dyn Store, volume: VolumeId, id: SnapshotId) -> Result<Needs> {
    match snapshots::read(store, volume, id).await {
        Ok(object) => Ok(Some(Arc::new(Needed::by(&object.checkpoint)))),
        Err(why) if matches!(why.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
            tracing::error!("what a snapshot needs cannot be told, more is kept: {why}");
            Ok(None)
        }
        Err(why) => Err(why),
    }
}

/// What only `own` needs and none of its neighbours.
///
/// # Errors
/// Store.
pub(super) async fn only(
    items: &Items,
    own: &Needed,
    neighbours: &[Arc<Needed>],
    garbage: &mut Vec<Garbage>,
) -> Result<()> {
    let lineage = items.lineage();
    let is_needed =
        |object: &MapObjectId| neighbours.iter().any(|n| n.map_objects.contains(object));
    let objects = own.map_objects.iter().filter(|object| lineage.owns_map_object(**object));
    garbage.extend(objects.filter(|object| !is_needed(object)).copied().map(Garbage::Map));
    let mut dead = Runs::default();
    for (page, item) in &own.chunk_root {
        if neighbours.iter().any(|n| n.chunk_root.get(page) == Some(item)) {
            continue;
        }
        let Some(mut gone) = slots(items, *page, own).await? else { continue };
        gone.retain(|seq| lineage.owns_slot(*seq));
        for neighbour in neighbours {
            match slots(items, *page, neighbour).await? {
                Some(needed) => gone.retain(|seq| !needed.contains(seq)),
                None => gone.clear(),
            }
        }
        gone.into_iter().for_each(|seq| dead.push(seq));
    }
    garbage.extend(dead.into_garbage());
    Ok(())
}
