//! Verbs on a volume that another host has: its owner is asked through the store.

use crate::program::{BUSY, Done, EXISTS, Home, NOT_FOUND, Server, USAGE, until};
use crate::s3_pool;
use serde_json::json;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A volume that is served, and another host.
fn served(heartbeat: &str) -> (Home, Home, Server) {
    let home = Home::new();
    home.run(&["create", "data", "--size", "64M"]).ok();
    let server = home.serve(&["data", "--heartbeat", heartbeat]);
    let far = home.other_host();
    (home, far, server)
}

/// It was asked for, and is done.
#[track_caller]
fn asked(done: Done, server: &Server) -> Done {
    let whom = format!("data is attached by process {} on this host, for ", server.pid());
    let told = done.err.contains(&whom) && done.err.contains(": it was asked, and answered after ");
    assert!(told, "{done:?}");
    done
}

/// All that another host may ask for.
fn every_verb(home: &Home, far: &Home, server: &Server) {
    let ask = |args: &[&str]| asked(far.run(args), server);
    assert_eq!(ask(&["snapshot", "create", "data@a"]).ok(), "data@a");
    let list = far.run(&["snapshot", "list", "data", "--json"]).json();
    assert_eq!((list.as_array().unwrap().len(), &list[0]["snapshot"]), (1, &json!("a")));
    let grown = ask(&["resize", "data", "--size", "128M", "--json"]).json();
    assert_eq!((&grown["old_size"], &grown["size"]), (&json!(64 << 20), &json!(128 << 20)));
    let size = |home: &Home| home.run(&["info", "data", "--json"]).json()["size"].clone();
    assert_eq!((size(far), size(home)), (json!(128 << 20), json!(128 << 20)));
    let status = home.run(&["status", "data", "--json"]).json();
    assert_eq!((&status["pid"], &status["epoch"]), (&json!(server.pid()), &json!(1)), "it goes on");
    ask(&["snapshot", "schedule", "data", "--every", "1d", "--keep", "2"]).ok();
    ask(&["snapshot", "schedule", "data", "--off"]).ok();
    assert_eq!(ask(&["retain", "data", "1h"]).ok(), "data: the past is kept for 1h");
    ask(&["retain", "data", "off"]).ok();
    assert!(ask(&["gc", "data", "--json"]).json()["ratio"].is_null());
    ask(&["snapshot", "create", "data@a"]).fails_so(EXISTS, "there is a snapshot a");
    ask(&["snapshot", "delete", "data@b", "--yes"]).fails_so(NOT_FOUND, "there is no snapshot b");
    let shrink = ["resize", "data", "--size", "1M", "--shrink"];
    ask(&shrink).fails_so(USAGE, "a volume shrinks only while it is detached");
    ask(&["snapshot", "delete", "data@a", "--yes"]).ok();
    let list = home.run(&["snapshot", "list", "data", "--json"]).json();
    let left = list.as_array().unwrap().iter().filter(|one| one["scheduled"] == false);
    assert_eq!(left.count(), 0, "{list}");
    let all = far.run(&["request", "data", "--json"]).json();
    let states: Vec<_> = all.as_array().unwrap().iter().map(|one| one["state"].clone()).collect();
    assert_eq!(states.iter().filter(|state| **state == "refused").count(), 3, "{all}");
    assert_eq!(states.iter().filter(|state| **state == "done").count(), states.len() - 3, "{all}");
    assert_eq!(far.run(&["request", "data", "1-0"]).ok(), "1-0: snapshot create a, done");
    far.run(&["request", "data", "1-99"]).refuses(NOT_FOUND, "there is no request 1-99");
    far.run(&["request", "data", "x"]).refuses(USAGE, "is no request");
}

