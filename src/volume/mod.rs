//! The engine: one volume, its log, map, caches and owner's term.
//!
//! Contract: [`BlockDevice`](crate::device::BlockDevice). In addition, after any crash the volume is a prefix of what the
//! host did that includes everything a completed flush covered.
//!
//! Invariants:
//! * the map points only at slots of the log that hold (or will hold) those sectors;
//! * a chunk leaves memory only after it is committed, and a flush completes only when the commit
//!   point covers every write that completed before it;
//! * a checkpoint names only committed slots;
//! * objects are deleted only after a checkpoint that does not need them is durable *and* after
//!   that no newer epoch was seen claimed (see [`checkpoint`]);
//! * once a slot was lost to another owner, nothing more is acknowledged: all requests fail.
//!
//! | part | does |
//! | --- | --- |
//! | `look`, [`present`] | what the store says of a volume, without owning it |
//! | [`open`](mod@open) | claims an epoch, replays, fences |
//! | `redo` | records of the log, done again |
//! | `retention`, `past` | what is kept of the past; the volume as of a moment of it |
//! | `recover` | goes on where a dead owner left off |
//! | `state` | what is behind the one lock: open chunk, map, commit point |
//! | `backlog` | sealed chunks that wait for the store |
//! | `local`, `takeover` | flushes that count on a journal; going on from one |
//! | `write`, `room` | writes and trims; who has to wait for room |
//! | `read`, `readahead` | reads |
//! | `profile` | what is read first, recorded and fetched ahead |
//! | `tier` | the cache on a local disk |
//! | `patience` | the time limit of requests |
//! | `items` | leaves and pages on demand |
//! | [`checkpoint`], `tree`, `census` | checkpoints, live counts, garbage |
//! | `snapshots`, `kept` | made, deleted; what they keep |
//! | `replica` | what counts of a volume that is shipped from another pool |
//! | `rollback` | back to what a snapshot is |
//! | `diff` | what changed between two states |
//! | `received` | which snapshots are copies, and of what |
//! | `schedule` | snapshots that the owner makes by itself |
//! | `scrub`, `mend`, `regrow` | everything read and verified now and then; what is damaged made whole |
//! | `flatten` | a clone does without its origin |
//! | `hydrate` | what a volume lacks of the image that it began as |
//! | `collect`, `victims`, `pace` | moves what is left of mostly dead chunks, in turn with users |
//!
//! The hot path takes the state lock once, for a short time, and never waits under it. Whatever
//! has to wait runs on the given runtime, so the device's futures may be polled by any executor.

mod aging;
mod backlog;
mod census;
pub mod checkpoint;
mod collect;
mod device;
mod diff;
mod flatten;
mod gather;
mod hydrate;
mod items;
mod kept;
mod local;
mod look;
mod mend;
pub mod open;
mod options;
mod pace;
mod past;
mod patience;
pub mod present;
mod profile;
mod ratio;
mod read;
mod readahead;
mod received;
mod recover;
mod redo;
mod regrow;
mod replica;
mod retention;
mod rollback;
mod room;
mod schedule;
mod scrub;
mod shared;
mod snapshots;
mod state;
mod takeover;
mod tier;
mod tree;
mod victims;
mod write;

pub use aging::kept_snapshots;
pub use collect::Collected;
pub use diff::{Changed, Changes};
pub use flatten::Flattened;
pub use hydrate::SourceStatus;
pub use kept::needs_ancestors;
pub use look::{Ownership, Settled, ownership, settled};
pub use mend::{Mended, Mending};
pub use open::{find_snapshot, list_snapshots};
pub use options::{
    DiskCacheStatus, Durability, Env, JournalOptions, JournalStatus, MAP_BYTES_MIN, MapStatus,
    Mode, SpaceStatus, Stores, VolumeOptions, VolumeStatus,
};
pub use past::{Moment, Past, past};
pub use profile::{ProfileUse, RECORD_FOR};
pub use ratio::{Sample, compression_sample};
pub use received::{as_receiver, original, unfinished_receipt};
pub use replica::{commit_replica_state, replica_cut, replica_state};
pub use schedule::schedule;
pub use scrub::{ScrubOptions, ScrubStatus, scrubbed};
pub use snapshots::SNAPSHOTS_MAX;

use crate::error::{Error, ErrorKind, Result};
use crate::format::SnapshotId;
use crate::format::snapshot::SnapshotEntry;
use crate::units::SectorCount;
use local::Promise;
use shared::Shared;
use std::sync::Arc;

/// An open volume. Clones are handles of the same one.
#[derive(Clone, Debug)]
pub struct Volume {
    shared: Arc<Shared>,
}

/// What a volume had that the store has not, when it was left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Bytes that are lost.
    pub lost_bytes: u64,
    /// Bytes that are in the journal.
    pub kept_bytes: u64,
}

impl Volume {
    /// Changes the size: a record of the log, durable on return. What lies beyond a smaller size
    /// is dropped.
    ///
    /// # Errors
    /// Usage: not a size this volume may have. Busy: it would cut off what the volume lacks of its source. Fenced, Failed: it cannot be made durable.
    pub async fn resize(&self, size: SectorCount) -> Result<()> {
        let block = self.shared.description.block();
        if !crate::format::volume::is_valid_size(size.bytes(), block) {
            return Err(Error::usage(format!("{} bytes is no size for a volume", size.bytes())));
        }
        // What was cut off would be there again once the volume grows.
        if let Some(source) = self.shared.hydration().filter(|source| !source.is_complete())
            && size < source.extent()
        {
            let text = "a volume cannot be smaller than its source while it needs that";
            return Err(
                Error::new(ErrorKind::Busy, text).hint("fetch it all with `objblk flatten`")
            );
        }
        self.shared.state().resize(size)?;
        self.shared.flush().await.map_err(|e| Error::failed("resize").because(e))
    }

