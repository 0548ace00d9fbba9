//! Emptying chunks: what is left of them is read, and appended to the log's end in the order of
//! sectors, which joins again what was written together.
//!
//! A move is an ordinary change of the volume that happens to leave its contents as they are: it
//! goes through mirror, journal and records as a write does, so crash, takeover and replay need to
//! know nothing of it. It is made only where the map still points at what was read: look and
//! append are one critical section, so a write that came in between wins. What is moved was
//! committed before, so nobody waits for its new place; the old one is not deleted before a
//! checkpoint names the new one.

use super::collect::Pace;
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
use crate::map::{ItemSource, Missing, Source};
use crate::mutant::{self, Mutant};
use crate::units::{SECTOR_SIZE, Sector, SectorCount, SectorRange, Seq};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// GETs at the same time.
const PARALLEL: usize = 4;
/// Frames that are read though nobody needs them, rather than to ask twice.
const GAP: u32 = 4;
/// Pieces of the map that are looked at under the lock at a time.
const LOOK: usize = 16;

/// A run of sectors that a victim holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Live {
    pub range: SectorRange,
    pub place: Location,
}

type Frames = BTreeMap<(Seq, u32), FetchResult<Bytes>>;

/// Moves all that is live in `chosen`.
///
/// # Errors
/// The volume is closed or has failed; the store refuses.
pub(super) async fn empty(
    shared: &Arc<Shared>,
    knowledge: &mut Knowledge,
    chosen: Vec<Candidate>,
    pace: &mut Pace,
) -> Result<()> {
    let mut spared: BTreeSet<Seq> = BTreeSet::new();
    let ranges = recorded(shared, &chosen, &mut spared).await?;
    let victims: BTreeSet<Seq> =
        chosen.iter().map(|c| c.seq).filter(|seq| !spared.contains(seq)).collect();
    let mut live = Vec::new();
    for range in ranges {
        let pieces = match shared.lookup(range, usize::MAX).await {
            Ok(pieces) => pieces,
            Err(why) => {
                // Part of the map is damaged: what it says of these cannot be known.
                chosen.iter().for_each(|chunk| knowledge.spare(chunk));
                return Err(lost(shared, why));
            }
        };
        live.extend(pieces.into_iter().filter_map(|piece| match piece.source {
            Source::Data(place) if victims.contains(&place.seq) => {
                Some(Live { range: piece.range, place })
            }
            _ => None,
        }));
    }
    let frames = fetch(shared, &live).await;
    for run in live.into_iter().flat_map(split) {
        match payload(shared, &frames, &run) {
            Ok(data) => relocate(shared, pace, run, &data).await?,
            Err(FetchError::Store(e)) => return Err(e.into()),
            Err(why) => {
                spared.insert(run.place.seq);
                tracing::warn!(volume = %shared.id, "{} cannot be moved: {why}", run.range);
            }
        }
    }
    for chunk in &chosen {
        if spared.contains(&chunk.seq) {
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
        async move { (chunk.seq, fetch_header(store, id).await) }
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

/// The frames that `live` lies in.
async fn fetch(shared: &Shared, live: &[Live]) -> Frames {
    let mut wanted: BTreeMap<Seq, BTreeSet<u32>> = BTreeMap::new();
    for run in live {
        let end = run.place.offset + run.range.len().0 as u32;
        let frames = run.place.offset / FRAME_SECTORS..end.div_ceil(FRAME_SECTORS);
        wanted.entry(run.place.seq).or_default().extend(frames);
    }
    let mut gets = Vec::new();
    for (seq, frames) in wanted {
        let id = shared.chunk_id(&shared.state(), seq);
        let store = &*shared.stores.background;
        gets.extend(runs(&frames).into_iter().map(|run| async move {
            (seq, run.clone(), shared.fetcher.frames(store, id, run).await)
        }));
    }
    let mut answers = stream::iter(gets).buffered(PARALLEL);
    let mut frames = Frames::new();
    while let Some((seq, run, answer)) = answers.next().await {
        match answer {
            Ok(all) => frames.extend(run.zip(all).map(|(index, frame)| ((seq, index), frame))),
            Err(why) => frames.extend(run.map(|index| ((seq, index), Err(why.clone())))),
        }
    }
    frames
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
    })
}

fn payload(shared: &Shared, frames: &Frames, run: &Live) -> FetchResult<Vec<u8>> {
    let mut data = Vec::with_capacity(run.range.len().bytes() as usize);
    let (mut at, end) = (run.place.offset, run.place.offset + run.range.len().0 as u32);
    while at < end {
        let frame = match frames.get(&(run.place.seq, at / FRAME_SECTORS)) {
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
    pace: &mut Pace,
    run: Live,
    data: &[u8],
) -> Result<()> {
    let (mut done, mut missed) = (0, None);
    while done < run.range.len().0 {
        let start = Sector(run.range.start().0 + done);
        let rest = Live {
            range: SectorRange::between(start, run.range.end()),
            place: run.place.advance(done),
        };
        let data = &data[(done * SECTOR_SIZE) as usize..];
        pace.turn(shared, rest.range.len().0).await?;
        let made = shared.change(|state| state.relocate(&rest, data, &*shared.items));
        match made.map_err(|e| lost(shared, e))? {
            Ok(Ok(sectors)) => done += sectors.0,
            Ok(Err(missing)) => {
                let loaded = shared.load(missing, missed).await;
                missed = loaded.map_err(|e| lost(shared, e))?;
            }
            Err(progress) => progress.await,
        }
    }
    Ok(())
}

impl State {
    /// Moves the first part of `run` that is still where it was to the open chunk. Returns the
    /// sectors of `run` that are dealt with; or what of the map is needed to tell.
    fn relocate(
        &mut self,
        run: &Live,
        data: &[u8],
        items: &dyn ItemSource,
    ) -> DeviceResult<std::result::Result<SectorCount, Missing>> {
        let mut pieces = Vec::new();
        if let Err(missing) = self.map.lookup(run.range, items, LOOK, &mut pieces) {
            return Ok(Err(missing));
        }
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
