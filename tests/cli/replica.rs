//! `objblk replicate` and `objblk promote`: a volume in a second pool, after the first one has vanished.

use crate::program::{
    BUSY, CORRUPT, EXISTS, Home, NOT_FOUND, STORE, USAGE, noise, qemu_io, tool, until,
};
use crate::s3_pool;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

const FAILED: i32 = 1;

/// The other pool's home.
fn other() -> (Home, String) {
    let there = Home::new();
    let url = format!("file://{}", there.store().display());
    (there, url)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn image(home: &Home, args: &[&str]) -> Vec<u8> {
    let path = home.path("image");
    let _ = fs::remove_file(&path);
    let server = home.serve(args);
    tool("nbdcopy", &[&server.uri, text(&path)]);
    server.signal("TERM");
    server.ended();
    fs::read(path).unwrap()
}

fn replica(home: &Home, name: &str) -> Value {
    home.run(&["info", name, "--json"]).json()["replica"].clone()
}

#[test]
fn a_replica_is_promoted_after_the_first_pool_vanished() {
    let (home, (there, url)) = (Home::new(), other());
    home.run(&["create", "data", "--size", "16M"]).ok();
    let server = home.serve(&["data"]);
    assert!(qemu_io(&server.uri, &["write -P 1 0 6M", "flush"]));
    home.run(&["replicate", "missing", "--to", &url]).refuses(NOT_FOUND, "missing");
    home.run(&["replicate", "data", "--to", &url, "--status"]).fails(NOT_FOUND, "");
    let status = ["replicate", "data", "--to", &url, "--as", "copy", "--status", "--json"];
    let once = ["replicate", "data", "--to", &url, "--as", "copy", "--once", "--json"];
    // It is in use, and nobody asks its owner.
    let done = home.run(&once).json();
    assert!(done["copied_bytes"].as_u64().unwrap() > 0 && done["seq"].as_u64().unwrap() > 0);
    assert_eq!(home.run(&status).json()["lag_bytes"], 0);
    assert!(qemu_io(&server.uri, &["write -P 2 6M 2M", "flush"]));
    let behind = home.run(&status).json();
    assert!(behind["lag_bytes"].as_u64().unwrap() > 0 && behind["lag_ms"].as_u64().unwrap() > 0);
    let again = home.run(&once).json();
    assert!(
        again["state"].as_u64() > done["state"].as_u64()
            && again["seq"].as_u64() > done["seq"].as_u64()
    );
    assert_eq!(home.run(&status).json()["lag_bytes"], 0);
    // What is there can be read, and by nobody be changed.
    let known = there.run(&["list", "--json"]).json();
    assert_eq!((&known[0]["name"], &known[0]["state"]), (&"copy".into(), &"replica".into()));
    let mut expected = vec![1; 6 << 20];
    expected.resize(8 << 20, 2);
    expected.resize(16 << 20, 0);
    assert!(image(&there, &["--read-only", "copy"]) == expected);
    there.run(&["snapshot", "create", "copy@s"]).fails(BUSY, "objblk promote");
    there.run(&["resize", "copy", "--size", "32M"]).fails(BUSY, "objblk promote");
    there.run(&["check", "copy", "--data"]).ok();
    there.run(&["promote", "missing"]).refuses(NOT_FOUND, "missing");
    home.run(&["promote", "data"]).refuses(USAGE, "data is no replica");
    // The first pool goes away, with what was flushed since.
    assert!(qemu_io(&server.uri, &["write -P 9 0 4k", "flush"]));
    server.kill();
    let aside = home.path("aside");
    fs::rename(home.store(), &aside).unwrap();
    home.run(&once).fails(NOT_FOUND, "");
    assert!(there.run(&["promote", "copy"]).ok().contains("a volume of its own"));
    let promoted = replica(&there, "copy");
    assert!(promoted["promoted_epoch"].as_u64().unwrap() > 1 << 40, "{promoted}");
    assert!(image(&there, &["copy"]) == expected);
    let server = there.serve(&["copy"]);
    assert!(qemu_io(&server.uri, &["write -P 3 8M 1M", "flush"]));
    server.signal("TERM");
    assert_eq!(server.ended().0, 0);
    expected[8 << 20..9 << 20].fill(3);
    assert!(image(&there, &["copy"]) == expected);
    there.run(&["check", "copy", "--data"]).ok();
    there.run(&["snapshot", "create", "copy@s"]).ok();
    there.run(&["clone", "copy@s", "twin"]).ok();
    assert!(image(&there, &["twin"]) == expected);
    // It comes back: its log has gone another way.
    fs::rename(&aside, home.store()).unwrap();
    home.run(&once).fails(BUSY, "its log has gone on by itself");
    assert!(home.run(&status).json()["promoted_by"].is_string());
    assert!(there.run(&["promote", "copy"]).err.contains("was promoted before"));
    goes_back((&home, &there), expected);
}

/// Back to where it was, as a replica of the replica.
fn goes_back((home, there): (&Home, &Home), mut expected: Vec<u8>) {
    let url = |home: &Home| format!("file://{}", home.store().display());
    let (url, home_url) = (url(there), url(home));
    let twin = ["replicate", "twin", "--to", &home_url, "--once"];
    there.run(&twin).refuses(USAGE, "objblk flatten");
    there.run(&["flatten", "twin"]).ok();
    there.run(&twin).ok();
    assert!(image(home, &["--read-only", "twin"]) == expected);
    home.run(&["check", "twin", "--data"]).ok();
    home.run(&["promote", "twin"]).ok();
    assert!(image(home, &["twin"]) == expected);
    let back = ["replicate", "copy", "--to", &home_url, "--as", "data", "--once"];
    there.run(&back).fails(EXISTS, "has volume");
    home.run(&["delete", "data", "--yes", "--now", "--force"]).ok();
    there.run(&back).ok();
    home.run(&["replicate", "data", "--to", &url, "--once"]).refuses(USAGE, "data is a replica");
    home.run(&["check", "data", "--data"]).ok();
    home.run(&["promote", "data"]).ok();
    home.run(&["replicate", "data", "--to", &url, "--once"])
        .refuses(BUSY, "nobody has had it since");
    assert!(image(home, &["data"]) == expected);
    let server = home.serve(&["data"]);
    assert!(qemu_io(&server.uri, &["write -P 5 9M 1M", "flush"]));
    server.signal("TERM");
    assert_eq!(server.ended().0, 0);
    expected[9 << 20..10 << 20].fill(5);
    assert!(image(home, &["data"]) == expected);
    home.run(&["check", "data", "--data"]).ok();
}

#[test]
fn it_ships_until_it_is_told_to_end() {
    let (home, (there, url)) = (Home::new(), other());
    home.run(&["create", "data", "--size", "8M"]).ok();
    let args = ["replicate", "data", "--to", &url, "--interval", "200ms"];
    let mut shipper = home.command(&args).stdout(Stdio::null()).spawn().unwrap();
    let server = home.serve(&["data"]);
    for piece in 0..4 {
        let write = format!("write -P {} {piece}M 1M", piece + 1);
        assert!(qemu_io(&server.uri, &[&write, "flush"]));
        let before = home.run(&["replicate", "data", "--to", &url, "--status", "--json"]);
        assert!(before.code == 0 || piece == 0, "{before:?}");
        until("it is shipped", || {
            let status = home.run(&["replicate", "data", "--to", &url, "--status", "--json"]);
            status.code == 0 && status.json()["lag_bytes"] == 0
        });
    }
    tool("kill", &["-s", "TERM", &shipper.id().to_string()]);
    assert_eq!(shipper.wait().unwrap().code(), Some(0));
    server.kill();
    there.run(&["promote", "data"]).ok();
    let bytes = image(&there, &["data"]);
    for (piece, bytes) in bytes.chunks(1 << 20).enumerate() {
        let wanted = if piece < 4 { piece as u8 + 1 } else { 0 };
        assert!(bytes.iter().all(|byte| *byte == wanted), "piece {piece}");
    }
}

#[test]
fn what_cannot_be_shipped_is_refused() {
    let (home, (there, url)) = (Home::new(), other());
    home.run(&["create", "data", "--size", "4M"]).ok();
    home.run(&["snapshot", "create", "data@s"]).ok();
    home.run(&["clone", "data@s", "twin"]).ok();
    let to = |name: &str, url: &str| home.run(&["replicate", name, "--to", url, "--once"]);
    to("twin", &url).refuses(USAGE, "twin is a clone");
    let same = format!("file://{}", home.store().display());
    to("data", &same).refuses(USAGE, "is the pool that the volume is in");
    home.run(&["replicate", "data", "--to", &url, "--interval", "soon"]).refuses(USAGE, "soon");
    there.run(&["create", "data", "--size", "4M"]).ok();
    to("data", &url).refuses(EXISTS, "there is a volume called data already");
    there.run(&["rename", "data", "own"]).ok();
    to("data", &url).ok();
    home.run(&["replicate", "data", "--to", &url, "--as", "two", "--once"])
        .refuses(EXISTS, "called data");
    // Deleted, it is no more shipped to; there is nobody whom that could harm.
    there.run(&["delete", "data", "--yes"]).ok();
    to("data", &url).refuses(BUSY, "in the trash");
    there.run(&["trash", "restore", "data"]).ok();
    to("data", &url).ok();
    there.run(&["delete", "data", "--yes", "--now", "--force"]).ok();
    to("data", &url).ok();
    there.run(&["clone", "data@s", "twin"]).refuses(BUSY, "data is a replica");
    // A checkpoint that was shipped is gone.
    let checkpoint = |path: &&std::path::PathBuf| {
        text(path).contains("/checkpoints/") && text(path).contains(&id(&there, "data"))
    };
    let objects = there.objects();
    fs::remove_file(objects.keys().find(checkpoint).unwrap()).unwrap();
    there.run(&["info", "data"]).fails(CORRUPT, "has lost the checkpoint");
}

fn id(home: &Home, name: &str) -> String {
    let listed = home.run(&["list", "--json"]);
    let listed: Value = serde_json::from_str(&listed.out).unwrap();
    let found = listed.as_array().unwrap().iter().find(|line| line["name"] == name).unwrap();
    found["id"].as_str().unwrap().to_owned()
}

#[test]
fn an_encrypted_volume_is_shipped_sealed_and_without_its_key() {
    let (home, (there, url)) = (Home::new(), other());
    let key = home.path("key");
    fs::write(&key, noise(32)).unwrap();
    let with = ["--key-file", text(&key)];
    home.run(&[&["create", "data", "--size", "4M", "--encrypt"][..], &with].concat()).ok();
    let (input, back) = (home.path("input"), home.path("back"));
    fs::write(&input, noise(4 << 20)).unwrap();
    home.run(&[&["import", text(&input), "other", "--encrypt"][..], &with].concat()).ok();
    for name in ["data", "other"] {
        home.run(&["replicate", name, "--to", &url, "--once"]).ok();
    }
    let plain = noise(4 << 20);
    for path in there.objects().keys() {
        let bytes = fs::read(path).unwrap();
        assert!(!bytes.windows(64).any(|some| some == &plain[..64]), "{path:?}");
    }
    there.run(&["promote", "other"]).ok();
    there.run(&[&["export", "other", text(&back)][..], &with].concat()).ok();
    assert!(fs::read(&back).unwrap() == plain);
}

/// Damages one of the last chunks of a mirrored volume in one of its stores. Returns which one.
fn damage(store: PathBuf, from_the_end: usize) -> String {
    let mut chunks = Vec::new();
    let mut look = vec![store.join("mirror")];
    while let Some(path) = look.pop() {
        match path.is_dir() {
            true => look.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path())),
            // No fences.
            false if text(&path).contains("/log/") && fs::read(&path).unwrap().len() > 4096 => {
                chunks.push((path.file_name().unwrap().to_str().unwrap().to_owned(), path));
            }
            false => {}
        }
    }
    chunks.sort();
    let (name, path) = chunks.iter().rev().nth(from_the_end).unwrap();
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
    name.clone()
}

