//! A segment of an encrypted volume: each change sealed by itself ([`crate::cipher`]). Pure.
//!
//! ```text
//! header                         a change; the sealed bytes follow
//!  0 60 as of a plain one,        0  1 tag: 7 sealed
//!       of version 3              1  3 zero
//! 60 32 salt of the run           4  4 bytes that are sealed
//! 92  4 crc32c of all before      8 16 tag
//!                                24  4 zero
//!                                28  4 crc32c of all before
//! ```
//!
//! What is sealed is an entry, head and payload. Authenticated besides is the header, and by the nonce which one of
//! the segment it is. That the segment is complete is said in the clear, by the same entry as in a plain one.

use super::segment::{HEADER_LEN, Header, MAGIC, OBJECT};
use crate::cipher::{LocalKey, Piece, RUN_SALT_LEN, Run, TAG_LEN};
use crate::format::VolumeId;
use crate::format::codec::{
    FormatError, FormatResult, Problem, Reader, Writer, check_trailing_crc,
};
use crate::journal::entry::{Change, HEAD_LEN, continued};
use crate::units::{Epoch, Seq};

const VERSION: u16 = 3;
/// Bytes of a sealed segment's header.
pub const SEALED_HEADER_LEN: usize = HEADER_LEN + RUN_SALT_LEN;
/// The kind of a sealed entry.
const SEALED: u8 = 7;

/// Seals the changes of a mirror, one after the other.
#[derive(Debug)]
pub struct Sealer {
    run: Run,
    /// Of the segment that is open.
    header: Vec<u8>,
    seq: Seq,
    /// Changes in it.
    count: u32,
    /// The last one, sealed.
    buffer: Vec<u8>,
}

impl Sealer {
    /// For a mirror that begins with the segment of this header.
    pub fn new(run: Run, header: Header) -> Sealer {
        let seq = header.seq;
        let header = encode(header, &run);
        Sealer { run, header, seq, count: 0, buffer: Vec::new() }
    }

    /// The header of the open segment.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// What the header of another segment will be.
    pub fn header_of(&self, header: Header) -> Vec<u8> {
        encode(header, &self.run)
    }

    /// Goes on in the segment of a later slot.
    pub fn go_on(&mut self, header: Header) {
        (self.header, self.seq, self.count) = (encode(header, &self.run), header.seq, 0);
    }

