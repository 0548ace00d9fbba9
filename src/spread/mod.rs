//! Several stores that are one: the slots of logs lie in all of them, everything else in the home store.
//!
//! A [`SpreadStore`] is a [`Store`] like any other. It knows which keys name slots of a log, places them by the pool's
//! versioned weights ([`placement`](crate::format::placement)), and finds them wherever they are. All that is agreed upon by names, epochs
//! and checkpoints is agreed upon in the home store alone.
//!
//! **One slot, one store.** A slot is decided by who creates it first, so owner and successor must go to the same
//! store. A slot's *place* is where the version of its term puts it, and that version never changes
//! ([`terms`]); copies that are made later elsewhere decide nothing.
//!
//! **Moving.** A settled slot (its volume's newest checkpoint lies behind it, and no epoch after that checkpoint's is claimed) may be
//! copied to where the newest version puts it, and then be deleted where it was. Whoever claims an epoch after that was looked at finds
//! that checkpoint or a newer one, and puts no fence into a slot before it. Objects move only to stays of higher
//! generations, and are deleted only where a copy of a higher one is known to be stored; so of any number of movers, however
//! late, none takes the last copy. Fences are copied and stay where they are as well: a deposed owner may come at any time.
//!
//! **Finding.** The newest stay is asked first, then older ones; where an object that moves is missed, once more. What is nowhere
//! is only missing if there is no newer version of the pool's stores: who reads by an old one finds out then.
//! A slot's old place is free again once it has moved, and a claimant that slept for long may leave a fence there, before it
//! gives way; so a fence counts only if no newer stay has the slot, of the newest version.
//!
//! **Stores that are away** delay what lies in them and nothing else. None is used before it has shown that it is the
//! one that it should be ([`members`]).

mod finding;
mod listing;
pub mod members;
mod store;
pub mod terms;

pub use store::SpreadStore;

use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::fence;
use crate::format::keys;
use crate::format::placement::{Placement, Stay};
use crate::format::sealed;
use crate::format::stores::{StoreEntry, StoreId, StoresObject};
use crate::store::{
    GetRange, Key, Op, Store, StoreError, StoreErrorKind, StoreResult, address, get_parsed,
    list_all,
};
use lru::LruCache;
use members::{Layers, Member, Opener};
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Objects whose stay is remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(64 << 10).expect("not zero");

/// Who asks: decides how long a store is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A user, who gets an error after a while.
    Setup,
    /// A device, which waits.
    Live,
    /// What no user waits for.
    Background,
}

/// The pool's stores at one version.
#[derive(Debug)]
pub struct Version {
    /// What says so.
    pub object: StoresObject,
    /// Where objects go.
    pub placement: Placement,
    members: BTreeMap<StoreId, Arc<Member>>,
}

/// All stores of a pool.
pub struct Spread {
    pool: VolumeId,
    home: Layers,
    opener: Arc<dyn Opener>,
    version: Mutex<Arc<Version>>,
    /// Looks for a newer version that have begun; the number of the last that has ended.
    looks: AtomicU64,
    looked: tokio::sync::Mutex<u64>,
    stays: Mutex<LruCache<Key, Stay>>,
    terms: terms::Terms,
}

impl Spread {
    /// The stores of `pool`, whose home store is `home`. Reads the newest version.
    ///
    /// # Errors
    /// Corrupt, unsupported: by what it says. Store.
    pub async fn open(
        pool: VolumeId,
        home: Layers,
        opener: Arc<dyn Opener>,
    ) -> Result<Arc<Spread>> {
        let initial = StoresObject::initial(pool, home.of(Asker::Setup).url());
        let spread = Arc::new(Spread {
            pool,
            home,
            opener,
            version: Mutex::new(Arc::new(Version {
                placement: initial.placement(),
                object: initial,
                members: BTreeMap::new(),
            })),
            looks: AtomicU64::new(0),
            looked: tokio::sync::Mutex::new(0),
            stays: Mutex::new(LruCache::new(REMEMBERED)),
            terms: terms::Terms::default(),
        });
        let home = spread.home.of(Asker::Setup);
        let versions = list_all(&**home, keys::STORES).await?;
        let newest = versions.iter().filter_map(|object| keys::parse_stores(&object.key)).max();
        if let Some(newest) = newest {
            let read = spread.read_version(Asker::Setup, newest).await.map_err(Error::from)?;
            let read =
                read.ok_or_else(|| Error::failed("the versions of the pool's stores vanish"))?;
            spread.adopt(read);
        }
        Ok(spread)
    }

