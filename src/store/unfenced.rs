//! Create-if-absent for stores that do not have it, without its guarantee.
//!
//! Used only where the user said `--unsafe-no-fencing`. Of racing creators several may succeed
//! and the last one's bytes stay: nothing keeps two owners of a volume apart any more.

use super::{
    GetRange, Key, ListPage, ObjectInfo, Op, Store, StoreError, StoreErrorKind, StoreResult,
    address,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;

/// Looks whether the object is there, then overwrites it.
#[derive(Clone, Debug)]
pub struct UnfencedStore {
    inner: Arc<dyn Store>,
}

impl UnfencedStore {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Store>) -> UnfencedStore {
        UnfencedStore { inner }
    }
}

#[async_trait]
impl Store for UnfencedStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        self.inner.get(key, range).await
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        match self.inner.head(key).await {
            Ok(_) => Err(StoreError::new(
                StoreErrorKind::AlreadyExists,
                Op::Put,
                address(&self.url(), key.as_str()),
                "an object of that name is there",
            )),
            Err(e) if e.kind == StoreErrorKind::NotFound => self.inner.put(key, body).await,
            Err(e) => Err(e),
        }
    }

    async fn put(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        self.inner.put(key, body).await
    }

    async fn delete(&self, keys: &[Key]) -> StoreResult<()> {
        self.inner.delete(keys).await
    }

    async fn head(&self, key: &Key) -> StoreResult<ObjectInfo> {
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> StoreResult<ListPage> {
        self.inner.list(prefix, after, limit).await
    }
}
