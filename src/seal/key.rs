//! A volume's key, and what is sealed with it. See the module above for why that is sound.

use crate::cipher::LocalKey;
use crate::format::VolumeId;
use crate::format::codec::{FormatError, FormatResult, Problem};
use crate::format::features::Features;
use crate::format::sealed::{
    HEADER_LEN, OVERHEAD, SALT_LEN, SEGMENT, Segment, TAG_LEN, check_header, header, sealed_len,
    split,
};
use crate::format::volume::VolumeObject;
use crate::mutant::{self, Mutant};
use crate::store::Key;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk};
use aws_lc_rs::hmac;
use bytes::Bytes;
use rand::rngs::StdRng;
use std::fmt;
use zeroize::Zeroizing;

/// Bytes of a volume's key.
pub(super) const KEY_LEN: usize = 32;
/// What keys of objects are made for, so that the volume's key can be used for other things as well.
const PURPOSE: &[u8] = b"objblk sealed object 1";
/// The same, for descriptions.
const SIGNS: &[u8] = b"objblk description 1";

/// Random bytes that no other sealing has.
pub type Salt = [u8; SALT_LEN];

/// The key of a volume.
pub struct VolumeKey {
    bytes: Zeroizing<[u8; KEY_LEN]>,
    derives: Prk,
    /// Descriptions of its volumes are signed with it.
    signs: bool,
}

impl fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeKey")
    }
}

/// Segments that were opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub plain: Bytes,
    /// The object's last segment is among them.
    pub ended: bool,
}

impl VolumeKey {
    /// The key of these bytes, which nobody can guess, of volumes whose descriptions are not signed.
    pub fn new(bytes: [u8; KEY_LEN]) -> VolumeKey {
        let derives = Prk::new_less_safe(HKDF_SHA256, &bytes);
        VolumeKey { bytes: Zeroizing::new(bytes), derives, signs: false }
    }

    /// The same, where they are.
    pub fn signing(self) -> VolumeKey {
        VolumeKey { signs: true, ..self }
    }

    /// A new one, from the operating system's random numbers.
    ///
    /// # Errors
    /// There are none, in words.
    pub fn generate() -> Result<VolumeKey, String> {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        aws_lc_rs::rand::fill(&mut *bytes).map_err(|_| "no random numbers".to_owned())?;
        Ok(VolumeKey::new(*bytes).signing())
    }

    /// Another handle of the same key.
    pub fn copy(&self) -> VolumeKey {
        VolumeKey { signs: self.signs, ..VolumeKey::new(*self.bytes) }
    }

    pub(super) fn signs(&self) -> bool {
        self.signs
    }

    /// The description, signed, where descriptions are.
    pub fn sign(&self, description: VolumeObject) -> VolumeObject {
        if !self.signs {
            return description;
        }
        let Features { incompat, .. } = description.features;
        let features = Features { incompat: incompat | Features::SIGNED, ..description.features };
        let unsigned = VolumeObject { features, mac: None, ..description };
        let tag = hmac::sign(&self.of_description(), &unsigned.signed());
        let mac = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        VolumeObject { mac: Some(mac), ..unsigned }
    }

    /// Whether the description was signed with this key, or need not be.
    pub fn has_signed(&self, description: &VolumeObject) -> bool {
        if !self.signs || mutant::on(Mutant::DescriptionUnchecked) {
            return true;
        }
        let digits = description.mac.as_deref().unwrap_or_default().as_bytes().chunks(2);
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let mac: Option<Vec<u8>> = digits.map(byte).collect();
        let is_of = |signed: Vec<u8>, mac: &[u8]| {
            hmac::verify(&self.of_description(), &signed, mac).is_ok()
        };
        mac.is_some_and(|mac| {
            is_of(description.signed(), &mac)
                || description.signed_mirrored().is_some_and(|signed| is_of(signed, &mac))
        })
    }

    fn of_description(&self) -> hmac::Key {
        let derived = self.derives.expand(&[SIGNS], hmac::HMAC_SHA256);
        hmac::Key::from(derived.expect("32 bytes can always be derived"))
    }

    /// For the local files of the volume `id`, with salts from `random`.
    pub(super) fn local(&self, id: VolumeId, random: StdRng) -> LocalKey {
        LocalKey::new(id.bytes(), self.derives.clone(), random)
    }

    pub(super) fn bytes(&self) -> &[u8; KEY_LEN] {
        &self.bytes
    }

    /// The key of one sealing of one object.
    fn of_object(&self, key: &Key, salt: &[u8]) -> LessSafeKey {
        let name = match mutant::on(Mutant::SealNotBound) {
            true => b"",
            false => key.as_str().as_bytes(),
        };
        // Of a fixed length, so that salt and name cannot be taken for each other.
        let info = [PURPOSE, salt, name];
        let derived = self.derives.expand(&info, &AES_256_GCM);
        LessSafeKey::new(UnboundKey::from(derived.expect("32 bytes can always be derived")))
    }

