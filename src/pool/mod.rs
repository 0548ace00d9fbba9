//! The pool: which volumes a store holds, by name.
//!
//! ```text
//! create    volume.json under a new id, then names/<name>      <- the name is the commit point
//! rename    names/<new>, then names/<old> goes
//! import    imports/<name>, volume.json, the data, then names/<name>  <- the same
//! delete    claim, deleted in the trash, names/<name> goes     <- the same
//! restore   names/<name>, then a look whether it is purged     <- the same
//! purge     claim, purging, a look for names and clones, removing, trash/<id>, the objects go,
//!           the steps go, trash/<id> goes
//! ```
//!
//! Everything rests on the store's create-if-absent: of two that create one name, one wins and the
//! other leaves nothing behind. Whatever step a crash cuts off, the pool stays usable: a volume
//! without a name is in the trash, or was never used, a volume with two names is one volume, a removal is
//! finished by the next one of that volume.
//!
//! What has no number can be hit by a request that comes late: a name. A late removal of one leaves a volume
//! without a name, which [`Pool::orphans`] finds and [`Pool::restore`] brings back; a late creation gives a
//! volume a second name, or one to a volume that is gone, which is then shown as damaged.
//!
//! A pool is made by [`Pool::init`], which first shows with racing writers that the store honours
//! create-if-absent. `fencing: false` in its object says that somebody overrode that; such a pool
//! must be opened through [`crate::store::unfenced::UnfencedStore`] ([`backend`] does).

pub mod backend;
mod catalogue;
mod claim;
mod clones;
mod delete;
mod imports;
mod locks;
mod name;
mod orphans;
mod purge;
mod replicas;
pub mod several;
mod trash;

pub use catalogue::{Entry, Health, Info, NewVolume};
pub use claim::{Standing, standing};
pub use clones::{BegunClone, Child};
pub use delete::{Discarded, Executioner};
pub use locks::Slots;
pub use name::{VolumeName, VolumeSpec};
pub use purge::Deleted;
pub use trash::{KEEP, TrashState, Trashed};

use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::codec::{FormatError, Problem};
use crate::format::features::{Access, Features};
use crate::format::keys;
use crate::format::pool::{POOL_VERSION, PoolKind, PoolObject, encode_json};
use crate::store::{GetRange, Key, Store, StoreErrorKind, StoreResult};
use bytes::Bytes;
use std::sync::Arc;

/// Requests that a walk over the catalogue keeps in flight.
const PARALLEL: usize = 16;

/// An open pool.
#[derive(Clone, Debug)]
pub struct Pool {
    store: Arc<dyn Store>,
    object: PoolObject,
    keys: locks::Keys,
}

impl Pool {
    /// Makes the store a pool, once it is shown to honour create-if-absent (or, with
    /// `unsafe_no_fencing`, without that).
    ///
    /// Errors: exists, where it is a pool already; store, where the probe refuses the store.
    pub async fn init(store: Arc<dyn Store>, unsafe_no_fencing: bool) -> Result<Pool> {
        if let Some(bytes) = get(&*store, &keys::pool()).await? {
            let known = PoolObject::parse(&bytes).map(|pool| pool.id.to_string());
            let id = known.unwrap_or_else(|_| "of another version".into());
            return Err(exists(&*store).because(format!("it is the pool {id}")));
        }
        if !unsafe_no_fencing {
            crate::store::probe::probe_create_if_absent(&store).await?;
        }
        let object = PoolObject {
            kind: PoolKind::Pool,
            version: POOL_VERSION,
            id: VolumeId::from_random(rand::random()),
            features: Features::default(),
            fencing: !unsafe_no_fencing,
            created_at_ms: SystemClock.now_ms(),
        };
        match store.put_if_absent(&keys::pool(), encode_json(&object).into()).await {
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => {
                Err(exists(&*store).because("somebody else has just made it one"))
            }
            Err(e) => Err(e.into()),
            Ok(()) => Pool::verified(store, object).await,
        }
    }

    async fn verified(store: Arc<dyn Store>, written: PoolObject) -> Result<Pool> {
        let pool = Pool::open(store).await?;
        if pool.object != written {
            let message = format!("{} reads back another pool than was written", pool.store.url());
            return Err(Error::new(ErrorKind::Store, message)
                .hint("use a store that is consistent after a write"));
        }
        Ok(pool)
    }

    /// Opens the pool in `store`.
    ///
    /// Errors: not found, where there is none; unsupported and corrupt by its description.
    pub async fn open(store: Arc<dyn Store>) -> Result<Pool> {
        let Some(bytes) = get(&*store, &keys::pool()).await? else {
            return Err(no_pool(&*store).await);
        };
        let object = PoolObject::parse(&bytes).map_err(|e| damaged(&*store, &keys::pool(), e))?;
        match object.features.access() {
            Access::Full => Ok(Pool { store, object, keys: locks::Keys::default() }),
            Access::ReadOnly | Access::None => {
                let (url, unknown) = (store.url(), object.features.unknown());
                let message = format!("the pool {url} uses features of a newer objblk: {unknown}");
                Err(Error::new(ErrorKind::Unsupported, message).hint("upgrade objblk"))
            }
        }
    }

    /// The same pool, reached through another layer over its store.
    fn through(self, store: Arc<dyn Store>) -> Pool {
        Pool { store, ..self }
    }

    /// The pool's description.
    pub fn object(&self) -> &PoolObject {
        &self.object
    }

    /// The store it is in.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }
}

fn exists(store: &dyn Store) -> Error {
    Error::new(ErrorKind::Exists, format!("{} is a pool already", store.url()))
}

/// Tells a store without a pool from a store that is not there.
async fn no_pool(store: &dyn Store) -> Error {
    match store.list("", None, 1).await {
        Err(e) if e.kind == StoreErrorKind::NotFound => {
            Error::not_found(format!("{} does not exist", store.url()))
                .because(e.detail)
                .hint("make it, or let `objblk pool init --create-bucket` make it")
        }
        Err(e) => e.into(),
        Ok(_) => Error::not_found(format!("there is no pool in {}", store.url())).hint(
            "make one with `objblk pool init`, or name another store with --store or --bucket",
        ),
    }
}

/// The object's bytes, or `None` where there is none.
async fn get(store: &dyn Store, key: &Key) -> StoreResult<Option<Bytes>> {
    match store.get(key, GetRange::All).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind == StoreErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The error for an object of the catalogue that does not parse.
fn damaged(store: &dyn Store, key: &Key, e: FormatError) -> Error {
    let address = crate::store::address(&store.url(), key.as_str());
    if matches!(e.problem, Problem::Unsupported(_)) {
        let message = format!("{address} was written by a newer objblk");
        return Error::new(ErrorKind::Unsupported, message).because(e).hint("upgrade objblk");
    }
    Error::corrupt(format!("{address} is damaged")).because(e)
}
