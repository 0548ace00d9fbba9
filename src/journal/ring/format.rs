//! The bytes of a ring. Pure.
//!
//! ```text
//! superblock, twice: at 0 and at 32 KiB; the one of the higher generation counts
//!  0  8 magic "OBJBLKJR"      32 16 ring id             56  8 bytes of a segment
//!  8  2 version               48  8 generation          64  4 segments
//! 10  2 1 where it is sealed                            68  4 claims
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
//! 32  8 number                      of the first entry        all behind
//! ```
//!
//! The ring of an encrypted volume is sealed ([`crate::cipher`]). Its headers are of version 2, with more in them, and
//! the entries are encrypted:
//!
//! ```text
//! header of a sealed segment      header of a sealed batch
//!  0 64 as above                   0 92 as above
//! 64 32 salt of the run           92  4 crc32c of all before and of all behind
//! 96 16 tag                       96  8 slot of the last entry
//! 112 4 crc32c of all before     104 32 salt of the run
//!                                136 16 tag; the sealed entries follow
//! ```
//!
//! Authenticated are all fields but the checksums, and the offset of segment or batch on the disk. What is clear
//! suffices to see what is there and whether it is whole; it says how much was written, and not what.

use super::{BatchNumber, SegmentNumber, SlotIndex, Term};
use crate::cipher::{LocalKey, Piece, RUN_SALT_LEN, Run, RunSalt, TAG_LEN, Tag};
use crate::format::VolumeId;
use crate::format::codec::{
    FormatError, FormatResult, Problem, Reader, Writer, check_trailing_crc,
};
use crate::journal::entry::HEAD_LEN;
use crate::mutant::{self, Mutant};
use crate::units::{Epoch, Seq};

/// Room for a superblock.
pub const SUPERBLOCK_LEN: usize = 32 << 10;
/// Bytes of a segment's header.
const SEGMENT_HEADER_LEN: usize = 68;
/// Bytes of that of a sealed one.
const SEALED_SEGMENT_LEN: usize = SEGMENT_HEADER_LEN + RUN_SALT_LEN + TAG_LEN;
/// Bytes of a batch's header.
pub const BATCH_HEADER_LEN: usize = 96;
/// Bytes of that of a sealed one.
pub const SEALED_BATCH_LEN: usize = BATCH_HEADER_LEN + 8 + RUN_SALT_LEN + TAG_LEN;
/// Where the checksum of a batch is.
const BATCH_CRC: usize = BATCH_HEADER_LEN - 4;
/// Longest nonce of a claim.
const CLAIM_MAX: usize = 64;

const SUPERBLOCK_MAGIC: &[u8; 8] = b"OBJBLKJR";
const SEGMENT_MAGIC: &[u8; 8] = b"OBJBLKSG";
const BATCH_MAGIC: &[u8; 8] = b"OBJBLKBA";
const VERSION: u16 = 1;
/// Of what is sealed.
const SEALED: u16 = 2;
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

    /// Its bytes.
    pub(super) fn bytes(self) -> [u8; 16] {
        self.0
    }
}

/// What only a sealed part of a ring has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// What tells its run.
    pub salt: RunSalt,
    /// Shows that it is as it was sealed.
    pub tag: Tag,
}

impl Seal {
    fn of(run: &Run) -> Seal {
        Seal { salt: run.salt(), tag: [0; TAG_LEN] }
    }

    fn read(r: &mut Reader<'_>) -> FormatResult<Seal> {
        let (mut salt, mut tag) = ([0; RUN_SALT_LEN], [0; TAG_LEN]);
        salt.copy_from_slice(r.take("salt", RUN_SALT_LEN)?);
        tag.copy_from_slice(r.take("tag", TAG_LEN)?);
        Ok(Seal { salt, tag })
    }
}

/// What cannot be opened, and why.
fn unopened(object: &'static str, why: &str) -> FormatError {
    FormatError { object, field: "tag", offset: 0, problem: Problem::Value(why.into()) }
}

const NO_KEY: &str = "it is sealed, and the key of its volume was not given";
const NOT_SEALED: &str = "it is not sealed, and its volume is encrypted";
const WRONG: &str = "it was not sealed here by the key of its volume, or was changed";

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
    /// What is in it is sealed.
    pub sealed: bool,
    /// Nonces of the epochs that were claimed for this ring, since its last term began.
    pub claims: Vec<String>,
}

