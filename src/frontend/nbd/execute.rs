//! One request on one device: checks it, calls the device, lays out the reply.
//!
//! Contract: every request gets exactly one reply, and [`execute`] never fails otherwise. Its
//! future is ready at the first poll whenever the device's is.

use super::buffer::Buffer;
use super::exports::{Counters, Export};
use super::reply::{Replier, Reply, Run};
use super::request::{Command, Refusal, Request};
use super::rights::Access;
use super::wire::WireError;
use crate::device::{
    BlockDevice, BlockState, DeviceError, DeviceResult, StatusExtent, WriteFlags, ZeroFlags,
};
use crate::units::{SECTOR_SHIFT, SECTOR_SIZE, Sector, SectorCount, SectorRange};
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// Reads shorter than this are sent whole: looking for holes would cost more than it saves.
const PROBE_HOLES_FROM: u32 = 64 << 10;

/// Most holes and data runs that a read is split into.
const MAX_RUNS: usize = 64;

/// Most runs in a block status reply: it fits a buffer of [`STATUS_BYTES`].
const MAX_STATUS: usize = 2000;

/// Room that a block status reply needs in its buffer.
pub(super) const STATUS_BYTES: usize = 8 * (MAX_STATUS + 1);

/// What a connection negotiated.
#[derive(Debug)]
pub(super) struct Session<D> {
    /// The export it uses.
    pub(super) export: Arc<Export<D>>,
    /// Structured replies are on.
    pub(super) structured: bool,
    /// `base:allocation` is selected for this export.
    pub(super) allocation: bool,
    /// How the client may use it.
    pub(super) access: Access,
    /// Its place among the connections of the server.
    pub(super) _seat: OwnedSemaphorePermit,
}

enum Failure {
    Device(DeviceError),
    Refused(Refusal),
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Failure {
        Failure::Device(error)
    }
}

/// What a request that succeeded is answered with.
enum Answer {
    Done,
    Data,
    Sparse(Vec<Run>),
    Status(Vec<StatusExtent>),
}

/// Carries out `request`, whose payload is at the start of `buffer`'s data area.
pub(super) async fn execute<D: BlockDevice>(
    session: &Session<D>,
    request: Request,
    mut buffer: Buffer,
) -> Reply {
    let counters = &session.export.counters;
    Counters::add(&counters.requests, 1);
    let Request { cookie, offset, len, .. } = request;
    let replier = Replier { structured: session.structured, cookie, offset };
    let command = request.command(session.structured);
    let outcome = match command {
        Ok(command) => perform(session, command, &request, &mut buffer).await,
        Err(refusal) => Err(Failure::Refused(refusal)),
    };
    match outcome {
        Ok(Answer::Done) => replier.done(buffer),
        Ok(Answer::Data) => replier.data(buffer, len as usize),
        Ok(Answer::Sparse(runs)) => replier.sparse(buffer, &runs),
        Ok(Answer::Status(extents)) => replier.block_status(buffer, &extents),
        Err(failure) => {
            Counters::add(&counters.errors, 1);
            refuse(&replier, command.ok(), failure, buffer)
        }
    }
}

async fn perform<D: BlockDevice>(
    session: &Session<D>,
    command: Command,
    request: &Request,
    buffer: &mut Buffer,
) -> Result<Answer, Failure> {
    let device = &*session.export.device;
    let counters = &session.export.counters;
    let range = sectors(request, command)?;
    let len = request.len as usize;
    if session.access == Access::ReadOnly && command.changes() {
        return Err(DeviceError::ReadOnly.into());
    }
    match command {
        Command::Read { .. } if len == 0 => return Ok(Answer::Data),
        Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. } if len == 0 => {}
        Command::Read { whole } => {
            let answer = if session.structured && !whole && request.len >= PROBE_HOLES_FROM {
                read_sparse(device, range, buffer).await?
            } else {
                device.read(range.start(), buffer.data_mut(0..len)).await?;
                Answer::Data
            };
            Counters::add(&counters.bytes_read, len as u64);
            return Ok(answer);
        }
        Command::Write { fua } => {
            device.write(range.start(), buffer.data(len), WriteFlags { fua }).await?;
            Counters::add(&counters.bytes_written, len as u64);
        }
        Command::Flush => {
            device.flush().await?;
            Counters::add(&counters.flushes, 1);
        }
        Command::Trim { fua } => {
            device.discard(range).await?;
            if fua {
                device.flush().await?;
            }
        }
        Command::Cache => {
            if range.end().0 > device.geometry().size.0 {
                return Err(DeviceError::BeyondEnd(range).into());
            }
            device.prefetch(range);
        }
        Command::WriteZeroes { no_hole, fua } => {
            device.write_zeroes(range, ZeroFlags { may_unmap: !no_hole, fua }).await?;
        }
        Command::BlockStatus { one } => {
            if !session.allocation {
                let text = "base:allocation was not selected for this export";
                return Err(Failure::Refused(Refusal(WireError::Invalid, text)));
            }
            let most = if one { 1 } else { MAX_STATUS };
            return Ok(Answer::Status(states(device, range, most).await?));
        }
    }
    Ok(Answer::Done)
}

