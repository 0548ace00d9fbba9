//! What differs between two states, with its bytes.

use crate::device::{BlockDevice, BlockState};
use crate::error::{Error, Result};
use crate::format::stream::DATA_SECTORS_MAX;
use crate::units::{SECTOR_SIZE, Sector, SectorRange};
use crate::volume::{Changed, Volume};
use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use std::ops::Range;

/// Changed runs that are read at once; each takes at most 2 MiB meanwhile.
const PARALLEL: usize = 8;

/// A run of sectors that differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// They hold this.
    Data(SectorRange, Bytes),
    /// They are zeros.
    Zeros(SectorRange),
}

/// What differs in `view` from `base`, or from nothing, in the order of sectors. Where both have data, or data
/// where there was none, the bytes are read and compared, block by block.
///
/// # Errors
/// Those of [`Volume::changes_since`]. Corrupt: something cannot be read back.
pub fn pieces<'a>(
    view: &'a Volume,
    base: Option<&'a Volume>,
) -> impl Stream<Item = Result<Piece>> + 'a {
    stream::once(view.changes_since(base))
        .map_ok(|changes| {
            stream::try_unfold(changes, |mut changes| async move {
                let changed = changes.next().await?;
                Ok::<_, Error>(changed.map(|changed| (changed, changes)))
            })
        })
        .try_flatten()
        .map_ok(|changed| stream::iter(changed.into_iter().flat_map(cut).map(Ok)))
        .try_flatten()
        .map(move |part: Result<Changed>| async move { look(view, base, part?).await })
        .buffered(PARALLEL)
        .map_ok(|pieces| stream::iter(pieces.into_iter().map(Ok)))
        .try_flatten()
}

/// The run, in parts that can be read at once where that is needed.
fn cut(changed: Changed) -> impl Iterator<Item = Changed> {
    let most = match changed.is {
        BlockState::Data => DATA_SECTORS_MAX,
        BlockState::Hole => u64::MAX,
    };
    let (start, end) = (changed.range.start().0, changed.range.end().0);
    // At multiples of the longest part, so that parts of neighbours do not become shorter and shorter.
    let next = move |at: &u64| (at / most).checked_add(1)?.checked_mul(most);
    let firsts = std::iter::successors(Some(start), next).take_while(move |at| *at < end);
    firsts.map(move |first| {
        let last = next(&first).map_or(end, |next| next.min(end));
        Changed { range: SectorRange::between(Sector(first), Sector(last)), ..changed }
    })
}

async fn look(view: &Volume, base: Option<&Volume>, part: Changed) -> Result<Vec<Piece>> {
    let range = part.range;
    if part.is == BlockState::Hole {
        return Ok(vec![Piece::Zeros(range)]);
    }
    let (new, old) = match base.filter(|_| part.was == BlockState::Data) {
        Some(base) => {
            let (new, old) = futures::try_join!(read(view, range), read(base, range))?;
            (new, Some(old))
        }
        None => (read(view, range).await?, None),
    };
    let block = view.geometry().block_size.bytes() as usize;
    let runs = runs(&new, old.as_deref(), block);
    let new = Bytes::from(new);
    let piece = |(is, at): (BlockState, Range<usize>)| {
        let sector = |byte: usize| Sector(range.start().0 + byte as u64 / SECTOR_SIZE);
        let sectors = SectorRange::between(sector(at.start), sector(at.end));
        match is {
            BlockState::Data => Piece::Data(sectors, new.slice(at)),
            BlockState::Hole => Piece::Zeros(sectors),
        }
    };
    Ok(runs.into_iter().map(piece).collect())
}

async fn read(from: &Volume, range: SectorRange) -> Result<Vec<u8>> {
    let mut bytes = vec![0; range.len().bytes() as usize];
    from.read(range.start(), &mut bytes).await.map_err(|e| Error::corrupt(e.to_string()))?;
    Ok(bytes)
}

/// The blocks of `new` that differ from `old` (without one: from zeros), those that follow each other joined,
/// and what they are: a hole where they are zeros.
fn runs(new: &[u8], old: Option<&[u8]>, block: usize) -> Vec<(BlockState, Range<usize>)> {
    let mut runs: Vec<(BlockState, Range<usize>)> = Vec::new();
    for (index, bytes) in new.chunks(block).enumerate() {
        let at = index * block..index * block + bytes.len();
        let is_zero = bytes.iter().all(|byte| *byte == 0);
        let is_same = match old {
            Some(old) => old[at.clone()] == *bytes,
            None => is_zero,
        };
        let is = if is_zero { BlockState::Hole } else { BlockState::Data };
        match runs.last_mut() {
            _ if is_same => {}
            Some((last, run)) if *last == is && run.end == at.start => run.end = at.end,
            _ => runs.push((is, at)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_of_blocks_that_differ() {
        use BlockState::{Data, Hole};
        let (old, new) = (b"aabb\0\0ccddee", b"aaxxyy\0\0\0\0ee");
        assert_eq!(runs(new, Some(old), 2), [(Data, 2..6), (Hole, 6..10)]);
        assert_eq!(runs(new, None, 2), [(Data, 0..6), (Data, 10..12)]);
        assert_eq!(runs(new, None, 4), [(Data, 0..8), (Data, 8..12)].map(|r| (r.0, 0..12))[..1]);
        assert_eq!(runs(new, Some(new), 2), []);
    }

    #[test]
    fn parts_cover_a_run() {
        let changed = |is| Changed {
            range: SectorRange::between(Sector(2000), Sector(6200)),
            was: BlockState::Data,
            is,
        };
        let parts: Vec<_> = cut(changed(BlockState::Data)).map(|part| part.range).collect();
        let ends: Vec<_> = parts.iter().map(|range| (range.start().0, range.end().0)).collect();
        assert_eq!(ends, [(2000, 2048), (2048, 4096), (4096, 6144), (6144, 6200)]);
        let whole: Vec<_> = cut(changed(BlockState::Hole)).collect();
        assert_eq!(whole, [changed(BlockState::Hole)]);
    }
}
