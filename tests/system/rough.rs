//! The whole product over a network and a server that misbehave: tests of other modules, once more.

use crate::fault_proxy::{BROKEN, BUSY, CONFUSED, FAR, Profile, STORM};
use crate::world::{World, full, seed};
use crate::{fence, filesystem};
use std::time::Instant;

/// Runs a test on S3 through a proxy with these faults; all of them must have happened.
pub fn through(profile: &'static Profile, test: impl Fn(&World)) {
    let begun = Instant::now();
    let world = World::s3_through(profile, seed());
    test(&world);
    let verdict = world.wait(world.faults().verdict());
    println!("{verdict}; {:.1?} in all", begun.elapsed());
}

/// Every operation a file system does, and an orderly end.
fn ext4(world: &World) {
    filesystem::survives_a_restart(world, &["mkfs.ext4", "-q"], &["fsck.ext4", "-fn"], "e2fsprogs");
}

#[test]
fn s3_ext4_over_a_broken_network() {
    through(&BROKEN, ext4);
}

#[test]
fn s3_ext4_on_a_busy_server() {
    through(&BUSY, ext4);
}

#[test]
fn s3_ext4_on_a_far_server() {
    through(&FAR, ext4);
}

#[test]
fn s3_xfs_through_a_confused_gateway() {
    through(&CONFUSED, |world| {
        let (make, check) = (["mkfs.xfs", "-q"], ["xfs_repair", "-n"]);
        filesystem::survives_a_restart(world, &make, &check, "xfsprogs");
    });
}

/// Takeovers are few requests each: several volumes make sure that all faults occur.
#[test]
fn s3_fences_hold_in_a_storm() {
    through(&STORM, |world| {
        for _ in 0..if full() { 10 } else { 2 } {
            fence::second_owner_fences_the_first(world);
            fence::stopped_owner_finds_itself_fenced(world);
        }
    });
}

#[test]
fn s3_fences_hold_through_a_confused_gateway() {
    through(&CONFUSED, |world| {
        for _ in 0..if full() { 20 } else { 2 } {
            fence::second_owner_fences_the_first(world);
            fence::stopped_owner_finds_itself_fenced(world);
        }
    });
}
