//! The entries of a ring, slot by slot.

use super::format::BatchHeader;
use super::{Place, SlotIndex};
use crate::cipher::LocalKey;
use crate::format::codec::{FormatResult, Reader};
use crate::journal::disk::{Blocks, Disk};
use crate::journal::entry::{self, Change, Entry};
use std::ops::Range;

/// What entries are a part of, in errors.
const OBJECT: &str = "journal batch";

/// The slot of the last entry.
pub(super) fn last_slot(first: SlotIndex, entries: &[u8]) -> FormatResult<Option<SlotIndex>> {
    let (mut slot, mut last) = (first, None);
    walk(entries, |entry| {
        last = Some(slot);
        if entry == Entry::SlotEnd {
            slot = slot.next();
        }
    })?;
    Ok(last)
}

fn walk<'a>(entries: &'a [u8], mut visit: impl FnMut(Entry<'a>)) -> FormatResult<()> {
    let mut r = Reader::new(OBJECT, entries);
    while r.remaining() > 0 {
        match entry::read(OBJECT, &mut r)? {
            Entry::Torn | Entry::Continued => return Err(r.bad("entry", "it is not whole")),
            entry => visit(entry),
        }
    }
    Ok(())
}

/// The batches that have the entries of one slot.
#[derive(Debug)]
pub struct Slots {
    index: SlotIndex,
    batches: FormatResult<Vec<Batch>>,
}

/// A batch that was opened: the slot of its first entry, and its entries.
#[derive(Debug)]
struct Batch {
    slot: SlotIndex,
    blocks: Blocks,
    range: Range<usize>,
}

/// Reads the batches of the slot `index`. `key`: that of an encrypted volume.
///
/// # Errors
/// They cannot be read.
pub async fn read_slot(
    disk: &dyn Disk,
    (index, places): (SlotIndex, Vec<Place>),
    key: Option<&LocalKey>,
) -> std::io::Result<Slots> {
    let mut batches = Vec::with_capacity(places.len());
    for place in places {
        batches.push((place.offset, disk.read(place.offset, place.len as usize).await?));
    }
    let open = |(offset, blocks)| Batch::open(blocks, offset, key);
    Ok(Slots { index, batches: batches.into_iter().map(open).collect() })
}

impl Batch {
    fn open(mut blocks: Blocks, offset: u64, key: Option<&LocalKey>) -> FormatResult<Batch> {
        let (header, _) = BatchHeader::parse(blocks.bytes())?;
        let range = header.lead()..header.lead() + header.len as usize;
        header.open(key, offset, &mut blocks.bytes_mut()[range.clone()])?;
        Ok(Batch { slot: header.slot, blocks, range })
    }

    fn entries(&self) -> &[u8] {
        &self.blocks.bytes()[self.range.clone()]
    }
}

impl Slots {
    fn batches(&self) -> FormatResult<&[Batch]> {
        self.batches.as_deref().map_err(Clone::clone)
    }

    /// Whether the slot's mark of its end is there.
    ///
    /// # Errors
    /// The place was used again, or is damaged.
    pub fn has_ended(&self) -> FormatResult<bool> {
        let mut has_ended = false;
        for batch in self.batches()? {
            let mut slot = batch.slot;
            walk(batch.entries(), |entry| {
                if entry == Entry::SlotEnd {
                    has_ended |= slot == self.index;
                    slot = slot.next();
                }
            })?;
        }
        Ok(has_ended)
    }

    /// The changes of the slot, in order.
    ///
    /// # Errors
    /// The place was used again, or is damaged.
    pub fn changes(&self) -> FormatResult<Vec<Change<'_>>> {
        let mut changes = Vec::new();
        for batch in self.batches()? {
            let mut slot = batch.slot;
            walk(batch.entries(), |entry| match entry {
                Entry::Change(change) if slot == self.index => changes.push(change),
                Entry::SlotEnd => slot = slot.next(),
                _ => {}
            })?;
        }
        Ok(changes)
    }
}
