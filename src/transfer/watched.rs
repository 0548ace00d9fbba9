//! A device as another program sees it: from an address on, with an account of how far it got and what went
//! wrong first.

use super::progress::Progress;
use crate::device::{
    BlockDevice, Checked, DeviceError, DeviceResult, Geometry, StatusExtent, WriteFlags, ZeroFlags,
};
use crate::units::{Sector, SectorCount, SectorRange};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A device from the sector `from` on.
#[derive(Debug)]
pub struct Watched<D> {
    device: Arc<Checked<D>>,
    from: Sector,
    progress: Arc<Progress>,
    /// The furthest sector that was read or written.
    reached: AtomicU64,
    failure: Mutex<Option<(SectorRange, DeviceError)>>,
}

impl<D: BlockDevice> Watched<D> {
    /// Shows how far it gets by `progress`.
    pub fn new(device: Arc<Checked<D>>, from: Sector, progress: Arc<Progress>) -> Watched<D> {
        progress.add(from.bytes());
        let reached = AtomicU64::new(from.0);
        Watched { device, from, progress, reached, failure: Mutex::new(None) }
    }

    /// What went wrong first: in which sectors of the device, and what.
    pub fn failure(&self) -> Option<(SectorRange, DeviceError)> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The whole device.
    pub fn device(&self) -> &Arc<Checked<D>> {
        &self.device
    }

    /// The range on the device; what does not fit is refused by the device.
    fn there(&self, start: Sector, len: SectorCount) -> SectorRange {
        let start = Sector(start.0.saturating_add(self.from.0));
        SectorRange::between(start, Sector(start.0.saturating_add(len.0)))
    }

    fn note<T>(&self, range: SectorRange, outcome: DeviceResult<T>) -> DeviceResult<T> {
        match &outcome {
            Ok(_) => {
                let end = range.end().0;
                let before = self.reached.fetch_max(end, Ordering::Relaxed);
                self.progress.add(SectorCount(end.saturating_sub(before)).bytes());
            }
            Err(e) => {
                let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert_with(|| (range, e.clone()));
            }
        }
        outcome
    }
}

fn sectors(bytes: usize) -> SectorCount {
    SectorCount((bytes as u64).div_ceil(crate::units::SECTOR_SIZE))
}

impl<D: BlockDevice> BlockDevice for Watched<D> {
    fn geometry(&self) -> Geometry {
        let whole = self.device.geometry();
        Geometry { size: SectorCount(whole.size.0.saturating_sub(self.from.0)), ..whole }
    }

    async fn read(&self, start: Sector, buf: &mut [u8]) -> DeviceResult<()> {
        let range = self.there(start, sectors(buf.len()));
        let done = self.device.read(range.start(), buf).await;
        self.note(range, done)
    }

    async fn write(&self, start: Sector, data: &[u8], flags: WriteFlags) -> DeviceResult<()> {
        let range = self.there(start, sectors(data.len()));
        let done = self.device.write(range.start(), data, flags).await;
        self.note(range, done)
    }

    async fn flush(&self) -> DeviceResult<()> {
        self.device.flush().await
    }

    async fn discard(&self, range: SectorRange) -> DeviceResult<()> {
        let range = self.there(range.start(), range.len());
        let done = self.device.discard(range).await;
        self.note(range, done)
    }

    async fn write_zeroes(&self, range: SectorRange, flags: ZeroFlags) -> DeviceResult<()> {
        let range = self.there(range.start(), range.len());
        let done = self.device.write_zeroes(range, flags).await;
        self.note(range, done)
    }

    async fn block_status(
        &self,
        range: SectorRange,
        max_extents: usize,
    ) -> DeviceResult<Vec<StatusExtent>> {
        let range = self.there(range.start(), range.len());
        let done = self.device.block_status(range, max_extents).await;
        if let Err(e) = &done {
            return self.note(range, Err(e.clone()));
        }
        done
    }

    fn prefetch(&self, range: SectorRange) {
        self.device.prefetch(self.there(range.start(), range.len()));
    }
}
