//! `objblk retain`, and `--at`.

use crate::program::{Home, NOT_FOUND, USAGE, qemu_io, qemu_io_reading};
use serde_json::json;

#[test]
fn the_past_is_served_beside_its_volume() {
    let home = Home::new();
    home.run(&["create", "data", "--size", "64M", "--retain", "24h"]).ok();
    let info = home.run(&["info", "data", "--json"]).json();
    assert_eq!(info["retention_ms"], 86_400_000);
    let text = home.run(&["info", "data"]).ok();
    assert!(text.contains("the past is kept for 1d, from slot "), "{text}");
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
    let now = home.serve(&["data", "--read-only", "--at", "-0s"]);
    assert!(qemu_io_reading(&now.uri, &["read -P 2 0 4M", "read -P 0 4M 2M", "read -P 1 6M 2M"]));
    for server in [view, now] {
        home.run(&["detach", &server.uri]).ok();
        assert_eq!(server.ended().0, 0);
    }
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
        (&["serve", "nbd", "data", "--at", "-1h"], USAGE, "--read-only"),
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
