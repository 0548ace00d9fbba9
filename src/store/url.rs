//! Store addresses as users type them, and the way from one to an open store.
//!
//! `s3://bucket/prefix`, `file:///dir`, `mem://`. Displaying an address gives what parses to it.
//! The path of a `file://` address is taken as it stands: nothing in it is percent-decoded.

use super::Store;
use super::dir::DirStore;
use super::memory::MemoryStore;
use super::s3::{S3Location, S3Options, S3Store};
use crate::error::{Error, Result};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

/// The address of a store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StoreUrl {
    /// A bucket, or a part of it.
    S3(S3Location),
    /// A directory, by its absolute path.
    Dir(PathBuf),
    /// Memory of this process: each opening gives a new, empty store. For tests.
    Memory,
}

impl FromStr for StoreUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<StoreUrl> {
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let location = S3Location::new(bucket, prefix);
            return location.map(StoreUrl::S3).map_err(|e| e.context(format!("store {text:?}")));
        }
        if let Some(path) = text.strip_prefix("file://") {
            if !path.starts_with('/') {
                return Err(Error::usage(format!("store {text:?} names no absolute path"))
                    .hint("write it as file:///dir, with three slashes"));
            }
            if path.contains('\0') {
                return Err(Error::usage(format!("store {text:?} has a NUL byte in its path")));
            }
            let kept = path.trim_end_matches('/');
            return Ok(StoreUrl::Dir(PathBuf::from(if kept.is_empty() { "/" } else { kept })));
        }
        match text {
            "mem://" => Ok(StoreUrl::Memory),
            _ => Err(Error::usage(format!("{text:?} is no store address"))
                .hint("write s3://bucket/prefix or file:///dir")),
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreUrl::S3(location) => location.fmt(f),
            StoreUrl::Dir(path) => write!(f, "file://{}", path.display()),
            StoreUrl::Memory => f.write_str("mem://"),
        }
    }
}

/// Opens the store at `url`; `s3` counts for buckets only.
///
/// A directory must exist; of a bucket nothing is verified, no request is made. Errors: `Usage`,
/// `NotFound`, `Failed`.
pub async fn open(url: &StoreUrl, s3: &S3Options) -> Result<Arc<dyn Store>> {
    Ok(match url {
        StoreUrl::S3(location) => Arc::new(S3Store::connect(location.clone(), s3).await?),
        StoreUrl::Dir(path) => Arc::new(DirStore::open(path)?),
        StoreUrl::Memory => Arc::new(MemoryStore::new()),
    })
}

/// As [`open`], after making the directory or the bucket where it is missing.
pub async fn create(url: &StoreUrl, s3: &S3Options) -> Result<Arc<dyn Store>> {
    Ok(match url {
        StoreUrl::S3(location) => {
            let store = S3Store::connect(location.clone(), s3).await?;
            store.ensure_bucket(true).await?;
            Arc::new(store)
        }
        StoreUrl::Dir(path) => Arc::new(DirStore::create(path)?),
        StoreUrl::Memory => Arc::new(MemoryStore::new()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn addresses_round_trip() {
        for text in
            ["s3://my-bucket", "s3://my-bucket/a/b", "file:///srv/x y", "file:///", "mem://"]
        {
            assert_eq!(text.parse::<StoreUrl>().unwrap().to_string(), text);
        }
        let trimmed: StoreUrl = "s3://my-bucket/a/".parse().unwrap();
        assert_eq!(trimmed.to_string(), "s3://my-bucket/a");
        assert_eq!("file:///srv//".parse::<StoreUrl>().unwrap().to_string(), "file:///srv");
    }

    #[test]
    fn bad_addresses_say_what_is_wrong() {
        for (text, why) in [
            ("", "is no store address"),
            ("/srv/pool", "is no store address"),
            ("http://host/bucket", "is no store address"),
            ("mem://x", "is no store address"),
            ("s3://", "3 to 63"),
            ("s3:///prefix", "3 to 63"),
            ("s3://Bucket/x", "lower-case"),
            ("s3://bucket/a//b", "is not a path of names"),
            ("s3://bucket/../b", "is not a path of names"),
            ("file://srv/x", "three slashes"),
            ("file:///a\0b", "NUL"),
        ] {
            let error = text.parse::<StoreUrl>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains(why), "{text:?}: {error}");
        }
    }
}
