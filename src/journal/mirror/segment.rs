//! A segment: the changes of one slot of the log, in the order in which they were made. Pure.
//!
//! ```text
//!  0  8 magic "OBJBLKMS"      32  8 epoch
//!  8  2 version               40  8 slot of the log
//! 10  6 zero                  48 12 zero
//! 16 16 volume id             60  4 crc32c of all before;  64 entries
//! ```
//!
//! Entries as in [`crate::journal::entry`] follow. Where another one would be is "\0nothing" (8 bytes), and what is
//! behind that means nothing. What is sealed is of version 5: [`super::sealed`] makes this of it.
//!
//! Version 2 ends with its file instead; bytes that end inside an entry are a write that was cut off
//! ([`Ending::Torn`]). (Sealed it is version 3.)
//!
//! Everything else that is not as a writer writes it is damage.

use super::mapped::END;
use crate::format::VolumeId;
use crate::format::codec::{FormatResult, Reader, Writer, check_trailing_crc};
use crate::journal::entry::{self, Change, Entry};
use crate::units::{Epoch, Seq};

pub(super) const MAGIC: &[u8; 8] = b"OBJBLKMS";
/// The version that is written, and the one that ends with its file.
const VERSION: u16 = 4;
const TO_THE_END: u16 = 2;
pub(super) const OBJECT: &str = "mirror segment";

/// Bytes of a segment's header.
pub const HEADER_LEN: usize = 64;
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

    /// And whether the segment ends with its file.
    fn parse(bytes: &[u8]) -> FormatResult<(Header, bool)> {
        let mut r = Reader::new(OBJECT, bytes);
        r.magic(MAGIC)?;
        let to_the_end = r.version_of(&[TO_THE_END, VERSION])? == TO_THE_END;
        let mut r = Reader::new(OBJECT, bytes);
        let body = check_trailing_crc(OBJECT, r.take("header", HEADER_LEN)?)?;
        let mut r = Reader::new(OBJECT, body);
        r.take("magic and version", 10)?;
        r.reserved("reserved", 6)?;
        let volume = VolumeId::from_bytes(r.bytes16("volume")?);
        let (epoch, seq) = (Epoch(r.u64("epoch")?), Seq(r.u64("slot")?));
        r.reserved("reserved", 12)?;
        Ok((Header { volume, epoch, seq }, to_the_end))
    }
}

/// Whether what follows is the word behind the last entry.
pub(super) fn is_end(bytes: &[u8]) -> bool {
    bytes.starts_with(&END)
}

impl<'a> Segment<'a> {
    /// Parses a whole segment.
    pub fn parse(bytes: &'a [u8]) -> FormatResult<Segment<'a>> {
        let (header, to_the_end) = Header::parse(bytes)?;
        let mut r = Reader::new(OBJECT, bytes);
        r.take("header", HEADER_LEN)?;
        let (mut changes, mut ending) = (Vec::new(), Ending::Open);
        while r.remaining() > 0 {
            if !to_the_end && is_end(&bytes[r.offset()..]) {
                return Ok(Segment { header, changes, ending });
            }
            if ending == Ending::Continued {
                break;
            }
            match entry::read(OBJECT, &mut r)? {
                Entry::Change(change) => changes.push(change),
                Entry::SlotEnd => return Err(r.bad("tag", "an end of a slot")),
                Entry::Torn if !to_the_end => break,
                Entry::Torn => return Ok(Segment { header, changes, ending: Ending::Torn }),
                Entry::Continued => ending = Ending::Continued,
            }
        }
        match to_the_end {
            true => r.end().map(|()| Segment { header, changes, ending }),
            false => Err(r.bad("end", "the file ends before the changes do")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::entry::continued;
    use crate::units::{Sector, SectorCount, SectorRange};
    use proptest::prelude::*;

    fn header() -> Header {
        Header { volume: VolumeId::from_bytes([7; 16]), epoch: Epoch(3), seq: Seq(9) }
    }

    fn range(start: u64, len: u64) -> SectorRange {
        SectorRange::new(Sector(start), SectorCount(len)).unwrap()
    }

    /// A segment with one change of each kind, and where each entry ends.
    fn sample(header: Vec<u8>, data: &[u8]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = header;
        let mut ends = vec![bytes.len()];
        for change in [
            Change::Data { start: Sector(5), offset: 3, data },
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

    /// The header of a segment that ends with its file.
    fn old() -> Vec<u8> {
        let mut bytes = header().encode();
        bytes[8] = TO_THE_END as u8;
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn what_is_behind_its_end_means_nothing() {
        let data = [0x5a; 1024];
        let (bytes, ends) = sample(header().encode(), &data);
        let whole = [&bytes[..], &END].concat();
        let first = Segment::parse(&whole).unwrap().changes[0];
        assert_eq!(first, Change::Data { start: Sector(5), offset: 3, data: &data });
        for (count, end) in ends.iter().enumerate() {
            // The next one was about to be: all but its first word.
            let mut cut = whole.clone();
            cut[*end..end + END.len()].copy_from_slice(&END);
            let segment = Segment::parse(&cut).unwrap();
            assert_eq!((segment.changes.len(), segment.ending), (count, Ending::Open));
            assert_eq!(segment.header, header());
            for len in end + END.len()..cut.len() {
                assert_eq!(Segment::parse(&cut[..len]).as_ref(), Ok(&segment), "{len} bytes");
            }
        }
        for len in 0..whole.len() {
            assert!(Segment::parse(&whole[..len]).is_err(), "{len} bytes: the file was cut");
        }
    }

    #[test]
    fn every_cut_of_an_old_one_is_a_prefix_of_whole_changes() {
        let (bytes, ends) = sample(old(), &[0x5a; 1024]);
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
        assert!(Segment::parse(&[&bytes[..], &END, &[0; 64]].concat()).is_err(), "it ends none");
    }

    #[test]
    fn nothing_follows_the_end_of_a_complete_segment() {
        let (mut bytes, _) = sample(old(), &[1; 512]);
        bytes.extend_from_slice(&continued());
        assert_eq!(Segment::parse(&bytes).unwrap().ending, Ending::Continued);
        bytes.push(0);
        assert!(Segment::parse(&bytes).is_err());
        let (mut bytes, _) = sample(header().encode(), &[1; 512]);
        bytes.extend_from_slice(&continued());
        assert!(Segment::parse(&bytes).is_err());
        bytes.extend_from_slice(&END);
        assert_eq!(Segment::parse(&bytes).unwrap().ending, Ending::Continued);
        let (head, _) = Change::Zero(range(1, 2)).encode();
        bytes.truncate(bytes.len() - END.len());
        bytes.extend_from_slice(&[&head[..], &END].concat());
        assert!(Segment::parse(&bytes).is_err());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = [&sample(header().encode(), &[0x33; 512]).0[..], &END].concat();
        for bytes in [bytes, sample(old(), &[0x33; 512]).0] {
            let whole = Segment::parse(&bytes).unwrap();
            for at in 0..bytes.len() * 8 {
                let mut damaged = bytes.clone();
                damaged[at / 8] ^= 1 << (at % 8);
                let parsed = Segment::parse(&damaged);
                assert!(parsed.is_err(), "bit {at} of {whole:?}");
            }
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