    /// The bytes of the next change. `None`: the segment has as many as it may have.
    pub fn seal(&mut self, change: Change<'_>) -> Option<&[u8]> {
        let (head, payload) = change.encode();
        let count = self.count;
        self.count = count.checked_add(1)?;
        self.buffer.clear();
        self.buffer.resize(HEAD_LEN, 0);
        self.buffer.extend_from_slice(&head);
        self.buffer.extend_from_slice(payload);
        let (outer, inner) = self.buffer.split_at_mut(HEAD_LEN);
        let tag = self.run.seal(Piece::Change(self.seq.0, count), &self.header, inner);
        outer[0] = SEALED;
        outer[4..8].copy_from_slice(&(inner.len() as u32).to_le_bytes());
        outer[8..8 + TAG_LEN].copy_from_slice(&tag);
        let crc = crc32c::crc32c(&outer[..HEAD_LEN - 4]);
        outer[HEAD_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        Some(&self.buffer)
    }
}

fn encode(header: Header, run: &Run) -> Vec<u8> {
    let mut w = Writer::with_capacity(SEALED_HEADER_LEN);
    w.put(MAGIC).u16(VERSION).zeros(6).put(&header.volume.bytes());
    w.u64(header.epoch.0).u64(header.seq.0).zeros(12).put(&run.salt()).crc();
    w.finish()
}

fn error(at: usize, field: &'static str, why: &str) -> FormatError {
    FormatError { object: OBJECT, field, offset: at, problem: Problem::Value(why.into()) }
}

/// The plain segment that `bytes` are, whose last change may be cut off. `key`: that of an encrypted volume.
///
/// # Errors
/// It is damaged, or sealed and there is no key, or not and there is one, or was sealed by another key.
pub fn open(bytes: Vec<u8>, key: Option<&LocalKey>) -> FormatResult<Vec<u8>> {
    let is_sealed =
        bytes.starts_with(MAGIC) && bytes.get(8..10) == Some(&VERSION.to_le_bytes()[..]);
    let key = match (is_sealed, key) {
        (false, None) => return Ok(bytes),
        (false, Some(_)) => {
            return Err(error(0, "version", "it is not sealed, and its volume is encrypted"));
        }
        (true, None) => {
            return Err(error(
                0,
                "version",
                "it is sealed, and the key of its volume was not given",
            ));
        }
        (true, Some(key)) => key,
    };
    let mut r = Reader::new(OBJECT, &bytes);
    let header = r.take("header", SEALED_HEADER_LEN)?;
    let mut h = Reader::new(OBJECT, check_trailing_crc(OBJECT, header)?);
    h.take("magic and version", 10)?;
    h.reserved("reserved", 6)?;
    let volume = VolumeId::from_bytes(h.bytes16("volume")?);
    let (epoch, seq) = (Epoch(h.u64("epoch")?), Seq(h.u64("slot")?));
    h.reserved("reserved", 12)?;
    let mut salt = [0; RUN_SALT_LEN];
    salt.copy_from_slice(h.take("salt", RUN_SALT_LEN)?);
    let run = key.mirror(salt);
    let mut plain = Header { volume, epoch, seq }.encode();
    for number in 0..=u32::MAX {
        let at = r.offset();
        let Ok(head) = r.take("entry", HEAD_LEN) else { return Ok(plain) };
        if head == continued() {
            r.end()?;
            plain.extend_from_slice(head);
            return Ok(plain);
        }
        let mut e = Reader::new(OBJECT, check_trailing_crc(OBJECT, head)?);
        match e.u8("kind")? {
            SEALED => {}
            other => return Err(error(at, "kind", &format!("{other} is not sealed"))),
        }
        e.reserved("reserved", 3)?;
        let len = e.u32("length")? as usize;
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(e.take("tag", TAG_LEN)?);
        e.reserved("reserved", 4)?;
        let Ok(sealed) = r.take("change", len) else { return Ok(plain) };
        let from = plain.len();
        plain.extend_from_slice(sealed);
        if !run.open(Piece::Change(seq.0, number), header, &mut plain[from..], &tag) {
            return Err(error(
                at,
                "tag",
                "it was not sealed by the key of its volume, or was changed",
            ));
        }
    }
    Err(error(0, "changes", "there are too many"))
}

#[cfg(test)]
mod tests {
    use super::super::{Ending, Segment};
    use super::*;
    use crate::units::{Sector, SectorRange};
    use aws_lc_rs::hkdf::{HKDF_SHA256, Prk};
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn key(byte: u8) -> LocalKey {
        let derives = Prk::new_less_safe(HKDF_SHA256, &[byte; 32]);
        LocalKey::new([7; 16], derives, StdRng::seed_from_u64(1))
    }

    fn header() -> Header {
        Header { volume: VolumeId::from_bytes([7; 16]), epoch: Epoch(3), seq: Seq(9) }
    }

    const DATA: [u8; 1024] = [0x5a; 1024];

    fn changes() -> Vec<Change<'static>> {
        let range = SectorRange::between(Sector(1), Sector(3));
        vec![
            Change::Data { start: Sector(5), offset: 3, data: &DATA },
            Change::Zero(range),
            Change::Data { start: Sector(9), offset: 5, data: &DATA[..512] },
            Change::Trim(range),
        ]
    }

