//! A store in this process's memory: for tests and simulations.
//!
//! It keeps the whole contract of [`Store`] except durability. Clones share one namespace, so a
//! simulated host that lost its memory goes on with a clone. No request ever waits, so every
//! future completes at its first poll.

use super::{
    GetRange, Key, ListPage, MAX_PAGE, ObjectInfo, Op, Store, StoreError, StoreErrorKind,
    StoreResult, address,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

const URL: &str = "mem://";

/// Objects in memory. Cheap to clone; clones see the same objects.
#[derive(Clone, Default)]
pub struct MemoryStore {
    objects: Arc<Mutex<BTreeMap<Arc<str>, Bytes>>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// Number of objects.
    pub fn object_count(&self) -> usize {
        self.objects().len()
    }

    /// Bytes of all objects together.
    pub fn total_bytes(&self) -> u64 {
        self.objects().values().map(|body| body.len() as u64).sum()
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Bytes>> {
        self.objects.lock().expect("no holder of this lock panics")
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryStore({} objects)", self.object_count())
    }
}

fn error(kind: StoreErrorKind, op: Op, key: &Key, detail: &str) -> StoreError {
    StoreError::new(kind, op, address(URL, key.as_str()), detail)
}

#[async_trait]
impl Store for MemoryStore {
    fn url(&self) -> String {
        URL.to_owned()
    }

    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        let body = self.objects().get(key.as_str()).cloned();
        let body = body.ok_or_else(|| {
            error(StoreErrorKind::NotFound, Op::Get, key, "there is no such object")
        })?;
        let size = body.len() as u64;
        let at = range.within(size).ok_or_else(|| {
            let detail = format!("the object ends at byte {size}, before the range");
            error(StoreErrorKind::Range, Op::Get, key, &detail)
        })?;
        Ok(body.slice(at.start as usize..at.end as usize))
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        let mut objects = self.objects();
        if objects.contains_key(key.as_str()) {
            return Err(error(
                StoreErrorKind::AlreadyExists,
                Op::Put,
                key,
                "an object of that name is there",
            ));
        }
        objects.insert(key.0.clone(), body);
        Ok(())
    }

    async fn put(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        self.objects().insert(key.0.clone(), body);
        Ok(())
    }

    async fn delete(&self, keys: &[Key]) -> StoreResult<()> {
        let mut objects = self.objects();
        for key in keys {
            objects.remove(key.as_str());
        }
        Ok(())
    }

    async fn head(&self, key: &Key) -> StoreResult<ObjectInfo> {
        let size = self.objects().get(key.as_str()).map(|body| body.len() as u64);
        let size = size.ok_or_else(|| {
            error(StoreErrorKind::NotFound, Op::Head, key, "there is no such object")
        })?;
        Ok(ObjectInfo { key: key.clone(), size })
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> StoreResult<ListPage> {
        let limit = limit.clamp(1, MAX_PAGE);
        let start = match after {
            Some(after) if after.as_str() >= prefix => Bound::Excluded(after.as_str()),
            _ => Bound::Included(prefix),
        };
        let objects = self.objects();
        let mut matching = objects
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(name, _)| name.starts_with(prefix))
            .map(|(name, body)| ObjectInfo { key: Key(name.clone()), size: body.len() as u64 });
        let page = matching.by_ref().take(limit).collect();
        Ok(ListPage { objects: page, more: matching.next().is_some() })
    }
}