#[test]
fn the_owner_does_what_another_host_asks_for() {
    let (home, far, server) = served("1s");
    every_verb(&home, &far, &server);
    let key = home.objects().into_keys().find(|key| key.to_str().unwrap().contains("/requests/"));
    let key = key.unwrap().strip_prefix(home.store()).unwrap().to_str().unwrap().to_owned();
    let inspected = far.run(&["inspect", &key, "--json"]).json();
    let volume = home.run(&["info", "data", "--json"]).json()["id"].clone();
    assert_eq!((&inspected["damage"], &inspected["contents"]["volume"]), (&json!(null), &volume));
    let check = || home.run(&["check", "data", "--json"]).json()["volumes"][0]["space"].clone();
    assert_eq!(check()["orphans"]["objects"], 0, "{}", check());
    // What nobody does for others.
    let rollback = ["snapshot", "rollback", "data@a", "--yes"];
    far.run(&rollback).refuses(NOT_FOUND, "there is no snapshot a");
    far.run(&["detach", "data"]).refuses(NOT_FOUND, "is not attached on this host");
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    let alone = far.run(&["snapshot", "create", "data@alone"]);
    assert!(alone.err.is_empty(), "nobody has to be asked: {alone:?}");
    alone.ok();
    assert_eq!(check()["orphans"]["objects"], 0, "{}", check());
}

#[test]
fn s3_the_owner_does_what_another_host_asks_for() {
    let home = s3_pool::home(&format!("objblk-test-{}", uuid::Uuid::new_v4()));
    home.run(&["pool", "init", "--create-bucket"]).ok();
    home.run(&["create", "data", "--size", "64M"]).ok();
    let server = home.serve(&["data", "--heartbeat", "1s"]);
    every_verb(&home, &home.other_host(), &server);
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    home.run(&["delete", "data", "--now", "--yes", "--force"]).ok();
}

#[test]
fn an_owner_that_does_not_answer_does_nothing_later() {
    let (home, far, server) = served("1s");
    server.signal("STOP");
    let refused = far.run(&["snapshot", "create", "data@late", "--wait", "2s"]);
    assert!(refused.err.contains("(request 1-0), has not answered within 2 s"), "{refused:?}");
    refused.refuses(BUSY, &format!("is owned by process {}", server.pid()));
    let begun = Instant::now();
    far.run(&["snapshot", "create", "data@late", "--wait", "0"]).refuses(BUSY, "is owned by");
    assert!(begun.elapsed() < Duration::from_secs(10), "without a wait nobody is asked");
    server.signal("CONT");
    // Served behind the one that was withdrawn.
    asked(far.run(&["snapshot", "create", "data@next"]), &server).ok();
    let list = home.run(&["snapshot", "list", "data", "--json"]).json();
    assert_eq!((list.as_array().unwrap().len(), &list[0]["snapshot"]), (1, &json!("next")));
    let all = far.run(&["request", "data"]).ok();
    assert!(all.contains("withdrawn: not done") && all.lines().count() == 3, "{all}");
    far.run(&["snapshot", "create", "data@x", "--wait", "soon"]).refuses(USAGE, "--wait");
    server.kill();
    // Its host is this one: nobody has to be asked.
    far.run(&["snapshot", "create", "data@x"]).ok();
}

#[test]
fn who_asks_an_owner_that_is_killed_is_answered_by_the_next_one() {
    let (home, far, server) = served("1s");
    server.signal("STOP");
    let mut waiting = far.command(&["snapshot", "create", "data@a", "--wait", "60s", "--json"]);
    let waiting = waiting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("it is asked", || {
        home.run(&["request", "data", "--json"]).json().as_array().unwrap().len() == 1
    });
    server.kill();
    let next = home.serve(&["data", "--heartbeat", "1s"]);
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let list = far.run(&["snapshot", "list", "data", "--json"]).json();
    assert_eq!(list.as_array().unwrap().len(), 1, "made once: {list}");
    home.run(&["detach", "data"]).ok();
    assert_eq!(next.ended().0, 0);
}

#[test]
fn an_owner_without_a_heartbeat_hears_nobody() {
    let (home, far, server) = served("off");
    let refused = far.run(&["retain", "data", "1h", "--wait", "1s"]);
    refused.refuses(BUSY, "has not answered within 1 s, and will not do it any more");
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
}
