//! Reads: open and sealed chunks in memory, then cached frames, then the disk cache and the journal,
//! then ranged GETs.

use super::items::ItemError;
use super::shared::Shared;
use super::tier::Tier;
use crate::cache::FrameId;
use crate::device::{DeviceError, DeviceResult};
use crate::flight::{Lead, Turn};
use crate::format::chunk::{FRAME_SECTORS, FRAME_SIZE};
use crate::format::keys::ChunkId;
use crate::format::page::Location;
use crate::format::source::is_of_marks;
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
/// Frames that one GET asks for at most where nobody waits for the first of them yet: 4 MiB.
const RUN_AHEAD: usize = 64;
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

impl Part {
    /// The map names more of the chunk than there is.
    fn beyond(&self) -> FetchError {
        FetchError::Missing(self.frame.chunk.key())
    }
}

/// Frames that were asked for; by somebody else, perhaps, who is told to hurry.
type Pending = Vec<(FrameId, oneshot::Receiver<FetchResult<Bytes>>, Option<Urgent>)>;

/// Frames of one chunk, each behind the one before it, that somebody has to answer for.
type Run = Vec<Lead<FrameId, FetchResult<Bytes>>>;

impl Shared {
    /// Fills `buf` from `start`.
    pub async fn read(self: &Arc<Shared>, start: Sector, buf: &mut [u8]) -> DeviceResult<()> {
        let len = buf.len() as u64 / SECTOR_SIZE;
        let range = SectorRange::between(start, Sector(start.0 + len));
        // A hint: where others are looking at it, this read is left out.
        if let Some(recorder) = self.recorder.as_ref().filter(|_| !is_of_marks(range)) {
            recorder.note(range);
        }
        let step = self.readers.on_read(range, || self.frames.room());
        let done = self.read_at_once(range, step.sequential, buf)?;
        if let Some(ahead) = step.ahead {
            self.clone().prefetch(ahead);
        }
        match done {
            true => Ok(()),
            false => self.read_patiently(range, step.sequential, buf).await,
        }
    }

    /// The short way, which most reads of what is in memory take: one run, in one frame. False
    /// where it takes the long one.
    fn read_at_once(&self, range: SectorRange, scan: bool, buf: &mut [u8]) -> DeviceResult<bool> {
        let (chunk, place) = {
            let mut state = self.state();
            state.check()?;
            let place = match state.map.single(range, &*self.items) {
                Ok(Some(Source::Data(place))) => place,
                Ok(Some(Source::Hole)) => {
                    buf.fill(0);
                    return Ok(true);
                }
                Ok(None) | Err(_) => return Ok(false),
            };
            if state.copy_from_memory(place, buf) {
                return Ok(true);
            }
            (self.chunk_id(&state, place.seq), place)
        };
        let frame = FrameId { chunk, index: place.offset / FRAME_SECTORS };
        let from = (place.offset % FRAME_SECTORS) as usize * SECTOR_SIZE as usize;
        if from + buf.len() > FRAME_SIZE {
            return Ok(false);
        }
        Ok(self.frames.copy(&frame, !scan, from, buf) == Some(true))
    }

