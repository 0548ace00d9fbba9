//! An image: bytes at any offset, on a device that knows only blocks.

use super::ranges::RangeLocks;
use crate::device::{
    BlockDevice, BlockState, Checked, DeviceError, DeviceResult, Geometry, StatusExtent, ZeroFlags,
};
use crate::units::{SECTOR_SHIFT, Sector, SectorCount, SectorRange};
use serde::Serialize;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{RwLock, RwLockReadGuard, watch};

/// Runs of a device's states that are asked for at once.
const RUNS: usize = 512;

/// How much is given up by one request to the device.
const STEP: u64 = 1 << 30;

/// An open image.
pub struct Image<D> {
    pub(super) device: Arc<Checked<D>>,
    pub(super) changing: Arc<RangeLocks>,
    /// True once it is retired. Requests hold it shared.
    pub(super) retired: Arc<RwLock<bool>>,
    leases: watch::Sender<usize>,
    changed_at_ms: AtomicU64,
    requests: AtomicU64,
    bytes_read: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    flushes: AtomicU64,
    errors: AtomicU64,
}

impl<D> fmt::Debug for Image<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "image with {} leases", *self.leases.borrow())
    }
}

/// State and counters of an image at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageStatus {
    /// How often it is open.
    pub open: usize,
    /// Requests answered, with success or error.
    pub requests: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Successful flushes.
    pub flushes: u64,
}

/// The right to use an image; it counts as open until this is dropped.
#[derive(Debug)]
pub struct Lease<D>(Arc<Image<D>>);

impl<D> Deref for Lease<D> {
    type Target = Image<D>;

    fn deref(&self) -> &Image<D> {
        &self.0
    }
}

impl<D> Drop for Lease<D> {
    fn drop(&mut self) {
        self.0.leases.send_modify(|leases| *leases -= 1);
    }
}

/// Bytes that were read, inside of the blocks that hold them.
pub(super) struct Bytes {
    blocks: Vec<u8>,
    wanted: Range<usize>,
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.blocks[self.wanted.clone()]
    }
}

/// How a range is to become zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clear {
    /// Its space is given up.
    Punch,
    /// Its contents are.
    Zero,
}

/// What is looked for by `lseek(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seek {
    Data,
    Hole,
}

impl<D: BlockDevice> Image<D> {
    /// The image on `device`.
    pub fn new(device: Arc<Checked<D>>) -> Arc<Image<D>> {
        Arc::new(Image {
            device,
            changing: Arc::default(),
            retired: Arc::default(),
            leases: watch::Sender::new(0),
            changed_at_ms: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        })
    }

    /// Counts it as open once more.
    pub fn lease(self: &Arc<Self>) -> Lease<D> {
        self.leases.send_modify(|leases| *leases += 1);
        Lease(Arc::clone(self))
    }

    /// How often it is open, now and later.
    pub fn leases(&self) -> watch::Receiver<usize> {
        self.leases.subscribe()
    }

    /// Fails all requests from now on, once those in flight are answered.
    pub async fn retire(&self) {
        *self.retired.write().await = true;
    }

    /// It was retired.
    pub async fn is_retired(&self) -> bool {
        *self.retired.read().await
    }

    /// When it was last changed here, in milliseconds since 1970; 0 for never.
    pub fn changed_at_ms(&self) -> u64 {
        self.changed_at_ms.load(Relaxed)
    }

    /// State and counters.
    pub fn status(&self) -> ImageStatus {
        ImageStatus {
            open: *self.leases.borrow(),
            requests: self.requests.load(Relaxed),
            errors: self.errors.load(Relaxed),
            bytes_read: self.bytes_read.load(Relaxed),
            bytes_written: self.bytes_written.load(Relaxed),
            flushes: self.flushes.load(Relaxed),
        }
    }

    /// Size in bytes, now.
    pub(super) fn size(&self) -> u64 {
        self.device.geometry().size.bytes()
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.device.geometry().read_only
    }

