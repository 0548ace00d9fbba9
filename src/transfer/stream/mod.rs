//! Streams of changes: incremental copies of snapshots, through a pipe, a file, or straight into another pool.
//!
//! ```text
//! snapshot, its base -> pieces -> send ==stream==> Incoming -> receive -> snapshot of the other volume
//! ```
//!
//! What makes a stream is its [format](crate::format::stream). Invariants:
//! * [`send()`] leaves out what only has moved: a stream has the size of what differs;
//! * [`receive()`] changes a volume only if it is what the stream leads from, and makes the snapshot only
//!   after the stream's end was seen;
//! * whatever cuts [`receive()`] off, the same changes may be received again, and lead to the same.

mod incoming;
mod pieces;
mod put_back;
mod receive;
mod send;

pub use incoming::{Arrived, Incoming};
pub use pieces::{Piece, pieces};
pub use put_back::{PutBack, put_back};
pub use receive::{Received, receive};
pub use send::{Sent, send};

/// Is told the bytes of data that were sent or written, each time.
pub type OnData<'a> = &'a (dyn Fn(u64) + Sync);
