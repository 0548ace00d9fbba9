//! Several paths to a store: cut and changed under the I/O of a client that verifies.

use crate::gate::Gate;
use crate::program::{BUSY, EXISTS, Home, NOT_FOUND, STORE, USAGE, noise, qemu_io, tool, until};
use crate::s3::S3Lab;
use crate::s3_pool;
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

const FAILED: i32 = 1;

fn two_paths() -> (Gate, Gate, Home) {
    let gates = [(); 2].map(|()| Gate::open(&S3Lab::get().endpoint));
    let mut home = s3_pool::home(&format!("objblk-test-{}", uuid::Uuid::new_v4()));
    let both = format!("{} {},weight=2", gates[0].endpoint(), gates[1].endpoint());
    home.set("OBJBLK_ENDPOINT_URL", &both);
    home.run(&["pool", "init", "--create-bucket"]).ok();
    home.run(&["create", "data", "--size", "64M"]).ok();
    let [one, two] = gates;
    (one, two, home)
}

fn path(home: &Home, index: usize) -> Value {
    home.run(&["path", "list", "data", "--json"]).json()["paths"][index].clone()
}

fn is(home: &Home, index: usize, state: &str) {
    until(state, || path(home, index)["state"] == state);
}

#[test]
fn s3_a_path_is_cut_and_paths_are_changed_under_io() {
    let (one, two, home) = two_paths();
    let server = home.serve(&["data"]);
    let shown = home.run(&["path", "list"]).ok();
    assert!(shown.contains("service-time") && shown.contains(two.endpoint()), "{shown}");
    let (image, back) = (home.path("image"), home.path("back"));
    fs::write(&image, noise(64 << 20)).unwrap();
    let copies = |rounds: usize| {
        let (uri, image, back) = (server.uri.clone(), image.clone(), back.clone());
        std::thread::spawn(move || {
            for _ in 0..rounds {
                tool("nbdcopy", &["--flush", image.to_str().unwrap(), &uri]);
                tool("nbdcopy", &[&uri, back.to_str().unwrap()]);
                assert!(fs::read(&image).unwrap() == fs::read(&back).unwrap(), "the copy differs");
            }
        })
    };
    let client = copies(2);
    until("it writes", || path(&home, 0)["requests"].as_u64() > Some(4));
    one.close();
    is(&home, 0, "failed");
    let status = home.run(&["status", "data", "--json"]).json();
    assert_eq!(status["paths"]["paths"][0]["state"], "failed");
    assert!(home.run(&["status", "data"]).ok().contains("1 of 2 work"));
    client.join().expect("nothing fails while one path is cut");
    one.reopen();
    is(&home, 0, "active");

    let client = copies(2);
    let json = |args: &[&str]| home.run(&[args, &["--json"]].concat()).json();
    assert_eq!(json(&["path", "set-selector", "data", "round-robin"])["selector"], "round-robin");
    let before = path(&home, 0)["requests"].as_u64();
    json(&["path", "disable", "data", "2"]);
    assert_eq!(path(&home, 1)["state"], "disabled");
    home.run(&["path", "disable", "data", "1"]).refuses(BUSY, "only path that is enabled");
    home.run(&["path", "remove", "data", one.endpoint()]).refuses(BUSY, "only path");
    json(&["path", "enable", "data", two.endpoint()]);
    is(&home, 1, "active");
    let third = Gate::open(&S3Lab::get().endpoint);
    let added = json(&["path", "add", "data", &format!("{},priority=7", third.endpoint())]);
    assert_eq!((&added["paths"][2]["id"], &added["group"]), (&3.into(), &7.into()));
    until("it is used", || path(&home, 2)["requests"].as_u64() > Some(0));
    let removed = json(&["path", "remove", "data", "1"]);
    assert_eq!(removed["paths"].as_array().unwrap().len(), 2);
    assert!(before > Some(0));
    client.join().expect("nothing fails while paths are changed");

    home.run(&["path", "remove", "data", "1"]).refuses(NOT_FOUND, "no path 1");
    home.run(&["path", "add", "data", two.endpoint()]).refuses(EXISTS, "already");
    home.run(&["path", "add", "data", "http://127.0.0.1:1"]).refuses(STORE, "is not added");
    home.run(&["path", "add", "data", "nonsense"]).refuses(USAGE, "no URL");
    let from = |address: &str| format!("{},source={address}", one.endpoint());
    let gone = from("192.0.2.7");
    home.run(&["path", "add", "data", &gone]).refuses(FAILED, &format!("the path {gone} cannot"));
    let added = json(&["path", "add", "data", &from("127.0.0.9")]);
    assert_eq!(added["paths"][2]["name"], from("127.0.0.9"));
    home.run(&["--endpoint-url", &gone, "list"]).refuses(FAILED, "cannot go from 192.0.2.7");
    home.run(&["path", "set-selector", "data", "best"]).refuses(USAGE, "queue-length");
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    home.run(&["delete", "data", "--yes"]).ok();
}

/// What waits for the store fails while there is no path, and the device is as before once there is.
#[test]
fn s3_no_path_retry_fails_requests_until_a_path_is_back() {
    let (one, two, home) = two_paths();
    let server = home.serve(&["data", "--no-path-retry", "fail"]);
    assert!(qemu_io(&server.uri, &["write -P 5 0 1M", "flush"]));
    one.close();
    two.close();
    let begun = Instant::now();
    assert!(!qemu_io(&server.uri, &["write -P 6 1M 1M", "flush"]), "a flush without a path");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    one.reopen();
    two.reopen();
    until("it works again", || qemu_io(&server.uri, &["write -P 7 2M 1M", "flush"]));
    assert!(qemu_io(&server.uri, &["read -P 5 0 1M", "read -P 6 1M 1M", "read -P 7 2M 1M"]));
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    home.run(&["delete", "data", "--yes"]).ok();
}

#[test]
fn mistakes_about_paths_are_told() {
    let mut home = Home::new();
    home.run(&["create", "data", "--size", "8M"]).ok();
    let twice = ["--endpoint-url", "http://a", "--endpoint-url", "http://b", "list"];
    home.run(&twice).refuses(USAGE, "has no endpoint");
    home.run(&["path", "list", "data"]).refuses(NOT_FOUND, "not attached");
    let server = home.serve(&["data"]);
    home.run(&["path", "list", "data"]).refuses(USAGE, "has no paths");
    assert_eq!(home.run(&["path", "list", "--json"]).json(), serde_json::json!([]));
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    home.set("OBJBLK_STORE", "s3://some-bucket");
    for (arguments, why) in [
        (["--endpoint-url", "http://a,colour=red", "list"], "no setting"),
        (["--endpoint-url", "http://a,source=eth0", "list"], "no address of a host"),
        (["--path-selector", "best", "list"], "no path selector"),
        (["--no-path-retry", "0", "list"], "queue, fail"),
        (["--path-failback", "soon", "list"], "immediate, manual"),
    ] {
        home.run(&arguments).refuses(USAGE, why);
    }
    home.set("OBJBLK_ENDPOINT_URL", "http://a http://a");
    home.run(&["list"]).refuses(USAGE, "named twice");
}
