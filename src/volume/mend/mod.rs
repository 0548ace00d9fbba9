//! Mending: what is damaged in the store is made whole, as far as its bytes are found elsewhere.
//!
//! * **A chunk is put back** only as a whole, with the very bytes that it was written with: its header and every
//!   frame have the checksums that the header says. What the store still has of it and what the caches have
//!   is put together; where one frame is lacking, nothing is put. So whoever reads it, whenever, finds what was
//!   there before or the damage, and a repetition does no harm.
//! * **What is live is moved** out of chunks that cannot be put back, because the header is lost or a frame is
//!   found nowhere: what is found is written anew at the end of the log, as the collector does it and only
//!   where the map still points at the chunk. If nothing of it is lost, all that is live in the chunk is, and the
//!   chunk goes. Snapshots and clones go on to need it.
//! * What is found nowhere stays as it is. A read of it fails, as the checksums say; a write heals it.
//! * A leaf of the map is made again from what the log says (`regrow`).
//! * **Of several copies** of an object the first one that is whole takes the place of the others (`copies`), before
//!   anything else is tried. An owner of a mirrored volume does that whenever a read had to ask another copy.
//! * A fence says what the terms say, and is made again. A profile or a note of a scrub that is damaged goes:
//!   nothing depends on it. A clone that its origin does not know of is made known to it.
//!
//! Nothing is deleted meanwhile that is being put back: both hold the checkpointer.

mod copies;
mod others;

pub(super) use copies::start;

use super::pace::{Pace, Tempo};
use super::regrow::regrow;
use super::shared::Shared;
use super::victims::{Live, relocate};
use super::{Volume, checkpoint};
use crate::cache::FrameId;
use crate::error::{Error, Result};
use crate::format::chunk::{ChunkHeader, FRAME_SECTORS};
use crate::format::frame::{Codec, Compression, FrameEncoder, FrameTable, Sampling};
use crate::format::frame::{FRAME_SIZE, frame_payload_len};
use crate::format::keys::{self, ChunkId, MapObjectId};
use crate::format::page::LEAF_SECTORS;
use crate::log::fetch::FetchError;
use crate::log::verify::{self, FRAMES_AT_ONCE};
use crate::map::Source;
use crate::mutant::{self, Mutant};
use crate::store::{GetRange, Key, StoreErrorKind};
use crate::units::{SECTOR_SIZE, Sector, SectorRange, Seq};
use bytes::Bytes;
use others::{fenced_for, mend_fence, mend_other};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What became of a damaged object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mending {
    /// It is whole: it was damaged on its way, or somebody was quicker.
    Whole,
    /// It has the bytes again that it was written with.
    PutBack,
    /// What the volume needs of it is written anew, elsewhere.
    Moved,
    /// The volume as it is now needs nothing of it.
    Unneeded,
    /// It was of no use, and is removed.
    Removed,
    /// It was missing, and is made.
    Made,
    /// It cannot be made whole: bytes that the volume needs were found nowhere.
    Lost,
}

/// A damaged object, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mended {
    /// The object.
    pub object: String,
    /// What became of it.
    pub how: Mending,
    /// Bytes of the volume that were written anew.
    pub moved_bytes: u64,
    /// Bytes of the volume that cannot be read.
    pub lost_bytes: u64,
}

impl Mended {
    fn of(key: &Key, how: Mending) -> Mended {
        Mended { object: key.to_string(), how, moved_bytes: 0, lost_bytes: 0 }
    }
}

impl Volume {
    /// Makes whole what it can of `objects`, which are damaged or missing.
    ///
    /// # Errors
    /// Usage: the volume is open read-only. Store. Those of a write.
    ///
    /// Cancellation: it goes on.
    pub async fn mend(&self, objects: &[Key]) -> Result<Vec<Mended>> {
        self.shared.check_owner()?;
        let (shared, objects) = (self.shared.clone(), objects.to_vec());
        self.shared.to_its_end(async move { mend(&shared, &objects).await }).await
    }
}

