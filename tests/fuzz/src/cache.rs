//! What is read of the index of a disk cache, which any process of the host may have torn.

use super::formats::{TABLES, repaired};
use objblk::cache::disk::entry::{ENTRY_LEN, Entry, Geometry, SET_LEN, WAYS, victim};
use objblk::format::chunk::FRAME_SIZE;

/// Bytes that are covered by the checksum of a head and of an entry.
const BODY: usize = ENTRY_LEN - 4;

pub fn cache(data: &[u8]) {
    check_head(data);
    repaired(data, 0, BODY).iter().for_each(|bytes| check_head(bytes));

    let mut entries = Vec::new();
    for bytes in data.chunks(ENTRY_LEN).take(WAYS) {
        entries.push(check_entry(bytes));
        entries.extend(repaired(bytes, 0, BODY).iter().map(|bytes| check_entry(bytes)));
    }
    if !entries.is_empty() {
        let way = victim(&entries, data.len() % entries.len());
        let uses = |entry: &Option<Entry>| entry.map_or(0, |entry| entry.uses + 1);
        assert!(entries.iter().all(|entry| uses(entry) >= uses(&entries[way])));
    }
}

fn check_head(bytes: &[u8]) {
    let Ok(geometry) = TABLES.check(0, || Geometry::parse(bytes)) else { return };
    assert!(bytes.starts_with(&geometry.encode()), "{geometry:?}");
    let size = geometry.frames_len().checked_add(geometry.index_len());
    assert_eq!(size.and_then(Geometry::within), Some(geometry));
    assert!(geometry.index_len() >= 2 * SET_LEN as u64);
}

fn check_entry(bytes: &[u8]) -> Option<Entry> {
    let entry = TABLES.check(0, || Entry::parse(bytes)).ok()??;
    assert_eq!(entry.encode()[..], bytes[..ENTRY_LEN], "{entry:?}");
    assert!((1..=FRAME_SIZE as u32).contains(&entry.len), "{entry:?}");
    assert!(entry.key.set(7) < 7 && entry.key.set(1) == 0);
    Some(entry)
}
