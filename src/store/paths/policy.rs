//! How paths are used: what a user can say about it. Pure.

use super::selector::Selector;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The most that a number in a policy may be.
const NUMBER_MAX: u32 = 1_000_000;

/// How the paths of one store are used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PathPolicy {
    /// Which path of the group in use takes a request.
    pub selector: Selector,
    /// When a group of higher priority is used again.
    pub failback: Failback,
    /// What becomes of a device's requests while no path works.
    pub no_path_retry: NoPathRetry,
    /// Time between two checks of a path that does not work.
    pub check_every: Duration,
    /// So many checks in a row must succeed before a path is used again.
    pub readmit_after: u32,
    /// A path that fails so many requests in a row is not used any more.
    pub fail_after: u32,
    /// A path of which a greater share of requests fails, in percent, is held out as marginal.
    pub marginal_percent: u32,
}

impl Default for PathPolicy {
    fn default() -> PathPolicy {
        PathPolicy {
            selector: Selector::default(),
            failback: Failback::default(),
            no_path_retry: NoPathRetry::default(),
            check_every: Duration::from_secs(5),
            readmit_after: 3,
            fail_after: 3,
            marginal_percent: 10,
        }
    }
}

/// When a group of higher priority, of which a path works again, takes over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Failback {
    /// At once.
    #[default]
    Immediate,
    /// Once the group in use has no path that works.
    Manual,
    /// When it has worked for so long.
    After(Duration),
}

/// What becomes of a device's requests that wait for the store while no path works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum NoPathRetry {
    /// They wait until one works.
    #[default]
    Queue,
    /// They fail with EIO.
    Fail,
    /// They fail with EIO once the paths were checked so many times in vain.
    Times(u32),
}

impl NoPathRetry {
    /// How long requests wait after the last path has failed; `None` is for ever.
    pub fn patience(self, check_every: Duration) -> Option<Duration> {
        match self {
            NoPathRetry::Queue => None,
            NoPathRetry::Fail => Some(Duration::ZERO),
            NoPathRetry::Times(times) => Some(check_every.saturating_mul(times)),
        }
    }
}

fn number(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|n| plain && (1..=NUMBER_MAX).contains(n))
}

impl fmt::Display for Failback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failback::Immediate => f.write_str("immediate"),
            Failback::Manual => f.write_str("manual"),
            Failback::After(time) => write!(f, "{}", time.as_secs()),
        }
    }
}

impl FromStr for Failback {
    type Err = Error;

    fn from_str(text: &str) -> Result<Failback> {
        match (text, number(text)) {
            ("immediate", _) => Ok(Failback::Immediate),
            ("manual", _) => Ok(Failback::Manual),
            (_, Some(seconds)) => Ok(Failback::After(Duration::from_secs(seconds.into()))),
            _ => Err(Error::usage(format!("{text:?} is no failback policy"))
                .hint("write immediate, manual or a number of seconds")),
        }
    }
}

impl fmt::Display for NoPathRetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoPathRetry::Queue => f.write_str("queue"),
            NoPathRetry::Fail => f.write_str("fail"),
            NoPathRetry::Times(times) => write!(f, "{times}"),
        }
    }
}

impl FromStr for NoPathRetry {
    type Err = Error;

    fn from_str(text: &str) -> Result<NoPathRetry> {
        match (text, number(text)) {
            ("queue", _) => Ok(NoPathRetry::Queue),
            ("fail", _) => Ok(NoPathRetry::Fail),
            (_, Some(times)) => Ok(NoPathRetry::Times(times)),
            _ => Err(Error::usage(format!("{text:?} is no policy for when no path works"))
                .hint("write queue, fail or a number of checks")),
        }
    }
}

impl From<Failback> for String {
    fn from(failback: Failback) -> String {
        failback.to_string()
    }
}

impl TryFrom<String> for Failback {
    type Error = Error;

    fn try_from(text: String) -> Result<Failback> {
        text.parse()
    }
}

impl From<NoPathRetry> for String {
    fn from(retry: NoPathRetry) -> String {
        retry.to_string()
    }
}

impl TryFrom<String> for NoPathRetry {
    type Error = Error;

    fn try_from(text: String) -> Result<NoPathRetry> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_round_trip() {
        for text in ["immediate", "manual", "30"] {
            assert_eq!(text.parse::<Failback>().unwrap().to_string(), text);
        }
        for text in ["queue", "fail", "12"] {
            assert_eq!(text.parse::<NoPathRetry>().unwrap().to_string(), text);
        }
        for text in ["", "0", "-1", "+1", "never", "9999999"] {
            assert!(text.parse::<Failback>().is_err(), "{text:?}");
            assert!(text.parse::<NoPathRetry>().is_err(), "{text:?}");
        }
        let policy = PathPolicy { failback: Failback::Manual, ..PathPolicy::default() };
        let text = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<PathPolicy>(&text).unwrap(), policy);
        assert_eq!(serde_json::from_str::<PathPolicy>("{}").unwrap(), PathPolicy::default());
    }

    #[test]
    fn patience_without_a_path() {
        let every = Duration::from_secs(5);
        assert_eq!(NoPathRetry::Queue.patience(every), None);
        assert_eq!(NoPathRetry::Fail.patience(every), Some(Duration::ZERO));
        assert_eq!(NoPathRetry::Times(3).patience(every), Some(3 * every));
    }
}
