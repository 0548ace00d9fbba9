//! Removing a store in which nothing is, and to which nothing can come.

use super::census::{Held, State};
use super::{Several, change};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::keys;
use crate::format::stores::StoreId;
use crate::format::volume::{EpochObject, VolumeObject};
use crate::host::{Host, Liveness};
use crate::spread::Asker;
use crate::store::{Store, StoreErrorKind, get_parsed, list_all};
use crate::volume::settled;

/// A volume that is placed by a version in which a store weighed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer {
    /// The volume.
    pub volume: VolumeId,
    /// Nobody has it: once it was attached and detached, it is placed by the newest version.
    pub is_closed: bool,
}

impl Several {
    /// The volumes that may write to a store, or need a fence there, however it is weighed now. With `decide`, none is left
    /// that may come to do so.
    ///
    /// # Errors
    /// Store; those of damaged volumes.
    pub async fn writers(&self, id: StoreId, decide: bool) -> Result<Vec<Writer>> {
        self.writers_by(&**self.pool.store(), id, decide).await
    }

    /// The same, by what a store says of volumes.
    ///
    /// # Errors
    /// As above.
    pub async fn writers_by(
        &self,
        store: &dyn Store,
        id: StoreId,
        decide: bool,
    ) -> Result<Vec<Writer>> {
        let version = self.spread.refresh(Asker::Setup).await?;
        change::position(&version.object, id)?;
        let home = self.spread.home(Asker::Setup);
        let mut writers = Vec::new();
        for volume in self.pool.volume_ids().await? {
            // What is mirrored is placed by nothing.
            match super::super::get(&**home, &keys::volume(volume)).await? {
                None => continue,
                Some(body) if VolumeObject::parse(&body).is_ok_and(|v| v.is_mirrored()) => continue,
                Some(_) => {}
            }
            let settled = settled(store, volume).await?;
            let mut writes = false;
            for epoch in &settled.epochs {
                let decided = match decide {
                    true => Some(self.spread.settle_term(Asker::Setup, volume, *epoch, 0).await?),
                    false => self.spread.settled_term(Asker::Setup, volume, *epoch).await?,
                };
                writes |= decided.is_some_and(|decided| version.placement.weight(decided, id) > 0);
            }
            if writes {
                writers.push(Writer { volume, is_closed: settled.is_closed });
            }
        }
        Ok(writers)
    }

    /// Removes a store that weighs nothing, holds nothing but fences and is written to by nobody.
    ///
    /// # Errors
    /// NotFound: no such store. Usage: it is the home store, or still takes objects. Busy: it is not empty, a
    /// volume may write to it, or somebody moves objects. Store.
    pub async fn remove(&self, id: StoreId, host: &Host) -> Result<()> {
        let version = self.spread.refresh(Asker::Setup).await?;
        let at = change::position(&version.object, id)?;
        let weight = version.object.present_weights()[at];
        if id == StoreId::HOME {
            return Err(Error::usage("the home store has all that the pool is known by")
                .hint("copy the volumes into another pool to leave it"));
        }
        if weight > 0 {
            let text = format!("store {id} still takes objects");
            return Err(Error::usage(text).hint(format!("first `objblk pool drain-store {id}`")));
        }
        if let Some(writer) = self.writers(id, true).await?.first() {
            let text = format!("volume {} may still write to store {id}", writer.volume);
            return Err(Error::new(ErrorKind::Busy, text)
                .hint("attach it and detach it again, and drain once more"));
        }
        self.refuse_mirrors(id).await?;
        self.refuse_movers(host).await?;
        let entry = version.object.stores[at].clone();
        let mut held = Held {
            entry,
            weight,
            state: State::Draining,
            settled: Default::default(),
            to_move: Default::default(),
            fences: Default::default(),
        };
        self.count(&version, &mut held).await?;
        let left = held.settled.objects + held.to_move.objects;
        if left > 0 {
            let text = format!("store {id} still holds {left} objects");
            return Err(Error::new(ErrorKind::Busy, text)
                .hint(format!("`objblk pool drain-store {id}` moves them")));
        }
        self.forget(id).await
    }

    /// Refuses while mirrored volumes are to be in the store.
    async fn refuse_mirrors(&self, id: StoreId) -> Result<()> {
        let home = self.spread.home(Asker::Setup);
        for volume in self.pool.volume_ids().await? {
            if crate::mirror::replicas(&**home, volume).await?.contains(&id) {
                let text = format!("store {id} is one of the two of the mirrored volume {volume}");
                return Err(Error::new(ErrorKind::Busy, text)
                    .hint("copy that into a new volume and delete it first"));
            }
        }
        Ok(())
    }

    /// Refuses while somebody may be moving objects by an older version. Those who have died on this host are
    /// forgotten.
    async fn refuse_movers(&self, host: &Host) -> Result<()> {
        let home = self.spread.home(Asker::Setup);
        for object in list_all(&**home, keys::MOVING).await? {
            let mover = match get_parsed(&**home, &object.key, EpochObject::parse).await {
                Ok(mover) => mover.ok(),
                Err(e) if e.kind == StoreErrorKind::NotFound => continue,
                Err(e) => return Err(e.into()),
            };
            if mover.as_ref().is_some_and(|mover| host.liveness(mover) == Liveness::Dead) {
                home.delete(&[object.key]).await?;
                continue;
            }
            let who = mover.map_or("somebody".into(), |mover| mover.owner());
            let text = format!("{who} is moving objects between the stores of the pool");
            return Err(Error::new(ErrorKind::Busy, text).hint(format!(
                "wait for it; if that process is gone for good, delete the object {}",
                object.key
            )));
        }
        Ok(())
    }
}
