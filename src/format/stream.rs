//! Streams: what changed between two states of a volume, for a pipe or a file.
//!
//! A stream is a header, entries in the order of their sectors, and an end. What a reader has got is
//! worth nothing until it has seen the end: only then is the state complete.
//!
//! ```text
//! header
//!   0  8 magic "OBJBLKDS"              40 16 snapshot id: the state that the stream leads to
//!   8  2 version                       56  8 its size in sectors
//!  10  1 length of the name (1 to 128) 64  8 when it was made, ms since 1970
//!  11  1 length of the base's name     72 16 base: snapshot id of the state that it leads from
//!  12  4 logical block size in bytes   88  8 its size in sectors
//!  16 16 volume id                     96  8 when it was made
//!  32  8 chunk size in bytes          104    the name, the base's name;  4 crc32c of all before
//!
//! entry
//!   0  4 kind: 1 data, 2 zeros, 3 end   16  8 sectors (of an end: sectors of data before it)
//!   4  4 crc32c of the data, else 0     24  4 crc32c of the header, of all entries before without their
//!   8  8 first sector                         data, and of the 24 bytes before
//!        (of an end: entries before it) 28    the data
//! ```
//!
//! Without a base (its three fields zero, its name of length 0) the stream leads from nothing, a volume that
//! was never written. Entries ascend, do not meet, are whole blocks of the volume, and lie within its
//! size; what lies beyond the size is dropped, and what no entry names is as it was in the base, or zeros.
//! Data comes in at most [`DATA_SECTORS_MAX`] sectors. Nothing follows an end.
//!
//! Each entry's checksum covers every byte before it but for data, which has its own: an entry that was lost,
//! doubled or moved is noticed at once, and the end vouches for the whole.

use super::codec::{FormatError, FormatResult, Problem, Reader, Writer, check_trailing_crc};
use super::keys::{NAME_MAX, is_valid_name};
use super::volume::{VOLUME_SIZE_MAX, is_valid_chunk_size, is_valid_size};
use super::{SnapshotId, VolumeId};
use crate::units::{BlockSize, SECTOR_SIZE, Sector, SectorCount, SectorRange};

/// First bytes of a stream.
pub const MAGIC: &[u8; 8] = b"OBJBLKDS";
const VERSION: u16 = 1;
const OBJECT: &str = "stream";

/// Bytes of a header before the names.
pub const HEADER_FIXED: usize = 104;
/// Bytes of the longest header.
pub const HEADER_MAX: usize = HEADER_FIXED + 2 * NAME_MAX + 4;
/// Bytes of an entry, but for its data.
pub const ENTRY_LEN: usize = 28;
/// The most sectors of data in one entry: 1 MiB.
pub const DATA_SECTORS_MAX: u64 = 2048;

const NONE: [u8; 16] = [0; 16];

/// A state of a volume: one of its snapshots, wherever it is a copy of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamState {
    /// Which snapshot it is, in every pool.
    pub snapshot: SnapshotId,
    /// Its name.
    pub name: String,
    /// Size of the volume then.
    pub size: SectorCount,
    /// When it was made, in milliseconds since 1970.
    pub made_at_ms: u64,
}

/// What a stream is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamHeader {
    /// The volume that it was read from.
    pub volume: VolumeId,
    /// Logical block size of the volume.
    pub block_size: BlockSize,
    /// Payload of its full chunks, in bytes.
    pub chunk_size: u64,
    /// The state that the stream leads to.
    pub to: StreamState,
    /// The state that it leads from; `None`: nothing.
    pub base: Option<StreamState>,
}

