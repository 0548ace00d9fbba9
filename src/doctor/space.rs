//! What of a volume's objects nobody needs.

use super::gather::Gathered;
use super::unneeded;
use super::used::Used;
use crate::error::Result;
use crate::format::checkpoint::Garbage;
use crate::format::fence;
use crate::format::keys::{self, ChunkId, MapObjectId};
use crate::format::{SnapshotId, VolumeId};
use crate::store::{GetRange, Key, MAX_PAGE, ObjectInfo, Store, StoreErrorKind};
use crate::units::Seq;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// No fence is longer, in bytes.
const FENCE_MAX: u64 = 1 << 10;
/// Orphans that are named.
pub(super) const NAMED: usize = 16;

/// A number of objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// How many.
    pub objects: u64,
    /// Their size together.
    pub bytes: u64,
}

impl Amount {
    pub(super) fn add(&mut self, object: &ObjectInfo) {
        self.objects += 1;
        self.bytes += object.size;
    }
}

/// The objects of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Space {
    /// All of them.
    pub stored: Amount,
    /// What nobody needs and its owner, or the next one, deletes; or what an owner is writing.
    pub pending: Amount,
    /// What is needed for the past only, and deleted once that has expired.
    pub past: Amount,
    /// What nobody needs and nobody will delete as long as the volume is there.
    pub orphans: Amount,
    /// Some of the orphans.
    pub orphans_named: Vec<String>,
    /// What is damaged of `pending` and `orphans`, and of fences of old terms; looked for with the data.
    pub damaged: Amount,
    /// Some of these.
    pub damaged_named: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Needed,
    Pending,
    Past,
    Orphan,
    /// A slot of the log that holds a fence, or nothing that anybody needs.
    Fence,
}

/// What decides what an object is for.
pub(super) struct Sorter<'a> {
    id: VolumeId,
    gathered: &'a Gathered,
    map_objects: &'a BTreeSet<MapObjectId>,
    dead: Listed,
    /// What only the past needs.
    kept: Listed,
    /// The first slot of the log that no checkpoint has.
    next: Seq,
    has_newest: bool,
    beyond: Option<ChunkId>,
}