/// What was found of the frames of a chunk that is not whole.
enum Found {
    /// Payloads of those that the store does not have, each with the checksum that the header says.
    Frames(Lacking),
    /// Without the header nobody knows what is in it: what the caches have counts, as for a read.
    Headless,
}

/// The bytes of each frame as they are stored.
type Frames = Vec<Option<Bytes>>;

/// The payloads of frames that the store does not have.
type Lacking = BTreeMap<u32, Option<Bytes>>;

/// A chunk that was not put back.
struct Apart {
    id: ChunkId,
    found: Found,
}

pub(super) async fn mend(shared: &Arc<Shared>, objects: &[Key]) -> Result<Vec<Mended>> {
    let mut mended = Vec::new();
    let mut apart = Vec::new();
    for key in objects {
        if let Some(how) = copies::restore(shared, key).await? {
            mended.push(Mended::of(key, how));
            continue;
        }
        let chunk = chunk_of(shared, key);
        if let Some((id, next)) = chunk.and_then(|id| Some((id, fenced_for(shared, id)?))) {
            mended.push(Mended::of(key, mend_fence(shared, id, next).await?));
            continue;
        }
        match chunk {
            Some(id) => match put_back(shared, id).await? {
                Ok(how) => mended.push(Mended::of(key, how)),
                Err(found) => apart.push(Apart { id, found }),
            },
            None => {
                let how = match map_object_of(shared, key) {
                    Some(object) => regrow(shared, object).await?,
                    None => mend_other(shared, key).await?,
                };
                mended.push(Mended::of(key, how));
            }
        }
    }
    if !apart.is_empty() {
        mended.extend(move_live(shared, apart).await?);
    }
    for mended in &mended {
        let Mended { object, how, moved_bytes, lost_bytes } = mended;
        tracing::warn!(volume = %shared.id, moved_bytes, lost_bytes, "mended {object}: {how:?}");
    }
    Ok(mended)
}

/// The chunk of that name, if it is the volume's or of an ancestor.
fn chunk_of(shared: &Shared, key: &Key) -> Option<ChunkId> {
    let volume = keys::parse_volume(key)?;
    let (seq, epoch) = keys::parse_slot(volume, key)?;
    (shared.lineage.slot_volume(seq) == volume).then_some(ChunkId { volume, epoch, seq })
}

/// The map object of that name, if it is the volume's or of an ancestor.
fn map_object_of(shared: &Shared, key: &Key) -> Option<MapObjectId> {
    let volume = keys::parse_volume(key)?;
    let object = keys::parse_map_object(volume, key)?;
    (shared.lineage.map_volume(object) == volume).then_some(object)
}

/// Puts a chunk back as it was, if all of it is found.
async fn put_back(shared: &Shared, id: ChunkId) -> Result<std::result::Result<Mending, Found>> {
    let (store, key) = (&*shared.stores.setup, id.key());
    let header = match verify::header(store, id).await {
        Ok(header) => header,
        Err(FetchError::Missing(_) | FetchError::Damaged { .. }) => {
            return Ok(Err(Found::Headless));
        }
        Err(FetchError::Store(e)) => return Err(e.into()),
        Err(e) => return Err(Error::failed(e.to_string())),
    };
    let part = GetRange::Part { offset: 0, len: header.header_len.into() };
    let head = store.get(&key, part).await?;
    if ChunkHeader::parse(&head).as_ref() != Ok(&header) {
        return Ok(Err(Found::Headless));
    }
    let (frames, lacking) = gather(shared, id, &header).await?;
    let size = store.head(&key).await?.size;
    if lacking.is_empty() && size == header.object_len() {
        return Ok(Ok(Mending::Whole));
    }
    let Some(frames) = frames.into_iter().collect::<Option<Vec<Bytes>>>() else {
        return Ok(Err(Found::Frames(lacking)));
    };
    let mut body = head.to_vec();
    frames.iter().for_each(|frame| body.extend_from_slice(frame));
    let put = {
        let _nothing_is_deleted = shared.checkpointer.lock().await;
        match store.head(&key).await {
            Ok(_) => store.put(&key, body.into()).await,
            Err(e) if e.kind == StoreErrorKind::NotFound => return Ok(Ok(Mending::Unneeded)),
            Err(e) => Err(e),
        }
    };
    match put {
        Ok(()) => {}
        // A pool of several stores overwrites nothing of a log, unless it is mirrored.
        Err(e) if e.kind == StoreErrorKind::Invalid => return Ok(Err(Found::Frames(lacking))),
        Err(e) => return Err(e.into()),
    }
    let (_, still) = gather(shared, id, &header).await?;
    match still.is_empty() {
        true => Ok(Ok(Mending::PutBack)),
        false => Err(Error::corrupt(format!("{key} was put back whole, and is damaged again"))
            .hint("look after the store: it does not keep what it is given")),
    }
}

