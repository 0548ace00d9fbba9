//! Emptying chunks: what is left of them is read, and appended to the log's end in the order of
//! sectors, which joins again what was written together.
//!
//! A move is an ordinary change of the volume that happens to leave its contents as they are: it
//! goes through mirror, journal and records as a write does, so crash, takeover and replay need to
//! know nothing of it. It is made only where the map still points at what was read: look and
//! append are one critical section, so a write that came in between wins. What is moved was
//! committed before, so nobody waits for its new place; the old one is not deleted before a
//! checkpoint names the new one.

use super::pace::{Pace, patiently};
use super::room::Who;
use super::shared::Shared;
use super::state::{PIECE, State};
use crate::device::DeviceResult;
use crate::error::{Error, Result};
use crate::format::chunk::{FRAME_SECTORS, FRAME_SIZE};
use crate::format::page::Location;
use crate::format::record::Record;
use crate::gc::{Candidate, Knowledge};
use crate::journal::entry::Change;
use crate::log::fetch::{FetchError, FetchResult, fetch_header};
use crate::map::base::leaf_index;
use crate::map::{BaseVersion, ItemSource, Missing, Piece, Source};
use crate::mutant::{self, Mutant};
use crate::units::{SECTOR_SIZE, Sector, SectorCount, SectorRange, Seq};
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// GETs of headers, of leaves, or of parts of one chunk at the same time.
const PARALLEL: usize = 16;
/// Bytes of the chunks that are read at the same time, unless they are very large or small.
const CHUNK_BYTES: u64 = 16 << 20;
/// Frames that are read though nobody needs them, rather than to ask twice.
const GAP: u32 = 4;
/// Pieces of the map that are looked at under the lock at a time.
const LOOK: usize = 16;

/// A run of sectors that a victim holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Live {
    pub range: SectorRange,
    pub place: Location,
    /// The base of the map with which it was there: only changes since have to be looked at.
    pub seen: Option<BaseVersion>,
}

/// Of a chunk.
type Frames = BTreeMap<u32, FetchResult<Bytes>>;

/// Victims, and what is live in them.
#[derive(Debug)]
pub(super) struct Batch {
    chosen: Vec<Candidate>,
    /// What cannot be read of these stays where it is.
    spared: BTreeSet<Seq>,
    /// In the order of sectors.
    live: Vec<(Live, FetchResult<Vec<u8>>)>,
}

impl Batch {
    pub fn chosen(&self) -> &[Candidate] {
        &self.chosen
    }
}

/// Moves all that is live in `chosen`.
///
/// # Errors
/// The volume is closed or has failed; the store refuses.
pub(super) async fn empty(
    shared: &Arc<Shared>,
    knowledge: &mut Knowledge,
    chosen: Vec<Candidate>,
    pace: &mut Pace<'_>,
) -> Result<()> {
    let mut batch = read(shared, knowledge, chosen).await?;
    relocate_all(shared, &mut batch, pace).await?;
    settle(shared, knowledge, batch).await
}

/// Reads all that is live in `chosen`.
///
/// # Errors
/// As [`empty`].
pub(super) async fn read(
    shared: &Arc<Shared>,
    knowledge: &mut Knowledge,
    chosen: Vec<Candidate>,
) -> Result<Batch> {
    let mut spared: BTreeSet<Seq> = BTreeSet::new();
    let ranges = recorded(shared, &chosen, &mut spared).await?;
    let victims: BTreeSet<Seq> =
        chosen.iter().map(|c| c.seq).filter(|seq| !spared.contains(seq)).collect();
    // Before the first lookup: what it says of a piece that changes later is seen as a change.
    let seen = Some(shared.state().map.version());
    let pieces = match locate(shared, ranges).await {
        Ok(pieces) => pieces,
        Err(why) => {
            // Part of the map is damaged: what it says of these cannot be known.
            chosen.iter().for_each(|chunk| knowledge.spare(chunk));
            return Err(lost(shared, why));
        }
    };
    let mut live: BTreeMap<Seq, Vec<Live>> = BTreeMap::new();
    for piece in pieces {
        match piece.source {
            Source::Data(place) if victims.contains(&place.seq) => {
                let run = Live { range: piece.range, place, seen };
                live.entry(place.seq).or_default().push(run);
            }
            _ => {}
        }
    }
    let live = fetch(shared, live).await;
    Ok(Batch { chosen, spared, live })
}

