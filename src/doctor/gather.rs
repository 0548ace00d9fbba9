//! What there is to follow of a volume, and the objects that stand for themselves.

use super::flaw::{Affected, Damage, Flaw, Found, read};
use super::past::Past;
use super::state::State;
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::checkpoint::Checkpoint;
use crate::format::fence::Fence;
use crate::format::key_slots::KeySlots;
use crate::format::keys::{self, ChunkId};
use crate::format::profile::Profile;
use crate::format::replica::ReplicaObject;
use crate::format::scrub::ScrubObject;
use crate::format::snapshot::{SnapshotEntry, SnapshotObject};
use crate::format::volume::{EpochObject, VolumeObject};
use crate::log::IN_FLIGHT_MAX;
use crate::store::{Key, Store, StoreErrorKind, list_all};
use crate::units::{Epoch, Seq};
use crate::volume::present::{Present, newest_checkpoint, present};
use crate::volume::replica_state;
use futures::stream::{self, StreamExt, TryStreamExt};
use std::collections::BTreeSet;

/// Small objects that are read at the same time.
pub(super) const PARALLEL: usize = 16;

/// A volume as it was found.
#[derive(Debug)]
pub(super) struct Gathered {
    /// In order of their position, the volume now last.
    pub states: Vec<State>,
    /// What cannot be attached at all.
    pub lost: Vec<Affected>,
    pub damages: Vec<Damage>,
    pub notes: Vec<String>,
    /// The newest checkpoint, or what the volume begins with.
    pub checkpoint: Option<Checkpoint>,
    /// Its snapshots, those too that were deleted and are still needed.
    pub snapshots: Vec<SnapshotEntry>,
    /// The newest term.
    pub epoch: Epoch,
    /// The first slot that the log does not have, where it can be read.
    pub end: Option<Seq>,
    /// Slots that hold fences.
    pub fences: BTreeSet<Seq>,
    /// A clone that its origin does not know of.
    pub unknown_to_origin: bool,
    /// What is kept of its past; the points are among the states.
    pub past: Past,
    /// The slots of its key that count, if it is encrypted.
    pub key_slots: Option<Key>,
    /// What is complete of a replica.
    pub replica: Option<ReplicaObject>,
}

impl Gathered {
    /// Looks at the volume called `name`.
    ///
    /// # Errors
    /// Busy: its owner is too quick. Those of the store that tell nothing of an object.
    pub async fn of(store: &dyn Store, name: &str, description: &VolumeObject) -> Result<Gathered> {
        let mut gathered = Gathered {
            states: Vec::new(),
            lost: Vec::new(),
            damages: Vec::new(),
            notes: Vec::new(),
            checkpoint: None,
            snapshots: Vec::new(),
            epoch: description.lineage().first_epoch(),
            end: None,
            fences: BTreeSet::new(),
            unknown_to_origin: false,
            past: Past::default(),
            key_slots: None,
            replica: None,
        };
        if description.is_replica() {
            gathered.replica = replica_state(store, description.id).await?;
        }
        let (now, is_lost) = gathered.look(store, name, description).await?;
        gathered.read_snapshots(store, name, description, is_lost).await?;
        gathered.look_back(store, name, description).await?;
        gathered.states.extend(now);
        gathered.epochs(store, description).await?;
        gathered.fences(store, description).await?;
        gathered.profile(store, description.id).await?;
        gathered.scrub(store, description.id).await?;
        if description.is_encrypted() {
            gathered.key_slots(store, description.id).await?;
        }
        gathered.older_checkpoints(store, description.id).await?;
        gathered.children(store, name, description).await?;
        Ok(gathered)
    }

