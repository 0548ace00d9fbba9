//! Changing the objects of a mirrored volume, and looking which there are. Their bytes are read in [`reads`](super::reads).

use super::chain::{Halt, missing_is_away, offer};
use super::mirrored::{AGAIN, Held, Mirrored};
use crate::format::keys;
use crate::format::mirror::{MirrorState, Twin};
use crate::format::stores::StoreId;
use crate::spread::Asker;
use crate::store::{
    GetRange, Key, ListPage, ObjectInfo, Op, Store, StoreError, StoreErrorKind, StoreResult,
};
use crate::units::Epoch;
use bytes::Bytes;
use std::sync::Arc;
use tokio::time::sleep;

/// What came of a create.
#[derive(Debug)]
enum Put {
    Done,
    /// Somebody else's object is there, and now in every copy.
    Taken,
}

impl Mirrored {
    /// Makes a request by the newest state that is known, and again whenever there is a newer one.
    pub(super) async fn by_state<T, F>(
        &self,
        asker: Asker,
        looks: impl Fn(&Result<T, Halt>) -> bool,
        request: impl Fn(Arc<MirrorState>) -> F,
    ) -> StoreResult<T>
    where
        F: Future<Output = Result<T, Halt>>,
    {
        loop {
            let state = self.known();
            let number = state.number;
            let answer = tokio::select! {
                biased;
                () = self.changed(number) => continue,
                answer = request(state.clone()) => answer,
            };
            // By a newer one, its copies may be called otherwise.
            if self.known().number != number {
                continue;
            }
            let is_answer = !matches!(answer, Err(Halt::Away(..)));
            let halt = match is_answer && looks(&answer) {
                true => match self.is_newest(asker, &state).await {
                    Ok(true) => return answer.map_err(Halt::into_error),
                    Ok(false) => match self.look_again(asker).await {
                        Err(e) if asker == Asker::Setup => return Err(e),
                        Err(_) => {
                            sleep(AGAIN).await;
                            continue;
                        }
                        Ok(()) => continue,
                    },
                    Err(halt) => halt,
                },
                false => match answer {
                    Ok(answer) => return Ok(answer),
                    Err(halt) => halt,
                },
            };
            self.halted(asker, &state, halt).await?;
        }
    }

    /// Whether an object is there, and its size.
    pub async fn head(&self, asker: Asker, key: &Key) -> StoreResult<ObjectInfo> {
        let request = |state: Arc<MirrorState>| async move {
            let twin = self.decides(&state);
            let name = self.copy(asker, twin).await?.read(key).map_err(Halt::Failed)?;
            let head = |store: Arc<dyn Store>| {
                let name = &name;
                async move { store.head(name).await }
            };
            self.at(asker, twin.store, head).await
        };
        let info = self.by_state(asker, |_| true, request).await?;
        self.rely(asker, key);
        Ok(ObjectInfo { key: key.clone(), ..info })
    }

