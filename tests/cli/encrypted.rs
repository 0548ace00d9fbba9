//! Encrypted volumes: every verb with the key, a clear refusal without, and nothing of them anywhere on disk.

use crate::program::{BUSY, CORRUPT, Home, NOT_FOUND, USAGE, noise, qemu_io};
use crate::s3_pool;
use crate::script::{command, run};
use objblk::format::features::Features;
use objblk::format::key_slots::KeySlots;
use objblk::format::pool::encode_json;
use objblk::format::volume::VolumeObject;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Exit code of what did not work.
const FAILED: i32 = 1;
const SECRET: &[u8] = b"what nobody else may read";

/// A home with a key file and another one.
fn home() -> (Home, String, String) {
    let home = Home::new();
    let keys = [("right.key", 64), ("wrong.key", 72)].map(|(name, len)| {
        let path = home.path(name);
        fs::write(&path, noise(len)).unwrap();
        path.to_str().unwrap().to_owned()
    });
    let [right, wrong] = keys;
    (home, right, wrong)
}

fn image(home: &Home) -> String {
    let mut image: Vec<u8> = SECRET.iter().copied().cycle().take(3 << 20).collect();
    image.extend(noise(1 << 20));
    let path = home.path("image");
    fs::write(&path, image).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Every file below, with what it holds.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let Ok(entries) = fs::read_dir(dir) else { return found };
    for entry in entries {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.append(&mut files(&path)),
            // A socket cannot be read.
            false => drop(fs::read(&path).map(|body| found.insert(path, body))),
        }
    }
    found
}

/// Nothing of what is in the volume, of its snapshots' names or of its key is in these folders.
fn tells_nothing(home: &Home, key: &str) {
    nothing_in(&["store", "run"].map(|folder| home.path(folder)), key);
}

fn nothing_in(folders: &[PathBuf], key: &str) {
    let key = fs::read(key).unwrap();
    for folder in folders {
        for (path, body) in files(folder) {
            for plain in [SECRET, b"payday", &key[..16]] {
                let found = body.windows(plain.len()).any(|bytes| bytes == plain);
                assert!(!found, "{} holds {plain:?}", path.display());
            }
        }
    }
}

#[test]
fn every_verb_works_with_the_key_and_nothing_is_on_disk() {
    let (home, key, _) = home();
    let from = image(&home);
    let with = |args: &[&str]| home.run(&[args, &["--key-file", &key]].concat());
    with(&["import", &from, "data", "--encrypt"]).ok();
    let server = home.serve(&["data", "--key-file", &key]);
    assert!(qemu_io(&server.uri, &["write -P 7 1M 64k", "flush", "read -P 7 1M 64k"]));
    tells_nothing(&home, &key);
    home.run(&["snapshot", "create", "data@payday", "--key-file", &key]).ok();
    tells_nothing(&home, &key);
    // Killed: the next one takes over, and has what was flushed.
    server.kill();
    let server = home.serve(&["data", "--key-file", &key]);
    assert!(qemu_io(
        &server.uri,
        &["read -P 7 1M 64k", "write -P 9 2M 64k", "discard 3M 64k", "flush"]
    ));
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    with(&["clone", "data@payday", "copy"]).ok();
    with(&["flatten", "copy"]).ok();
    with(&["gc", "data", "--full"]).ok();
    with(&["resize", "data", "--size", "8M"]).ok();
    with(&["retain", "data", "1h"]).ok();
    with(&["snapshot", "list", "data"]).ok();
    for args in [&["check", "--data"][..], &["check", "data", "--data"], &["inspect", "data"]] {
        with(args).ok();
    }
    let (out, stream) = (home.path("out"), home.path("stream"));
    let (out, stream) = (out.to_str().unwrap(), stream.to_str().unwrap());
    let mut expected = fs::read(&from).unwrap();
    expected[1 << 20..][..64 << 10].fill(7);
    for name in ["data@payday", "copy"] {
        with(&["export", name, out, "--force"]).ok();
        assert!(fs::read(out).unwrap() == expected, "{name}");
    }
    with(&["export-diff", "data@payday", stream]).ok();
    home.run(&["import-diff", stream, "plain"]).ok();
    home.run(&["export", "plain", out, "--force"]).ok();
    assert!(fs::read(out).unwrap() == expected, "a stream is plain, and so is what it makes");
    home.run(&["delete", "plain", "--now", "--force", "--yes"]).ok();
    tells_nothing(&home, &key);
    let info = with(&["info", "data", "--json"]).json();
    assert_eq!((&info["encryption"], &info["state"]), (&"aes-256-gcm".into(), &"free".into()));
    with(&["bench", "data", "--time", "1s", "--io-type", "write", "--yes"]).ok();
    with(&["snapshot", "rollback", "data@payday", "--yes"]).ok();
    with(&["delete", "copy", "--yes"]).ok();
    with(&["trash", "restore", "copy"]).ok();
}