impl StreamHeader {
    /// The header's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let base = self.base.as_ref();
        let base_name = base.map_or("", |base| &base.name);
        let mut w = Writer::with_capacity(HEADER_MAX);
        w.put(MAGIC).u16(VERSION).u8(self.to.name.len() as u8).u8(base_name.len() as u8);
        w.u32(self.block_size.bytes()).put(&self.volume.bytes()).u64(self.chunk_size);
        w.put(&self.to.snapshot.bytes()).u64(self.to.size.0).u64(self.to.made_at_ms);
        w.put(&base.map_or(NONE, |base| base.snapshot.bytes()));
        w.u64(base.map_or(0, |base| base.size.0)).u64(base.map_or(0, |base| base.made_at_ms));
        w.put(self.to.name.as_bytes()).put(base_name.as_bytes()).crc();
        w.finish()
    }

    /// Length of the whole header that begins with `fixed`.
    ///
    /// # Errors
    /// It is none, or that of a newer version.
    pub fn len(fixed: &[u8; HEADER_FIXED]) -> FormatResult<usize> {
        let mut r = Reader::new(OBJECT, fixed);
        r.magic(MAGIC)?;
        r.version(VERSION)?;
        Ok(HEADER_FIXED + usize::from(r.u8("name length")?) + usize::from(r.u8("name length")?) + 4)
    }

    /// Parses a whole header.
    ///
    /// # Errors
    /// It is none, is damaged, or names what cannot be.
    pub fn parse(bytes: &[u8]) -> FormatResult<StreamHeader> {
        let mut r = Reader::new(OBJECT, bytes);
        r.magic(MAGIC)?;
        r.version(VERSION)?;
        let mut r = Reader::new(OBJECT, check_trailing_crc(OBJECT, bytes)?);
        r.take("magic and version", 10)?;
        let (name_len, base_len) = (r.u8("name length")?, r.u8("base name length")?);
        let block_size = r.u32("block size")?;
        let block_size =
            BlockSize::from_bytes(block_size).ok_or_else(|| r.bad("block size", block_size))?;
        let volume = VolumeId::from_bytes(r.bytes16("volume")?);
        let chunk_size = r.u64("chunk size")?;
        if !is_valid_chunk_size(chunk_size) {
            return Err(r.bad("chunk size", chunk_size));
        }
        let to = Fixed::parse(&mut r)?;
        let base = Fixed::parse(&mut r)?;
        let to = to.named(&mut r, name_len, block_size)?;
        let base = match base.is_none() && base_len == 0 {
            true => None,
            false => Some(base.named(&mut r, base_len, block_size)?),
        };
        r.end()?;
        Ok(StreamHeader { volume, block_size, chunk_size, to, base })
    }
}

/// A state as it is in a header, but for its name.
struct Fixed {
    snapshot: [u8; 16],
    size: u64,
    made_at_ms: u64,
}

impl Fixed {
    fn parse(r: &mut Reader<'_>) -> FormatResult<Fixed> {
        let (snapshot, size) = (r.bytes16("snapshot")?, r.u64("size")?);
        Ok(Fixed { snapshot, size, made_at_ms: r.u64("time")? })
    }

    fn is_none(&self) -> bool {
        self.snapshot == NONE && self.size == 0 && self.made_at_ms == 0
    }

    fn named(self, r: &mut Reader<'_>, len: u8, block: BlockSize) -> FormatResult<StreamState> {
        let is_size = |size: u64| {
            size <= VOLUME_SIZE_MAX / SECTOR_SIZE && is_valid_size(size * SECTOR_SIZE, block)
        };
        if self.snapshot == NONE || !is_size(self.size) {
            return Err(r.bad("size", self.size));
        }
        let name = std::str::from_utf8(r.take("name", len.into())?).ok();
        let Some(name) = name.filter(|name| is_valid_name(name)) else {
            return Err(r.bad("name", "not a name"));
        };
        Ok(StreamState {
            snapshot: SnapshotId::from_bytes(self.snapshot),
            name: name.into(),
            size: SectorCount(self.size),
            made_at_ms: self.made_at_ms,
        })
    }
}

/// A part of a stream, but for its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEntry {
    /// The sectors have the data that follows.
    Data {
        /// The sectors.
        range: SectorRange,
        /// crc32c of the data.
        crc: u32,
    },
    /// The sectors are zeros.
    Zeros(SectorRange),
    /// The stream is complete.
    End,
}

const DATA: u32 = 1;
const ZEROS: u32 = 2;
const END: u32 = 3;

/// Where a writer or a reader of a stream is: makes and checks what comes next.
#[derive(Clone, Debug)]
pub struct StreamPosition {
    block: u64,
    size: SectorCount,
    /// crc32c of header and entries so far.
    crc: u32,
    /// The first sector that an entry may name.
    at: Sector,
    entries: u64,
    data: SectorCount,
    /// Bytes so far.
    offset: u64,
}

