//! The journal's formats, on a local disk and in the run directory: golden samples, and parsers
//! that notice every change of what a checksum covers. What lies behind a right checksum is for the
//! fuzz target `journal`.

use crate::samples;
use objblk::format::FormatResult;
use objblk::format::codec::Reader;
use objblk::format::volume::VOLUME_SIZE_MAX;
use objblk::journal::entry::{self, Change, Entry, HEAD_LEN};
use objblk::journal::mirror::{self, Ending, Segment};
use objblk::journal::ring::{BatchHeader, SegmentHeader, SlotIndex, Superblock};
use objblk::units::{SECTOR_SIZE, SectorCount};
use proptest::prelude::*;

fn parse(name: &str, bytes: &[u8]) -> FormatResult<()> {
    match name {
        name if name.starts_with("journal-superblock") => Superblock::parse(bytes).map(drop),
        name if name.starts_with("journal-segment") => SegmentHeader::parse(bytes).map(drop),
        name if name.starts_with("journal-batch") => BatchHeader::parse(bytes).map(drop),
        name if name.starts_with("mirror-segment") => Segment::parse(bytes).map(drop),
        _ => panic!("{name} is no sample of the journal"),
    }
}

/// The entries up to their end, which must not be inside one.
fn entries(bytes: &[u8]) -> Vec<Entry<'_>> {
    let mut r = Reader::new("entries", bytes);
    let mut found = Vec::new();
    while r.remaining() > 0 {
        found.push(entry::read("entries", &mut r).unwrap());
    }
    assert!(!found.contains(&Entry::Torn), "{found:?}");
    found
}

#[test]
fn golden_ring_reads_back() {
    // On the disk whole blocks hold them: what follows is not theirs.
    let block = |name| {
        let mut bytes = samples::golden(name);
        bytes.resize(4096, 0);
        bytes
    };
    let superblock = Superblock::parse(&block("journal-superblock-v1.hex")).unwrap();
    assert_eq!(superblock, samples::superblock());
    let header = SegmentHeader::parse(&block("journal-segment-v1.hex")).unwrap();
    assert_eq!(header, samples::segment_header());
    let batch = block("journal-batch-v1.hex");
    let (header, bytes) = BatchHeader::parse(&batch).unwrap();
    assert_eq!(header, samples::batch_header());
    let data = samples::sector();
    let mut expected: Vec<_> = samples::changes(&data).into_iter().map(Entry::Change).collect();
    expected.push(Entry::SlotEnd);
    assert_eq!(entries(bytes), expected);
}

/// The same of an encrypted volume opens by its key, at its offset, and by no other, nowhere else.
#[test]
fn golden_sealed_ring_opens() {
    let superblock = Superblock::parse(&samples::golden("journal-superblock-sealed-v1.hex"));
    assert_eq!(superblock, Ok(samples::sealed_superblock()));
    let (key, at) = (samples::local_key(), samples::OFFSET);
    let segment = SegmentHeader::parse(&samples::golden("journal-segment-v2.hex")).unwrap();
    assert_eq!(SegmentHeader { seal: None, ..segment }, samples::segment_header());
    assert_eq!(segment.verify(Some(&key), at), Ok(()));
    let batch = samples::golden("journal-batch-v2.hex");
    let (header, sealed) = BatchHeader::parse(&batch).unwrap();
    assert_eq!(BatchHeader { seal: None, ..header }, samples::batch_header());
    let mut opened = sealed.to_vec();
    assert_eq!(header.open(Some(&key), at, &mut opened), Ok(()));
    let data = samples::sector();
    let mut expected: Vec<_> = samples::changes(&data).into_iter().map(Entry::Change).collect();
    expected.push(Entry::SlotEnd);
    assert_eq!(entries(&opened), expected);
    for (key, at, says) in
        [(Some(&key), at + 4096, "was changed"), (None, at, "key of its volume was not given")]
    {
        let refused = segment.verify(key, at).unwrap_err().to_string();
        assert!(refused.contains(says), "{refused}");
        let refused = header.open(key, at, &mut sealed.to_vec()).unwrap_err().to_string();
        assert!(refused.contains(says), "{refused}");
    }
    let clear = samples::batch_header().open(Some(&key), at, &mut []).unwrap_err().to_string();
    assert!(clear.contains("it is not sealed"), "{clear}");
}

/// The slot of the last entry says how many slots a batch has: never more than it has room for.
#[test]
fn a_sealed_batch_has_no_more_slots_than_entries() {
    let batch = samples::golden("journal-batch-v2.hex");
    let (header, _) = BatchHeader::parse(&batch).unwrap();
    let (seal, last) = header.seal.unwrap();
    for (slot, is_right) in [(last.0 - 1, false), (last.0 + 3, true), (u64::MAX, false)] {
        let mut other = batch.clone();
        BatchHeader { seal: Some((seal, SlotIndex(slot))), ..header }.put(&mut other);
        assert_eq!(BatchHeader::parse(&other).is_ok(), is_right, "{slot}");
    }
}

fn assert_mirror(bytes: &[u8]) {
    let segment = Segment::parse(bytes).unwrap();
    assert_eq!(segment.header, samples::mirror_header());
    assert_eq!(segment.changes, samples::changes(&samples::sector()));
    assert_eq!(segment.ending, Ending::Continued);
}

/// That of this version, and the one before.
#[test]
fn golden_mirrors_read_back() {
    assert_mirror(&samples::golden("mirror-segment-v2.hex"));
    assert_mirror(&samples::golden("mirror-segment-v4.hex"));
}

