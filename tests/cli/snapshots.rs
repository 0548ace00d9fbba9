//! `objblk snapshot`, and volumes named `NAME@SNAP`.

use crate::program::{BUSY, EXISTS, Home, NOT_FOUND, USAGE, qemu_io, qemu_io_reading, tool};
use serde_json::json;

fn home() -> Home {
    let home = Home::new();
    home.run(&["create", "data", "--size", "64M", "--compress", "none"]).ok();
    home
}

#[test]
fn snapshots_are_served_beside_their_volume() {
    let home = home();
    let server = home.serve(&["data"]);
    assert!(qemu_io(&server.uri, &["write -P 1 0 8M", "flush"]));
    assert_eq!(home.run(&["snapshot", "create", "data@one"]).ok().trim(), "data@one");
    assert!(qemu_io(&server.uri, &["write -P 2 0 4M", "discard 4M 1M", "flush"]));
    let made = home.run(&["snapshot", "create", "data@two", "--json"]).json();
    assert_eq!((&made["name"], &made["snapshot"]), (&json!("data@two"), &json!("two")));
    assert_eq!((&made["size"], &made["used"]), (&json!(64 << 20), &json!(7 << 20)));
    assert!(qemu_io(&server.uri, &["write -P 3 0 8M", "flush"]));
    home.run(&["gc", "data", "--full"]).ok();

    let (one, far) = (home.serve(&["data@one"]), home.other_host());
    assert!(one.uri.contains("data@one"), "{}", one.uri);
    tool("nbdinfo", &["--is", "read-only", &one.uri]);
    let two = far.serve(&["data@two", "data@one"]);
    assert!(qemu_io_reading(&one.uri, &["read -P 1 0 8M", "read -P 0 8M 56M"]));
    assert!(qemu_io_reading(&two.uri, &["read -P 2 0 4M", "read -P 0 4M 1M", "read -P 1 5M 3M"]));
    assert!(qemu_io(&server.uri, &["read -P 3 0 8M"]));
    let status = home.run(&["status", "data@one", "--json"]).json();
    assert_eq!((&status["name"], &status["read_only"]), (&json!("data@one"), &json!(true)));
    home.run(&["serve", "nbd", "data@one"]).refuses(BUSY, "data@one is attached already");

    let names = |home: &Home| {
        let list = home.run(&["snapshot", "list", "data", "--json"]).json();
        let list = list.as_array().unwrap().iter().map(|line| line["name"].clone());
        list.collect::<Vec<_>>()
    };
    assert_eq!(names(&home), ["data@one", "data@two"]);
    assert_eq!(names(&far), ["data@one", "data@two"]);
    home.run(&["snapshot", "delete", "data@one", "--yes"]).refuses(BUSY, "data@one is attached by");
    home.run(&["detach", "data@one"]).ok();
    assert_eq!(one.ended().0, 0);
    far.run(&["detach", "data@two"]).ok();
    assert_eq!(two.ended().0, 0);
    home.run(&["snapshot", "delete", "data@one", "--yes"]).ok();
    assert_eq!(names(&far), ["data@two"]);
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    let two = home.serve(&["data@two"]);
    assert!(qemu_io_reading(&two.uri, &["read -P 2 0 4M", "read -P 0 4M 1M", "read -P 1 5M 3M"]));
    home.run(&["detach", "data@two"]).ok();
    assert_eq!(two.ended().0, 0);
    assert!(home.run_files().is_empty(), "{:?}", home.run_files());
}

/// Whoever asks owns a volume that nobody has, for that moment.
#[test]
fn snapshots_of_a_detached_volume_free_their_space() {
    let home = home();
    let server = home.serve(&["data"]);
    assert!(qemu_io(&server.uri, &["write -P 1 0 16M", "flush"]));
    home.run(&["detach", "data"]).ok();
    server.ended();
    for name in ["data@a", "data@b"] {
        home.run(&["snapshot", "create", name]).ok();
    }
    assert_eq!(home.run(&["info", "data", "--json"]).json()["snapshots"], 2);
    let text = home.run(&["snapshot", "list", "data"]).ok();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() == 3 && lines[0].starts_with("NAME"), "{text}");
    assert!(lines[1].starts_with("data@a  64 MiB  16 MiB"), "{text}");
    let server = home.serve(&["data"]);
    assert!(qemu_io(&server.uri, &["write -P 2 0 16M", "flush"]));
    home.run(&["gc", "data", "--full"]).ok();
    let stored = || home.objects().values().sum::<u64>();
    assert!(stored() > 32 << 20, "{}", stored());
    for name in ["data@a", "data@b"] {
        home.run(&["snapshot", "delete", name, "--yes"]).ok();
        home.run(&["gc", "data", "--full"]).ok();
    }
    assert!(stored() < 20 << 20, "{}", stored());
    assert!(qemu_io(&server.uri, &["read -P 2 0 16M"]));
    home.run(&["detach", "data"]).ok();
    server.ended();
}

#[test]
fn what_cannot_be_is_refused() {
    let home = home();
    home.run(&["snapshot", "create", "data@a"]).ok();
    for (args, code, words) in [
        (&["snapshot", "create", "data@a"][..], EXISTS, "there is a snapshot a"),
        (&["snapshot", "create", "data"], USAGE, "write it as data@SNAP"),
        (&["snapshot", "create", "data@.x"], USAGE, "is no name of a snapshot"),
        (&["snapshot", "create", "none@a"], NOT_FOUND, "there is no volume called none"),
        (&["snapshot", "create", "data@f", "--fsfreeze", "/nonexistent"], 1, "fsfreeze --freeze"),
        (&["snapshot", "delete", "data@a"], USAGE, "needs a confirmation"),
        (&["snapshot", "delete", "data@b", "--yes"], NOT_FOUND, "there is no snapshot b"),
        (&["snapshot", "list", "data@a"], USAGE, "names a snapshot, and a volume is wanted"),
        (&["serve", "nbd", "data@b"], NOT_FOUND, "there is no snapshot data@b"),
        (&["resize", "data@a", "--size", "1G"], USAGE, "a volume is wanted"),
        (&["delete", "data", "--now", "--yes"], BUSY, "has snapshots (1); delete them first"),
    ] {
        home.run(args).refuses(code, words);
    }
    let server = home.serve(&["data"]);
    let far = home.other_host();
    let alone = far.run(&["snapshot", "create", "data@b", "--wait", "0"]);
    alone.refuses(BUSY, "the owner of a volume makes");
    home.run(&["detach", "data"]).ok();
    server.ended();
    home.run(&["delete", "data", "--now", "--yes", "--force"]).ok();
    assert!(home.objects().keys().all(|key| !key.display().to_string().contains("volumes")));
}
