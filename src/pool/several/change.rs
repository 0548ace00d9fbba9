//! New versions of a pool's stores.

use super::{NewStore, Several};
use crate::error::{Error, ErrorKind, Result};
use crate::format::codec::FormatError;
use crate::format::features::{Access, Features};
use crate::format::keys;
use crate::format::placement::WEIGHT_MAX;
use crate::format::pool::{PoolObject, encode_json};
use crate::format::stores::{StoreEntry, StoreId, StoreObject, StoresObject};
use crate::pool::damaged;
use crate::spread::Version;
use crate::spread::members::identity;
use crate::store::probe::probe_create_if_absent;
use crate::store::{Store, StoreErrorKind, get_parsed};
use std::sync::Arc;

/// How often a change is made again because somebody else made one meanwhile.
const ATTEMPTS: usize = 8;

impl Several {
    /// Adds a store, or finishes adding it.
    ///
    /// # Errors
    /// Usage: the weight. Exists: it is one of the pool's, or holds something else. Store: it does not create
    /// objects atomically, or is away. Busy: others keep changing the stores.
    pub async fn add(&self, new: &NewStore) -> Result<StoreEntry> {
        check_weight(new.weight)?;
        if !self.pool.object().fencing {
            let text = "a pool made with --unsafe-no-fencing has one store only";
            return Err(Error::usage(text).hint("make a pool in a store that can do without that"));
        }
        let entry = self.introduce(new).await?;
        let add = |version: &Version| {
            let object = &version.object;
            if object.stores.iter().any(|store| store.id == entry.id) {
                return Ok(None);
            }
            let (mut stores, mut weights) = (object.stores.clone(), object.present_weights());
            stores.push(entry.clone());
            weights.push(new.weight);
            object.next(stores, weights).map(Some).map_err(full)
        };
        self.change(add).await?;
        Ok(entry)
    }

    /// Gives a store another weight; 0 has everything move away from it.
    ///
    /// # Errors
    /// Usage: the weight, or it is the last that weighs something. NotFound: no such store. Busy: as above. Store.
    pub async fn weigh(&self, id: StoreId, weight: u32) -> Result<()> {
        if weight > 0 {
            check_weight(weight)?;
        }
        let weigh = |version: &Version| {
            let object = &version.object;
            let at = position(object, id)?;
            let mut weights = object.present_weights();
            if weights[at] == weight {
                return Ok(None);
            }
            weights[at] = weight;
            if weights.iter().all(|weight| *weight == 0) {
                let text = format!("store {id} is the only one that takes objects");
                return Err(Error::usage(text).hint("add another one first"));
            }
            object.next(object.stores.clone(), weights).map(Some).map_err(full)
        };
        self.change(weigh).await
    }

    /// Removes a store from the newest version. Nothing is looked at.
    pub(super) async fn forget(&self, id: StoreId) -> Result<()> {
        let forget = |version: &Version| {
            let object = &version.object;
            let at = position(object, id)?;
            let mut stores = object.stores.clone();
            if object.present_weights()[at] > 0 {
                let text = format!("store {id} was given a weight again meanwhile");
                return Err(Error::new(ErrorKind::Busy, text));
            }
            stores[at].removed = true;
            object.next(stores, object.present_weights()).map(Some).map_err(full)
        };
        self.change(forget).await
    }

    /// Makes the version that `make` wants to follow the newest one, if it wants any.
    pub(super) async fn change(
        &self,
        make: impl Fn(&Version) -> Result<Option<StoresObject>>,
    ) -> Result<()> {
        let mut version = self.spread.refresh(crate::spread::Asker::Setup).await?;
        for _ in 0..ATTEMPTS {
            match make(&version)? {
                None => return Ok(()),
                Some(next) => {
                    self.keep_out_older().await?;
                    if self.spread.advance(&next).await? {
                        return Ok(());
                    }
                    version = self.spread.version();
                }
            }
        }
        Err(Error::new(ErrorKind::Busy, "others keep changing the stores of the pool")
            .hint("try again"))
    }

