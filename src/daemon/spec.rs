use crate::format::VolumeId;
use crate::frontend::nbd::TlsOptions;
use crate::pool::VolumeSpec;
use crate::seal::KeyGiven;
use crate::settings::Location;
use crate::volume::{Moment, ProfileUse, ScrubOptions, VolumeOptions};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// What a target is to do; goes to a background target as one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetSpec {
    /// Where the pool is.
    pub location: Location,
    /// The volumes, at least one, each once.
    pub volumes: Vec<VolumeSpec>,
    /// Open them for reading only.
    pub read_only: bool,
    /// The moment as of which they are read, by the snapshots' names that they go by; nobody has to own them.
    #[serde(default)]
    pub at: Option<Moment>,
    /// Take them from owners that have not closed them.
    pub takeover: bool,
    /// Bring back the device of this volume, whose target died; everything else but where the pool
    /// is and the cache is as it was.
    pub recover: Option<VolumeId>,
    /// Memory for cached data of each volume, in bytes.
    pub cache_bytes: u64,
    /// Memory for what is in use of the map of each volume, in bytes.
    #[serde(default = "default_map_bytes")]
    pub map_bytes: u64,
    /// What is done about their profiles.
    #[serde(default)]
    pub profile: Option<ProfileUse>,
    /// The cache of all of them on a local disk.
    #[serde(default)]
    pub disk_cache: Option<CacheSpec>,
    /// The frontend.
    pub door: DoorSpec,
    /// Flushes count on a journal; without it they wait for the store.
    #[serde(default)]
    pub journal: Option<JournalSpec>,
    /// Requests that take longer fail with EIO.
    pub io_timeout: Option<Duration>,
    /// How often an idle volume looks whether it was taken over.
    #[serde(default = "default_heartbeat")]
    pub heartbeat: Option<Duration>,
    /// Of the sources of volumes only that is fetched which somebody asks for.
    #[serde(default)]
    pub lazy: bool,
    /// Whether and how they are scrubbed.
    #[serde(default)]
    pub scrub: Option<ScrubOptions>,
    /// What opens those that are encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyGiven>,
}

/// What goes to a process in the background: itself, and what must not be written down.
pub trait Orders: Serialize {
    /// What opens encrypted volumes.
    fn key(&self) -> Option<&KeyGiven>;

    /// The same, to be completed.
    fn key_mut(&mut self) -> Option<&mut KeyGiven>;
}

impl Orders for TargetSpec {
    fn key(&self) -> Option<&KeyGiven> {
        self.key.as_ref()
    }

    fn key_mut(&mut self) -> Option<&mut KeyGiven> {
        self.key.as_mut()
    }
}

/// That of a volume nobody said otherwise for.
pub fn default_heartbeat() -> Option<Duration> {
    VolumeOptions::default().watch_every
}

/// That of a volume nobody said otherwise for.
pub fn default_map_bytes() -> u64 {
    VolumeOptions::default().map_bytes
}

/// The journals of a target's volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JournalSpec {
    /// Where they are.
    pub folder: PathBuf,
    /// Size of one that is made, in bytes.
    pub size: u64,
    /// Bytes that the store lacks at which writers wait.
    pub max_lag_bytes: Option<u64>,
    /// Age of the oldest of them at which writers wait.
    pub max_lag: Option<Duration>,
}

/// A cache on a local disk, shared by all targets that name its folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheSpec {
    /// Where it is.
    pub folder: PathBuf,
    /// The most that it takes there, in bytes.
    pub size: u64,
}

/// The frontend of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum DoorSpec {
    /// A kernel block device for one volume.
    Ublk {
        /// Hardware queues.
        queues: u16,
        /// Requests in flight on one queue.
        depth: u16,
        /// The device outlives the death of the target, if the kernel can do that.
        recovery: bool,
    },
    /// An NBD server, one export a volume.
    Nbd {
        /// Where it listens: a socket's path or an address.
        listen: String,
        /// What it has for TLS.
        #[serde(default)]
        tls: Option<TlsOptions>,
        /// The most connections at a time.
        #[serde(default)]
        connections: Option<usize>,
    },
    /// A vhost-user-blk device for one volume.
    VhostUser {
        /// The path of its socket.
        socket: PathBuf,
        /// Its guest outlives the death of the target.
        recovery: bool,
    },
    /// A file of a mounted directory, for one volume.
    File {
        /// Its path.
        path: PathBuf,
    },
}
