//! What a state's own accounts must say: live sectors of each chunk, referenced bytes of each map object.
//! Pure.
//!
//! They are brought from one state to the next by what differs. 4 bytes a slot, in pages of 4096 slots of
//! which one is named: 16 MiB for 16 TiB in chunks of 4 MiB.

use super::state::State;
use crate::format::keys::MapObjectId;
use crate::format::page::{CHUNKS_PER_PAGE, ChunkPage, Extent, ItemRef};
use crate::units::Seq;
use std::collections::{BTreeMap, BTreeSet};

/// Contradictions of one state that are told one by one.
const TOLD: usize = 16;

/// What was counted.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    /// Live sectors, by chunk page.
    live: BTreeMap<u64, Vec<i32>>,
    /// Chunk pages that may differ from those of the state before.
    changed: BTreeSet<u64>,
    /// Referenced bytes of map objects.
    uses: BTreeMap<MapObjectId, i64>,
}

impl Accounts {
    /// Extents of a leaf that the state has, or only the one before has.
    pub fn count(&mut self, extents: &[Extent], sign: i32) {
        for extent in extents {
            let seq = extent.location().seq;
            let page = seq.0 / CHUNKS_PER_PAGE;
            let slots = self.live.entry(page).or_insert_with(|| vec![0; CHUNKS_PER_PAGE as usize]);
            let slot = &mut slots[(seq.0 % CHUNKS_PER_PAGE) as usize];
            *slot = slot.saturating_add(sign.saturating_mul(extent.len() as i32));
            self.changed.insert(page);
        }
    }

    /// An item that the state has, or only the one before has.
    pub fn refer(&mut self, item: ItemRef, sign: i64) {
        *self.uses.entry(item.object).or_default() += sign * i64::from(item.len);
    }

    /// Chunk pages of which more than their place may have changed.
    pub fn is_changed(&self, page: u64) -> bool {
        self.changed.contains(&page)
    }

    /// Chunk pages in which something is live.
    pub fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        let any = |slots: &Vec<i32>| slots.iter().any(|live| *live != 0);
        self.live.iter().filter(move |(_, slots)| any(slots)).map(|(page, _)| *page)
    }

    /// What the chunk page `page` says otherwise.
    pub fn contradictions(&self, page: u64, entries: &ChunkPage) -> Vec<String> {
        let mut said = vec![0i64; CHUNKS_PER_PAGE as usize];
        entries.iter().for_each(|(slot, used)| said[*slot as usize] = i64::from(used.live));
        let counted = self.live.get(&page);
        let counted = |slot: usize| counted.map_or(0, |slots| i64::from(slots[slot]));
        let wrong = (0..said.len()).filter(|slot| said[*slot] != counted(*slot));
        let tell = |slot: usize| {
            let seq = Seq(page * CHUNKS_PER_PAGE + slot as u64);
            let (said, counted) = (said[slot], counted(slot));
            format!("log slot {seq} has {counted} live sectors, and its account says {said}")
        };
        wrong.take(TOLD).map(tell).collect()
    }

    /// What the state says otherwise as a whole.
    pub fn contradictions_of(&self, state: &State) -> Vec<String> {
        let mut told = Vec::new();
        let live: i64 = self.live.values().flatten().map(|live| i64::from(*live)).sum();
        if live != state.live.0 as i64 {
            let said = state.live;
            told.push(format!("{live} sectors are live, and the checkpoint says {said}"));
        }
        let said: BTreeMap<MapObjectId, i64> =
            state.map_objects.iter().map(|used| (used.object, used.live.into())).collect();
        let objects: BTreeSet<&MapObjectId> = said.keys().chain(self.uses.keys()).collect();
        for object in objects {
            let of = |all: &BTreeMap<MapObjectId, i64>| all.get(object).copied().unwrap_or(0);
            let (said, counted) = (of(&said), of(&self.uses));
            if said != counted && told.len() < TOLD {
                let key = state.lineage.map_object(*object);
                told.push(format!(
                    "{counted} bytes of {key} are needed, and the checkpoint says {said}"
                ));
            }
        }
        told
    }

    /// The next state is compared with this one.
    pub fn settle(&mut self) {
        self.changed.clear();
        self.uses.retain(|_, bytes| *bytes != 0);
    }
}
