//! File systems on a volume.

use crate::device::Device;
use crate::world::{World, arg, full, tool};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::fs;
use std::path::PathBuf;

/// A tree of many small files and some large ones.
fn tree(world: &World) -> PathBuf {
    let tree = world.path("tree");
    fs::create_dir(&tree).unwrap();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    tool("coreutils", "cp", &["-a", source, arg(&tree)]);
    let mut rng = StdRng::seed_from_u64(7);
    for number in 0..if full() { 400 } else { 40 } {
        let mut noise = vec![0; rng.random_range(1..2 << 20)];
        rng.fill_bytes(&mut noise);
        fs::write(tree.join(format!("noise-{number}")), noise).unwrap();
    }
    tree
}

pub fn survives_a_restart(world: &World, make: &[&str], check: &[&str], check_package: &str) {
    let tree = tree(world);
    world.run(&["create", "disk", "--size", "1G"]);
    let server = world.serve("disk", &[]);
    let device = Device::begin(world, &server);
    let make: Vec<&str> = make.iter().copied().chain([&*device.name]).collect();
    tool(check_package, make[0], &make[1..]);
    let mounted = device.mount("noatime");
    tool("coreutils", "cp", &["-a", arg(&tree), arg(mounted)]);
    fs::remove_file(mounted.join("tree/noise-3")).unwrap();
    fs::remove_file(tree.join("noise-3")).unwrap();
    device.unmount();
    device.end();
    server.stop();

    let server = world.serve("disk", &[]);
    let device = Device::begin(world, &server);
    let check: Vec<&str> = check.iter().copied().chain([&*device.name]).collect();
    tool(check_package, check[0], &check[1..]);
    let mounted = device.mount("ro");
    tool("diffutils", "diff", &["-r", arg(&tree), arg(&mounted.join("tree"))]);
    device.unmount();
    device.end();
    server.stop();
}

#[test]
fn s3_ext4_survives_a_restart() {
    survives_a_restart(&World::s3(), &["mkfs.ext4", "-q"], &["fsck.ext4", "-fn"], "e2fsprogs");
}

#[test]
fn s3_xfs_survives_a_restart() {
    survives_a_restart(&World::s3(), &["mkfs.xfs", "-q"], &["xfs_repair", "-n"], "xfsprogs");
}
