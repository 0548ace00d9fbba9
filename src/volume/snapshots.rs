//! Snapshots of an open volume: made and deleted. What they keep from being deleted is [`kept`]'s.
//!
//! **Making** one: a checkpoint of all there is; the same once more as the snapshot's own object, which
//! nothing replaces; then a record in the log. The snapshot exists when the record is committed. So
//! whoever finds the record finds the object, and a checkpoint at its position or a newer one.
//! **Deleting** one: a record in the log; the next checkpoint counts what only it needed as garbage.
//! Before that no more clones of it can be made, and there are none: a clone is made in the other order
//! (it is named as a child first, then it looks whether the snapshot is closed), so that one of the two
//! notices the other.

use super::checkpoint;
use super::items::Items;
use super::kept::{self, ByBase, Keeps, Needed};
use super::shared::Shared;
use crate::error::{Error, ErrorKind, Result};
use crate::format::checkpoint::{Checkpoint, Garbage};
use crate::format::keys;
use crate::format::record::Record;
use crate::format::snapshot::{SnapshotEntry, SnapshotObject};
use crate::format::{SnapshotId, VolumeId};
use crate::mutant::{self, Mutant};
use crate::store::{Key, Store, StoreErrorKind, get_parsed, list_all};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The most snapshots that a volume has: its checkpoints name them all.
pub const SNAPSHOTS_MAX: usize = 4096;

/// The snapshots of a volume, by position: a tree. One that was deleted is let go by the next checkpoint,
/// unless several came from it.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshots {
    all: Vec<SnapshotEntry>,
    /// What the base needs, once that was told.
    known: Option<(SnapshotId, Arc<Needed>)>,
    /// Attempts to delete one.
    closings: u32,
}

impl Snapshots {
    /// Those of a checkpoint.
    fn of(checkpoint: &Checkpoint) -> Snapshots {
        Snapshots { all: checkpoint.snapshots.clone(), ..Snapshots::default() }
    }

    /// Those too that were deleted and are still needed.
    pub fn all(&self) -> &[SnapshotEntry] {
        &self.all
    }

    /// Those that were not deleted.
    pub fn entries(&self) -> impl Iterator<Item = &SnapshotEntry> {
        self.all.iter().filter(|entry| !entry.deleted)
    }

    /// The one of that name.
    pub fn find(&self, name: &str) -> Option<&SnapshotEntry> {
        self.entries().find(|entry| entry.name == name)
    }

    fn has(&self, id: SnapshotId) -> bool {
        self.all.iter().any(|entry| entry.id == id)
    }

    /// The one that the volume now came from.
    fn base(&self) -> Option<SnapshotId> {
        self.all.iter().find(|entry| entry.base).map(|entry| entry.id)
    }

    /// The volume now is what this one is, which is there.
    pub fn go_on_from(&mut self, id: SnapshotId) {
        if self.has(id) {
            self.all.iter_mut().for_each(|entry| entry.base = entry.id == id);
        }
    }

    /// One more, of the volume now.
    fn add(&mut self, entry: SnapshotEntry) {
        let (id, before) = (entry.id, self.base());
        self.all.push(SnapshotEntry { before, deleted: false, ..entry });
        self.go_on_from(id);
    }

    /// One was deleted.
    fn delete(&mut self, id: SnapshotId) {
        self.all.iter_mut().filter(|e| e.id == id).for_each(|entry| entry.deleted = true);
    }

    /// A checkpoint was made.
    fn settle(&mut self, checkpoint: &Checkpoint) {
        let deleted: Vec<SnapshotId> =
            self.all.iter().filter(|entry| entry.deleted).map(|entry| entry.id).collect();
        self.all = checkpoint.snapshots.clone();
        // It may be one of an earlier attempt.
        deleted.into_iter().for_each(|id| self.delete(id));
    }

