//! Snapshots of an open volume: made, deleted, and what they keep from being deleted.
//!
//! **Making** one: a checkpoint of all there is; the same once more as the snapshot's own object, which
//! nothing replaces; then a record in the log. The snapshot exists when the record is committed. So
//! whoever finds the record finds the object, and a checkpoint at its position or a newer one.
//! **Deleting** one: a record in the log; the next checkpoint counts what only it needed as garbage.
//!
//! **What is kept.** The states of a volume at its snapshots and now are a line: each came from the one
//! before it. Nothing that was lost comes back, so an object that two of them need is needed by all
//! between. Therefore
//! * what the volume loses is garbage unless the newest snapshot needs it;
//! * what a deleted snapshot needed is garbage unless the one before it or the one after it needs it,
//!   or the volume now where it was the newest.
//!
//! An object of a snapshot that cannot be read says nothing: then nothing is garbage on its account, which
//! costs space and no data.

use super::census::Runs;
use super::checkpoint;
use super::items::Items;
use super::shared::Shared;
use crate::error::{Error, ErrorKind, Result};
use crate::format::checkpoint::{Checkpoint, Garbage};
use crate::format::keys::{self, MapObjectId};
use crate::format::page::{CHUNKS_PER_PAGE, ItemRef};
use crate::format::record::Record;
use crate::format::snapshot::{SnapshotEntry, SnapshotObject};
use crate::format::{SnapshotId, VolumeId};
use crate::mutant::{self, Mutant};
use crate::store::{Store, StoreErrorKind, get_parsed};
use crate::units::Seq;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The most snapshots that a volume has: its checkpoints name them all.
pub const SNAPSHOTS_MAX: usize = 4096;

/// The snapshots of a volume, by position.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshots {
    line: Vec<Kept>,
    /// What the newest one needs, once that was told.
    newest: Option<(SnapshotId, Arc<Needed>)>,
}

#[derive(Clone, Debug)]
struct Kept {
    entry: SnapshotEntry,
    /// The next checkpoint lets go of it.
    deleted: bool,
}

/// What a state of the volume needs; `None`: that cannot be told.
type Needs = Option<Arc<Needed>>;

#[derive(Debug)]
pub(super) struct Needed {
    map_objects: BTreeSet<MapObjectId>,
    chunk_root: BTreeMap<u64, ItemRef>,
}

impl Needed {
    fn by(checkpoint: &Checkpoint) -> Needed {
        let map_objects = checkpoint.map_objects.iter().map(|used| used.object).collect();
        Needed { map_objects, chunk_root: checkpoint.chunk_root.iter().copied().collect() }
    }
}

impl Snapshots {
    /// Those of a checkpoint.
    fn of(checkpoint: &Checkpoint) -> Snapshots {
        let kept = |entry: &SnapshotEntry| Kept { entry: entry.clone(), deleted: false };
        Snapshots { line: checkpoint.snapshots.iter().map(kept).collect(), newest: None }
    }

    /// Those that were not deleted.
    pub fn entries(&self) -> impl Iterator<Item = &SnapshotEntry> {
        self.line.iter().filter(|kept| !kept.deleted).map(|kept| &kept.entry)
    }

    /// The one of that name.
    fn find(&self, name: &str) -> Option<&SnapshotEntry> {
        self.entries().find(|entry| entry.name == name)
    }

    fn has(&self, id: SnapshotId) -> bool {
        self.line.iter().any(|kept| kept.entry.id == id)
    }

    /// One more, the newest.
    fn add(&mut self, entry: SnapshotEntry) {
        self.line.push(Kept { entry, deleted: false });
    }

    /// One was deleted.
    fn delete(&mut self, id: SnapshotId) {
        self.line
            .iter_mut()
            .filter(|kept| kept.entry.id == id)
            .for_each(|kept| kept.deleted = true);
    }

    /// A checkpoint was made.
    fn settle(&mut self, checkpoint: &Checkpoint) {
        let is_left = |kept: &Kept| checkpoint.snapshots.iter().any(|s| s.id == kept.entry.id);
        self.line.retain(|kept| !kept.deleted || is_left(kept));
    }

