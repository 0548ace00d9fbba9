//! A segment: the changes of one slot of the log, in the order in which they were made. Pure.
//!
//! ```text
//!  0  8 magic "OBJBLKMS"      32  8 epoch
//!  8  2 version               40  8 slot of the log
//! 10  6 zero                  48 12 zero
//! 16 16 volume id             60  4 crc32c of all before;  64 entries
//! ```
//!
//! An entry is a head of 32 bytes, and behind the head of a data entry its payload:
//!
//! ```text
//!  0  1 tag: 1 data, 2 zero, 3 trim, 4 resize, 5 continued in the next slot's segment
//!  1  7 zero                  24  4 crc32c of the payload
//!  8  8 first sector, or size 28  4 crc32c of all before
//! 16  8 sectors
//! ```
//!
//! Bytes that end inside an entry are a write that was cut off ([`Ending::Torn`]). Everything else
//! that is not as a writer writes it is damage.

use crate::format::codec::{FormatResult, Problem, Reader, Writer, check_trailing_crc};
use crate::format::{FormatError, VolumeId};
use crate::units::{Epoch, SECTOR_SIZE, Sector, SectorCount, SectorRange, Seq};

const MAGIC: &[u8; 8] = b"OBJBLKMS";
const VERSION: u16 = 1;
const OBJECT: &str = "mirror segment";

/// Bytes of a segment's header.
pub const HEADER_LEN: usize = 64;
/// Bytes of an entry's head.
pub const HEAD_LEN: usize = 32;

/// Whose changes a segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The volume.
    pub volume: VolumeId,
    /// The owner's term.
    pub epoch: Epoch,
    /// The slot of the log that they go to.
    pub seq: Seq,
}

/// One change of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// These sectors were written.
    Data {
        /// The first one.
        start: Sector,
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

/// How a segment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// After a whole change: more may have been about to come.
    Open,
    /// Inside an entry, which was never acknowledged.
    Torn,
    /// The slot is complete; the segment of the next slot is there.
    Continued,
}

/// What a segment holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Whose it is.
    pub header: Header,
    /// The changes, in order.
    pub changes: Vec<Change<'a>>,
    /// How it ends.
    pub ending: Ending,
}

impl Header {
    /// The bytes that begin a segment.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(HEADER_LEN);
        w.put(MAGIC).u16(VERSION).zeros(6).put(&self.volume.bytes());
        w.u64(self.epoch.0).u64(self.seq.0).zeros(12).crc();
        w.finish()
    }

    fn parse(bytes: &[u8]) -> FormatResult<Header> {
        let mut r = Reader::new(OBJECT, bytes);
        r.magic(MAGIC)?;
        r.version(VERSION)?;
        let mut r = Reader::new(OBJECT, bytes);
        let body = check_trailing_crc(OBJECT, r.take("header", HEADER_LEN)?)?;
        let mut r = Reader::new(OBJECT, body);
        r.take("magic and version", 10)?;
        r.reserved("reserved", 6)?;
        let volume = VolumeId::from_bytes(r.bytes16("volume")?);
        let (epoch, seq) = (Epoch(r.u64("epoch")?), Seq(r.u64("slot")?));
        r.reserved("reserved", 12)?;
        Ok(Header { volume, epoch, seq })
    }
}

impl<'a> Change<'a> {
    /// The head of its entry and the payload behind that.
    pub fn encode(&self) -> ([u8; HEAD_LEN], &'a [u8]) {
        match *self {
            Change::Data { start, data } => {
                let sectors = data.len() as u64 / SECTOR_SIZE;
                (head(1, start.0, sectors, crc32c::crc32c(data)), data)
            }
            Change::Zero(range) => (head(2, range.start().0, range.len().0, 0), &[]),
            Change::Trim(range) => (head(3, range.start().0, range.len().0, 0), &[]),
            Change::Resize(size) => (head(4, size.0, 0, 0), &[]),
        }
    }
}

/// The entry that ends a complete segment.
pub fn continued() -> [u8; HEAD_LEN] {
    head(5, 0, 0, 0)
}

fn head(tag: u8, first: u64, second: u64, payload_crc: u32) -> [u8; HEAD_LEN] {
    let mut head = [0; HEAD_LEN];
    head[0] = tag;
    head[8..16].copy_from_slice(&first.to_le_bytes());
    head[16..24].copy_from_slice(&second.to_le_bytes());
    head[24..28].copy_from_slice(&payload_crc.to_le_bytes());
    let crc = crc32c::crc32c(&head[..28]);
    head[28..].copy_from_slice(&crc.to_le_bytes());
    head
}

