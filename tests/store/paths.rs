//! Several paths to one store, in virtual time.

use crate::conformance::key;
use bytes::Bytes;
use objblk::error::ErrorKind;
use objblk::store::fault::{Fault, FaultHandle, FaultStore, Moment, Rule};
use objblk::store::hedge::HedgeStore;
use objblk::store::memory::MemoryStore;
use objblk::store::paths::policy::{NoPathRetry, PathPolicy};
use objblk::store::paths::selector::Selector;
use objblk::store::paths::spec::PathSpec;
use objblk::store::paths::state::Condition;
use objblk::store::paths::{MultipathStore, NewPath, PathReport};
use objblk::store::retry::{RetryPolicy, RetryStore};
use objblk::store::{GetRange, Op, Store, StoreErrorKind};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);
const BODY: Bytes = Bytes::from_static(b"12345");

fn by(name: &str, store: Arc<dyn Store>) -> NewPath {
    NewPath { spec: PathSpec::to(Some(name.to_owned())), store }
}

/// The store of `memory` by paths a, b, ..., each with faults of its own.
struct World {
    memory: MemoryStore,
    faults: Vec<FaultHandle>,
    store: MultipathStore,
}

fn world_with(policy: PathPolicy, paths: usize) -> World {
    let memory = MemoryStore::new();
    let mut faults = Vec::new();
    let mut ways = Vec::new();
    for i in 0..paths {
        let faulty = FaultStore::new(Arc::new(memory.clone()), i as u64);
        faults.push(faulty.handle());
        ways.push(by(["a", "b", "c", "d"][i], Arc::new(faulty)));
    }
    let store = MultipathStore::new(memory.url(), ways, policy, key("objblk.json"));
    World { memory, faults, store }
}

fn world(paths: usize) -> World {
    // In turn: every path is sure to be asked.
    world_with(PathPolicy { selector: Selector::RoundRobin, ..PathPolicy::default() }, paths)
}

impl World {
    fn path(&self, name: &str) -> PathReport {
        let paths = self.store.report().paths;
        paths.into_iter().find(|path| path.name == name).expect("there is such a path")
    }

    fn state(&self, name: &str) -> Condition {
        self.path(name).state
    }

    async fn put(&self, name: &str) {
        self.store.put_if_absent(&key(name), BODY).await.unwrap();
    }

    async fn get_many(&self, count: usize) {
        for _ in 0..count {
            assert_eq!(self.store.get(&key("x"), GetRange::All).await.unwrap(), BODY);
        }
    }
}

fn fails(kind: StoreErrorKind) -> Rule {
    Rule::new(Fault::Fail(Moment::Before, kind))
}

#[tokio::test(start_paused = true)]
async fn what_a_path_fails_goes_by_another_at_once() {
    let world = world(3);
    world.put("x").await;
    for kind in [StoreErrorKind::Unavailable, StoreErrorKind::Denied] {
        world.faults[0].add(fails(kind));
        world.faults[1].add(fails(kind));
        let begun = Instant::now();
        world.get_many(10).await;
        assert_eq!(begun.elapsed(), Duration::ZERO, "nobody waits");
        assert_eq!((world.state("a"), world.state("b")), (Condition::Failed, Condition::Failed));
        world.faults[0].clear();
        world.faults[1].clear();
        // Three checks, a second apart.
        sleep(10 * SECOND).await;
        assert_eq!((world.state("a"), world.state("b")), (Condition::Active, Condition::Active));
    }
    let refused = |kind| {
        world.faults.iter().for_each(|faults| drop(faults.add(fails(kind))));
        let x = key("x");
        let store = world.store.clone();
        async move { store.get(&x, GetRange::All).await.unwrap_err().kind }
    };
    // What all say is said.
    assert_eq!(refused(StoreErrorKind::Denied).await, StoreErrorKind::Denied);
}

#[tokio::test(start_paused = true)]
async fn what_two_paths_throttle_is_throttled() {
    let world = world(4);
    world.put("x").await;
    let one = world.faults[0].add(fails(StoreErrorKind::Throttled));
    world.get_many(8).await;
    assert!(one.hits() > 0, "the path was not asked");
    assert_eq!(world.state("a"), Condition::Active);
    let rules: Vec<_> =
        world.faults[1..].iter().map(|f| f.add(fails(StoreErrorKind::Throttled))).collect();
    let before = one.hits();
    let error = world.store.get(&key("x"), GetRange::All).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Throttled);
    let asked: u64 = rules.iter().map(|rule| rule.hits()).sum::<u64>() + one.hits() - before;
    assert_eq!(asked, 2, "a store that is busy is not asked by all paths");
}

