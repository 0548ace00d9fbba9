//! A cache on a local disk: it outlives servers, and is never needed.

use crate::client::Client;
use crate::world::{Served, World, arg, until};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

const MIB: usize = 1 << 20;
const DISK: u64 = 32 << 20;
const PAGE: usize = 4096;

/// What is at `at` once it was written for the `time`-th time.
fn data(at: u64, time: u64) -> Vec<u8> {
    let word = |word: u64| (at + word * 8 + time).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    (0..MIB as u64 / 8).flat_map(word).collect()
}

fn fill(client: &mut Client, time: u64) {
    for at in (0..DISK).step_by(MIB) {
        client.write(at, &data(at, time)).unwrap();
    }
    client.flush().unwrap();
}

/// Reads everything twice: page by page out of order, and in order.
#[track_caller]
fn check(client: &mut Client, time: u64) {
    let blocks = DISK / MIB as u64;
    for page in (0..MIB).step_by(PAGE * 9) {
        for block in (0..blocks).map(|block| block * 11 % blocks) {
            let at = block * MIB as u64;
            let got = client.read(at + page as u64, PAGE).unwrap();
            assert!(got == data(at, time)[page..page + PAGE], "page {page} of block {block}");
        }
    }
    for at in (0..DISK).step_by(MIB) {
        assert!(client.read(at, MIB).unwrap() == data(at, time), "block at {at}");
    }
}

fn serve(world: &World, cache: &Path) -> Served {
    let args = ["--cache-dir", arg(cache), "--cache-size", "128M", "--mem-cache", "1M"];
    world.serve("disk", &args)
}

fn number(status: &Value, path: &str) -> u64 {
    status.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {path}: {status}"))
}

/// GETs of the server that brought something: who deletes garbage looks whether the pool has more stores by now.
fn gets(status: &Value) -> u64 {
    let get = "/store_requests/operations/get";
    let missed = status.pointer(&format!("{get}/errors/not_found")).and_then(Value::as_u64);
    number(status, &format!("{get}/requests")) - missed.unwrap_or_default()
}

#[test]
fn s3_a_warm_cache_outlives_its_server_and_damage_in_it_is_no_loss() {
    let world = World::s3();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let cache = folder.path().join("cache");
    world.run(&["create", "disk", "--size", "32M", "--chunk-size", "1M"]);
    let server = serve(&world, &cache);
    fill(&mut server.connect(), 1);
    server.stop();

    // What was written is there; nothing but the map is read from the store.
    let server = serve(&world, &cache);
    let before = gets(&world.json(&["status", "disk"]));
    check(&mut server.connect(), 1);
    let status = world.json(&["status", "disk"]);
    let (hits, misses) =
        (number(&status, "/disk_cache/hits"), number(&status, "/disk_cache/misses"));
    let asked = gets(&status) - before;
    println!("warm: {hits} hits, {misses} misses, {asked} GETs");
    assert!(hits > 512 && misses == 0 && asked <= 2, "{status}");
    assert_eq!(status["disk_cache"]["path"], arg(&cache), "{status}");
    assert!(status["disk_cache"]["failure"].is_null(), "{status}");
    let (shown, _) = world.run(&["status", "disk"]);
    assert!(shown.contains(&format!("{hits} of {hits} frames")), "{shown}");

    // Killed while it writes: whatever the cache has of that is right or not there.
    let mut client = server.connect();
    fill(&mut client, 2);
    server.kill();
    let server = serve(&world, &cache);
    check(&mut server.connect(), 2);
    server.stop();

    // Damaged between two runs.
    let frames = File::options().write(true).open(cache.join("frames")).unwrap();
    for at in (0..frames.metadata().unwrap().len()).step_by(96 << 10) {
        frames.write_all_at(&[0x77; 5000], at).unwrap();
    }
    let index = File::options().write(true).open(cache.join("index")).unwrap();
    for at in (4096..index.metadata().unwrap().len()).step_by(640) {
        index.write_all_at(&[0x77; 3], at).unwrap();
    }
    let server = serve(&world, &cache);
    check(&mut server.connect(), 2);
    let status = world.json(&["status", "disk"]);
    assert!(number(&status, "/disk_cache/misses") > 0, "{status}");

    // Its folder is gone and its files are cut, while it is used.
    let mut client = server.connect();
    frames.set_len(4096).unwrap();
    fs::remove_dir_all(&cache).unwrap();
    check(&mut client, 2);
    let told = || !world.json(&["status", "disk"])["disk_cache"]["failure"].is_null();
    until("the status says that the cache is off", told);
    assert!(server.said().contains("is used no more"), "{}", server.said());
    fill(&mut client, 3);
    check(&mut client, 3);
    server.stop();
    let server = world.serve("disk", &[]);
    check(&mut server.connect(), 3);
    server.stop();
}

/// Two servers of two volumes, one cache; and a folder that is not one.
#[test]
fn s3_servers_share_a_cache_and_refuse_what_is_none() {
    let world = World::s3();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let cache = folder.path().join("cache");
    for name in ["disk", "other"] {
        world.run(&["create", name, "--size", "32M", "--chunk-size", "1M"]);
    }
    let flags = ["--cache-dir", arg(&cache), "--cache-size", "128M", "--mem-cache", "1M"];
    for _ in 0..2 {
        let servers = [world.serve("disk", &flags), world.serve("other", &flags)];
        for (time, server) in (5..).zip(&servers) {
            fill(&mut server.connect(), time);
        }
        std::thread::scope(|scope| {
            for (time, server) in (5..).zip(&servers) {
                scope.spawn(move || check(&mut server.connect(), time));
            }
        });
        servers.into_iter().for_each(Served::stop);
    }
    let foreign = folder.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("index"), "of a book").unwrap();
    let refused = ["serve", "nbd", "disk", "--cache-dir", arg(&foreign), "--cache-size", "64M"];
    let said = world.refused(1, &refused);
    assert!(said.contains("holds something else than a cache"), "{said}");
    assert_eq!(fs::read(foreign.join("index")).unwrap(), b"of a book");
    assert_eq!(fs::read_dir(&foreign).unwrap().count(), 1);
    assert_eq!(world.json(&["info", "disk"])["state"], "free", "nobody has taken it");
}
