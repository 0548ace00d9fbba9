//! The layers that bound and count requests.

use crate::conformance::key;
use bytes::Bytes;
use objblk::store::fault::{Fault, FaultStore, Moment, Rule};
use objblk::store::limit::LimitStore;
use objblk::store::memory::MemoryStore;
use objblk::store::metrics::{MetricsSnapshot, MetricsStore};
use objblk::store::{GetRange, Op, Store};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn writes_leave_room_for_reads() {
    let faulty = FaultStore::new(Arc::new(MemoryStore::new()), 1);
    let faults = faulty.handle();
    let store = Arc::new(LimitStore::new(Arc::new(faulty), 4, 3));
    let writes = faults.add(Rule::new(Fault::Hold(Moment::Before)).on(&[Op::Put]));
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..10 {
        let store = store.clone();
        tasks.spawn(async move { store.put_if_absent(&key(&format!("{i}")), Bytes::new()).await });
    }
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
    tokio::time::sleep(SECOND).await;
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
    let store = LimitStore::new(Arc::new(faulty), 1, 1);
    faults.add(Rule::new(Fault::Hold(Moment::Before)).times(1));
    assert!(timeout(SECOND, store.list("", None, 1)).await.is_err());
    timeout(SECOND, store.list("", None, 1)).await.expect("the place is free").unwrap();
}

#[tokio::test(start_paused = true)]
async fn requests_are_counted() {
    let faulty = FaultStore::new(Arc::new(MemoryStore::new()), 1);
    let delay = Duration::from_millis(10);
    faulty
        .handle()
        .add(Rule::new(Fault::Delay { at: Moment::Before, from: delay, to: delay }).on(&[Op::Get]));
    let held = faulty.handle().add(Rule::new(Fault::Hold(Moment::Before)).on(&[Op::List]));
    let store = Arc::new(MetricsStore::new(Arc::new(faulty)));
    store.put_if_absent(&key("a"), Bytes::from_static(b"12345")).await.unwrap();
    assert!(store.put_if_absent(&key("a"), Bytes::from_static(b"123")).await.is_err());
    store.get(&key("a"), GetRange::Part { offset: 1, len: 2 }).await.unwrap();
    assert!(store.get(&key("b"), GetRange::All).await.is_err());
    assert!(timeout(SECOND, store.list("", None, 1)).await.is_err());
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.list("", None, 1).await }
    });
    held.held(2).await;

    let snapshot = store.snapshot();
    let (get, put, list) =
        (&snapshot.operations["get"], &snapshot.operations["put"], &snapshot.operations["list"]);
    assert_eq!((get.requests, get.bytes, get.errors["not_found"]), (2, 2, 1));
    assert_eq!((put.requests, put.bytes, put.errors["already_exists"]), (2, 5, 1));
    assert_eq!((list.requests, list.in_flight, list.cancelled), (2, 1, 1));
    // Two requests of 10 ms (tokio's timer may add one): bucket 8192..16384 us.
    assert_eq!(get.latency.log2_us.last(), Some(&2));
    assert_eq!(get.latency.log2_us.len(), 14);
    assert!((20_000..23_000).contains(&get.latency.sum_us), "{}", get.latency.sum_us);

    let json = serde_json::to_string(&snapshot).unwrap();
    assert_eq!(serde_json::from_str::<MetricsSnapshot>(&json).unwrap(), snapshot);
    held.release();
    waiting.await.unwrap().unwrap();
    assert_eq!(store.snapshot().operations["list"].in_flight, 0);
}
