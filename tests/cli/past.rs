//! `objblk retain`, and `--at`.

use crate::program::{BUSY, EXISTS, Home, NOT_FOUND, USAGE, qemu_io, qemu_io_reading};
use serde_json::json;

#[test]
fn the_past_is_served_beside_its_volume() {
    let home = Home::new();
    home.run(&["create", "data", "--size", "64M", "--retain", "24h"]).ok();
    let info = home.run(&["info", "data", "--json"]).json();
    assert_eq!(info["retention_ms"], 86_400_000);
    let text = home.run(&["info", "data"]).ok();
    assert!(text.contains("the past is kept for 1d, from slot "), "{text}");
    // Of those that hold nothing but that the volume was opened and closed.
    assert!(info["past_chunks"].as_u64().unwrap() < 5, "{info}");
    let server = home.serve(&["data"]);
    assert!(qemu_io(&server.uri, &["write -P 1 0 8M", "flush"]));
    // Where the log is now, as a snapshot says it.
    home.run(&["snapshot", "create", "data@one"]).ok();
    let list = home.run(&["snapshot", "list", "data", "--json"]).json();
    let slot = list[0]["seq"].as_u64().unwrap();
    home.run(&["snapshot", "delete", "data@one", "--yes"]).ok();
    assert!(qemu_io(&server.uri, &["write -P 2 0 4M", "discard 4M 2M", "flush"]));
    home.run(&["gc", "data", "--full"]).ok();
    let view = home.serve(&["data", "--read-only", "--at", &format!("#{slot}")]);
    assert!(view.uri.contains(&format!("data@at-slot-{slot}")), "{}", view.uri);
    assert!(qemu_io_reading(&view.uri, &["read -P 1 0 8M"]));
    let now = home.serve(&["data", "--at", "-0s"]);
    assert!(qemu_io_reading(&now.uri, &["read -P 2 0 4M", "read -P 0 4M 2M", "read -P 1 6M 2M"]));
    let image = home.path("then.img");
    let at = format!("#{slot}");
    home.run(&["export", "data", "--at", &at, image.to_str().unwrap()]).ok();
    let image = std::fs::read(image).unwrap();
    let (data, rest) = image.split_at(8 << 20);
    assert!(data.iter().all(|byte| *byte == 1) && rest.iter().all(|byte| *byte == 0));
    assert_eq!(rest.len(), 56 << 20);
    for server in [view, now] {
        home.run(&["detach", &server.uri]).ok();
        assert_eq!(server.ended().0, 0);
    }
    clone_of_the_past(&home, slot);
    let info = home.run(&["info", "data", "--json"]).json();
    let (chunks, most) = (&info["past_chunks"], &info["past_bytes_at_most"]);
    assert!(chunks.as_u64().unwrap() > 0, "{info}");
    assert_eq!(most.as_u64().unwrap(), chunks.as_u64().unwrap() * (4 << 20));
    assert!(home.run(&["check", "--data"]).ok().contains("are kept for the past only"));
    let off = home.run(&["retain", "data", "off", "--json"]).json();
    assert_eq!(off, json!({ "name": "data", "retention_ms": null }));
    home.run(&["serve", "nbd", "data", "--read-only", "--at", "-2h"])
        .refuses(NOT_FOUND, "nothing is kept of the past");
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    assert!(home.run(&["info", "data"]).ok().contains("the past is not kept"));
}

#[test]
fn moments_that_cannot_be_are_refused() {
    let home = Home::new();
    home.run(&["create", "data", "--size", "64M"]).ok();
    for (args, code, words) in [
        (&["retain", "none", "1h"][..], NOT_FOUND, "there is no volume called none"),
        (&["retain", "data", "long"], USAGE, "is no time"),
        (&["create", "more", "--size", "1M", "--retain", "0s"], USAGE, "leaves no time"),
        (&["serve", "nbd", "data", "--at", "-1h", "--takeover"], USAGE, "--takeover"),
        (&["serve", "nbd", "data", "--read-only", "--at", "noon"], USAGE, "is no moment"),
        (&["serve", "nbd", "data@a", "--read-only", "--at", "#1"], USAGE, "at one moment only"),
        (&["serve", "nbd", "data", "--read-only", "--at", "#999"], NOT_FOUND, "has not come"),
    ] {
        home.run(args).refuses(code, words);
    }
    home.run(&["retain", "data", "1h"]).ok();
    home.run(&["serve", "nbd", "data", "--read-only", "--at", "2020-01-01T00:00:00Z"])
        .refuses(NOT_FOUND, "the oldest moment is slot ");
}

