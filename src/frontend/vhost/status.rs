//! What a device has done and who uses it, for `status`.

use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// State of a device at one moment.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct VhostStatus {
            /// The process of the VMM that is connected.
            pub process: Option<i32>,
            /// Rings that it has given and that are served.
            pub rings: usize,
            /// Why a VMM was sent away last.
            pub refused: Option<String>,
            $($(#[$doc])* pub $name: u64,)*
        }

        /// What all rings have done.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counters {
            /// The present values.
            pub(super) fn snapshot(&self) -> VhostStatus {
                VhostStatus { $($name: self.$name.load(Relaxed),)* ..VhostStatus::default() }
            }
        }
    };
}

counters! {
    /// VMMs that ever connected.
    connections,
    /// Read requests that succeeded.
    reads,
    /// Bytes of them.
    read_bytes,
    /// Write requests that succeeded.
    writes,
    /// Bytes of them.
    written_bytes,
    /// Flush requests that succeeded.
    flushes,
    /// Discard requests that succeeded.
    discards,
    /// Write-zeroes requests that succeeded.
    write_zeroes,
    /// Requests answered with an error.
    errors,
    /// Requests that the device completed at the first poll.
    inline,
    /// Requests that had to wait.
    waited,
    /// Requests that a predecessor had begun.
    resubmitted,
    /// Rings that made no sense and are not served.
    broken_rings,
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Relaxed);
}
