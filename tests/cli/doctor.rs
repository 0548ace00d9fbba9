//! `objblk check`, `inspect` and `locate`.

use crate::program::{CORRUPT, Done, Home, NOT_FOUND, USAGE, noise, qemu_io, tool, until};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

/// A volume that was written to, and its snapshot `a`.
fn home() -> Home {
    let home = Home::new();
    home.run(&["create", "data", "--size", "64M", "--chunk-size", "1M"]).ok();
    let server = home.serve(&["data"]);
    fs::write(home.path("noise"), noise(4 << 20)).unwrap();
    let source = home.path("noise");
    tool("nbdcopy", &[source.to_str().unwrap(), &server.uri]);
    home.run(&["snapshot", "create", "data@a"]).ok();
    assert!(qemu_io(&server.uri, &["write -P 7 0 64K", "flush"]));
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    home
}

fn failed(done: &Done) -> Value {
    assert_eq!(done.code, CORRUPT, "{done:?}");
    serde_json::from_str(&done.out).expect("one JSON document")
}

/// Where the data of a sector of `name` is: the file, its name in the pool, the byte.
fn place(home: &Home, name: &str, at: &str) -> (PathBuf, String, usize) {
    let found = home.run(&["locate", name, at, "--json"]).json();
    assert_eq!((&found["found"], &found["stored"]["ok"]), (&json!("data"), &json!(true)));
    let object = found["stored"]["object"].as_str().unwrap().to_owned();
    let offset = found["stored"]["offset"].as_u64().unwrap() as usize;
    (home.store().join(&object), object, offset)
}

#[test]
fn what_is_whole_is_found_whole_attached_or_not() {
    let home = home();
    let text = home.run(&["check"]).ok();
    assert!(text.starts_with("data: whole, but for data that was not read (--data); "), "{text}");
    let all = home.run(&["check", "--all", "--data", "--json"]).json();
    assert_eq!(
        (&all["clean"], &all["data"], &all["damages"]),
        (&json!(true), &json!(true), &json!([]))
    );
    let volume = &all["volumes"][0];
    assert_eq!((&volume["name"], &volume["snapshots"]), (&json!("data"), &json!(1)));
    assert_eq!(volume["space"]["orphans"]["objects"], 0, "{all}");
    assert!(all["read_bytes"].as_u64().unwrap() > 4 << 20, "{all}");

    let server = home.serve(&["data"]);
    assert!(qemu_io(&server.uri, &["write -P 9 1M 1M", "flush"]));
    // The new owner makes a checkpoint of its own, soon after it came.
    let mut before = home.objects();
    until("the owner is done", || {
        thread::sleep(Duration::from_millis(300));
        let now = home.objects();
        std::mem::replace(&mut before, now.clone()) == now
    });
    let text = home.other_host().run(&["check", "data", "--data", "--rate", "1G"]).ok();
    assert!(text.starts_with("data: every byte is whole; "), "{text}");
    let found = home.run(&["locate", "data", "1M"]).ok();
    assert!(found.contains("said by") && found.contains("the volume is in use"), "{found}");
    assert_eq!(home.objects(), before, "nothing is changed");
    let done = home.run(&["check", "data", "--progress"]);
    assert_eq!(done.code, 0, "{done:?}");
    home.run(&["detach", "data"]).ok();
    server.ended();
}

