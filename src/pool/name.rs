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
}

impl FromStr for VolumeName {
    type Err = Error;

    fn from_str(text: &str) -> Result<VolumeName> {
        if keys::is_valid_name(text) {
            return Ok(VolumeName(text.to_owned()));
        }
        if let Some((volume, snapshot)) = text.split_once('@') {
            let message = format!("snapshots are not in this version ({text:?} names one)");
            return Err(Error::usage(message)
                .hint(format!("name the volume alone: {volume} without @{snapshot}")));
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
        assert!(refuse("a@b").starts_with("snapshots are not in this version"));
        assert!(refuse("").contains("it is empty"));
        assert!(refuse("-a").contains("begin with a letter"));
        assert!(refuse(&"x".repeat(129)).contains("longer than 128"));
        assert!(VolumeName::generate().as_str().parse::<VolumeName>().is_ok());
    }
}
