//! The contract of a store, kept over a network that does everything networks do.

use crate::conformance::{self, key, pattern};
use crate::fault_proxy::{Distance, Fault, FaultProxy, Profile};
use crate::s3_lab::S3Lab;
use objblk::store::limit::{Bounds, Class, Limiter};
use objblk::store::retry::{RetryPolicy, RetryStore};
use objblk::store::s3::{S3Location, S3Options, S3Store};
use objblk::store::{Store, StoreErrorKind};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Everything but requests that are done after they were given up: no store can keep those from
/// undoing what came after them, and the engine names its objects so that they cannot matter.
const WEATHER: Profile = Profile {
    name: "the weather",
    faults: &[
        Fault::Fails,
        Fault::FailsLate,
        Fault::SlowDown,
        Fault::TooMany,
        Fault::ResetBefore,
        Fault::ReplyLost,
        Fault::HalfRequest,
        Fault::HalfReply,
        Fault::Twice,
    ],
    deck: 60,
    distance: Some(Distance { trip: (1, 10), tail: (200, 500), rate: 200 << 20 }),
};

/// Every request is sent twice by a gateway, and the client gets one of the two answers.
const REPEATED: Profile =
    Profile { name: "a gateway that repeats", faults: &[Fault::Twice], deck: 1, distance: None };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_create_that_a_gateway_repeats_is_ours() {
    let lab = S3Lab::get();
    let bucket = lab.bucket().await;
    let proxy = FaultProxy::start(&lab.endpoint, "127.0.0.1", &REPEATED, 1).await;
    let options = S3Options { endpoint_url: Some(proxy.endpoint()), ..lab.options() };
    let location = S3Location::new(&bucket.name, "").unwrap();
    let bare = Arc::new(S3Store::connect(location, &options).await.unwrap());
    let rng = StdRng::seed_from_u64(1);
    let store = RetryStore::new(bare.clone(), RetryPolicy::default(), rng);
    let mut refused = 0;
    for number in 0..16 {
        let name = key(&format!("bare/{number}"));
        refused += usize::from(bare.put_if_absent(&name, pattern(100, 1)).await.is_err());
        let name = key(&format!("retried/{number}"));
        store.put_if_absent(&name, pattern(100, 1)).await.unwrap();
        let error = store.put_if_absent(&name, pattern(100, 2)).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::AlreadyExists, "{error}");
    }
    assert!(refused > 0, "no create was told to be too late by itself");
    bucket.empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_conforms_in_bad_weather() {
    let seed = std::env::var("OBJBLK_SEED")
        .map_or_else(|_| rand::random(), |seed| seed.parse().expect("OBJBLK_SEED is a number"));
    println!("OBJBLK_SEED={seed}");
    let lab = S3Lab::get();
    let bucket = lab.bucket().await;
    let proxy = FaultProxy::start(&lab.endpoint, "127.0.0.1", &WEATHER, seed).await;
    let store = async |prefix: &str| {
        let options = S3Options { endpoint_url: Some(proxy.endpoint()), ..lab.options() };
        let location = S3Location::new(&bucket.name, prefix).unwrap();
        let bare = Arc::new(S3Store::connect(location, &options).await.unwrap());
        let policy =
            RetryPolicy { first_delay: Duration::from_millis(20), ..RetryPolicy::default() };
        let retry = RetryStore::new(bare, policy, StdRng::seed_from_u64(seed));
        let limiter = Arc::new(Limiter::new(Bounds { total: 64, writes: 32 }));
        let limited: Arc<dyn Store> = Arc::new(retry.through(limiter, Class::Foreground));
        limited
    };
    let begun = Instant::now();
    conformance::create_read_delete(store("life").await).await;
    conformance::ranges(store("ranges").await).await;
    conformance::chunk_sized_bodies(store("bodies").await).await;
    conformance::listing_order(store("order").await).await;
    conformance::listing_agrees_with_a_model(store("model").await).await;
    conformance::many_keys(store("many").await).await;
    for round in 0..6 {
        conformance::racing_creators(store(&format!("race{round}")).await).await;
    }
    println!("{} in {:?}", proxy.verdict().await, begun.elapsed());
    bucket.empty().await;
}
