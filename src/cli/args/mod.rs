//! What was typed. What it means is for the verbs' own files.

mod diff;
mod doctor;
mod key;
mod mount;
mod open;
mod path;
mod replicate;
mod stores;
mod tls;
mod transfer;
mod trash;
mod vhost_user;

pub(super) use diff::{Copy, Diff, ExportDiff, ImportDiff};
pub(super) use doctor::Check;
pub(super) use key::{Key, NewKey};
pub(super) use mount::{Mount, Umount};
pub(super) use open::Open;
pub(super) use path::Path;
pub(super) use replicate::Replicate;
pub(super) use stores::Stores;
pub(super) use tls::Tls;
pub(super) use transfer::{Export, Import};
pub(super) use trash::{Delete, Empty, Trash};
pub(super) use vhost_user::ServeVhostUser;

use clap::{ArgAction, Args, Parser, Subcommand};
use clap_complete::Shell;
use std::path::PathBuf;

/// Linux block devices whose bytes live in an object store.
#[derive(Debug, Parser)]
#[command(name = "objblk", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "\
Volumes live in the first of: --store, --bucket, $OBJBLK_STORE, the configuration file, a directory \
of this user. Sizes take K, M, G, T, P (binary).\n\
Exit codes: 0 done; 1 failed; 2 usage; 3 not found; 4 exists already; 5 busy, owned elsewhere or \
fenced; 6 the store refused or is unreachable; 7 data corrupt.")]
pub(in crate::cli) struct Cli {
    #[command(flatten)]
    pub(in crate::cli) global: Global,
    #[command(subcommand)]
    pub(in crate::cli) verb: Verb,
}

