//! Sealed chunks that the store has not taken: in memory, or only in the journal. Pure.

use crate::format::record::Record;
use crate::log::SealedChunk;
use crate::units::Seq;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;

/// Where a sealed chunk is.
#[derive(Clone, Debug)]
pub(super) enum Held {
    /// In memory.
    Memory(Arc<SealedChunk>),
    /// In the journal, from which it can be made again.
    Journal,
}

#[derive(Debug)]
struct Waiting {
    weight: u64,
    /// When the first of its changes was made.
    since: Instant,
    held: Held,
}

/// Sealed and not committed, by slot.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    slots: BTreeMap<Seq, Waiting>,
    bytes: u64,
    memory: u64,
}

impl Backlog {
    /// Adds a chunk whose first change was made at `since`.
    pub fn push(&mut self, chunk: Arc<SealedChunk>, since: Instant) {
        let (seq, weight) = (chunk.seq, chunk.weight());
        self.memory += weight;
        self.insert(seq, weight, since, Held::Memory(chunk));
    }

    /// Adds a chunk that is in the journal.
    pub fn push_journaled(&mut self, seq: Seq, weight: u64, since: Instant) {
        self.insert(seq, weight, since, Held::Journal);
    }

    fn insert(&mut self, seq: Seq, weight: u64, since: Instant, held: Held) {
        self.bytes += weight;
        self.slots.insert(seq, Waiting { weight, since, held });
    }

    /// Where the chunk of a slot is, while it waits for the store.
    pub fn get(&self, seq: Seq) -> Option<&Held> {
        self.slots.get(&seq).map(|waiting| &waiting.held)
    }

    /// Slots before `committed` are in the store. Returns the chunks of them that were in memory.
    pub fn commit(&mut self, committed: Seq) -> Vec<Arc<SealedChunk>> {
        let mut chunks = Vec::new();
        while let Some(first) = self.slots.first_entry().filter(|first| *first.key() < committed) {
            let waiting = first.remove();
            self.bytes -= waiting.weight;
            if let Held::Memory(chunk) = waiting.held {
                self.memory -= waiting.weight;
                chunks.push(chunk);
            }
        }
        chunks
    }

    /// Lets chunks leave memory until no more than `budget` bytes of them are left there: the
    /// newest first, none that is being put, and only what `is_journaled`, all of it: what a record
    /// says that is no change of contents is in no journal.
    pub fn spill(&mut self, budget: u64, is_journaled: impl Fn(Seq) -> bool) {
        for (seq, waiting) in self.slots.iter_mut().rev() {
            if self.memory <= budget {
                return;
            }
            if let Held::Memory(chunk) = &waiting.held
                && Arc::strong_count(chunk) == 1
                && is_journaled(*seq)
                && chunk.records.iter().all(changes_contents)
            {
                self.memory -= waiting.weight;
                waiting.held = Held::Journal;
            }
        }
    }

    /// Slots that wait.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// None waits.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of them that are in memory.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// When the oldest change was made.
    pub fn since(&self) -> Option<Instant> {
        self.slots.first_key_value().map(|(_, waiting)| waiting.since)
    }
}

/// The first record of a term is known without a journal.
fn changes_contents(record: &Record) -> bool {
    match record {
        Record::Data { .. } | Record::Zero(_) | Record::Trim(_) | Record::Resize(_) => true,
        Record::EpochStart => true,
        Record::Close
        | Record::SnapshotMade(_)
        | Record::SnapshotDeleted(_)
        | Record::RolledBack(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::SnapshotId;
    use crate::log::order::Payload;

    #[test]
    fn what_only_memory_has_stays_there() {
        let snapshot = Record::SnapshotMade(SnapshotId::from_bytes([1; 16]));
        let mut backlog = Backlog::default();
        for (seq, records) in
            [vec![Record::EpochStart], vec![snapshot], vec![Record::Close]].into_iter().enumerate()
        {
            let (seq, payload) = (Seq(seq as u64), Payload::new(vec![0; 512]));
            let chunk = SealedChunk { seq, committed: Seq(0), records, payload, moved: false };
            backlog.push(Arc::new(chunk), Instant::now());
        }
        backlog.spill(0, |_| true);
        let held = |seq| matches!(backlog.get(Seq(seq)), Some(Held::Memory(_)));
        assert_eq!([0, 1, 2].map(held), [false, true, true]);
    }
}
