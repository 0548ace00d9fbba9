//! A segment of an encrypted volume: each change sealed by itself ([`crate::cipher`]). Pure.
//!
//! ```text
//! header                         a change; the sealed bytes follow
//!  0 60 as of a plain one,        0  1 tag: 7 sealed
//!       of version 5              1  3 zero
//! 60 32 salt of the run           4  4 bytes that are sealed
//! 92  4 crc32c of all before      8 16 tag
//!                                24  4 zero
//!                                28  4 crc32c of all before
//! ```
//!
//! What is sealed is an entry, head and payload. Authenticated besides is the header, and by the nonce which one of
//! the segment it is. That the segment is complete is said in the clear, by the same entry as in a plain one, and
//! so is where it ends. Version 3 ends with its file.

use super::mapped::END;
use super::segment::{HEADER_LEN, Header, MAGIC, OBJECT, is_end};
use crate::cipher::{LocalKey, Piece, RUN_SALT_LEN, Run, TAG_LEN};
use crate::format::VolumeId;
use crate::format::codec::{
    FormatError, FormatResult, Problem, Reader, Writer, check_trailing_crc,
};
use crate::journal::entry::{Change, HEAD_LEN, continued};
use crate::units::{Epoch, Seq};

/// The version that is written, and the one that ends with its file.
const VERSION: u16 = 5;
const TO_THE_END: u16 = 3;
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
    /// The last one, sealed, and what stands before it.
    buffer: Vec<u8>,
    head: [u8; HEAD_LEN],
}