#[test]
fn damage_is_told_with_what_it_reaches() {
    let home = home();
    home.run(&["clone", "data@a", "vm"]).ok();
    let (file, object, at) = place(&home, "data", "1M");
    let whole = fs::read(&file).unwrap();

    // A byte of data: only reading it tells, and it is as lost to whoever shares it.
    let mut body = whole.clone();
    body[at] ^= 1;
    fs::write(&file, &body).unwrap();
    home.run(&["check", "data"]).ok();
    let done = home.run(&["check", "data", "--data", "--json"]);
    assert!(
        done.err.contains("objblk: 1 damage found, data@a and 2 more cannot be read"),
        "{done:?}"
    );
    let report = failed(&done);
    let volume = &report["volumes"][0];
    let damage = &volume["damages"][0];
    assert_eq!((&damage["object"], &damage["kind"]), (&json!(object), &json!("damaged")));
    let runs = volume["affected"].as_array().unwrap();
    let names: Vec<&Value> = runs.iter().map(|affected| &affected["name"]).collect();
    assert_eq!(names, ["data@a", "data", "vm"]);
    for affected in runs {
        assert_eq!(affected["sectors"], 128, "{report}");
        let run = &affected["runs"][0];
        let (first, count) = (run["sector"].as_u64().unwrap(), run["count"].as_u64().unwrap());
        assert!((first..first + count).contains(&2048), "{report}");
    }
    let report = failed(&home.run(&["check", "--data", "--json"]));
    assert_eq!(report["clean"], false);
    let harmed = |v: &&Value| v["affected"].as_array().is_some_and(|all| !all.is_empty());
    assert_eq!(report["volumes"].as_array().unwrap().iter().filter(harmed).count(), 2, "{report}");
    let done = home.run(&["check", "data", "--data"]);
    assert!(done.out.contains("data@a: 64 KiB cannot be read:\n    sectors "), "{done:?}");
    let done = home.run(&["locate", "data", "2048", "--json"]);
    assert_eq!(failed(&done)["found"], "damaged");
    let done = home.run(&["inspect", &object, "--json"]);
    assert!(done.err.contains("is damaged: chunk fails its `frame payload`"), "{done:?}");
    assert_eq!(failed(&done)["kind"], "chunk");

    // Shorter, and gone: that is seen without reading data.
    fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    let report = failed(&home.run(&["check", "data", "--json"]));
    assert_eq!(report["volumes"][0]["damages"][0]["kind"], "size", "{report}");
    fs::remove_file(&file).unwrap();
    let report = failed(&home.run(&["check", "data", "--json"]));
    assert_eq!(report["volumes"][0]["damages"][0]["kind"], "missing", "{report}");
    fs::write(&file, &whole).unwrap();
    home.run(&["check", "--data"]).ok();

    // What a volume cannot be attached without.
    let inspected = home.run(&["inspect", "data", "--json"]).json();
    let newest = inspected.as_array().unwrap().last().unwrap()["object"].as_str().unwrap();
    let file = home.store().join(newest);
    let mut body = fs::read(&file).unwrap();
    body[50] ^= 1;
    fs::write(&file, &body).unwrap();
    let done = home.run(&["check", "data"]);
    assert!(done.code == CORRUPT && done.out.contains("  data cannot be attached\n"), "{done:?}");
    let report = failed(&home.run(&["check", "data", "--json"]));
    let affected = report["volumes"][0]["affected"].as_array().unwrap();
    assert!(affected.iter().all(|a| a["whole"] == true && a["sectors"] == 131_072), "{report}");
    assert_eq!(report["volumes"][0]["damages"][0]["object"], newest, "{report}");
    home.run(&["locate", "data", "0"]).fails(CORRUPT, "cannot look into data");
}

#[test]
fn objects_are_shown_decoded_and_mistakes_refused() {
    let home = home();
    let (_, object, _) = place(&home, "data@a", "0");
    let shown = home.run(&["inspect", &object]).ok();
    assert!(shown.contains(": chunk, ") && shown.contains("record data, sector 0"), "{shown}");
    let shown = home.run(&["inspect", "data@a"]).ok();
    assert!(shown.contains(": snapshot, ") && shown.contains("map_root (1)"), "{shown}");
    let shown = home.run(&["inspect", "data"]).ok();
    for kind in [": volume, ", ": epoch, ", ": checkpoint, ", "closed  true"] {
        assert!(shown.contains(kind), "{kind}: {shown}");
    }
    for (path, _) in home.objects() {
        let key = path.strip_prefix(home.store()).unwrap().to_str().unwrap().to_owned();
        let shown = home.run(&["inspect", &key, "--json"]).json();
        assert!(shown["kind"] != "unknown" && shown["damage"].is_null(), "{key}: {shown}");
    }
    let url = format!("file://{}/objblk.json", home.store().display());
    assert!(home.run(&["inspect", &url]).ok().starts_with("objblk.json: pool, "));
    let hole = home.run(&["locate", "data", "63M"]).ok();
    assert!(hole.contains("nowhere: it reads as zeros"), "{hole}");
    assert!(home.run(&["locate", "data", "0"]).ok().contains("sectors 0..128"));
    assert!(home.run(&["locate", "data@a", "0"]).ok().contains("sectors 0.."));
    for (args, code, words) in [
        (&["check", "none"][..], NOT_FOUND, "there is no volume called none"),
        (&["check", "data", "--all"], USAGE, "--all"),
        (&["check", "data@a"], USAGE, "name the volume alone: data"),
        (&["check", "data", "--rate", "0"], USAGE, "--rate 0 leaves nothing to read"),
        (&["check", "data", "--rate", "x"], USAGE, "--rate"),
        (&["inspect", "names/none"], NOT_FOUND, "there is no object"),
        (&["inspect", "no//name"], USAGE, "is no name of an object"),
        (&["inspect", "none"], NOT_FOUND, "there is no volume called none"),
        (&["inspect", "data@none"], NOT_FOUND, "there is no snapshot none"),
        (&["locate", "data", "64M"], USAGE, "sector 131072 is beyond the end of data"),
        (&["locate", "data", "x"], USAGE, "the position \"x\" is no size"),
        (&["locate", "data@none", "0"], NOT_FOUND, "there is no snapshot none"),
    ] {
        home.run(args).refuses(code, words);
    }
}
