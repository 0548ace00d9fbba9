//! Addresses of images: a path, `file:///path`, `http://`, `https://`, and NBD's own URIs.
//!
//! NBD: `nbd://HOST[:PORT]/EXPORT` and `nbd+unix:///EXPORT?socket=PATH` (the "NBD Uniform Resource
//! Indicator", of the NBD project's doc/uri.md), without percent-decoding.

use crate::error::{Error, Result};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The port of NBD servers.
const NBD_PORT: u16 = 10809;

/// Where an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageUrl {
    /// A file or a block device of this host, by its absolute path.
    File(PathBuf),
    /// An object of an HTTP server.
    Http(String),
    /// An export of an NBD server.
    Nbd(NbdAddress),
}

/// Where an NBD export is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdAddress {
    /// The server.
    pub server: NbdServer,
    /// The export.
    pub export: String,
}

/// Where an NBD server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdServer {
    /// Host and port.
    Tcp(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

impl ImageUrl {
    /// What a user typed: paths may be relative to the present directory.
    ///
    /// # Errors
    /// Usage: it is no address of an image.
    pub fn typed(text: &str) -> Result<ImageUrl> {
        if text.contains("://") {
            return text.parse();
        }
        let absolute = std::path::absolute(text);
        absolute.map(ImageUrl::File).map_err(|e| Error::usage("--source is no path").because(e))
    }
}

impl FromStr for ImageUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<ImageUrl> {
        let refused = |why: &str| {
            Err(Error::usage(format!("{text:?} is no address of an image: {why}")).hint(
                "write a path, http(s)://..., nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH",
            ))
        };
        if text.contains(['\0', '\n', '\r', ' ']) && !text.starts_with("file://") {
            return refused("it has a space or a control character");
        }
        if let Some(path) = text.strip_prefix("file://") {
            return match path.starts_with('/') && !path.contains('\0') {
                true => Ok(ImageUrl::File(PathBuf::from(path))),
                false => refused("the path is not absolute"),
            };
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            return Ok(ImageUrl::Http(text.to_owned()));
        }
        if let Some(rest) = text.strip_prefix("nbd+unix:///") {
            let Some((export, socket)) = rest.split_once("?socket=") else {
                return refused("?socket=PATH is missing");
            };
            let server = NbdServer::Unix(PathBuf::from(socket));
            return match Path::new(socket).is_absolute() {
                true => Ok(ImageUrl::Nbd(NbdAddress { server, export: export.to_owned() })),
                false => refused("the socket's path is not absolute"),
            };
        }
        let Some(rest) = text.strip_prefix("nbd://") else {
            return refused("its scheme is not known");
        };
        let (host, export) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => match port.parse() {
                Ok(port) => (name, port),
                Err(_) => return refused("its port is no number"),
            },
            _ => (host, NBD_PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return refused("the host is missing");
        }
        let server = NbdServer::Tcp(host.to_owned(), port);
        Ok(ImageUrl::Nbd(NbdAddress { server, export: export.to_owned() }))
    }
}

impl fmt::Display for ImageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageUrl::File(path) => write!(f, "file://{}", path.display()),
            ImageUrl::Http(url) => f.write_str(url),
            ImageUrl::Nbd(NbdAddress { server: NbdServer::Unix(socket), export }) => {
                write!(f, "nbd+unix:///{export}?socket={}", socket.display())
            }
            ImageUrl::Nbd(NbdAddress { server: NbdServer::Tcp(host, port), export }) => {
                match host.contains(':') {
                    true => write!(f, "nbd://[{host}]:{port}/{export}"),
                    false => write!(f, "nbd://{host}:{port}/{export}"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_addresses_parse_to_themselves() {
        for text in [
            "file:///a b/c",
            "http://host:80/a?b=c",
            "https://host/a",
            "nbd://host:10809/",
            "nbd://[::1]:99/export",
            "nbd+unix:///export?socket=/a/b",
        ] {
            let parsed: ImageUrl = text.parse().unwrap();
            assert_eq!(parsed.to_string(), text);
        }
        let plain: ImageUrl = "nbd://host".parse().unwrap();
        assert_eq!(plain.to_string(), "nbd://host:10809/");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "a", "ftp://a", "file://a", "nbd://", "nbd://a:b/", "nbd+unix:///a"] {
            assert!(text.parse::<ImageUrl>().is_err(), "{text}");
        }
        assert!(matches!(ImageUrl::typed("a/b").unwrap(), ImageUrl::File(p) if p.is_absolute()));
    }
}
