//! Payloads of frames in memory of their own.
//!
//! A frame is copied in and copied out: so one does not keep the whole answer or chunk in memory
//! that it came with, and the memory of one that leaves is that of the next.

use super::fifo::FifoCache;
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

/// Payloads of frames, up to so many bytes in all.
#[derive(Debug)]
pub struct FrameCache(FifoCache<FrameId, Vec<u8>>);

impl FrameCache {
    /// An empty cache of `capacity` bytes.
    pub fn new(capacity: u64) -> FrameCache {
        FrameCache(FifoCache::new(capacity))
    }

    /// What `look` says of the frame, which is locked meanwhile. It counts as a use where `counts`
    /// says so: the parts of a scan are none.
    pub fn with<R>(&self, id: &FrameId, counts: bool, look: impl FnOnce(&[u8]) -> R) -> Option<R> {
        self.0.with(id, counts, |frame| look(frame))
    }

    /// A copy of the frame.
    pub fn get(&self, id: &FrameId) -> Option<Bytes> {
        self.0.with(id, true, |frame| Bytes::copy_from_slice(frame))
    }

    /// True where the frame is there; is no use of it.
    pub fn contains(&self, id: &FrameId) -> bool {
        self.0.contains(id)
    }

    /// Puts a copy of `payload` in.
    pub fn insert(&self, id: FrameId, payload: &[u8]) {
        self.0.insert_made(id, payload.len() as u64, |out| {
            // Weight is length: memory that is longer than what is in it would not be counted.
            let mut frame = out.filter(|out| out.capacity() == payload.len()).unwrap_or_default();
            frame.clear();
            frame.reserve_exact(payload.len());
            frame.extend_from_slice(payload);
            frame
        });
    }

    /// Total bytes of the frames.
    pub fn bytes(&self) -> u64 {
        self.0.weight()
    }

    /// Counts a frame that was not there.
    pub fn count_miss(&self) {
        self.0.count_miss();
    }

    /// Lookups that found their frame, and misses that were counted.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        self.0.hits_and_misses()
    }
}
