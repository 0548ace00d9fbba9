//! The log: the totally ordered sequence of a volume's chunk objects. The volume *is* its log.
//!
//! Slots are dense. A slot holds a chunk of the owner's epoch, or the fence with which the next
//! owner ended that epoch. Chunks of one owner are put in parallel; the **commit point** is the
//! first slot that is not yet committed with all slots before it, and only what lies before it
//! counts: recovery stops at the first missing slot and puts a fence there.
//!
//! * [`open_chunk`]: the chunk that writes go to (pure)
//! * [`commit`]: the commit point (pure)
//! * [`upload`]: sealed chunks to the store
//! * [`replay`]: reading the log back, fencing its end
//! * [`fetch`]: frames of committed chunks
//! * [`verify`]: whether a chunk in the store is whole

pub mod commit;
pub mod fetch;
pub mod open_chunk;
pub mod order;
pub mod replay;
pub mod suspects;
pub mod upload;
pub mod verify;

pub use commit::CommitPoint;
pub use open_chunk::{OpenChunk, SealedChunk};

use crate::format::VolumeId;
use crate::format::checkpoint::Term;
use crate::format::keys;
use crate::store::Key;
use crate::units::{Epoch, Seq};
use std::collections::BTreeSet;

/// Chunks that are sealed and not committed at which writers wait, whatever their size. It bounds
/// how far behind a missing slot a chunk of the same owner can lie, and so how far replay has to
/// look for proof that a missing slot was committed once.
pub const IN_FLIGHT_MAX: usize = 24;

/// Which epoch each slot was written in, and so how its object is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms(Vec<Term>);

impl Terms {
    /// The terms of a checkpoint: ascending, the first begins at the first slot that is needed.
    pub fn new(terms: Vec<Term>) -> Terms {
        Terms(terms)
    }

    /// The epoch of a slot.
    pub fn epoch_of(&self, seq: Seq) -> Epoch {
        let after = self.0.partition_point(|term| term.first <= seq);
        self.0.get(after.saturating_sub(1)).map_or(Epoch(0), |term| term.epoch)
    }

    /// From `first` on, slots are written in `epoch`.
    pub fn begin(&mut self, first: Seq, epoch: Epoch) {
        self.0.push(Term { first, epoch });
    }

    /// Forgets terms that end before `oldest`, the oldest slot that is still needed.
    pub fn forget_before(&mut self, oldest: Seq) {
        let keep = self.0.partition_point(|term| term.first <= oldest).saturating_sub(1);
        self.0.drain(..keep);
    }

    /// The slot that ended the term of `epoch`, if that term and the next one are known.
    pub fn end_of(&self, epoch: Epoch) -> Option<Seq> {
        let at = self.0.iter().position(|term| term.epoch == epoch)?;
        self.0.get(at + 1)?.first.0.checked_sub(1).map(Seq)
    }

    /// The slots that hold the fences between these terms: the last one of each but the last.
    pub fn fences(&self) -> BTreeSet<Seq> {
        let begun = self.0.iter().skip(1).map(|term| term.first.0);
        begun.filter_map(|first| first.checked_sub(1)).map(Seq).collect()
    }

    /// All terms, ascending.
    pub fn as_slice(&self) -> &[Term] {
        &self.0
    }

    /// Name of the object in a slot.
    pub fn slot_key(&self, volume: VolumeId, seq: Seq) -> Key {
        keys::slot(volume, seq, self.epoch_of(seq))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_name_slots() {
        let mut terms = Terms::new(vec![Term { first: Seq(0), epoch: Epoch(0) }]);
        terms.begin(Seq(1), Epoch(1));
        terms.begin(Seq(10), Epoch(4));
        let epochs: Vec<u64> = [0, 1, 9, 10, 99].map(|s| terms.epoch_of(Seq(s)).0).to_vec();
        assert_eq!(epochs, [0, 1, 1, 4, 4]);
        let ends: Vec<Option<Seq>> = [0, 1, 4, 9].map(|e| terms.end_of(Epoch(e))).to_vec();
        assert_eq!(ends, [Some(Seq(0)), Some(Seq(9)), None, None]);
        assert_eq!(terms.fences(), BTreeSet::from([Seq(0), Seq(9)]));
        terms.forget_before(Seq(9));
        assert_eq!(terms.as_slice().len(), 2);
        assert_eq!(terms.epoch_of(Seq(9)), Epoch(1));
        terms.forget_before(Seq(10));
        assert_eq!(terms.as_slice().len(), 1);
    }
}