    /// The same stores at a version that nobody has written, to look what that would come to.
    pub fn supposed(&self, object: StoresObject) -> Arc<Spread> {
        let members = self.version().members.clone();
        let version = Version { placement: object.placement(), object, members };
        Arc::new(Spread {
            pool: self.pool,
            home: self.home.clone(),
            opener: self.opener.clone(),
            version: Mutex::new(Arc::new(version)),
            looks: AtomicU64::new(0),
            looked: tokio::sync::Mutex::new(0),
            stays: Mutex::new(LruCache::new(REMEMBERED)),
            terms: terms::Terms::default(),
        })
    }

    /// It as one store.
    pub fn store(self: &Arc<Spread>, asker: Asker) -> Arc<dyn Store> {
        Arc::new(SpreadStore::new(self.clone(), asker))
    }

    /// The pool.
    pub fn pool(&self) -> VolumeId {
        self.pool
    }

    /// The home store.
    pub fn home(&self, asker: Asker) -> &Arc<dyn Store> {
        self.home.of(asker)
    }

    /// The newest version that is known here.
    pub fn version(&self) -> Arc<Version> {
        self.lock_version().clone()
    }

    fn lock_version(&self) -> MutexGuard<'_, Arc<Version>> {
        self.version.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over a newer version; stores that are open stay so.
    fn adopt(&self, object: StoresObject) {
        let mut known = self.lock_version();
        if object.number <= known.object.number {
            return;
        }
        let mut members = known.members.clone();
        for entry in object.stores.iter().filter(|entry| entry.id != StoreId::HOME) {
            members.entry(entry.id).or_insert_with(|| Arc::new(Member::new(entry.clone())));
        }
        *known = Arc::new(Version { placement: object.placement(), object, members });
    }

    /// Looks for newer versions, beginning from now on; those who look at a time share it.
    ///
    /// # Errors
    /// The home store's; invalid, where a version is damaged.
    pub async fn refresh(&self, asker: Asker) -> StoreResult<Arc<Version>> {
        let begun = self.looks.load(SeqCst);
        let mut looked = self.looked.lock().await;
        if *looked <= begun {
            let look = self.looks.fetch_add(1, SeqCst) + 1;
            while let Some(newer) = {
                let number = self.version().object.number + 1;
                self.read_version(asker, number).await?
            } {
                self.adopt(newer);
            }
            *looked = look;
        }
        Ok(self.version())
    }

