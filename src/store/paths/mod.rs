//! Several paths to one store, used as one: what host multipathing does for disks.
//!
//! ```text
//! retry ── metrics ── MultipathStore ──┬── path 1: S3 endpoint, its own connections
//!   hedge                              ├── path 2
//!                                      └── ...      checks: one small object, the same by every path
//! ```
//!
//! What is decided is in the pure parts: [`selector`] (which of several good paths), [`state`] (what can
//! be expected of one), [`switch`] (groups, failback, all of it together), [`policy`] (what users can
//! say). Here requests are sent, and background tasks check paths.
//!
//! * **Another path at once.** What a path fails (no answer, broken connection, 5xx, refused credentials)
//!   goes by each other path before the caller hears of it; a SlowDown by one other, as it is likely to
//!   be the store's. What the store says of an object is an answer whatever path it came by.
//! * **Stalls.** A request that has no answer after a second, and one more for each 4 MiB, and four times
//!   what 19 of 20 requests of its size take, is sent by another path as well, provided that its own
//!   path has answered nothing at all meanwhile, or after three times as long in any case; the first
//!   answer counts. A path that was overtaken after saying nothing has stalled, and has failed: what
//!   else is under way by it is sent by others at once.
//! * **Hedges.** A read that somebody asks for while the same is under way, as the `hedge` layer does with
//!   what is late, goes by another path than that.
//! * **Late requests.** A request that was given up may still take effect, as it may without
//!   paths: creates are refused by what is there, and names are never used twice. Deletes
//!   and overwrites are not sent twice for being late, only when their path says that it failed.
//! * **Ambiguity.** A create that went by two paths may be told `AlreadyExists` because of itself: the
//!   `retry` layer above reads back, as it does for gateways that repeat requests. `Denied` and
//!   `Invalid` are passed on only where no other attempt may have taken effect.
//! * **One store.** All paths must lead to one store, which is consistent over all of them. Whether they do
//!   is told by the pool's own object, which every path has to show alike before it is used
//!   ([`MultipathStore::verify`]) and whenever it is checked.
//!
//! Where no path works, requests go on to be tried by failed ones, so that one path alone behaves as the
//! bare store does, and the layers above wait as they always do.

mod beacon;
mod checker;
pub mod policy;
mod report;
pub mod s3;
pub mod selector;
pub mod spec;
pub mod state;
pub mod switch;
mod trip;

pub use beacon::Landmark;
pub use report::{PathReport, PathsReport};

use super::hedge::Tail;
use super::metrics::MetricsStore;
use super::{GetRange, Key, ListPage, ObjectInfo, Op, Store, StoreResult};
use crate::error::{Error, ErrorKind, Result};
use async_trait::async_trait;
use beacon::Beacon;
use bytes::Bytes;
use futures::future::BoxFuture;
use policy::{NoPathRetry, PathPolicy};
use selector::{Selector, Size};
use spec::PathSpec;
use state::Condition;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use switch::{PathId, Switch};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// No request stalls before.
const PATIENCE_MIN: Duration = Duration::from_secs(1);
/// Every request that has had no answer for so long has stalled.
const PATIENCE_MAX: Duration = Duration::from_secs(15);
/// The rate, in bytes a second, at which a request is given time for what it moves.
const SLOW_TRANSFER: u64 = 4 << 20;
/// What is late, in times of what 19 of 20 requests take.
const LATE: u32 = 4;
/// What is expected of a request whose size is not known.
const UNKNOWN: Size = Size(64 << 10);

/// A store, by one path.
#[derive(Debug)]
pub struct NewPath {
    /// What it is to be called.
    pub spec: PathSpec,
    /// The store.
    pub store: Arc<dyn Store>,
}

/// One store over all its paths. Clones are one.
#[derive(Clone, Debug)]
pub struct MultipathStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    url: String,
    begun: Instant,
    state: Mutex<State>,
    beacon: Beacon,
    hasher: RandomState,
    /// A path is not what it was: who waits for one may think again.
    changed: watch::Sender<u64>,
    /// The checker has something to do.
    wake: Notify,
    hopeless: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    switch: Switch,
    ways: BTreeMap<PathId, Arc<Way>>,
    /// Reads under way, by what they ask for, and their paths.
    asked: HashMap<u64, Vec<PathId>>,
    /// How long requests take: small ones, and large ones.
    tails: [Tail; 2],
}

/// Where a path leads, and what was asked for by it.
#[derive(Debug)]
struct Way {
    spec: PathSpec,
    bare: Arc<dyn Store>,
    counted: Arc<MetricsStore>,
}

/// A request, as far as the choice of a path needs to know it.
#[derive(Clone, Copy, Debug)]
struct Errand {
    op: Op,
    size: Size,
    /// It may be sent again while it is under way.
    may_race: bool,
    /// Of a read: what tells it from others.
    question: Option<u64>,
}

