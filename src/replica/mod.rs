//! Asynchronous replicas: the immutable objects of a volume are shipped to another pool, state by state.
//!
//! Nothing is asked of who owns the source, and nothing is changed there: any host that can read it replicates it,
//! whoever has it attached. Objects are shipped as they are stored, so an encrypted volume stays sealed on the way, and its key
//! is not needed (without it, a state ends with a checkpoint; with it, or where nothing is sealed, with the last
//! chunk of the log).
//!
//! # A round
//!
//! 1. The newest state of the replica is read ([`format`](crate::format::replica)), then what it has is listed, then what the source
//!    has, between two looks that see the same newest checkpoint there.
//! 2. What the replica lacks is copied, in any order, many at a time.
//! 3. A new state says that it is complete: that checkpoint, and the log behind it up to the first slot that is
//!    missing. It is one object, created if absent under the next number.
//! 4. What the source does not have any more is deleted.
//!
//! # Why a replica is always a state that was committed
//!
//! **Complete.** What a checkpoint needs is there before it is, and is deleted only after a newer one is there. So all that the
//! checkpoint of step 1 needs was listed. If everything that was listed was copied, it is complete. If something vanished
//! meanwhile, it is so all the same if no newer checkpoint is there *afterwards*: then it was needed by none. Otherwise
//! the round begins anew, with less to copy. A slot with none missing before it is committed, and what is committed in
//! a log never changes: so is each state that step 3 names. Older checkpoints, which are kept for the past, are
//! shipped if they are there afterwards, since they go before what they need.
//!
//! **One after the other.** States have numbers; of any number of processes that ship, promote and die, one makes
//! the next. It is not older than the one before, by the source's log. A state that names less than the last one is not made.
//!
//! **What is deleted is needed by no state that is or will be.** It was in the replica before the source was listed, and
//! not in the source then; no name is used twice; so the source will never have it again. Whoever makes a state after
//! this one lists the source after reading this one. Deleting begins when this state was seen to be the newest.
//!
//! **Reading** goes by the newest state alone. Chunks of a state that is under way, checkpoints that came late: they are not looked
//! at. So any moment and any death is harmless.
//!
//! # Why a promoted replica is nobody else's
//!
//! It is promoted by the next state, which says so: one object. A process that ships finds its number taken, and
//! stops; what it has put and what comes late has epochs of the source, and the log goes on in an epoch that the source
//! will never reach: no slot, checkpoint or map object of that name is looked at. What it still deletes is of no use to the
//! state that was promoted. The source, if it comes back, goes on by itself: nothing in this pool can stop it, and what it
//! holds besides is in it alone.

mod copy;
mod kin;
mod pace;
mod round;

pub use round::{Lag, Round};

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::replica::ReplicaObject;
use crate::format::volume::VolumeObject;
use crate::store::Store;
use crate::units::Epoch;
use crate::volume::replica_state;
use pace::Pace;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A pool, as its volumes are stored there and as they are read.
#[derive(Clone, Debug)]
pub struct Place {
    /// Below what seals.
    pub raw: Arc<dyn Store>,
    /// Above it: what was opened is plain.
    pub plain: Arc<dyn Store>,
}

/// From where to where a volume is shipped.
#[derive(Debug)]
pub struct Way {
    volume: VolumeObject,
    pool: VolumeId,
    /// Checkpoints of this epoch and before are not the source's own: it was a replica itself.
    floor: Option<Epoch>,
    source: Place,
    target: Place,
    clock: Arc<dyn Clock>,
    pace: Pace,
    shipped: AtomicU64,
}

impl Way {
    /// Of `volume`, which is in `source`, the pool of that id, and was promoted to the epoch `floor`, to `target`, where the
    /// replica was begun; at most `rate` bytes a second.
    pub fn new(
        (volume, pool, floor): (VolumeObject, VolumeId, Option<Epoch>),
        (source, target): (Place, Place),
        clock: Arc<dyn Clock>,
        rate: Option<u64>,
    ) -> Way {
        Way {
            volume,
            pool,
            floor,
            source,
            target,
            clock,
            pace: Pace::new(rate),
            shipped: AtomicU64::new(0),
        }
    }

    /// Bytes that were copied so far.
    pub fn shipped(&self) -> u64 {
        self.shipped.load(Relaxed)
    }

    fn id(&self) -> VolumeId {
        self.volume.id
    }

    /// The newest state of the replica, which may be shipped to.
    ///
    /// # Errors
    /// Fenced: it was promoted. Exists: it is the replica of another pool's. NotFound: there is none. Those of reading it.
    pub async fn state(&self) -> Result<ReplicaObject> {
        let state = self.any_state().await?;
        let Some(promoted) = &state.promoted else { return Ok(state) };
        let when = crate::clock::show(promoted.at_ms);
        let text = format!(
            "the replica was promoted on host {} at {when}, in epoch {}: its log has gone on by itself",
            promoted.by, promoted.epoch
        );
        Err(Error::new(ErrorKind::Fenced, text)
            .hint("replicate that volume to here, or this one to another pool or name"))
    }

    async fn any_state(&self) -> Result<ReplicaObject> {
        let Some(state) = replica_state(&*self.target.raw, self.id()).await? else {
            let text = format!("there is no replica of it in {}", self.target.raw.url());
            return Err(Error::not_found(text));
        };
        if state.pool != self.pool || state.volume != self.id() {
            let text =
                format!("the replica is one of another pool, {} ({})", state.pool, state.from);
            return Err(Error::new(ErrorKind::Exists, text)
                .hint("delete it, or name another pool with --to"));
        }
        Ok(state)
    }
}
