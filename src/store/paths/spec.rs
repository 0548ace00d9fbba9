//! How a user names a path: `URL[,priority=N][,weight=N][,source=ADDRESS][,interface=NAME][,expand=no]`. Pure.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// The most that a priority or a weight may be.
const NUMBER_MAX: u32 = 1000;

/// A path, as it was named.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PathSpec {
    /// The URL of the server; `None` where the AWS environment says it.
    pub endpoint: Option<String>,
    /// Its group: the highest with a path that works is used. 1 unless said.
    pub priority: u32,
    /// Its throughput, relative to that of other paths. 1 unless said.
    pub weight: u32,
    /// The address of this host from which it goes.
    pub source: Option<IpAddr>,
    /// The network interface by which it goes.
    pub interface: Option<String>,
    /// Where the name of the server has several addresses, each is a path of its own.
    pub expand: bool,
    /// The one of them that this path leads to. Not part of what a user says.
    pub address: Option<IpAddr>,
}

impl PathSpec {
    /// The path by the server at `endpoint`, with nothing else said.
    pub fn to(endpoint: Option<String>) -> PathSpec {
        PathSpec {
            endpoint,
            priority: 1,
            weight: 1,
            source: None,
            interface: None,
            expand: true,
            address: None,
        }
    }

    /// What it is called: the endpoint, and what tells it from others by the same one.
    pub fn name(&self) -> String {
        let mut name = self.endpoint.clone().unwrap_or_else(|| "default".to_owned());
        if let Some(address) = self.address {
            name += &format!("@{address}");
        }
        if let Some(interface) = &self.interface {
            name += &format!("%{interface}");
        }
        if let Some(source) = self.source {
            name += &format!(",source={source}");
        }
        name
    }

    /// The server's address, where the endpoint has one in place of a name.
    fn literal(&self) -> Option<IpAddr> {
        let (_, rest) = self.endpoint.as_deref()?.split_once("://")?;
        let host = rest.split('/').next()?;
        match host.strip_prefix('[') {
            Some(host) => host.split(']').next()?.parse().ok(),
            None => host.split(':').next()?.parse().ok(),
        }
    }

    /// The server's name, where it is one that may stand for several addresses, and its port.
    pub fn host(&self) -> Option<(&str, u16)> {
        let url = self.endpoint.as_deref()?;
        let (rest, usual) = match url.strip_prefix("https://") {
            Some(rest) => (rest, 443),
            None => (url.strip_prefix("http://")?, 80),
        };
        let host = rest.split('/').next()?;
        if host.starts_with('[') {
            return None;
        }
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) => (name, port.parse().ok()?),
            None => (host, usual),
        };
        let is_name = !name.is_empty() && name.parse::<IpAddr>().is_err();
        is_name.then_some((name, port))
    }
}

impl fmt::Display for PathSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.endpoint.as_deref().unwrap_or_default())?;
        if self.priority != 1 {
            write!(f, ",priority={}", self.priority)?;
        }
        if self.weight != 1 {
            write!(f, ",weight={}", self.weight)?;
        }
        if let Some(source) = self.source {
            write!(f, ",source={source}")?;
        }
        if let Some(interface) = &self.interface {
            write!(f, ",interface={interface}")?;
        }
        if !self.expand {
            f.write_str(",expand=no")?;
        }
        Ok(())
    }
}

