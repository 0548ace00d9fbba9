//! A sealed object: what is stored in place of an object of an encrypted volume. Pure; the keys are elsewhere.
//!
//! ```text
//!  0  8 magic "OBJBLKSO"     16  segments, one for each 8192 bytes of the object, the last one shorter:
//!  8  2 version                   0 16 salt, the same in all segments of one object
//! 10  6 zero                     16  n bytes of the object, encrypted (AES-256-GCM)
//!                              16+n 16 tag
//! ```
//!
//! An object of no bytes has one segment of none. Every object below `volumes/<id>/` is stored so, but for
//! those that have to be read without the key, or are nothing but a name ([`is_sealed`]).
//!
//! A segment can be opened by itself: it brings its salt along, so that a part of an object is fetched
//! by one request, whatever was fetched before. It is that large because no frame, leaf or page needs
//! much more than itself then, and it costs 32 bytes of 8224.

use super::codec::{FormatError, FormatResult, Problem, Reader, Writer};
use super::keys;
use crate::store::Key;
use std::ops::Range;

/// First bytes of a sealed object.
pub const MAGIC: &[u8; 8] = b"OBJBLKSO";
const VERSION: u16 = 1;
const OBJECT: &str = "sealed object";
/// Bytes before the first segment.
pub const HEADER_LEN: usize = 16;
/// Bytes of an object in a segment.
pub const SEGMENT: u64 = 8192;
/// Bytes of a salt.
pub const SALT_LEN: usize = 16;
/// Bytes of a tag.
pub const TAG_LEN: usize = 16;
/// Bytes of a segment beside those of the object.
pub const OVERHEAD: u64 = (SALT_LEN + TAG_LEN) as u64;
/// From one segment to the next.
pub const STRIDE: u64 = SEGMENT + OVERHEAD;

/// Whether an encrypted volume stores the object of that name sealed. Clear are: the description and the slots
/// of the key, which are needed to have the key; who owns it, and which clones and expiring snapshots are
/// kept, which other volumes and other hosts have to see, and which say nothing of what is in it.
pub fn is_sealed(key: &Key) -> bool {
    let mut parts = key.as_str().splitn(3, '/');
    let (volumes, id, rest) = (parts.next(), parts.next(), parts.next());
    let clear = ["epochs/", "children/", "kept/", keys::KEY_SETS, keys::REPLICA_STATES];
    match (volumes, id, rest) {
        (Some("volumes"), Some(_), Some(rest)) => {
            rest != "volume.json" && !clear.iter().any(|prefix| rest.starts_with(prefix))
        }
        _ => false,
    }
}

/// The header, which is authenticated with every segment.
pub fn header() -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    let mut w = Writer::with_capacity(HEADER_LEN);
    w.put(MAGIC).u16(VERSION).zeros(6);
    header.copy_from_slice(&w.finish());
    header
}

/// Checks the header that `bytes` begin with.
pub fn check_header(bytes: &[u8]) -> FormatResult<()> {
    let mut r = Reader::new(OBJECT, bytes);
    r.magic(MAGIC)?;
    r.version(VERSION)?;
    r.reserved("reserved", 6)
}

/// Segments of an object of `plain` bytes.
pub fn segments(plain: u64) -> u64 {
    plain.div_ceil(SEGMENT).max(1)
}

/// Bytes that an object of `plain` bytes has when it is sealed.
pub fn sealed_len(plain: u64) -> u64 {
    HEADER_LEN as u64 + plain + segments(plain) * OVERHEAD
}

/// Bytes of the object that has so many when it is sealed; `None` where none has.
pub fn plain_len(sealed: u64) -> Option<u64> {
    let behind = sealed.checked_sub(HEADER_LEN as u64)?;
    let plain = behind.checked_sub(behind.div_ceil(STRIDE) * OVERHEAD)?;
    (sealed_len(plain) == sealed).then_some(plain)
}

/// Where the segments are that hold a part of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first one.
    pub first: u64,
    /// The bytes of the sealed object to fetch; from its beginning, where the first segment is among them.
    pub sealed: Range<u64>,
    /// Bytes of the first segment before the part.
    pub skip: u64,
}

impl Span {
    /// Of `len` bytes (at least one) from `offset`.
    pub fn of(offset: u64, len: u64) -> Span {
        let first = offset / SEGMENT;
        let last = offset.saturating_add(len.max(1) - 1) / SEGMENT;
        let at = |segment: u64| segment.saturating_mul(STRIDE).saturating_add(HEADER_LEN as u64);
        let start = if first == 0 { 0 } else { at(first) };
        Span { first, sealed: start..at(last.saturating_add(1)), skip: offset % SEGMENT }
    }
}

