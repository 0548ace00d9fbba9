//! Crashes at random moments under store faults: what is recovered is a prefix of what was done
//! that includes everything a completed flush covered. Late PUTs of the dead owner land at will.

use crate::rig::{Rig, pattern, range, read, write};
use objblk::device::BlockDevice;
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::store::{Op, StoreErrorKind};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

const SECTORS: u64 = 2048;

/// One operation: the sectors it touched, and what they are after it (0: zeros).
#[derive(Clone, Copy, Debug)]
struct Done {
    start: u64,
    len: u64,
    stamp: u64,
}

/// Stamps of all sectors; the stamp is in every 16 bytes of `pattern`.
type Image = Vec<u64>;

fn apply(image: &mut Image, op: Done) {
    image[op.start as usize..(op.start + op.len) as usize].fill(op.stamp);
}

fn stamps(bytes: &[u8]) -> Image {
    let stamp = |sector: &[u8]| {
        let words = sector.chunks(16).map(|c| u64::from_le_bytes(c[8..16].try_into().unwrap()));
        let all: std::collections::BTreeSet<u64> = words.collect();
        assert_eq!(all.len(), 1, "a sector is torn");
        all.into_iter().next().unwrap()
    };
    bytes.chunks(512).map(stamp).collect()
}

#[tokio::test(start_paused = true)]
async fn recovers_a_prefix_that_includes_every_flush() {
    let seeds = match std::env::var("OBJBLK_SEED") {
        Ok(seed) => seed.parse().map(|s: u64| s..s + 1).expect("OBJBLK_SEED is a number"),
        Err(_) => 0..60,
    };
    for seed in seeds {
        eprintln!("replay: OBJBLK_SEED={seed} cargo test --test engine recovers_a_prefix");
        run(seed).await;
    }
}

fn add_faults(rig: &Rig) {
    let ms = Duration::from_millis;
    let delay = |at| Fault::Delay { at, from: ms(1), to: ms(400) };
    let fail = |at| Fault::Fail(at, StoreErrorKind::Unavailable);
    for (fault, ops, p) in [
        (delay(Moment::Before), &[Op::Put][..], 0.7),
        (delay(Moment::After), &Op::ALL[..], 0.2),
        (fail(Moment::Before), &Op::ALL[..], 0.1),
        (fail(Moment::After), &Op::ALL[..], 0.1),
        (Fault::Duplicate(ms(700)), &[Op::Put][..], 0.1),
    ] {
        rig.faults.add(Rule::new(fault).on(ops).with_probability(p));
    }
}

async fn run(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let rig = Rig::any(seed, SECTORS * 512).await;
    add_faults(&rig);
    let mut base: Image = vec![0; SECTORS as usize];
    let mut stamp = 0;
    let mut volume = rig.open().await;
    for life in 0..6 {
        let mut history: Vec<Done> = Vec::new();
        let mut durable = 0;
        for _ in 0..rng.random_range(1..60) {
            stamp += 1;
            let start = rng.random_range(0..SECTORS);
            let len = rng.random_range(1..=200.min(SECTORS - start));
            match rng.random_range(0..10) {
                0..7 => {
                    history.push(Done { start, len, stamp });
                    write(&volume, start, &pattern(start, len, stamp)).await.unwrap();
                }
                7 => {
                    history.push(Done { start, len, stamp: 0 });
                    volume.discard(range(start, len)).await.unwrap();
                }
                8 => {
                    volume.flush().await.unwrap();
                    durable = history.len();
                }
                _ => tokio::time::sleep(Duration::from_millis(rng.random_range(1..300))).await,
            }
        }
        volume.abandon();
        volume = rig.take_over(life + 2).await;
        let found = stamps(&read(&volume, 0, SECTORS).await.unwrap());
        base = matching_prefix(&base, &history, durable, &found)
            .unwrap_or_else(|| panic!("seed {seed} life {life}: no prefix matches"));
    }
    // Whatever the dead owners still had under way has landed by now, and changed nothing.
    tokio::time::sleep(Duration::from_secs(30)).await;
    volume.close().await.unwrap();
    let volume = rig.open().await;
    assert_eq!(stamps(&read(&volume, 0, SECTORS).await.unwrap()), base, "seed {seed}");
}

/// The image after some prefix of at least `durable` operations, the last of them possibly in
/// part, that equals `found`.
fn matching_prefix(base: &Image, history: &[Done], durable: usize, found: &Image) -> Option<Image> {
    let mut image = base.clone();
    history[..durable].iter().for_each(|op| apply(&mut image, *op));
    for next in durable..=history.len() {
        let torn = history.get(next);
        let fits = (0..SECTORS as usize).all(|s| {
            let inside = torn.is_some_and(|op| (op.start..op.start + op.len).contains(&(s as u64)));
            found[s] == image[s] || inside && torn.is_some_and(|op| found[s] == op.stamp)
        });
        if fits {
            return Some(found.clone());
        }
        torn.iter().for_each(|op| apply(&mut image, **op));
    }
    None
}