#[test]
fn golden_sealed_mirrors_open() {
    for name in ["mirror-segment-v3.hex", "mirror-segment-v5.hex"] {
        let sealed = samples::golden(name);
        let bytes = mirror::sealed::open(sealed.clone(), Some(&samples::local_key())).unwrap();
        assert_eq!(hex(&bytes), hex(&samples::golden("mirror-segment-v4.hex")));
        let refused = Segment::parse(&sealed).unwrap_err().to_string();
        assert!(refused.contains("needs a newer objblk"), "{refused}");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_newer_version_of_the_journal_is_refused_as_such() {
    for (name, mut bytes) in samples::journal() {
        bytes[8] = 9;
        let text = parse(name, &bytes).unwrap_err().to_string();
        let says = format!("needs a newer objblk: `version` at byte 8 is {}", bytes[8]);
        assert!(text.contains(&says), "{name}: {text}");
    }
}

/// What cannot have been written is refused, whatever its checksum says.
#[test]
fn a_claim_is_no_longer_than_what_is_written() {
    let longest = "c".repeat(64);
    let mut superblock = Superblock { claims: vec![longest.clone()], ..samples::superblock() };
    let bytes = superblock.encode().unwrap();
    assert_eq!(Superblock::parse(&bytes), Ok(superblock.clone()));
    let at = bytes.len() - 4 - 64 - 1;
    assert_eq!(bytes[at], 64);
    let mut longer = bytes[..bytes.len() - 4].to_vec();
    longer.push(b'c');
    longer[at] = 65;
    let len = longer.len() as u32 + 4;
    longer[12..16].copy_from_slice(&len.to_le_bytes());
    let crc = crc32c::crc32c(&longer);
    longer.extend_from_slice(&crc.to_le_bytes());
    let error = Superblock::parse(&longer).unwrap_err().to_string();
    assert!(error.contains("a bad `claim length`"), "{error}");
    assert!(error.ends_with("65, more than 64"), "{error}");
    superblock.claims[0].push('c');
    assert_eq!(superblock.encode(), None);
}

#[test]
fn every_flipped_bit_of_the_journal_is_noticed() {
    for (name, bytes) in samples::journal() {
        parse(name, &bytes).unwrap();
        for at in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            assert!(parse(name, &damaged).is_err(), "{name}: bit {at}");
        }
    }
}

#[test]
fn every_truncation_of_the_journal_is_noticed() {
    for (name, bytes) in samples::journal() {
        for len in 0..bytes.len() {
            assert!(parse(name, &bytes[..len]).is_err(), "{name} cut to {len} bytes");
        }
    }
}

/// A mirror of the version before may end anywhere behind its header; then it has the changes that are whole.
#[test]
fn an_old_mirror_may_be_cut_off() {
    let bytes = samples::golden("mirror-segment-v2.hex");
    let whole = Segment::parse(&bytes).unwrap();
    for len in 0..bytes.len() {
        match Segment::parse(&bytes[..len]) {
            Ok(cut) => {
                assert_ne!(cut.ending, Ending::Continued, "{len} bytes");
                assert!(whole.changes.starts_with(&cut.changes), "{len} bytes");
            }
            Err(e) => assert!(len < mirror::HEADER_LEN, "cut to {len} bytes: {e}"),
        }
    }
}

/// A head with `changes` in it and a right checksum.
fn patched(head: [u8; HEAD_LEN], changes: &[(usize, u8)]) -> [u8; HEAD_LEN] {
    let mut head = head;
    changes.iter().for_each(|(at, value)| head[*at] = *value);
    let crc = crc32c::crc32c(&head[..28]);
    head[28..].copy_from_slice(&crc.to_le_bytes());
    head
}

fn read(head: &[u8]) -> FormatResult<Entry<'_>> {
    entry::read("entry", &mut Reader::new("entry", head))
}

/// An entry that no writer writes is damage, or of a version that is not known, whatever its
/// checksum says.
#[test]
fn fields_that_an_entry_does_not_have_are_zero() {
    let data = samples::sector();
    let unused: [(usize, &[usize]); 5] = [
        (1, &[4, 24]),
        (2, &[4, 24]),
        (3, &[4, 16, 24]),
        (4, &[4, 8, 16, 24]),
        (5, &[4, 8, 16, 24]),
    ];
    let mut heads: Vec<_> = samples::changes(&data).iter().map(|c| c.encode().0).collect();
    heads.extend([entry::continued(), entry::slot_end()]);
    for (which, fields) in unused {
        assert!(read(&patched(heads[which], &[])).is_ok());
        for at in fields {
            let damaged = patched(heads[which], &[(*at, 1)]);
            assert!(read(&damaged).is_err(), "byte {at} of {:?}", heads[which]);
        }
    }
}

/// As in a chunk's records: what cannot be put into the log is not taken from a journal.
#[test]
fn a_size_beyond_the_limit_is_refused() {
    let most = VOLUME_SIZE_MAX / SECTOR_SIZE;
    let resize = |sectors| Change::Resize(SectorCount(sectors)).encode().0;
    assert_eq!(read(&resize(most)), Ok(Entry::Change(Change::Resize(SectorCount(most)))));
    assert_eq!(read(&resize(most + 1)).unwrap_err().field, "size");
    assert_eq!(read(&resize(u64::MAX)).unwrap_err().field, "size");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_behind_a_beginning_of_the_journal(
        which in 0..7usize,
        kept in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 1..400),
    ) {
        let (name, sample) = samples::journal().swap_remove(which);
        let mut input = sample[..kept.index(sample.len())].to_vec();
        input.extend(&bytes);
        let parsed = parse(name, &input);
        prop_assert!(parsed.is_err() || input.starts_with(&sample) || name.starts_with("mirror"));
    }
}
