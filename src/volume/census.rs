//! Live sectors of each chunk, and which slots nobody needs any more.

use super::items::Item;
use super::tree::{Deltas, MapWriter, Moves};
use crate::error::{Error, Result};
use crate::format::checkpoint::Garbage;
use crate::format::map_object::ItemKind;
use crate::format::page::{CHUNKS_PER_PAGE, ItemRef, encode_chunk_page};
use crate::log::Terms;
use crate::units::Seq;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// The census after a checkpoint.
#[derive(Debug, Default)]
pub(super) struct Census {
    /// Chunk pages by index.
    pub root: BTreeMap<u64, ItemRef>,
    /// Slots that became garbage.
    pub garbage: Vec<Garbage>,
}

/// Applies `deltas` to the chunk pages. `new` are the slots since the last checkpoint: those of
/// them that hold nothing live are garbage, as are older ones that hold nothing any more.
///
/// Fences are never garbage. An owner that was paused, or cut off, tries its next slot whenever it
/// comes back: were the fence gone by then, it would commit, and acknowledge flushes that nobody
/// will ever read.
pub(super) async fn update(
    old_root: &BTreeMap<u64, ItemRef>,
    new: Range<u64>,
    terms: &Terms,
    deltas: &Deltas,
    moves: &Moves,
    writer: &mut MapWriter<'_>,
) -> Result<Census> {
    let mut census = Census { root: old_root.clone(), garbage: Vec::new() };
    let mut dead = Runs::default();
    let fences = terms.as_slice().iter().filter_map(|term| term.first.0.checked_sub(1));
    let fences: BTreeSet<u64> = fences.collect();
    let chunks = |seq: &u64| !fences.contains(seq);
    for page in touched_pages(old_root, &new, deltas, moves) {
        let old_ref = old_root.get(&page).copied();
        let old = match old_ref {
            Some(item) => writer.items.chunk_page(item).await?,
            None => Arc::default(),
        };
        let entries: BTreeMap<u32, u32> = old.iter().copied().collect();
        let entries = recount(page, entries, new.clone().filter(chunks), deltas, &mut dead)?;
        if let Some(item) = old_ref {
            writer.release(item)?;
        }
        if entries.is_empty() {
            census.root.remove(&page);
            continue;
        }
        let bytes = encode_chunk_page(&entries);
        let value = Item::ChunkPage(Arc::new(entries));
        census.root.insert(page, writer.add(ItemKind::ChunkPage, page, &bytes, value).await?);
    }
    census.garbage = dead.0;
    Ok(census)
}

fn touched_pages(
    root: &BTreeMap<u64, ItemRef>,
    new: &Range<u64>,
    deltas: &Deltas,
    moves: &Moves,
) -> BTreeSet<u64> {
    let there = |page: &u64| root.get(page).is_some_and(|item| moves.moves(*item));
    let mut pages: BTreeSet<u64> = moves.chunk_pages.iter().copied().filter(there).collect();
    pages.extend(deltas.keys().map(|seq| seq.0 / CHUNKS_PER_PAGE));
    if !new.is_empty() {
        pages.extend(new.start / CHUNKS_PER_PAGE..=(new.end - 1) / CHUNKS_PER_PAGE);
    }
    pages
}

fn recount(
    page: u64,
    mut entries: BTreeMap<u32, u32>,
    new: impl Iterator<Item = u64>,
    deltas: &Deltas,
    dead: &mut Runs,
) -> Result<Vec<(u32, u32)>> {
    let span = page * CHUNKS_PER_PAGE..(page + 1) * CHUNKS_PER_PAGE;
    let mut gone: BTreeSet<u64> = new.filter(|seq| span.contains(seq)).collect();
    for (seq, delta) in deltas.range(Seq(span.start)..Seq(span.end)) {
        let slot = (seq.0 - span.start) as u32;
        let live = i64::from(entries.get(&slot).copied().unwrap_or(0)) + delta;
        let live = u32::try_from(live).map_err(|_| {
            Error::corrupt(format!("the live sectors of log slot {seq} do not add up: {live}"))
        })?;
        if live == 0 {
            entries.remove(&slot);
            gone.insert(seq.0);
        } else {
            entries.insert(slot, live);
            gone.remove(&seq.0);
        }
    }
    gone.into_iter().for_each(|seq| dead.push(seq));
    Ok(entries.into_iter().collect())
}

/// Slots as runs.
#[derive(Default)]
struct Runs(Vec<Garbage>);

impl Runs {
    fn push(&mut self, seq: u64) {
        if let Some(Garbage::Slots { first, count }) = self.0.last_mut()
            && first.0 + *count == seq
        {
            *count += 1;
            return;
        }
        self.0.push(Garbage::Slots { first: Seq(seq), count: 1 });
    }
}
