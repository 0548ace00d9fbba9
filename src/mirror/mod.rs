//! Volumes of which every object is in two stores of the pool, so that either may vanish.
//!
//! A [`MirrorStore`] is a [`Store`] above all stores of a pool ([`spread`](crate::spread)) and below what seals.
//! It knows a mirrored volume by the feature bit in `volume.json`; its objects lie below `mirror/<id>/` in both stores, where
//! nothing else of a pool looks, and in the home store `volume.json` besides, which keeps older programs away.
//!
//! # Why no acknowledged flush is lost
//!
//! There are no clocks and no majority of two. What says which copies are complete is a chain of numbered states
//! ([`MirrorState`]), created if absent in the stores themselves.
//!
//! 1. **A write counts** when it is in every copy that the newest state calls in sync (and in the one that joins). The
//!    first one *decides*: it is written first, the other one after it, and deletions go the other way. So what is in the second is in the first, and a
//!    create-if-absent is decided in one place: the log's slots (chunk or fence), epochs, everything.
//! 2. **A state counts** when it is in all stores that are in sync in it and were in the one before. So one without A counts by
//!    being in B alone, and one that keeps both must be in both, in the order of that state. Two states of
//!    one number cannot both count, unless one is without A and the other without B, and those have one author:
//! 3. **Only the author of the newest state may leave a store out**, and offers only one state of a number. Whoever
//!    claims an epoch *takes* the chain first: a state of its own with the same copies, in all of them. After that no owner before it can leave out
//!    anything. A taker that does not reach a copy that is in sync is refused.
//! 4. A store that is not in sync never holds a newest state that calls it alone complete. So who sees only that store sees
//!    that another one is needed, and refuses; who sees only the other one may go on.
//! 5. **A store comes back as another copy.** Names of a copy have its generation in them, so whatever comes late at a store
//!    that was left out, comes to a copy that nobody reads. Only slots and map objects keep their names, so that they need not be
//!    copied again: they have one author each, but for the fence that may lie in a slot; one that differs is copied under the name of the
//!    new generation, which is read instead. While it joins, everything is written to it too; it is complete when a comparison of the
//!    listings, begun after all writes of the time before had ended, finds nothing to copy and nothing to delete.
//!    Only an owner, behind its fence, lets a store join: whoever came before it can acknowledge nothing any more.
//! 6. **A look behind every answer.** Who reads something that may have changed, or writes anything but an owner its own
//!    slots, looks for a newer state afterwards in every copy in sync, and does it again if there is one. An owner needs no look for its slots: stores
//!    are only left out, and what it wrote is in a superset; before one joins, its fence lies there.
//! 7. **What a taker builds upon is in all copies**: what it has read until it begins its own term is completed in the others
//!    before its fence is put; a name that was refused by the one that decides, too.
//! 8. **Damage is mended with what another copy has**, once that is proved by its own checksums, and by nothing but the
//!    bytes that the object was written with: whenever such a put takes effect, even late, it leaves what was to be
//!    there, or, where the object was deleted meanwhile, an object that nobody needs.
//! 9. **Either copy gives what is settled**: what an owner's map names is in both, and does not change. Who asks the one that does
//!    not decide for more than that is answered by the one that does, as it is the first to have an object and the last to lose it.
//! 10. **Another store takes the place of one that is lost** only by states that count in the home store alone ([`replace`]). Whoever
//!     finds a state of other stores than it asked, asks those.
//!
//! A copy that answers and knows no state of the volume was wiped, or is not mounted: it counts as away.

pub mod alone;
mod chain;
mod copy;
mod mirrored;
mod one;
mod pace;
mod reads;
pub mod replace;
mod requests;
mod resync;
mod store;

pub use pace::Pace;
pub use store::MirrorStore;

use crate::format::VolumeId;
use crate::format::keys;
use crate::format::mirror::MirrorState;
use crate::format::stores::StoreId;
use crate::format::volume::VolumeObject;
use crate::spread::{Asker, Spread};
use crate::store::{GetRange, Op, Store, StoreError, StoreErrorKind, StoreResult};
use mirrored::Mirrored;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The stores that a volume is to be in, as `store`, one of them, knows; none, where it is not mirrored.
///
/// # Errors
/// The store's.
pub async fn replicas(store: &dyn Store, id: VolumeId) -> StoreResult<Vec<StoreId>> {
    Ok(chain::newest(store, id).await?.map(|state| state.replicas).unwrap_or_default())
}

/// How long a store fails before a volume does without it.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Which of two complete copies is asked for what is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Asked {
    /// The faster one, for what never changes.
    Either,
    /// The first one, and the second only if that is late: for who examines the first.
    First,
    /// The second one alone, for who examines that.
    Second,
}

/// The mirrored volumes of a pool.
#[derive(Debug)]
pub struct Mirror {
    spread: Arc<Spread>,
    patience: Duration,
    /// What reads ask, an [`Asked`].
    asked: Arc<AtomicU8>,
    /// What is known of volumes; `None`: it is not mirrored.
    volumes: Mutex<HashMap<VolumeId, Option<Arc<Mirrored>>>>,
}

