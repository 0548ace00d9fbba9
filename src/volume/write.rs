//! Writes and trims: into the open chunk, as long as the dirty budget lasts.

use super::room::Who;
use super::shared::Shared;
use super::state::{PIECE, State};
use crate::device::DeviceResult;
use crate::format::frame::Compression;
use crate::format::record::Record;
use crate::journal::ring::Stage;
use crate::sync::Notified;
use crate::units::{SECTOR_SIZE, Sector, SectorRange};

impl Shared {
    /// Whether zeros go into the log as such, without data.
    fn elides_zeros(&self) -> bool {
        self.description.features.compression() != Compression::None
    }

    /// Puts `data` into the open chunk.
    pub async fn write(&self, start: Sector, data: &[u8]) -> DeviceResult<()> {
        let mut done = 0;
        while done < data.len() {
            let at = Sector(start.0 + done as u64 / SECTOR_SIZE);
            // A piece is copied in one critical section: bounds how long others wait for the lock.
            let piece = &data[done..(done + PIECE).min(data.len())];
            let range = SectorRange::between(at, Sector(at.0 + piece.len() as u64 / SECTOR_SIZE));
            let written = match self.elides_zeros() && is_zeros(piece) {
                true => self.change(Who::User, |state| {
                    state.clear(range, Record::Zero(range)).map(|()| range.len())
                })?,
                false => self.change(Who::User, |state| state.write(at, piece))?,
            };
            match written {
                Ok(written) => done += written.bytes() as usize,
                Err(progress) => progress.await,
            }
        }
        Ok(())
    }

    /// Makes `range` read as zeros.
    pub async fn clear(&self, range: SectorRange, record: Record) -> DeviceResult<()> {
        loop {
            match self.change(Who::User, |state| state.clear(range, record))? {
                Ok(()) => return Ok(()),
                Err(progress) => progress.await,
            }
        }
    }

    /// Makes `change`, if there is room for more dirty data and it is the turn of `who`; otherwise says what to wait for.
    pub(super) fn change<T>(
        &self,
        who: Who,
        change: impl FnOnce(&mut State) -> DeviceResult<T>,
    ) -> DeviceResult<Result<T, Notified<'_>>> {
        let mut state = self.state();
        state.check()?;
        if state.is_out_of_turn(who) {
            self.moves_due.notify_one();
            return Ok(Err(self.next_progress()));
        }
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

/// Looks no further than the first word that is something, so that it costs little where it is of no use.
fn is_zeros(data: &[u8]) -> bool {
    data.chunks(4096).all(|part| {
        let (words, rest) = part.as_chunks::<8>();
        words.first().is_none_or(|word| *word == [0; 8])
            && words.iter().fold(0, |all, word| all | u64::from_le_bytes(*word)) == 0
            && rest.iter().all(|byte| *byte == 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_is_no_zeros() {
        for len in [512, 4096, 12800, PIECE] {
            let mut data = vec![0; len];
            assert!(is_zeros(&data));
            for at in [0, 7, 8, 511, len / 2, len - 9, len - 1] {
                data[at] = 0x10;
                assert!(!is_zeros(&data), "{at} of {len}");
                data[at] = 0;
            }
        }
    }
}
