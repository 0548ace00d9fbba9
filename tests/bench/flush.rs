//! What a flush costs, beside what the same file system takes for it without objblk.
//!
//! `make bench-flush`, or a part of it: `cargo bench --bench flush -- disk`. Figures that are compared
//! are taken in turns in one run, on one file system; only their ratios mean anything.

#![allow(clippy::unwrap_used)]

#[path = "flush/disk.rs"]
mod disk;
#[path = "flush/times.rs"]
mod times;

fn main() {
    // `cargo bench` passes options of the standard harness.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let parts: [(&str, fn()); 1] = [("disk", disk::run)];
    for (name, run) in parts {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            run();
        }
    }
}
