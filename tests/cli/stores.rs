//! Pools of several stores: added, weighed, drained and removed, on directories and on S3.

use crate::program::{BUSY, EXISTS, Home, NOT_FOUND, STORE, USAGE, noise, qemu_io, tool};
use crate::s3::S3Lab;
use crate::s3_pool;
use crate::script::{Answer, command, run};
use serde_json::Value;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

const SIZE: usize = 24 << 20;

/// A home with a volume that is full of noise, in chunks of 256 KiB.
fn filled(home: &Home) {
    home.run(&["create", "data", "--size", "24M", "--chunk-size", "256K"]).ok();
    let image = home.path("image");
    fs::write(&image, noise(SIZE)).unwrap();
    let server = home.serve(&["data"]);
    tool("nbdcopy", &["--flush", image.to_str().unwrap(), &server.uri]);
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
}

/// Everything reads as it was written, by this program and by another one.
fn is_whole(home: &Home, pool: &str) {
    let back = home.path("back");
    let _ = fs::remove_file(&back);
    home.run(&["export", "data", back.to_str().unwrap()]).ok();
    assert!(
        fs::read(home.path("image")).unwrap() == fs::read(&back).unwrap(),
        "it reads otherwise"
    );
    home.run(&["check", "--data"]).ok();
    let mut command = command(&["check", pool]);
    command.envs(home.command(&[]).get_envs().filter_map(|(k, v)| Some((k, v?))));
    let Answer { code, err, .. } = run(command);
    assert_eq!(code, 0, "the reader: {err}");
}

fn stores(home: &Home) -> Vec<Value> {
    let status = home.run(&["pool", "status", "--json"]).json();
    status["stores"].as_array().cloned().unwrap_or_default()
}

fn to_move(home: &Home) -> u64 {
    stores(home).iter().map(|store| store["to_move"]["objects"].as_u64().unwrap()).sum()
}

fn other(home: &Home, name: &str) -> String {
    format!("file://{}", home.path(name).display())
}

#[test]
fn a_store_is_added_weighed_drained_and_removed() {
    let home = Home::new();
    let pool = home.store().display().to_string();
    filled(&home);
    assert!(stores(&home).is_empty());
    let second = home.run(&["pool", "add-store", &other(&home, "second")]).ok();
    is_whole(&home, &pool);
    let held = stores(&home);
    assert_eq!(held.len(), 2);
    for store in &held {
        assert!((0.3..0.7).contains(&store["share"].as_f64().unwrap()), "{store}");
        assert_eq!(store["state"], "ok");
    }
    let table = home.run(&["pool", "status"]).ok();
    assert!(table.contains(&second) && table.contains("version 1, digest "), "{table}");
    let heavier = home.run(&["pool", "weigh-store", &second, "300", "--json"]).json();
    let moved = heavier["moved"]["bytes"].as_u64().unwrap();
    assert!((3 << 20..9 << 20).contains(&moved), "{heavier}");
    is_whole(&home, &pool);
    home.run(&["pool", "remove-store", &second]).refuses(USAGE, "still takes objects");
    home.run(&["pool", "drain-store", &second]).ok();
    is_whole(&home, &pool);
    let table = home.run(&["pool", "status"]).ok();
    assert!(table.contains("drained"), "{table}");
    assert_eq!(home.run(&["pool", "remove-store", &second]).ok(), second);
    fs::remove_dir_all(home.path("second")).unwrap();
    is_whole(&home, &pool);
    assert_eq!(stores(&home).len(), 1);
}

