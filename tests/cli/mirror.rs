//! Mirrored volumes: either store vanishes under a server and comes back, on directories and on S3.

use crate::gate::Gate;
use crate::program::{BUSY, CORRUPT, Home, STORE, USAGE, noise, qemu_io, until};
use crate::s3::S3Lab;
use crate::s3_pool;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn in_sync(home: &Home) -> Vec<Value> {
    let info = home.run(&["info", "data", "--json"]).json();
    info["mirror"]["in_sync"].as_array().unwrap().clone()
}

fn files(dir: &Path, found: &mut BTreeMap<PathBuf, u64>) {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        match fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => files(&path, found),
            Ok(meta) => drop(found.insert(path, meta.len())),
            Err(_) => {}
        }
    }
}

/// Chunks and map objects of mirrored volumes in a directory.
fn bulk(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    files(&dir.join("mirror"), &mut all);
    let is_bulk = |path: &PathBuf| {
        let path = path.display().to_string();
        path.contains("/log/") || path.contains("/map/")
    };
    let names = all.into_keys().filter(is_bulk);
    names.map(|path| (path.strip_prefix(dir).unwrap().into(), fs::read(&path).unwrap())).collect()
}

#[test]
fn either_directory_vanishes_under_a_server_and_comes_back() {
    let home = Home::new();
    home.run(&["pool", "init"]).ok();
    let second = home.path("second");
    let add = ["pool", "add-store", &format!("file://{}", second.display())];
    let id = home.run(&add).ok();
    let create = ["create", "data", "--size", "64M", "--chunk-size", "256K", "--replicas", "2"];
    home.run(&create).ok();
    home.run(&["create", "plain", "--size", "8M"]).ok();
    let server = home.serve(&["data"]);
    assert!(qemu_io(&server.uri, &["write -P 1 0 16M", "flush"]));
    let hidden = home.path("hidden");
    for (round, place) in [(2, second.clone()), (3, home.store())] {
        fs::rename(&place, &hidden).unwrap();
        let begun = Instant::now();
        let write = format!("write -P {round} 1M 2M");
        assert!(qemu_io(&server.uri, &[&write, "flush"]), "round {round}");
        let stalled = begun.elapsed();
        assert!((9..40).contains(&stalled.as_secs()), "round {round}: {stalled:?}");
        assert!(qemu_io(&server.uri, &["read -P 1 3M 13M", &write.replace("write", "read")]));
        if place == second {
            assert_eq!(in_sync(&home), ["home"]);
            let text = home.run(&["info", "data"]).ok();
            assert!(text.contains(&format!("store {id} lacks what was written")), "{text}");
        }
        fs::rename(&hidden, &place).unwrap();
        until("both are in sync", || in_sync(&home).len() == 2);
    }
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    home.run(&["check", "--data"]).ok();
    let (here, there) = (bulk(&home.store()), bulk(&second));
    assert!(here.len() > 64 && here == there, "{} and {} objects", here.len(), there.len());
    a_clone_reads_what_it_shares(&home);
    // Detached, nobody may go on with one of them alone.
    fs::rename(&second, &hidden).unwrap();
    let socket = home.path("socket");
    let serve = ["serve", "nbd", "data", "--socket", socket.to_str().unwrap()];
    home.run(&serve).fails(STORE, "is away");
    let list = home.run(&["list"]);
    assert!(list.out.contains("plain") && list.out.contains("damaged"), "{list:?}");
    fs::rename(&hidden, &second).unwrap();
    home.run(&["pool", "drain-store", &id]).ok();
    home.run(&["pool", "remove-store", &id])
        .fails(BUSY, "is one of the two of the mirrored volume");
    home.run(&["delete", "data", "--yes"]).ok();
    home.run(&["trash", "empty", "--yes"]).ok();
    for place in [&second, &home.store()] {
        let mut left = BTreeMap::new();
        files(&place.join("mirror"), &mut left);
        assert!(left.is_empty(), "{left:?}");
    }
}

fn a_clone_reads_what_it_shares(home: &Home) {
    home.run(&["snapshot", "create", "data@s"]).ok();
    home.run(&["clone", "data@s", "copy"]).ok();
    let server = home.serve(&["copy"]);
    assert!(qemu_io(&server.uri, &["read -P 1 4M 12M", "write -P 9 0 1M", "flush"]));
    home.run(&["detach", "copy"]).ok();
    assert_eq!(server.ended().0, 0);
    assert!(home.run(&["info", "copy", "--json"]).json()["mirror"].is_null());
    home.run(&["check", "--data"]).ok();
    home.run(&["delete", "copy", "--yes"]).ok();
    home.run(&["trash", "empty", "--yes"]).ok();
    home.run(&["snapshot", "delete", "data@s", "--yes"]).ok();
}

#[test]
fn mistakes_with_replicas() {
    let home = Home::new();
    home.run(&["pool", "init"]).ok();
    let create = |n: &str| home.run(&["create", "data", "--size", "8M", "--replicas", n]);
    create("2").refuses(USAGE, "needs a pool of two stores");
    create("3").fails(USAGE, "--replicas");
    create("0").fails(USAGE, "--replicas");
    let key = home.path("key");
    fs::write(&key, noise(64)).unwrap();
    let key = key.to_str().unwrap();
    let second = home.path("second");
    home.run(&["pool", "add-store", &format!("file://{}", second.display())]).ok();
    let encrypted =
        ["create", "data", "--size", "8M", "--replicas", "2", "--encrypt", "--key-file", key];
    home.run(&encrypted).ok();
    let server = home.serve(&["data", "--key-file", key]);
    assert!(qemu_io(&server.uri, &["write -P 7 0 4M", "flush"]));
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    home.run(&["check", "data", "--data", "--key-file", key]).ok();
    let (here, there) = (bulk(&home.store()), bulk(&second));
    assert!(here.len() > 1 && here == there, "{} and {} objects", here.len(), there.len());
}

