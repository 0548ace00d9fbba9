//! A second GET where the first is late: what a reader does about the slow tail of a store.
//!
//! A GET that has not been answered after half as long again as 19 of 20 take is asked once more; the
//! first answer counts, the other request is dropped. Reading twice changes nothing, so only reads
//! are hedged (Dean and Barroso, *The Tail at Scale*, 2013).
//!
//! Hedges are at most a twentieth of all GETs, and a few more: where everything is slow because the store
//! is, asking twice would make it slower. Retries and turns are below: each request of a pair waits
//! for a turn of its own.
//!
//! An error of one of the two is an answer: it comes from below only where trying again is no use.

use super::limit::Urgent;
use super::{GetRange, Key, ListPage, ObjectInfo, Store, StoreResult};
use async_trait::async_trait;
use bytes::Bytes;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// What is usual where nothing is known yet.
const AT_FIRST: Duration = Duration::from_millis(200);
/// The noise of a near store is not late.
const USUAL_MIN: Duration = Duration::from_millis(10);
/// Beyond it the retries below have their say.
const USUAL_MAX: Duration = Duration::from_secs(20);
/// What is late, in times of what is usual: where all answers take the same time, none is.
const PATIENCE: f64 = 1.5;
/// The share of GETs that take longer than usual.
const TAIL: f64 = 0.05;
/// How far one answer moves the estimate.
const STEP: f64 = 0.1;
/// Hedges that may be made at once, after a time without any.
const SAVED_MAX: f64 = 8.0;
/// Up to so many bytes a request counts as a small one.
const SMALL: u64 = 256 << 10;

/// When a GET is late, by what those before it took. Pure.
///
/// A quantile is followed by steps: up by the factor `exp(STEP * (1 - TAIL))` for each answer that took
/// longer than it, down by `exp(-STEP * TAIL)` for each that did not; at rest one in twenty takes longer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tail {
    usual: Duration,
    saved: f64,
}

impl Tail {
    pub(super) const NEW: Tail = Tail { usual: AT_FIRST, saved: 1.0 };

    /// A GET was answered.
    pub(super) fn answered(&mut self, took: Duration) {
        let step = if took > self.usual { STEP * (1.0 - TAIL) } else { -STEP * TAIL };
        self.usual = self.usual.mul_f64(step.exp()).clamp(USUAL_MIN, USUAL_MAX);
        self.saved = (self.saved + TAIL).min(SAVED_MAX);
    }

    /// What one in twenty takes longer than.
    pub(super) fn usual(&self) -> Duration {
        self.usual
    }

    /// When a GET is late.
    fn late(&self) -> Duration {
        self.usual.mul_f64(PATIENCE)
    }

    /// Whether a GET that is late may be hedged.
    fn spend(&mut self) -> bool {
        let affordable = self.saved >= 1.0;
        if affordable {
            self.saved -= 1.0;
        }
        affordable
    }
}

/// Asks again for what is late.
#[derive(Debug)]
pub struct HedgeStore {
    inner: Arc<dyn Store>,
    /// Of small requests, and of large ones.
    tails: [Mutex<Tail>; 2],
    hedged: AtomicU64,
    won: AtomicU64,
}

impl HedgeStore {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Store>) -> HedgeStore {
        let tails = [Mutex::new(Tail::NEW), Mutex::new(Tail::NEW)];
        HedgeStore { inner, tails, hedged: AtomicU64::new(0), won: AtomicU64::new(0) }
    }

    /// How many GETs were asked for once more, and for how many of them that was answered first.
    pub fn hedged_and_won(&self) -> (u64, u64) {
        (self.hedged.load(Relaxed), self.won.load(Relaxed))
    }

    fn tail<T>(&self, range: GetRange, look: impl FnOnce(&mut Tail) -> T) -> T {
        let is_small = range.max_len().is_some_and(|len| len <= SMALL);
        let tail = &self.tails[usize::from(!is_small)];
        look(&mut tail.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl Store for HedgeStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        let begun = Instant::now();
        let late = self.tail(range, |tail| tail.late());
        let mut first = pin!(self.inner.get(key, range));
        let answer = tokio::select! {
            biased;
            answer = &mut first => answer,
            () = sleep(late) => {
                if !self.tail(range, Tail::spend) {
                    first.await
                } else {
                    self.hedged.fetch_add(1, Relaxed);
                    tokio::select! {
                        biased;
                        answer = &mut first => answer,
                        answer = self.inner.get(key, range) => {
                            self.won.fetch_add(1, Relaxed);
                            answer
                        }
                    }
                }
            }
        };
        if answer.is_ok() {
            self.tail(range, |tail| tail.answered(begun.elapsed()));
        }
        answer
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        self.inner.put_if_absent(key, body).await
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

    fn hurry(&self, key: &Key) -> Option<Urgent> {
        self.inner.hurry(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_twenty_is_late() {
        let mut tail = Tail::NEW;
        let took = |n: u64| Duration::from_millis(20 + n * 7919 % 100);
        (0..5000).for_each(|n| tail.answered(took(n)));
        let ms = tail.usual.as_millis();
        assert!((105..125).contains(&ms), "the 95th of 20 to 119 ms is {ms}");
        (0..200).for_each(|_| tail.answered(Duration::from_micros(300)));
        (0..2000).for_each(|_| tail.answered(Duration::from_micros(300)));
        assert_eq!(tail.usual, USUAL_MIN);
    }

    #[test]
    fn hedges_are_few() {
        let mut tail = Tail::NEW;
        assert!(tail.spend() && !tail.spend());
        (0..1000).for_each(|_| tail.answered(Duration::from_millis(30)));
        assert_eq!((0..100).filter(|_| tail.spend()).count(), SAVED_MAX as usize);
        (0..40).for_each(|_| tail.answered(Duration::from_millis(30)));
        assert_eq!((0..100).filter(|_| tail.spend()).count(), 2);
    }
}
