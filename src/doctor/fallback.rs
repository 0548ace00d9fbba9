//! Whether a volume is whole without its newest checkpoint: then one that is damaged can go.
//!
//! The checkpoint before it has to be there, with all that it names, and so has the log from there on, at least as
//! far as the damaged one had come, which its name says. All of it is read.

use super::Doctor;
use super::exam::Family;
use super::gather::Gathered;
use super::reading::Reading;
use crate::error::Result;
use crate::format::keys;
use crate::pool::VolumeName;
use crate::store::{
    GetRange, Key, ListPage, ObjectInfo, Op, Store, StoreError, StoreErrorKind, StoreResult, limit,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;

/// A store without one of its objects.
#[derive(Debug)]
struct Without {
    store: Arc<dyn Store>,
    hidden: Key,
}

impl Without {
    fn missing(&self, op: Op, key: &Key) -> StoreResult<()> {
        match *key == self.hidden {
            true => {
                Err(StoreError::new(StoreErrorKind::NotFound, op, key.as_str(), "it is hidden"))
            }
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Store for Without {
    fn url(&self) -> String {
        self.store.url()
    }

    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        self.missing(Op::Get, key)?;
        self.store.get(key, range).await
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        self.store.put_if_absent(key, body).await
    }

    async fn put(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        self.store.put(key, body).await
    }

    async fn delete(&self, keys: &[Key]) -> StoreResult<()> {
        self.store.delete(keys).await
    }

    async fn head(&self, key: &Key) -> StoreResult<ObjectInfo> {
        self.missing(Op::Head, key)?;
        self.store.head(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> StoreResult<ListPage> {
        let mut page = self.store.list(prefix, after, limit).await?;
        let before = page.objects.len();
        page.objects.retain(|object| object.key != self.hidden);
        // A page that is empty and not the last one would look like the end.
        if page.objects.is_empty() && before > 0 && page.more {
            return self.store.list(prefix, Some(&self.hidden), limit).await;
        }
        Ok(page)
    }

    fn hurry(&self, key: &Key) -> Option<limit::Urgent> {
        self.store.hurry(key)
    }

    fn unseals(&self, key: &Key) -> bool {
        self.store.unseals(key)
    }
}

impl Doctor {
    /// Whether the volume called `name` is whole without `key`, the newest of its checkpoints.
    ///
    /// # Errors
    /// NotFound. Busy: its owner is too quick. Those of the store that tell nothing of an object.
    pub async fn is_whole_without(&self, name: &VolumeName, key: &Key) -> Result<bool> {
        let (id, description) = self.pool.lookup(name).await?;
        let Some((next, _)) = keys::parse_checkpoint(id, key) else { return Ok(false) };
        let without = Without { store: self.pool.store().clone(), hidden: key.clone() };
        let store: Arc<dyn Store> = Arc::new(without);
        let newest = store.list(&keys::checkpoints(id), None, 1).await?.objects.pop();
        let is_older = newest.is_some_and(|newest| newest.key > *key);
        if !is_older {
            return Ok(false);
        }
        let doctor = Doctor {
            pool: self.pool.clone(),
            store: Arc::new(Reading::new(store, None)),
            data: true,
            progress: self.progress.clone(),
        };
        let gathered = Gathered::of(&*doctor.store, name.as_str(), &description).await?;
        if !gathered.lost.is_empty() || gathered.end.is_none_or(|end| end < next) {
            return Ok(false);
        }
        let report = doctor.examine((name.as_str(), id), &mut Family::default()).await?;
        Ok(report.is_sound() && report.error.is_none())
    }
}
