//! Payloads of frames in memory of their own.
//!
//! A frame is copied in and copied out: so one does not keep the whole answer or chunk in memory
//! that it came with, and the memory of one that leaves is that of the next.
//!
//! What was written at random is scattered over frames, one block here and one there. A frame of which
//! few blocks were used when its time is up goes on with those alone, so that a small set of blocks
//! that are read again and again does not need the room of all frames they are in.

use super::fifo::{FifoCache, Lighten};
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
    frames: FifoCache<FrameId, Cached>,
    /// For whole frames and for blocks; a small cache does without.
    slots: Option<[Arc<Slots>; 2]>,
}

/// Capacity from which on frames are in huge pages: a part of one that is not used is nothing then.
const HUGE_FROM: u64 = 64 << 20;
/// What is used of a frame is told by blocks of so many bytes.
const BLOCK: usize = 4096;
/// Blocks of a frame that go on without the others, at most.
const BLOCKS_MAX: u32 = 4;
/// What a block weighs that goes on: its bytes and what it takes to find it.
const BLOCK_WEIGHT: u64 = BLOCK as u64 + 256;

const _: () = assert!(FRAME_SIZE / BLOCK == u16::BITS as usize, "a bit for each block of a frame");

/// A frame, or some of its blocks.
#[derive(Debug)]
struct Cached {
    payload: Payload,
    /// The blocks that were used.
    used: u16,
    blocks: Option<Arc<Slots>>,
}

/// Memory of exactly what is in it: what is longer would not be counted.
#[derive(Debug)]
enum Payload {
    /// All of a frame of [`FRAME_SIZE`], as nearly all are.
    Slot(Slot),
    /// All of a frame of any size.
    Own(Box<[u8]>),
    /// These blocks of a frame of [`FRAME_SIZE`], in order.
    Blocks(u16, Box<[Block]>),
}

/// Memory of a block.
#[derive(Debug)]
enum Block {
    Slot(Slot),
    Own(Box<[u8]>),
}

impl Block {
    fn new(slots: Option<&Arc<Slots>>, bytes: &[u8]) -> Block {
        match slots {
            Some(slots) => {
                let mut slot = slots.take();
                slot.bytes_mut().copy_from_slice(bytes);
                Block::Slot(slot)
            }
            None => Block::Own(bytes.into()),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Block::Slot(slot) => slot.bytes(),
            Block::Own(bytes) => bytes,
        }
    }
}

impl Payload {
    /// All of the frame, if it is there.
    fn whole(&self) -> Option<&[u8]> {
        match self {
            Payload::Slot(slot) => Some(slot.bytes()),
            Payload::Own(bytes) => Some(bytes),
            Payload::Blocks(..) => None,
        }
    }

    /// Copies what the frame has from byte `from` on. `Some(false)`: it ends before; `None`: that is not there.
    fn copy(&self, from: usize, out: &mut [u8]) -> Option<bool> {
        let Payload::Blocks(there, blocks) = self else {
            let bytes = self.whole()?.get(from..from + out.len());
            return Some(bytes.is_some_and(|bytes| {
                out.copy_from_slice(bytes);
                true
            }));
        };
        if from + out.len() > FRAME_SIZE {
            return Some(false);
        }
        let wanted = blocks_of(from, out.len());
        if wanted & !there != 0 {
            return None;
        }
        let mut done = 0;
        while done < out.len() {
            let (index, at) = ((from + done) / BLOCK, (from + done) % BLOCK);
            let len = (BLOCK - at).min(out.len() - done);
            let before = there & ((1_u32 << index) - 1) as u16;
            let block = blocks.get(before.count_ones() as usize)?.bytes();
            out[done..done + len].copy_from_slice(&block[at..at + len]);
            done += len;
        }
        Some(true)
    }
}

