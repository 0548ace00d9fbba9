//! A vhost-user target among others: status, detach, growth, takeover, sockets.

use super::master::{IO_ERROR, Master, OK, Request, Wishes};
use super::program::Home;
use serde_json::json;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const EXISTS: i32 = 4;
const BUSY: i32 = 5;

fn home() -> Home {
    let home = Home::new();
    home.ok(&["create", "disk", "--size", "16M"]);
    home
}

#[test]
fn status_and_detach() {
    let home = home();
    let serving = home.serve(&["disk"]);
    let socket = home.socket();
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let status = home.status();
    assert_eq!((&status["frontend"], &status["state"]), (&json!("vhost-user"), &json!("attached")));
    assert_eq!(status["device"], socket.to_str().unwrap());
    assert_eq!(status["pid"], serving.pid());
    let mut master = Master::begin(&socket, Wishes::default());
    let id: serde_json::Value =
        serde_json::from_str(&home.ok(&["info", "disk", "--json"])).unwrap();
    let id: String = id["id"].as_str().unwrap().chars().filter(|c| *c != '-').take(20).collect();
    let serial = master.ask(0, &Request { back: 20, ..Request::new(8, 0) });
    assert_eq!((serial.status, serial.data), (OK, id.into_bytes()));
    master.write(0, &[5; 512]);
    assert_eq!(home.status()["requests"]["writes"], 1);
    home.refused(&["detach", "disk"], BUSY, "is the disk of the virtual machine of process");
    home.refused(&["serve", "nbd", "disk"], BUSY, "is attached already");
    assert_eq!(master.read(0, 512), [5; 512], "a refused detach leaves it as it was");
    drop(master);
    let begun = Instant::now();
    while home.status()["requests"]["rings"] != 0 {
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    home.ok(&["detach", socket.to_str().unwrap()]);
    assert_eq!(serving.ended(), (Some(0), String::new()));
    assert!(!socket.exists());
    assert_eq!(std::fs::read_dir(home.path("run")).unwrap().count(), 0);
    home.refused(&["detach", "disk"], NOT_FOUND, "not attached");
}

#[test]
fn a_forced_detach_ends_it_under_its_guest() {
    let home = home();
    let serving = home.serve(&["disk"]);
    let mut master = Master::begin(&home.socket(), Wishes::default());
    master.write(0, &[5; 512]);
    home.ok(&["detach", "disk", "--force"]);
    assert_eq!(serving.ended().0, Some(0));
    assert!(master.frontend_is_gone());
    let _serving = home.serve(&["disk"]);
    let mut master = master.come_back(&home.socket()).map_err(|(e, _)| e).unwrap();
    assert_eq!(master.read(0, 512), [5; 512]);
}

#[test]
fn a_disk_grows_under_its_guest() {
    let home = home();
    let _serving = home.serve(&["disk"]);
    let mut master = Master::begin(&home.socket(), Wishes::default());
    let beyond = 16 << 20 >> 9;
    assert_eq!(master.ask(0, &Request::write(beyond, &[1; 512])).status, IO_ERROR);
    home.ok(&["resize", "disk", "--size", "32M"]);
    let mut message = [0; 12];
    master.channel.read_exact(&mut message).unwrap();
    assert_eq!(message[0], 2, "the configuration has changed");
    assert_eq!(master.capacity(), 32 << 20);
    master.write(beyond, &[1; 512]);
    home.refused(&["resize", "disk", "--size", "8M", "--shrink"], USAGE, "shrinks only");
}

#[test]
fn a_snapshot_and_a_read_only_volume() {
    let home = home();
    let serving = home.serve(&["disk"]);
    let mut master = Master::begin(&home.socket(), Wishes::default());
    master.write(0, &[1; 512]);
    home.ok(&["snapshot", "create", "disk@one"]);
    master.write(0, &[2; 512]);
    serving.signal("TERM");
    assert_eq!(serving.ended().0, Some(0));
    for (what, byte) in [("disk@one", 1u8), ("disk", 2)] {
        let serving = home.serve(&[what, "--read-only"]);
        let mut master = Master::begin(&home.socket(), Wishes::default());
        assert_eq!(master.read(0, 512), vec![byte; 512]);
        assert_eq!(master.ask(0, &Request::write(0, &[3; 512])).status, IO_ERROR);
        // There is nothing to be lost.
        serving.kill();
        let _serving = home.serve(&[what, "--read-only"]);
        let mut master = master.come_back(&home.socket()).map_err(|(e, _)| e).unwrap();
        assert_eq!(master.read(0, 512), vec![byte; 512]);
    }
}

#[test]
fn a_new_owner_leaves_errors_to_the_old_one() {
    let home = home();
    let serving = home.serve(&["disk", "--heartbeat", "1s"]);
    let mut master = Master::begin(&home.socket(), Wishes::default());
    master.write(0, &[1; 512]);
    master.flush();
    let other = home.other_host();
    let taken = other.serve(&["disk", "--takeover"]);
    // At the latest when it wants to make something durable.
    let write = master.ask(0, &Request::write(0, &[2; 512])).status;
    assert!([OK, IO_ERROR].contains(&write));
    assert_eq!(master.ask(0, &Request::new(4, 0)).status, IO_ERROR);
    assert_eq!(master.ask(0, &Request::read(0, 512)).status, IO_ERROR);
    let failure = home.status()["failure"].to_string();
    assert!(failure.contains(&taken.pid().to_string()), "it says who has it: {failure}");
    let mut guest = Master::begin(&other.socket(), Wishes::default());
    assert_eq!(guest.read(0, 512), [1; 512]);
    drop(serving);
}

#[test]
fn sockets_of_the_dead_and_of_the_living() {
    let home = home();
    let socket = home.socket();
    drop(UnixListener::bind(&socket).unwrap());
    let serving = home.serve(&["disk"]);
    home.ok(&["create", "other", "--size", "1M"]);
    let refused = home.try_serve(&["other"]).map(drop).unwrap_err();
    assert!(refused.contains("another server listens at"), "{refused}");
    serving.signal("INT");
    assert_eq!(serving.ended(), (Some(0), String::new()));
    std::fs::write(&socket, "text").unwrap();
    let path = socket.to_str().unwrap();
    home.refused(&["serve", "vhost-user", "disk", "--socket", path], EXISTS, "is no socket");
    home.refused(&["serve", "vhost-user", "disk"], USAGE, "--socket");
    home.refused(&["serve", "vhost-user", "none", "--socket", path], NOT_FOUND, "none");
    let long = format!("/tmp/{}", "x".repeat(200));
    home.refused(&["serve", "vhost-user", "disk", "--socket", &long], 1, "cannot listen");
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "text");
}

