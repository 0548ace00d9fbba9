//! A store of a pool that is not its home store is gone for good, and another one takes its place.

use crate::program::{BUSY, CORRUPT, Home, NOT_FOUND, USAGE, qemu_io, until};
use serde_json::Value;
use std::fs;

fn in_sync(home: &Home) -> Vec<Value> {
    let info = home.run(&["info", "data", "--json"]).json();
    info["mirror"]["in_sync"].as_array().unwrap().clone()
}

#[test]
fn another_store_takes_the_place_of_one_that_is_gone_under_a_server() {
    let home = Home::new();
    home.run(&["pool", "init"]).ok();
    let url = |name: &str| format!("file://{}", home.path(name).display());
    let (second, third) = (url("second"), url("third"));
    let id = home.run(&["pool", "add-store", &second]).ok();
    let create = ["create", "--size", "64M", "--chunk-size", "256K", "--compress", "none"];
    home.run(&[&create[..], &["data", "--replicas", "2"]].concat()).ok();
    for name in ["plain", "empty"] {
        home.run(&[&create[..], &[name]].concat()).ok();
    }
    let server = home.serve(&["plain"]);
    assert!(qemu_io(&server.uri, &["write -P 5 0 16M", "flush"]));
    home.run(&["detach", "plain"]).ok();
    assert_eq!(server.ended().0, 0);
    let server = home.serve(&["data"]);
    assert!(qemu_io(&server.uri, &["write -P 1 0 8M", "flush", "read -P 1 0 8M"]));
    home.run(&["snapshot", "create", "data@s"]).ok();
    home.run(&["clone", "data@s", "copy"]).ok();

    let replace = ["pool", "replace-store", &id, "--with", &third];
    let with_yes = [&replace[..], &["--yes"]].concat();
    home.run(&with_yes).fails(BUSY, "answers, so it is not lost");
    home.run(&["pool", "replace-store", "home", "--with", &third]).fails(USAGE, "pool rescue");
    home.run(&["pool", "replace-store", "0000000f", "--with", &third]).fails(NOT_FOUND, "no store");
    fs::rename(home.path("second"), home.path("gone")).unwrap();
    // What is lost is named before anything is done, and nothing else is.
    let refused = home.run(&replace);
    assert_eq!(refused.code, USAGE, "{refused:?}");
    let told = &refused.err;
    assert!(told.contains("volume plain lacks") && told.contains("needs a confirmation"), "{told}");
    for name in ["data", "empty", "copy"] {
        assert!(!told.contains(&format!("volume {name}")), "{told}");
    }
    assert!(!home.path("third").exists());
    let done = home.run(&[&with_yes[..], &["--json"]].concat()).json();
    assert_eq!(done["volumes"].as_array().map(Vec::len), Some(1), "{done}");
    assert_eq!(done["losses"].as_array().map(Vec::len), Some(1), "{done}");
    // Again, as if it had been cut off.
    assert_eq!(home.run(&with_yes).ok(), done["store"]);

    assert!(qemu_io(&server.uri, &["write -P 2 8M 2M", "flush"]));
    until("both are in sync", || in_sync(&home).len() == 2);
    assert_eq!(in_sync(&home), ["home".into(), done["store"].clone()]);
    assert!(qemu_io(&server.uri, &["read -P 1 0 8M", "read -P 2 8M 2M"]));
    let status = home.run(&["status", "data", "--json"]).json();
    let copies = status["copies"].as_array().unwrap();
    assert!(copies.len() == 2 && copies.iter().all(|copy| copy["in_sync"] == true), "{status}");
    assert!(home.run(&["status", "data"]).ok().contains("in sync"));
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    home.run(&["check", "data", "--data"]).ok();
    let check = home.run(&["check", "plain"]);
    assert_eq!(check.code, CORRUPT, "{check:?}");
    let table = home.run(&["pool", "status"]).ok();
    assert!(table.contains(&third) && !table.contains(&second), "{table}");
    // New volumes go there, and to the home store.
    home.run(&[&create[..], &["next", "--replicas", "2"]].concat()).ok();
    let next = home.run(&["info", "next", "--json"]).json();
    assert_eq!(next["mirror"]["replicas"][1], done["store"]);
}
