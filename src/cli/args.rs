//! What was typed. What it means is for the verbs' own files.

use super::{duration, size};
use crate::daemon::{CacheSpec, JournalSpec};
use crate::error::{Error, Result};
use crate::volume::{MAP_BYTES_MIN, ProfileUse};
use clap::{ArgAction, Args, Parser, Subcommand};
use clap_complete::Shell;
use std::path::PathBuf;
use std::time::Duration;

/// Linux block devices whose bytes live in an object store.
#[derive(Debug, Parser)]
#[command(name = "objblk", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "\
Volumes live in the first of: --store, --bucket, $OBJBLK_STORE, the configuration file, a directory \
of this user. Sizes take K, M, G, T, P (binary).\n\
Exit codes: 0 done; 1 failed; 2 usage; 3 not found; 4 exists already; 5 busy, owned elsewhere or \
fenced; 6 the store refused or is unreachable; 7 data corrupt.")]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

/// Flags of every verb.
#[derive(Args, Clone, Debug)]
pub(super) struct Global {
    /// The store: s3://bucket/prefix or file:///dir [env: OBJBLK_STORE]
    #[arg(long, global = true, value_name = "URL", help_heading = "Store")]
    pub(super) store: Option<String>,
    /// The bucket, instead of --store
    #[arg(long, global = true, value_name = "B", help_heading = "Store")]
    pub(super) bucket: Option<String>,
    /// The prefix of all objects in the bucket
    #[arg(long, global = true, value_name = "P", help_heading = "Store")]
    pub(super) prefix: Option<String>,
    /// The S3 server, if it is not Amazon's [env: OBJBLK_ENDPOINT_URL]
    #[arg(long, global = true, value_name = "URL", help_heading = "Store")]
    pub(super) endpoint_url: Option<String>,
    /// The S3 region [env: OBJBLK_REGION]
    #[arg(long, global = true, value_name = "R", help_heading = "Store")]
    pub(super) region: Option<String>,
    /// The configuration file, instead of ~/.config/objblk/config.toml and /etc/objblk/config.toml
    #[arg(long, global = true, value_name = "FILE", help_heading = "Store")]
    pub(super) config: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Log more; twice for even more (RUST_LOG has the last word)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(super) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a volume; prints its name
    Create(Create),
    /// List the volumes of the pool
    List,
    /// Show a volume: size, use, owner, health
    Info { name: String },
    /// Put a volume on /dev/ublkbN; prints the device when it is ready for I/O
    Attach(Attach),
    /// End an attached or served volume: store what was written, close, remove the device
    Detach {
        /// Its name, its device, or the symlink or URI of it
        #[arg(value_name = "NAME|DEVICE")]
        what: String,
        /// Also when in use; give up what the store does not take within seconds
        #[arg(long)]
        force: bool,
    },
    /// Bring back block devices whose process died: all of this host, or one
    Recover {
        /// Its name, its device, or the symlink of it
        #[arg(value_name = "NAME|DEVICE")]
        what: Option<String>,
    },
    /// Serve volumes over a network protocol until told to end
    #[command(subcommand)]
    Serve(Serve),
    /// Journals that are left on this host
    #[command(subcommand)]
    Journal(Journal),
    /// Show what is attached on this host
    Status { name: Option<String> },
    /// Free the space of what was overwritten or trimmed now, instead of little by little
    Gc {
        name: String,
        /// Until nothing dead is left, whatever has to be moved for that
        #[arg(long)]
        full: bool,
    },
    /// Put load on a volume that is not attached, or on the bare store to compare with
    Bench(Bench),
    /// Make, list and delete snapshots, also while the volume is attached on this host; roll back to one
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Make a volume that begins as what a snapshot is, and shares its data
    Clone {
        #[arg(value_name = "NAME@SNAP")]
        of: String,
        /// The name of the new volume
        new: String,
    },
    /// Show the clones of a volume's snapshots
    Children {
        #[arg(value_name = "NAME[@SNAP]")]
        of: String,
    },
    /// Have a clone do without its origin: copies what it shares, and can be interrupted
    Flatten { name: String },
    /// Change the size of a volume that is not attached
    Resize {
        name: String,
        /// The new size
        #[arg(long, value_name = "S", allow_hyphen_values = true)]
        size: String,
        /// Allow a smaller size: what lies beyond it is lost
        #[arg(long)]
        shrink: bool,
    },
    /// Give a volume another name
    Rename { name: String, new: String },
    /// Delete a volume with all its data
    Delete {
        name: String,
        /// Also when somebody owns it (who is fenced), when it has snapshots or is damaged
        #[arg(long)]
        force: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Make or show a pool
    #[command(subcommand)]
    Pool(Pool),
    /// Print a completion script
    Completions { shell: Shell },
    /// Run a target as told on standard input
    #[command(hide = true)]
    Target,
    /// Run a target as told on standard input, and a successor whenever it dies
    #[command(hide = true)]
    Supervise,
}

#[derive(Args, Debug)]
pub(super) struct Create {
    /// Its name; one is generated if none is given
    pub(super) name: Option<String>,
    /// Its size
    #[arg(long, value_name = "S", allow_hyphen_values = true)]
    pub(super) size: String,
    /// Logical block size in bytes: 512 or 4096
    #[arg(long, value_name = "BYTES", default_value = "512")]
    pub(super) block_size: String,
    /// Size of a chunk object: a power of two from 256K to 64M
    #[arg(long, value_name = "S", default_value = "4M")]
    pub(super) chunk_size: String,
    /// Go on to attach it; prints the device as well
    #[arg(long)]
    pub(super) attach: bool,
}

#[derive(Args, Debug)]
pub(super) struct Attach {
    pub(super) name: String,
    /// Hardware queues, each with a thread of its own
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) queues: u16,
    /// Requests in flight on one queue
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(super) depth: u16,
    #[command(flatten)]
    pub(super) open: Open,
    /// Let the device die with its process, with errors for who uses it, instead of keeping it for
    /// a successor (which costs memory for what is not stored yet once more)
    #[arg(long)]
    pub(super) no_recovery: bool,
    /// Stay in the foreground and log to standard error
    #[arg(long)]
    pub(super) foreground: bool,
}

