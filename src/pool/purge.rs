//! Removing a volume and everything it owns, so that a crash anywhere leaves something that the next call
//! finishes.

use super::delete::{Claimed, Executioner, NOTICE};
use super::trash::{self, Newest, Trashed};
use super::{Pool, VolumeName, get};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::keys;
use crate::format::pool::{TombstoneObject, TrashEntry, TrashStep, encode_json};
use crate::mutant::{self, Mutant};
use crate::store::{Key, MAX_PAGE, StoreErrorKind, list_all};
use std::time::Duration;

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Deleted {
    /// Number of objects.
    pub objects: u64,
    /// Their size, in bytes.
    pub bytes: u64,
}

impl Pool {
    /// Removes a volume that has no name, with all its objects and snapshots, or goes on with that.
    ///
    /// It is claimed first: nobody who had it can commit anything more. Errors: busy, where it has a name, is
    /// owned (unless forced), is needed by clones (forced or not), was restored and deleted again since `what`
    /// was read, or is being purged by somebody else; corrupt, where it is damaged (unless forced); the store's.
    /// Until the removal is decided it stays as it was; from then on it can only be finished.
    pub async fn purge(&self, what: &Trashed, by: &Executioner) -> Result<Deleted> {
        let id = what.id;
        if let Some(tombstone) = self.tombstone(id).await? {
            self.refuse_origin(&tombstone.name, id).await?;
            return self.remove(id, Some(&tombstone.name)).await;
        }
        let (newest, _) = self.steps(id).await?;
        let known = self.known(id, newest, by.force)?;
        let is_other = |(_, entry): &(u32, TrashEntry)| {
            what.expires_at_ms.is_some_and(|at| at != entry.expires_at_ms)
        };
        if known.as_ref().is_some_and(is_other) {
            return Err(contested(&what.label()));
        }
        let label = known.as_ref().and_then(|(_, entry)| entry.name.clone());
        let label = label.unwrap_or_else(|| id.to_string());
        if let Some((_, entry)) = known.iter().find(|(_, entry)| entry.step == TrashStep::Removing)
        {
            self.bury(entry, id).await?;
            return self.remove(id, entry.name.as_deref()).await;
        }
        self.refuse_needed(&label, id, by.force).await?;
        let was_deleted = known.as_ref().is_some_and(|(_, entry)| {
            matches!(entry.step, TrashStep::Deleted | TrashStep::Purging)
        });
        // What has no description cannot be opened by anybody.
        let claimed = match get(&*self.store, &keys::volume(id)).await? {
            // It was claimed when it was deleted, or its owner had that time to notice.
            Some(_) if was_deleted && self.is_locked(&label, id).await? => Claimed::nothing(),
            Some(_) => self.claim(&label, id, by).await?,
            None => Claimed::nothing(),
        };
        let decided = self.decide(id, &label, known, by.force).await;
        let cut_off = claimed.cut_off;
        claimed.release().await;
        let entry = decided?;
        self.bury(&entry, id).await?;
        give_notice(&label, cut_off, &entry).await;
        self.remove(id, entry.name.as_deref()).await
    }

    /// What the trash says of the volume; damaged counts as deleted just now, where that is forced.
    fn known(
        &self,
        id: VolumeId,
        newest: Option<Newest>,
        force: bool,
    ) -> Result<Option<(u32, TrashEntry)>> {
        match newest {
            None => Ok(None),
            Some((number, Ok(entry))) => Ok(Some((number, entry))),
            Some((number, Err(e))) if force => {
                tracing::warn!("volume {id} is removed all the same: {e}");
                Ok(Some((number, trash::entry(TrashStep::Deleted, None, trash::KEEP))))
            }
            Some((_, Err(e))) => Err(e.hint("remove it all the same with --force")),
        }
    }

    /// Decides that the volume goes. Returns the last step.
    async fn decide(
        &self,
        id: VolumeId,
        label: &str,
        known: Option<(u32, TrashEntry)>,
        force: bool,
    ) -> Result<TrashEntry> {
        let fresh = || trash::entry(TrashStep::Purging, None, trash::KEEP);
        let entry = known.as_ref().map_or_else(fresh, |(_, entry)| entry.clone());
        let at = |step| TrashEntry { step, ..entry.clone() };
        let number = match known {
            Some((number, entry)) if entry.step == TrashStep::Purging => number,
            known => {
                let number = known.map_or(0, |(number, _)| number.saturating_add(1));
                if !self.step(id, number, &at(TrashStep::Purging)).await? {
                    return Err(contested(label));
                }
                number
            }
        };
        // Only from here on nobody gives it a name or makes a clone without noticing.
        let next = number.saturating_add(1);
        let unneeded = match mutant::on(Mutant::NeedUnchecked) {
            true => Ok(()),
            false => self.refuse_needed(label, id, force).await,
        };
        if let Err(e) = unneeded {
            if e.kind() != ErrorKind::Store {
                let before = match entry.step {
                    TrashStep::Restored => TrashStep::Restored,
                    _ => TrashStep::Deleted,
                };
                self.step(id, next, &at(before)).await?;
            }
            return Err(e);
        }
        match self.step(id, next, &at(TrashStep::Removing)).await? {
            true => Ok(at(TrashStep::Removing)),
            false => Err(contested(label)),
        }
    }

