//! Crashes of a host, of a target and of a reign, in guests whose kernels have ublk: the power is cut,
//! the target is killed at random and at every flush of a file system, and a second live host takes a
//! volume away.
//!
//! What was acknowledged is noted here, outside the guests, as it is told by the load in them
//! (`tests/vm/ledger.py`), and demanded of every recovery. The short versions run with all tests;
//! `OBJBLK_FULL=1` (`make crash-vm`) runs the long ones, and `OBJBLK_SEED` repeats the moments of a run:
//!
//! `OBJBLK_SEED=1 cargo nextest run --test vm_crash`
//!
//! Needs root, the programs of Debian's `python3`, `e2fsprogs`, `xfsprogs` and `dmsetup`, and what
//! `scripts/vm/run.sh` and `scripts/s3/ceph.sh` need.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "vm/guest.rs"]
mod guest;
#[path = "vm/judge.rs"]
mod judge;
#[path = "vm/kills.rs"]
mod kills;
#[path = "vm/power.rs"]
mod power;
#[path = "support/s3.rs"]
mod s3;
#[path = "system/table.rs"]
mod table;
#[path = "vm/takeover.rs"]
mod takeover;
