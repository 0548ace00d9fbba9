//! Frontends: each turns one protocol into calls of a [`BlockDevice`](crate::device::BlockDevice).
//!
//! A frontend knows nothing of volumes, chunks or stores. It holds a
//! [`Checked`](crate::device::Checked) device, so ranges, alignment and read-only are verified in
//! one place for all of them.
//!
//! [`ublk`] and [`vhost`] poll a request's future on the thread of the request's queue: `slots`
//! holds the futures, `mailbox` is where their wakers say who can go on.

pub mod fuse;
mod mailbox;
pub mod nbd;
mod slots;
pub mod ublk;
pub mod vhost;
