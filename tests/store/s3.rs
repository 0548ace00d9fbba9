//! What is particular to S3: buckets, credentials, servers and networks that misbehave.

use crate::conformance::{key, pattern};
use crate::fake_s3::{self, Manner};
use crate::proxy::Proxy;
use crate::s3_lab::{self, S3Lab};
use bytes::Bytes;
use objblk::error::ErrorKind;
use objblk::store::retry::{RetryPolicy, RetryStore};
use objblk::store::s3::{S3Location, S3Options, S3Store};
use objblk::store::url::{self, StoreUrl};
use objblk::store::{GetRange, Key, Store, StoreError, StoreErrorKind, list_all};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::sync::Arc;
use std::time::{Duration, Instant};

async fn connect(bucket: &str, options: &S3Options) -> S3Store {
    S3Store::connect(S3Location::new(bucket, "").unwrap(), options).await.unwrap()
}

async fn fake(manner: Manner) -> S3Store {
    let endpoint = fake_s3::start(manner).await;
    let mut options = s3_lab::options(&endpoint, "key", "secret");
    options.answer_timeout = Duration::from_millis(300);
    connect("bucket", &options).await
}

/// The error of each operation.
async fn all_errors(store: &S3Store) -> Vec<StoreError> {
    let keys: Vec<Key> = ["a", "b"].map(key).to_vec();
    vec![
        store.get(&key("a"), GetRange::All).await.unwrap_err(),
        store.put_if_absent(&key("a"), Bytes::from_static(b"x")).await.unwrap_err(),
        store.head(&key("a")).await.unwrap_err(),
        store.list("", None, 10).await.unwrap_err(),
        store.delete(&keys).await.unwrap_err(),
    ]
}

#[tokio::test]
async fn wrong_credentials_are_denied() {
    let lab = S3Lab::get();
    let bucket = lab.bucket().await;
    let known = lab.var("AWS_ACCESS_KEY_ID");
    for (access, why) in [
        (known, "the secret access key does not belong to the access key ID"),
        ("somebody", "the access key ID is unknown to http://127.0.0.1"),
    ] {
        let options = s3_lab::options(&lab.endpoint, access, "wrong");
        for error in all_errors(&connect(&bucket.name, &options).await).await {
            println!("{error}");
            assert_eq!(error.kind, StoreErrorKind::Denied, "{error}");
            assert!(error.op == "head" || error.detail.contains(why), "{error}");
        }
    }
}

