//! The layer that seals. See the module above.

use super::VolumeKey;
use super::key::Salt;
use super::ring::Keyring;
use crate::cipher::LocalKey;
use crate::format::FormatError;
use crate::format::keys;
use crate::format::pool::encode_json;
use crate::format::sealed::{self, Span, is_sealed, plain_len};
use crate::format::volume::VolumeObject;
use crate::store::{
    GetRange, Key, ListPage, ObjectInfo, Op, Store, StoreError, StoreErrorKind, StoreResult,
    address, limit,
};
use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// A store whose sealed objects are plain ones to its users, as far as their keys are in the ring.
pub struct SealStore {
    inner: Arc<dyn Store>,
    ring: Arc<Keyring>,
    salts: Mutex<StdRng>,
}

impl fmt::Debug for SealStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealStore({:?})", self.inner)
    }
}

impl SealStore {
    /// Over `inner`; salts come from `random`, which nobody can foresee.
    pub fn new(inner: Arc<dyn Store>, ring: Arc<Keyring>, random: StdRng) -> SealStore {
        SealStore { inner, ring, salts: Mutex::new(random) }
    }

    fn seal(&self, key: &Key, body: Bytes) -> Bytes {
        let Some(volume_key) = self.ring.sealing(key) else { return body };
        let salt: Salt = self.salts.lock().unwrap_or_else(PoisonError::into_inner).random();
        volume_key.seal(key, &body, salt)
    }

    /// The key of the volume that the object of that name describes, if it was given.
    fn signing(&self, key: &Key) -> Option<Arc<VolumeKey>> {
        let id = keys::parse_volume(key)?;
        // Most processes have no key at all.
        self.ring.of(id).filter(|_| keys::volume(id) == *key)
    }

    /// A description that is signed, where those of the volume are.
    fn sign(&self, key: &Key, body: Bytes) -> Bytes {
        let Some(volume_key) = self.signing(key) else { return body };
        match VolumeObject::parse(&body) {
            Ok(description) => encode_json(&volume_key.sign(description)).into(),
            Err(_) => body,
        }
    }

    /// A description, once it is known to be its volume's.
    async fn described(&self, by: &VolumeKey, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        let bytes = self.inner.get(key, GetRange::All).await?;
        // What is no description is told by whoever reads it.
        if VolumeObject::parse(&bytes).is_ok_and(|description| !by.has_signed(&description)) {
            let text = "somebody has changed it who has not the volume's key";
            return Err(self.error(StoreErrorKind::Damaged, key, text));
        }
        let part = range.within(bytes.len() as u64);
        let part = part.map(|part| bytes.slice(part.start as usize..part.end as usize));
        part.ok_or_else(|| {
            self.error(StoreErrorKind::Range, key, "the object ends before the range")
        })
    }

    fn error(&self, kind: StoreErrorKind, key: &Key, detail: impl Into<String>) -> StoreError {
        StoreError::new(kind, Op::Get, address(&self.url(), key.as_str()), detail)
    }

    fn damaged(&self, key: &Key, why: &FormatError) -> StoreError {
        // By its name, as the doctor looks for that.
        StoreError::new(StoreErrorKind::Damaged, Op::Get, key.as_str(), why.to_string())
    }

    async fn open(&self, by: &VolumeKey, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        let GetRange::Part { offset, len } = range else {
            let bytes = self.inner.get(key, GetRange::All).await?;
            return by.open(key, &bytes).map_err(|e| self.damaged(key, &e));
        };
        let Span { first, sealed, skip } = Span::of(offset, len);
        let wanted = sealed.end - sealed.start;
        let part = GetRange::Part { offset: sealed.start, len: wanted };
        let bytes = self.inner.get(key, part).await?;
        let to_the_end = (bytes.len() as u64) < wanted;
        let opened = by.open_part(key, first, &bytes, to_the_end);
        let opened = opened.map_err(|e| self.damaged(key, &e))?;
        let plain = opened.plain;
        // A segment holds fewer bytes than the numbers of both can be.
        let (from, to) = (skip as usize, skip.saturating_add(len).min(plain.len() as u64) as usize);
        if from < to {
            return Ok(plain.slice(from..to));
        }
        debug_assert!(opened.ended);
        Err(self.error(StoreErrorKind::Range, key, "the object ends before the range"))
    }

    /// What somebody sees who has not the key.
    fn refuse_sealed(&self, key: &Key, range: GetRange, bytes: Bytes) -> StoreResult<Bytes> {
        let from_beginning = matches!(range, GetRange::All | GetRange::Part { offset: 0, .. });
        match from_beginning && is_sealed(key) && bytes.starts_with(sealed::MAGIC) {
            true => Err(self.error(
                StoreErrorKind::Locked,
                key,
                "it is sealed, and the key of its volume was not given",
            )),
            false => Ok(bytes),
        }
    }

