//! The owner's side.

use super::{decide, decision_of};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::keys::{self, RequestId, RequestPart};
use crate::format::pool::encode_json;
use crate::format::request::{AnswerObject, Decision, RequestObject};
use crate::format::{SnapshotId, VolumeId};
use crate::mutant::{self, Mutant};
use crate::store::{Key, Store, StoreErrorKind, get_parsed, list_all};
use crate::units::Epoch;
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// How long what was answered stays: who asked has read it long before.
const KEEP: Duration = Duration::from_secs(3600);

/// Who carries orders out, for the owner of a volume.
#[async_trait]
pub trait Clerk: Send + Sync {
    /// Carries an order out. What it makes is called `token`. Returns what came of it.
    async fn carry_out(&self, order: &str, token: SnapshotId) -> String;

    /// What can be told of an order that a former owner took and did not answer, and that is not carried out any more.
    fn tell(&self, order: &str, token: SnapshotId) -> String;

    /// Whether this is the owner still, after everything that it has seen: a slot of the log is committed.
    async fn still_owns(&self) -> bool;
}

/// Where the owner of a term is asked.
pub struct Desk {
    store: Arc<dyn Store>,
    volume: VolumeId,
    epoch: Epoch,
    clerk: Arc<dyn Clerk>,
    clock: Arc<dyn Clock>,
    /// What former owners left was looked through.
    inherited: bool,
    /// The number that comes next.
    next: u32,
    /// Carried out, and not answered yet.
    unanswered: Option<(RequestId, String)>,
    /// What is over, and when that was noticed.
    over: VecDeque<(Instant, RequestId)>,
    /// The last look has failed.
    troubled: bool,
}

impl Desk {
    /// Of the owner of the term `epoch` of `volume`, for whom `clerk` works.
    pub fn new(
        store: Arc<dyn Store>,
        (volume, epoch): (VolumeId, Epoch),
        clerk: Arc<dyn Clerk>,
        clock: Arc<dyn Clock>,
    ) -> Desk {
        let (over, unanswered) = (VecDeque::new(), None);
        let (inherited, next, troubled) = (false, 0, false);
        Desk { store, volume, epoch, clerk, clock, inherited, next, unanswered, over, troubled }
    }

    /// Serves those who ask, until `ending` is true or the volume is lost to another owner. It looks `every` so
    /// often; one that is being carried out is answered first.
    pub async fn serve(mut self, every: Duration, mut ending: watch::Receiver<bool>) {
        loop {
            match self.round(&ending).await {
                Ok(true) => self.troubled = false,
                Ok(false) => return,
                Err(e) => {
                    if !std::mem::replace(&mut self.troubled, true) {
                        tracing::warn!(volume = %self.volume, "cannot hear who asks: {e}");
                    }
                }
            }
            tokio::select! {
                () = sleep(every) => {}
                _ = ending.wait_for(|ending| *ending) => return,
            }
        }
    }

    /// Serves all that are there. False: the volume is lost.
    async fn round(&mut self, ending: &watch::Receiver<bool>) -> Result<bool> {
        if !self.inherited {
            self.inherit().await?;
            self.inherited = true;
        }
        self.answer().await?;
        while !*ending.borrow() {
            let id = RequestId { epoch: self.epoch, number: self.next };
            let (key, mut ended) = (self.part(id, RequestPart::Asked), ending.clone());
            let found = tokio::select! {
                found = self.store.head(&key) => found,
                // Nothing is under way: an outage keeps nobody.
                _ = ended.wait_for(|ending| *ending) => return Ok(true),
            };
            match found {
                Ok(_) => {}
                Err(e) if e.kind == StoreErrorKind::NotFound => break,
                Err(e) => return Err(e.into()),
            }
            if !self.serve_one(id).await? {
                return Ok(false);
            }
        }
        self.clean().await?;
        Ok(true)
    }

    fn part(&self, id: RequestId, part: RequestPart) -> Key {
        keys::request(self.volume, id, part)
    }

