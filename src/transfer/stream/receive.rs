//! Making a volume what a stream leads to.
//!
//! The changes go into the volume as they come, so a receipt that is cut off leaves it between two states. It is
//! then neither, and the [note](crate::format::received) of the receipt is what tells: the same snapshot
//! may be received again, from the same base, and no other. What it was before is its snapshot `base`.

use super::OnData;
use super::incoming::{Arrived, Incoming};
use super::pieces::pieces;
use crate::device::{BlockDevice, DeviceError, WriteFlags, ZeroFlags};
use crate::error::{Error, ErrorKind, Result};
use crate::format::SnapshotId;
use crate::format::snapshot::SnapshotEntry;
use crate::format::stream::{StreamHeader, StreamState};
use crate::volume::Volume;
use futures::stream::StreamExt;
use std::pin::pin;
use tokio::io::AsyncRead;

/// Attempts to tell whether a volume is what its snapshot is: its collector may be at work.
const LOOKS: usize = 3;

/// What became of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The snapshot that equals the stream's.
    pub snapshot: SnapshotEntry,
    /// It was there already: nothing was changed.
    pub was_there: bool,
    /// An attempt that was cut off was done again.
    pub resumed: bool,
    /// Bytes of data that were written.
    pub data_bytes: u64,
    /// Bytes that became zeros.
    pub zero_bytes: u64,
}

/// Makes `volume` what the stream leads to, and a snapshot of it with the name that it has there. Its owner
/// claimed it [as a receiver](crate::volume::as_receiver). `id` was used nowhere before.
///
/// # Errors
/// Failed: the volume is not what the stream leads from. Exists: it has another snapshot of that name, or is
/// not empty and the stream has no base. Usage: its blocks are of another size. Those of [`Incoming`], of
/// [`Volume::resize`] and [`Volume::make_snapshot`]. Unless the volume had to be written it is unchanged; otherwise
/// the same may be received again.
///
/// Cancellation: as an error.
pub async fn receive<R: AsyncRead + Unpin>(
    volume: &Volume,
    mut incoming: Incoming<R>,
    id: SnapshotId,
    on_data: OnData<'_>,
) -> Result<Received> {
    let header = incoming.header().clone();
    if let Some(snapshot) = there_already(volume, &header.to).await? {
        incoming.verify().await?;
        return Ok(Received::was_there(snapshot));
    }
    let resumed = check(volume, &header).await?;
    let base = header.base.as_ref().and_then(|base| named(volume, &base.name)).map(|e| e.id);
    volume.note_receipt(id, (header.volume, header.to.snapshot), base).await?;
    // Before the first change: from then on no other one of this owner's is true.
    volume.forget_receipts_but(id).await?;
    let written = apply(volume, &mut incoming, on_data).await.map_err(|e| {
        let again = match &header.base {
            Some(base) => format!(
                "the volume is partly changed: import the whole stream again, or roll it back to {}",
                base.name
            ),
            None => "the volume is partly filled: import the whole stream again, or delete it".into(),
        };
        Error::new(e.kind(), e.to_string()).hint(again)
    })?;
    let snapshot = volume.make_snapshot(id, &header.to.name).await?;
    let (data_bytes, zero_bytes) = written;
    Ok(Received { snapshot, was_there: false, resumed, data_bytes, zero_bytes })
}

impl Received {
    /// Nothing had to be done.
    pub fn was_there(snapshot: SnapshotEntry) -> Received {
        Received { snapshot, was_there: true, resumed: false, data_bytes: 0, zero_bytes: 0 }
    }
}

fn named(volume: &Volume, name: &str) -> Option<SnapshotEntry> {
    volume.snapshots().into_iter().find(|entry| entry.name == name)
}

/// The snapshot of that name, if it equals `state`.
async fn there_already(volume: &Volume, state: &StreamState) -> Result<Option<SnapshotEntry>> {
    let Some(entry) = named(volume, &state.name) else { return Ok(None) };
    if volume.original(entry.id).await? == state.snapshot {
        return Ok(Some(entry));
    }
    let text = format!("the volume has another snapshot {}", state.name);
    Err(Error::new(ErrorKind::Exists, text).hint("delete that one, or import into another volume"))
}

