//! What is no chunk: fences, marks of clones, and hints.

use super::Mending;
use crate::error::Result;
use crate::format::chunk;
use crate::format::fence::Fence;
use crate::format::keys::{self, ChunkId};
use crate::format::profile::Profile;
use crate::format::scrub::ScrubObject;
use crate::store::{GetRange, Key, StoreErrorKind, get_parsed};
use crate::units::Epoch;
use crate::volume::kept::Needed;
use crate::volume::shared::Shared;
use bytes::Bytes;

/// The epoch that a slot of the volume's own leads to, if the terms say that it holds a fence.
pub(super) fn fenced_for(shared: &Shared, id: ChunkId) -> Option<Epoch> {
    let state = shared.state();
    let is_one = id.volume == shared.id && state.terms.fences().contains(&id.seq);
    let next = is_one.then(|| state.terms.epoch_of(id.seq.next()))?;
    (state.terms.epoch_of(id.seq) == id.epoch && id.epoch < next).then_some(next)
}

/// What a fence says follows from the terms, but for the name of who put it.
///
/// # Errors
/// Store.
pub(super) async fn mend_fence(shared: &Shared, id: ChunkId, next_epoch: Epoch) -> Result<Mending> {
    let (store, key) = (&*shared.stores.setup, id.key());
    let ChunkId { volume, epoch, seq } = id;
    let owner = "an owner whose fence was lost".into();
    let fence = Fence { volume, epoch, seq, next_epoch, owner };
    let ends = |found: &Fence| {
        (found.volume, found.epoch, found.seq, found.next_epoch) == (volume, epoch, seq, next_epoch)
    };
    let put = match get_parsed(store, &key, Fence::parse).await {
        Ok(Ok(found)) if ends(&found) => return Ok(Mending::Whole),
        Err(e) if e.kind == StoreErrorKind::NotFound => {
            store.put_if_absent(&key, fence.encode().into()).await
        }
        Err(e) if e.kind != StoreErrorKind::Damaged => return Err(e.into()),
        // What may be somebody's data is left alone.
        Ok(Err(_)) if store.get(&key, GetRange::All).await?.starts_with(chunk::MAGIC) => {
            return Ok(Mending::Lost);
        }
        _ => store.put(&key, fence.encode().into()).await,
    };
    match put {
        Ok(()) => Ok(Mending::Made),
        Err(e) if e.kind == StoreErrorKind::AlreadyExists => Ok(Mending::Whole),
        Err(e) if e.kind == StoreErrorKind::Invalid => Ok(Mending::Lost),
        Err(e) => Err(e.into()),
    }
}

/// What is no chunk.
///
/// # Errors
/// Store.
pub(super) async fn mend_other(shared: &Shared, key: &Key) -> Result<Mending> {
    let (store, id) = (&*shared.stores.setup, shared.id);
    let damaged = if *key == keys::profile(id) {
        get_parsed(store, key, Profile::parse).await.map(|found| found.map(|it| it.volume == id))
    } else if keys::parse_scrub(id, key).is_some() {
        get_parsed(store, key, ScrubObject::parse)
            .await
            .map(|found| found.map(|it| it.volume == id))
    } else {
        return mend_mark(shared, key).await;
    };
    match damaged {
        Ok(Ok(true)) => return Ok(Mending::Whole),
        Ok(Ok(false) | Err(_)) => {}
        Err(e) if e.kind == StoreErrorKind::Damaged => {}
        Err(e) if e.kind == StoreErrorKind::NotFound => return Ok(Mending::Unneeded),
        Err(e) => return Err(e.into()),
    }
    store.delete(std::slice::from_ref(key)).await?;
    Ok(Mending::Removed)
}

/// What tells the volume's origin that it has this clone.
async fn mend_mark(shared: &Shared, key: &Key) -> Result<Mending> {
    let store = &*shared.stores.setup;
    let origin = shared.description.origin();
    let origin = origin.filter(|of| keys::child(of.volume, of.snapshot, shared.id) == *key);
    let Some(origin) = origin else { return Ok(Mending::Lost) };
    let now = Needed::by(shared.checkpointer.lock().await.last());
    if !now.is_foreign(&shared.items).await? && shared.snapshots().all().is_empty() {
        return Ok(Mending::Unneeded);
    }
    match store.head(&keys::snapshot(origin.volume, origin.snapshot)).await {
        Ok(_) => {}
        Err(e) if e.kind == StoreErrorKind::NotFound => return Ok(Mending::Lost),
        Err(e) => return Err(e.into()),
    }
    match store.put_if_absent(key, Bytes::new()).await {
        Ok(()) => Ok(Mending::Made),
        Err(e) if e.kind == StoreErrorKind::AlreadyExists => Ok(Mending::Whole),
        Err(e) => Err(e.into()),
    }
}
