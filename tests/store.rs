//! Stores and their layers, against real directories and a real S3 server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "store/conformance.rs"]
mod conformance;
#[path = "store/credentials.rs"]
mod credentials;
#[path = "store/dir.rs"]
mod dir;
#[path = "support/fake_s3.rs"]
mod fake_s3;
#[path = "store/fault.rs"]
mod fault;
#[path = "support/fault_proxy.rs"]
mod fault_proxy;
#[path = "store/hedge.rs"]
mod hedge;
#[path = "support/http.rs"]
mod http;
#[path = "store/layers.rs"]
mod layers;
#[path = "store/limit.rs"]
mod limit;
#[path = "store/paths.rs"]
mod paths;
#[path = "store/probe.rs"]
mod probe;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "store/retry.rs"]
mod retry;
#[path = "store/s3.rs"]
mod s3;
#[path = "support/s3.rs"]
mod s3_lab;
#[path = "store/s3_paths.rs"]
mod s3_paths;
#[path = "store/storm.rs"]
mod storm;
#[path = "store/switch.rs"]
mod switch;

use objblk::store::Store;
use objblk::store::dir::DirStore;
use objblk::store::limit::{Bounds, Class, Limiter};
use objblk::store::memory::MemoryStore;
use objblk::store::metrics::MetricsStore;
use objblk::store::paths::policy::PathPolicy;
use objblk::store::paths::spec::PathSpec;
use objblk::store::paths::{MultipathStore, NewPath};
use objblk::store::retry::{RetryPolicy, RetryStore};
use rand::SeedableRng;
use rand::rngs::StdRng;
use s3_lab::{Bucket, S3Lab};
use std::sync::Arc;
use tempfile::TempDir;

/// A fresh store and what it lies on.
struct Fixture {
    store: Arc<dyn Store>,
    bucket: Option<Bucket>,
    _directory: Option<TempDir>,
}

impl Fixture {
    async fn memory() -> Fixture {
        Fixture { store: Arc::new(MemoryStore::new()), bucket: None, _directory: None }
    }

    async fn dir() -> Fixture {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = Arc::new(DirStore::open(directory.path()).expect("it exists"));
        Fixture { store, bucket: None, _directory: Some(directory) }
    }

    async fn s3() -> Fixture {
        let bucket = S3Lab::get().bucket().await;
        let store = Arc::new(bucket.store("a/pool").await);
        Fixture { store, bucket: Some(bucket), _directory: None }
    }

    async fn s3_layered() -> Fixture {
        let mut fixture = Fixture::s3().await;
        fixture.store = Arc::new(MetricsStore::new(fixture.store));
        let rng = StdRng::seed_from_u64(1);
        let limiter = Arc::new(Limiter::new(Bounds { total: 8, writes: 6 }));
        let retry = RetryStore::new(fixture.store, RetryPolicy::default(), rng);
        fixture.store = Arc::new(retry.through(limiter, Class::Foreground));
        fixture
    }

    /// A store in memory by three paths.
    async fn paths() -> Fixture {
        let memory: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let by = |name: &str| {
            let spec = PathSpec::to(Some(name.to_owned()));
            NewPath { spec, store: memory.clone() }
        };
        let paths = ["a", "b", "c"].map(by).into();
        let beacon = conformance::key("objblk.json");
        let store = MultipathStore::new(memory.url(), paths, PathPolicy::default(), beacon);
        Fixture { store: Arc::new(store), bucket: None, _directory: None }
    }

    async fn finish(self) {
        if let Some(bucket) = self.bucket {
            bucket.empty().await;
        }
    }
}

macro_rules! conforms {
    ($($store:ident: $($case:ident),+;)+) => { $(
        mod $store { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let fixture = crate::Fixture::$store().await;
                crate::conformance::$case(fixture.store.clone()).await;
                fixture.finish().await;
            }
        )+ }
    )+ };
    ($($store:ident),+) => {
        conforms! { $($store: create_read_delete, errors_name_the_object, ranges,
            chunk_sized_bodies, listing_order, listing_agrees_with_a_model, many_keys,
            racing_creators;)+ }
    };
}

mod conforms {
    conforms!(memory, dir, paths, s3, s3_layered);
}
