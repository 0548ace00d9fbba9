//! Filling a new volume: from an image that can be read anywhere, or from a stream.
//!
//! The volume has never held anything, so what is zero is left out. Pieces are read, looked through and
//! written in parallel, within a `Window`: as the volume is, after any crash, a prefix of what was written,
//! a copy can go on a window before the last data that it finds ([`resume_point`]).

use super::progress::Progress;
use super::source::Source;
use super::window::{PIECE, Piece, WINDOW, Window};
use super::zeros::data_runs;
use crate::device::{BlockDevice, BlockState, Checked, WriteFlags};
use crate::error::{Error, Result};
use crate::units::{SECTOR_SIZE, Sector, SectorCount, SectorRange};
use crate::volume::Volume;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Extents that are asked for at once.
const EXTENTS: usize = 4096;
/// The size of a volume that is filled from a stream of unknown length, at first.
pub const FIRST_SIZE: u64 = 1 << 30;

/// Copies `source` to the device, from the byte `from` on (0, or what [`resume_point`] says). Returns the bytes
/// that were not zero and so were written. They are not durable yet.
///
/// Errors: failed, where the source cannot be read; those of the device.
///
/// Cancellation: what was written stays; the copy can go on.
pub async fn fill<D: BlockDevice>(
    source: &Arc<Source>,
    device: &Arc<Checked<D>>,
    from: u64,
    progress: &Progress,
) -> Result<u64> {
    let (mut window, mut written, mut at) = (Window::new(), 0, from);
    progress.add(from);
    let mut ended = |(piece, data): (Piece, u64)| {
        progress.add(piece.len as u64);
        written += data;
    };
    while let Some(piece) = source.next_piece(at)? {
        progress.add(piece.start - at);
        at = piece.end();
        while let Some(done) = window.ended_before(piece.start).await? {
            ended(done);
        }
        let (source, device) = (Arc::clone(source), Arc::clone(device));
        window.begin(piece, async move {
            let bytes = source.read(piece).await?;
            write(&*device, piece.start, bytes).await
        });
    }
    while let Some(done) = window.first().await? {
        ended(done);
    }
    progress.add(source.size().saturating_sub(at));
    Ok(written)
}

/// Where a copy that was cut off goes on, in bytes: everything before is there.
///
/// Errors: corrupt, where the device cannot tell what it holds.
pub async fn resume_point<D: BlockDevice>(device: &Checked<D>) -> Result<u64> {
    let (mut at, mut end_of_data) = (Sector(0), Sector(0));
    let end = Sector(device.geometry().size.0);
    while at < end {
        let rest = SectorRange::between(at, end);
        let failed = |e| Error::corrupt("cannot tell what is there already").because(e);
        for extent in device.block_status(rest, EXTENTS).await.map_err(failed)? {
            at = Sector(at.0 + extent.len.0);
            if extent.state == BlockState::Data {
                end_of_data = at;
            }
        }
    }
    let last = end_of_data.bytes().saturating_sub(1);
    Ok((last - last % PIECE).saturating_sub(WINDOW))
}

/// Copies a stream to its end into `volume`, which grows as it has to, unless the end is at most at the byte
/// `limit`. Returns the bytes of the stream and those of them that were written. They are not durable yet,
/// and the volume is as large as it grew.
///
/// Errors: failed, where the stream breaks or goes on behind the limit; those of the volume.
pub async fn pour(
    stream: &mut (dyn AsyncRead + Send + Unpin),
    volume: &Arc<Checked<Volume>>,
    limit: Option<u64>,
    progress: &Progress,
) -> Result<(u64, u64)> {
    let (mut window, mut written, mut at) = (Window::new(), 0, 0);
    loop {
        let bytes = read_piece(stream).await?;
        let piece = Piece { start: at, len: bytes.len() };
        if bytes.is_empty() {
            break;
        }
        if limit.is_some_and(|limit| piece.end() > limit) {
            let limit = limit.unwrap_or_default();
            return Err(Error::failed(format!("the image goes on behind its {limit} bytes"))
                .hint("give a larger --size, or none"));
        }
        while let Some((_, data)) = window.ended_before(piece.start).await? {
            written += data;
        }
        make_room(volume.inner(), piece.end()).await?;
        let volume = Arc::clone(volume);
        window.begin(piece, async move { write(&*volume, piece.start, bytes).await });
        at = piece.end();
        progress.add(piece.len as u64);
    }
    while let Some((_, data)) = window.first().await? {
        written += data;
    }
    Ok((at, written))
}

/// Has the volume hold `end` bytes.
async fn make_room(volume: &Volume, end: u64) -> Result<()> {
    let size = volume.geometry().size.bytes();
    if end <= size {
        return Ok(());
    }
    // Twice as large each time: every resize waits for the store.
    let larger = end.next_multiple_of(PIECE).max(size.saturating_mul(2));
    let larger = larger.min(crate::format::volume::VOLUME_SIZE_MAX);
    volume.resize(SectorCount(larger / SECTOR_SIZE)).await
}

/// The next bytes of the stream: a whole piece, but for the last one. Errors: failed.
async fn read_piece(stream: &mut (dyn AsyncRead + Send + Unpin)) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(PIECE as usize);
    let read = stream.take(PIECE).read_to_end(&mut bytes).await;
    read.map_err(|e| Error::failed("cannot read the image").because(e))?;
    Ok(bytes)
}

/// Writes what is not zero of `bytes`. Returns how much that was.
async fn write<D: BlockDevice>(device: &Checked<D>, start: u64, mut bytes: Vec<u8>) -> Result<u64> {
    let block = device.geometry().block_size.bytes() as usize;
    bytes.resize(bytes.len().next_multiple_of(block), 0);
    let mut written = 0;
    for run in data_runs(&bytes) {
        let at = Sector((start + run.start as u64) / SECTOR_SIZE);
        written += run.len() as u64;
        let done = device.write(at, &bytes[run], WriteFlags::default()).await;
        done.map_err(|e| Error::failed(format!("cannot write sector {at}")).because(e))?;
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::ram::RamDisk;
    use crate::transfer::source::LocalFile;
    use crate::units::BlockSize;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    #[tokio::test(flavor = "multi_thread")]
    async fn odd_ends_and_holes() {
        let size = 2 * PIECE + 12_345;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 10_000]).unwrap();
        file.write_all_at(&[9; 345], 2 * PIECE + 12_000).unwrap();
        let source = LocalFile::new(file, "x").unwrap().unwrap();
        assert_eq!(source.size(), size);
        let source = Arc::new(Source::File(Arc::new(source)));
        let sectors = SectorCount(size.next_multiple_of(4096) / SECTOR_SIZE);
        let disk = Arc::new(Checked::new(RamDisk::new(sectors, BlockSize::B4096)));
        let progress = Progress::new(Some(size), "x");
        let written = fill(&source, &disk, 0, &progress).await.unwrap();
        assert_eq!((written, progress.done()), (12_288 + 4096 + 4096, size));
        let mut read = vec![0; sectors.bytes() as usize];
        disk.read(Sector(0), &mut read).await.unwrap();
        let mut expected = vec![0; read.len()];
        expected[..10_000].fill(7);
        expected[2 * PIECE as usize + 12_000..][..345].fill(9);
        assert!(read == expected);
    }
}
