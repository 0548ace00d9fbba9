//! The bytes of a ring. Pure.
//!
//! ```text
//! superblock, twice: at 0 and at 32 KiB; the one of the higher generation counts
//!  0  8 magic "OBJBLKJR"      32 16 ring id             56  8 bytes of a segment
//!  8  2 version               48  8 generation          64  4 segments
//! 10  2 zero                                            68  4 claims
//! 12  4 length with its crc                             72  n each claim: 1 length, text;  4 crc32c
//! 16 16 volume id
//!
//! header of a segment, one block
//!  0  8 magic "OBJBLKSG"      32  8 number              48  8 index of its first slot
//!  8  2 version               40  8 its first batch     56  8 committed before this index
//! 10  6 zero                                            64  4 crc32c of all before
//! 16 16 ring id
//!
//! header of a batch; its entries follow, then zeros to a whole block
//!  0  8 magic "OBJBLKBA"      40  8 epoch               72  8 committed before this index
//!  8  2 version               48  8 first slot of epoch 80  8 durable before this batch
//! 10  6 zero                  56  8 index of that slot  88  4 bytes of entries
//! 16 16 ring id               64  8 index of the slot   92  4 crc32c of all before and of
//! 32  8 number                      of the first entry        the entries
//! ```

use super::{BatchNumber, SegmentNumber, SlotIndex, Term};
use crate::format::VolumeId;
use crate::format::codec::{
    FormatError, FormatResult, Problem, Reader, Writer, check_trailing_crc,
};
use crate::mutant::{self, Mutant};
use crate::units::{Epoch, Seq};

/// Room for a superblock.
pub const SUPERBLOCK_LEN: usize = 32 << 10;
/// Bytes of a segment's header.
const SEGMENT_HEADER_LEN: usize = 68;
/// Bytes of a batch's header.
pub const BATCH_HEADER_LEN: usize = 96;
/// Longest nonce of a claim.
const CLAIM_MAX: usize = 64;

const SUPERBLOCK_MAGIC: &[u8; 8] = b"OBJBLKJR";
const SEGMENT_MAGIC: &[u8; 8] = b"OBJBLKSG";
const BATCH_MAGIC: &[u8; 8] = b"OBJBLKBA";
const VERSION: u16 = 1;
const SUPERBLOCK: &str = "journal superblock";
const SEGMENT: &str = "journal segment";
const BATCH: &str = "journal batch";

/// What tells the data of one ring from what was in its place before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingId([u8; 16]);

impl RingId {
    /// The id of a ring that is made for the claim with this nonce.
    pub fn of_claim(nonce: &str) -> RingId {
        let mut id = [0; 16];
        id.iter_mut().zip(nonce.bytes()).for_each(|(to, from)| *to = from);
        RingId(id)
    }
}

/// Whose ring it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The volume.
    pub volume: VolumeId,
    /// The ring.
    pub ring: RingId,
    /// Counts the superblocks.
    pub generation: u64,
    /// Bytes of a segment.
    pub segment: u64,
    /// Number of segments.
    pub segments: u32,
    /// Nonces of the epochs that were claimed for this ring, since its last term began.
    pub claims: Vec<String>,
}

impl Superblock {
    /// Its bytes. `None` where the claims do not fit.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut w = Writer::with_capacity(256);
        w.put(SUPERBLOCK_MAGIC).u16(VERSION).zeros(2).u32(0);
        w.put(&self.volume.bytes()).put(&self.ring.0);
        w.u64(self.generation).u64(self.segment).u32(self.segments);
        w.u32(self.claims.len() as u32);
        for claim in &self.claims {
            if claim.len() > CLAIM_MAX {
                return None;
            }
            w.u8(claim.len() as u8).put(claim.as_bytes());
        }
        w.patch_u32(12, w.len() as u32 + 4);
        w.crc();
        Some(w.finish()).filter(|bytes| bytes.len() <= SUPERBLOCK_LEN)
    }

    /// Parses what is in the place of a superblock.
    pub fn parse(place: &[u8]) -> FormatResult<Superblock> {
        let mut r = Reader::new(SUPERBLOCK, place);
        r.magic(SUPERBLOCK_MAGIC)?;
        r.version(VERSION)?;
        r.reserved("reserved", 2)?;
        let len = r.u32("length")? as usize;
        let whole = Reader::new(SUPERBLOCK, place).take("length", len)?;
        let mut r = Reader::new(SUPERBLOCK, check_trailing_crc(SUPERBLOCK, whole)?);
        r.take("beginning", 16)?;
        let volume = VolumeId::from_bytes(r.bytes16("volume")?);
        let ring = RingId(r.bytes16("ring")?);
        let generation = r.u64("generation")?;
        let (segment, segments) = (r.u64("segment")?, r.u32("segments")?);
        let count = r.count("claims", 1)?;
        let mut claims = Vec::new();
        for _ in 0..count {
            let len = usize::from(r.u8("claim length")?);
            if len > CLAIM_MAX {
                return Err(r.bad("claim length", format!("{len}, more than {CLAIM_MAX}")));
            }
            let text = std::str::from_utf8(r.take("claim", len)?);
            let text = text.map_err(|_| r.error("claim", Problem::Value("not UTF-8".into())))?;
            claims.push(text.to_owned());
        }
        r.end()?;
        Ok(Superblock { volume, ring, generation, segment, segments, claims })
    }
}