    /// One page of its objects.
    pub async fn list(
        &self,
        asker: Asker,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> StoreResult<ListPage> {
        let request = |state: Arc<MirrorState>| async move {
            let twin = self.decides(&state);
            let copy = self.copy(asker, twin).await?;
            let list = |store: Arc<dyn Store>| {
                let copy = &copy;
                async move { copy.list(&*store, prefix, after, limit).await.map_err(missing_is_away) }
            };
            self.at(asker, twin.store, list).await
        };
        self.by_state(asker, |_| true, request).await
    }

    /// Creates an object in every copy.
    pub async fn put(self: &Arc<Self>, asker: Asker, key: &Key, body: &Bytes) -> StoreResult<()> {
        let claims = keys::parse_epoch(self.id, key);
        if claims.is_some() {
            self.take(asker).await?;
        }
        let slot = keys::parse_slot(self.id, key).map(|(_, epoch)| epoch);
        let begins = slot.is_some() && slot == self.held().epoch;
        if slot.is_some() && self.held().opening {
            self.complete(asker).await?;
        }
        let looks = |answer: &Result<Put, Halt>| !begins || answer.is_err();
        let request = |state: Arc<MirrorState>| async move {
            let _under_way = self.under_way.read().await;
            self.put_by(asker, &state, key, body).await
        };
        let put = self.by_state(asker, looks, request).await?;
        if let Put::Taken = put {
            let (object, text) = (key.to_string(), "an object of that name is there");
            return Err(StoreError::new(StoreErrorKind::AlreadyExists, Op::Put, object, text));
        }
        if let Some(epoch) = claims {
            self.claimed(epoch);
        }
        if begins {
            self.begun();
        }
        Ok(())
    }

    fn claimed(self: &Arc<Self>, epoch: Epoch) {
        let mut held = self.held();
        (held.epoch, held.opening) = (Some(epoch), true);
    }

    /// The owner by the claim that is called so has opened the volume: behind its fence, and with all that it has read.
    pub async fn opened(self: &Arc<Self>, asker: Asker, claim: &Key) -> StoreResult<()> {
        let is_its = |held: &Held| held.opening && held.epoch == keys::parse_epoch(self.id, claim);
        if is_its(&self.held()) {
            self.complete(asker).await?;
            self.begun();
        }
        Ok(())
    }

    /// It goes on from what is in all copies: from now on it lets stores join.
    fn begun(self: &Arc<Self>) {
        let mut held = self.held();
        if std::mem::take(&mut held.opening) {
            held.relied.clear();
            if let Some(term) = held.term {
                super::resync::start(self, term);
            }
        }
    }

    async fn put_by(
        &self,
        asker: Asker,
        state: &MirrorState,
        key: &Key,
        body: &Bytes,
    ) -> Result<Put, Halt> {
        let mut body = body.clone();
        let mut put = Put::Done;
        for (nth, twin) in state.written().enumerate() {
            let Some(there) = self.put_at(asker, twin, key, &body).await? else { continue };
            if nth == 0 {
                // It is refused by what everybody has to see.
                (body, put) = (there, Put::Taken);
            } else if state.in_sync.contains(&twin) {
                let text = format!("store {} has another object of that name", twin.store);
                let e = StoreError::new(StoreErrorKind::Invalid, Op::Put, key.to_string(), text);
                return Err(Halt::Failed(e));
            }
            // What differs in a copy that joins is put anew there before it counts.
        }
        Ok(put)
    }

    pub(super) async fn put_at(
        &self,
        asker: Asker,
        twin: Twin,
        key: &Key,
        body: &Bytes,
    ) -> Result<Option<Bytes>, Halt> {
        let copy = self.copy(asker, twin).await?;
        let name = copy.created(key).map_err(Halt::Failed)?;
        let put = |store: Arc<dyn Store>| {
            let name = &name;
            async move { offer(&*store, name, body).await }
        };
        self.at(asker, twin.store, put).await
    }

    /// Brings what it builds upon to every copy.
    async fn complete(&self, asker: Asker) -> StoreResult<()> {
        // They are relied upon until all that is done: somebody else may put a slot meanwhile.
        let relied = self.held().relied.clone();
        for key in &relied {
            let request = |state: Arc<MirrorState>| async move {
                for twin in state.written().skip(1) {
                    let copy = self.copy(asker, twin).await?;
                    let name = copy.read(key).map_err(Halt::Failed)?;
                    let head = |store: Arc<dyn Store>| {
                        let name = &name;
                        async move { store.head(name).await }
                    };
                    match self.at(asker, twin.store, head).await {
                        Err(Halt::Failed(e)) if e.kind == StoreErrorKind::NotFound => {}
                        other => {
                            other?;
                            continue;
                        }
                    }
                    match self.get_at(asker, state.in_sync[0], key, GetRange::All).await {
                        Err(Halt::Failed(e)) if e.kind == StoreErrorKind::NotFound => {}
                        there => {
                            self.put_at(asker, twin, key, &there?).await?;
                        }
                    }
                }
                Ok(())
            };
            self.by_state(asker, |_| true, request).await?;
        }
        self.held().relied.retain(|key| !relied.contains(key));
        Ok(())
    }

    /// Deletes objects in every copy, in the one that decides last.
    pub async fn delete(&self, asker: Asker, keys: &[Key]) -> StoreResult<()> {
        let request = |state: Arc<MirrorState>| async move {
            let _under_way = self.under_way.read().await;
            for twin in state.written().rev() {
                self.delete_at(asker, twin, keys).await?;
            }
            Ok(())
        };
        self.by_state(asker, |_| true, request).await
    }

    pub(super) async fn delete_at(
        &self,
        asker: Asker,
        twin: Twin,
        keys: &[Key],
    ) -> Result<(), Halt> {
        let copy = self.copy(asker, twin).await?;
        let mut names = Vec::new();
        for key in keys {
            names.extend(copy.all(key).map_err(Halt::Failed)?);
        }
        for names in names.chunks(crate::store::MAX_PAGE) {
            self.remove(asker, twin.store, names).await?;
        }
        Ok(())
    }

    async fn remove(&self, asker: Asker, store: StoreId, names: &[Key]) -> Result<(), Halt> {
        let delete = |store: Arc<dyn Store>| async move {
            store.delete(names).await.map_err(missing_is_away)
        };
        self.at(asker, store, delete).await
    }

    /// Deletes what is left of a volume that is removed, but for its states, or, if it is not `described` any more, with them. What a store that is
    /// away has, stays there.
    pub async fn erase(&self, asker: Asker, described: bool) -> StoreResult<()> {
        let state = self.known();
        for store in &state.replicas {
            let erase = |at: Arc<dyn Store>| async move {
                let all = crate::store::list_all(&*at, &keys::mirror(self.id)).await?;
                let names = all.into_iter().map(|object| object.key);
                let is_state = |name: &Key| keys::parse_mirror_state(self.id, name).is_some();
                let names: Vec<Key> = names.filter(|name| !described || !is_state(name)).collect();
                for names in names.chunks(crate::store::MAX_PAGE) {
                    at.delete(names).await?;
                }
                Ok(())
            };
            match self.at(asker, *store, erase).await {
                Err(Halt::Away(..)) if state.written().all(|twin| twin.store != *store) => {
                    tracing::warn!("what store {store} has of volume {} stays there", self.id);
                }
                erased => erased.map_err(Halt::into_error)?,
            }
        }
        Ok(())
    }
}
