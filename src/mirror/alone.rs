//! A volume of which one store is gone for good: the other one's copy is all there is of it.

use super::chain::{newest, offer};
use super::copy::Copy;
use crate::format::VolumeId;
use crate::format::keys;
use crate::format::mirror::MirrorState;
use crate::format::pool::encode_json;
use crate::format::stores::StoreId;
use crate::store::{GetRange, Store, StoreResult};
use bytes::Bytes;
use uuid::Uuid;

/// What is left of a volume.
#[derive(Debug)]
pub struct Left {
    /// The state that calls this copy complete alone.
    pub state: MirrorState,
    /// The volume's description.
    pub description: Bytes,
}

/// Has `store`, which is `own`, call its copy of a volume complete alone, whatever another store says. `None`: it has
/// no complete one, as far as it knows.
///
/// Whoever owns the volume writes to this copy as well as to the other one, and meets the fence of the next owner
/// here; but if this store was left out before it heard of that, what was written since is not here.
///
/// # Errors
/// The store's; invalid, where a state is damaged.
pub async fn alone(store: &dyn Store, id: VolumeId, own: StoreId) -> StoreResult<Option<Left>> {
    loop {
        let Some(state) = newest(store, id).await? else { return Ok(None) };
        let Some(twin) = state.in_sync.iter().find(|twin| twin.store == own).copied() else {
            return Ok(None);
        };
        let other = state.in_sync.iter().find(|twin| twin.store != own);
        let alone = match other.and_then(|other| state.without(other.store, Uuid::new_v4())) {
            None => state,
            Some(alone) => {
                let key = keys::mirror_state(id, alone.number);
                if offer(store, &key, &encode_json(&alone).into()).await?.is_some() {
                    continue;
                }
                alone
            }
        };
        let name = Copy::new(id, twin).own(&keys::volume(id))?;
        let description = store.get(&name, GetRange::All).await?;
        return Ok(Some(Left { state: alone, description }));
    }
}

/// The mirrored volumes that a store has something of.
///
/// # Errors
/// The store's.
pub async fn all(store: &dyn Store) -> StoreResult<Vec<VolumeId>> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(keys::MIRROR, after.as_ref(), 1).await?;
        let Some(object) = page.objects.into_iter().next() else { return Ok(found) };
        match keys::parse_mirror(&object.key) {
            Some(id) => {
                found.push(id);
                after = Some(keys::behind_mirror(id));
            }
            None => after = Some(object.key),
        }
    }
}
