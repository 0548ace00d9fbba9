//! The language of the control socket: one line of JSON a message, each with a version.
//!
//! A client sends one [`Request`] and reads [`Reply`]s: one for everything but a detach, which
//! reports its progress until it is done. A client that closes its connection while a detach still
//! makes data durable, or while a collection goes on, calls it off. Lines are bounded and parsing is total.

use crate::error::{Error, ErrorKind, Result};
use crate::format::schedule::Rule;
use crate::format::snapshot::SnapshotEntry;
use crate::format::{SnapshotId, VolumeId};
use crate::pool::VolumeSpec;
use crate::pool::backend::Pace;
use crate::store::paths::PathsReport;
use crate::store::paths::selector::Selector;
use crate::store::paths::spec::PathSpec;
use crate::volume::{
    Collected, DiskCacheStatus, Flattened, JournalStatus, MapStatus, Mended, ScrubStatus,
    SourceStatus, SpaceStatus,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

/// The version of the messages.
const VERSION: u32 = 1;

/// Longest line, in bytes.
const LINE_MAX: u64 = 1 << 20;

/// What a client asks of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Are you there?
    Ping,
    /// What are you doing?
    Status,
    /// Collect what is dead in a volume's chunks, now.
    Collect {
        /// The volume.
        volume: VolumeId,
        /// Until its chunks hold at most this, in percent of what is live; otherwise as it always is.
        bound_percent: Option<u32>,
    },
    /// Have a clone do without its origin.
    Flatten {
        /// The volume.
        volume: VolumeId,
    },
    /// Make whole what is damaged of a volume.
    Mend {
        /// The volume.
        volume: VolumeId,
        /// The names of the damaged objects.
        objects: Vec<String>,
    },
    /// Make, delete or list snapshots of a volume.
    Snapshots {
        /// The volume.
        volume: VolumeId,
        /// Which.
        action: SnapshotAction,
    },
    /// Let a volume grow, its users going on.
    Grow {
        /// The volume.
        volume: VolumeId,
        /// Its new size, in bytes.
        size: u64,
    },
    /// Show the paths to the store, after a change if one is wanted.
    Paths {
        /// What is to be changed.
        change: Option<PathChange>,
    },
    /// Make snapshots of a volume by these rules from now on.
    Schedule {
        /// The volume.
        volume: VolumeId,
        /// None: no snapshots.
        rules: Vec<Rule>,
    },
    /// Keep the past of a volume that long from now on.
    Retain {
        /// The volume.
        volume: VolumeId,
        /// In milliseconds; `None`: not at all.
        time_ms: Option<u64>,
    },
    /// End in order.
    Detach {
        /// Give up what the store does not take within seconds; end also when in use.
        force: bool,
    },
}

impl Request {
    /// Whether it takes as long as it takes, and ends with who waits for it.
    pub(super) fn is_long(&self) -> bool {
        matches!(self, Request::Collect { .. } | Request::Flatten { .. } | Request::Mend { .. })
    }

    /// The volume that it is about, where the owner of that carries it out for other hosts too.
    pub(super) fn for_any_host(&self) -> Option<VolumeId> {
        match self {
            Request::Collect { volume, .. }
            | Request::Flatten { volume }
            | Request::Snapshots { volume, .. }
            | Request::Grow { volume, .. }
            | Request::Schedule { volume, .. }
            | Request::Retain { volume, .. } => Some(*volume),
            // What is damaged is looked for in caches of one host; the others are about a process.
            Request::Mend { .. }
            | Request::Ping
            | Request::Status
            | Request::Paths { .. }
            | Request::Detach { .. } => None,
        }
    }
}

/// What is to be changed about paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathChange {
    /// Add this one.
    Add(PathSpec),
    /// Remove the one of this name or number.
    Remove(String),
    /// Use it again.
    Enable(String),
    /// Do not use it.
    Disable(String),
    /// Select otherwise.
    Select(Selector),
}

/// What is to be done about snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotAction {
    /// Make one of this name.
    Make(String),
    /// Delete the one of this name.
    Delete(String),
    /// Do not delete the one of this name when its time has come.
    Keep(String),
    /// Nothing.
    List,
}

/// A snapshot, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// Its name.
    pub name: String,
    /// The snapshot.
    pub id: SnapshotId,
    /// When it was made, in milliseconds since 1970.
    pub made_at_ms: u64,
    /// Size of the volume then, in bytes.
    pub size: u64,
    /// Bytes that held data.
    pub used: u64,
    /// The first slot of the log that is not in it.
    pub seq: u64,
}

impl From<SnapshotEntry> for SnapshotReport {
    fn from(entry: SnapshotEntry) -> SnapshotReport {
        let (size, used) = (entry.size.bytes(), entry.live.bytes());
        let SnapshotEntry { name, id, made_at_ms, next, .. } = entry;
        SnapshotReport { name, id, made_at_ms, size, used, seq: next.0 }
    }
}