/// The smallest disk cache, in bytes.
const CACHE_MIN: u64 = 64 << 20;

/// The smallest journal, in bytes.
const JOURNAL_MIN: u64 = 16 << 20;

/// How volumes are opened.
#[derive(Args, Debug)]
pub(super) struct Open {
    /// Only read
    #[arg(long, conflicts_with = "takeover")]
    pub(super) read_only: bool,
    /// Memory for cached data of each volume
    #[arg(long, value_name = "S", default_value = "64M")]
    pub(super) mem_cache: String,
    /// Note what is read first, or fetch at once what was noted
    #[arg(long, value_name = "WHAT", value_parser = ["record", "replay"])]
    pub(super) profile: Option<String>,
    /// Memory for the parts of each volume's map that are in use; at least 8M
    #[arg(long, value_name = "S", default_value = "32M")]
    pub(super) map_memory: String,
    /// The directory of a cache on a local disk, which all volumes of this host may share and which
    /// outlives them; made where only it is missing
    #[arg(long, value_name = "DIR", requires = "cache_size")]
    pub(super) cache_dir: Option<PathBuf>,
    /// The most that the cache in --cache-dir takes
    #[arg(long, value_name = "S", requires = "cache_dir")]
    pub(super) cache_size: Option<String>,
    /// Take the volume from an owner that has not closed it: that one is fenced
    #[arg(long)]
    pub(super) takeover: bool,
    /// What a flush promises: object, the store has it; local, a journal on this host has it, and
    /// the store follows within seconds
    #[arg(long, value_name = "CLASS", default_value = "object", value_parser = ["object", "local"])]
    pub(super) durability: String,
    /// The directory of the journals, on a local disk (with --durability local); made where only
    /// it is missing
    #[arg(long, value_name = "DIR")]
    pub(super) journal: Option<PathBuf>,
    /// Size of the journal of each volume: how much an outage of the store may keep waiting
    #[arg(long, value_name = "S", default_value = "1G")]
    pub(super) journal_size: String,
    /// The most that may be lost with this host, a time (30s) or a size (1G): writers wait rather
    /// than exceed it; may be given twice
    #[arg(long, value_name = "LAG", value_delimiter = '|')]
    pub(super) max_lag: Vec<String>,
    /// Fail a request with EIO that takes longer (500ms, 30s, 2m); otherwise it waits for as long as
    /// the store takes. The device goes on, and a write that failed so may still happen
    #[arg(long, value_name = "T")]
    pub(super) io_timeout: Option<String>,
    /// Time between two looks whether somebody took the volume over, the only requests of an idle
    /// volume; 0 or off: none, the next write finds out
    #[arg(long, value_name = "T", default_value = "10s")]
    pub(super) heartbeat: String,
}

