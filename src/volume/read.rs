//! Reads: open and sealed chunks in memory, then cached frames, then the journal, then ranged GETs.

use super::backlog::Held;
use super::items::ItemError;
use super::shared::Shared;
use crate::cache::FrameId;
use crate::device::{DeviceError, DeviceResult};
use crate::flight::{Lead, Turn};
use crate::format::chunk::{FRAME_SECTORS, FRAME_SIZE};
use crate::format::keys::ChunkId;
use crate::format::page::Location;
use crate::log::fetch::{FetchError, FetchResult};
use crate::map::{Missing, Piece, Source};
use crate::store::Store;
use crate::store::limit::Urgent;
use crate::sync::oneshot;
use crate::units::{SECTOR_SIZE, Sector, SectorRange};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Frames that one GET asks for at most: 1 MiB.
const RUN_MAX: usize = 16;
/// How often a read looks again where its data is, when a chunk has vanished under it because the
/// collector deleted it.
const LOOKUPS: usize = 3;

/// Wait before a read is tried again that the store refused.
const REFUSED_DELAY: Duration = Duration::from_secs(2);

/// A part of a read that lies in one frame of a committed chunk.
#[derive(Clone, Copy, Debug)]
struct Part {
    frame: FrameId,
    /// First byte in the frame.
    from: usize,
    /// First byte in the buffer.
    to: usize,
    len: usize,
}

/// Frames that were asked for; by somebody else, perhaps, who is told to hurry.
type Pending = Vec<(FrameId, oneshot::Receiver<FetchResult<Bytes>>, Option<Urgent>)>;

impl Shared {
    /// Fills `buf` from `start`.
    pub async fn read(self: &Arc<Shared>, start: Sector, buf: &mut [u8]) -> DeviceResult<()> {
        let len = buf.len() as u64 / SECTOR_SIZE;
        let range = SectorRange::between(start, Sector(start.0 + len));
        let mut lookups = 1;
        loop {
            let parts = self.read_memory(range, buf).await?;
            match self.read_frames(&parts, buf).await {
                Ok(()) => break,
                Err(FetchError::Missing(_)) if lookups < LOOKUPS => lookups += 1,
                Err(why) => {
                    tracing::error!(volume = %self.id, "cannot read {range}: {why}");
                    return Err(DeviceError::Io(format!("cannot read {range}: {why}")));
                }
            }
        }
        let ahead = self.readahead.lock().unwrap_or_else(|e| e.into_inner()).on_read(range);
        if let Some(ahead) = ahead {
            self.clone().prefetch(ahead);
        }
        Ok(())
    }

    /// Fills what is a hole or in a chunk that is still in memory; returns the rest.
    async fn read_memory(&self, range: SectorRange, buf: &mut [u8]) -> DeviceResult<Vec<Part>> {
        let mut parts = Vec::new();
        let mut pieces = Vec::new();
        let mut at = range.start();
        let mut missed = None;
        loop {
            let found = {
                let state = self.state();
                state.check()?;
                pieces.clear();
                let rest = SectorRange::between(at, range.end());
                let found = state.map.lookup(rest, &*self.items, usize::MAX, &mut pieces);
                for piece in &pieces {
                    at = piece.range.end();
                    let to = (piece.range.start().0 - range.start().0) as usize * 512;
                    let out = &mut buf[to..to + piece.range.len().bytes() as usize];
                    match piece.source {
                        Source::Hole => out.fill(0),
                        Source::Data(place) if place.seq == state.open.seq() => {
                            let from = state.open.payload_at(place.offset);
                            out.copy_from_slice(&from[..out.len()]);
                        }
                        Source::Data(place) => match state.sealed.get(place.seq) {
                            Some(Held::Memory(chunk)) => {
                                let from = place.offset as usize * 512;
                                out.copy_from_slice(&chunk.payload[from..from + out.len()]);
                            }
                            Some(Held::Journal) | None => {
                                let chunk = self.chunk_id(&state, place.seq);
                                split(chunk, place, to, out.len(), &mut parts);
                            }
                        },
                    }
                }
                found
            };
            match found {
                Ok(()) => return Ok(parts),
                Err(missing) => missed = Some(self.load(missing, missed).await?),
            }
        }
    }