impl FromStr for PathSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<PathSpec> {
        let wrong = |why: String| {
            Error::usage(format!("the path {text:?} is wrong")).because(why).hint(
                "write URL, then ,priority=N ,weight=N ,source=ADDRESS ,interface=NAME or ,expand=no as you \
                 need them",
            )
        };
        let mut parts = text.split(',');
        let endpoint = parts.next().unwrap_or_default();
        let mut spec = PathSpec::to((!endpoint.is_empty()).then(|| endpoint.to_owned()));
        for part in parts {
            let Some((name, value)) = part.split_once('=') else {
                return Err(wrong(format!("{part:?} has no value")));
            };
            let number = |least| {
                let plain = value.bytes().all(|b| b.is_ascii_digit());
                let number =
                    value.parse().ok().filter(|n| plain && (least..=NUMBER_MAX).contains(n));
                number.ok_or_else(|| {
                    wrong(format!("{name} is a number from {least} to {NUMBER_MAX}, not {value:?}"))
                })
            };
            match name {
                "priority" => spec.priority = number(0)?,
                "weight" => spec.weight = number(1)?,
                "interface" if is_interface(value) => spec.interface = Some(value.to_owned()),
                "interface" => return Err(wrong(format!("{value:?} is no network interface"))),
                "expand" if value == "no" || value == "yes" => spec.expand = value == "yes",
                "expand" => return Err(wrong(format!("expand is yes or no, not {value:?}"))),
                "source" => match value.parse().ok().filter(is_source) {
                    Some(source) => spec.source = Some(source),
                    None => return Err(wrong(format!("{value:?} is no address of a host"))),
                },
                _ => return Err(wrong(format!("there is no setting {name:?}"))),
            }
        }
        if let (Some(source), Some(server)) = (spec.source, spec.literal())
            && source.is_ipv4() != server.is_ipv4()
        {
            return Err(wrong(format!("there is no way from {source} to {server}")));
        }
        Ok(spec)
    }
}

/// Addresses that one host has, and its connections can come from.
fn is_source(address: &IpAddr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && *address != Ipv4Addr::BROADCAST
}

/// Names of network interfaces: as the kernel takes them.
fn is_interface(name: &str) -> bool {
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':');
    (1..16).contains(&name.len()) && !name.contains(odd) && name != "." && name != ".."
}

impl From<PathSpec> for String {
    fn from(spec: PathSpec) -> String {
        spec.to_string()
    }
}

impl TryFrom<String> for PathSpec {
    type Error = Error;

    fn try_from(text: String) -> Result<PathSpec> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_round_trip() {
        for text in [
            "http://127.0.0.1:7480",
            "https://s3.example.org,priority=2,weight=10,interface=eth0.7",
            "https://s3.example.org:8443/x,priority=0,expand=no",
            "https://s3.example.org,source=10.0.0.5,interface=eth0",
            "http://[::1]:7480,source=2001:db8::5",
        ] {
            let spec: PathSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
        }
        let spec: PathSpec = "http://a,weight=1,expand=yes".parse().unwrap();
        assert_eq!(spec.to_string(), "http://a");
    }

    #[test]
    fn mistakes_are_told() {
        for (text, why) in [
            ("http://a,weight=0", "from 1 to 1000"),
            ("http://a,priority=-1", "from 0 to 1000"),
            ("http://a,priority=", "from 0 to 1000"),
            ("http://a,weight=+5", "from 1 to 1000"),
            ("http://a,interface=much-too-long-a-name", "no network interface"),
            ("http://a,source=eth0", "no address of a host"),
            ("http://a,source=10.0.0.1/24", "no address of a host"),
            ("http://a,source=0.0.0.0", "no address of a host"),
            ("http://a,source=::", "no address of a host"),
            ("http://a,source=224.0.0.1", "no address of a host"),
            ("http://a,source=255.255.255.255", "no address of a host"),
            ("http://10.0.0.1:80/x,source=::1", "no way from ::1 to 10.0.0.1"),
            ("http://[::1]:80,source=10.0.0.1", "no way from 10.0.0.1 to ::1"),
            ("http://a,color=red", "no setting \"color\""),
            ("http://a,weight", "has no value"),
            ("http://a,", "has no value"),
        ] {
            let error = text.parse::<PathSpec>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn sources_tell_paths_apart() {
        let name = |text: &str| text.parse::<PathSpec>().unwrap().name();
        assert_eq!(name("http://a,source=10.0.0.1,weight=2"), "http://a,source=10.0.0.1");
        assert_ne!(name("http://a,source=10.0.0.1"), name("http://a,source=10.0.0.2"));
    }

    #[test]
    fn names_of_servers() {
        let host = |text: &str| {
            let spec: PathSpec = text.parse().unwrap();
            spec.host().map(|(name, port)| (name.to_owned(), port))
        };
        assert_eq!(host("https://s3.example.org"), Some(("s3.example.org".into(), 443)));
        assert_eq!(host("http://rgw:7480/x"), Some(("rgw".into(), 7480)));
        for text in ["http://10.0.0.1:80", "http://[::1]:80", "http://:80", "rgw", ""] {
            assert_eq!(host(text), None, "{text}");
        }
    }
}
