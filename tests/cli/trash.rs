//! `objblk delete` and `objblk trash`.

use crate::program::{BUSY, EXISTS, Home, NOT_FOUND, USAGE, qemu_io};
use serde_json::{Value, json};
use std::fs;

/// The volume `data`, which holds 1 in its first 4M and has a snapshot.
fn home() -> Home {
    let home = Home::new();
    home.run(&["create", "data", "--size", "64M"]).ok();
    let server = home.serve(&["data"]);
    assert!(qemu_io(&server.uri, &["write -P 1 0 4M", "flush"]));
    home.run(&["snapshot", "create", "data@old"]).ok();
    home.run(&["detach", "data"]).ok();
    server.ended();
    home
}

fn holds(home: &Home, name: &str) {
    let server = home.serve(&[name]);
    assert!(qemu_io(&server.uri, &["read -P 1 0 4M"]), "{name}");
    home.run(&["detach", name]).ok();
    server.ended();
}

fn trash(home: &Home) -> Vec<Value> {
    home.run(&["trash", "list", "--json"]).json().as_array().unwrap().clone()
}

#[test]
fn what_was_deleted_can_be_restored_or_removed() {
    let home = home();
    let id = home.run(&["info", "data", "--json"]).json()["id"].as_str().unwrap().to_owned();
    assert_eq!(trash(&home), [Value::Null; 0]);
    home.run(&["delete", "data"]).refuses(USAGE, "add --yes");
    let deleted = home.run(&["delete", "data", "--yes", "--json"]).json();
    assert_eq!((&deleted["name"], &deleted["trash"]), (&json!("data"), &json!(true)));
    assert_eq!(deleted["id"], json!(id));
    assert_eq!(home.run(&["list", "--json"]).json(), json!([]));
    for verb in [&["info", "data"][..], &["serve", "nbd", "data"], &["delete", "data", "--yes"]] {
        home.run(verb).refuses(NOT_FOUND, "`objblk trash restore data` brings it back");
    }
    let there = trash(&home);
    let [line] = &*there else { panic!("{there:?}") };
    assert_eq!(
        (&line["name"], &line["id"], &line["state"]),
        (&json!("data"), &json!(id), &json!("kept"))
    );
    assert_eq!((&line["size"], &line["used"]), (&json!(64 << 20), &json!(4 << 20)));
    assert_eq!((&line["snapshots"], &line["needed_by"]), (&json!(1), &json!([])));
    let at = |field: &str| line[field].as_u64().unwrap();
    assert_eq!(at("expires_at_ms") - at("deleted_at_ms"), 7 * 86_400_000);
    assert_eq!(line["expires_at_ms"], deleted["expires_at_ms"]);
    let text = home.run(&["trash", "list"]).ok();
    assert!(
        text.starts_with("NAME") && text.lines().nth(1).unwrap().starts_with("data  64 MiB"),
        "{text}"
    );
    assert_eq!(home.run(&["pool", "status", "--json"]).json()["trash"], 1);

    // The name is taken meanwhile.
    home.run(&["create", "data", "--size", "1M"]).ok();
    home.run(&["trash", "restore", "data"]).refuses(EXISTS, "under another name with --as NEW");
    assert_eq!(home.run(&["trash", "restore", "data", "--as", "back"]).ok(), "back");
    home.run(&["trash", "restore", "data"]).refuses(NOT_FOUND, "there is no data in the trash");
    home.run(&["trash", "restore", &id]).refuses(NOT_FOUND, "in the trash");
    holds(&home, "back");
    assert_eq!(home.run(&["snapshot", "list", "back", "--json"]).json()[0]["name"], "back@old");

    // Two of one name are told apart by their ids.
    home.run(&["delete", "data", "--yes"]).ok();
    home.run(&["rename", "back", "data"]).ok();
    home.run(&["delete", "data", "--yes"]).ok();
    home.run(&["trash", "restore", "data"]).refuses(USAGE, "name one by its id");
    assert_eq!(home.run(&["trash", "restore", &id]).ok(), "data");
    holds(&home, "data");
    home.run(&["trash", "empty"]).refuses(USAGE, "removing data for good needs a confirmation");
    let removed = home.run(&["trash", "empty", "--yes", "--json"]).json();
    assert_eq!((&removed["removed"][0]["name"], &removed["kept"]), (&json!("data"), &json!([])));
    assert!(home.run(&["trash", "empty", "--yes"]).ok().contains("nothing was removed"));
    holds(&home, "data");
    home.run(&["delete", "data", "--yes"]).ok();
    assert!(home.run(&["trash", "empty", "data", "--yes"]).ok().starts_with("data: "));
    let left = home.objects();
    assert_eq!(left.len(), 1, "only objblk.json stays: {left:?}");
    assert!(home.run_files().is_empty(), "{:?}", home.run_files());
}