#[tokio::test]
async fn an_unreachable_endpoint_is_unavailable() {
    for (endpoint, why) in [
        ("http://127.0.0.1:1", "connection refused by http://127.0.0.1:1"),
        ("http://no-such-host.invalid", "the host of http://no-such-host.invalid is unknown"),
    ] {
        let begun = Instant::now();
        for error in
            all_errors(&connect("bucket", &s3_lab::options(endpoint, "k", "s")).await).await
        {
            println!("{error}");
            assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
            assert!(error.detail.contains(why), "{error}");
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_missing_bucket_is_not_found() {
    let lab = S3Lab::get();
    let store = connect("objblk-no-such-bucket", &lab.options()).await;
    for error in all_errors(&store).await {
        println!("{error}");
        assert_eq!(error.kind, StoreErrorKind::NotFound, "{error}");
        let why = if error.op == "head" { "or no such bucket" } else { "does not exist" };
        assert!(error.detail.contains(why), "{error}");
    }
    let error = store.ensure_bucket(false).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NotFound, "{error}");
    assert_eq!(error.detail, "bucket \"objblk-no-such-bucket\" does not exist");
}

#[tokio::test]
async fn a_bucket_is_made_once() {
    let lab = S3Lab::get();
    let bucket = lab.bucket().await;
    assert!(!bucket.root.ensure_bucket(true).await.unwrap());
    assert!(!bucket.root.ensure_bucket(false).await.unwrap());
    let stranger = connect(&bucket.name, &s3_lab::options(&lab.endpoint, "somebody", "x")).await;
    let error = stranger.ensure_bucket(true).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Denied, "{error}");
}

#[tokio::test]
async fn prefixes_are_apart() {
    let bucket = S3Lab::get().bucket().await;
    let (a, ab, root) = (bucket.store("a").await, bucket.store("a/b").await, &bucket.root);
    a.put_if_absent(&key("x"), Bytes::new()).await.unwrap();
    ab.put_if_absent(&key("x"), Bytes::new()).await.unwrap();
    root.put_if_absent(&key("ab/x"), Bytes::new()).await.unwrap();
    let names = |objects: Vec<objblk::store::ObjectInfo>| -> Vec<String> {
        objects.into_iter().map(|o| o.key.to_string()).collect()
    };
    assert_eq!(names(list_all(&a, "").await.unwrap()), ["b/x", "x"]);
    assert_eq!(names(list_all(&ab, "").await.unwrap()), ["x"]);
    assert_eq!(names(list_all(root, "").await.unwrap()), ["a/b/x", "a/x", "ab/x"]);
    bucket.empty().await;
}

#[tokio::test]
async fn objects_of_other_programs_are_passed_over() {
    let bucket = S3Lab::get().bucket().await;
    for i in 0..30 {
        bucket.put_raw(&format!("m odd {i:02}"), b"x").await;
    }
    bucket.put_raw("folder/", b"").await;
    for name in ["a", "m", "z"] {
        bucket.root.put_if_absent(&key(name), Bytes::new()).await.unwrap();
    }
    let page = bucket.root.list("", Some(&key("m")), 5).await.unwrap();
    assert_eq!(page.objects.len(), 1, "a page of nothing but others' objects: {page:?}");
    assert_eq!(page.objects[0].key, key("z"));
    assert_eq!(list_all(&bucket.root, "").await.unwrap().len(), 3);
    bucket.empty().await;
}

#[tokio::test]
async fn answers_become_kinds() {
    use StoreErrorKind as Kind;
    for (status, code, kind, why) in [
        (503, "SlowDown", Kind::Throttled, "asks to slow down"),
        (429, "TooManyRequests", Kind::Throttled, "asks to slow down"),
        (500, "InternalError", Kind::Unavailable, "failed: as told (InternalError)"),
        (502, "BadGateway", Kind::Unavailable, "answered 502: as told (BadGateway)"),
        (400, "RequestTimeout", Kind::Unavailable, "as told (RequestTimeout)"),
        (409, "ConditionalRequestConflict", Kind::Unavailable, "another writer"),
        (412, "PreconditionFailed", Kind::AlreadyExists, "an object of that name is there"),
        (403, "AccessDenied", Kind::Denied, "do not allow it in bucket \"bucket\""),
        (403, "RequestTimeTooSkewed", Kind::Denied, "clock"),
        (401, "Unauthorized", Kind::Denied, "answered 401"),
        (400, "EntityTooLarge", Kind::Invalid, "as told (EntityTooLarge)"),
        (400, "XAmzContentSHA256Mismatch", Kind::Unavailable, "damaged on the way"),
        (301, "PermanentRedirect", Kind::Invalid, "is not in region us-east-1"),
        (501, "NotImplemented", Kind::Invalid, "cannot do it"),
        (404, "NoSuchBucket", Kind::NotFound, "bucket \"bucket\" does not exist"),
    ] {
        let store = fake(Manner::Always(status, code)).await;
        let error = store.put_if_absent(&key("a"), Bytes::from_static(b"x")).await.unwrap_err();
        assert_eq!(error.kind, kind, "{status} {code}: {error}");
        assert!(error.detail.contains(why), "{status} {code}: {error}");
        // HEAD has the status only.
        let error = store.head(&key("a")).await.unwrap_err();
        let by_status = !matches!(code, "RequestTimeout" | "XAmzContentSHA256Mismatch");
        assert_eq!(error.kind == kind, by_status, "HEAD {status}: {error}");
    }
}

#[tokio::test]
async fn a_silent_server_is_unavailable_in_time() {
    let store = fake(Manner::Silent).await;
    let begun = Instant::now();
    let error = store.get(&key("a"), GetRange::All).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    assert!(error.detail.contains("no answer from http://127.0.0.1"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_broken_off_answer_is_unavailable() {
    let store = fake(Manner::BreaksOff).await;
    let error = store.get(&key("a"), GetRange::All).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    assert!(error.detail.contains("broke off"), "{error}");
}

#[tokio::test]
async fn an_ignored_range_is_noticed() {
    let store = fake(Manner::IgnoresConditions).await;
    store.put(&key("a"), pattern(100, 1)).await.unwrap();
    let error = store.get(&key("a"), GetRange::Part { offset: 50, len: 10 }).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Invalid);
    assert!(error.detail.contains("ignored the range"), "{error}");
}

#[tokio::test]
async fn deletes_fall_back_to_single_ones() {
    let store = fake(Manner::IgnoresConditions).await;
    let names: Vec<Key> = (0..40).map(|i| key(&format!("{i}"))).collect();
    for name in &names {
        store.put(name, Bytes::from_static(b"x")).await.unwrap();
    }
    store.delete(&names).await.unwrap();
    assert!(list_all(&store, "").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_damaged_upload_is_refused() {
    let lab = S3Lab::get();
    let bucket = lab.bucket().await;
    let proxy = Proxy::start(&lab.endpoint).await;
    let options = S3Options { endpoint_url: Some(proxy.endpoint()), ..lab.options() };
    let store = connect(&bucket.name, &options).await;
    let mark = b"the-mark-in-the-body";
    let mut body = pattern(1 << 20, 5).to_vec();
    body[700_000..700_000 + mark.len()].copy_from_slice(mark);
    let body = Bytes::from(body);
    store.put_if_absent(&key("good"), body.clone()).await.unwrap();
    proxy.flip_after(mark);
    let error = store.put_if_absent(&key("bad"), body.clone()).await.unwrap_err();
    println!("{error}");
    assert_eq!(proxy.flips(), 1, "the proxy damaged nothing");
    assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
    let names: Vec<_> = list_all(&bucket.root, "").await.unwrap();
    assert_eq!(names.len(), 1, "the damaged object was stored: {names:?}");
    bucket.empty().await;
}

#[tokio::test]
async fn connections_are_used_again() {
    let lab = S3Lab::get();
    let bucket = lab.bucket().await;
    let proxy = Proxy::start(&lab.endpoint).await;
    let options = S3Options { endpoint_url: Some(proxy.endpoint()), ..lab.options() };
    let store = connect(&bucket.name, &options).await;
    let names: Vec<Key> = (0..20).map(|i| key(&format!("{i}"))).collect();
    for name in &names {
        store.put_if_absent(name, pattern(10_000, 1)).await.unwrap();
        store.get(name, GetRange::Part { offset: 1, len: 100 }).await.unwrap();
        store.head(name).await.unwrap();
        assert!(store.put_if_absent(name, Bytes::new()).await.is_err());
    }
    // Deleting one by one would take a connection for each of several at once.
    store.delete(&names).await.unwrap();
    assert_eq!(proxy.connections(), 1);
    assert!(list_all(&bucket.root, "").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_reply_lost_on_the_network_is_settled() {
    let lab = S3Lab::get();
    let bucket = lab.bucket().await;
    let proxy = Proxy::start(&lab.endpoint).await;
    let options = S3Options { endpoint_url: Some(proxy.endpoint()), ..lab.options() };
    let bare = connect(&bucket.name, &options).await;
    proxy.lose_replies(1);
    let error = bare.put_if_absent(&key("bare"), pattern(100_000, 1)).await.unwrap_err();
    println!("{error}");
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    assert_eq!(bucket.root.head(&key("bare")).await.unwrap().size, 100_000);

    let policy = RetryPolicy { first_delay: Duration::from_millis(5), ..RetryPolicy::default() };
    let store = RetryStore::new(Arc::new(bare), policy, StdRng::seed_from_u64(1));
    proxy.lose_replies(3);
    store.put_if_absent(&key("ours"), pattern(100_000, 2)).await.unwrap();
    assert_eq!(proxy.replies_to_lose(), 0);
    proxy.lose_replies(3);
    let error = store.put_if_absent(&key("bare"), pattern(100_000, 3)).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::AlreadyExists, "{error}");
    proxy.lose_replies(2);
    assert!(store.get(&key("ours"), GetRange::All).await.unwrap() == pattern(100_000, 2));
    bucket.empty().await;
}

#[tokio::test]
async fn addresses_open_stores() {
    let lab = S3Lab::get();
    let bucket = format!("objblk-test-{}", uuid::Uuid::new_v4());
    let root = tempfile::tempdir().unwrap();
    for text in [format!("s3://{bucket}/pool"), format!("file://{}/pool", root.path().display())] {
        let address: StoreUrl = text.parse().unwrap();
        if let StoreUrl::Dir(_) = address {
            let error = url::open(&address, &lab.options()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        }
        for _ in 0..2 {
            let store = url::create(&address, &lab.options()).await.unwrap();
            assert_eq!(store.url(), text);
        }
        let store = url::open(&address, &lab.options()).await.unwrap();
        store.put_if_absent(&key("a"), Bytes::new()).await.unwrap();
        store.delete(&[key("a")]).await.unwrap();
    }
    let wrong = S3Options { endpoint_url: Some("127.0.0.1:7480".to_owned()), ..lab.options() };
    let address: StoreUrl = format!("s3://{bucket}").parse().unwrap();
    let error = url::open(&address, &wrong).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
}
