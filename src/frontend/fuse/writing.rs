//! Writes to an image.
//!
//! What the device takes at once is given to it as it lies in the kernel's request: no copy, no memory,
//! no other thread. Only what has to wait is copied, and held to what it has locked meanwhile, so that
//! no other write of the same bytes comes between its parts.

use super::image::{Image, blocks_around, sector};
use super::ranges::RangeGuard;
use crate::device::{BlockDevice, DeviceError, DeviceResult, WriteFlags};
use crate::units::{SECTOR_SHIFT, Sector, SectorRange};
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use tokio::sync::OwnedRwLockReadGuard;

/// What is given to the device at once of a write that may have to wait: what is done twice then.
const STEP: usize = 256 << 10;

/// How far a write came without waiting.
#[derive(Debug)]
pub(super) enum Progress {
    /// All of it, so many bytes.
    Done(usize),
    /// It goes on with [`Image::write`].
    Waits(Begun),
}

/// A write that has to wait.
#[derive(Debug, Default)]
pub(super) struct Begun {
    written: usize,
    held: Option<Held>,
}

impl Begun {
    /// Bytes that were written, from its beginning.
    pub(super) fn written(&self) -> usize {
        self.written
    }
}

/// What a write has locked.
#[derive(Debug)]
struct Held {
    _running: OwnedRwLockReadGuard<bool>,
    _alone: RangeGuard,
}

impl<D: BlockDevice> Image<D> {
    /// Begins to write `data` at `offset`. Errors: those of [`write`](Self::write).
    pub(super) fn write_now(&self, offset: u64, data: &[u8]) -> DeviceResult<Progress> {
        let Some(held) = self.hold(offset, data.len() as u64) else {
            return Ok(Progress::Waits(Begun::default()));
        };
        let mut written = 0;
        while written < data.len() {
            let step = &data[written..data.len().min(written + STEP)];
            let at = sector(offset + written as u64);
            let write = pin!(self.device.write(at, step, WriteFlags::default()));
            match write.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(())) => written += step.len(),
                Poll::Ready(Err(e)) => return self.wrote(Err(e)).map(Progress::Done),
                Poll::Pending => {
                    return Ok(Progress::Waits(Begun { written, held: Some(held) }));
                }
            }
        }
        self.wrote(Ok(written)).map(Progress::Done)
    }

    /// Writes `rest`, which is what `begun` has not written yet of a write at `offset`, up to the end of
    /// the image. Returns how many bytes were written in all, at least one.
    /// Errors: beyond the end; the device's, after which some of the blocks may have been written.
    pub(super) async fn write(
        &self,
        offset: u64,
        begun: Begun,
        rest: &[u8],
    ) -> DeviceResult<usize> {
        let written = match begun.held {
            Some(_held) => {
                let at = sector(offset + begun.written as u64);
                let write = self.device.write(at, rest, WriteFlags::default()).await;
                write.map(|()| begun.written + rest.len())
            }
            None => self.write_any(offset, rest).await,
        };
        self.wrote(written)
    }

    /// Locks what a write needs, where that is whole blocks inside of the image and nobody else has them.
    fn hold(&self, offset: u64, len: u64) -> Option<Held> {
        let running = Arc::clone(&self.retired).try_read_owned().ok()?;
        let range = offset..offset.checked_add(len)?;
        let whole = blocks_around(&self.device.geometry(), range.clone()) == range;
        if *running || len == 0 || !whole {
            return None;
        }
        Some(Held { _alone: self.changing.try_lock(&range)?, _running: running })
    }

    /// Writes bytes anywhere.
    async fn write_any(&self, offset: u64, data: &[u8]) -> DeviceResult<usize> {
        let _running = self.running().await?;
        let geometry = self.device.geometry();
        let end = offset.saturating_add(data.len() as u64).min(geometry.size.bytes());
        if data.is_empty() {
            return Ok(0);
        }
        if offset >= end {
            return Err(beyond(offset));
        }
        let data = &data[..(end - offset) as usize];
        let around = blocks_around(&geometry, offset..end);
        let _alone = self.changing.lock(around.clone()).await;
        self.put(offset, data, around).await?;
        Ok(data.len())
    }

    /// Writes `data`, filling up the blocks `around` it with what they hold. Under their lock.
    pub(super) async fn put(
        &self,
        offset: u64,
        data: &[u8],
        around: Range<u64>,
    ) -> DeviceResult<()> {
        let end = offset + data.len() as u64;
        let flags = WriteFlags::default();
        if around == (offset..end) {
            return self.device.write(sector(offset), data, flags).await;
        }
        let block = u64::from(self.device.geometry().block_size.bytes()) as usize;
        let mut blocks = vec![0; (around.end - around.start) as usize];
        let last = blocks.len() - block;
        if offset > around.start {
            self.device.read(sector(around.start), &mut blocks[..block]).await?;
        }
        if end < around.end && (last > 0 || offset == around.start) {
            let at = sector(around.end - block as u64);
            self.device.read(at, &mut blocks[last..]).await?;
        }
        let start = (offset - around.start) as usize;
        blocks[start..start + data.len()].copy_from_slice(data);
        self.device.write(sector(around.start), &blocks, flags).await
    }

    /// Counts a write that is over.
    fn wrote(&self, outcome: DeviceResult<usize>) -> DeviceResult<usize> {
        let written = self.counted(outcome)?;
        self.bytes_written.fetch_add(written as u64, Relaxed);
        self.touch();
        Ok(written)
    }
}

