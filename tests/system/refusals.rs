//! A store that answers, and refuses: nothing is lost, nothing is acknowledged, and who asks is told
//! why.

use crate::client::{Client, EIO, Trouble};
use crate::fault_proxy::CALM;
use crate::s3::S3Lab;
use crate::world::{Served, World, arg, tool};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const MIB: usize = 1 << 20;
/// Exit codes of the command line.
const NOT_FOUND: i32 = 3;
const STORE: i32 = 6;

fn mib(number: usize, of: u8) -> Vec<u8> {
    vec![of ^ number as u8; MIB]
}

/// A volume with 8 MiB flushed.
fn served(world: &World) -> (Served, Client) {
    // Compressed, what is written here would fill no disk.
    world.run(&["create", "disk", "--size", "256M", "--compress", "none"]);
    let server = world.serve("disk", &[]);
    let mut client = server.connect();
    for number in 0..8 {
        client.write((number * MIB) as u64, &mib(number, 1)).unwrap();
    }
    client.flush().unwrap();
    (server, client)
}

#[track_caller]
fn holds(client: &mut Client, numbers: std::ops::Range<usize>, of: u8) {
    for number in numbers {
        assert!(client.read((number * MIB) as u64, MIB).unwrap() == mib(number, of), "{number}");
    }
}

/// Writes go on and a flush waits for as long as `refused` lasts; then it is done.
fn waits(server: &Served, client: &mut Client, of: u8, refused: impl FnOnce()) {
    let flushed = AtomicBool::new(false);
    let mut other = server.connect();
    std::thread::scope(|scope| {
        for number in 0..4 {
            client.write((number * MIB) as u64, &mib(number, of)).unwrap();
        }
        scope.spawn(|| {
            client.flush().unwrap();
            flushed.store(true, Ordering::SeqCst);
        });
        std::thread::sleep(Duration::from_secs(3));
        let early = flushed.load(Ordering::SeqCst);
        holds(&mut other, 0..4, of);
        refused();
        assert!(!early, "a flush was acknowledged that the store refused");
    });
}

#[test]
fn s3_refusals_are_waited_out_and_explained() {
    let world = World::s3_through(&CALM, 0);
    let (server, mut client) = served(&world);
    for (number, (status, code, verb, why)) in [
        (400, "ExpiredToken", STORE, "the credentials have expired"),
        (403, "AccessDenied", STORE, "these credentials do not allow it"),
        (403, "RequestTimeTooSkewed", STORE, "the clock of this host differs too much"),
        (404, "NoSuchBucket", NOT_FOUND, "does not exist"),
        (503, "SlowDown", STORE, "asks to slow down"),
    ]
    .into_iter()
    .enumerate()
    {
        world.faults().answer(Some((status, code)));
        waits(&server, &mut client, 10 + number as u8, || {
            let said = world.refused(verb, &["info", "disk"]);
            assert!(said.contains(why), "{code}: {said}");
            assert!(server.said().contains(why), "{code}: {}", server.said());
            world.faults().answer(None);
        });
    }
    drop(client);
    server.kill();
    let server = world.serve("disk", &[]);
    let mut client = server.connect();
    holds(&mut client, 0..4, 14);
    holds(&mut client, 4..8, 1);
    drop(client);
    server.stop();
}

#[test]
fn s3_deleted_bucket_takes_the_volume_with_it() {
    let world = World::s3();
    let (server, mut client) = served(&world);
    world.remove_bucket();
    client.write(0, &mib(0, 9)).unwrap();
    holds(&mut client, 0..1, 9);
    let flushed = AtomicBool::new(false);
    let mut flusher = server.connect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let answer = flusher.flush();
            assert!(matches!(answer, Err(Trouble::Refused(EIO) | Trouble::Gone(_))), "{answer:?}");
            flushed.store(true, Ordering::SeqCst);
        });
        std::thread::sleep(Duration::from_secs(3));
        assert!(!flushed.load(Ordering::SeqCst), "a flush ended without a bucket");
        let said = world.refused(NOT_FOUND, &["info", "disk"]);
        assert!(said.contains("does not exist"), "{said}");
        let (_, said) = world.run(&["detach", "disk", "--force"]);
        assert!(said.contains("1.00 MiB were never stored"), "{said}");
    });
    let (code, said) = server.ended(Duration::from_secs(20));
    assert_ne!(code, 0, "{said}");
    let said = world.refused(NOT_FOUND, &["serve", "nbd", "disk"]);
    assert!(said.contains("does not exist"), "{said}");
    // The world cleans it up.
    world.wait(S3Lab::get().make(&world.bucket()));
}

#[test]
fn full_disk_of_a_directory_store_is_waited_out() {
    let world = World::directory();
    let store = world.path("store");
    std::fs::create_dir(&store).unwrap();
    tool("util-linux", "mount", &["-t", "tmpfs", "-o", "size=24m", "tmpfs", arg(&store)]);
    let (server, mut client) = served(&world);
    for number in 8..24 {
        client.write((number * MIB) as u64, &mib(number, 1)).unwrap();
    }
    waits(&server, &mut client, 3, || {
        assert!(server.said().contains("No space left"), "{}", server.said());
        tool("util-linux", "mount", &["-o", "remount,size=256m", arg(&store)]);
    });
    drop(client);
    server.kill();
    let server = world.serve("disk", &[]);
    let mut client = server.connect();
    holds(&mut client, 0..4, 3);
    holds(&mut client, 4..24, 1);
    drop(client);
    server.stop();
    tool("util-linux", "umount", &[arg(&store)]);
}
