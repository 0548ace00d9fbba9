//! The ring of a journal by itself: what is found after a torn write, after damage, and that room
//! is never promised that is not there.

use crate::disk::MemoryDisk;
use objblk::error::ErrorKind;
use objblk::format::VolumeId;
use objblk::journal::disk::{BLOCK, Disk};
use objblk::journal::entry::Change;
use objblk::journal::ring::{
    Found, Place, SIZE_MIN, SUPERBLOCK_LEN, SlotIndex, Stage, Term, note_claim, read_slot,
};
use objblk::mutant::{self, Mutant};
use objblk::units::{Epoch, Sector, Seq};
use proptest::prelude::*;
use std::collections::BTreeMap;

const NONCE: &str = "00ff00ff00ff00ff";
const FIRST: Seq = Seq(10);
/// Segments of the smallest ring, and where the first one begins.
const SEGMENT: usize = 1 << 20;
const DATA: usize = 2 * SUPERBLOCK_LEN;

fn term(epoch: u64) -> Term {
    Term { epoch: Epoch(epoch), first: FIRST, base: SlotIndex(0) }
}

async fn begin(disk: &MemoryDisk) -> Stage {
    let volume = VolumeId::from_bytes([7; 16]);
    note_claim(disk, (volume, None), None, NONCE).await.unwrap().resume(term(1))
}

/// Never zero, so that a block that is missing differs.
fn data(number: u64, sectors: usize) -> Vec<u8> {
    (0..sectors * 512).map(|at| (number as usize * 31 + at * 7) as u8 | 1).collect()
}

fn push(stage: &mut Stage, number: u64, data: &[u8]) {
    stage.push(Change::Data { start: Sector(number), offset: 0, data });
}

/// Writes one batch; where it lies, and the place of the segment that it begins.
async fn write_one(disk: &MemoryDisk, stage: &mut Stage) -> Option<(Place, Option<u64>)> {
    let mut write = stage.take()?;
    write.finish();
    let begun = write.segment.as_ref().map(|(at, _)| *at);
    if let Some((at, block)) = write.segment.take() {
        disk.write(at, block).await.unwrap();
    }
    let blocks = disk.write(write.place.offset, write.blocks).await.unwrap();
    stage.written(blocks);
    Some((write.place, begun))
}

/// Slots of one change of `sectors` each, a batch for each.
async fn filled(disk: &MemoryDisk, slots: u64, sectors: usize) -> Vec<Place> {
    let mut stage = begin(disk).await;
    let mut places = Vec::new();
    for number in 0..slots {
        assert!(stage.has_room(sectors * 512));
        push(&mut stage, number, &data(number, sectors));
        stage.end_slot();
        stage.want_all();
        places.push(write_one(disk, &mut stage).await.unwrap().0);
        assert!(stage.take().is_none());
    }
    places
}

/// The changes of a slot, as position and data.
async fn slot(disk: &MemoryDisk, stage: &Stage, seq: Seq) -> Vec<(u64, Vec<u8>)> {
    let slots = read_slot(disk, stage.places(seq), None).await.unwrap();
    let change = |change: &Change<'_>| match *change {
        Change::Data { start, data, .. } => (start.0, data.to_vec()),
        ref other => panic!("{other:?} was not written"),
    };
    slots.changes().unwrap().iter().map(change).collect()
}

async fn assert_holds(disk: &MemoryDisk, slots: u64, sectors: usize, what: &str) -> Stage {
    let found = Found::read(disk, None).await.unwrap_or_else(|e| panic!("{what}: {e}")).unwrap();
    assert_eq!((found.next_batch().0, found.next_slot().0), (slots, slots), "{what}");
    let stage = found.resume(term(2));
    for number in 0..slots {
        let seq = Seq(FIRST.0 + number);
        assert_eq!(slot(disk, &stage, seq).await, [(number, data(number, sectors))], "{what}");
    }
    stage
}

#[tokio::test]
async fn a_torn_tail_ends_the_journal_one_batch_earlier() {
    const SECTORS: usize = 40;
    let before = MemoryDisk::new(SIZE_MIN);
    filled(&before, 4, SECTORS).await;
    let after = MemoryDisk::new(SIZE_MIN);
    let last = filled(&after, 5, SECTORS).await[4];
    let (before, after) = (before.bytes(), after.bytes());
    assert_holds(&MemoryDisk::with(after.clone()), 5, SECTORS, "whole").await;
    let (start, blocks) = (last.offset as usize, last.len as usize / BLOCK);
    assert!(blocks > 3);
    for cut in 0..blocks {
        let place = |block: usize| start + block * BLOCK..start + (block + 1) * BLOCK;
        // All from here on are missing, all up to here, only this one.
        let missing = [(cut..blocks), (0..cut + 1), (cut..cut + 1)];
        for missing in missing {
            let what = format!("blocks {missing:?} of {blocks} are missing");
            let mut bytes = after.clone();
            for place in missing.map(place) {
                bytes[place.clone()].copy_from_slice(&before[place]);
            }
            let disk = MemoryDisk::with(bytes);
            let mut stage = assert_holds(&disk, 4, SECTORS, &what).await;
            // A successor writes over it.
            push(&mut stage, 4, &data(4, SECTORS));
            stage.end_slot();
            stage.want_all();
            let (again, begun) = write_one(&disk, &mut stage).await.unwrap();
            assert_eq!((again, begun), (last, None), "{what}");
            assert_holds(&disk, 5, SECTORS, &what).await;
        }
    }
}

