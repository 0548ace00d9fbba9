//! Making a copy complete that was left out. See the module above for why that is sound.
//!
//! Done by the owner of the volume, for as long as it is its owner. What keeps its name is only copied if it is missing or may be
//! another one: its size differs, or it is as short as a fence.

use super::chain::{Halt, missing_is_away, offer};
use super::copy::{Copy, is_bulk};
use super::mirrored::Mirrored;
use crate::format::keys;
use crate::format::mirror::{MirrorState, Twin};
use crate::mutant::{self, Mutant};
use crate::spread::{Asker, FENCE_MAX};
use crate::store::{GetRange, Key, MAX_PAGE, Store, StoreErrorKind, list_all};
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use uuid::Uuid;

/// How often it is looked whether a store is back.
const PROBE: Duration = Duration::from_secs(2);
/// Objects that are copied at a time.
const PARALLEL: usize = 4;

/// What was done to make a copy complete.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    copied: u64,
    bytes: u64,
    deleted: u64,
}

/// What one object of the copy in sync needs in the one that joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Nothing,
    /// It is not there.
    Missing,
    /// Another one may be there.
    Compared,
}

/// What an object of `size` bytes needs where one of the size `there` is. Pure.
fn need(size: u64, there: Option<u64>, keeps_name: bool) -> Need {
    match there {
        None => Need::Missing,
        Some(_) if mutant::on(Mutant::ReplicaStaleKept) => Need::Nothing,
        Some(there) if keeps_name && (there != size || size <= FENCE_MAX) => Need::Compared,
        Some(_) => Need::Nothing,
    }
}

/// Goes on for as long as this process is the owner by that term.
pub(super) fn start(volume: &Arc<Mirrored>, term: Uuid) {
    let volume = Arc::downgrade(volume);
    tokio::spawn(watch(volume, term));
}

async fn watch(volume: Weak<Mirrored>, term: Uuid) {
    loop {
        let Some(volume) = volume.upgrade() else { return };
        let state = volume.known();
        if state.term != term || !volume.is_author() {
            return;
        }
        if state.missing().is_some() {
            match volume.resync(&state).await {
                Ok(()) => {}
                Err(halt @ Halt::Away(..)) if state.joining.is_none() => {
                    tracing::debug!("a copy of volume {} waits: {halt:?}", volume.id);
                }
                Err(halt) => {
                    let known = volume.known();
                    if let Err(e) = volume.halted(Asker::Background, &known, halt).await {
                        tracing::warn!("a copy of volume {} is not complete: {e}", volume.id);
                    }
                }
            }
        }
        drop(volume);
        tokio::time::sleep(PROBE).await;
    }
}

impl Mirrored {
    /// Makes the missing copy complete, if its store is there.
    async fn resync(&self, state: &MirrorState) -> Result<(), Halt> {
        let asker = Asker::Background;
        let Some(store) = state.missing() else { return Ok(()) };
        // Another store may have taken its place since.
        if !self.is_newest(asker, state).await? {
            return self.look_again(asker).await.map_err(Halt::Failed);
        }
        let state = match state.joining {
            Some(_) => state.clone(),
            None => {
                let there = |at: Arc<dyn Store>| async move {
                    at.list(&keys::mirror_states(self.id), None, 1).await
                };
                let page = self.at(asker, store, there).await?;
                let Some(next) = state.joining(state.term).filter(|_| !page.objects.is_empty())
                else {
                    return Ok(());
                };
                if !self.advance(asker, state, next).await? {
                    return Ok(());
                }
                (*self.known()).clone()
            }
        };
        let (Some(to), Some(from)) = (state.joining, state.in_sync.first().copied()) else {
            return Ok(());
        };
        // What was begun before is in the one that is complete now.
        drop(self.under_way.write().await);
        let mut all = Done::default();
        loop {
            let done = self.pass(asker, from, to).await?;
            all.copied += done.copied;
            all.bytes += done.bytes;
            all.deleted += done.deleted;
            if done.copied + done.deleted == 0 {
                break;
            }
        }
        let Some(next) = state.joined(state.term) else { return Ok(()) };
        if self.advance(asker, &state, next).await? {
            self.clean(asker, to).await?;
            tracing::info!(
                "store {store} has all of volume {} again: {} objects ({} bytes) copied, {} deleted",
                self.id,
                all.copied,
                all.bytes,
                all.deleted
            );
        }
        Ok(())
    }

