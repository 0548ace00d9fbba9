//! A mirrored volume as one process knows it: the chain of its states. See the module above for why.

use super::chain::{Halt, newest, newest_number, offer};
use super::copy::Copy;
use super::pace::Paces;
use crate::format::VolumeId;
use crate::format::keys;
use crate::format::mirror::{MirrorState, REPLICAS, Twin};
use crate::format::pool::encode_json;
use crate::format::stores::StoreId;
use crate::mutant::{self, Mutant};
use crate::spread::{Asker, Spread};
use crate::store::{Key, Op, Store, StoreError, StoreErrorKind, StoreResult, address};
use crate::units::Epoch;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::pin::pin;
use std::sync::atomic::AtomicU8;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

/// Waits before something is asked once more.
pub(super) const AGAIN: Duration = Duration::from_millis(250);

/// What this process is to the volume.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// It took the chain by a state of this term.
    pub term: Option<Uuid>,
    /// The epoch that it claimed.
    pub epoch: Option<Epoch>,
    /// It has claimed an epoch, and not begun its own slots.
    pub opening: bool,
    /// What it has read meanwhile.
    pub relied: BTreeSet<Key>,
}

/// A mirrored volume.
pub(super) struct Mirrored {
    pub id: VolumeId,
    pub spread: Arc<Spread>,
    patience: Duration,
    /// What reads ask, an [`Asked`](super::Asked).
    pub asked: Arc<AtomicU8>,
    known: watch::Sender<Arc<MirrorState>>,
    copies: Mutex<BTreeMap<Twin, Copy>>,
    /// Held while the chain is read or gets a state. What was offered last as an author: it may come late, so nothing else
    /// is offered by that number.
    chain: tokio::sync::Mutex<Option<MirrorState>>,
    held: Mutex<Held>,
    /// Held for reading by whatever changes objects.
    pub under_way: tokio::sync::RwLock<()>,
    /// When a store last answered.
    answered: Mutex<BTreeMap<StoreId, Instant>>,
    paces: Mutex<Paces>,
}

