//! One request of the guest: from its header to the device and back to a status.
//!
//! Source: the virtio specification, "Block Device: Device Operation". Addresses are in 512-byte
//! sectors whatever the logical block size.
//!
//! A read goes straight into the guest's memory where that is one run of it. What is written is
//! copied first, once: the guest may change its pages while they are being written, and what the
//! engine has checksummed must stay as it is.

use super::chain::Asked;
use super::config::{DATA_MAX, RANGES_MAX};
use super::memory::Piece;
use crate::device::{BlockDevice, Checked, DeviceResult, WriteFlags, ZeroFlags};
use crate::units::{Sector, SectorCount, SectorRange};
use virtio_bindings::virtio_blk as blk;

/// Bytes of an identity.
pub(super) const ID_LEN: usize = 20;

/// Bytes of a range.
const RANGE: usize = 16;

/// A request's outcome, as its last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = blk::VIRTIO_BLK_S_OK as u8,
    IoError = blk::VIRTIO_BLK_S_IOERR as u8,
    Unsupported = blk::VIRTIO_BLK_S_UNSUPP as u8,
}

/// What the guest asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read(Sector),
    Write(Sector),
    Flush,
    Identify,
    Discard,
    Zero,
}

/// A request on its way. Goes into its future and comes back, to be used for another.
#[derive(Debug)]
pub(super) struct Work {
    operation: Operation,
    /// Every write must be durable at once, as the guest does not know of flushes.
    durable: bool,
    /// Where the data are.
    pub(super) pieces: Vec<Piece>,
    /// Bytes of them.
    len: usize,
    /// A copy of them, where there has to be one; as long as the longest so far.
    buffer: Vec<u8>,
}

/// A request's end.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) status: Status,
    /// Bytes of data that were written to the guest's memory.
    pub(super) written: u32,
    pub(super) work: Work,
}

impl Default for Work {
    fn default() -> Work {
        let (operation, pieces, buffer) = (Operation::Flush, Vec::new(), Vec::new());
        Work { operation, durable: false, pieces, len: 0, buffer }
    }
}

impl Work {
    /// Bytes of memory that it keeps.
    pub(super) fn kept(&self) -> usize {
        self.buffer.capacity()
    }

    pub(super) fn operation(&self) -> Operation {
        self.operation
    }

    /// Bytes that are read or written.
    pub(super) fn bytes(&self) -> usize {
        self.len
    }

    /// Makes it what a chain asked for, whose data are in `pieces`, and copies what is written.
    pub(super) fn take(&mut self, asked: &Asked, durable: bool) -> Result<(), Status> {
        let kind = u32::from_le_bytes(*first(&asked.header));
        let sector = Sector(u64::from_le_bytes(*first(&asked.header[8..])));
        let (operation, len) = match kind {
            blk::VIRTIO_BLK_T_IN => (Operation::Read(sector), asked.writable),
            blk::VIRTIO_BLK_T_OUT => (Operation::Write(sector), asked.readable),
            blk::VIRTIO_BLK_T_FLUSH => (Operation::Flush, 0),
            blk::VIRTIO_BLK_T_GET_ID => (Operation::Identify, asked.writable.min(ID_LEN)),
            blk::VIRTIO_BLK_T_DISCARD => (Operation::Discard, asked.readable),
            blk::VIRTIO_BLK_T_WRITE_ZEROES => (Operation::Zero, asked.readable),
            _ => return Err(Status::Unsupported),
        };
        (self.operation, self.len, self.durable) = (operation, len, durable);
        match operation {
            Operation::Read(_) | Operation::Write(_) => {
                let stray = match operation {
                    Operation::Read(_) => asked.readable,
                    _ => asked.writable,
                };
                if stray > 0 || len > DATA_MAX || !len.is_multiple_of(512) {
                    return Err(Status::IoError);
                }
            }
            Operation::Discard | Operation::Zero => {
                let most = RANGE * RANGES_MAX as usize;
                if asked.writable > 0 || len == 0 || len > most || !len.is_multiple_of(RANGE) {
                    return Err(Status::IoError);
                }
            }
            Operation::Identify if asked.readable > 0 => return Err(Status::IoError),
            Operation::Flush | Operation::Identify => {}
        }
        if !self.is_direct() && self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        if matches!(operation, Operation::Write(_) | Operation::Discard | Operation::Zero) {
            self.gather();
        }
        Ok(())
    }

