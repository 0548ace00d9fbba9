//! The block device contract: what every frontend may rely on, and all it knows of a volume.
//!
//! In the words of a disk: completed writes are visible to later reads; nothing is durable until
//! a flush that began after their completion has completed (or the write carried FUA); requests
//! in flight at the same time may take effect in any order; a write that was cut off by a crash
//! may be applied to some of its sectors and not to others, never to half a sector.
//!
//! [`BlockDevice`] is the data path only. Its futures may be polled by any executor: they never
//! need a tokio context, and complete at the first poll whenever nothing has to be waited for,
//! so a frontend's queue thread serves hits without a hop.
//!
//! [`Checked`] is the one place where ranges, alignment, buffer lengths and read-only are
//! verified; frontends hold a `Checked` device, engines may trust their arguments.

pub mod ram;

use crate::units::{BlockSize, Sector, SectorCount, SectorRange};
use nix::errno::Errno;
use std::future::Future;

/// Shape of a device. The size may change while the device lives: ask each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the device.
    pub size: SectorCount,
    /// Smallest unit that may be addressed.
    pub block_size: BlockSize,
    /// The I/O size, in bytes, that the device likes best (a volume's chunk size).
    pub optimal_io: u32,
    /// Writes are refused with [`DeviceError::ReadOnly`].
    pub read_only: bool,
}

/// What is stored in a run of sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// Data was written here.
    Data,
    /// Nothing is stored here: it reads as zeros.
    Hole,
}

/// One run of [`BlockDevice::block_status`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Number of sectors.
    pub len: SectorCount,
    /// Their state.
    pub state: BlockState,
}

/// Why a request failed. Each kind maps to one errno.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The request itself is wrong: range, alignment or buffer length.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// Beyond the end of the device.
    #[error("{0} lies beyond the end of the device")]
    BeyondEnd(SectorRange),
    /// A write to a read-only device.
    #[error("the device is read-only")]
    ReadOnly,
    /// The data cannot be read back, or can no longer be made durable.
    #[error("{0}")]
    Io(String),
    /// The device is closed or is closing.
    #[error("the device is shut down")]
    Shutdown,
    /// The request took longer than the owner allowed.
    #[error("timed out: {0}")]
    TimedOut(String),
}

impl DeviceError {
    /// The errno that a frontend reports.
    pub fn errno(&self) -> Errno {
        match self {
            DeviceError::Invalid(_) => Errno::EINVAL,
            DeviceError::BeyondEnd(_) => Errno::ENOSPC,
            DeviceError::ReadOnly => Errno::EROFS,
            DeviceError::Io(_) => Errno::EIO,
            DeviceError::Shutdown => Errno::ESHUTDOWN,
            DeviceError::TimedOut(_) => Errno::ETIMEDOUT,
        }
    }
}

/// Result of a block request.
pub type DeviceResult<T> = Result<T, DeviceError>;

/// How a write must be completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// Force unit access: durable before completion, as if a flush of this write followed it.
    pub fua: bool,
}

/// How a write-zeroes request must be completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroFlags {
    /// The range may lose its allocation (a later `block_status` may call it a hole).
    pub may_unmap: bool,
    /// As [`WriteFlags::fua`].
    pub fua: bool,
}

