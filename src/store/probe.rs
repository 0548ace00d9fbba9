//! Does a store keep its promise of create-if-absent? Asked once, when a pool is made.
//!
//! All fencing stands on that one primitive, and stores exist that ignore it, or honour it for
//! one writer at a time but not for racers. So writers race for fresh keys below `probe/`, round
//! after round, and everything the contract says of a created object is looked at: one winner,
//! its bytes, no second create, seen at once by get, head and list, gone at once after delete.
//!
//! A pass is evidence, no proof. The probe's objects are removed whatever it finds; where its
//! future is dropped half-way, up to one round's object is left.

use super::{GetRange, Key, Store, StoreError, StoreErrorKind};
use crate::error::{Error, ErrorKind, Result};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

/// Races for one key each.
const ROUNDS: usize = 8;

/// Writers that race in a round.
const WRITERS: usize = 32;

/// Bodies are small in even rounds and of this size in odd ones.
const LARGE_BODY: usize = 64 * 1024;

/// How often an object is deleted that is still shown, before the store is refused.
const REMOVALS: usize = 4;

/// Wait for a create that was delivered twice.
const LATE: Duration = Duration::from_secs(1);

/// Refuses a store that does not keep the contract of [`Store::put_if_absent`].
///
/// Errors: `Store` where it breaks the contract (says what was seen, and what overrides) or fails
/// a request for another reason; `NotFound` where its bucket or directory is missing.
pub async fn probe_create_if_absent(store: &Arc<dyn Store>) -> Result<()> {
    let run = uuid::Uuid::new_v4();
    for round in 0..ROUNDS {
        let key = Key::new(&format!("probe/{run}/{round}")).expect("a UUID and a number are plain");
        let outcome = probe_round(store, &key, round).await;
        let removed = remove(store, &key).await;
        outcome?;
        removed?;
    }
    Ok(())
}

/// Deletes `key` and verifies that it is gone. On a network that delivers a create twice, the second
/// may arrive behind the delete: that is no fault of the store, and does not happen every time.
async fn remove(store: &Arc<dyn Store>, key: &Key) -> Result<()> {
    for _ in 0..REMOVALS {
        store.delete(std::slice::from_ref(key)).await.map_err(failed)?;
        if is_gone(store, key).await? {
            return Ok(());
        }
        tokio::time::sleep(LATE).await;
    }
    Err(refused(store, "an object is still shown after it was deleted"))
}

fn failed(e: StoreError) -> Error {
    Error::from(e).context("cannot probe the store")
}

fn refused(store: &Arc<dyn Store>, seen: impl std::fmt::Display) -> Error {
    let url = store.url();
    Error::new(
        ErrorKind::Store,
        format!(
            "store {url} does not honour create-if-absent, which keeps two owners apart: {seen}"
        ),
    )
    .hint("use another store, or --unsafe-no-fencing if no two hosts will ever use a volume")
}

fn body(round: usize, writer: usize) -> Bytes {
    let mut body = format!("objblk probe, round {round}, writer {writer}\n").into_bytes();
    if round % 2 == 1 {
        body.resize(LARGE_BODY, writer as u8);
    }
    body.into()
}

async fn probe_round(store: &Arc<dyn Store>, key: &Key, round: usize) -> Result<()> {
    let winners = race(store, key, round).await?;
    let [winner] = winners[..] else {
        let told = winners.len();
        return Err(refused(
            store,
            format!("{told} of {WRITERS} racing writers were told they created the same object"),
        ));
    };
    let expected = body(round, winner);
    created(store, key, &expected).await?;
    match store.put_if_absent(key, body(round, WRITERS)).await {
        Err(e) if e.kind == StoreErrorKind::AlreadyExists => {}
        Err(e) => return Err(failed(e)),
        Ok(()) => return Err(refused(store, "a later writer created an existing object anew")),
    }
    created(store, key, &expected).await
}

/// Lets writers race for `key`; returns those that were told they created it.
async fn race(store: &Arc<dyn Store>, key: &Key, round: usize) -> Result<Vec<usize>> {
    let barrier = Arc::new(Barrier::new(WRITERS));
    let mut tasks = JoinSet::new();
    for writer in 0..WRITERS {
        let (store, key, barrier) = (store.clone(), key.clone(), barrier.clone());
        tasks.spawn(async move {
            barrier.wait().await;
            (writer, store.put_if_absent(&key, body(round, writer)).await)
        });
    }
    let mut winners = Vec::new();
    let mut failure = None;
    // All must have ended before the key is cleaned up, or a late one would stay.
    for (writer, result) in tasks.join_all().await {
        match result {
            Ok(()) => winners.push(writer),
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => {}
            Err(e) => failure = Some(e),
        }
    }
    match failure {
        // Two winners are proof enough, whatever else failed.
        Some(e) if winners.len() < 2 => Err(failed(e)),
        _ => Ok(winners),
    }
}

/// Verifies that `key` is seen everywhere, with the bytes `expected`.
async fn created(store: &Arc<dyn Store>, key: &Key, expected: &Bytes) -> Result<()> {
    let found = store.get(key, GetRange::All).await.map_err(failed)?;
    if found != expected {
        return Err(refused(store, "the object does not hold the bytes of the writer that won"));
    }
    let info = store.head(key).await.map_err(failed)?;
    let page = store.list(key.as_str(), None, 10).await.map_err(failed)?;
    if info.size != expected.len() as u64 || page.objects != [info] {
        return Err(refused(store, "a listing does not show an object that was just created"));
    }
    Ok(())
}

/// Whether `key` is seen nowhere.
async fn is_gone(store: &Arc<dyn Store>, key: &Key) -> Result<bool> {
    let page = store.list(key.as_str(), None, 10).await.map_err(failed)?;
    match store.head(key).await {
        Err(e) if e.kind == StoreErrorKind::NotFound => Ok(page.objects.is_empty()),
        Err(e) => Err(failed(e)),
        Ok(_) => Ok(false),
    }
}
