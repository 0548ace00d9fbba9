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
//! writes at `msync`, `munmap` or in its own time. A handle that was opened with O_DIRECT
//! never uses the cache, and several threads can write through it at once. Others that read the file
//! through the cache while it is written so may keep what was there before an asynchronous write (libaio,
//! io_uring) until they open it anew: Linux 6.18 drops its pages before such a write begins, not when it
//! is answered. To have them dropped by a notice of ours, a thread of this process would wait for pages
//! that wait for this process, which a kill could not end.
//!
//! Invariants: an event loop never waits. What the device answers at once is answered on the loop's
//! thread; everything else goes on in the runtime, with as many requests in flight as the kernel
//! sends. Writes that overlap, in whole or in part of one block, take effect one after the other.
//! An inode number stands for one image for as long as the kernel knows it: a new image of an old
//! name gets a new number. Whoever drops the last [`Lease`] of an image has closed it.
//!
//! Not over io_uring, which the kernel offers with `fuse.enable_uring=1`, since it does not pay: with
//! libfuse 3.19, `passthrough_hp --nopassthrough --nosplice --num-threads=4` (and a `max_background` of
//! 64) on a file in /dev/shm, with and without `-o io_uring,io_uring_q_depth=32`, fio with libaio and
//! `direct=1`, Linux 6.18 on 2 cores, medians of 5 rounds: 4 KiB with 32 in flight 171 k/s against 161
//! read and 158 against 154 written (1.06 and 1.03), 1 MiB writes 2.6 GB/s against 5.6 (0.47: one
//! thread copies all that comes from one core). One 4 KiB request at a time is quicker, 57 k/s against
//! 21, but that is the work of threads bound to the core of whoever asks: with the program and a single
//! thread of the server on one core, /dev/fuse does 83 k/s.

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
mod writing;

pub use catalogue::{Catalogue, Facts, ImageName};
pub use image::{Image, ImageStatus, Lease};
pub use mounts::{Mounted, mounted_at, unmount};
pub use session::{MountOptions, Session};
