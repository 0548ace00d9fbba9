use crate::error::{Error, Result};
use crate::format::keys::{self, NAME_MAX};
use std::fmt;
use std::str::FromStr;

/// A name that a volume may have: 1 to 128 of `A-Z a-z 0-9 . _ -`, the first a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct VolumeName(String);

impl VolumeName {
    /// A random name for a volume whose user gave none: `vol-` and 8 hexadecimal digits.
    pub fn generate() -> VolumeName {
        VolumeName(format!("vol-{:08x}", rand::random::<u32>()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The object that stands for it.
    pub(super) fn key(&self) -> crate::store::Key {
        keys::name(&self.0).expect("a volume name is a valid one")
    }

    /// The object of an import that is to get it.
    pub(super) fn import_key(&self) -> crate::store::Key {
        keys::import(&self.0).expect("a volume name is a valid one")
    }
}

impl FromStr for VolumeName {
    type Err = Error;

    fn from_str(text: &str) -> Result<VolumeName> {
        if keys::is_valid_name(text) {
            return Ok(VolumeName(text.to_owned()));
        }
        if let Some((volume, _)) = text.split_once('@') {
            let message = format!("{text:?} names a snapshot, and a volume is wanted");
            return Err(Error::usage(message).hint(format!("name the volume alone: {volume}")));
        }
        let error = Error::usage(format!("{text:?} is no volume name"));
        Err(match text.chars().find(|c| !c.is_ascii_alphanumeric() && !"._-".contains(*c)) {
            Some(odd) => error.because(format!("it holds {odd:?}")),
            None if text.is_empty() => error.because("it is empty"),
            None if text.len() > NAME_MAX => {
                error.because(format!("it is longer than {NAME_MAX} characters"))
            }
            None => error.because("it does not begin with a letter or digit"),
        }
        .hint("use letters, digits, '.', '_' and '-'"))
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for VolumeName {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<VolumeName, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A volume, `NAME`, or one of its snapshots, `NAME@SNAP`. The name of a snapshot is made as that of
/// a volume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeSpec {
    text: String,
    /// Length of the volume's name.
    volume: usize,
}

impl VolumeSpec {
    /// All of it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The volume.
    pub fn volume(&self) -> VolumeName {
        VolumeName(self.text[..self.volume].to_owned())
    }

    /// The snapshot of it.
    pub fn snapshot(&self) -> Option<&str> {
        self.text.get(self.volume + 1..)
    }
}

impl From<VolumeName> for VolumeSpec {
    fn from(name: VolumeName) -> VolumeSpec {
        VolumeSpec { volume: name.0.len(), text: name.0 }
    }
}

impl FromStr for VolumeSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<VolumeSpec> {
        let Some((volume, snapshot)) = text.split_once('@') else {
            return text.parse().map(VolumeName::into);
        };
        volume.parse::<VolumeName>()?;
        if !keys::is_valid_name(snapshot) {
            return Err(Error::usage(format!("{snapshot:?} is no name of a snapshot"))
                .hint("use letters, digits, '.', '_' and '-', beginning with a letter or digit"));
        }
        Ok(VolumeSpec { volume: volume.len(), text: text.to_owned() })
    }
}

impl fmt::Display for VolumeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl serde::Serialize for VolumeSpec {
    fn serialize<S: serde::Serializer>(
        &self,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> serde::Deserialize<'de> for VolumeSpec {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<VolumeSpec, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn refusals_say_why() {
        let refuse = |text: &str| {
            let e = text.parse::<VolumeName>().unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Usage);
            e.to_string()
        };
        assert_eq!(
            refuse("a/b"),
            r#""a/b" is no volume name: it holds '/'; use letters, digits, '.', '_' and '-'"#
        );
        assert!(refuse("a@b").contains("names a snapshot, and a volume is wanted"));
        assert!(refuse("").contains("it is empty"));
        assert!(refuse("-a").contains("begin with a letter"));
        assert!(refuse(&"x".repeat(129)).contains("longer than 128"));
        assert!(VolumeName::generate().as_str().parse::<VolumeName>().is_ok());
    }

    #[test]
    fn snapshots_have_two_names() {
        let spec: VolumeSpec = "a@b".parse().unwrap();
        assert_eq!((spec.volume().as_str(), spec.snapshot()), ("a", Some("b")));
        let spec: VolumeSpec = "a".parse().unwrap();
        assert_eq!((spec.volume().as_str(), spec.snapshot()), ("a", None));
        for bad in ["", "@", "a@", "@b", "a@b@c", "a@-b", "a/b@c"] {
            assert_eq!(bad.parse::<VolumeSpec>().unwrap_err().kind(), ErrorKind::Usage, "{bad}");
        }
    }
}
