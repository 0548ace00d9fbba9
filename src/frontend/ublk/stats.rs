//! Counters of a device. Written by its queue threads, read by anyone.

use super::request::Request;
use std::iter::Sum;
use std::ops::Add;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a device has done since it was started. A snapshot: the counters are read one by
        /// one while requests run.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The counters of one queue; only its thread writes them.
        #[derive(Debug, Default)]
        #[repr(align(64))]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counters {
            /// The present values.
            pub(super) fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.load(Relaxed),)* }
            }
        }

        impl Add for Stats {
            type Output = Stats;

            fn add(self, other: Stats) -> Stats {
                Stats { $($name: self.$name + other.$name,)* }
            }
        }
    };
}

counters! {
    /// Read requests.
    reads,
    /// Bytes of them.
    read_bytes,
    /// Write requests.
    writes,
    /// Bytes of them.
    written_bytes,
    /// Writes and write-zeroes that had to be durable before completion.
    fua,
    /// Flush requests.
    flushes,
    /// Discard requests.
    discards,
    /// Write-zeroes requests.
    write_zeroes,
    /// Requests that the device completed at the first poll.
    inline,
    /// Requests that had to wait and were completed by another thread's wake.
    waited,
    /// Requests answered with an error.
    errors,
}

impl Sum for Stats {
    fn sum<I: Iterator<Item = Stats>>(stats: I) -> Stats {
        stats.fold(Stats::default(), Add::add)
    }
}

/// Adds to a counter that this thread alone writes.
pub(super) fn add(counter: &AtomicU64, value: u64) {
    counter.store(counter.load(Relaxed) + value, Relaxed);
}

impl Counters {
    /// Counts a request that was delivered.
    pub(super) fn count(&self, request: &Request) {
        match request {
            Request::Read { len, .. } => {
                add(&self.reads, 1);
                add(&self.read_bytes, *len as u64);
            }
            Request::Write { len, flags, .. } => {
                add(&self.writes, 1);
                add(&self.written_bytes, *len as u64);
                add(&self.fua, flags.fua.into());
            }
            Request::Flush => add(&self.flushes, 1),
            Request::Discard(_) => add(&self.discards, 1),
            Request::WriteZeroes(_, flags) => {
                add(&self.write_zeroes, 1);
                add(&self.fua, flags.fua.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::WriteFlags;
    use crate::units::Sector;

    #[test]
    fn queues_add_up() {
        let queues = [Counters::default(), Counters::default()];
        let flags = WriteFlags { fua: true };
        for queue in &queues {
            queue.count(&Request::Write { start: Sector(0), len: 512, flags });
        }
        queues[1].count(&Request::Flush);
        let stats: Stats = queues.iter().map(Counters::snapshot).sum();
        let expected = Stats { writes: 2, written_bytes: 1024, fua: 2, flushes: 1, ..stats };
        assert_eq!(stats, expected);
    }
}
