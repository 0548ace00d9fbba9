//! `objblk clone`, `children`, `flatten` and `snapshot rollback`.

use crate::program::{BUSY, EXISTS, Home, NOT_FOUND, USAGE, qemu_io, qemu_io_reading};
use serde_json::json;

/// A volume that holds 1 in its first 8M and was snapshotted as `golden`.
fn home() -> Home {
    let home = Home::new();
    home.run(&["create", "data", "--size", "64M"]).ok();
    with(&home, "data", &["write -P 1 0 8M", "flush"]);
    home.run(&["snapshot", "create", "data@golden"]).ok();
    home
}

/// Serves a volume, does this with it, and detaches it.
fn with(home: &Home, name: &str, commands: &[&str]) {
    let server = home.serve(&[name]);
    assert!(qemu_io(&server.uri, commands), "{name}: {commands:?}");
    home.run(&["detach", name]).ok();
    assert_eq!(server.ended().0, 0);
}

fn stored(home: &Home) -> u64 {
    home.objects().values().sum()
}

#[test]
fn a_clone_shares_until_it_is_flattened() {
    let home = home();
    let before = stored(&home);
    assert_eq!(home.run(&["clone", "data@golden", "vm1"]).ok().trim(), "vm1");
    home.run(&["clone", "data@golden", "vm2"]).ok();
    assert!(stored(&home) < before + 4096, "a clone takes {} bytes", stored(&home) - before);
    with(&home, "data", &["write -P 9 0 8M", "flush"]);
    with(&home, "vm1", &["read -P 1 0 8M", "discard 0 1M", "write -P 2 1M 1M", "flush"]);
    with(&home, "vm1", &["read -P 0 0 1M", "read -P 2 1M 1M", "read -P 1 2M 6M"]);
    with(&home, "vm2", &["read -P 1 0 8M", "read -P 0 8M 56M"]);

    // A clone of a clone, and what needs what.
    home.run(&["snapshot", "create", "vm1@a"]).ok();
    home.run(&["clone", "vm1@a", "vm3"]).ok();
    let info = home.run(&["info", "vm3", "--json"]).json();
    assert_eq!((&info["parent"], &info["snapshots"]), (&json!("vm1@a"), &json!(0)));
    let list = home.run(&["list", "--json"]).json();
    let parents: Vec<_> = list.as_array().unwrap().iter().map(|v| v["parent"].clone()).collect();
    let golden = json!("data@golden");
    assert_eq!(parents, [json!(null), golden.clone(), golden, json!("vm1@a")]);
    let children = home.run(&["children", "data", "--json"]).json();
    let names: Vec<_> = children.as_array().unwrap().iter().map(|c| c["name"].clone()).collect();
    assert_eq!(names, ["vm1", "vm2"]);
    assert!(home.run(&["children", "vm1@a"]).ok().contains("vm1@a     vm3"));
    let refused = ["snapshot", "delete", "data@golden", "--yes"];
    home.run(&refused).refuses(BUSY, "clones need the snapshot golden");
    let refused = ["delete", "data", "--now", "--yes", "--force"];
    home.run(&refused).refuses(BUSY, "clones need volume data: vm1, vm2; delete or flatten");
    with(&home, "data", &["read -P 9 0 8M"]);

    // Snapshots of a clone may need the origin when the clone does not.
    let flat = home.run(&["flatten", "vm1", "--json"]).json();
    assert_eq!((&flat["done"], &flat["needed_by_snapshots"]), (&json!(false), &json!(["a"])));
    assert_eq!(flat["moved_bytes"], 6 << 20);
    let server = home.serve(&["vm3"]);
    let flat = home.run(&["flatten", "vm3", "--json"]).json();
    assert_eq!((&flat["done"], &flat["moved_bytes"]), (&json!(true), &json!(7 << 20)));
    home.run(&["detach", "vm3"]).ok();
    server.ended();
    home.run(&["snapshot", "delete", "vm1@a", "--yes"]).ok();
    assert!(home.run(&["flatten", "vm1"]).ok().contains("needs its origin no more"));
    home.run(&["delete", "vm2", "--yes"]).ok();
    let children = home.run(&["children", "data", "--json"]).json();
    assert_eq!((&children[0]["name"], &children[0]["trash"]), (&json!(null), &json!(true)));
    assert!(home.run(&["children", "data"]).ok().contains("vm2 in the trash"));
    home.run(&["snapshot", "delete", "data@golden", "--yes"]).refuses(BUSY, "clones need");
    home.run(&["trash", "empty", "vm2", "--yes"]).ok();
    home.run(&["snapshot", "delete", "data@golden", "--yes"]).ok();
    home.run(&["delete", "data", "--yes"]).ok();
    for name in ["vm1", "vm3"] {
        with(&home, name, &["read -P 0 0 1M", "read -P 2 1M 1M", "read -P 1 2M 6M"]);
    }
    assert!(home.run_files().is_empty(), "{:?}", home.run_files());
}