/// What a target answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To a ping.
    Pong,
    /// To a status request.
    Status(Box<TargetStatus>),
    /// To a collection: it is done.
    Collected(Collected),
    /// To a flattening: it is done.
    Flattened(Flattened),
    /// To a request to mend: what became of each object.
    Mended(Vec<Mended>),
    /// To a request about snapshots: those that it was about.
    Snapshots(Vec<SnapshotReport>),
    /// To a request to grow: it has.
    Grown {
        /// The size before, in bytes.
        old_size: u64,
    },
    /// To a request about paths: all of them.
    Paths(PathsReport),
    /// To a schedule: it is set.
    Scheduled,
    /// To a change of how long the past is kept: it is done.
    Retained,
    /// To a detach, again and again while it goes on.
    Progress {
        /// What is being done.
        phase: Phase,
        /// Bytes that the store does not have yet.
        dirty_bytes: u64,
    },
    /// To a detach: it is done.
    Detached(Outcome),
    /// The request failed.
    Refused(Refusal),
}

impl Reply {
    /// Those that a request about snapshots was about.
    pub fn snapshots(self) -> Result<Vec<SnapshotReport>> {
        match self {
            Reply::Snapshots(snapshots) => Ok(snapshots),
            _ => Err(Reply::unexpected()),
        }
    }

    /// What a collection has done.
    pub fn collected(self) -> Result<Collected> {
        match self {
            Reply::Collected(collected) => Ok(collected),
            _ => Err(Reply::unexpected()),
        }
    }

    /// What a flattening has done.
    pub fn flattened(self) -> Result<Flattened> {
        match self {
            Reply::Flattened(flattened) => Ok(flattened),
            _ => Err(Reply::unexpected()),
        }
    }

    /// The size before a volume has grown, in bytes.
    pub fn grown(self) -> Result<u64> {
        match self {
            Reply::Grown { old_size } => Ok(old_size),
            _ => Err(Reply::unexpected()),
        }
    }

    /// That something is set.
    pub fn set(self) -> Result<()> {
        match self {
            Reply::Scheduled | Reply::Retained => Ok(()),
            _ => Err(Reply::unexpected()),
        }
    }

    fn unexpected() -> Error {
        Error::failed("the owner of the volume answered something else")
    }
}

/// What a target is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It serves its volumes.
    Attached,
    /// It makes durable what was written, still serving.
    Flushing,
    /// It ends its frontend.
    Stopping,
    /// It closes its volumes.
    Closing,
}

impl Phase {
    /// Its name for users.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Attached => "attached",
            Phase::Flushing => "flushing",
            Phase::Stopping => "stopping",
            Phase::Closing => "closing",
        }
    }
}

/// State of a target at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetStatus {
    /// What it is doing.
    pub phase: Phase,
    /// Its volumes.
    pub volumes: Vec<VolumeReport>,
    /// What its store was asked, by operation.
    pub store: serde_json::Value,
    /// The paths to its store, where it has some.
    #[serde(default)]
    pub paths: Option<PathsReport>,
}

/// State of an attached volume at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeReport {
    /// Its name.
    pub name: VolumeSpec,
    /// The volume.
    pub id: VolumeId,
    /// Where it is to be found.
    pub device: String,
    /// Size in bytes.
    pub size: u64,
    /// The owner's term; 0 for read-only.
    pub epoch: u64,
    /// It can only be read.
    pub read_only: bool,
    /// Bytes written that the store does not have yet.
    pub dirty_bytes: u64,
    /// How long the oldest of them has waited, in milliseconds.
    pub lag_ms: u64,
    /// The most that `dirty_bytes` was.
    pub max_dirty_bytes: u64,
    /// The most that `lag_ms` was.
    pub max_lag_ms: u64,
    /// Flushes count on its journal.
    pub durable_locally: bool,
    /// Its journal, if it has one.
    pub journal: Option<JournalStatus>,
    /// The copies of a mirrored volume.
    #[serde(default)]
    pub copies: Option<Vec<Pace>>,
    /// Its device would outlive the death of its process.
    #[serde(default)]
    pub recoverable: bool,
    /// Why it fails all requests, if it does.
    pub failure: Option<String>,
    /// Frames read from the cache.
    pub cache_hits: u64,
    /// Frames that had to be fetched.
    pub cache_misses: u64,
    /// Bytes in the cache.
    pub cache_bytes: u64,
    /// Its cache on a local disk, if it has one.
    #[serde(default)]
    pub disk_cache: Option<DiskCacheStatus>,
    /// Its map.
    #[serde(default)]
    pub map: MapStatus,
    /// What its log holds, and what was collected.
    #[serde(default)]
    pub space: SpaceStatus,
    /// Its scrub, where it is scrubbed.
    #[serde(default)]
    pub scrub: Option<ScrubStatus>,
    /// What it lacks of its source, if it lacks anything.
    #[serde(default)]
    pub source: Option<SourceStatus>,
    /// Counters of its frontend.
    pub frontend: serde_json::Value,
}

