//! A map that does not fit its memory: leaves are forgotten and loaded again, under writes, trims
//! over thousands of leaves, checkpoints and new owners.

use crate::rig::{Rig, pattern, range, read, write};
use crate::space::Keeper;
use objblk::device::BlockDevice;
use objblk::format::page::LEAF_SECTORS;
use objblk::volume::Volume;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rangemap::RangeMap;
use std::sync::Arc;

/// Leaves with something in them: more than fits the smallest budget a volume may have (8 MiB).
const LEAVES: u64 = 60_000;
const SIZE: u64 = LEAVES * LEAF_SECTORS;
/// A leaf's first write, from the leaf's start.
const MARK: u64 = 100;

struct Disk {
    rig: Rig,
    volume: Volume,
    keeper: Keeper,
    /// The stamp of what was written.
    model: RangeMap<u64, u64>,
}

impl Disk {
    async fn write(&mut self, start: u64, sectors: u64, stamp: u64) {
        write(&self.volume, start, &pattern(start, sectors, stamp)).await.unwrap();
        self.model.insert(start..start + sectors, stamp);
    }

    async fn check(&self, start: u64, sectors: u64) {
        let found = read(&self.volume, start, sectors).await.unwrap();
        let mut expected = vec![0; sectors as usize * 512];
        for (run, stamp) in self.model.overlapping(start..start + sectors) {
            let (from, to) = (run.start.max(start), run.end.min(start + sectors));
            let data = pattern(from, to - from, *stamp);
            expected[(from - start) as usize * 512..][..data.len()].copy_from_slice(&data);
        }
        assert!(found == expected, "sectors {start}+{sectors}");
    }

    /// Every step in some leaf near its mark, near its end, or over many leaves.
    async fn step(&mut self, rng: &mut StdRng, stamp: u64) {
        let leaf = rng.random_range(0..LEAVES);
        let len = rng.random_range(1..16);
        let at = match rng.random_range(0..4) {
            0 => (leaf + 1) * LEAF_SECTORS - rng.random_range(1..12),
            _ => leaf * LEAF_SECTORS + MARK - 4 + rng.random_range(0..8),
        };
        let at = at.min(SIZE - len);
        match rng.random_range(0..100) {
            0..25 => self.write(at, len, stamp).await,
            25..27 => {
                let len = (rng.random_range(1..200) * LEAF_SECTORS + len).min(SIZE - at);
                self.volume.discard(range(at, len)).await.unwrap();
                self.model.remove(at..at + len);
            }
            27..28 => tokio::time::sleep(self.rig.options.checkpoint_after).await,
            28..29 => {
                self.volume.close().await.unwrap();
                self.volume = self.rig.open().await;
            }
            _ => self.check(at, len).await,
        }
    }
}

async fn run(seed: u64) {
    let mut rig = Rig::any(seed, SIZE * 512).await;
    (rig.options.checkpoint_extents, rig.options.checkpoint_slots) = (50_000, 10_000);
    rig.options.map_bytes = 0;
    let keeper = Keeper::new(rig.store.clone());
    rig.store = Arc::new(keeper.clone());
    let volume = rig.open().await;
    let mut disk = Disk { rig, volume, keeper, model: RangeMap::new() };
    for leaf in 0..LEAVES {
        disk.write(leaf * LEAF_SECTORS + MARK, 1, 1).await;
    }
    disk.volume.close().await.unwrap();
    disk.volume = disk.rig.open().await;
    let mut rng = StdRng::seed_from_u64(seed);
    for stamp in 2..500 {
        disk.step(&mut rng, stamp).await;
    }
    // The same leaves, twice in one order: the least recently used is what is needed next.
    for leaf in (0..LEAVES).chain(0..LEAVES) {
        disk.check(leaf * LEAF_SECTORS + MARK, 1).await;
    }
    let (items, again) = disk.keeper.item_reads();
    eprintln!("{items} items of the map were read, {again} times one that had been forgotten");
    assert!(again > LEAVES / 2, "this map fits its memory");
    disk.volume.close().await.unwrap();
}

#[test]
fn a_map_larger_than_its_memory() {
    let seed = std::env::var("OBJBLK_SEED").map_or(0, |seed| seed.parse().unwrap());
    eprintln!("replay: OBJBLK_SEED={seed} cargo test --test model a_map_larger");
    crate::block_on(run(seed));
}