impl Superblock {
    /// Its bytes. `None` where the claims do not fit.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut w = Writer::with_capacity(256);
        w.put(SUPERBLOCK_MAGIC).u16(VERSION).u16(u16::from(self.sealed)).u32(0);
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
        let sealed = match (r.error("sealed", Problem::Truncated), r.u16("sealed")?) {
            (_, 0) => false,
            (_, 1) => true,
            (e, other) => {
                return Err(FormatError { problem: Problem::Unsupported(other.to_string()), ..e });
            }
        };
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
        Ok(Superblock { volume, ring, generation, segment, segments, sealed, claims })
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
    /// Where it is sealed.
    pub seal: Option<Seal>,
}

impl SegmentHeader {
    /// All that has no tag.
    fn fields(&self) -> Writer {
        let mut w = Writer::with_capacity(SEALED_SEGMENT_LEN + 8);
        let version = if self.seal.is_some() { SEALED } else { VERSION };
        w.put(SEGMENT_MAGIC).u16(version).zeros(6).put(&self.ring.0);
        w.u64(self.number.0).u64(self.batch.0).u64(self.slot.0).u64(self.committed.0);
        if let Some(seal) = &self.seal {
            w.put(&seal.salt);
        }
        w
    }

    fn bound(&self, offset: u64) -> Vec<u8> {
        let mut w = self.fields();
        w.u64(offset);
        w.finish()
    }

    /// Seals it, at its offset on the disk.
    pub fn seal(&mut self, run: &Run, offset: u64) {
        let mut seal = Seal::of(run);
        self.seal = Some(seal);
        seal.tag = run.seal(Piece::Segment(self.number.0), &self.bound(offset), &mut []);
        self.seal = Some(seal);
    }

