//! A process's way to the store: every request goes through here and suffers what it is dealt.

use crate::process::Process;
use crate::sites::{Fault, What};
use crate::world::{Fate, World};
use async_trait::async_trait;
use bytes::Bytes;
use objblk::store::{
    GetRange, Key, ListPage, ObjectInfo, Op, Store, StoreError, StoreErrorKind, StoreResult,
};
use std::future::pending;
use std::sync::Arc;

/// The store as one process sees it.
#[derive(Clone, Debug)]
pub struct Wire {
    pub world: Arc<World>,
    pub process: Arc<Process>,
}

/// A request.
#[derive(Clone, Debug)]
pub enum Request {
    Get(Key, GetRange),
    Put(Key, Bytes),
    Delete(Vec<Key>),
    Head(Key),
    List(String, Option<Key>, usize),
}

/// A reply.
#[derive(Clone, Debug)]
pub enum Reply {
    Bytes(Bytes),
    Done,
    Info(ObjectInfo),
    Page(ListPage),
}

impl Request {
    fn op(&self) -> Op {
        match self {
            Request::Get(..) => Op::Get,
            Request::Put(..) => Op::Put,
            Request::Delete(_) => Op::Delete,
            Request::Head(_) => Op::Head,
            Request::List(..) => Op::List,
        }
    }

    fn name(&self) -> &str {
        match self {
            Request::Get(key, _) | Request::Put(key, _) | Request::Head(key) => key.as_str(),
            Request::Delete(keys) => keys.first().map_or("", Key::as_str),
            Request::List(prefix, ..) => prefix,
        }
    }

    fn what(&self, world: &World) -> What {
        match self {
            Request::Get(key, range) => What::get(key, *range),
            Request::Put(key, body) => What::put(key, &world.opened(key, body)),
            Request::Delete(_) => What::Delete,
            Request::Head(_) => What::HeadEpoch,
            Request::List(prefix, ..) => What::list(prefix),
        }
    }

    fn error(&self, kind: StoreErrorKind) -> StoreError {
        StoreError::new(kind, self.op(), self.name().to_owned(), "simulated".to_owned())
    }
}

impl Wire {
    async fn request(&self, request: Request) -> StoreResult<Reply> {
        self.process.pass().await;
        let what = request.what(&self.world);
        let fate = self.world.draw(&self.process, what);
        self.world.trace(|| format!("{} {what:?} {} {fate:?}", self.process.pid, request.name()));
        for _ in 0..fate.turns {
            tokio::task::yield_now().await;
        }
        let reply = match fate.fault {
            None => self.carry(&request, &fate).await,
            Some(fault) => self.suffer(fault, &request, &fate).await,
        };
        tokio::time::sleep(fate.reply).await;
        self.process.pass().await;
        reply
    }

    /// The request travels and takes effect, whether its process lives on or not, if the wire
    /// has it already.
    async fn carry(&self, request: &Request, fate: &Fate) -> StoreResult<Reply> {
        if !fate.detached {
            tokio::time::sleep(fate.travel).await;
            self.process.alive().await;
            return self.world.effect(request);
        }
        let (wire, request, travel) = (self.clone(), request.clone(), fate.travel);
        let task = tokio::spawn(async move {
            tokio::time::sleep(travel).await;
            wire.world.effect(&request)
        });
        task.await.expect("effects do not panic")
    }

    /// The request takes effect a while from now, and nobody hears of it.
    fn send_late(&self, request: &Request, fate: &Fate) {
        let (wire, request, late) = (self.clone(), request.clone(), fate.late);
        tokio::spawn(async move {
            tokio::time::sleep(late).await;
            wire.world.trace(|| format!("late: {} {}", wire.process.pid, request.name()));
            let _ = wire.world.effect(&request);
        });
    }

