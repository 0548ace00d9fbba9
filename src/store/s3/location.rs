//! Where objects lie: a bucket and a prefix, both verified.

use crate::error::{Error, Result};
use crate::store::Key;
use std::fmt;

/// A bucket and the prefix of its objects' names. Shown as `s3://bucket/prefix`.
///
/// Invariants: the bucket follows the naming rules of Amazon S3 (user guide, "General purpose
/// bucket naming rules": 3 to 63 lower-case letters, digits, dots and hyphens); the prefix is
/// empty or has the form of a [`Key`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct S3Location {
    bucket: String,
    prefix: String,
}

impl S3Location {
    /// The location; a slash at either end of `prefix` does not count. Errors: `Usage`.
    pub fn new(bucket: &str, prefix: &str) -> Result<S3Location> {
        verify_bucket(bucket)?;
        let prefix = prefix.trim_matches('/');
        if !prefix.is_empty() && Key::new(prefix).is_none() {
            return Err(Error::usage(format!("the prefix {prefix:?} is not a path of names")).hint(
                "use letters, digits, dots, hyphens and underscores, separated by single slashes",
            ));
        }
        Ok(S3Location { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }

    /// The bucket.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The prefix, without a slash at the end; may be empty.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The name in the bucket of what is `name` in the store.
    pub(super) fn object_name(&self, name: &str) -> String {
        match self.prefix.is_empty() {
            true => name.to_owned(),
            false => format!("{}/{name}", self.prefix),
        }
    }

    /// The name in the store of what is `object` in the bucket, if it lies below the prefix.
    pub(super) fn relative<'a>(&self, object: &'a str) -> Option<&'a str> {
        match self.prefix.is_empty() {
            true => Some(object),
            false => object.strip_prefix(&self.prefix)?.strip_prefix('/'),
        }
    }
}

impl fmt::Display for S3Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        Ok(())
    }
}

fn verify_bucket(bucket: &str) -> Result<()> {
    let wrong = |why: &str| Err(Error::usage(format!("{bucket:?} is no bucket name: {why}")));
    let end_ok = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = bucket.as_bytes();
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-');
    if !(3..=63).contains(&bytes.len()) {
        wrong("it must have 3 to 63 characters")
    } else if !bytes.iter().all(plain) {
        wrong("it may have lower-case letters, digits, dots and hyphens only")
    } else if !end_ok(bytes.first()) || !end_ok(bytes.last()) || bucket.contains("..") {
        wrong("it must begin and end with a letter or digit and have no two dots in a row")
    } else if bucket.parse::<std::net::Ipv4Addr>().is_ok() {
        wrong("it must not look like an IP address")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_names() {
        for good in ["abc", "my-bucket.2", "0a0"] {
            assert!(S3Location::new(good, "").is_ok(), "{good}");
        }
        for bad in ["", "ab", "Abc", "a_b", "-ab", "ab-", "a..b", "10.0.0.1", &"a".repeat(64)] {
            assert!(S3Location::new(bad, "").is_err(), "{bad}");
        }
    }

    #[test]
    fn names_below_a_prefix() {
        let at = S3Location::new("bucket", "/pool/one/").unwrap();
        assert_eq!(at.to_string(), "s3://bucket/pool/one");
        assert_eq!(at.object_name("a/b"), "pool/one/a/b");
        assert_eq!(at.object_name(""), "pool/one/");
        assert_eq!(at.relative("pool/one/a/b"), Some("a/b"));
        assert_eq!(at.relative("pool/one-more/a"), None);
        assert!(S3Location::new("bucket", "a//b").is_err());
        assert!(S3Location::new("bucket", "a b").is_err());
    }
}