    /// A segment, and where each change in it ends.
    fn sample() -> (Vec<u8>, Vec<usize>) {
        let mut sealer = Sealer::new(key(1).begin_mirror(), header());
        let mut bytes = sealer.header().to_vec();
        let mut ends = vec![bytes.len()];
        for change in changes() {
            bytes.extend_from_slice(sealer.seal(change).unwrap());
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    #[test]
    fn every_cut_is_a_prefix_of_whole_changes() {
        let (bytes, ends) = sample();
        assert!(!bytes.windows(8).any(|window| window == &DATA[..8]));
        for cut in SEALED_HEADER_LEN..=bytes.len() {
            let plain = open(bytes[..cut].to_vec(), Some(&key(1))).unwrap();
            let segment = Segment::parse(&plain).unwrap();
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            assert_eq!(segment.changes, changes()[..whole], "cut at {cut}");
            assert_eq!((segment.ending, segment.header), (Ending::Open, header()));
        }
        for cut in 0..SEALED_HEADER_LEN {
            assert!(open(bytes[..cut].to_vec(), Some(&key(1))).is_err(), "cut at {cut}");
        }
        let whole = [&bytes[..], &continued()].concat();
        let plain = open(whole.clone(), Some(&key(1))).unwrap();
        assert_eq!(Segment::parse(&plain).unwrap().ending, Ending::Continued);
        assert!(open([&whole[..], &[0]].concat(), Some(&key(1))).is_err());
    }

    #[test]
    fn every_flipped_bit_is_noticed_and_no_change_takes_the_place_of_another() {
        let (bytes, ends) = sample();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(open(damaged, Some(&key(1))).is_err(), "bit {bit}");
        }
        // The two that are equally long.
        let (second, fourth) = (&bytes[ends[1]..ends[2]], &bytes[ends[3]..ends[4]]);
        let swapped = [&bytes[..ends[1]], fourth, &bytes[ends[2]..ends[3]], second].concat();
        assert_eq!(swapped.len(), bytes.len());
        assert!(open(swapped, Some(&key(1))).is_err());
        assert!(open([&bytes[..ends[1]], &bytes[ends[2]..]].concat(), Some(&key(1))).is_err());
    }

    #[test]
    fn only_its_key_opens_it_and_nothing_plain_counts_as_sealed() {
        let (bytes, _) = sample();
        let refused = |bytes: &[u8], key: Option<&LocalKey>| {
            open(bytes.to_vec(), key).unwrap_err().to_string()
        };
        assert!(refused(&bytes, None).contains("was not given"));
        assert!(refused(&bytes, Some(&key(2))).contains("not sealed by the key"));
        let plain = header().encode();
        assert!(refused(&plain, Some(&key(1))).contains("is not sealed"));
        assert_eq!(open(plain.clone(), None).unwrap(), plain);
        let (head, payload) = changes()[0].encode();
        let mixed = [&bytes[..], &head, payload].concat();
        assert!(refused(&mixed, Some(&key(1))).contains("is not sealed"));
    }

    #[test]
    fn the_next_segment_begins_anew() {
        let mut sealer = Sealer::new(key(1).begin_mirror(), header());
        let first = sealer.seal(changes()[0]).unwrap().to_vec();
        let next = Header { seq: Seq(10), ..header() };
        assert_eq!(sealer.header_of(next).len(), SEALED_HEADER_LEN);
        sealer.go_on(next);
        let second = sealer.seal(changes()[0]).unwrap().to_vec();
        assert_ne!(first, second);
        let bytes = [sealer.header(), &second].concat();
        let plain = open(bytes, Some(&key(1))).unwrap();
        assert_eq!(Segment::parse(&plain).unwrap().changes, changes()[..1]);
        assert!(open([sealer.header(), &first].concat(), Some(&key(1))).is_err());
    }

    proptest! {
        #[test]
        fn opening_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..512), at in 0..400usize) {
            let _ = open(bytes.clone(), Some(&key(1)));
            let (mut whole, _) = sample();
            whole.truncate(at);
            whole.extend(bytes);
            let _ = open(whole, Some(&key(1)));
        }
    }
}
