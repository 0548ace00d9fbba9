//! Chunk objects: a header that says everything, then frames of payload.
//!
//! ```text
//!   0  8 magic "OBJBLKCH"       48  8 committed: every slot before it was committed at sealing
//!   8  2 version                56  8 time of sealing, ms since 1970
//!  10  1 codec of frames        64  4 number of records
//!  11  1 cipher of frames       68  4 number of frames
//!  12  4 zero                   72  4 payload, in sectors
//!  16 16 volume id              76  4 header length, to the end of its crc
//!  32  8 epoch                  80    records, then the frame table: {encoded length u32,
//!  40  8 seq                          crc32c of the encoded bytes u32} each; 4 crc32c
//! ```
//!
//! Frames follow the header back to back. A frame is 64 KiB of payload, the last one shorter; it
//! is the unit of compression, encryption and checksum. Codec and cipher other than 0, "none", are
//! reserved ids today and refused; so the encoded length is that of the payload. A header has at most
//! 8 MiB. `committed` is not greater than `seq`.
//!
//! `committed` lets a reader of the log tell a slot that was never written from one that was lost:
//! a slot below the `committed` of any later chunk must be there.

use super::VolumeId;
use super::codec::{FormatError, FormatResult, Problem, Reader, Writer, check_trailing_crc};
use super::record::Record;
use crate::mutant::{self, Mutant};
use crate::units::{Epoch, SECTOR_SIZE, Seq};

/// First bytes of a chunk.
pub const MAGIC: &[u8; 8] = b"OBJBLKCH";
const VERSION: u16 = 1;
const OBJECT: &str = "chunk";

/// Bytes of payload in a frame.
pub const FRAME_SIZE: usize = 64 << 10;
/// Sectors of payload in a frame.
pub const FRAME_SECTORS: u32 = (FRAME_SIZE as u64 / SECTOR_SIZE) as u32;
/// Smallest chunk size a volume may have, in bytes of payload.
pub const CHUNK_SIZE_MIN: u64 = 256 << 10;
/// Largest chunk size a volume may have, in bytes of payload.
pub const CHUNK_SIZE_MAX: u64 = 64 << 20;
/// Bytes before the records.
const FIXED: usize = 80;
/// A header is never longer: bounds what a reader fetches.
pub const HEADER_MAX: usize = 8 << 20;
/// Records a chunk may hold, so that its header stays below [`HEADER_MAX`].
pub const RECORDS_MAX: usize = 256 << 10;

/// How frames are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// Stored as they are.
    #[default]
    None,
}

/// How frames are encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cipher {
    /// Stored in the clear.
    #[default]
    None,
}

/// Where a frame lies and what its bytes must sum to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameEntry {
    /// Length in the object, in bytes.
    pub encoded_len: u32,
    /// crc32c of those bytes.
    pub crc: u32,
}

/// Everything about a chunk but its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// The volume.
    pub volume: VolumeId,
    /// The owner's term.
    pub epoch: Epoch,
    /// The slot.
    pub seq: Seq,
    /// Every slot before this one was committed when the chunk was sealed.
    pub committed: Seq,
    /// When it was sealed, in milliseconds since 1970.
    pub sealed_at_ms: u64,
    /// What it does, in order.
    pub records: Vec<Record>,
    /// Payload, in sectors.
    pub payload_sectors: u32,
    /// Compression of the frames.
    pub codec: Codec,
    /// Encryption of the frames.
    pub cipher: Cipher,
    /// The frames.
    pub frames: Vec<FrameEntry>,
    /// Length of the header: where the first frame begins.
    pub header_len: u32,
}

/// What to seal into a chunk object.
#[derive(Debug)]
pub struct ChunkParts<'a> {
    /// The volume.
    pub volume: VolumeId,
    /// The owner's term.
    pub epoch: Epoch,
    /// The slot.
    pub seq: Seq,
    /// Commit point at sealing.
    pub committed: Seq,
    /// Time of sealing, in milliseconds since 1970.
    pub sealed_at_ms: u64,
    /// Records, in order; at most [`RECORDS_MAX`].
    pub records: &'a [Record],
    /// Payload: whole sectors, at most [`CHUNK_SIZE_MAX`].
    pub payload: &'a [u8],
}

impl ChunkParts<'_> {
    /// The object's bytes.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_in(Vec::new())
    }

    /// The object's bytes, in `memory` (instead of what is in it), which grows where it must.
    pub fn encode_in(&self, memory: Vec<u8>) -> Vec<u8> {
        let frames = self.payload.chunks(FRAME_SIZE);
        let size = FIXED + self.records.len() * super::record::MAX_LEN + frames.len() * 8 + 4;
        let mut w = Writer::reusing(memory, size + self.payload.len());
        w.put(MAGIC).u16(VERSION).u8(0).u8(0).zeros(4).put(&self.volume.bytes());
        w.u64(self.epoch.0).u64(self.seq.0).u64(self.committed.0).u64(self.sealed_at_ms);
        w.u32(self.records.len() as u32).u32(frames.len() as u32);
        w.u32((self.payload.len() as u64 / SECTOR_SIZE) as u32).u32(0);
        for record in self.records {
            record.encode(&mut w);
        }
        for frame in frames {
            w.u32(frame.len() as u32).u32(crc32c::crc32c(frame));
        }
        w.patch_u32(FIXED - 4, (w.len() + 4) as u32);
        w.crc().put(self.payload);
        w.finish()
    }
}

