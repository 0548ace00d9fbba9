//! Feature bits of pools and volumes.
//!
//! An object with a bit that is not listed here says what it is called, in a field that this objblk does not write
//! itself: `"feature_names": {"15": "what it is called"}`. So who does not know a feature can name it.

use super::codec::{FormatError, Problem};
use super::frame::Compression;
use super::pool::parse_json;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Letters of a feature's name at most; others than these are not shown.
const NAME_MAX: usize = 64;

/// What an objblk must know to use an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Features {
    /// May be ignored.
    pub compat: u64,
    /// Unknown bits forbid writing.
    pub ro_compat: u64,
    /// Unknown bits forbid any use.
    pub incompat: u64,
}

/// What an object's features allow this objblk to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and write.
    Full,
    /// Read only: it has ro-compat features that are not known here.
    ReadOnly,
    /// Nothing: it has incompat features that are not known here.
    None,
}

impl Features {
    /// Incompat bit: the volume is a clone, whose map names objects of other volumes.
    pub const CLONE: u64 = 1;

    /// Incompat bit: the volume began as an image outside the pool, and may lack parts of it.
    pub const SOURCE: u64 = 2;

    /// Incompat bit: frames may be compressed with LZ4, and new ones are, unless with Zstandard.
    pub const LZ4: u64 = 1 << 8;

    /// Incompat bit: frames may be compressed with Zstandard, and new ones are.
    pub const ZSTD: u64 = 1 << 9;

    /// Incompat bit: the volume is encrypted, most of its objects are stored sealed.
    pub const ENCRYPTED: u64 = 1 << 10;

    /// Incompat bit: the volume is in two stores of its pool; here is nothing but its description.
    pub const MIRRORED: u64 = 1 << 11;

    /// Incompat bit: the description of the encrypted volume says what only who has the key can say of it.
    pub const SIGNED: u64 = 1 << 12;

    /// Incompat bit: the volume is shipped from another pool, or was; what of it is complete is said by its states.
    pub const REPLICA: u64 = 1 << 13;

    /// Incompat bit of pools: chunks may lie in other stores than this one. Who does not know of that would miss them.
    pub const SEVERAL: u64 = 1 << 14;

    /// Compat bits: the level of that; 0 is none in particular. It is of no use to a reader.
    pub const ZSTD_LEVEL: u64 = 31;

    /// The features this objblk knows.
    pub const KNOWN: Features = Features {
        compat: Features::ZSTD_LEVEL,
        ro_compat: 0,
        incompat: Features::CLONE
            | Features::SOURCE
            | Features::LZ4
            | Features::ZSTD
            | Features::ENCRYPTED
            | Features::MIRRORED
            | Features::SIGNED
            | Features::REPLICA
            | Features::SEVERAL,
    };

    /// These features, and what a volume needs that is compressed like that.
    pub fn compressed(self, compression: Compression) -> Features {
        let (incompat, level) = match compression {
            Compression::None => (0, 0),
            Compression::Lz4 => (Features::LZ4, 0),
            Compression::Zstd(level) => (Features::ZSTD, u64::from(level)),
        };
        Features { compat: self.compat | level, incompat: self.incompat | incompat, ..self }
    }

    /// How what is written is compressed.
    pub fn compression(&self) -> Compression {
        let level = (self.compat & Features::ZSTD_LEVEL) as u8;
        match self.incompat {
            bits if bits & Features::ZSTD != 0 => {
                match (1..=Compression::ZSTD_MAX).contains(&level) {
                    true => Compression::Zstd(level),
                    false => Compression::Zstd(Compression::ZSTD_DEFAULT),
                }
            }
            bits if bits & Features::LZ4 != 0 => Compression::Lz4,
            _ => Compression::None,
        }
    }

    /// The bits that keep this objblk from using an object, for people.
    pub fn unknown(&self) -> String {
        let (unknown, read_only) = (
            self.incompat & !Features::KNOWN.incompat,
            self.ro_compat & !Features::KNOWN.ro_compat,
        );
        format!("incompat bits {unknown:#x}, ro-compat bits {read_only:#x}")
    }

    /// What may be done with an object that has these features.
    pub fn access(&self) -> Access {
        self.access_by(&Features::KNOWN)
    }

    /// What an objblk may do with it that knows these features and no others.
    pub fn access_by(&self, known: &Features) -> Access {
        if self.incompat & !known.incompat != 0 {
            Access::None
        } else if self.ro_compat & !known.ro_compat != 0 {
            Access::ReadOnly
        } else {
            Access::Full
        }
    }
}

/// What an object says of its features, whatever else is in it.
#[derive(Deserialize)]
struct Needs {
    features: Features,
    #[serde(default)]
    feature_names: BTreeMap<String, String>,
}

impl Needs {
    /// The incompat features that are not known here, by name where they have one.
    fn unknown(&self) -> Vec<String> {
        let unknown = self.features.incompat & !Features::KNOWN.incompat;
        let bits = (0..u64::BITS).filter(|bit| unknown >> bit & 1 == 1);
        let is_shown = |c: char| c.is_ascii_alphanumeric() || "-_. ".contains(c);
        let is_name =
            |name: &&String| (1..=NAME_MAX).contains(&name.len()) && name.chars().all(is_shown);
        bits.map(|bit| match self.feature_names.get(&bit.to_string()).filter(is_name) {
            Some(name) => format!("{name} (incompat bit {bit})"),
            None => format!("incompat bit {bit}"),
        })
        .collect()
    }
}

/// Why an object that cannot be parsed is one of a newer objblk, by the features that it needs. `None`: it is not.
pub(super) fn newer(object: &'static str, bytes: &[u8]) -> Option<FormatError> {
    let needs: Needs = parse_json(object, bytes).ok()?;
    let unknown = needs.unknown();
    let problem = Problem::Unsupported(unknown.join(", "));
    (!unknown.is_empty()).then_some(FormatError { object, field: "features", offset: 0, problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_bits_decide() {
        let none = Features::default();
        assert_eq!(none.access(), Access::Full);
        assert_eq!(Features { compat: 1, ..none }.access(), Access::Full);
        assert_eq!(Features { ro_compat: 1, ..none }.access(), Access::ReadOnly);
        assert_eq!(Features { ro_compat: 1, incompat: 1 << 63, ..none }.access(), Access::None);
    }

    #[test]
    fn compression_is_kept_in_bits() {
        let all =
            [Compression::None, Compression::Lz4, Compression::Zstd(1), Compression::Zstd(19)];
        for compression in all {
            let features = Features { incompat: Features::CLONE, ..Features::default() };
            let features = features.compressed(compression);
            assert_eq!(features.compression(), compression);
            assert_eq!(features.access(), Access::Full);
            assert_eq!(features.incompat & Features::CLONE, Features::CLONE);
        }
        // A level that nobody knows, or none, is of no account.
        for compat in [0, 20, 31, 1 << 40] {
            let features = Features { compat, incompat: Features::ZSTD, ro_compat: 0 };
            assert_eq!(features.compression(), Compression::Zstd(Compression::ZSTD_DEFAULT));
        }
    }
}