/// A bit for each block of a frame that these bytes touch.
fn blocks_of(from: usize, len: usize) -> u16 {
    let bits = |to: usize| (1_u32 << to.min(FRAME_SIZE / BLOCK)) - 1;
    (bits((from + len).div_ceil(BLOCK)) & !bits(from / BLOCK)) as u16
}

impl Lighten for Cached {
    fn lighten(&mut self) -> Option<(u64, Cached)> {
        let whole = self.payload.whole().filter(|whole| whole.len() == FRAME_SIZE)?;
        let count = self.used.count_ones();
        if count == 0 || count > BLOCKS_MAX {
            return None;
        }
        let is_used = |index: &usize| self.used >> index & 1 == 1;
        let block = |index: usize| &whole[index * BLOCK..(index + 1) * BLOCK];
        let blocks = (0..FRAME_SIZE / BLOCK).filter(is_used).map(block);
        let blocks = blocks.map(|bytes| Block::new(self.blocks.as_ref(), bytes)).collect();
        let blocks = Payload::Blocks(self.used, blocks);
        let payload = std::mem::replace(&mut self.payload, blocks);
        let left_over = Cached { payload, used: 0, blocks: None };
        Some((u64::from(count) * BLOCK_WEIGHT, left_over))
    }

    fn succeed(&mut self, before: &Cached) {
        self.used |= before.used;
    }
}

impl FrameCache {
    /// An empty cache of `capacity` bytes.
    pub fn new(capacity: u64) -> FrameCache {
        let slots = (capacity >= HUGE_FROM).then(|| [FRAME_SIZE, BLOCK].map(Slots::new));
        FrameCache { frames: FifoCache::new(capacity), slots }
    }

    /// Copies what the frame has from byte `from` on. `Some(false)`: the frame ends before; `None`: that is
    /// not there. It counts as a use where `counts` says so: the parts of a scan are none.
    pub fn copy(&self, id: &FrameId, counts: bool, from: usize, out: &mut [u8]) -> Option<bool> {
        self.frames.with(id, counts, |frame| {
            frame.used |= blocks_of(from, out.len());
            frame.payload.copy(from, out)
        })
    }

    /// These bytes of a frame are used, which was not there before.
    pub fn used(&self, id: &FrameId, from: usize, len: usize) {
        self.frames.peek(id, |frame| frame.used |= blocks_of(from, len));
    }

    /// A copy of the frame.
    pub fn get(&self, id: &FrameId) -> Option<Bytes> {
        self.frames.with(id, true, |frame| frame.payload.whole().map(Bytes::copy_from_slice))
    }

    /// True where all of the frame is there; is no use of it.
    pub fn contains(&self, id: &FrameId) -> bool {
        self.frames.peek(id, |frame| frame.payload.whole().is_some()) == Some(true)
    }

    /// Puts a copy of `payload` in.
    pub fn insert(&self, id: FrameId, payload: &[u8]) {
        self.frames.insert_made(id, payload.len() as u64, |out| {
            let blocks = self.slots.as_ref().map(|[_, blocks]| blocks.clone());
            let payload = self.memory_with(payload, out.map(|out| out.payload));
            Cached { payload, used: 0, blocks }
        });
    }

