//! Performing a request under the faults it was dealt.

use super::{Fault, FaultHandle, Hit, Moment, Shared};
use crate::store::{
    GetRange, Key, ListPage, ObjectInfo, Op, Store, StoreError, StoreErrorKind, StoreResult,
    address,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

/// A store that suffers the faults of its rules. Clones share them.
#[derive(Clone, Debug)]
pub struct FaultStore {
    inner: Arc<dyn Store>,
    shared: Arc<Shared>,
}

#[derive(Clone)]
enum Request {
    Get(Key, GetRange),
    PutIfAbsent(Key, Bytes),
    Put(Key, Bytes),
    Delete(Vec<Key>),
    Head(Key),
    List(String, Option<Key>, usize),
}

enum Reply {
    Bytes(Bytes),
    Done,
    Info(ObjectInfo),
    Page(ListPage),
}

impl Request {
    fn op(&self) -> Op {
        match self {
            Request::Get(..) => Op::Get,
            Request::PutIfAbsent(..) | Request::Put(..) => Op::Put,
            Request::Delete(_) => Op::Delete,
            Request::Head(_) => Op::Head,
            Request::List(..) => Op::List,
        }
    }

    fn names(&self) -> Vec<&str> {
        match self {
            Request::Get(key, _)
            | Request::PutIfAbsent(key, _)
            | Request::Put(key, _)
            | Request::Head(key) => vec![key.as_str()],
            Request::Delete(keys) => keys.iter().map(Key::as_str).collect(),
            Request::List(prefix, ..) => vec![prefix],
        }
    }
}

impl FaultStore {
    /// Wraps `inner`, without a rule. `seed` decides what is drawn.
    pub fn new(inner: Arc<dyn Store>, seed: u64) -> FaultStore {
        FaultStore { inner, shared: Arc::new(Shared::new(seed)) }
    }

    /// The controls.
    pub fn handle(&self) -> FaultHandle {
        FaultHandle { shared: self.shared.clone() }
    }

    async fn run(&self, request: Request) -> StoreResult<Reply> {
        let Some(hits) = self.shared.arrive(request.op(), &request.names()) else {
            return Err(self.error(&request, StoreErrorKind::Unavailable, "the store is down"));
        };
        if !hits.iter().any(|hit| hit.fault.outlives_caller()) {
            return self.perform(request, hits).await;
        }
        let (store, kept) = (self.clone(), request.clone());
        let task = tokio::spawn(async move { store.perform(request, hits).await });
        task.await.unwrap_or_else(|_| {
            Err(self.error(&kept, StoreErrorKind::Unavailable, "the runtime is shutting down"))
        })
    }

    fn error(&self, request: &Request, kind: StoreErrorKind, why: &str) -> StoreError {
        let name = request.names().first().copied().unwrap_or_default();
        let object = address(&self.inner.url(), name);
        StoreError::new(kind, request.op(), object, format!("injected fault: {why}"))
    }

    async fn perform(&self, request: Request, hits: Vec<Hit>) -> StoreResult<Reply> {
        self.suffer(Moment::Before, &request, &hits).await?;
        let stale = hits.iter().find_map(|hit| match hit.fault {
            Fault::StaleList(window) => Some(window),
            _ => None,
        });
        let mut reply = self.effect(request.clone(), stale).await;
        for hit in &hits {
            match &hit.fault {
                Fault::Duplicate(after) => self.duplicate(request.clone(), *after),
                Fault::Truncate | Fault::FlipBit => {
                    if let Ok(Reply::Bytes(bytes)) = &mut reply {
                        *bytes = damage(bytes, hit);
                    }
                }
                _ => {}
            }
        }
        self.suffer(Moment::After, &request, &hits).await?;
        reply
    }

    /// The waits and failures of one moment.
    async fn suffer(&self, moment: Moment, request: &Request, hits: &[Hit]) -> StoreResult<()> {
        for hit in hits {
            match &hit.fault {
                Fault::Delay { at, from, to } if *at == moment => {
                    tokio::time::sleep(between(*from, *to, hit.draw)).await;
                }
                Fault::Hold(at) if *at == moment => hit.active.hold().await,
                Fault::Fail(at, kind) if *at == moment => {
                    let why = match moment {
                        Moment::Before => "refused",
                        Moment::After => "the reply was lost",
                    };
                    return Err(self.error(request, *kind, why));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn duplicate(&self, request: Request, after: Duration) {
        let store = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            // Nobody waits for the second reply.
            let _ = store.effect(request, None).await;
        });
    }

    async fn effect(&self, request: Request, stale: Option<Duration>) -> StoreResult<Reply> {
        match request {
            Request::Get(key, range) => self.inner.get(&key, range).await.map(Reply::Bytes),
            Request::PutIfAbsent(key, body) => {
                self.inner.put_if_absent(&key, body).await?;
                self.shared.note_created(&key);
                Ok(Reply::Done)
            }
            Request::Put(key, body) => {
                self.inner.put(&key, body).await?;
                self.shared.note_created(&key);
                Ok(Reply::Done)
            }
            Request::Delete(keys) => self.inner.delete(&keys).await.map(|()| Reply::Done),
            Request::Head(key) => self.inner.head(&key).await.map(Reply::Info),
            Request::List(prefix, after, limit) => {
                self.list_stale(&prefix, after, limit, stale).await.map(Reply::Page)
            }
        }
    }

    async fn list_stale(
        &self,
        prefix: &str,
        mut after: Option<Key>,
        limit: usize,
        stale: Option<Duration>,
    ) -> StoreResult<ListPage> {
        loop {
            let mut page = self.inner.list(prefix, after.as_ref(), limit).await?;
            let last = page.objects.last().map(|object| object.key.clone());
            if let Some(window) = stale {
                page.objects.retain(|object| !self.shared.is_hidden(&object.key, window));
            }
            if !page.objects.is_empty() || !page.more || last.is_none() {
                return Ok(page);
            }
            after = last;
        }
    }
}

fn between(from: Duration, to: Duration, draw: u64) -> Duration {
    let span = to.saturating_sub(from);
    from + span.mul_f64(draw as f64 / u64::MAX as f64)
}

fn damage(bytes: &Bytes, hit: &Hit) -> Bytes {
    if bytes.is_empty() {
        return bytes.clone();
    }
    let len = bytes.len() as u64;
    match hit.fault {
        Fault::Truncate => bytes.slice(..(hit.draw % len) as usize),
        _ => {
            let bit = hit.draw % (len * 8);
            let mut damaged = bytes.to_vec();
            damaged[(bit / 8) as usize] ^= 1 << (bit % 8);
            damaged.into()
        }
    }
}

/// The answer of the wrong variant cannot come: `effect` pairs them.
macro_rules! expect_reply {
    ($reply:expr, $variant:pat => $value:expr) => {
        match $reply? {
            $variant => Ok($value),
            _ => unreachable!("each request has its own kind of reply"),
        }
    };
}

#[async_trait]
impl Store for FaultStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        let reply = self.run(Request::Get(key.clone(), range)).await;
        expect_reply!(reply, Reply::Bytes(bytes) => bytes)
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        let reply = self.run(Request::PutIfAbsent(key.clone(), body)).await;
        expect_reply!(reply, Reply::Done => ())
    }

    async fn put(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        let reply = self.run(Request::Put(key.clone(), body)).await;
        expect_reply!(reply, Reply::Done => ())
    }

    async fn delete(&self, keys: &[Key]) -> StoreResult<()> {
        let reply = self.run(Request::Delete(keys.to_vec())).await;
        expect_reply!(reply, Reply::Done => ())
    }

    async fn head(&self, key: &Key) -> StoreResult<ObjectInfo> {
        let reply = self.run(Request::Head(key.clone())).await;
        expect_reply!(reply, Reply::Info(info) => info)
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> StoreResult<ListPage> {
        let reply = self.run(Request::List(prefix.to_owned(), after.cloned(), limit)).await;
        expect_reply!(reply, Reply::Page(page) => page)
    }
}
