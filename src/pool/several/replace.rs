//! Another store in the place of one that is gone for good, and is not the home store.
//!
//! ```text
//! new store    objblk-store.json, probe
//! home store   stores/<n>: the lost store is removed, the new one weighs what it weighed
//! home store   mirror/<id>/state/<n>: without the lost store; then with the new one      of each mirrored volume
//! new store    the same
//! ```
//!
//! Nothing is copied here: the new store is one that lacks everything, and the owner of each mirrored volume makes it complete, as any
//! store that comes back. Whatever step a crash cuts off, the same command goes on from there.
//!
//! What is in the lost store alone is lost from the new version on: slots of volumes that are not mirrored are missing, where they
//! were waited for before. A store that answers is therefore not taken for lost. An owner that reached it all the time, and not the home
//! store, would go on there by itself: that store must not come back.

use super::{NewStore, Several, change};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::placement::WEIGHT;
use crate::format::stores::{StoreEntry, StoreId, StoreObject, StoresObject};
use crate::mirror::{self, Mirror, alone};
use crate::spread::members::{GREETING, identity};
use crate::spread::{Asker, Version};
use crate::store::Store;
use serde::Serialize;
use std::sync::Arc;

/// What it comes to if a store is gone for good.
#[derive(Clone, Debug)]
pub struct Losing {
    /// The pool without it; `None` where it is not one of its stores any more.
    pub rest: Option<Arc<dyn Store>>,
    /// All mirrored volumes.
    pub mirrored: Vec<VolumeId>,
}

/// What was done.
#[derive(Clone, Debug, Serialize)]
pub struct Replacement {
    /// The store that took the place.
    pub store: StoreId,
    /// The mirrored volumes whose owners make it complete.
    pub volumes: Vec<VolumeId>,
}

impl Several {
    /// Looks what it comes to if store `id` is gone for good. Changes nothing.
    ///
    /// # Errors
    /// NotFound: no such store. Usage: it is the home store. Busy: it answers. Store.
    pub async fn losing(&self, id: StoreId) -> Result<Losing> {
        let version = self.spread.refresh(Asker::Setup).await?;
        let is_removed = was_removed(&version, id)?;
        if !is_removed && self.answers(id).await {
            let text = format!("store {id} answers, so it is not lost");
            return Err(Error::new(ErrorKind::Busy, text).hint(format!(
                "`objblk pool drain-store {id}` moves what can be moved away from it"
            )));
        }
        let rest = match is_removed {
            true => None,
            false => {
                let rest = self.spread.supposed(without(&version.object, id, None)?);
                Some(Mirror::supposed(rest, id).await?.store(Asker::Setup))
            }
        };
        let mirrored = alone::all(&**self.spread.home(Asker::Setup)).await?;
        Ok(Losing { rest, mirrored })
    }

    /// Has the store `new` take the place of `id`, which is gone for good: it is empty, or another one of the pool.
    ///
    /// # Errors
    /// NotFound: no such store. Usage: it is the home store. Exists: `new` holds something else. Busy: others keep
    /// changing the stores. Store.
    pub async fn replace(&self, id: StoreId, new: &NewStore) -> Result<Replacement> {
        let version = self.spread.refresh(Asker::Setup).await?;
        let by = self.successor(&version, id, new).await?;
        let replace = |version: &Version| match was_removed(version, id)? {
            true => Ok(None),
            false => without(&version.object, id, Some(&by)).map(Some),
        };
        self.change(replace).await?;
        let there = self.spread.member(Asker::Setup, by.id).await?;
        let home = self.spread.home(Asker::Setup);
        let mut volumes = Vec::new();
        for volume in alone::all(&**home).await? {
            if mirror::replace::replace(&**home, &*there, volume, (id, by.id)).await? {
                volumes.push(volume);
            }
        }
        Ok(Replacement { store: by.id, volumes })
    }

    /// The store that takes the place, made one of the pool's unless it is.
    async fn successor(
        &self,
        version: &Version,
        id: StoreId,
        new: &NewStore,
    ) -> Result<StoreEntry> {
        let is_it = |entry: &&StoreEntry| {
            let is_another = entry.id != id && entry.id != StoreId::HOME;
            is_another && !entry.removed && entry.url == new.url
        };
        match version.object.stores.iter().find(is_it) {
            Some(entry) => Ok(entry.clone()),
            None if was_removed(version, id)? => {
                let text =
                    format!("store {id} is out of the pool, and {} is none of its stores", new.url);
                Err(Error::not_found(text).hint("name the store that took its place"))
            }
            None => self.introduce(new).await,
        }
    }

    /// Whether it is there, and the one that it should be.
    async fn answers(&self, id: StoreId) -> bool {
        let look = async {
            let store = self.spread.member(Asker::Setup, id).await.ok()?;
            identity(&*store).await.ok()?
        };
        let is = StoreObject::new(self.spread.pool(), id);
        matches!(tokio::time::timeout(GREETING, look).await, Ok(Some(found)) if found == is)
    }
}

/// Whether a store is one of the pool's no more.
fn was_removed(version: &Version, id: StoreId) -> Result<bool> {
    if id == StoreId::HOME {
        let text = "the home store has all that the pool is known by";
        return Err(Error::usage(text)
            .hint("`objblk pool rescue` gives mirrored volumes another one, in a new pool"));
    }
    let known = version.object.stores.iter().find(|store| store.id == id);
    match known.is_some_and(|store| store.removed) {
        true => Ok(true),
        false => change::position(&version.object, id).map(|_| false),
    }
}

/// The version that follows, in which store `id` is no more, and `by` weighs what it weighed.
fn without(object: &StoresObject, id: StoreId, by: Option<&StoreEntry>) -> Result<StoresObject> {
    let at = change::position(object, id)?;
    let (mut stores, mut weights) = (object.stores.clone(), object.present_weights());
    stores[at].removed = true;
    let weight = std::mem::take(&mut weights[at]);
    match by {
        Some(by) if stores.iter().all(|store| store.id != by.id) => {
            stores.push(by.clone());
            weights.push(if weight == 0 { WEIGHT } else { weight });
        }
        None if weights.iter().all(|weight| *weight == 0) => weights[0] = WEIGHT,
        _ => {}
    }
    object.next(stores, weights).map_err(change::full)
}