/// Whoever can write to the bucket and has no key cannot have the volume used as another one.
#[test]
fn a_description_that_was_changed_is_refused() {
    let (home, key, _) = home();
    let from = image(&home);
    let with = |args: &[&str]| home.run(&[args, &["--key-file", &key]].concat());
    with(&["import", &from, "data", "--encrypt"]).ok();
    let id = with(&["info", "data", "--json"]).json()["id"].as_str().unwrap().to_owned();
    let file = home.store().join("volumes").join(&id).join("volume.json");
    let whole = fs::read(&file).unwrap();
    let made = VolumeObject::parse(&whole).unwrap();
    let incompat = made.features.incompat & !Features::SIGNED;
    let unsigned = Features { incompat, ..made.features };
    let changed = [
        VolumeObject { chunk_size: made.chunk_size * 2, ..made.clone() },
        VolumeObject { size: made.size * 2, ..made.clone() },
        VolumeObject { features: unsigned, mac: None, ..made.clone() },
    ];
    let before = files(&home.store()).into_keys().collect::<Vec<_>>();
    for changed in changed {
        fs::write(&file, encode_json(&changed)).unwrap();
        for args in [
            &["check", "data"][..],
            &["export", "data", "/dev/null", "--force"],
            &["snapshot", "create", "data@s"],
        ] {
            with(args).fails(CORRUPT, "changed by somebody who has not the volume's key");
        }
    }
    fs::write(&file, &whole).unwrap();
    // As those of volumes that are not signed.
    let set = home.store().join("volumes").join(&id).join("keys");
    let (slots, body) = files(&set).pop_first().unwrap();
    let old = KeySlots { version: 1, ..KeySlots::parse(&body).unwrap() };
    fs::write(&slots, encode_json(&old)).unwrap();
    with(&["check", "data"]).fails(FAILED, "opens no slot of the key");
    fs::write(&slots, &body).unwrap();
    assert_eq!(files(&home.store()).into_keys().collect::<Vec<_>>(), before);
    with(&["check", "data", "--data"]).ok();
}

