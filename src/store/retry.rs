//! Trying again: what a disk does when the network blinks.
//!
//! Only transient failures ([`StoreErrorKind::is_transient`]) and unanswered attempts are tried
//! again, with exponential backoff and full jitter: the n-th pause is drawn evenly from zero to
//! `first_delay * 2^n`, at most `max_delay`. Time is tokio's, randomness the caller's, so a
//! simulation can run it.
//!
//! **Lost replies.** A create whose attempt failed without an answer may have taken effect, so
//! when a later attempt is told `AlreadyExists`, the object is read back: the same bytes mean
//! that it was ours, others that it was not. Hence an invariant for callers: two racing creators of
//! one key never offer the same bytes (chunks carry their epoch, claims and names an id of their
//! own). A first attempt is no different: gateways repeat requests whose answer they lost, and pass
//! on what the server says to the repetition.
//! The same holds when a later attempt fails for good. Where nothing can be read back then, the
//! error is `Unavailable`: `AlreadyExists`, `Denied` and `Invalid` promise that nothing happened.
//!
//! **Deadline.** No attempt begins or lasts beyond it; the error that ends a request keeps its
//! kind and says how long was tried. Without a deadline a request ends with an answer or with
//! its caller.
//!
//! Of an outage the first failure and the recovery are logged (`warn`, `info`), repeats within a
//! minute and single attempts at `debug`.

use super::{
    GetRange, Key, ListPage, ObjectInfo, Op, Store, StoreError, StoreErrorKind, StoreResult,
    address,
};
use crate::mutant::{self, Mutant};
use async_trait::async_trait;
use bytes::Bytes;
use rand::Rng as _;
use rand::rngs::StdRng;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

mod outage;

use outage::Outages;

/// The transfer rate, in bytes a second, at which an attempt is given time for its payload.
const SLOWEST_TRANSFER: u64 = 256 * 1024;

/// The payload assumed where a request does not tell: the largest chunk object.
const UNKNOWN_PAYLOAD: u64 = 64 * 1024 * 1024;

/// How long and how often to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Upper bound of the first pause; doubles with every failure.
    pub first_delay: Duration,
    /// Upper bound of every pause.
    pub max_delay: Duration,
    /// How long a request is tried; `None` is for ever.
    pub deadline: Option<Duration>,
    /// How long one attempt may take, beyond the time that its payload needs.
    pub attempt_timeout: Duration,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            first_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(10),
            deadline: None,
            attempt_timeout: Duration::from_secs(30),
        }
    }
}

/// Tries requests again that failed for a passing reason.
#[derive(Debug)]
pub struct RetryStore {
    inner: Arc<dyn Store>,
    policy: RetryPolicy,
    rng: Mutex<StdRng>,
    outages: Outages,
}

/// One request over all its attempts.
struct Attempts<'a> {
    store: &'a RetryStore,
    op: Op,
    name: &'a str,
    /// Bytes that an attempt moves.
    payload: u64,
    begun: Instant,
    failures: u32,
    outage: Option<outage::Sufferer<'a>>,
}

impl RetryStore {
    /// Wraps `inner`; `rng` draws the pauses.
    pub fn new(inner: Arc<dyn Store>, policy: RetryPolicy, rng: StdRng) -> RetryStore {
        let outages = Outages::new(inner.url());
        RetryStore { inner, policy, rng: Mutex::new(rng), outages }
    }

    fn attempts<'a>(&'a self, op: Op, name: &'a str, payload: u64) -> Attempts<'a> {
        let begun = Instant::now();
        Attempts { store: self, op, name, payload, begun, failures: 0, outage: None }
    }

    async fn retry<T, F>(
        &self,
        op: Op,
        name: &str,
        payload: u64,
        request: impl Fn() -> F,
    ) -> StoreResult<T>
    where
        F: Future<Output = StoreResult<T>>,
    {
        let mut attempts = self.attempts(op, name, payload);
        loop {
            match attempts.attempt(request()).await {
                Err(e) if e.kind.is_transient() => attempts.pause(e).await?,
                result => return result,
            }
        }
    }

