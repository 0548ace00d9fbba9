//! A QEMU guest on two disks of `objblk serve vhost-user`, one over split and one over packed rings, whose
//! processes are killed under fio: the guest sees a pause, no error, and its file systems are whole.
//! OBJBLK_FULL=1 runs longer and kills more often.
//!
//! Needs root and what `scripts/vm/run.sh` needs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "the rest of it is for tests/vhost")]
#[path = "vhost/program.rs"]
mod program;

use program::Home;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn a_guest_does_not_notice_that_its_backend_is_killed() {
    let full = std::env::var_os("OBJBLK_FULL").is_some();
    let (seconds, kills): (u64, u64) = if full { (120, 20) } else { (10, 2) };
    // Each disk has a pool of its own.
    let homes = [Home::new(), Home::new()];
    for home in &homes {
        home.ok(&["create", "disk", "--size", "256M"]);
    }
    let mut serving = homes.each_ref().map(|home| home.serve(&["disk"]));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut guest = Command::new(root.join("scripts/vm/run.sh"));
    guest.args(["-t", if full { "600" } else { "240" }, "-e", &format!("FIO_SECONDS={seconds}")]);
    guest.arg("-u").arg(homes[0].socket());
    guest.arg("-u").arg(format!("{},packed=on", homes[1].socket().display()));
    guest.arg("-f").arg(root.join("tests/vm/vhost-user.sh"));
    let mut guest = guest.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(guest.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut said = Vec::new();
    for line in lines.by_ref() {
        said.push(line);
        if said.last().is_some_and(|line| line == "load") {
            break;
        }
    }
    let mut resubmitted = [0, 0];
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(seconds * 600 / kills));
        for dying in serving {
            dying.kill();
        }
        serving = homes.each_ref().map(|home| home.serve(&["disk"]));
        // QEMU tries once a second.
        std::thread::sleep(Duration::from_millis(1500));
        for (home, resubmitted) in homes.iter().zip(&mut resubmitted) {
            *resubmitted += home.status()["requests"]["resubmitted"].as_u64().unwrap();
        }
    }
    said.extend(lines);
    let ended = guest.wait().unwrap();
    println!("{}\n{resubmitted:?} requests were answered by successors", said.join("\n"));
    let log = serving.each_ref().map(program::Serving::said).join("\n");
    assert!(ended.success() && said.last().is_some_and(|l| l == "done"), "{ended} {said:?}\n{log}");
    assert!(said.contains(&"load".to_owned()) && said.contains(&"verified".to_owned()));
    for (home, serving) in homes.iter().zip(serving) {
        let counters = home.status()["requests"].clone();
        assert_eq!(counters["connections"], 1, "the guest has come back to the last process");
        assert!(counters["writes"].as_u64().unwrap() > 0);
        let wrong = (&counters["errors"], &counters["broken_rings"]);
        assert_eq!(wrong, (&0.into(), &0.into()), "{log}");
        serving.signal("TERM");
        assert_eq!(serving.ended().0, Some(0));
    }
}