impl MultipathStore {
    /// The store at `url` by these paths. `beacon` is a small object by which paths are checked. Tasks
    /// of the present runtime check until the last clone is gone.
    pub fn new(
        url: String,
        paths: Vec<NewPath>,
        policy: PathPolicy,
        beacon: impl Into<Landmark>,
    ) -> MultipathStore {
        let state = State {
            switch: Switch::new(policy),
            ways: BTreeMap::new(),
            asked: HashMap::new(),
            tails: [Tail::NEW, Tail::NEW],
        };
        let inner = Arc::new(Inner {
            url,
            begun: Instant::now(),
            state: Mutex::new(state),
            beacon: Beacon::new(beacon.into()),
            hasher: RandomState::new(),
            changed: watch::Sender::new(0),
            wake: Notify::new(),
            hopeless: watch::Sender::new(false),
        });
        for path in paths {
            inner.add(path, Ok(()));
        }
        checker::start(&inner);
        MultipathStore { inner }
    }

    /// True while requests have waited for a path for longer than the policy has a device wait.
    pub fn hopeless(&self) -> watch::Receiver<bool> {
        self.inner.hopeless.subscribe()
    }

    /// The policy has requests fail at some time while no path works.
    pub fn gives_up(&self) -> bool {
        self.inner.state().switch.policy().no_path_retry != NoPathRetry::Queue
    }

    /// What the paths are and do.
    pub fn report(&self) -> PathsReport {
        report::report(&self.inner)
    }

    /// Adds a path that leads to the same store.
    ///
    /// Errors: exists; store, where it does not answer; usage, where it leads elsewhere.
    pub async fn add(&self, path: NewPath) -> Result<PathId> {
        let name = path.spec.name();
        let exists = || Error::new(ErrorKind::Exists, format!("there is a path {name} already"));
        if self.inner.find(&name).is_some() {
            return Err(exists());
        }
        self.inner.beacon.admit(self, &*path.store, &name).await?;
        if self.inner.find(&name).is_some() {
            return Err(exists());
        }
        Ok(self.inner.add(path, Ok(())))
    }

    /// The path that a user means by its number or its name.
    ///
    /// Errors: not found.
    pub fn find(&self, what: &str) -> Result<PathId> {
        self.inner.find(what).ok_or_else(|| {
            Error::not_found(format!("{} has no path {what}", self.inner.url))
                .hint("`objblk path list` shows the paths")
        })
    }

    /// Removes a path. What is under way by it ends as it may.
    ///
    /// Errors: busy, where no other is enabled.
    pub fn remove(&self, path: PathId) -> Result<()> {
        self.inner.spare(path, "removed")?;
        let now = self.inner.now();
        let name = self.inner.change(|state| {
            state.switch.remove(path, now);
            state.ways.remove(&path).map(|way| way.spec.name())
        });
        tracing::info!("path {} is removed", name.unwrap_or_default());
        Ok(())
    }

    /// Has a path (not) be used.
    ///
    /// Errors: busy, where no other is enabled.
    pub fn enable(&self, path: PathId, enable: bool) -> Result<()> {
        if !enable {
            self.inner.spare(path, "disabled")?;
        }
        let now = self.inner.now();
        self.inner.change(|state| state.switch.enable(path, enable, now));
        Ok(())
    }

    /// Selects otherwise from now on.
    pub fn set_selector(&self, selector: Selector) {
        self.inner.change(|state| state.switch.set_selector(selector));
        tracing::info!("paths are selected by {selector}");
    }

    /// The paths as they were named.
    pub fn specs(&self) -> Vec<PathSpec> {
        self.inner.state().ways.values().map(|way| way.spec.clone()).collect()
    }

    /// Asks every path for the beacon: they have to agree. Those that do not answer in time, while others
    /// do, have to be readmitted by their checks. To be called again once the beacon is made.
    ///
    /// Errors: store, where two paths show different things.
    pub async fn verify(&self) -> Result<()> {
        checker::verify(&self.inner).await
    }

    async fn go<T: Send + 'static>(
        &self,
        errand: Errand,
        name: &str,
        request: impl Fn(Arc<dyn Store>) -> BoxFuture<'static, StoreResult<T>> + Send + Sync,
    ) -> StoreResult<T> {
        let sent = |path: &Way| request(Arc::clone(&path.counted) as Arc<dyn Store>);
        trip::go(&self.inner, errand, name, sent).await
    }
}

impl State {
    /// A read is under way by a path.
    fn asks(&mut self, question: Option<u64>, path: PathId) {
        if let Some(question) = question {
            self.asked.entry(question).or_default().push(path);
        }
    }

    /// It is no more.
    fn is_told(&mut self, question: Option<u64>, path: PathId) {
        let Some(Entry::Occupied(mut paths)) = question.map(|q| self.asked.entry(q)) else {
            return;
        };
        if let Some(at) = paths.get().iter().position(|one| *one == path) {
            paths.get_mut().swap_remove(at);
        }
        if paths.get().is_empty() {
            paths.remove();
        }
    }

    /// A request of this size took so long.
    fn learn(&mut self, size: Size, took: Duration) {
        self.tails[size.class()].answered(took);
    }
}