impl Open {
    /// What `--durability` and the flags of the journal say.
    pub(super) fn journal(&self) -> Result<Option<JournalSpec>> {
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
    pub(super) fn disk_cache(&self) -> Result<Option<CacheSpec>> {
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
    pub(super) fn profile(&self) -> Option<ProfileUse> {
        match self.profile.as_deref() {
            Some("record") => Some(ProfileUse::Record),
            Some(_) => Some(ProfileUse::Replay),
            None => None,
        }
    }

    /// What `--map-memory` says.
    pub(super) fn map_bytes(&self) -> Result<u64> {
        let bytes = size::parse("--map-memory", &self.map_memory)?;
        if bytes < MAP_BYTES_MIN {
            let least = size::show(MAP_BYTES_MIN);
            return Err(Error::usage(format!("the map of a volume needs at least {least}"))
                .hint("give --map-memory more, or leave it out"));
        }
        Ok(bytes)
    }

    /// What `--io-timeout` says.
    pub(super) fn io_timeout(&self) -> Result<Option<Duration>> {
        let text = self.io_timeout.as_deref();
        text.map(|text| duration::parse_some("--io-timeout", text)).transpose()
    }

    /// What `--heartbeat` says.
    pub(super) fn heartbeat(&self) -> Result<Option<Duration>> {
        duration::parse_or_off("--heartbeat", &self.heartbeat)
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Snapshot {
    /// Keep the volume as it is now; reads and writes go on meanwhile
    Create {
        #[arg(value_name = "NAME@SNAP")]
        name: String,
        /// Freeze the file system that is mounted there for as long as it takes
        #[arg(long, value_name = "MOUNTPOINT")]
        fsfreeze: Option<PathBuf>,
    },
    /// List the snapshots of a volume
    List { name: String },
    /// Make a volume that is not attached what a snapshot is; what it was becomes a snapshot
    Rollback {
        #[arg(value_name = "NAME@SNAP")]
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Delete a snapshot; those who read it get I/O errors
    Delete {
        #[arg(value_name = "NAME@SNAP")]
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Args, Debug)]
pub(super) struct Bench {
    /// The volume
    #[arg(required_unless_present = "store_only", conflicts_with = "store_only")]
    pub(super) name: Option<String>,
    /// Create, read and delete objects instead; 4M each, 16 in flight
    #[arg(long)]
    pub(super) store_only: bool,
    /// What requests do: writes destroy what is in the volume, rw is 70 % reads
    #[arg(long, value_name = "TYPE", value_parser = ["read", "write", "rw"], default_value = "read")]
    pub(super) io_type: String,
    /// Where they go
    #[arg(long, value_name = "WHERE", value_parser = ["rand", "seq"], default_value = "rand")]
    pub(super) io_pattern: String,
    /// Bytes of a request [default: 4K]
    #[arg(long, value_name = "S")]
    pub(super) io_size: Option<String>,
    /// Requests in flight [default: 32]
    #[arg(long, value_name = "N")]
    pub(super) depth: Option<usize>,
    /// How long
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub(super) time: String,
    /// A flush follows every so many writes of each in flight
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) flush_every: Option<u64>,
    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Serve {
    /// An NBD server, one export a volume; prints their URIs when it is ready
    Nbd(ServeNbd),
}

#[derive(Args, Debug)]
pub(super) struct ServeNbd {
    #[arg(value_name = "NAME")]
    pub(super) names: Vec<String>,
    /// Serve every volume of the pool
    #[arg(long, conflicts_with = "names")]
    pub(super) all: bool,
    /// Listen on a Unix socket (the default, in the run directory)
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    pub(super) socket: Option<PathBuf>,
    /// Listen on TCP: HOST:PORT, or a PORT of 127.0.0.1; anyone who reaches it may read and write
    #[arg(long, value_name = "ADDR")]
    pub(super) listen: Option<String>,
    #[command(flatten)]
    pub(super) open: Open,
}

#[derive(Debug, Subcommand)]
pub(super) enum Journal {
    /// Show the journals in a directory, and what they hold that the store may lack
    List {
        /// The directory
        #[arg(long, value_name = "DIR")]
        journal: PathBuf,
    },
    /// Give up the journal of a volume, with all that only it has
    Discard {
        name: String,
        /// The directory
        #[arg(long, value_name = "DIR")]
        journal: PathBuf,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Pool {
    /// Make the store a pool, once it is shown to create objects atomically
    Init {
        /// Make the bucket if it is missing
        #[arg(long)]
        create_bucket: bool,
        /// Use a store that does not create objects atomically: two owners of one volume would
        /// destroy it, and nothing would tell them apart
        #[arg(long)]
        unsafe_no_fencing: bool,
    },
    /// Show the pool
    Status,
}
