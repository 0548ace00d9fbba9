//! The on-store format, byte by byte. Pure: bytes in, structures out; no I/O, clock or async.
//!
//! | object | form | module |
//! | --- | --- | --- |
//! | pool, name, volume, epoch, tombstone | JSON, so that standard tools read them | [`pool`], [`volume`] |
//! | chunk: header (records, frame table), frames | binary | [`chunk`], [`record`] |
//! | fence | binary, in a slot of the log | [`fence`] |
//! | map object: packed leaves and pages | binary | [`map_object`], [`page`] |
//! | checkpoint | binary | [`checkpoint`] |
//! | snapshot: a checkpoint that is kept | binary | [`snapshot`] |
//! | ancestors of a clone, and what is whose | JSON, in the volume | [`lineage`] |
//! | profile: what to fetch ahead | binary | [`profile`] |
//! | schedule: which snapshots are made by themselves | JSON | [`schedule`] |
//!
//! All numbers are little-endian. Every binary object begins with a magic of 8 bytes and a
//! version, names the volume, epoch and position it was written for (so that a misplaced object
//! is recognised), and is covered by crc32c: headers by one crc, each frame by its own.
//!
//! **Versions and features.** A binary version that is not known is refused
//! ([`codec::Problem::Unsupported`]). Additions are announced by feature bits in the pool's and
//! the volume's description ([`features::Features`]): an unknown *compat* bit may be ignored, an
//! unknown *ro-compat* bit allows reading only, an unknown *incompat* bit refuses the volume.
//!
//! **Parsing is total**: any byte string is a valid object or a typed error that names object,
//! field and offset. Nothing is allocated by a length that was not checked against the input.

pub mod checkpoint;
pub mod chunk;
pub mod codec;
pub mod features;
pub mod fence;
mod id;
pub mod keys;
pub mod lineage;
pub mod map_object;
pub mod page;
pub mod pool;
pub mod profile;
pub mod record;
pub mod schedule;
pub mod snapshot;
pub mod volume;

pub use codec::{FormatError, FormatResult};
pub use id::{SnapshotId, VolumeId};