impl<'a> Sorter<'a> {
    /// `None` where the volume's checkpoint is not known: everything may be needed.
    pub fn new(
        id: VolumeId,
        gathered: &'a Gathered,
        map_objects: &'a BTreeSet<MapObjectId>,
    ) -> Option<Sorter<'a>> {
        let checkpoint = gathered.checkpoint.as_ref()?;
        let next = checkpoint.next;
        let (dead, kept) = (Listed::of(&gathered.past.dead), Listed::of(&gathered.past.kept));
        Some(Sorter {
            id,
            gathered,
            map_objects,
            dead,
            kept,
            next,
            has_newest: false,
            beyond: None,
        })
    }

    /// Lists all objects of the volume; sizes of chunks go to `used`. With `data`, those that nobody needs are
    /// read. Returns a chunk, too, that lies behind the end of the log where none can be.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn sort(
        mut self,
        store: &dyn Store,
        used: &mut Used,
        data: bool,
    ) -> Result<(Space, Option<ChunkId>)> {
        let prefix = keys::volume_prefix(self.id);
        let (mut space, mut after) = (Space::default(), None::<Key>);
        loop {
            let page = store.list(&prefix, after.as_ref(), MAX_PAGE).await?;
            let mut unneeded = Vec::new();
            for object in &page.objects {
                space.stored.add(object);
                let mut sort = self.sort_one(object, used);
                if data && matches!(sort, Sort::Pending | Sort::Orphan | Sort::Fence) {
                    unneeded.push(object.clone());
                }
                if sort == Sort::Fence {
                    let is_fence = is_fence(store, &object.key).await?;
                    sort = if is_fence { Sort::Needed } else { Sort::Orphan };
                }
                match sort {
                    Sort::Needed | Sort::Fence => {}
                    Sort::Pending => space.pending.add(object),
                    Sort::Past => space.past.add(object),
                    Sort::Orphan => {
                        space.orphans.add(object);
                        if space.orphans_named.len() < NAMED {
                            space.orphans_named.push(object.key.to_string());
                        }
                    }
                }
            }
            unneeded::verify(store, unneeded, &mut space).await?;
            after = page.objects.last().map(|object| object.key.clone());
            if !page.more || after.is_none() {
                return Ok((space, self.beyond));
            }
        }
    }

    fn sort_one(&mut self, object: &ObjectInfo, used: &mut Used) -> Sort {
        let (id, key) = (self.id, &object.key);
        if let Some((seq, epoch)) = keys::parse_slot(id, key) {
            return self.sort_slot(ChunkId { volume: id, epoch, seq }, object.size, used);
        }
        if let Some(map) = keys::parse_map_object(id, key) {
            return match map {
                map if self.kept.maps.contains(&map) => Sort::Past,
                map if self.map_objects.contains(&map) => Sort::Needed,
                map if self.dead.maps.contains(&map) => Sort::Pending,
                // Its owner may be about to name it.
                map if map.epoch >= self.gathered.epoch => Sort::Pending,
                _ => Sort::Orphan,
            };
        }
        if keys::parse_checkpoint(id, key).is_some() {
            let is_point = self.gathered.past.points.contains(key);
            let is_newest = !std::mem::replace(&mut self.has_newest, true);
            return match (is_newest, is_point) {
                (true, _) => Sort::Needed,
                (_, true) => Sort::Past,
                _ => Sort::Pending,
            };
        }
        if let Some(snapshot) = keys::parse_snapshot(id, key) {
            let is_known = self.gathered.snapshots.iter().any(|entry| entry.id == snapshot);
            return match is_known {
                true => Sort::Needed,
                false if self.kept.snapshots.contains(&snapshot) => Sort::Past,
                false => Sort::Pending,
            };
        }
        if let Some((request, _)) = keys::parse_request(id, key) {
            // Those of former terms the next owner deletes.
            return match request.epoch >= self.gathered.epoch {
                true => Sort::Needed,
                false => Sort::Pending,
            };
        }
        let is_known = *key == keys::volume(id)
            || *key == keys::profile(id)
            || self.gathered.key_slots.as_ref() == Some(key)
            || keys::parse_received(id, key).is_some()
            || keys::parse_kept(id, key).is_some()
            || keys::parse_schedule(id, key).is_some()
            || keys::parse_scrub(id, key).is_some()
            || keys::parse_replica_state(id, key).is_some()
            || keys::parse_epoch(id, key).is_some()
            || keys::parse_placement(id, key).is_some()
            || keys::parse_child(id, key).is_some();
        match is_known {
            true => Sort::Needed,
            false if key.as_str().starts_with(&keys::children(id)) => Sort::Pending,
            false => Sort::Orphan,
        }
    }

    fn sort_slot(&mut self, chunk: ChunkId, size: u64, used: &mut Used) -> Sort {
        let seq = chunk.seq;
        // Fences may lie far ahead of an owner, in terms that were reached.
        let tells = size > FENCE_MAX || chunk.epoch > self.gathered.epoch;
        if tells && self.gathered.is_beyond(chunk) {
            self.beyond = Some(chunk);
        }
        let is_named = used.note_size(chunk, size);
        if self.kept.has_slot(seq) {
            return Sort::Past;
        }
        if is_named || self.gathered.fences.contains(&seq) {
            return Sort::Needed;
        }
        if seq >= self.next || self.dead.has_slot(seq) {
            return Sort::Pending;
        }
        // Those of old terms stay for good.
        if size <= FENCE_MAX { Sort::Fence } else { Sort::Orphan }
    }
}

/// Objects that checkpoints list.
#[derive(Default)]
struct Listed {
    /// Slots: first, number.
    slots: BTreeMap<u64, u64>,
    maps: BTreeSet<MapObjectId>,
    snapshots: BTreeSet<SnapshotId>,
}

impl Listed {
    fn of(garbage: &[Garbage]) -> Listed {
        let mut listed = Listed::default();
        for garbage in garbage {
            match garbage {
                Garbage::Slots { first, count } => drop(listed.slots.insert(first.0, *count)),
                Garbage::Map(object) => drop(listed.maps.insert(*object)),
                Garbage::Snapshot(id) => drop(listed.snapshots.insert(*id)),
            }
        }
        listed
    }

    fn has_slot(&self, seq: Seq) -> bool {
        let before = self.slots.range(..=seq.0).next_back();
        before.is_some_and(|(first, count)| seq.0 - first < *count)
    }
}

async fn is_fence(store: &dyn Store, key: &Key) -> Result<bool> {
    use StoreErrorKind::{Damaged, NotFound, Range};
    let range = GetRange::Part { offset: 0, len: fence::MAGIC.len() as u64 };
    match store.get(key, range).await {
        Ok(bytes) => Ok(bytes.starts_with(fence::MAGIC)),
        Err(e) if matches!(e.kind, NotFound | Range | Damaged) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
