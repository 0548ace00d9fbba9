//! objblk: Linux block devices whose bytes live in an object store.
//!
//! ```text
//!  application ── ext4/xfs/VM ── /dev/ublkbN ── kernel ublk ─┐        NBD client
//!                                                             │            │
//!  frontend       turns a protocol into block requests      ublk          nbd
//!                                                             └──── device ┘   (the contract)
//!  volume         the engine: one owner's term of one volume ──────┘
//!                 write ─> open chunk ─> sealed ─> PUT ─> committed ─> checkpoint
//!                 read  <─ open and sealed chunks, cached frames, ranged GETs
//!  log map cache  slots and fences │ LBA -> chunk and offset │ frames in memory
//!  journal        flushes that are durable on a local disk before the store has them
//!  format         every object, byte by byte (pure)
//!  store          create-if-absent PUT, get, list, delete: S3, directory, memory; layers
//! ```
//!
//! A volume *is* its log: dense slots of immutable chunk objects. All shared state is built on
//! one store operation, create-if-absent PUT; nothing is ever overwritten, and there is no other
//! lock or clock. A new owner ends the old one's term by putting a fence into its next slot.
//!
//! Modules, from the bottom up; each may use only those before it (`tests/tidy.rs` checks that):
//!
//! | module | is |
//! | --- | --- |
//! | [`units`] | sectors, sequence numbers, epochs as types |
//! | [`error`] | the error of every public call: kind, sentence, hint |
//! | [`size`] | sizes in bytes as people write them |
//! | [`clock`], [`mutant`] | time of day for people; mistakes on purpose, which the simulator has to notice |
//! | [`sync`], [`flight`] | locks and channels; sharing one answer among many callers |
//! | [`cipher`] | what seals the local files of an encrypted volume |
//! | [`direct`] | files of a local disk, past the page cache |
//! | [`store`] | named immutable objects and the layers around them |
//! | [`mod@format`] | the on-store format |
//! | [`seal`] | encryption: keys, and the layer of a store that seals |
//! | [`spread`] | several stores as one: where slots of logs lie, and how they are found |
//! | [`mirror`] | volumes that are in two stores, so that either may vanish |
//! | [`image`] | images outside the pool, to begin volumes with |
//! | [`device`] | what a block device promises |
//! | [`mod@bench`] | load, for figures |
//! | [`map`], [`log`], [`cache`] | mechanisms that know nothing of each other |
//! | [`gc`] | which chunks to empty, how far, how fast |
//! | [`journal`] | what was acknowledged and is not committed yet, outliving the process |
//! | [`volume`] | the engine |
//! | [`frontend`] | ublk, NBD, vhost-user and FUSE |
//! | [`host`], [`settings`] | which process this is; what the configuration file says |
//! | [`requests`] | asking the owner of a volume for something, from any host |
//! | [`transfer`] | images into volumes and out of them; streams of what changed |
//! | [`pool`] | the volumes of a store: names, creation, deletion, the trash |
//! | [`replica`] | volumes shipped to another pool, state by state |
//! | [`doctor`] | every object followed and verified, without owning anything |
//! | [`daemon`] | one process an attachment, and how others talk to it |
//! | [`cli`] | the command line |
//!
//! Where to look first: [`device`] (what is promised), [`volume`] (how it is kept), [`mod@format`]
//! (what is in the bucket), `tests/engine` (how to use it and break it), `tests/sim` (a simulator of
//! everything that can go wrong, and the mistakes that it has to notice).

pub mod bench;
pub mod cache;
pub mod cipher;
pub mod cli;
pub mod clock;
pub mod daemon;
pub mod device;
pub mod direct;
pub mod doctor;
pub mod error;
pub mod flight;
pub mod format;
pub mod frontend;
pub mod gc;
pub mod host;
pub mod image;
pub mod journal;
pub mod log;
pub mod map;
pub mod mirror;
pub mod mutant;
pub mod pool;
pub mod replica;
pub mod requests;
pub mod seal;
pub mod settings;
pub mod size;
pub mod spread;
pub mod store;
pub mod sync;
pub mod transfer;
pub mod units;
pub mod volume;
