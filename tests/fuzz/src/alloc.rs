//! The allocation guard: no parser may take memory on the word of its input.
//!
//! A global allocator counts the bytes that each thread has allocated and not given back, and the
//! most there ever were. What is bounded is that peak, so a single large request counts as well as
//! many small ones.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes that this thread allocated less those it freed (of whichever thread's).
    static LIVE: Cell<isize> = const { Cell::new(0) };
    /// The most that `LIVE` has been since the guard was set.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(change: isize) {
    LIVE.set(LIVE.get() + change);
    PEAK.set(PEAK.get().max(LIVE.get()));
}

// SAFETY: everything is passed on to the system's allocator unchanged. The counters are plain cells
// without initialiser and destructor, so using them neither allocates nor fails.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// What `work` gives, and the most bytes it had allocated at a time (on this thread).
pub fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let value = work();
    (value, (PEAK.get() - before) as usize)
}

/// How much a parser may allocate: `factor` bytes for each byte of input, and `constant`.
#[derive(Clone, Copy)]
pub struct Bound {
    pub factor: usize,
    pub constant: usize,
}

impl Bound {
    /// What `parse` gives for an input of `len` bytes.
    ///
    /// # Panics
    /// Where it takes more memory than the bound.
    pub fn check<T>(self, len: usize, parse: impl FnOnce() -> T) -> T {
        let (value, peak) = peak(parse);
        let limit = self.factor * len + self.constant;
        assert!(peak <= limit, "{peak} bytes were allocated for {len} of input (bound {limit})");
        value
    }
}