/// The frames of a chunk as they are to be stored, with those that come from elsewhere; and of those the store
/// does not have whole, the payloads.
async fn gather(shared: &Shared, id: ChunkId, header: &ChunkHeader) -> Result<(Frames, Lacking)> {
    let store = &*shared.stores.setup;
    let count = header.frames.entries.len() as u32;
    let (mut frames, mut lacking) = (Vec::with_capacity(count as usize), BTreeMap::new());
    for first in (0..count).step_by(FRAMES_AT_ONCE as usize) {
        let run = first..(first + FRAMES_AT_ONCE).min(count);
        let mut looked = verify::encoded_frames(store, id, header, run.clone()).await?;
        if looked.iter().any(std::result::Result::is_err) {
            let again = verify::encoded_frames(store, id, header, run.clone()).await?;
            looked = looked.into_iter().zip(again).map(|(one, other)| one.or(other)).collect();
        }
        for (index, frame) in run.zip(looked) {
            if let Ok(frame) = frame {
                frames.push(Some(frame));
                continue;
            }
            let found = elsewhere(shared, FrameId { chunk: id, index }).await;
            let how = shared.description.features.compression();
            let proved = found
                .into_iter()
                .find_map(|payload| Some((prove(&header.frames, how, index, &payload)?, payload)));
            let (frame, payload) = proved.unzip();
            frames.push(frame);
            lacking.insert(index, payload);
        }
    }
    Ok((frames, lacking))
}

/// What the caches have for a frame, and the copies of its chunk.
async fn elsewhere(shared: &Shared, frame: FrameId) -> Vec<Bytes> {
    let mut found: Vec<Bytes> = shared.frames.get(&frame).into_iter().collect();
    if let Some(disk) = &shared.disk {
        let index = std::iter::once(frame.index);
        let read = disk.read(&*shared.stores.setup, frame.chunk, index).await;
        found.extend(read.into_iter().flatten());
    }
    for copy in shared.stores.setup.copies(&frame.chunk.key()) {
        let run = frame.index..frame.index + 1;
        let read = shared.fetcher.frames(&*copy, frame.chunk, run).await;
        found.extend(read.into_iter().flatten().flatten());
    }
    found
}

/// The bytes that are stored for this payload, if they are those that the frame was written with.
fn prove(table: &FrameTable, how: Compression, index: u32, payload: &Bytes) -> Option<Bytes> {
    let entry = table.entries.get(index as usize)?;
    if payload.len() != frame_payload_len(table.payload_sectors, index as usize) {
        return None;
    }
    let encoded = match entry.encoded_len as usize == payload.len() {
        true => payload.clone(),
        false => {
            let how = match table.codec {
                codec if codec == how.codec() => how,
                Codec::None => return None,
                Codec::Lz4 => Compression::Lz4,
                Codec::Zstd => Compression::Zstd(Compression::ZSTD_DEFAULT),
            };
            let mut out = Vec::with_capacity(payload.len());
            FrameEncoder::new(how).encode(payload, &mut out, &mut Sampling::default());
            out.into()
        }
    };
    let is_it =
        encoded.len() == entry.encoded_len as usize && crc32c::crc32c(&encoded) == entry.crc;
    (is_it || mutant::on(Mutant::MendUnproved)).then_some(encoded)
}

