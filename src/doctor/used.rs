//! Which chunks are named, and how far. Pure.
//!
//! 24 bytes a slot, in pages of 4096 slots of which one is named: 96 MiB for 16 TiB in chunks of 4 MiB.

use crate::format::VolumeId;
use crate::format::keys::ChunkId;
use crate::format::page::CHUNKS_PER_PAGE;
use crate::units::{Epoch, Seq};
use std::collections::BTreeMap;

/// What is known of a chunk without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub id: ChunkId,
    /// The sectors of its payload that are named all lie before this one.
    pub end: u32,
    /// Sectors of its payload, by a chunk page.
    pub payload: Option<u32>,
    /// Bytes of the object, by a listing.
    pub size: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    epoch: Epoch,
    end: u32,
    /// And one; zero where it is not known.
    payload: u32,
    /// And one; zero where it is not known.
    size: u32,
    verified: bool,
}

/// The chunks that are named.
#[derive(Debug, Default)]
pub(super) struct Used {
    pages: BTreeMap<(VolumeId, u64), Vec<Cell>>,
}

impl Used {
    fn cell_mut(&mut self, volume: VolumeId, seq: Seq) -> Option<&mut Cell> {
        let page = self.pages.get_mut(&(volume, seq.0 / CHUNKS_PER_PAGE))?;
        page.get_mut((seq.0 % CHUNKS_PER_PAGE) as usize).filter(|cell| cell.end > 0)
    }

    /// The payload of `chunk` is named up to the sector `end` (not zero). False where the slot was
    /// named before as one of another epoch.
    pub fn note(&mut self, chunk: ChunkId, end: u32) -> bool {
        let page = self.pages.entry((chunk.volume, chunk.seq.0 / CHUNKS_PER_PAGE));
        let page = page.or_insert_with(|| vec![Cell::default(); CHUNKS_PER_PAGE as usize]);
        let cell = &mut page[(chunk.seq.0 % CHUNKS_PER_PAGE) as usize];
        if cell.end == 0 {
            cell.epoch = chunk.epoch;
        }
        // What was verified was verified as far as it was named.
        cell.verified &= end <= cell.end;
        cell.end = cell.end.max(end);
        cell.epoch == chunk.epoch
    }

    /// A chunk page says how many sectors `chunk` has.
    pub fn note_payload(&mut self, chunk: ChunkId, payload: u32) {
        if let Some(cell) = self.cell_mut(chunk.volume, chunk.seq) {
            cell.payload = payload.saturating_add(1);
        }
    }

    /// A listing says how many bytes `chunk` has. False where nothing names it.
    pub fn note_size(&mut self, chunk: ChunkId, size: u64) -> bool {
        match self.cell_mut(chunk.volume, chunk.seq) {
            Some(cell) if cell.epoch == chunk.epoch => {
                cell.size = u32::try_from(size).unwrap_or(u32::MAX).saturating_add(1);
                true
            }
            _ => false,
        }
    }

    /// Whether a chunk of another volume is named.
    pub fn has_foreign(&self, volume: VolumeId) -> bool {
        self.pages.keys().any(|(of, _)| *of != volume)
    }

    /// Takes the next chunks that were not verified yet, at most `most`; they count as verified.
    pub fn take(&mut self, most: usize) -> Vec<Known> {
        let mut taken = Vec::new();
        for ((volume, page), cells) in &mut self.pages {
            for (cell, slot) in cells.iter_mut().zip(0..) {
                if cell.end == 0 || cell.verified {
                    continue;
                }
                if taken.len() == most {
                    return taken;
                }
                cell.verified = true;
                let seq = Seq(page * CHUNKS_PER_PAGE + slot);
                taken.push(Known {
                    id: ChunkId { volume: *volume, epoch: cell.epoch, seq },
                    end: cell.end,
                    payload: cell.payload.checked_sub(1),
                    size: cell.size.checked_sub(1).map(u64::from),
                });
            }
        }
        taken
    }

    /// How many chunks are to be verified.
    pub fn waiting(&self) -> u64 {
        let cells = self.pages.values().flatten();
        cells.filter(|cell| cell.end > 0 && !cell.verified).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(volume: u8, seq: u64, epoch: u64) -> ChunkId {
        let volume = VolumeId::from_bytes([volume; 16]);
        ChunkId { volume, epoch: Epoch(epoch), seq: Seq(seq) }
    }

    #[test]
    fn chunks_are_taken_once_unless_more_of_them_is_named() {
        let mut used = Used::default();
        assert!(used.note(chunk(1, 5, 1), 8) && used.note(chunk(1, 5, 1), 4));
        assert!(!used.note(chunk(1, 5, 2), 4), "another epoch");
        assert!(used.note(chunk(2, 5000, 3), 1));
        used.note_payload(chunk(1, 5, 1), 0);
        assert!(used.note_size(chunk(1, 5, 1), 100));
        assert!(!used.note_size(chunk(1, 5, 2), 100) && !used.note_size(chunk(1, 6, 1), 100));
        assert!(used.has_foreign(chunk(1, 0, 0).volume));
        assert_eq!(used.waiting(), 2);
        let first = Known { id: chunk(1, 5, 1), end: 8, payload: Some(0), size: Some(100) };
        assert_eq!(used.take(1), [first]);
        assert_eq!(used.take(9).len(), 1);
        assert!(used.take(9).is_empty());
        used.note(chunk(1, 5, 1), 8);
        assert!(used.take(9).is_empty());
        used.note(chunk(1, 5, 1), 9);
        assert_eq!(used.take(9), [Known { end: 9, ..first }]);
    }
}
