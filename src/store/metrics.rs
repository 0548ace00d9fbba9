//! Counters of what a store is asked and how it answers.
//!
//! All counters only grow, except `in_flight`. Each is read and written on its own, so a snapshot
//! taken while requests run may be off by those: it is for people and graphs, not for decisions.

use super::{GetRange, Key, ListPage, ObjectInfo, Op, Store, StoreErrorKind, StoreResult};
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::Instant;

/// Buckets of a latency histogram: the last one begins at about 36 minutes.
const BUCKETS: usize = 32;

/// What has been counted since the store was wrapped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsSnapshot {
    /// By operation name: `get`, `put`, `delete`, `head`, `list`.
    pub operations: BTreeMap<String, OperationSnapshot>,
}

/// The counters of one operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationSnapshot {
    /// Requests begun.
    pub requests: u64,
    /// Requests begun and neither answered nor cancelled.
    pub in_flight: u64,
    /// Requests whose caller stopped waiting.
    pub cancelled: u64,
    /// Failures by kind; kinds that never occurred are left out.
    pub errors: BTreeMap<String, u64>,
    /// Payload bytes of successful requests: received by `get`, sent by `put`.
    pub bytes: u64,
    /// Latency of answered requests, failures included.
    pub latency: LatencySnapshot,
}

/// A histogram of latencies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencySnapshot {
    /// Sum, in microseconds.
    pub sum_us: u64,
    /// `log2_us[i]` counts latencies in `2^i .. 2^(i+1)` microseconds; the first bucket also
    /// those below, the last also those above. Empty buckets at the end are left out.
    pub log2_us: Vec<u64>,
}

impl LatencySnapshot {
    /// Adds what another histogram counts.
    pub fn merge(&mut self, other: &LatencySnapshot) {
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        self.log2_us.resize(self.log2_us.len().max(other.log2_us.len()), 0);
        self.log2_us.iter_mut().zip(&other.log2_us).for_each(|(sum, count)| *sum += count);
    }

    /// An upper bound of the latency that a share `quantile` (0 to 1) of the requests kept; `None`
    /// where there was none.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let total: u64 = self.log2_us.iter().sum();
        let rank = ((total as f64 * quantile.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut seen = 0;
        self.log2_us.iter().enumerate().find_map(|(i, count)| {
            seen += count;
            (seen >= rank).then(|| Duration::from_micros(2 << i))
        })
    }
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    in_flight: AtomicU64,
    cancelled: AtomicU64,
    errors: [AtomicU64; StoreErrorKind::ALL.len()],
    bytes: AtomicU64,
    latency_sum_us: AtomicU64,
    latency: [AtomicU64; BUCKETS],
}

impl Counters {
    fn snapshot(&self) -> OperationSnapshot {
        let errors = StoreErrorKind::ALL
            .iter()
            .map(|kind| (kind.name().to_owned(), self.errors[*kind as usize].load(Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect();
        let mut log2_us: Vec<u64> = self.latency.iter().map(|b| b.load(Relaxed)).collect();
        while log2_us.last() == Some(&0) {
            log2_us.pop();
        }
        OperationSnapshot {
            requests: self.requests.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
            errors,
            bytes: self.bytes.load(Relaxed),
            latency: LatencySnapshot { sum_us: self.latency_sum_us.load(Relaxed), log2_us },
        }
    }
}

/// One request under way; counts as cancelled when it is dropped unanswered.
struct Request<'a> {
    counters: &'a Counters,
    begun: Instant,
    answered: bool,
}

impl<'a> Request<'a> {
    fn begin(counters: &'a Counters) -> Request<'a> {
        counters.requests.fetch_add(1, Relaxed);
        counters.in_flight.fetch_add(1, Relaxed);
        Request { counters, begun: Instant::now(), answered: false }
    }

    fn end<T>(mut self, result: &StoreResult<T>, bytes: u64) {
        self.answered = true;
        let us = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let bucket = (us.max(1).ilog2() as usize).min(BUCKETS - 1);
        self.counters.latency_sum_us.fetch_add(us, Relaxed);
        self.counters.latency[bucket].fetch_add(1, Relaxed);
        match result {
            Ok(_) => self.counters.bytes.fetch_add(bytes, Relaxed),
            Err(e) => self.counters.errors[e.kind as usize].fetch_add(1, Relaxed),
        };
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.counters.in_flight.fetch_sub(1, Relaxed);
        if !self.answered {
            self.counters.cancelled.fetch_add(1, Relaxed);
        }
    }
}

/// Counts the requests to a store.
#[derive(Debug)]
pub struct MetricsStore {
    inner: Arc<dyn Store>,
    counters: [Counters; Op::ALL.len()],
}

impl MetricsStore {
    /// Wraps `inner`, with all counters at zero.
    pub fn new(inner: Arc<dyn Store>) -> MetricsStore {
        MetricsStore { inner, counters: Default::default() }
    }

    /// The counters as they are now.
    pub fn snapshot(&self) -> MetricsSnapshot {
        let named = |op: &Op| (op.name().to_owned(), self.counters[*op as usize].snapshot());
        MetricsSnapshot { operations: Op::ALL.iter().map(named).collect() }
    }

    fn begin(&self, op: Op) -> Request<'_> {
        Request::begin(&self.counters[op as usize])
    }
}

#[async_trait]
impl Store for MetricsStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        let request = self.begin(Op::Get);
        let result = self.inner.get(key, range).await;
        request.end(&result, result.as_ref().map_or(0, |bytes| bytes.len() as u64));
        result
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        let (request, bytes) = (self.begin(Op::Put), body.len() as u64);
        let result = self.inner.put_if_absent(key, body).await;
        request.end(&result, bytes);
        result
    }

    async fn put(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        let (request, bytes) = (self.begin(Op::Put), body.len() as u64);
        let result = self.inner.put(key, body).await;
        request.end(&result, bytes);
        result
    }

    async fn delete(&self, keys: &[Key]) -> StoreResult<()> {
        let request = self.begin(Op::Delete);
        let result = self.inner.delete(keys).await;
        request.end(&result, 0);
        result
    }

    async fn head(&self, key: &Key) -> StoreResult<ObjectInfo> {
        let request = self.begin(Op::Head);
        let result = self.inner.head(key).await;
        request.end(&result, 0);
        result
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> StoreResult<ListPage> {
        let request = self.begin(Op::List);
        let result = self.inner.list(prefix, after, limit).await;
        request.end(&result, 0);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_upper_bounds() {
        let latency = LatencySnapshot { sum_us: 0, log2_us: vec![0, 0, 9, 0, 1] };
        assert_eq!(latency.quantile(0.5), Some(Duration::from_micros(8)));
        assert_eq!(latency.quantile(0.9), Some(Duration::from_micros(8)));
        assert_eq!(latency.quantile(1.0), Some(Duration::from_micros(32)));
        assert_eq!(LatencySnapshot::default().quantile(0.5), None);
    }
}