    async fn suffer(&self, fault: Fault, request: &Request, fate: &Fate) -> StoreResult<Reply> {
        let refuse = |kind| Err(request.error(kind));
        match fault {
            Fault::SlowRequest => {
                tokio::time::sleep(fate.slow).await;
                self.carry(request, fate).await
            }
            Fault::SlowReply => {
                let reply = self.carry(request, fate).await;
                tokio::time::sleep(fate.slow).await;
                reply
            }
            Fault::Unavailable | Fault::CutOff | Fault::StoreDown => {
                tokio::time::sleep(fate.travel).await;
                refuse(StoreErrorKind::Unavailable)
            }
            Fault::Throttled => refuse(StoreErrorKind::Throttled),
            Fault::Denied => refuse(StoreErrorKind::Denied),
            Fault::Swallowed => pending().await,
            Fault::LostReply => {
                let _ = self.carry(request, fate).await;
                refuse(StoreErrorKind::Unavailable)
            }
            Fault::Late => {
                self.send_late(request, fate);
                pending().await
            }
            Fault::Twice => {
                let reply = self.carry(request, fate).await;
                self.send_late(request, fate);
                reply
            }
            Fault::Truncated | Fault::Flipped => {
                let reply = self.carry(request, fate).await?;
                Ok(damaged(reply, fault, fate))
            }
            Fault::Stale => {
                let reply = self.carry(request, fate).await?;
                Ok(stale(reply))
            }
            Fault::KilledBefore => self.die().await,
            Fault::KilledAfter => {
                let _ = self.world.effect(request);
                self.die().await
            }
            Fault::KilledOnTheWire => {
                self.send_late(request, fate);
                self.die().await
            }
            Fault::PausedBefore => {
                self.world.pause(&self.process, fate.slow);
                self.process.pass().await;
                self.carry(request, fate).await
            }
            Fault::PausedAfter => {
                let reply = self.carry(request, fate).await;
                self.world.pause(&self.process, fate.slow);
                reply
            }
            Fault::Stuck | Fault::DiskFailed | Fault::DiskGone | Fault::PowerCut => {
                unreachable!("these happen to disks")
            }
        }
    }

    async fn die(&self) -> StoreResult<Reply> {
        self.world.kill(&self.process);
        pending().await
    }
}

fn damaged(reply: Reply, fault: Fault, fate: &Fate) -> Reply {
    let Reply::Bytes(bytes) = reply else { return reply };
    if bytes.is_empty() {
        return Reply::Bytes(bytes);
    }
    // Half of the time where a header's records are, if there is one.
    let records = 80..bytes.len().min(150);
    let at = match fate.draw >> 63 {
        0 if !records.is_empty() => records.start + (fate.draw % records.len() as u64) as usize,
        _ => (fate.draw % bytes.len() as u64) as usize,
    };
    if fault == Fault::Truncated {
        return Reply::Bytes(bytes.slice(..at));
    }
    let mut flipped = bytes.to_vec();
    flipped[at] ^= 1 << (fate.draw >> 32 & 7);
    Reply::Bytes(flipped.into())
}

/// The list as it was before the newest object came.
fn stale(reply: Reply) -> Reply {
    let Reply::Page(mut page) = reply else { return reply };
    page.objects.pop();
    Reply::Page(page)
}

fn wrong() -> ! {
    unreachable!("a reply of another kind than its request")
}

#[async_trait]
impl Store for Wire {
    fn url(&self) -> String {
        format!("sim://{}", self.process.pid)
    }

    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        match self.request(Request::Get(key.clone(), range)).await? {
            Reply::Bytes(bytes) => Ok(bytes),
            _ => wrong(),
        }
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        self.request(Request::Put(key.clone(), body)).await.map(drop)
    }

    async fn put(&self, _: &Key, _: Bytes) -> StoreResult<()> {
        self.world.violated("an object is put without create-if-absent");
        Ok(())
    }

    async fn delete(&self, keys: &[Key]) -> StoreResult<()> {
        self.request(Request::Delete(keys.to_vec())).await.map(drop)
    }

    async fn head(&self, key: &Key) -> StoreResult<ObjectInfo> {
        match self.request(Request::Head(key.clone())).await? {
            Reply::Info(info) => Ok(info),
            _ => wrong(),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> StoreResult<ListPage> {
        let request = Request::List(prefix.to_owned(), after.cloned(), limit);
        match self.request(request).await? {
            Reply::Page(page) => Ok(page),
            _ => wrong(),
        }
    }
}
