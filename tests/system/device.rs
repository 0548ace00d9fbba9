//! A served volume as a block device of this kernel: NBD, FUSE and a loop device.
//!
//! The loop device stays in buffered mode.

use crate::leftovers::is_mounted;
use crate::world::{Served, World, arg, attempt, tool, until};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// Taken apart in order by [`Device::end`], after a crash by [`Device::abandon`], or else on drop.
pub struct Device {
    fuse: Child,
    folder: PathBuf,
    /// The block device.
    pub name: String,
    mounted: PathBuf,
}

impl Device {
    pub fn begin(world: &World, server: &Served) -> Device {
        assert!(nix::unistd::geteuid().is_root(), "a loop device needs root");
        let (folder, mounted) = (world.path("fuse"), world.path("mounted"));
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir_all(&mounted).unwrap();
        let file = folder.join("disk");
        let mut fuse = Command::new("nbdfuse");
        let fuse = fuse.args(["-o", "allow_other"]).arg(&file).arg(&server.uri).spawn();
        let fuse = fuse.expect("nbdfuse is missing: install the Debian package libnbd-bin");
        let mut device = Device { fuse, folder, name: String::new(), mounted };
        until("nbdfuse shows the file", || file.exists());
        let name = tool("util-linux", "losetup", &["--find", "--show", arg(&file)]);
        device.name = name.trim().to_owned();
        device
    }

    /// The file that the loop device is made of.
    pub fn file(&self) -> PathBuf {
        self.folder.join("disk")
    }

    pub fn mount(&self, options: &str) -> &Path {
        tool("util-linux", "mount", &["-o", options, &self.name, arg(&self.mounted)]);
        &self.mounted
    }

    pub fn unmount(&self) {
        tool("util-linux", "umount", &[arg(&self.mounted)]);
    }

    pub fn end(mut self) {
        tool("util-linux", "losetup", &["--detach", &self.name]);
        self.name.clear();
        // The kernel lets go of the file when nobody looks at the loop device any more.
        until("nbdfuse is unmounted", || is_unmounted(&self.folder));
        assert!(self.fuse.wait().unwrap().success(), "nbdfuse failed");
    }

    /// Takes it apart after its server died; what is mounted has failed.
    pub fn abandon(mut self) {
        // Those who used it are still finding out.
        until("the file system is unmounted", || is_unmounted(&self.mounted));
        tool("util-linux", "losetup", &["--detach", &self.name]);
        self.name.clear();
        // It may have left by itself when its server did.
        until("nbdfuse is unmounted", || is_unmounted(&self.folder));
        self.fuse.wait().unwrap();
    }
}

/// Unmounts what is mounted there, if it can be.
fn is_unmounted(point: &Path) -> bool {
    !is_mounted(point) || attempt("util-linux", "umount", &[arg(point)]).status.success()
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.fuse.try_wait() {
            return;
        }
        attempt("util-linux", "umount", &[arg(&self.mounted)]);
        if !self.name.is_empty() {
            attempt("util-linux", "losetup", &["--detach", &self.name]);
        }
        attempt("util-linux", "umount", &["--lazy", arg(&self.folder)]);
        let _ = self.fuse.kill();
        let _ = self.fuse.wait();
    }
}