impl Mirror {
    /// Those of the pool in `spread`.
    pub fn new(spread: Arc<Spread>, patience: Duration) -> Arc<Mirror> {
        let asked = Arc::new(AtomicU8::new(Asked::Either as u8));
        Arc::new(Mirror { spread, patience, asked, volumes: Mutex::default() })
    }

    /// Those of the pool in `spread`, as they are if the store `lost` is gone for good. For who only reads.
    ///
    /// # Errors
    /// The home store's; invalid, where a state is damaged.
    pub async fn supposed(spread: Arc<Spread>, lost: StoreId) -> StoreResult<Arc<Mirror>> {
        let mirror = Mirror::new(spread, PATIENCE);
        let home = mirror.spread.home(Asker::Setup);
        for id in alone::all(&**home).await? {
            let Some(mut state) = chain::newest(&**home, id).await? else { continue };
            state.in_sync.retain(|twin| twin.store != lost);
            if !state.in_sync.is_empty() {
                let (spread, asked) = (&mirror.spread, &mirror.asked);
                mirror.note(id, Some(Mirrored::new(spread, PATIENCE, asked, state)));
            }
        }
        Ok(mirror)
    }

    /// The store of the pool, with its mirrored volumes.
    pub fn store(self: &Arc<Mirror>, asker: Asker) -> Arc<dyn Store> {
        Arc::new(MirrorStore::new(self.clone(), asker))
    }

    /// Which copies of a volume are complete, as far as is known here; `None` where it is not mirrored.
    ///
    /// # Errors
    /// Those of the stores.
    pub async fn state(&self, id: VolumeId) -> StoreResult<Option<Arc<MirrorState>>> {
        match self.of(Asker::Setup, id).await? {
            None => Ok(None),
            Some(volume) => volume.present(Asker::Setup).await.map(Some),
        }
    }

    /// From now on, reads ask these copies.
    pub fn ask(&self, asked: Asked) {
        self.asked.store(asked as u8, Relaxed);
    }

    /// What each store of a mirrored volume has done for its readers in this process.
    pub fn pace(&self, id: VolumeId) -> Option<Vec<Pace>> {
        self.known(id).flatten().map(|volume| volume.pace())
    }

    fn known(&self, id: VolumeId) -> Option<Option<Arc<Mirrored>>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    fn note(&self, id: VolumeId, volume: Option<Arc<Mirrored>>) -> Option<Arc<Mirrored>> {
        let mut volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        volumes.entry(id).or_insert(volume).clone()
    }

    fn forget(&self, id: VolumeId) {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// The volume, if it is mirrored.
    async fn of(&self, asker: Asker, id: VolumeId) -> StoreResult<Option<Arc<Mirrored>>> {
        if let Some(known) = self.known(id) {
            return Ok(known);
        }
        // Only pools of several stores have any; who uses one for the first time reads its description first.
        if self.spread.version().object.number == 0 {
            return Ok(None);
        }
        match self.spread.home(asker).get(&keys::volume(id), GetRange::All).await {
            Ok(bytes) => self.learn(asker, id, &bytes).await,
            Err(e) if e.kind == StoreErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Learns from a description, as it lies in the home store, whether the volume is mirrored.
    async fn learn(
        &self,
        asker: Asker,
        id: VolumeId,
        description: &[u8],
    ) -> StoreResult<Option<Arc<Mirrored>>> {
        let Ok(description) = VolumeObject::parse(description) else { return Ok(None) };
        if !description.is_mirrored() {
            return Ok(self.note(id, None));
        }
        let volume = Mirrored::find((&self.spread, asker, self.patience), id, &self.asked).await?;
        Ok(self.note(id, Some(volume)))
    }

    /// A description was read: whether there are several stores has to be known if it is of a mirrored volume.
    async fn described(&self, asker: Asker, description: &[u8]) -> StoreResult<()> {
        let described = VolumeObject::parse(description);
        let is_mirrored = described.is_ok_and(|volume| volume.is_mirrored());
        if is_mirrored && self.spread.version().object.number == 0 {
            self.spread.refresh(asker).await?;
        }
        Ok(())
    }

    /// Begins a volume in the home store and another one.
    async fn begin(&self, asker: Asker, id: VolumeId) -> StoreResult<Arc<Mirrored>> {
        let version = self.spread.refresh(asker).await?;
        let number = version.object.number;
        let others = version.object.stores.iter().filter(|store| {
            store.id != StoreId::HOME
                && !store.removed
                && version.placement.weight(number, store.id) > 0
        });
        let others: Vec<StoreId> = others.map(|store| store.id).collect();
        let turn = usize::from(id.bytes()[0]);
        let Some(other) = others.get(turn % others.len().max(1)) else {
            let text = "a mirrored volume needs a pool of two stores or more";
            let object = keys::volume(id).to_string();
            return Err(StoreError::new(StoreErrorKind::Invalid, Op::Put, object, text));
        };
        let volume =
            Mirrored::begin((&self.spread, asker, self.patience), id, *other, &self.asked).await?;
        self.note(id, Some(volume.clone()));
        Ok(volume)
    }
}