impl StreamPosition {
    /// Behind a header, of which `bytes` are the bytes.
    pub fn behind(header: &StreamHeader, bytes: &[u8]) -> StreamPosition {
        StreamPosition {
            block: header.block_size.sectors().0,
            size: header.to.size,
            crc: crc32c::crc32c(bytes),
            at: Sector(0),
            entries: 0,
            data: SectorCount(0),
            offset: bytes.len() as u64,
        }
    }

    /// Bytes before this position, those of data that follows included.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The bytes of `entry`, which comes next. The caller keeps the rules of the module.
    pub fn encode(&mut self, entry: StreamEntry) -> [u8; ENTRY_LEN] {
        let (kind, crc, first, sectors) = match entry {
            StreamEntry::Data { range, crc } => (DATA, crc, range.start().0, range.len().0),
            StreamEntry::Zeros(range) => (ZEROS, 0, range.start().0, range.len().0),
            StreamEntry::End => (END, 0, self.entries, self.data.0),
        };
        let mut bytes = [0; ENTRY_LEN];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes[8..16].copy_from_slice(&first.to_le_bytes());
        bytes[16..24].copy_from_slice(&sectors.to_le_bytes());
        let crc = crc32c::crc32c_append(self.crc, &bytes[..24]);
        bytes[24..].copy_from_slice(&crc.to_le_bytes());
        self.pass(entry, &bytes);
        bytes
    }

    /// The entry that comes next.
    ///
    /// # Errors
    /// It is damaged, is not the one that came next, or breaks a rule of the module.
    pub fn parse(&mut self, bytes: &[u8; ENTRY_LEN]) -> FormatResult<StreamEntry> {
        let mut r = Reader::new(OBJECT, bytes);
        let (kind, crc) = (r.u32("entry kind")?, r.u32("data crc")?);
        let (first, sectors) = (r.u64("first sector")?, r.u64("sectors")?);
        if r.u32("crc")? != crc32c::crc32c_append(self.crc, &bytes[..24]) {
            return Err(self.error("crc", Problem::Checksum));
        }
        let bad = |field| self.error(field, Problem::Value(format!("{sectors} at {first}")));
        let range = || {
            let range = SectorRange::new(Sector(first), SectorCount(sectors))?;
            let is_whole = first.is_multiple_of(self.block) && sectors.is_multiple_of(self.block);
            let is_next = range.start() >= self.at && range.end().0 <= self.size.0;
            (is_whole && is_next && !range.is_empty()).then_some(range)
        };
        let entry = match kind {
            DATA if sectors <= DATA_SECTORS_MAX => {
                StreamEntry::Data { range: range().ok_or_else(|| bad("data"))?, crc }
            }
            ZEROS if crc == 0 => StreamEntry::Zeros(range().ok_or_else(|| bad("zeros"))?),
            END if crc == 0 && (first, sectors) == (self.entries, self.data.0) => StreamEntry::End,
            DATA | ZEROS | END => return Err(bad("entry")),
            _ => return Err(self.error("entry kind", Problem::Unsupported(kind.to_string()))),
        };
        self.pass(entry, bytes);
        Ok(entry)
    }

    /// Whether `data` is what the last entry announced by its `crc`.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self, crc: u32, data: &[u8]) -> FormatResult<()> {
        match crc32c::crc32c(data) == crc {
            true => Ok(()),
            false => Err(self.error("data", Problem::Checksum)),
        }
    }

    /// An error about `field`, at this position.
    pub fn error(&self, field: &'static str, problem: Problem) -> FormatError {
        FormatError { object: OBJECT, field, offset: self.offset as usize, problem }
    }

    fn pass(&mut self, entry: StreamEntry, bytes: &[u8; ENTRY_LEN]) {
        self.crc = crc32c::crc32c_append(self.crc, &bytes[..24]);
        self.offset += ENTRY_LEN as u64;
        self.entries += 1;
        match entry {
            StreamEntry::Data { range, .. } => {
                self.at = range.end();
                self.data.0 += range.len().0;
                self.offset += range.len().bytes();
            }
            StreamEntry::Zeros(range) => self.at = range.end(),
            StreamEntry::End => {}
        }
    }
}