#[test]
fn a_volume_that_is_attached_is_moved_and_drained_in_time() {
    let home = Home::new();
    filled(&home);
    let second = home.run(&["pool", "add-store", &other(&home, "second")]).ok();
    let server = home.serve(&["data"]);
    // This owner writes by the version of two stores, and has made no checkpoint yet.
    assert!(qemu_io(&server.uri, &["write -P 7 0 4M", "flush"]));
    let far = home.other_host();
    far.run(&["pool", "drain-store", &second]).refuses(BUSY, "volume data");
    assert!(qemu_io(&server.uri, &["read -P 7 0 4M", "read 4M 8M"]));
    home.run(&["gc", "data"]).ok();
    let done = far.run(&["pool", "drain-store", &second]);
    assert!(done.err.contains("volume data writes to store"), "{done:?}");
    done.ok();
    assert!(qemu_io(&server.uri, &["read -P 7 0 4M", "read 4M 8M", "write -P 8 1M 1M", "flush"]));
    far.run(&["pool", "remove-store", &second]).fails(BUSY, "may still write");
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    far.run(&["pool", "drain-store", &second]).ok();
    far.run(&["pool", "remove-store", &second]).ok();
    fs::remove_dir_all(home.path("second")).unwrap();
    let server = home.serve(&["data"]);
    assert!(qemu_io(&server.uri, &["read -P 7 0 1M", "read -P 8 1M 1M", "read -P 7 2M 2M"]));
    home.run(&["detach", "data"]).ok();
    home.run(&["check", "--data"]).ok();
}

#[test]
fn s3_kill_9_of_moves_between_a_directory_and_a_bucket() {
    let lab = S3Lab::get();
    let mut home = Home::new();
    home.set("AWS_ACCESS_KEY_ID", lab.var("AWS_ACCESS_KEY_ID"));
    home.set("AWS_SECRET_ACCESS_KEY", lab.var("AWS_SECRET_ACCESS_KEY"));
    let pool = home.store().display().to_string();
    filled(&home);
    let bucket = format!("objblk-test-{}", uuid::Uuid::new_v4());
    let there = s3_pool::home(&bucket);
    there.run(&["pool", "init", "--create-bucket"]).ok();
    let url = format!("s3://{bucket}/second");
    let by = ["--store-endpoint-url", &*lab.endpoint, "--store-region", "us-east-1"];
    let taken = format!("s3://{bucket}/pool");
    let add = |url: &str| home.run(&[&["pool", "add-store", url], &by[..]].concat());
    add(&taken).refuses(EXISTS, "a pool was made in it");
    let killed = |args: &[&str], after: u64| {
        let mut child =
            home.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(after));
        child.kill().unwrap();
        child.wait().unwrap();
        is_whole(&home, &pool);
    };
    let adding = [&["pool", "add-store", &url, "--rate", "4M"], &by[..]].concat();
    killed(&adding, 300);
    killed(&adding, 1500);
    if stores(&home).is_empty() {
        add(&url).ok();
    }
    let id = stores(&home)[1]["id"].as_str().unwrap().to_owned();
    killed(&["pool", "rebalance", "--rate", "4M"], 1000);
    home.run(&["pool", "rebalance"]).ok();
    assert_eq!(to_move(&home), 0);
    is_whole(&home, &pool);
    for after in [300, 900, 1500] {
        killed(&["pool", "drain-store", &id, "--rate", "4M"], after);
    }
    home.run(&["pool", "drain-store", &id]).ok();
    // Who was killed here is not waited for.
    home.run(&["pool", "remove-store", &id]).ok();
    is_whole(&home, &pool);
    there.run(&["pool", "status"]).ok();
}

#[test]
fn a_store_that_is_away_is_told_and_nothing_is_taken_for_it() {
    let home = Home::new();
    filled(&home);
    home.run(&["pool", "add-store", &other(&home, "second")]).ok();
    fs::rename(home.path("second"), home.path("hidden")).unwrap();
    let status = home.run(&["pool", "status"]);
    assert!(status.out.contains("unreachable") && status.err.contains("is away"), "{status:?}");
    // Somebody mounts something else there.
    fs::create_dir(home.path("second")).unwrap();
    let uri = home.path("socket");
    let serve = ["serve", "nbd", "data", "--socket", uri.to_str().unwrap()];
    home.run(&serve).fails(STORE, "not the store that it was");
    home.run(&["create", "more", "--size", "1M"]).ok();
    assert_eq!(fs::read_dir(home.path("second")).unwrap().count(), 0);
    // Or another store of the pool.
    fs::remove_dir(home.path("second")).unwrap();
    let third = home.run(&["pool", "add-store", &other(&home, "third"), "--later"]).ok();
    fs::rename(home.path("third"), home.path("second")).unwrap();
    home.run(&["list"]).refuses(STORE, &format!("it is store {third} of pool"));
    fs::rename(home.path("second"), home.path("third")).unwrap();
    fs::rename(home.path("hidden"), home.path("second")).unwrap();
    is_whole(&home, &home.store().display().to_string());
}

