//! By which version of the pool's stores the slots of a term are placed: decided once, for good.
//!
//! `volumes/<id>/placement/<epoch>` in the home store says it, and is created by whoever needs to know first; without it,
//! it is version 0, all in the home store.
//!
//! * **An owner** remembers which version it knew *before* it claimed its epoch. If that was 0, its term is of version 0 and it never asks.
//!   Otherwise it looks for the newest version before its first slot, and creates the object with that.
//! * **Anybody else** who is to create a slot of the term (a successor that puts its fence there) looks whether there are several
//!   versions at all. If there are none, the owner knew of none before it claimed: version 0. Otherwise it creates the
//!   object with version 0: an owner that has not decided yet then finds that decided.
//!
//! So both always go by the same object, or both by its absence. An owner that goes by an old version writes where its successor will look
//! and fence; nothing is lost or in two places by that, it is only moved later.

use super::{Asker, Spread};
use crate::format::VolumeId;
use crate::format::keys;
use crate::format::placement::Stay;
use crate::format::pool::encode_json;
use crate::format::stores::TermPlacement;
use crate::store::{Key, Op, StoreError, StoreErrorKind, StoreResult, get_parsed};
use crate::units::Epoch;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OnceCell;

/// Terms in which slots were created here.
#[derive(Debug, Default)]
pub(super) struct Terms(Mutex<HashMap<(VolumeId, Epoch), Arc<Term>>>);

#[derive(Debug, Default)]
struct Term {
    /// It was claimed here, when this version was known.
    claimed_at: Option<u32>,
    decided: OnceCell<u32>,
}

impl Terms {
    fn of(&self, volume: VolumeId, epoch: Epoch) -> Arc<Term> {
        let mut terms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        terms.entry((volume, epoch)).or_default().clone()
    }

    /// The epoch was claimed here, by somebody who knew this version before.
    pub fn claimed(&self, (volume, epoch): (VolumeId, Epoch), version: u32) {
        let mut terms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        terms.entry((volume, epoch)).or_insert_with(|| {
            Arc::new(Term { claimed_at: Some(version), decided: OnceCell::new() })
        });
    }
}

impl Spread {
    /// Where the slot `key` of a term is decided.
    ///
    /// # Errors
    /// The home store's; invalid, where what was decided is damaged or not known here.
    pub(super) async fn place(
        &self,
        asker: Asker,
        key: &Key,
        (volume, epoch): (VolumeId, Epoch),
    ) -> StoreResult<Stay> {
        let term = self.terms.of(volume, epoch);
        let decide = || self.decide(asker, (volume, epoch), term.claimed_at);
        let version = *term.decided.get_or_try_init(decide).await?;
        if let Some(stay) = self.version().placement.stay(version, key) {
            return Ok(stay);
        }
        let known = self.refresh(asker).await?;
        known.placement.stay(version, key).ok_or_else(|| {
            let text = format!("version {version} of the pool's stores, which decides, is missing");
            StoreError::new(StoreErrorKind::Invalid, Op::Put, key.to_string(), text)
        })
    }

    async fn decide(
        &self,
        asker: Asker,
        (volume, epoch): (VolumeId, Epoch),
        claimed_at: Option<u32>,
    ) -> StoreResult<u32> {
        if claimed_at == Some(0) {
            return Ok(0);
        }
        let newest = self.refresh(asker).await?.object.number;
        if newest == 0 {
            return Ok(0);
        }
        let ours = if claimed_at.is_some() { newest } else { 0 };
        self.settle_term(asker, volume, epoch, ours).await
    }

    /// Decides the version of a term, unless that was done. Returns what was decided.
    ///
    /// # Errors
    /// The home store's; invalid, where what was decided is damaged.
    pub async fn settle_term(
        &self,
        asker: Asker,
        volume: VolumeId,
        epoch: Epoch,
        version: u32,
    ) -> StoreResult<u32> {
        let key = keys::placement(volume, epoch);
        let body = encode_json(&TermPlacement::new(volume, epoch, version));
        match self.home(asker).put_if_absent(&key, body.into()).await {
            Ok(()) => return Ok(version),
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        let decided = self.settled_term(asker, volume, epoch).await?;
        decided.ok_or_else(|| {
            let text = "it was there and is not any more";
            StoreError::new(StoreErrorKind::Unavailable, Op::Get, key.to_string(), text)
        })
    }

    /// What was decided for a term, if anything was.
    ///
    /// # Errors
    /// The home store's; invalid, where what was decided is damaged.
    pub async fn settled_term(
        &self,
        asker: Asker,
        volume: VolumeId,
        epoch: Epoch,
    ) -> StoreResult<Option<u32>> {
        let (home, key) = (self.home(asker), keys::placement(volume, epoch));
        let parsed = match get_parsed(&**home, &key, TermPlacement::parse).await {
            Ok(parsed) => parsed,
            Err(e) if e.kind == StoreErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let invalid = |why: String| {
            let object = crate::store::address(&home.url(), key.as_str());
            StoreError::new(StoreErrorKind::Invalid, Op::Get, object, why)
        };
        let found = parsed.map_err(|e| invalid(e.to_string()))?;
        match (found.volume, found.epoch) == (volume, epoch) {
            true => Ok(Some(found.stores)),
            false => Err(invalid("it is of another volume or term than its name says".into())),
        }
    }
}
