//! `objblk snapshot schedule`.

use crate::program::{BUSY, Home, NOT_FOUND, USAGE, until};
use serde_json::json;

#[test]
fn a_schedule_is_kept_by_whoever_serves_the_volume() {
    let home = Home::new();
    home.run(&["create", "data", "--size", "64M"]).ok();
    assert_eq!(home.run(&["snapshot", "schedule", "data"]).ok().trim(), "data: none");
    let set = ["snapshot", "schedule", "data", "--every", "1h", "--keep", "24"];
    let text = home.run(&[&set[..], &["--every", "1d", "--keep", "7"]].concat()).ok();
    assert_eq!(text.trim(), "data: every 1h keep 24, every 1d keep 7");
    let names = || {
        let list = home.run(&["snapshot", "list", "data", "--json"]).json();
        let made = list.as_array().unwrap().iter().filter(|line| line["scheduled"] == true);
        made.map(|line| line["snapshot"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert!(names().is_empty(), "nobody owns it");
    let server = home.serve(&["data"]);
    until("both are made", || names().len() >= 2);
    assert!(names().iter().any(|name| name.starts_with("auto-1h-20")), "{:?}", names());
    let info = home.run(&["info", "data", "--json"]).json();
    let rules = json!([
        { "every": "1h", "every_ms": 3_600_000, "keep": 24 },
        { "every": "1d", "every_ms": 86_400_000, "keep": 7 },
    ]);
    assert_eq!(info["schedule"], rules);
    let text = home.run(&["info", "data"]).ok();
    assert!(text.contains("every 1h keep 24, every 1d keep 7"), "{text}");
    let far = home.other_host();
    let alone = far.run(&["snapshot", "schedule", "data", "--off", "--wait", "0"]);
    alone.refuses(BUSY, "the owner of a volume");
    // The owner hears of it.
    home.run(&["snapshot", "schedule", "data", "--every", "30m", "--keep", "1"]).ok();
    until("one more is made", || names().iter().any(|name| name.starts_with("auto-30m-")));
    home.run(&["snapshot", "schedule", "data", "--off"]).ok();
    let shown = home.run(&["snapshot", "schedule", "data", "--json"]).json();
    assert_eq!(shown, json!({ "name": "data", "schedule": [] }));
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    assert!(names().len() >= 3);
}

#[test]
fn schedules_that_cannot_be_are_refused() {
    let home = Home::new();
    home.run(&["create", "data", "--size", "64M"]).ok();
    let every = |flags: &[&str], code, words: &str| {
        home.run(&[&["snapshot", "schedule", "data"], flags].concat()).refuses(code, words);
    };
    every(&["--every", "1h"], USAGE, "--keep");
    every(&["--every", "1h", "--every", "1d", "--keep", "1"], USAGE, "2 --every and 1 --keep");
    every(&["--every", "90s", "--keep", "1"], USAGE, "not a number of whole minutes");
    every(&["--every", "1h", "--keep", "0"], USAGE, "keeps no snapshots");
    every(&["--every", "1h", "--keep", "9999"], USAGE, "2048 are the most");
    every(&["--every", "soon", "--keep", "1"], USAGE, "is no time");
    every(&["--off", "--every", "1h", "--keep", "1"], USAGE, "cannot be used with");
    home.run(&["snapshot", "schedule", "none"])
        .refuses(NOT_FOUND, "there is no volume called none");
}
