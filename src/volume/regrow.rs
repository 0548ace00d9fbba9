//! Leaves of the map that are damaged in the store, made again.
//!
//! A leaf is what the records of the log made of its span, and the headers of chunks keep those for as long as
//! the chunks are there. What they say is replayed; it is the leaf if it has the length and the checksum that
//! the map has of it, and nothing otherwise: where a chunk has gone that trimmed something, say, or the volume
//! was rolled back. An owner may have the leaf in memory, too.
//!
//! Nothing is put in the place of what is damaged. A leaf that was made again is kept in memory, a piece of its
//! data is moved so that it changes, and the next checkpoint writes it anew. Snapshots go on to need the old one.

use super::checkpoint;
use super::items::Item;
use super::mend::Mending;
use super::pace::{Pace, Tempo};
use super::shared::Shared;
use super::victims::{Live, relocate};
use crate::error::{Error, ErrorKind, Result};
use crate::format::keys::{self, ChunkId, MapObjectId};
use crate::format::map_object::check_item;
use crate::format::page::{Extent, ItemRef, LEAVES_PER_PAGE, Location, encode_leaf};
use crate::format::record::Record;
use crate::log::fetch::{FetchError, fetch_header};
use crate::map::base::leaf_range;
use crate::map::leaf::{Change, merge};
use crate::map::{ItemSource, Overlay, Target};
use crate::store::{GetRange, StoreErrorKind, list_all};
use crate::units::{SECTOR_SIZE, Sector, SectorCount, SectorRange, Seq};
use futures::stream::{self, StreamExt};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Headers that are read at the same time.
const PARALLEL: usize = 16;
/// Sectors that are moved for the sake of their leaf.
const PIECE: u32 = 8;

/// Damaged leaves, by number.
type Leaves = BTreeMap<u64, ItemRef>;

/// Makes the leaves of the volume's map again that are damaged in this map object.
///
/// # Errors
/// Store. Those of a write.
pub(super) async fn regrow(shared: &Arc<Shared>, object: MapObjectId) -> Result<Mending> {
    let Damaged { mut leaves, others } = damaged(shared, object).await?;
    if leaves.is_empty() {
        return Ok(if others { Mending::Lost } else { Mending::Unneeded });
    }
    let wanted = leaves.len();
    let mut grown = BTreeMap::new();
    leaves.retain(|index, item| match shared.items.leaf(*item) {
        Some(leaf) => {
            grown.insert(*index, (*item, leaf));
            false
        }
        None => true,
    });
    if !leaves.is_empty() {
        for (index, leaf) in replayed(shared, &leaves).await? {
            let bytes = encode_leaf(&leaf);
            if let Some(item) = leaves.get(&index).filter(|item| check_item(**item, &bytes).is_ok())
            {
                grown.insert(index, (*item, Arc::new(leaf)));
            }
        }
    }
    let mut made = 0;
    for (index, (item, leaf)) in grown {
        shared.items.keep(item, Item::Leaf(leaf.clone()));
        if !stir(shared, index, &leaf).await? {
            continue;
        }
        shared.flush().await.map_err(|e| Error::failed("the map is not stored").because(e))?;
        // One after the other, so that each is in memory still.
        match checkpoint::run(shared, checkpoint::Kind::Running).await {
            Ok(()) => made += 1,
            // Another part of the map is damaged.
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                tracing::warn!(volume = %shared.id, "a leaf is not stored again: {e}");
            }
            Err(e) => return Err(e),
        }
    }
    Ok(if made == wanted && !others { Mending::Made } else { Mending::Lost })
}

/// What of a map object is damaged that the volume as it is now needs.
struct Damaged {
    leaves: Leaves,
    /// Pages are, too.
    others: bool,
}

async fn damaged(shared: &Shared, object: MapObjectId) -> Result<Damaged> {
    let mut found = Damaged { leaves: Leaves::new(), others: false };
    let root = shared.state().map.base().root.clone();
    for (page, item) in root {
        found.others |= item.object == object && !is_whole(shared, item).await?;
        let entries = match shared.items.map_page(item).await {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::Store => return Err(e),
            Err(_) => continue,
        };
        for (slot, item) in entries.iter().filter(|(_, item)| item.object == object) {
            if !is_whole(shared, *item).await? {
                let index = u64::from(page) * LEAVES_PER_PAGE + u64::from(*slot);
                found.leaves.insert(index, *item);
            }
        }
    }
    let pages = shared.checkpointer.lock().await.last().chunk_root.clone();
    for (_, item) in pages.into_iter().filter(|(_, item)| item.object == object) {
        found.others |= !is_whole(shared, item).await?;
    }
    Ok(found)
}

