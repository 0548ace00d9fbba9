//! The engine as a block device.

use super::Volume;
use super::hydrate::{self, Hydration};
use crate::device::{
    BlockDevice, BlockState, DeviceResult, Geometry, StatusExtent, WriteFlags, ZeroFlags,
};
use crate::format::record::Record;
use crate::map::Source;
use crate::units::{Sector, SectorRange};
use std::sync::Arc;

/// What requests wait for.
const ANSWER: &str = "the store to answer";
const ROOM: &str = "the store to make room";
const SOURCE: &str = "the source of the volume";

impl Volume {
    /// Where `range` has something that the volume still lacks of its source.
    fn lacking(&self, range: SectorRange) -> Option<&Arc<Hydration>> {
        self.shared.hydration().filter(|hydration| !hydration.has(range))
    }

    async fn clear(&self, what: &str, range: SectorRange, record: Record) -> DeviceResult<()> {
        let (shared, clear) = (&self.shared, self.shared.clear(range, record));
        match self.lacking(range) {
            None => shared.patiently(what, ROOM, clear).await,
            Some(hydration) => {
                let change = Box::pin(hydration.change(shared, range, clear));
                shared.patiently(what, SOURCE, change).await
            }
        }
    }
}

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
        let range = hydrate::range_of(start, buf.len());
        if let Some(hydration) = self.lacking(range) {
            let read = Box::pin(hydration.read(&self.shared, start, buf));
            return self.shared.patiently("a read", SOURCE, read).await;
        }
        let read = self.shared.read(start, buf);
        self.shared.patiently("a read", ANSWER, read).await
    }

    async fn write(&self, start: Sector, data: &[u8], flags: WriteFlags) -> DeviceResult<()> {
        let shared = &self.shared;
        let write = shared.write(start, data);
        match self.lacking(hydrate::range_of(start, data.len())) {
            None => shared.patiently("a write", ROOM, write).await?,
            Some(hydration) => {
                let range = hydrate::range_of(start, data.len());
                let change = Box::pin(hydration.change(shared, range, write));
                shared.patiently("a write", SOURCE, change).await?;
            }
        }
        if flags.fua { self.flush().await } else { Ok(()) }
    }

    async fn flush(&self) -> DeviceResult<()> {
        self.shared.patiently("a flush", "what was written to be stored", self.shared.flush()).await
    }

    async fn discard(&self, range: SectorRange) -> DeviceResult<()> {
        self.clear("a discard", range, Record::Trim(range)).await
    }

    async fn write_zeroes(&self, range: SectorRange, flags: ZeroFlags) -> DeviceResult<()> {
        self.clear("a write of zeros", range, Record::Zero(range)).await?;
        if flags.fua { self.flush().await } else { Ok(()) }
    }

    async fn block_status(
        &self,
        range: SectorRange,
        max_extents: usize,
    ) -> DeviceResult<Vec<StatusExtent>> {
        let mut range = range;
        if let Some(hydration) = self.lacking(range) {
            let (is_absent, run) = hydration.first_run(range);
            if is_absent {
                return Ok(vec![StatusExtent { len: run.len(), state: BlockState::Data }]);
            }
            range = run;
        }
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
