use super::key::VolumeKey;
use crate::format::VolumeId;
use crate::format::keys;
use crate::format::sealed::is_sealed;
use crate::store::Key;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// The keys that this process has, by volume.
#[derive(Debug, Default)]
pub struct Keyring {
    keys: RwLock<HashMap<VolumeId, Arc<VolumeKey>>>,
    /// There is one: without, nobody has to look.
    any: AtomicBool,
}

impl Keyring {
    /// Adds the key of these volumes: a clone and what it comes from have one. From now on this process leaves
    /// no memory image behind.
    pub fn add(&self, volumes: impl IntoIterator<Item = VolumeId>, key: VolumeKey) {
        if let Err(e) = nix::sys::prctl::set_dumpable(false) {
            tracing::warn!("a crash of this process may leave keys in a core dump: {e}");
        }
        let key = Arc::new(key);
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        keys.extend(volumes.into_iter().map(|id| (id, Arc::clone(&key))));
        drop(keys);
        self.any.store(true, Ordering::Release);
    }

    /// The key of the volume, if it was given.
    pub fn of(&self, id: VolumeId) -> Option<Arc<VolumeKey>> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        self.keys.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// The key by which the object of that name is sealed, if it is sealed and the key was given.
    pub(super) fn sealing(&self, key: &Key) -> Option<Arc<VolumeKey>> {
        let has_any = self.any.load(Ordering::Acquire);
        let id = keys::parse_volume(key).filter(|_| has_any && is_sealed(key))?;
        self.of(id)
    }
}
