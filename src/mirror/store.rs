//! All stores of a pool as one, with its mirrored volumes.

use super::Mirror;
use super::copy::is_bulk;
use super::mirrored::Mirrored;
use super::one::CopyStore;
use crate::format::VolumeId;
use crate::format::keys;
use crate::format::mirror::Twin;
use crate::format::volume::VolumeObject;
use crate::spread::Asker;
use crate::store::limit::Urgent;
use crate::store::{
    GetRange, Key, ListPage, ObjectInfo, Op, Store, StoreError, StoreErrorKind, StoreResult,
    address,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// See the module above.
#[derive(Debug)]
pub struct MirrorStore {
    mirror: Arc<Mirror>,
    inner: Arc<dyn Store>,
    asker: Asker,
}

impl MirrorStore {
    /// For this one who asks.
    pub fn new(mirror: Arc<Mirror>, asker: Asker) -> MirrorStore {
        let inner = mirror.spread.store(asker);
        MirrorStore { mirror, inner, asker }
    }

    /// The mirrored volume that the object belongs to.
    async fn of(&self, key: &Key) -> StoreResult<Option<Arc<Mirrored>>> {
        match keys::parse_volume(key) {
            None => Ok(None),
            Some(id) => self.mirror.of(self.asker, id).await,
        }
    }

    /// The description, as it lies in the home store, is that of a volume that is being made.
    async fn describe(&self, id: VolumeId, body: &Bytes) -> StoreResult<()> {
        let described = VolumeObject::parse(body);
        if !described.is_ok_and(|volume| volume.is_mirrored()) {
            return Ok(());
        }
        let volume = match self.mirror.known(id) {
            Some(Some(volume)) => volume,
            _ => self.mirror.begin(self.asker, id).await?,
        };
        match volume.put(self.asker, &keys::volume(id), body).await {
            // An earlier attempt at it.
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => Ok(()),
            put => put,
        }
    }
}

fn is_description(key: &Key) -> bool {
    keys::parse_volume(key).is_some_and(|id| keys::volume(id) == *key)
}

#[async_trait]
impl Store for MirrorStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        // The description tells what it is: it is read as it lies in the home store, until that is known.
        let volume = match is_description(key) {
            true => keys::parse_volume(key).and_then(|id| self.mirror.known(id)).flatten(),
            false => self.of(key).await?,
        };
        if let Some(volume) = volume {
            return volume.get(self.asker, key, range).await;
        }
        let bytes = self.inner.get(key, range).await?;
        if is_description(key) {
            self.mirror.described(self.asker, &bytes).await?;
        }
        Ok(bytes)
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        if let Some(id) = keys::parse_volume(key).filter(|id| keys::volume(*id) == *key) {
            self.describe(id, &body).await?;
            return self.inner.put_if_absent(key, body).await;
        }
        match self.of(key).await? {
            Some(volume) => volume.put(self.asker, key, &body).await,
            None => self.inner.put_if_absent(key, body).await,
        }
    }

    /// Only what keeps its name is overwritten in its copies, by a repair with what it was, so that it does not matter
    /// which copy has it when. A hint is deleted first.
    async fn put(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        let Some(volume) = self.of(key).await? else { return self.inner.put(key, body).await };
        if *key == keys::profile(volume.id) {
            volume.delete(self.asker, std::slice::from_ref(key)).await?;
            return volume.put(self.asker, key, &body).await;
        }
        if is_bulk(volume.id, key) {
            return volume.overwrite(self.asker, key, &body).await;
        }
        let object = address(&self.url(), key.as_str());
        let text = "nothing of a mirrored volume is overwritten";
        Err(StoreError::new(StoreErrorKind::Invalid, Op::Put, object, text))
    }

    async fn delete(&self, keys: &[Key]) -> StoreResult<()> {
        let mut others = Vec::new();
        let mut mirrored: BTreeMap<VolumeId, (Arc<Mirrored>, Vec<Key>)> = BTreeMap::new();
        for key in keys {
            match self.of(key).await? {
                None => others.push(key.clone()),
                Some(volume) => {
                    let id = volume.id;
                    mirrored.entry(id).or_insert((volume, Vec::new())).1.push(key.clone());
                }
            }
        }
        for (id, (volume, keys)) in mirrored {
            let description = keys::volume(id);
            if !keys.contains(&description) {
                volume.delete(self.asker, &keys).await?;
                continue;
            }
            // What says that the volume is mirrored goes last.
            volume.erase(self.asker, true).await?;
            self.inner.delete(&[description]).await?;
            volume.erase(self.asker, false).await?;
            self.mirror.forget(id);
        }
        match others.is_empty() {
            true => Ok(()),
            false => self.inner.delete(&others).await,
        }
    }

    async fn head(&self, key: &Key) -> StoreResult<ObjectInfo> {
        match self.of(key).await? {
            Some(volume) => volume.head(self.asker, key).await,
            None => self.inner.head(key).await,
        }
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> StoreResult<ListPage> {
        let below = prefix.strip_prefix(keys::VOLUMES).and_then(|rest| rest.split_once('/'));
        let id: Option<VolumeId> = below.and_then(|(id, _)| id.parse().ok());
        if let Some(id) = id
            && let Some(volume) = self.mirror.of(self.asker, id).await?
        {
            return volume.list(self.asker, prefix, after, limit).await;
        }
        self.inner.list(prefix, after, limit).await
    }

    fn hurry(&self, key: &Key) -> Option<Urgent> {
        self.inner.hurry(key)
    }

    async fn opened(&self, claim: &Key) -> StoreResult<()> {
        match self.of(claim).await? {
            Some(volume) => volume.opened(self.asker, claim).await,
            None => Ok(()),
        }
    }

    fn copies(&self, key: &Key) -> Vec<Arc<dyn Store>> {
        let volume = keys::parse_volume(key).and_then(|id| self.mirror.known(id)).flatten();
        let Some(volume) = volume else { return Vec::new() };
        let state = volume.known();
        let one = |twin: &Twin| -> Arc<dyn Store> {
            Arc::new(CopyStore::new((self.inner.url(), self.asker), volume.clone(), *twin))
        };
        match state.in_sync.len() {
            0 | 1 => Vec::new(),
            _ => state.in_sync.iter().map(one).collect(),
        }
    }
}