    /// The object `plain`, sealed for the name `key`.
    pub fn seal(&self, key: &Key, plain: &[u8], salt: Salt) -> Bytes {
        let salt = if mutant::on(Mutant::SaltReused) { [0; SALT_LEN] } else { salt };
        let (cipher, header) = (self.of_object(key, &salt), header());
        let mut sealed = Vec::with_capacity(sealed_len(plain.len() as u64) as usize);
        sealed.extend_from_slice(&header);
        let count = plain.len().div_ceil(SEGMENT as usize).max(1);
        for index in 0..count {
            let from = index * SEGMENT as usize;
            let to = (from + SEGMENT as usize).min(plain.len());
            sealed.extend_from_slice(&salt);
            let body = sealed.len();
            sealed.extend_from_slice(&plain[from..to]);
            let nonce = nonce(index as u64, index + 1 == count);
            let tag =
                cipher.seal_in_place_separate_tag(nonce, Aad::from(&header), &mut sealed[body..]);
            sealed.extend_from_slice(tag.expect("a segment is short enough to be sealed").as_ref());
        }
        sealed.into()
    }

    /// The object that `sealed` is.
    ///
    /// # Errors
    /// It was not sealed by this key for this name, or is damaged.
    pub fn open(&self, key: &Key, sealed: &[u8]) -> FormatResult<Bytes> {
        let opened = self.open_part(key, 0, sealed, true)?;
        Ok(opened.plain)
    }

    /// Opens segments from `first` on; with the header before them, where that is the first one of all.
    /// `to_the_end`: no segment follows them.
    ///
    /// # Errors
    /// As [`VolumeKey::open`].
    pub(super) fn open_part(
        &self,
        key: &Key,
        first: u64,
        sealed: &[u8],
        to_the_end: bool,
    ) -> FormatResult<Opened> {
        let at = if first == 0 { HEADER_LEN } else { 0 };
        if first == 0 {
            check_header(sealed)?;
        }
        let segments = split(sealed.get(at..).unwrap_or_default(), at)?;
        let (Some(one), Some(last)) = (segments.first(), segments.last()) else {
            return Err(broken("segment", 0, "there is none"));
        };
        if let Some(other) = segments.iter().position(|segment| segment.salt != one.salt) {
            return Err(broken("salt", other, "segments of two objects"));
        }
        let cipher = self.of_object(key, one.salt);
        let sum: usize = segments.iter().map(|segment| segment.body.len()).sum();
        let mut plain = vec![0; sum];
        let (mut rest, mut ended) = (&mut plain[..], to_the_end || last.is_short);
        for (index, segment) in segments.iter().enumerate() {
            let (out, more) = rest.split_at_mut(segment.body.len());
            rest = more;
            let (number, is_final) = (first + index as u64, index + 1 == segments.len());
            let mut opens = |ends| open_segment(&cipher, nonce(number, ends), segment, out);
            let opened = match is_final {
                true if ended => opens(true),
                // It may be the last one of the object, or not: its length does not tell.
                true => {
                    opens(false) || {
                        ended = true;
                        opens(true)
                    }
                }
                false => opens(false),
            };
            if !opened {
                return Err(broken(
                    "tag",
                    at + index * (SEGMENT + OVERHEAD) as usize,
                    "it is wrong",
                ));
            }
        }
        Ok(Opened { plain: plain.into(), ended })
    }
}

fn nonce(segment: u64, last: bool) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&segment.to_le_bytes());
    bytes[8] = u8::from(last && !mutant::on(Mutant::SealEndNotMarked));
    Nonce::assume_unique_for_key(bytes)
}

fn open_segment(cipher: &LessSafeKey, nonce: Nonce, from: &Segment<'_>, out: &mut [u8]) -> bool {
    debug_assert_eq!(from.tag.len(), TAG_LEN);
    let opened = cipher.open_separate_gather(nonce, Aad::from(&header()), from.body, from.tag, out);
    if opened.is_err() && mutant::on(Mutant::SealTagIgnored) {
        out.copy_from_slice(from.body);
        return true;
    }
    opened.is_ok()
}

