//! Where a sector of a volume, or of a snapshot, is stored.

use super::chunk::{frame_place, frames, header};
use super::flaw::Found;
use super::gather::is_damage;
use super::state::State;
use crate::error::{Error, Result};
use crate::format::VolumeId;
use crate::format::chunk::FRAME_SECTORS;
use crate::format::frame::frame_payload_len;
use crate::format::page::{ItemRef, Location, parse_leaf, parse_map_page};
use crate::map::Target;
use crate::map::base::{find_leaf, leaf_index, leaf_range, page_of};
use crate::map::leaf;
use crate::pool::{Pool, VolumeSpec};
use crate::store::Store;
use crate::units::{SECTOR_SIZE, Sector, SectorCount, SectorRange};
use crate::volume::find_snapshot;
use crate::volume::present::{Present, present};
use serde::Serialize;

/// A part of a map object.
#[derive(Clone, Debug, Serialize)]
pub struct Item {
    /// The map object.
    pub object: String,
    /// First byte in it.
    pub offset: u32,
    /// Length in bytes.
    pub length: u32,
    /// crc32c of these bytes.
    pub crc32c: String,
}

/// Where a sector's data is in a chunk.
#[derive(Clone, Debug, Serialize)]
pub struct Stored {
    /// The chunk.
    pub object: String,
    /// The volume that it was written for: an ancestor of a clone, perhaps.
    pub volume: VolumeId,
    /// The owner's term.
    pub epoch: u64,
    /// Its slot of the log.
    pub seq: u64,
    /// The sector in its payload.
    pub payload_sector: u32,
    /// The frame.
    pub frame: u32,
    /// First byte of the frame in the object.
    pub frame_offset: Option<u64>,
    /// First byte of the sector in the object.
    pub offset: Option<u64>,
    /// crc32c that the frame should have.
    pub crc32c: Option<String>,
    /// The frame has it.
    pub ok: bool,
}

/// What is found of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    /// It was never written, or trimmed or zeroed since: it reads as zeros.
    Hole,
    /// It is in a chunk.
    Data,
    /// It cannot be read.
    Damaged,
}

/// Where a sector is.
#[derive(Clone, Debug, Serialize)]
pub struct Located {
    /// NAME or NAME@SNAP.
    pub name: String,
    /// The sector, of 512 bytes.
    pub sector: u64,
    /// Its first byte on the disk.
    pub byte: u64,
    /// What was found.
    pub found: Finding,
    /// The log behind the newest checkpoint has it, and not the map.
    pub in_log: bool,
    /// The page of the map that says where the leaf is.
    pub map_page: Option<Item>,
    /// The leaf that says where the sector is.
    pub leaf: Option<Item>,
    /// First sector of the run that is stored together.
    pub extent_sector: Option<u64>,
    /// Sectors in that run.
    pub extent_count: Option<u64>,
    /// Where it is.
    pub stored: Option<Stored>,
    /// Why it cannot be read.
    pub problem: Option<String>,
    /// What an owner writes is not there yet.
    pub in_use: bool,
}

/// Finds the sector that holds `byte` of a volume or of a snapshot. Damage on the way is told, and is no
/// error.
///
/// # Errors
/// Usage: it is beyond the end. NotFound. Corrupt: nobody could attach it. Busy. Store.
pub async fn locate(pool: &Pool, name: &VolumeSpec, byte: u64) -> Result<Located> {
    let store = &**pool.store();
    let (id, description) = pool.lookup(&name.volume()).await?;
    let lineage = description.lineage();
    let context = |e: Error| match is_damage(&e) {
        true => e.context(format!("cannot look into {name}")),
        false => e,
    };
    let (state, closed) = match name.snapshot() {
        Some(snapshot) => {
            let found = find_snapshot(store, id, snapshot).await.map_err(context)?;
            (State::of(name.to_string(), lineage, &found.checkpoint), true)
        }
        None => {
            let found = present(store, &description).await.map_err(context)?;
            let Present { checkpoint, changes, size, terms, end, .. } = found;
            let closed = checkpoint.closed && checkpoint.epoch == end.epoch;
            let state = State::of(name.to_string(), lineage, &checkpoint);
            (State { terms, size, changes, ..state }, closed)
        }
    };
    let sector = Sector(byte / SECTOR_SIZE);
    if sector.0 >= state.size.0 {
        let text = format!("sector {sector} is beyond the end of {name}, which has {}", state.size);
        return Err(Error::usage(text)
            .hint("name a sector of 512 bytes, or a byte with a unit (4096B, 1M)"));
    }
    let mut located = Located {
        name: name.to_string(),
        sector: sector.0,
        byte,
        found: Finding::Hole,
        in_log: false,
        map_page: None,
        leaf: None,
        extent_sector: None,
        extent_count: None,
        stored: None,
        problem: None,
        in_use: !closed,
    };
    match located.find(store, &state, sector).await? {
        Ok(None) => {}
        Ok(Some(place)) => located.look(store, &state, place).await?,
        Err(why) => located.fail(why),
    }
    Ok(located)
}

