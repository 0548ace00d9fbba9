//! The engine as a block device.

use super::Volume;
use crate::device::{
    BlockDevice, BlockState, DeviceResult, Geometry, StatusExtent, WriteFlags, ZeroFlags,
};
use crate::format::record::Record;
use crate::map::Source;
use crate::units::{Sector, SectorRange};

/// What requests wait for.
const ANSWER: &str = "the store to answer";
const ROOM: &str = "the store to make room";

impl BlockDevice for Volume {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: self.shared.state().size,
            block_size: self.shared.description.block(),
            optimal_io: self.shared.description.chunk_size as u32,
            read_only: self.shared.is_read_only(),
        }
    }

    async fn read(&self, start: Sector, buf: &mut [u8]) -> DeviceResult<()> {
        let read = self.shared.read(start, buf);
        self.shared.patiently("a read", ANSWER, read).await
    }

    async fn write(&self, start: Sector, data: &[u8], flags: WriteFlags) -> DeviceResult<()> {
        let shared = &self.shared;
        shared.patiently("a write", ROOM, shared.write(start, data)).await?;
        if flags.fua { self.flush().await } else { Ok(()) }
    }

    async fn flush(&self) -> DeviceResult<()> {
        self.shared.patiently("a flush", "what was written to be stored", self.shared.flush()).await
    }

    async fn discard(&self, range: SectorRange) -> DeviceResult<()> {
        let discard = self.shared.clear(range, Record::Trim(range));
        self.shared.patiently("a discard", ROOM, discard).await
    }

    async fn write_zeroes(&self, range: SectorRange, flags: ZeroFlags) -> DeviceResult<()> {
        let zero = self.shared.clear(range, Record::Zero(range));
        self.shared.patiently("a write of zeros", ROOM, zero).await?;
        if flags.fua { self.flush().await } else { Ok(()) }
    }

    async fn block_status(
        &self,
        range: SectorRange,
        max_extents: usize,
    ) -> DeviceResult<Vec<StatusExtent>> {
        let lookup = self.shared.lookup(range, max_extents.max(1) * 4);
        let pieces = self.shared.patiently("a status request", ANSWER, lookup).await?;
        let mut extents: Vec<StatusExtent> = Vec::new();
        for piece in pieces {
            let state = match piece.source {
                Source::Hole => BlockState::Hole,
                Source::Data(_) => BlockState::Data,
            };
            match extents.last_mut() {
                Some(last) if last.state == state => last.len.0 += piece.range.len().0,
                _ => extents.push(StatusExtent { len: piece.range.len(), state }),
            }
        }
        extents.truncate(max_extents.max(1));
        Ok(extents)
    }

    fn prefetch(&self, range: SectorRange) {
        self.shared.clone().prefetch(range);
    }
}
