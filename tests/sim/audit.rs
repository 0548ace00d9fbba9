//! An independent reader of the bucket: what would be recovered if everybody died now.
//!
//! It shares the parsers of the format with the engine and nothing else: it finds the newest
//! checkpoint, walks its whole tree, replays the log behind it, and verifies that everything that
//! is reachable is there. It sees the store as it is, without faults.

use crate::layout::{self, Layout};
use crate::model::Image;
use bytes::Bytes;
use futures::FutureExt;
use objblk::format::checkpoint::Checkpoint;
use objblk::format::chunk::ChunkHeader;
use objblk::format::fence::{self, Fence};
use objblk::format::map_object::check_item;
use objblk::format::page::{
    ItemRef, LEAF_SECTORS, LEAVES_PER_PAGE, Location, parse_leaf, parse_map_page,
};
use objblk::format::record::Record;
use objblk::format::snapshot::SnapshotObject;
use objblk::format::{SnapshotId, VolumeId, keys};
use objblk::store::memory::MemoryStore;
use objblk::store::{GetRange, Key, Store};
use objblk::units::{Epoch, Sector, SectorCount, SectorRange, Seq};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// What recovery would find.
pub struct Recovered {
    /// The term in which the log ends.
    pub epoch: Epoch,
    /// The first slot that is missing.
    pub end: Seq,
    size: SectorCount,
    terms: Vec<(Seq, Epoch)>,
    places: Vec<Option<Location>>,
    /// What every snapshot is.
    pub snapshots: BTreeMap<SnapshotId, Recovered>,
}

pub struct Auditor<'a> {
    pub store: &'a MemoryStore,
    pub volume: VolumeId,
    pub layout: &'a Layout,
    /// Snapshots are only seen to be there, not to be whole.
    pub light: bool,
}

pub type Audit<T> = Result<T, String>;

impl Auditor<'_> {
    fn get(&self, key: &Key) -> Option<Bytes> {
        self.store.get(key, GetRange::All).now_or_never()?.ok()
    }

    pub fn need(&self, key: &Key) -> Audit<Bytes> {
        self.get(key).ok_or_else(|| format!("{key} is reachable and not there"))
    }

    /// The newest checkpoint and the log behind it. Everything reachable is verified to be there.
    pub fn recover(&self, initial: SectorCount) -> Audit<Recovered> {
        let prefix = keys::checkpoints(self.volume);
        let list = self.store.list(&prefix, None, 1);
        let newest = list.now_or_never().and_then(Result::ok).unwrap_or_default().objects;
        let checkpoint = match newest.first() {
            None => Checkpoint::initial(self.volume, initial),
            Some(newest) => Checkpoint::parse(&self.need(&newest.key)?)
                .map_err(|e| format!("{}: {e}", newest.key))?,
        };
        let mut found = Recovered::begin(&checkpoint, self.layout);
        self.walk(&checkpoint, &mut found)?;
        for entry in checkpoint.snapshots.iter().filter(|entry| !entry.deleted) {
            found.snapshots.insert(entry.id, self.snapshot(entry.id)?);
        }
        self.replay(&mut found)?;
        self.check_slots(&found)?;
        Ok(found)
    }

    fn snapshot(&self, id: SnapshotId) -> Audit<Recovered> {
        let key = keys::snapshot(self.volume, id);
        let object = SnapshotObject::parse(&self.need(&key)?).map_err(|e| format!("{key}: {e}"))?;
        let checkpoint = object.checkpoint;
        let mut found = Recovered::begin(&checkpoint, self.layout);
        if !self.light {
            self.walk(&checkpoint, &mut found)
                .and_then(|()| self.check_slots(&found))
                .map_err(|what| format!("snapshot {}: {what}", object.entry.name))?;
        }
        Ok(found)
    }

    pub fn check_slots(&self, found: &Recovered) -> Audit<()> {
        let slots: BTreeSet<Seq> = found.places.iter().flatten().map(|place| place.seq).collect();
        for slot in slots {
            let key = found.slot_key(self.volume, slot);
            if self.store.head(&key).now_or_never().is_none_or(|head| head.is_err()) {
                return Err(format!("{key} holds live sectors and is not there"));
            }
        }
        Ok(())
    }

    fn item(&self, item: ItemRef) -> Audit<Bytes> {
        let key = keys::map_object(self.volume, item.object);
        let object = self.need(&key)?;
        let range = item.offset as usize..item.offset as usize + item.len as usize;
        if object.len() < range.end {
            return Err(format!("{key} ends before an item"));
        }
        let bytes = object.slice(range);
        check_item(item, &bytes).map_err(|e| format!("{key}: {e}"))?;
        Ok(bytes)
    }

    pub fn walk(&self, checkpoint: &Checkpoint, found: &mut Recovered) -> Audit<()> {
        let mut live = 0;
        for (page, item) in &checkpoint.map_root {
            let leaves = parse_map_page(&self.item(*item)?).map_err(|e| e.to_string())?;
            for (slot, item) in leaves {
                let leaf = u64::from(*page) * LEAVES_PER_PAGE + u64::from(slot);
                for extent in parse_leaf(&self.item(item)?).map_err(|e| e.to_string())? {
                    live += u64::from(extent.len());
                    let start = leaf * LEAF_SECTORS + u64::from(extent.start());
                    if extent.location().seq >= checkpoint.next {
                        return Err(format!("the map names slot {}", extent.location().seq));
                    }
                    let len = u64::from(extent.len());
                    found.put(self.layout, (start, len), extent.location())?;
                }
            }
        }
        for (_, item) in &checkpoint.chunk_root {
            self.item(*item)?;
        }
        if live == checkpoint.live.0 {
            return Ok(());
        }
        Err(format!("the checkpoint counts {} live sectors of {live}", checkpoint.live.0))
    }

    fn replay(&self, found: &mut Recovered) -> Audit<()> {
        while self.replay_one(found)? {}
        Ok(())
    }

    /// Replays the next slot. False: there is none.
    pub fn replay_one(&self, found: &mut Recovered) -> Audit<bool> {
        let key = keys::slot(self.volume, found.end, found.epoch);
        let Some(object) = self.get(&key) else { return Ok(false) };
        let seq = found.end;
        found.end = seq.next();
        if object.starts_with(fence::MAGIC) {
            let fence = Fence::parse(&object).map_err(|e| format!("{key}: {e}"))?;
            if fence.next_epoch <= found.epoch {
                return Err(format!("{key} leads back to epoch {}", fence.next_epoch));
            }
            found.epoch = fence.next_epoch;
            found.terms.push((found.end, found.epoch));
            return Ok(true);
        }
        let header = ChunkHeader::parse(&object).map_err(|e| format!("{key}: {e}"))?;
        for record in &header.records {
            match record {
                Record::SnapshotMade(id) => {
                    found.snapshots.insert(*id, self.snapshot(*id)?);
                }
                Record::SnapshotDeleted(id) => drop(found.snapshots.remove(id)),
                Record::RolledBack(id) => {
                    let back = self.snapshot(*id)?;
                    (found.size, found.places) = (back.size, back.places);
                }
                _ => {}
            }
            found.apply(self.layout, seq, record)?;
        }
        Ok(true)
    }

    /// The contents of the volume.
    pub fn image(&self, found: &Recovered) -> Audit<Image> {
        let mut chunks: BTreeMap<Seq, Vec<u8>> = BTreeMap::new();
        let mut stamps = vec![0; found.places.len()];
        for (sector, place) in found.places.iter().enumerate() {
            let Some(place) = place else { continue };
            let payload = match chunks.entry(place.seq) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    new.insert(self.chunk(&found.slot_key(self.volume, place.seq))?)
                }
            };
            let at = place.offset as usize * 512;
            if at >= payload.len() {
                return Err(format!("sector {sector} lies behind the end of slot {}", place.seq));
            }
            stamps[sector] = layout::stamp_of(sector, &payload[at..at + 512])?;
        }
        Ok(Image { size: self.layout.indices(everything(found.size)).end, stamps })
    }

    /// The payload of a chunk.
    fn chunk(&self, key: &Key) -> Audit<Vec<u8>> {
        let object = self.need(key)?;
        let header = ChunkHeader::parse(&object).map_err(|e| format!("{key}: {e}"))?;
        let (mut payload, mut at) = (Vec::new(), header.header_len as usize);
        for (index, entry) in header.frames.entries.iter().enumerate() {
            let end = at + entry.encoded_len as usize;
            let frame = object.get(at..end).ok_or_else(|| format!("{key} is cut off"))?;
            let opened = header.frames.open(index, frame).map_err(|e| format!("{key}: {e}"))?;
            payload.extend_from_slice(&opened);
            at = end;
        }
        Ok(payload)
    }
}