/// What only the journal of a killed owner has, and what is in a cache: sealed, and had again by the key alone.
#[test]
fn journal_and_cache_of_an_encrypted_volume_are_sealed() {
    let (home, key, wrong) = home();
    let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (journals, cache) = (disk.path().join("journals"), disk.path().join("cache"));
    let (journal, cached) = (journals.to_str().unwrap(), cache.to_str().unwrap());
    let from = image(&home);
    home.run(&["import", &from, "data", "--encrypt", "--key-file", &key]).ok();
    let local = ["--durability", "local", "--journal", journal, "--journal-size", "16M"];
    let beside = ["--cache-dir", cached, "--cache-size", "64M"];
    let all = [&["data"], &local[..], &beside].concat();
    let served = [&all[..], &["--key-file", &key]].concat();
    let folders = [journals.clone(), cache.clone(), home.path("store"), home.path("run")];
    let server = home.serve(&served);
    let piece = home.path("piece");
    fs::write(&piece, &fs::read(&from).unwrap()[..64 << 10]).unwrap();
    let write = format!("write -s {} 3M 64k", piece.display());
    assert!(qemu_io(&server.uri, &["read 0 3M", &write, "flush"]));
    server.kill();
    nothing_in(&folders, &key);
    let sizes =
        [&journals, &cache].map(|folder| files(folder).values().map(Vec::len).sum::<usize>());
    assert!(sizes.iter().all(|size| *size > 8 << 20), "{sizes:?}");
    let list = home.run(&["journal", "list", "--journal", journal, "--json"]).json();
    assert_eq!((&list[0]["encrypted"], &list[0]["trouble"]), (&true.into(), &().into()), "{list}");
    let before = files(&journals);
    let keyed = |key| [&["serve", "nbd"], &all[..], &["--key-file", key]].concat();
    home.run(&keyed(&wrong)).refuses(FAILED, "opens no slot");
    home.run(&[&["serve", "nbd"], &all[..]].concat()).fails(USAGE, "--key-file");
    let journal_free: Vec<&str> = [&["serve", "nbd", "data"], &["--key-file", &*key][..]].concat();
    home.run(&journal_free).fails(BUSY, "which may hold writes that the store lacks");
    assert!(files(&journals) == before, "nobody without the key touches it");
    let server = home.serve(&served);
    let export = home.path("export");
    assert!(qemu_io(&server.uri, &["read 0 3M"]));
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    nothing_in(&folders, &key);
    home.run(&["export", "data", export.to_str().unwrap(), "--key-file", &key]).ok();
    let mut expected = fs::read(&from).unwrap();
    expected[3 << 20..][..64 << 10].copy_from_slice(&fs::read(&piece).unwrap());
    assert!(fs::read(&export).unwrap() == expected);
}

#[test]
fn a_wrong_key_or_none_is_refused_and_touches_nothing() {
    let (home, key, wrong) = home();
    home.run(&["create", "plain", "--size", "8M"]).ok();
    home.run(&["create", "data", "--size", "8M", "--encrypt", "--key-file", &key]).ok();
    let server = home.serve(&["data", "--key-file", &key]);
    assert!(qemu_io(&server.uri, &["write -P 7 1M 64k", "flush"]));
    home.run(&["detach", "data"]).ok();
    server.ended();
    let before = files(&home.store());
    let verbs: [&[&str]; 7] = [
        &["serve", "nbd", "data"],
        &["attach", "data", "--foreground"],
        &["snapshot", "create", "data@a"],
        &["gc", "data"],
        &["resize", "data", "--size", "16M"],
        &["export", "data", "-"],
        &["check", "data"],
    ];
    for verb in verbs {
        home.run(&[verb, &["--key-file", &wrong]].concat()).refuses(FAILED, "opens no slot");
        home.run(verb).fails(USAGE, "--key-file");
        assert!(files(&home.store()) == before, "{verb:?} touched something");
    }
    let list = home.run(&["list", "--json"]).json();
    assert_eq!((&list[0]["name"], &list[0]["state"]), (&"data".into(), &"locked".into()));
    assert_eq!(list[1]["state"], "free");
    assert_eq!(home.run(&["info", "data", "--json"]).json()["encryption"], "aes-256-gcm");
    // Of a pool that has it, all else is examined.
    let all = home.run(&["check"]);
    assert!(all.code == BUSY && all.err.contains("data was not examined"), "{all:?}");
    // Whoever reads the objects by the format alone.
    let store = home.store();
    let read = run(command(&["sha256", store.to_str().unwrap(), "data"]));
    assert!(read.err.contains("is encrypted, which this reader does not know"), "{read:?}");
    for mistake in [
        &["create", "x", "--size", "8M", "--key-file", &key][..],
        &["create", "x", "--size", "8M", "--encrypt"],
        &["create", "x", "--size", "8M", "--encrypt", "--key-file", "/nowhere"],
    ] {
        home.run(mistake).fails(USAGE, "");
    }
    let clear = ["serve", "nbd", "plain", "--key-file", &key];
    home.run(&clear).refuses(USAGE, "volume plain is not encrypted");
    // A key that is lost does not keep what nobody can read.
    home.run(&["delete", "data", "--yes"]).fails(USAGE, "--key-file");
    home.run(&["delete", "data", "--yes", "--force"]).ok();
}