/// A segment, as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Its salt.
    pub salt: &'a [u8; SALT_LEN],
    /// The encrypted bytes.
    pub body: &'a [u8],
    /// The tag.
    pub tag: &'a [u8],
    /// It has fewer bytes than others, so it is the last one.
    pub is_short: bool,
}

/// The segments that `bytes` are, which begin `at` bytes into their object: at least one.
pub fn split(bytes: &[u8], at: usize) -> FormatResult<Vec<Segment<'_>>> {
    let cut = |offset, field| {
        let problem = Problem::Truncated;
        FormatError { object: OBJECT, field, offset: at + offset, problem }
    };
    if bytes.is_empty() {
        return Err(cut(0, "segment"));
    }
    let pieces = bytes.chunks(STRIDE as usize).enumerate();
    pieces
        .map(|(index, piece)| {
            let end = index * STRIDE as usize + piece.len();
            let (salt, rest) = piece.split_first_chunk().ok_or_else(|| cut(end, "salt"))?;
            let body = rest.len().checked_sub(TAG_LEN).ok_or_else(|| cut(end, "tag"))?;
            let (body, tag) = rest.split_at(body);
            Ok(Segment { salt, body, tag, is_short: piece.len() < STRIDE as usize })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::keys::{ChunkId, checkpoint, child, epoch, kept, profile, volume};
    use crate::format::{SnapshotId, VolumeId};
    use crate::units::{Epoch, Seq};
    use proptest::prelude::*;

    #[test]
    fn what_is_read_without_the_key_is_clear() {
        let (id, snapshot) = (VolumeId::from_bytes([7; 16]), SnapshotId::from_bytes([8; 16]));
        let chunk = ChunkId { volume: id, epoch: Epoch(1), seq: Seq(2) }.key();
        let sealed = [chunk, checkpoint(id, Seq(1), Epoch(1)), profile(id)];
        assert!(sealed.iter().all(is_sealed));
        let clear = [volume(id), epoch(id, Epoch(1)), kept(id, snapshot), child(id, snapshot, id)];
        let clear = clear.into_iter().chain([keys::key_set(id, 3), keys::pool()]);
        assert!(!clear.chain(keys::name("data")).any(|key| is_sealed(&key)));
    }

    #[test]
    fn lengths_at_the_edges() {
        let edges = [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT, 64 << 20];
        for plain in edges {
            assert_eq!(plain_len(sealed_len(plain)), Some(plain), "{plain}");
        }
        for sealed in [0, 15, 16, 47, HEADER_LEN as u64 + STRIDE + OVERHEAD] {
            assert_eq!(plain_len(sealed), None, "{sealed}");
        }
    }

    proptest! {
        #[test]
        fn lengths_are_told_apart(plain in 0u64..1 << 40, sealed in 0u64..1 << 40) {
            prop_assert_eq!(plain_len(sealed_len(plain)), Some(plain));
            prop_assert!(plain_len(sealed).is_none_or(|plain| sealed_len(plain) == sealed));
        }

        #[test]
        fn a_part_is_in_the_segments_that_are_fetched(offset in 0u64..1 << 30, len in 1u64..1 << 24) {
            let span = Span::of(offset, len);
            let base = if span.first == 0 { HEADER_LEN as u64 } else { 0 };
            let whole = (span.sealed.end - span.sealed.start - base) / STRIDE;
            prop_assert_eq!(span.first * SEGMENT + span.skip, offset);
            prop_assert!(offset + len <= (span.first + whole) * SEGMENT);
            prop_assert!(offset + len > (span.first + whole - 1) * SEGMENT);
            prop_assert!(span.sealed.end - span.sealed.start <= (len / SEGMENT + 2) * STRIDE + base);
        }

        #[test]
        fn any_bytes_are_segments_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..20_000)) {
            let _ = check_header(&bytes);
            if let Ok(segments) = split(&bytes, 0) {
                let total: usize = segments.iter().map(|s| s.body.len() + OVERHEAD as usize).sum();
                prop_assert_eq!(total, bytes.len());
            }
        }
    }

    #[test]
    fn a_part_without_an_end() {
        assert_eq!(Span::of(u64::MAX, u64::MAX).sealed.end, u64::MAX);
    }
}