    /// Takes out one that was deleted and that at most one state came from. Returns it with its
    /// neighbours; `None` among them is the volume now.
    fn take_deleted(&mut self) -> Option<(SnapshotId, Vec<Option<SnapshotId>>)> {
        let heirs = |entry: &SnapshotEntry| {
            let others = self.all.iter().filter(|other| other.before == Some(entry.id));
            let others = others.map(|other| Some(other.id));
            others.chain(entry.base.then_some(None)).collect::<Vec<_>>()
        };
        let is_single = |entry: &SnapshotEntry| {
            let branches = heirs(entry).len() > 1;
            entry.deleted && (!branches || mutant::on(Mutant::BranchForgotten))
        };
        let at = self.all.iter().position(is_single)?;
        let mut neighbours = heirs(&self.all[at]);
        let gone = self.all.remove(at);
        for entry in &mut self.all {
            if entry.before == Some(gone.id) {
                entry.before = gone.before;
            }
            if gone.base && gone.before == Some(entry.id) {
                entry.base = true;
            }
        }
        neighbours.truncate(1);
        if !mutant::on(Mutant::SnapshotBeforeForgotten) {
            neighbours.extend(gone.before.map(Some));
        }
        Some((gone.id, neighbours))
    }

    /// What the base keeps.
    ///
    /// # Errors
    /// Store.
    async fn keeps(&mut self, store: &dyn Store, volume: VolumeId) -> Result<ByBase> {
        let Some(id) = self.base().filter(|_| !mutant::on(Mutant::SnapshotNotKept)) else {
            return Ok(ByBase::Nothing);
        };
        let needed = match &self.known {
            Some((known, needed)) if *known == id => Some(needed.clone()),
            _ => kept::needs(store, volume, id).await?,
        };
        self.known = needed.clone().map(|needed| (id, needed));
        Ok(needed.map_or(ByBase::All, ByBase::Needed))
    }

    /// Lets go of deleted ones. Returns what only they needed, which is garbage once the checkpoint of
    /// `now` is made.
    ///
    /// # Errors
    /// Store.
    async fn let_go(
        &mut self,
        (store, items, volume): (&dyn Store, &Items, VolumeId),
        now: Needed,
    ) -> Result<Vec<Garbage>> {
        let now = Some(Arc::new(now));
        let mut garbage = Vec::new();
        while let Some((id, neighbours)) = self.take_deleted() {
            let mut needed = Vec::new();
            for neighbour in neighbours {
                needed.push(match neighbour {
                    Some(neighbour) => kept::needs(store, volume, neighbour).await?,
                    None => now.clone(),
                });
            }
            let own = kept::needs(store, volume, id).await?;
            let needed: Option<Vec<Arc<Needed>>> = needed.into_iter().collect();
            if let (Some(own), Some(needed)) = (own, needed) {
                kept::only(items, &own, &needed, &mut garbage).await?;
            }
            garbage.push(Garbage::Snapshot(id));
        }
        Ok(garbage)
    }
}

/// Whether a record changes which snapshots there are.
pub(super) fn is_change(record: &Record) -> bool {
    matches!(record, Record::SnapshotMade(_) | Record::SnapshotDeleted(_) | Record::RolledBack(_))
}

