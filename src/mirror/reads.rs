//! Reading the bytes of a mirrored volume's objects.
//!
//! What may have changed is asked of the copy that decides. What is *settled* never changes: any complete copy may answer, and
//! the faster one is asked ([`pace`](super::pace)), the other one as well where that takes long. What the other one says it does
//! not have, or fails to give, is asked of the one that decides: an object is there first, and goes from there last.

use super::Asked;
use super::chain::Halt;
use super::copy::is_bulk;
use super::mirrored::Mirrored;
use super::pace::{Choice, LATE, Pace};
use crate::format::mirror::{MirrorState, Twin};
use crate::format::stores::StoreId;
use crate::mutant::{self, Mutant};
use crate::spread::Asker;
use crate::store::{GetRange, Key, Store, StoreResult};
use bytes::Bytes;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::time::{Instant, sleep};

impl Mirrored {
    fn asks(&self, asked: Asked) -> bool {
        self.asked.load(Relaxed) == asked as u8
    }

    /// The copy that is asked first.
    pub(super) fn decides(&self, state: &MirrorState) -> Twin {
        match self.asks(Asked::Second) {
            true => state.in_sync[state.in_sync.len() - 1],
            false => state.in_sync[0],
        }
    }

    pub(super) async fn get_at(
        &self,
        asker: Asker,
        twin: Twin,
        key: &Key,
        range: GetRange,
    ) -> Result<Bytes, Halt> {
        let name = self.copy(asker, twin).await?.read(key).map_err(Halt::Failed)?;
        let get = |store: Arc<dyn Store>| {
            let name = &name;
            async move { store.get(name, range).await }
        };
        self.at(asker, twin.store, get).await
    }

    /// The same, and notes how long it took. What waits for others to go first says nothing of its store.
    async fn timed(
        &self,
        asker: Asker,
        twin: Twin,
        key: &Key,
        range: GetRange,
    ) -> Result<Bytes, Halt> {
        let begun = Instant::now();
        let answer = self.get_at(asker, twin, key, range).await;
        if answer.is_ok() && asker != Asker::Background {
            self.paces().answered(twin.store, range, begun.elapsed());
        }
        answer
    }

    /// Bytes of an object. See the module above for which copy gives them.
    pub async fn get(&self, asker: Asker, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        let is_part = matches!(range, GetRange::Part { offset: 1.., .. });
        let settled = self.is_settled(key, range);
        let looks = |answer: &Result<Bytes, Halt>| answer.is_err() || !settled;
        let request = |state: Arc<MirrorState>| async move {
            if is_part && mutant::on(Mutant::ReplicaStaleRead) {
                let twin = Twin { store: StoreId::HOME, generation: 1 };
                return self.get_at(asker, twin, key, range).await;
            }
            let decides = self.decides(&state);
            let other = state.in_sync.get(1).filter(|other| **other != decides);
            match other {
                None => self.get_at(asker, decides, key, range).await,
                Some(other) if settled && self.asks(Asked::Either) => {
                    self.get_settled(asker, (decides, *other), key, range).await
                }
                Some(other) => self.get_first(asker, (decides, *other), key, range).await,
            }
        };
        let bytes = self.by_state(asker, looks, request).await?;
        self.rely(asker, key);
        Ok(bytes)
    }

    /// Of the copy that decides; of the other one if that is late.
    async fn get_first(
        &self,
        asker: Asker,
        (decides, other): (Twin, Twin),
        key: &Key,
        range: GetRange,
    ) -> Result<Bytes, Halt> {
        let mut first = pin!(self.get_at(asker, decides, key, range));
        tokio::select! {
            biased;
            answer = &mut first => match answer {
                Err(Halt::Away(..)) => self.get_at(asker, other, key, range).await,
                answer => answer,
            },
            Some(answer) = async {
                sleep(LATE).await;
                self.get_at(asker, other, key, range).await.ok()
            } => Ok(answer),
        }
    }

    /// Of the faster one of two that are complete; of the other one if that is late, or fails.
    async fn get_settled(
        &self,
        asker: Asker,
        (decides, other): (Twin, Twin),
        key: &Key,
        range: GetRange,
    ) -> Result<Bytes, Halt> {
        let Choice { ask, late } = self.paces().choose(decides.store, other.store, range);
        let (ask, spare) = if ask == decides.store { (decides, other) } else { (other, decides) };
        // Nobody waits for it: two requests would only take each other's turns.
        let late = if asker == Asker::Background { LATE } else { late };
        let begun = Instant::now();
        let outlasted = || {
            if asker != Asker::Background {
                self.paces().outlasted(ask.store, range, begun.elapsed());
            }
        };
        let mut first = pin!(self.timed(asker, ask, key, range));
        tokio::select! {
            biased;
            answer = &mut first => match answer {
                Err(Halt::Failed(e)) if ask == decides => Err(Halt::Failed(e)),
                Err(_) => {
                    outlasted();
                    self.timed(asker, spare, key, range).await
                }
                answer => answer,
            },
            Some(answer) = async {
                sleep(late).await;
                self.timed(asker, spare, key, range).await.ok()
            } => {
                outlasted();
                Ok(answer)
            }
        }
    }

    /// What each store of the volume has done for its readers here.
    pub fn pace(&self) -> Vec<Pace> {
        let (state, paces) = (self.known(), self.paces());
        let is_in_sync = |store: StoreId| state.in_sync.iter().any(|twin| twin.store == store);
        state.replicas.iter().map(|store| paces.of(*store, is_in_sync(*store))).collect()
    }

    /// What an owner's map names does not change.
    pub(super) fn is_settled(&self, key: &Key, range: GetRange) -> bool {
        let is_part = matches!(range, GetRange::Part { offset: 1.., .. });
        is_bulk(self.id, key) && (is_part || self.is_steady())
    }

    /// It has begun its own term.
    fn is_steady(&self) -> bool {
        let held = self.held();
        held.epoch.is_some() && !held.opening
    }

    /// What an owner goes on from is read before its device is there.
    pub(super) fn rely(&self, asker: Asker, key: &Key) {
        let mut held = self.held();
        if held.opening && asker == Asker::Setup {
            held.relied.insert(key.clone());
        }
    }
}