    /// Writes the version that follows the one that is known. False: there is another one, which is known now.
    ///
    /// # Errors
    /// The home store's.
    pub async fn advance(&self, next: &StoresObject) -> StoreResult<bool> {
        let key = keys::stores(next.number);
        let body = crate::format::pool::encode_json(next);
        match self.home(Asker::Setup).put_if_absent(&key, body.into()).await {
            Ok(()) => {
                self.adopt(next.clone());
                Ok(true)
            }
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => {
                self.refresh(Asker::Setup).await?;
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    async fn read_version(&self, asker: Asker, number: u32) -> StoreResult<Option<StoresObject>> {
        let (home, key) = (self.home(asker), keys::stores(number));
        let parsed = match get_parsed(&**home, &key, StoresObject::parse).await {
            Ok(parsed) => parsed,
            Err(e) if e.kind == StoreErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let invalid = |why: String| {
            let object = address(&home.url(), key.as_str());
            StoreError::new(StoreErrorKind::Invalid, Op::Get, object, why)
        };
        let object = parsed.map_err(|e| invalid(e.to_string()))?;
        if (object.pool, object.number) != (self.pool, number) {
            return Err(invalid(
                "it is of another pool or another version than its name says".into(),
            ));
        }
        Ok(Some(object))
    }

    /// The store `id`, once it has shown that it is that one.
    ///
    /// # Errors
    /// See [`members`].
    pub async fn member(&self, asker: Asker, id: StoreId) -> StoreResult<Arc<dyn Store>> {
        if id == StoreId::HOME {
            return Ok(self.home(asker).clone());
        }
        let member = self.version().members.get(&id).cloned();
        let unknown = || {
            let text = format!("the pool has no store {id}");
            StoreError::new(StoreErrorKind::Invalid, Op::Get, self.home(asker).url(), text)
        };
        member.ok_or_else(unknown)?.store(asker, self.pool, &*self.opener).await
    }

    /// Opens a store that is not one of the pool's yet; made first where it is missing.
    ///
    /// # Errors
    /// The opener's.
    pub async fn open_new(&self, entry: &StoreEntry) -> Result<Layers> {
        self.opener.open(entry, true).await
    }

    /// Makes sure that the stores that answer are those that they should be. Says which do not answer.
    ///
    /// # Errors
    /// Store: one is another one.
    pub async fn verify(&self) -> Result<Vec<StoreEntry>> {
        let mut away = Vec::new();
        for entry in self.version().object.stores.iter().filter(|entry| !entry.removed) {
            let opened = self.member(Asker::Setup, entry.id);
            match tokio::time::timeout(members::GREETING, opened).await {
                Ok(Ok(_)) => {}
                Ok(Err(e)) if !e.kind.is_transient() => {
                    let text = format!("store {} of the pool is not what it should be", entry.id);
                    return Err(Error::new(ErrorKind::Store, text).because(e));
                }
                _ => away.push(entry.clone()),
            }
        }
        Ok(away)
    }

    fn remembered(&self) -> MutexGuard<'_, LruCache<Key, Stay>> {
        self.stays.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Version {
    /// The stays of the slot `key` that are looked at, the newest first.
    pub fn stays(&self, key: &Key) -> Vec<Stay> {
        let mut stays = self.placement.stays(key);
        stays.retain(|stay| self.is_there(stay.store));
        stays
    }

    /// Every stay that a slot may have, by generation.
    pub fn all_stays(&self) -> Vec<Stay> {
        let mut stays = self.placement.all_stays();
        stays.retain(|stay| self.is_there(stay.store));
        stays
    }

    /// The store is known, or was.
    pub fn has(&self, id: StoreId) -> bool {
        self.object.stores.iter().any(|store| store.id == id)
    }

    /// The store was not removed.
    fn is_there(&self, id: StoreId) -> bool {
        self.object.stores.iter().any(|store| store.id == id && !store.removed)
    }
}

impl fmt::Debug for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spread({}, version {})", self.pool, self.version().object.number)
    }
}

/// The volume, slot and term that `key` names, if it is a slot of a log.
pub(crate) fn slot_of(key: &Key) -> Option<(VolumeId, crate::units::Seq, crate::units::Epoch)> {
    let volume = keys::parse_volume(key)?;
    let (seq, epoch) = keys::parse_slot(volume, key)?;
    Some((volume, seq, epoch))
}

/// The name of the object `key` in a store in which it lies in this generation.
///
/// # Errors
/// Invalid: the name is too long for that, as no slot's is.
pub fn name_in(generation: u32, key: &Key) -> StoreResult<Key> {
    if generation == 0 {
        return Ok(key.clone());
    }
    Key::new(&format!("{}{key}", keys::generation(generation))).ok_or_else(|| {
        StoreError::new(StoreErrorKind::Invalid, Op::Get, key.to_string(), "the name is too long")
    })
}

/// Whether an object of these first bytes, or of this size, may be a fence, which is what a slot is closed with.
pub(crate) const FENCE_MAX: u64 = 1 << 10;

/// Whether an object of `size` bytes that begins with `bytes` is a fence, or may be one: when it is sealed, it cannot be
/// told from a chunk as short.
pub(crate) fn is_like_fence(bytes: &[u8], size: u64) -> bool {
    bytes.starts_with(fence::MAGIC) || size <= FENCE_MAX && bytes.starts_with(sealed::MAGIC)
}

/// Everything of an object.
const WHOLE: GetRange = GetRange::All;