/// Moves what the volume needs of these chunks, as far as it was found.
async fn move_live(shared: &Arc<Shared>, apart: Vec<Apart>) -> Result<Vec<Mended>> {
    let wanted: BTreeSet<Seq> = apart.iter().map(|apart| apart.id.seq).collect();
    let mut live = live_in(shared, &wanted).await?;
    let mut mended = Vec::new();
    let mut moved = false;
    for Apart { id, found } in apart {
        let is_named = shared.chunk_id(&shared.state(), id.seq) == id;
        let runs = live.remove(&id.seq).filter(|_| is_named).unwrap_or_default();
        let done = move_runs(shared, id, &found, runs).await?;
        moved |= done.moved_bytes > 0;
        mended.push(done);
    }
    if moved {
        shared
            .flush()
            .await
            .map_err(|e| Error::failed("what was moved is not stored").because(e))?;
        // Until the next one the log says where it is.
        if let Err(e) = checkpoint::run(shared, checkpoint::Kind::Running).await {
            tracing::warn!(volume = %shared.id, "no checkpoint of what was moved yet: {e}");
        }
    }
    Ok(mended)
}

async fn move_runs(
    shared: &Arc<Shared>,
    id: ChunkId,
    found: &Found,
    runs: Vec<Live>,
) -> Result<Mended> {
    let mut done = Mended::of(&id.key(), Mending::Unneeded);
    let mut pace = Pace::new(shared, Tempo::steady(u64::from(FRAME_SECTORS)));
    let runs: Vec<Live> = runs.into_iter().flat_map(by_frame).collect();
    let frame_of = |run: &Live| run.place.offset / FRAME_SECTORS;
    // Once nothing is live in it, it is deleted, and its damage with it.
    let empties = match found {
        Found::Frames(lacking) => {
            !runs.iter().any(|run| matches!(lacking.get(&frame_of(run)), Some(None)))
        }
        Found::Headless => false,
    };
    let mut others = Lacking::new();
    for run in runs {
        let index = frame_of(&run);
        let known = match found {
            Found::Frames(lacking) => lacking.get(&index),
            Found::Headless => None,
        };
        let payload = match (known.or_else(|| others.get(&index)), found) {
            (Some(payload), _) => payload.clone(),
            (None, Found::Frames(_)) if !empties => continue,
            (None, found) => {
                let payload = match found {
                    Found::Frames(_) => stored(shared, id, index).await?,
                    Found::Headless => {
                        let frame = FrameId { chunk: id, index };
                        elsewhere(shared, frame).await.into_iter().next()
                    }
                };
                others.insert(index, payload.clone());
                payload
            }
        };
        let len = run.range.len().bytes();
        let from = (run.place.offset % FRAME_SECTORS) as usize * SECTOR_SIZE as usize;
        let data = payload.as_ref().and_then(|payload| payload.get(from..from + len as usize));
        match data {
            Some(data) => {
                relocate(shared, &mut pace, run, data).await?;
                done.moved_bytes += len;
            }
            None => done.lost_bytes += len,
        }
    }
    done.how = match (done.moved_bytes, done.lost_bytes) {
        (0, 0) => Mending::Unneeded,
        (_, 0) => Mending::Moved,
        _ => Mending::Lost,
    };
    Ok(done)
}

