//! The probe accepts stores that keep their word and refuses the others.

use crate::conformance::key;
use crate::s3_lab::{self, S3Lab};
use crate::{Fixture, fake_s3};
use async_trait::async_trait;
use bytes::Bytes;
use objblk::error::ErrorKind;
use objblk::store::fault::{Fault, FaultStore, Moment, Rule};
use objblk::store::memory::MemoryStore;
use objblk::store::probe::probe_create_if_absent;
use objblk::store::s3::{S3Location, S3Store};
use objblk::store::unfenced::UnfencedStore;
use objblk::store::{
    GetRange, Key, ListPage, ObjectInfo, Op, Store, StoreErrorKind, StoreResult, list_all,
};
use std::sync::Arc;
use std::time::Duration;

async fn accepted(fixture: Fixture) {
    let begun = std::time::Instant::now();
    probe_create_if_absent(&fixture.store).await.unwrap();
    println!("{}: probed in {:?}", fixture.store.url(), begun.elapsed());
    assert!(list_all(&*fixture.store, "").await.unwrap().is_empty(), "the probe left something");
    fixture.finish().await;
}

async fn refused(store: Arc<dyn Store>, seen: &str) -> String {
    let error = probe_create_if_absent(&store).await.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Store, "{text}");
    assert!(text.contains(seen), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_accepted() {
    accepted(Fixture::memory().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_is_accepted() {
    accepted(Fixture::dir().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ceph_is_accepted() {
    accepted(Fixture::s3().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_conditions_is_refused() {
    let endpoint = fake_s3::start(fake_s3::Manner::IgnoresConditions).await;
    let location = S3Location::new("bucket", "pool").unwrap();
    let options = s3_lab::options(&endpoint, "key", "secret");
    let store: Arc<dyn Store> = Arc::new(S3Store::connect(location, &options).await.unwrap());
    let text = refused(store.clone(), "32 of 32 racing writers were told they created").await;
    assert!(text.contains("--unsafe-no-fencing") && text.contains("s3://bucket/pool"), "{text}");
    assert!(list_all(&*store, "").await.unwrap().is_empty(), "the probe left something");

    let unfenced = UnfencedStore::new(store);
    unfenced.put_if_absent(&key("a"), Bytes::from_static(b"1")).await.unwrap();
    let again = unfenced.put_if_absent(&key("a"), Bytes::from_static(b"2")).await.unwrap_err();
    assert_eq!(again.kind, StoreErrorKind::AlreadyExists);
    assert_eq!(unfenced.get(&key("a"), GetRange::All).await.unwrap(), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_only_looks_before_it_writes_is_refused() {
    let slow = FaultStore::new(Arc::new(MemoryStore::new()), 1);
    let (from, to) = (Duration::from_millis(1), Duration::from_millis(5));
    slow.handle().add(Rule::new(Fault::Delay { at: Moment::Before, from, to }).on(&[Op::Put]));
    let store = Arc::new(UnfencedStore::new(Arc::new(slow)));
    refused(store, "of 32 racing writers were told they created the same object").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_list_is_refused() {
    let store = FaultStore::new(Arc::new(MemoryStore::new()), 1);
    store.handle().add(Rule::new(Fault::StaleList(Duration::from_secs(60))));
    refused(Arc::new(store), "a listing does not show an object that was just created").await;
}

#[tokio::test]
async fn a_failing_store_says_its_own_reason() {
    let options = s3_lab::options(&S3Lab::get().endpoint, "unknown", "secret");
    let location = S3Location::new("bucket", "").unwrap();
    let store: Arc<dyn Store> = Arc::new(S3Store::connect(location, &options).await.unwrap());
    refused(store, "the access key ID is unknown").await;
}

#[tokio::test(start_paused = true)]
async fn a_create_that_arrives_again_behind_its_delete_is_forgiven() {
    let store = FaultStore::new(Arc::new(MemoryStore::new()), 1);
    let twice = Fault::Duplicate(Duration::from_millis(100));
    store.handle().add(Rule::new(twice).on(&[Op::Put]).times(2));
    let (from, to) = (Duration::from_millis(200), Duration::from_millis(200));
    store.handle().add(Rule::new(Fault::Delay { at: Moment::After, from, to }).on(&[Op::Delete]));
    let store: Arc<dyn Store> = Arc::new(store);
    probe_create_if_absent(&store).await.unwrap();
    assert!(list_all(&*store, "").await.unwrap().is_empty(), "the probe left something");
}

/// Takes deletes and does nothing.
#[derive(Debug)]
struct Stubborn(MemoryStore);

#[async_trait]
impl Store for Stubborn {
    fn url(&self) -> String {
        self.0.url()
    }

    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        self.0.get(key, range).await
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        self.0.put_if_absent(key, body).await
    }

    async fn put(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        self.0.put(key, body).await
    }

    async fn delete(&self, _: &[Key]) -> StoreResult<()> {
        Ok(())
    }

    async fn head(&self, key: &Key) -> StoreResult<ObjectInfo> {
        self.0.head(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> StoreResult<ListPage> {
        self.0.list(prefix, after, limit).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_deletes_is_refused() {
    let stubborn = Arc::new(Stubborn(MemoryStore::new()));
    refused(stubborn, "an object is still shown after it was deleted").await;
}