#[test]
fn slots_of_all_kinds() {
    let (home, key, other) = home();
    let pass = home.path("pass");
    fs::write(&pass, "correct horse battery\n").unwrap();
    let pass = pass.to_str().unwrap();
    let by_file = ["--key-file", key.as_str()];
    let by_pass = ["--passphrase-file", pass];
    let by_command = ["--key-command", &format!("cat {other}")];
    let run = |args: &[&[&str]]| home.run(&args.concat());
    run(&[&["create", "data", "--size", "8M", "--encrypt"], &by_pass]).ok();
    let slots = home.run(&["key", "list", "data", "--json"]).json();
    assert_eq!((slots[0]["number"].as_u64(), slots[1].is_null()), (Some(0), true), "{slots}");
    assert_eq!(slots[0]["opened_by"], "passphrase");
    let add = ["key", "add", "data", "--new-key-file", &key, "--label", "of the host"];
    run(&[&add, &by_file]).refuses(FAILED, "opens no slot");
    run(&[&add, &by_pass]).ok();
    run(&[&["check", "data"], &by_file]).ok();
    run(&[&["check", "data"], &by_command]).refuses(FAILED, "opens no slot");
    let to_command = ["key", "change", "data", "--new-key-command", by_command[1]];
    run(&[&to_command, &by_file]).ok();
    run(&[&["check", "data"], &by_command]).ok();
    run(&[&["check", "data"], &by_file]).refuses(FAILED, "opens no slot");
    // Who removes a slot has to open another one.
    let remove = |slot| ["key", "remove", "data", slot, "--yes"];
    run(&[&remove("0"), &by_pass]).fails(FAILED, "nothing is removed");
    run(&[&remove("5"), &by_pass]).refuses(NOT_FOUND, "has no slot 5");
    run(&[&remove("0"), &by_command]).ok();
    run(&[&remove("1"), &by_command]).refuses(USAGE, "the last one");
    run(&[&["check", "data"], &by_pass]).refuses(FAILED, "opens no slot");
    run(&[&["check", "data", "--data"], &by_command]).ok();
    home.run(&["create", "plain", "--size", "8M"]).ok();
    home.run(&["key", "list", "plain"]).refuses(USAGE, "not encrypted");
    // Nobody is shown a key, however much is logged.
    let debug = run(&[&["info", "data", "-vvv"], &by_command]);
    assert!(!debug.err.contains("correct horse"), "{debug:?}");
    debug.ok();
}

#[test]
fn an_encrypted_volume_in_a_bucket() {
    let home = s3_pool::home(&format!("objblk-test-{}", uuid::Uuid::new_v4()));
    home.run(&["pool", "init", "--create-bucket"]).ok();
    let key = home.path("key");
    fs::write(&key, noise(32)).unwrap();
    let key = key.to_str().unwrap();
    home.run(&["create", "data", "--size", "32M", "--encrypt", "--key-file", key]).ok();
    let server = home.serve(&["data", "--key-file", key]);
    assert!(qemu_io(&server.uri, &["write -P 7 0 16M", "write -P 9 4M 1M", "flush"]));
    server.kill();
    let server = home.serve(&["data", "--key-file", key]);
    assert!(qemu_io(&server.uri, &["read -P 7 0 4M", "read -P 9 4M 1M", "read -P 7 5M 11M"]));
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    home.run(&["check", "--data", "--key-file", key]).ok();
    home.run(&["info", "data", "--key-file", key]).ok();
}