    /// Refuses what has a name or clones. Errors: busy; corrupt, where a name cannot be read, which may be
    /// its name (unless forced); the store's.
    async fn refuse_needed(&self, label: &str, id: VolumeId, force: bool) -> Result<()> {
        for (name, named) in self.read_names().await? {
            match named {
                Ok(named) if named == id => {
                    let text = format!("volume {name} is in use, not in the trash");
                    return Err(Error::new(ErrorKind::Busy, text)
                        .hint(format!("delete it with `objblk delete {name}`")));
                }
                Err(e) if !force => {
                    let e = e.context(format!("{label} may be the volume called {name}"));
                    return Err(e.hint("remove it all the same with --force"));
                }
                _ => {}
            }
        }
        self.refuse_origin(label, id).await
    }

    /// The tombstone, if there is one.
    pub(super) async fn tombstone(&self, id: VolumeId) -> Result<Option<TombstoneObject>> {
        let key = keys::trash(id);
        let Some(bytes) = get(&*self.store, &key).await? else { return Ok(None) };
        let parsed = crate::format::pool::parse_json("tombstone", &bytes);
        parsed.map(Some).map_err(|e| super::damaged(&*self.store, &key, e))
    }

    /// Writes the tombstone: from here on objects go.
    async fn bury(&self, entry: &TrashEntry, id: VolumeId) -> Result<()> {
        let name = entry.name.clone().unwrap_or_else(|| id.to_string());
        let tombstone = TombstoneObject { name, deleted_at_ms: SystemClock.now_ms() };
        match self.store.put_if_absent(&keys::trash(id), encode_json(&tombstone).into()).await {
            Err(e) if e.kind != StoreErrorKind::AlreadyExists => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Removes every object of the volume, its description last, then what the trash has of it, the
    /// tombstone last. A name that came back late goes too.
    async fn remove(&self, id: VolumeId, name: Option<&str>) -> Result<Deleted> {
        if let Some(name) = name.and_then(|name| name.parse::<VolumeName>().ok()) {
            self.drop_name(&name, id).await?;
        }
        let (prefix, last) = (keys::volume_prefix(id), keys::volume(id));
        let mut deleted = Deleted::default();
        let mut after: Option<Key> = None;
        loop {
            let page = self.store.list(&prefix, after.as_ref(), MAX_PAGE).await?;
            let rest = page.objects.iter().filter(|object| object.key != last);
            deleted.objects += page.objects.len() as u64;
            deleted.bytes += page.objects.iter().map(|object| object.size).sum::<u64>();
            let keys: Vec<Key> = rest.map(|object| object.key.clone()).collect();
            if !keys.is_empty() {
                self.store.delete(&keys).await?;
            }
            after = page.objects.last().map(|object| object.key.clone());
            if !page.more || after.is_none() {
                break;
            }
        }
        if let Err(e) = self.leave_origin(id).await {
            match e.kind() {
                ErrorKind::Store => return Err(e),
                _ => {
                    tracing::warn!("the origin of volume {id} goes on to keep what it needed: {e}")
                }
            }
        }
        self.store.delete(&[last]).await?;
        let steps = list_all(&*self.store, &keys::trash_of(id)).await?;
        let steps = steps.into_iter().map(|object| object.key);
        let steps: Vec<Key> = steps.filter(|key| keys::parse_trash_step(key).is_some()).collect();
        if !steps.is_empty() {
            self.store.delete(&steps).await?;
        }
        self.store.delete(&[keys::trash(id)]).await?;
        Ok(deleted)
    }
}

/// An owner that was cut off just now or just before has to notice before its fence goes.
async fn give_notice(label: &str, cut_off: bool, entry: &TrashEntry) {
    let since = SystemClock.now_ms().saturating_sub(entry.deleted_at_ms);
    let left = match (cut_off, entry.cut_off) {
        (true, _) => NOTICE,
        (false, true) => NOTICE.saturating_sub(Duration::from_millis(since)),
        (false, false) => return,
    };
    if !left.is_zero() {
        tracing::warn!("{label} was in use: its owner gets {left:?} to notice its end");
        tokio::time::sleep(left).await;
    }
}

fn contested(label: &str) -> Error {
    Error::new(ErrorKind::Busy, format!("somebody else is deleting, restoring or purging {label}"))
        .hint("look at `objblk trash list`, and try again")
}