/// The snapshots of `checkpoint` after the records behind it. `None`: one of them was made from a
/// checkpoint that is newer. It is there by now; what was made without it would not come from that
/// snapshot's state.
///
/// # Errors
/// Corrupt: the object of a snapshot that no checkpoint names yet is damaged. Store.
pub(super) async fn replay(
    store: &dyn Store,
    checkpoint: &Checkpoint,
    changes: &[Record],
) -> Result<Option<Snapshots>> {
    let mut snapshots = Snapshots::of(checkpoint);
    for change in changes.iter().filter(|_| !mutant::on(Mutant::SnapshotNotReplayed)) {
        match change {
            Record::SnapshotMade(id) if !snapshots.has(*id) => {
                match read(store, checkpoint.volume, *id).await {
                    Ok(object) if object.entry.next > checkpoint.next => return Ok(None),
                    Ok(object) => snapshots.add(object.entry),
                    Err(why) if why.kind() == ErrorKind::NotFound => {
                        tracing::error!(volume = %checkpoint.volume, "a snapshot is lost: {why}");
                    }
                    // It may be damage on the way: nobody has decided to do without it.
                    Err(why) => {
                        let object = keys::snapshot(checkpoint.volume, *id);
                        return Err(why.hint(format!(
                            "try again; restore {object} from a copy of the bucket, or delete it to \
                             give the snapshot up"
                        )));
                    }
                }
            }
            Record::SnapshotDeleted(id) => snapshots.delete(*id),
            Record::RolledBack(id) => snapshots.go_on_from(*id),
            _ => {}
        }
    }
    Ok(Some(snapshots))
}

/// Reads a snapshot's object.
///
/// # Errors
/// Corrupt: it is damaged. NotFound. Store.
pub(super) async fn read(
    store: &dyn Store,
    volume: VolumeId,
    id: SnapshotId,
) -> Result<SnapshotObject> {
    let key = keys::snapshot(volume, id);
    let parsed = match get_parsed(store, &key, SnapshotObject::parse).await {
        Ok(parsed) => parsed,
        Err(e) if e.kind == StoreErrorKind::NotFound => {
            return Err(Error::not_found(format!("the snapshot {key} is not in the store")));
        }
        Err(e) => return Err(e.into()),
    };
    let damaged = |e| Error::corrupt(format!("the snapshot {key} is damaged")).because(e);
    let object = parsed.map_err(damaged)?;
    match object.checkpoint.volume == volume && object.entry.id == id {
        true => Ok(object),
        false => Err(Error::corrupt(format!("{key} is another snapshot than its name says"))),
    }
}

impl Shared {
    /// What the snapshots keep.
    ///
    /// # Errors
    /// Store.
    pub async fn kept(&self) -> Result<Keeps> {
        let mut snapshots = self.snapshots().clone();
        let by_base = snapshots.keeps(&*self.stores.background, self.id).await?;
        self.snapshots().known = snapshots.known;
        Ok(Keeps { by_base, lineage: self.lineage.clone() })
    }

    /// Puts into `checkpoint`, which is complete but for that, which snapshots there are, and what
    /// deleted ones needed.
    ///
    /// # Errors
    /// Store.
    pub async fn name_snapshots(&self, checkpoint: &mut Checkpoint) -> Result<()> {
        let mut snapshots = self.snapshots().clone();
        let now = Needed::by(checkpoint);
        let from = (&*self.stores.background, &*self.items, self.id);
        checkpoint.garbage.extend(snapshots.let_go(from, now).await?);
        checkpoint.snapshots = snapshots.all;
        Ok(())
    }

    /// Objects of snapshots that there are not.
    ///
    /// # Errors
    /// Store.
    pub async fn unfinished_snapshots(&self) -> Result<Vec<Key>> {
        let prefix = keys::snapshots(self.id);
        let listed = list_all(&*self.stores.background, &prefix).await?;
        let known = self.snapshots().all.iter().map(|e| keys::snapshot(self.id, e.id)).collect();
        let known: BTreeSet<Key> = known;
        Ok(listed.into_iter().map(|object| object.key).filter(|key| !known.contains(key)).collect())
    }

    /// `checkpoint` was made.
    pub fn settle_snapshots(&self, checkpoint: &Checkpoint) {
        self.snapshots().settle(checkpoint);
    }

