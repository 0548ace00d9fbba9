//! Whether a chunk in the store is what was written: its header, then each frame by its checksum.
//!
//! Contract: damage on the way and damage in the store look the same once, so what is told was seen twice.
//! What the store refuses is its error, never damage.

use super::fetch::{FetchError, FetchResult, fetch_header, unsealed};
use crate::format::chunk::ChunkHeader;
use crate::format::codec::FormatError;
use crate::format::keys::ChunkId;
use crate::mutant::{self, Mutant};
use crate::store::{GetRange, Store, StoreErrorKind, StoreResult};
use bytes::Bytes;
use std::ops::Range;

/// Frames that one request reads: 4 MiB.
pub const FRAMES_AT_ONCE: u32 = 64;

/// Reads a header; one that is damaged once more.
///
/// # Errors
/// As of a fetch: it is missing, it is damaged, the store refuses.
pub async fn header(store: &dyn Store, id: ChunkId) -> FetchResult<ChunkHeader> {
    match fetch_header(store, id).await {
        Err(FetchError::Damaged { .. }) => fetch_header(store, id).await,
        done => done,
    }
}

/// Where a frame is: from the object's start.
pub fn frame_place(header: &ChunkHeader, index: u32) -> Range<u64> {
    let start = u64::from(header.header_len) + header.frames.before(index as usize);
    let frame = header.frames.entries.get(index as usize);
    let len = frame.map_or(0, |frame| u64::from(frame.encoded_len));
    start..start + len
}

/// The frames of `run` (not empty) as they are stored, or what is wrong with each, by one look.
///
/// # Errors
/// Those of the store that tell nothing of the object.
pub async fn encoded_frames(
    store: &dyn Store,
    id: ChunkId,
    header: &ChunkHeader,
    run: Range<u32>,
) -> StoreResult<Vec<Result<Bytes, FormatError>>> {
    let offset = frame_place(header, run.start).start;
    let end = frame_place(header, run.end.saturating_sub(1)).end;
    let bytes = match store.get(&id.key(), GetRange::Part { offset, len: end - offset }).await {
        Ok(bytes) => bytes,
        // It ends before them, or went meanwhile: its next reader tells.
        Err(e) if matches!(e.kind, StoreErrorKind::Range | StoreErrorKind::NotFound) => {
            Bytes::new()
        }
        // Of a sealed chunk nothing comes where a part of it is damaged: each frame by itself, then.
        Err(e) if e.kind == StoreErrorKind::Damaged => {
            if run.len() == 1 {
                return Ok(vec![Err(unsealed("sealed chunk", e))]);
            }
            let mut each = Vec::with_capacity(run.len());
            for index in run {
                each.extend(Box::pin(encoded_frames(store, id, header, index..index + 1)).await?);
            }
            return Ok(each);
        }
        Err(e) => return Err(e),
    };
    let one = |index: u32| {
        let place = frame_place(header, index);
        let from = ((place.start - offset) as usize).min(bytes.len());
        let to = ((place.end - offset) as usize).min(bytes.len());
        let encoded = bytes.slice(from..to);
        header.frames.open(index as usize, &encoded).map(|_| encoded.clone())
    };
    Ok(run.map(one).collect())
}

/// What is wrong with each of these frames, by one look.
///
/// # Errors
/// Those of the store that tell nothing of the object.
pub async fn frames(
    store: &dyn Store,
    id: ChunkId,
    header: &ChunkHeader,
    run: Range<u32>,
) -> StoreResult<Vec<Option<FormatError>>> {
    let looked = encoded_frames(store, id, header, run).await?;
    Ok(looked.into_iter().map(Result::err).collect())
}

/// The frames of `run` (not empty) that are damaged.
///
/// # Errors
/// Those of the store that tell nothing of the object.
pub async fn broken_frames(
    store: &dyn Store,
    id: ChunkId,
    header: &ChunkHeader,
    run: Range<u32>,
) -> StoreResult<Vec<(u32, FormatError)>> {
    if mutant::on(Mutant::ScrubSkipsFrames) {
        return Ok(Vec::new());
    }
    let once = frames(store, id, header, run.clone()).await?;
    let once = run.clone().zip(once).filter_map(|(index, why)| Some((index, why?)));
    let mut bad: Vec<(u32, FormatError)> = once.collect();
    if !bad.is_empty() {
        let again = frames(store, id, header, run.clone()).await?;
        bad.retain(|(index, _)| again[(index - run.start) as usize].is_some());
    }
    Ok(bad)
}
