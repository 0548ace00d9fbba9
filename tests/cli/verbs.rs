//! Every verb that needs no frontend.

use crate::program::{BUSY, CORRUPT, EXISTS, Home, NOT_FOUND, USAGE};
use objblk::format::pool::{TombstoneObject, encode_json, end_json};
use serde_json::json;
use std::fs;
use std::process::Stdio;

#[test]
fn the_life_of_a_volume() {
    let home = Home::new();
    let made = home.run(&["create", "data", "--size", "1G"]);
    assert!(made.err.contains("made a new pool in the directory file://"), "{made:?}");
    assert_eq!(made.ok(), "data");
    let generated = home.run(&["create", "--size", "10M", "--block-size", "4096", "--json"]).json();
    let generated_name = generated["name"].as_str().unwrap().to_owned();
    assert!(generated_name.starts_with("vol-") && generated_name.len() == 12);
    let list = home.run(&["list", "--json"]).json();
    assert_eq!(list[0]["name"], "data");
    assert_eq!(list[0]["size"], 1_u64 << 30);
    assert_eq!((&list[0]["used"], &list[0]["epoch"]), (&json!(0), &json!(0)));
    assert_eq!((&list[0]["state"], &list[0]["health"]), (&json!("free"), &json!("ok")));
    assert_eq!(list[1]["block_size"], 4096);
    let table = home.run(&["list"]).ok();
    let first = table.lines().next().unwrap();
    assert_eq!(first.split_whitespace().collect::<Vec<_>>()[..3], ["NAME", "SIZE", "USED"]);
    assert!(table.lines().nth(1).unwrap().contains("1 GiB"));

    assert_eq!(home.run(&["rename", "data", "db"]).ok(), "db");
    home.run(&["info", "data"]).refuses(NOT_FOUND, "there is no volume called data");
    home.run(&["rename", "db", &generated_name]).refuses(EXISTS, "there is a volume called");
    home.run(&["rename", "db", "db"]).refuses(EXISTS, "there is a volume called db already");

    let resized = home.run(&["resize", "db", "--size", "3G", "--json"]).json();
    assert_eq!((&resized["size"], &resized["old_size"]), (&json!(3_u64 << 30), &json!(1 << 30)));
    home.run(&["resize", "db", "--size", "2G"]).refuses(USAGE, "add --shrink");
    assert_eq!(home.run(&["resize", "db", "--size", "2G", "--shrink"]).ok(), "db: 3 GiB -> 2 GiB");
    let info = home.run(&["info", "db", "--json"]).json();
    assert_eq!((&info["size"], &info["state"]), (&json!(2_u64 << 30), &json!("free")));
    assert!(info["owner"].is_null() && info["parent"].is_null());
    assert!(home.run(&["info", "db"]).ok().contains("size        2 GiB"));

    let pool = home.run(&["pool", "status", "--json"]).json();
    assert_eq!((&pool["volumes"], &pool["fencing"]), (&json!(2), &json!(true)));
    home.run(&["delete", "db"]).refuses(USAGE, "add --yes");
    let deleted = home.run(&["delete", "db", "--now", "--yes", "--json"]).json();
    assert_eq!((&deleted["name"], &deleted["trash"]), (&json!("db"), &json!(false)));
    home.run(&["delete", &generated_name, "--now", "--yes"]).ok();
    let left = home.objects();
    assert_eq!(left.len(), 1, "only objblk.json stays: {left:?}");
    assert_eq!(home.run(&["list", "--json"]).json(), json!([]));
    assert!(home.run_files().is_empty(), "{:?}", home.run_files());
}

#[test]
fn pools_are_made_once() {
    let home = Home::new();
    home.run(&["list"]).refuses(NOT_FOUND, "is missing");
    let made = home.run(&["pool", "init", "--json"]).json();
    assert_eq!(made["fencing"], true);
    home.run(&["pool", "init"]).refuses(EXISTS, "is a pool already");
    let other = format!("file://{}", home.path("other").display());
    home.run(&["--store", &other, "pool", "init", "--unsafe-no-fencing"]).ok();
    let unsafe_create = home.run(&["--store", &other, "create", "v", "--size", "1M"]);
    assert!(unsafe_create.err.contains("--unsafe-no-fencing"), "a loud warning: {unsafe_create:?}");
    assert_eq!(unsafe_create.ok(), "v");
    let empty = home.path("empty");
    fs::create_dir(&empty).unwrap();
    let empty = format!("file://{}", empty.display());
    home.run(&["--store", &empty, "info", "v"])
        .refuses(NOT_FOUND, "make one with `objblk pool init`");
}