fn broken(field: &'static str, offset: usize, why: &str) -> FormatError {
    FormatError { object: "sealed object", field, offset, problem: Problem::Value(why.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::sealed::STRIDE;

    fn object(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
    }

    fn name(text: &str) -> Key {
        Key::new(text).expect("a name")
    }

    #[test]
    fn lengths_at_the_edges_round_trip() {
        let (key, at) = (VolumeKey::new([1; 32]), name("volumes/a/log/00/1-1"));
        for len in [0, 1, 8191, 8192, 8193, 16384, 100_000] {
            let plain = object(len);
            let sealed = key.seal(&at, &plain, [5; 16]);
            assert_eq!(sealed.len() as u64, sealed_len(len as u64));
            assert_eq!(key.open(&at, &sealed).unwrap(), plain);
            assert!(VolumeKey::new([2; 32]).open(&at, &sealed).is_err());
            assert!(key.open(&name("volumes/a/log/00/1-2"), &sealed).is_err());
        }
    }

    #[test]
    fn segments_that_are_cut_off_moved_or_mixed_fail() {
        let (key, at, stride) = (VolumeKey::new([1; 32]), name("a/b"), STRIDE as usize);
        let sealed = key.seal(&at, &object(4 * SEGMENT as usize), [5; 16]);
        let opens = |bytes: &[u8]| key.open(&at, bytes).is_ok();
        assert!(opens(&sealed));
        for cut in [HEADER_LEN, HEADER_LEN + stride, HEADER_LEN + 3 * stride, sealed.len() - 1] {
            assert!(!opens(&sealed[..cut]), "{cut}");
        }
        let segment = |index: usize| HEADER_LEN + index * stride..HEADER_LEN + (index + 1) * stride;
        let with = |index: usize, of: &[u8], from: usize| {
            let mut mixed = sealed.to_vec();
            mixed[segment(index)].copy_from_slice(&of[segment(from)]);
            mixed
        };
        assert!(opens(&with(1, &sealed, 1)));
        assert!(!opens(&with(1, &sealed, 2)));
        assert!(!opens(&with(3, &sealed, 2)));
        // Of another sealing of the same name.
        let other = key.seal(&at, &object(4 * SEGMENT as usize), [6; 16]);
        assert!(!opens(&with(1, &other, 1)));
        let twice = [&sealed[..], &sealed[HEADER_LEN..]].concat();
        assert!(!opens(&twice));
    }

    #[test]
    fn every_bit_counts() {
        let (key, at) = (VolumeKey::new([1; 32]), name("a/b"));
        let sealed = key.seal(&at, &object(100), [5; 16]);
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(key.open(&at, &flipped).is_err(), "{bit}");
        }
    }

    /// What must not open: of another name, cut off at the end of a segment, changed.
    fn flaws() -> Vec<&'static str> {
        let (key, at) = (VolumeKey::new([1; 32]), name("a/b"));
        let sealed = key.seal(&at, &object(2 * SEGMENT as usize), [5; 16]);
        let mut flipped = sealed.to_vec();
        flipped[HEADER_LEN + 100] ^= 1;
        let cut = &sealed[..HEADER_LEN + STRIDE as usize];
        let again = key.seal(&at, &object(9), [6; 16]);
        let wrong = [
            ("moved", key.open(&name("a/c"), &sealed).is_ok()),
            ("cut", key.open(&at, cut).is_ok()),
            ("changed", key.open(&at, &flipped).is_ok()),
            ("salt", again[HEADER_LEN..][..SALT_LEN] != [6; SALT_LEN]),
        ];
        wrong.into_iter().filter(|(_, wrong)| *wrong).map(|(what, _)| what).collect()
    }

    /// Each of these mistakes shows in what must not open.
    #[test]
    fn the_checks_notice_every_mistake() {
        assert_eq!(flaws(), Vec::<&str>::new());
        for (mistake, shows) in [
            (Mutant::SealNotBound, "moved"),
            (Mutant::SealEndNotMarked, "cut"),
            (Mutant::SealTagIgnored, "changed"),
            (Mutant::SaltReused, "salt"),
        ] {
            let found = mutant::with(Some(mistake), flaws);
            assert!(found.contains(&shows), "{mistake:?}: {found:?}");
        }
    }

    #[test]
    fn a_part_tells_whether_the_object_ends_with_it() {
        let (key, at) = (VolumeKey::new([1; 32]), name("a/b"));
        let plain = object(3 * SEGMENT as usize);
        let sealed = key.seal(&at, &plain, [5; 16]);
        let from = |segment: usize| HEADER_LEN + segment * STRIDE as usize;
        let middle = key.open_part(&at, 1, &sealed[from(1)..from(2)], false).unwrap();
        assert_eq!((&middle.plain[..], middle.ended), (&plain[8192..16384], false));
        let last = key.open_part(&at, 2, &sealed[from(2)..], false).unwrap();
        assert_eq!((&last.plain[..], last.ended), (&plain[16384..], true));
        // Fewer bytes came than were asked for, and the object has more.
        assert!(key.open_part(&at, 1, &sealed[from(1)..from(2)], true).is_err());
    }
}
