//! `objblk check --repair`, and the scrub of an owner.

use crate::program::{CORRUPT, Done, Home, NOT_FOUND, USAGE, noise, qemu_io, tool, until};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

/// A volume of 4 MiB of noise, written by an owner with a cache in `cache`.
fn home() -> Home {
    let home = Home::new();
    home.run(&["create", "data", "--size", "64M", "--chunk-size", "1M"]).ok();
    let cache = home.path("cache");
    let server =
        home.serve(&["data", "--cache-dir", cache.to_str().unwrap(), "--cache-size", "64M"]);
    fs::write(home.path("noise"), noise(4 << 20)).unwrap();
    let source = home.path("noise");
    tool("nbdcopy", &[source.to_str().unwrap(), &server.uri]);
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    home
}

/// Where the data of a sector of `data` is: the file, its name in the pool, the byte.
fn place(home: &Home, at: &str) -> (PathBuf, String, usize) {
    let found = home.run(&["locate", "data", at, "--json"]).json();
    assert_eq!((&found["found"], &found["stored"]["ok"]), (&json!("data"), &json!(true)));
    let object = found["stored"]["object"].as_str().unwrap().to_owned();
    // Of a frame that is compressed, where it begins.
    let stored = &found["stored"];
    let offset = stored["offset"].as_u64().or(stored["frame_offset"].as_u64()).unwrap() as usize;
    (home.store().join(&object), object, offset)
}

/// Flips a bit of the data of a sector. Returns the file, its name in the pool and what it was.
fn damage(home: &Home, at: &str) -> (PathBuf, String, Vec<u8>) {
    let (file, object, byte) = place(home, at);
    let whole = fs::read(&file).unwrap();
    let mut body = whole.clone();
    body[byte] ^= 1;
    fs::write(&file, &body).unwrap();
    (file, object, whole)
}

fn document(done: &Done, code: i32) -> Value {
    assert_eq!(done.code, code, "{done:?}");
    serde_json::from_str(&done.out).expect("one JSON document")
}

#[test]
fn what_a_cache_has_is_repaired_after_a_yes() {
    let home = home();
    let (file, object, whole) = damage(&home, "1M");
    let (gone, missing, _) = place(&home, "3M");
    fs::remove_file(&gone).unwrap();
    let before = home.objects();
    home.run(&["check", "data", "--data", "--repair"])
        .fails(USAGE, "repairing 2 damaged objects needs a confirmation");
    let args = ["check", "data", "--data", "--repair", "--dry-run", "--json"];
    let report = document(&home.run(&args), CORRUPT);
    let planned = report["repairs"][0]["planned"].as_array().unwrap();
    assert!(planned.contains(&json!(object)) && planned.contains(&json!(missing)), "{report}");
    assert_eq!(report["repairs"][0]["objects"], json!([]), "{report}");
    home.run(&["check", "data", "--repair", "--yes", "--cache-dir", "none"])
        .fails(NOT_FOUND, "there is no cache in");
    assert_eq!(home.objects(), before, "nothing is changed");

    // Without the cache nothing is found, and that is told.
    let done = home.run(&["check", "data", "--data", "--repair", "--yes"]);
    assert_eq!(done.code, CORRUPT, "{done:?}");
    assert!(
        done.out.contains(&format!("data: {object}: what it held was found nowhere")),
        "{done:?}"
    );
    assert!(done.out.contains(" cannot be read:\n    sectors "), "{done:?}");

    let cache = home.path("cache");
    let args = ["check", "data", "--data", "--repair", "--yes", "--json", "--cache-dir"];
    let done = home.run(&[&args[..], &[cache.to_str().unwrap()]].concat());
    let report = document(&done, 0);
    let repaired = report["repairs"][0]["objects"].as_array().unwrap();
    let how =
        |name: &str| repaired.iter().find(|one| one["object"] == name).unwrap()["how"].clone();
    assert_eq!((how(&object), how(&missing)), (json!("put-back"), json!("moved")), "{report}");
    assert_eq!((&report["clean"], &report["damages"]), (&json!(true), &json!([])));
    assert!(fs::read(&file).unwrap() == whole);
    home.run(&["export", "data", home.path("out").to_str().unwrap()]).ok();
    let out = fs::read(home.path("out")).unwrap();
    assert!(out[..4 << 20] == fs::read(home.path("noise")).unwrap());
    // There is nothing to ask about any more.
    home.run(&["check", "--data", "--repair"]).ok();
}

