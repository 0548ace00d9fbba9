//! The two device nodes of a ublk device, `/dev/ublkcN` and `/dev/ublkbN`.

use crate::error::{Error, Result};
use crate::units::SectorCount;
use nix::errno::Errno;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long device nodes may take to appear or to be let go.
const SETTLE: Duration = Duration::from_secs(5);

nix::ioctl_read!(
    /// `BLKGETSIZE64` of `linux/fs.h`: bytes of a block device. The header encodes it with the
    /// size of a `size_t`.
    blkgetsize64, 0x12, 114, u64
);

type Attempt<T> = std::result::Result<T, Errno>;

/// Name of the block device's node in `/dev`.
pub(super) fn block_name(dev_id: u32) -> String {
    format!("ublkb{dev_id}")
}

/// Path of the block device's node.
pub(super) fn block_path(dev_id: u32) -> PathBuf {
    Path::new("/dev").join(block_name(dev_id))
}

/// The size of the block device, which may be without a server: nothing of it is read. Errors:
/// there is no such device.
pub(super) fn sysfs_size(dev_id: u32) -> Result<SectorCount> {
    let path = format!("/sys/block/{}/size", block_name(dev_id));
    let text = std::fs::read_to_string(&path);
    let text = text.map_err(|e| Error::failed(format!("cannot read {path}")).because(e))?;
    let sectors = text.trim().parse().map(SectorCount);
    sectors.map_err(|e| Error::failed(format!("{path} holds no number")).because(e))
}

/// Asks `done` every few milliseconds until it says yes or `timeout` is over.
pub(super) fn poll_until(timeout: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    while !done() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Tries `open` until it succeeds or [`SETTLE`] is over; the last error then.
fn settle<T>(mut open: impl FnMut() -> Attempt<T>) -> Attempt<T> {
    let mut last = Err(Errno::ETIMEDOUT);
    poll_until(SETTLE, || {
        last = open();
        last.is_ok()
    });
    last
}

/// Opens `/dev/ublkcN`, which one process at a time may hold. Errors: the node does not appear,
/// or another holds it.
pub(super) fn open_character(dev_id: u32) -> Result<File> {
    let path = format!("/dev/ublkc{dev_id}");
    let opened = settle(|| {
        let file = OpenOptions::new().read(true).write(true).open(&path);
        file.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(Errno::EIO as i32)))
    });
    opened.map_err(|errno| {
        let hint = match errno {
            Errno::ENOENT => "devtmpfs must be mounted on /dev, or udev must make the node",
            Errno::EBUSY => "a process serves this device: detach it there",
            _ => "run as root",
        };
        Error::failed(format!("cannot open {path}")).because(errno).hint(hint)
    })
}

/// True where no process holds `/dev/ublkcN` open, so nobody serves the device; waits a little
/// for a dying process to let go.
pub(super) fn is_unserved(dev_id: u32) -> bool {
    open_character(dev_id).is_ok()
}

/// Waits until the block device can be opened and has its size. Opening it hangs while the kernel
/// reads the partition table: for an errand.
pub(super) fn await_size(dev_id: u32, size: SectorCount) -> Attempt<()> {
    let path = block_path(dev_id);
    settle(|| match block_size(&path)? {
        bytes if bytes == size.bytes() => Ok(()),
        _ => Err(Errno::ENXIO),
    })
}

fn block_size(path: &Path) -> Attempt<u64> {
    let flags = nix::libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(Errno::EIO as i32)))?;
    let mut bytes = 0;
    // SAFETY: the file is open and the ioctl stores one u64.
    unsafe { blkgetsize64(file.as_raw_fd(), &mut bytes)? };
    Ok(bytes)
}
