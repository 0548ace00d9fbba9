//! What the index of a disk cache holds. Pure.
//!
//! A head of 64 bytes in a block of its own, then one set after the other: 64 entries of 64 bytes,
//! entry `w` of set `s` being that of slot `64 s + w` of the file of frames. Little-endian:
//!
//! ```text
//! head                                entry
//!  0  8 magic                          0 16 volume
//!  8  2 version                       16  8 epoch
//! 10  2 zero                          24  8 slot of the log
//! 12  4 bytes of a slot               32  8 claim of the epoch
//! 16  8 sets                          40  4 frame in the chunk
//! 24  4 entries of a set              44  4 bytes of payload
//! 28 32 zero                          48  4 crc32c of the payload
//! 60  4 crc32c of all before          52  1 uses
//!                                     53  1 kind: 0 plain, 1 sealed
//!                                     54  6 zero
//!                                     60  4 crc32c of all before
//! ```
//!
//! An entry of zeros is none. A frame may be in the set that its key hashes to only.
//!
//! The payload of an encrypted volume is sealed ([`crate::cipher`]): its entry has the tag in place of the volume, and
//! the checksum is that of the sealed bytes.

use crate::cache::FrameId;
use crate::cipher::{LocalKey, Tag};
use crate::format::VolumeId;
use crate::format::chunk::FRAME_SIZE;
use crate::format::codec::{FormatResult, Reader, Writer, check_trailing_crc};
use crate::format::keys::ChunkId;
use crate::units::{Epoch, Seq};
use md5::{Digest, Md5};

/// Begins the head: whatever begins otherwise is no cache.
pub const MAGIC: &[u8; 8] = b"objblkDC";
/// Bytes of the head and of an entry.
pub const ENTRY_LEN: usize = 64;
/// Entries of a set.
pub const WAYS: usize = 64;
/// Bytes of a set, and of the block that the head is in.
pub const SET_LEN: usize = ENTRY_LEN * WAYS;
/// More uses than these are not counted.
pub const USES_MAX: u8 = 3;

const VERSION: u16 = 1;
/// Sets of a cache of 64 PiB: what is more was not written by a cache.
const SETS_MAX: u64 = 1 << 34;

/// Which claim of an epoch a chunk was written under. A copy of a pool, or one that was put back as it
/// once was, has owners of its own from there on: their epochs have the same numbers, and their
/// chunks the same names, as those of the original.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Claim(pub u64);

impl Claim {
    /// That of the owner with this nonce.
    pub fn of_nonce(nonce: &str) -> Claim {
        let mut first = [0; 8];
        first.iter_mut().zip(Md5::digest(nonce)).for_each(|(to, from)| *to = from);
        Claim(u64::from_le_bytes(first))
    }
}

/// What a frame is found by: never used for other bytes, on any store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameKey {
    /// The frame.
    pub frame: FrameId,
    /// The claim of the epoch of its chunk.
    pub claim: Claim,
}

impl FrameKey {
    /// The set that it belongs to, of so many.
    pub fn set(&self, sets: u64) -> u64 {
        let FrameId { chunk, index } = self.frame;
        let volume = u128::from_le_bytes(chunk.volume.bytes());
        let words = [
            volume as u64,
            (volume >> 64) as u64,
            chunk.epoch.0,
            chunk.seq.0,
            self.claim.0,
            u64::from(index),
        ];
        let hash = words.into_iter().fold(0, |hash, word| mix(hash ^ word));
        // Below `sets`, as evenly as the hash is.
        ((u128::from(hash) * u128::from(sets)) >> 64) as u64
    }

    /// As the entry of a sealed payload tells it: of whatever volume.
    fn veiled(&self) -> FrameKey {
        let chunk = ChunkId { volume: VolumeId::from_bytes([0; 16]), ..self.frame.chunk };
        FrameKey { frame: FrameId { chunk, ..self.frame }, ..*self }
    }

    /// What a payload is sealed for: this key, and the slot by its number.
    fn place(&self, slot: u64) -> Vec<u8> {
        let ChunkId { volume, epoch, seq } = self.frame.chunk;
        let mut w = Writer::with_capacity(ENTRY_LEN);
        w.put(&volume.bytes()).u64(epoch.0).u64(seq.0).u64(self.claim.0);
        w.u32(self.frame.index).u64(slot);
        w.finish()
    }
}