/// Whether the store has the item as it was written.
async fn is_whole(shared: &Shared, item: ItemRef) -> Result<bool> {
    let key = shared.lineage.map_object(item.object);
    let range = GetRange::Part { offset: item.offset.into(), len: item.len.into() };
    match shared.stores.setup.get(&key, range).await {
        Ok(bytes) => Ok(check_item(item, &bytes).is_ok()),
        Err(e)
            if matches!(
                e.kind,
                StoreErrorKind::NotFound | StoreErrorKind::Range | StoreErrorKind::Damaged
            ) =>
        {
            Ok(false)
        }
        Err(e) => Err(e.into()),
    }
}

/// What the headers in the store say of these leaves; nothing after a rollback.
async fn replayed(shared: &Shared, leaves: &Leaves) -> Result<BTreeMap<u64, Vec<Extent>>> {
    let store = &*shared.stores.setup;
    let next = shared.checkpointer.lock().await.last().next;
    let mut ids = Vec::new();
    let ancestors = shared.description.ancestors.iter().map(|ancestor| ancestor.volume);
    for volume in ancestors.chain([shared.id]) {
        for object in list_all(store, &keys::log(volume)).await? {
            let Some((seq, epoch)) = keys::parse_slot(volume, &object.key) else { continue };
            let id = ChunkId { volume, epoch, seq };
            if seq < next && shared.chunk_id(&shared.state(), seq) == id {
                ids.push(id);
            }
        }
    }
    ids.sort_by_key(|id| id.seq);
    let mut spans: BTreeMap<u64, Overlay> =
        leaves.keys().map(|index| (*index, Overlay::default())).collect();
    let look = |id: ChunkId| async move { (id, fetch_header(store, id).await) };
    let mut headers = stream::iter(ids).map(look).buffered(PARALLEL).boxed();
    while let Some((id, header)) = headers.next().await {
        let records = match header {
            Ok(header) => header.records,
            Err(FetchError::Store(e)) => return Err(e.into()),
            // A fence, or a chunk that is damaged itself: the checksum tells whether it matters.
            Err(_) => continue,
        };
        for record in records {
            let (range, target) = match record {
                Record::Data { range, offset } => {
                    (range, Target::Data(Location { seq: id.seq, offset }))
                }
                Record::Zero(range) | Record::Trim(range) => (range, Target::Zero),
                Record::Resize(size) => (behind(size), Target::Zero),
                Record::RolledBack(_) => return Ok(BTreeMap::new()),
                _ => continue,
            };
            write_down(&mut spans, range, target);
        }
    }
    Ok(spans.iter().map(|(index, changes)| (*index, leaf_of(*index, changes))).collect())
}

/// Everything behind the end of a volume of that size.
fn behind(size: SectorCount) -> SectorRange {
    SectorRange::between(Sector(size.0), Sector(u64::MAX))
}

fn write_down(spans: &mut BTreeMap<u64, Overlay>, range: SectorRange, target: Target) {
    for (index, changes) in spans {
        let part = range.intersect(leaf_range(*index));
        if part.is_empty() {
            continue;
        }
        let target = match target {
            Target::Data(place) => Target::Data(place.advance(part.start().0 - range.start().0)),
            Target::Zero => Target::Zero,
        };
        changes.insert(part, target);
    }
}

fn leaf_of(index: u64, changes: &Overlay) -> Vec<Extent> {
    let span = leaf_range(index);
    let changes: Vec<Change> = changes
        .changes(span)
        .map(|(range, target)| Change {
            start: (range.start().0 - span.start().0) as u32,
            len: range.len().0 as u32,
            target,
        })
        .collect();
    merge(&[], &changes, &mut |_: Seq, _| {})
}

/// Moves a piece of the data of a leaf, so that the next checkpoint writes it. False: none can be read.
async fn stir(shared: &Arc<Shared>, index: u64, leaf: &[Extent]) -> Result<bool> {
    let first = leaf_range(index).start().0;
    for extent in leaf {
        let start = Sector(first + u64::from(extent.start()));
        let len = u64::from(extent.len().min(PIECE));
        let range = SectorRange::between(start, Sector(start.0 + len));
        let mut data = vec![0; (len * SECTOR_SIZE) as usize];
        if shared.read(start, &mut data).await.is_err() {
            if shared.state().check().is_err() {
                return Err(shared.failure());
            }
            continue;
        }
        let mut pace = Pace::new(shared, Tempo::steady(len));
        let run = Live { range, place: extent.location(), seen: None };
        relocate(shared, &mut pace, run, &data).await?;
        return Ok(true);
    }
    Ok(false)
}