#[test]
fn a_mirrored_volume_is_shipped_to_a_pool_of_several_stores() {
    let (home, (there, url)) = (Home::new(), other());
    for home in [&home, &there] {
        home.run(&["pool", "init"]).ok();
        let second = format!("file://{}", home.path("second").display());
        home.run(&["pool", "add-store", &second]).ok();
    }
    let create = ["create", "data", "--size", "16M", "--chunk-size", "256K", "--replicas", "2"];
    home.run(&[&create[..], &["--compress", "none"]].concat()).ok();
    let once = ["replicate", "data", "--to", &url, "--once"];
    for round in 1..4 {
        let server = home.serve(&["data"]);
        let write = format!("write -P {round} 0 {}M", 9 - round);
        assert!(qemu_io(&server.uri, &[&write, "flush"]));
        home.run(&once).ok();
        server.signal("TERM");
        assert_eq!(server.ended().0, 0);
        home.run(&once).ok();
        there.run(&["pool", "rebalance"]).ok();
    }
    // Each of the two copies has damage, of which the other one has none.
    let server = home.serve(&["data"]);
    assert!(qemu_io(&server.uri, &["write -P 7 8M 2M", "flush"]));
    server.signal("TERM");
    assert_eq!(server.ended().0, 0);
    let damaged = [damage(home.store(), 0), damage(home.path("second"), 1)];
    assert_ne!(damaged[0], damaged[1]);
    let shipped = home.run(&[&once[..], &["--json"]].concat()).json();
    assert_eq!(shipped["damaged_chunks"], 0, "{shipped}");
    there.run(&["check", "data", "--data"]).ok();
    there.run(&["promote", "data"]).ok();
    let server = there.serve(&["data"]);
    assert!(qemu_io(&server.uri, &["write -P 4 0 5M", "flush"]));
    server.signal("TERM");
    assert_eq!(server.ended().0, 0);
    let mut expected = vec![0; 16 << 20];
    for (pattern, end) in [(1, 8), (2, 7), (3, 6), (4, 5)] {
        expected[..end << 20].fill(pattern);
    }
    expected[8 << 20..10 << 20].fill(7);
    assert!(image(&there, &["--read-only", "data"]) == expected);
    there.run(&["pool", "rebalance"]).ok();
    there.run(&["check", "data", "--data"]).ok();
    assert!(image(&there, &["data"]) == expected);
}