    /// What the newest of them keeps.
    ///
    /// # Errors
    /// Store.
    async fn keeps(&mut self, store: &dyn Store, volume: VolumeId) -> Result<Keeps> {
        let Some(newest) = self.line.last().filter(|_| !mutant::on(Mutant::SnapshotNotKept)) else {
            return Ok(Keeps::Nothing);
        };
        let id = newest.entry.id;
        let needed = match &self.newest {
            Some((known, needed)) if *known == id => Some(needed.clone()),
            _ => needs(store, volume, id).await?,
        };
        self.newest = needed.clone().map(|needed| (id, needed));
        Ok(needed.map_or(Keeps::All, Keeps::Needed))
    }

    /// What only deleted ones needed, which is garbage once the checkpoint of `now` is made.
    ///
    /// # Errors
    /// Store.
    async fn let_go(
        &self,
        (store, items, volume): (&dyn Store, &Items, VolumeId),
        now: Needed,
    ) -> Result<Vec<Garbage>> {
        let mut line: Vec<&Kept> = self.line.iter().collect();
        let now = Some(Arc::new(now));
        let mut garbage = Vec::new();
        while let Some(at) = line.iter().position(|kept| kept.deleted) {
            let kept = line.remove(at);
            let mut neighbours = vec![match line.get(at) {
                Some(after) => needs(store, volume, after.entry.id).await?,
                None => now.clone(),
            }];
            let before = at.checked_sub(1).and_then(|before| line.get(before));
            if let Some(before) = before.filter(|_| !mutant::on(Mutant::SnapshotBeforeForgotten)) {
                neighbours.push(needs(store, volume, before.entry.id).await?);
            }
            let own = needs(store, volume, kept.entry.id).await?;
            let neighbours: Option<Vec<Arc<Needed>>> = neighbours.into_iter().collect();
            if let (Some(own), Some(neighbours)) = (own, neighbours) {
                only(items, &own, &neighbours, &mut garbage).await?;
            }
            garbage.push(Garbage::Snapshot(kept.entry.id));
        }
        Ok(garbage)
    }
}

/// Whether a record changes which snapshots there are.
pub(super) fn is_change(record: &Record) -> bool {
    matches!(record, Record::SnapshotMade(_) | Record::SnapshotDeleted(_))
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
            _ => {}
        }
    }
    Ok(Some(snapshots))
}

/// What nothing of may become garbage.
#[derive(Clone, Debug)]
pub(super) enum Keeps {
    /// There is no snapshot.
    Nothing,
    /// What a snapshot needs.
    Needed(Arc<Needed>),
    /// It cannot be told.
    All,
}

impl Keeps {
    /// Whether a map object that is no longer referenced is kept.
    pub fn map_object(&self, object: MapObjectId) -> bool {
        match self {
            Keeps::Nothing => false,
            Keeps::Needed(_) if mutant::on(Mutant::SnapshotMapNotKept) => false,
            Keeps::Needed(needed) => needed.map_objects.contains(&object),
            Keeps::All => true,
        }
    }

    /// Takes out of `gone`, slots of the chunk page `page` that hold nothing live any more, those that
    /// are kept.
    ///
    /// # Errors
    /// Store.
    pub async fn spare(&self, page: u64, gone: &mut BTreeSet<Seq>, items: &Items) -> Result<()> {
        match self {
            Keeps::Nothing => {}
            Keeps::All => gone.clear(),
            Keeps::Needed(_) if gone.is_empty() => {}
            Keeps::Needed(needed) => match slots(items, page, needed).await? {
                Some(needed) => gone.retain(|seq| !needed.contains(seq)),
                None => gone.clear(),
            },
        }
        Ok(())
    }
}

