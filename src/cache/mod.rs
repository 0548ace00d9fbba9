//! Caches in memory and on a local disk. Never needed for correctness.
//!
//! Everything here is keyed by a name in an immutable object, so an entry is never stale and may
//! be forgotten at any time. Each cache is bounded in bytes.

pub mod disk;
mod weighted;

pub use weighted::WeightedCache;

use crate::format::keys::ChunkId;
use bytes::Bytes;

/// One frame of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameId {
    /// The chunk.
    pub chunk: ChunkId,
    /// The frame's index in it.
    pub index: u32,
}

/// Payloads of frames.
pub type FrameCache = WeightedCache<FrameId, Bytes>;
