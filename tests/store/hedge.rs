//! Asking once more for what is late, in virtual time.

use crate::conformance::key;
use bytes::Bytes;
use futures::future::join_all;
use objblk::store::fault::{Fault, FaultHandle, FaultStore, Moment, Rule};
use objblk::store::hedge::HedgeStore;
use objblk::store::memory::MemoryStore;
use objblk::store::{GetRange, Op, Store, StoreErrorKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const BODY: Bytes = Bytes::from_static(b"12345");
const PART: GetRange = GetRange::Part { offset: 0, len: 5 };

fn delay(ms: u64) -> Rule {
    let wait = Duration::from_millis(ms);
    Rule::new(Fault::Delay { at: Moment::After, from: wait, to: wait }).on(&[Op::Get])
}

/// A store whose answers take 30 ms, and which has learned that.
async fn practised() -> (HedgeStore, FaultHandle) {
    let faulty = FaultStore::new(Arc::new(MemoryStore::new()), 1);
    let faults = faulty.handle();
    let store = HedgeStore::new(Arc::new(faulty));
    store.put_if_absent(&key("a"), BODY).await.unwrap();
    faults.add(delay(30));
    for _ in 0..500 {
        store.get(&key("a"), PART).await.unwrap();
    }
    faults.clear();
    (store, faults)
}

#[tokio::test(start_paused = true)]
async fn a_late_read_is_asked_for_once_more() {
    let (store, faults) = practised().await;
    let before = store.hedged_and_won();
    let held = faults.add(Rule::new(Fault::Hold(Moment::After)).on(&[Op::Get]).times(1));
    let begun = Instant::now();
    assert_eq!(store.get(&key("a"), PART).await.unwrap(), BODY);
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(28) && took < Duration::from_millis(100), "{took:?}");
    assert_eq!(held.hits(), 1);
    assert_eq!(store.hedged_and_won(), (before.0 + 1, before.1 + 1));
}

#[tokio::test(start_paused = true)]
async fn an_answer_in_time_is_not_asked_for_again() {
    let (store, faults) = practised().await;
    let before = store.hedged_and_won();
    let answers = faults.add(delay(20));
    for _ in 0..100 {
        store.get(&key("a"), PART).await.unwrap();
    }
    assert_eq!((answers.hits(), store.hedged_and_won()), (100, before));
    let missing = store.get(&key("b"), PART).await.unwrap_err();
    assert_eq!((missing.kind, store.hedged_and_won()), (StoreErrorKind::NotFound, before));
}

/// A store that is slow for all is not asked for twice as much.
#[tokio::test(start_paused = true)]
async fn a_slow_store_is_not_asked_for_much_more() {
    let (store, faults) = practised().await;
    let answers = faults.add(delay(5000));
    let a = key("a");
    let reads = join_all((0..1000).map(|_| store.get(&a, PART))).await;
    assert!(reads.iter().all(Result::is_ok));
    assert!((1001..=1010).contains(&answers.hits()), "{} requests", answers.hits());
    for _ in 0..1000 {
        store.get(&a, PART).await.unwrap();
    }
    assert!(answers.hits() <= 2000 + 110, "{} requests", answers.hits());
}
