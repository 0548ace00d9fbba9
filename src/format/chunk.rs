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
//! Frames follow the header back to back: see [`frame`](super::frame), which says what the codec and the
//! frame table mean. Ciphers other than 0, "none", are reserved ids today and refused. A header has at most
//! 8 MiB. `committed` is not greater than `seq`.
//!
//! `committed` lets a reader of the log tell a slot that was never written from one that was lost:
//! a slot below the `committed` of any later chunk must be there.

use super::VolumeId;
use super::codec::{FormatResult, Problem, Reader, Writer, check_trailing_crc};
use super::frame::{
    Codec, Compression, FrameEncoder, FrameEntry, FrameTable, Sampling, frame_payload_len,
};
use super::record::Record;
use crate::units::{Epoch, SECTOR_SIZE, Seq};

pub use super::frame::{FRAME_SECTORS, FRAME_SIZE};

/// First bytes of a chunk.
pub const MAGIC: &[u8; 8] = b"OBJBLKCH";
const VERSION: u16 = 1;
const OBJECT: &str = "chunk";

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

/// How frames are encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cipher {
    /// Stored in the clear.
    #[default]
    None,
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
    /// Encryption of the frames.
    pub cipher: Cipher,
    /// The frames.
    pub frames: FrameTable,
    /// Length of the header: where the first frame begins.
    pub header_len: u32,
}

/// What to seal into a chunk object, but for its payload.
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
    /// How the payload is compressed.
    pub compression: Compression,
}

impl ChunkParts<'_> {
    /// The object's bytes. `payload`: whole sectors, at most [`CHUNK_SIZE_MAX`].
    pub fn encode(&self, payload: &[u8]) -> Vec<u8> {
        let mut encoder = self.encoder(payload.len(), Vec::new());
        let mut sampling = Sampling::default();
        payload.chunks(FRAME_SIZE).for_each(|frame| encoder.frame(frame, &mut sampling));
        encoder.finish()
    }

    /// An encoder of the object, whose payload has `payload_len` bytes, in `memory` (instead of what is in it),
    /// which grows where it must.
    pub fn encoder(&self, payload_len: usize, memory: Vec<u8>) -> ChunkEncoder {
        let frames = payload_len.div_ceil(FRAME_SIZE);
        let size = FIXED + self.records.len() * super::record::MAX_LEN + frames * 8 + 4;
        // What does not get smaller needs some room to show it.
        let mut w = Writer::reusing(memory, size + payload_len + FRAME_SIZE / 8);
        w.put(MAGIC).u16(VERSION).u8(self.compression.codec().id()).u8(0).zeros(4);
        w.put(&self.volume.bytes());
        w.u64(self.epoch.0).u64(self.seq.0).u64(self.committed.0).u64(self.sealed_at_ms);
        w.u32(self.records.len() as u32).u32(frames as u32);
        w.u32((payload_len as u64 / SECTOR_SIZE) as u32).u32(0);
        for record in self.records {
            record.encode(&mut w);
        }
        let table = w.len();
        w.zeros(frames * 8 + 4);
        w.patch_u32(FIXED - 4, w.len() as u32);
        let (object, header_len) = (w.finish(), table + frames * 8 + 4);
        let encoder = FrameEncoder::new(self.compression);
        ChunkEncoder { object, encoder, next: table, header_len }
    }
}

/// Encodes a chunk frame by frame, so that its caller can do something else in between.
#[derive(Debug)]
pub struct ChunkEncoder {
    object: Vec<u8>,
    encoder: FrameEncoder,
    /// Where the entry of the next frame goes.
    next: usize,
    header_len: usize,
}

impl ChunkEncoder {
    /// Encodes the next frame: [`FRAME_SIZE`] bytes of the payload, or the rest of it.
    pub fn frame(&mut self, payload: &[u8], sampling: &mut Sampling) {
        let entry = self.encoder.encode(payload, &mut self.object, sampling);
        self.object[self.next..][..4].copy_from_slice(&entry.encoded_len.to_le_bytes());
        self.object[self.next + 4..][..4].copy_from_slice(&entry.crc.to_le_bytes());
        self.next += 8;
    }

    /// The object's bytes, once all frames are encoded.
    pub fn finish(mut self) -> Vec<u8> {
        debug_assert_eq!(self.next + 4, self.header_len, "all frames are encoded");
        let crc = crc32c::crc32c(&self.object[..self.header_len - 4]);
        self.object[self.header_len - 4..self.header_len].copy_from_slice(&crc.to_le_bytes());
        self.object
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
        let entries = parse_frames(&mut r, frame_count, payload_sectors, codec)?;
        let frames = FrameTable { codec, payload_sectors, entries };
        r.end()?;
        let header_len = len as u32;
        Ok(ChunkHeader {
            volume,
            epoch,
            seq,
            committed,
            sealed_at_ms,
            records,
            cipher,
            frames,
            header_len,
        })
    }

    /// Size of the whole object, in bytes.
    pub fn object_len(&self) -> u64 {
        u64::from(self.header_len) + self.frames.encoded_len()
    }

    /// Payload, in sectors.
    pub fn payload_sectors(&self) -> u32 {
        self.frames.payload_sectors
    }
}

fn parse_frames(
    r: &mut Reader<'_>,
    count: usize,
    payload_sectors: u32,
    codec: Codec,
) -> FormatResult<Vec<FrameEntry>> {
    if count * 8 > r.remaining() {
        return Err(r.error("frame table", Problem::Truncated));
    }
    let mut frames = Vec::with_capacity(count);
    for index in 0..count {
        let entry = FrameEntry { encoded_len: r.u32("frame length")?, crc: r.u32("frame crc")? };
        let payload = frame_payload_len(payload_sectors, index);
        if !codec.may_be(entry.encoded_len as usize, payload) {
            return Err(r.bad("frame length", entry.encoded_len));
        }
        frames.push(entry);
    }
    Ok(frames)
}

fn parse_codec(r: &mut Reader<'_>) -> FormatResult<Codec> {
    let id = r.u8("codec")?;
    let unknown = || r.error("codec", Problem::Unsupported(id.to_string()));
    Codec::from_id(id).ok_or_else(unknown)
}

fn parse_cipher(r: &mut Reader<'_>) -> FormatResult<Cipher> {
    match r.u8("cipher")? {
        0 => Ok(Cipher::None),
        id => Err(r.error("cipher", Problem::Unsupported(id.to_string()))),
    }
}
