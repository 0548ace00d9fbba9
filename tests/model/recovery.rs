//! Recovery: any log, cut at any slot, opens to what its records do one after the other.
//!
//! The log is made of records drawn at random, written as chunk objects and fences by the format
//! alone; no engine has seen it before. Every sector of payload is unlike any other, so the bytes
//! read tell the place in the log.

use crate::extents::{Extents, Place};
use crate::rig::{Rig, read, write};
use objblk::device::BlockDevice;
use objblk::error::{ErrorKind, Result};
use objblk::format::chunk::ChunkParts;
use objblk::format::fence::Fence;
use objblk::format::frame::Compression;
use objblk::format::keys;
use objblk::format::page::Location;
use objblk::format::record::Record;
use objblk::store::Store;
use objblk::units::{Epoch, Sector, SectorCount, SectorRange, Seq};
use objblk::volume::{Mode, Volume};
use proptest::prelude::*;
use std::ops::Range;

/// Size of a new volume, in sectors.
const SIZE: u64 = 1024;

#[derive(Clone, Debug)]
enum Change {
    Data(u64, u32),
    Zero(u64, u64),
    Trim(u64, u64),
    Resize(u64),
    EpochStart,
    Close,
}

#[derive(Clone, Debug)]
enum Slot {
    /// Changes, and how many slots before it are not known to be committed.
    Chunk(Vec<Change>, u64),
    /// The log goes on this many epochs later.
    Fence(u64),
}

fn change() -> impl Strategy<Value = Change> {
    let at = 0..SIZE - 8;
    prop_oneof![
        12 => (at.clone(), 1u32..40).prop_map(|(at, len)| Change::Data(at, len)),
        2 => (at.clone(), 1u64..200).prop_map(|(at, len)| Change::Zero(at, len)),
        2 => (at, 1u64..200).prop_map(|(at, len)| Change::Trim(at, len)),
        1 => (SIZE / 2..SIZE + 200).prop_map(Change::Resize),
        1 => Just(Change::EpochStart),
        1 => Just(Change::Close),
    ]
}

fn log() -> impl Strategy<Value = Vec<Slot>> {
    let chunk = (prop::collection::vec(change(), 0..12), 0u64..4);
    let slot = prop_oneof![
        6 => chunk.prop_map(|(changes, lag)| Slot::Chunk(changes, lag)),
        1 => (1u64..3).prop_map(Slot::Fence),
    ];
    prop::collection::vec(slot, 0..10)
}

/// Sector `offset` of the payload of slot `seq`.
fn payload(seq: u64, offset: u32) -> Vec<u8> {
    let mark = (seq << 32 | u64::from(offset)) + 1;
    mark.to_le_bytes().repeat(64)
}

/// What a volume holds after some slots of its log.
#[derive(Clone, Debug)]
struct State {
    size: u64,
    extents: Extents,
    /// A record reaches beyond the end: the log is damaged.
    damaged: bool,
}

impl State {
    fn apply(&mut self, seq: u64, record: &Record) {
        let mut run = |range: SectorRange| -> Range<u64> {
            self.damaged |= range.end().0 > self.size;
            range.start().0..range.end().0
        };
        match *record {
            Record::Data { range, offset } => {
                let run = run(range);
                let place = Place::new(run.start, Location { seq: Seq(seq), offset });
                self.extents.insert(run, place);
            }
            Record::Zero(range) | Record::Trim(range) => self.extents.remove(run(range)),
            Record::Resize(size) => {
                self.size = size.0;
                self.extents.remove(size.0..u64::MAX);
            }
            Record::EpochStart | Record::Close => {}
            Record::SnapshotMade(_) | Record::SnapshotDeleted(_) | Record::RolledBack(_) => {}
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size as usize * 512];
        for (run, place) in self.extents.iter() {
            for sector in run.clone() {
                let Location { seq, offset } = place.location(sector);
                bytes[sector as usize * 512..][..512].copy_from_slice(&payload(seq.0, offset));
            }
        }
        bytes
    }
}

/// A log in a store, and what it must open to.
struct Written {
    rig: Rig,
    /// The state before each slot, and after the last.
    states: Vec<State>,
    /// Epoch of each slot, and of the one after the last.
    epochs: Vec<Epoch>,
    /// What a slot says is committed, where it holds a chunk.
    committed: Vec<Option<u64>>,
}

fn range(start: u64, len: u64) -> SectorRange {
    SectorRange::new(Sector(start), SectorCount(len)).unwrap()
}

/// The records of a slot, and the sectors of their payload.
fn records(changes: &[Change]) -> (Vec<Record>, u32) {
    let mut sectors = 0;
    let record = |change: &Change| match *change {
        Change::Data(at, len) => {
            sectors += len;
            Record::Data { range: range(at, len.into()), offset: sectors - len }
        }
        Change::Zero(at, len) => Record::Zero(range(at, len)),
        Change::Trim(at, len) => Record::Trim(range(at, len)),
        Change::Resize(size) => Record::Resize(SectorCount(size)),
        Change::EpochStart => Record::EpochStart,
        Change::Close => Record::Close,
    };
    (changes.iter().map(record).collect(), sectors)
}

