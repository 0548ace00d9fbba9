//! Which part of a file to fill with zeros next. Pure, but for asking the file what it has.
//!
//! The first write to blocks that are only reserved changes metadata, which a durable write has to
//! wait for. Filled with zeros ahead of their use, they are overwritten like any others. A journal
//! is written front to back, round and round, so what lies ahead of the last write is filled: far
//! ahead while the disk is idle, and a little ahead in any case.
//!
//! Invariant: only what was never written is filled.

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::ops::Range;

/// What is filled at once.
pub const GRANULE: u64 = 256 << 10;

/// Filled while the disk is idle: so much ahead of the last write. Not all of a large journal, of
/// which most may never be used.
const FAR: u64 = 256 << 20;

/// Filled even between writes: so much ahead of the last one.
const NEAR: u64 = 8 << 20;

/// Filled by the one who makes a file.
pub const FIRST: u64 = 16 << 20;

/// Writes at least so large gain nothing: filling would double the bytes that the disk writes.
const LARGE: u64 = 128 << 10;

/// What of a file is still only reserved.
#[derive(Debug)]
pub(super) struct Fill {
    size: u64,
    /// One for each granule: true where nothing of it was ever written.
    blank: Vec<bool>,
    /// Where the last write ended.
    position: u64,
    /// The last write was large.
    large: bool,
}

impl Fill {
    /// Asks the file system which parts of `file`, of `size` bytes, it has never written. One that
    /// does not know costs speed only.
    pub(super) fn new(file: &File, size: u64) -> Fill {
        let mut fill = Fill::all_blank(size);
        let mut at = 0;
        while let Ok(data) = lseek(file, at, Whence::SeekData) {
            // Without an answer, all that follows counts as written.
            let end = lseek(file, data, Whence::SeekHole).unwrap_or(size as i64);
            fill.mark(data as u64..(end as u64).min(size));
            at = end;
        }
        match lseek(file, at, Whence::SeekData) {
            // No data behind `at`: the rest is blank.
            Err(Errno::ENXIO) => {}
            _ => fill.mark(at as u64..size),
        }
        fill
    }

    fn all_blank(size: u64) -> Fill {
        let granules = size.div_ceil(GRANULE) as usize;
        Fill { size, blank: vec![true; granules], position: 0, large: false }
    }

    fn mark(&mut self, bytes: Range<u64>) {
        if !bytes.is_empty() {
            let granules = bytes.start / GRANULE..bytes.end.div_ceil(GRANULE);
            self.blank[granules.start as usize..granules.end as usize].fill(false);
        }
    }

    /// These bytes are about to be written: they will not be filled.
    pub(super) fn writing(&mut self, bytes: Range<u64>) {
        self.large = bytes.end - bytes.start >= LARGE;
        self.position = bytes.end;
        self.mark(bytes);
    }

    /// What is worth filling now, which the caller then does; `idle`: nobody waits for the disk.
    pub(super) fn take(&mut self, idle: bool) -> Option<Range<u64>> {
        let ahead = match (idle, self.large) {
            (true, _) => FAR,
            (false, false) => NEAR,
            (false, true) => return None,
        };
        let granule = self.find(ahead)?;
        self.blank[granule as usize] = false;
        Some(granule * GRANULE..((granule + 1) * GRANULE).min(self.size))
    }

    /// Whether an idle disk has something to fill.
    pub(super) fn some_left(&self) -> bool {
        self.find(FAR).is_some()
    }

    fn find(&self, ahead: u64) -> Option<u64> {
        let count = self.blank.len() as u64;
        let first = self.position / GRANULE;
        let mut near = (0..ahead.div_ceil(GRANULE).min(count)).map(|step| (first + step) % count);
        near.find(|granule| self.blank[*granule as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: u64 = GRANULE;

    #[test]
    fn each_blank_granule_is_filled_once_beginning_at_the_last_write() {
        let mut fill = Fill::all_blank(3 * G + 4096);
        fill.writing(G..G + 4096);
        assert_eq!(fill.take(true), Some(2 * G..3 * G));
        assert_eq!(fill.take(false), Some(3 * G..3 * G + 4096));
        assert_eq!(fill.take(true), Some(0..G));
        assert_eq!(fill.take(true), None);
    }

    #[test]
    fn only_what_lies_ahead_is_filled_and_little_of_it_between_writes() {
        let mut fill = Fill::all_blank(4 * FAR);
        let taken = |fill: &mut Fill, idle| std::iter::from_fn(|| fill.take(idle)).count() as u64;
        assert_eq!(taken(&mut fill, false), NEAR / G);
        assert_eq!(taken(&mut fill, true), (FAR - NEAR) / G);
        fill.writing(FAR..FAR + LARGE);
        assert_eq!(taken(&mut fill, false), 0);
        assert_eq!(taken(&mut fill, true), FAR / G - 1);
    }

    #[test]
    fn a_write_across_the_edge_of_granules_spares_both() {
        let mut fill = Fill::all_blank(4 * G);
        fill.writing(2 * G - 4096..2 * G + 4096);
        assert_eq!(fill.blank, [true, false, false, true]);
        fill.writing(4 * G - 4096..4 * G);
        assert_eq!(fill.take(true), Some(0..G), "round at the end");
    }
}
