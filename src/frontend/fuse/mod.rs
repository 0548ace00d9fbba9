//! FUSE: a directory in which every image is a file.
//!
//! ```text
//! DIR/NAME.raw                   a volume, with its exact size
//! DIR/.snapshots/NAME/SNAP.raw   a snapshot of it, read-only
//!
//! kernel -> event loops (fuser) -> filesystem -> tree        inode numbers and names
//!                                            \-> image       bytes of one device, under range locks
//!                                            \-> catalogue   which images there are; opens them
//! ```
//!
//! Contract: what a program may do with a disk's image file, and nothing else. Reads and writes begin
//! and end at any byte. The size is the device's: a write beyond it gets ENOSPC, `ftruncate` to
//! another size EPERM. Opening with `O_TRUNC` gives up the contents, as it does for any file; the size
//! stays, and all of it reads as zeros. `fsync`, and `close` of a file that was written, complete when
//! the device's flush has. Punching holes and zeroing ranges free space; `SEEK_HOLE` and `SEEK_DATA`
//! tell what is stored. Names are made, changed and removed by others: EPERM here.
//!
//! The kernel holds no write back: each `write(2)` has reached the device when it returns, so that a
//! snapshot or another frontend sees it. The exception are shared mappings, whose pages the kernel
//! writes at `msync`, `munmap` or in its own time.
//!
//! Invariants: an event loop never waits. What the device answers at once is answered on the loop's
//! thread; everything else goes on in the runtime, with as many requests in flight as the kernel
//! sends. Writes that overlap, in whole or in part of one block, take effect one after the other.
//! An inode number stands for one image for as long as the kernel knows it: a new image of an old
//! name gets a new number. Whoever drops the last [`Lease`] of an image has closed it.

mod attributes;
mod catalogue;
mod filesystem;
mod handles;
mod image;
mod mounts;
mod operations;
mod ranges;
mod session;
mod tree;

pub use catalogue::{Catalogue, Facts, ImageName};
pub use image::{Image, ImageStatus, Lease};
pub use mounts::{Mounted, mounted_at, unmount};
pub use session::{MountOptions, Session};
