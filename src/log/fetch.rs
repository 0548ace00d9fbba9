//! Frames of committed chunks: header once, then ranged GETs, everything verified. Frames that a chunk begins with
//! come by one GET with its header.

use super::suspects::Suspects;
use crate::flight::{Flights, Turn};
use crate::format::FormatError;
use crate::format::chunk::{self, ChunkHeader, HEADER_MAX};
use crate::format::codec::Problem;
use crate::format::frame::{FRAME_SIZE, FrameTable, frame_payload_len};
use crate::format::keys::ChunkId;
use crate::mutant::{self, Mutant};
use crate::store::{GetRange, Key, Store, StoreError, StoreErrorKind};
use bytes::Bytes;
use lru::LruCache;
use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// What is fetched of a chunk first: enough for the header of a full chunk of 4 KiB writes.
pub const HEADER_GUESS: u64 = 32 << 10;

/// Frame tables kept in memory: about 0.6 KiB each for chunks of 4 MiB.
const TABLES: NonZeroUsize = NonZeroUsize::new(16 << 10).expect("not zero");

/// Why frames could not be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// The object is not in the store.
    #[error("chunk object {0} is missing from the store")]
    Missing(Key),
    /// The object is damaged.
    #[error("chunk object {key} is damaged: {why}")]
    Damaged {
        /// The object.
        key: Key,
        /// What is wrong.
        why: FormatError,
    },
    /// The store refuses or gave up.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The task that fetched was ended.
    #[error("the volume is closing")]
    Abandoned,
}

/// Result of fetching.
pub type FetchResult<T> = Result<T, FetchError>;

/// The frames of a chunk and where they begin.
#[derive(Debug)]
struct Placed {
    table: FrameTable,
    header_len: u32,
}

/// Fetches frames of committed chunks.
#[derive(Debug)]
pub struct Fetcher {
    tables: Mutex<LruCache<ChunkId, Arc<Placed>>>,
    flights: Flights<ChunkId, FetchResult<Arc<Placed>>>,
    /// Chunks of which one copy was damaged, and another one was read.
    pub suspects: Suspects,
}

impl Default for Fetcher {
    fn default() -> Fetcher {
        let tables = Mutex::new(LruCache::new(TABLES));
        Fetcher { tables, flights: Flights::default(), suspects: Suspects::default() }
    }
}

impl Fetcher {
    /// The frame table of a chunk: from memory, or by one GET that concurrent callers share. With it, what else
    /// that one brought of the chunk: its beginning, with the frames up to `end` if they were asked for from the
    /// first on and are as long as they may be.
    async fn table(
        &self,
        store: &dyn Store,
        id: ChunkId,
        range: &Range<u32>,
    ) -> FetchResult<(Arc<Placed>, Bytes)> {
        let known = |id| self.tables.lock().ok()?.get(&id).cloned();
        if let Some(table) = known(id) {
            return Ok((table, Bytes::new()));
        }
        match self.flights.join(id) {
            Turn::Follow(wait) => {
                let _urgent = store.hurry(&id.key());
                let table = wait.await.unwrap_or(Err(FetchError::Abandoned))?;
                Ok((table, Bytes::new()))
            }
            Turn::Lead(lead) => {
                let fetched = match known(id) {
                    Some(table) => Ok((table, Bytes::new())),
                    None => fetch_table(store, id, range).await,
                };
                if let (Ok((table, _)), Ok(mut tables)) = (&fetched, self.tables.lock()) {
                    tables.put(id, table.clone());
                }
                lead.done(fetched.as_ref().map(|(table, _)| table.clone()).map_err(Clone::clone));
                fetched
            }
        }
    }