#[test]
fn an_owner_repairs_from_its_memory_in_use() {
    let home = home();
    let server = home.serve(&["data"]);
    assert!(qemu_io(&server.uri, &["write -P 5 8M 1M", "flush"]));
    until("it is stored", || {
        let found = home.run(&["locate", "data", "8M", "--json"]).json();
        found["stored"]["ok"] == json!(true)
    });
    let (file, object, whole) = damage(&home, "8M");
    let (_, lost, _) = damage(&home, "1M");
    let done = home.run(&["check", "data", "--data", "--repair", "--yes", "--json"]);
    let report = document(&done, CORRUPT);
    let repaired = report["repairs"][0]["objects"].as_array().unwrap();
    let how =
        |name: &str| repaired.iter().find(|one| one["object"] == name).unwrap()["how"].clone();
    assert_eq!((how(&object), how(&lost)), (json!("put-back"), json!("lost")), "{report}");
    assert_eq!(report["volumes"][0]["affected"][0]["sectors"], 128, "{report}");
    assert!(fs::read(&file).unwrap() == whole);
    // What is lost is an error until it is written anew.
    assert!(!qemu_io(&server.uri, &["read 1M 64K"]));
    assert!(qemu_io(&server.uri, &["read -P 5 8M 1M", "write -P 6 960K 192K", "flush"]));
    assert!(qemu_io(&server.uri, &["read -P 6 960K 192K"]));
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    // What is damaged still is not needed any more: the rest of its chunk is moved, and it goes.
    let done = home.run(&["check", "data", "--data"]);
    assert!(done.code == CORRUPT && done.err.contains("no data is lost by it"), "{done:?}");
    home.run(&["check", "data", "--data", "--repair", "--yes"]).ok();
    // On another host nobody can repair what is in use here.
    let server = home.serve(&["data"]);
    damage(&home, "2M");
    let done = home.other_host().run(&["check", "data", "--data", "--repair", "--yes"]);
    assert_eq!(done.code, CORRUPT, "{done:?}");
    assert!(
        done.out.contains("data: not repaired: ") && done.out.contains("its owner"),
        "{done:?}"
    );
    server.kill();
}

#[test]
fn a_scrub_tells_and_is_remembered() {
    let home = home();
    damage(&home, "1M");
    for (args, words) in [
        (&["--scrub", "1K"][..], "a scrub reads at least 64 KiB a second"),
        (&["--scrub", "x"], "--scrub"),
        (&["--scrub", "8M", "--read-only"], "a volume that is only read is not scrubbed"),
        (&["--scrub", "8M", "--scrub-every", "x"], "--scrub-every"),
    ] {
        home.run(&[&["serve", "nbd", "data"], args].concat()).refuses(USAGE, words);
    }
    let info = home.run(&["info", "data"]).ok();
    assert!(info.contains("never complete"), "{info}");
    let server = home.serve(&["data", "--scrub", "1G"]);
    let last = || home.run(&["status", "data", "--json"]).json()["scrub"]["last"].clone();
    until("a pass ends", || last()["damaged"] == json!(1));
    let passed = last();
    assert_eq!((&passed["chunks"], &passed["mended"]), (&json!(4), &json!(0)), "{passed}");
    assert!(passed["bytes"].as_u64().unwrap() > 4 << 20, "{passed}");
    let text = home.run(&["status", "data"]).ok();
    assert!(text.contains("1 objects damaged, 1 still are"), "{text}");
    home.run(&["detach", "data"]).ok();
    server.ended();
    assert_eq!(home.run(&["info", "data", "--json"]).json()["scrub"], passed);
    let text = home.run(&["check", "data"]).ok();
    assert!(text.contains("left 1 objects damaged: look with --data"), "{text}");
    let key = home.objects().into_keys().find(|path| path.to_str().unwrap().contains("/scrubs/"));
    let key = key.unwrap();
    let key = key.strip_prefix(home.store()).unwrap().to_str().unwrap();
    let shown = home.run(&["inspect", key, "--json"]).json();
    assert_eq!((&shown["kind"], &shown["contents"]["last"]), (&json!("scrub"), &passed), "{shown}");
}

