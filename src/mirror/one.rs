//! One complete copy of a mirrored volume by itself, and putting right what another one has.

use super::chain::{Halt, missing_is_away};
use super::mirrored::Mirrored;
use crate::format::mirror::{MirrorState, Twin};
use crate::spread::Asker;
use crate::store::{
    GetRange, Key, ListPage, ObjectInfo, Op, Store, StoreError, StoreErrorKind, StoreResult,
    address,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

impl Mirrored {
    /// That the copy is complete in this state.
    fn counts(state: &MirrorState, twin: Twin, object: &str) -> Result<(), Halt> {
        if state.in_sync.contains(&twin) {
            return Ok(());
        }
        let text = format!("the copy in store {} is not in sync any more", twin.store);
        let kind = StoreErrorKind::Invalid;
        Err(Halt::Failed(StoreError::new(kind, Op::Get, object, text)))
    }

    async fn overwrite_at(
        &self,
        asker: Asker,
        twin: Twin,
        key: &Key,
        body: &Bytes,
    ) -> Result<(), Halt> {
        let name = self.copy(asker, twin).await?.read(key).map_err(Halt::Failed)?;
        let put = |store: Arc<dyn Store>| {
            let (name, body) = (&name, body.clone());
            async move { store.put(name, body).await }
        };
        self.at(asker, twin.store, put).await
    }

    /// Puts `body`, which is what the object was written with, in the place of what the complete copies have.
    pub(super) async fn overwrite(&self, asker: Asker, key: &Key, body: &Bytes) -> StoreResult<()> {
        let request = |state: Arc<MirrorState>| async move {
            let _under_way = self.under_way.read().await;
            for twin in &state.in_sync {
                self.overwrite_at(asker, *twin, key, body).await?;
            }
            Ok(())
        };
        self.by_state(asker, |_| true, request).await
    }

    /// The same for those whose bytes are others, but for `good`. Whether there were any.
    async fn restore(
        &self,
        asker: Asker,
        good: Twin,
        key: &Key,
        body: &Bytes,
    ) -> StoreResult<bool> {
        // Of all attempts.
        let differed = AtomicBool::new(false);
        let request = |state: Arc<MirrorState>| {
            let differed = &differed;
            async move {
                Self::counts(&state, good, key.as_str())?;
                let _under_way = self.under_way.read().await;
                for twin in state.in_sync.iter().filter(|twin| **twin != good) {
                    match self.get_at(asker, *twin, key, GetRange::All).await {
                        Ok(there) if there == *body => continue,
                        Ok(_) => {}
                        Err(Halt::Failed(e)) if e.kind == StoreErrorKind::NotFound => {}
                        Err(halt) => return Err(halt),
                    }
                    differed.store(true, Relaxed);
                    self.overwrite_at(asker, *twin, key, body).await?;
                }
                Ok(())
            }
        };
        self.by_state(asker, |_| true, request).await?;
        Ok(differed.into_inner())
    }
}

/// See the module above. Errors: `Invalid`, once the copy is not complete any more.
#[derive(Debug)]
pub(super) struct CopyStore {
    url: String,
    asker: Asker,
    volume: Arc<Mirrored>,
    twin: Twin,
}

impl CopyStore {
    /// The copy `twin` of `volume`, which is in the pool at a URL, for this one who asks.
    pub fn new((url, asker): (String, Asker), volume: Arc<Mirrored>, twin: Twin) -> CopyStore {
        CopyStore { url, asker, volume, twin }
    }

    fn refused(&self, op: Op, key: &Key) -> StoreError {
        let object = address(&self.url, key.as_str());
        let text = "one copy of a mirrored volume is not changed by itself";
        StoreError::new(StoreErrorKind::Invalid, op, object, text)
    }
}

#[async_trait]
impl Store for CopyStore {
    fn url(&self) -> String {
        self.url.clone()
    }

    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        let settled = self.volume.is_settled(key, range);
        let looks = |answer: &Result<Bytes, Halt>| answer.is_err() || !settled;
        let request = |state: Arc<MirrorState>| async move {
            Mirrored::counts(&state, self.twin, key.as_str())?;
            self.volume.get_at(self.asker, self.twin, key, range).await
        };
        self.volume.by_state(self.asker, looks, request).await
    }

    async fn put_if_absent(&self, key: &Key, _body: Bytes) -> StoreResult<()> {
        Err(self.refused(Op::Put, key))
    }

    async fn put(&self, key: &Key, _body: Bytes) -> StoreResult<()> {
        Err(self.refused(Op::Put, key))
    }

    async fn delete(&self, keys: &[Key]) -> StoreResult<()> {
        keys.first().map_or(Ok(()), |key| Err(self.refused(Op::Delete, key)))
    }

    async fn head(&self, key: &Key) -> StoreResult<ObjectInfo> {
        let request = |state: Arc<MirrorState>| async move {
            Mirrored::counts(&state, self.twin, key.as_str())?;
            let copy = self.volume.copy(self.asker, self.twin).await?;
            let name = copy.read(key).map_err(Halt::Failed)?;
            let head = |store: Arc<dyn Store>| {
                let name = &name;
                async move { store.head(name).await }
            };
            self.volume.at(self.asker, self.twin.store, head).await
        };
        let info = self.volume.by_state(self.asker, |_| true, request).await?;
        Ok(ObjectInfo { key: key.clone(), ..info })
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> StoreResult<ListPage> {
        let request = |state: Arc<MirrorState>| async move {
            Mirrored::counts(&state, self.twin, prefix)?;
            let copy = self.volume.copy(self.asker, self.twin).await?;
            let list = |store: Arc<dyn Store>| {
                let copy = &copy;
                async move { copy.list(&*store, prefix, after, limit).await.map_err(missing_is_away) }
            };
            self.volume.at(self.asker, self.twin.store, list).await
        };
        self.volume.by_state(self.asker, |_| true, request).await
    }

    async fn restore(&self, key: &Key, body: Bytes) -> StoreResult<bool> {
        self.volume.restore(self.asker, self.twin, key, &body).await
    }
}
