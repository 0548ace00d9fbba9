//! The index of a disk cache: golden samples, and parsers that notice every change.

use crate::samples;
use objblk::cache::disk::entry::{Entry, Geometry};
use objblk::format::FormatResult;

fn parse(name: &str, bytes: &[u8]) -> FormatResult<()> {
    match name {
        "cache-head-v1.hex" => Geometry::parse(bytes).map(drop),
        _ => Entry::parse(bytes).map(drop),
    }
}

#[test]
fn golden_cache_reads_back() {
    let head = Geometry::parse(&samples::golden("cache-head-v1.hex")).unwrap();
    assert_eq!(head, Geometry { sets: 0x0304_0506 });
    let entry = Entry::parse(&samples::golden("cache-entry-v1.hex")).unwrap();
    assert_eq!(entry, Some(samples::cache_entry()));
    assert_eq!(Entry::parse(&[0; 64]), Ok(None));
}

#[test]
fn a_newer_cache_is_refused_as_such() {
    let (_, mut bytes) = samples::cache().swap_remove(0);
    bytes[8] += 1;
    let text = Geometry::parse(&bytes).unwrap_err().to_string();
    assert!(text.contains("needs a newer objblk: `version` at byte 8 is 2"), "{text}");
}

#[test]
fn every_flipped_bit_and_every_cut_of_the_cache_is_noticed() {
    for (name, bytes) in samples::cache() {
        parse(name, &bytes).unwrap();
        for at in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            assert!(parse(name, &damaged).is_err(), "{name}: bit {at}");
        }
        for len in 0..bytes.len() {
            assert!(parse(name, &bytes[..len]).is_err(), "{name} cut to {len} bytes");
        }
    }
}
