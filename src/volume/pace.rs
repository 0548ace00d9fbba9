//! Makes who moves data wait for its turn, and users for who moves it.
//!
//! **Users first.** What users write entitles to moves in proportion; without that there are moves
//! only while users have written nothing for a moment and little is dirty, or somebody waits for them.
//!
//! **But not without end.** Moves that users' writes entitle to go first where there is no room.
//! Where the volume is far beyond its bound ([`Tempo::is_strict`]), users also wait while they are
//! [`CREDIT_MAX`] ahead of the moves. Who moves lets them go when it ends, however it does, and
//! while it waits for a store that does not answer ([`patiently`]): an outage that the journal
//! bridges is not felt.

use super::shared::Shared;
use super::state::State;
use crate::error::Result;
use crate::units::SECTOR_SIZE;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Users are quiet when they have written nothing for that long.
const QUIET: Duration = Duration::from_millis(50);
/// Sectors that are moved in one go while users write: what a flush may have to wait for.
const BURST: u64 = (1 << 20) / SECTOR_SIZE;
/// Sectors that may be saved up.
const CREDIT_MAX: u64 = (4 << 20) / SECTOR_SIZE;
/// A request of who moves that takes longer holds up nobody.
const PATIENCE: Duration = Duration::from_secs(2);

/// How some moves go on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tempo {
    /// Sectors for each 100 of users.
    pub rate: u64,
    /// How many there are to be moved.
    pub sectors: u64,
    /// Users wait for these moves.
    pub is_strict: bool,
}

impl Tempo {
    /// As much as users write.
    pub fn steady(sectors: u64) -> Tempo {
        Tempo { rate: 100, sectors, is_strict: false }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pace<'a> {
    shared: &'a Shared,
    rate: u64,
    is_strict: bool,
    /// Hundredths of sectors that may be moved.
    credit: u64,
    /// Sectors that are saved up before any are moved: flushes in between would leave small chunks.
    burst: u64,
    spending: bool,
    in_line: bool,
    written: u64,
    quiet_since: Instant,
    /// Dirty bytes at which nothing is moved for its own sake.
    dirty: u64,
}

impl<'a> Pace<'a> {
    /// Nothing is entitled to yet.
    pub fn new(shared: &'a Shared, tempo: Tempo) -> Pace<'a> {
        let (budget, chunk) = (shared.limits.dirty_bytes, shared.description.chunk_size);
        Pace {
            shared,
            rate: tempo.rate.max(1),
            is_strict: tempo.is_strict,
            credit: 0,
            burst: tempo.sectors.min(BURST),
            spending: false,
            in_line: false,
            written: shared.state().traffic.written,
            quiet_since: Instant::now(),
            dirty: (budget / 4).max(2 * chunk).min(budget / 2),
        }
    }

    /// Goes on with others. What was saved up counts.
    pub fn go_on(&mut self, tempo: Tempo) {
        (self.rate, self.is_strict) = (tempo.rate.max(1), tempo.is_strict);
        self.burst = tempo.sectors.min(BURST);
        self.step_aside();
    }

    /// Returns when something may be moved.
    ///
    /// # Errors
    /// The volume is closed or has failed.
    pub async fn turn(&mut self) -> Result<()> {
        loop {
            let progress = self.shared.next_progress();
            let dirty = {
                let mut state = self.shared.state();
                if state.check().is_err() {
                    drop(state);
                    return Err(self.shared.failure());
                }
                self.earn(&mut state);
                state.dirty()
            };
            self.spending |= self.credit >= 100 * self.burst;
            if self.spending {
                return Ok(());
            }
            let hurried = self.shared.collection.hurried.load(Relaxed) > 0;
            let quiet = self.quiet_since.elapsed() >= QUIET;
            match (hurried || quiet, dirty < self.dirty) {
                (true, true) => return Ok(()),
                (true, false) => progress.await,
                // Users who write have something committed now and then.
                (false, _) => {
                    let due = self.shared.moves_due.notified();
                    let _ =
                        timeout(QUIET, futures::future::select(pin!(progress), pin!(due))).await;
                }
            }
        }
    }

    /// So many sectors were dealt with.
    pub fn moved(&mut self, sectors: u64) {
        self.credit = self.credit.saturating_sub(100 * sectors);
        if self.spending && self.credit == 0 {
            self.spending = false;
            self.step_aside();
        }
    }

    /// There is no room: users wait behind what they owe.
    pub fn stand_in_line(&mut self) {
        if self.spending && !std::mem::replace(&mut self.in_line, true) {
            self.shared.state().line.moves += 1;
        }
    }

    /// Nothing is moved for now.
    pub fn step_aside(&mut self) {
        let mut state = self.shared.state();
        let was_held = state.line.hold != u64::MAX;
        self.hold(&mut state);
        let was_in_line = self.leave_line(&mut state);
        drop(state);
        if was_held || was_in_line {
            self.shared.wake();
        }
    }

    fn leave_line(&mut self, state: &mut State) -> bool {
        let was_in_line = std::mem::take(&mut self.in_line);
        state.line.moves -= usize::from(was_in_line);
        was_in_line
    }

    fn earn(&mut self, state: &mut State) {
        let written = state.traffic.written;
        if written > self.written {
            let more = (written - self.written).saturating_mul(self.rate);
            self.credit = self.credit.saturating_add(more).min(100 * CREDIT_MAX);
            (self.written, self.quiet_since) = (written, Instant::now());
        }
        self.hold(state);
    }

    /// Says how much users may write.
    fn hold(&self, state: &mut State) {
        state.line.hold = match self.is_strict {
            true => self.written + (100 * CREDIT_MAX - self.credit) / self.rate,
            false => u64::MAX,
        };
    }
}

impl Drop for Pace<'_> {
    fn drop(&mut self) {
        self.is_strict = false;
        self.step_aside();
    }
}

/// Users wait when they have written as much as may be saved up: moves that they are to wait for are
/// being prepared. It lasts until a [`Pace`] knows more.
pub(super) fn hold_back(shared: &Shared) {
    let mut state = shared.state();
    state.line.hold = state.line.hold.min(state.traffic.written + CREDIT_MAX);
}

/// Waits for `work` of the store, which holds up users for a moment at most.
pub(super) async fn patiently<T>(shared: &Shared, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    match timeout(PATIENCE, &mut work).await {
        Ok(done) => done,
        Err(_) => {
            shared.state().line.hold = u64::MAX;
            shared.wake();
            work.await
        }
    }
}