    /// True where the device fills the guest's memory itself.
    fn is_direct(&self) -> bool {
        matches!(self.operation, Operation::Read(_)) && self.pieces.len() == 1
    }

    fn gather(&mut self) {
        let mut done = 0;
        for piece in &self.pieces {
            let (piece, _) = piece.split(self.len - done);
            // SAFETY: the memory of a request lives as long as its slot is taken.
            unsafe { piece.copy_to(&mut self.buffer[done..]) };
            done += piece.len();
        }
    }

    fn scatter(&self) {
        let mut done = 0;
        for piece in &self.pieces {
            let (piece, _) = piece.split(self.len - done);
            // SAFETY: as in `gather`.
            unsafe { piece.copy_from(&self.buffer[done..]) };
            done += piece.len();
        }
    }

    /// Has the device serve it.
    pub(super) async fn serve<D: BlockDevice>(
        mut self,
        device: &Checked<D>,
        id: &[u8; ID_LEN],
    ) -> Done {
        let (status, written) = match self.execute(device, id).await {
            Ok(Status::Ok) => match self.operation {
                Operation::Read(_) | Operation::Identify => (Status::Ok, self.len as u32),
                _ => (Status::Ok, 0),
            },
            Ok(status) => (status, 0),
            Err(error) => {
                tracing::debug!(operation = ?self.operation, %error, "request failed");
                (Status::IoError, 0)
            }
        };
        Done { status, written, work: self }
    }

    async fn execute<D: BlockDevice>(
        &mut self,
        device: &Checked<D>,
        id: &[u8; ID_LEN],
    ) -> DeviceResult<Status> {
        match self.operation {
            Operation::Read(_) | Operation::Write(_) if self.len == 0 => {}
            Operation::Read(start) if self.is_direct() => {
                let (piece, _) = self.pieces[0].split(self.len);
                // SAFETY: the memory of a request lives as long as its slot is taken, and so as
                // this future; no other request was found to have it, or the guest's memory is
                // what it asked for: bytes of either.
                let memory = unsafe { piece.bytes_mut() };
                device.read(start, memory).await?;
            }
            Operation::Read(start) => {
                device.read(start, &mut self.buffer[..self.len]).await?;
                self.scatter();
            }
            Operation::Write(start) => {
                let flags = WriteFlags { fua: self.durable };
                device.write(start, &self.buffer[..self.len], flags).await?;
            }
            Operation::Flush => device.flush().await?,
            Operation::Identify => {
                self.buffer[..self.len].copy_from_slice(&id[..self.len]);
                self.scatter();
            }
            Operation::Discard | Operation::Zero => return self.clear(device).await,
        }
        Ok(Status::Ok)
    }

    async fn clear<D: BlockDevice>(&self, device: &Checked<D>) -> DeviceResult<Status> {
        for raw in self.buffer[..self.len].chunks_exact(RANGE) {
            let start = Sector(u64::from_le_bytes(*first(raw)));
            let count = SectorCount(u32::from_le_bytes(*first(&raw[8..])).into());
            let flags = u32::from_le_bytes(*first(&raw[12..]));
            let unmap = blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
            let known = if self.operation == Operation::Zero { unmap } else { 0 };
            if flags & !known != 0 {
                return Ok(Status::Unsupported);
            }
            let Some(range) = SectorRange::new(start, count) else { return Ok(Status::IoError) };
            if self.operation == Operation::Zero {
                let flags = ZeroFlags { may_unmap: flags & unmap != 0, fua: self.durable };
                device.write_zeroes(range, flags).await?;
            } else {
                device.discard(range).await?;
            }
        }
        if self.operation == Operation::Discard && self.durable {
            device.flush().await?;
        }
        Ok(Status::Ok)
    }
}

/// The first bytes of what is known to be long enough.
fn first<const N: usize>(bytes: &[u8]) -> &[u8; N] {
    bytes.first_chunk().expect("the length of a header or a range was checked")
}