#[test]
fn mistakes_with_stores() {
    let home = Home::new();
    home.run(&["create", "data", "--size", "8M"]).ok();
    let second = other(&home, "second");
    let add = |args: &[&str]| home.run(&[&["pool", "add-store"], args].concat());
    add(&["nonsense"]).refuses(USAGE, "is no store address");
    add(&["mem://"]).refuses(USAGE, "ends with this command");
    add(&[&second, "--store-region", "x"]).refuses(USAGE, "has no endpoint and no region");
    add(&[&second, "--weight", "0"]).refuses(USAGE, "cannot weigh 0");
    add(&[&second, "--weight", "10001"]).refuses(USAGE, "cannot weigh 10001");
    add(&[&second, "--rate", "0"]).refuses(USAGE, "leaves nothing to move");
    add(&[&format!("file://{}", home.store().display())]).refuses(EXISTS, "store home");
    assert!(stores(&home).is_empty());
    let id = add(&[&second]).ok();
    add(&[&second]).refuses(EXISTS, &id);
    home.run(&["pool", "weigh-store", &id, "0"]).refuses(USAGE, "drain-store");
    home.run(&["pool", "drain-store", "x"]).refuses(USAGE, "no id of a store");
    home.run(&["pool", "drain-store", "00000001"]).refuses(NOT_FOUND, "00000001");
    home.run(&["pool", "remove-store", "home"]).refuses(USAGE, "home store");
    home.run(&["pool", "drain-store", &id]).ok();
    home.run(&["pool", "drain-store", "home"]).refuses(USAGE, "add another one first");
    home.run(&["inspect", "stores/0002"]).ok();
}

/// What is sealed moves as it is: nobody needs the key for that.
#[test]
fn an_encrypted_volume_moves_with_the_others() {
    let home = Home::new();
    let (key, image, back) = (home.path("key"), home.path("image"), home.path("back"));
    fs::write(&key, noise(64)).unwrap();
    fs::write(&image, noise(6 << 20)).unwrap();
    let (key, image) = (key.to_str().unwrap(), image.to_str().unwrap());
    let import = ["import", image, "data", "--chunk-size", "256K", "--encrypt", "--key-file", key];
    home.run(&import).ok();
    let is_whole = || {
        let _ = fs::remove_file(&back);
        let export = ["export", "data", back.to_str().unwrap(), "--key-file", key];
        home.run(&export).ok();
        assert!(fs::read(image).unwrap() == fs::read(&back).unwrap(), "it reads otherwise");
        home.run(&["check", "data", "--data", "--key-file", key]).ok();
    };
    let added = home.run(&["pool", "add-store", &other(&home, "second"), "--json"]).json();
    assert!(added["moved"]["objects"].as_u64().unwrap() > 2, "{added}");
    assert_eq!(to_move(&home), 0);
    is_whole();
    // Terms that are written in both stores.
    for round in 0..3 {
        let server = home.serve(&["data", "--key-file", key]);
        assert!(qemu_io(&server.uri, &[&format!("write -P {round} 0 64k"), "flush"]));
        assert!(qemu_io(&server.uri, &["write -P 9 0 64k", "flush"]));
        home.run(&["detach", "data"]).ok();
        assert_eq!(server.ended().0, 0);
    }
    let mut bytes = fs::read(image).unwrap();
    bytes[..64 << 10].fill(9);
    fs::write(image, bytes).unwrap();
    is_whole();
    let second = stores(&home)[1]["id"].as_str().unwrap().to_owned();
    home.run(&["pool", "drain-store", &second]).ok();
    // Whether somebody still writes there is not known of a volume without its key, nor can it be renewed.
    let remove = ["pool", "remove-store", &second];
    home.run(&remove).refuses(BUSY, "attach it and detach it again");
    let server = home.serve(&["data", "--key-file", key]);
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    home.run(&["pool", "drain-store", &second]).ok();
    home.run(&remove).ok();
    fs::remove_dir_all(home.path("second")).unwrap();
    is_whole();
}
