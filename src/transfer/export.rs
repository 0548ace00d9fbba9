//! Writing a device out: to a file or a block device, with holes as holes, or to a stream.
//!
//! Pieces are read in parallel, within a `Window`; what the device knows to be a hole is not read, and what
//! is read and zero is not written where it is zero already.

use super::progress::Progress;
use super::resume::Notes;
use super::window::{PIECE, Piece, Window};
use super::zeros::data_runs;
use crate::device::{BlockDevice, BlockState, Checked, DeviceError};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{SECTOR_SIZE, Sector, SectorRange};
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::task::spawn_blocking;

/// How much of the device is asked about at once, and for how many extents.
const LOOK: u64 = 1 << 30;
const EXTENTS: usize = 4096;
/// Zeros that are written to a stream at once.
const ZEROS: usize = 256 << 10;

/// Where an image goes.
pub enum Sink<'a> {
    /// A file that is as large as the image, and all holes behind what is noted as done.
    File(Arc<File>, Notes),
    /// A block device, which holds anything.
    Disk(Arc<File>),
    /// A pipe, in order.
    Stream(&'a mut (dyn AsyncWrite + Send + Unpin)),
}

/// Copies the device to `sink`. Returns the bytes that were not zero.
///
/// Errors: failed, where the sink takes no more; corrupt, where the device cannot be read.
///
/// Cancellation: what was written stays.
pub async fn save<D: BlockDevice>(
    device: &Arc<Checked<D>>,
    mut sink: Sink<'_>,
    progress: &Progress,
) -> Result<u64> {
    let (size, mut at, mut data) = (device.geometry().size, sink.begin(), 0);
    progress.add(at.bytes());
    let mut window = Window::new();
    while at.0 < size.0 {
        let end = Sector(size.0.min(at.0 + LOOK / SECTOR_SIZE));
        let range = SectorRange::between(at, end);
        let extents = match device.block_status(range, EXTENTS).await {
            Ok(extents) => extents,
            Err(e) => return Err(read_error(&**device, range, e).await),
        };
        for extent in extents {
            let part = at.bytes()..Sector(at.0 + extent.len.0).bytes();
            at = Sector(at.0 + extent.len.0);
            match extent.state {
                BlockState::Hole => {
                    // In order: whatever is under way lies before it.
                    while sink.is_stream()
                        && let Some(done) = window.first().await?
                    {
                        data += write(&mut sink, done, progress).await?;
                    }
                    hole(&mut sink, part.clone()).await?;
                    progress.add(part.end - part.start);
                }
                BlockState::Data => {
                    for piece in pieces(part) {
                        while let Some(done) = window.ended_before(piece.start).await? {
                            data += write(&mut sink, done, progress).await?;
                        }
                        let (device, place) = (Arc::clone(device), sink.place());
                        window.begin(piece, async move { read(&device, piece, place).await });
                    }
                }
            }
        }
    }
    while let Some(done) = window.first().await? {
        data += write(&mut sink, done, progress).await?;
    }
    match sink {
        Sink::Stream(stream) => stream.flush().await.map_err(cannot_write)?,
        Sink::File(_, mut notes) => notes.written().await?,
        Sink::Disk(_) => {}
    }
    Ok(data)
}

/// A part in pieces, at multiples of [`PIECE`].
fn pieces(part: Range<u64>) -> impl Iterator<Item = Piece> {
    let mut start = part.start;
    std::iter::from_fn(move || {
        let end = (start - start % PIECE + PIECE).min(part.end);
        let piece = Piece { start, len: end.saturating_sub(start) as usize };
        start = end;
        (piece.len > 0).then_some(piece)
    })
}

/// Where a piece goes that may be written at once.
enum Place {
    File(Arc<File>),
    Disk(Arc<File>),
    Later,
}

impl Sink<'_> {
    fn is_stream(&self) -> bool {
        matches!(self, Sink::Stream(_))
    }

    /// Where it begins.
    fn begin(&self) -> Sector {
        match self {
            Sink::File(_, notes) => Sector(notes.done() / SECTOR_SIZE),
            Sink::Disk(_) | Sink::Stream(_) => Sector(0),
        }
    }

    fn place(&self) -> Place {
        match self {
            Sink::File(file, _) => Place::File(Arc::clone(file)),
            Sink::Disk(disk) => Place::Disk(Arc::clone(disk)),
            Sink::Stream(_) => Place::Later,
        }
    }
}

/// Reads a piece, and writes it where that can be done out of order. Returns what is left to be written, and
/// the bytes that are not zero.
async fn read<D: BlockDevice>(
    device: &Checked<D>,
    piece: Piece,
    place: Place,
) -> Result<(Vec<u8>, u64)> {
    let start = Sector(piece.start / SECTOR_SIZE);
    let mut bytes = vec![0; piece.len];
    if let Err(e) = device.read(start, &mut bytes).await {
        let range = SectorRange::between(start, Sector(piece.end() / SECTOR_SIZE));
        return Err(read_error(device, range, e).await);
    }
    let work = move || {
        let runs = data_runs(&bytes);
        let data = runs.iter().map(|run| run.len() as u64).sum();
        match place {
            Place::Later => return Ok((bytes, data)),
            Place::Disk(disk) => disk.write_all_at(&bytes, piece.start),
            Place::File(file) => runs.into_iter().try_for_each(|run| {
                file.write_all_at(&bytes[run.clone()], piece.start + run.start as u64)
            }),
        }
        .map_err(cannot_write)?;
        Ok((Vec::new(), data))
    };
    spawn_blocking(work).await.map_err(|e| Error::failed("a write ended").because(e))?
}