    /// Up to `len` bytes at `offset`; fewer at the end of the image.
    pub(super) async fn read(&self, offset: u64, len: u64) -> DeviceResult<Bytes> {
        let read = async {
            let _running = self.running().await?;
            let geometry = self.device.geometry();
            let end = offset.saturating_add(len).min(geometry.size.bytes());
            if offset >= end {
                return Ok(Bytes { blocks: Vec::new(), wanted: 0..0 });
            }
            let around = blocks_around(&geometry, offset..end);
            let mut blocks = vec![0; (around.end - around.start) as usize];
            self.device.read(sector(around.start), &mut blocks).await?;
            let start = (offset - around.start) as usize;
            Ok(Bytes { blocks, wanted: start..start + (end - offset) as usize })
        };
        let read: DeviceResult<Bytes> = self.counted(read.await);
        if let Ok(bytes) = &read {
            self.bytes_read.fetch_add(bytes.len() as u64, Relaxed);
        }
        read
    }

    /// Makes every change that completed before this call durable.
    pub(super) async fn flush(&self) -> DeviceResult<()> {
        let flush = async {
            let _running = self.running().await?;
            self.device.flush().await
        };
        let flushed = self.counted(flush.await);
        if flushed.is_ok() {
            self.flushes.fetch_add(1, Relaxed);
        }
        flushed
    }

    /// Makes `range` read as zeros, as far as the image reaches.
    pub(super) async fn clear(&self, range: Range<u64>, how: Clear) -> DeviceResult<()> {
        let clear = async {
            let _running = self.running().await?;
            let geometry = self.device.geometry();
            let range = range.start..range.end.min(geometry.size.bytes());
            if range.start >= range.end {
                return Ok(());
            }
            let around = blocks_around(&geometry, range.clone());
            let _alone = self.changing.lock(around.clone()).await;
            self.clear_locked(range, around, how).await
        };
        let cleared = self.counted(clear.await);
        self.touch();
        cleared
    }

    /// The first byte at or behind `offset` that is data, or that is none. `None` where there is none
    /// before the end.
    pub(super) async fn seek(&self, offset: u64, what: Seek) -> DeviceResult<Option<u64>> {
        let seek = async {
            let _running = self.running().await?;
            let geometry = self.device.geometry();
            let size = geometry.size.bytes();
            let mut at = blocks_around(&geometry, offset..offset.saturating_add(1)).start;
            while at < size {
                for (extent, state) in self.states(at..size).await? {
                    at = extent.end;
                    if (state == BlockState::Data) == (what == Seek::Data) {
                        return Ok(Some(extent.start.max(offset)));
                    }
                }
            }
            Ok(None)
        };
        self.counted(seek.await)
    }

