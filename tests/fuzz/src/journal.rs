//! What is read of a journal or mirror after a crash.
//!
//! Every input goes to every parser, as it is and with all its checksums put right: the header's,
//! and those of each entry's head and payload.

use super::alloc::Bound;
use super::formats::{TABLES, repaired};
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk};
use objblk::cipher::LocalKey;
use objblk::format::codec::Reader;
use objblk::format::volume::VOLUME_SIZE_MAX;
use objblk::journal::entry::{self, Change, Entry, HEAD_LEN};
use objblk::journal::mirror::sealed::{self, SEALED_HEADER_LEN};
use objblk::journal::mirror::{Ending, HEADER_LEN, Segment};
use objblk::journal::ring::{
    BATCH_HEADER_LEN, BatchHeader, SEALED_BATCH_LEN, SegmentHeader, Superblock,
};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// A claim has a byte at least and takes 24 in memory, in a vector that grows by doubling.
const CLAIMS: Bound = Bound { factor: 48, constant: 4096 };

/// Longest claim that is written.
const CLAIM_MAX: usize = 64;

/// Bytes that are covered by the checksum of a segment's and of a mirror's header.
const SEGMENT_BODY: usize = 64;
const SEALED_SEGMENT_BODY: usize = 112;
const MIRROR_BODY: usize = HEADER_LEN - 4;

pub fn journal(data: &[u8]) {
    check_superblock(data);
    let len = number(data, 12).and_then(|len| len.checked_sub(4));
    len.and_then(|at| repaired(data, 0, at)).iter().for_each(|bytes| check_superblock(bytes));

    check_segment(data);
    repaired(data, 0, SEGMENT_BODY).iter().for_each(|bytes| check_segment(bytes));
    repaired(data, 0, SEALED_SEGMENT_BODY).iter().for_each(|bytes| check_segment(bytes));

    check_batch(data);
    repaired_batch(data).iter().for_each(|bytes| check_batch(bytes));
    repaired_sealed(data).iter().for_each(|bytes| check_batch(bytes));

    check_entries(data);
    check_entries(&repaired_entries(data, 0));

    check_sealed_mirror(data);
    repaired(data, 0, SEALED_HEADER_LEN - 4).iter().for_each(|bytes| check_sealed_mirror(bytes));

    check_mirror(data);
    let whole = repaired_entries(data, HEADER_LEN);
    repaired(&whole, 0, MIRROR_BODY).iter().for_each(|bytes| check_mirror(bytes));
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let number = bytes.get(at..)?.first_chunk::<4>()?;
    usize::try_from(u32::from_le_bytes(*number)).ok()
}

fn put_crc(bytes: &mut [u8], crc: u32) {
    bytes.copy_from_slice(&crc.to_le_bytes());
}

/// A copy whose entries from `at` on have right checksums.
fn repaired_entries(bytes: &[u8], mut at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    while let Some((head, rest)) =
        bytes.get_mut(at..).and_then(|rest| rest.split_first_chunk_mut::<HEAD_LEN>())
    {
        let mut payload = 0;
        if head[0] == 1 {
            let sectors = u64::from_le_bytes([
                head[16], head[17], head[18], head[19], head[20], head[21], head[22], head[23],
            ]);
            let len = sectors.checked_mul(512).and_then(|len| usize::try_from(len).ok());
            if let Some(data) = len.and_then(|len| rest.get(..len)) {
                put_crc(&mut head[24..28], crc32c::crc32c(data));
                payload = data.len();
            }
        }
        let crc = crc32c::crc32c(&head[..28]);
        put_crc(&mut head[28..], crc);
        at += HEAD_LEN + payload;
    }
    bytes
}

fn repaired_batch(bytes: &[u8]) -> Option<Vec<u8>> {
    const CRC: usize = BATCH_HEADER_LEN - 4;
    let end = BATCH_HEADER_LEN.checked_add(number(bytes, CRC - 4)?)?;
    let mut batch = repaired_entries(bytes.get(..end)?, BATCH_HEADER_LEN);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&batch[..CRC]), &batch[BATCH_HEADER_LEN..]);
    put_crc(&mut batch[CRC..BATCH_HEADER_LEN], crc);
    batch.extend(&bytes[end..]);
    Some(batch)
}

/// What is sealed has no entries that could be put right.
fn repaired_sealed(bytes: &[u8]) -> Option<Vec<u8>> {
    const CRC: usize = BATCH_HEADER_LEN - 4;
    let end = SEALED_BATCH_LEN.checked_add(number(bytes, CRC - 4)?)?;
    let mut batch = bytes.get(..end)?.to_vec();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&batch[..CRC]), &batch[BATCH_HEADER_LEN..]);
    put_crc(&mut batch[CRC..BATCH_HEADER_LEN], crc);
    Some(batch)
}