/// Writes what is left of a piece.
async fn write(
    sink: &mut Sink<'_>,
    (piece, (bytes, data)): (Piece, (Vec<u8>, u64)),
    progress: &Progress,
) -> Result<u64> {
    match sink {
        Sink::Stream(stream) => stream.write_all(&bytes).await.map_err(cannot_write)?,
        // Pieces end in order, and holes are in the file already.
        Sink::File(file, notes) => notes.reached(file, piece.end()).await?,
        Sink::Disk(_) => {}
    }
    progress.add(piece.len as u64);
    Ok(data)
}

/// Has a part of the sink read as zeros.
async fn hole(sink: &mut Sink<'_>, part: Range<u64>) -> Result<()> {
    match sink {
        Sink::File(..) => Ok(()),
        Sink::Disk(disk) => {
            let disk = Arc::clone(disk);
            let cleared = spawn_blocking(move || clear(&disk, part)).await;
            cleared.map_err(|e| Error::failed("a write ended").because(e))?.map_err(cannot_write)
        }
        Sink::Stream(stream) => {
            let (zeros, mut left) = (vec![0; ZEROS], part.end - part.start);
            while left > 0 {
                let len = left.min(ZEROS as u64);
                stream.write_all(&zeros[..len as usize]).await.map_err(cannot_write)?;
                left -= len;
            }
            Ok(())
        }
    }
}

/// Clears a part of a block device: by its own means, or with zeros where it has none.
fn clear(disk: &File, part: Range<u64>) -> std::io::Result<()> {
    let how = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    if fallocate(disk, how, part.start as i64, (part.end - part.start) as i64).is_ok() {
        return Ok(());
    }
    let (zeros, mut at) = (vec![0; ZEROS], part.start);
    while at < part.end {
        let len = (part.end - at).min(ZEROS as u64);
        disk.write_all_at(&zeros[..len as usize], at)?;
        at += len;
    }
    Ok(())
}

fn cannot_write(e: std::io::Error) -> Error {
    Error::failed("cannot write the image").because(e)
}

/// What to say of a read of `range` that failed with `e`: which sector it is that cannot be read. Kind:
/// corrupt, where the device says that its data cannot be read back; else failed.
pub(super) async fn read_error<D: BlockDevice>(
    device: &D,
    range: SectorRange,
    e: DeviceError,
) -> Error {
    let block = device.geometry().block_size.sectors();
    let (mut at, mut first, mut buf) = (range.start(), None, vec![0; block.bytes() as usize]);
    while at < range.end() && first.is_none() {
        if let Err(e) = device.read(at, &mut buf).await {
            first = Some((at, e));
        }
        at = Sector(at.0 + block.0);
    }
    // Nothing fails any more, or the table of what is where cannot be read.
    let (sector, e) = first.unwrap_or((range.start(), e));
    let kind = if matches!(e, DeviceError::Io(_)) { ErrorKind::Corrupt } else { ErrorKind::Failed };
    Error::new(kind, format!("cannot read sector {sector} (byte {})", sector.bytes())).because(e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::WriteFlags;
    use crate::device::ram::RamDisk;
    use crate::format::VolumeId;
    use crate::transfer::partial::Partial;
    use crate::transfer::resume::Exported;
    use crate::units::{BlockSize, SectorCount, Seq};

    #[test]
    fn parts_in_pieces() {
        let all = |part: Range<u64>| pieces(part).map(|p| (p.start, p.end())).collect::<Vec<_>>();
        assert!(all(7..7).is_empty());
        assert_eq!(all(512..1024), [(512, 1024)]);
        assert_eq!(all(0..PIECE), [(0, PIECE)]);
        let far = 3 * PIECE + 512;
        assert_eq!(
            all(far..5 * PIECE + 1),
            [(far, 4 * PIECE), (4 * PIECE, 5 * PIECE), (5 * PIECE, 5 * PIECE + 1)]
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn files_and_streams_are_the_device() {
        let size = SectorCount((3 * PIECE + 8192) / SECTOR_SIZE);
        let disk = Arc::new(Checked::new(RamDisk::new(size, BlockSize::B512)));
        for sector in [0, 5000, size.0 - 1] {
            disk.write(Sector(sector), &[0x55; 512], WriteFlags::default()).await.unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let partial = Partial::begin(&folder.path().join("image"), false).unwrap();
        let volume = VolumeId::from_random([1; 16]);
        let of = Exported { volume, slot: Seq(1), size: size.bytes() };
        let notes = Notes::begin(&partial, of).unwrap();
        let file = Arc::new(partial.sized(size.bytes()).unwrap());
        let progress = Progress::new(None, "x");
        let data = save(&disk, Sink::File(file.clone(), notes), &progress).await.unwrap();
        assert_eq!((data, progress.done()), (3 * 512, size.bytes()));
        let mut stream = Vec::new();
        save(&disk, Sink::Stream(&mut stream), &progress).await.unwrap();
        let mut expected = vec![0; size.bytes() as usize];
        disk.read(Sector(0), &mut expected).await.unwrap();
        let mut read = vec![0; expected.len()];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == expected && stream == expected);
    }
}