/// Moves what was read, unless it was written to meanwhile.
///
/// # Errors
/// As [`empty`].
pub(super) async fn relocate_all(
    shared: &Arc<Shared>,
    batch: &mut Batch,
    pace: &mut Pace<'_>,
) -> Result<()> {
    for (run, data) in std::mem::take(&mut batch.live) {
        match data {
            Ok(data) => relocate(shared, pace, run, &data).await?,
            Err(FetchError::Store(e)) => return Err(e.into()),
            Err(why) => {
                batch.spared.insert(run.place.seq);
                tracing::warn!(volume = %shared.id, "{} cannot be moved: {why}", run.range);
            }
        }
    }
    Ok(())
}

/// Has `knowledge` know of what was moved.
///
/// # Errors
/// None but of a mutant.
pub(super) async fn settle(
    shared: &Arc<Shared>,
    knowledge: &mut Knowledge,
    batch: Batch,
) -> Result<()> {
    for chunk in &batch.chosen {
        if batch.spared.contains(&chunk.seq) {
            knowledge.spare(chunk);
            continue;
        }
        knowledge.take(chunk);
        shared.collection.chunks.fetch_add(1, Relaxed);
        if mutant::on(Mutant::VictimDeletedEarly) {
            let key = shared.chunk_id(&shared.state(), chunk.seq).key();
            shared.stores.background.delete(&[key]).await?;
        }
    }
    Ok(())
}

fn lost(shared: &Shared, why: crate::device::DeviceError) -> Error {
    match shared.state().check() {
        Ok(()) => Error::failed(why.to_string()),
        Err(_) => Error::failed("the volume is closed").because(why.to_string()),
    }
}

/// Where the victims' data was written to, ascending, each sector once.
async fn recorded(
    shared: &Shared,
    chosen: &[Candidate],
    spared: &mut BTreeSet<Seq>,
) -> Result<Vec<SectorRange>> {
    let store = &*shared.stores.background;
    let headers = chosen.iter().map(|chunk| {
        let id = shared.chunk_id(&shared.state(), chunk.seq);
        async move { (chunk.seq, patiently(shared, fetch_header(store, id)).await) }
    });
    let headers: Vec<_> = headers.collect();
    let mut headers = stream::iter(headers).buffered(PARALLEL);
    let mut ranges: Vec<SectorRange> = Vec::new();
    while let Some((seq, header)) = headers.next().await {
        match header {
            Ok(header) => ranges.extend(header.records.iter().filter_map(|record| match record {
                Record::Data { range, .. } => Some(*range),
                _ => None,
            })),
            Err(FetchError::Store(e)) => return Err(e.into()),
            Err(why) => {
                spared.insert(seq);
                tracing::warn!(volume = %shared.id, "a chunk cannot be emptied: {why}");
            }
        }
    }
    ranges.sort_by_key(|range| range.start());
    let mut joined: Vec<SectorRange> = Vec::new();
    for range in ranges {
        match joined.last_mut().filter(|last| last.end() >= range.start()) {
            Some(last) => {
                *last = SectorRange::between(last.start(), last.end().max(range.end()));
            }
            None => joined.push(range),
        }
    }
    Ok(joined)
}

