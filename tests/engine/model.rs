//! Random operations against a byte array, with clean reopening in between.

use crate::rig::{self, Rig, pattern, range, read, write};
use objblk::device::{BlockDevice, BlockState, ZeroFlags};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const SECTORS: u64 = 3 << 11 | 5;

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("OBJBLK_SEED") {
        Ok(seed) => seed.parse().map(|s| s..s + 1).expect("OBJBLK_SEED is a number"),
        Err(_) => 0..12,
    }
}

#[tokio::test(start_paused = true)]
async fn equals_a_byte_array() {
    for seed in seeds() {
        eprintln!("replay: OBJBLK_SEED={seed} cargo test --test engine equals_a_byte_array");
        run(seed).await;
    }
}

async fn run(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let rig = Rig::any(seed, SECTORS * 512).await;
    let mut volume = rig.open().await;
    let mut model = vec![0u8; SECTORS as usize * 512];
    for step in 0..600u64 {
        let start = rng.random_range(0..SECTORS);
        let longest = if rng.random_bool(0.1) { 1200 } else { 40 };
        let len = rng.random_range(1..=longest.min(SECTORS - start));
        let span = start as usize * 512..(start + len) as usize * 512;
        match rng.random_range(0..100) {
            0..50 => {
                let data = match step % 8 {
                    0 => vec![0; span.len()],
                    _ => pattern(start, len, step),
                };
                write(&volume, start, &data).await.unwrap();
                model[span].copy_from_slice(&data);
            }
            50..60 => {
                volume.discard(range(start, len)).await.unwrap();
                model[span].fill(0);
            }
            60..65 => {
                let flags = ZeroFlags { may_unmap: true, fua: rng.random_bool(0.3) };
                volume.write_zeroes(range(start, len), flags).await.unwrap();
                model[span].fill(0);
            }
            65..90 => {
                let got = read(&volume, start, len).await.unwrap();
                assert!(got == model[span], "seed {seed} step {step}: sectors {start}+{len}");
            }
            90..96 => volume.flush().await.unwrap(),
            96..98 => check_status(&volume, &model, start, len).await,
            _ => {
                volume.close().await.unwrap();
                volume = rig.open().await;
            }
        }
    }
    let all = read(&volume, 0, SECTORS).await.unwrap();
    assert!(all == model, "seed {seed}: the whole volume");
    volume.close().await.unwrap();
    let volume = rig.open_as(1, objblk::volume::Mode::ReadOnly).await.unwrap();
    assert!(rig::read(&volume, 0, SECTORS).await.unwrap() == model, "seed {seed}: read-only");
}

/// Holes are zeros; the extents cover the range.
async fn check_status(volume: &objblk::volume::Volume, model: &[u8], start: u64, len: u64) {
    let mut at = start;
    while at < start + len {
        let extents = volume.block_status(range(at, start + len - at), 3).await.unwrap();
        assert!(!extents.is_empty() && extents.len() <= 3);
        for extent in extents {
            let span = at as usize * 512..(at + extent.len.0) as usize * 512;
            if extent.state == BlockState::Hole {
                assert!(model[span].iter().all(|b| *b == 0), "a hole holds data");
            }
            at += extent.len.0;
        }
    }
    assert_eq!(at, start + len);
}
