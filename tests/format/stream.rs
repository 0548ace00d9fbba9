//! Streams of changes: the golden sample, and a parser that notices every change.

use crate::samples;
use objblk::format::codec::{FormatResult, Problem};
use objblk::format::stream::{
    DATA_SECTORS_MAX, ENTRY_LEN, HEADER_FIXED, StreamEntry, StreamHeader, StreamPosition,
};
use objblk::units::{BlockSize, Sector, SectorCount, SectorRange};

/// Reads a whole stream; without its last byte, it is none.
fn parse(bytes: &[u8]) -> FormatResult<(StreamHeader, Vec<StreamEntry>)> {
    let truncated = |position: &StreamPosition| position.error("stream", Problem::Truncated);
    let nowhere = StreamPosition::behind(&samples::stream_header(), b"");
    let fixed = bytes.first_chunk::<HEADER_FIXED>().ok_or_else(|| truncated(&nowhere))?;
    let len = StreamHeader::len(fixed)?;
    let header = StreamHeader::parse(bytes.get(..len).ok_or_else(|| truncated(&nowhere))?)?;
    let mut position = StreamPosition::behind(&header, &bytes[..len]);
    let mut entries = Vec::new();
    loop {
        let rest = bytes.get(position.offset() as usize..).unwrap_or_default();
        let head = rest.first_chunk::<ENTRY_LEN>().ok_or_else(|| truncated(&position))?;
        let entry = position.parse(head)?;
        entries.push(entry);
        match entry {
            StreamEntry::Data { range, crc } => {
                let data = rest.get(ENTRY_LEN..ENTRY_LEN + range.len().bytes() as usize);
                position.check(crc, data.ok_or_else(|| truncated(&position))?)?;
            }
            StreamEntry::Zeros(_) => {}
            StreamEntry::End if rest.len() == ENTRY_LEN => return Ok((header, entries)),
            StreamEntry::End => return Err(position.error("end", Problem::Truncated)),
        }
    }
}

#[test]
fn golden_stream_reads_back() {
    let (header, entries) = parse(&samples::golden("stream-v1.hex")).unwrap();
    assert_eq!(header, samples::stream_header());
    assert_eq!(entries, samples::stream_entries(&samples::sector()));
}

#[test]
fn a_newer_stream_is_refused_as_such() {
    let (_, mut bytes) = samples::stream().swap_remove(0);
    bytes[8] = 2;
    let text = parse(&bytes).unwrap_err().to_string();
    assert!(text.contains("needs a newer objblk: `version` at byte 8 is 2"), "{text}");
}

#[test]
fn every_flipped_bit_and_every_cut_of_a_stream_is_noticed() {
    let (name, bytes) = samples::stream().swap_remove(0);
    parse(&bytes).unwrap();
    for at in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[at / 8] ^= 1 << (at % 8);
        assert!(parse(&damaged).is_err(), "{name}: bit {at}");
    }
    for len in 0..bytes.len() {
        assert!(parse(&bytes[..len]).is_err(), "{name} cut to {len} bytes");
    }
    assert!(parse(&[&bytes[..], b"x"].concat()).is_err());
}

/// Each entry is right by itself, and in its place only.
#[test]
fn entries_that_are_lost_doubled_or_swapped_are_noticed() {
    let (_, bytes) = samples::stream().swap_remove(0);
    let header = samples::stream_header().encode().len();
    let zeros = header + ENTRY_LEN;
    let data = zeros + ENTRY_LEN + 512;
    let parts = [&bytes[..header], &bytes[header..zeros], &bytes[zeros..data], &bytes[data..]];
    assert!(parse(&parts.concat()).is_ok());
    for order in [&[0, 2, 3][..], &[0, 1, 3], &[0, 1, 1, 2, 3], &[0, 2, 1, 3], &[0, 1, 2, 2, 3]] {
        let moved: Vec<&[u8]> = order.iter().map(|part| parts[*part]).collect();
        assert!(parse(&moved.concat()).is_err(), "{order:?}");
    }
}

/// Right checksums do not make absurd numbers true.
#[test]
fn entries_that_cannot_be_are_refused() {
    let header = StreamHeader { block_size: BlockSize::B4096, ..samples::stream_header() };
    let bytes = header.encode();
    assert_eq!(StreamHeader::parse(&bytes).unwrap(), header);
    let begin = StreamPosition::behind(&header, &bytes);
    let range = |start, len| SectorRange::new(Sector(start), SectorCount(len)).unwrap();
    let data = |start, len| StreamEntry::Data { range: range(start, len), crc: 0 };
    let size = header.to.size.0;
    for (entry, good) in [
        (data(8, 8), true),
        (data(0, DATA_SECTORS_MAX), true),
        (data(0, DATA_SECTORS_MAX + 8), false),
        (data(4, 8), false),
        (data(8, 4), false),
        (data(8, 0), false),
        (data(size - 8, 8), true),
        (data(size, 8), false),
        (StreamEntry::Zeros(range(0, size)), true),
        (StreamEntry::Zeros(range(8, size)), false),
        (StreamEntry::End, true),
    ] {
        let encoded = begin.clone().encode(entry);
        let parsed = begin.clone().parse(&encoded);
        assert_eq!(parsed.is_ok(), good, "{entry:?}: {parsed:?}");
    }
    // In order, and the end counts what there was.
    let mut writer = begin.clone();
    let (first, back) = (writer.encode(data(16, 8)), writer.encode(data(8, 8)));
    let mut reader = begin.clone();
    reader.parse(&first).unwrap();
    assert!(reader.parse(&back).is_err());
    for wrong in [
        StreamHeader { chunk_size: 3, ..header.clone() },
        StreamHeader { base: header.base.clone().map(|b| with_name(b, "a@b")), ..header.clone() },
        StreamHeader { to: with_name(header.to.clone(), ""), ..header.clone() },
    ] {
        assert!(StreamHeader::parse(&wrong.encode()).is_err(), "{wrong:?}");
    }
}

fn with_name(
    state: objblk::format::stream::StreamState,
    name: &str,
) -> objblk::format::stream::StreamState {
    objblk::format::stream::StreamState { name: name.into(), ..state }
}
