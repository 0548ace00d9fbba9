//! The layer that counts requests.

use crate::conformance::key;
use bytes::Bytes;
use objblk::store::fault::{Fault, FaultStore, Moment, Rule};
use objblk::store::memory::MemoryStore;
use objblk::store::metrics::{MetricsSnapshot, MetricsStore};
use objblk::store::{GetRange, Op, Store};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

const SECOND: Duration = Duration::from_secs(1);

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