/// A clone of a moment is what that was, of a size of its own, and pins nothing but a snapshot.
fn clone_of_the_past(home: &Home, slot: u64) {
    let at = format!("#{slot}");
    let made = home.run(&["clone", "data", "--at", &at, "then", "--json"]).json();
    let parent = made["parent"].as_str().unwrap();
    assert!(parent.starts_with("data@clone-"), "{made}");
    // 4M were overwritten, and 2M discarded.
    assert_eq!((&made["data_bytes"], &made["zero_bytes"]), (&json!(6 << 20), &json!(0)));
    let clone = home.serve(&["then"]);
    assert!(qemu_io(
        &clone.uri,
        &["read -P 1 0 8M", "read -P 0 8M 56M", "write -P 5 0 1M", "flush"]
    ));
    home.run(&["detach", "then"]).ok();
    assert_eq!(clone.ended().0, 0);
    home.run(&["snapshot", "delete", parent, "--yes"]).refuses(BUSY, "clones need the snapshot");
    home.run(&["clone", "data", "--at", &at, "then"]).refuses(EXISTS, "then");
    home.run(&["clone", "data", "--at", "2020-01-01T00:00:00Z", "other"])
        .refuses(NOT_FOUND, "the oldest moment is slot ");
    home.run(&["clone", parent, "--at", &at, "other"]).refuses(USAGE, "at one moment only");
    // What was refused left nothing behind.
    let snapshots = home.run(&["snapshot", "list", "data", "--json"]).json();
    assert_eq!(snapshots.as_array().unwrap().len(), 1, "{snapshots}");
    let orphans = home.run(&["trash", "list", "--orphans", "--json"]).json();
    assert_eq!(orphans, json!([]));
}

/// What a volume was before a rollback is kept for a time, or for as long as somebody wants.
#[test]
fn what_was_before_a_rollback_expires() {
    let home = Home::new();
    home.run(&["create", "data", "--size", "64M"]).ok();
    home.run(&["snapshot", "create", "data@one"]).ok();
    let back = ["snapshot", "rollback", "data@one", "--yes", "--json"];
    let first = home.run(&back).json();
    let made = home.run(&["snapshot", "list", "data", "--json"]).json();
    let expires = made[1]["expires_at_ms"].as_u64().unwrap();
    assert_eq!(first["kept_until_ms"], expires);
    assert_eq!(made[0]["expires_at_ms"], json!(null));
    let week = expires - made[1]["made_at_ms"].as_u64().unwrap();
    assert!(week <= 7 * 86_400_000 && week > 7 * 86_400_000 - 60_000, "{week}");
    let kept = first["kept"].as_str().unwrap();
    let text = home.run(&["snapshot", "keep", kept]).ok();
    assert!(text.contains("stays until you delete it"), "{text}");
    let made = home.run(&["snapshot", "list", "data", "--json"]).json();
    assert_eq!(made[1]["expires_at_ms"], json!(null));
    let off = [&back[..], &["--keep-before-rollback", "off"]].concat();
    assert_eq!(home.run(&off).json()["kept_until_ms"], json!(null));
    home.run(&["snapshot", "keep", "data@one"]).refuses(USAGE, "stays until it is deleted");
    home.run(&["snapshot", "keep", "data@none"]).refuses(NOT_FOUND, "there is no snapshot none");
    let soon = [&back[..], &["--keep-before-rollback", "1s"]].concat();
    let soon = home.run(&soon).json()["kept"].as_str().unwrap().to_owned();
    let server = home.serve(&["data"]);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(90);
    while home.run(&["snapshot", "list", "data"]).ok().contains(&soon) {
        assert!(std::time::Instant::now() < deadline, "{soon} is still there");
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    assert!(home.run(&["snapshot", "list", "data"]).ok().contains(kept));
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
}
