//! What every store must do: the contract of `objblk::store`, as tests over any of them.

use bytes::Bytes;
use objblk::store::{GetRange, Key, Store, StoreErrorKind, list_all};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

type AnyStore = Arc<dyn Store>;

pub fn key(name: &str) -> Key {
    Key::new(name).unwrap_or_else(|| panic!("{name:?} is a key"))
}

fn part(offset: u64, len: u64) -> GetRange {
    GetRange::Part { offset, len }
}

/// Bytes that tell where they are from.
pub fn pattern(len: usize, seed: u64) -> Bytes {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes.into()
}

async fn put(store: &AnyStore, name: &str, body: &Bytes) {
    store.put_if_absent(&key(name), body.clone()).await.unwrap();
}

/// The life of one object.
pub async fn create_read_delete(store: AnyStore) {
    let (name, body) = (key("a/b/object"), Bytes::from_static(b"hello"));
    let kind = |e: objblk::store::StoreError| e.kind;
    assert_eq!(store.get(&name, GetRange::All).await.map_err(kind), Err(StoreErrorKind::NotFound));
    assert_eq!(store.head(&name).await.map_err(kind), Err(StoreErrorKind::NotFound));
    store.put_if_absent(&name, body.clone()).await.unwrap();
    assert_eq!(store.get(&name, GetRange::All).await.unwrap(), body);
    assert_eq!(store.head(&name).await.unwrap().size, 5);
    let second = store.put_if_absent(&name, Bytes::from_static(b"other")).await;
    assert_eq!(second.map_err(kind), Err(StoreErrorKind::AlreadyExists));
    assert_eq!(store.get(&name, GetRange::All).await.unwrap(), body, "the first one stays");
    store.put(&name, Bytes::from_static(b"replaced")).await.unwrap();
    assert_eq!(store.get(&name, GetRange::All).await.unwrap(), "replaced");
    store.delete(std::slice::from_ref(&name)).await.unwrap();
    assert_eq!(store.head(&name).await.map_err(kind), Err(StoreErrorKind::NotFound));
    assert!(list_all(&*store, "").await.unwrap().is_empty());
    store.delete(&[name.clone(), key("never/was")]).await.unwrap();
    store.delete(&[]).await.unwrap();
    store.put_if_absent(&name, body).await.unwrap();
}

/// An error names the operation and the object's full address.
pub async fn errors_name_the_object(store: AnyStore) {
    let error = store.get(&key("no/such"), GetRange::All).await.unwrap_err();
    assert_eq!(error.op, "get");
    assert!(error.object.starts_with(&store.url()), "{error}");
    assert!(error.object.ends_with("/no/such"), "{error}");
    assert!(error.detail.contains("no such object"), "{error}");
}

/// Parts of objects, up to and beyond the end.
pub async fn ranges(store: AnyStore) {
    let body = pattern(10_000, 1);
    put(&store, "object", &body).await;
    put(&store, "empty", &Bytes::new()).await;
    for (offset, len) in [(0, 1), (0, 10_000), (1, 4096), (9_999, 1), (9_000, 5_000), (0, u64::MAX)]
    {
        let end = body.len().min((offset as usize).saturating_add(len as usize));
        let got = store.get(&key("object"), part(offset, len)).await.unwrap();
        assert_eq!(got, body.slice(offset as usize..end), "{offset}+{len}");
    }
    for offset in [10_000, 10_001, u64::MAX - 1] {
        let error = store.get(&key("object"), part(offset, 1)).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Range, "{error}");
    }
    let error = store.get(&key("empty"), part(0, 1)).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Range, "{error}");
    assert!(store.get(&key("empty"), GetRange::All).await.unwrap().is_empty());
    let error = store.get(&key("missing"), part(0, 1)).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NotFound, "{error}");
}

/// Chunk-sized bodies come back unchanged, several at once.
pub async fn chunk_sized_bodies(store: AnyStore) {
    let mut tasks = JoinSet::new();
    for i in 0..4 {
        let store = store.clone();
        tasks.spawn(async move {
            let (name, body) = (key(&format!("log/{i}")), pattern(4 << 20, i));
            store.put_if_absent(&name, body.clone()).await.unwrap();
            assert!(store.get(&name, GetRange::All).await.unwrap() == body, "object {i} differs");
            let middle = store.get(&name, part(3 << 20, 65_536)).await.unwrap();
            assert!(middle == body.slice(3 << 20..(3 << 20) + 65_536), "part of {i} differs");
        });
    }
    tasks.join_all().await;
}

