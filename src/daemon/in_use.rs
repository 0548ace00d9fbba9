//! Who uses a block device, so that it is not pulled away from under a file system.

use crate::frontend::ublk;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What uses the block device at `path`, in words; `None` where nothing has claimed it (a process
/// that merely has it open does not count). Blocks the calling thread for seconds at most.
pub(super) fn user_of(path: &Path) -> Option<String> {
    if !ublk::is_claimed(path) {
        return None;
    }
    let mounted = fs::metadata(path).ok().and_then(|meta| {
        let device = meta.rdev();
        let device = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
        mount_point(&fs::read_to_string("/proc/self/mountinfo").ok()?, device)
    });
    Some(match mounted {
        Some(point) => format!("mounted on {point}"),
        None => "in use by a mount, a swap area or another device".into(),
    })
}

/// Where the device is mounted, by the lines of `/proc/PID/mountinfo` (proc(5)).
fn mount_point(mountinfo: &str, (major, minor): (u64, u64)) -> Option<String> {
    let device = format!("{major}:{minor}");
    let mut mounts = mountinfo.lines().map(|line| line.split(' '));
    mounts.find_map(|mut fields| {
        let found = fields.nth(2)? == device;
        let point = fields.nth(1)?;
        found.then(|| point.replace("\\040", " "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points() {
        let text = "29 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n\
                    40 29 259:3 / /mnt/a\\040b rw - xfs /dev/ublkb0 rw\n41 x\n";
        assert_eq!(mount_point(text, (259, 3)).as_deref(), Some("/mnt/a b"));
        assert_eq!(mount_point(text, (8, 1)).as_deref(), Some("/"));
        assert_eq!(mount_point(text, (8, 2)), None);
    }
}