    /// The volume now, and whether it cannot be attached.
    async fn look(
        &mut self,
        store: &dyn Store,
        name: &str,
        description: &VolumeObject,
    ) -> Result<(Option<State>, bool)> {
        let lineage = description.lineage();
        let why = match present(store, description).await {
            Ok(found) => {
                let Present { checkpoint, changes, size, terms, end, snapshots } = found;
                // What lies behind the end of a replica is on its way, and proves nothing.
                let ends = !description.is_replica() || self.promoted().is_some();
                (self.epoch, self.end) = (end.epoch, ends.then_some(end.slot));
                self.snapshots = snapshots;
                let state = State::of(name.into(), lineage, &checkpoint);
                self.checkpoint = Some(checkpoint);
                return Ok((Some(State { terms, size, changes, ..state }), false));
            }
            Err(e) if is_damage(&e) => e,
            Err(e) => return Err(e),
        };
        let text = format!("{name} cannot be attached: {why}");
        let object = named_in(&text, description.id);
        self.damages.push(Damage { object, kind: super::flaw::Kind::Damaged, what: text });
        let checkpoint = match newest_checkpoint(store, description).await {
            Ok(checkpoint) => Some(checkpoint),
            Err(e) if is_damage(&e) => None,
            Err(e) => return Err(e),
        };
        let sectors = checkpoint.as_ref().map_or(description.sectors(), |last| last.size).0;
        self.lost.push(Affected::all(name.into(), sectors));
        let state = checkpoint.as_ref().map(|last| State::of(name.into(), lineage, last));
        let known = checkpoint.as_ref().map_or(&[][..], |last| &last.snapshots);
        self.snapshots = with_stored(store, description.id, known).await?;
        self.epoch = checkpoint.as_ref().map_or(self.epoch, |last| last.epoch);
        self.checkpoint = checkpoint;
        Ok((state, true))
    }

    /// The epoch that a replica was promoted to.
    fn promoted(&self) -> Option<Epoch> {
        Some(self.replica.as_ref()?.promoted.as_ref()?.epoch)
    }

    /// Whether this object of the log proves that the log goes on behind what is taken for its end.
    pub fn is_beyond(&self, chunk: ChunkId) -> bool {
        let far = |end: Seq| chunk.seq.0 > end.0.saturating_add(2 * IN_FLIGHT_MAX as u64);
        // Nobody writes in a term before the fence that leads to it is there.
        self.end
            .is_some_and(|end| chunk.epoch > self.epoch || chunk.epoch == self.epoch && far(end))
    }

    async fn read_snapshots(
        &mut self,
        store: &dyn Store,
        name: &str,
        description: &VolumeObject,
        is_lost: bool,
    ) -> Result<()> {
        let id = description.id;
        let look = |entry: SnapshotEntry| async move {
            let found = read_snapshot(store, id, &entry).await?;
            Ok::<_, Error>((entry, found))
        };
        let entries = self.snapshots.clone();
        let mut found = stream::iter(entries).map(look).buffered(PARALLEL).boxed();
        while let Some((entry, found)) = found.try_next().await? {
            let mut called = format!("{name}@{}", entry.name);
            if entry.deleted {
                called.push_str(" (deleted)");
            }
            // Whoever attaches a snapshot reads the volume's checkpoint and log first.
            if (is_lost || found.is_err()) && !entry.deleted {
                self.lost.push(Affected::all(called.clone(), entry.size.0));
            }
            match found {
                Ok(object) => {
                    self.states.push(State::of(called, description.lineage(), &object.checkpoint));
                }
                Err(flaw) => {
                    let what = format!("the snapshot {called}");
                    self.damages.push(Damage::of(&keys::snapshot(id, entry.id), &flaw, &what));
                }
            }
        }
        Ok(())
    }

    async fn epochs(&mut self, store: &dyn Store, description: &VolumeObject) -> Result<()> {
        let id = description.id;
        let listed = list_all(store, &keys::epochs(id)).await?;
        let keys: Vec<Key> = listed.into_iter().map(|object| object.key).collect();
        let known: BTreeSet<Epoch> =
            keys.iter().filter_map(|key| keys::parse_epoch(id, key)).collect();
        let look = |key: Key| async move {
            let found = read(store, &key, EpochObject::parse).await?;
            Ok::<_, Error>((key, found))
        };
        let mut found = stream::iter(keys).map(look).buffered(PARALLEL).boxed();
        while let Some((key, found)) = found.try_next().await? {
            if let Err(flaw) = found {
                self.damages.push(Damage::of(&key, &flaw, "who owned the volume"));
            }
        }
        let first = match description.is_replica() {
            true => self.promoted().unwrap_or(Epoch(u64::MAX)),
            false => description.lineage().first_epoch(),
        };
        let Some(now) = self.states.last() else { return Ok(()) };
        let terms = now.terms.as_slice().iter().map(|term| term.epoch);
        // Those of a replica were claimed elsewhere.
        let missing = terms.filter(|epoch| *epoch > first && !known.contains(epoch));
        for epoch in missing.collect::<Vec<_>>() {
            let key = keys::epoch(id, epoch);
            self.damages.push(Damage::of(&key, &Flaw::Missing, "the claim of a term of the log"));
            let is_newest = known.last().is_none_or(|newest| *newest < epoch);
            // Whoever attaches it would claim that epoch once more.
            let is_told = self.lost.iter().any(|lost| lost.name == now.name);
            if is_newest && !is_told {
                self.lost.push(Affected::all(now.name.clone(), now.size.0));
            }
        }
        Ok(())
    }

