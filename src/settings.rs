//! Where volumes live, from the configuration file, the environment and the command line.
//!
//! The first of these that names a store decides: `--store`; `--bucket` (with `--prefix`);
//! `$OBJBLK_STORE`; the configuration file; a directory below the user's state directory. The
//! S3 endpoints (one for each path, separated by spaces in the environment) and region come, each by
//! itself, from the flag, `$OBJBLK_ENDPOINT_URL` and `$OBJBLK_REGION`, or the configuration file; how
//! paths are used, from the flag or the configuration file. Credentials come from the AWS chain only.
//!
//! The configuration file is TOML; a key that is not known is refused. It is the file given with
//! `--config`, else `~/.config/objblk/config.toml`, else `/etc/objblk/config.toml`.

use crate::error::{Error, Result};
use crate::store::paths::policy::PathPolicy;
use crate::store::paths::s3::PathOptions;
use crate::store::paths::selector::Selector;
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
    /// S3 endpoints, each a path.
    #[serde(default)]
    pub endpoint_url: Endpoints,
    /// S3 region.
    pub region: Option<String>,
    /// How one of several paths is selected.
    pub path_selector: Option<Selector>,
    /// What becomes of requests while no path works.
    #[serde(default, deserialize_with = "one_text")]
    pub no_path_retry: Option<String>,
    /// When a group of paths of higher priority takes over.
    #[serde(default, deserialize_with = "one_text")]
    pub path_failback: Option<String>,
}

/// Endpoints as they were written: one, several, or none. What they mean is a
/// [`PathSpec`](crate::store::paths::spec::PathSpec)'s.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Option<OneOrMany>", into = "Option<OneOrMany>")]
pub struct Endpoints(pub Vec<String>);

#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged, expecting = "it is a URL or a list of URLs")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<Option<OneOrMany>> for Endpoints {
    fn from(written: Option<OneOrMany>) -> Endpoints {
        Endpoints(match written {
            None => Vec::new(),
            Some(OneOrMany::One(one)) => vec![one],
            Some(OneOrMany::Many(many)) => many,
        })
    }
}

impl From<Endpoints> for Option<OneOrMany> {
    fn from(Endpoints(mut all): Endpoints) -> Option<OneOrMany> {
        match all.len() {
            0 => None,
            1 => all.pop().map(OneOrMany::One),
            _ => Some(OneOrMany::Many(all)),
        }
    }
}

impl Endpoints {
    /// Those of a text, separated by spaces. One that is wrong is one, as a whole.
    fn listed(text: &str) -> Endpoints {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        match words.iter().all(|word| word.contains("://")) {
            true => Endpoints(words),
            false => Endpoints(vec![text.to_owned()]),
        }
    }

    fn or(self, other: Endpoints) -> Endpoints {
        if self.0.is_empty() { other } else { self }
    }
}

/// A text, or a number as it would be written.
fn one_text<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> std::result::Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "it is a word or a number")]
    enum Either {
        Text(String),
        Number(u32),
    }
    Ok(Some(match Either::deserialize(from)? {
        Either::Text(text) => text,
        Either::Number(number) => number.to_string(),
    }))
}

/// A store, found: what it takes to open it, also in another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// Address of the store.
    pub url: String,
    /// S3 endpoints, each a path.
    #[serde(default)]
    pub endpoint_url: Endpoints,
    /// S3 region.
    pub region: Option<String>,
    /// How paths are used.
    #[serde(default)]
    pub paths: PathPolicy,
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
        let said = !flags.endpoint_url.0.is_empty() || flags.region.is_some();
        if !matches!(url, StoreUrl::S3(_)) && said {
            return Err(Error::usage(format!("{url} has no endpoint and no region"))
                .hint("drop --endpoint-url and --region, or name a bucket"));
        }
        let endpoints = Endpoints::listed(&variable("OBJBLK_ENDPOINT_URL").unwrap_or_default());
        let region = flags.region.clone().or_else(|| variable("OBJBLK_REGION"));
        let paths = policy(&flags, &file)?;
        Ok(Location {
            url: url.to_string(),
            endpoint_url: flags.endpoint_url.or(endpoints).or(file.endpoint_url),
            region: region.or(file.region),
            paths,
        })
    }

    /// Its address and how a bucket is reached. Errors: usage.
    pub fn parts(&self) -> Result<(StoreUrl, S3Options)> {
        let specs = self.endpoint_url.0.iter().map(|text| text.parse());
        let paths =
            PathOptions { specs: specs.collect::<Result<_>>()?, policy: self.paths.clone() };
        let s3 = S3Options { region: self.region.clone(), paths, ..S3Options::default() };
        Ok((self.url.parse()?, s3))
    }
}

/// How paths are used, by flags and the configuration file. Errors: usage.
fn policy(flags: &Named, file: &Named) -> Result<PathPolicy> {
    let usual = PathPolicy::default();
    let retry = flags.no_path_retry.as_ref().or(file.no_path_retry.as_ref());
    let failback = flags.path_failback.as_ref().or(file.path_failback.as_ref());
    Ok(PathPolicy {
        selector: flags.path_selector.or(file.path_selector).unwrap_or(usual.selector),
        no_path_retry: retry.map_or(Ok(usual.no_path_retry), |text| text.parse())?,
        failback: failback.map_or(Ok(usual.failback), |text| text.parse())?,
        ..usual
    })
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
        assert_eq!(named.endpoint_url, Endpoints::default());
        fs::write(&path, "endpoint-url = 'http://a'\nno-path-retry = 5\n").unwrap();
        let named = Named::from_file(Some(&path)).unwrap();
        assert_eq!(named.endpoint_url.0, ["http://a"]);
        assert_eq!(named.no_path_retry.as_deref(), Some("5"));
        fs::write(&path, "endpoint-url = ['http://a', 'http://b,weight=2']").unwrap();
        let named = Named::from_file(Some(&path)).unwrap();
        assert_eq!(named.endpoint_url.0, ["http://a", "http://b,weight=2"]);
        fs::write(&path, "store = 's3://disks'\nshop = 1\n").unwrap();
        let error = Named::from_file(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("c.toml, line 2 is wrong: unknown field `shop`"), "{error}");
        assert!(Named::from_file(Some(&folder.path().join("none"))).is_err());
    }
}