/// Who ships has no key, and both stores have to be there where both may be needed.
#[test]
fn a_mirrored_and_encrypted_volume_is_shipped_sealed() {
    let (home, (there, url)) = (Home::new(), other());
    home.run(&["pool", "init"]).ok();
    let second = home.path("second");
    home.run(&["pool", "add-store", &format!("file://{}", second.display())]).ok();
    let (key, wrong) = (home.path("key"), home.path("wrong"));
    fs::write(&key, noise(64)).unwrap();
    fs::write(&wrong, noise(65)).unwrap();
    let with = ["--key-file", text(&key)];
    let create = ["create", "data", "--size", "16M", "--replicas", "2", "--encrypt"];
    home.run(&[&create[..], &with].concat()).ok();
    let once = ["replicate", "data", "--to", &url, "--once"];
    for round in 1..3 {
        let server = home.serve(&[&["data"][..], &with].concat());
        let write = format!("write -P {round} 0 {}M", 9 - round);
        assert!(qemu_io(&server.uri, &[&write, "flush"]));
        server.signal("TERM");
        assert_eq!(server.ended().0, 0);
        home.run(&once).ok();
    }
    // What is in that store alone, nobody can know.
    let aside = home.path("aside");
    fs::rename(&second, &aside).unwrap();
    home.run(&once).fails_so(STORE, "may have been written to there alone");
    fs::rename(&aside, &second).unwrap();
    home.run(&once).ok();
    there.run(&[&["check", "data", "--data"][..], &with].concat()).ok();
    there.run(&["promote", "data"]).ok();
    let mut expected = vec![0; 16 << 20];
    for (pattern, end) in [(1, 8), (2, 7)] {
        expected[..end << 20].fill(pattern);
    }
    assert!(image(&there, &[&["data"][..], &with].concat()) == expected);
    there.run(&[&["check", "data", "--data"][..], &with].concat()).ok();
    there.run(&["check", "data", "--key-file", text(&wrong)]).fails(FAILED, "opens no slot");
}

