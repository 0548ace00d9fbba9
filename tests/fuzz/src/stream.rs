//! Streams of changes, as they come from a pipe or a file.

use super::formats::TABLES;
use objblk::format::stream::{ENTRY_LEN, HEADER_FIXED, StreamEntry, StreamHeader, StreamPosition};

/// As it is, and with the checksums of header and entries put right.
pub fn stream(data: &[u8]) {
    check(data);
    repaired(data).iter().for_each(|bytes| check(bytes));
}

fn check(bytes: &[u8]) {
    let Some(fixed) = bytes.first_chunk::<HEADER_FIXED>() else { return };
    let Ok(len) = StreamHeader::len(fixed) else { return };
    let Some(head) = bytes.get(..len) else { return };
    let Ok(header) = TABLES.check(len, || StreamHeader::parse(head)) else { return };
    assert_eq!(header.encode(), head);
    let mut position = StreamPosition::behind(&header, head);
    let mut end = 0;
    loop {
        let rest = bytes.get(position.offset() as usize..).unwrap_or_default();
        let Some(head) = rest.first_chunk::<ENTRY_LEN>() else { return };
        let before = position.clone();
        let Ok(entry) = TABLES.check(0, || position.parse(head)) else { return };
        assert_eq!(before.clone().encode(entry), *head);
        let range = match entry {
            StreamEntry::Data { range, crc } => {
                let data =
                    rest.get(ENTRY_LEN..).and_then(|d| d.get(..range.len().bytes() as usize));
                let is_right = data.is_some_and(|data| crc32c::crc32c(data) == crc);
                assert_eq!(data.is_some_and(|data| position.check(crc, data).is_ok()), is_right);
                range
            }
            StreamEntry::Zeros(range) => range,
            StreamEntry::End => return,
        };
        assert!(!range.is_empty() && range.start().0 >= end && range.end().0 <= header.to.size.0);
        end = range.end().0;
    }
}

fn repaired(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    let mut at = StreamHeader::len(bytes.first_chunk()?).ok()?;
    let put = |bytes: &mut Vec<u8>, at: usize, crc: u32| -> Option<()> {
        bytes.get_mut(at..at + 4)?.copy_from_slice(&crc.to_le_bytes());
        Some(())
    };
    let crc = crc32c::crc32c(bytes.get(..at - 4)?);
    put(&mut bytes, at - 4, crc)?;
    let mut so_far = crc32c::crc32c(bytes.get(..at)?);
    while bytes.len() >= at + ENTRY_LEN {
        let is_data = bytes[at..at + 4] == [1, 0, 0, 0];
        let sectors = bytes[at + 16..at + 24].try_into().map(u64::from_le_bytes).ok()?;
        let len = if is_data { usize::try_from(sectors.checked_mul(512)?).ok()? } else { 0 };
        if is_data && let Some(data) = bytes[at + ENTRY_LEN..].get(..len) {
            let crc = crc32c::crc32c(data);
            put(&mut bytes, at + 4, crc)?;
        }
        so_far = crc32c::crc32c_append(so_far, &bytes[at..at + 24]);
        put(&mut bytes, at + 24, so_far)?;
        at = at.checked_add(ENTRY_LEN)?.checked_add(len)?;
    }
    Some(bytes)
}
