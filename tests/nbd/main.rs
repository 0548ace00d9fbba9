//! The NBD server against real clients (libnbd, QEMU, fio) and against raw sockets.
//!
//! Needs the programs of Debian's `libnbd-bin`, `python3-libnbd`, `qemu-utils` and `fio`.

#![allow(clippy::unwrap_used, reason = "clippy exempts test functions but not their helpers")]

#[path = "../support/certificates.rs"]
mod certificates;
mod harness;
mod limits;
mod moody;
mod negotiation;
mod raw;
mod rights;
mod scripts;
mod tls;
mod tools;
#[path = "../support/nbd.rs"]
mod wire;
