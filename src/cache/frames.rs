//! Payloads of frames in memory of their own.
//!
//! A frame is copied in and copied out: so one does not keep the whole answer or chunk in memory
//! that it came with, and the memory of one that leaves is that of the next.

use super::fifo::FifoCache;
use crate::direct::{Slot, Slots};
use crate::format::chunk::FRAME_SIZE;
use crate::format::keys::ChunkId;
use bytes::Bytes;
use std::sync::Arc;

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
pub struct FrameCache {
    frames: FifoCache<FrameId, Payload>,
    /// For whole frames; a small cache does without.
    slots: Option<Arc<Slots>>,
}

/// Capacity from which on frames are in huge pages: a part of one that is not used is nothing then.
const HUGE_FROM: u64 = 64 << 20;

/// Memory of exactly one payload: what is longer than what is in it would not be counted.
#[derive(Debug)]
enum Payload {
    /// Of [`FRAME_SIZE`], as nearly all are.
    Slot(Slot),
    /// Of any size.
    Own(Box<[u8]>),
}

impl Payload {
    fn bytes(&self) -> &[u8] {
        match self {
            Payload::Slot(slot) => slot.bytes(),
            Payload::Own(bytes) => bytes,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Payload::Slot(slot) => slot.bytes_mut(),
            Payload::Own(bytes) => bytes,
        }
    }
}

impl FrameCache {
    /// An empty cache of `capacity` bytes.
    pub fn new(capacity: u64) -> FrameCache {
        let slots = (capacity >= HUGE_FROM).then(|| Slots::new(FRAME_SIZE));
        FrameCache { frames: FifoCache::new(capacity), slots }
    }

    /// What `look` says of the frame, which is locked meanwhile. It counts as a use where `counts`
    /// says so: the parts of a scan are none.
    pub fn with<R>(&self, id: &FrameId, counts: bool, look: impl FnOnce(&[u8]) -> R) -> Option<R> {
        self.frames.with(id, counts, |frame| look(frame.bytes()))
    }

    /// A copy of the frame.
    pub fn get(&self, id: &FrameId) -> Option<Bytes> {
        self.frames.with(id, true, |frame| Bytes::copy_from_slice(frame.bytes()))
    }

    /// True where the frame is there; is no use of it.
    pub fn contains(&self, id: &FrameId) -> bool {
        self.frames.contains(id)
    }

    /// Puts a copy of `payload` in.
    pub fn insert(&self, id: FrameId, payload: &[u8]) {
        self.frames.insert_made(id, payload.len() as u64, |out| {
            let mut frame = match (out, &self.slots) {
                (Some(out), _) if out.bytes().len() == payload.len() => out,
                (_, Some(slots)) if payload.len() == FRAME_SIZE => Payload::Slot(slots.take()),
                _ => return Payload::Own(payload.into()),
            };
            frame.bytes_mut().copy_from_slice(payload);
            frame
        });
    }

    /// Total bytes of the frames.
    pub fn bytes(&self) -> u64 {
        self.frames.weight()
    }

    /// Bytes of new frames that there is room for.
    pub fn room(&self) -> u64 {
        self.frames.room()
    }

    /// Counts a frame that was not there.
    pub fn count_miss(&self) {
        self.frames.count_miss();
    }

    /// Lookups that found their frame, and misses that were counted.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        self.frames.hits_and_misses()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::VolumeId;
    use crate::units::{Epoch, Seq};

    #[test]
    fn frames_of_all_sizes_are_what_was_put_in() {
        let chunk = ChunkId { volume: VolumeId::from_bytes([1; 16]), seq: Seq(1), epoch: Epoch(1) };
        for capacity in [HUGE_FROM / 16, HUGE_FROM] {
            let cache = FrameCache::new(capacity);
            let len = |index: u32| {
                if index.is_multiple_of(3) { 512 * (1 + index as usize % 90) } else { FRAME_SIZE }
            };
            for index in 0..4000 {
                cache.insert(FrameId { chunk, index }, &vec![index as u8; len(index)]);
                assert!(cache.bytes() <= capacity);
            }
            let there = (0..4000).filter(|index| {
                let id = FrameId { chunk, index: *index };
                let whole = |frame: &[u8]| frame == vec![*index as u8; len(*index)];
                cache.with(&id, true, whole).inspect(|whole| assert!(whole)).is_some()
            });
            assert!(there.count() as u64 > capacity / FRAME_SIZE as u64 / 2);
        }
    }
}