impl Sealer {
    /// For a mirror that begins with the segment of this header.
    pub fn new(run: Run, header: Header) -> Sealer {
        let seq = header.seq;
        let header = encode(header, &run);
        Sealer { run, header, seq, count: 0, buffer: Vec::new(), head: [0; HEAD_LEN] }
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

    /// The next change: its head and what is sealed. `None`: the segment has as many as it may have.
    pub fn seal(&mut self, change: Change<'_>) -> Option<(&[u8; HEAD_LEN], &[u8])> {
        let (head, payload) = change.encode();
        let count = self.count;
        self.count = count.checked_add(1)?;
        self.buffer.clear();
        self.buffer.extend_from_slice(&head);
        self.buffer.extend_from_slice(payload);
        let inner = &mut self.buffer;
        let tag = self.run.seal(Piece::Change(self.seq.0, count), &self.header, inner);
        let outer = &mut self.head;
        outer.fill(0);
        outer[0] = SEALED;
        outer[4..8].copy_from_slice(&(inner.len() as u32).to_le_bytes());
        outer[8..8 + TAG_LEN].copy_from_slice(&tag);
        let crc = crc32c::crc32c(&outer[..HEAD_LEN - 4]);
        outer[HEAD_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        Some((&self.head, &self.buffer))
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

/// The version of a segment that is sealed. `None`: this one is not.
fn version(bytes: &[u8]) -> Option<u16> {
    let version = bytes.strip_prefix(MAGIC)?.first_chunk()?;
    Some(u16::from_le_bytes(*version)).filter(|version| matches!(*version, TO_THE_END | VERSION))
}

/// What is said of a change before it: the bytes that are sealed, and their tag.
fn parse_head(head: &[u8], at: usize) -> FormatResult<(usize, [u8; TAG_LEN])> {
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
    Ok((len, tag))
}

/// The plain segment that `bytes` are; of one that ends with its file the last change may be cut off. `key`: that of
/// an encrypted volume.
///
/// # Errors
/// It is damaged, or sealed and there is no key, or not and there is one, or was sealed by another key.
pub fn open(bytes: Vec<u8>, key: Option<&LocalKey>) -> FormatResult<Vec<u8>> {
    let refused = |why| Err(error(0, "version", why));
    let (version, key) = match (version(&bytes), key) {
        (None, None) => return Ok(bytes),
        (None, Some(_)) => return refused("it is not sealed, and its volume is encrypted"),
        (Some(_), None) => {
            return refused("it is sealed, and the key of its volume was not given");
        }
        (Some(version), Some(key)) => (version, key),
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
    let (mut number, mut is_complete): (u32, _) = (0, false);
    loop {
        let at = r.offset();
        if version == VERSION && is_end(&bytes[at..]) {
            break;
        }
        let Ok(head) = r.take("entry", HEAD_LEN) else { break };
        if head == continued() {
            plain.extend_from_slice(head);
            is_complete = true;
            break;
        }
        let (len, tag) = parse_head(head, at)?;
        let sealed = match r.take("change", len) {
            Err(_) if version == TO_THE_END => break,
            sealed => sealed?,
        };
        let from = plain.len();
        plain.extend_from_slice(sealed);
        if !run.open(Piece::Change(seq.0, number), header, &mut plain[from..], &tag) {
            let why = "it was not sealed by the key of its volume, or was changed";
            return Err(error(at, "tag", why));
        }
        number = number.checked_add(1).ok_or_else(|| error(at, "changes", "there are too many"))?;
    }
    match version {
        VERSION if !is_end(&bytes[r.offset()..]) => {
            return Err(error(r.offset(), "end", "the file ends before the changes do"));
        }
        TO_THE_END if is_complete => r.end()?,
        _ => {}
    }
    plain.extend_from_slice(&END);
    Ok(plain)
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
            bytes.extend_from_slice(&sealed(&mut sealer, change));
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    fn sealed(sealer: &mut Sealer, change: Change<'_>) -> Vec<u8> {
        let (head, sealed) = sealer.seal(change).unwrap();
        [head, sealed].concat()
    }

    #[test]
    fn it_opens_up_to_its_end() {
        let (bytes, ends) = sample();
        assert!(!bytes.windows(8).any(|window| window == &DATA[..8]));
        let whole = [&bytes[..], &END].concat();
        for (count, end) in ends.iter().enumerate() {
            // The next one was about to be: all but its first word.
            let mut cut = whole.clone();
            cut[*end..end + END.len()].copy_from_slice(&END);
            let plain = open(cut, Some(&key(1))).unwrap();
            let segment = Segment::parse(&plain).unwrap();
            assert_eq!(segment.changes, changes()[..count]);
            assert_eq!((segment.ending, segment.header), (Ending::Open, header()));
        }
        for len in 0..whole.len() {
            assert!(open(whole[..len].to_vec(), Some(&key(1))).is_err(), "{len} bytes");
        }
        let complete = [&bytes[..], &continued(), &END].concat();
        let plain = open(complete.clone(), Some(&key(1))).unwrap();
        assert_eq!(Segment::parse(&plain).unwrap().ending, Ending::Continued);
        let len = complete.len() - END.len();
        assert!(open(complete[..len].to_vec(), Some(&key(1))).is_err());
    }

    #[test]
    fn every_flipped_bit_is_noticed_and_no_change_takes_the_place_of_another() {
        let (bytes, ends) = sample();
        let whole = [&bytes[..], &END].concat();
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(open(damaged, Some(&key(1))).is_err(), "bit {bit}");
        }
        // The two that are equally long.
        let (second, fourth) = (&bytes[ends[1]..ends[2]], &bytes[ends[3]..ends[4]]);
        let between = &bytes[ends[2]..ends[3]];
        let swapped = [&bytes[..ends[1]], fourth, between, second, &END].concat();
        assert_eq!(swapped.len(), whole.len());
        assert!(open(swapped, Some(&key(1))).is_err());
        let without = [&bytes[..ends[1]], &bytes[ends[2]..], &END].concat();
        assert!(open(without, Some(&key(1))).is_err());
    }

    #[test]
    fn only_its_key_opens_it_and_nothing_plain_counts_as_sealed() {
        let bytes = [&sample().0[..], &END].concat();
        let refused = |bytes: &[u8], key: Option<&LocalKey>| {
            open(bytes.to_vec(), key).unwrap_err().to_string()
        };
        assert!(refused(&bytes, None).contains("was not given"));
        assert!(refused(&bytes, Some(&key(2))).contains("not sealed by the key"));
        let plain = [&header().encode()[..], &END].concat();
        assert!(refused(&plain, Some(&key(1))).contains("is not sealed"));
        assert_eq!(open(plain.clone(), None).unwrap(), plain);
        let (head, payload) = changes()[0].encode();
        let mixed = [&sample().0[..], &head, payload, &END].concat();
        assert!(refused(&mixed, Some(&key(1))).contains("is not sealed"));
    }

    #[test]
    fn the_next_segment_begins_anew() {
        let mut sealer = Sealer::new(key(1).begin_mirror(), header());
        let first = sealed(&mut sealer, changes()[0]);
        let next = Header { seq: Seq(10), ..header() };
        assert_eq!(sealer.header_of(next).len(), SEALED_HEADER_LEN);
        sealer.go_on(next);
        let second = sealed(&mut sealer, changes()[0]);
        assert_ne!(first, second);
        let bytes = [sealer.header(), &second, &END].concat();
        let plain = open(bytes, Some(&key(1))).unwrap();
        assert_eq!(Segment::parse(&plain).unwrap().changes, changes()[..1]);
        assert!(open([sealer.header(), &first, &END].concat(), Some(&key(1))).is_err());
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