    /// `payload` in memory of its own, which may be that of one that was put out.
    fn memory_with(&self, payload: &[u8], out: Option<Payload>) -> Payload {
        let mut slot = match (out, &self.slots) {
            (Some(Payload::Slot(out)), _) if payload.len() == FRAME_SIZE => out,
            (Some(Payload::Own(mut out)), _) if out.len() == payload.len() => {
                out.copy_from_slice(payload);
                return Payload::Own(out);
            }
            (_, Some([frames, _])) if payload.len() == FRAME_SIZE => frames.take(),
            _ => return Payload::Own(payload.into()),
        };
        slot.bytes_mut().copy_from_slice(payload);
        Payload::Slot(slot)
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
                let frame = cache.get(&FrameId { chunk, index: *index });
                frame.is_some_and(|frame| {
                    assert_eq!(frame, vec![*index as u8; len(*index)]);
                    true
                })
            });
            assert!(there.count() as u64 > capacity / FRAME_SIZE as u64 / 2);
        }
    }

    /// What block `block` of frame `index` holds.
    fn pattern(index: u32, block: usize) -> [u8; BLOCK] {
        let mut bytes = [index as u8 ^ 0x5a; BLOCK];
        bytes[..8].copy_from_slice(&[index.to_le_bytes(), (block as u32).to_le_bytes()].concat());
        bytes
    }

    fn frame(index: u32) -> Vec<u8> {
        (0..FRAME_SIZE / BLOCK).flat_map(|block| pattern(index, block)).collect()
    }

    #[test]
    fn blocks_that_are_used_find_room_without_their_frames() {
        let chunk = ChunkId { volume: VolumeId::from_bytes([1; 16]), seq: Seq(1), epoch: Epoch(1) };
        for capacity in [HUGE_FROM / 16, HUGE_FROM] {
            let cache = FrameCache::new(capacity);
            // In frames that are eight times as large as the cache.
            let count = (capacity / FRAME_SIZE as u64 * 8) as u32;
            let block = |index: u32| (index % 16) as usize;
            let mut missed = 0;
            for round in 0..6 {
                missed = 0;
                for index in 0..count {
                    let id = FrameId { chunk, index };
                    let (mut out, from) = ([0; BLOCK], block(index) * BLOCK);
                    if cache.copy(&id, true, from, &mut out).is_none() {
                        missed += 1;
                        cache.insert(id, &frame(index));
                        cache.used(&id, from, BLOCK);
                    } else {
                        assert_eq!(out, pattern(index, block(index)), "round {round}");
                    }
                    assert!(cache.bytes() <= capacity);
                }
            }
            assert!(missed < count / 50, "{missed} of {count} blocks were not there");
            // The others of a frame are not: it is read anew then, and whole again, with what was used.
            let lacks = (0..count).map(|index| FrameId { chunk, index });
            let id = lacks.filter(|id| !cache.contains(id)).last().unwrap();
            let mut out = vec![0; FRAME_SIZE];
            assert_eq!(cache.copy(&id, true, 0, &mut out), None);
            assert_eq!(cache.get(&id), None);
            cache.insert(id, &frame(id.index));
            assert_eq!(cache.copy(&id, false, 0, &mut out), Some(true));
            assert_eq!(out, frame(id.index));
        }
    }

    #[test]
    fn blocks_are_copied_from_any_byte_to_any_other() {
        let whole = frame(7);
        let mut cached =
            Cached { payload: Payload::Own(whole.clone().into()), used: 0, blocks: None };
        cached.used = blocks_of(2 * BLOCK + 512, 2 * BLOCK) | blocks_of(15 * BLOCK, 512);
        assert_eq!(cached.used, 0b1000_0000_0001_1100);
        let (weight, left_over) = cached.lighten().unwrap();
        assert_eq!(weight, 4 * BLOCK_WEIGHT);
        assert_eq!(left_over.payload.whole(), Some(&*whole));
        assert!(cached.lighten().is_none(), "once is enough");
        for from in (0..FRAME_SIZE).step_by(512) {
            for len in [512, BLOCK, 3 * BLOCK, 5 * BLOCK] {
                let mut out = vec![0; len];
                let there = cached.used & blocks_of(from, len) == blocks_of(from, len);
                match cached.payload.copy(from, &mut out) {
                    Some(true) => assert_eq!(out, whole[from..from + len]),
                    Some(false) => assert!(from + len > FRAME_SIZE),
                    None => assert!(!there),
                }
                assert!(there || cached.payload.copy(from, &mut out) != Some(true));
            }
        }
        for used in [0, blocks_of(0, 5 * BLOCK)] {
            let payload = Payload::Own(whole.clone().into());
            assert!(Cached { payload, used, blocks: None }.lighten().is_none());
        }
    }
}
