//! The slots of an encrypted volume's key: each holds the whole key, wrapped by something else that a user has.
//!
//! ```text
//! keys/<~n>  version (1 or 2), key (an id), slots: [{number, label, made_at_ms, kdf, wrapped}, ...], by number
//!            kdf: {"argon2id": {salt, memory_kib, passes, lanes}} of a passphrase
//!                 {"hkdf": {salt}} of a key file, or of what a command prints
//! ```
//!
//! JSON; bytes are base64. Each object names all slots there are: what changes is a new object, and the one
//! before is deleted. A wrapped key can only be had as one of the version of its set: with version 2, the
//! description of the volume is signed, and is refused where it is not. `key` goes with the key and is the same in all of them, those of clones too. How the
//! text is checked is told in [`pool`](super::pool). Costs are bounded here, so that no object makes its reader
//! run out of memory or time.

use super::codec::{FormatError, FormatResult, Problem};
use super::pool::parse_json;
use serde::{Deserialize, Serialize};

/// The version of a set of slots.
pub const KEY_SLOTS_VERSION: u32 = 2;
/// That of volumes whose description is not signed.
pub const KEY_SLOTS_UNSIGNED: u32 = 1;
/// The most slots of a volume.
pub const SLOTS_MAX: usize = 16;
/// Longest label, in bytes.
pub const LABEL_MAX: usize = 64;
/// Bytes of the salt of a slot.
pub const SLOT_SALT_LEN: usize = 16;
/// Bytes of a wrapped key: the key and a tag.
pub const WRAPPED_LEN: usize = 48;
/// The most memory that a passphrase may take, in KiB.
pub const MEMORY_KIB_MAX: u32 = 1 << 20;
/// The most passes over it.
pub const PASSES_MAX: u32 = 64;
/// The most lanes.
pub const LANES_MAX: u32 = 16;

/// All slots of a volume's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySlots {
    /// Version of the object.
    pub version: u32,
    /// The key that they hold.
    #[serde(with = "bytes")]
    pub key: [u8; 16],
    /// The slots, by number.
    pub slots: Vec<KeySlot>,
}

/// A slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySlot {
    /// Its number, by which it is removed.
    pub number: u32,
    /// What its maker calls it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// When it was made, in milliseconds since 1970.
    pub made_at_ms: u64,
    /// How the wrapping key is made of what the user has.
    pub kdf: Kdf,
    /// The volume's key, wrapped.
    #[serde(with = "bytes")]
    pub wrapped: [u8; WRAPPED_LEN],
}

/// How a wrapping key is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Kdf {
    /// Of a passphrase, at a cost.
    Argon2id {
        /// Random bytes.
        #[serde(with = "bytes")]
        salt: [u8; SLOT_SALT_LEN],
        /// Memory, in KiB.
        memory_kib: u32,
        /// Passes over it.
        passes: u32,
        /// Lanes.
        lanes: u32,
    },
    /// Of bytes that nobody can guess (HKDF-SHA256).
    Hkdf {
        /// Random bytes.
        #[serde(with = "bytes")]
        salt: [u8; SLOT_SALT_LEN],
    },
}

impl Kdf {
    /// What is needed to open the slot, for people.
    pub fn opened_by(&self) -> &'static str {
        match self {
            Kdf::Argon2id { .. } => "passphrase",
            Kdf::Hkdf { .. } => "key file or command",
        }
    }
}

impl KeySlots {
    /// Parses the slots and checks every value.
    pub fn parse(bytes: &[u8]) -> FormatResult<KeySlots> {
        let slots: KeySlots = parse_json("key slots", bytes)?;
        slots.check().map(|()| slots)
    }

