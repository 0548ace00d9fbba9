//! One suite for every way into a volume: the same requests, the same faults, one oracle.
//!
//! NBD, vhost-user over rings of either shape and FUSE are here; the block device of an attached volume has the suite run through it
//! in a guest whose kernel has ublk (`tests/vm.rs`). `OBJBLK_FULL=1` takes ten times as many requests,
//! `OBJBLK_SEED` other ones.
//!
//! Needs FUSE in the kernel, root, the programs of Debian's `mount`, and what `scripts/s3/ceph.sh` needs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "the rest of it is for other tests")]
#[path = "support/nbd_client.rs"]
mod client;
#[path = "doors/door.rs"]
mod door;
#[path = "doors/faults.rs"]
mod faults;
#[allow(dead_code, reason = "the rest of it is for tests/vm.rs")]
#[path = "doors/file_hand.rs"]
mod file_hand;
#[path = "doors/fuse_door.rs"]
mod fuse_door;
#[path = "doors/home.rs"]
mod home;
#[allow(dead_code, reason = "the rest of it is for tests/vhost")]
#[path = "vhost/master.rs"]
mod master;
#[allow(dead_code, reason = "the rest of it is for other tests")]
#[path = "support/nbd.rs"]
mod nbd;
#[path = "doors/nbd_door.rs"]
mod nbd_door;
#[path = "doors/oracle.rs"]
mod oracle;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/s3.rs"]
mod s3;
#[path = "doors/suite.rs"]
mod suite;
#[path = "doors/vhost_door.rs"]
mod vhost_door;

use door::Kind;
use fuse_door::FUSE;
use home::Home;
use nbd_door::NBD;
use s3::S3Lab;
use vhost_door::{VHOST, VHOST_PACKED};

const DOORS: [Kind; 4] = [NBD, VHOST, VHOST_PACKED, FUSE];

/// The same for every door, unless another is wished for.
fn seed() -> u64 {
    std::env::var("OBJBLK_SEED").map_or(1, |text| text.parse().expect("OBJBLK_SEED is a number"))
}

fn amount() -> usize {
    if std::env::var("OBJBLK_FULL").is_ok_and(|value| value == "1") { 4000 } else { 200 }
}

/// At the same time: what they wait for takes more time than what they do.
fn each(show: impl Fn(Kind) + Sync) {
    let show = &show;
    std::thread::scope(|scope| {
        for door in DOORS {
            scope.spawn(move || show(door));
        }
    });
}

#[test]
fn nbd_is_a_disk() {
    suite::conforms(NBD, seed(), amount());
}

#[test]
fn vhost_user_is_a_disk() {
    suite::conforms(VHOST, seed(), amount());
}

#[test]
fn vhost_user_is_a_disk_over_packed_rings() {
    suite::conforms(VHOST_PACKED, seed(), amount());
}

#[test]
fn a_file_of_a_mounted_directory_is_a_disk() {
    suite::conforms(FUSE, seed(), amount());
}

#[test]
fn kills_lose_nothing_flushed_through_any_door() {
    each(|door| suite::kills(door, seed(), amount() / 10));
}

#[test]
fn what_can_only_be_read_is_not_changed_through_any_door() {
    each(|door| suite::read_only(door, seed()));
}

#[test]
fn growth_is_seen_through_every_door() {
    each(|door| suite::grows(door, seed()));
}

#[test]
fn damage_is_an_error_for_exactly_its_blocks_through_every_door() {
    each(|door| faults::damage(door, seed()));
}

#[test]
fn a_fenced_owner_is_told_through_every_door() {
    each(faults::fenced);
}

#[test]
fn s3_an_outage_is_waited_out_through_every_door() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let lab = S3Lab::get();
    let bucket = runtime.block_on(lab.bucket());
    each(|door| {
        let proxy = runtime.block_on(proxy::Proxy::start(&lab.endpoint));
        let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
        let mut env: Vec<_> = keys.map(|name| (name, lab.var(name).to_owned())).into();
        env.push(("OBJBLK_ENDPOINT_URL", proxy.endpoint()));
        let home = Home::of(&format!("s3://{}/{}", bucket.name, door.name), env);
        faults::outage(door, &home, &|down| proxy.outage(down), true);
    });
    runtime.block_on(bucket.empty());
}