/// The finalizer of splitmix64.
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// How large a cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Sets of [`WAYS`] slots.
    pub sets: u64,
}

impl Geometry {
    /// The largest that takes no more than `bytes`, index included; `None` where not even one set
    /// fits, or too many would.
    pub fn within(bytes: u64) -> Option<Geometry> {
        let set = (WAYS * FRAME_SIZE + SET_LEN) as u64;
        let sets = bytes.checked_sub(SET_LEN as u64)? / set;
        (1..=SETS_MAX).contains(&sets).then_some(Geometry { sets })
    }

    /// Bytes of the file of frames.
    pub fn frames_len(self) -> u64 {
        self.sets * (WAYS * FRAME_SIZE) as u64
    }

    /// Bytes of the index.
    pub fn index_len(self) -> u64 {
        (self.sets + 1) * SET_LEN as u64
    }

    /// The head of its index.
    pub fn encode(self) -> Vec<u8> {
        let mut w = Writer::with_capacity(ENTRY_LEN);
        w.put(MAGIC).u16(VERSION).u16(0).u32(FRAME_SIZE as u32);
        w.u64(self.sets).u32(WAYS as u32).zeros(32).crc();
        w.finish()
    }

    /// Reads the head of an index.
    ///
    /// # Errors
    /// It is none, or damaged, or of another version.
    pub fn parse(bytes: &[u8]) -> FormatResult<Geometry> {
        let object = "cache index";
        let mut all = Reader::new(object, bytes);
        let head = all.take("head", ENTRY_LEN)?;
        let mut r = Reader::new(object, head);
        r.magic(MAGIC)?;
        r.version(VERSION)?;
        let mut r = Reader::new(object, check_trailing_crc(object, head)?);
        r.take("magic", 10)?;
        r.reserved("reserved", 2)?;
        let slot = r.u32("slot size")?;
        let sets = r.u64("sets")?;
        let ways = r.u32("entries of a set")?;
        r.reserved("reserved", 32)?;
        if slot != FRAME_SIZE as u32 || ways != WAYS as u32 {
            return Err(r.bad("slots", format!("{ways} of {slot} bytes")));
        }
        if !(1..=SETS_MAX).contains(&sets) {
            return Err(r.bad("sets", sets));
        }
        Ok(Geometry { sets })
    }
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whose payload; of a sealed one the volume is not told, and zero.
    pub key: FrameKey,
    /// Where it is sealed.
    pub tag: Option<Tag>,
    /// Its bytes: 1 to [`FRAME_SIZE`].
    pub len: u32,
    /// Its crc32c.
    pub crc: u32,
    /// How often it was found lately, up to [`USES_MAX`].
    pub uses: u8,
}

impl Entry {
    /// The entry of a payload that nobody has looked for yet.
    pub fn new(key: FrameKey, payload: &[u8]) -> Entry {
        let (len, crc) = (payload.len() as u32, crc32c::crc32c(payload));
        Entry { key, tag: None, len, crc, uses: 0 }
    }

    /// As [`Entry::new`], of a payload that is sealed now, for this slot.
    pub fn seal(key: FrameKey, payload: &mut [u8], (by, slot): (&LocalKey, u64)) -> Entry {
        let tag = Some(by.seal_frame(&key.place(slot), payload));
        Entry { tag, ..Entry::new(key.veiled(), payload) }
    }

    /// Whether it is the entry of the payload of `key`, sealed or not.
    pub fn is_of(&self, key: &FrameKey, sealed: bool) -> bool {
        self.tag.is_some() == sealed && self.key == if sealed { key.veiled() } else { *key }
    }

    /// Opens the payload of `key` that was found in this slot. False: it was not put there by who has the key.
    pub fn open(
        &self,
        (key, slot): (&FrameKey, u64),
        payload: &mut [u8],
        by: Option<&LocalKey>,
    ) -> bool {
        match (&self.tag, by) {
            (None, None) => true,
            (Some(tag), Some(by)) => by.open_frame(&key.place(slot), payload, tag),
            _ => false,
        }
    }

