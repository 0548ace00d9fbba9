//! What a flush costs, beside what the same machine takes for it without objblk.
//!
//! `make bench-flush`, or a part of it: `make bench-flush PARTS="disk flush"`. Figures that are
//! compared are taken in turns in one run, on one file system: only their ratios mean anything.
//! Needs what the system tests need, and for the part `database` Debian's `postgresql`.

#![allow(clippy::unwrap_used, reason = "a measurement fails by panicking")]
#![allow(dead_code, reason = "the modules of the system tests are used in part")]

#[path = "../support/nbd_client.rs"]
mod client;
#[path = "flush/database.rs"]
mod database;
#[path = "../system/device.rs"]
mod device;
#[path = "flush/disk.rs"]
mod disk;
#[path = "flush/engine.rs"]
mod engine;
#[path = "../support/fault_proxy.rs"]
mod fault_proxy;
#[path = "../system/hosts.rs"]
mod hosts;
#[path = "../support/http.rs"]
mod http;
#[path = "../system/leftovers.rs"]
mod leftovers;
#[path = "../system/local.rs"]
mod local;
#[path = "../support/nbd.rs"]
mod nbd;
#[path = "flush/one.rs"]
mod one;
#[path = "../support/proxy.rs"]
mod proxy;
#[path = "../support/s3.rs"]
mod s3;
#[path = "../system/table.rs"]
mod table;
#[path = "flush/threads.rs"]
mod threads;
#[path = "flush/times.rs"]
mod times;
#[path = "../system/world.rs"]
mod world;

fn main() {
    // `cargo bench` passes options of the standard harness.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let parts: [(&str, fn()); 5] = [
        ("disk", disk::run),
        ("flush", one::local),
        ("threads", threads::run),
        ("object", one::object),
        ("database", database::run),
    ];
    let known = |name: &String| parts.iter().any(|(part, _)| part == name);
    assert!(wanted.iter().all(known), "parts are {:?}", parts.map(|(name, _)| name));
    for (name, run) in parts {
        if wanted.is_empty() || wanted.iter().any(|one| one == name) {
            run();
        }
    }
}