fn tell(state: &State, item: ItemRef) -> Item {
    let object = state.lineage.map_object(item.object).to_string();
    Item { object, offset: item.offset, length: item.len, crc32c: format!("{:08x}", item.crc) }
}

impl Located {
    fn fail(&mut self, why: impl ToString) {
        (self.found, self.problem) = (Finding::Damaged, Some(why.to_string()));
    }

    /// Where the log or the map says that it is.
    async fn find(
        &mut self,
        store: &dyn Store,
        state: &State,
        at: Sector,
    ) -> Result<Found<Option<Location>>> {
        let one = SectorRange::between(at, Sector(at.0 + 1));
        if let Some((_, target)) = state.changes.changes(one).next() {
            self.in_log = true;
            let whole = state.changes.changes(state.all());
            let run = whole.map(|(run, _)| run).find(|run| !run.intersect(one).is_empty());
            self.extent(run.unwrap_or(one));
            return Ok(Ok(match target {
                Target::Zero => None,
                Target::Data(place) => Some(place),
            }));
        }
        let index = leaf_index(at);
        let (page, slot) = page_of(index);
        let Some(item) = state.map_root.get(&page) else { return Ok(Ok(None)) };
        self.map_page = Some(tell(state, *item));
        let page = match state.item(store, *item, parse_map_page).await? {
            Ok(page) => page,
            Err(flaw) => return Ok(Err(flaw)),
        };
        let Some(item) = find_leaf(&page, slot) else { return Ok(Ok(None)) };
        self.leaf = Some(tell(state, item));
        let extents = match state.item(store, item, parse_leaf).await? {
            Ok(extents) => extents,
            Err(flaw) => return Ok(Err(flaw)),
        };
        let first = leaf_range(index).start().0;
        let start = (at.0 - first) as u32;
        let mut place = None;
        leaf::lookup(&extents, start, start + 1, &mut |_, _, found| place = found);
        let around = extents.iter().find(|e| e.start() <= start && start < e.end());
        if let Some(extent) = around {
            let start = Sector(first + u64::from(extent.start()));
            self.extent(SectorRange::between(start, Sector(start.0 + u64::from(extent.len()))));
        }
        Ok(Ok(place))
    }

    fn extent(&mut self, run: SectorRange) {
        (self.extent_sector, self.extent_count) = (Some(run.start().0), Some(run.len().0));
    }

    /// Whether it is there.
    async fn look(&mut self, store: &dyn Store, state: &State, place: Location) -> Result<()> {
        let id = state.chunk(place.seq);
        let frame = place.offset / FRAME_SECTORS;
        let mut stored = Stored {
            object: id.key().to_string(),
            volume: id.volume,
            epoch: id.epoch.0,
            seq: id.seq.0,
            payload_sector: place.offset,
            frame,
            frame_offset: None,
            offset: None,
            crc32c: None,
            ok: false,
        };
        self.found = Finding::Data;
        match header(store, id).await? {
            Err(flaw) => self.fail(flaw),
            Ok(header) if place.offset >= header.payload_sectors() => {
                self.fail(format!("the chunk has {} sectors", header.payload_sectors()));
            }
            Ok(header) => {
                let start = frame_place(&header, frame).start;
                let inside = SectorCount(u64::from(place.offset % FRAME_SECTORS)).bytes();
                stored.frame_offset = Some(start);
                let entry = header.frames.entries.get(frame as usize);
                let payload = frame_payload_len(header.payload_sectors(), frame as usize);
                let is_plain = entry.is_some_and(|entry| entry.encoded_len as usize == payload);
                stored.offset = is_plain.then_some(start + inside);
                stored.crc32c = entry.map(|entry| format!("{:08x}", entry.crc));
                let mut why = frames(store, id, &header, frame..frame + 1).await?;
                if why.iter().any(Option::is_some) {
                    why = frames(store, id, &header, frame..frame + 1).await?;
                }
                match why.into_iter().flatten().next() {
                    None => stored.ok = true,
                    Some(why) => self.fail(why),
                }
            }
        }
        self.stored = Some(stored);
        Ok(())
    }
}