    /// Checks every value.
    pub fn check(&self) -> FormatResult<()> {
        let error = |field, problem| FormatError { object: "key slots", field, offset: 0, problem };
        let bad = |field, value: String| Err(error(field, Problem::Value(value)));
        if ![KEY_SLOTS_UNSIGNED, KEY_SLOTS_VERSION].contains(&self.version) {
            return Err(error("version", Problem::Unsupported(self.version.to_string())));
        }
        let count = self.slots.len();
        if count == 0 || count > SLOTS_MAX {
            return bad("slots", format!("{count} of them"));
        }
        if self.slots.windows(2).any(|pair| pair[0].number >= pair[1].number) {
            return bad("number", "they are out of order".into());
        }
        for slot in &self.slots {
            if !is_valid_label(&slot.label) {
                return bad("label", format!("that of slot {}", slot.number));
            }
            if let Kdf::Argon2id { memory_kib, passes, lanes, .. } = slot.kdf {
                let fits = (1..=LANES_MAX).contains(&lanes)
                    && (1..=PASSES_MAX).contains(&passes)
                    && (8 * lanes..=MEMORY_KIB_MAX).contains(&memory_kib);
                if !fits {
                    return bad("kdf", format!("{memory_kib} KiB, {passes} passes, {lanes} lanes"));
                }
            }
        }
        Ok(())
    }

    /// A number that no slot has.
    pub fn free_number(&self) -> u32 {
        (0..).find(|number| self.slots.iter().all(|slot| slot.number != *number)).unwrap_or(0)
    }
}

/// True for a label that a slot may have.
pub fn is_valid_label(label: &str) -> bool {
    label.len() <= LABEL_MAX && !label.chars().any(char::is_control)
}

/// Bytes of a fixed number, as base64.
mod bytes {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer, const N: usize>(
        bytes: &[u8; N],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        BASE64_STANDARD.encode(bytes).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
        deserializer: D,
    ) -> Result<[u8; N], D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64_STANDARD.decode(text).map_err(D::Error::custom)?;
        let wrong = |bytes: Vec<u8>| format!("{} bytes of base64, not {N}", bytes.len());
        bytes.try_into().map_err(|bytes| D::Error::custom(wrong(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::pool::encode_json;

    fn slots() -> KeySlots {
        let salt = [3; SLOT_SALT_LEN];
        let of = |number, kdf| KeySlot {
            number,
            label: "of the host".into(),
            made_at_ms: 5,
            kdf,
            wrapped: [4; WRAPPED_LEN],
        };
        let passphrase = Kdf::Argon2id { salt, memory_kib: 64 << 10, passes: 3, lanes: 1 };
        let slots = vec![of(0, passphrase), of(2, Kdf::Hkdf { salt })];
        KeySlots { version: KEY_SLOTS_VERSION, key: [9; 16], slots }
    }

    #[test]
    fn round_trip_and_bounds() {
        let right = slots();
        assert_eq!(KeySlots::parse(&encode_json(&right)), Ok(right.clone()));
        assert_eq!(right.free_number(), 1);
        let refused = |change: &dyn Fn(&mut KeySlots)| {
            let mut slots = slots();
            change(&mut slots);
            KeySlots::parse(&encode_json(&slots)).unwrap_err().field
        };
        let costs = |memory_kib, passes, lanes| {
            let salt = [0; SLOT_SALT_LEN];
            refused(&|s| s.slots[0].kdf = Kdf::Argon2id { salt, memory_kib, passes, lanes })
        };
        assert_eq!(refused(&|s| s.version = 3), "version");
        assert_eq!(refused(&|s| s.slots.clear()), "slots");
        assert_eq!(refused(&|s| s.slots.swap(0, 1)), "number");
        assert_eq!(refused(&|s| s.slots[1].label = "a\nb".into()), "label");
        assert_eq!(costs(MEMORY_KIB_MAX + 1, 3, 1), "kdf");
        assert_eq!(costs(u32::MAX, 3, u32::MAX), "kdf");
        assert_eq!(costs(64 << 10, PASSES_MAX + 1, 1), "kdf");
        assert_eq!(costs(7, 1, 1), "kdf");
        assert_eq!(costs(64, 0, 1), "kdf");
    }

    #[test]
    fn bytes_are_of_their_length() {
        let text = String::from_utf8(encode_json(&slots())).unwrap();
        let body = text.split(",\n  \"crc32c\"").next().unwrap();
        let cut = body.replace("BAQEBAQE", "BAQE");
        let e = KeySlots::parse(&crate::format::pool::end_json(cut.into_bytes())).unwrap_err();
        assert!(e.to_string().contains("bytes of base64, not 48"), "{e}");
    }
}
