//! Frontends: each turns one protocol into calls of a [`BlockDevice`](crate::device::BlockDevice).
//!
//! A frontend knows nothing of volumes, chunks or stores. It holds a
//! [`Checked`](crate::device::Checked) device, so ranges, alignment and read-only are verified in
//! one place for all of them.

pub mod fuse;
pub mod nbd;
pub mod ublk;
