//! The stores of a pool besides its home store: opened when they are needed, and only used once each has
//! shown its `objblk-store.json`: a wrong or swapped address is refused before anything is asked for there.
//!
//! A store that does not answer, or is not there (a directory that is not mounted), is waited for by whoever waits for
//! stores; a store that is another one is an error at once.

use super::{Asker, WHOLE};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::keys;
use crate::format::stores::{StoreEntry, StoreObject};
use crate::store::{Op, Store, StoreError, StoreErrorKind, StoreResult, address, get_parsed};
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;

/// How long a store may take to show what it is before a user is told that it is away.
pub const GREETING: Duration = Duration::from_secs(3);
/// Waits between attempts to open a store.
const AGAIN: Duration = Duration::from_secs(2);

/// One store, for each that asks.
#[derive(Clone, Debug)]
pub struct Layers {
    /// Gives up with an error after a while.
    pub setup: Arc<dyn Store>,
    /// Waits for ever.
    pub live: Arc<dyn Store>,
    /// Waits for ever, and others go first.
    pub background: Arc<dyn Store>,
}

impl Layers {
    /// One store for all.
    pub fn one(store: Arc<dyn Store>) -> Layers {
        Layers { setup: store.clone(), live: store.clone(), background: store }
    }

    pub(super) fn of(&self, asker: Asker) -> &Arc<dyn Store> {
        match asker {
            Asker::Setup => &self.setup,
            Asker::Live => &self.live,
            Asker::Background => &self.background,
        }
    }
}

/// Opens stores by what the pool says of them.
#[async_trait]
pub trait Opener: Send + Sync + 'static {
    /// The store, made first where `make` says so and it is missing.
    async fn open(&self, entry: &StoreEntry, make: bool) -> Result<Layers>;
}

#[derive(Debug)]
pub(super) struct Member {
    entry: StoreEntry,
    opened: OnceCell<Layers>,
}

impl Member {
    pub fn new(entry: StoreEntry) -> Member {
        Member { entry, opened: OnceCell::new() }
    }

    /// The store, once it is open.
    pub fn opened(&self, asker: Asker) -> Option<&Arc<dyn Store>> {
        self.opened.get().map(|layers| layers.of(asker))
    }

    pub async fn store(
        &self,
        asker: Asker,
        pool: VolumeId,
        opener: &dyn Opener,
    ) -> StoreResult<Arc<dyn Store>> {
        let mut said = false;
        loop {
            let error = match self.opened.get_or_try_init(|| self.open(pool, opener)).await {
                Ok(layers) => return Ok(layers.of(asker).clone()),
                Err(e) => e,
            };
            if asker == Asker::Setup || !error.kind.is_transient() {
                return Err(error);
            }
            if !std::mem::replace(&mut said, true) {
                tracing::warn!("store {} of the pool is waited for: {error}", self.entry.id);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn open(&self, pool: VolumeId, opener: &dyn Opener) -> StoreResult<Layers> {
        let url = || address(&self.entry.url, "");
        let unavailable =
            |e: Error| StoreError::new(StoreErrorKind::Unavailable, Op::Get, url(), e.to_string());
        let layers = opener.open(&self.entry, false).await.map_err(unavailable)?;
        let key = keys::store();
        let parsed = match get_parsed(&*layers.setup, &key, StoreObject::parse).await {
            Ok(parsed) => parsed,
            // The place is there, and the store is not: something is not mounted, or it was wiped.
            Err(e) if e.kind == StoreErrorKind::NotFound => {
                let text = format!("it holds no {key}, so it is not the store that it was");
                return Err(StoreError::new(StoreErrorKind::Unavailable, Op::Get, url(), text));
            }
            Err(e) => return Err(e),
        };
        let wrong = |why: String| StoreError::new(StoreErrorKind::Invalid, Op::Get, url(), why);
        let found = parsed.map_err(|e| wrong(e.to_string()))?;
        if found != StoreObject::new(pool, self.entry.id) {
            let why = format!(
                "it is store {} of pool {}, not store {} of pool {pool}",
                found.id, found.pool, self.entry.id
            );
            return Err(wrong(why));
        }
        Ok(layers)
    }
}

/// What a store says that it is; `None` where it says nothing.
///
/// # Errors
/// Corrupt: it says something that is damaged. Store.
pub async fn identity(store: &dyn Store) -> Result<Option<StoreObject>> {
    match store.get(&keys::store(), WHOLE).await {
        Ok(bytes) => StoreObject::parse(&bytes).map(Some).map_err(|e| {
            let text = format!("{} is damaged", address(&store.url(), keys::store().as_str()));
            Error::new(ErrorKind::Corrupt, text).because(e)
        }),
        Err(e) if e.kind == StoreErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}