    /// Decides a create that was refused by `error`: it, or an earlier attempt of unknown outcome,
    /// may have taken effect.
    async fn settle(
        &self,
        attempts: &mut Attempts<'_>,
        key: &Key,
        body: &Bytes,
        mut error: StoreError,
    ) -> StoreResult<()> {
        let found = loop {
            match attempts.attempt(self.inner.get(key, GetRange::All)).await {
                Err(e) if e.kind.is_transient() => {
                    if attempts.pause(e).await.is_err() {
                        break None;
                    }
                }
                result => break result.ok(),
            }
        };
        match found {
            Some(found) if found == *body => return Ok(()),
            Some(_) => {
                error.kind = StoreErrorKind::AlreadyExists;
                error.detail = "an object of that name, with other contents, is there".to_owned();
            }
            // The refusal is all that is known, and nobody sees what it refused any more.
            None if attempts.failures == 0 => {}
            None => {
                error.kind = StoreErrorKind::Unavailable;
                error.detail += "; an earlier attempt may have taken effect all the same";
            }
        }
        Err(error)
    }
}

impl Attempts<'_> {
    /// One attempt, cut off at its time limit.
    async fn attempt<T>(&self, request: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
        let policy = &self.store.policy;
        let mut limit =
            policy.attempt_timeout + Duration::from_secs(self.payload / SLOWEST_TRANSFER);
        if let Some(deadline) = policy.deadline {
            limit = limit.min(deadline.saturating_sub(self.begun.elapsed()));
        }
        match tokio::time::timeout(limit, request).await {
            Ok(result) => result,
            Err(_) => Err(StoreError::new(
                StoreErrorKind::Unavailable,
                self.op,
                address(&self.store.url(), self.name),
                format!("no answer within {limit:?}"),
            )),
        }
    }

    /// Waits before the next attempt; fails where the deadline leaves no time for one.
    async fn pause(&mut self, mut error: StoreError) -> StoreResult<()> {
        let policy = &self.store.policy;
        match &self.outage {
            None => self.outage = Some(self.store.outages.begin(&error)),
            Some(_) => tracing::debug!("attempt {}: {error}", self.failures + 1),
        }
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let bound = policy.first_delay.saturating_mul(factor).min(policy.max_delay);
        self.failures += 1;
        let share = self.store.rng.lock().expect("no holder of this lock panics").random::<f64>();
        let delay = bound.mul_f64(share);
        let tried = self.begun.elapsed();
        if policy.deadline.is_some_and(|deadline| tried + delay >= deadline) {
            error.detail = format!("{} (tried for {tried:.1?})", error.detail);
            return Err(error);
        }
        tokio::time::sleep(delay).await;
        Ok(())
    }
}

#[async_trait]
impl Store for RetryStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        let payload = range.max_len().unwrap_or(UNKNOWN_PAYLOAD);
        self.retry(Op::Get, key.as_str(), payload, || self.inner.get(key, range)).await
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        let mut attempts = self.attempts(Op::Put, key.as_str(), body.len() as u64);
        loop {
            match attempts.attempt(self.inner.put_if_absent(key, body.clone())).await {
                Err(e) if e.kind.is_transient() => attempts.pause(e).await?,
                Err(_) if attempts.failures > 0 && mutant::on(Mutant::LostReplyTrusted) => {
                    return Ok(());
                }
                Err(e) if attempts.failures > 0 || e.kind == StoreErrorKind::AlreadyExists => {
                    return self.settle(&mut attempts, key, &body, e).await;
                }
                result => return result,
            }
        }
    }

    async fn put(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        let payload = body.len() as u64;
        self.retry(Op::Put, key.as_str(), payload, || self.inner.put(key, body.clone())).await
    }

    async fn delete(&self, keys: &[Key]) -> StoreResult<()> {
        let name = keys.first().map_or("", Key::as_str);
        self.retry(Op::Delete, name, 0, || self.inner.delete(keys)).await
    }

    async fn head(&self, key: &Key) -> StoreResult<ObjectInfo> {
        self.retry(Op::Head, key.as_str(), 0, || self.inner.head(key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> StoreResult<ListPage> {
        self.retry(Op::List, prefix, 0, || self.inner.list(prefix, after, limit)).await
    }
}
