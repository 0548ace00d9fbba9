//! The trash: volumes that have no name any more and all of their data still.
//!
//! ```text
//! trash/<id>-<number>    deleted -> purging -> removing        the highest number counts
//!                         ^   |        |
//!                         |   v        |
//!                        restored <----+  or deleted: something needs it after all
//! trash/<id>             the tombstone: its objects are being removed
//! ```
//!
//! A volume with a name is in use, whatever the trash says of it: taking the name away is what deletes, and
//! giving it one is what restores. Each step of a volume is a new numbered object, so of two who take one, one
//! does, and a request that arrives late changes nothing: none of these objects is ever removed or used a second
//! time before the volume is gone.
//!
//! Who gives a name, or makes a clone, does that first and then looks whether the volume is `purging`. Who
//! purges says so first and then looks for names and clones, and puts `removing` into the very next number. So
//! one of the two notices the other; where both do, both give way.

use super::{PARALLEL, Pool, VolumeName, damaged, get};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::keys;
use crate::format::pool::{TRASH_VERSION, TrashEntry, TrashStep, encode_json};
use crate::mutant::{self, Mutant};
use crate::store::{Key, StoreErrorKind, list_all};
use futures::stream::{self, StreamExt, TryStreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// For how long a volume is kept in the trash, unless told otherwise.
pub const KEEP: Duration = Duration::from_secs(7 * 24 * 3600);

/// A volume in the trash.
#[derive(Debug)]
pub struct Trashed {
    /// The volume.
    pub id: VolumeId,
    /// The name it had.
    pub name: Option<String>,
    /// When it was deleted, in milliseconds since 1970; not known of what was not deleted.
    pub deleted_at_ms: Option<u64>,
    /// Until when it was to be kept, in milliseconds since 1970.
    pub expires_at_ms: Option<u64>,
    /// What can be done with it.
    pub state: TrashState,
}

/// What can be done with a volume that has no name.
#[derive(Debug)]
pub enum TrashState {
    /// It can be restored, or removed.
    Kept,
    /// Its removal was begun, and can be finished.
    Removing,
    /// It was in use and nobody deleted it: its name was lost. It can be given one, or be removed.
    Lost,
    /// Whoever was making it died; it holds nothing of its own.
    Unfinished,
    /// Objects of a volume that is gone, which came late.
    Remains,
    /// What is said of it cannot be read.
    Damaged(Error),
}

impl Trashed {
    /// The name it had, or its id.
    pub fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.id.to_string())
    }

    /// The stated time has passed, by this host's clock.
    pub fn is_expired(&self) -> bool {
        let kept = matches!(self.state, TrashState::Kept);
        kept && self.expires_at_ms.is_some_and(|at| at <= SystemClock.now_ms())
    }

    /// For how long it has been there, by this host's clock; not known of what was not deleted.
    pub fn age(&self) -> Option<Duration> {
        let age = |at| Duration::from_millis(SystemClock.now_ms().saturating_sub(at));
        self.deleted_at_ms.map(age)
    }

    fn of(id: VolumeId, entry: &TrashEntry) -> Trashed {
        let state = match entry.step {
            TrashStep::Deleted => TrashState::Kept,
            TrashStep::Restored => {
                return Trashed { name: entry.name.clone(), ..bare(id, TrashState::Lost) };
            }
            TrashStep::Purging | TrashStep::Removing => TrashState::Removing,
        };
        Trashed {
            id,
            name: entry.name.clone(),
            deleted_at_ms: Some(entry.deleted_at_ms),
            expires_at_ms: Some(entry.expires_at_ms),
            state,
        }
    }
}

/// The newest step of a volume and its number.
pub(super) type Newest = (u32, Result<TrashEntry>);

