//! The doctor: follows every reference and verifies every checksum, of volumes attached here, elsewhere or
//! nowhere. It owns nothing and changes nothing: what it reads through refuses to write.
//!
//! | part | does |
//! | --- | --- |
//! | `gather`, `past` | what there is to follow: the volume now, its snapshots, what is kept of its past; objects that stand for themselves |
//! | `walk`, `survey` | maps from their roots, accounts, which chunks are named and how far |
//! | `used`, `accounts`, `runs` | bookkeeping (pure) |
//! | `chunk` | one chunk: header, size, frames |
//! | `space`, `unneeded` | objects that nobody needs, and whether they are whole |
//! | `trace` | which sectors of which state need what is damaged |
//! | `exam`, `census` | one volume; a pool |
//! | `fallback` | whether a damaged checkpoint is needed |
//! | [`inspect`], [`locate`] | one object decoded; where a sector is |
//!
//! **No false alarm.** The owner of a volume deletes what only older checkpoints name, while the doctor
//! looks. Therefore what is missed or damaged is damage only if a state names it that is read afterwards
//! and is the newest then; and what its past needs, only if the oldest point is there after that. Objects are immutable: what was verified stays verified.
//!
//! **No silence.** The sectors that are told contain each one that cannot be read. The state of a volume is
//! the one that an owner would go on from, read by the same code; where that cannot be had, everything is
//! told to be lost that cannot be attached, and the rest is followed as far as it is named.
//!
//! **Memory** is bounded by 32 bytes a slot of the log, in pages of 4096 slots of which one is named, by
//! what checkpoints and snapshots hold, and by what is damaged; never by leaves or by data. Leaves that
//! two neighbouring states share are read once, chunks that volumes share are verified once.

mod accounts;
mod census;
mod chunk;
mod exam;
mod fallback;
mod flaw;
mod gather;
pub mod inspect;
pub mod locate;
mod past;
mod progress;
mod reading;
mod report;
mod runs;
mod space;
mod state;
mod survey;
mod trace;
mod unneeded;
mod used;
mod walk;

pub use flaw::{Affected, Damage, Kind};
pub use progress::Progress;
pub use report::{Nameless, Report, VolumeReport};
pub use runs::Run;
pub use space::{Amount, Space};

use crate::pool::Pool;
use reading::Reading;
use std::sync::Arc;

/// Examines a pool.
#[derive(Debug)]
pub struct Doctor {
    pool: Pool,
    store: Arc<Reading>,
    data: bool,
    progress: Arc<Progress>,
}

impl Doctor {
    /// Of `pool`; with `data` every byte is read, at most `rate` bytes a second.
    pub fn new(pool: &Pool, data: bool, rate: Option<u64>) -> Doctor {
        let store = Arc::new(Reading::new(pool.store().clone(), rate));
        Doctor { pool: pool.clone(), store, data, progress: Arc::default() }
    }

    /// How far it is.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    fn report(&self) -> Report {
        Report {
            store: self.pool.store().url(),
            data: self.data,
            clean: true,
            damages: Vec::new(),
            volumes: Vec::new(),
            nameless: Vec::new(),
            notes: Vec::new(),
            requests: 0,
            read_bytes: 0,
        }
    }

    fn end(&self, mut report: Report) -> Report {
        let is_examined = |volume: &VolumeReport| volume.error.is_none();
        report.clean = report.damage_count() == 0 && report.volumes.iter().all(is_examined);
        (report.requests, report.read_bytes) = (self.store.requests(), self.store.bytes());
        report
    }
}