    /// The payloads of frames `range` of a chunk in `store`, by one ranged GET: one result a frame, since
    /// damage to one is none to the others. What is damaged or missing comes from another copy, if there are several.
    ///
    /// # Errors
    /// As a whole: the object is missing, its header is damaged, the store refuses.
    pub async fn frames(
        &self,
        store: &dyn Store,
        id: ChunkId,
        range: Range<u32>,
    ) -> FetchResult<Vec<FetchResult<Bytes>>> {
        let mut found = self.frames_of(store, id, range.clone()).await;
        if !lacks(&found) {
            return found;
        }
        for copy in store.copies(&id.key()) {
            let Ok(others) = self.frames_of(&*copy, id, range.clone()).await else { continue };
            found = Ok(match found {
                Ok(frames) => frames.into_iter().zip(others).map(|(a, b)| a.or(b)).collect(),
                Err(_) => others,
            });
            if !lacks(&found) {
                self.suspects.note(id.key());
                break;
            }
        }
        found
    }

    /// The same, of one copy.
    async fn frames_of(
        &self,
        store: &dyn Store,
        id: ChunkId,
        range: Range<u32>,
    ) -> FetchResult<Vec<FetchResult<Bytes>>> {
        let first = match self.frames_once(store, id, &range).await {
            // Of a sealed chunk nothing comes where a part of it is damaged: each frame by itself, then.
            Err(FetchError::Damaged { .. }) if range.len() > 1 => {
                let mut each = Vec::with_capacity(range.len());
                for index in range {
                    let one = self.frames_once(store, id, &(index..index + 1)).await;
                    each.extend(one.unwrap_or_else(|e| vec![Err(e)]));
                }
                return Ok(each);
            }
            first => first?,
        };
        if first.iter().all(Result::is_ok) {
            return Ok(first);
        }
        // Damage in transit and damage in the store look the same once: only the second is final.
        let second = self.frames_once(store, id, &range).await?;
        Ok(first.into_iter().zip(second).map(|(a, b)| a.or(b)).collect())
    }

    async fn frames_once(
        &self,
        store: &dyn Store,
        id: ChunkId,
        range: &Range<u32>,
    ) -> FetchResult<Vec<FetchResult<Bytes>>> {
        let (placed, head) = self.table(store, id, range).await?;
        let table = &placed.table;
        let damaged = |why| FetchError::Damaged { key: id.key(), why };
        let wanted = table.entries.get(range.start as usize..range.end as usize);
        let wanted = wanted.ok_or_else(|| damaged(no_such_frame(range)))?;
        let before = match mutant::on(Mutant::FramesSoughtAsPlain) {
            true => u64::from(range.start) * FRAME_SIZE as u64,
            false => table.before(range.start as usize),
        };
        let len: u64 = wanted.iter().map(|f| u64::from(f.encoded_len)).sum();
        let offset = u64::from(placed.header_len) + before;
        let bytes = match part_of(&head, offset, len) {
            Some(bytes) => bytes,
            None => match store.get(&id.key(), GetRange::Part { offset, len }).await {
                Ok(bytes) => bytes,
                // The object ends before these frames.
                Err(e) if e.kind == StoreErrorKind::Range => Bytes::new(),
                Err(e) => return Err(object_error(id, e)),
            },
        };
        let mut at = 0;
        let frames = wanted.iter().zip(range.clone()).map(|(entry, index)| {
            let end = (at + entry.encoded_len as usize).min(bytes.len());
            let encoded = bytes.slice(at.min(end)..end);
            at += entry.encoded_len as usize;
            if mutant::on(Mutant::ShortFrameZeroed) && encoded.len() < entry.encoded_len as usize {
                let mut padded = encoded.to_vec();
                padded.resize(frame_payload_len(table.payload_sectors, index as usize), 0);
                return Ok(padded.into());
            }
            let payload = match table.open(index as usize, &encoded).map_err(damaged)? {
                Cow::Borrowed(_) => None,
                Cow::Owned(payload) => Some(payload),
            };
            Ok(payload.map_or(encoded, Bytes::from))
        });
        Ok(frames.collect())
    }
}