/// Where `ranges` are. What a user's map cache has of the last sweep over the volume it has of its
/// end: every second one begins there.
async fn locate(shared: &Arc<Shared>, ranges: Vec<SectorRange>) -> DeviceResult<Vec<Piece>> {
    let mut leaves: BTreeMap<u64, Vec<SectorRange>> = BTreeMap::new();
    for range in ranges {
        leaves.entry(leaf_index(range.start())).or_default().push(range);
    }
    let mut leaves: Vec<_> = leaves.into_values().collect();
    if shared.collection.sweeps.fetch_add(1, Relaxed) % 2 == 1 {
        leaves.reverse();
    }
    let lookups = leaves.into_iter().map(|ranges| async move {
        let mut pieces = Vec::new();
        for range in ranges {
            pieces.extend(patiently(shared, shared.lookup(range, usize::MAX)).await?);
        }
        // Others have the thread in between.
        tokio::task::yield_now().await;
        Ok(pieces)
    });
    stream::iter(lookups).buffered(PARALLEL).try_concat().await
}

/// What is in the runs of each chunk.
async fn fetch(
    shared: &Arc<Shared>,
    live: BTreeMap<Seq, Vec<Live>>,
) -> Vec<(Live, FetchResult<Vec<u8>>)> {
    let at_once = (CHUNK_BYTES / shared.description.chunk_size).clamp(4, PARALLEL as u64);
    let chunks = live.into_iter().map(|(seq, runs)| fetch_chunk(shared, seq, runs));
    let mut all = stream::iter(chunks).buffered(at_once as usize).concat().await;
    all.sort_by_key(|(run, _)| run.range.start());
    all
}

async fn fetch_chunk(
    shared: &Arc<Shared>,
    seq: Seq,
    live: Vec<Live>,
) -> Vec<(Live, FetchResult<Vec<u8>>)> {
    let mut wanted: BTreeSet<u32> = BTreeSet::new();
    for run in &live {
        let end = run.place.offset + run.range.len().0 as u32;
        wanted.extend(run.place.offset / FRAME_SECTORS..end.div_ceil(FRAME_SECTORS));
    }
    let id = shared.chunk_id(&shared.state(), seq);
    let store = &*shared.stores.background;
    let gets = runs(&wanted).into_iter().map(|run| async move {
        let frames = shared.fetcher.frames(store, id, run.clone());
        (run, patiently(shared, frames).await)
    });
    let gets: Vec<_> = gets.collect();
    let mut answers = stream::iter(gets).buffered(PARALLEL);
    let mut frames = Frames::new();
    while let Some((run, answer)) = answers.next().await {
        match answer {
            Ok(all) => frames.extend(run.zip(all)),
            Err(why) => frames.extend(run.map(|index| (index, Err(why.clone())))),
        }
    }
    let load = |run: Live| (run, payload(shared, &frames, &run));
    live.into_iter().flat_map(split).map(load).collect()
}

fn runs(frames: &BTreeSet<u32>) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for index in frames {
        match runs.last_mut().filter(|run| run.end + GAP >= *index) {
            Some(run) => run.end = index + 1,
            None => runs.push(*index..index + 1),
        }
    }
    runs
}

/// Pieces of a run that one change can move.
fn split(run: Live) -> impl Iterator<Item = Live> {
    let most = PIECE as u64 / SECTOR_SIZE;
    (0..run.range.len().0).step_by(most as usize).map(move |at| Live {
        range: SectorRange::between(
            Sector(run.range.start().0 + at),
            Sector((run.range.start().0 + at + most).min(run.range.end().0)),
        ),
        place: run.place.advance(at),
        seen: run.seen,
    })
}

fn payload(shared: &Shared, frames: &Frames, run: &Live) -> FetchResult<Vec<u8>> {
    let mut data = Vec::with_capacity(run.range.len().bytes() as usize);
    let (mut at, end) = (run.place.offset, run.place.offset + run.range.len().0 as u32);
    while at < end {
        let frame = match frames.get(&(at / FRAME_SECTORS)) {
            Some(frame) => frame.as_ref().map_err(Clone::clone)?,
            None => return Err(FetchError::Abandoned),
        };
        let from = (at % FRAME_SECTORS) as usize * 512;
        let len = ((end - at) as usize * 512).min(FRAME_SIZE - from);
        // The map names more of the chunk than there is: left for the read that needs it.
        let missing = || shared.chunk_id(&shared.state(), run.place.seq).key();
        let part = frame.get(from..from + len).ok_or_else(|| FetchError::Missing(missing()))?;
        data.extend_from_slice(part);
        at += (len / 512) as u32;
    }
    Ok(data)
}

