//! Records: what a chunk does to its volume, in the order in which it happened.
//!
//! A record is a tag (u8), a zero byte, the length of its body (u16) and the body:
//!
//! | tag | record | body |
//! | --- | --- | --- |
//! | 1 | data | lba u64, sectors u32, payload offset in sectors u32 |
//! | 2 | zero | lba u64, sectors u64 |
//! | 3 | trim | lba u64, sectors u64 |
//! | 4 | epoch start | - |
//! | 5 | resize | new size in sectors u64 |
//! | 6 | close | - |
//! | 7 | snapshot made | snapshot id (16 bytes) |
//! | 8 | snapshot deleted | snapshot id (16 bytes) |
//! | 9 | rolled back | snapshot id (16 bytes) |
//!
//! `resize` to less: what lies beyond reads as zeros, also if the volume grows again. `rolled back`: contents and
//! size are those in the snapshot's object, and nothing of what the records before it did.
//!
//! Later records of a volume win over earlier ones. `zero` and `trim` read the same (zeros); the
//! log keeps what the host asked for. An unknown tag is refused: skipping it would be a silent
//! loss.

use super::SnapshotId;
use super::codec::{FormatResult, Problem, Reader, Writer};
use super::volume::VOLUME_SIZE_MAX;
use crate::units::{SECTOR_SIZE, Sector, SectorCount, SectorRange};

/// One change of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// `range` holds the payload from `offset` (in sectors) on.
    Data {
        /// Where on the volume.
        range: SectorRange,
        /// Where in the chunk's payload.
        offset: u32,
    },
    /// `range` reads as zeros, by a write-zeroes request.
    Zero(SectorRange),
    /// `range` reads as zeros, by a discard.
    Trim(SectorRange),
    /// First record of an owner's term.
    EpochStart,
    /// The volume has a new size; what lies beyond it is gone.
    Resize(SectorCount),
    /// The owner has left in order; nothing of its term follows.
    Close,
    /// A snapshot was made; its object says of what.
    SnapshotMade(SnapshotId),
    /// A snapshot was deleted.
    SnapshotDeleted(SnapshotId),
    /// Contents and size are those of the snapshot.
    RolledBack(SnapshotId),
}

/// Size of a record's tag and length.
const PREFIX: usize = 4;

/// Size of the largest record: what a writer reserves for one.
pub const MAX_LEN: usize = PREFIX + 16;

impl Record {
    /// Appends the record to `w`.
    pub fn encode(&self, w: &mut Writer) {
        let mut head = |tag: u8, len: u16| {
            w.u8(tag).u8(0).u16(len);
        };
        match self {
            Record::Data { range, offset } => {
                head(1, 16);
                w.u64(range.start().0).u32(range.len().0 as u32).u32(*offset);
            }
            Record::Zero(range) => {
                head(2, 16);
                w.u64(range.start().0).u64(range.len().0);
            }
            Record::Trim(range) => {
                head(3, 16);
                w.u64(range.start().0).u64(range.len().0);
            }
            Record::EpochStart => head(4, 0),
            Record::Resize(size) => {
                head(5, 8);
                w.u64(size.0);
            }
            Record::Close => head(6, 0),
            Record::SnapshotMade(id) => {
                head(7, 16);
                w.put(&id.bytes());
            }
            Record::SnapshotDeleted(id) => {
                head(8, 16);
                w.put(&id.bytes());
            }
            Record::RolledBack(id) => {
                head(9, 16);
                w.put(&id.bytes());
            }
        }
    }

    /// Parses the next record of `r`, of a chunk with `payload` sectors.
    pub fn parse(r: &mut Reader<'_>, payload: u32) -> FormatResult<Record> {
        let tag = r.u8("record tag")?;
        r.reserved("record flags", 1)?;
        let len = usize::from(r.u16("record length")?);
        let expected = match tag {
            1..=3 | 7..=9 => 16,
            4 | 6 => 0,
            5 => 8,
            _ => {
                return Err(r.error("record tag", Problem::Unsupported(tag.to_string())));
            }
        };
        if len != expected {
            return Err(r.bad("record length", format!("{len} for tag {tag}")));
        }
        Ok(match tag {
            1 => {
                let start = r.u64("data lba")?;
                let len = r.u32("data length")?;
                let offset = r.u32("data offset")?;
                if offset.checked_add(len).is_none_or(|end| end > payload) {
                    return Err(r.bad("data offset", format!("{offset}+{len} of {payload}")));
                }
                Record::Data { range: range(r, start, u64::from(len))?, offset }
            }
            2 | 3 => {
                let (start, len) = (r.u64("lba")?, r.u64("length")?);
                let range = range(r, start, len)?;
                if tag == 2 { Record::Zero(range) } else { Record::Trim(range) }
            }
            4 => Record::EpochStart,
            5 => match r.u64("size")? {
                size if size <= VOLUME_SIZE_MAX / SECTOR_SIZE => Record::Resize(SectorCount(size)),
                size => return Err(r.bad("size", size)),
            },
            6 => Record::Close,
            7 => Record::SnapshotMade(SnapshotId::from_bytes(r.bytes16("snapshot")?)),
            8 => Record::SnapshotDeleted(SnapshotId::from_bytes(r.bytes16("snapshot")?)),
            _ => Record::RolledBack(SnapshotId::from_bytes(r.bytes16("snapshot")?)),
        })
    }
}

fn range(r: &Reader<'_>, start: u64, len: u64) -> FormatResult<SectorRange> {
    SectorRange::new(Sector(start), SectorCount(len))
        .filter(|range| !range.is_empty())
        .ok_or_else(|| r.bad("range", format!("{len} sectors at {start}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_round_trip() {
        let id = SnapshotId::from_bytes(*b"0123456789abcdef");
        let all = [Record::SnapshotMade(id), Record::SnapshotDeleted(id), Record::RolledBack(id)];
        for record in all {
            let mut w = Writer::default();
            record.encode(&mut w);
            let bytes = w.finish();
            assert!(bytes.len() <= MAX_LEN);
            assert_eq!(Record::parse(&mut Reader::new("chunk", &bytes), 0).unwrap(), record);
            assert!(
                Record::parse(&mut Reader::new("chunk", &bytes[..bytes.len() - 1]), 0).is_err()
            );
        }
    }
}