    async fn read_patiently(
        self: &Arc<Shared>,
        range: SectorRange,
        scan: bool,
        buf: &mut [u8],
    ) -> DeviceResult<()> {
        let mut vanished = None;
        loop {
            let parts = self.read_memory(range, buf).await?;
            match self.read_frames(&parts, scan, buf).await {
                Ok(()) => return Ok(()),
                // It was moved or overwritten, and deleted, unless the map still names it now; a
                // slow read may meet that again and again.
                Err(FetchError::Missing(key)) if vanished.as_ref() != Some(&key) => {
                    vanished = Some(key);
                }
                Err(why) => {
                    tracing::error!(volume = %self.id, "cannot read {range}: {why}");
                    return Err(DeviceError::Io(format!("cannot read {range}: {why}")));
                }
            }
        }
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
                        Source::Data(place) if state.copy_from_memory(place, out) => {}
                        Source::Data(place) => {
                            let chunk = self.chunk_id(&state, place.seq);
                            split(chunk, place, to, out.len(), &mut parts);
                        }
                    }
                }
                found
            };
            match found {
                Ok(()) => return Ok(parts),
                Err(missing) => missed = self.load(missing, missed).await?,
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
                Err(missing) => missed = self.load(missing, missed).await?,
            }
        }
    }

    /// Loads an item of the map, on the runtime. An item that is not in the store is returned: that
    /// is an error only if the map still names it at the next lookup (`before`), since a checkpoint may
    /// have replaced it.
    pub async fn load(
        &self,
        missing: Missing,
        before: Option<Missing>,
    ) -> DeviceResult<Option<Missing>> {
        let items = self.items.clone();
        let load = self.env.runtime.spawn(async move { items.load(missing).await });
        match load.await {
            // It may have to be loaded again: nothing keeps it in memory until the lookup.
            Ok(Ok(())) => Ok(None),
            Ok(Err(ItemError::Missing(_))) if before != Some(missing) => Ok(Some(missing)),
            Ok(Err(ItemError::Store(e))) => {
                tracing::error!(volume = %self.id, "cannot load the map now, trying on: {e}");
                let pause = async { tokio::time::sleep(REFUSED_DELAY).await };
                let pause = self.env.runtime.spawn(pause);
                pause.await.map_err(|_| DeviceError::Shutdown)?;
                // The lookup that follows checks whether the volume still lives.
                Ok(None)
            }
            Ok(Err(why)) => {
                tracing::error!(volume = %self.id, "cannot load the map: {why}");
                Err(DeviceError::Io(why.to_string()))
            }
            Err(_) => Err(DeviceError::Shutdown),
        }
    }

    /// Fills `parts`: from the cache at once, from the store for what is not in it.
    async fn read_frames(
        self: &Arc<Shared>,
        parts: &[Part],
        scan: bool,
        buf: &mut [u8],
    ) -> FetchResult<()> {
        let mut rest: Vec<Part> = Vec::new();
        for part in parts {
            let out = &mut buf[part.to..part.to + part.len];
            match self.frames.copy(&part.frame, !scan, part.from, out) {
                Some(true) => {}
                Some(false) => return Err(part.beyond()),
                None => {
                    self.frames.count_miss();
                    rest.push(*part);
                }
            }
        }
        if rest.is_empty() {
            return Ok(());
        }
        let mut frames = BTreeMap::new();
        let wanted = rest.iter().map(|part| part.frame).collect();
        for (id, wait, _urgent) in self.request(&self.stores.live, wanted, RUN_MAX) {
            frames.insert(id, wait.await.unwrap_or(Err(FetchError::Abandoned)));
        }
        for part in &rest {
            match frames.get(&part.frame) {
                Some(Ok(frame)) => {
                    let from = frame.get(part.from..part.from + part.len);
                    let from = from.ok_or_else(|| part.beyond())?;
                    buf[part.to..part.to + part.len].copy_from_slice(from);
                    self.frames.used(&part.frame, part.from, part.len);
                }
                Some(Err(why)) => return Err(why.clone()),
                None => return Err(FetchError::Abandoned),
            }
        }
        Ok(())
    }

    /// Asks for frames; those that nobody has asked for yet are fetched, up to `most` neighbours by one GET.
    fn request(
        self: &Arc<Shared>,
        from: &Arc<dyn Store>,
        mut ids: Vec<FrameId>,
        most: usize,
    ) -> Pending {
        ids.sort_unstable();
        ids.dedup();
        let mut pending = Pending::new();
        let mut run = Run::new();
        for id in ids {
            let follows = run.last().is_some_and(|last| {
                let last = *last.key();
                last.chunk == id.chunk && last.index + 1 == id.index && run.len() < most
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

    fn fetch_run(self: &Arc<Shared>, from: Arc<dyn Store>, run: Run) {
        if run.is_empty() {
            return;
        }
        let shared = self.clone();
        self.env.runtime.spawn(async move {
            let Some(disk) = &shared.disk else { return shared.answer(&*from, run).await };
            for missed in shared.answer_from_disk(disk, &*from, run).await {
                // Each by itself: one that waits for the store does not hold up the others.
                let (shared, from) = (shared.clone(), from.clone());
                let runtime = shared.env.runtime.clone();
                runtime.spawn(async move { shared.answer(&*from, missed).await });
            }
        });
    }

    /// Answers for the frames of a run that the disk cache has; returns the runs that are left.
    async fn answer_from_disk(&self, disk: &Tier, from: &dyn Store, run: Run) -> Vec<Run> {
        let Some(chunk) = run.first().map(|lead| lead.key().chunk) else { return Vec::new() };
        let waits = chunk.epoch == self.epoch && self.state().sealed.get(chunk.seq).is_some();
        if waits {
            return vec![run];
        }
        let found = disk.read(from, chunk, run.iter().map(|lead| lead.key().index)).await;
        let mut left: Vec<Run> = Vec::new();
        for (lead, frame) in run.into_iter().zip(found) {
            let Some(frame) = frame else {
                let before = |run: &Run| run.last().map(|last| last.key().index + 1);
                match left.last_mut() {
                    Some(run) if before(run) == Some(lead.key().index) => run.push(lead),
                    _ => left.push(vec![lead]),
                }
                continue;
            };
            self.frames.insert(*lead.key(), &frame);
            lead.done(Ok(frame));
        }
        left
    }

    /// Answers for a run of frames, from the journal or the store.
    async fn answer(&self, from: &dyn Store, run: Run) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return };
        let (chunk, range) = (first.key().chunk, first.key().index..last.key().index + 1);
        match self.fetch_patiently(from, chunk, range).await {
            Ok(frames) => {
                for (lead, frame) in run.into_iter().zip(frames) {
                    if let Ok(frame) = &frame {
                        self.frames.insert(*lead.key(), frame);
                    }
                    lead.done(frame);
                }
            }
            Err(why) => run.into_iter().for_each(|lead| lead.done(Err(why.clone()))),
        }
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
                outcome => {
                    self.offer_fetched(chunk, range.start, &outcome);
                    return outcome;
                }
            }
        }
    }

    /// Frames from `first` on came from the store: they go to the disk cache.
    fn offer_fetched(
        &self,
        chunk: ChunkId,
        first: u32,
        fetched: &FetchResult<Vec<FetchResult<Bytes>>>,
    ) {
        if let (Some(disk), Ok(frames)) = (&self.disk, fetched) {
            for (index, frame) in (first..).zip(frames) {
                frame.iter().for_each(|frame| disk.offer(FrameId { chunk, index }, frame));
            }
        }
    }

    /// Fetches what of `range` is not in memory, for a later read.
    pub fn prefetch(self: Arc<Shared>, range: SectorRange) {
        let runtime = self.env.runtime.clone();
        runtime.spawn(async move {
            let mut ids = self.frames_of(range).await;
            let frames = ids.len();
            ids.retain(|id| !self.frames.contains(id));
            self.readers.on_fetched(range, frames, ids.len());
            // A volume without a cache of any size has no use for it.
            ids.truncate((self.options.cache_bytes / 4 / FRAME_SIZE as u64) as usize);
            // A window that has grown is far ahead of its reader.
            let most = if ids.len() >= RUN_AHEAD { RUN_AHEAD } else { RUN_MAX };
            drop(self.request(&self.stores.background, ids, most));
        });
    }

    /// Fetches what of `ranges` is not in memory; on return it is, if it could be had.
    pub async fn fetch_ahead(self: &Arc<Shared>, ranges: &[SectorRange]) {
        let mut ids = Vec::new();
        for range in ranges {
            ids.extend(self.frames_of(*range).await);
        }
        ids.retain(|id| !self.frames.contains(id));
        for (_, wait, _) in self.request(&self.stores.background, ids, RUN_AHEAD) {
            let _ = wait.await;
        }
    }

    /// The committed frames of `range`.
    async fn frames_of(&self, range: SectorRange) -> Vec<FrameId> {
        let end = self.state().size.0;
        let range = range.intersect(SectorRange::between(Sector(0), Sector(end)));
        // A hint: whatever is wrong is reported by the read that needs the data.
        let Ok(pieces) = self.lookup(range, 4096).await else { return Vec::new() };
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
        ids.sort_unstable();
        ids.dedup();
        ids
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
