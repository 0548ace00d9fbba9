//! What was acknowledged and is not committed yet, in places that outlive the process.
//!
//! * [`mirror`]: files in memory; they outlive the process and not the host. Who uses a block device
//!   whose server is replaced must not notice.
//! * [`disk`]: what a journal on a local disk is written to. It outlives a crash of the host.
//!   [`uring`] is the real one.

pub mod disk;
pub mod mirror;
pub mod uring;