/// What a segment begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The ring.
    pub ring: RingId,
    /// Counts the segments that were ever begun.
    pub number: SegmentNumber,
    /// Its first batch: all before it were durable when this header was written.
    pub batch: BatchNumber,
    /// The slot of the first entry of that batch.
    pub slot: SlotIndex,
    /// Slots before this one were in the store when it was written.
    pub committed: SlotIndex,
}

impl SegmentHeader {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(SEGMENT_HEADER_LEN);
        w.put(SEGMENT_MAGIC).u16(VERSION).zeros(6).put(&self.ring.0);
        w.u64(self.number.0).u64(self.batch.0).u64(self.slot.0).u64(self.committed.0).crc();
        w.finish()
    }

    /// Parses the block that begins a segment.
    pub fn parse(block: &[u8]) -> FormatResult<SegmentHeader> {
        let mut r = Reader::new(SEGMENT, block);
        r.magic(SEGMENT_MAGIC)?;
        r.version(VERSION)?;
        let whole = Reader::new(SEGMENT, block).take("header", SEGMENT_HEADER_LEN)?;
        let mut r = Reader::new(SEGMENT, check_trailing_crc(SEGMENT, whole)?);
        r.take("magic and version", 10)?;
        r.reserved("reserved", 6)?;
        let ring = RingId(r.bytes16("ring")?);
        let number = SegmentNumber(r.u64("number")?);
        let (batch, slot) = (BatchNumber(r.u64("batch")?), SlotIndex(r.u64("slot")?));
        let committed = SlotIndex(r.u64("committed")?);
        Ok(SegmentHeader { ring, number, batch, slot, committed })
    }
}

/// What a batch begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// The ring.
    pub ring: RingId,
    /// Counts the batches that were ever written.
    pub number: BatchNumber,
    /// The term that the slots belong to, from here on.
    pub term: Term,
    /// The slot of its first entry.
    pub slot: SlotIndex,
    /// Slots before this one were in the store when it was written.
    pub committed: SlotIndex,
    /// Batches before this one were durable when it was written.
    pub durable: BatchNumber,
    /// Bytes of entries behind it.
    pub len: u32,
}

impl BatchHeader {
    /// Puts it before the entries in `batch`, which begin at [`BATCH_HEADER_LEN`].
    pub fn put(&self, batch: &mut [u8]) {
        let mut w = Writer::with_capacity(BATCH_HEADER_LEN);
        w.put(BATCH_MAGIC).u16(VERSION).zeros(6).put(&self.ring.0).u64(self.number.0);
        w.u64(self.term.epoch.0).u64(self.term.first.0).u64(self.term.base.0);
        w.u64(self.slot.0).u64(self.committed.0).u64(self.durable.0).u32(self.len);
        let header = w.finish();
        let end = BATCH_HEADER_LEN + self.len as usize;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header), &batch[BATCH_HEADER_LEN..end]);
        batch[..header.len()].copy_from_slice(&header);
        batch[header.len()..BATCH_HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
    }

    /// Parses the batch at the beginning of `bytes`. Returns its header and its entries.
    pub fn parse(bytes: &[u8]) -> FormatResult<(BatchHeader, &[u8])> {
        let mut r = Reader::new(BATCH, bytes);
        r.magic(BATCH_MAGIC)?;
        r.version(VERSION)?;
        r.reserved("reserved", 6)?;
        let ring = RingId(r.bytes16("ring")?);
        let number = BatchNumber(r.u64("number")?);
        let (epoch, first) = (Epoch(r.u64("epoch")?), Seq(r.u64("first slot")?));
        let term = Term { epoch, first, base: SlotIndex(r.u64("index of the first slot")?) };
        let (slot, committed) = (SlotIndex(r.u64("slot")?), SlotIndex(r.u64("committed")?));
        let durable = BatchNumber(r.u64("durable")?);
        let len = r.u32("length")?;
        let checked = r.offset();
        let crc = r.u32("crc")?;
        let entries = r.take("entries", len as usize)?;
        let right = crc32c::crc32c_append(crc32c::crc32c(&bytes[..checked]), entries);
        if right != crc && !mutant::on(Mutant::BatchCrcIgnored) {
            let problem = Problem::Checksum;
            return Err(FormatError { object: BATCH, field: "crc", offset: checked, problem });
        }
        if slot < term.base {
            return Err(r.bad("slot", format!("{} before its term", slot.0)));
        }
        Ok((BatchHeader { ring, number, term, slot, committed, durable, len }, entries))
    }
}
