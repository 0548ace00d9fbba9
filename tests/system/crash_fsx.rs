//! kill -9 after fsx, the file system exerciser, which knows every byte of what it did.
//!
//! fsx works on a block device and compares each of its reads with its own record. When it is done the
//! device is flushed and the server killed while others still write; the bytes must be the same after.

use crate::device::Device;
use crate::table::{print, row};
use crate::times::Times;
use crate::world::{World, arg, full, seed, tool};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// fsx has the first half of the disk; the second is written while the server is killed.
const HALF: u64 = 16 << 20;

/// A device has neither a size to change nor a file to open anew.
const CONFIG: &str = "blockmode = true\nnomsyncafterwrite = false\n[opsize]\nmin = 512\n\
    max = 262144\nalign = 512\n[weights]\nclose_open = 0\ntruncate = 0\nposix_fallocate = 0\n\
    punch_hole = 0\nread = 4\nwrite = 6\nmapread = 2\nmapwrite = 2\nfsync = 0.2\nfdatasync = 0.2\n";

fn fsx(world: &World, device: &Device, random: u64, operations: u64) {
    let config = world.path("fsx.toml");
    fs::write(&config, CONFIG).unwrap();
    let (size, file) = (HALF.to_string(), device.file());
    let half = ["--find", "--show", "--sizelimit", &size, arg(&file)];
    let half = tool("util-linux", "losetup", &half).trim().to_owned();
    let mut program = Command::new("fsx");
    program.args(["-q", "-f", arg(&config), "-P", arg(&world.path(""))]);
    program.args(["-S", &random.to_string(), "-N", &operations.to_string(), &half]);
    let output = program.output();
    // What it wrote may still be in the page cache of its device.
    tool("coreutils", "sync", &[&half]);
    tool("util-linux", "losetup", &["--detach", &half]);
    let output = output.expect("fsx is missing: cargo install fsx --version 0.3.2 --locked");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "fsx -S {random} -N {operations}: {said}");
}

fn half(device: &Device) -> Vec<u8> {
    let mut bytes = vec![0; HALF as usize];
    File::open(&device.name).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn rounds(world: &World, name: &str, rounds: u64) {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    world.run(&["create", "disk", "--size", "32M", "--chunk-size", "256K"]);
    let mut server = world.serve("disk", &[]);
    let mut table = vec![row(&[&"round", &"operations", &"ready ms"])];
    let mut recovery = Times::default();
    for round in 0..if full() { 10 * rounds } else { rounds } {
        let device = Device::begin(world, &server);
        let operations = rng.random_range(200..if full() { 4000 } else { 1000 });
        fsx(world, &device, rng.random(), operations);
        let before = half(&device);
        assert!(before.iter().any(|byte| *byte != 0), "fsx wrote nothing");
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut client = server.connect();
                let mut at = 0;
                while client.write(HALF + at, &[round as u8; 65536]).is_ok() {
                    at = (at + 65536) % HALF;
                }
                assert!(over.load(Ordering::SeqCst), "the server left by itself");
            });
            std::thread::sleep(Duration::from_millis(rng.random_range(20..400)));
            over.store(true, Ordering::SeqCst);
            server.signal("KILL");
        });
        server.expect_killed();
        device.abandon();
        server = world.serve("disk", &["--takeover"]);
        let ready = server.first_read();
        recovery.add(ready);
        let device = Device::begin(world, &server);
        assert!(half(&device) == before, "seed {seed}, round {round}: fsx's bytes have changed");
        device.end();
        table.push(row(&[&round, &operations, &ready.as_millis()]));
    }
    print(&format!("fsx and kill -9 on {name}, seed {seed}: first read after {recovery}"), &table);
    server.stop();
}

#[test]
fn s3_kill_9_after_fsx() {
    rounds(&World::s3(), "S3", 1);
}

#[test]
fn kill_9_after_fsx_on_a_directory() {
    rounds(&World::directory(), "a directory", 1);
}
