//! The program, as users run it: every verb, exit code and error text, on a directory store and on
//! a real S3 server, with NBD as the frontend that works on every host.
//!
//! Needs the programs of Debian's `libnbd-bin`, `qemu-utils` and `python3`, and what `scripts/s3/ceph.sh`
//! needs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attached;
mod bench;
#[path = "../support/certificates.rs"]
mod certificates;
mod clones;
mod compress;
mod diff;
mod doctor;
mod encrypted;
mod gate;
mod hosts;
mod journal;
mod loss;
mod mirror;
mod mistakes;
mod mount;
mod mount_direct;
mod outage;
mod past;
mod paths;
mod profile;
mod program;
mod reader;
mod repair;
mod replace;
mod replica;
mod rescue;
#[path = "../support/s3.rs"]
mod s3;
mod s3_pool;
mod schedule;
#[path = "../support/reader.rs"]
mod script;
mod snapshots;
mod source;
mod stores;
#[path = "../support/sums.rs"]
mod sums;
mod tls;
mod transfer;
mod trash;
mod verbs;
mod web;