    /// Deletes what copies of former generations have left in a store.
    async fn clean(&self, asker: Asker, of: Twin) -> Result<(), Halt> {
        let clean = |at: Arc<dyn Store>| async move {
            let all = list_all(&*at, &keys::mirror(self.id)).await?;
            let names = all.into_iter().map(|object| object.key);
            let is_former = |name: &Key| {
                let generation = keys::parse_mirror_generation(self.id, name);
                generation.is_some_and(|generation| generation < of.generation)
            };
            let former: Vec<Key> = names.filter(is_former).collect();
            for names in former.chunks(MAX_PAGE) {
                at.delete(names).await?;
            }
            Ok(())
        };
        self.at(asker, of.store, clean).await
    }

    /// The copy with what lies in it by names of its own, as of now.
    async fn open_copy(&self, asker: Asker, twin: Twin) -> Result<Copy, Halt> {
        let open = |at: Arc<dyn Store>| async move { Copy::open(&*at, self.id, twin).await };
        self.at(asker, twin.store, open).await
    }

    async fn all_of(&self, asker: Asker, copy: &Copy) -> Result<BTreeMap<Key, u64>, Halt> {
        let list =
            |at: Arc<dyn Store>| async move { copy.list_all(&*at).await.map_err(missing_is_away) };
        self.at(asker, copy.twin.store, list).await
    }

    /// Compares the listings once, and copies and deletes by that.
    async fn pass(&self, asker: Asker, from: Twin, to: Twin) -> Result<Done, Halt> {
        let source = self.copy(asker, from).await?;
        let target = self.open_copy(asker, to).await?;
        let there = self.all_of(asker, &target).await?;
        let wanted = self.all_of(asker, &source).await?;
        let jobs = wanted.iter().filter_map(|(key, size)| {
            let keeps_name = is_bulk(self.id, key) && !target.shadows.contains(key);
            let need = need(*size, there.get(key).copied(), keeps_name);
            (need != Need::Nothing).then(|| key.clone())
        });
        let jobs: Vec<Key> = jobs.collect();
        let (source, target) = (&source, &target);
        let copies = stream::iter(jobs)
            .map(|key| async move { self.copy_one(asker, source, target, &key).await });
        let mut done = Done::default();
        let copied: Vec<Option<u64>> = copies.buffer_unordered(PARALLEL).try_collect().await?;
        for bytes in copied.into_iter().flatten() {
            done.copied += 1;
            done.bytes += bytes;
        }
        let extra = there.keys().filter(|key| !wanted.contains_key(key));
        for key in extra.filter(|_| !mutant::on(Mutant::ReplicaStaleKept)) {
            // It may have been created since the listing.
            if self.read_from(asker, source, key).await?.is_none() {
                self.delete_at(asker, to, std::slice::from_ref(key)).await?;
                done.deleted += 1;
            }
        }
        Ok(done)
    }

    async fn read_from(&self, asker: Asker, copy: &Copy, key: &Key) -> Result<Option<Bytes>, Halt> {
        let name = copy.read(key).map_err(Halt::Failed)?;
        let get = |store: Arc<dyn Store>| {
            let name = &name;
            async move { store.get(name, GetRange::All).await }
        };
        match self.at(asker, copy.twin.store, get).await {
            Err(Halt::Failed(e)) if e.kind == StoreErrorKind::NotFound => Ok(None),
            got => got.map(Some),
        }
    }

    /// Copies one object; `None`: it is there already, or nowhere any more.
    async fn copy_one(
        &self,
        asker: Asker,
        source: &Copy,
        target: &Copy,
        key: &Key,
    ) -> Result<Option<u64>, Halt> {
        let Some(body) = self.read_from(asker, source, key).await? else { return Ok(None) };
        let names = target.all(key).map_err(Halt::Failed)?;
        for name in &names {
            let put = |store: Arc<dyn Store>| {
                let body = &body;
                async move {
                    let is_there = store.head(name).await.is_ok();
                    Ok((is_there, offer(&*store, name, body).await?))
                }
            };
            match self.at(asker, target.twin.store, put).await? {
                (true, None) => return Ok(None),
                (false, None) => return Ok(Some(body.len() as u64)),
                (_, Some(_)) => {}
            }
        }
        let text = "two objects of that name are in the store that joins";
        Err(Halt::Failed(crate::store::StoreError::new(
            StoreErrorKind::Invalid,
            crate::store::Op::Put,
            key.to_string(),
            text,
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_to_be_copied() {
        assert_eq!(need(5000, None, true), Need::Missing);
        assert_eq!(need(5000, Some(5000), true), Need::Nothing);
        assert_eq!(need(5000, Some(4000), true), Need::Compared);
        assert_eq!(need(FENCE_MAX, Some(FENCE_MAX), true), Need::Compared);
        assert_eq!(need(9, Some(9), false), Need::Nothing);
    }
}