    fn shown(&self, info: ObjectInfo) -> ObjectInfo {
        match self.ring.sealing(&info.key) {
            // One of a size that no sealed object has is damaged: nothing of it can be read.
            Some(_) => ObjectInfo { size: plain_len(info.size).unwrap_or(0), ..info },
            None => info,
        }
    }
}

#[async_trait]
impl Store for SealStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        if let Some(volume_key) = self.signing(key) {
            return self.described(&volume_key, key, range).await;
        }
        let Some(volume_key) = self.ring.sealing(key) else {
            let bytes = self.inner.get(key, range).await?;
            return self.refuse_sealed(key, range, bytes);
        };
        match self.open(&volume_key, key, range).await {
            // Damage on the way and damage in the store look the same once.
            Err(e) if e.kind == StoreErrorKind::Damaged => self.open(&volume_key, key, range).await,
            done => done,
        }
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        self.inner.put_if_absent(key, self.seal(key, self.sign(key, body))).await
    }

    async fn put(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        self.inner.put(key, self.seal(key, body)).await
    }

    async fn delete(&self, keys: &[Key]) -> StoreResult<()> {
        self.inner.delete(keys).await
    }

    async fn head(&self, key: &Key) -> StoreResult<ObjectInfo> {
        self.inner.head(key).await.map(|info| self.shown(info))
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> StoreResult<ListPage> {
        let page = self.inner.list(prefix, after, limit).await?;
        let objects = page.objects.into_iter().map(|info| self.shown(info)).collect();
        Ok(ListPage { objects, more: page.more })
    }

    fn hurry(&self, key: &Key) -> Option<limit::Urgent> {
        self.inner.hurry(key)
    }

    fn unseals(&self, key: &Key) -> bool {
        keys::parse_volume(key).is_some_and(|id| self.ring.of(id).is_some())
    }

    async fn opened(&self, claim: &Key) -> StoreResult<()> {
        self.inner.opened(claim).await
    }

    fn copies(&self, key: &Key) -> Vec<Arc<dyn Store>> {
        let copies = self.inner.copies(key).into_iter();
        let mut salts = self.salts.lock().unwrap_or_else(PoisonError::into_inner);
        let sealed = copies.map(|copy| -> Arc<dyn Store> {
            Arc::new(SealStore::new(copy, self.ring.clone(), StdRng::from_rng(&mut *salts)))
        });
        sealed.collect()
    }

    /// What is sealed is put there as it is sealed: its own seal proves it.
    async fn restore(&self, key: &Key, body: Bytes) -> StoreResult<bool> {
        let Some(volume_key) = self.ring.sealing(key) else {
            return self.inner.restore(key, body).await;
        };
        let sealed = self.inner.get(key, GetRange::All).await?;
        let opened = volume_key.open(key, &sealed).map_err(|e| self.damaged(key, &e))?;
        match opened == body {
            true => self.inner.restore(key, sealed).await,
            false => Err(self.error(
                StoreErrorKind::Unavailable,
                key,
                "it is another object than was read before",
            )),
        }
    }

    fn local_key(&self, key: &Key) -> Option<Arc<LocalKey>> {
        let id = keys::parse_volume(key)?;
        let volume_key = self.ring.of(id)?;
        let mut salts = self.salts.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::new(volume_key.local(id, StdRng::from_rng(&mut *salts))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::VolumeId;
    use crate::format::features::Features;
    use crate::format::frame::Compression;
    use crate::mutant::{self, Mutant};
    use crate::store::memory::MemoryStore;
    use futures::FutureExt;
    use proptest::prelude::*;

    fn rig() -> (MemoryStore, SealStore, Key) {
        let (memory, id) = (MemoryStore::new(), VolumeId::from_bytes([7; 16]));
        let ring = Arc::new(Keyring::default());
        ring.add([id], VolumeKey::new([3; 32]));
        let store = SealStore::new(Arc::new(memory.clone()), ring, StdRng::seed_from_u64(1));
        (memory, store, keys::profile(id))
    }

    fn now<T>(work: impl Future<Output = T>) -> T {
        work.now_or_never().expect("a memory store answers at once")
    }

    proptest! {
        /// What a range of a sealed object gives is what it gives of a plain one, errors included.
        #[test]
        fn ranges_are_those_of_the_plain_object(
            size in prop_oneof![0usize..30, 8180usize..8200, 16380usize..16390, 0usize..50_000],
            offset in 0u64..50_000,
            len in prop_oneof![1u64..40, 8190u64..8195, 1u64..60_000, Just(u64::MAX)],
        ) {
            let (_, store, key) = rig();
            let plain = MemoryStore::new();
            let body: Bytes = (0..size).map(|at| (at * 31 + at / 256) as u8).collect();
            now(plain.put_if_absent(&key, body.clone())).unwrap();
            now(store.put_if_absent(&key, body.clone())).unwrap();
            let part = GetRange::Part { offset, len };
            let (is, should) = (now(store.get(&key, part)), now(plain.get(&key, part)));
            prop_assert_eq!(is.map_err(|e| e.kind), should.map_err(|e| e.kind));
            prop_assert_eq!(now(store.get(&key, GetRange::All)).unwrap(), body);
            prop_assert_eq!(now(store.head(&key)).unwrap(), now(plain.head(&key)).unwrap());
            let list = now(store.list("", None, 9)).unwrap();
            prop_assert_eq!(list.objects, now(plain.list("", None, 9)).unwrap().objects);
        }
    }

    #[test]
    fn below_are_sealed_bytes_and_without_the_key_an_error_says_so() {
        let (memory, store, key) = rig();
        now(store.put_if_absent(&key, Bytes::from_static(b"what nobody else may read"))).unwrap();
        let below = now(memory.get(&key, GetRange::All)).unwrap();
        assert!(below.starts_with(sealed::MAGIC));
        assert!(!below.windows(6).any(|bytes| bytes == b"nobody"));
        let other =
            SealStore::new(Arc::new(memory.clone()), Arc::default(), StdRng::seed_from_u64(2));
        let e = now(other.get(&key, GetRange::All)).unwrap_err();
        assert_eq!(e.kind, StoreErrorKind::Locked);
        assert!(store.unseals(&key) && !other.unseals(&key));
    }

    fn description() -> VolumeObject {
        let features = Features { incompat: Features::ENCRYPTED, ..Features::default() };
        VolumeObject {
            version: 1,
            id: VolumeId::from_bytes([7; 16]),
            size: 1 << 20,
            block_size: 4096,
            chunk_size: 1 << 20,
            features,
            created_at_ms: 0,
            ancestors: Vec::new(),
            source: None,
            mac: None,
        }
    }

    /// Whether each of these changes to a description is noticed.
    fn notices(volume_key: VolumeKey) -> Vec<bool> {
        let memory = MemoryStore::new();
        let (ring, key) = (Arc::new(Keyring::default()), keys::volume(description().id));
        ring.add([description().id], volume_key);
        let store = SealStore::new(Arc::new(memory.clone()), ring, StdRng::seed_from_u64(1));
        now(store.put_if_absent(&key, encode_json(&description()).into())).unwrap();
        let whole = now(store.get(&key, GetRange::All)).unwrap();
        let made = VolumeObject::parse(&whole).unwrap();
        let zeros = made.mac.as_ref().map(|mac| mac.replace(|_| true, "0"));
        let bare = Features { incompat: Features::ENCRYPTED, ..made.features };
        let changed = [
            VolumeObject { size: 2 << 20, ..made.clone() },
            VolumeObject { chunk_size: 2 << 20, ..made.clone() },
            VolumeObject { created_at_ms: 1, ..made.clone() },
            VolumeObject { features: made.features.compressed(Compression::Lz4), ..made.clone() },
            VolumeObject { mac: zeros, ..made.clone() },
            VolumeObject { features: bare, mac: None, ..made.clone() },
        ];
        let told = changed.map(|changed| {
            now(memory.put(&key, encode_json(&changed).into())).unwrap();
            now(store.get(&key, GetRange::All)).is_err_and(|e| e.kind == StoreErrorKind::Damaged)
        });
        now(memory.put(&key, whole.clone())).unwrap();
        assert_eq!(now(store.get(&key, GetRange::All)).unwrap(), whole);
        told.to_vec()
    }

    #[test]
    fn a_description_that_somebody_else_has_changed_is_noticed() {
        let key = || VolumeKey::new([3; 32]);
        assert_eq!(notices(key().signing()), [true; 6]);
        assert_eq!(notices(key()), [false; 6], "older volumes have none");
        let mistaken =
            mutant::with(Some(Mutant::DescriptionUnchecked), || notices(key().signing()));
        assert_ne!(mistaken, [true; 6], "the mistake is not noticed");
    }

    #[test]
    fn an_object_that_lost_whole_segments_is_damaged_where_it_matters() {
        let (memory, store, key) = rig();
        let body = Bytes::from(vec![5; 40_000]);
        now(store.put_if_absent(&key, body)).unwrap();
        let below = now(memory.get(&key, GetRange::All)).unwrap();
        let two = sealed::HEADER_LEN + 2 * sealed::STRIDE as usize;
        now(memory.put(&key, below.slice(..two))).unwrap();
        let kind = |range| now(store.get(&key, range)).map(|bytes| bytes.len()).map_err(|e| e.kind);
        let part = |offset, len| GetRange::Part { offset, len };
        assert_eq!(kind(part(0, 16_384)), Ok(16_384));
        assert_eq!(kind(part(0, 16_385)), Err(StoreErrorKind::Damaged));
        assert_eq!(kind(part(16_384, 1)), Err(StoreErrorKind::Range));
        assert_eq!(kind(GetRange::All), Err(StoreErrorKind::Damaged));
        assert_eq!(now(store.head(&key)).unwrap().size, 16_384);
    }
}
