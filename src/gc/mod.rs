//! Collection: which chunks are worth emptying, how far, and how fast. Pure.
//!
//! What is overwritten or trimmed stays in its chunk until the whole chunk is dead. The collector
//! moves what is left of mostly dead chunks (**victims**) to the end of the log, so that they die.
//!
//! **Bound.** Of a volume with `live` sectors, the chunks that are kept hold at most `bound x live`;
//! on top of that comes what was appended since the last checkpoint, since nothing is deleted before
//! the next one: at most [`Limits::interval`], at which a checkpoint is due. Half an interval beyond
//! the bound, users have to wait for collection.
//!
//! **Choice.** Benefit over cost: what a victim frees, times how long it stays free (the older a
//! chunk, the less of it is still going to die by itself), by what it costs to read and write again.
//!
//! **Rate.** While the bound is exceeded, every write of a user entitles the collector to a share in
//! proportion: what the chosen victims need to keep up, and more the further it is behind.

pub mod census;

pub use census::{Candidate, Knowledge};

use crate::units::{SECTOR_SIZE, Seq};

/// How victims are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// Who frees the most for what is moved.
    Greedy,
    /// The same, weighted by age.
    #[default]
    CostBenefit,
}

/// How far a volume is collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What chunks may hold, in percent of what is live.
    pub bound_percent: u32,
    /// Bytes of the log since the last checkpoint at which the next one is made, for the sake of the
    /// space that it frees; more on a large volume ([`Limits::interval`]).
    pub slack_bytes: u64,
    /// How victims are chosen.
    pub choice: Choice,
}

impl Default for Limits {
    fn default() -> Limits {
        // With random writes all over a volume, 1.4 costs 1.9 bytes appended for each one written,
        // 1.6 costs 1.5, whatever the choice (`write_amplification_of_collection` measures it).
        Limits { bound_percent: 160, slack_bytes: 256 << 20, choice: Choice::default() }
    }
}

/// Sectors of a volume's log, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// In chunks that are kept: all but those that die with the next checkpoint.
    pub kept: u64,
    /// Of them, those that the map points at.
    pub live: u64,
}

impl Limits {
    /// Sectors of the log since the last checkpoint at which the next one is due. Less than an eighth
    /// of what is live would cost more in map objects than it saves: after random writes a checkpoint
    /// writes the whole map, a 256th of what is live.
    pub fn interval(&self, live: u64) -> u64 {
        (self.slack_bytes / SECTOR_SIZE).max(live / 8)
    }

    /// Sectors that have to be freed to meet the bound.
    pub fn excess(&self, space: Space) -> u64 {
        let bound = u128::from(space.live) * u128::from(self.bound_percent) / 100;
        space.kept.saturating_sub(u64::try_from(bound).unwrap_or(u64::MAX))
    }

    /// Whether collection is to begin: not for every chunk that dies a little.
    pub fn is_due(&self, space: Space) -> bool {
        self.excess(space) > self.interval(space.live) / 16
    }

    /// Whether users have to wait for collection: it does not keep up by itself.
    pub fn is_far(&self, space: Space) -> bool {
        self.excess(space) > self.interval(space.live) / 2
    }

    /// Whether it is worth while to empty a chunk: where the bound is exceeded, there are chunks with
    /// at least twice the dead part. Those of a volume that merely grows are left alone.
    pub fn is_worth(&self, chunk: &Candidate) -> bool {
        let bound = u64::from(self.bound_percent.max(100));
        let dead = chunk.dead();
        dead > 0 && dead * 2 * bound >= u64::from(chunk.payload) * (bound - 100)
    }

    /// Sectors that may be moved for each 100 that users write, while `victims` are emptied.
    pub fn rate_percent(&self, space: Space, victims: Cost) -> u64 {
        let needed = victims.moved.saturating_mul(100) / victims.freed.max(1);
        let behind = self.excess(space).saturating_mul(100) / space.live.max(1);
        (needed.saturating_mul(100 + 8 * behind.min(1000)) / 100).clamp(RATE_MIN, RATE_MAX)
    }
}

/// Least and most that is moved for each 100 sectors of users.
const RATE_MIN: u64 = 25;
const RATE_MAX: u64 = 1600;

/// What it takes to empty victims, in sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Moved.
    pub moved: u64,
    /// Freed.
    pub freed: u64,
}

impl Choice {
    /// The higher, the better; 0 where nothing is gained. `now` is the end of the log.
    pub fn score(self, chunk: &Candidate, now: Seq) -> u64 {
        // Scaled so that a chunk of one dead sector still counts.
        const SCALE: u64 = 1 << 16;
        let (dead, live) = (chunk.dead(), u64::from(chunk.live));
        let benefit = dead * SCALE / (u64::from(chunk.payload) + live).max(1);
        match self {
            Choice::Greedy => benefit,
            Choice::CostBenefit => benefit.saturating_mul(now.0.saturating_sub(chunk.seq.0).max(1)),
        }
    }
}
