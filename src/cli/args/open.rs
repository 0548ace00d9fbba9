//! How a volume is opened, as it was typed.

use crate::cli::{duration, moment, size};
use crate::clock::SystemClock;
use crate::daemon::{CacheSpec, DoorSpec, JournalSpec, TargetSpec};
use crate::error::{Error, Result};
use crate::pool::VolumeSpec;
use crate::settings::Location;
use crate::volume::{MAP_BYTES_MIN, Moment, ProfileUse, ScrubOptions};
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// The smallest disk cache, in bytes.
const CACHE_MIN: u64 = 64 << 20;

/// The slowest scrub, in bytes a second: a frame.
const SCRUB_MIN: u64 = 64 << 10;

/// The smallest journal, in bytes.
const JOURNAL_MIN: u64 = 16 << 20;

/// How volumes are opened.
#[derive(Args, Debug)]
pub(in crate::cli) struct Open {
    /// Only read
    #[arg(long, conflicts_with = "takeover")]
    pub(in crate::cli) read_only: bool,
    /// Read it, and only that, as it was at a moment that is still kept (see retain): a time (2026-11-22T10:00:00Z),
    /// how long ago (-2h), or a slot of its log (#1234)
    #[arg(long, value_name = "TIME|SEQ", conflicts_with = "takeover", allow_hyphen_values = true)]
    pub(in crate::cli) at: Option<String>,
    /// Memory for cached data of each volume
    #[arg(long, value_name = "S", default_value = "64M")]
    pub(in crate::cli) mem_cache: String,
    /// Note what is read first, or fetch at once what was noted
    #[arg(long, value_name = "WHAT", value_parser = ["record", "replay"])]
    pub(in crate::cli) profile: Option<String>,
    /// Memory for the parts of each volume's map that are in use; at least 8M
    #[arg(long, value_name = "S", default_value = "32M")]
    pub(in crate::cli) map_memory: String,
    /// The directory of a cache on a local disk, which all volumes of this host may share and which
    /// outlives them; made where only it is missing
    #[arg(long, value_name = "DIR", requires = "cache_size")]
    pub(in crate::cli) cache_dir: Option<PathBuf>,
    /// The most that the cache in --cache-dir takes
    #[arg(long, value_name = "S", requires = "cache_dir")]
    pub(in crate::cli) cache_size: Option<String>,
    /// Take the volume from an owner that has not closed it: that one is fenced
    #[arg(long)]
    pub(in crate::cli) takeover: bool,
    /// What a flush promises: object, the store has it; local, a journal on this host has it, and
    /// the store follows within seconds
    #[arg(long, value_name = "CLASS", default_value = "object", value_parser = ["object", "local"])]
    pub(in crate::cli) durability: String,
    /// The directory of the journals, on a local disk (with --durability local); made where only
    /// it is missing
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) journal: Option<PathBuf>,
    /// Size of the journal of each volume: how much an outage of the store may keep waiting
    #[arg(long, value_name = "S", default_value = "1G")]
    pub(in crate::cli) journal_size: String,
    /// The most that may be lost with this host, a time (30s) or a size (1G): writers wait rather
    /// than exceed it; may be given twice
    #[arg(long, value_name = "LAG", value_delimiter = '|')]
    pub(in crate::cli) max_lag: Vec<String>,
    /// Fail a request with EIO that takes longer (500ms, 30s, 2m); otherwise it waits for as long as
    /// the store takes. The device goes on, and a write that failed so may still happen
    #[arg(long, value_name = "T")]
    pub(in crate::cli) io_timeout: Option<String>,
    /// Of the source that a volume was made with fetch only what is asked for, and not the rest in the
    /// background
    #[arg(long)]
    pub(in crate::cli) lazy: bool,
    /// Time between two looks whether somebody took the volume over, and twice as often whether another host
    /// asks for something: the only requests of an idle volume; 0 or off: none, the next write finds out,
    /// and other hosts are not heard
    #[arg(long, value_name = "T", default_value = "10s")]
    pub(in crate::cli) heartbeat: String,
    /// Read everything that the volume and its snapshots need now and then and verify it, at most so many
    /// bytes a second (8M); what is damaged is told, and made whole where its bytes are in a cache
    #[arg(long, value_name = "RATE|off", default_value = "off")]
    pub(in crate::cli) scrub: String,
    /// Time from one scrub to the next
    #[arg(long, value_name = "T", default_value = "30d")]
    pub(in crate::cli) scrub_every: String,
}

impl Open {
    /// The target that serves `volumes`, as [`views`](Self::views) names them, at `door`.
    pub(in crate::cli) fn target(
        &self,
        location: Location,
        volumes: Vec<VolumeSpec>,
        door: DoorSpec,
    ) -> Result<TargetSpec> {
        Ok(TargetSpec {
            location,
            read_only: self.read_only || volumes.iter().all(|name| name.snapshot().is_some()),
            volumes,
            at: self.at()?,
            takeover: self.takeover,
            recover: None,
            cache_bytes: size::parse("--mem-cache", &self.mem_cache)?,
            map_bytes: self.map_bytes()?,
            profile: self.profile(),
            disk_cache: self.disk_cache()?,
            door,
            journal: self.journal()?,
            io_timeout: self.io_timeout()?,
            heartbeat: self.heartbeat()?,
            lazy: self.lazy,
            scrub: self.scrub()?,
            key: None,
        })
    }