    /// Has an objblk that knows of one store only refuse the pool from now on.
    ///
    /// # Errors
    /// Unsupported: a newer objblk has made it something else meanwhile. Corrupt, store.
    async fn keep_out_older(&self) -> Result<()> {
        let (home, key) = (self.spread.home(crate::spread::Asker::Setup), keys::pool());
        let parsed = get_parsed(&**home, &key, PoolObject::parse).await?;
        let mut object = parsed.map_err(|e| damaged(&**home, &key, e))?;
        if object.features.access() != Access::Full {
            let text = format!("the pool needs a newer objblk: {}", object.features.unknown());
            return Err(Error::new(ErrorKind::Unsupported, text).hint("upgrade objblk"));
        }
        if object.features.incompat & Features::SEVERAL == 0 {
            object.features.incompat |= Features::SEVERAL;
            home.put(&key, encode_json(&object).into()).await?;
        }
        Ok(())
    }

    /// Makes the place a store of this pool, with an id of its own.
    pub(super) async fn introduce(&self, new: &NewStore) -> Result<StoreEntry> {
        let version = self.spread.refresh(crate::spread::Asker::Setup).await?;
        let is_known = |entry: &&StoreEntry| !entry.removed && entry.url == new.url;
        let home = (self.pool.store().url() == new.url).then_some(StoreId::HOME);
        let known = version.object.stores.iter().find(is_known).map(|entry| entry.id);
        if let Some(id) = home.or(known).filter(|_| new.endpoints.is_empty()) {
            return Err(taken(&new.url, &format!("it is store {id} of this pool already")));
        }
        let layers = self.spread.open_new(&new.entry(StoreId::of_number(1))).await?;
        let store = layers.setup;
        if super::super::get(&*store, &keys::pool()).await?.is_some() {
            return Err(taken(&new.url, "a pool was made in it"));
        }
        let id = match identity(&*store).await? {
            Some(found) => self.resume(&version, &new.url, found)?,
            None => self.mark(&version, &store, &new.url).await?,
        };
        probe_create_if_absent(&store).await?;
        Ok(new.entry(id))
    }

    /// The id that an earlier attempt to add the place gave it.
    fn resume(&self, version: &Version, url: &str, found: StoreObject) -> Result<StoreId> {
        if found.pool != self.spread.pool() {
            return Err(taken(url, &format!("it is store {} of pool {}", found.id, found.pool)));
        }
        match version.object.stores.iter().find(|store| store.id == found.id) {
            None => Ok(found.id),
            Some(store) if store.removed => {
                let why = format!("it was store {}, which was removed from this pool", found.id);
                Err(taken(url, &why))
            }
            Some(store) => {
                Err(taken(url, &format!("it is store {} of this pool, {}", store.id, store.url)))
            }
        }
    }

    async fn mark(&self, version: &Version, store: &Arc<dyn Store>, url: &str) -> Result<StoreId> {
        if !store.list("", None, 1).await?.objects.is_empty() {
            return Err(taken(url, "it is not empty"));
        }
        let id = loop {
            let id = StoreId::of_number(rand::random());
            let is_known = version.object.stores.iter().any(|store| store.id == id);
            if !is_known && id != StoreId::HOME {
                break id;
            }
        };
        let body = encode_json(&StoreObject::new(self.spread.pool(), id));
        match store.put_if_absent(&keys::store(), body.into()).await {
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => {
                Err(taken(url, "somebody else is adding it").hint("look at `objblk pool status`"))
            }
            marked => marked.map(|()| id).map_err(Error::from),
        }
    }
}

fn check_weight(weight: u32) -> Result<()> {
    match (1..=WEIGHT_MAX).contains(&weight) {
        true => Ok(()),
        false => Err(Error::usage(format!("a store cannot weigh {weight}"))
            .hint(format!("give it 1 to {WEIGHT_MAX}"))),
    }
}

/// Where the store is among those of the version.
pub(super) fn position(object: &StoresObject, id: StoreId) -> Result<usize> {
    let at = object.stores.iter().position(|store| store.id == id && !store.removed);
    at.ok_or_else(|| {
        Error::not_found(format!("the pool has no store {id}"))
            .hint("`objblk pool status` shows those there are")
    })
}

fn taken(url: &str, why: &str) -> Error {
    let error = Error::new(ErrorKind::Exists, format!("{url} cannot be added to the pool: {why}"));
    error.hint("give a store, or a prefix of one, that is empty")
}

pub(super) fn full(e: FormatError) -> Error {
    Error::usage("the stores of the pool cannot be changed so").because(e)
}