#[tokio::test(start_paused = true)]
async fn a_path_that_says_nothing_is_left_within_a_second() {
    let world = world(2);
    world.put("x").await;
    let silent = world.faults[0].add(Rule::new(Fault::Hold(Moment::Before)));
    let begun = Instant::now();
    world.get_many(2).await;
    let took = begun.elapsed();
    assert!(took >= SECOND && took < SECOND + SECOND / 2, "{took:?}");
    assert_eq!(world.state("a"), Condition::Failed);
    let begun = Instant::now();
    world.get_many(20).await;
    world.put("y").await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    sleep(60 * SECOND).await;
    assert_eq!(world.state("a"), Condition::Failed, "checks hear nothing either");
    world.faults[0].clear();
    silent.release();
    sleep(20 * SECOND).await;
    assert_eq!(world.state("a"), Condition::Active);
}

/// All that is under way by a path that has failed goes by others at once.
#[tokio::test(start_paused = true)]
async fn many_requests_leave_a_silent_path_together() {
    let world = world(2);
    world.put("x").await;
    world.faults[0].add(Rule::new(Fault::Hold(Moment::Before)));
    let begun = Instant::now();
    let all = futures::future::join_all((0..32).map(|i| {
        let (store, name) = (world.store.clone(), key(&format!("many/{i}")));
        // Of all sizes: the large ones are given more time.
        async move { store.put_if_absent(&name, vec![1; i * 300_000].into()).await }
    }));
    assert!(all.await.iter().all(Result::is_ok));
    let took = begun.elapsed();
    assert!(took < SECOND + SECOND / 2, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn deletes_and_overwrites_are_not_sent_twice_for_being_late() {
    let world = world(2);
    world.put("x").await;
    // The path's turn, whichever it is.
    let slow = |faults: &FaultHandle, op| {
        let wait = 8 * SECOND;
        let delay = Fault::Delay { at: Moment::Before, from: wait, to: wait };
        faults.add(Rule::new(delay).on(&[op]))
    };
    let late: Vec<_> = world.faults.iter().map(|faults| slow(faults, Op::Delete)).collect();
    let begun = Instant::now();
    world.store.delete(&[key("x")]).await.unwrap();
    assert!(begun.elapsed() >= 8 * SECOND);
    assert_eq!(late.iter().map(|rule| rule.hits()).sum::<u64>(), 1);
    let late: Vec<_> = world.faults.iter().map(|faults| slow(faults, Op::Put)).collect();
    world.store.put(&key("x"), BODY).await.unwrap();
    assert_eq!(late.iter().map(|rule| rule.hits()).sum::<u64>(), 1);
    // Creates are.
    world.store.put_if_absent(&key("y"), BODY).await.unwrap();
    assert_eq!(late.iter().map(|rule| rule.hits()).sum::<u64>(), 3);
}

/// A create that was done by one path and not answered, and refused by the next.
#[tokio::test(start_paused = true)]
async fn a_create_by_two_paths_is_a_success_and_never_a_false_refusal() {
    let world = world(2);
    let lost = || Rule::new(Fault::Fail(Moment::After, StoreErrorKind::Unavailable)).on(&[Op::Put]);
    for (name, other) in [("a", None), ("b", Some(StoreErrorKind::Denied))] {
        let rng = StdRng::seed_from_u64(1);
        let bare = Arc::new(world.store.clone());
        let store = RetryStore::new(bare, RetryPolicy::default(), rng);
        world.faults.iter().for_each(|faults| faults.clear());
        let rules: Vec<_> = world.faults.iter().map(|f| f.add(lost().times(1))).collect();
        if let Some(kind) = other {
            world.faults.iter().for_each(|f| drop(f.add(fails(kind).on(&[Op::Put]).skip(1))));
        }
        store.put_if_absent(&key(name), BODY).await.unwrap();
        assert!(rules.iter().any(|rule| rule.hits() > 0));
        assert_eq!(world.memory.get(&key(name), GetRange::All).await.unwrap(), BODY);
    }
    // Without the retries: what may have happened is not denied.
    world.faults.iter().for_each(|faults| faults.clear());
    world.faults[0].add(lost().times(1));
    world.faults[1].add(fails(StoreErrorKind::Denied).on(&[Op::Put]));
    world.faults[0].add(fails(StoreErrorKind::Denied).on(&[Op::Put]).skip(1));
    let mut kinds = Vec::new();
    for name in ["c", "d"] {
        kinds.push(world.store.put_if_absent(&key(name), BODY).await.unwrap_err().kind);
    }
    assert!(kinds.contains(&StoreErrorKind::Unavailable), "{kinds:?}");
}

#[tokio::test(start_paused = true)]
async fn an_unreliable_path_is_held_out() {
    let world = world(4);
    world.put("x").await;
    let flaky = fails(StoreErrorKind::Unavailable).on(&[Op::Get]).below("x").with_probability(0.2);
    world.faults[0].add(flaky);
    world.get_many(2000).await;
    let path = world.path("a");
    assert_eq!(path.state, Condition::Marginal);
    assert!(path.requests < 250, "{} of 2000", path.requests);
    // Where nothing better is left it is used.
    (1..4).for_each(|i| drop(world.faults[i].add(fails(StoreErrorKind::Unavailable))));
    let store = RetryStore::new(
        Arc::new(world.store.clone()),
        RetryPolicy::default(),
        StdRng::seed_from_u64(1),
    );
    for _ in 0..20 {
        store.get(&key("x"), GetRange::All).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_path_requests_wait_and_devices_may_be_told() {
    for (retry, told_after) in [
        (NoPathRetry::Queue, None),
        (NoPathRetry::Fail, Some(Duration::ZERO)),
        (NoPathRetry::Times(2), Some(10 * SECOND)),
    ] {
        let world = world_with(PathPolicy { no_path_retry: retry, ..PathPolicy::default() }, 2);
        world.put("x").await;
        world.faults.iter().for_each(|faults| faults.set_down(true));
        let rng = StdRng::seed_from_u64(1);
        let bare = Arc::new(world.store.clone());
        let store = RetryStore::new(bare, RetryPolicy::default(), rng);
        let waiting = tokio::spawn(async move { store.get(&key("x"), GetRange::All).await });
        let mut hopeless = world.store.hopeless();
        let begun = Instant::now();
        let wait = async { hopeless.wait_for(|told| *told).await.map(drop) };
        let told = tokio::time::timeout(60 * SECOND, wait).await;
        match told_after {
            None => assert!(told.is_err()),
            Some(after) => {
                let took = begun.elapsed();
                assert!(took >= after && took < after + 5 * SECOND, "{retry}: {took:?}");
            }
        }
        assert!(!waiting.is_finished());
        world.faults.iter().for_each(|faults| faults.set_down(false));
        assert_eq!(waiting.await.unwrap().unwrap(), BODY, "it waits whatever devices are told");
        assert!(!*world.store.hopeless().borrow());
    }
}

#[tokio::test(start_paused = true)]
async fn paths_come_and_go_under_load() {
    let world = world(1);
    world.put("objblk.json").await;
    world.put("x").await;
    let load = tokio::spawn({
        let store = world.store.clone();
        async move {
            for i in 0..600 {
                assert_eq!(store.get(&key("x"), GetRange::All).await.unwrap(), BODY);
                store.put_if_absent(&key(&format!("log/{i}")), BODY).await.unwrap();
                sleep(Duration::from_millis(100)).await;
            }
        }
    });
    sleep(SECOND).await;
    let busy = |e: objblk::error::Error| e.kind();
    let a = world.store.find("a").unwrap();
    assert_eq!(world.store.remove(a).map_err(busy), Err(ErrorKind::Busy));
    assert_eq!(world.store.enable(a, false).map_err(busy), Err(ErrorKind::Busy));
    let second = || by("b", Arc::new(world.memory.clone()));
    let b = world.store.add(second()).await.unwrap();
    assert_eq!(world.store.add(second()).await.map_err(busy), Err(ErrorKind::Exists));
    sleep(SECOND).await;
    assert!(world.path("b").requests > 0);
    world.store.enable(a, false).unwrap();
    let before = world.path("a").requests;
    sleep(SECOND).await;
    assert_eq!((world.path("a").requests, world.state("a")), (before, Condition::Disabled));
    assert_eq!(world.store.remove(b).map_err(busy), Err(ErrorKind::Busy), "a is disabled");
    world.store.enable(a, true).unwrap();
    sleep(5 * SECOND).await;
    assert_eq!(world.state("a"), Condition::Active);
    world.store.remove(b).unwrap();
    assert!(world.store.find("b").is_err());
    for selector in Selector::ALL {
        world.store.set_selector(selector);
        assert_eq!(world.store.report().selector, selector);
        sleep(SECOND).await;
    }
    load.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn paths_to_two_stores_are_refused() {
    let other = || async {
        let other = MemoryStore::new();
        let body = Bytes::from_static(b"another");
        other.put_if_absent(&key("objblk.json"), body).await.unwrap();
        Arc::new(other)
    };
    // Live, for a path that shows another pool or none; also where nothing was verified before.
    let world = world(1);
    world.put("objblk.json").await;
    let error = world.store.add(by("b", other().await)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("it leads to another store"), "{error}");
    let empty = world.store.add(by("b", Arc::new(MemoryStore::new()))).await.unwrap_err();
    assert!(empty.to_string().contains("objblk.json is not there"), "{empty}");
    // At the beginning.
    let paths = || async {
        let first = Arc::new(world.memory.clone());
        vec![by("a", first), by("b", other().await)]
    };
    let policy = PathPolicy::default();
    let store = MultipathStore::new("mem://".into(), paths().await, policy, key("objblk.json"));
    let error = store.verify().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Store);
    assert!(error.to_string().contains("a and b lead to two stores"), "{error}");
}

/// A path whose endpoint turns out to be another store later is not used.
#[tokio::test(start_paused = true)]
async fn a_path_that_is_led_astray_fails_its_check() {
    let world = world(2);
    world.put("objblk.json").await;
    world.put("x").await;
    world.store.verify().await.unwrap();
    let astray = fails(StoreErrorKind::NotFound).on(&[Op::Get]).below("objblk.json");
    world.faults[1].add(astray);
    // Idle, it is checked after 20 s.
    sleep(30 * SECOND).await;
    let path = world.path("b");
    assert_eq!(path.state, Condition::Failed);
    assert!(path.last_error.unwrap().contains("another store"));
    assert_eq!(world.state("a"), Condition::Active);
}

/// The second request for what is late goes by another path, whatever the selector thinks.
#[tokio::test(start_paused = true)]
async fn what_is_late_is_asked_for_by_another_path() {
    let memory: Arc<dyn Store> = Arc::new(MemoryStore::new());
    memory.put_if_absent(&key("x"), BODY).await.unwrap();
    let faulty = FaultStore::new(memory.clone(), 1);
    let faults = faulty.handle();
    let mut paths = vec![by("a", Arc::new(faulty)), by("b", memory)];
    paths[0].spec.weight = 1000;
    let policy = PathPolicy { selector: Selector::RoundRobin, ..PathPolicy::default() };
    let store = MultipathStore::new("mem://".into(), paths, policy, key("objblk.json"));
    let hedged = HedgeStore::new(Arc::new(store.clone()));
    for _ in 0..20 {
        hedged.get(&key("x"), GetRange::All).await.unwrap();
    }
    let late = faults.add(Rule::new(Fault::Hold(Moment::Before)).times(1));
    let begun = Instant::now();
    hedged.get(&key("x"), GetRange::All).await.unwrap();
    assert!(begun.elapsed() < SECOND / 2, "{:?}", begun.elapsed());
    assert_eq!((late.hits(), hedged.hedged_and_won().1), (1, 1));
    assert_eq!(store.report().paths[1].requests, 1, "the hedge and nothing else");
}

#[tokio::test(start_paused = true)]
async fn one_path_alone_is_as_the_store_itself() {
    let world = world(1);
    world.put("x").await;
    let refused = world.faults[0].add(fails(StoreErrorKind::Unavailable).times(10));
    for _ in 0..10 {
        let error = world.store.get(&key("x"), GetRange::All).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Unavailable);
    }
    assert_eq!(refused.hits(), 10, "each request is tried once");
    world.get_many(1).await;
    let held = world.faults[0].add(Rule::new(Fault::Hold(Moment::Before)).times(1));
    let x = key("x");
    let waits = tokio::time::timeout(100 * SECOND, world.store.get(&x, GetRange::All));
    assert!(waits.await.is_err(), "there is nothing to race it with");
    assert_eq!(held.hits(), 1);
    world.get_many(1).await;
    let objects = world.store.report().paths[0].requests;
    sleep(1000 * SECOND).await;
    assert_eq!(world.store.report().paths[0].requests, objects, "and no checks");
}
