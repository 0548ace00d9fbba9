//! Trying again: what a disk does when the network blinks.
//!
//! Only transient failures ([`StoreErrorKind::is_transient`]) and unanswered attempts are tried
//! again, with exponential backoff and full jitter: the n-th pause is drawn evenly from zero to
//! `first_delay * 2^n`, at most `max_delay`. Time is tokio's, randomness the caller's, so a
//! simulation can run it.
//!
//! **Lost replies.** A create whose attempt failed without an answer may have taken effect, so
//! when a later attempt is told `AlreadyExists`, the object is read back: the same bytes mean
//! that it was ours, others, found twice ([`ReadBack`]), that it was not. Hence an invariant for callers: two racing creators of
//! one key never offer the same bytes (chunks carry their epoch, claims and names an id of their
//! own). A first attempt is no different: gateways repeat requests whose answer they lost, and pass
//! on what the server says to the repetition.
//! The same holds when a later attempt fails for good. Where nothing can be read back then, the
//! error is `Unavailable`: `AlreadyExists`, `Denied` and `Invalid` promise that nothing happened.
//!
//! **Turns.** Where many requests reach one store, each attempt waits for its turn
//! ([`RetryStore::through`]); its time limit runs from then on. A request that had no answer is tried
//! at once when an outage is over, however long its pause would be.
//!
//! **Deadline.** No attempt begins or lasts beyond it; the error that ends a request keeps its
//! kind and says how long was tried. Without a deadline a request ends with an answer or with
//! its caller.
//!
//! Of an outage the first failure and the recovery are logged (`warn`, `info`), repeats within a
//! minute and single attempts at `debug`.

use super::limit::{Class, Kind, Limiter, Place, Ticket, Urgent};
use super::{
    GetRange, Key, ListPage, ObjectInfo, Op, ReadBack, Store, StoreError, StoreErrorKind,
    StoreResult, address,
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
    /// How long a request is tried; `None` is for ever. One attempt gets at most half of what is
    /// left of it (while that is a third of the whole), so that one lost reply is not the end.
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
    turns: Option<(Arc<Limiter>, Class)>,
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
    /// Pauses since the beginning, or since the store was back.
    pauses: u32,
    outage: Option<outage::Sufferer<'a>>,
    ticket: Option<Ticket>,
    /// Kept from the last attempt.
    place: Option<Place<'a>>,
    /// Outages that had ended when the last attempt began.
    heals: u64,
}

impl RetryStore {
    /// Wraps `inner`; `rng` draws the pauses.
    pub fn new(inner: Arc<dyn Store>, policy: RetryPolicy, rng: StdRng) -> RetryStore {
        let outages = Outages::new(inner.url());
        RetryStore { inner, policy, rng: Mutex::new(rng), outages, turns: None }
    }

    /// Has each attempt wait for its turn.
    pub fn through(self, limiter: Arc<Limiter>, class: Class) -> RetryStore {
        RetryStore { turns: Some((limiter, class)), ..self }
    }