/// How a target ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Bytes that were written and never stored.
    pub lost_bytes: u64,
    /// Bytes that the store lacks and the journal keeps for the next owner on this host.
    pub kept_bytes: u64,
    /// Why a volume had failed before, if one had.
    pub failure: Option<String>,
    /// Another owner has the volume.
    pub fenced: bool,
    /// What could not be ended in order, if something could not.
    pub trouble: Option<String>,
}

/// An error on its way between processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    kind: String,
    message: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<T> {
    version: u32,
    message: T,
}

/// The line of a message, with its line feed.
pub fn encode<T: Serialize>(message: T) -> Vec<u8> {
    let envelope = Envelope { version: VERSION, message };
    let mut line = serde_json::to_vec(&envelope).expect("plain structures always serialise");
    line.push(b'\n');
    line
}

/// The message in a line. Errors: failed, with what is wrong.
pub fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T> {
    let odd = || Error::failed("a message on the control socket is not understood");
    // The version first: another one may have another message.
    let any: Envelope<serde_json::Value> =
        serde_json::from_slice(line).map_err(|e| odd().because(e))?;
    if any.version != VERSION {
        return Err(odd()
            .because(format!("its version is {}, not {VERSION}", any.version))
            .hint("use the objblk that the other process runs"));
    }
    serde_json::from_value(any.message).map_err(|e| odd().because(e))
}

/// The next message; `None` at the end of the stream. Errors: failed.
pub(super) async fn receive<T: DeserializeOwned>(
    from: &mut (impl AsyncBufRead + Unpin),
) -> Result<Option<T>> {
    let mut line = Vec::new();
    let read = from.take(LINE_MAX).read_until(b'\n', &mut line).await;
    read.map_err(|e| Error::failed("cannot read from the control socket").because(e))?;
    if line.is_empty() {
        return Ok(None);
    }
    decode(&line).map(Some)
}

/// Every kind and its name in messages.
const KINDS: [(ErrorKind, &str); 9] = [
    (ErrorKind::Failed, "failed"),
    (ErrorKind::Usage, "usage"),
    (ErrorKind::NotFound, "not-found"),
    (ErrorKind::Exists, "exists"),
    (ErrorKind::Busy, "busy"),
    (ErrorKind::Fenced, "fenced"),
    (ErrorKind::Store, "store"),
    (ErrorKind::Corrupt, "corrupt"),
    (ErrorKind::Unsupported, "unsupported"),
];

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let kind = KINDS.iter().find(|(kind, _)| *kind == error.kind());
        let kind = kind.map_or("failed", |(_, name)| name).to_owned();
        Refusal { kind, message: error.to_string() }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        let kind = KINDS.iter().find(|(_, name)| *name == refusal.kind);
        Error::new(kind.map_or(ErrorKind::Failed, |(kind, _)| *kind), refusal.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_round_trip() {
        let volume = VolumeId::from_bytes([1; 16]);
        let collect = Request::Collect { volume, bound_percent: Some(110) };
        let make = SnapshotAction::Make("a".into());
        let make = Request::Snapshots { volume, action: make };
        let rules = vec![Rule { every_ms: 60_000, keep: 1 }];
        let schedule = Request::Schedule { volume, rules };
        let retain = Request::Retain { volume, time_ms: None };
        let mend = Request::Mend { volume, objects: vec!["volumes/a/log/00/1-1".into()] };
        let detach = Request::Detach { force: true };
        let all = [Request::Ping, Request::Status, collect, make, schedule, retain, mend, detach];
        for request in all {
            assert_eq!(decode::<Request>(&encode(&request)).unwrap(), request);
        }
        for (kind, _) in KINDS {
            let refusal = Refusal::from(Error::new(kind, "no").hint("yes"));
            let Reply::Refused(back) = decode(&encode(Reply::Refused(refusal))).unwrap() else {
                panic!("another reply");
            };
            let error = Error::from(back);
            assert_eq!((error.kind(), error.to_string().as_str()), (kind, "no; yes"));
        }
    }

    #[test]
    fn other_versions_are_told_apart() {
        let error = decode::<Request>(br#"{"version":9,"message":{"new":1}}"#).unwrap_err();
        assert!(error.to_string().contains("its version is 9, not 1"), "{error}");
        assert!(decode::<Request>(br#"{"version":1,"message":"pong"}"#).is_err());
    }

    proptest! {
        #[test]
        fn parsing_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode::<Request>(&bytes);
            let _ = decode::<Reply>(&bytes);
        }
    }
}
