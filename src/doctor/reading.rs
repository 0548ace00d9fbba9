//! A store that can only be read, at a limited rate, and counts what is read.

use crate::store::{
    GetRange, Key, ListPage, ObjectInfo, Op, Store, StoreError, StoreErrorKind, StoreResult, limit,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// The examined store. Whatever reads through it cannot change anything.
#[derive(Debug)]
pub(super) struct Reading {
    store: Arc<dyn Store>,
    /// Bytes a second.
    rate: Option<u64>,
    /// When what was read so far is paid for.
    paid: Mutex<Option<Instant>>,
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Reading {
    /// Of `store`, at most `rate` bytes a second of what is read.
    pub fn new(store: Arc<dyn Store>, rate: Option<u64>) -> Reading {
        let (requests, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Reading {
            store,
            rate: rate.filter(|rate| *rate > 0),
            paid: Mutex::default(),
            requests,
            bytes,
        }
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Bytes that were read.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Waits until what was read before is paid for, then charges `bytes`.
    async fn charge(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
        let Some(rate) = self.rate else { return };
        let now = Instant::now();
        let until = {
            let Ok(mut paid) = self.paid.lock() else { return };
            let begin = paid.filter(|paid| *paid > now).unwrap_or(now);
            let takes = Duration::from_micros(bytes.saturating_mul(1_000_000) / rate);
            *paid = begin.checked_add(takes);
            begin
        };
        tokio::time::sleep_until(until).await;
    }

    fn refused(&self, op: Op, object: &str) -> StoreError {
        StoreError::new(StoreErrorKind::Invalid, op, object, "this is only examined")
    }
}

#[async_trait]
impl Store for Reading {
    fn url(&self) -> String {
        self.store.url()
    }

    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        self.requests.fetch_add(1, Relaxed);
        let bytes = self.store.get(key, range).await?;
        self.charge(bytes.len() as u64).await;
        Ok(bytes)
    }

    async fn put_if_absent(&self, key: &Key, _body: Bytes) -> StoreResult<()> {
        Err(self.refused(Op::Put, key.as_str()))
    }

    async fn put(&self, key: &Key, _body: Bytes) -> StoreResult<()> {
        Err(self.refused(Op::Put, key.as_str()))
    }

    async fn delete(&self, keys: &[Key]) -> StoreResult<()> {
        Err(self.refused(Op::Delete, keys.first().map_or("", Key::as_str)))
    }

    async fn head(&self, key: &Key) -> StoreResult<ObjectInfo> {
        self.requests.fetch_add(1, Relaxed);
        self.store.head(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> StoreResult<ListPage> {
        self.requests.fetch_add(1, Relaxed);
        self.store.list(prefix, after, limit).await
    }

    fn hurry(&self, key: &Key) -> Option<limit::Urgent> {
        self.store.hurry(key)
    }

    fn unseals(&self, key: &Key) -> bool {
        self.store.unseals(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    fn key() -> Key {
        Key::new("a").expect("a name")
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_changed_and_the_rate_is_kept() {
        let memory = MemoryStore::new();
        memory.put_if_absent(&key(), vec![0; 1000].into()).await.unwrap();
        let reading = Reading::new(Arc::new(memory.clone()), Some(10_000));
        let begun = Instant::now();
        for _ in 0..31 {
            reading.get(&key(), GetRange::All).await.unwrap();
        }
        assert_eq!(begun.elapsed().as_millis(), 3000);
        assert_eq!((reading.requests(), reading.bytes()), (31, 31_000));
        assert!(reading.put_if_absent(&key(), Bytes::new()).await.is_err());
        assert!(reading.put(&key(), Bytes::new()).await.is_err());
        assert!(reading.delete(&[key()]).await.is_err());
        assert_eq!(memory.total_bytes(), 1000);
    }
}