    /// Each term but the last one ended with a fence.
    async fn fences(&mut self, store: &dyn Store, description: &VolumeObject) -> Result<()> {
        let Some(terms) = self.states.last().map(|state| state.terms.clone()) else {
            return Ok(());
        };
        let lineage = description.lineage();
        for pair in terms.as_slice().windows(2) {
            // A clone begins without one.
            let is_branch = description.ancestors.iter().any(|a| a.next == pair[1].first)
                || self.replica.as_ref().is_some_and(|state| state.is_branch(pair[1].epoch));
            let Some(slot) = pair[1].first.0.checked_sub(1).filter(|_| !is_branch) else {
                continue;
            };
            // Those of an ancestor are its own, and may have gone with it once nothing of it is needed.
            if !lineage.owns_slot(Seq(slot)) {
                continue;
            }
            let id = lineage.chunk(Seq(slot), pair[0].epoch);
            self.fences.insert(id.seq);
            let ends = |fence: &Fence| {
                (fence.volume, fence.epoch, fence.seq) == (id.volume, id.epoch, id.seq)
                    && fence.next_epoch == pair[1].epoch
            };
            let flaw = match read(store, &id.key(), Fence::parse).await? {
                Ok(fence) if ends(&fence) => continue,
                Ok(_) => Flaw::Inconsistent("it is the fence of another slot or epoch".into()),
                Err(flaw) => flaw,
            };
            let what = "the fence that keeps a former owner from writing";
            self.damages.push(Damage::of(&id.key(), &flaw, what));
        }
        Ok(())
    }

    async fn profile(&mut self, store: &dyn Store, id: VolumeId) -> Result<()> {
        let key = keys::profile(id);
        let flaw = match read(store, &key, Profile::parse).await? {
            Ok(profile) if profile.volume == id => return Ok(()),
            Ok(_) => Flaw::Inconsistent("it is of another volume".into()),
            Err(Flaw::Missing) => return Ok(()),
            Err(flaw) => flaw,
        };
        self.damages.push(Damage::of(&key, &flaw, "the profile, on which nothing depends"));
        Ok(())
    }

    /// What the last scrub left damaged is damage only if it is found again.
    async fn scrub(&mut self, store: &dyn Store, id: VolumeId) -> Result<()> {
        let Some(newest) = store.list(&keys::scrubs(id), None, 1).await?.objects.pop() else {
            return Ok(());
        };
        let flaw = match read(store, &newest.key, ScrubObject::parse).await? {
            Ok(note) if keys::scrub(note.volume, note.number) == newest.key => {
                if let Some(last) = note.last.filter(|last| last.left() > 0) {
                    let (left, ended) = (last.left(), clock::show(last.ended_at_ms));
                    self.notes.push(format!(
                        "the scrub that ended at {ended} left {left} objects damaged: look with --data"
                    ));
                }
                return Ok(());
            }
            Ok(_) => Flaw::Inconsistent("it is another note than its name says".into()),
            // A newer one took its place.
            Err(Flaw::Missing) => return Ok(()),
            Err(flaw) => flaw,
        };
        let what = "the note of a scrub, on which nothing depends";
        self.damages.push(Damage::of(&newest.key, &flaw, what));
        Ok(())
    }

    /// Who has the key now may be the last one.
    async fn key_slots(&mut self, store: &dyn Store, id: VolumeId) -> Result<()> {
        let newest = store.list(&keys::key_sets(id), None, 1).await?.objects;
        let key = newest.first().map_or(keys::key_set(id, 0), |newest| newest.key.clone());
        if let Err(flaw) = read(store, &key, KeySlots::parse).await? {
            let what = "the slots of the volume's key, without which nobody opens it again";
            self.damages.push(Damage::of(&key, &flaw, what));
        }
        self.key_slots = Some(key);
        Ok(())
    }

    /// Those that are no points nobody needs: their owner had no time to delete them.
    async fn older_checkpoints(&mut self, store: &dyn Store, id: VolumeId) -> Result<()> {
        let listed = list_all(store, &keys::checkpoints(id)).await?;
        let points = &self.past.points;
        for object in listed.iter().skip(1).filter(|object| !points.contains(&object.key)) {
            if let Err(flaw @ (Flaw::Damaged(_) | Flaw::Size { .. })) =
                read(store, &object.key, Checkpoint::parse).await?
            {
                self.notes.push(format!("{}, which nobody needs: {flaw}", object.key));
            }
        }
        Ok(())
    }

