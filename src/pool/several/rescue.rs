//! A new home store for mirrored volumes whose home store is gone for good.
//!
//! ```text
//! new home store   stores/1: a new pool, with the store that is left
//! store left       mirror/<id>/state/<n>: without the home store           of each volume
//! new home store   the same, volumes/<id>/volume.json, names/<name>        of each volume
//! store left       objblk-store.json goes, and is made anew: of the new pool
//! new home store   objblk.json                                             <- the pool is there
//! ```
//!
//! Nothing is copied here: the home store is one that lacks everything, and the next owner of each volume makes it
//! complete, as with any store that comes back.
//!
//! Whatever step a crash cuts off, the same command goes on from there. Should the former home store come back, its pool
//! finds in the other store one of another pool, and uses neither that nor any mirrored volume. Who owned a volume
//! all the time writes to both of its stores, and meets the next owner's fence.

use super::NewStore;
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::features::Features;
use crate::format::keys;
use crate::format::mirror::MirrorState;
use crate::format::placement::WEIGHT;
use crate::format::pool::{NameObject, POOL_VERSION, PoolKind, PoolObject, encode_json};
use crate::format::stores::{StoreId, StoreObject, StoresObject};
use crate::format::volume::VolumeObject;
use crate::mirror::alone;
use crate::pool::{VolumeName, get};
use crate::spread::members::identity;
use crate::store::probe::probe_create_if_absent;
use crate::store::{Key, Store, StoreErrorKind};
use bytes::Bytes;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A volume that has a home again, or has none.
#[derive(Clone, Debug, Serialize)]
pub struct Rescued {
    /// The volume.
    pub id: VolumeId,
    /// What it is called now; `None`: the store that is left has no complete copy of it.
    pub name: Option<String>,
    /// Its size at creation, in bytes.
    pub size: u64,
}

/// Makes `home`, which is empty, the home store of a new pool with all mirrored volumes of `left`, which was a store of
/// a pool, and is reached as `new` says. Volumes are called as `names` says, or after their ids.
///
/// # Errors
/// Exists: `home` holds something else. NotFound: `left` is no store of a pool. Corrupt, store.
pub async fn rescue(
    home: &Arc<dyn Store>,
    left: &Arc<dyn Store>,
    new: &NewStore,
    names: &BTreeMap<VolumeId, VolumeName>,
) -> Result<Vec<Rescued>> {
    if get(&**home, &keys::pool()).await?.is_some() {
        return Err(occupied(&**home, "a pool was made in it"));
    }
    let (pool, own) = begin(home, left, new).await?;
    let mut rescued = Vec::new();
    for id in alone::all(&**left).await? {
        rescued.push(give_home(home, left, (id, own), names.get(&id)).await?);
    }
    let is = StoreObject::new(pool, own);
    match identity(&**left).await? {
        Some(found) if found == is => {}
        Some(_) => {
            left.delete(&[keys::store()]).await?;
            put_same(&**left, &keys::store(), encode_json(&is)).await?;
        }
        None => put_same(&**left, &keys::store(), encode_json(&is)).await?,
    }
    let object = PoolObject {
        kind: PoolKind::Pool,
        version: POOL_VERSION,
        id: pool,
        features: Features { incompat: Features::SEVERAL, ..Features::default() },
        fencing: true,
        created_at_ms: SystemClock.now_ms(),
    };
    home.put_if_absent(&keys::pool(), encode_json(&object).into()).await?;
    Ok(rescued)
}

/// The new pool, and which of its stores the one is that is left.
async fn begin(
    home: &Arc<dyn Store>,
    left: &Arc<dyn Store>,
    new: &NewStore,
) -> Result<(VolumeId, StoreId)> {
    let key = keys::stores(1);
    let stores = match get(&**home, &key).await? {
        Some(bytes) => StoresObject::parse(&bytes)
            .map_err(|e| Error::corrupt(format!("{key} of the new pool is damaged")).because(e))?,
        None => {
            if !home.list("", None, 1).await?.objects.is_empty() {
                return Err(occupied(&**home, "it is not empty"));
            }
            let Some(found) = identity(&**left).await? else {
                let text = format!("{} is no store of a pool but its home store", new.url);
                return Err(Error::not_found(text)
                    .because(format!("it holds no {}", keys::store()))
                    .hint("name the store that was added to the pool"));
            };
            let pool = VolumeId::from_random(rand::random());
            let initial = StoresObject::initial(pool, home.url());
            let mut stores = initial.stores.clone();
            stores.push(new.entry(found.id));
            let next = initial.next(stores, vec![WEIGHT, new.weight]);
            let next = next.map_err(|e| Error::usage("this is no store of a pool").because(e))?;
            put_same(&**home, &key, encode_json(&next)).await?;
            next
        }
    };
    let entry = stores.stores.get(1).filter(|entry| entry.url == new.url);
    let entry =
        entry.ok_or_else(|| occupied(&**home, "a rescue from another store was begun there"))?;
    // What it leaves where it is cut off is in nobody's way from here on.
    probe_create_if_absent(home).await?;
    Ok((stores.pool, entry.id))
}

async fn give_home(
    home: &Arc<dyn Store>,
    left: &Arc<dyn Store>,
    (id, own): (VolumeId, StoreId),
    name: Option<&VolumeName>,
) -> Result<Rescued> {
    let Some(found) = alone::alone(&**left, id, own).await? else {
        tracing::warn!("{} has no complete copy of volume {id}", left.url());
        return Ok(Rescued { id, name: None, size: 0 });
    };
    let described = VolumeObject::parse(&found.description).map_err(|e| {
        Error::corrupt(format!("the description of volume {id} is damaged")).because(e)
    })?;
    put_state(&**home, id, &found.state).await?;
    put_same(&**home, &keys::volume(id), found.description.to_vec()).await?;
    let name = match name {
        Some(name) => name.clone(),
        None => format!("rescued-{}", &id.to_string()[..8]).parse()?,
    };
    put_same(&**home, &name.key(), encode_json(&NameObject { volume: id })).await?;
    Ok(Rescued { id, name: Some(name.to_string()), size: described.size })
}

/// An attempt before may have put an older one: the newest counts.
async fn put_state(home: &dyn Store, id: VolumeId, state: &MirrorState) -> Result<()> {
    put_same(home, &keys::mirror_state(id, state.number), encode_json(state)).await
}

/// Creates an object, unless an attempt before has.
async fn put_same(store: &dyn Store, key: &Key, body: Vec<u8>) -> Result<()> {
    let body = Bytes::from(body);
    match store.put_if_absent(key, body.clone()).await {
        Err(e) if e.kind == StoreErrorKind::AlreadyExists => match get(store, key).await? {
            Some(there) if there == body => Ok(()),
            _ => Err(occupied(store, &format!("it has another {key}"))),
        },
        put => Ok(put?),
    }
}

fn occupied(store: &dyn Store, why: &str) -> Error {
    let text = format!("{} cannot become the home store of a pool: {why}", store.url());
    Error::new(ErrorKind::Exists, text).hint("give a store, or a prefix of one, that is empty")
}
