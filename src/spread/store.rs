//! All stores of a pool as one.

use super::finding::{Answer, Question};
use super::{Asker, Spread, listing, name_in, slot_of};
use crate::format::keys;
use crate::format::placement::Stay;
use crate::format::stores::StoreId;
use crate::store::limit::Urgent;
use crate::store::{
    GetRange, Key, ListPage, ObjectInfo, Op, Store, StoreError, StoreErrorKind, StoreResult,
    address,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// See the module above.
#[derive(Debug)]
pub struct SpreadStore {
    spread: Arc<Spread>,
    asker: Asker,
}

impl SpreadStore {
    /// For this one who asks.
    pub fn new(spread: Arc<Spread>, asker: Asker) -> SpreadStore {
        SpreadStore { spread, asker }
    }

    fn home(&self) -> &Arc<dyn Store> {
        self.spread.home(self.asker)
    }

    /// Deletes slots at one of their stays each.
    async fn delete_at(&self, at: Vec<(Stay, Key)>) -> StoreResult<()> {
        let mut by_store: BTreeMap<StoreId, Vec<Key>> = BTreeMap::new();
        for (stay, key) in at {
            by_store.entry(stay.store).or_default().push(name_in(stay.generation, &key)?);
        }
        for (store, keys) in by_store {
            self.spread.member(self.asker, store).await?.delete(&keys).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Store for SpreadStore {
    fn url(&self) -> String {
        self.home().url()
    }

    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        if slot_of(key).is_none() {
            return self.home().get(key, range).await;
        }
        match self.spread.find(self.asker, key, Question::Get(range)).await? {
            Answer::Bytes(bytes) => Ok(bytes),
            Answer::Info(_) => Err(mixed_up(key)),
        }
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        if let Some((volume, _, epoch)) = slot_of(key) {
            let stay = self.spread.place(self.asker, key, (volume, epoch)).await?;
            let store = self.spread.member(self.asker, stay.store).await?;
            store.put_if_absent(&name_in(stay.generation, key)?, body).await?;
            self.spread.created(&self.spread.version(), key, stay);
            return Ok(());
        }
        let claimed =
            keys::parse_volume(key).and_then(|id| Some((id, keys::parse_epoch(id, key)?)));
        // Known before anybody can see the claim.
        let known = self.spread.version().object.number;
        self.home().put_if_absent(key, body).await?;
        if let Some(claimed) = claimed {
            self.spread.terms.claimed(claimed, known);
        }
        Ok(())
    }

    /// A slot is overwritten only where it cannot be anywhere else, or be copied from there meanwhile.
    async fn put(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        if slot_of(key).is_none() {
            return self.home().put(key, body).await;
        }
        let version = self.spread.refresh(self.asker).await?;
        if let [only] = version.all_stays().as_slice() {
            let store = self.spread.member(self.asker, only.store).await?;
            return store.put(&name_in(only.generation, key)?, body).await;
        }
        let object = address(&self.url(), key.as_str());
        let text = "a pool of several stores never overwrites a part of a log";
        Err(StoreError::new(StoreErrorKind::Invalid, Op::Put, object, text))
    }

    /// Older stays first, for each slot: who copies one that dies meanwhile does not bring it back.
    async fn delete(&self, keys: &[Key]) -> StoreResult<()> {
        let (slots, others): (Vec<&Key>, Vec<&Key>) =
            keys.iter().partition(|key| slot_of(key).is_some());
        if !others.is_empty() {
            let others: Vec<Key> = others.into_iter().cloned().collect();
            self.home().delete(&others).await?;
        }
        if slots.is_empty() {
            return Ok(());
        }
        let version = self.spread.refresh(self.asker).await?;
        let stays: Vec<(&Key, Vec<Stay>)> =
            slots.into_iter().map(|key| (key, version.stays(key))).collect();
        let most = stays.iter().map(|(_, stays)| stays.len()).max().unwrap_or_default();
        for nth in 0..most {
            let nth_oldest = |(key, stays): &(&Key, Vec<Stay>)| {
                stays.iter().rev().nth(nth).map(|stay| (*stay, (*key).clone()))
            };
            self.delete_at(stays.iter().filter_map(nth_oldest).collect()).await?;
        }
        Ok(())
    }

    async fn head(&self, key: &Key) -> StoreResult<ObjectInfo> {
        if slot_of(key).is_none() {
            return self.home().head(key).await;
        }
        match self.spread.find(self.asker, key, Question::Head).await? {
            Answer::Info(info) => Ok(info),
            Answer::Bytes(_) => Err(mixed_up(key)),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> StoreResult<ListPage> {
        match listing::has_slots(prefix) {
            true => self.spread.merged(self.asker, prefix, after, limit).await,
            false => self.home().list(prefix, after, limit).await,
        }
    }

    fn hurry(&self, key: &Key) -> Option<Urgent> {
        if slot_of(key).is_none() {
            return self.home().hurry(key);
        }
        let (store, name) = self.spread.open_stay(self.asker, key)?;
        store.hurry(&name)
    }
}

fn mixed_up(key: &Key) -> StoreError {
    let text = "the answer is to another question";
    StoreError::new(StoreErrorKind::Invalid, Op::Get, key.to_string(), text)
}