    /// What is opened of these: with `--at`, what they were then.
    pub(in crate::cli) fn views(&self, names: Vec<VolumeSpec>) -> Result<Vec<VolumeSpec>> {
        match self.at()? {
            Some(at) => names.iter().map(|name| moment::view(name, at)).collect(),
            None => Ok(names),
        }
    }

    /// What `--durability` and the flags of the journal say.
    pub(in crate::cli) fn journal(&self) -> Result<Option<JournalSpec>> {
        let folder = match (self.durability.as_str(), &self.journal) {
            ("local", Some(folder)) => folder,
            ("local", None) => {
                return Err(Error::usage("--durability local needs a journal")
                    .hint("name a directory on a local disk with --journal"));
            }
            (_, Some(_)) => {
                return Err(Error::usage("--journal is of no use with --durability object")
                    .hint("add --durability local"));
            }
            (_, None) if !self.max_lag.is_empty() => {
                return Err(Error::usage("--max-lag is of no use with --durability object"));
            }
            (_, None) => return Ok(None),
        };
        if self.read_only {
            return Err(Error::usage("a volume that is only read has no journal"));
        }
        let absolute = std::path::absolute(folder)
            .map_err(|e| Error::usage("--journal is no path").because(e))?;
        let size = size::parse("--journal-size", &self.journal_size)?;
        if size < JOURNAL_MIN {
            let least = size::show(JOURNAL_MIN);
            return Err(Error::usage(format!("a journal has at least {least}")));
        }
        let mut spec = JournalSpec {
            folder: absolute,
            size: size.next_multiple_of(4096),
            max_lag_bytes: None,
            max_lag: None,
        };
        for lag in &self.max_lag {
            match duration::parse_some("--max-lag", lag) {
                Ok(time) => spec.max_lag = Some(time),
                Err(_) => spec.max_lag_bytes = Some(size::parse("--max-lag", lag)?),
            }
        }
        Ok(Some(spec))
    }

    /// What `--cache-dir` and `--cache-size` say.
    pub(in crate::cli) fn disk_cache(&self) -> Result<Option<CacheSpec>> {
        let (Some(folder), Some(size)) = (&self.cache_dir, &self.cache_size) else {
            return Ok(None);
        };
        let folder = std::path::absolute(folder)
            .map_err(|e| Error::usage("--cache-dir is no path").because(e))?;
        let size = size::parse("--cache-size", size)?;
        if size < CACHE_MIN {
            let least = size::show(CACHE_MIN);
            return Err(Error::usage(format!("a cache on a disk has at least {least}")));
        }
        Ok(Some(CacheSpec { folder, size }))
    }

    /// What `--profile` says.
    pub(in crate::cli) fn profile(&self) -> Option<ProfileUse> {
        match self.profile.as_deref() {
            Some("record") => Some(ProfileUse::Record),
            Some(_) => Some(ProfileUse::Replay),
            None => None,
        }
    }

    /// What `--map-memory` says.
    pub(in crate::cli) fn map_bytes(&self) -> Result<u64> {
        let bytes = size::parse("--map-memory", &self.map_memory)?;
        if bytes < MAP_BYTES_MIN {
            let least = size::show(MAP_BYTES_MIN);
            return Err(Error::usage(format!("the map of a volume needs at least {least}"))
                .hint("give --map-memory more, or leave it out"));
        }
        Ok(bytes)
    }

    /// What `--at` says.
    pub(in crate::cli) fn at(&self) -> Result<Option<Moment>> {
        self.at.as_deref().map(|text| moment::parse(text, &SystemClock)).transpose()
    }

    /// What `--io-timeout` says.
    pub(in crate::cli) fn io_timeout(&self) -> Result<Option<Duration>> {
        let text = self.io_timeout.as_deref();
        text.map(|text| duration::parse_some("--io-timeout", text)).transpose()
    }

    /// What `--scrub` and `--scrub-every` say.
    pub(in crate::cli) fn scrub(&self) -> Result<Option<ScrubOptions>> {
        if self.scrub == "off" {
            return Ok(None);
        }
        if self.read_only || self.at.is_some() {
            return Err(Error::usage("a volume that is only read is not scrubbed")
                .hint("read all of it with `objblk check --data`"));
        }
        let rate = size::parse("--scrub", &self.scrub)?;
        if rate < SCRUB_MIN {
            let least = size::show(SCRUB_MIN);
            return Err(Error::usage(format!("a scrub reads at least {least} a second"))
                .hint("give --scrub more, or off"));
        }
        let every = duration::parse_some("--scrub-every", &self.scrub_every)?;
        Ok(Some(ScrubOptions { rate, every }))
    }

    /// What `--heartbeat` says.
    pub(in crate::cli) fn heartbeat(&self) -> Result<Option<Duration>> {
        duration::parse_or_off("--heartbeat", &self.heartbeat)
    }
}
