//! Caches in memory and on a local disk. Never needed for correctness.
//!
//! Everything here is keyed by a name in an immutable object, so an entry is never stale and may
//! be forgotten at any time. Each cache is bounded in bytes.

pub mod disk;
mod fifo;
mod frames;

pub use fifo::{FifoCache, Lighten};
pub use frames::{FrameCache, FrameId};