    /// The pieces of `range`, at most about `max`.
    pub async fn lookup(&self, range: SectorRange, max: usize) -> DeviceResult<Vec<Piece>> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut missed = None;
        loop {
            let at = pieces.last().map_or(range.start(), |piece| piece.range.end());
            let found = {
                let state = self.state();
                state.check()?;
                let rest = SectorRange::between(at, range.end());
                state.map.lookup(rest, &*self.items, max, &mut pieces)
            };
            match found {
                Ok(()) => return Ok(pieces),
                Err(missing) => missed = Some(self.load(missing, missed).await?),
            }
        }
    }

    /// Loads an item of the map, on the runtime. An item that is missing from the store is an
    /// error only if the map still names it at the next lookup (`before`): a checkpoint may have
    /// replaced it.
    pub async fn load(&self, missing: Missing, before: Option<Missing>) -> DeviceResult<Missing> {
        let items = self.items.clone();
        let load = self.env.runtime.spawn(async move { items.load(missing).await });
        match load.await {
            Ok(Ok(())) => Ok(missing),
            Ok(Err(ItemError::Missing(_))) if before != Some(missing) => Ok(missing),
            Ok(Err(ItemError::Store(e))) => {
                tracing::error!(volume = %self.id, "cannot load the map now, trying on: {e}");
                let pause = async { tokio::time::sleep(REFUSED_DELAY).await };
                let pause = self.env.runtime.spawn(pause);
                pause.await.map_err(|_| DeviceError::Shutdown)?;
                // The lookup that follows checks whether the volume still lives.
                Ok(missing)
            }
            Ok(Err(why)) => {
                tracing::error!(volume = %self.id, "cannot load the map: {why}");
                Err(DeviceError::Io(why.to_string()))
            }
            Err(_) => Err(DeviceError::Shutdown),
        }
    }

    /// Fills `parts`: from the cache at once, from the store for what is not in it.
    async fn read_frames(self: &Arc<Shared>, parts: &[Part], buf: &mut [u8]) -> FetchResult<()> {
        let mut rest: Vec<Part> = Vec::new();
        for part in parts {
            match self.frames.get(&part.frame) {
                Some(frame) => copy(&frame, part, buf)?,
                None => rest.push(*part),
            }
        }
        if rest.is_empty() {
            return Ok(());
        }
        let mut frames = BTreeMap::new();
        let wanted = rest.iter().map(|part| part.frame).collect();
        for (id, wait, _urgent) in self.request(&self.stores.live, wanted) {
            frames.insert(id, wait.await.unwrap_or(Err(FetchError::Abandoned)));
        }
        for part in &rest {
            match frames.get(&part.frame) {
                Some(Ok(frame)) => copy(frame, part, buf)?,
                Some(Err(why)) => return Err(why.clone()),
                None => return Err(FetchError::Abandoned),
            }
        }
        Ok(())
    }

    /// Asks for frames; those that nobody has asked for yet are fetched, neighbours by one GET.
    fn request(self: &Arc<Shared>, from: &Arc<dyn Store>, mut ids: Vec<FrameId>) -> Pending {
        ids.sort_unstable();
        ids.dedup();
        let mut pending = Pending::new();
        let mut run: Vec<Lead<FrameId, FetchResult<Bytes>>> = Vec::new();
        for id in ids {
            let follows = run.last().is_some_and(|last| {
                let last = *last.key();
                last.chunk == id.chunk && last.index + 1 == id.index && run.len() < RUN_MAX
            });
            if !follows {
                self.fetch_run(from.clone(), std::mem::take(&mut run));
            }
            match self.frame_flights.join(id) {
                Turn::Follow(wait) => pending.push((id, wait, from.hurry(&id.chunk.key()))),
                Turn::Lead(lead) => {
                    pending.push((id, lead.follow(), None));
                    // It may have been answered between the caller's look and its turn.
                    match self.frames.get(&id) {
                        Some(frame) => lead.done(Ok(frame)),
                        None => run.push(lead),
                    }
                }
            }
        }
        self.fetch_run(from.clone(), run);
        pending
    }

    fn fetch_run(
        self: &Arc<Shared>,
        from: Arc<dyn Store>,
        run: Vec<Lead<FrameId, FetchResult<Bytes>>>,
    ) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return };
        let (chunk, range) = (first.key().chunk, first.key().index..last.key().index + 1);
        let shared = self.clone();
        self.env.runtime.spawn(async move {
            match shared.fetch_patiently(&*from, chunk, range).await {
                Ok(frames) => {
                    for (lead, frame) in run.into_iter().zip(frames) {
                        if let Ok(frame) = &frame {
                            let weight = frame.len() as u64;
                            shared.frames.insert(*lead.key(), frame.clone(), weight);
                        }
                        lead.done(frame);
                    }
                }
                Err(why) => run.into_iter().for_each(|lead| lead.done(Err(why.clone()))),
            }
        });
    }

    /// Fetches frames for as long as the volume lives: what the store refuses today (expired
    /// credentials, a bucket that is locked) it may give tomorrow, and the data is not lost.
    async fn fetch_patiently(
        &self,
        from: &dyn Store,
        chunk: ChunkId,
        range: Range<u32>,
    ) -> FetchResult<Vec<FetchResult<Bytes>>> {
        loop {
            match self.journaled_frames(chunk, &range).await {
                Some(Ok(frames)) => return Ok(frames.into_iter().map(Ok).collect()),
                Some(Err(why)) => {
                    tracing::error!(volume = %self.id, "{why}");
                    return Err(FetchError::Missing(chunk.key()));
                }
                None => {}
            }
            match self.fetcher.frames(from, chunk, range.clone()).await {
                Err(FetchError::Store(e)) if self.state().check().is_ok() => {
                    tracing::error!(volume = %self.id, "cannot read now, trying on: {e}");
                    tokio::time::sleep(REFUSED_DELAY).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Fetches what of `range` is not in memory, for a later read.
    pub fn prefetch(self: Arc<Shared>, range: SectorRange) {
        let runtime = self.env.runtime.clone();
        runtime.spawn(async move {
            let end = self.state().size.0;
            let range = range.intersect(SectorRange::between(Sector(0), Sector(end)));
            // A hint: whatever is wrong is reported by the read that needs the data.
            let Ok(pieces) = self.lookup(range, 4096).await else { return };
            let mut parts = Vec::new();
            {
                let state = self.state();
                for piece in pieces {
                    let Source::Data(place) = piece.source else { continue };
                    if place.seq < state.commit.next() {
                        let len = piece.range.len().bytes() as usize;
                        split(self.chunk_id(&state, place.seq), place, 0, len, &mut parts);
                    }
                }
            }
            let mut ids: Vec<FrameId> = parts.iter().map(|part| part.frame).collect();
            ids.retain(|id| !self.frames.contains(id));
            // No more than a quarter of the cache, or what was fetched would push itself out.
            ids.truncate((self.options.cache_bytes / 4 / FRAME_SIZE as u64) as usize);
            drop(self.request(&self.stores.background, ids));
        });
    }
}

fn split(chunk: ChunkId, place: Location, to: usize, len: usize, parts: &mut Vec<Part>) {
    let (mut sector, mut to, mut len) = (place.offset, to, len);
    while len > 0 {
        let from = (sector % FRAME_SECTORS) as usize * 512;
        let part = len.min(FRAME_SIZE - from);
        let frame = FrameId { chunk, index: sector / FRAME_SECTORS };
        parts.push(Part { frame, from, to, len: part });
        (sector, to, len) = (sector + (part / 512) as u32, to + part, len - part);
    }
}

fn copy(frame: &[u8], part: &Part, buf: &mut [u8]) -> FetchResult<()> {
    let Some(from) = frame.get(part.from..part.from + part.len) else {
        // The map names more of the chunk than there is.
        return Err(FetchError::Missing(part.frame.chunk.key()));
    };
    buf[part.to..part.to + part.len].copy_from_slice(from);
    Ok(())
}
