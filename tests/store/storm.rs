//! The contract of a store, kept over a network that does everything networks do.

use crate::conformance::{self, key, pattern};
use crate::fault_proxy::{CALM, Distance, Fault, FaultProxy, Profile};
use crate::s3_lab::S3Lab;
use objblk::store::limit::{Bounds, Class, Kind, Limiter};
use objblk::store::retry::{RetryPolicy, RetryStore};
use objblk::store::s3::{S3Location, S3Options, S3Store};
use objblk::store::{GetRange, Store, StoreErrorKind, list_all};
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

/// Puts `count` objects of 16 KiB by 32 tasks, none of which may fail.
async fn put_many(store: &Arc<dyn Store>, below: &str, count: usize) -> Duration {
    const LANES: usize = 32;
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for lane in 0..LANES {
        let (store, below) = (store.clone(), below.to_owned());
        tasks.spawn(async move {
            for i in (lane..count).step_by(LANES) {
                let name = key(&format!("{below}/{i}"));
                store.put_if_absent(&name, pattern(16 << 10, i as u64)).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    begun.elapsed()
}

/// A server that takes four requests at once and says SlowDown to all others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_slow_down_adapts_concurrency() {
    const COUNT: usize = 400;
    let lab = S3Lab::get();
    let bucket = lab.bucket().await;
    let proxy = FaultProxy::start(&lab.endpoint, "127.0.0.1", &CALM, 1).await;
    let options = S3Options { endpoint_url: Some(proxy.endpoint()), ..lab.options() };
    let location = S3Location::new(&bucket.name, "").unwrap();
    let bare = Arc::new(S3Store::connect(location, &options).await.unwrap());
    // Short pauses, or those alone would keep the crowd away.
    let pauses = Duration::from_millis(10);
    let policy = RetryPolicy { first_delay: pauses, max_delay: pauses, ..RetryPolicy::default() };
    let retry = || RetryStore::new(bare.clone(), policy, StdRng::seed_from_u64(1));
    proxy.crowd(4);
    let fixed: Arc<dyn Store> = Arc::new(retry());
    let fixed_time = put_many(&fixed, "fixed", COUNT).await;
    let without = proxy.traffic();

    let limiter = Arc::new(Limiter::new(Bounds { total: 64, writes: 32 }));
    let adaptive: Arc<dyn Store> = Arc::new(retry().through(limiter.clone(), Class::Foreground));
    let time = put_many(&adaptive, "adaptive", COUNT).await;
    let with = proxy.traffic();
    let window = limiter.window(Kind::Write);
    println!(
        "{COUNT} PUTs: {} refused in {fixed_time:?} without adaptation, {} in {time:?} with it; \
         32 allowed, {window} in use at the end",
        without.refused, with.refused
    );
    assert!(without.refused > 10 * with.refused, "{} and {}", without.refused, with.refused);
    assert!(with.refused > 0 && window <= 8, "{} refused, {window} at once", with.refused);

    proxy.crowd(usize::MAX);
    let time = put_many(&adaptive, "recovered", 2 * COUNT).await;
    let after = proxy.traffic();
    let window = limiter.window(Kind::Write);
    println!(
        "{} PUTs in {time:?} with room again: {window} allowed, {} at once",
        2 * COUNT,
        after.peak
    );
    assert_eq!((after.refused, window), (0, 32));
    assert!(after.peak > 16, "{} at once", after.peak);
    for (below, count) in [("fixed", COUNT), ("adaptive", COUNT), ("recovered", 2 * COUNT)] {
        let found = list_all(&*adaptive, &format!("{below}/")).await.unwrap();
        assert_eq!(found.len(), count, "{below}");
        let name = key(&format!("{below}/{}", count - 1));
        let body = adaptive.get(&name, GetRange::All).await.unwrap();
        assert_eq!(body, pattern(16 << 10, count as u64 - 1));
    }
    bucket.empty().await;
}
