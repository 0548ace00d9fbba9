//! What a disk must hold: an array of bytes, and what may have been lost of it since the last flush.

use rand::Rng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::ops::Range;

/// A sector, the unit that is there or not after a crash.
pub const SECTOR: usize = 512;

/// Bytes that differ everywhere.
pub fn noise(rng: &mut StdRng, len: usize) -> Vec<u8> {
    let first: u64 = rng.random();
    let mut bytes = vec![0; len];
    for (word, at) in bytes.chunks_mut(8).zip(first >> 1..) {
        let value = at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        word.copy_from_slice(&value[..word.len()]);
    }
    bytes
}

pub struct Oracle {
    bytes: Vec<u8>,
    /// What changed sectors held at the last flush and since, oldest first.
    unflushed: BTreeMap<usize, Vec<[u8; SECTOR]>>,
}

impl Oracle {
    pub fn new(len: usize) -> Oracle {
        Oracle { bytes: vec![0; len], unflushed: BTreeMap::new() }
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    pub fn write(&mut self, at: usize, data: &[u8]) {
        self.change(at..at + data.len(), |bytes| bytes.copy_from_slice(data));
    }

    pub fn clear(&mut self, range: Range<usize>) {
        self.change(range, |bytes| bytes.fill(0));
    }

    fn change(&mut self, range: Range<usize>, change: impl FnOnce(&mut [u8])) {
        for sector in range.start / SECTOR..range.end.div_ceil(SECTOR) {
            let now = self.sector(sector);
            self.unflushed.entry(sector).or_default().push(now);
        }
        change(&mut self.bytes[range]);
    }

    fn sector(&self, sector: usize) -> [u8; SECTOR] {
        self.bytes[sector * SECTOR..(sector + 1) * SECTOR].try_into().unwrap()
    }

    /// All that was done is durable.
    pub fn flushed(&mut self) {
        self.unflushed.clear();
    }

    /// That range is durable.
    pub fn flushed_at(&mut self, range: Range<usize>) {
        for sector in range.start.div_ceil(SECTOR)..range.end / SECTOR {
            self.unflushed.remove(&sector);
        }
    }

    pub fn grow(&mut self, len: usize) {
        self.bytes.resize(len, 0);
    }

    /// Takes over what is there after a crash. Each sector must hold what it held last, or something
    /// since the last flush.
    #[track_caller]
    pub fn crashed(&mut self, found: &[u8]) -> usize {
        assert_eq!(found.len(), self.bytes.len());
        let mut lost = 0;
        for (sector, bytes) in found.chunks(SECTOR).enumerate() {
            if bytes == self.sector(sector) {
                continue;
            }
            let before = self.unflushed.get(&sector).into_iter().flatten();
            let known = before.into_iter().any(|before| before == bytes);
            assert!(known, "sector {sector} holds what it never held since the last flush");
            lost += 1;
        }
        self.bytes.copy_from_slice(found);
        self.flushed();
        lost
    }
}

#[test]
fn a_sector_that_goes_back_behind_a_flush_is_noticed() {
    let mut oracle = Oracle::new(2 * SECTOR);
    oracle.write(0, &[1; SECTOR]);
    oracle.flushed();
    oracle.write(0, &[2; SECTOR]);
    let image = |first: u8| [[first; SECTOR], [0; SECTOR]].concat();
    assert_eq!(oracle.crashed(&image(1)), 1, "not flushed, so it may be lost");
    oracle.write(0, &[3; SECTOR]);
    let back = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| oracle.crashed(&image(0))));
    assert!(back.is_err());
}
