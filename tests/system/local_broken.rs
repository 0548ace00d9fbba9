//! The disk of a journal fails under a server with local durability: it says so, a flush is what it
//! is without a journal from then on, and nothing that was flushed is lost.

use crate::local::{Local, behind_proxy, status};
use crate::world::{World, arg, tool, until};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const MIB: usize = 1 << 20;
/// Files may not be written beyond this any more.
const LIMIT: &str = "--fsize=65536";

/// `command` in a process that the kernel does not end for writing beyond a limit.
fn outlives_limits(command: &Command) -> Command {
    let mut shell = Command::new("bash");
    shell.args(["-c", "trap '' XFSZ; exec \"$@\"", "bash"]).arg(command.get_program());
    shell.args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

fn durability(world: &World) -> String {
    world.json(&["status", "disk"])["durability"].as_str().unwrap().to_owned()
}

#[test]
fn s3_a_failed_journal_is_told_and_flushes_go_to_the_store() {
    let (world, _direct, proxy) = behind_proxy();
    let local = Local::new("64M");
    world.run(&["create", "disk", "--size", "64M", "--chunk-size", "256K"]);
    let command = outlives_limits(&world.objblk(&["serve", "nbd", "disk"]));
    let server = world.serve_by(command, "disk", &local.args());
    let (mut client, mut other) = (server.connect(), server.connect());
    let mib = |number: usize| vec![number as u8 + 1; MIB];
    // The journal alone has the first half of this.
    proxy.outage(true);
    for number in 0..4 {
        client.write((number * MIB) as u64, &mib(number)).unwrap();
        client.flush().unwrap();
    }
    status(&world);
    tool("util-linux", "prlimit", &["--pid", &server.pid().to_string(), LIMIT]);
    let flushed = AtomicBool::new(false);
    let told = std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 4..8 {
                client.write((number * MIB) as u64, &mib(number)).unwrap();
                client.flush().unwrap();
            }
            flushed.store(true, Ordering::SeqCst);
        });
        until("it says that the journal failed", || durability(&world) != "local");
        let told = durability(&world);
        std::thread::sleep(Duration::from_secs(3));
        let early = flushed.load(Ordering::SeqCst);
        assert!(other.read(0, MIB).unwrap() == mib(0));
        proxy.outage(false);
        assert!(!early, "a flush was acknowledged that neither journal nor store has");
        told
    });
    assert!(told.starts_with("object (the journal ") && told.contains("failed: "), "{told}");
    let said = server.said();
    assert!(said.contains("cannot be written") && said.contains("wait for the store"), "{said}");
    drop((client, other));
    server.kill();
    let server = world.serve("disk", &local.args());
    let mut client = server.connect();
    for number in 0..8 {
        assert!(client.read((number * MIB) as u64, MIB).unwrap() == mib(number), "MiB {number}");
    }
    drop(client);
    server.stop();
}

#[test]
fn a_journal_that_cannot_be_made_is_refused_and_leaves_the_volume_alone() {
    let world = World::directory();
    world.run(&["create", "disk", "--size", "64M"]);
    let local = Local::new("1P");
    let said = world.refused(1, &[&["serve", "nbd", "disk"], &local.args()[..]].concat());
    assert!(said.contains("free") && said.contains("--journal-size"), "{said}");
    assert_eq!(fs::read_dir(local.folder()).unwrap().count(), 0);
    let nowhere = ["--durability", "local", "--journal-size", "64M", "--journal", "/proc/self"];
    world.refused(1, &[&["serve", "nbd", "disk"], &nowhere[..]].concat());
    let missing = ["serve", "nbd", "disk", "--durability", "local"];
    let said = world.refused(2, &missing);
    assert!(said.contains("--journal"), "{said}");
    assert!(Path::new("/dev/shm").is_dir(), "this test needs a tmpfs on /dev/shm");
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let there = ["--durability", "local", "--journal-size", "64M", "--journal", arg(memory.path())];
    world.refused(1, &[&["serve", "nbd", "disk"], &there[..]].concat());
    // None of that made it somebody's.
    world.serve("disk", &[]).stop();
}
