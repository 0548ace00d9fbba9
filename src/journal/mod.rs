//! What was acknowledged and is not committed yet, in places that outlive the process.
//!
//! * [`mirror`]: files in memory; they outlive the process and not the host. Who uses a block device
//!   whose server is replaced must not notice.
//! * [`ring`]: a journal on a local disk, for flushes that are durable before the store has them. It
//!   outlives a crash of the host.
//! * [`disk`]: what that disk has to promise; [`uring`] is the real one.
//! * [`entry`]: a change of a volume as both write it.

pub mod disk;
pub mod entry;
pub mod mirror;
pub mod ring;
pub mod uring;
