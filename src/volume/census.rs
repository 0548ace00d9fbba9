//! Live sectors of each chunk, and which slots nobody needs any more.

use super::items::Item;
use super::kept::Keeps;
use super::tree::{Deltas, MapWriter, Moves};
use crate::error::{Error, Result};
use crate::format::checkpoint::Garbage;
use crate::format::map_object::ItemKind;
use crate::format::page::{CHUNKS_PER_PAGE, ChunkPage, ChunkUse, ItemRef, encode_chunk_page};
use crate::mutant::{self, Mutant};
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

/// The slots since the last checkpoint.
#[derive(Debug)]
pub(super) struct New {
    pub slots: Range<u64>,
    /// Sectors in the chunks of those that hold some.
    pub payloads: BTreeMap<Seq, u32>,
}

/// Applies `deltas` to the chunk pages. Of the slots in `new`, those that hold nothing live are
/// garbage, as are older ones that hold nothing any more, unless a snapshot `keeps` them.
///
/// The slots in `fences` never are. A deposed owner that has not noticed yet, for however long,
/// would find its next slot free again, and acknowledge what nobody will ever read.
pub(super) async fn update(
    old_root: &BTreeMap<u64, ItemRef>,
    new: New,
    (fences, keeps): (&BTreeSet<Seq>, &Keeps),
    deltas: &Deltas,
    moves: &Moves,
    writer: &mut MapWriter<'_>,
) -> Result<Census> {
    let mut census = Census { root: old_root.clone(), garbage: Vec::new() };
    let mut dead = Runs::default();
    for page in touched_pages(old_root, &new.slots, deltas, moves) {
        let old_ref = old_root.get(&page).copied();
        let old = match old_ref {
            Some(item) => writer.items.chunk_page(item).await?,
            None => Arc::default(),
        };
        let entries: BTreeMap<u32, ChunkUse> = old.iter().copied().collect();
        let (entries, mut gone) = recount(page, entries, &new, deltas)?;
        keeps.spare(page, &mut gone, writer.items).await?;
        let kept = |seq: &&Seq| fences.contains(seq) && !mutant::on(Mutant::FenceDeleted);
        gone.iter().filter(|seq| !kept(seq)).for_each(|seq| dead.push(*seq));
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
    census.garbage = dead.into_garbage();
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
    mut entries: BTreeMap<u32, ChunkUse>,
    new: &New,
    deltas: &Deltas,
) -> Result<(ChunkPage, BTreeSet<Seq>)> {
    let span = page * CHUNKS_PER_PAGE..(page + 1) * CHUNKS_PER_PAGE;
    let mut gone: BTreeSet<Seq> =
        (span.start.max(new.slots.start)..span.end.min(new.slots.end)).map(Seq).collect();
    for (seq, delta) in deltas.range(Seq(span.start)..Seq(span.end)) {
        let slot = (seq.0 - span.start) as u32;
        let known = entries.get(&slot).copied();
        let payload = new.payloads.get(seq).copied().unwrap_or(0);
        let ChunkUse { live, payload } = known.unwrap_or(ChunkUse { live: 0, payload });
        let live = i64::from(live) + delta;
        let live = u32::try_from(live).map_err(|_| {
            Error::corrupt(format!("the live sectors of log slot {seq} do not add up: {live}"))
        })?;
        let too_low = mutant::on(Mutant::LiveCountTooLow) && *delta < 0;
        if live == 0 || too_low {
            entries.remove(&slot);
            gone.insert(*seq);
        } else {
            entries.insert(slot, ChunkUse { live, payload });
            gone.remove(seq);
        }
    }
    Ok((entries.into_iter().collect(), gone))
}

/// Slots as runs.
#[derive(Default)]
pub(super) struct Runs(Vec<Garbage>);

impl Runs {
    /// The slots so far.
    pub fn into_garbage(self) -> Vec<Garbage> {
        self.0
    }

    /// One more, greater than those before.
    pub fn push(&mut self, seq: Seq) {
        if let Some(Garbage::Slots { first, count }) = self.0.last_mut()
            && first.0 + *count == seq.0
        {
            *count += 1;
            return;
        }
        self.0.push(Garbage::Slots { first: seq, count: 1 });
    }
}