/// Moves what is still there of `run`.
///
/// # Errors
/// The volume is closed or has failed.
pub(super) async fn relocate(
    shared: &Arc<Shared>,
    pace: &mut Pace<'_>,
    run: Live,
    data: &[u8],
) -> Result<()> {
    let (mut done, mut missed) = (0, None);
    while done < run.range.len().0 {
        let start = Sector(run.range.start().0 + done);
        let rest = Live {
            range: SectorRange::between(start, run.range.end()),
            place: run.place.advance(done),
            seen: run.seen,
        };
        let data = &data[(done * SECTOR_SIZE) as usize..];
        pace.turn().await?;
        let made = shared.change(Who::Move, |state| state.relocate(&rest, data, &*shared.items));
        match made.map_err(|e| lost(shared, e))? {
            Ok(Ok(sectors)) => {
                done += sectors.0;
                pace.moved(sectors.0);
            }
            Ok(Err(missing)) => {
                pace.step_aside();
                let loaded = patiently(shared, shared.load(missing, missed)).await;
                missed = loaded.map_err(|e| lost(shared, e))?;
            }
            Err(progress) => {
                pace.stand_in_line();
                progress.await;
            }
        }
    }
    Ok(())
}

impl State {
    /// Where the first part of `run` is now. Without a look at the base where it is the one that was
    /// looked at when `run` was found: its leaves may be gone from memory again.
    fn locate(
        &self,
        run: &Live,
        items: &dyn ItemSource,
    ) -> std::result::Result<Vec<Piece>, Missing> {
        let mut pieces = Vec::new();
        if run.seen != Some(self.map.version()) {
            self.map.lookup(run.range, items, LOOK, &mut pieces)?;
            return Ok(pieces);
        }
        let (start, mut rest) = (run.range.start(), run.range);
        while !rest.is_empty() && pieces.len() < LOOK {
            let (len, target) = self.map.newest(rest);
            let at = rest.start();
            let end = Sector(at.0 + len.0);
            let before = Source::Data(run.place.advance(at.0 - start.0));
            let source = target.map_or(before, Source::from);
            pieces.push(Piece { range: SectorRange::between(at, end), source });
            rest = SectorRange::between(end, rest.end());
        }
        Ok(pieces)
    }

    /// Moves the first part of `run` that is still where it was to the open chunk. Returns the
    /// sectors of `run` that are dealt with; or what of the map is needed to tell.
    fn relocate(
        &mut self,
        run: &Live,
        data: &[u8],
        items: &dyn ItemSource,
    ) -> DeviceResult<std::result::Result<SectorCount, Missing>> {
        let pieces = match self.locate(run, items) {
            Ok(pieces) => pieces,
            Err(missing) => return Ok(Err(missing)),
        };
        let blind = mutant::on(Mutant::CollectorIgnoresOverwrite);
        let start = run.range.start();
        for piece in &pieces {
            let at = piece.range.start().0 - start.0;
            if piece.source != Source::Data(run.place.advance(at)) && !blind {
                continue;
            }
            let len = piece.range.len().min(self.open.room());
            let range = SectorRange::between(piece.range.start(), Sector(start.0 + at + len.0));
            let data = &data[(at * SECTOR_SIZE) as usize..][..len.bytes() as usize];
            if !mutant::on(Mutant::MoveNotMirrored) {
                let offset = self.open.next_offset();
                self.record(Change::Data { start: range.start(), offset, data })?;
            }
            self.append(range, data);
            self.traffic.moved += len.0;
            return Ok(Ok(SectorCount(at + len.0)));
        }
        let end = pieces.last().map_or(run.range.end(), |piece| piece.range.end());
        Ok(Ok(SectorCount(end.0 - start.0)))
    }
}
