//! What was written at random is read in order: each frame has something for a long part of the way.

use crate::rig::{Rig, pattern, read, write};
use objblk::store::Op;
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::units::SECTOR_SIZE;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use std::time::Duration;

const SIZE: u64 = 64 << 20;
/// Sectors of a write and of a read.
const BLOCK: u64 = 8;
const PIECE: u64 = 512;
/// Frames of all that is written.
const FRAMES: u64 = SIZE / (64 << 10);

/// Each frame has 16 blocks of a quarter of the volume, so that a quarter of all frames is in use at any time; the
/// cache holds half of them.
#[tokio::test(start_paused = true)]
async fn what_is_scattered_is_fetched_once() {
    let mut rig = Rig::new(3, SIZE).await;
    rig.options.cache_bytes = SIZE / 2;
    let volume = rig.open().await;
    let mut blocks: Vec<u64> = (0..SIZE / SECTOR_SIZE / BLOCK).collect();
    blocks.shuffle(&mut StdRng::seed_from_u64(5));
    for block in blocks {
        write(&volume, block * BLOCK, &pattern(block * BLOCK, BLOCK, 1)).await.unwrap();
    }
    volume.close().await.unwrap();

    let volume = rig.open().await;
    let trip = Duration::from_millis(10);
    let rule = Rule::new(Fault::Delay { at: Moment::After, from: trip, to: trip }).on(&[Op::Get]);
    let gets = rig.faults.add(rule.below(format!("volumes/{}/log/", rig.id)));
    for at in (0..SIZE / SECTOR_SIZE).step_by(PIECE as usize) {
        assert!(read(&volume, at, PIECE).await.unwrap() == pattern(at, PIECE, 1), "sectors {at}..");
    }
    let gets = gets.hits();
    println!("{gets} GETs for {FRAMES} frames");
    assert!(gets <= FRAMES * 11 / 10, "{gets} GETs for {FRAMES} frames");
    volume.close().await.unwrap();
}