    fn attempts<'a>(&'a self, op: Op, name: &'a str, payload: u64) -> Attempts<'a> {
        Attempts {
            store: self,
            op,
            name,
            payload,
            begun: Instant::now(),
            failures: 0,
            pauses: 0,
            outage: None,
            ticket: self.turns.as_ref().map(|(limiter, _)| limiter.draw()),
            place: None,
            heals: 0,
        }
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
            match attempts.attempt(op, request()).await {
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
        let mut back = ReadBack::new(key, body);
        let found = loop {
            let reply = attempts.attempt(Op::Get, self.inner.get(key, GetRange::All)).await;
            match reply.and_then(|reply| back.hears(reply)) {
                Ok(None) => {}
                Err(e) if e.kind.is_transient() => {
                    if attempts.pause(e).await.is_err() {
                        break None;
                    }
                }
                result => break result.ok().flatten(),
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
    /// One attempt, in its turn, cut off at its time limit.
    async fn attempt<T>(
        &mut self,
        op: Op,
        request: impl Future<Output = StoreResult<T>>,
    ) -> StoreResult<T> {
        self.wait_for_turn(op).await?;
        let policy = &self.store.policy;
        let limit = policy.attempt_timeout + Duration::from_secs(self.payload / SLOWEST_TRANSFER);
        let limit = self.share_of_the_rest().map_or(limit, |share| limit.min(share));
        let result = match tokio::time::timeout(limit, request).await {
            Ok(result) => result,
            Err(_) => Err(self.unavailable(format!("no answer within {limit:?}"))),
        };
        if let Some(place) = self.place.take() {
            self.place = place.report(result.as_ref().err());
        }
        result
    }

    /// Waits until an attempt may begin.
    async fn wait_for_turn(&mut self, op: Op) -> StoreResult<()> {
        let (Some((limiter, class)), Some(ticket)) = (&self.store.turns, self.ticket) else {
            return Ok(());
        };
        if self.place.is_none() {
            let kind = match op {
                Op::Put | Op::Delete => Kind::Write,
                Op::Get | Op::Head | Op::List => Kind::Read,
            };
            let turn = limiter.turn(ticket, kind, *class, self.name);
            let place = match self.left() {
                None => turn.await,
                Some(left) => match tokio::time::timeout(left, turn).await {
                    Ok(place) => place,
                    Err(_) => {
                        let why = limiter.trouble().unwrap_or_else(|| "too much to do".to_owned());
                        return Err(self.unavailable(why));
                    }
                },
            };
            self.place = Some(place);
        }
        self.heals = limiter.heals();
        Ok(())
    }

    /// The time until the deadline.
    fn left(&self) -> Option<Duration> {
        self.store.policy.deadline.map(|deadline| deadline.saturating_sub(self.begun.elapsed()))
    }

    /// The part of the time until the deadline that the next attempt may take.
    fn share_of_the_rest(&self) -> Option<Duration> {
        let left = self.left()?;
        let third = self.store.policy.deadline? / 3;
        Some((left / 2).max(third).min(left))
    }

    fn unavailable(&self, detail: String) -> StoreError {
        let object = address(&self.store.url(), self.name);
        StoreError::new(StoreErrorKind::Unavailable, self.op, object, detail)
    }

    fn next_pause(&mut self) -> Duration {
        let policy = &self.store.policy;
        let factor = 1_u32.checked_shl(self.pauses).unwrap_or(u32::MAX);
        self.pauses += 1;
        let bound = policy.first_delay.saturating_mul(factor).min(policy.max_delay);
        let mut rng = self.store.rng.lock().expect("no holder of this lock panics");
        bound.mul_f64(rng.random::<f64>())
    }

    /// Waits before the next attempt; fails where the deadline leaves no time for one.
    async fn pause(&mut self, mut error: StoreError) -> StoreResult<()> {
        match &self.outage {
            None => self.outage = Some(self.store.outages.begin(&error)),
            Some(_) => tracing::debug!("attempt {}: {error}", self.failures + 1),
        }
        self.failures += 1;
        let silent = error.kind == StoreErrorKind::Unavailable;
        let limiter = self.store.turns.as_ref().map(|(limiter, _)| limiter).filter(|_| silent);
        // Others find out when the store is back: this one waits for its turn, in line.
        let in_line = limiter.is_some_and(|limiter| limiter.is_out()) && self.place.is_none();
        let delay = if in_line { Duration::ZERO } else { self.next_pause() };
        if self.left().is_some_and(|left| left <= delay) {
            error.detail = format!("{} (tried for {:.1?})", error.detail, self.begun.elapsed());
            return Err(error);
        }
        if in_line {
            return Ok(());
        }
        match limiter {
            None => tokio::time::sleep(delay).await,
            Some(limiter) => tokio::select! {
                biased;
                () = limiter.healed(self.heals) => self.pauses = 0,
                () = tokio::time::sleep(delay) => {}
            },
        }
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
            match attempts.attempt(Op::Put, self.inner.put_if_absent(key, body.clone())).await {
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

    fn hurry(&self, key: &Key) -> Option<Urgent> {
        let (limiter, class) = self.turns.as_ref()?;
        (*class == Class::Foreground).then(|| limiter.hurry(key.as_str()))
    }
}
