//! A volume's key in its slots.

use super::given::Material;
use super::key::{KEY_LEN, VolumeKey};
use crate::error::{Error, Result};
use crate::format::key_slots::{KEY_SLOTS_UNSIGNED, Kdf, KeySlot, KeySlots, WRAPPED_LEN};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use zeroize::Zeroizing;

/// What a slot's key is made for.
const PURPOSE: &[u8] = b"objblk key slot 1";
/// What is wrapped is a key that signs.
const SIGNS: &[u8] = b"objblk key slot 2";

/// What opening a slot by its passphrase costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Memory, in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Default for Cost {
    /// What RFC 9106 recommends where memory is scarce.
    fn default() -> Cost {
        Cost { memory_kib: 64 << 10, passes: 3, lanes: 4 }
    }
}

/// A slot with this number that holds the key `id` for who has `material`.
///
/// # Errors
/// Failed: there are no random numbers, or not enough memory.
pub fn new_slot(
    key: &VolumeKey,
    id: [u8; 16],
    (number, label, made_at_ms): (u32, String, u64),
    material: &Material,
    cost: Cost,
) -> Result<KeySlot> {
    let mut salt = [0; 16];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| Error::failed("there are no random numbers"))?;
    let Cost { memory_kib, passes, lanes } = cost;
    let kdf = match material {
        Material::Passphrase(_) => Kdf::Argon2id { salt, memory_kib, passes, lanes },
        Material::Bytes(_) => Kdf::Hkdf { salt },
    };
    let wraps = wrapping_key(&kdf, material)?
        .ok_or_else(|| Error::failed("a slot is of another kind than its key"))?;
    let mut wrapped = [0; WRAPPED_LEN];
    let (body, rest) = wrapped.split_at_mut(KEY_LEN);
    body.copy_from_slice(key.bytes());
    let aad = Aad::from(bound(id, number, key.signs()));
    let tag = wraps.seal_in_place_separate_tag(Nonce::assume_unique_for_key([0; 12]), aad, body);
    let tag = tag.map_err(|_| Error::failed("cannot wrap the key"))?;
    rest.copy_from_slice(tag.as_ref());
    Ok(KeySlot { number, label, made_at_ms, kdf, wrapped })
}

/// The key that a slot holds for who has `material`, and the slot's number; `None` where none does.
///
/// # Errors
/// Failed: there is not enough memory.
pub fn unwrap(slots: &KeySlots, material: &Material) -> Result<Option<(VolumeKey, u32)>> {
    for slot in &slots.slots {
        let Some(wraps) = wrapping_key(&slot.kdf, material)? else { continue };
        let (body, tag) = slot.wrapped.split_at(KEY_LEN);
        let mut key = Zeroizing::new([0; KEY_LEN]);
        let signs = slots.version != KEY_SLOTS_UNSIGNED;
        let aad = Aad::from(bound(slots.key, slot.number, signs));
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        if wraps.open_separate_gather(nonce, aad, body, tag, &mut *key).is_ok() {
            let key = VolumeKey::new(*key);
            return Ok(Some((if signs { key.signing() } else { key }, slot.number)));
        }
    }
    Ok(None)
}

/// What a slot is bound to.
fn bound(id: [u8; 16], number: u32, signs: bool) -> Vec<u8> {
    [if signs { SIGNS } else { PURPOSE }, &id, &number.to_le_bytes()].concat()
}

/// The key that wraps; `None` where the slot is not for such material.
fn wrapping_key(kdf: &Kdf, material: &Material) -> Result<Option<LessSafeKey>> {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    match (kdf, material) {
        (Kdf::Argon2id { salt, memory_kib, passes, lanes }, Material::Passphrase(passphrase)) => {
            let failed =
                |e| Error::failed("cannot make a key of the passphrase").because(format!("{e}"));
            let params = argon2::Params::new(*memory_kib, *passes, *lanes, Some(KEY_LEN));
            let argon = argon2::Argon2::new(
                argon2::Algorithm::Argon2id,
                argon2::Version::V0x13,
                params.map_err(failed)?,
            );
            argon.hash_password_into(passphrase.bytes(), salt, &mut *key).map_err(failed)?;
        }
        (Kdf::Hkdf { salt }, Material::Bytes(bytes)) => {
            let derives = Salt::new(HKDF_SHA256, salt).extract(bytes.bytes());
            let derived = derives.expand(&[PURPOSE], &AES_256_GCM);
            let derived = derived.map_err(|_| Error::failed("cannot derive a key"))?;
            return Ok(Some(LessSafeKey::new(UnboundKey::from(derived))));
        }
        _ => return Ok(None),
    }
    let key = UnboundKey::new(&AES_256_GCM, &*key);
    Ok(Some(LessSafeKey::new(key.map_err(|_| Error::failed("cannot use the key"))?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::key_slots::KEY_SLOTS_VERSION;
    use crate::seal::Secret;

    const CHEAP: Cost = Cost { memory_kib: 8, passes: 1, lanes: 1 };

    fn passphrase(text: &str) -> Material {
        Material::Passphrase(Secret::new(text.into()))
    }

    #[test]
    fn each_slot_opens_by_its_own_only() {
        let key = VolumeKey::new([7; 32]).signing();
        let bytes = Material::Bytes(Secret::new(vec![8; 32]));
        let materials = [passphrase("correct horse"), bytes];
        let slot = |(number, material): (u32, &Material)| {
            new_slot(&key, [1; 16], (number, String::new(), 0), material, CHEAP).unwrap()
        };
        let slots = (0..).zip(&materials).map(slot).collect();
        let slots = KeySlots { version: KEY_SLOTS_VERSION, key: [1; 16], slots };
        for (number, material) in (0..).zip(&materials) {
            let (found, by) = unwrap(&slots, material).unwrap().expect("it opens");
            assert_eq!((found.bytes(), by), (key.bytes(), number));
        }
        let wrong = [passphrase("correct house"), Material::Bytes(Secret::new(vec![9; 32]))];
        assert!(wrong.iter().all(|material| unwrap(&slots, material).unwrap().is_none()));
        // Of another key, or under another number.
        let mut other = slots.clone();
        other.key = [2; 16];
        assert!(materials.iter().all(|material| unwrap(&other, material).unwrap().is_none()));
        let mut moved = slots.clone();
        moved.slots.iter_mut().for_each(|slot| slot.number += 5);
        assert!(materials.iter().all(|material| unwrap(&moved, material).unwrap().is_none()));
        // As those of a volume whose description may be anybody's.
        let unsigned = KeySlots { version: KEY_SLOTS_UNSIGNED, ..slots };
        assert!(materials.iter().all(|material| unwrap(&unsigned, material).unwrap().is_none()));
    }

    #[test]
    fn nothing_shows_a_key() {
        let shown = format!("{:?} {:?}", VolumeKey::new([7; 32]), passphrase("correct horse"));
        assert_eq!(shown, "VolumeKey Passphrase(Secret)");
    }
}
