//! Hosts that have nothing in common but the store: what they want of a volume its owner does.

use crate::fault_proxy::{CALM, FaultProxy};
use crate::hosts::Host;
use crate::s3::S3Lab;
use crate::world::{BUSY, World, seed};
use std::collections::BTreeSet;
use std::time::Instant;

/// Exit code for what exists already.
const EXISTS: i32 = 4;

fn names(world: &World) -> BTreeSet<String> {
    let listed = world.json(&["snapshot", "list", "disk"]);
    let name = |one: &serde_json::Value| one["snapshot"].as_str().unwrap().to_owned();
    listed.as_array().unwrap().iter().map(name).collect()
}

#[test]
fn s3_hosts_ask_the_owner_through_the_store() {
    let seed = seed();
    let world = World::s3();
    let (hosts, _ways): (Vec<World>, Vec<FaultProxy>) = ["ask", "embla", "lif"]
        .into_iter()
        .map(|name| {
            let host = Host::new(name, &world.path(""));
            let way = FaultProxy::start(&S3Lab::get().endpoint, host.gateway(), &CALM, seed);
            let way = world.wait(way);
            (world.at(host, way.endpoint()), way)
        })
        .unzip();
    let [owner, far, other] = &hosts[..] else { panic!("three hosts") };
    owner.run(&["create", "disk", "--size", "64M"]);
    let server = owner.serve("disk", &["--heartbeat", "2s"]);
    let begun = Instant::now();
    let (_, told) = far.run(&["snapshot", "create", "disk@first"]);
    let whom = format!("disk is attached by process {} on host ask, for ", server.pid());
    assert!(told.contains(&whom), "{told}");
    println!("asked and answered in {:?}", begun.elapsed());

    // All want the same four: each is made by one of them.
    let begun = Instant::now();
    let made: Vec<i32> = std::thread::scope(|scope| {
        let asks = hosts.iter().flat_map(|host| (0..4).map(move |n| (host, n)));
        let running: Vec<_> = asks
            .map(|(host, n)| {
                scope.spawn(move || {
                    let name = format!("disk@s{n}");
                    let output =
                        host.objblk(&["snapshot", "create", &name, "--wait", "2m"]).output();
                    output.unwrap().status.code().unwrap()
                })
            })
            .collect();
        running.into_iter().map(|running| running.join().unwrap()).collect()
    });
    println!("12 at once in {:?}: {made:?}", begun.elapsed());
    let count = |code| made.iter().filter(|made| **made == code).count();
    assert_eq!((count(0), count(EXISTS)), (4, 8), "{made:?}");
    let all = ["first", "s0", "s1", "s2", "s3"].map(String::from);
    assert_eq!(names(other), BTreeSet::from(all));

    owner.apart().cut(true);
    let told = far.refused(BUSY, &["snapshot", "create", "disk@cut", "--wait", "3s"]);
    assert!(told.contains("has not answered within 3 s"), "{told}");
    owner.apart().cut(false);
    let (_, told) = other.run(&["snapshot", "delete", "disk@s0", "--yes", "--wait", "2m"]);
    assert!(told.contains(&whom), "served behind the one that was withdrawn: {told}");
    assert_eq!(names(far), BTreeSet::from(["first", "s1", "s2", "s3"].map(String::from)));
    server.stop();
}
