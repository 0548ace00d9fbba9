//! What is in each store of a pool, and what of it belongs elsewhere.

use super::Several;
use crate::error::Result;
use crate::format::VolumeId;
use crate::format::fence;
use crate::format::keys;
use crate::format::stores::{StoreEntry, StoreId};
use crate::spread::{Asker, Version, is_like_fence, slot_of};
use crate::store::{GetRange, Key, MAX_PAGE, Store, StoreErrorKind};
use serde::Serialize;

/// A number of objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// How many.
    pub objects: u64,
    /// Their size together.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, size: u64) {
        self.objects += 1;
        self.bytes += size;
    }
}

/// What of a volume cannot be moved now: its owner has made no checkpoint yet, or has left it without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// The volume.
    pub volume: VolumeId,
    /// How many slots.
    pub objects: u64,
    /// Their size together.
    pub bytes: u64,
}

impl Waiting {
    pub(super) fn add(&mut self, size: u64) {
        self.objects += 1;
        self.bytes += size;
    }
}

/// Whether a store can be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It takes and gives objects.
    Ok,
    /// Everything is to move away from it.
    Draining,
    /// It does not answer, or is not the one that it should be.
    Unreachable(String),
}

/// A store and what it holds of logs.
#[derive(Clone, Debug, Serialize)]
pub struct Held {
    /// The store.
    #[serde(flatten)]
    pub entry: StoreEntry,
    /// What it weighs.
    pub weight: u32,
    /// Whether it can be used.
    pub state: State,
    /// Slots that belong there.
    pub settled: Amount,
    /// Slots that belong elsewhere, and are to be moved.
    pub to_move: Amount,
    /// Fences that belong elsewhere as well, and stay.
    pub fences: Amount,
}

impl Held {
    /// Bytes of logs.
    pub fn bytes(&self) -> u64 {
        self.settled.bytes + self.to_move.bytes
    }
}

impl Several {
    /// Counts what the stores hold, one after the other, by listing it. A store that is away is said to be.
    ///
    /// # Errors
    /// Those of the home store.
    pub async fn census(&self) -> Result<Vec<Held>> {
        let version = self.spread.refresh(Asker::Setup).await?;
        let mut all = Vec::new();
        for entry in version.object.stores.iter().filter(|entry| !entry.removed) {
            let weight = version.placement.weight(version.object.number, entry.id);
            let state = if weight == 0 { State::Draining } else { State::Ok };
            let (settled, to_move, fences) = Default::default();
            let mut held = Held { entry: entry.clone(), weight, state, settled, to_move, fences };
            match self.count(&version, &mut held).await {
                Ok(()) => {}
                Err(e) if entry.id == StoreId::HOME => return Err(e),
                Err(e) => held.state = State::Unreachable(e.to_string()),
            }
            all.push(held);
        }
        Ok(all)
    }

    /// Counts what one store holds.
    pub(super) async fn count(&self, version: &Version, held: &mut Held) -> Result<()> {
        let store = self.spread.member(Asker::Setup, held.entry.id).await?;
        for stay in version.all_stays().into_iter().filter(|stay| stay.store == held.entry.id) {
            let below = keys::generation(stay.generation);
            let prefix = format!("{below}{}", keys::VOLUMES);
            let mut after: Option<Key> = None;
            loop {
                let page = store.list(&prefix, after.as_ref(), MAX_PAGE).await?;
                for object in &page.objects {
                    let key = object.key.as_str().strip_prefix(&below).and_then(Key::new);
                    let Some(key) = key.filter(|key| slot_of(key).is_some()) else { continue };
                    let is_there = version.stays(&key).first() == Some(&stay);
                    let amount = match is_there {
                        true => &mut held.settled,
                        false if self.stays_there(&*store, &object.key, object.size).await? => {
                            &mut held.fences
                        }
                        false => &mut held.to_move,
                    };
                    amount.add(object.size);
                }
                after = page.objects.last().map(|object| object.key.clone());
                if !page.more || after.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Whether the object of `size` bytes is a fence, or may be one.
pub(super) async fn is_fence(store: &dyn Store, name: &Key, size: u64) -> Result<bool> {
    let range = GetRange::Part { offset: 0, len: fence::MAGIC.len() as u64 };
    match store.get(name, range).await {
        Ok(bytes) => Ok(is_like_fence(&bytes, size)),
        Err(e) if matches!(e.kind, StoreErrorKind::NotFound | StoreErrorKind::Range) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
