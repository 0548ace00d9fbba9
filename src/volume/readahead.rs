//! Detects a sequential reader and says what to fetch next.
//!
//! What was written at random is scattered: a window's blocks are in many frames, of which each has blocks
//! that the reader comes to later, too. All of them have to stay in the cache until then, or they are
//! fetched several times: so the window of such a reader is smaller, by as much as its frames are more.

use crate::format::chunk::FRAME_SIZE;
use crate::units::{SECTOR_SIZE, Sector, SectorRange};
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Sequential reads in a row after which something is fetched ahead.
const STREAK: u32 = 2;
/// First window, in sectors: 1 MiB.
const WINDOW_MIN: u64 = 2 << 10;
/// What it grows by each time something is fetched: what is far is on its way for long.
const GROWTH: u64 = 4;
/// Largest window, in sectors: 32 MiB.
const WINDOW_MAX: u64 = 64 << 10;
/// The window's part of what the cache has room for: what is ahead, and as much again that was read of late.
const ROOM_PART: u64 = 2;
/// Room for frames that are in use, times their bytes: none leaves in the order in which they were used up.
const STAY: u64 = 2;
/// The part of a window that is used before more is fetched: so the rest is always on its way.
const STEP_PART: u64 = 4;
/// Of a large window no more is used than this, 4 MiB in sectors, and it ends at a multiple of it: what was written
/// in order has a chunk there, which comes with one GET.
const STEP: u64 = 8 << 10;

/// One volume's read-ahead, for all who read it. Only a hint: where several look at it, some reads are
/// left out.
#[derive(Debug)]
pub(super) struct Readers {
    /// Where the last read ended: most random reads see there that they do not go on, and lock nothing.
    end: AtomicU64,
    spread: Mutex<Spread>,
    readahead: Mutex<Readahead>,
}

impl Readers {
    /// Nobody has read.
    pub fn new() -> Readers {
        let (spread, readahead) = (Mutex::default(), Mutex::new(Readahead::new()));
        Readers { end: AtomicU64::new(0), spread, readahead }
    }

    /// `range` is being read. `room` says for how many bytes the cache has room.
    pub fn on_read(&self, range: SectorRange, room: impl FnOnce() -> u64) -> Step {
        let goes_on = self.end.load(Relaxed) == range.start().0;
        self.end.store(range.end().0, Relaxed);
        match self.readahead.try_lock() {
            Ok(mut readahead) if goes_on => {
                let spread = self.spread.try_lock().map_or_else(|_| Spread::default(), |s| *s);
                readahead.on_read(range, || spread.window(room()))
            }
            _ => Step::default(),
        }
    }

    /// What was fetched ahead of a reader, `range`, is in `frames`, of which `new` were not in the cache.
    pub fn on_fetched(&self, range: SectorRange, frames: usize, new: usize) {
        if let Ok(mut spread) = self.spread.try_lock() {
            let [in_use, new] = [frames, new].map(|count| (count * FRAME_SIZE) as u64);
            *spread = Spread { range: range.len().bytes(), in_use, new };
        }
    }
}

/// What was fetched last, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Spread {
    range: u64,
    /// Of the frames it is in.
    in_use: u64,
    /// Of those that were not there yet.
    new: u64,
}

impl Spread {
    /// The window for which there is room in `room` bytes of cache, in bytes.
    fn window(&self, room: u64) -> u64 {
        if self.in_use <= self.range {
            // In order: what is ahead, and as much again that was read of late.
            return room / ROOM_PART;
        }
        let left = room.saturating_sub(self.in_use * STAY);
        (u128::from(left) * u128::from(self.range) / u128::from(self.new.max(self.range))) as u64
    }
}

/// State of a reader.
#[derive(Debug)]
struct Readahead {
    next: Sector,
    streak: u32,
    window: u64,
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
    fn new() -> Readahead {
        Readahead { next: Sector(0), streak: 0, window: WINDOW_MIN, ahead: Sector(0) }
    }