/// A step that a volume is to take.
pub(super) fn entry(step: TrashStep, name: Option<&VolumeName>, keep: Duration) -> TrashEntry {
    let deleted_at_ms = SystemClock.now_ms();
    TrashEntry {
        version: TRASH_VERSION,
        step,
        name: name.map(ToString::to_string),
        deleted_at_ms,
        expires_at_ms: deleted_at_ms.saturating_add(keep.as_millis() as u64),
        cut_off: false,
    }
}

/// The number behind the newest step.
pub(super) fn next(newest: Option<&Newest>) -> u32 {
    newest.map_or(0, |(number, _)| number.saturating_add(1))
}

impl Pool {
    /// What is in the trash, by name and time: volumes that were deleted, and what is left of removals that
    /// were begun.
    ///
    /// Errors: the store's; what is wrong with one volume is said of that one.
    pub async fn trash(&self) -> Result<Vec<Trashed>> {
        let listed = list_all(&*self.store, keys::TRASH).await?;
        let mut newest: BTreeMap<VolumeId, (u32, Key)> = BTreeMap::new();
        for (id, number, key) in listed.iter().filter_map(|object| {
            let (id, number) = keys::parse_trash_step(&object.key)?;
            Some((id, number, &object.key))
        }) {
            // In order: the last one is the newest.
            newest.insert(id, (number, key.clone()));
        }
        let buried: BTreeSet<VolumeId> =
            listed.iter().filter_map(|object| keys::parse_trash(&object.key)).collect();
        if newest.is_empty() && buried.is_empty() {
            return Ok(Vec::new());
        }
        let named: BTreeSet<VolumeId> = self.names().await?.into_iter().map(|(_, id)| id).collect();
        newest.retain(|id, _| !named.contains(id) && !buried.contains(id));
        let read = stream::iter(newest).map(|(id, (_, key))| async move {
            Ok::<_, Error>(match self.read_entry(&key).await {
                Ok(Some(entry)) => Some(Trashed::of(id, &entry)),
                // It was removed meanwhile.
                Ok(None) => None,
                Err(e) if e.kind() == ErrorKind::Store => return Err(e),
                Err(e) => Some(bare(id, TrashState::Damaged(e))),
            })
        });
        let read: Vec<Option<Trashed>> = read.buffered(PARALLEL).try_collect().await?;
        let mut found: Vec<Trashed> = read.into_iter().flatten().collect();
        found.extend(self.tombstones().await?.into_iter().map(|(id, tombstone)| Trashed {
            name: Some(tombstone.name),
            deleted_at_ms: Some(tombstone.deleted_at_ms),
            ..bare(id, TrashState::Removing)
        }));
        found.sort_by(|a, b| {
            (&a.name, a.deleted_at_ms, a.id).cmp(&(&b.name, b.deleted_at_ms, b.id))
        });
        Ok(found)
    }

    /// Gives a volume of the trash, or one that lost its name, the name `to`.
    ///
    /// Errors: exists, where that name is taken; busy, where it has a name, or is being removed; corrupt and
    /// unsupported by its description. After these, other than those of the store, it is where it was.
    pub async fn restore(&self, id: VolumeId, to: &VolumeName) -> Result<()> {
        if let Some((name, _)) = self.names().await?.into_iter().find(|(_, named)| *named == id) {
            let text = format!("volume {id} is not in the trash: it is called {name}");
            return Err(Error::new(ErrorKind::Exists, text));
        }
        match self.steps(id).await? {
            (Some((_, Err(e))), _) => return Err(e),
            (newest, buried) if is_doomed(newest.as_ref(), buried) => {
                return Err(being_removed(to));
            }
            _ => {}
        }
        self.volume_object(to.as_str(), id).await?;
        let Some((number, Ok(entry))) = self.give_name(to, id).await? else { return Ok(()) };
        // It counts as deleted no more, should it lose its name. Whoever deletes it first knows better.
        let (step, name) = (TrashStep::Restored, Some(to.to_string()));
        let restored = TrashEntry { step, name, ..entry };
        self.step(id, number.saturating_add(1), &restored).await.map(drop)
    }

