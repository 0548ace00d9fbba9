//! The disk cache as one volume uses it.
//!
//! Only frames of objects that the store has go into it, and what is in it is found by the object and
//! by the claim of its epoch. Claims of epochs before the last one are read from the store when they
//! are first needed. An epoch whose claim cannot be had has nothing in the cache.

use super::options::DiskCacheStatus;
use crate::cache::FrameId;
use crate::cache::disk::{Claim, DiskCache, FrameKey};
use crate::cipher::LocalKey;
use crate::flight::{Flights, Turn};
use crate::format::VolumeId;
use crate::format::keys::{self, ChunkId};
use crate::format::volume::EpochObject;
use crate::store::{GetRange, Store, StoreErrorKind};
use crate::units::Epoch;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// How long a read waits for the claim of an epoch before it goes past the cache.
const CLAIM_PATIENCE: Duration = Duration::from_secs(5);
/// How long a volume that is closed waits for what it offered.
const FAREWELL: Duration = Duration::from_secs(2);

/// A disk cache and what a volume knows for it.
#[derive(Debug)]
pub(super) struct Tier {
    cache: Arc<DiskCache>,
    /// By which frames of an encrypted volume are sealed there.
    key: Option<Arc<LocalKey>>,
    /// Of the epochs that were asked for; `None`: the store has none that can be read.
    claims: Mutex<BTreeMap<(VolumeId, Epoch), Option<Claim>>>,
    /// Those that are being asked for, once for all who need them.
    asked: Flights<(VolumeId, Epoch), Option<Claim>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Tier {
    /// `key`: that of an encrypted volume.
    pub fn new(cache: Arc<DiskCache>, key: Option<Arc<LocalKey>>) -> Tier {
        let (hits, misses) = (AtomicU64::new(0), AtomicU64::new(0));
        Tier { cache, key, claims: Mutex::default(), asked: Flights::default(), hits, misses }
    }

    /// The epoch was claimed by `owner`.
    pub fn claimed(&self, volume: VolumeId, epoch: Epoch, owner: &EpochObject) {
        self.note((volume, epoch), Some(Claim::of_nonce(&owner.nonce)));
    }

    fn note(&self, epoch: (VolumeId, Epoch), claim: Option<Claim>) {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).insert(epoch, claim);
    }

    fn known(&self, epoch: (VolumeId, Epoch)) -> Option<Option<Claim>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).get(&epoch).copied()
    }

    async fn claim(&self, store: &dyn Store, chunk: ChunkId) -> Option<Claim> {
        let epoch = (chunk.volume, chunk.epoch);
        if let Some(known) = self.known(epoch) {
            return known;
        }
        let lead = match self.asked.join(epoch) {
            Turn::Follow(wait) => return wait.await.ok().flatten(),
            Turn::Lead(lead) => lead,
        };
        let claim = match self.known(epoch) {
            Some(known) => known,
            None => self.read_claim(store, chunk).await,
        };
        lead.done(claim);
        claim
    }

    async fn read_claim(&self, store: &dyn Store, chunk: ChunkId) -> Option<Claim> {
        let epoch = (chunk.volume, chunk.epoch);
        let key = keys::epoch(chunk.volume, chunk.epoch);
        let claim = match timeout(CLAIM_PATIENCE, store.get(&key, GetRange::All)).await.ok()? {
            Ok(bytes) => EpochObject::parse(&bytes).ok(),
            Err(e) if e.kind == StoreErrorKind::NotFound => None,
            Err(_) => return None,
        };
        let claim = claim.map(|owner| Claim::of_nonce(&owner.nonce));
        self.note(epoch, claim);
        claim
    }

    /// The payloads of these frames of a chunk, as far as they are in the cache.
    pub async fn read(
        &self,
        store: &dyn Store,
        chunk: ChunkId,
        frames: impl Iterator<Item = u32>,
    ) -> Vec<Option<Bytes>> {
        let frames: Vec<FrameId> = frames.map(|index| FrameId { chunk, index }).collect();
        let none = vec![None; frames.len()];
        if self.cache.failure().is_some() {
            return none;
        }
        let found = match self.claim(store, chunk).await {
            Some(claim) => {
                let key = |frame| FrameKey { frame, claim };
                let keys: Vec<FrameKey> = frames.into_iter().map(key).collect();
                self.cache.get(&keys, self.key.as_ref()).await
            }
            None => none,
        };
        let hits = found.iter().flatten().count();
        self.hits.fetch_add(hits as u64, Ordering::Relaxed);
        self.misses.fetch_add((found.len() - hits) as u64, Ordering::Relaxed);
        found
    }

    /// Takes a frame that the store has.
    pub fn offer(&self, frame: FrameId, payload: &[u8]) {
        if let Some(Some(claim)) = self.known((frame.chunk.volume, frame.chunk.epoch)) {
            self.cache.offer(FrameKey { frame, claim }, payload, self.key.as_ref());
        }
    }

    /// The volume is closed: what it offered is written, unless that takes long.
    pub async fn settle(&self) {
        if timeout(FAREWELL, self.cache.settle()).await.is_err() {
            tracing::warn!("the cache in {} is slow", self.cache.folder().display());
        }
    }

    pub fn status(&self) -> DiskCacheStatus {
        DiskCacheStatus {
            path: self.cache.folder().display().to_string(),
            size: self.cache.size(),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            failure: self.cache.failure().map(Into::into),
        }
    }
}