/// Byte order of keys, which is not the order of directories.
pub async fn listing_order(store: AnyStore) {
    let sorted = ["a-b", "a-b/c", "a.b", "a/b", "a/b.c", "a/b0", "a0", "aB/x", "b/a", "b/a-/z"];
    for name in sorted.iter().filter(|name| **name != "a-b").rev() {
        put(&store, name, &Bytes::from_static(b"x")).await;
    }
    let names = |objects: Vec<objblk::store::ObjectInfo>| -> Vec<String> {
        objects.into_iter().map(|o| o.key.as_str().to_owned()).collect()
    };
    let expected = |prefix: &str| -> Vec<&str> {
        let all = sorted.iter().filter(|name| **name != "a-b" && name.starts_with(prefix));
        all.copied().collect()
    };
    for prefix in ["", "a", "a/", "a/b", "a-", "b/a-", "b/a-/", "zz", "a/b/c"] {
        let all = names(list_all(&*store, prefix).await.unwrap());
        assert_eq!(all, expected(prefix), "prefix {prefix:?}");
    }
}

/// Random keys and questions against a sorted set.
pub async fn listing_agrees_with_a_model(store: AnyStore) {
    let mut rng = StdRng::seed_from_u64(7);
    let mut model: BTreeMap<Key, u64> = BTreeMap::new();
    let mut directories = BTreeSet::new();
    while model.len() < 60 {
        let name = random_name(&mut rng, 7);
        let above: Vec<&str> = name.match_indices('/').map(|(i, _)| &name[..i]).collect();
        let Some(new) = Key::new(&name) else { continue };
        // A directory cannot hold an object and a directory of one name.
        if model.contains_key(&new)
            || directories.contains(&name)
            || above.iter().any(|dir| model.keys().any(|k| k.as_str() == *dir))
        {
            continue;
        }
        let size = rng.random_range(0..10);
        directories.extend(above.into_iter().map(str::to_owned));
        store.put_if_absent(&new, pattern(size, 0)).await.unwrap();
        model.insert(new, size as u64);
    }
    for _ in 0..200 {
        let prefix = random_name(&mut rng, 4);
        let after = Key::new(&random_name(&mut rng, 7)).filter(|_| rng.random());
        let limit = rng.random_range(1..8);
        let page = store.list(&prefix, after.as_ref(), limit).await.unwrap();
        let matches: Vec<_> = model
            .iter()
            .filter(|(k, _)| k.as_str().starts_with(&prefix))
            .filter(|(k, _)| after.as_ref().is_none_or(|after| *k > after))
            .collect();
        let question = format!("prefix {prefix:?}, after {after:?}, limit {limit}");
        let got: Vec<_> = page.objects.iter().map(|o| (&o.key, &o.size)).collect();
        assert_eq!(got, matches[..limit.min(matches.len())], "{question}");
        assert_eq!(page.more, matches.len() > limit, "{question}");
    }
}

fn random_name(rng: &mut StdRng, max: usize) -> String {
    (0..rng.random_range(0..=max)).map(|_| char::from(b"ab-.//0"[rng.random_range(0..7)])).collect()
}

/// More keys than a page and than a batch hold.
pub async fn many_keys(store: AnyStore) {
    let names: Vec<Key> = (0..1500).map(|i| key(&format!("log/{:02x}/{i:06}", i % 16))).collect();
    let mut tasks = JoinSet::new();
    for worker in 0..16 {
        let (store, names) = (store.clone(), names.clone());
        tasks.spawn(async move {
            for name in names.iter().skip(worker).step_by(16) {
                store.put_if_absent(name, Bytes::from_static(b"x")).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    let page = store.list("log/", None, 1000).await.unwrap();
    assert_eq!((page.objects.len(), page.more), (1000, true));
    let mut sorted = names.clone();
    sorted.sort();
    let all: Vec<Key> = list_all(&*store, "").await.unwrap().into_iter().map(|o| o.key).collect();
    assert_eq!(all, sorted);
    store.delete(&names).await.unwrap();
    assert!(list_all(&*store, "").await.unwrap().is_empty());
}

/// Of 32 racing creators one wins, and its bytes stay.
pub async fn racing_creators(store: AnyStore) {
    for round in 0..4 {
        let name = key(&format!("race/{round}"));
        let barrier = Arc::new(Barrier::new(32));
        let mut tasks = JoinSet::new();
        for i in 0..32_u8 {
            let (store, name, barrier) = (store.clone(), name.clone(), barrier.clone());
            tasks.spawn(async move {
                barrier.wait().await;
                (i, store.put_if_absent(&name, vec![i; 5000].into()).await)
            });
        }
        let mut winners = Vec::new();
        for (i, result) in tasks.join_all().await {
            match result {
                Ok(()) => winners.push(i),
                Err(e) => assert_eq!(e.kind, StoreErrorKind::AlreadyExists, "{e}"),
            }
        }
        assert_eq!(winners.len(), 1, "winners: {winners:?}");
        let found = store.get(&name, GetRange::All).await.unwrap();
        assert_eq!(found, vec![winners[0]; 5000]);
    }
}