/// What waits for a successor is not attached by anything else, and `recover` brings it back.
#[test]
fn a_dead_target_is_recovered() {
    let home = home();
    let serving = home.serve(&["disk"]);
    let mut master = Master::begin(&home.socket(), Wishes::default());
    master.write(0, &[7; 512]);
    serving.kill();
    home.refused(&["serve", "nbd", "disk"], BUSY, "objblk recover disk");
    let path = home.socket();
    let read_only =
        ["serve", "vhost-user", "disk", "--read-only", "--socket", path.to_str().unwrap()];
    home.refused(&read_only, BUSY, "objblk recover disk");
    home.refused(&["detach", "disk"], BUSY, "objblk recover disk");
    assert_eq!(home.ok(&["recover"]), format!("{} disk", path.display()));
    let mut master = master.come_back(&path).map_err(|(e, _)| e).unwrap();
    assert_eq!(master.read(0, 512), [7; 512]);
    drop(master);
    home.ok(&["detach", "disk", "--force"]);
    // It ends behind its last words.
    let begun = Instant::now();
    while std::fs::read_dir(home.path("run")).unwrap().count() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "it leaves something");
    }
}

/// The past of a volume is a device that is only read, beside the volume or without it.
#[test]
fn the_past_is_a_read_only_device() {
    let home = home();
    home.ok(&["retain", "disk", "1h"]);
    let info: serde_json::Value =
        serde_json::from_str(&home.ok(&["info", "disk", "--json"])).unwrap();
    let slot = format!("#{}", info["oldest_seq"]);
    let serving = home.serve(&["disk"]);
    let mut master = Master::begin(&home.socket(), Wishes::default());
    master.write(0, &[7; 512]);
    drop(master);
    home.ok(&["detach", "disk"]);
    assert_eq!(serving.ended().0, Some(0));
    let past = home.serve(&["disk", "--at", &slot]);
    let mut master = Master::begin(&home.socket(), Wishes::default());
    assert_eq!(home.status()["read_only"], true, "{}", home.status());
    assert_eq!(master.read(0, 512), [0; 512]);
    drop(master);
    home.ok(&["detach", &home.socket().display().to_string()]);
    assert_eq!(past.ended().0, Some(0));
}