#[test]
fn a_rollback_can_be_undone() {
    let home = home();
    with(&home, "data", &["write -P 2 4M 8M", "flush"]);
    home.run(&["snapshot", "create", "data@later"]).ok();
    with(&home, "data", &["write -P 3 0 1M", "flush"]);
    let back = home.run(&["snapshot", "rollback", "data@golden", "--yes", "--json"]).json();
    let kept = back["kept"].as_str().unwrap().to_owned();
    assert!(kept.starts_with("data@before-rollback-"), "{kept}");
    // It leaves nothing that nobody needs.
    let check = home.run(&["check", "data", "--json"]).json();
    assert_eq!(check["volumes"][0]["space"]["orphans"]["objects"], 0, "{check}");
    with(&home, "data", &["read -P 1 0 8M", "read -P 0 8M 56M", "write -P 4 20M 1M", "flush"]);

    // Nothing is lost, whichever is deleted and collected.
    home.run(&["snapshot", "delete", "data@golden", "--yes"]).ok();
    home.run(&["gc", "data", "--full"]).ok();
    let server = home.serve(&["data@later"]);
    assert!(qemu_io_reading(
        &server.uri,
        &["read -P 1 0 4M", "read -P 2 4M 8M", "read -P 0 12M 1M"]
    ));
    home.run(&["detach", "data@later"]).ok();
    server.ended();
    home.run(&["snapshot", "rollback", &kept, "--yes"]).ok();
    with(
        &home,
        "data",
        &["read -P 3 0 1M", "read -P 1 1M 3M", "read -P 2 4M 8M", "read -P 0 20M 1M"],
    );
    let list = home.run(&["snapshot", "list", "data", "--json"]).json();
    let names: Vec<_> = list.as_array().unwrap().iter().map(|s| s["name"].clone()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    for name in names {
        home.run(&["snapshot", "delete", name.as_str().unwrap(), "--yes"]).ok();
    }
    home.run(&["gc", "data", "--full"]).ok();
    with(
        &home,
        "data",
        &["read -P 3 0 1M", "read -P 1 1M 3M", "read -P 2 4M 8M", "read -P 0 12M 52M"],
    );
    assert!(stored(&home) < 15 << 20, "{}", stored(&home));
}

#[test]
fn what_cannot_be_is_refused() {
    let home = home();
    home.run(&["clone", "data@golden", "vm1"]).ok();
    for (args, code, words) in [
        (&["clone", "data", "vm2"][..], USAGE, "make one with `objblk snapshot create data@SNAP`"),
        (&["clone", "data@none", "vm2"], NOT_FOUND, "there is no snapshot none"),
        (&["clone", "none@a", "vm2"], NOT_FOUND, "there is no volume called none"),
        (&["clone", "data@golden", "vm1"], EXISTS, "there is a volume called vm1"),
        (&["clone", "data@golden", "a b"], USAGE, ""),
        (&["flatten", "data"], USAGE, "data is no clone"),
        (&["snapshot", "rollback", "data", "--yes"], USAGE, "write it as data@SNAP"),
        (&["snapshot", "rollback", "data@none", "--yes"], NOT_FOUND, "there is no snapshot none"),
        (&["snapshot", "rollback", "data@golden"], USAGE, "needs a confirmation"),
    ] {
        home.run(args).refuses(code, words);
    }
    let server = home.serve(&["data"]);
    let rollback = ["snapshot", "rollback", "data@golden", "--yes"];
    home.run(&rollback).refuses(BUSY, "can be rolled back only while it is detached");
    home.other_host().run(&rollback).refuses(BUSY, "can be rolled back only while it is detached");
    home.run(&["clone", "data@golden", "vm2"]).ok();
    home.run(&["detach", "data"]).ok();
    server.ended();
    let server = home.serve(&["--read-only", "data"]);
    home.run(&rollback).refuses(BUSY, "can be rolled back only while it is detached");
    home.run(&["detach", "data"]).ok();
    server.ended();
    for name in ["vm1", "vm2"] {
        home.run(&["delete", name, "--yes"]).ok();
    }
    home.run(&["delete", "data", "--yes"]).ok();
    home.run(&["trash", "empty", "--yes"]).ok();
    assert!(home.objects().keys().all(|key| !key.display().to_string().contains("volumes")));
}