/// Whether something is damaged or missing.
fn lacks(found: &FetchResult<Vec<FetchResult<Bytes>>>) -> bool {
    match found {
        Ok(frames) => frames.iter().any(Result::is_err),
        Err(e) => matches!(e, FetchError::Missing(_) | FetchError::Damaged { .. }),
    }
}

/// Fetches the table of a chunk, and with it the frames that are wanted of its beginning.
async fn fetch_table(
    store: &dyn Store,
    id: ChunkId,
    range: &Range<u32>,
) -> FetchResult<(Arc<Placed>, Bytes)> {
    let with = if range.start == 0 { u64::from(range.end) * FRAME_SIZE as u64 } else { 0 };
    let part = GetRange::Part { offset: 0, len: HEADER_GUESS + with };
    let head = store.get(&id.key(), part).await.map_err(|e| object_error(id, e))?;
    let header = finish_header(store, id, head.clone()).await?;
    Ok((Arc::new(Placed { table: header.frames, header_len: header.header_len }), head))
}

/// Bytes of the beginning of an object, if it is so much of it.
fn part_of(head: &Bytes, offset: u64, len: u64) -> Option<Bytes> {
    let (offset, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
    let end = offset.checked_add(len).filter(|end| *end <= head.len())?;
    Some(head.slice(offset..end))
}

fn no_such_frame(range: &Range<u32>) -> FormatError {
    let problem = Problem::Value(format!("frames {range:?} are wanted and not there"));
    FormatError { object: "chunk", field: "frame table", offset: 0, problem }
}

fn object_error(id: ChunkId, e: StoreError) -> FetchError {
    match e.kind {
        StoreErrorKind::NotFound => FetchError::Missing(id.key()),
        // The object has no bytes at all: asking again would not help.
        StoreErrorKind::Range => {
            let (object, field, offset) = ("chunk", "header", 0);
            let why = FormatError { object, field, offset, problem: Problem::Truncated };
            FetchError::Damaged { key: id.key(), why }
        }
        StoreErrorKind::Damaged => {
            FetchError::Damaged { key: id.key(), why: unsealed("sealed chunk", e) }
        }
        _ => FetchError::Store(e),
    }
}

/// What is wrong with an object of the kind `object` that was not opened, where the store says so.
pub fn unsealed(object: &'static str, e: StoreError) -> FormatError {
    FormatError { object, field: "segment", offset: 0, problem: Problem::Value(e.detail) }
}

/// Fetches and verifies a chunk's header.
pub async fn fetch_header(store: &dyn Store, id: ChunkId) -> FetchResult<ChunkHeader> {
    let key = id.key();
    let part = |len| GetRange::Part { offset: 0, len };
    let bytes = store.get(&key, part(HEADER_GUESS)).await.map_err(|e| object_error(id, e))?;
    finish_header(store, id, bytes).await
}

/// Parses the header that begins with `bytes`, fetching the rest of it where it is longer.
pub async fn finish_header(
    store: &dyn Store,
    id: ChunkId,
    mut bytes: Bytes,
) -> FetchResult<ChunkHeader> {
    let key = id.key();
    let damaged = |why| FetchError::Damaged { key: key.clone(), why };
    let len = chunk::header_len(&bytes).map_err(damaged)?;
    debug_assert!(len <= HEADER_MAX);
    if len > bytes.len() {
        let range = GetRange::Part { offset: 0, len: len as u64 };
        bytes = store.get(&key, range).await.map_err(|e| object_error(id, e))?;
    }
    let header = ChunkHeader::parse(&bytes).map_err(damaged)?;
    if (header.volume, header.epoch, header.seq) == (id.volume, id.epoch, id.seq) {
        return Ok(header);
    }
    let found = format!("{}, epoch {}, slot {}", header.volume, header.epoch, header.seq);
    let problem = Problem::Value(format!("the header is of volume {found}"));
    let why = FormatError { object: "chunk", field: "identity", offset: 16, problem };
    Err(FetchError::Damaged { key, why })
}