/// A random-access device of 512-byte sectors. See the module's contract.
///
/// Dropping a future before it is ready abandons the request: a read may have filled part of the
/// buffer, a write may or may not have been applied, sector by sector.
pub trait BlockDevice: Send + Sync + 'static {
    /// The device's present shape.
    fn geometry(&self) -> Geometry;

    /// Fills `buf` (whole sectors) from `start`.
    fn read(&self, start: Sector, buf: &mut [u8]) -> impl Future<Output = DeviceResult<()>> + Send;

    /// Writes `data` (whole sectors) at `start`.
    fn write(
        &self,
        start: Sector,
        data: &[u8],
        flags: WriteFlags,
    ) -> impl Future<Output = DeviceResult<()>> + Send;

    /// Makes every write that completed before this call durable.
    fn flush(&self) -> impl Future<Output = DeviceResult<()>> + Send;

    /// Gives up the contents of `range`; it reads as zeros afterwards.
    fn discard(&self, range: SectorRange) -> impl Future<Output = DeviceResult<()>> + Send;

    /// Makes `range` read as zeros.
    fn write_zeroes(
        &self,
        range: SectorRange,
        flags: ZeroFlags,
    ) -> impl Future<Output = DeviceResult<()>> + Send;

    /// States of `range` from its start, at least one run and at most `max_extents` (so possibly
    /// less than the whole range).
    fn block_status(
        &self,
        range: SectorRange,
        max_extents: usize,
    ) -> impl Future<Output = DeviceResult<Vec<StatusExtent>>> + Send;

    /// A hint that `range` will be read soon. Returns without waiting for the data.
    fn prefetch(&self, range: SectorRange);
}

/// A device whose arguments are verified before they reach it.
#[derive(Debug)]
pub struct Checked<D>(D);

impl<D: BlockDevice> Checked<D> {
    /// Wraps `device`.
    pub fn new(device: D) -> Checked<D> {
        Checked(device)
    }

    /// The device itself.
    pub fn inner(&self) -> &D {
        &self.0
    }

    fn check_range(&self, range: SectorRange) -> DeviceResult<()> {
        check_range(&self.0.geometry(), range)
    }

    fn check_writable(&self) -> DeviceResult<()> {
        if self.0.geometry().read_only { Err(DeviceError::ReadOnly) } else { Ok(()) }
    }
}

fn check_range(geometry: &Geometry, range: SectorRange) -> DeviceResult<()> {
    let block = geometry.block_size.sectors().0;
    if !range.start().0.is_multiple_of(block) || !range.len().0.is_multiple_of(block) {
        let bytes = geometry.block_size.bytes();
        return Err(DeviceError::Invalid(format!("{range} is not in whole {bytes}-byte blocks")));
    }
    if range.end().0 > geometry.size.0 {
        return Err(DeviceError::BeyondEnd(range));
    }
    Ok(())
}

/// The sectors of a buffer of `len` bytes.
fn range_of(start: Sector, len: usize) -> DeviceResult<SectorRange> {
    SectorCount::from_bytes(len as u64)
        .and_then(|len| SectorRange::new(start, len))
        .ok_or_else(|| DeviceError::Invalid(format!("{len} bytes at sector {start}")))
}

impl<D: BlockDevice> BlockDevice for Checked<D> {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    async fn read(&self, start: Sector, buf: &mut [u8]) -> DeviceResult<()> {
        self.check_range(range_of(start, buf.len())?)?;
        self.0.read(start, buf).await
    }

    async fn write(&self, start: Sector, data: &[u8], flags: WriteFlags) -> DeviceResult<()> {
        // Asked for once: a device may have to lock something to tell.
        let geometry = self.0.geometry();
        if geometry.read_only {
            return Err(DeviceError::ReadOnly);
        }
        check_range(&geometry, range_of(start, data.len())?)?;
        self.0.write(start, data, flags).await
    }

    async fn flush(&self) -> DeviceResult<()> {
        self.0.flush().await
    }

    async fn discard(&self, range: SectorRange) -> DeviceResult<()> {
        self.check_writable()?;
        self.check_range(range)?;
        self.0.discard(range).await
    }

    async fn write_zeroes(&self, range: SectorRange, flags: ZeroFlags) -> DeviceResult<()> {
        self.check_writable()?;
        self.check_range(range)?;
        self.0.write_zeroes(range, flags).await
    }

    async fn block_status(
        &self,
        range: SectorRange,
        max_extents: usize,
    ) -> DeviceResult<Vec<StatusExtent>> {
        self.check_range(range)?;
        self.0.block_status(range, max_extents).await
    }

    fn prefetch(&self, range: SectorRange) {
        if self.check_range(range).is_ok() {
            self.0.prefetch(range);
        }
    }
}
