//! The partitions of a device that must not read its own table while it starts.
//!
//! Before Linux 6.19 the driver has the kernel read the partition table inside START_DEV, holding
//! the device's lock. When the server dies meanwhile these reads are never answered, and no command can
//! end the device, as each takes that lock: the server's threads cannot be killed, and only a reboot
//! helps. So on these kernels the reads are kept out of START_DEV: the driver leaves them out where
//! no queue's thread has CAP_SYS_ADMIN. `partx` adds the partitions afterwards, when the device can be
//! ended. For the rest of its life such a device refuses BLKRRPART; tools that add and remove
//! partitions one by one (parted, partprobe, partx) work.
//!
//! Source: Linux drivers/block/ublk_drv.c, `ublk_ctrl_start_dev` and `ublk_mark_io_ready`; commit
//! 7fc4da6a304b ("ublk: scan partition in async way").

use crate::error::{Error, Result};
use caps::{CapSet, Capability};
use nix::errno::Errno;
use std::path::Path;
use std::process::Command;

/// The first release that reads the partition table after START_DEV.
const READS_AFTER_START: (u32, u32) = (6, 19);

/// Whether the driver of kernel `release` reads the partition table inside START_DEV. What cannot
/// be known counts as yes.
pub(super) fn read_inside_start(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < READS_AFTER_START,
        _ => true,
    }
}

/// Makes the calling thread, which serves a queue, one that the driver reads no partition table for.
///
/// # Errors
/// Failed: the kernel refuses.
pub(super) fn keep_out_of_start() -> Result<()> {
    caps::drop(None, CapSet::Effective, Capability::CAP_SYS_ADMIN)
        .map_err(|e| Error::failed("a queue's thread cannot give up CAP_SYS_ADMIN").because(e))
}

/// Adds the partitions of the block device at `path`, where it has some. For an errand.
///
/// # Errors
/// There is no `partx`, or it failed; the device works without.
pub(super) fn add(path: &Path) -> std::result::Result<(), Errno> {
    let partx = Command::new("partx").arg("--add").arg(path).env("LC_ALL", "C").output();
    let partx =
        partx.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(Errno::EIO as i32)))?;
    // So it says, with the code of any other failure, where there is no table.
    let text = String::from_utf8_lossy(&partx.stderr);
    match partx.status.success() || text.contains("failed to read partition table") {
        true => Ok(()),
        false => Err(Errno::ENXIO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_read_the_table_inside_start() {
        for release in ["6.12.95+deb12-cloud-amd64", "6.1.0-40", "6.18.44", "5.15", "what", "6", ""]
        {
            assert!(read_inside_start(release), "{release}");
        }
        for release in ["6.19.0", "6.19-rc1", "7.0", "7.2.4+deb14", "10.1"] {
            assert!(!read_inside_start(release), "{release}");
        }
    }

    #[test]
    fn a_thread_gives_up_what_the_driver_looks_for() {
        let given_up = std::thread::spawn(|| {
            keep_out_of_start().unwrap();
            caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap()
        });
        assert!(!given_up.join().unwrap());
    }
}