    /// The lock that keeps it from being retired.
    pub(super) async fn running(&self) -> DeviceResult<RwLockReadGuard<'_, bool>> {
        let retired = self.retired.read().await;
        if *retired { Err(DeviceError::Shutdown) } else { Ok(retired) }
    }

    pub(super) fn counted<T>(&self, outcome: DeviceResult<T>) -> DeviceResult<T> {
        self.requests.fetch_add(1, Relaxed);
        self.errors.fetch_add(u64::from(outcome.is_err()), Relaxed);
        outcome
    }

    pub(super) fn touch(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.changed_at_ms.store(now.as_millis() as u64, Relaxed);
    }

    /// Parts of blocks are written, whole blocks given up.
    async fn clear_locked(
        &self,
        range: Range<u64>,
        around: Range<u64>,
        how: Clear,
    ) -> DeviceResult<()> {
        let block = u64::from(self.device.geometry().block_size.bytes());
        let inner = range.start.next_multiple_of(block)..match range.end == around.end {
            true => range.end,
            false => range.end / block * block,
        };
        if inner.start >= inner.end {
            // Within one block, or across the border of two.
            let zeros = vec![0; (range.end - range.start) as usize];
            return self.put(range.start, &zeros, around).await;
        }
        if range.start < inner.start {
            let zeros = vec![0; (inner.start - range.start) as usize];
            self.put(range.start, &zeros, around.start..inner.start).await?;
        }
        if inner.end < range.end {
            let zeros = vec![0; (range.end - inner.end) as usize];
            self.put(inner.end, &zeros, inner.end..around.end).await?;
        }
        self.clear_blocks(inner, how).await
    }

    /// Clears whole blocks; only those that hold data, where there are many.
    async fn clear_blocks(&self, blocks: Range<u64>, how: Clear) -> DeviceResult<()> {
        let mut at = blocks.start;
        while at < blocks.end {
            if blocks.end - at <= STEP {
                return self.clear_run(at..blocks.end, how).await;
            }
            for (extent, state) in self.states(at..blocks.end).await? {
                while at < extent.end {
                    let end = extent.end.min(at + STEP);
                    if state == BlockState::Data {
                        self.clear_run(at..end, how).await?;
                    }
                    at = end;
                }
            }
        }
        Ok(())
    }

    async fn clear_run(&self, run: Range<u64>, how: Clear) -> DeviceResult<()> {
        let run = SectorRange::between(sector(run.start), sector(run.end));
        match how {
            Clear::Punch => self.device.discard(run).await,
            Clear::Zero => {
                self.device.write_zeroes(run, ZeroFlags { may_unmap: true, fua: false }).await
            }
        }
    }

    /// What the first runs of `range` are, at least one.
    async fn states(&self, range: Range<u64>) -> DeviceResult<Vec<(Range<u64>, BlockState)>> {
        let asked = SectorRange::between(sector(range.start), sector(range.end));
        let told = self.device.block_status(asked, RUNS).await?;
        let mut at = range.start;
        let runs = told.into_iter().map(|StatusExtent { len: SectorCount(len), state }| {
            let start = at;
            at = at.saturating_add(len << SECTOR_SHIFT).min(range.end);
            (start..at, state)
        });
        let runs: Vec<_> = runs.filter(|(run, _)| !run.is_empty()).collect();
        if runs.is_empty() {
            return Err(DeviceError::Io(format!("the device did not tell the state of {asked}")));
        }
        Ok(runs)
    }
}

/// The whole blocks that hold `range`, as far as the image reaches.
pub(super) fn blocks_around(geometry: &Geometry, range: Range<u64>) -> Range<u64> {
    let block = u64::from(geometry.block_size.bytes());
    let end = range.end.checked_next_multiple_of(block).unwrap_or(u64::MAX);
    range.start / block * block..end.min(geometry.size.bytes())
}

