//! The on-store format, byte by byte. Pure: bytes in, structures out; no I/O, clock or async.
//!
//! | object | form | module |
//! | --- | --- | --- |
//! | pool, name, volume, epoch, tombstone | JSON, so that standard tools read them | [`pool`], [`volume`] |
//! | chunk: header (records, frame table), frames | binary | [`chunk`], [`record`], [`frame`] |
//! | fence | binary, in a slot of the log | [`fence`] |
//! | map object: packed leaves and pages | binary | [`map_object`], [`page`] |
//! | checkpoint | binary | [`checkpoint`] |
//! | snapshot: a checkpoint that is kept | binary | [`snapshot`] |
//! | ancestors of a clone, and what is whose | JSON, in the volume | [`lineage`] |
//! | source: an image that a volume begins as, and what it has of that | JSON, in the volume; bits, in its map | [`source`] |
//! | profile: what to fetch ahead | binary | [`profile`] |
//! | what a snapshot is a copy of | JSON | [`received`] |
//! | stream of changes, in no store | binary | [`stream`] |
//! | stores of a pool that spans several; by which version of them a term is placed | JSON | [`stores`], [`placement`] |
//! | schedule: which snapshots are made by themselves | JSON | [`schedule`] |
//! | replica: which state that was shipped from another pool is complete | JSON | [`replica`] |
//! | scrub: how far it is, what the last one found | JSON | [`scrub`] |
//! | request to the owner of a volume, whether it is carried out, what came of it | JSON | [`request`] |
//! | slots of an encrypted volume's key | JSON | [`key_slots`] |
//! | sealed object: what an encrypted volume stores instead of each of most others | binary | [`sealed`] |
//!
//! All numbers are little-endian. Every binary object begins with a magic of 8 bytes and a
//! version (u16, 1 so far), names the volume, epoch and position it was written for (so that a misplaced
//! object is recognised), and is covered by crc32c: headers by one crc, each frame by its own. crc32c is
//! CRC-32C (Castagnoli) as in RFC 3720: of `123456789` it is `e3069283`. Positions and lengths on a volume
//! are in sectors of 512 bytes, whatever its block size. An id is a UUID: 16 bytes in the order of its
//! text, in names and JSON the hyphenated lower-case text.
//!
//! # Reading a volume
//!
//! What a volume holds follows from its objects alone. (`scripts/reader` is a program that does no more
//! than this, and shares no code with the engine.)
//!
//! 1. `names/<name>` gives the id, `volume.json` the description; features that are not known decide (see
//!    below).
//! 2. **The newest checkpoint** is the first in a listing of `checkpoints/`: the one with the largest next
//!    seq, which no two have in common. It gives position, size, map, terms and snapshots.
//!    Where there is none, the state is the one that the volume began with: of a clone that of its origin's
//!    snapshot, with the terms before the origin's `next` and one more that begins there in the first epoch
//!    of its own ([`lineage`]); of any other nothing, at slot 0 of epoch 0 and of the size in `volume.json`.
//! 3. **The log behind it.** The slot at the position, in the position's epoch, is one of
//!    * a chunk: its records change the state, in order; the position is the next slot, same epoch.
//!      Data of record and chunk: `lba + n` is at `payload offset + n` of that slot. Zero and trim: zeros.
//!      Resize: what lies from the new size on to the old one is zeros from now on, and the size is the new one.
//!      Rolled back: map and size are those in the snapshot's object, whatever was before; the
//!      terms stay. Epoch start and close change nothing here.
//!      Snapshot made: it is added to the table if it is not in the checkpoint's already; its object has
//!      its name. If that is missing, the snapshot is lost and the volume is not. If its position is behind the
//!      checkpoint's, there is a newer checkpoint than this one. Snapshot deleted: it is taken off.
//!    * a fence: the position is the next slot in the fence's next epoch, and a term begins there.
//!    * missing: the log ends. It is damage, and no end, if a chunk of this epoch behind it says that this
//!      slot was committed, or if any slot behind it was written in a later epoch. (The last chunk of the epoch
//!      knows most. The engine does not list the log of a volume that has a checkpoint, and looks at the next
//!      32 slots: no owner is further ahead.) All else behind the end is nothing: chunks that were
//!      never committed, fences that were put ahead.
//! 4. **A sector** is where the records of step 3 say, the last one first; else where its leaf's extent
//!    says ([`page`]); else it is zeros. The slot's object is named by the term: the last one whose first seq
//!    is not behind the slot. The frames that are needed are verified, each by its crc, and decoded as
//!    the chunk's header says ([`frame`]).
//!
//! A **replica** (a feature says so) is read by its newest `replica/<~n>`: that names the checkpoint, and the slot at which
//! the log ends, or behind which it goes on in another epoch ([`replica`]).
//!
//! A **snapshot** is the checkpoint in its object, without any log behind it: map, size and terms are those
//! in it. Which object belongs to the volume and which to an ancestor, [`lineage`] says. The
//! epochs' objects, children, profile, live counts, chunk pages and garbage are not needed to read.
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
pub mod frame;
mod id;
pub mod key_slots;
pub mod keys;
pub mod lineage;
pub mod map_object;
pub mod mirror;
pub mod page;
pub mod placement;
pub mod pool;
pub mod profile;
pub mod received;
pub mod record;
pub mod replica;
pub mod request;
pub mod schedule;
pub mod scrub;
pub mod sealed;
pub mod snapshot;
pub mod source;
pub mod stores;
pub mod stream;
pub mod volume;

pub use codec::{FormatError, FormatResult};
pub use id::{SnapshotId, VolumeId};