/// Damage in either directory: it is told which, reads go around it, and a repair takes the other copy.
#[test]
fn what_one_directory_has_damaged_is_repaired_from_the_other() {
    let home = Home::new();
    home.run(&["pool", "init"]).ok();
    let second = home.path("second");
    home.run(&["pool", "add-store", &format!("file://{}", second.display())]).ok();
    let key = home.path("key");
    fs::write(&key, noise(64)).unwrap();
    let key_file = ["--key-file", key.to_str().unwrap()];
    for (encrypted, place) in [
        (false, home.store()),
        (false, second.clone()),
        (true, second.clone()),
        (true, home.store()),
    ] {
        let with_key: &[&str] = if encrypted { &key_file } else { &[] };
        let create = ["create", "data", "--size", "64M", "--chunk-size", "256K", "--replicas", "2"];
        let encrypt: &[&str] = if encrypted { &["--encrypt"] } else { &[] };
        home.run(&[&create[..], encrypt, with_key].concat()).ok();
        let server = home.serve(&[&["data"], with_key].concat());
        assert!(qemu_io(&server.uri, &["write -P 1 0 3M", "write -P 2 3M 3M", "flush"]));
        home.run(&["detach", "data"]).ok();
        assert_eq!(server.ended().0, 0);
        let whole = bulk(&place);
        for (name, bytes) in &whole {
            let mut bytes = bytes.clone();
            let at = bytes.len() / 2;
            bytes[at] ^= 16;
            fs::write(place.join(name), bytes).unwrap();
        }
        let copy = home.path("copy");
        home.run(&[&["export", "data", copy.to_str().unwrap()], with_key].concat()).ok();
        let mut image = vec![1; 3 << 20];
        image.resize(6 << 20, 2);
        assert!(fs::read(&copy).unwrap()[..6 << 20] == image);
        fs::remove_file(copy).unwrap();
        assert!(bulk(&place) != whole, "who may only read has changed something");
        let check = [&["check", "data", "--data"], with_key].concat();
        let told = home.run(&check);
        assert_eq!(told.code, CORRUPT, "{told:?}");
        home.run(&[&check[..], &["--repair", "--yes"]].concat()).ok();
        let now = bulk(&place);
        for (name, bytes) in &whole {
            // Who repairs owns it, and has made a checkpoint since.
            let is_map = name.to_str().unwrap().contains("/map/");
            let there = now.get(name);
            assert!(there == Some(bytes) || is_map && there.is_none(), "{name:?} {encrypted}");
        }
        home.run(&[&["delete", "data", "--yes"], with_key].concat()).ok();
        home.run(&[&["trash", "empty", "--yes"], with_key].concat()).ok();
    }
}

/// A bucket is cut off and comes back: what is copied is what changed meanwhile.
#[test]
fn s3_a_bucket_is_cut_off_under_a_server_and_comes_back() {
    let lab = S3Lab::get();
    let gate = Gate::open(&lab.endpoint);
    let mut home = Home::new();
    home.set("AWS_ACCESS_KEY_ID", lab.var("AWS_ACCESS_KEY_ID"));
    home.set("AWS_SECRET_ACCESS_KEY", lab.var("AWS_SECRET_ACCESS_KEY"));
    home.set("RUST_LOG", "objblk=info");
    home.run(&["pool", "init"]).ok();
    let bucket = format!("objblk-test-{}", uuid::Uuid::new_v4());
    s3_pool::home(&bucket).run(&["pool", "init", "--create-bucket"]).ok();
    let url = format!("s3://{bucket}/second");
    let by = ["--store-endpoint-url", gate.endpoint(), "--store-region", "us-east-1"];
    home.run(&[&["pool", "add-store", &url], &by[..]].concat()).ok();
    let create = ["create", "data", "--size", "64M", "--chunk-size", "256K", "--replicas", "2"];
    home.run(&[&create[..], &["--compress", "none"]].concat()).ok();
    let server = home.serve(&["data"]);
    assert!(qemu_io(&server.uri, &["write -P 1 0 32M", "flush"]));
    let mut table = Vec::new();
    for mib in [1, 8] {
        gate.close();
        let write = format!("write -P {mib} 4M {mib}M");
        assert!(qemu_io(&server.uri, &[&write, "flush", &write.replace("write", "read")]));
        assert_eq!(in_sync(&home), ["home"]);
        gate.reopen();
        let begun = Instant::now();
        until("both are in sync", || in_sync(&home).len() == 2);
        table.push((mib, begun.elapsed()));
    }
    home.run(&["detach", "data"]).ok();
    let (code, err) = server.ended();
    assert_eq!(code, 0);
    let copied: Vec<u64> = err
        .lines()
        .filter_map(|line| line.split_once(" objects (")?.1.split_once(" bytes")?.0.parse().ok())
        .collect();
    eprintln!("written, until in sync: {table:?}; copied {copied:?}");
    assert_eq!(copied.len(), 2, "{err}");
    assert!((1 << 20..3 << 20).contains(&copied[0]), "{copied:?}");
    assert!((8 << 20..12 << 20).contains(&copied[1]), "{copied:?}");
    assert!(table.iter().all(|(_, took)| *took < Duration::from_secs(60)), "{table:?}");
    home.run(&["check", "--data"]).ok();
}
