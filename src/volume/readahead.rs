//! Detects a sequential reader and says what to fetch next.

use crate::units::{SECTOR_SIZE, Sector, SectorRange};
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Sequential reads in a row after which something is fetched ahead.
const STREAK: u32 = 2;
/// First window, in sectors: 1 MiB. It doubles with every window that was used.
const WINDOW_MIN: u64 = 2 << 10;
/// Largest window, in sectors: 32 MiB.
const WINDOW_MAX: u64 = 64 << 10;
/// The window's part of the cache, of which it may use a quarter before it is read.
const CACHE_PART: u64 = 8;

/// One volume's read-ahead, for all who read it. Only a hint: where several look at it, some reads are
/// left out.
#[derive(Debug)]
pub(super) struct Readers {
    /// Where the last read ended: most random reads see there that they do not go on, and lock nothing.
    end: AtomicU64,
    readahead: Mutex<Readahead>,
}

impl Readers {
    /// For a cache of so many bytes.
    pub fn new(cache_bytes: u64) -> Readers {
        Readers { end: AtomicU64::new(0), readahead: Mutex::new(Readahead::new(cache_bytes)) }
    }

    /// `range` is being read.
    pub fn on_read(&self, range: SectorRange) -> Step {
        let goes_on = self.end.load(Relaxed) == range.start().0;
        self.end.store(range.end().0, Relaxed);
        match self.readahead.try_lock() {
            Ok(mut readahead) if goes_on => readahead.on_read(range),
            _ => Step::default(),
        }
    }
}

/// State of a reader.
#[derive(Debug)]
struct Readahead {
    next: Sector,
    streak: u32,
    window: u64,
    max: u64,
    /// Everything before it was asked for.
    ahead: Sector,
}

/// What a read means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// It goes on where the last one ended.
    pub sequential: bool,
    /// What to fetch behind it.
    pub ahead: Option<SectorRange>,
}

impl Readahead {
    fn new(cache_bytes: u64) -> Readahead {
        let max = (cache_bytes / CACHE_PART / SECTOR_SIZE).clamp(WINDOW_MIN, WINDOW_MAX);
        Readahead { next: Sector(0), streak: 0, window: WINDOW_MIN, max, ahead: Sector(0) }
    }

    /// `range` is being read, from where the last read ended.
    fn on_read(&mut self, range: SectorRange) -> Step {
        if range.start() != self.next {
            // There were others in between.
            (self.streak, self.window, self.ahead) = (0, WINDOW_MIN, range.start());
        }
        self.next = range.end();
        self.streak = self.streak.saturating_add(1);
        let used = self.ahead.0 <= self.next.0 + self.window / 2;
        if self.streak < STREAK || !used {
            return Step { sequential: true, ahead: None };
        }
        let start = self.ahead.max(self.next);
        self.ahead = Sector(self.next.0 + self.window);
        self.window = (self.window * 2).min(self.max);
        Step { sequential: true, ahead: Some(SectorRange::between(start, self.ahead)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::SectorCount;

    #[test]
    fn a_reader_from_the_first_sector_on_is_sequential() {
        let readahead = Readers::new(1 << 30);
        let range = |i: u64| SectorRange::new(Sector(i * 256), SectorCount(256)).unwrap();
        assert_eq!(readahead.on_read(range(0)), Step { sequential: true, ahead: None });
        let window = readahead.on_read(range(1)).ahead.unwrap();
        assert_eq!((window.start(), window.len()), (Sector(512), SectorCount(WINDOW_MIN)));
    }

    #[test]
    fn windows_follow_a_sequential_reader_without_gap_or_overlap() {
        let readahead = Readers::new(1 << 30);
        let mut fetched = Sector(0);
        for i in 1..400u64 {
            let range = SectorRange::new(Sector(i * 256), SectorCount(256)).unwrap();
            if let Some(window) = readahead.on_read(range).ahead {
                assert!(window.start() == fetched || fetched == Sector(0));
                assert!(window.len().0 <= WINDOW_MAX);
                fetched = window.end();
            }
            assert!(i < 4 || fetched > range.end(), "read {i} is ahead of {fetched}");
        }
        let random = SectorRange::new(Sector(7), SectorCount(8)).unwrap();
        assert_eq!(readahead.on_read(random), Step::default());
        let next = |n: u64| SectorRange::new(Sector(15 + n * 8), SectorCount(8)).unwrap();
        assert_eq!(readahead.on_read(next(0)), Step { sequential: true, ahead: None });
        assert!(readahead.on_read(next(1)).ahead.is_some());
    }

    #[test]
    fn a_window_fits_its_part_of_the_cache() {
        for (cache, most) in [(0, WINDOW_MIN), (64 << 20, 16 << 10), (1 << 40, WINDOW_MAX)] {
            let readahead = Readers::new(cache);
            let range = |i: u64| SectorRange::new(Sector(i * 256), SectorCount(256)).unwrap();
            let lead = (0..4000).filter_map(|i| {
                let window = readahead.on_read(range(i)).ahead?;
                Some(window.end().0 - range(i).end().0)
            });
            assert_eq!(lead.max(), Some(most));
        }
    }
}
