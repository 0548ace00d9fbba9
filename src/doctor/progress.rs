//! How far an examination is.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Written by the examination, read by whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    doing: Mutex<String>,
    done: AtomicU64,
    of: AtomicU64,
}

impl Progress {
    /// Begins with something of which there are `of` (zero: nobody knows).
    pub(super) fn begin(&self, doing: impl fmt::Display, of: u64) {
        if let Ok(mut text) = self.doing.lock() {
            *text = doing.to_string();
        }
        self.done.store(0, Relaxed);
        self.of.store(of, Relaxed);
    }

    /// One more is done.
    pub(super) fn step(&self) {
        self.done.fetch_add(1, Relaxed);
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Ok(doing) = self.doing.lock() {
            f.write_str(&doing)?;
        }
        match self.of.load(Relaxed) {
            0 => Ok(()),
            of => write!(f, ", {} of {of}", self.done.load(Relaxed)),
        }
    }
}