/// ext4 under load in a bucket, shipped meanwhile; the bucket is never looked at again.
#[test]
fn ext4_is_clean_in_a_replica_in_another_bucket() {
    let bucket = format!("objblk-test-{}", uuid::Uuid::new_v4());
    let home = s3_pool::home(&bucket);
    home.run(&["pool", "init", "--create-bucket"]).ok();
    home.run(&["create", "data", "--size", "64M", "--chunk-size", "1M"]).ok();
    let mut far = s3_pool::home(&bucket);
    let url = format!("s3://{bucket}/far");
    far.set("OBJBLK_STORE", &url);
    let (mount, on) = (home.path("mount"), home.path("ext4"));
    fs::create_dir(&mount).unwrap();
    fs::create_dir(&on).unwrap();
    home.run(&["mount", text(&mount)]).ok();
    let disk = mount.join("data.raw");
    tool("mkfs.ext4", &["-q", "-F", text(&disk)]);
    tool("mount", &["-o", "loop", text(&disk), text(&on)]);
    let content = noise(3_000_000);
    let once = ["replicate", "data", "--to", &url, "--once"];
    for file in 0..4 {
        fs::write(on.join(format!("file{file}")), &content).unwrap();
        tool("sync", &["-f", text(&on)]);
        // The last one is not shipped to its end.
        fs::write(on.join("half"), &content[..file * 500_000]).unwrap();
        home.run(&once).ok();
    }
    fs::write(on.join("lost"), &content).unwrap();
    tool("umount", &[text(&on)]);
    until("the loop device is gone", || home.run(&["umount", text(&mount)]).code == 0);
    far.run(&["promote", "data"]).ok();
    let copy = far.path("copy");
    far.run(&["export", "data", text(&copy)]).ok();
    // Its journal is replayed as after a power cut; then nothing may be wrong.
    let replayed = crate::program::attempt("e2fsck", &["-p", text(&copy)]);
    assert!(matches!(replayed.status.code(), Some(0 | 1)), "{replayed:?}");
    tool("e2fsck", &["-f", "-n", text(&copy)]);
    tool("mount", &["-o", "loop,ro", text(&copy), text(&on)]);
    let same = (0..4).all(|file| fs::read(on.join(format!("file{file}"))).unwrap() == content);
    let lost = on.join("lost").exists();
    tool("umount", &[text(&on)]);
    assert!(
        same && !lost,
        "what was flushed before the last round, and nothing that was not shipped"
    );
    far.run(&["check", "data", "--data"]).ok();
}