#[test]
fn nothing_goes_before_its_time() {
    let home = home();
    home.run(&["create", "brief", "--size", "1M"]).ok();
    home.run(&["delete", "data", "--yes"]).ok();
    home.run(&["delete", "brief", "--yes", "--keep", "1ms"]).ok();
    let states: Vec<Value> = trash(&home).iter().map(|line| line["state"].clone()).collect();
    assert_eq!(states, ["expired", "kept"]);
    assert_eq!(home.run(&["pool", "status", "--json"]).json()["trash_expired"], 1);
    let removed = home.run(&["trash", "empty", "--older-than", "1h", "--yes", "--json"]).json();
    assert_eq!(removed["removed"], json!([]));
    let removed = home.run(&["trash", "empty", "--expired", "--yes", "--json"]).json();
    assert_eq!(removed["removed"][0]["name"], "brief");
    assert_eq!(trash(&home).len(), 1);
    home.run(&["trash", "empty", "--older-than", "0s", "--yes"]).ok();
    assert_eq!(home.objects().len(), 1, "{:?}", home.objects());
}

#[test]
fn clones_keep_their_origin_in_the_trash() {
    let home = home();
    home.run(&["clone", "data@old", "vm"]).ok();
    home.run(&["delete", "data", "--yes"]).ok();
    holds(&home, "vm");
    assert_eq!(trash(&home)[0]["needed_by"], json!(["vm"]));
    home.run(&["trash", "empty", "data", "--yes"]).refuses(BUSY, "clones need volume data: vm");
    let all = home.run(&["trash", "empty", "--yes", "--json"]);
    assert_eq!(all.code, BUSY, "{all:?}");
    let document: Value = serde_json::from_str(&all.out).unwrap();
    assert_eq!((&document["removed"], &document["kept"][0]["name"]), (&json!([]), &json!("data")));
    // Both at once: the clone goes first.
    home.run(&["delete", "vm", "--yes"]).ok();
    let all = home.run(&["trash", "empty", "--yes", "--json"]).json();
    assert_eq!(all["removed"].as_array().unwrap().len(), 2);
    assert_eq!(home.objects().len(), 1, "{:?}", home.objects());
}

#[test]
fn what_nothing_leads_to_is_found() {
    let home = home();
    home.run(&["create", "begun", "--size", "1M"]).ok();
    for name in ["begun", "data"] {
        fs::remove_file(home.store().join("names").join(name)).unwrap();
    }
    assert_eq!(trash(&home), [Value::Null; 0]);
    let orphans = home.run(&["trash", "list", "--orphans", "--json"]).json();
    let find = |state: &str| {
        let all = orphans.as_array().unwrap();
        all.iter().find(|line| line["state"] == state).unwrap()["id"].as_str().unwrap().to_owned()
    };
    // It may be in the making.
    let swept = home.run(&["trash", "empty", "--orphans", "--yes", "--json"]).json();
    assert_eq!(swept["removed"], json!([]));
    let args = ["trash", "empty", "--orphans", "--older-than", "0s", "--yes", "--json"];
    let swept = home.run(&args).json();
    assert_eq!(swept["removed"][0]["id"], json!(find("unfinished")));
    assert_eq!(swept["removed"].as_array().unwrap().len(), 1);
    // What was in use has only lost its name.
    home.run(&["trash", "restore", &find("lost")]).refuses(USAGE, "name it with --as NEW");
    assert_eq!(home.run(&["trash", "restore", &find("lost"), "--as", "data"]).ok(), "data");
    holds(&home, "data");
}

/// Whoever deleted it was killed, and its owner may be alive for all that another host knows.
#[test]
fn what_somebody_may_have_is_removed_by_force_only() {
    let home = home();
    let server = home.serve(&["data"]);
    fs::remove_file(home.store().join("names/data")).unwrap();
    let id = home.run(&["trash", "list", "--orphans", "--json"]).json()[0]["id"].clone();
    let id = id.as_str().unwrap();
    home.run(&["trash", "empty", id, "--yes"]).refuses(BUSY, "is owned by process");
    home.run(&["trash", "restore", id, "--as", "data"]).ok();
    assert!(qemu_io(&server.uri, &["read -P 1 0 4M", "write -P 2 0 1M", "flush"]));
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
}