async fn write_log(log: &[Slot]) -> Written {
    let rig = Rig::new(1, SIZE * 512).await;
    let mut state = State { size: SIZE, extents: Extents::new(), damaged: false };
    let mut epoch = Epoch(0);
    let (mut states, mut epochs, mut committed) = (vec![state.clone()], vec![epoch], Vec::new());
    for (seq, slot) in (0..).zip(log) {
        let key = keys::slot(rig.id, Seq(seq), epoch);
        let body = match slot {
            Slot::Chunk(changes, lag) => {
                let (records, sectors) = records(changes);
                records.iter().for_each(|record| state.apply(seq, record));
                let before = seq.saturating_sub(*lag);
                committed.push(Some(before));
                let payload: Vec<u8> = (0..sectors).flat_map(|n| payload(seq, n)).collect();
                let parts = ChunkParts {
                    volume: rig.id,
                    epoch,
                    seq: Seq(seq),
                    committed: Seq(before),
                    sealed_at_ms: 0,
                    records: &records,
                    compression: Compression::None,
                };
                parts.encode(&payload)
            }
            Slot::Fence(later) => {
                let next_epoch = Epoch(epoch.0 + later);
                let fence = Fence {
                    volume: rig.id,
                    epoch,
                    seq: Seq(seq),
                    next_epoch,
                    owner: "somebody".into(),
                };
                epoch = next_epoch;
                committed.push(None);
                fence.encode()
            }
        };
        rig.memory.put_if_absent(&key, body.into()).await.unwrap();
        states.push(state.clone());
        epochs.push(epoch);
    }
    Written { rig, states, epochs, committed }
}

impl Written {
    fn slots(&self) -> usize {
        self.committed.len()
    }

    async fn take(&self, slot: usize) -> bytes::Bytes {
        let key = keys::slot(self.rig.id, Seq(slot as u64), self.epochs[slot]);
        let body = self.rig.object(key.as_str()).await;
        self.rig.memory.delete(&[key]).await.unwrap();
        body
    }

    async fn put_back(&self, slot: usize, body: bytes::Bytes) {
        let key = keys::slot(self.rig.id, Seq(slot as u64), self.epochs[slot]);
        self.rig.memory.put_if_absent(&key, body).await.unwrap();
    }

    /// Opens for reading and compares; the log has no slot from `end` on that counts.
    async fn check(&self, end: usize, what: &str) {
        let opened = self.rig.open_as(1, Mode::ReadOnly).await;
        self.compare(end, opened, what).await;
    }

    /// Compares with the state before slot `end`. Returns the volume where it could be opened.
    async fn compare(&self, end: usize, opened: Result<Volume>, what: &str) -> Option<Volume> {
        let state = &self.states[end];
        let volume = match opened {
            Ok(volume) => volume,
            Err(e) => {
                assert!(state.damaged && e.kind() == ErrorKind::Corrupt, "{what} {end}: {e}");
                return None;
            }
        };
        assert!(!state.damaged, "{what} {end}: a write beyond the end was replayed");
        assert_eq!(volume.geometry().size.0, state.size, "{what} {end}");
        let found = read(&volume, 0, state.size).await.unwrap();
        assert!(found == state.bytes(), "{what} {end}: other bytes");
        Some(volume)
    }

    /// A later chunk proves that `slot` was committed, or what a later owner wrote: it had filled the slot,
    /// and no checkpoint was made that could do without it.
    fn is_proved(&self, slot: usize) -> bool {
        if (slot + 1..self.slots()).any(|at| self.epochs[at] > self.epochs[slot]) {
            return true;
        }
        let same_term = |at: &usize| self.epochs[*at] == self.epochs[slot];
        let later = (slot + 1..self.slots()).filter(same_term);
        later.filter_map(|at| self.committed[at]).any(|committed| committed > slot as u64)
    }
}

async fn run(log: Vec<Slot>, owned_at: usize) {
    let written = write_log(&log).await;
    // With a hole: the end of the log, or damage where a later chunk tells.
    for slot in 0..written.slots() {
        let body = written.take(slot).await;
        if written.is_proved(slot) && !written.states[slot].damaged {
            let refused = written.rig.open_as(1, Mode::ReadOnly).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Corrupt, "without slot {slot}: {refused}");
        } else {
            written.check(slot, "with a hole at slot").await;
        }
        written.put_back(slot, body).await;
    }
    // Every prefix.
    let owned_at = owned_at % (written.slots() + 1);
    for end in (owned_at..=written.slots()).rev() {
        if end < written.slots() {
            written.take(end).await;
        }
        written.check(end, "up to slot").await;
    }
    own(&written, owned_at).await;
}

/// A new owner takes the volume over where the log ends now: nothing changes by that, nor by its
/// checkpoint.
async fn own(written: &Written, end: usize) {
    for epoch in 1..=written.epochs[end].0 {
        let key = keys::epoch(written.rig.id, Epoch(epoch));
        written.rig.memory.put_if_absent(&key, "{}".into()).await.unwrap();
    }
    let takeover = Mode::ReadWrite { takeover: true };
    let opened = written.rig.open_as(2, takeover).await;
    let Some(volume) = written.compare(end, opened, "taken over at slot").await else { return };
    let mut expected = written.states[end].bytes();
    write(&volume, 3, &[0xaa; 1024]).await.unwrap();
    expected[3 * 512..5 * 512].fill(0xaa);
    volume.close().await.unwrap();
    let volume = written.rig.open_as(1, Mode::ReadOnly).await.unwrap();
    let found = read(&volume, 0, expected.len() as u64 / 512).await.unwrap();
    assert!(found == expected, "after a checkpoint at slot {end}: other bytes");
}

proptest! {
    #![proptest_config(crate::config(150))]

    #[test]
    fn every_prefix_of_a_log_opens_to_what_its_records_do(log in log(), owned_at in any::<usize>()) {
        crate::block_on(run(log, owned_at));
    }
}