#[test]
fn of_many_creators_one_wins_and_the_others_leave_nothing() {
    let home = Home::new();
    home.run(&["pool", "init"]).ok();
    let racers: Vec<_> = (0..8)
        .map(|_| {
            let mut command = home.command(&["create", "same", "--size", "1G"]);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let code = |mut child: std::process::Child| child.wait().unwrap().code().unwrap();
    let mut codes: Vec<i32> = racers.into_iter().map(code).collect();
    codes.sort_unstable();
    assert_eq!(codes, [0, EXISTS, EXISTS, EXISTS, EXISTS, EXISTS, EXISTS, EXISTS]);
    assert_eq!(home.objects().len(), 3, "pool, name, volume: {:?}", home.objects());
}

#[test]
fn an_unfinished_deletion_is_shown_and_finished() {
    let home = Home::new();
    home.run(&["create", "gone", "--size", "1G"]).ok();
    home.run(&["create", "kept", "--size", "1G"]).ok();
    let id = home.run(&["info", "gone", "--json"]).json()["id"].as_str().unwrap().to_owned();
    // As a crash between the tombstone and the removal of the name leaves it.
    let trash = home.store().join("trash");
    fs::create_dir_all(&trash).unwrap();
    let tombstone = TombstoneObject { name: "gone".into(), deleted_at_ms: 1 };
    fs::write(trash.join(&id), encode_json(&tombstone)).unwrap();
    let list = home.run(&["list", "--json"]);
    assert!(list.err.contains("finish the deletion of gone"), "{list:?}");
    assert_eq!(list.json()[0]["state"], "deleting");
    home.run(&["serve", "nbd", "gone"]).refuses(BUSY, "finish it with `objblk delete gone`");
    // As a crash after the removal of the name leaves it.
    fs::remove_file(home.store().join("names/gone")).unwrap();
    assert_eq!(home.run(&["list", "--json"]).json()[0]["name"], "gone");
    home.run(&["delete", "gone", "--yes"]).ok();
    assert_eq!(home.objects().len(), 3, "{:?}", home.objects());
    home.run(&["delete", "gone", "--yes"]).refuses(NOT_FOUND, "there is no volume called gone");
}

#[test]
fn damage_is_said_with_its_exit_code() {
    let home = Home::new();
    home.run(&["create", "bad", "--size", "1G"]).ok();
    home.run(&["create", "good", "--size", "1G"]).ok();
    let id = home.run(&["info", "bad", "--json"]).json()["id"].as_str().unwrap().to_owned();
    let description = home.store().join(format!("volumes/{id}/volume.json"));
    let text = fs::read_to_string(&description).unwrap();
    for damaged in ["", "{", &text.replace("512", "513")] {
        fs::write(&description, damaged).unwrap();
        home.run(&["info", "bad"]).refuses(CORRUPT, "is damaged");
    }
    let newer = text.replace("\"version\": 1", "\"version\": 9");
    let (body, _) = newer.split_once(",\n  \"crc32c\"").unwrap();
    fs::write(&description, end_json(body.into())).unwrap();
    home.run(&["info", "bad"]).refuses(1, "upgrade objblk");
    fs::remove_file(&description).unwrap();
    home.run(&["info", "bad"]).refuses(CORRUPT, "volume.json is missing");
    let list = home.run(&["list", "--json"]);
    assert_eq!(list.code, CORRUPT);
    let list: serde_json::Value = serde_json::from_str(&list.out).unwrap();
    assert_eq!((&list[0]["state"], &list[1]["state"]), (&json!("damaged"), &json!("free")));
    home.run(&["delete", "bad", "--yes"]).fails(CORRUPT, "delete it all the same with --force");
    home.run(&["delete", "bad", "--yes", "--force"]).ok();
    home.run(&["trash", "restore", "bad"]).refuses(CORRUPT, "volume.json is missing");
    home.run(&["trash", "empty", "--yes"]).ok();
    assert_eq!(home.objects().len(), 3, "{:?}", home.objects());
}

#[test]
fn the_configuration_file_names_the_store() {
    let mut home = Home::new();
    let file = home.path("c.toml");
    let store = home.path("elsewhere");
    fs::write(&file, format!("store = \"file://{}\"\n", store.display())).unwrap();
    home.set("OBJBLK_STORE", "");
    let config = ["--config", file.to_str().unwrap()];
    home.run(&[&config[..], &["create", "v", "--size", "1M"]].concat()).ok();
    assert!(store.join("objblk.json").exists());
    let usual = home.path(".config/objblk");
    fs::create_dir_all(&usual).unwrap();
    fs::copy(&file, usual.join("config.toml")).unwrap();
    assert_eq!(home.run(&["list", "--json"]).json()[0]["name"], "v");
    fs::write(&file, "store = 's3://abc'\nqueues = 3\n").unwrap();
    home.run(&[&config[..], &["list"]].concat()).refuses(USAGE, "line 2 is wrong: unknown field");
    home.run(&["--config", "/nonexistent", "list"]).refuses(NOT_FOUND, "/nonexistent");
}

#[test]
fn output_is_for_pipes_too() {
    let home = Home::new();
    home.run(&["create", "v", "--size", "1M"]).ok();
    for args in [&["list"][..], &["completions", "bash"], &["--help"], &["status", "--json"]] {
        let mut child =
            home.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
    }
    assert!(home.run(&["--version"]).ok().starts_with("objblk 0."));
    for shell in ["bash", "zsh", "fish"] {
        assert!(home.run(&["completions", shell]).ok().contains("detach"), "{shell}");
    }
    for args in [&["create", "--help"][..], &["serve", "nbd", "--help"], &["--help"]] {
        assert!(home.run(args).ok().contains("Usage:"));
    }
}