/// Length of the header that begins with `bytes` (at least [`PREFIX_LEN`] of them).
///
/// Nothing but magic, version and the length itself is verified here.
pub fn header_len(bytes: &[u8]) -> FormatResult<usize> {
    let mut r = Reader::new(OBJECT, bytes);
    r.magic(MAGIC)?;
    r.version(VERSION)?;
    r.take("fixed header", FIXED - 4 - 10)?;
    let len = r.u32("header length")? as usize;
    if (FIXED + 4..=HEADER_MAX).contains(&len) { Ok(len) } else { Err(r.bad("header length", len)) }
}

/// Bytes that [`header_len`] needs.
pub const PREFIX_LEN: usize = FIXED;

impl ChunkHeader {
    /// Parses the header at the start of `bytes`, which may hold more.
    pub fn parse(bytes: &[u8]) -> FormatResult<ChunkHeader> {
        let len = header_len(bytes)?;
        let mut r = Reader::new(OBJECT, bytes);
        let body = check_trailing_crc(OBJECT, r.take("header", len)?)?;
        let mut r = Reader::new(OBJECT, body);
        r.take("magic and version", 10)?;
        let (codec, cipher) = (parse_codec(&mut r)?, parse_cipher(&mut r)?);
        r.reserved("reserved", 4)?;
        let volume = VolumeId::from_bytes(r.bytes16("volume")?);
        let (epoch, seq) = (Epoch(r.u64("epoch")?), Seq(r.u64("seq")?));
        let (committed, sealed_at_ms) = (Seq(r.u64("committed")?), r.u64("time")?);
        if committed > seq {
            return Err(r.bad("committed", format!("{committed} is after slot {seq}")));
        }
        let record_count = r.u32("record count")? as usize;
        let frame_count = r.u32("frame count")? as usize;
        let payload_sectors = r.u32("payload length")?;
        if u64::from(payload_sectors) * SECTOR_SIZE > CHUNK_SIZE_MAX {
            return Err(r.bad("payload length", payload_sectors));
        }
        if frame_count != payload_sectors.div_ceil(FRAME_SECTORS) as usize {
            return Err(r.bad("frame count", frame_count));
        }
        r.take("header length", 4)?;
        if record_count > RECORDS_MAX || record_count * 4 > r.remaining() {
            return Err(r.bad("record count", record_count));
        }
        let records = (0..record_count)
            .map(|_| Record::parse(&mut r, payload_sectors))
            .collect::<FormatResult<Vec<_>>>()?;
        let frames = parse_frames(&mut r, frame_count, payload_sectors)?;
        r.end()?;
        let header_len = len as u32;
        Ok(ChunkHeader {
            volume,
            epoch,
            seq,
            committed,
            sealed_at_ms,
            records,
            payload_sectors,
            codec,
            cipher,
            frames,
            header_len,
        })
    }

    /// Size of the whole object, in bytes.
    pub fn object_len(&self) -> u64 {
        let frames: u64 = self.frames.iter().map(|f| u64::from(f.encoded_len)).sum();
        u64::from(self.header_len) + frames
    }
}

fn parse_frames(
    r: &mut Reader<'_>,
    count: usize,
    payload_sectors: u32,
) -> FormatResult<Vec<FrameEntry>> {
    if count * 8 > r.remaining() {
        return Err(r.error("frame table", Problem::Truncated));
    }
    let mut frames = Vec::with_capacity(count);
    for index in 0..count {
        let entry = FrameEntry { encoded_len: r.u32("frame length")?, crc: r.u32("frame crc")? };
        if entry.encoded_len as usize != frame_payload_len(payload_sectors, index) {
            return Err(r.bad("frame length", entry.encoded_len));
        }
        frames.push(entry);
    }
    Ok(frames)
}

/// Bytes of payload in frame `index` of a chunk of `payload_sectors`.
pub fn frame_payload_len(payload_sectors: u32, index: usize) -> usize {
    let total = payload_sectors as usize * SECTOR_SIZE as usize;
    total.saturating_sub(index * FRAME_SIZE).min(FRAME_SIZE)
}

fn parse_codec(r: &mut Reader<'_>) -> FormatResult<Codec> {
    match r.u8("codec")? {
        0 => Ok(Codec::None),
        id => Err(r.error("codec", Problem::Unsupported(id.to_string()))),
    }
}

fn parse_cipher(r: &mut Reader<'_>) -> FormatResult<Cipher> {
    match r.u8("cipher")? {
        0 => Ok(Cipher::None),
        id => Err(r.error("cipher", Problem::Unsupported(id.to_string()))),
    }
}

/// Gives the payload of frame `index` out of its encoded bytes, or says that they are damaged.
pub fn open_frame(entry: FrameEntry, index: usize, encoded: &[u8]) -> FormatResult<()> {
    let problem = if encoded.len() != entry.encoded_len as usize {
        Problem::Truncated
    } else if crc32c::crc32c(encoded) != entry.crc && !mutant::on(Mutant::FrameCrcIgnored) {
        Problem::Checksum
    } else {
        return Ok(());
    };
    let offset = index * FRAME_SIZE;
    Err(FormatError { object: OBJECT, field: "frame payload", offset, problem })
}
