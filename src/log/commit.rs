//! The commit point: the first slot that is not committed together with all before it.

use crate::mutant::{self, Mutant};
use crate::units::Seq;
use bitvec::vec::BitVec;

/// Tracks slots that complete in any order. Pure.
///
/// Invariant: `next` only grows; bit `i` of the window says that slot `next + i` is done; the
/// first bit is never set. Memory is the span of the slots in flight.
#[derive(Debug)]
pub struct CommitPoint {
    next: Seq,
    done: BitVec,
}

impl CommitPoint {
    /// Everything before `next` is committed.
    pub fn new(next: Seq) -> CommitPoint {
        CommitPoint { next, done: BitVec::new() }
    }

    /// The first slot that is not committed.
    pub fn next(&self) -> Seq {
        self.next
    }

    /// The slot `seq` is in the store. Returns the commit point.
    pub fn complete(&mut self, seq: Seq) -> Seq {
        if mutant::on(Mutant::CommitOverGap) {
            self.next = self.next.max(seq.next());
            return self.next;
        }
        if let Some(at) = seq.0.checked_sub(self.next.0) {
            let at = at as usize;
            if self.done.len() <= at {
                self.done.resize(at + 1, false);
            }
            self.done.set(at, true);
            let run = self.done.leading_ones();
            self.done.drain(..run);
            self.next = Seq(self.next.0 + run as u64);
        }
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_a_set(order in Just((0..40u64).collect::<Vec<_>>()).prop_shuffle()) {
            let mut point = CommitPoint::new(Seq(0));
            let mut done = std::collections::BTreeSet::new();
            for seq in order {
                done.insert(seq);
                let expected = (0..).find(|s| !done.contains(s)).unwrap();
                prop_assert_eq!(point.complete(Seq(seq)), Seq(expected));
                prop_assert_eq!(point.complete(Seq(seq)), Seq(expected));
            }
            prop_assert!(point.done.is_empty());
        }
    }
}