    /// Makes a snapshot of all that completed before.
    ///
    /// # Errors
    /// Usage: read-only, or too many. Exists: another one has that name. Those of a checkpoint, and
    /// of the log; after one of these it may have been made.
    pub async fn make_snapshot(
        self: Arc<Shared>,
        id: SnapshotId,
        name: String,
    ) -> Result<SnapshotEntry> {
        self.check_owner()?;
        let mut checkpointer = self.checkpointer.lock().await;
        let count = self.snapshots().all.len();
        if self.snapshots().find(&name).is_some() {
            return Err(Error::new(ErrorKind::Exists, format!("there is a snapshot {name}"))
                .hint("use another name, or delete that one"));
        }
        if count >= SNAPSHOTS_MAX {
            return Err(Error::usage(format!("a volume can have {SNAPSHOTS_MAX} snapshots"))
                .hint("delete some"));
        }
        if !mutant::on(Mutant::SnapshotStale) {
            checkpoint::complete(&self, &mut checkpointer).await?;
        }
        let now = self.env.clock.now_ms();
        let object = SnapshotObject::new(id, &name, now, checkpointer.last());
        let body = Bytes::from(object.encode());
        self.stores.background.put_if_absent(&keys::snapshot(self.id, id), body).await?;
        let entry = object.entry;
        let target = {
            let mut state = self.state();
            let target = state.log(Record::SnapshotMade(id))?;
            self.snapshots().add(entry.clone());
            target
        };
        self.wait_committed(target).await?;
        Ok(entry)
    }

    /// Deletes a snapshot; its space comes back with the checkpoint that is made next.
    ///
    /// # Errors
    /// Usage: read-only. NotFound. Busy: clones were made of it. Those of the log; after one of these it
    /// may be deleted.
    pub async fn delete_snapshot(self: Arc<Shared>, name: String) -> Result<SnapshotEntry> {
        self.check_owner()?;
        // A checkpoint under way has decided what is garbage.
        let checkpointer = self.checkpointer.lock().await;
        let found = self.snapshots().find(&name).cloned();
        let entry =
            found.ok_or_else(|| Error::not_found(format!("there is no snapshot {name}")))?;
        let mut closed = self.close_to_clones(&entry).await?;
        let target = {
            let mut state = self.state();
            let target = state.log(Record::SnapshotDeleted(entry.id))?;
            self.snapshots().delete(entry.id);
            target
        };
        self.wait_committed(target).await?;
        closed.extend(entry.id.expires_at_ms().map(|_| keys::kept(self.id, entry.id)));
        self.forget(closed).await;
        drop(checkpointer);
        self.checkpoint_due.notify_one();
        Ok(entry)
    }

    /// From now on nobody can make a clone of the snapshot, and there is none. Returns what says so.
    async fn close_to_clones(&self, entry: &SnapshotEntry) -> Result<Vec<Key>> {
        let attempt = {
            let mut snapshots = self.snapshots();
            snapshots.closings += 1;
            (self.epoch, snapshots.closings)
        };
        let store = &*self.stores.background;
        let closed = keys::closed(self.id, entry.id, attempt);
        store.put_if_absent(&closed, Bytes::new()).await?;
        let listed = list_all(store, &keys::children_of(self.id, entry.id)).await?;
        let mut children = Vec::new();
        let mut closings = vec![closed];
        for key in listed.into_iter().map(|object| object.key) {
            match keys::parse_child(self.id, &key) {
                Some((_, child)) => children.push(child.to_string()),
                // Of attempts that were cut off: those of a deposed owner delete nothing any more.
                None => closings.push(key),
            }
        }
        if children.is_empty() || mutant::on(Mutant::ChildrenIgnored) {
            return Ok(closings);
        }
        self.forget(closings).await;
        let text = format!("clones need the snapshot {}: {}", entry.name, children.join(", "));
        Err(Error::new(ErrorKind::Busy, text).hint("delete or flatten them first"))
    }

    async fn forget(&self, closings: Vec<Key>) {
        if let Err(e) = self.stores.background.delete(&closings).await {
            tracing::warn!("{} is left in the store: {e}", closings[0]);
        }
    }

    pub fn check_owner(&self) -> Result<()> {
        match self.is_read_only() {
            true => Err(Error::usage("the volume is open read-only")),
            false => Ok(()),
        }
    }
}
