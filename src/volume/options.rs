//! What a volume is opened with, and what it tells of itself.

use super::hydrate::SourceStatus;
use super::past::Moment;
use super::profile::ProfileUse;
use super::scrub::{ScrubOptions, ScrubStatus};
use crate::cache::disk::DiskCache;
use crate::clock::Clock;
use crate::gc::Limits;
use crate::image::Images;
use crate::journal::disk::Disk;
use crate::store::Store;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// What the engine takes from outside.
#[derive(Clone, Debug)]
pub struct Env {
    /// Runs everything that waits.
    pub runtime: tokio::runtime::Handle,
    /// For timestamps only.
    pub clock: Arc<dyn Clock>,
}

/// The store, as seen with several patiences.
#[derive(Clone, Debug)]
pub struct Stores {
    /// For opening: gives up with an error after a while.
    pub setup: Arc<dyn Store>,
    /// For the life of the device: retries transient errors for ever.
    pub live: Arc<dyn Store>,
    /// As `live`, for what no user waits for (checkpoints, deletion, read-ahead): others go first.
    pub background: Arc<dyn Store>,
}

impl Stores {
    /// One store for all.
    pub fn one(store: Arc<dyn Store>) -> Stores {
        Stores { setup: store.clone(), live: store.clone(), background: store }
    }
}

/// How a volume is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Owns the volume. Without `takeover`, a volume that was not closed is refused (Busy).
    ReadWrite {
        /// Take it from an owner that has not closed it.
        takeover: bool,
    },
    /// Goes on where an owner that died on this host left off, with all that it had acknowledged:
    /// what the log lacks is in [`VolumeOptions::mirror`]. Nobody else may have had it since.
    Recover,
    /// Reads it as it is; claims and fences nothing.
    ReadOnly,
}

/// A journal on a local disk: a flush is durable there, the store follows. It survives the loss of
/// the process and of power, not that of the host: then the volume is as it was a moment before,
/// at most as long ago, or as many bytes, as the limits say.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// The disk. A blank one becomes a journal; one that holds what the store lacks is gone on
    /// from, if nobody else has had the volume since.
    pub disk: Arc<dyn Disk>,
    /// Bytes that the store lacks at which writers wait: it never lacks more but for the last
    /// change, of at most [`PIECE_MAX`](crate::journal::ring::PIECE_MAX).
    pub max_lag_bytes: Option<u64>,
    /// Age of the oldest of them at which writers wait.
    pub max_lag: Option<Duration>,
}

/// The least memory for cached leaves and pages of the map: some of the largest of both.
pub const MAP_BYTES_MIN: u64 = 8 << 20;

/// Settings of an open volume.
#[derive(Clone, Debug)]
pub struct VolumeOptions {
    /// Access.
    pub mode: Mode,
    /// Where what is acknowledged and not committed is kept beside the memory of this process, so
    /// that a successor can [`Mode::Recover`]; nowhere by default.
    pub mirror: Option<PathBuf>,
    /// Makes flushes durable before the store has what they cover; without it a flush waits for the
    /// store.
    pub journal: Option<JournalOptions>,
    /// Memory for cached frames, in bytes.
    pub cache_bytes: u64,
    /// A cache on a local disk behind that one, which other volumes may use as well.
    pub disk_cache: Option<Arc<DiskCache>>,
    /// Memory for cached leaves and pages of the map, in bytes (at least [`MAP_BYTES_MIN`]).
    pub map_bytes: u64,
    /// Memory for data the store has not taken yet, in bytes; beyond it writers wait.
    pub dirty_bytes: u64,
    /// PUTs in flight (1 to 16).
    pub uploads: usize,
    /// Age at which a chunk that is not full is sealed.
    pub seal_after: Duration,
    /// How often a quiet owner looks whether it was fenced (the heartbeat): the only requests of an
    /// idle volume. Without, it learns that it was fenced from its next chunk.
    pub watch_every: Option<Duration>,
    /// Changed extents in memory at which a checkpoint begins.
    pub checkpoint_extents: usize,
    /// Slots of the log since the last checkpoint at which the next one begins: bounds replay.
    pub checkpoint_slots: u64,
    /// Age of changes at which a checkpoint begins, so that garbage of a quiet volume is freed.
    pub checkpoint_after: Duration,
    /// What is done about the profile: what is read first.
    pub profile: Option<ProfileUse>,
    /// The snapshot that is read instead of the volume as it is; nobody has to own the volume then.
    pub snapshot: Option<String>,
    /// The moment as of which the volume is read, instead of as it is; nobody has to own it then.
    pub at: Option<Moment>,
    /// How far dead space is collected; `None`: only chunks that are wholly dead are deleted.
    pub collection: Option<Limits>,
    /// Everything that the volume needs is read and verified now and then; `None`: it is not.
    pub scrub: Option<ScrubOptions>,
    /// A request to the device that takes longer fails with EIO; `None`: it waits for as long as
    /// the store takes. The device itself goes on: what was written is stored whenever that is
    /// possible again, a write that timed out perhaps included.
    pub io_timeout: Option<Duration>,
    /// Where images are found that volumes began as; without, what a volume lacks of its own is EIO.
    pub images: Option<Arc<dyn Images>>,
    /// What nobody asks for is fetched from the volume's source too, little by little.
    pub hydrate: bool,
    /// While this is true no path to the store works, and requests that wait for it fail; as with
    /// `io_timeout`, the device goes on.
    pub hopeless: Option<watch::Receiver<bool>>,
}