    /// False: the volume is lost.
    async fn serve_one(&mut self, id: RequestId) -> Result<bool> {
        let asked = self.asked(id).await?;
        let wanted = match &asked {
            Some(_) => Decision::Taken { token: SnapshotId::from_random(rand::random()) },
            // What it wants, nobody knows.
            None => Decision::PassedOver { by: self.epoch },
        };
        let decided = match decide(&*self.store, (self.volume, id), wanted.clone()).await {
            _ if mutant::on(Mutant::RequestWithdrawnServed) => wanted,
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                tracing::warn!(volume = %self.volume, "request {id} is passed over: {e}");
                Decision::PassedOver { by: self.epoch }
            }
            decided => decided?,
        };
        // From here on it is not begun again.
        self.next += 1;
        let (Decision::Taken { token }, Some(asked)) = (decided, asked) else {
            self.over.push_back((Instant::now(), id));
            return Ok(true);
        };
        let (host, pid) = (&asked.host, asked.pid);
        tracing::info!(volume = %self.volume, "request {id} of process {pid} on host {host}");
        let reply = self.clerk.carry_out(&asked.order, token).await;
        if !mutant::on(Mutant::RequestAnsweredUnsure) && !self.clerk.still_owns().await {
            tracing::info!(volume = %self.volume, "request {id} is left to the next owner");
            return Ok(false);
        }
        self.unanswered = Some((id, reply));
        self.answer().await?;
        Ok(true)
    }

    /// What is asked; `None` where it cannot be read, or has gone.
    async fn asked(&self, id: RequestId) -> Result<Option<RequestObject>> {
        let key = self.part(id, RequestPart::Asked);
        let parsed = match get_parsed(&*self.store, &key, RequestObject::parse).await {
            Err(e) if e.kind == StoreErrorKind::NotFound => return Ok(None),
            parsed => parsed?,
        };
        let asked = parsed.map_err(|e| tracing::warn!("the request {key} is passed over: {e}"));
        Ok(asked.ok().filter(|asked| asked.key() == key))
    }

    /// Answers what is not answered yet.
    async fn answer(&mut self) -> Result<()> {
        let Some((id, reply)) = self.unanswered.clone() else { return Ok(()) };
        self.put_answer(id, reply).await?;
        self.unanswered = None;
        self.over.push_back((Instant::now(), id));
        Ok(())
    }

    async fn put_answer(&self, id: RequestId, reply: String) -> Result<()> {
        let now = self.clock.now_ms();
        let answer = AnswerObject::new((self.volume, id), (self.epoch, now), reply);
        match self.store.put_if_absent(&answer.key(), encode_json(&answer).into()).await {
            Ok(()) => Ok(()),
            // Another owner's, or it was put by an earlier attempt.
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Looks through what former owners left.
    async fn inherit(&mut self) -> Result<()> {
        let listed = list_all(&*self.store, &keys::requests(self.volume)).await?;
        let mut left: BTreeMap<RequestId, BTreeSet<RequestPart>> = BTreeMap::new();
        for (id, part) in
            listed.iter().filter_map(|object| keys::parse_request(self.volume, &object.key))
        {
            left.entry(id).or_default().insert(part);
        }
        left.retain(|id, _| id.epoch < self.epoch);
        for (id, parts) in left {
            if !parts.contains(&RequestPart::Answer) {
                self.settle(id, parts.contains(&RequestPart::Decision)).await?;
            }
            self.over.push_back((Instant::now(), id));
        }
        Ok(())
    }

    /// Ends a request to a former owner.
    async fn settle(&self, id: RequestId, is_decided: bool) -> Result<()> {
        let of = (self.volume, id);
        let decision = match is_decided {
            true => decision_of(&*self.store, of).await,
            false => {
                let passed = Decision::PassedOver { by: self.epoch };
                decide(&*self.store, of, passed).await.map(Some)
            }
        };
        let decision = match decision {
            // Nobody can tell any more: who asked is told so by the damage.
            Err(e) if e.kind() == ErrorKind::Corrupt => return Ok(()),
            decision => decision?,
        };
        let Some(Decision::Taken { token }) = decision else { return Ok(()) };
        let order = self.asked(id).await?.map(|asked| asked.order).unwrap_or_default();
        let reply = match mutant::on(Mutant::RequestServedAgain) {
            true => self.clerk.carry_out(&order, token).await,
            false => self.clerk.tell(&order, token),
        };
        self.put_answer(id, reply).await
    }

    /// Deletes what was over long ago, but for the newest of the term: the next asker counts on from that.
    async fn clean(&mut self) -> Result<()> {
        let newest = RequestId { epoch: self.epoch, number: self.next.saturating_sub(1) };
        let mut gone = Vec::new();
        let mut ids = 0;
        for (_, id) in self.over.iter().take_while(|(at, _)| at.elapsed() >= KEEP) {
            if *id != newest {
                gone.extend(RequestPart::ALL.map(|part| self.part(*id, part)));
            }
            ids += 1;
        }
        if !gone.is_empty() {
            self.store.delete(&gone).await.map_err(Error::from)?;
        }
        let newest = self.over.drain(..ids).rfind(|(_, id)| *id == newest);
        if let Some(newest) = newest {
            // It is the newest still: it is looked at again once there is another one.
            self.over.push_front(newest);
        }
        Ok(())
    }
}
