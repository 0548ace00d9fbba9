//! File systems on a volume: NBD, FUSE and a loop device make it a block device of this kernel.
//!
//! The loop device stays in buffered mode.

use crate::world::{Served, World, arg, attempt, full, tool, until};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// A served volume as a block device. Taken apart in order by [`Device::end`], or else on drop.
struct Device {
    fuse: Child,
    folder: PathBuf,
    loop_device: String,
    mounted: PathBuf,
}

impl Device {
    fn begin(world: &World, server: &Served) -> Device {
        let (folder, mounted) = (world.path("fuse"), world.path("mounted"));
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir_all(&mounted).unwrap();
        let file = folder.join("disk");
        let mut fuse = Command::new("nbdfuse");
        let fuse = fuse.args(["-o", "allow_other"]).arg(&file).arg(&server.uri).spawn();
        let fuse = fuse.expect("nbdfuse is missing: install the Debian package libnbd-bin");
        let mut device = Device { fuse, folder, loop_device: String::new(), mounted };
        until("nbdfuse shows the file", || file.exists());
        let name = tool("util-linux", "losetup", &["--find", "--show", arg(&file)]);
        device.loop_device = name.trim().to_owned();
        device
    }

    fn mount(&self, options: &str) -> &Path {
        tool("util-linux", "mount", &["-o", options, &self.loop_device, arg(&self.mounted)]);
        &self.mounted
    }

    fn unmount(&self) {
        tool("util-linux", "umount", &[arg(&self.mounted)]);
    }

    fn end(mut self) {
        tool("util-linux", "losetup", &["--detach", &self.loop_device]);
        self.loop_device.clear();
        tool("util-linux", "umount", &[arg(&self.folder)]);
        assert!(self.fuse.wait().unwrap().success(), "nbdfuse failed");
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.fuse.try_wait() {
            return;
        }
        attempt("util-linux", "umount", &[arg(&self.mounted)]);
        if !self.loop_device.is_empty() {
            attempt("util-linux", "losetup", &["--detach", &self.loop_device]);
        }
        attempt("util-linux", "umount", &["--lazy", arg(&self.folder)]);
        let _ = self.fuse.kill();
        let _ = self.fuse.wait();
    }
}

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

fn survives_a_restart(make: &[&str], check: &[&str], check_package: &str) {
    assert!(nix::unistd::geteuid().is_root(), "mounting a file system needs root");
    let world = World::s3();
    let tree = tree(&world);
    world.run(&["create", "disk", "--size", "1G"]);
    let server = world.serve("disk", &[]);
    let device = Device::begin(&world, &server);
    let make: Vec<&str> = make.iter().copied().chain([&*device.loop_device]).collect();
    tool(check_package, make[0], &make[1..]);
    let mounted = device.mount("noatime");
    tool("coreutils", "cp", &["-a", arg(&tree), arg(mounted)]);
    fs::remove_file(mounted.join("tree/noise-3")).unwrap();
    fs::remove_file(tree.join("noise-3")).unwrap();
    device.unmount();
    device.end();
    server.stop();

    let server = world.serve("disk", &[]);
    let device = Device::begin(&world, &server);
    let check: Vec<&str> = check.iter().copied().chain([&*device.loop_device]).collect();
    tool(check_package, check[0], &check[1..]);
    let mounted = device.mount("ro");
    tool("diffutils", "diff", &["-r", arg(&tree), arg(&mounted.join("tree"))]);
    device.unmount();
    device.end();
    server.stop();
}

#[test]
fn s3_ext4_survives_a_restart() {
    survives_a_restart(&["mkfs.ext4", "-q"], &["fsck.ext4", "-fn"], "e2fsprogs");
}

#[test]
fn s3_xfs_survives_a_restart() {
    survives_a_restart(&["mkfs.xfs", "-q"], &["xfs_repair", "-n"], "xfsprogs");
}