/// Flags of every verb.
#[derive(Args, Clone, Debug)]
pub(in crate::cli) struct Global {
    /// The store: s3://bucket/prefix or file:///dir [env: OBJBLK_STORE]
    #[arg(long, global = true, value_name = "URL", help_heading = "Store")]
    pub(in crate::cli) store: Option<String>,
    /// The bucket, instead of --store
    #[arg(long, global = true, value_name = "B", help_heading = "Store")]
    pub(in crate::cli) bucket: Option<String>,
    /// The prefix of all objects in the bucket
    #[arg(long, global = true, value_name = "P", help_heading = "Store")]
    pub(in crate::cli) prefix: Option<String>,
    /// The S3 server, if it is not Amazon's [env: OBJBLK_ENDPOINT_URL]; again for each path to the store:
    /// URL[,priority=N][,weight=N][,source=ADDRESS][,interface=NAME][,expand=no]
    #[arg(long, global = true, value_name = "URL", help_heading = "Store")]
    pub(in crate::cli) endpoint_url: Vec<String>,
    /// The S3 region [env: OBJBLK_REGION]
    #[arg(long, global = true, value_name = "R", help_heading = "Store")]
    pub(in crate::cli) region: Option<String>,
    /// Which of several paths takes a request: round-robin, queue-length, service-time,
    /// historical-service-time
    #[arg(long, global = true, value_name = "NAME", help_heading = "Store")]
    pub(in crate::cli) path_selector: Option<String>,
    /// While no path works: queue, a device's requests wait; fail, they fail with EIO; N, they do after
    /// N checks
    #[arg(long, global = true, value_name = "queue|fail|N", help_heading = "Store")]
    pub(in crate::cli) no_path_retry: Option<String>,
    /// When paths of a higher priority are used again: immediate, manual, or after so many seconds
    #[arg(long, global = true, value_name = "WHEN", help_heading = "Store")]
    pub(in crate::cli) path_failback: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) key: key::Given,
    /// The configuration file, instead of ~/.config/objblk/config.toml and /etc/objblk/config.toml
    #[arg(long, global = true, value_name = "FILE", help_heading = "Store")]
    pub(in crate::cli) config: Option<PathBuf>,
    /// How long the owner of a volume on another host may take to hear what is asked, and again to answer;
    /// 0: it is not asked
    #[arg(long, global = true, value_name = "TIME", default_value = "30s")]
    pub(in crate::cli) wait: String,
    /// Print one JSON document
    #[arg(long, global = true)]
    pub(in crate::cli) json: bool,
    /// Log more; twice for even more (RUST_LOG has the last word)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(in crate::cli) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Verb {
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
    /// Make every volume of the pool a file in a directory, NAME.raw; prints the directory when it
    /// can be used
    Mount(Mount),
    /// End a mounted directory: store what was written, unmount, close
    Umount(Umount),
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
    /// Follow every reference and verify every checksum, attached or not; change nothing without --repair
    Check(Check),
    /// Show what an object of the pool says, or the objects that say what a volume or a snapshot is
    Inspect {
        #[arg(value_name = "OBJECT|NAME[@SNAP]")]
        what: String,
    },
    /// Show where a sector is stored
    Locate {
        #[arg(value_name = "NAME[@SNAP]")]
        name: String,
        /// A sector of 512 bytes, as the kernel counts, or a byte with its unit: 4096B, 1M
        #[arg(value_name = "SECTOR|BYTE")]
        at: String,
    },
    /// Put load on a volume that is not attached, or on the bare store to compare with
    Bench(Bench),
    /// Make, list and delete snapshots, also while the volume is attached, on any host; roll back to one
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Make a volume that begins as what a snapshot is, and shares its data
    Clone {
        /// A snapshot, or with --at a volume
        #[arg(value_name = "NAME[@SNAP]")]
        of: String,
        /// Of what the volume was at a moment that is still kept (see retain): a time (2026-11-22T10:00:00Z),
        /// how long ago (-2h), or a slot of its log (#1234); copies what has changed since
        #[arg(long, value_name = "TIME|SEQ", allow_hyphen_values = true)]
        at: Option<String>,
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
    /// Make a volume of an image: raw or qcow2, from a file, a pipe or a web server
    Import(Import),
    /// Write a volume or a snapshot out as an image: raw or qcow2
    Export(Export),
    /// Show what changed between two snapshots, or what there is in one
    Diff(Diff),
    /// Write what changed since another snapshot, or all of one, to a file or a pipe
    ExportDiff(ExportDiff),
    /// Make a volume what such a stream leads to, with a snapshot of it
    ImportDiff(ImportDiff),
    /// Copy a snapshot into another pool: what changed since the newest that is there already
    Copy(Copy),
    /// Ship a volume to another pool, attached or not, again and again until told to end: a replica there that is
    /// always a state that was committed
    Replicate(Box<Replicate>),
    /// Make a replica a volume of its own, once its source is gone: it can be written from then on
    Promote { name: String },
    /// Change the size of a volume that is not attached, or let one grow that is, on any host
    Resize {
        name: String,
        /// The new size
        #[arg(long, value_name = "S", allow_hyphen_values = true)]
        size: String,
        /// Allow a smaller size, while it is not attached: what lies beyond it is lost
        #[arg(long)]
        shrink: bool,
    },
    /// Show what other hosts have asked the owner of a volume for, and what came of it
    Request {
        name: String,
        /// One of them only
        id: Option<String>,
    },
    /// Keep the past of a volume from now on, so that it can be read as of any moment (--at)
    Retain {
        name: String,
        /// How long: 24h, 7d; off ends it and deletes what was kept
        #[arg(value_name = "TIME|off")]
        time: String,
    },
    /// Give a volume another name
    Rename { name: String, new: String },
    /// Delete a volume: into the trash, from where it can be restored
    Delete(Delete),
    /// List, restore and remove deleted volumes
    #[command(subcommand)]
    Trash(Trash),
    /// Show and change the paths by which attached volumes reach their store, also under I/O
    #[command(subcommand)]
    Path(Path),
    /// Show and change what opens an encrypted volume
    #[command(subcommand)]
    Key(Key),
    /// Make or show a pool
    #[command(subcommand)]
    Pool(Pool),
    /// Print a completion script
    Completions { shell: Shell },
    /// Run a target as told on standard input
    #[command(hide = true)]
    Target,
    /// Run a mounted directory as told on standard input
    #[command(hide = true)]
    MountTarget,
    /// Run a target as told on standard input, and a successor whenever it dies
    #[command(hide = true)]
    Supervise,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Create {
    /// Its name; one is generated if none is given
    pub(in crate::cli) name: Option<String>,
    /// Its size [default: that of the source]
    #[arg(long, value_name = "S", allow_hyphen_values = true, required_unless_present = "source")]
    pub(in crate::cli) size: Option<String>,
    /// What it begins as: a raw image in a file, at http(s)://..., or an NBD server's, nbd://HOST/EXPORT or
    /// nbd+unix:///EXPORT?socket=PATH. It is fetched when it is needed, and may go once all of it is there
    #[arg(long, value_name = "IMAGE")]
    pub(in crate::cli) source: Option<String>,
    /// Logical block size in bytes: 512 or 4096
    #[arg(long, value_name = "BYTES", default_value = "512")]
    pub(in crate::cli) block_size: String,
    /// Size of a chunk object: a power of two from 256K to 64M
    #[arg(long, value_name = "S", default_value = "4M")]
    pub(in crate::cli) chunk_size: String,
    /// How what is written is compressed: none, lz4, zstd, or zstd:1 (fast) to zstd:19 (small)
    #[arg(long, value_name = "HOW", visible_alias = "compression", default_value = "lz4")]
    pub(in crate::cli) compress: String,
    /// How many stores of the pool have every object of it: 2 is a mirror of the home store and another one, so that
    /// either may be away while it is attached
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    pub(in crate::cli) replicas: u8,
    /// Encrypt it (AES-256-GCM): opened by --key-file, --key-command or --passphrase-file, or by a passphrase
    /// that is asked for; see key
    #[arg(long)]
    pub(in crate::cli) encrypt: bool,
    /// Keep its past for that long (24h, 7d), see retain
    #[arg(long, value_name = "TIME")]
    pub(in crate::cli) retain: Option<String>,
    /// Go on to attach it; prints the device as well
    #[arg(long)]
    pub(in crate::cli) attach: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Attach {
    pub(in crate::cli) name: String,
    /// Hardware queues, each with a thread of its own
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(in crate::cli) queues: u16,
    /// Requests in flight on one queue
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(in crate::cli) depth: u16,
    #[command(flatten)]
    pub(in crate::cli) open: Open,
    /// Let the device die with its process, with errors for who uses it, instead of keeping it for
    /// a successor (which costs memory for what is not stored yet once more)
    #[arg(long)]
    pub(in crate::cli) no_recovery: bool,
    /// Stay in the foreground and log to standard error
    #[arg(long)]
    pub(in crate::cli) foreground: bool,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Snapshot {
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
    /// Have the owner of a volume make snapshots by itself, and delete them again; shows what is set
    Schedule(Schedule),
    /// Make a volume that is not attached what a snapshot is; what it was becomes a snapshot
    Rollback {
        #[arg(value_name = "NAME@SNAP")]
        name: String,
        /// How long what it was is kept: the owner deletes that snapshot then; off keeps it until you delete it
        #[arg(long, value_name = "TIME|off", default_value = "7d")]
        keep_before_rollback: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Keep a snapshot that would be deleted by itself: what a volume was before a rollback
    Keep {
        #[arg(value_name = "NAME@SNAP")]
        name: String,
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

/// Which snapshots the owner makes.
#[derive(Args, Debug)]
pub(in crate::cli) struct Schedule {
    pub(in crate::cli) name: String,
    /// Make one in each period of this length (30m, 1h, 1d), counted in UTC; may be given several
    /// times, each with a --keep of its own
    #[arg(long, value_name = "TIME", requires = "keep")]
    pub(in crate::cli) every: Vec<String>,
    /// How many of those stay
    #[arg(long, value_name = "N", requires = "every")]
    pub(in crate::cli) keep: Vec<u32>,
    /// Make no more of them; those that there are stay
    #[arg(long, conflicts_with = "every")]
    pub(in crate::cli) off: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Bench {
    /// The volume
    #[arg(required_unless_present = "store_only", conflicts_with = "store_only")]
    pub(in crate::cli) name: Option<String>,
    /// Create, read and delete objects instead; 4M each, 16 in flight
    #[arg(long)]
    pub(in crate::cli) store_only: bool,
    /// What requests do: writes destroy what is in the volume, rw is 70 % reads
    #[arg(long, value_name = "TYPE", value_parser = ["read", "write", "rw"], default_value = "read")]
    pub(in crate::cli) io_type: String,
    /// Where they go
    #[arg(long, value_name = "WHERE", value_parser = ["rand", "seq"], default_value = "rand")]
    pub(in crate::cli) io_pattern: String,
    /// Bytes of a request [default: 4K]
    #[arg(long, value_name = "S")]
    pub(in crate::cli) io_size: Option<String>,
    /// Requests in flight [default: 32]
    #[arg(long, value_name = "N")]
    pub(in crate::cli) depth: Option<usize>,
    /// How long
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub(in crate::cli) time: String,
    /// A flush follows every so many writes of each in flight
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(in crate::cli) flush_every: Option<u64>,
    /// Do not ask
    #[arg(long)]
    pub(in crate::cli) yes: bool,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Serve {
    /// An NBD server, one export a volume; prints their URIs when it is ready
    Nbd(Box<ServeNbd>),
    /// A disk for a virtual machine of QEMU, cloud-hypervisor or Firecracker; prints its socket when
    /// it is ready
    VhostUser(Box<ServeVhostUser>),
}

#[derive(Args, Debug)]
pub(in crate::cli) struct ServeNbd {
    #[arg(value_name = "NAME")]
    pub(in crate::cli) names: Vec<String>,
    /// Serve every volume of the pool
    #[arg(long, conflicts_with = "names")]
    pub(in crate::cli) all: bool,
    /// Listen on a Unix socket (the default, in the run directory, unless systemd passes a socket)
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    pub(in crate::cli) socket: Option<PathBuf>,
    /// Listen on TCP: HOST:PORT, or a PORT of 127.0.0.1; without the certificates of clients, anyone
    /// who reaches it may read and write
    #[arg(long, value_name = "ADDR")]
    pub(in crate::cli) listen: Option<String>,
    /// The most connections at a time
    #[arg(long, value_name = "N", default_value = "256", value_parser = clap::value_parser!(u32).range(1..))]
    pub(in crate::cli) max_connections: u32,
    #[command(flatten)]
    pub(in crate::cli) open: Open,
    // The last one: its heading is that of all flags behind it.
    #[command(flatten)]
    pub(in crate::cli) tls: Tls,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Journal {
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
pub(in crate::cli) enum Pool {
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
    /// Show the pool, and what each of its stores holds
    Status,
    #[command(flatten)]
    Stores(Stores),
}