fn beyond(offset: u64) -> DeviceError {
    DeviceError::BeyondEnd(SectorRange::between(
        sector(offset),
        Sector((offset >> SECTOR_SHIFT) + 1),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::ram::RamDisk;
    use crate::device::{Checked, Geometry, StatusExtent, ZeroFlags};
    use crate::units::{BlockSize, SectorCount};
    use futures::FutureExt;
    use tokio::sync::Semaphore;

    const SIZE: usize = 2 << 20;

    /// A disk in memory that takes so many writes, and has the others wait.
    struct Gate {
        disk: RamDisk,
        free: Semaphore,
    }

    impl BlockDevice for Gate {
        fn geometry(&self) -> Geometry {
            self.disk.geometry()
        }

        async fn read(&self, start: Sector, buf: &mut [u8]) -> DeviceResult<()> {
            self.disk.read(start, buf).await
        }

        async fn write(&self, start: Sector, data: &[u8], flags: WriteFlags) -> DeviceResult<()> {
            let shut = |_| DeviceError::Shutdown;
            self.free.acquire().await.map_err(shut)?.forget();
            self.disk.write(start, data, flags).await
        }

        async fn flush(&self) -> DeviceResult<()> {
            self.disk.flush().await
        }

        async fn discard(&self, range: SectorRange) -> DeviceResult<()> {
            self.disk.discard(range).await
        }

        async fn write_zeroes(&self, range: SectorRange, flags: ZeroFlags) -> DeviceResult<()> {
            self.disk.write_zeroes(range, flags).await
        }

        async fn block_status(
            &self,
            range: SectorRange,
            max_extents: usize,
        ) -> DeviceResult<Vec<StatusExtent>> {
            self.disk.block_status(range, max_extents).await
        }

        fn prefetch(&self, _range: SectorRange) {}
    }

    fn image(free: usize) -> (Arc<Checked<Gate>>, Arc<Image<Gate>>) {
        let disk = RamDisk::new(SectorCount(SIZE as u64 >> SECTOR_SHIFT), BlockSize::B4096);
        let gate = Arc::new(Checked::new(Gate { disk, free: Semaphore::new(free) }));
        (Arc::clone(&gate), Image::new(gate))
    }

    /// How far a write came that has to wait.
    fn waits(progress: DeviceResult<Progress>) -> Begun {
        match progress {
            Ok(Progress::Waits(begun)) => begun,
            other => panic!("it does not wait: {other:?}"),
        }
    }

    fn done(progress: DeviceResult<Progress>) -> usize {
        match progress {
            Ok(Progress::Done(len)) => len,
            other => panic!("it is not done: {other:?}"),
        }
    }

    async fn contents(image: &Image<Gate>) -> Vec<u8> {
        image.read(0, SIZE as u64).await.unwrap().to_vec()
    }

    #[tokio::test]
    async fn a_write_that_waits_goes_on_where_it_stopped_and_nothing_comes_between() {
        let (gate, image) = image(2);
        let (first, second) = (vec![1; 4 * STEP], vec![2; 4 * STEP]);
        let begun = waits(image.write_now(0, &first));
        assert_eq!(begun.written(), 2 * STEP);
        assert!(
            contents(&image).await[..4 * STEP] == [&first[..2 * STEP], &[0; 2 * STEP]].concat()
        );
        // The other one has nothing yet, not even of what the first has already written.
        gate.inner().free.add_permits(1);
        let other = waits(image.write_now(0, &second));
        assert_eq!(other.written(), 0);
        let mut after = pin!(image.write(0, other, &second));
        assert!(after.as_mut().now_or_never().is_none());
        // Beside it there is nothing to wait for.
        assert_eq!(done(image.write_now(4 * STEP as u64, &[3; 4096])), 4096);
        gate.inner().free.add_permits(1);
        assert_eq!(image.write(0, begun, &first[2 * STEP..]).await, Ok(4 * STEP));
        assert!(contents(&image).await[..4 * STEP] == first[..]);
        gate.inner().free.add_permits(1);
        assert_eq!(after.await, Ok(4 * STEP));
        assert!(contents(&image).await[..4 * STEP] == second[..]);
        let status = image.status();
        assert_eq!((status.bytes_written, status.errors), (8 * STEP as u64 + 4096, 0));
    }

    #[tokio::test]
    async fn an_image_is_not_retired_while_a_write_waits() {
        let (gate, image) = image(1);
        let begun = waits(image.write_now(0, &[1; 2 * STEP]));
        let mut retired = pin!(image.retire());
        assert!(retired.as_mut().now_or_never().is_none());
        gate.inner().free.add_permits(1);
        assert_eq!(image.write(0, begun, &[1; STEP]).await, Ok(2 * STEP));
        retired.await;
        let begun = waits(image.write_now(0, &[2; 4096]));
        assert_eq!(image.write(0, begun, &[2; 4096]).await, Err(DeviceError::Shutdown));
    }

    #[tokio::test]
    async fn an_error_half_way_is_the_answer_and_frees_what_was_locked() {
        let (gate, image) = image(1);
        gate.inner().free.close();
        assert_eq!(image.write_now(0, &[1; STEP]).unwrap_err(), DeviceError::Shutdown);
        assert_eq!(image.status().errors, 1);
        assert!(image.changing.try_lock(&(0..SIZE as u64)).is_some());
        image.retire().await;
    }

    #[tokio::test]
    async fn parts_of_blocks_and_what_goes_beyond_the_end_are_left_to_wait() {
        let (_gate, image) = image(9);
        for (offset, len) in [(1, 4096), (0, 1), (0, 0), (SIZE as u64 - 4096, 8192), (u64::MAX, 2)]
        {
            let begun = waits(image.write_now(offset, &vec![7; len]));
            assert_eq!(begun.written(), 0, "{len} bytes at {offset}");
        }
        assert!(contents(&image).await.iter().all(|byte| *byte == 0));
        let last = SIZE as u64 - 4096;
        let written = image.write(last, Begun::default(), &[7; 8192]).await;
        assert_eq!(written, Ok(4096), "up to the end");
    }
}
