//! An entry of a journal or mirror: one change of a volume, or a mark. Pure.
//!
//! An entry is a head of 32 bytes, and behind the head of a data entry its payload:
//!
//! ```text
//!  0  1 tag: 1 data, 2 zero, 3 trim, 4 resize, 5 continued elsewhere, 6 end of a slot
//!  1  3 zero                  16  8 sectors
//!  4  4 sector in the chunk   24  4 crc32c of the payload
//!  8  8 first sector, or size 28  4 crc32c of all before
//! ```
//!
//! A field that the entries of a kind do not have is zero.

use crate::format::FormatError;
use crate::format::codec::{FormatResult, Problem, Reader, check_trailing_crc};
use crate::format::volume::VOLUME_SIZE_MAX;
use crate::units::{SECTOR_SIZE, Sector, SectorCount, SectorRange};

/// Bytes of an entry's head.
pub const HEAD_LEN: usize = 32;

/// One change of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// These sectors were written.
    Data {
        /// The first one.
        start: Sector,
        /// Where they lie in the payload of their chunk, in sectors.
        offset: u32,
        /// What they hold now: whole sectors, at least one.
        data: &'a [u8],
    },
    /// Write-zeroes.
    Zero(SectorRange),
    /// Discard.
    Trim(SectorRange),
    /// The volume has a new size.
    Resize(SectorCount),
}

/// What stands at an entry's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// A change.
    Change(Change<'a>),
    /// Nothing follows here.
    Continued,
    /// The slot of the log has no more changes.
    SlotEnd,
    /// The bytes end inside an entry.
    Torn,
}

impl<'a> Change<'a> {
    /// The head of its entry and the payload behind that.
    pub fn encode(&self) -> ([u8; HEAD_LEN], &'a [u8]) {
        match *self {
            Change::Data { start, offset, data } => {
                let sectors = data.len() as u64 / SECTOR_SIZE;
                (head(1, offset, (start.0, sectors), crc32c::crc32c(data)), data)
            }
            Change::Zero(range) => (head(2, 0, (range.start().0, range.len().0), 0), &[]),
            Change::Trim(range) => (head(3, 0, (range.start().0, range.len().0), 0), &[]),
            Change::Resize(size) => (head(4, 0, (size.0, 0), 0), &[]),
        }
    }
}

/// The entry that says that the next one is elsewhere.
pub fn continued() -> [u8; HEAD_LEN] {
    head(5, 0, (0, 0), 0)
}

/// The entry behind the last change of a slot.
pub fn slot_end() -> [u8; HEAD_LEN] {
    head(6, 0, (0, 0), 0)
}

fn head(tag: u8, offset: u32, (first, second): (u64, u64), payload_crc: u32) -> [u8; HEAD_LEN] {
    let mut head = [0; HEAD_LEN];
    head[0] = tag;
    head[4..8].copy_from_slice(&offset.to_le_bytes());
    head[8..16].copy_from_slice(&first.to_le_bytes());
    head[16..24].copy_from_slice(&second.to_le_bytes());
    head[24..28].copy_from_slice(&payload_crc.to_le_bytes());
    let crc = crc32c::crc32c(&head[..28]);
    head[28..].copy_from_slice(&crc.to_le_bytes());
    head
}

/// Reads the next entry of an object of the kind `object`.
///
/// # Errors
/// It is damaged, or of a kind that is not known.
pub fn read<'a>(object: &'static str, r: &mut Reader<'a>) -> FormatResult<Entry<'a>> {
    if r.remaining() < HEAD_LEN {
        return Ok(Entry::Torn);
    }
    let at = r.offset();
    let bytes = r.take("entry", HEAD_LEN)?;
    // Offsets in errors are those of the whole object.
    let here = |e: FormatError| FormatError { offset: at + e.offset, ..e };
    let mut h = Reader::new(object, check_trailing_crc(object, bytes).map_err(here)?);
    let tag = h.u8("tag").map_err(here)?;
    h.reserved("reserved", 3).map_err(here)?;
    let offset = h.u32("sector in the chunk").map_err(here)?;
    let (first, second) = (h.u64("first").map_err(here)?, h.u64("length").map_err(here)?);
    let payload_crc = h.u32("payload crc").map_err(here)?;
    let of_data = u64::from(offset | payload_crc);
    let unused = match tag {
        2 | 3 => of_data,
        4 => of_data | second,
        5 | 6 => of_data | first | second,
        _ => 0,
    };
    if unused != 0 {
        return Err(here(h.error("unused", Problem::Unsupported("not zero".into()))));
    }
    let range = || {
        let range = SectorRange::new(Sector(first), SectorCount(second));
        let range = range.filter(|range| !range.is_empty());
        range.ok_or_else(|| here(h.bad("range", format!("{second} sectors at {first}"))))
    };
    Ok(Entry::Change(match tag {
        1 => {
            let range = range()?;
            match usize::try_from(range.len().bytes()) {
                Ok(len) if len <= r.remaining() => {
                    let data = r.take("payload", len)?;
                    if crc32c::crc32c(data) != payload_crc {
                        return Err(r.error("payload crc", Problem::Checksum));
                    }
                    Change::Data { start: range.start(), offset, data }
                }
                _ => return Ok(Entry::Torn),
            }
        }
        2 => Change::Zero(range()?),
        3 => Change::Trim(range()?),
        4 if first > VOLUME_SIZE_MAX / SECTOR_SIZE => return Err(here(h.bad("size", first))),
        4 => Change::Resize(SectorCount(first)),
        5 => return Ok(Entry::Continued),
        6 => return Ok(Entry::SlotEnd),
        _ => return Err(here(h.error("tag", Problem::Unsupported(tag.to_string())))),
    }))
}