    /// Whether both are of one payload, however often it was used.
    pub fn is_same(&self, other: &Entry) -> bool {
        Entry { uses: 0, ..*self } == Entry { uses: 0, ..*other }
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; ENTRY_LEN] {
        let ChunkId { volume, epoch, seq } = self.key.frame.chunk;
        let mut w = Writer::with_capacity(ENTRY_LEN);
        w.put(&self.tag.unwrap_or_else(|| volume.bytes()));
        w.u64(epoch.0).u64(seq.0).u64(self.key.claim.0);
        w.u32(self.key.frame.index).u32(self.len).u32(self.crc).u8(self.uses);
        w.u8(u8::from(self.tag.is_some())).zeros(6).crc();
        let mut bytes = [0; ENTRY_LEN];
        bytes.copy_from_slice(&w.finish());
        bytes
    }

    /// Reads an entry; `None` where there is none.
    ///
    /// # Errors
    /// It is damaged.
    pub fn parse(bytes: &[u8]) -> FormatResult<Option<Entry>> {
        let object = "cache entry";
        let bytes = Reader::new(object, bytes).take("entry", ENTRY_LEN)?;
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let mut r = Reader::new(object, check_trailing_crc(object, bytes)?);
        let whose = r.bytes16("volume")?;
        let (epoch, seq) = (Epoch(r.u64("epoch")?), Seq(r.u64("slot")?));
        let claim = Claim(r.u64("claim")?);
        let index = r.u32("frame")?;
        let len = r.u32("length")?;
        let crc = r.u32("payload crc")?;
        let uses = r.u8("uses")?;
        let (volume, tag) = match r.u8("kind")? {
            0 => (whose, None),
            1 => ([0; 16], Some(whose)),
            other => return Err(r.bad("kind", other)),
        };
        r.reserved("reserved", 6)?;
        if !(1..=FRAME_SIZE as u32).contains(&len) {
            return Err(r.bad("length", len));
        }
        if uses > USES_MAX {
            return Err(r.bad("uses", uses));
        }
        let chunk = ChunkId { volume: VolumeId::from_bytes(volume), epoch, seq };
        let key = FrameKey { frame: FrameId { chunk, index }, claim };
        Ok(Some(Entry { key, tag, len, crc, uses }))
    }
}

/// The slot for a new payload in a set whose entries are these: one that is free, or the one that was
/// used least; of several, the first one from `hand` on.
pub fn victim(entries: &[Option<Entry>], hand: usize) -> usize {
    let ways = entries.len();
    let uses = |way: usize| entries[way].map_or(0, |entry| usize::from(entry.uses) + 1);
    (0..ways).map(|step| (hand + step) % ways).min_by_key(|way| uses(*way)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u32) -> FrameKey {
        let chunk = ChunkId { volume: VolumeId::from_bytes([7; 16]), epoch: Epoch(1), seq: Seq(2) };
        FrameKey { frame: FrameId { chunk, index }, claim: Claim::of_nonce("somebody") }
    }

    #[test]
    fn keys_spread_over_all_sets_and_differ_by_claim() {
        let mut counts = [0; 100];
        (0..10_000).for_each(|index| counts[key(index).set(100) as usize] += 1);
        assert!(counts.iter().all(|count| (50..200).contains(count)), "{counts:?}");
        let other = FrameKey { claim: Claim::of_nonce("another"), ..key(0) };
        assert_ne!(key(0), other);
        assert!(Claim::of_nonce("a") != Claim::of_nonce("b"));
    }

    #[test]
    fn sizes_count_the_index() {
        assert_eq!(Geometry::within((4 << 20) + (8 << 10)), Some(Geometry { sets: 1 }));
        assert_eq!(Geometry::within((4 << 20) + (8 << 10) - 1), None);
        assert_eq!(Geometry::within(0), None);
        for bytes in [5 << 20, 64 << 20, 1 << 40, 3_333_333_333] {
            let geometry = Geometry::within(bytes).unwrap();
            let used = geometry.frames_len() + geometry.index_len();
            assert!(used <= bytes && bytes - used < 5 << 20, "{bytes}: {used}");
        }
    }

    #[test]
    fn the_least_used_goes_first() {
        let entry = |uses| Some(Entry { uses, ..Entry::new(key(0), b"x") });
        let mut set = [entry(2), entry(1), entry(3), entry(1)];
        assert_eq!((victim(&set, 0), victim(&set, 2)), (1, 3));
        set[2] = entry(0);
        assert_eq!(victim(&set, 3), 2);
        set[0] = None;
        assert_eq!(victim(&set, 2), 0);
    }
}