    /// Clones, and what they were made of.
    async fn children(
        &mut self,
        store: &dyn Store,
        name: &str,
        description: &VolumeObject,
    ) -> Result<()> {
        let id = description.id;
        for object in list_all(store, &keys::children(id)).await? {
            let Some((snapshot, child)) = keys::parse_child(id, &object.key) else { continue };
            if !is_there(store, &keys::volume(child)).await? {
                self.notes.push(format!("{} is of a clone that is gone", object.key));
                continue;
            }
            let is_known = |entry: &SnapshotEntry| entry.id == snapshot && !entry.deleted;
            if self.checkpoint.is_some() && !self.snapshots.iter().any(is_known) {
                let what =
                    format!("volume {child} is a clone of a snapshot that {name} does not have");
                let (object, kind) =
                    (Some(object.key.to_string()), super::flaw::Kind::Inconsistent);
                self.damages.push(Damage { object, kind, what });
            }
        }
        if let Some(origin) = description.origin() {
            let mark = keys::child(origin.volume, origin.snapshot, id);
            self.unknown_to_origin = !is_there(store, &mark).await?;
        }
        Ok(())
    }
}

/// What cannot be attached where nothing tells what the volume is.
///
/// # Errors
/// Those of the store that tell nothing of an object.
pub(super) async fn undescribed(
    store: &dyn Store,
    (name, id): (&str, VolumeId),
) -> Result<Vec<Affected>> {
    let newest = store.list(&keys::checkpoints(id), None, 1).await?.objects;
    let found = match newest.first() {
        Some(newest) => read(store, &newest.key, Checkpoint::parse).await?.ok(),
        None => None,
    };
    let known = found.as_ref().map_or(&[][..], |found| &found.snapshots);
    let snapshots = with_stored(store, id, known).await?;
    let snapshots = snapshots.iter().filter(|entry| !entry.deleted);
    let snapshots =
        snapshots.map(|entry| Affected::all(format!("{name}@{}", entry.name), entry.size.0));
    let now = match &found {
        Some(found) => Affected::all(name.into(), found.size.0),
        None => Affected { name: name.into(), whole: true, sectors: 0, runs: Vec::new() },
    };
    Ok(snapshots.chain([now]).collect())
}

impl Affected {
    /// All of it.
    pub(super) fn all(name: String, sectors: u64) -> Affected {
        let runs = vec![super::runs::Run { sector: 0, count: sectors }];
        Affected { name, whole: true, sectors, runs }
    }
}

/// Whether an error tells of what is stored, not of the store.
pub(super) fn is_damage(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::NotFound)
}

pub(super) async fn is_there(store: &dyn Store, key: &Key) -> Result<bool> {
    match store.head(key).await {
        Ok(_) => Ok(true),
        Err(e) if e.kind == StoreErrorKind::NotFound => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// The object of the volume that a sentence names.
pub(super) fn named_in(text: &str, id: VolumeId) -> Option<String> {
    let prefix = keys::volume_prefix(id);
    let words = text.split(|c: char| c.is_whitespace() || matches!(c, ':' | ',' | ';' | '(' | ')'));
    words.map(str::to_owned).find(|word| word.starts_with(&prefix))
}

async fn read_snapshot(
    store: &dyn Store,
    id: VolumeId,
    entry: &SnapshotEntry,
) -> Result<Found<SnapshotObject>> {
    let found = read(store, &keys::snapshot(id, entry.id), SnapshotObject::parse).await?;
    Ok(found.and_then(|object| {
        let of = (object.checkpoint.volume, object.entry.id, object.entry.next);
        match of == (id, entry.id, entry.next) {
            true => Ok(object),
            false => Err(Flaw::Inconsistent("it is another snapshot than its name says".into())),
        }
    }))
}

/// Those snapshots and others that are stored: where the log cannot be read, nothing tells which there are.
pub(super) async fn with_stored(
    store: &dyn Store,
    id: VolumeId,
    known: &[SnapshotEntry],
) -> Result<Vec<SnapshotEntry>> {
    let mut entries = known.to_vec();
    for object in list_all(store, &keys::snapshots(id)).await? {
        let is_known = |of| known.iter().any(|entry| entry.id == of);
        if keys::parse_snapshot(id, &object.key).is_none_or(is_known) {
            continue;
        }
        if let Ok(found) = read(store, &object.key, SnapshotObject::parse).await? {
            entries.push(found.entry);
        }
    }
    entries.sort_by_key(|entry| entry.next);
    Ok(entries)
}
