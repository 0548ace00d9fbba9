//! Caches in memory. Never needed for correctness.
//!
//! Everything here is keyed by a name in an immutable object, so an entry is never stale and may
//! be forgotten at any time. Each cache is bounded in bytes.

mod fifo;
mod frames;

pub use fifo::FifoCache;
pub use frames::{FrameCache, FrameId};
