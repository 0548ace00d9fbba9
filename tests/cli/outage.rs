//! Detaching while the store cannot be reached.

use crate::gate::Gate;
use crate::program::{Home, qemu_io, qemu_io_reading, until};
use crate::s3::S3Lab;
use crate::s3_pool;
use std::process::Stdio;
use std::time::{Duration, Instant};

fn behind(gate: &Gate) -> Home {
    let mut home = s3_pool::home(&format!("objblk-test-{}", uuid::Uuid::new_v4()));
    home.set("OBJBLK_ENDPOINT_URL", gate.endpoint());
    home.run(&["pool", "init", "--create-bucket"]).ok();
    home.run(&["create", "data", "--size", "64M"]).ok();
    home
}

#[test]
fn a_detach_waits_for_the_store_or_is_called_off() {
    let gate = Gate::open(&S3Lab::get().endpoint);
    let home = behind(&gate);
    let server = home.serve(&["data"]);
    gate.close();
    // The close of the client flushes: it waits for the store.
    let uri = server.uri.clone();
    let writer = std::thread::spawn(move || qemu_io(&uri, &["write -P 5 0 1M"]));
    let dirty = || home.run(&["status", "data", "--json"]).json()["dirty_bytes"].as_u64().unwrap();
    until("it is written", || dirty() >= 1 << 20);
    let mut detach = home.command(&["detach", "data"]).stderr(Stdio::null()).spawn().unwrap();
    let state = || home.run(&["status", "data", "--json"]).json()["state"].clone();
    until("it is flushing", || state() == "flushing");
    // As Ctrl-C does.
    detach.kill().unwrap();
    detach.wait().unwrap();
    until("it is as it was", || state() == "attached");
    gate.reopen();
    assert!(writer.join().unwrap(), "the write failed");
    assert!(qemu_io(&server.uri, &["read -P 5 0 1M", "flush"]), "a called-off detach did harm");
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    let server = home.serve(&["data", "--read-only"]);
    assert!(qemu_io_reading(&server.uri, &["read -P 5 0 1M"]));
    home.run(&["detach", "data"]).ok();
    home.run(&["delete", "data", "--yes"]).ok();
}

#[test]
fn a_forced_detach_is_bounded_and_counts_what_is_lost() {
    let gate = Gate::open(&S3Lab::get().endpoint);
    let home = behind(&gate);
    let server = home.serve(&["data"]);
    assert!(qemu_io(&server.uri, &["write -P 4 0 1M", "flush"]));
    gate.close();
    // The close of the client flushes; it goes on once the volume is abandoned.
    let uri = server.uri.clone();
    let writer = std::thread::spawn(move || qemu_io(&uri, &["write -P 6 1M 2M"]));
    let dirty = || home.run(&["status", "data", "--json"]).json()["dirty_bytes"].as_u64().unwrap();
    until("it is written", || dirty() >= 2 << 20);
    let begun = Instant::now();
    let detached = home.run(&["detach", "data", "--force", "--json"]);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert!(detached.err.contains("were never stored and are lost"), "{detached:?}");
    let lost = detached.json()["lost_bytes"].as_u64().unwrap();
    assert!((2 << 20..(2 << 20) + 4096).contains(&lost), "{lost}");
    assert_ne!(server.ended().0, 0);
    writer.join().unwrap();
    assert!(home.run_files().is_empty(), "{:?}", home.run_files());
    gate.reopen();
    let server = home.serve(&["data"]);
    assert!(qemu_io(&server.uri, &["read -P 4 0 1M", "read -P 0 1M 2M"]));
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    home.run(&["delete", "data", "--yes"]).ok();
}