fn everything(size: SectorCount) -> SectorRange {
    SectorRange::between(Sector(0), Sector(size.0))
}

impl Recovered {
    /// At the position of a checkpoint, before anything of it was looked at.
    pub fn begin(checkpoint: &Checkpoint, layout: &Layout) -> Recovered {
        Recovered {
            epoch: checkpoint.epoch,
            end: checkpoint.next,
            size: checkpoint.size,
            terms: checkpoint.terms.iter().map(|term| (term.first, term.epoch)).collect(),
            places: vec![None; layout.sectors()],
            snapshots: BTreeMap::new(),
        }
    }

    fn slot_key(&self, volume: VolumeId, seq: Seq) -> Key {
        let after = self.terms.partition_point(|(first, _)| *first <= seq);
        let epoch = after.checked_sub(1).map_or(Epoch(0), |at| self.terms[at].1);
        keys::slot(volume, seq, epoch)
    }

    fn put(&mut self, layout: &Layout, (start, len): (u64, u64), at: Location) -> Audit<()> {
        for n in 0..len {
            let Some(sector) = layout.index(start + n) else {
                return Err(format!("slot {} holds sector {start}+{n}, never written", at.seq));
            };
            self.places[sector] = Some(at.advance(n));
        }
        Ok(())
    }

    fn apply(&mut self, layout: &Layout, seq: Seq, record: &Record) -> Audit<()> {
        match *record {
            Record::Data { range, offset } => {
                let span = (range.start().0, range.len().0);
                self.put(layout, span, Location { seq, offset })?;
            }
            Record::Zero(range) | Record::Trim(range) => {
                self.places[layout.indices(range)].fill(None);
            }
            Record::Resize(size) => {
                let kept = layout.indices(everything(size)).end;
                self.places[kept..].fill(None);
                self.size = size;
            }
            Record::EpochStart | Record::Close => {}
            Record::SnapshotMade(_) | Record::SnapshotDeleted(_) | Record::RolledBack(_) => {}
        }
        Ok(())
    }
}
