//! What a disk must hold: an array of bytes, and what may have been lost of it since the last flush.

use rand::Rng;
use rand::rngs::StdRng;
use std::ops::Range;

/// A sector, the unit that is there or not after a crash.
pub const SECTOR: usize = 512;

/// Bytes that differ everywhere.
pub fn noise(rng: &mut StdRng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rng.fill(&mut bytes[..]);
    bytes
}

pub struct Oracle {
    bytes: Vec<u8>,
    /// What changed sectors held at the last flush and since, oldest first.
    unflushed: Vec<Vec<[u8; SECTOR]>>,
}

impl Oracle {
    pub fn new(len: usize) -> Oracle {
        Oracle { bytes: vec![0; len], unflushed: vec![Vec::new(); len.div_ceil(SECTOR)] }
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
            self.unflushed[sector].push(now);
        }
        change(&mut self.bytes[range]);
    }

    fn sector(&self, sector: usize) -> [u8; SECTOR] {
        self.bytes[sector * SECTOR..(sector + 1) * SECTOR].try_into().unwrap()
    }

    /// All that was done is durable.
    pub fn flushed(&mut self) {
        self.unflushed.iter_mut().for_each(Vec::clear);
    }

    /// That range is durable.
    pub fn flushed_at(&mut self, range: Range<usize>) {
        for sector in range.start.div_ceil(SECTOR)..range.end / SECTOR {
            self.unflushed[sector].clear();
        }
    }

    pub fn grow(&mut self, len: usize) {
        self.bytes.resize(len, 0);
        self.unflushed.resize(len.div_ceil(SECTOR), Vec::new());
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
            let known = self.unflushed[sector].iter().any(|before| before == bytes);
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
