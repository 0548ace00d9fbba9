//! Room for more dirty data: at what writers wait for it, and who goes first where there is some.
//!
//! **Moves before users.** A crowd of users takes whatever room the store makes before a single
//! collector looks, and the volume's chunks would grow without bound just when the store is what
//! limits users. So users wait behind a move that their own writes entitle the collector to. Where
//! the bound is exceeded by far, they may also write only so much ahead of it.
//!
//! Liveness: who stands in line moves or leaves it; see [`pace`](super::pace).

use super::options::VolumeOptions;
use super::state::{PIECE, State};
use crate::journal::mirror::Mirror;
use crate::log::IN_FLIGHT_MAX;
use crate::mutant::{self, Mutant};
use std::time::Duration;

/// Who wants room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// A user of the device.
    User,
    /// The collector, and what else puts data elsewhere.
    Move,
}

/// What users wait for though there may be room.
#[derive(Debug)]
pub(super) struct Line {
    /// Moves that wait for room and are entitled to it.
    pub moves: usize,
    /// Users wait once they have written that many sectors in all
    /// ([`Traffic::written`](super::state::Traffic::written)).
    pub hold: u64,
}

impl Default for Line {
    fn default() -> Line {
        Line { moves: 0, hold: u64::MAX }
    }
}

/// At what writers wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes in memory that wait for the store, or in the mirror, where what was overwritten still
    /// counts.
    pub dirty_bytes: u64,
    /// Bytes that would be lost with this host; `None` is no limit.
    pub lag_bytes: Option<u64>,
    /// Age of the oldest of them.
    pub lag: Option<Duration>,
}

impl Limits {
    pub fn of(options: &VolumeOptions, chunk_size: u64) -> Limits {
        let journal = options.journal.as_ref();
        // One chunk is being filled, one goes to the journal, and one to the store.
        let least = if journal.is_some() { 4 * chunk_size } else { 0 };
        Limits {
            dirty_bytes: options.dirty_bytes.max(least),
            lag_bytes: journal.and_then(|journal| journal.max_lag_bytes),
            lag: journal.and_then(|journal| journal.max_lag),
        }
    }

    /// How many slots from the commit point on may be put at once: with a journal, half of the
    /// memory is for those, so that writers can go on with the rest while the store takes nothing.
    pub fn window(&self, state: &State, chunk_size: u64) -> u64 {
        match state.working_journal() {
            Some(_) => (self.dirty_bytes / 2 / chunk_size).clamp(1, IN_FLIGHT_MAX as u64),
            None => IN_FLIGHT_MAX as u64,
        }
    }
}

impl State {
    /// Whether it is not the turn of `who`, though there may be room.
    pub fn is_out_of_turn(&self, who: Who) -> bool {
        who == Who::User && (self.line.moves > 0 || self.traffic.written >= self.line.hold)
    }

    /// Whether there is no room for anybody.
    pub fn is_full(&self, limits: &Limits) -> bool {
        let mirror = self.mirror.as_ref().map_or(0, Mirror::bytes);
        let memory = self.sealed.memory() + self.open_weight();
        if memory.max(mirror) >= limits.dirty_bytes || self.is_entangled() {
            return true;
        }
        match self.working_journal() {
            None => self.sealed.len() >= IN_FLIGHT_MAX,
            Some(journal) if mutant::on(Mutant::LagUnbounded) => !journal.has_room(PIECE),
            Some(journal) => {
                !journal.has_room(PIECE)
                    || limits.lag_bytes.is_some_and(|most| self.dirty() >= most)
                    || limits.lag.is_some_and(|most| self.lag() >= most)
            }
        }
    }

    /// Whether only a journal that has failed has what the mirror forgot. What comes now it would
    /// not take over, and the mirror alone is not enough.
    fn is_entangled(&self) -> bool {
        self.journal_failure.is_some() && self.mirror.as_ref().is_some_and(Mirror::is_journaled)
    }

    /// Whether the open chunk alone is what fills the budget.
    pub fn is_full_of_one(&self, limits: &Limits) -> bool {
        let mirrored = self.mirror.as_ref().map_or(0, Mirror::open_bytes);
        self.sealed.is_empty() || mirrored >= limits.dirty_bytes
    }
}