/// Two segments of batches; each block of all but the last batch counts.
#[tokio::test]
async fn damage_before_the_last_batch_is_reported() {
    const SECTORS: usize = 400;
    let disk = MemoryDisk::new(SIZE_MIN);
    let places = filled(&disk, 7, SECTORS).await;
    let segment = |place: &Place| (place.offset as usize - DATA) / SEGMENT;
    assert_eq!((segment(&places[0]), segment(&places[6])), (0, 1));
    let bytes = disk.bytes();
    for place in &places[..6] {
        for block in 0..place.len as usize / BLOCK {
            assert_damaged(&bytes, place.offset as usize + block * BLOCK).await;
        }
    }
}

/// A segment's header was durable before its batches: it is missed whichever it is.
#[tokio::test]
async fn a_damaged_segment_header_is_reported() {
    for slots in [1, 4, 6, 7] {
        let disk = MemoryDisk::new(SIZE_MIN);
        let places = filled(&disk, slots, 400).await;
        let last = (places[places.len() - 1].offset as usize - DATA) / SEGMENT;
        for segment in 0..=last {
            assert_damaged(&disk.bytes(), DATA + segment * SEGMENT).await;
        }
    }
}

async fn assert_damaged(bytes: &[u8], at: usize) {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 0x10;
    let found = Found::read(&MemoryDisk::with(bytes), None).await;
    match found {
        Err(e) => assert_eq!(e.kind(), ErrorKind::Corrupt, "byte {at}: {e}"),
        Ok(found) => {
            let next = found.map(|found| found.next_batch());
            panic!("byte {at} is damaged, and the journal is taken up to {next:?}");
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Push(usize),
    EndSlot,
    /// So many of the slots that have ended.
    Commit(u64),
    Write,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..=512usize).prop_map(Step::Push),
        3 => (1..=8usize).prop_map(Step::Push),
        2 => Just(Step::EndSlot),
        1 => (1..4u64).prop_map(Step::Commit),
        3 => Just(Step::Write),
    ]
}

/// A ring and what it should hold.
struct Model {
    disk: MemoryDisk,
    stage: Stage,
    /// Changes of the slots from the first that is not committed on.
    slots: BTreeMap<Seq, Vec<(u64, Vec<u8>)>>,
    committed: Seq,
    pushed: u64,
}

impl Model {
    async fn new() -> Model {
        let disk = MemoryDisk::new(SIZE_MIN);
        let stage = begin(&disk).await;
        Model { disk, stage, slots: BTreeMap::new(), committed: FIRST, pushed: 0 }
    }

    async fn step(&mut self, step: Step) {
        let seq = self.stage.seq();
        match step {
            Step::Push(sectors) if self.stage.has_room(sectors * 512) => {
                self.pushed += 1;
                let data = data(self.pushed, sectors);
                push(&mut self.stage, self.pushed, &data);
                self.slots.entry(seq).or_default().push((self.pushed, data));
            }
            // A slot without changes is never sealed.
            Step::EndSlot if self.slots.contains_key(&seq) => self.stage.end_slot(),
            Step::Commit(more) => {
                self.committed = Seq(self.committed.0 + more).min(seq);
                self.stage.commit(self.committed);
                self.slots = self.slots.split_off(&self.committed);
            }
            Step::Write => self.write().await,
            Step::Push(_) | Step::EndSlot => {}
        }
    }

    /// Everything that waits finds a place, and takes it from nobody.
    async fn write(&mut self) {
        let target = self.stage.want_all();
        while self.stage.is_due() {
            let needed: Vec<Place> =
                self.slots.keys().flat_map(|seq| self.stage.places(*seq).1).collect();
            let written = write_one(&self.disk, &mut self.stage).await;
            let (place, begun) = written.expect("what was admitted finds a place");
            let segment = begun.map(|at| at..at + SEGMENT as u64);
            for other in needed {
                let reused = segment.as_ref().is_some_and(|s| s.contains(&other.offset));
                assert!(!reused, "the segment at {segment:?} is used again over {other:?}");
                let apart = other.offset + u64::from(other.len) <= place.offset
                    || place.offset + u64::from(place.len) <= other.offset;
                assert!(apart, "{place:?} is written over {other:?}");
            }
        }
        assert!(self.stage.durable() >= target);
    }

    /// What is on the disk is what was acknowledged and not committed.
    async fn check(&mut self) {
        self.write().await;
        let found = Found::read(&self.disk, None).await.unwrap().unwrap();
        let base = term(1).index(self.committed);
        assert!(found.first_lacking(self.committed).is_some_and(|first| first == base));
        let next = Term { epoch: Epoch(2), first: FIRST, base };
        let stage = found.resume(next);
        for (seq, changes) in &self.slots {
            let seq = next.seq(term(1).index(*seq));
            assert_eq!(slot(&self.disk, &stage, seq).await, *changes, "slot {seq}");
        }
    }
}

fn run(steps: &[Step]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut model = Model::new().await;
        for step in steps {
            model.step(*step).await;
        }
        model.check().await;
    });
}

/// The model is no good if it does not see this.
#[test]
#[should_panic(expected = "is used again over")]
fn the_model_notices_a_segment_that_is_used_again_too_early() {
    let steps = [Step::Push(512), Step::EndSlot, Step::Write].repeat(20);
    mutant::with(Some(Mutant::SegmentReusedEarly), || run(&steps));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_admitted_finds_a_place_and_is_found_again(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        run(&steps);
    }
}
