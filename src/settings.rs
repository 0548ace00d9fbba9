//! Where volumes live, from the configuration file, the environment and the command line.
//!
//! The first of these that names a store decides: `--store`; `--bucket` (with `--prefix`);
//! `$OBJBLK_STORE`; the configuration file; a directory below the user's state directory. The
//! S3 endpoint and region come, each by itself, from the flag, `$OBJBLK_ENDPOINT_URL` and
//! `$OBJBLK_REGION`, or the configuration file. Credentials come from the AWS chain only.
//!
//! The configuration file is TOML; a key that is not known is refused. It is the file given with
//! `--config`, else `~/.config/objblk/config.toml`, else `/etc/objblk/config.toml`.

use crate::error::{Error, Result};
use crate::store::s3::{S3Location, S3Options};
use crate::store::url::StoreUrl;
use serde::{Deserialize, Serialize};
use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The configuration file of all users.
const SYSTEM_FILE: &str = "/etc/objblk/config.toml";

/// What was said about the store, in one place (a command line or a file).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Named {
    /// Address of the store.
    pub store: Option<String>,
    /// Bucket, instead of an address.
    pub bucket: Option<String>,
    /// Prefix in the bucket.
    pub prefix: Option<String>,
    /// S3 endpoint.
    pub endpoint_url: Option<String>,
    /// S3 region.
    pub region: Option<String>,
}

/// A store, found: what it takes to open it, also in another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// Address of the store.
    pub url: String,
    /// S3 endpoint.
    pub endpoint_url: Option<String>,
    /// S3 region.
    pub region: Option<String>,
}

impl Named {
    /// The address that these settings name, if they name one.
    fn url(&self) -> Result<Option<StoreUrl>> {
        match (&self.store, &self.bucket, &self.prefix) {
            (Some(_), Some(_), _) => {
                Err(Error::usage("both a store and a bucket are given").hint("give one of them"))
            }
            (Some(url), None, None) => url.parse().map(Some),
            (None, Some(bucket), prefix) => {
                let prefix = prefix.as_deref().unwrap_or_default();
                Ok(Some(StoreUrl::S3(S3Location::new(bucket, prefix)?)))
            }
            (_, None, Some(_)) => {
                Err(Error::usage("a prefix is given without a bucket").hint("add the bucket"))
            }
            (None, None, None) => Ok(None),
        }
    }

    /// What a configuration file says; `name` is the file's, for the error. Errors: usage.
    pub fn parse(name: &str, text: &str) -> Result<Named> {
        toml::from_str(text).map_err(|e| {
            let line = e.span().map(|at| text[..at.start].matches('\n').count() + 1);
            let place = line.map(|line| format!(", line {line}")).unwrap_or_default();
            Error::usage(format!("{name}{place} is wrong: {}", e.message()))
        })
    }

    /// Reads the configuration file: `explicit`, or the first of the usual ones that exists.
    /// Errors: not found, for an explicit file only; usage, for what it says.
    pub fn from_file(explicit: Option<&Path>) -> Result<Named> {
        if let Some(path) = explicit {
            let missing = || Error::not_found(format!("there is no file {}", path.display()));
            return read(path)?.ok_or_else(missing);
        }
        let user = user_directory("XDG_CONFIG_HOME", ".config");
        let user = user.map(|directory| directory.join("objblk/config.toml"));
        for path in user.into_iter().chain([PathBuf::from(SYSTEM_FILE)]) {
            if let Some(named) = read(&path)? {
                return Ok(named);
            }
        }
        Ok(Named::default())
    }
}

impl Location {
    /// The store that a command line means, with the environment and the configuration file.
    /// Errors: usage; failed, where nothing names a store and there is no home directory.
    pub fn find(flags: Named, config: Option<&Path>) -> Result<Location> {
        let file = Named::from_file(config)?;
        let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
        let url = match (flags.url()?, variable("OBJBLK_STORE")) {
            (Some(url), _) => url,
            (None, Some(url)) => url.parse().map_err(|e: Error| e.context("$OBJBLK_STORE"))?,
            (None, None) => match file.url()? {
                Some(url) => url,
                None => StoreUrl::Dir(embedded()?),
            },
        };
        if !matches!(url, StoreUrl::S3(_))
            && (flags.endpoint_url.is_some() || flags.region.is_some())
        {
            return Err(Error::usage(format!("{url} has no endpoint and no region"))
                .hint("drop --endpoint-url and --region, or name a bucket"));
        }
        let endpoint = flags.endpoint_url.or_else(|| variable("OBJBLK_ENDPOINT_URL"));
        let region = flags.region.or_else(|| variable("OBJBLK_REGION"));
        Ok(Location {
            url: url.to_string(),
            endpoint_url: endpoint.or(file.endpoint_url),
            region: region.or(file.region),
        })
    }

    /// Its address and how a bucket is reached. Errors: usage.
    pub fn parts(&self) -> Result<(StoreUrl, S3Options)> {
        let s3 = S3Options {
            endpoint_url: self.endpoint_url.clone(),
            region: self.region.clone(),
            ..S3Options::default()
        };
        Ok((self.url.parse()?, s3))
    }
}

fn read(path: &Path) -> Result<Option<Named>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::failed(format!("cannot read {}", path.display())).because(e)),
    };
    Named::parse(&path.display().to_string(), &text).map(Some)
}

/// The directory store that is used where none is named.
fn embedded() -> Result<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Ok("/var/lib/objblk/store".into());
    }
    let state = user_directory("XDG_STATE_HOME", ".local/state");
    state.map(|state| state.join("objblk/store")).ok_or_else(|| {
        Error::failed("no store is named and there is no home directory for a default one")
            .hint("name a store with --store or --bucket")
    })
}

/// A directory of the XDG base directory specification: `variable`, else `below` the home.
fn user_directory(variable: &str, below: &str) -> Option<PathBuf> {
    let absolute = |path: &PathBuf| path.is_absolute();
    let named = env::var_os(variable).map(PathBuf::from).filter(absolute);
    let home = || env::var_os("HOME").map(PathBuf::from).filter(absolute);
    named.or_else(|| home().map(|home| home.join(below)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_store_at_most() {
        let named = |store: Option<&str>, bucket: Option<&str>, prefix: Option<&str>| Named {
            store: store.map(Into::into),
            bucket: bucket.map(Into::into),
            prefix: prefix.map(Into::into),
            ..Named::default()
        };
        let url = |named: Named| named.url().map(|url| url.map(|url| url.to_string()));
        assert_eq!(url(named(None, None, None)).unwrap(), None);
        let bucket = named(None, Some("disks"), Some("a/b"));
        assert_eq!(url(bucket).unwrap().unwrap(), "s3://disks/a/b");
        assert!(url(named(Some("s3://disks"), Some("disks"), None)).is_err());
        assert!(url(named(Some("s3://disks"), None, Some("x"))).is_err());
        assert!(url(named(None, None, Some("x"))).is_err());
    }

    #[test]
    fn files_say_where_they_are_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        fs::write(&path, "store = 's3://disks'\nregion = 'eu-1'\n").unwrap();
        let named = Named::from_file(Some(&path)).unwrap();
        assert_eq!(named.region.as_deref(), Some("eu-1"));
        fs::write(&path, "store = 's3://disks'\nshop = 1\n").unwrap();
        let error = Named::from_file(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("c.toml, line 2 is wrong: unknown field `shop`"), "{error}");
        assert!(Named::from_file(Some(&folder.path().join("none"))).is_err());
    }
}