/// The sector that begins at the byte `at`.
pub(super) fn sector(at: u64) -> Sector {
    Sector(at >> SECTOR_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::super::writing::{Begun, Progress};
    use super::*;
    use crate::device::ram::RamDisk;
    use crate::units::BlockSize;
    use futures::FutureExt;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    const SIZE: usize = 40 << 10;

    fn disk(block_size: BlockSize) -> RamDisk {
        RamDisk::new(SectorCount(SIZE as u64 >> SECTOR_SHIFT), block_size)
    }

    /// The answer of a disk in memory, which never waits.
    fn at_once<T>(work: impl Future<Output = DeviceResult<T>>) -> DeviceResult<T> {
        work.now_or_never().expect("nothing has to be waited for")
    }

    #[test]
    fn bytes_at_any_offset_are_those_of_a_file() {
        for (seed, block_size) in [(1, BlockSize::B512), (2, BlockSize::B4096)] {
            let mut rng = StdRng::seed_from_u64(seed);
            let (image, mut model) =
                (Image::new(Arc::new(Checked::new(disk(block_size)))), vec![0; SIZE]);
            for step in 0..3000_u32 {
                let (from, len) = (rng.random_range(0..SIZE), rng.random_range(1..9000));
                let to = (from + len).min(SIZE);
                let (offset, range) = (from as u64, from as u64..(from + len) as u64);
                match rng.random_range(0..6) {
                    0 => {
                        at_once(image.clear(range, Clear::Punch)).map(|()| model[from..to].fill(0))
                    }
                    1 => at_once(image.clear(range, Clear::Zero)).map(|()| model[from..to].fill(0)),
                    2 | 3 => {
                        let data = vec![step as u8 | 1; len];
                        let begun = match image.write_now(offset, &data).unwrap() {
                            Progress::Done(len) => Err(len),
                            Progress::Waits(begun) => Ok(begun),
                        };
                        let written = match begun {
                            Err(len) => Ok(len),
                            Ok(begun) => at_once(image.write(offset, begun, &data)),
                        };
                        assert_eq!(written, Ok(to - from), "up to the end");
                        model[from..to].copy_from_slice(&data[..to - from]);
                        Ok(())
                    }
                    _ => {
                        let read = at_once(image.read(offset, len as u64)).unwrap();
                        assert!(*read == model[from..to], "seed {seed}, step {step}");
                        Ok(())
                    }
                }
                .unwrap();
            }
            assert!(*at_once(image.read(0, u64::MAX)).unwrap() == model[..], "seed {seed}");
            assert_eq!(at_once(image.read(SIZE as u64, 1)).unwrap().len(), 0);
            let end = at_once(image.write(SIZE as u64, Begun::default(), b"x")).unwrap_err();
            assert!(matches!(end, DeviceError::BeyondEnd(_)));
        }
    }

    #[test]
    fn data_and_holes_are_found() {
        let image = Image::new(Arc::new(Checked::new(disk(BlockSize::B512))));
        at_once(image.write(5000, Begun::default(), b"data")).unwrap();
        let seek = |offset, what| at_once(image.seek(offset, what)).unwrap();
        assert_eq!(seek(0, Seek::Hole), Some(0));
        assert_eq!(seek(0, Seek::Data), Some(4608));
        assert_eq!(seek(5001, Seek::Data), Some(5001));
        assert_eq!(seek(5001, Seek::Hole), Some(5120));
        assert_eq!(seek(5120, Seek::Data), None);
    }

    #[tokio::test]
    async fn writes_of_parts_of_one_block_do_not_undo_each_other() {
        let delay = std::time::Duration::from_millis(1);
        let slow = disk(BlockSize::B512).delayed(tokio::runtime::Handle::current(), delay);
        let image = Image::new(Arc::new(Checked::new(slow)));
        let all: Vec<u8> = (0..64).collect();
        let writes = all
            .iter()
            .map(|at| image.write((*at).into(), Begun::default(), std::slice::from_ref(at)));
        let written = futures::future::join_all(writes).await;
        assert!(written.iter().all(|len| *len == Ok(1)), "{written:?}");
        assert_eq!(*image.read(0, 64).await.unwrap(), all[..]);
    }

    #[tokio::test]
    async fn a_retired_image_answers_what_it_has_begun_and_nothing_more() {
        let delay = std::time::Duration::from_millis(20);
        let slow = disk(BlockSize::B512).delayed(tokio::runtime::Handle::current(), delay);
        let image = Image::new(Arc::new(Checked::new(slow)));
        let write = |data| image.write(0, Begun::default(), data);
        let (begun, ()) = futures::future::join(write(b"x"), image.retire()).await;
        assert_eq!(begun, Ok(1));
        assert_eq!(write(b"y").await, Err(DeviceError::Shutdown));
        let (lease, mut leases) = (image.lease(), image.leases());
        assert_eq!(*leases.borrow_and_update(), 1);
        drop(lease);
        assert_eq!(*leases.borrow(), 0);
    }
}
