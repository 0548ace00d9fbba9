//! The index of a disk cache: golden samples, and parsers that notice every change.

use crate::samples;
use objblk::cache::disk::entry::{Entry, Geometry};
use objblk::format::{FormatResult, VolumeId};

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

/// That of an encrypted volume does not tell which; its payload opens by the key, for what it is, in its slot.
#[test]
fn golden_sealed_cache_opens() {
    let entry = Entry::parse(&samples::golden("cache-entry-sealed-v1.hex")).unwrap().unwrap();
    let (made, sealed) = samples::sealed_cache_entry();
    assert_eq!(entry, made);
    assert_ne!(sealed, samples::sector());
    let (key, by) = (samples::cache_entry().key, samples::local_key());
    assert!(entry.is_of(&key, true) && !entry.is_of(&key, false));
    assert!(samples::cache_entry().is_of(&key, false) && !samples::cache_entry().is_of(&key, true));
    let mut other = key;
    other.frame.chunk.volume = VolumeId::from_bytes([9; 16]);
    for (key, slot, by, opens) in [
        (key, samples::CACHE_SLOT, Some(&by), true),
        (key, samples::CACHE_SLOT + 1, Some(&by), false),
        (other, samples::CACHE_SLOT, Some(&by), false),
        (key, samples::CACHE_SLOT, None, false),
    ] {
        let mut payload = sealed.clone();
        assert_eq!(entry.open((&key, slot), &mut payload, by), opens, "{key:?} {slot}");
        assert!(!opens || payload == samples::sector());
    }
    assert!(!samples::cache_entry().open((&key, 1), &mut samples::sector(), Some(&by)));
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
