//! Writes and trims: into the open chunk, as long as the dirty budget lasts.

use super::shared::{Progress, Shared};
use super::state::State;
use crate::device::{DeviceError, DeviceResult};
use crate::format::record::Record;
use crate::units::{SECTOR_SIZE, Sector, SectorRange};
use tokio::sync::watch;

/// Sectors that are copied in one critical section: bounds how long others wait for the lock.
const PIECE: usize = 256 << 10;

impl Shared {
    /// Puts `data` into the open chunk.
    pub async fn write(&self, start: Sector, data: &[u8]) -> DeviceResult<()> {
        let mut done = 0;
        while done < data.len() {
            let at = Sector(start.0 + done as u64 / SECTOR_SIZE);
            let piece = &data[done..(done + PIECE).min(data.len())];
            match self.change(|state| state.write(at, piece))? {
                Ok(written) => done += written.bytes() as usize,
                Err(progress) => self.wait_for_room(progress).await?,
            }
        }
        Ok(())
    }

    /// Makes `range` read as zeros.
    pub async fn clear(&self, range: SectorRange, record: Record) -> DeviceResult<()> {
        loop {
            match self.change(|state| state.clear(range, record))? {
                Ok(()) => return Ok(()),
                Err(progress) => self.wait_for_room(progress).await?,
            }
        }
    }

    /// Makes `change`, if there is room for more dirty data; otherwise says what to wait for.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut State) -> DeviceResult<T>,
    ) -> DeviceResult<Result<T, watch::Receiver<Progress>>> {
        let mut state = self.state();
        state.check()?;
        if state.is_full(self.options.dirty_bytes) {
            // Nothing but the open chunk may be what fills the budget.
            if state.sealed.is_empty() {
                state.seal();
            }
            // Subscribed under the lock: every commit from here on is seen.
            return Ok(Err(self.progress.subscribe()));
        }
        let was_quiet = !state.open.is_changed();
        let done = change(&mut state);
        drop(state);
        if was_quiet {
            self.changed.notify_one();
        }
        if done.is_err() {
            self.progress.send_modify(|p| p.failed = true);
        }
        done.map(Ok)
    }

    async fn wait_for_room(&self, mut progress: watch::Receiver<Progress>) -> DeviceResult<()> {
        if progress.borrow().failed {
            return Err(DeviceError::Io(self.failure().to_string()));
        }
        progress.changed().await.map_err(|_| DeviceError::Shutdown)
    }
}