#[test]
fn flags_of_a_repair_without_one_are_refused() {
    let home = home();
    for flag in ["--yes", "--dry-run"] {
        home.run(&["check", "data", flag]).refuses(USAGE, "--repair");
    }
    home.run(&["check", "data", "--cache-dir", "x"]).refuses(USAGE, "--repair");
}

/// A sector is found, and every object says what it is: of a clone, of an encrypted volume and its clone, and in
/// a pool of several stores.
#[test]
fn sectors_of_clones_sealed_volumes_and_several_stores_are_located() {
    let home = Home::new();
    let key = home.path("key");
    fs::write(&key, noise(64)).unwrap();
    let key = ["--key-file", key.to_str().unwrap()];
    let with = |args: &[&str]| home.run(&[args, &key[..]].concat());
    let run = |args: &[&str]| match args.iter().any(|arg| arg.contains("sealed")) {
        true => with(args),
        false => home.run(args),
    };
    home.run(&["create", "plain", "--size", "16M", "--chunk-size", "1M"]).ok();
    with(&["create", "sealed", "--size", "16M", "--chunk-size", "1M", "--encrypt"]).ok();
    let mut ids = Vec::new();
    for name in ["plain", "sealed"] {
        let sealed = if name == "sealed" { &key[..] } else { &[] };
        let server = home.serve(&[&[name], sealed].concat());
        assert!(qemu_io(&server.uri, &["write -P 3 1M 2M", "flush"]));
        home.run(&["detach", name]).ok();
        assert_eq!(server.ended().0, 0);
        run(&["snapshot", "create", &format!("{name}@a")]).ok();
        run(&["clone", &format!("{name}@a"), &format!("{name}-clone")]).ok();
        ids.push(run(&["info", name, "--json"]).json()["id"].clone());
    }
    let id_of =
        |name: &str| run(&["info", name, "--json"]).json()["id"].as_str().unwrap().to_owned();
    let sealed = [id_of("sealed"), id_of("sealed-clone")];
    let inspect = |object: &str| match sealed.iter().any(|id| object.contains(id.as_str())) {
        true => with(&["inspect", object, "--json"]).json(),
        false => home.run(&["inspect", object, "--json"]).json(),
    };
    let all_are_located = || {
        for (name, id) in ["plain", "sealed"].iter().zip(&ids) {
            for of in [name.to_string(), format!("{name}@a"), format!("{name}-clone")] {
                let found = run(&["locate", &of, "2M", "--json"]).json();
                assert_eq!(
                    (&found["found"], &found["stored"]["ok"]),
                    (&json!("data"), &json!(true))
                );
                // What a clone shares is its origin's.
                assert_eq!(&found["stored"]["volume"], id, "{found}");
                for item in ["map_page", "leaf"] {
                    let object = found[item]["object"].as_str().unwrap();
                    assert_eq!(inspect(object)["kind"], "map object");
                }
                let object = found["stored"]["object"].as_str().unwrap();
                assert_eq!(inspect(object)["kind"], "chunk");
                let store = found["store"].as_str().unwrap().strip_prefix("file://").unwrap();
                let there = PathBuf::from(store).join(found["name_there"].as_str().unwrap());
                assert!(there.is_file(), "{found}");
                assert!(run(&["locate", &of, "8M"]).ok().contains("it reads as zeros"));
            }
        }
        for path in home.objects().into_keys() {
            let key = path.strip_prefix(home.store()).unwrap().to_str().unwrap().to_owned();
            // Parts of several stores are named by the pool, not by their files.
            if key.starts_with("at/") || key == "objblk-store.json" {
                continue;
            }
            let shown = inspect(&key);
            assert!(shown["kind"] != "unknown" && shown["damage"].is_null(), "{key}: {shown}");
        }
    };
    all_are_located();
    let locked = home.run(&["locate", "sealed", "2M"]);
    assert!(
        locked.code != 0 && locked.err.contains("the key of its volume was not given"),
        "{locked:?}"
    );
    let other = format!("file://{}", home.path("second").display());
    home.run(&["pool", "add-store", &other]).ok();
    all_are_located();
    with(&["check", "--data"]).ok();
}
