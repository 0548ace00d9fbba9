//! A disk in memory: the limit that a frontend is measured against, and its test double.
//!
//! It keeps the whole contract of [`BlockDevice`] except durability. With a delay, every request
//! completes on a tokio timer, as a store's answer would, which exercises a frontend's path for
//! requests that have to wait.

use super::{
    BlockDevice, BlockState, DeviceError, DeviceResult, Geometry, StatusExtent, WriteFlags,
    ZeroFlags,
};
use crate::units::{BlockSize, SECTOR_SIZE, Sector, SectorCount, SectorRange};
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A disk whose bytes are in this process's memory.
#[derive(Debug)]
pub struct RamDisk {
    data: RwLock<Vec<u8>>,
    block_size: BlockSize,
    read_only: bool,
    delay: Option<(tokio::runtime::Handle, Duration)>,
    flushes: AtomicU64,
}

impl RamDisk {
    /// A zeroed disk of `size` with logical blocks of `block_size`.
    pub fn new(size: SectorCount, block_size: BlockSize) -> RamDisk {
        RamDisk {
            data: RwLock::new(vec![0; size.bytes() as usize]),
            block_size,
            read_only: false,
            delay: None,
            flushes: AtomicU64::new(0),
        }
    }

    /// Refuses writes.
    pub fn read_only(mut self) -> RamDisk {
        self.read_only = true;
        self
    }

    /// Completes every request `delay` later, from a task of `runtime`.
    pub fn delayed(mut self, runtime: tokio::runtime::Handle, delay: Duration) -> RamDisk {
        self.delay = Some((runtime, delay));
        self
    }

    /// Number of flushes (and FUA requests) seen.
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    async fn wait(&self) {
        if let Some((runtime, delay)) = &self.delay {
            let (done, wait) = tokio::sync::oneshot::channel::<()>();
            let delay = *delay;
            runtime.spawn(async move {
                tokio::time::sleep(delay).await;
                drop(done);
            });
            // The sender is dropped, never used: the error is the signal.
            let _ = wait.await;
        }
    }

    fn poisoned() -> DeviceError {
        DeviceError::Io("a request to the memory disk panicked".into())
    }

    fn span(range: SectorRange) -> std::ops::Range<usize> {
        range.start().bytes() as usize..range.end().bytes() as usize
    }

    fn zero(&self, range: SectorRange) -> DeviceResult<()> {
        let mut data = self.data.write().map_err(|_| Self::poisoned())?;
        let span = data.get_mut(Self::span(range)).ok_or(DeviceError::BeyondEnd(range))?;
        span.fill(0);
        Ok(())
    }

    fn mark_flush(&self, durable: bool) {
        if durable {
            self.flushes.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl BlockDevice for RamDisk {
    fn geometry(&self) -> Geometry {
        let bytes = self.data.read().map_or(0, |data| data.len() as u64);
        Geometry {
            size: SectorCount(bytes / SECTOR_SIZE),
            block_size: self.block_size,
            optimal_io: 4 << 20,
            read_only: self.read_only,
        }
    }

    async fn read(&self, start: Sector, buf: &mut [u8]) -> DeviceResult<()> {
        self.wait().await;
        let data = self.data.read().map_err(|_| Self::poisoned())?;
        let at = start.bytes() as usize;
        let from = data.get(at..at + buf.len()).ok_or(DeviceError::Shutdown)?;
        buf.copy_from_slice(from);
        Ok(())
    }

    async fn write(&self, start: Sector, from: &[u8], flags: WriteFlags) -> DeviceResult<()> {
        self.wait().await;
        let mut data = self.data.write().map_err(|_| Self::poisoned())?;
        let at = start.bytes() as usize;
        let to = data.get_mut(at..at + from.len()).ok_or(DeviceError::Shutdown)?;
        to.copy_from_slice(from);
        self.mark_flush(flags.fua);
        Ok(())
    }

    async fn flush(&self) -> DeviceResult<()> {
        self.wait().await;
        self.mark_flush(true);
        Ok(())
    }

    async fn discard(&self, range: SectorRange) -> DeviceResult<()> {
        self.wait().await;
        self.zero(range)
    }

    async fn write_zeroes(&self, range: SectorRange, flags: ZeroFlags) -> DeviceResult<()> {
        self.wait().await;
        self.zero(range)?;
        self.mark_flush(flags.fua);
        Ok(())
    }

    async fn block_status(
        &self,
        range: SectorRange,
        max_extents: usize,
    ) -> DeviceResult<Vec<StatusExtent>> {
        self.wait().await;
        let data = self.data.read().map_err(|_| Self::poisoned())?;
        let bytes = data.get(Self::span(range)).ok_or(DeviceError::BeyondEnd(range))?;
        let unit = self.block_size.bytes() as usize;
        let mut extents: Vec<StatusExtent> = Vec::new();
        for block in bytes.chunks(unit) {
            let hole = block.iter().all(|b| *b == 0);
            let state = if hole { BlockState::Hole } else { BlockState::Data };
            let full = extents.len() == max_extents.max(1);
            match extents.last_mut() {
                Some(last) if last.state == state => last.len.0 += self.block_size.sectors().0,
                _ if full => break,
                _ => extents.push(StatusExtent { len: self.block_size.sectors(), state }),
            }
        }
        Ok(extents)
    }

    fn prefetch(&self, _range: SectorRange) {}
}