/// Slots of a chunk page that a state needs; `None`: that cannot be told.
async fn slots(items: &Items, page: u64, needed: &Needed) -> Result<Option<BTreeSet<Seq>>> {
    let Some(item) = needed.chunk_root.get(&page) else { return Ok(Some(BTreeSet::new())) };
    match items.chunk_page(*item).await {
        Ok(entries) => {
            let seq = |slot: u32| Seq(page * CHUNKS_PER_PAGE + u64::from(slot));
            Ok(Some(entries.iter().map(|(slot, _)| seq(*slot)).collect()))
        }
        Err(why) if why.kind() == ErrorKind::Corrupt => {
            tracing::error!("what a snapshot needs cannot be told, more is kept: {why}");
            Ok(None)
        }
        Err(why) => Err(why),
    }
}

async fn needs(store: &dyn Store, volume: VolumeId, id: SnapshotId) -> Result<Needs> {
    match read(store, volume, id).await {
        Ok(object) => Ok(Some(Arc::new(Needed::by(&object.checkpoint)))),
        Err(why) if matches!(why.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
            tracing::error!("what a snapshot needs cannot be told, more is kept: {why}");
            Ok(None)
        }
        Err(why) => Err(why),
    }
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

/// What only `own` needs and none of its neighbours.
async fn only(
    items: &Items,
    own: &Needed,
    neighbours: &[Arc<Needed>],
    garbage: &mut Vec<Garbage>,
) -> Result<()> {
    let is_needed =
        |object: &MapObjectId| neighbours.iter().any(|n| n.map_objects.contains(object));
    let objects = own.map_objects.iter().filter(|object| !is_needed(object));
    garbage.extend(objects.copied().map(Garbage::Map));
    let mut dead = Runs::default();
    for (page, item) in &own.chunk_root {
        if neighbours.iter().any(|n| n.chunk_root.get(page) == Some(item)) {
            continue;
        }
        let Some(mut gone) = slots(items, *page, own).await? else { continue };
        for neighbour in neighbours {
            match slots(items, *page, neighbour).await? {
                Some(needed) => gone.retain(|seq| !needed.contains(seq)),
                None => gone.clear(),
            }
        }
        gone.into_iter().for_each(|seq| dead.push(seq));
    }
    garbage.extend(dead.into_garbage());
    Ok(())
}

impl Shared {
    /// What the snapshots keep.
    ///
    /// # Errors
    /// Store.
    pub async fn kept(&self) -> Result<Keeps> {
        let mut snapshots = self.snapshots().clone();
        let keeps = snapshots.keeps(&*self.stores.background, self.id).await?;
        self.snapshots().newest = snapshots.newest;
        Ok(keeps)
    }

    /// Puts into `checkpoint`, which is complete but for that, which snapshots there are, and what
    /// deleted ones needed.
    ///
    /// # Errors
    /// Store.
    pub async fn name_snapshots(&self, checkpoint: &mut Checkpoint) -> Result<()> {
        let snapshots = self.snapshots().clone();
        checkpoint.snapshots = snapshots.entries().cloned().collect();
        let now = Needed::by(checkpoint);
        let from = (&*self.stores.background, &*self.items, self.id);
        checkpoint.garbage.extend(snapshots.let_go(from, now).await?);
        Ok(())
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
        let count = self.snapshots().line.len();
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
    /// Usage: read-only. NotFound. Those of the log; after one of these it may be deleted.
    pub async fn delete_snapshot(self: Arc<Shared>, name: String) -> Result<SnapshotEntry> {
        self.check_owner()?;
        // A checkpoint under way has decided what is garbage.
        let checkpointer = self.checkpointer.lock().await;
        let found = self.snapshots().find(&name).cloned();
        let entry =
            found.ok_or_else(|| Error::not_found(format!("there is no snapshot {name}")))?;
        let target = {
            let mut state = self.state();
            let target = state.log(Record::SnapshotDeleted(entry.id))?;
            self.snapshots().delete(entry.id);
            target
        };
        self.wait_committed(target).await?;
        drop(checkpointer);
        self.checkpoint_due.notify_one();
        Ok(entry)
    }

    fn check_owner(&self) -> Result<()> {
        match self.is_read_only() {
            true => Err(Error::usage("the volume is open read-only")),
            false => Ok(()),
        }
    }
}