    /// Gives a volume a name, unless it is being removed: then there is no such name in the end. Returns its
    /// newest step in the trash.
    ///
    /// Errors: exists; busy; the store's, after which the name may be there.
    pub(super) async fn give_name(
        &self,
        name: &VolumeName,
        id: VolumeId,
    ) -> Result<Option<Newest>> {
        self.put_name(name, id).await?;
        let (newest, buried) = self.steps(id).await?;
        if is_doomed(newest.as_ref(), buried) && !mutant::on(Mutant::NameUnchecked) {
            self.drop_name(name, id).await?;
            return Err(being_removed(name));
        }
        Ok(newest)
    }

    /// Takes the name away, where it still is this volume's.
    pub(super) async fn drop_name(&self, name: &VolumeName, id: VolumeId) -> Result<()> {
        match self.resolve(name).await? {
            Some(named) if named == id => Ok(self.store.delete(&[name.key()]).await?),
            _ => Ok(()),
        }
    }

    /// True from when somebody wants to remove the volume: what it was given since then may have come too
    /// late.
    pub(super) async fn is_doomed(&self, id: VolumeId) -> Result<bool> {
        let (newest, buried) = self.steps(id).await?;
        Ok(is_doomed(newest.as_ref(), buried))
    }

    /// True where the volume's objects go, or may go at any moment.
    pub(super) async fn removal_is_decided(&self, id: VolumeId) -> Result<bool> {
        let (newest, buried) = self.steps(id).await?;
        let last = newest.and_then(|(_, entry)| entry.ok());
        Ok(buried || last.is_some_and(|entry| entry.step == TrashStep::Removing))
    }

    /// The newest step of the volume, and whether there is a tombstone.
    pub(super) async fn steps(&self, id: VolumeId) -> Result<(Option<Newest>, bool)> {
        let listed = list_all(&*self.store, &keys::trash_of(id)).await?;
        let buried = listed.iter().any(|object| keys::parse_trash(&object.key) == Some(id));
        let last =
            listed.iter().rev().find_map(|o| keys::parse_trash_step(&o.key).map(|s| (s.1, &o.key)));
        let Some((number, key)) = last else { return Ok((None, buried)) };
        Ok(match self.read_entry(key).await {
            Ok(Some(entry)) => (Some((number, Ok(entry))), buried),
            Ok(None) => (None, buried),
            Err(e) if e.kind() == ErrorKind::Store => return Err(e),
            Err(e) => (Some((number, Err(e))), buried),
        })
    }

    async fn read_entry(&self, key: &Key) -> Result<Option<TrashEntry>> {
        let Some(bytes) = get(&*self.store, key).await? else { return Ok(None) };
        TrashEntry::parse(&bytes).map(Some).map_err(|e| damaged(&*self.store, key, e))
    }

    /// Takes step `number` of the volume; false where somebody else has.
    pub(super) async fn step(&self, id: VolumeId, number: u32, entry: &TrashEntry) -> Result<bool> {
        let key = keys::trash_step(id, number);
        match self.store.put_if_absent(&key, encode_json(entry).into()).await {
            Ok(()) => Ok(true),
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => {
                Ok(mutant::on(Mutant::TrashStepShared))
            }
            Err(e) => Err(e.into()),
        }
    }
}

pub(super) fn bare(id: VolumeId, state: TrashState) -> Trashed {
    Trashed { id, name: None, deleted_at_ms: None, expires_at_ms: None, state }
}

/// What cannot be read may say so.
fn is_doomed(newest: Option<&Newest>, buried: bool) -> bool {
    let is_kept = |(_, entry): &Newest| {
        let step = entry.as_ref().map(|entry| entry.step);
        step.is_ok_and(|step| matches!(step, TrashStep::Deleted | TrashStep::Restored))
    };
    buried || !newest.is_none_or(is_kept)
}

fn being_removed(name: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Busy, format!("volume {name} is being removed from the trash"))
        .hint("`objblk trash list` shows it, if it is there still")
}