impl fmt::Debug for Mirrored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mirrored({}, {:?})", self.id, self.known())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mirrored {
    /// The volume, of which this state is known.
    pub fn new(
        spread: &Arc<Spread>,
        patience: Duration,
        asked: &Arc<AtomicU8>,
        state: MirrorState,
    ) -> Arc<Mirrored> {
        Arc::new(Mirrored {
            id: state.volume,
            spread: spread.clone(),
            patience,
            asked: asked.clone(),
            known: watch::Sender::new(Arc::new(state)),
            copies: Mutex::default(),
            chain: tokio::sync::Mutex::default(),
            held: Mutex::default(),
            under_way: tokio::sync::RwLock::default(),
            answered: Mutex::default(),
            paces: Mutex::default(),
        })
    }

    /// The volume that is described in the home store, which is one of its two.
    ///
    /// # Errors
    /// Those of the stores; unavailable, where the newest state cannot be known.
    pub async fn find(
        (spread, asker, patience): (&Arc<Spread>, Asker, Duration),
        id: VolumeId,
        asked: &Arc<AtomicU8>,
    ) -> StoreResult<Arc<Mirrored>> {
        let home = spread.home(asker);
        let Some(state) = newest(&**home, id).await? else {
            let object = address(&home.url(), &keys::mirror_states(id));
            let text = "no state of the volume is there: the store was wiped, or is not mounted";
            return Err(StoreError::new(StoreErrorKind::Invalid, Op::List, object, text));
        };
        let volume = Mirrored::new(spread, patience, asked, state);
        volume.look_again(asker).await?;
        Ok(volume)
    }

    /// A new volume, in the home store and another one.
    ///
    /// # Errors
    /// Those of the stores.
    pub async fn begin(
        (spread, asker, patience): (&Arc<Spread>, Asker, Duration),
        id: VolumeId,
        other: StoreId,
        asked: &Arc<AtomicU8>,
    ) -> StoreResult<Arc<Mirrored>> {
        let state = MirrorState::first(id, [StoreId::HOME, other], Uuid::new_v4());
        let volume = Mirrored::new(spread, patience, asked, state.clone());
        for store in state.decided_by() {
            volume.offered(asker, store, &state).await.map_err(Halt::into_error)?;
        }
        Ok(volume)
    }

    /// The newest state that is known here.
    pub fn known(&self) -> Arc<MirrorState> {
        self.known.borrow().clone()
    }

    /// Returns when another state than `number` is known.
    pub async fn changed(&self, number: u32) {
        let mut known = self.known.subscribe();
        // The sender lives as long as this.
        let _ = known.wait_for(|state| state.number != number).await;
    }

    pub fn held(&self) -> MutexGuard<'_, Held> {
        lock(&self.held)
    }

    pub fn paces(&self) -> MutexGuard<'_, Paces> {
        lock(&self.paces)
    }

    fn adopt(&self, state: MirrorState) {
        self.known.send_if_modified(|known| {
            let is_newer = state != **known;
            if is_newer {
                *known = Arc::new(state);
            }
            is_newer
        });
    }

    /// Whether this process took the chain last, as far as it knows.
    pub fn is_author(&self) -> bool {
        self.held().term == Some(self.known().term)
    }

    async fn member(&self, asker: Asker, id: StoreId) -> StoreResult<Arc<dyn Store>> {
        // One that took the place of another since.
        if !self.spread.version().has(id) {
            self.spread.refresh(asker).await?;
        }
        self.spread.member(asker, id).await
    }

    /// A request at one store, until it is answered, or the store has failed for too long.
    pub async fn at<T, F>(
        &self,
        asker: Asker,
        id: StoreId,
        request: impl Fn(Arc<dyn Store>) -> F,
    ) -> Result<T, Halt>
    where
        F: Future<Output = StoreResult<T>>,
    {
        let begun = Instant::now();
        let limit = || {
            let answered = lock(&self.answered).get(&id).copied();
            answered.map_or(begun, |answered| answered.max(begun)) + self.patience
        };
        loop {
            let mut attempt = pin!(async { request(self.member(asker, id).await?).await });
            let error = loop {
                let until = limit();
                tokio::select! {
                    biased;
                    answer = &mut attempt => match answer {
                        Err(e) if e.kind.is_transient() || e.kind == StoreErrorKind::Denied => break e,
                        // A place that is gone says that there is nothing: that is no sign of life.
                        Err(e) => return Err(Halt::Failed(e)),
                        Ok(answer) => {
                            lock(&self.answered).insert(id, Instant::now());
                            return Ok(answer);
                        }
                    },
                    () = sleep_until(until) => {
                        if limit() > until {
                            continue;
                        }
                        let text = format!("no answer within {:?}", self.patience);
                        let object = keys::mirror(self.id);
                        let e = StoreError::new(StoreErrorKind::Unavailable, Op::Get, object, text);
                        return Err(Halt::Away(id, e));
                    }
                }
            };
            if limit() <= Instant::now() + AGAIN {
                return Err(Halt::Away(id, error));
            }
            sleep(AGAIN).await;
        }
    }

    /// A copy, by its names. What one that is not complete has by names of its own is not known yet.
    pub async fn copy(&self, asker: Asker, twin: Twin) -> Result<Copy, Halt> {
        if twin.generation == 1 || !self.known().in_sync.contains(&twin) {
            return Ok(Copy::new(self.id, twin));
        }
        if let Some(copy) = lock(&self.copies).get(&twin) {
            return Ok(copy.clone());
        }
        let open = |store: Arc<dyn Store>| async move { Copy::open(&*store, self.id, twin).await };
        let copy = self.at(asker, twin.store, open).await?;
        lock(&self.copies).insert(twin, copy.clone());
        Ok(copy)
    }

    /// Offers a state to a store; false: it has another one of that number.
    async fn offered(
        &self,
        asker: Asker,
        store: StoreId,
        state: &MirrorState,
    ) -> Result<bool, Halt> {
        let (key, body) = (keys::mirror_state(self.id, state.number), encode_json(state).into());
        let there = self.at(asker, store, |store| {
            let (key, body) = (&key, &body);
            async move { offer(&*store, key, body).await }
        });
        Ok(there.await?.is_none())
    }

    /// The newest state that counts, brought to all copies that it names.
    async fn read(&self, asker: Asker) -> Result<MirrorState, Halt> {
        let mut known = (*self.known()).clone();
        loop {
            let mut found = Vec::new();
            for store in &known.replicas {
                let look = |at: Arc<dyn Store>| async move { newest(&*at, self.id).await };
                found.push(match self.at(asker, *store, look).await {
                    Ok(Some(state)) => Ok(state),
                    Ok(None) => Err(Halt::Away(
                        *store,
                        self.error(
                            "it knows no state of the volume: it was wiped, or is not mounted",
                        ),
                    )),
                    Err(Halt::Failed(e)) => return Err(Halt::Failed(e)),
                    away => away.and_then(|_| Err(Halt::Failed(self.error("it has no answer")))),
                });
            }
            // Another store has taken the place of one since.
            let newest = found.iter().flatten().max_by_key(|state| state.number);
            let is_elsewhere = |newer: &&MirrorState| {
                newer.number > known.number && newer.replicas != known.replicas
            };
            if let Some(newer) = newest.filter(is_elsewhere) {
                known = newer.clone();
                continue;
            }
            let stores = &known.replicas;
            let state = match <[_; REPLICAS]>::try_from(found) {
                Ok([Ok(one), Ok(two)]) => match self.agreed(asker, stores, [&one, &two]).await? {
                    Some(state) => state,
                    None => continue,
                },
                // What calls itself complete alone is; anything else needs the other one.
                Ok([Ok(there), Err(away)]) => self.alone(stores[0], there, away)?,
                Ok([Err(away), Ok(there)]) => self.alone(stores[1], there, away)?,
                Ok([Err(away), Err(_)]) => return Err(away),
                Err(_) => return Err(Halt::Failed(self.error("it is not in two stores"))),
            };
            for twin in &state.in_sync {
                self.offered(asker, twin.store, &state).await?;
            }
            return Ok(state);
        }
    }

    fn alone(&self, at: StoreId, there: MirrorState, away: Halt) -> Result<MirrorState, Halt> {
        let is_alone = there.in_sync.iter().all(|twin| twin.store == at);
        if mutant::on(Mutant::ReplicaTakenAlone) {
            let mut there = there;
            there.in_sync.retain(|twin| twin.store == at);
            return if there.in_sync.is_empty() { Err(away) } else { Ok(there) };
        }
        if is_alone { Ok(there) } else { Err(away) }
    }

    /// The one of two newest states that counts. `None`: one was brought to where it lacked, look again.
    async fn agreed(
        &self,
        asker: Asker,
        stores: &[StoreId],
        [one, two]: [&MirrorState; REPLICAS],
    ) -> Result<Option<MirrorState>, Halt> {
        let newest = one.number.max(two.number);
        let there = [(stores[0], one), (stores[1], two)];
        let at =
            |store: StoreId| there.iter().find(|(at, _)| *at == store).map(|(_, state)| *state);
        let offers = [one, two].into_iter().filter(|state| state.number == newest);
        for state in offers.clone() {
            if state.decided_by().all(|store| at(store) == Some(state)) {
                return Ok(Some(state.clone()));
            }
        }
        for state in offers {
            let lacks = |store: &StoreId| at(*store) != Some(state);
            let lacking: Vec<StoreId> = state.decided_by().filter(lacks).collect();
            let is_behind = |store: &StoreId| at(*store).is_none_or(|other| other.number < newest);
            if let (true, Some(store)) = (lacking.iter().all(is_behind), lacking.first()) {
                self.offered(asker, *store, state).await?;
                return Ok(None);
            }
        }
        let text = format!("the stores have different states {newest} of the volume's copies");
        Err(Halt::Failed(StoreError { kind: StoreErrorKind::Invalid, ..self.error(&text) }))
    }

    fn error(&self, text: &str) -> StoreError {
        StoreError::new(StoreErrorKind::Unavailable, Op::Get, keys::mirror_states(self.id), text)
    }

    /// Looks which state is the newest.
    ///
    /// # Errors
    /// Unavailable, where that cannot be known.
    pub async fn look_again(&self, asker: Asker) -> StoreResult<()> {
        let _chain = self.chain.lock().await;
        let state = self.read(asker).await.map_err(|halt| self.refused(halt))?;
        self.adopt(state);
        Ok(())
    }

    /// The newest state there is.
    ///
    /// # Errors
    /// As above.
    pub async fn present(&self, asker: Asker) -> StoreResult<Arc<MirrorState>> {
        self.look_again(asker).await?;
        Ok(self.known())
    }

    /// Whether no state follows this one, and the copies in sync are those that they were.
    pub async fn is_newest(&self, asker: Asker, state: &MirrorState) -> Result<bool, Halt> {
        let look = |twin: Twin| async move {
            let number =
                |store: Arc<dyn Store>| async move { newest_number(&*store, self.id).await };
            match self.at(asker, twin.store, number).await? {
                Some(number) if number >= state.number => Ok(number == state.number),
                _ => {
                    let text =
                        "it has lost what it knew of the volume: it was wiped, or is not mounted";
                    Err(Halt::Away(twin.store, self.error(text)))
                }
            }
        };
        let looks = state.in_sync.iter().map(|twin| look(*twin));
        let all = futures::future::try_join_all(looks).await?;
        Ok(all.into_iter().all(|newest| newest))
    }

    /// Takes the chain, so that nobody else leaves out a store from now on.
    ///
    /// # Errors
    /// Unavailable: not all copies in sync are reached.
    pub async fn take(&self, asker: Asker) -> StoreResult<()> {
        let _chain = self.chain.lock().await;
        'again: loop {
            let state = self.read(asker).await.map_err(|halt| self.refused(halt))?;
            let next = state.taken(Uuid::new_v4());
            for twin in &next.in_sync {
                let offered = self.offered(asker, twin.store, &next).await;
                if !offered.map_err(|halt| self.refused(halt))? {
                    continue 'again;
                }
            }
            *self.held() = Held { term: Some(next.term), ..Held::default() };
            self.adopt(next);
            return Ok(());
        }
    }

    fn refused(&self, halt: Halt) -> StoreError {
        match halt {
            Halt::Failed(e) => e,
            Halt::Away(store, e) => {
                let detail = format!(
                    "store {store} is away, and the volume may have been written to there alone: {}",
                    e.detail
                );
                StoreError { detail, ..e }
            }
        }
    }

    /// Offers the state that follows `state`, if this process may: false, if not, or if another one came first.
    pub async fn advance(
        &self,
        asker: Asker,
        state: &MirrorState,
        next: MirrorState,
    ) -> Result<bool, Halt> {
        let mut offered = self.chain.lock().await;
        if *self.known() != *state || !self.is_author() {
            return Ok(false);
        }
        let next = match offered.take() {
            Some(before) if before.number == next.number => before,
            _ => next,
        };
        *offered = Some(next.clone());
        if mutant::on(Mutant::ReplicaLeftUnrecorded) && next.in_sync.len() < state.in_sync.len() {
            self.adopt(next);
            return Ok(true);
        }
        for store in next.decided_by() {
            if !self.offered(asker, store, &next).await? {
                let newest = self.read(asker).await?;
                self.adopt(newest);
                return Ok(false);
            }
        }
        let joined: Vec<StoreId> = next.in_sync.iter().map(|twin| twin.store).collect();
        self.adopt(next.clone());
        for store in joined {
            self.offered(asker, store, &next).await?;
        }
        Ok(true)
    }

    /// What to do about a request that has no answer: an error, or it is to be made again.
    ///
    /// # Errors
    /// The request's.
    pub async fn halted(&self, asker: Asker, state: &MirrorState, halt: Halt) -> StoreResult<()> {
        let (store, error) = match halt {
            Halt::Failed(e) => return Err(e),
            Halt::Away(store, e) => (store, e),
        };
        if self.known().number != state.number {
            return Ok(());
        }
        let can_leave = self.is_author() && state.written().any(|twin| twin.store == store);
        let left = match (can_leave, state.without(store, state.term)) {
            (true, Some(next)) => self.advance(asker, state, next).await,
            _ => self.look_again(asker).await.map(|()| false).map_err(Halt::Failed),
        };
        if matches!(left, Ok(true)) {
            tracing::warn!(
                "volume {} goes on without store {store}, which is not complete any more: {error}",
                self.id
            );
        }
        if self.known().number != state.number {
            return Ok(());
        }
        if asker == Asker::Setup {
            return Err(error);
        }
        sleep(AGAIN).await;
        Ok(())
    }
}