fn check_superblock(bytes: &[u8]) {
    let parsed = CLAIMS.check(bytes.len(), || Superblock::parse(bytes));
    let Ok(superblock) = parsed else { return };
    match superblock.encode() {
        Some(again) => assert!(bytes.starts_with(&again), "{superblock:?}"),
        None => {
            let long = superblock.claims.iter().any(|claim| claim.len() > CLAIM_MAX);
            assert!(long || bytes.len() > 32 << 10, "{superblock:?}");
        }
    }
}

fn check_segment(bytes: &[u8]) {
    if let Ok(header) = TABLES.check(bytes.len(), || SegmentHeader::parse(bytes)) {
        assert!(bytes.starts_with(&header.encode()), "{header:?}");
    }
}

fn check_batch(bytes: &[u8]) {
    let parsed = TABLES.check(0, || BatchHeader::parse(bytes));
    let Ok((header, entries)) = parsed else { return };
    assert_eq!(entries.len(), header.len as usize);
    assert!(header.slot >= header.term.base, "{header:?}");
    let mut again = [&vec![0; header.lead()], entries].concat();
    header.put(&mut again);
    assert!(bytes.starts_with(&again), "{header:?}");
    match header.seal {
        Some((_, last)) => {
            let slots = last.0.checked_sub(header.slot.0);
            assert!(
                slots.is_some_and(|slots| slots <= (entries.len() / HEAD_LEN) as u64),
                "{header:?}"
            );
        }
        None => check_entries(entries),
    }
}

fn check_entries(bytes: &[u8]) {
    let mut reader = Reader::new("entries", bytes);
    loop {
        let from = reader.offset();
        let read = TABLES.check(0, || entry::read("entries", &mut reader));
        let Ok(entry) = read else { return };
        let (head, payload) = match &entry {
            Entry::Change(change) => {
                check_change(change);
                change.encode()
            }
            Entry::Continued => (entry::continued(), &[][..]),
            Entry::SlotEnd => (entry::slot_end(), &[][..]),
            Entry::Torn => return,
        };
        assert_eq!([&head[..], payload].concat(), bytes[from..reader.offset()], "{entry:?}");
    }
}

fn check_change(change: &Change<'_>) {
    match change {
        Change::Data { start, data, .. } => {
            assert!(!data.is_empty() && data.len() % 512 == 0, "{change:?}");
            let end = start.0.checked_add(data.len() as u64 / 512);
            assert!(end.is_some_and(|end| end <= u64::MAX >> 9), "{change:?}");
        }
        Change::Zero(range) | Change::Trim(range) => {
            assert!(!range.is_empty() && range.end().0 <= u64::MAX >> 9, "{change:?}");
        }
        Change::Resize(size) => assert!(size.0 <= VOLUME_SIZE_MAX / 512, "{change:?}"),
    }
}

/// By a key that nobody has sealed with: nothing but a header opens.
fn check_sealed_mirror(bytes: &[u8]) {
    let derives = Prk::new_less_safe(HKDF_SHA256, &[9; 32]);
    let key = LocalKey::new([7; 16], derives, StdRng::seed_from_u64(1));
    let opened = TABLES.check(2 * bytes.len(), || sealed::open(bytes.to_vec(), Some(&key)));
    if let Ok(plain) = opened {
        let segment = Segment::parse(&plain).expect("what opens is a segment");
        assert!(segment.changes.is_empty(), "{segment:?}");
    }
}

fn check_mirror(bytes: &[u8]) {
    let parsed = TABLES.check(bytes.len(), || Segment::parse(bytes));
    let Ok(segment) = parsed else { return };
    // Up to its version, which may be the one that ends with its file, the header is what would be written.
    let ends_with_file = bytes[8] == 2;
    let header = segment.header.encode();
    assert_eq!(header[10..60], bytes[10..60]);
    let mut again = bytes[..HEADER_LEN].to_vec();
    for change in &segment.changes {
        check_change(change);
        let (head, payload) = change.encode();
        again.extend(head);
        again.extend(payload);
    }
    if segment.ending == Ending::Continued {
        again.extend(entry::continued());
    }
    match segment.ending {
        _ if !ends_with_file => {
            assert_ne!(segment.ending, Ending::Torn);
            again.extend(b"\0nothing");
            assert!(bytes.starts_with(&again));
        }
        Ending::Torn => assert!(bytes.starts_with(&again) && bytes.len() > again.len()),
        Ending::Open | Ending::Continued => assert_eq!(again, bytes),
    }
}