    /// Makes sure that this is the owner still, and that everything it has seen is in the log: a slot behind that
    /// is committed on return.
    ///
    /// # Errors
    /// Usage: read-only. Fenced, Failed: it is not, or that cannot be known.
    pub async fn confirm(&self) -> Result<()> {
        let shared = &self.shared;
        shared.check_owner()?;
        let probed = shared.state().probe();
        let target = probed.map_err(|_| shared.failure())?;
        shared.wait_committed(target).await
    }

    /// Makes a checkpoint, if there is anything new: so that who reads the store without owning the volume sees
    /// its size too.
    ///
    /// # Errors
    /// Those of a checkpoint; it is tried again by itself then.
    pub async fn checkpoint(&self) -> Result<()> {
        checkpoint::run(&self.shared, checkpoint::Kind::Running).await
    }

    /// How often it looks whether somebody took it over, if it does.
    pub fn heartbeat(&self) -> Option<std::time::Duration> {
        self.shared.options.watch_every
    }

    /// Makes the snapshot `name`, called `id` nowhere before, of all that completed before this call. It
    /// is durable on return; users go on meanwhile.
    ///
    /// # Errors
    /// Usage: the volume is open read-only, or has [`SNAPSHOTS_MAX`]. Exists: another snapshot has that
    /// name. Fenced, Failed, Corrupt: it cannot be made durable.
    ///
    /// Cancellation: it is made all the same.
    pub async fn make_snapshot(&self, id: SnapshotId, name: &str) -> Result<SnapshotEntry> {
        let (shared, name) = (self.shared.clone(), name.to_owned());
        self.shared.to_its_end(shared.make_snapshot(id, name)).await
    }

    /// Deletes a snapshot. What nothing else needs is deleted with the next checkpoint.
    ///
    /// # Errors
    /// Usage: the volume is open read-only. NotFound. Fenced, Failed.
    ///
    /// Cancellation: it is deleted all the same.
    pub async fn delete_snapshot(&self, name: &str) -> Result<SnapshotEntry> {
        let (shared, name) = (self.shared.clone(), name.to_owned());
        self.shared.to_its_end(shared.delete_snapshot(name)).await
    }

    /// The snapshots, by position.
    pub fn snapshots(&self) -> Vec<SnapshotEntry> {
        self.shared.snapshots().entries().cloned().collect()
    }

    /// Flushes, writes the close record and a checkpoint, and ends all background work. Requests
    /// that come later fail. Waits for the store as long as it takes; [`Volume::abandon`] ends
    /// that.
    ///
    /// # Errors
    /// Fenced: another owner has the volume. Failed: abandoned meanwhile. Corrupt: the map cannot
    /// be checkpointed (the data is safe in the log; the next attach needs a takeover).
    pub async fn close(&self) -> Result<()> {
        profile::end_recording(&self.shared).await;
        if self.shared.is_read_only() {
            self.shared.state().end_service();
            self.settle_cache().await;
            return Ok(());
        }
        let target = self.shared.state().begin_close()?;
        self.shared.wait_committed(target).await?;
        self.end_term().await
    }

    /// The last checkpoint of a term, behind its close record.
    async fn end_term(&self) -> Result<()> {
        let outcome = checkpoint::run(&self.shared, checkpoint::Kind::Close).await;
        self.shared.stop_tasks();
        if let (Ok(()), Some(journal)) = (&outcome, &self.shared.options.journal)
            && let Err(e) = journal.disk.retire().await
        {
            tracing::warn!("the journal {} is left: {e}", journal.disk.name());
        }
        self.settle_cache().await;
        outcome
    }

    async fn settle_cache(&self) {
        if let Some(disk) = &self.shared.disk {
            disk.settle().await;
        }
    }

    /// Ends service and all background work without waiting for the store: what the journal can
    /// keep for the next owner on this host is kept. Waits for the journal's disk only.
    pub async fn leave(&self) -> Left {
        let promise = {
            let mut state = self.shared.state();
            let promise = state.promise();
            state.end_service();
            promise
        };
        let kept = match promise {
            Promise::Journal(batch) => {
                self.shared.journal_due.notify_one();
                matches!(self.shared.wait_journaled(batch).await, Ok(true))
            }
            Promise::Store(_) => false,
        };
        let bytes = self.abandon();
        match kept {
            true => Left { lost_bytes: 0, kept_bytes: bytes },
            false => Left { lost_bytes: bytes, kept_bytes: 0 },
        }
    }

    /// Ends all background work without waiting for the store. All later requests fail. Returns
    /// the bytes that were written and never committed: they are lost.
    pub fn abandon(&self) -> u64 {
        let lost = self.shared.abandon();
        self.shared.stop_tasks();
        lost
    }

    /// Live figures.
    pub fn status(&self) -> VolumeStatus {
        self.shared.status()
    }
}
