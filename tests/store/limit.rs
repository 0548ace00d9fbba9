//! Turns, in virtual time: a server that refuses more than it can take, or is gone.

use crate::conformance::key;
use async_trait::async_trait;
use bytes::Bytes;
use objblk::store::fault::{Fault, FaultStore, Moment, Rule};
use objblk::store::limit::{Bounds, Class, Kind, Limiter};
use objblk::store::memory::MemoryStore;
use objblk::store::retry::{RetryPolicy, RetryStore};
use objblk::store::{
    GetRange, Key, ListPage, ObjectInfo, Op, Store, StoreError, StoreErrorKind, StoreResult,
};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);
const TRIP: Duration = Duration::from_millis(20);
const BOUNDS: Bounds = Bounds { total: 64, writes: 32 };

/// A server one round trip away.
#[derive(Debug)]
struct Server {
    memory: MemoryStore,
    /// Beyond so many at once it says SlowDown.
    capacity: AtomicUsize,
    gone: AtomicBool,
    under_way: AtomicUsize,
    peak: AtomicUsize,
    refused: AtomicUsize,
    arrivals: Mutex<Vec<(Instant, String)>>,
}

impl Server {
    fn new(capacity: usize) -> Arc<Server> {
        Arc::new(Server {
            memory: MemoryStore::new(),
            capacity: capacity.into(),
            gone: false.into(),
            under_way: 0.into(),
            peak: 0.into(),
            refused: 0.into(),
            arrivals: Mutex::default(),
        })
    }

    async fn serve<T>(
        &self,
        op: Op,
        key: &Key,
        work: impl Future<Output = StoreResult<T>>,
    ) -> StoreResult<T> {
        self.arrivals.lock().unwrap().push((Instant::now(), key.to_string()));
        let fails = |kind| Err(StoreError::new(kind, op, key.to_string(), "on purpose"));
        if self.gone.load(SeqCst) {
            return fails(StoreErrorKind::Unavailable);
        }
        let now = self.under_way.fetch_add(1, SeqCst) + 1;
        self.peak.fetch_max(now, SeqCst);
        sleep(TRIP).await;
        self.under_way.fetch_sub(1, SeqCst);
        if now > self.capacity.load(SeqCst) {
            self.refused.fetch_add(1, SeqCst);
            return fails(StoreErrorKind::Throttled);
        }
        work.await
    }

    fn take_arrivals(&self) -> Vec<(Instant, String)> {
        std::mem::take(&mut self.arrivals.lock().unwrap())
    }
}

/// The server, to be wrapped.
#[derive(Clone, Debug)]
struct Line(Arc<Server>);

#[async_trait]
impl Store for Line {
    fn url(&self) -> String {
        "test://".to_owned()
    }
    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        self.0.serve(Op::Get, key, self.0.memory.get(key, range)).await
    }
    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        self.0.serve(Op::Put, key, self.0.memory.put_if_absent(key, body)).await
    }
    async fn put(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        self.0.serve(Op::Put, key, self.0.memory.put(key, body)).await
    }
    async fn delete(&self, keys: &[Key]) -> StoreResult<()> {
        self.0.serve(Op::Delete, &keys[0], self.0.memory.delete(keys)).await
    }
    async fn head(&self, key: &Key) -> StoreResult<ObjectInfo> {
        self.0.serve(Op::Head, key, self.0.memory.head(key)).await
    }
    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> StoreResult<ListPage> {
        self.0.memory.list(prefix, after, limit).await
    }
}

fn retrying(inner: Arc<dyn Store>, deadline: Option<Duration>) -> RetryStore {
    let policy = RetryPolicy { deadline, ..RetryPolicy::default() };
    RetryStore::new(inner, policy, StdRng::seed_from_u64(1))
}

/// A store over `inner`, for one class.
fn limited(inner: &Arc<Server>, limiter: &Arc<Limiter>, class: Class) -> Arc<dyn Store> {
    let retry = retrying(Arc::new(Line(inner.clone())), None);
    Arc::new(retry.through(limiter.clone(), class))
}