/// What stands at an entry's place.
enum Entry<'a> {
    Change(Change<'a>),
    Continued,
    Torn,
}

impl<'a> Segment<'a> {
    /// Parses a whole segment.
    pub fn parse(bytes: &'a [u8]) -> FormatResult<Segment<'a>> {
        let header = Header::parse(bytes)?;
        let mut r = Reader::new(OBJECT, bytes);
        r.take("header", HEADER_LEN)?;
        let mut changes = Vec::new();
        while r.remaining() > 0 {
            match entry(&mut r)? {
                Entry::Change(change) => changes.push(change),
                Entry::Torn => return Ok(Segment { header, changes, ending: Ending::Torn }),
                Entry::Continued => {
                    r.end()?;
                    return Ok(Segment { header, changes, ending: Ending::Continued });
                }
            }
        }
        Ok(Segment { header, changes, ending: Ending::Open })
    }
}

fn entry<'a>(r: &mut Reader<'a>) -> FormatResult<Entry<'a>> {
    if r.remaining() < HEAD_LEN {
        return Ok(Entry::Torn);
    }
    let at = r.offset();
    let bytes = r.take("entry", HEAD_LEN)?;
    // Offsets in errors are those of the segment.
    let here = |e: FormatError| FormatError { offset: at + e.offset, ..e };
    let mut h = Reader::new(OBJECT, check_trailing_crc(OBJECT, bytes).map_err(here)?);
    let tag = h.u8("tag").map_err(here)?;
    h.reserved("reserved", 7).map_err(here)?;
    let (first, second) = (h.u64("first").map_err(here)?, h.u64("length").map_err(here)?);
    let payload_crc = h.u32("payload crc").map_err(here)?;
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
                    Change::Data { start: range.start(), data }
                }
                _ => return Ok(Entry::Torn),
            }
        }
        2 => Change::Zero(range()?),
        3 => Change::Trim(range()?),
        4 => Change::Resize(SectorCount(first)),
        5 => return Ok(Entry::Continued),
        _ => return Err(here(h.error("tag", Problem::Unsupported(tag.to_string())))),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header { volume: VolumeId::from_bytes([7; 16]), epoch: Epoch(3), seq: Seq(9) }
    }

    fn range(start: u64, len: u64) -> SectorRange {
        SectorRange::new(Sector(start), SectorCount(len)).unwrap()
    }

    /// A segment with one change of each kind, and where each entry ends.
    fn sample(data: &[u8]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = header().encode();
        let mut ends = vec![bytes.len()];
        for change in [
            Change::Data { start: Sector(5), data },
            Change::Zero(range(1, 2)),
            Change::Trim(range(3, 4)),
            Change::Resize(SectorCount(4096)),
        ] {
            let (head, payload) = change.encode();
            bytes.extend_from_slice(&head);
            bytes.extend_from_slice(payload);
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    #[test]
    fn every_cut_is_a_prefix_of_whole_changes() {
        let data = [0x5a; 1024];
        let (bytes, ends) = sample(&data);
        for cut in HEADER_LEN..=bytes.len() {
            let segment = Segment::parse(&bytes[..cut]).unwrap();
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            assert_eq!(segment.changes.len(), whole, "cut at {cut}");
            let clean = ends.contains(&cut);
            assert_eq!(segment.ending, if clean { Ending::Open } else { Ending::Torn });
            assert_eq!(segment.header, header());
        }
        for cut in 0..HEADER_LEN {
            assert!(Segment::parse(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let first = Segment::parse(&bytes).unwrap().changes[0];
        assert_eq!(first, Change::Data { start: Sector(5), data: &data });
    }

    #[test]
    fn nothing_follows_the_end_of_a_complete_segment() {
        let (mut bytes, _) = sample(&[1; 512]);
        bytes.extend_from_slice(&continued());
        assert_eq!(Segment::parse(&bytes).unwrap().ending, Ending::Continued);
        bytes.push(0);
        assert!(Segment::parse(&bytes).is_err());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (bytes, _) = sample(&[0x33; 512]);
        let whole = Segment::parse(&bytes).unwrap();
        for at in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            let parsed = Segment::parse(&damaged);
            assert!(parsed.is_err(), "bit {at} of {whole:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = Segment::parse(&bytes);
            let mut tail = header().encode();
            tail.extend_from_slice(&bytes);
            let _ = Segment::parse(&tail);
        }
    }
}