    /// Verifies it, which was found at this offset. `key`: that of an encrypted volume.
    ///
    /// # Errors
    /// It was not sealed so, or not for this place.
    pub fn verify(&self, key: Option<&LocalKey>, offset: u64) -> FormatResult<()> {
        let (seal, key) = match (&self.seal, key) {
            (None, None) => return Ok(()),
            (Some(_), None) => return Err(unopened(SEGMENT, NO_KEY)),
            (None, Some(_)) => return Err(unopened(SEGMENT, NOT_SEALED)),
            (Some(seal), Some(key)) => (seal, key),
        };
        let run = key.run(self.ring.0, seal.salt);
        match run.open(Piece::Segment(self.number.0), &self.bound(offset), &mut [], &seal.tag) {
            true => Ok(()),
            false => Err(unopened(SEGMENT, WRONG)),
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = self.fields();
        if let Some(seal) = &self.seal {
            w.put(&seal.tag);
        }
        w.crc();
        w.finish()
    }

    /// Parses the block that begins a segment.
    pub fn parse(block: &[u8]) -> FormatResult<SegmentHeader> {
        let mut r = Reader::new(SEGMENT, block);
        r.magic(SEGMENT_MAGIC)?;
        let sealed = r.version_of(&[VERSION, SEALED])? == SEALED;
        let len = if sealed { SEALED_SEGMENT_LEN } else { SEGMENT_HEADER_LEN };
        let whole = Reader::new(SEGMENT, block).take("header", len)?;
        let mut r = Reader::new(SEGMENT, check_trailing_crc(SEGMENT, whole)?);
        r.take("magic and version", 10)?;
        r.reserved("reserved", 6)?;
        let ring = RingId(r.bytes16("ring")?);
        let number = SegmentNumber(r.u64("number")?);
        let (batch, slot) = (BatchNumber(r.u64("batch")?), SlotIndex(r.u64("slot")?));
        let committed = SlotIndex(r.u64("committed")?);
        let seal = if sealed { Some(Seal::read(&mut r)?) } else { None };
        Ok(SegmentHeader { ring, number, batch, slot, committed, seal })
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
    /// Where it is sealed, and the slot of its last entry.
    pub seal: Option<(Seal, SlotIndex)>,
}

impl BatchHeader {
    /// Where its entries begin.
    pub fn lead(&self) -> usize {
        if self.seal.is_some() { SEALED_BATCH_LEN } else { BATCH_HEADER_LEN }
    }

    /// What is before the checksum.
    fn fields(&self) -> Writer {
        let mut w = Writer::with_capacity(SEALED_BATCH_LEN);
        let version = if self.seal.is_some() { SEALED } else { VERSION };
        w.put(BATCH_MAGIC).u16(version).zeros(6).put(&self.ring.0).u64(self.number.0);
        w.u64(self.term.epoch.0).u64(self.term.first.0).u64(self.term.base.0);
        w.u64(self.slot.0).u64(self.committed.0).u64(self.durable.0).u32(self.len);
        w
    }

    fn bound(&self, offset: u64) -> Vec<u8> {
        let mut w = self.fields();
        if let Some((seal, last)) = &self.seal {
            w.u64(last.0).put(&seal.salt);
        }
        w.u64(offset);
        w.finish()
    }

    /// Seals the entries, the last of which is of the slot `last`, for a batch at this offset on the disk.
    pub fn seal(&mut self, run: &Run, (offset, last): (u64, SlotIndex), entries: &mut [u8]) {
        let mut seal = Seal::of(run);
        self.seal = Some((seal, last));
        seal.tag = run.seal(Piece::Batch(self.number.0), &self.bound(offset), entries);
        self.seal = Some((seal, last));
    }

    /// Opens the entries of a batch that was found at this offset. `key`: that of an encrypted volume.
    ///
    /// # Errors
    /// They were not sealed so, or not for this place.
    pub fn open(
        &self,
        key: Option<&LocalKey>,
        offset: u64,
        entries: &mut [u8],
    ) -> FormatResult<()> {
        let (seal, key) = match (&self.seal, key) {
            (None, None) => return Ok(()),
            (Some(_), None) => return Err(unopened(BATCH, NO_KEY)),
            (None, Some(_)) => return Err(unopened(BATCH, NOT_SEALED)),
            (Some((seal, _)), Some(key)) => (seal, key),
        };
        let run = key.run(self.ring.0, seal.salt);
        match run.open(Piece::Batch(self.number.0), &self.bound(offset), entries, &seal.tag) {
            true => Ok(()),
            false => Err(unopened(BATCH, WRONG)),
        }
    }

    /// Puts it before the entries in `batch`, which begin at [`BatchHeader::lead`].
    pub fn put(&self, batch: &mut [u8]) {
        let header = self.fields().finish();
        let (lead, end) = (self.lead(), self.lead() + self.len as usize);
        if let Some((seal, last)) = &self.seal {
            let mut w = Writer::with_capacity(lead - BATCH_HEADER_LEN);
            w.u64(last.0).put(&seal.salt).put(&seal.tag);
            batch[BATCH_HEADER_LEN..lead].copy_from_slice(&w.finish());
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header), &batch[BATCH_HEADER_LEN..end]);
        batch[..BATCH_CRC].copy_from_slice(&header);
        batch[BATCH_CRC..BATCH_HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
    }

    /// Parses the batch at the beginning of `bytes`. Returns its header and its entries.
    pub fn parse(bytes: &[u8]) -> FormatResult<(BatchHeader, &[u8])> {
        let mut r = Reader::new(BATCH, bytes);
        r.magic(BATCH_MAGIC)?;
        let sealed = r.version_of(&[VERSION, SEALED])? == SEALED;
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
        let behind = r.offset();
        let seal = match sealed {
            true => Some((SlotIndex(r.u64("slot of the last entry")?), Seal::read(&mut r)?)),
            false => None,
        };
        let entries = r.take("entries", len as usize)?;
        let covered = &bytes[behind..r.offset()];
        let right = crc32c::crc32c_append(crc32c::crc32c(&bytes[..checked]), covered);
        if right != crc && !mutant::on(Mutant::BatchCrcIgnored) {
            let problem = Problem::Checksum;
            return Err(FormatError { object: BATCH, field: "crc", offset: checked, problem });
        }
        if slot < term.base {
            return Err(r.bad("slot", format!("{} before its term", slot.0)));
        }
        // Between two slots there is an entry.
        let most = u64::from(len) / HEAD_LEN as u64;
        if let Some((last, _)) = &seal
            && last.0.checked_sub(slot.0).is_none_or(|slots| slots > most)
        {
            let text = format!("{} in {len} bytes from slot {}", last.0, slot.0);
            return Err(r.bad("slot of the last entry", text));
        }
        let seal = seal.map(|(last, seal)| (seal, last));
        Ok((BatchHeader { ring, number, term, slot, committed, durable, len, seal }, entries))
    }
}
