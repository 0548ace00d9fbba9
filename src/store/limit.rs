//! A bound on the requests that are under way at once, with room kept for reads.
//!
//! Every request takes one of `total` places; a write (put, delete) first takes one of `writes`
//! places, so writes can never fill all of them and a read waits behind at most `writes` writers.
//! Both queues are first come, first served: nothing starves. Dropping a future gives its place
//! back.

use super::{GetRange, Key, ListPage, ObjectInfo, Store, StoreResult};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Lets a bounded number of requests through at once.
#[derive(Debug)]
pub struct LimitStore {
    inner: Arc<dyn Store>,
    total: Semaphore,
    writes: Semaphore,
}

impl LimitStore {
    /// Wraps `inner`: at most `total` requests at once, at most `writes` of them writes. Either is
    /// at least one; more writes than `total` is the same as `total`.
    pub fn new(inner: Arc<dyn Store>, total: usize, writes: usize) -> LimitStore {
        let total = total.clamp(1, Semaphore::MAX_PERMITS);
        LimitStore {
            inner,
            total: Semaphore::new(total),
            writes: Semaphore::new(writes.clamp(1, total)),
        }
    }

    async fn read_place(&self) -> SemaphorePermit<'_> {
        self.total.acquire().await.expect("the semaphore is never closed")
    }

    async fn write_place(&self) -> (SemaphorePermit<'_>, SemaphorePermit<'_>) {
        let write = self.writes.acquire().await.expect("the semaphore is never closed");
        (write, self.read_place().await)
    }
}

#[async_trait]
impl Store for LimitStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        let _place = self.read_place().await;
        self.inner.get(key, range).await
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        let _place = self.write_place().await;
        self.inner.put_if_absent(key, body).await
    }

    async fn put(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        let _place = self.write_place().await;
        self.inner.put(key, body).await
    }

    async fn delete(&self, keys: &[Key]) -> StoreResult<()> {
        let _place = self.write_place().await;
        self.inner.delete(keys).await
    }

    async fn head(&self, key: &Key) -> StoreResult<ObjectInfo> {
        let _place = self.read_place().await;
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> StoreResult<ListPage> {
        let _place = self.read_place().await;
        self.inner.list(prefix, after, limit).await
    }
}