    /// `range` is being read, from where the last read ended.
    fn on_read(&mut self, range: SectorRange, room: impl FnOnce() -> u64) -> Step {
        if range.start() != self.next {
            // There were others in between.
            (self.streak, self.window, self.ahead) = (0, WINDOW_MIN, range.start());
        }
        self.next = range.end();
        self.streak = self.streak.saturating_add(1);
        let step = (self.window / STEP_PART).min(STEP);
        let used = self.ahead.0 <= self.next.0 + self.window - step;
        if self.streak < STREAK || !used {
            return Step { sequential: true, ahead: None };
        }
        let start = self.ahead.max(self.next);
        let most = (room() / SECTOR_SIZE).clamp(WINDOW_MIN, WINDOW_MAX);
        self.window = self.window.min(most);
        let end = self.next.0 + self.window;
        let end = if self.window >= STEP * STEP_PART { end / STEP * STEP } else { end };
        self.ahead = Sector(start.0.max(end));
        self.window = (self.window * GROWTH).min(most);
        if self.ahead == start {
            return Step { sequential: true, ahead: None };
        }
        Step { sequential: true, ahead: Some(SectorRange::between(start, self.ahead)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::SectorCount;

    const ROOM: u64 = 1 << 30;

    #[test]
    fn a_reader_from_the_first_sector_on_is_sequential() {
        let readers = Readers::new();
        let range = |i: u64| SectorRange::new(Sector(i * 256), SectorCount(256)).unwrap();
        let read = |i| readers.on_read(range(i), || ROOM);
        assert_eq!(read(0), Step { sequential: true, ahead: None });
        let window = read(1).ahead.unwrap();
        assert_eq!((window.start(), window.len()), (Sector(512), SectorCount(WINDOW_MIN)));
    }

    #[test]
    fn windows_follow_a_sequential_reader_without_gap_or_overlap() {
        let readers = Readers::new();
        let mut fetched = Sector(0);
        for i in 1..400u64 {
            let range = SectorRange::new(Sector(i * 256), SectorCount(256)).unwrap();
            if let Some(window) = readers.on_read(range, || ROOM).ahead {
                assert!(window.start() == fetched || fetched == Sector(0));
                assert!(window.len().0 <= WINDOW_MAX);
                fetched = window.end();
            }
            assert!(i < 4 || fetched > range.end(), "read {i} is ahead of {fetched}");
        }
        let random = SectorRange::new(Sector(7), SectorCount(8)).unwrap();
        assert_eq!(readers.on_read(random, || ROOM), Step::default());
        let next = |n: u64| SectorRange::new(Sector(15 + n * 8), SectorCount(8)).unwrap();
        assert_eq!(readers.on_read(next(0), || ROOM), Step { sequential: true, ahead: None });
        assert!(readers.on_read(next(1), || ROOM).ahead.is_some());
    }

    /// Once it has grown, all but a step of a window is ahead of a reader at any time.
    #[test]
    fn a_window_fits_its_part_of_the_room() {
        for (room, most) in [(0, WINDOW_MIN), (16 << 20, 16 << 10), (1 << 40, WINDOW_MAX)] {
            let readers = Readers::new();
            let range = |i: u64| SectorRange::new(Sector(i * 256), SectorCount(256)).unwrap();
            let mut fetched = 0;
            let lead = (0..4000).map(|i| {
                let ahead = readers.on_read(range(i), || room).ahead;
                fetched = ahead.map_or(fetched, |ahead| ahead.end().0);
                fetched.saturating_sub(range(i).end().0)
            });
            let lead: Vec<u64> = lead.skip(2000).collect();
            let (least, greatest) = (lead.iter().min().unwrap(), lead.iter().max().unwrap());
            assert!((most - 256..=most).contains(greatest), "{greatest} of {most}");
            assert!(*least + STEP.min(most / 4) + 256 >= most, "{least} of {most}");
        }
    }

    /// What was written in order is in chunks of 4 MiB: each comes with one GET.
    #[test]
    fn a_large_window_ends_where_chunks_do() {
        let readers = Readers::new();
        let range = |i: u64| SectorRange::new(Sector(96 + i * 256), SectorCount(256)).unwrap();
        let steps = (0..4000).filter_map(|i| readers.on_read(range(i), || 1 << 40).ahead);
        let late: Vec<SectorRange> = steps.filter(|step| step.start().0 > 400_000).collect();
        assert!(late.len() > 50);
        assert!(late.iter().all(|step| step.start().0.is_multiple_of(STEP)), "{late:?}");
        assert!(late.iter().all(|step| step.len().0 == STEP), "{late:?}");
    }

    /// Frames that are in use keep their room: the window is what is left.
    #[test]
    fn a_window_of_what_is_scattered_leaves_room_for_what_is_in_use() {
        const MIB: u64 = 1 << 20;
        let readers = Readers::new();
        let range = |i: u64| SectorRange::new(Sector(i * 256), SectorCount(256)).unwrap();
        let mut fetched = 0;
        for i in 0..4000 {
            if let Some(ahead) = readers.on_read(range(i), || 64 * MIB).ahead {
                fetched = ahead.end().0;
                // 24 MiB in use, of which two bytes are new for each that is read.
                let in_use = (24 * MIB as usize) / FRAME_SIZE;
                let new = ahead.len().bytes() as usize * 2 / FRAME_SIZE;
                if i < 2000 {
                    readers.on_fetched(ahead, in_use, new);
                } else {
                    readers.on_fetched(ahead, new / 2, new / 2);
                }
            }
            let lead = fetched.saturating_sub(range(i).end().0) * SECTOR_SIZE;
            // (64 - 2 * 24) / 2, and for what is in order half of the room.
            let most = if i < 2000 { 8 * MIB } else { 32 * MIB };
            let settled = i % 2000 > 500;
            assert!(!settled || (most / 2..=most).contains(&lead), "{lead} at {i}");
        }
    }

    /// What was fetched stays; where there is less room, nothing is fetched until it was read.
    #[test]
    fn a_window_follows_the_room() {
        let readers = Readers::new();
        let range = |i: u64| SectorRange::new(Sector(i * 256), SectorCount(256)).unwrap();
        let mut fetched = 0;
        for i in 0..4000 {
            let room = if i < 2000 { ROOM } else { 8 << 20 };
            if let Some(ahead) = readers.on_read(range(i), || room).ahead {
                assert!(ahead.start().0 >= fetched);
                fetched = ahead.end().0;
                assert!(i < 2000 || fetched <= range(i).end().0 + (8 << 10));
            }
        }
    }
}
