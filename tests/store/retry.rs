//! Trying again, in virtual time.

use crate::conformance::key;
use bytes::Bytes;
use objblk::store::fault::{Fault, FaultHandle, FaultStore, Moment, Rule};
use objblk::store::memory::MemoryStore;
use objblk::store::retry::{RetryPolicy, RetryStore};
use objblk::store::{GetRange, Op, Store, StoreErrorKind};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

struct World {
    memory: MemoryStore,
    faults: FaultHandle,
    store: Arc<RetryStore>,
}

fn world(deadline: Option<Duration>) -> World {
    let memory = MemoryStore::new();
    let faulty = FaultStore::new(Arc::new(memory.clone()), 1);
    let faults = faulty.handle();
    let policy = RetryPolicy {
        first_delay: Duration::from_millis(100),
        max_delay: Duration::from_secs(10),
        deadline,
        attempt_timeout: Duration::from_secs(5),
    };
    let rng = StdRng::seed_from_u64(1);
    let store = Arc::new(RetryStore::new(Arc::new(faulty), policy, rng));
    World { memory, faults, store }
}

fn body(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn lost_reply() -> Rule {
    Rule::new(Fault::Fail(Moment::After, StoreErrorKind::Unavailable)).on(&[Op::Put])
}

fn refusal(kind: StoreErrorKind) -> Rule {
    Rule::new(Fault::Fail(Moment::Before, kind))
}

#[tokio::test(start_paused = true)]
async fn transient_failures_are_tried_again() {
    let world = world(None);
    let begun = Instant::now();
    for kind in [StoreErrorKind::Unavailable, StoreErrorKind::Throttled] {
        let rule = world.faults.add(refusal(kind).times(5));
        world.store.put_if_absent(&key(kind.name()), body("x")).await.unwrap();
        assert_eq!(rule.hits(), 5);
    }
    // Pauses of at most 0.1, 0.2, 0.4, 0.8 and 1.6 s, twice.
    assert!(begun.elapsed() > Duration::ZERO && begun.elapsed() < 7 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn lasting_failures_are_not() {
    let world = world(None);
    for kind in [
        StoreErrorKind::NotFound,
        StoreErrorKind::AlreadyExists,
        StoreErrorKind::Range,
        StoreErrorKind::Denied,
        StoreErrorKind::Invalid,
    ] {
        let rule = world.faults.add(refusal(kind));
        let error = world.store.put_if_absent(&key("a"), body("x")).await.unwrap_err();
        // Whether an object that is there is our own is looked up first.
        let requests = if kind == StoreErrorKind::AlreadyExists { 2 } else { 1 };
        assert_eq!((error.kind, rule.hits()), (kind, requests));
        world.faults.clear();
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_ridden_out() {
    let world = world(None);
    world.memory.put_if_absent(&key("a"), body("x")).await.unwrap();
    world.faults.set_down(true);
    let faults = world.faults.clone();
    tokio::spawn(async move {
        tokio::time::sleep(3600 * SECOND).await;
        faults.set_down(false);
    });
    let begun = Instant::now();
    assert_eq!(world.store.get(&key("a"), GetRange::All).await.unwrap(), "x");
    assert!(begun.elapsed() < 3611 * SECOND, "it took {:?}", begun.elapsed());
    let attempts = world.faults.counts()["down"];
    assert!((600..1200).contains(&attempts), "{attempts} attempts in an hour");
}

#[tokio::test(start_paused = true)]
async fn the_deadline_keeps_the_kind_and_says_how_long() {
    let world = world(Some(30 * SECOND));
    world.faults.add(refusal(StoreErrorKind::Throttled));
    let begun = Instant::now();
    let error = world.store.get(&key("a"), GetRange::All).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Throttled);
    assert!(error.detail.contains("(tried for"), "{error}");
    assert!(begun.elapsed() <= 30 * SECOND && begun.elapsed() > 15 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_silent_store_is_given_up_at_the_deadline() {
    let world = world(Some(30 * SECOND));
    world.faults.add(Rule::new(Fault::Hold(Moment::Before)));
    let begun = Instant::now();
    let error = world.store.head(&key("a")).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    assert!(error.detail.contains("no answer within"), "{error}");
    assert!(begun.elapsed() <= 30 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn one_lost_reply_does_not_use_up_the_deadline() {
    let world = world(Some(15 * SECOND));
    world.memory.put_if_absent(&key("a"), body("x")).await.unwrap();
    for op in [Op::Get, Op::Put] {
        let rule = world.faults.add(Rule::new(Fault::Hold(Moment::After)).on(&[op]).times(1));
        let begun = Instant::now();
        // How much a whole object is, and so how long it may take, nobody knows.
        assert_eq!(world.store.get(&key("a"), GetRange::All).await.unwrap(), "x");
        world.store.put_if_absent(&key(op.name()), body("y")).await.unwrap();
        assert_eq!(rule.hits(), 1);
        assert!(begun.elapsed() < 10 * SECOND, "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_to_a_create_is_a_success() {
    let world = world(None);
    let rule = world.faults.add(lost_reply().times(1));
    world.store.put_if_absent(&key("a"), body("mine")).await.unwrap();
    assert_eq!(rule.hits(), 1);
    assert_eq!(world.memory.get(&key("a"), GetRange::All).await.unwrap(), "mine");
}

#[tokio::test(start_paused = true)]
async fn a_lost_refusal_stays_a_refusal() {
    let world = world(None);
    world.memory.put_if_absent(&key("a"), body("theirs")).await.unwrap();
    world.faults.add(lost_reply().times(1));
    let error = world.store.put_if_absent(&key("a"), body("mine")).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::AlreadyExists);
    assert_eq!(world.memory.get(&key("a"), GetRange::All).await.unwrap(), "theirs");
}

/// What is read back may be damaged on the way: that does not make it somebody else's.
#[tokio::test(start_paused = true)]
async fn a_damaged_reply_does_not_make_an_object_anothers() {
    let mine: Bytes = (0..100u8).cycle().take(5000).collect();
    for fault in [Fault::Truncate, Fault::FlipBit] {
        for (times, lost) in [(1, true), (1, false), (2, true), (5, true), (5, false)] {
            let world = world(None);
            if lost {
                world.faults.add(lost_reply().times(1));
            } else {
                world.memory.put_if_absent(&key("a"), mine.clone()).await.unwrap();
            }
            let damage = world.faults.add(Rule::new(fault.clone()).on(&[Op::Get]).times(times));
            world.store.put_if_absent(&key("a"), mine.clone()).await.unwrap();
            assert_eq!(damage.hits(), times, "{fault:?}");
            // What is somebody else's stays so, whatever the way there does.
            world.faults.clear();
            let damage = world.faults.add(Rule::new(fault.clone()).on(&[Op::Get]).times(times));
            let error = world.store.put_if_absent(&key("a"), body("other")).await.unwrap_err();
            assert_eq!((error.kind, damage.hits()), (StoreErrorKind::AlreadyExists, times));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn reading_back_is_tried_again_too() {
    let world = world(None);
    world.faults.add(lost_reply().times(1));
    let reads = world.faults.add(refusal(StoreErrorKind::Unavailable).on(&[Op::Get]).times(3));
    world.store.put_if_absent(&key("a"), body("mine")).await.unwrap();
    assert_eq!(reads.hits(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_never_called_a_refusal() {
    // The first attempt took effect, the second is refused, and nothing can be read back.
    for kind in [StoreErrorKind::AlreadyExists, StoreErrorKind::Denied, StoreErrorKind::Invalid] {
        let world = world(None);
        world.faults.add(lost_reply().times(1));
        world.faults.add(refusal(kind).on(&[Op::Put]).skip(1));
        world.faults.add(refusal(StoreErrorKind::Denied).on(&[Op::Get]));
        let error = world.store.put_if_absent(&key("a"), body("mine")).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
        assert!(error.detail.contains("may have taken effect"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_after_a_lost_reply_is_settled_by_reading() {
    let world = world(None);
    world.faults.add(lost_reply().times(1));
    world.faults.add(refusal(StoreErrorKind::Denied).on(&[Op::Put]).skip(1));
    world.store.put_if_absent(&key("a"), body("mine")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_late_put_lands_on_the_second_attempt() {
    let world = world(None);
    let held = world.faults.add(Rule::new(Fault::Hold(Moment::Before)).on(&[Op::Put]).times(1));
    world.store.put_if_absent(&key("a"), body("mine")).await.unwrap();
    assert_eq!(held.hits(), 1);
    held.release();
    tokio::time::sleep(SECOND).await;
    assert_eq!(world.memory.get(&key("a"), GetRange::All).await.unwrap(), "mine");
}

#[tokio::test(start_paused = true)]
async fn the_seed_decides_the_pauses() {
    let mut times = Vec::new();
    for _ in 0..2 {
        let world = world(None);
        world.faults.add(refusal(StoreErrorKind::Unavailable).times(8));
        let begun = Instant::now();
        assert!(world.store.list("", None, 1).await.unwrap().objects.is_empty());
        times.push(begun.elapsed());
    }
    assert_eq!(times[0], times[1]);
}

#[tokio::test(start_paused = true)]
async fn large_payloads_get_the_time_they_need() {
    let world = world(None);
    // A link of 1 MiB/s: the attempt's own limit of 5 s would never let 16 MiB through.
    let slow = Fault::Delay { at: Moment::Before, from: 16 * SECOND, to: 16 * SECOND };
    let rule = world.faults.add(Rule::new(slow));
    world.store.put_if_absent(&key("a"), vec![0; 16 << 20].into()).await.unwrap();
    assert_eq!(rule.hits(), 1);
}