fn put(tasks: &mut JoinSet<StoreResult<()>>, store: &Arc<dyn Store>, name: String) {
    let store = store.clone();
    tasks.spawn(async move { store.put_if_absent(&key(&name), Bytes::new()).await });
}

#[tokio::test(start_paused = true)]
async fn writes_leave_room_for_reads() {
    let faulty = FaultStore::new(Arc::new(MemoryStore::new()), 1);
    let faults = faulty.handle();
    let limiter = Arc::new(Limiter::new(Bounds { total: 4, writes: 3 }));
    let retry = retrying(Arc::new(faulty), None);
    let store: Arc<dyn Store> = Arc::new(retry.through(limiter, Class::Foreground));
    let writes = faults.add(Rule::new(Fault::Hold(Moment::Before)).on(&[Op::Put]));
    let mut tasks = JoinSet::new();
    (0..10).for_each(|i| put(&mut tasks, &store, format!("{i}")));
    writes.held(3).await;
    // A read gets through although ten writes wait.
    timeout(SECOND, store.list("", None, 10)).await.expect("the read has a place").unwrap();
    assert_eq!(writes.hits(), 3, "more writes than their bound");
    let reads = faults.add(Rule::new(Fault::Hold(Moment::Before)).on(&[Op::Head]));
    for _ in 0..3 {
        let store = store.clone();
        tasks.spawn(async move { store.head(&key("0")).await.map(drop).or(Ok(())) });
    }
    reads.held(1).await;
    sleep(SECOND).await;
    assert_eq!(reads.hits() + writes.hits(), 4, "more requests than the bound");
    writes.release();
    reads.release();
    for result in tasks.join_all().await {
        result.unwrap();
    }
    assert_eq!((writes.hits(), reads.hits()), (10, 3));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_request_gives_its_place_back() {
    let faulty = FaultStore::new(Arc::new(MemoryStore::new()), 1);
    let faults = faulty.handle();
    let limiter = Arc::new(Limiter::new(Bounds { total: 1, writes: 1 }));
    let store = retrying(Arc::new(faulty), None).through(limiter, Class::Foreground);
    faults.add(Rule::new(Fault::Hold(Moment::Before)).times(1));
    let first = store.list("", None, 1);
    let in_line = store.list("", None, 1);
    let both = async { tokio::join!(timeout(SECOND, first), timeout(SECOND / 2, in_line)) };
    let (first, in_line) = both.await;
    assert!(first.is_err() && in_line.is_err());
    timeout(SECOND, store.list("", None, 1)).await.expect("the place is free").unwrap();
}

/// An attempt's time limit does not run while it waits for its turn.
#[tokio::test(start_paused = true)]
async fn waiting_for_a_turn_is_no_failure() {
    let server = Server::new(usize::MAX);
    let limiter = Arc::new(Limiter::new(Bounds { total: 1, writes: 1 }));
    let policy = RetryPolicy { attempt_timeout: TRIP * 2, ..RetryPolicy::default() };
    let rng = StdRng::seed_from_u64(1);
    let retry = RetryStore::new(Arc::new(Line(server.clone())), policy, rng);
    let store: Arc<dyn Store> = Arc::new(retry.through(limiter, Class::Foreground));
    let mut tasks = JoinSet::new();
    (0..50).for_each(|i| put(&mut tasks, &store, format!("{i}")));
    for result in tasks.join_all().await {
        result.unwrap();
    }
    let names: Vec<String> = server.take_arrivals().into_iter().map(|(_, name)| name).collect();
    let expected: Vec<String> = (0..50).map(|i| i.to_string()).collect();
    assert_eq!(names, expected, "each once, the oldest first");
}

/// Puts 2000 objects by `lanes` tasks through a server that takes 4 at once. Requests refused.
async fn storm(server: &Arc<Server>, store: Arc<dyn Store>, lanes: usize) -> usize {
    let mut tasks = JoinSet::new();
    for lane in 0..lanes {
        let store = store.clone();
        tasks.spawn(async move {
            for i in (lane..2000).step_by(lanes) {
                store.put_if_absent(&key(&i.to_string()), Bytes::new()).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    server.refused.load(SeqCst)
}

#[tokio::test(start_paused = true)]
async fn throttling_adapts_concurrency() {
    let server = Server::new(4);
    let bare = Arc::new(retrying(Arc::new(Line(server.clone())), None));
    let begun = Instant::now();
    let fixed = storm(&server, bare, BOUNDS.writes).await;
    let fixed_time = begun.elapsed();

    let server = Server::new(4);
    let limiter = Arc::new(Limiter::new(BOUNDS));
    let begun = Instant::now();
    let store = limited(&server, &limiter, Class::Foreground);
    let adapted = storm(&server, store.clone(), BOUNDS.writes).await;
    let adapted_time = begun.elapsed();
    println!(
        "refused: {fixed} in {fixed_time:?} with a fixed bound, {adapted} in {adapted_time:?} with an adaptive one"
    );
    assert!(adapted * 4 < fixed, "{adapted} of {fixed}");
    assert!(limiter.window(Kind::Write) <= 8, "{}", limiter.window(Kind::Write));
    assert_eq!(limiter.window(Kind::Read), BOUNDS.total, "no read was refused");

    // The server has room again, and all of it is used.
    server.capacity.store(usize::MAX, SeqCst);
    server.peak.store(0, SeqCst);
    let mut tasks = JoinSet::new();
    (0..2000).for_each(|i| put(&mut tasks, &store, format!("again/{i}")));
    tasks.join_all().await.into_iter().for_each(|done| done.unwrap());
    assert_eq!(limiter.window(Kind::Write), BOUNDS.writes);
    assert_eq!(server.peak.load(SeqCst), BOUNDS.writes);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_probed_by_few_and_ends_without_a_herd() {
    const REQUESTS: usize = 500;
    let server = Server::new(usize::MAX);
    let limiter = Arc::new(Limiter::new(BOUNDS));
    let store = limited(&server, &limiter, Class::Foreground);
    server.gone.store(true, SeqCst);
    let mut tasks = JoinSet::new();
    (0..REQUESTS).for_each(|i| put(&mut tasks, &store, format!("{i:03}")));
    sleep(60 * SECOND).await;
    let first_minute = server.take_arrivals().len();
    sleep(600 * SECOND).await;
    let ten_minutes = server.take_arrivals().len();
    println!("{first_minute} requests in the first minute, {ten_minutes} in the next ten");
    assert!(first_minute < BOUNDS.writes + 60, "{first_minute}");
    // Pauses of 5 s on average, two at a time.
    assert!((60..600).contains(&ten_minutes), "{ten_minutes}");
    assert!(limiter.trouble().unwrap().contains("on purpose"));

    server.gone.store(false, SeqCst);
    let healed_at = Instant::now();
    tasks.join_all().await.into_iter().for_each(|done| done.unwrap());
    assert_eq!(limiter.trouble(), None);
    let arrivals = server.take_arrivals();
    let (first, _) = arrivals[0];
    assert!(first - healed_at <= 10 * SECOND, "it noticed after {:?}", first - healed_at);
    // By round trips from the first answer on.
    let mut rounds: BTreeMap<u128, usize> = BTreeMap::new();
    for (at, _) in &arrivals {
        *rounds.entry((*at - first).as_millis() / TRIP.as_millis()).or_default() += 1;
    }
    println!("by round trips: {rounds:?}");
    let mut bound = 2;
    for (round, count) in rounds {
        assert!(count <= bound, "{count} > {bound} in round {round}");
        // One more than double: the timer is coarser than a round trip.
        bound = (bound * 2 + 2).min(BOUNDS.writes + 2);
    }
    // But for those that probed, the oldest go first.
    let names: Vec<&String> = arrivals.iter().map(|(_, name)| name).collect();
    let late = names.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!(late <= 4, "{late} overtook: {names:?}");
}

#[tokio::test(start_paused = true)]
async fn who_has_a_deadline_is_told_of_the_outage() {
    let server = Server::new(usize::MAX);
    let limiter = Arc::new(Limiter::new(BOUNDS));
    let store = limited(&server, &limiter, Class::Foreground);
    server.gone.store(true, SeqCst);
    let mut tasks = JoinSet::new();
    (0..100).for_each(|i| put(&mut tasks, &store, format!("{i:03}")));
    sleep(SECOND).await;
    let user = retrying(Arc::new(Line(server.clone())), Some(5 * SECOND))
        .through(limiter.clone(), Class::Foreground);
    let begun = Instant::now();
    let error = user.head(&key("x")).await.unwrap_err();
    assert!(begun.elapsed() <= 6 * SECOND, "{:?}", begun.elapsed());
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    assert!(error.detail.contains("on purpose (tried for 5.0s)"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_foreground_goes_before_the_background_which_goes_on() {
    let server = Server::new(usize::MAX);
    let limiter = Arc::new(Limiter::new(Bounds { total: 8, writes: 8 }));
    let background = limited(&server, &limiter, Class::Background);
    let foreground = limited(&server, &limiter, Class::Foreground);
    let mut tasks = JoinSet::new();
    (0..400).for_each(|i| put(&mut tasks, &background, format!("b{i}")));
    sleep(TRIP / 2).await;
    // A single request of a user does not wait.
    let begun = Instant::now();
    foreground.put_if_absent(&key("f"), Bytes::new()).await.unwrap();
    assert!(begun.elapsed() < TRIP * 3 / 2, "{:?}", begun.elapsed());
    let of = |arrivals: &[(Instant, String)], class: char| {
        arrivals.iter().filter(|(_, name)| name.starts_with(class)).count()
    };
    server.take_arrivals();
    (0..400).for_each(|i| put(&mut tasks, &foreground, format!("f{i}")));
    sleep(TRIP * 30).await;
    let arrivals = server.take_arrivals();
    let (users, others) = (of(&arrivals, 'f'), of(&arrivals, 'b'));
    println!("{users} of users, {others} others");
    assert!(users >= 6 * others && others >= 20, "{users} of users, {others} others");
    tasks.join_all().await.into_iter().for_each(|done| done.unwrap());
}

#[tokio::test(start_paused = true)]
async fn what_the_foreground_waits_for_goes_with_it() {
    let server = Server::new(usize::MAX);
    let limiter = Arc::new(Limiter::new(Bounds { total: 1, writes: 1 }));
    let background = limited(&server, &limiter, Class::Background);
    let foreground = limited(&server, &limiter, Class::Foreground);
    let mut tasks = JoinSet::new();
    let mut read = |store: &Arc<dyn Store>, name: &'static str| {
        let store = store.clone();
        tasks.spawn(async move { store.head(&key(name)).await });
    };
    // The first goes at once, the others wait.
    for name in ["first", "b0", "b1", "b2"] {
        read(&background, name);
    }
    sleep(TRIP / 4).await;
    for name in ["f0", "f1", "f2"] {
        read(&foreground, name);
    }
    sleep(TRIP / 4).await;
    assert!(background.hurry(&key("b0")).is_none(), "the background has no hurry");
    let urgent = foreground.hurry(&key("b1")).unwrap();
    let again = foreground.hurry(&key("b1")).unwrap();
    drop(again);
    // So does what is asked of it later, as long as somebody waits.
    read(&background, "b1");
    sleep(TRIP / 4).await;
    drop(urgent);
    read(&background, "b1");
    tasks.join_all().await;
    let arrivals = server.take_arrivals();
    let names: Vec<&str> = arrivals.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(names, ["first", "b1", "f0", "f1", "f2", "b1", "b0", "b2", "b1"]);
}
