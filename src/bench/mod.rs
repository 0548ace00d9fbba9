//! Built-in load, for figures of what a volume and its store can do from here.
//!
//! [`device`] puts load on an open device, [`store`] on a bare store; both keep so many requests in
//! flight for so long and return [`Figures`]. Data is noise, so that nothing on its way makes it smaller.

pub mod device;
mod figures;
pub mod store;

pub use figures::{Figures, Histogram};

use std::time::{Duration, Instant};

/// How much at once, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Bytes of a request.
    pub io_size: u64,
    /// Requests in flight.
    pub depth: usize,
    /// When no more are begun.
    pub time: Duration,
}

/// A small random generator (xorshift64*, Vigna 2016): addresses and noise, nothing secret.
#[derive(Clone, Copy, Debug)]
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn noise(&mut self, len: usize) -> Vec<u8> {
        let words = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes());
        words.take(len).collect()
    }
}

/// What one of those who keep requests in flight has done.
struct Worker {
    histogram: Histogram,
    bytes: u64,
}

impl Worker {
    fn new() -> Worker {
        Worker { histogram: Histogram::default(), bytes: 0 }
    }

    fn done(&mut self, begun: Instant, bytes: u64) {
        self.histogram.add(begun.elapsed());
        self.bytes += bytes;
    }
}

fn sum(work: &'static str, workers: Vec<Worker>, took: Duration) -> Figures {
    let mut all = Worker::new();
    for worker in workers {
        all.histogram.join(&worker.histogram);
        all.bytes += worker.bytes;
    }
    Figures::new(work, &all.histogram, all.bytes, took)
}
