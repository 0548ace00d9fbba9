//! One chunk: header, size, and with `data` every frame.

use super::flaw::{Flaw, Found};
use super::used::Known;
use crate::error::Result;
use crate::format::chunk::{ChunkHeader, FRAME_SECTORS};
use crate::format::codec::FormatError;
use crate::format::keys::ChunkId;
use crate::log::fetch::FetchError;
use crate::log::verify::{self, FRAMES_AT_ONCE};
use crate::store::{Store, StoreErrorKind};
use std::ops::Range;

pub(super) use crate::log::verify::{frame_place, frames};

/// What is wrong with a chunk.
#[derive(Clone, Debug)]
pub(super) struct Bad {
    pub flaw: Flaw,
    /// Sectors of its payload that cannot be read, ascending.
    pub sectors: Vec<Range<u32>>,
}

impl Bad {
    fn whole(flaw: Flaw) -> Bad {
        Bad { flaw, sectors: Vec::from([Range { start: 0, end: u32::MAX }]) }
    }
}

/// Verifies a chunk. `None`: it is whole.
///
/// # Errors
/// Those of the store that tell nothing of the object.
pub(super) async fn examine(store: &dyn Store, known: Known, data: bool) -> Result<Option<Bad>> {
    let header = match header(store, known.id).await? {
        Ok(header) => header,
        Err(flaw) => return Ok(Some(Bad::whole(flaw))),
    };
    let mut bad = Bad { flaw: Flaw::Missing, sectors: Vec::new() };
    let mut flaws = Vec::new();
    if let Some(said) = known.payload.filter(|said| *said != header.payload_sectors()) {
        let text =
            format!("a chunk page says {said} sectors, and it has {}", header.payload_sectors());
        flaws.push(Flaw::Inconsistent(text));
    }
    if known.end > header.payload_sectors() {
        let text =
            format!("it has {} sectors, of which the map names more", header.payload_sectors());
        flaws.push(Flaw::Inconsistent(text));
        bad.sectors.push(header.payload_sectors()..u32::MAX);
    }
    let is = match known.size {
        Some(size) => size,
        // It was listed before it was there, or not at all.
        None => match store.head(&known.id.key()).await {
            Ok(info) => info.size,
            Err(e) if e.kind == StoreErrorKind::NotFound => {
                return Ok(Some(Bad::whole(Flaw::Missing)));
            }
            Err(e) => return Err(e.into()),
        },
    };
    let should = header.object_len();
    if is != should {
        flaws.push(Flaw::Size { is, should });
    }
    let broken = match data {
        true => broken_frames(store, known.id, &header).await?,
        false => cut_frames(&header, is),
    };
    for (index, flaw) in broken {
        let start = index * FRAME_SECTORS;
        bad.sectors.push(start..(start + FRAME_SECTORS).min(header.payload_sectors()));
        flaws.extend(flaw.map(Flaw::Damaged));
    }
    bad.sectors.sort_by_key(|run| run.start);
    Ok(flaws.into_iter().next().map(|flaw| Bad { flaw, ..bad }))
}

/// Reads a header; one that is damaged once more.
///
/// # Errors
/// Those of the store that tell nothing of the object.
pub(super) async fn header(store: &dyn Store, id: ChunkId) -> Result<Found<ChunkHeader>> {
    match verify::header(store, id).await {
        Ok(header) => Ok(Ok(header)),
        Err(FetchError::Missing(_)) => Ok(Err(Flaw::Missing)),
        Err(FetchError::Damaged { why, .. }) => Ok(Err(Flaw::Damaged(why))),
        Err(FetchError::Store(e)) => Err(e.into()),
        Err(e) => Err(crate::error::Error::failed(e.to_string())),
    }
}

/// The frames that an object of `size` bytes does not have as a whole.
fn cut_frames(header: &ChunkHeader, size: u64) -> Vec<(u32, Option<FormatError>)> {
    let mut end = u64::from(header.header_len);
    let cut = header.frames.entries.iter().zip(0..).filter_map(|(frame, index)| {
        end += u64::from(frame.encoded_len);
        (end > size).then_some((index, None))
    });
    cut.collect()
}

async fn broken_frames(
    store: &dyn Store,
    id: ChunkId,
    header: &ChunkHeader,
) -> Result<Vec<(u32, Option<FormatError>)>> {
    let mut broken = Vec::new();
    let count = header.frames.entries.len() as u32;
    for first in (0..count).step_by(FRAMES_AT_ONCE as usize) {
        let run = first..(first + FRAMES_AT_ONCE).min(count);
        let bad = verify::broken_frames(store, id, header, run).await?;
        broken.extend(bad.into_iter().map(|(index, why)| (index, Some(why))));
    }
    Ok(broken)
}
