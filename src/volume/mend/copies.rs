//! Objects of mirrored volumes: a copy that is whole takes the place of those that are not.
//!
//! A copy counts as whole by what is written of it elsewhere or in itself: a chunk by the checksums of its header
//! and every frame, a map object by those that the pages and roots have of all its items that the volume and its snapshots
//! need, anything else by its own. Sealed objects are proved by their seals besides.

use super::Mending;
use super::{chunk_of, map_object_of};
use crate::error::{ErrorKind, Result};
use crate::format::checkpoint::Checkpoint;
use crate::format::chunk::ChunkHeader;
use crate::format::fence::Fence;
use crate::format::keys::{self, ChunkId, MapObjectId};
use crate::format::map_object::{check_item, parse_directory};
use crate::format::page::ItemRef;
use crate::format::pool::check_json;
use crate::format::profile::Profile;
use crate::format::snapshot::SnapshotObject;
use crate::log::verify;
use crate::mutant::{self, Mutant};
use crate::store::{GetRange, Key, Store, StoreErrorKind, get_parsed};
use crate::volume::shared::Shared;
use crate::volume::snapshots;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Time between two looks at what reads have met.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Has what reads find damaged in one copy put right, as long as the volume is owned.
pub(in crate::volume) fn start(shared: &Arc<Shared>) {
    if shared.description.is_mirrored() && !shared.is_read_only() {
        shared.start_task(task(shared.clone()));
    }
}

async fn task(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let mut met = shared.fetcher.suspects.take();
        met.extend(shared.items.suspects.take());
        for key in met {
            match restore(&shared, &key).await {
                Ok(how) => {
                    let how = how.unwrap_or(Mending::Lost);
                    tracing::warn!(volume = %shared.id, "{key} is damaged in one store: {how:?}");
                }
                Err(why) => {
                    tracing::error!(volume = %shared.id, "{key} is damaged in one store: {why}");
                }
            }
        }
    }
}

/// Puts the first copy that is whole in the place of the others. `None`: there is none, or there are not several.
///
/// # Errors
/// Store.
pub(super) async fn restore(shared: &Shared, key: &Key) -> Result<Option<Mending>> {
    let copies = shared.stores.setup.copies(key);
    if copies.is_empty() {
        return Ok(None);
    }
    let needed = match map_object_of(shared, key) {
        Some(object) => match needed_of(shared, object).await? {
            Some(needed) => Some((object, needed)),
            None => return Ok(None),
        },
        None => None,
    };
    let _nothing_is_deleted = shared.checkpointer.lock().await;
    for copy in copies {
        let Some(body) = whole(shared, &*copy, key, needed.as_ref()).await? else { continue };
        let differed = copy.restore(key, body).await?;
        return Ok(Some(if differed { Mending::PutBack } else { Mending::Whole }));
    }
    Ok(None)
}

/// What a copy has of an object, if that is all that it should be.
async fn whole(
    shared: &Shared,
    copy: &dyn Store,
    key: &Key,
    needed: Option<&(MapObjectId, BTreeSet<ItemRef>)>,
) -> Result<Option<Bytes>> {
    let bytes = match copy.get(key, GetRange::All).await {
        Ok(bytes) => bytes,
        Err(e) if matches!(e.kind, StoreErrorKind::NotFound | StoreErrorKind::Damaged) => {
            return Ok(None);
        }
        Err(e) => return Err(e.into()),
    };
    let is_whole = match (chunk_of(shared, key), needed) {
        (Some(id), _) => is_chunk(id, &bytes) || is_fence(id, &bytes),
        (None, Some((object, items))) => is_map_object(key, *object, items, &bytes),
        (None, None) => is_other(shared, key, &bytes),
    };
    Ok((is_whole || mutant::on(Mutant::CopyUnproved)).then_some(bytes))
}

fn is_chunk(id: ChunkId, bytes: &[u8]) -> bool {
    let Ok(header) = ChunkHeader::parse(bytes) else { return false };
    let is_it = (header.volume, header.epoch, header.seq) == (id.volume, id.epoch, id.seq);
    let len = bytes.len() as u64;
    let whole = |index: u32| {
        let place = verify::frame_place(&header, index);
        let encoded = bytes.get(place.start as usize..place.end as usize);
        encoded.is_some_and(|encoded| header.frames.open(index as usize, encoded).is_ok())
    };
    is_it && len == header.object_len() && (0..header.frames.entries.len() as u32).all(whole)
}