/// A frame that the store has.
async fn stored(shared: &Shared, id: ChunkId, index: u32) -> Result<Option<Bytes>> {
    match shared.fetcher.frames(&*shared.stores.setup, id, index..index + 1).await {
        Ok(frames) => Ok(frames.into_iter().next().and_then(std::result::Result::ok)),
        Err(FetchError::Store(e)) => Err(e.into()),
        Err(_) => Ok(None),
    }
}

/// What the map names in these slots. Parts of the map that cannot be read name nothing.
async fn live_in(shared: &Arc<Shared>, wanted: &BTreeSet<Seq>) -> Result<BTreeMap<Seq, Vec<Live>>> {
    let mut live: BTreeMap<Seq, Vec<Live>> = BTreeMap::new();
    let size = shared.state().size.0;
    for start in (0..size).step_by(LEAF_SECTORS as usize) {
        let end = (start + LEAF_SECTORS).min(size);
        let range = SectorRange::between(Sector(start), Sector(end));
        let pieces = match shared.lookup(range, usize::MAX).await {
            Ok(pieces) => pieces,
            Err(_) if shared.state().check().is_err() => return Err(shared.failure()),
            Err(e) => {
                tracing::warn!(volume = %shared.id, "what is damaged in {range} is not known: {e}");
                continue;
            }
        };
        for piece in pieces {
            let Source::Data(place) = piece.source else { continue };
            if wanted.contains(&place.seq) {
                live.entry(place.seq).or_default().push(Live {
                    range: piece.range,
                    place,
                    seen: None,
                });
            }
        }
    }
    Ok(live)
}

/// The parts of a run, each in one frame.
fn by_frame(run: Live) -> impl Iterator<Item = Live> {
    let most = (FRAME_SIZE as u64) / SECTOR_SIZE;
    let total = run.range.len().0;
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == total {
            return None;
        }
        let place = run.place.advance(at);
        let len = (most - u64::from(place.offset) % most).min(total - at);
        let start = Sector(run.range.start().0 + at);
        at += len;
        Some(Live { range: SectorRange::between(start, Sector(start.0 + len)), place, seen: None })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::frame::FrameEntry;
    use crate::format::page::Location;

    #[test]
    fn a_frame_is_proved_by_the_bytes_that_are_stored() {
        let plain: Bytes = (0..FRAME_SIZE + 512).map(|at| (at / 700) as u8).collect();
        for how in [Compression::None, Compression::Lz4, Compression::Zstd(7)] {
            let mut encoder = FrameEncoder::new(how);
            let mut encode = |payload: &[u8]| -> (FrameEntry, Vec<u8>) {
                let mut out = Vec::new();
                (encoder.encode(payload, &mut out, &mut Sampling::default()), out)
            };
            let (one, first) = encode(&plain[..FRAME_SIZE]);
            let (two, _) = encode(&plain[FRAME_SIZE..]);
            let entries = vec![one, two];
            let table = FrameTable { codec: how.codec(), payload_sectors: 129, entries };
            let payload = plain.slice(..FRAME_SIZE);
            assert_eq!(prove(&table, how, 0, &payload).unwrap(), first);
            let mut other = payload.to_vec();
            other[9] ^= 1;
            assert_eq!(prove(&table, how, 0, &other.into()), None);
            assert_eq!(prove(&table, how, 1, &payload), None);
            assert_eq!(prove(&table, how, 2, &payload), None);
            assert!(prove(&table, how, 1, &plain.slice(FRAME_SIZE..)).is_some());
        }
    }

    #[test]
    fn runs_are_cut_where_frames_end() {
        let range = SectorRange::between(Sector(1000), Sector(1300));
        let run = Live { range, place: Location { seq: Seq(7), offset: 100 }, seen: None };
        let parts: Vec<(u64, u64, u32)> =
            by_frame(run).map(|p| (p.range.start().0, p.range.len().0, p.place.offset)).collect();
        assert_eq!(parts, [(1000, 28, 100), (1028, 128, 128), (1156, 128, 256), (1284, 16, 384)]);
    }
}
