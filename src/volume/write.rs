//! Writes and trims: into the open chunk, as long as the dirty budget lasts.

use super::shared::Shared;
use super::state::{PIECE, State};
use crate::device::DeviceResult;
use crate::format::record::Record;
use crate::journal::ring::Stage;
use crate::sync::Notified;
use crate::units::{SECTOR_SIZE, Sector, SectorRange};

impl Shared {
    /// Puts `data` into the open chunk.
    pub async fn write(&self, start: Sector, data: &[u8]) -> DeviceResult<()> {
        let mut done = 0;
        while done < data.len() {
            let at = Sector(start.0 + done as u64 / SECTOR_SIZE);
            // A piece is copied in one critical section: bounds how long others wait for the lock.
            let piece = &data[done..(done + PIECE).min(data.len())];
            match self.change(|state| state.write(at, piece))? {
                Ok(written) => done += written.bytes() as usize,
                Err(progress) => progress.await,
            }
        }
        Ok(())
    }

    /// Makes `range` read as zeros.
    pub async fn clear(&self, range: SectorRange, record: Record) -> DeviceResult<()> {
        loop {
            match self.change(|state| state.clear(range, record))? {
                Ok(()) => return Ok(()),
                Err(progress) => progress.await,
            }
        }
    }

    /// Makes `change`, if there is room for more dirty data; otherwise says what to wait for.
    pub(super) fn change<T>(
        &self,
        change: impl FnOnce(&mut State) -> DeviceResult<T>,
    ) -> DeviceResult<Result<T, Notified<'_>>> {
        let mut state = self.state();
        state.check()?;
        if state.is_full(&self.limits) {
            // Nothing but the open chunk may be what fills the budget.
            if state.is_full_of_one(&self.limits) {
                state.seal();
            }
            self.journal_due.notify_one();
            // Asked for under the lock: every commit from here on is seen.
            return Ok(Err(self.next_progress()));
        }
        let was_quiet = !state.open.is_changed();
        let done = change(&mut state);
        let journal_due = state.working_journal().is_some_and(Stage::is_due);
        drop(state);
        if journal_due {
            self.journal_due.notify_one();
        }
        if was_quiet {
            self.changed.notify_one();
        }
        if done.is_err() {
            self.wake();
        }
        done.map(Ok)
    }
}