fn is_fence(id: ChunkId, bytes: &[u8]) -> bool {
    Fence::parse(bytes)
        .is_ok_and(|fence| (fence.volume, fence.epoch, fence.seq) == (id.volume, id.epoch, id.seq))
}

fn is_map_object(key: &Key, object: MapObjectId, items: &BTreeSet<ItemRef>, bytes: &[u8]) -> bool {
    let Some(volume) = keys::parse_volume(key) else { return false };
    let has = |item: &ItemRef| {
        let from = item.offset as usize;
        let part = from.checked_add(item.len as usize).and_then(|to| bytes.get(from..to));
        part.is_some_and(|part| check_item(*item, part).is_ok())
    };
    parse_directory(volume, object, bytes).is_ok() && items.iter().all(has)
}

/// Of what has a checksum of its own.
fn is_other(shared: &Shared, key: &Key, bytes: &[u8]) -> bool {
    let id = shared.id;
    if keys::parse_checkpoint(id, key).is_some() {
        return Checkpoint::parse(bytes)
            .is_ok_and(|of| keys::checkpoint(of.volume, of.next, of.epoch) == *key);
    }
    if keys::parse_snapshot(id, key).is_some() {
        return SnapshotObject::parse(bytes)
            .is_ok_and(|of| keys::snapshot(of.checkpoint.volume, of.entry.id) == *key);
    }
    let is_json = keys::parse_epoch(id, key).is_some()
        || keys::parse_key_set(id, key).is_some()
        || keys::parse_received(id, key).is_some()
        || keys::parse_schedule(id, key).is_some()
        || keys::parse_scrub(id, key).is_some();
    if is_json {
        return check_json("copy", bytes).is_ok();
    }
    *key == keys::profile(id) && Profile::parse(bytes).is_ok_and(|of| of.volume == id)
}

/// The items of a map object that the volume needs, as it is and as its snapshots and its past are. `None`: that cannot be
/// told, because what names them is damaged, or it is another volume's.
async fn needed_of(shared: &Shared, object: MapObjectId) -> Result<Option<BTreeSet<ItemRef>>> {
    if !shared.lineage.owns_map_object(object) {
        return Ok(None);
    }
    let Some(states) = states(shared).await? else { return Ok(None) };
    let (mut needed, mut pages) = (BTreeSet::new(), BTreeSet::new());
    for state in states {
        pages.extend(state.map_root.iter().map(|(_, page)| *page));
        needed.extend(state.chunk_root.iter().map(|(_, page)| *page));
    }
    for page in pages {
        match shared.items.map_page(page).await {
            Ok(entries) => needed.extend(entries.iter().map(|(_, leaf)| *leaf)),
            Err(e) if e.kind() == ErrorKind::Store => return Err(e),
            Err(_) => return Ok(None),
        }
        needed.insert(page);
    }
    needed.retain(|item| item.object == object);
    Ok(Some(needed))
}

/// The states that are kept of the volume, if all of them can be read.
async fn states(shared: &Shared) -> Result<Option<Vec<Checkpoint>>> {
    let (store, id) = (&*shared.stores.setup, shared.id);
    let last = shared.checkpointer.lock().await.last().clone();
    let points = last.points.clone();
    let mut states = vec![last];
    let entries: Vec<_> = shared.snapshots().all().to_vec();
    for entry in entries {
        match snapshots::read(store, id, entry.id).await {
            Ok(object) => states.push(object.checkpoint),
            Err(e) if e.kind() == ErrorKind::Store => return Err(e),
            Err(_) => return Ok(None),
        }
    }
    for point in points {
        match get_parsed(store, &keys::checkpoint(id, point.next, point.epoch), Checkpoint::parse)
            .await
        {
            Ok(Ok(checkpoint)) => states.push(checkpoint),
            // It has expired.
            Err(e) if e.kind == StoreErrorKind::NotFound => {}
            Err(e) if e.kind != StoreErrorKind::Damaged => return Err(e.into()),
            _ => return Ok(None),
        }
    }
    Ok(Some(states))
}
