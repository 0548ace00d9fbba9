//! One request over all the paths that it goes by.

use super::state::Outcome;
use super::switch::{Leg, PathId, Wish};
use super::{Errand, Inner, Way};
use crate::store::{Op, StoreError, StoreErrorKind, StoreResult, address};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Paths that may ask a request to slow down before its caller hears of it: what two say is what the
/// store says.
const THROTTLED_MAX: u32 = 2;

/// A request by one path; abandoned where it is dropped before it has ended.
struct OnTheWay {
    inner: Arc<Inner>,
    leg: Leg,
    question: Option<u64>,
    begun: Instant,
    patience: Duration,
    ended: bool,
}

struct Trip<'a, T> {
    inner: &'a Arc<Inner>,
    errand: Errand,
    patience: Duration,
    tried: Vec<PathId>,
    under_way: FuturesUnordered<BoxFuture<'static, (OnTheWay, StoreResult<T>)>>,
    last: Option<Leg>,
    failure: Option<StoreError>,
    throttled: u32,
    /// A path gave no answer: it may have taken effect.
    unknown: bool,
}

/// Sends a request by one path after the other until one has the store's answer.
pub(super) async fn go<T: Send + 'static>(
    inner: &Arc<Inner>,
    errand: Errand,
    name: &str,
    request: impl Fn(&Way) -> BoxFuture<'static, StoreResult<T>> + Send + Sync,
) -> StoreResult<T> {
    let mut changes = inner.changed.subscribe();
    let mut trip = Trip::new(inner, errand);
    trip.send(false, &request);
    let mut look = Instant::now() + trip.patience;
    loop {
        if trip.under_way.is_empty() {
            let nothing = || {
                let detail = "no path to the store is enabled";
                let object = address(&inner.url, name);
                StoreError::new(StoreErrorKind::Unavailable, errand.op, object, detail)
            };
            let failure = trip.failure.take().unwrap_or_else(nothing);
            return Err(trip.honest(failure));
        }
        tokio::select! {
            biased;
            Some((way, result)) = trip.under_way.next() => {
                way.ends(&result);
                match result {
                    Err(e) if is_of_path(e.kind) => {
                        trip.fails(e);
                        if trip.throttled < THROTTLED_MAX {
                            trip.send(false, &request);
                        }
                    }
                    result => return result.map_err(|e| trip.honest(e)),
                }
            }
            () = sleep_until(look), if errand.may_race => {
                look = Instant::now() + trip.patience / 4;
                trip.race(&request);
            }
            Ok(()) = changes.changed(), if errand.may_race => trip.race(&request),
        }
    }
}

/// True for what may be otherwise by another path.
fn is_of_path(kind: StoreErrorKind) -> bool {
    kind.is_transient() || kind == StoreErrorKind::Denied
}

impl<'a, T: Send + 'static> Trip<'a, T> {
    fn new(inner: &'a Arc<Inner>, errand: Errand) -> Trip<'a, T> {
        Trip {
            inner,
            errand,
            patience: inner.patience(errand.size),
            tried: Vec::new(),
            under_way: FuturesUnordered::new(),
            last: None,
            failure: None,
            throttled: 0,
            unknown: false,
        }
    }

    /// Sends the request by a path that it has not gone by yet, if one will do.
    fn send(&mut self, race: bool, request: impl Fn(&Way) -> BoxFuture<'static, StoreResult<T>>) {
        let inner = self.inner;
        let Errand { size, question, .. } = self.errand;
        let (tried, patience, now) = (&self.tried, self.patience, inner.now());
        let found = inner.change(|state| {
            let asked = question.and_then(|question| state.asked.get(&question));
            let asked = asked.map_or(&[][..], Vec::as_slice);
            let leg = state.switch.send(Wish { tried, asked, size, patience, race }, now)?;
            state.asks(question, leg.path);
            Some((leg, Arc::clone(state.ways.get(&leg.path)?)))
        });
        let Some((leg, way)) = found else { return };
        self.tried.push(leg.path);
        self.last = Some(leg);
        let (inner, begun) = (Arc::clone(inner), Instant::now());
        let on_the_way = OnTheWay { inner, leg, question, begun, patience, ended: false };
        let answer = request(&way);
        self.under_way.push(Box::pin(async move {
            let answer = answer.await;
            (on_the_way, answer)
        }));
    }

    /// Sends the request by another path as well, if its last one is given up.
    fn race(&mut self, request: impl Fn(&Way) -> BoxFuture<'static, StoreResult<T>>) {
        let Some(leg) = self.last else { return };
        let now = self.inner.now();
        if self.inner.state().switch.is_given_up(leg, self.patience, now) {
            self.send(true, request);
        }
    }

    /// A path has failed.
    fn fails(&mut self, failure: StoreError) {
        self.unknown |= failure.kind == StoreErrorKind::Unavailable;
        self.throttled += u32::from(failure.kind == StoreErrorKind::Throttled);
        self.failure = Some(failure);
    }

    /// The error for the caller: none that promises more than is known.
    fn honest(&self, mut failure: StoreError) -> StoreError {
        let promises = matches!(failure.kind, StoreErrorKind::Denied | StoreErrorKind::Invalid);
        let elsewhere = self.unknown || !self.under_way.is_empty();
        if self.errand.op == Op::Put && promises && elsewhere {
            failure.kind = StoreErrorKind::Unavailable;
            failure.detail += "; an attempt by another path may have taken effect all the same";
        }
        failure
    }
}

impl OnTheWay {
    fn ends<T>(mut self, result: &StoreResult<T>) {
        self.ended = true;
        let outcome = match result {
            Err(e) => match e.kind {
                StoreErrorKind::Unavailable | StoreErrorKind::Denied => {
                    Outcome::Failed(e.detail.clone())
                }
                StoreErrorKind::Throttled => Outcome::Throttled,
                _ => Outcome::Answered,
            },
            Ok(_) => Outcome::Answered,
        };
        let now = self.inner.now();
        let took = self.begun.elapsed();
        self.inner.change(|state| {
            if outcome == Outcome::Answered {
                state.learn(self.leg.size, took);
            }
            state.is_told(self.question, self.leg.path);
            state.switch.ended(self.leg, &outcome, now);
        });
    }
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (now, took) = (self.inner.now(), self.begun.elapsed());
        self.inner.change(|state| {
            // It would have taken longer.
            if took >= self.patience {
                state.learn(self.leg.size, took);
            }
            state.is_told(self.question, self.leg.path);
            state.switch.abandoned(self.leg, self.patience, now);
        });
    }
}