/// Whether the volume is what the stream leads from; true where it is between that and what the stream
/// leads to.
async fn check(volume: &Volume, header: &StreamHeader) -> Result<bool> {
    let (block, blocks) = (volume.geometry().block_size, header.block_size);
    if block != blocks {
        let (block, blocks) = (block.bytes(), blocks.bytes());
        let text = format!("the volume has blocks of {block} bytes, the stream of {blocks}");
        return Err(Error::usage(text)
            .hint(format!("import into a volume with --block-size {blocks}, or a new one")));
    }
    let base = match &header.base {
        Some(base) => Some(find_base(volume, base).await?),
        None => None,
    };
    let interrupted = volume.interrupted_receipt().await?;
    if let Some(note) = &interrupted
        && note.snapshot == header.to.snapshot
        && note.base == base.as_ref().map(|base| base.id)
    {
        return Ok(true);
    }
    match base {
        Some(base) => check_at(volume, &base, interrupted.is_some()).await,
        None => check_empty(volume).await,
    }?;
    Ok(false)
}

async fn find_base(volume: &Volume, base: &StreamState) -> Result<SnapshotEntry> {
    let name = &base.name;
    let hint = "import the streams between, or export from a snapshot that both have";
    let Some(entry) = named(volume, name) else {
        let text = format!("the stream leads from the snapshot {name}, and the volume has none");
        return Err(Error::failed(text).hint(hint));
    };
    match volume.original(entry.id).await? == base.snapshot {
        true => Ok(entry),
        false => {
            let text =
                format!("the volume's snapshot {name} is not the one that the stream leads from");
            Err(Error::failed(text).hint(hint))
        }
    }
}

/// Refuses a volume that is not what its snapshot `base` is.
async fn check_at(volume: &Volume, base: &SnapshotEntry, interrupted: bool) -> Result<()> {
    let name = &base.name;
    let back = format!("roll it back to {name} with `objblk snapshot rollback` if that may go");
    let mut looks = 0;
    let (is_base, same) = loop {
        looks += 1;
        let view = volume.view(name).await?;
        match differs(volume, Some(&view)).await {
            // What it was compared with was moved meanwhile.
            Err(e) if e.kind() == ErrorKind::Corrupt && looks < LOOKS => {}
            Err(e) => return Err(e),
            Ok(differs) => {
                let size = volume.geometry().size;
                let is_base = named(volume, name).is_some_and(|entry| entry.base);
                break (is_base, !differs && size == base.size);
            }
        }
    };
    match (same, is_base) {
        // Snapshots of its own do no harm.
        (true, _) => Ok(()),
        (false, _) if interrupted => {
            let text = "an import of another snapshot into the volume was cut off";
            Err(Error::failed(text).hint(format!("repeat that one, or {back}")))
        }
        (false, false) => {
            let text = format!("the volume has gone on from {name} to other snapshots");
            Err(Error::failed(text).hint(back))
        }
        (false, true) => {
            let text = format!("the volume was written to since its snapshot {name}");
            Err(Error::failed(text).hint(back))
        }
    }
}

async fn check_empty(volume: &Volume) -> Result<()> {
    if volume.snapshots().is_empty() && !differs(volume, None).await? {
        return Ok(());
    }
    let text = "the volume is not empty, and the stream leads from nothing";
    Err(Error::new(ErrorKind::Exists, text).hint("import it into a new volume"))
}

async fn differs(volume: &Volume, base: Option<&Volume>) -> Result<bool> {
    let mut pieces = pin!(pieces(volume, base));
    pieces.next().await.transpose().map(|first| first.is_some())
}

/// Writes what arrives, up to the end of the stream, and makes it durable. Returns the bytes of data and of zeros.
async fn apply<R: AsyncRead + Unpin>(
    volume: &Volume,
    incoming: &mut Incoming<R>,
    on_data: OnData<'_>,
) -> Result<(u64, u64)> {
    let size = incoming.header().to.size;
    if volume.geometry().size != size {
        volume.resize(size).await?;
    }
    let failed = |e: DeviceError| Error::failed("cannot write the volume").because(e);
    let (mut data_bytes, mut zero_bytes) = (0, 0);
    while let Some(arrived) = incoming.next().await? {
        match arrived {
            Arrived::Data(start, data) => {
                volume.write(start, data, WriteFlags::default()).await.map_err(failed)?;
                data_bytes += data.len() as u64;
                on_data(data.len() as u64);
            }
            Arrived::Zeros(range) => {
                let flags = ZeroFlags { may_unmap: true, fua: false };
                volume.write_zeroes(range, flags).await.map_err(failed)?;
                zero_bytes += range.len().bytes();
            }
        }
    }
    volume.flush().await.map_err(failed)?;
    Ok((data_bytes, zero_bytes))
}
