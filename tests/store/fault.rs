//! Each fault does what the model says, and nothing else.

use crate::conformance::{key, pattern};
use bytes::Bytes;
use objblk::store::fault::{Fault, FaultHandle, FaultStore, Moment, Rule};
use objblk::store::memory::MemoryStore;
use objblk::store::{GetRange, Op, Store, StoreErrorKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

const SECOND: Duration = Duration::from_secs(1);

fn world(seed: u64) -> (MemoryStore, FaultStore, FaultHandle) {
    let memory = MemoryStore::new();
    let store = FaultStore::new(Arc::new(memory.clone()), seed);
    let handle = store.handle();
    (memory, store, handle)
}

fn x() -> Bytes {
    Bytes::from_static(b"x")
}

#[tokio::test(start_paused = true)]
async fn failures_before_and_after_the_effect() {
    let (memory, store, faults) = world(1);
    let before = Fault::Fail(Moment::Before, StoreErrorKind::Throttled);
    faults.add(Rule::new(before).on(&[Op::Put]).below("a/"));
    let after = Fault::Fail(Moment::After, StoreErrorKind::Unavailable);
    faults.add(Rule::new(after).on(&[Op::Put]).below("b/"));
    let error = store.put_if_absent(&key("a/1"), x()).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Throttled);
    let error = store.put_if_absent(&key("b/1"), x()).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    store.put_if_absent(&key("c/1"), x()).await.unwrap();
    assert!(memory.head(&key("a/1")).await.is_err());
    assert!(memory.head(&key("b/1")).await.is_ok());
    assert_eq!(
        faults.counts().into_iter().collect::<Vec<_>>(),
        [("fail_before", 1), ("lost_reply", 1)]
    );
}

#[tokio::test(start_paused = true)]
async fn rules_count_their_requests() {
    let (_, store, faults) = world(1);
    let rule = faults
        .add(Rule::new(Fault::Fail(Moment::Before, StoreErrorKind::Unavailable)).skip(2).times(3));
    let mut failed = Vec::new();
    for i in 0..8 {
        failed.push(store.put_if_absent(&key(&format!("{i}")), x()).await.is_err());
    }
    assert_eq!(failed, [false, false, true, true, true, false, false, false]);
    assert_eq!(rule.hits(), 3);
}

#[tokio::test(start_paused = true)]
async fn probability_is_the_seed_s() {
    let mut runs = Vec::new();
    for seed in [1, 1, 2] {
        let (_, store, faults) = world(seed);
        let fail = Fault::Fail(Moment::Before, StoreErrorKind::Unavailable);
        faults.add(Rule::new(fail).with_probability(0.3));
        let mut failed = Vec::new();
        for i in 0..200 {
            failed.push(store.put_if_absent(&key(&format!("{i}")), x()).await.is_err());
        }
        let count = failed.iter().filter(|failed| **failed).count();
        assert!((30..90).contains(&count), "{count} of 200");
        runs.push(failed);
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}

#[tokio::test(start_paused = true)]
async fn a_held_put_outlives_its_caller() {
    let (memory, store, faults) = world(1);
    let rule = faults.add(Rule::new(Fault::Hold(Moment::Before)).on(&[Op::Put]));
    let late = timeout(SECOND, store.put_if_absent(&key("a"), x())).await;
    assert!(late.is_err(), "the request was not held");
    rule.held(1).await;
    assert!(memory.head(&key("a")).await.is_err());
    rule.release_one();
    tokio::time::sleep(SECOND).await;
    assert!(memory.head(&key("a")).await.is_ok(), "the late put did not land");
    assert!(timeout(SECOND, store.put_if_absent(&key("b"), x())).await.is_err());
    faults.clear();
    store.put_if_absent(&key("c"), x()).await.unwrap();
    tokio::time::sleep(SECOND).await;
    assert_eq!(memory.object_count(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_held_reply_has_taken_effect() {
    let (memory, store, faults) = world(1);
    let rule = faults.add(Rule::new(Fault::Hold(Moment::After)).on(&[Op::Put]));
    let put = tokio::spawn(async move { store.put_if_absent(&key("a"), x()).await });
    rule.held(1).await;
    assert!(memory.head(&key("a")).await.is_ok());
    assert!(!put.is_finished());
    rule.release();
    put.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn delays_are_drawn_from_their_range() {
    let (_, store, faults) = world(1);
    faults.add(Rule::new(Fault::Delay { at: Moment::Before, from: SECOND, to: 3 * SECOND }));
    for i in 0..20 {
        let begun = Instant::now();
        store.put_if_absent(&key(&format!("{i}")), x()).await.unwrap();
        assert!((SECOND..=4 * SECOND).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_brings_a_deleted_object_back() {
    let (memory, store, faults) = world(1);
    faults.add(Rule::new(Fault::Duplicate(10 * SECOND)).on(&[Op::Put]));
    store.put_if_absent(&key("a"), x()).await.unwrap();
    store.delete(&[key("a")]).await.unwrap();
    assert_eq!(memory.object_count(), 0);
    tokio::time::sleep(11 * SECOND).await;
    assert_eq!(memory.object_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn damaged_bodies() {
    let (_, store, faults) = world(1);
    let body = pattern(1000, 3);
    store.put_if_absent(&key("a"), body.clone()).await.unwrap();
    faults.add(Rule::new(Fault::FlipBit).times(1));
    let flipped = store.get(&key("a"), GetRange::All).await.unwrap();
    let bits: u32 = body.iter().zip(&flipped).map(|(a, b)| (a ^ b).count_ones()).sum();
    assert_eq!((flipped.len(), bits), (1000, 1));
    faults.clear();
    faults.add(Rule::new(Fault::Truncate).times(1));
    let cut = store.get(&key("a"), GetRange::All).await.unwrap();
    assert!(cut.len() < 1000 && body.starts_with(&cut));
    assert_eq!(store.get(&key("a"), GetRange::All).await.unwrap(), body);
}

#[tokio::test(start_paused = true)]
async fn a_stale_list_catches_up() {
    let (_, store, faults) = world(1);
    store.put_if_absent(&key("old"), x()).await.unwrap();
    faults.add(Rule::new(Fault::StaleList(10 * SECOND)));
    for i in 0..5 {
        store.put_if_absent(&key(&format!("new{i}")), x()).await.unwrap();
    }
    let names = |page: objblk::store::ListPage| page.objects.len();
    assert_eq!(names(store.list("", None, 2).await.unwrap()), 1);
    assert_eq!(names(store.list("new", None, 2).await.unwrap()), 0);
    assert!(store.head(&key("new0")).await.is_ok());
    tokio::time::sleep(11 * SECOND).await;
    assert_eq!(names(store.list("", None, 1000).await.unwrap()), 6);
}

#[tokio::test(start_paused = true)]
async fn down_and_up() {
    let (memory, store, faults) = world(1);
    faults.set_down(true);
    let error = store.put_if_absent(&key("a"), x()).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    assert_eq!(memory.object_count(), 0);
    faults.set_down(false);
    store.put_if_absent(&key("a"), x()).await.unwrap();
    assert_eq!(faults.counts()["down"], 1);
}
