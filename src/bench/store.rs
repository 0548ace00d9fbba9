//! Load on a bare store: what a volume on it cannot exceed.

use super::{Dice, Effort, Figures, Worker, sum};
use crate::store::{GetRange, Key, Store, StoreError, StoreResult};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;
use tokio::task::JoinSet;

/// Keys deleted by one request.
const BATCH: u64 = 1000;

/// Gives the objects of a load their names.
pub type Names = Arc<dyn Fn(u64) -> Key + Send + Sync>;

/// Creates objects, reads them whole and deletes them again: figures of each. `live` is asked for
/// the load, `setup` to delete.
///
/// # Errors
/// The first error of a request; the objects are deleted as far as that can be done.
pub async fn run(
    (live, setup): (&Arc<dyn Store>, &Arc<dyn Store>),
    effort: Effort,
    names: &Names,
    seed: u64,
) -> StoreResult<Vec<Figures>> {
    let body = Bytes::from(Dice::new(seed).noise(effort.io_size as usize));
    let (store, name) = (live.clone(), names.clone());
    let put = move |number: u64| -> BoxFuture<'static, StoreResult<()>> {
        let (store, key, body) = (store.clone(), name(number), body.clone());
        Box::pin(async move { store.put_if_absent(&key, body).await })
    };
    let (made, puts) = many("creates", effort, put).await;
    let gets = match &puts {
        Ok(_) => {
            let (store, name) = (live.clone(), names.clone());
            let get = move |number: u64| -> BoxFuture<'static, StoreResult<()>> {
                let (store, key) = (store.clone(), name(number % made.max(1)));
                Box::pin(async move { store.get(&key, GetRange::All).await.map(drop) })
            };
            many("reads", effort, get).await.1
        }
        Err(e) => Err(e.clone()),
    };
    let deletes = delete(setup, made, names).await;
    Ok(vec![puts?, gets?, deletes?])
}

/// Deletes the first `count` objects, in as few requests as can be.
async fn delete(store: &Arc<dyn Store>, count: u64, names: &Names) -> StoreResult<Figures> {
    let (all, mut worker) = (Instant::now(), Worker::new());
    for from in (0..count).step_by(BATCH as usize) {
        let keys: Vec<Key> = (from..count.min(from + BATCH)).map(|n| names(n)).collect();
        let begun = Instant::now();
        store.delete(&keys).await?;
        worker.done(begun, 0);
    }
    Ok(sum("deletes of up to 1000", vec![worker], all.elapsed()))
}

/// Keeps so many requests in flight. Returns how many were begun as well.
async fn many(
    work: &'static str,
    effort: Effort,
    one: impl Fn(u64) -> BoxFuture<'static, StoreResult<()>> + Send + Sync + 'static,
) -> (u64, StoreResult<Figures>) {
    let (next, one, begun) = (Arc::new(AtomicU64::new(0)), Arc::new(one), Instant::now());
    let mut workers = JoinSet::new();
    for _ in 0..effort.depth {
        let (next, one) = (next.clone(), one.clone());
        workers.spawn(async move {
            let mut worker = Worker::new();
            while begun.elapsed() < effort.time {
                let began = Instant::now();
                one(next.fetch_add(1, Relaxed)).await?;
                worker.done(began, effort.io_size);
            }
            Ok::<Worker, StoreError>(worker)
        });
    }
    let done = workers.join_all().await;
    let took = begun.elapsed();
    let done: StoreResult<Vec<Worker>> = done.into_iter().collect();
    (next.load(Relaxed), done.map(|done| sum(work, done, took)))
}
