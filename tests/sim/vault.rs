//! Worlds whose volume is encrypted: what travels is sealed. The world looks into it, so that everybody who
//! judges sees plain objects, and says when a key and a nonce are used for two different segments.

use bytes::Bytes;
use futures::FutureExt;
use objblk::format::VolumeId;
use objblk::format::keys;
use objblk::format::sealed::{HEADER_LEN, SALT_LEN, is_sealed, sealed_len};
use objblk::seal::{Keyring, SealStore, VolumeKey};
use objblk::store::memory::MemoryStore;
use objblk::store::{GetRange, Key, Store, StoreResult};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

const KEY: [u8; 32] = *b"the key of a volume in the world";

#[derive(Debug)]
pub struct Vault {
    volume: VolumeId,
    key: VolumeKey,
    /// What is stored, as it came.
    sealed: MemoryStore,
    /// What was sealed, by name and salt.
    seen: Mutex<HashMap<(Key, [u8; SALT_LEN]), Bytes>>,
}

impl Vault {
    pub fn new(volume: VolumeId) -> Vault {
        let (sealed, seen) = (MemoryStore::new(), Mutex::default());
        Vault { volume, key: VolumeKey::new(KEY), sealed, seen }
    }

    /// A process's way to the store: it has the key.
    pub fn over(&self, store: Arc<dyn Store>, seed: u64) -> Arc<dyn Store> {
        let ring = Arc::new(Keyring::default());
        ring.add([self.volume], VolumeKey::new(KEY));
        Arc::new(SealStore::new(store, ring, StdRng::seed_from_u64(seed)))
    }

    pub fn seals(&self, key: &Key) -> bool {
        is_sealed(key) && keys::parse_volume(key) == Some(self.volume)
    }

    /// The object that is put. Err: what must not be put.
    pub fn open(&self, key: &Key, body: &Bytes) -> Result<Bytes, String> {
        let salt = body.get(HEADER_LEN..HEADER_LEN + SALT_LEN);
        let salt = salt.and_then(|salt| salt.try_into().ok());
        let salt = salt.ok_or_else(|| format!("{key} is put and is not sealed"))?;
        let mut seen = self.seen.lock().expect("no holder of this lock panics");
        let before = seen.entry((key.clone(), salt)).or_insert_with(|| body.clone());
        if before != body {
            return Err(format!("{key} is sealed twice with one key and one nonce"));
        }
        self.key.open(key, body).map_err(|e| format!("{key} is put and does not open: {e}"))
    }

    /// An object was stored as it came.
    pub fn keep(&self, key: &Key, body: &Bytes) {
        let kept = self.sealed.put(key, body.clone()).now_or_never();
        kept.expect("a memory store answers at once").expect("it takes everything");
    }

    /// A part of an object that is there; one that the world itself has put is sealed now.
    pub fn give(&self, key: &Key, plain: &Bytes, range: GetRange) -> StoreResult<Bytes> {
        let now = "a memory store answers at once";
        if self.sealed.head(key).now_or_never().expect(now).is_err() {
            self.keep(key, &self.key.seal(key, plain, [1; SALT_LEN]));
        }
        self.sealed.get(key, range).now_or_never().expect(now)
    }

    /// The size of an object as it is stored.
    pub fn size(&self, key: &Key, plain: u64) -> u64 {
        if self.seals(key) { sealed_len(plain) } else { plain }
    }
}
