//! How fast objblk is, beside its limits: what the same machine does without it.
//!
//! `make bench`, or some of it: `make bench PARTS="engine nbd" ROUNDS=3 SECONDS=2`. In every round
//! each contestant has one turn, and another one begins each time, so that whatever else the machine
//! does meets all of them: only ratios within one run mean anything. What is printed is also written
//! to `tmp/speed.jsonl` and, as bars, to `tmp/speed.svg` in the target directory. SECONDS is the time
//! of a turn where a turn is a matter of time; others end when their work is done.
//!
//! It runs as the optimised program does (profile `bench`, which is `release`). Needs what the system
//! tests need: fio and nbdkit for the part `nbd`, qemu-storage-daemon for `vhost`, the S3 server for `store`,
//! `cost`, `snapshots` and `peers`, s3backer for the last of these (ZeroFS and nbdkit's S3 plugin are there or
//! left out), a guest with fio for `ublk`, and a user-mode Linux for `uml`, which the first run builds.
//!
//! The parts `sustained` and `peers` want a server with more room than the tests': `CEPH_SIZE=30000000000`, and
//! an OBJBLK_LAB in which there is none yet.

#![allow(clippy::unwrap_used, reason = "a measurement fails by panicking")]
#![allow(dead_code, reason = "the modules of the system tests are used in part")]

#[path = "speed/cached.rs"]
mod cached;
#[path = "speed/chart.rs"]
mod chart;
#[path = "../support/nbd_client.rs"]
mod client;
#[path = "speed/compressed.rs"]
mod compressed;
#[path = "speed/contest.rs"]
mod contest;
#[path = "speed/cost.rs"]
mod cost;
#[path = "speed/disk.rs"]
mod disk;
#[path = "speed/engine.rs"]
mod engine;
#[path = "speed/family.rs"]
mod family;
#[path = "../support/fault_proxy.rs"]
mod fault_proxy;
#[path = "speed/fuse.rs"]
mod fuse;
#[path = "../system/hosts.rs"]
mod hosts;
#[path = "../support/http.rs"]
mod http;
#[path = "../system/leftovers.rs"]
mod leftovers;
#[path = "../vhost/master.rs"]
mod master;
#[path = "../support/nbd.rs"]
mod nbd;
#[path = "speed/nbdkit_s3.rs"]
mod nbdkit_s3;
#[path = "speed/peers.rs"]
mod peers;
#[path = "../support/proxy.rs"]
mod proxy;
#[path = "../support/s3.rs"]
mod s3;
#[path = "speed/served.rs"]
mod served;
#[path = "speed/sizes.rs"]
mod sizes;
#[path = "speed/store.rs"]
mod store;
#[path = "speed/storing.rs"]
mod storing;
#[path = "speed/sustained.rs"]
mod sustained;
#[path = "../system/table.rs"]
mod table;
#[path = "speed/ublk.rs"]
mod ublk;
#[path = "speed/vhost.rs"]
mod vhost;
#[path = "../system/world.rs"]
mod world;
#[path = "speed/zerofs.rs"]
mod zerofs;

use contest::{Report, Settings};

/// A part of the measurements.
type Part = fn(&Settings, &mut Report);

fn main() {
    // `cargo bench` passes options of the standard harness.
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let (settings, wanted) = Settings::parse(&words);
    let parts: [(&str, Part); 13] = [
        ("engine", engine::run),
        ("compressed", compressed::run),
        ("cache", cached::run),
        ("nbd", served::run),
        ("vhost", vhost::run),
        ("fuse", fuse::run),
        ("store", store::run),
        ("sustained", sustained::run),
        ("ublk", ublk::emulated),
        ("uml", ublk::user_mode),
        ("cost", cost::run),
        ("snapshots", family::run),
        ("peers", peers::run),
    ];
    let known = |name: &&str| parts.iter().any(|(part, _)| part == name);
    assert!(wanted.iter().all(known), "parts are {:?}", parts.map(|(name, _)| name));
    let mut report = Report::default();
    for (name, run) in parts {
        if wanted.is_empty() || wanted.contains(&name) {
            report.begin(name);
            run(&settings, &mut report);
            report.print();
        }
    }
    report.write();
    report.verdict();
}
