//! Snapshots that are deleted at a time, in worlds with schedules: some are kept on request, the others go when
//! it has come, not before, and do not come back.

use crate::client::{Client, Next};
use crate::world::World;
use objblk::error::ErrorKind;
use objblk::format::SnapshotId;
use objblk::format::snapshot::SnapshotEntry;
use rand::Rng;

/// How long after their time they may be there, while somebody is at work who deletes them.
const GRACE_MS: u64 = 200_000;

impl World {
    /// The id of a snapshot that is asked for now: in some worlds, of one that goes some time.
    pub fn new_snapshot(&self) -> SnapshotId {
        if !self.scheduled || self.random(|rng| rng.random_bool(0.6)) {
            return self.state().shelf.wanted();
        }
        let times = [500, 30_000, 300_000, 1 << 40];
        let time = self.random(|rng| times[rng.random_range(0..times.len())]);
        let at = self.now_ms() + time;
        self.state().shelf.wanted_until(at)
    }

    /// Whether it may be deleted before anything else is done.
    pub fn may_expire(&self, id: SnapshotId) -> bool {
        // An operation of a paused process takes hours.
        id.expires_at_ms().is_some_and(|at| at < self.now_ms() + (1 << 39))
    }

    /// Its owner was at work for a while: what was to go is gone, unless clones need it.
    pub fn nothing_is_overdue(&self, there: &[SnapshotEntry]) -> Result<(), String> {
        let now = self.now_ms();
        let state = self.state();
        let is_needed = |id| state.clones.iter().any(|clone| clone.needs(id));
        let is_overdue = |id| state.shelf.is_over(id, now - GRACE_MS) && !is_needed(id);
        match there.iter().find(|entry| is_overdue(entry.id)) {
            Some(entry) => Err(format!("the snapshot {} is there still, at {now} ms", entry.name)),
            None => Ok(()),
        }
    }
}

impl Client {
    /// Asks to keep a snapshot that is to go, now and then.
    pub async fn keep_one(&self) -> Next {
        let mut there = self.volume.snapshots();
        there.retain(|entry| entry.id.expires_at_ms().is_some());
        let which = self.world.random(|rng| rng.random_range(0..there.len() * 2 + 1));
        let Some(SnapshotEntry { id, name, .. }) = there.get(which) else { return Next::GoOn };
        let calm = self.world.state().calm;
        self.world.state().shelf.keeping(*id);
        let _waits = self.process.begins("a wish to keep a snapshot");
        self.world.trace(|| format!("{} wants to keep {id}", self.process.pid));
        match self.volume.keep_snapshot(name).await {
            Ok(_) => {
                let mut state = self.world.state();
                state.shelf.kept(*id);
                state.counts.kept += 1;
                Next::GoOn
            }
            Err(e) if e.kind() == ErrorKind::NotFound && self.world.may_expire(*id) => Next::GoOn,
            Err(e) => self.judge_refusal("a wish to keep a snapshot", &e, calm),
        }
    }
}