impl Default for VolumeOptions {
    fn default() -> VolumeOptions {
        VolumeOptions {
            mode: Mode::ReadWrite { takeover: false },
            mirror: None,
            journal: None,
            cache_bytes: 64 << 20,
            disk_cache: None,
            map_bytes: 32 << 20,
            dirty_bytes: 64 << 20,
            uploads: 8,
            seal_after: Duration::from_secs(2),
            watch_every: Some(Duration::from_secs(10)),
            checkpoint_extents: 256 << 10,
            checkpoint_slots: 1024,
            checkpoint_after: Duration::from_secs(60),
            profile: None,
            snapshot: None,
            at: None,
            collection: Some(Limits::default()),
            scrub: None,
            io_timeout: None,
            images: None,
            hydrate: false,
            hopeless: None,
        }
    }
}

/// A journal at work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalStatus {
    /// Its disk.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that hold what is not committed.
    pub used_bytes: u64,
    /// Why flushes wait for the store all the same.
    pub failure: Option<String>,
}

/// A disk cache, as a volume uses it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCacheStatus {
    /// Its folder.
    pub path: String,
    /// Its size in bytes, for all volumes of the host.
    pub size: u64,
    /// Frames that this volume found in it.
    pub hits: u64,
    /// Frames that it did not find.
    pub misses: u64,
    /// Why it is used no more.
    pub failure: Option<String>,
}

/// What a flush promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// The store has it: it survives the loss of the host.
    #[default]
    Object,
    /// A journal on a local disk has it: it survives the loss of process and power.
    Local,
}

/// Live figures of an open volume.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeStatus {
    /// Size in bytes.
    pub size: u64,
    /// The owner's term; 0 for read-only.
    pub epoch: u64,
    /// Access is read-only.
    pub read_only: bool,
    /// Bytes written and not yet committed in the store: what would be lost with this host.
    pub dirty_bytes: u64,
    /// Age of the oldest of them, in milliseconds.
    pub lag_ms: u64,
    /// The most that `dirty_bytes` and `lag_ms` were, as far as they were looked at.
    pub max_dirty_bytes: u64,
    /// See `max_dirty_bytes`.
    pub max_lag_ms: u64,
    /// What a flush promises: `object` or `local`.
    pub durability: Durability,
    /// The journal, if there is one.
    pub journal: Option<JournalStatus>,
    /// First slot that is not committed.
    pub next_seq: u64,
    /// Why the device fails all I/O (fenced, ...), if it does.
    pub failure: Option<String>,
    /// It fails because another owner has the volume.
    pub fenced: bool,
    /// A successor of this process could go on where it is now.
    pub recoverable: bool,
    /// Frames read from the cache.
    pub cache_hits: u64,
    /// Frames that had to be fetched.
    pub cache_misses: u64,
    /// Bytes in the cache.
    pub cache_bytes: u64,
    /// The cache on a local disk, if there is one.
    pub disk_cache: Option<DiskCacheStatus>,
    /// The map.
    pub map: MapStatus,
    /// What the log holds, and what the collector has done.
    pub space: SpaceStatus,
    /// Its scrub, where it is scrubbed.
    pub scrub: Option<ScrubStatus>,
    /// What the volume lacks of its source, if it lacks anything.
    pub source: Option<SourceStatus>,
}

/// The map of a volume, in memory and as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapStatus {
    /// Changed extents that no checkpoint has taken yet.
    pub changes: usize,
    /// Bytes of it that are kept in memory, but for the changes.
    pub cached_bytes: u64,
    /// The most that those may be.
    pub budget_bytes: u64,
    /// Bytes of checkpoints that were stored since the volume was opened.
    pub written_bytes: u64,
}

/// What the log of a volume holds, and what its collector has done since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SpaceStatus {
    /// Bytes of payload in the chunks that are stored, `None` before the first checkpoint.
    pub stored_bytes: Option<u64>,
    /// Of them those that the volume's contents are, as of the last checkpoint.
    pub live_bytes: Option<u64>,
    /// The first by the second.
    pub ratio: Option<f64>,
    /// What the collector keeps the ratio to, but for what was appended since the last checkpoint;
    /// `None` where it is off.
    pub bound: Option<f64>,
    /// Bytes that users have written.
    pub written_bytes: u64,
    /// Bytes that were moved out of mostly dead chunks.
    pub moved_bytes: u64,
    /// Chunks that were emptied so.
    pub collected_chunks: u64,
    /// Bytes appended to the log for each byte written.
    pub write_amplification: Option<f64>,
    /// The bound is exceeded by far: writers go no faster than collection does.
    #[serde(default)]
    pub writers_wait: bool,
}