impl Inner {
    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// Does something to the paths; logs what became of them and tells whoever waits.
    fn change<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let (done, events, hopeless) = {
            let mut state = self.state();
            let done = work(&mut state);
            let changes = state.switch.take_changes();
            let several = state.ways.len() > 1;
            let named = changes.into_iter().map(|(id, change)| {
                let name = state.ways.get(&id).map(|way| way.spec.name());
                (name.unwrap_or_default(), change, several)
            });
            let events: Vec<_> = named.collect();
            (done, events, state.switch.is_hopeless(self.now()))
        };
        if !events.is_empty() {
            self.changed.send_modify(|changes| *changes += 1);
            self.wake.notify_one();
        }
        for (name, change, several) in events {
            report::tell(&name, &change, several);
        }
        self.hopeless.send_if_modified(|was| std::mem::replace(was, hopeless) != hopeless);
        done
    }

    fn add(&self, path: NewPath, proven: std::result::Result<(), &str>) -> PathId {
        let NewPath { spec, store } = path;
        let now = self.now();
        let id = self.change(|state| {
            let id = state.switch.add(spec.priority, spec.weight, now, proven);
            let counted = Arc::new(MetricsStore::new(Arc::clone(&store)));
            state.ways.insert(id, Arc::new(Way { spec, bare: store, counted }));
            id
        });
        self.wake.notify_one();
        id
    }

    fn find(&self, what: &str) -> Option<PathId> {
        let state = self.state();
        let by_name = state.ways.iter().find(|(_, way)| way.spec.name() == what);
        let by_number = || what.parse().ok().map(PathId).filter(|id| state.ways.contains_key(id));
        by_name.map(|(id, _)| *id).or_else(by_number)
    }

    /// Errors: busy, where no path but this one is enabled.
    fn spare(&self, path: PathId, what: &str) -> Result<()> {
        let enabled = |member: &switch::Member| member.health.condition() != Condition::Disabled;
        if self.state().switch.any_other(path, enabled) {
            return Ok(());
        }
        let message = format!("the only path that is enabled is not {what}");
        Err(Error::new(ErrorKind::Busy, message).hint("add or enable another one first"))
    }

    /// How long a request of this size may take before it has stalled.
    fn patience(&self, size: Size) -> Duration {
        let usual = self.state().tails[size.class()].usual();
        let least = PATIENCE_MIN + Duration::from_secs_f64(size.0 as f64 / SLOW_TRANSFER as f64);
        least.max(usual * LATE).min(PATIENCE_MAX.max(least))
    }
}

#[async_trait]
impl Store for MultipathStore {
    fn url(&self) -> String {
        self.inner.url.clone()
    }

    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        let size = range.max_len().map_or(UNKNOWN, Size);
        let question = Some(self.inner.hasher.hash_one((key, range)));
        let errand = Errand { op: Op::Get, size, may_race: true, question };
        let wanted = key.clone();
        self.go(errand, key.as_str(), move |store| {
            let key = wanted.clone();
            Box::pin(async move { store.get(&key, range).await })
        })
        .await
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        let errand =
            Errand { op: Op::Put, size: Size(body.len() as u64), may_race: true, question: None };
        let wanted = key.clone();
        self.go(errand, key.as_str(), move |store| {
            let (key, body) = (wanted.clone(), body.clone());
            Box::pin(async move { store.put_if_absent(&key, body).await })
        })
        .await
    }

    async fn put(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        let errand =
            Errand { op: Op::Put, size: Size(body.len() as u64), may_race: false, question: None };
        let wanted = key.clone();
        self.go(errand, key.as_str(), move |store| {
            let (key, body) = (wanted.clone(), body.clone());
            Box::pin(async move { store.put(&key, body).await })
        })
        .await
    }

    async fn delete(&self, keys: &[Key]) -> StoreResult<()> {
        let errand = Errand { op: Op::Delete, size: Size(0), may_race: false, question: None };
        let (name, keys) = (keys.first().map_or("", Key::as_str), Arc::<[Key]>::from(keys));
        self.go(errand, name, move |store| {
            let keys = Arc::clone(&keys);
            Box::pin(async move { store.delete(&keys).await })
        })
        .await
    }

    async fn head(&self, key: &Key) -> StoreResult<ObjectInfo> {
        let errand = Errand { op: Op::Head, size: Size(0), may_race: true, question: None };
        let wanted = key.clone();
        self.go(errand, key.as_str(), move |store| {
            let key = wanted.clone();
            Box::pin(async move { store.head(&key).await })
        })
        .await
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> StoreResult<ListPage> {
        let errand = Errand { op: Op::List, size: UNKNOWN, may_race: true, question: None };
        let (wanted, after) = (prefix.to_owned(), after.cloned());
        self.go(errand, prefix, move |store| {
            let (prefix, after) = (wanted.clone(), after.clone());
            Box::pin(async move { store.list(&prefix, after.as_ref(), limit).await })
        })
        .await
    }
}