fn sectors(request: &Request, command: Command) -> Result<SectorRange, Failure> {
    let Request { offset, len, .. } = *request;
    let aligned = offset.is_multiple_of(SECTOR_SIZE) && u64::from(len).is_multiple_of(SECTOR_SIZE);
    if !aligned {
        let text = format!("{len} bytes at offset {offset} are not whole 512-byte sectors");
        return Err(DeviceError::Invalid(text).into());
    }
    SectorRange::from_bytes(offset, u64::from(len)).ok_or_else(|| {
        let error = if command.stores() { WireError::NoSpace } else { WireError::Invalid };
        Failure::Refused(Refusal(error, "beyond any possible end of a device"))
    })
}

/// Reads `range` into `buffer`, except for holes at its ends.
async fn read_sparse<D: BlockDevice>(
    device: &D,
    range: SectorRange,
    buffer: &mut Buffer,
) -> DeviceResult<Answer> {
    let extents = states(device, range, MAX_RUNS).await?;
    let mut runs: Vec<Run> = Vec::with_capacity(extents.len() + 1);
    for extent in &extents {
        let hole = extent.state == BlockState::Hole;
        runs.push(Run { len: extent.len.bytes() as usize, hole });
    }
    let len = range.len().bytes() as usize;
    let known: usize = runs.iter().map(|run| run.len).sum();
    match runs.last_mut() {
        Some(last) if !last.hole => last.len += len - known,
        _ if known < len => runs.push(Run { len: len - known, hole: false }),
        _ => {}
    }
    let end_hole = |run: Option<&Run>| run.filter(|run| run.hole).map_or(0, |run| run.len);
    let (before, after) = (end_hole(runs.first()), end_hole(runs.last()));
    if before < len {
        let start = range.start().0 + (before as u64 >> SECTOR_SHIFT);
        let data = buffer.data_mut(before..len - after);
        device.read(Sector(start), data).await?;
    }
    Ok(if runs.iter().any(|run| run.hole) { Answer::Sparse(runs) } else { Answer::Data })
}

/// States from the start of `range`: neighbours differ, and nothing reaches beyond it.
async fn states<D: BlockDevice>(
    device: &D,
    range: SectorRange,
    most: usize,
) -> DeviceResult<Vec<StatusExtent>> {
    let mut extents = device.block_status(range, most).await?;
    let mut left = range.len().0;
    for extent in &mut extents {
        extent.len = SectorCount(extent.len.0.min(left));
        left -= extent.len.0;
    }
    extents.retain(|extent| extent.len.0 > 0);
    extents.dedup_by(|next, kept| {
        let same = next.state == kept.state;
        if same {
            kept.len.0 += next.len.0;
        }
        same
    });
    extents.truncate(most);
    if extents.is_empty() {
        return Err(DeviceError::Io(format!("the device did not tell the state of {range}")));
    }
    Ok(extents)
}

fn refuse(replier: &Replier, command: Option<Command>, failure: Failure, buffer: Buffer) -> Reply {
    match failure {
        Failure::Refused(Refusal(error, text)) => replier.failed(buffer, error, text, false),
        Failure::Device(error) => {
            let stores = command.is_some_and(Command::stores);
            let reads = matches!(command, Some(Command::Read { .. }));
            let wire = wire_error(&error, stores);
            let at_offset = reads && wire == WireError::Io;
            replier.failed(buffer, wire, &error.to_string(), at_offset)
        }
    }
}

/// The protocol's number for `error`; `stores`: the request would have stored something.
fn wire_error(error: &DeviceError, stores: bool) -> WireError {
    match error {
        DeviceError::BeyondEnd(_) if stores => WireError::NoSpace,
        DeviceError::Invalid(_) | DeviceError::BeyondEnd(_) => WireError::Invalid,
        DeviceError::ReadOnly => WireError::NotPermitted,
        DeviceError::Io(_) | DeviceError::TimedOut(_) => WireError::Io,
        DeviceError::Shutdown => WireError::Shutdown,
    }
}
