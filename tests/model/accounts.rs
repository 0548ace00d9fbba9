//! The account of bytes that the store does not have yet.

use crate::rig::{CHUNK, Rig, range, write};
use objblk::device::BlockDevice;
use objblk::format::keys;
use objblk::format::record::Record;
use objblk::store::Op;
use objblk::store::fault::{Fault, Moment, Rule};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Sectors in a write.
const BLOCK: u64 = 8;
const BLOCKS: u64 = 48;

/// What the log holds since the last flush, as its writer would count it by hand.
struct Account {
    payload: u64,
    records: u64,
    /// Payload of the open chunk.
    open: u64,
    /// Blocks that the open chunk holds: writing them again takes no room.
    inside: BTreeSet<u64>,
    /// The block after the last one that was appended to the open chunk.
    follows: Option<u64>,
}

impl Account {
    fn new() -> Account {
        // The first record of an owner's term is there before any write.
        Account { payload: 0, records: 1, open: 0, inside: BTreeSet::new(), follows: None }
    }

    fn write(&mut self, block: u64) {
        if !self.inside.insert(block) {
            return;
        }
        let bytes = BLOCK * 512;
        self.payload += bytes;
        self.open += bytes;
        if self.follows != Some(block) {
            self.records += 1;
        }
        self.follows = Some(block + 1);
        if self.open == CHUNK {
            (self.open, self.follows) = (0, None);
            self.inside.clear();
        }
    }

    fn discard(&mut self, block: u64) {
        self.records += 1;
        self.inside.remove(&block);
        self.follows = None;
    }

    fn bytes(&self) -> u64 {
        let changed = self.payload > 0 || self.records > 1;
        if changed { self.payload + self.records * size_of::<Record>() as u64 } else { 0 }
    }
}

async fn run(steps: Vec<(bool, u64)>) {
    let rig = Rig::new(1, BLOCKS * BLOCK * 512).await;
    let volume = rig.open().await;
    let log = format!("{}log/", keys::volume_prefix(rig.id));
    let held = rig.faults.add(Rule::new(Fault::Hold(Moment::Before)).on(&[Op::Put]).below(log));
    let mut account = Account::new();
    assert_eq!(volume.status().dirty_bytes, 0);
    let before = volume.status().next_seq;
    for (is_write, block) in steps {
        if is_write {
            write(&volume, block * BLOCK, &[7; (BLOCK * 512) as usize]).await.unwrap();
            account.write(block);
        } else {
            volume.discard(range(block * BLOCK, BLOCK)).await.unwrap();
            account.discard(block);
        }
        assert_eq!(volume.status().dirty_bytes, account.bytes());
    }
    // The store takes nothing, so nothing is committed; as soon as it does, nothing is dirty.
    assert_eq!(volume.status().next_seq, before);
    held.release();
    rig.faults.clear();
    volume.flush().await.unwrap();
    assert_eq!(volume.status().dirty_bytes, 0);
    volume.close().await.unwrap();
}

proptest! {
    #![proptest_config(crate::config(100))]

    #[test]
    fn dirty_bytes_are_what_was_written_and_not_stored(
        steps in prop::collection::vec((prop::bool::weighted(0.9), 0..BLOCKS), 0..180),
    ) {
        crate::block_on(run(steps));
    }
}
