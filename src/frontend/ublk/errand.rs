//! What is done to a block device outside its server's process.
//!
//! A thread that waits for the device that its own process serves waits for ever once that process
//! is killed: it cannot die before it is answered, the process keeps the device's node open as long as
//! a thread lives, and while it is open the driver neither answers the requests nor lets anybody else
//! serve or end the device. So whatever may wait for the device's answers is an errand: a process of
//! its own, started from the same program, which holds nothing of the server's. An errand that is stuck
//! comes back when the device has a new server or is ended.
//!
//! Contract for programs with this frontend: `main` begins with [`errand`] and ends with the code that
//! it returns, if it returns one.

use super::control::{self, Failure};
use super::{bounded, host, node, partitions};
use crate::error::{Error, Result};
use crate::units::SectorCount;
use nix::errno::Errno;
use nix::libc::{O_CLOEXEC, O_EXCL};
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// First argument of a program that was started for an errand.
const VERB: &str = "ublk-errand";

/// This program, whatever has become of its file.
const PROGRAM: &str = "/proc/self/exe";

/// How long a look at who claims a device may take.
const LOOK: Duration = Duration::from_secs(5);

/// Runs the errand that the program of these arguments was started for; `None` where it was not
/// started for one.
pub fn errand(arguments: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let arguments: Vec<OsString> = arguments.into_iter().skip(1).take(4).collect();
    let arguments: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    let (verb, what) = arguments.split_first()?;
    if *verb != VERB {
        return None;
    }
    // In place of "exe".
    let _ = nix::sys::prctl::set_name(c"ublk-errand");
    let done = match what {
        ["claim", device] => claim(Path::new(device)),
        ["settle", dev_id, sectors] => parse(dev_id, sectors).and_then(|(id, n)| settle(id, n)),
        ["stop", dev_id] => parse(dev_id, "0").and_then(|(id, _)| stop_now(id)),
        ["sync", device] => File::open(device).and_then(|file| file.sync_all()).map_err(errno),
        _ => Err(Errno::EINVAL),
    };
    Some(done.map_or_else(|errno| ExitCode::from(errno as i32 as u8), |()| ExitCode::SUCCESS))
}

type Done = std::result::Result<(), Errno>;

fn errno(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32))
}

fn parse(dev_id: &str, sectors: &str) -> std::result::Result<(u32, SectorCount), Errno> {
    match (dev_id.parse(), sectors.parse()) {
        (Ok(dev_id), Ok(sectors)) => Ok((dev_id, SectorCount(sectors))),
        _ => Err(Errno::EINVAL),
    }
}

/// Of a block device O_EXCL without O_CREAT asks whether it is claimed: open(2).
fn claim(device: &Path) -> Done {
    let opened = OpenOptions::new().read(true).custom_flags(O_EXCL | O_CLOEXEC).open(device);
    opened.map(drop).map_err(errno)
}

fn settle(dev_id: u32, size: SectorCount) -> Done {
    node::await_size(dev_id, size)?;
    let path = node::block_path(dev_id);
    if partitions::read_inside_start(&host::kernel())
        && let Err(why) = partitions::add(&path)
    {
        let path = path.display();
        eprintln!("objblk: nobody has looked for partitions on {path}: partx: {why}");
    }
    Ok(())
}

fn stop_now(dev_id: u32) -> Done {
    control::stop_here(dev_id).map_err(|failure| match failure {
        Failure::Refused(errno) => errno,
        Failure::Unknown => Errno::EOPNOTSUPP,
        Failure::Open(e) | Failure::Ring(e) => errno(e),
        Failure::TimedOut(_) => Errno::ETIMEDOUT,
    })
}

/// Starts the program for `what`; returns when it has ended.
fn run<S: AsRef<OsStr>>(what: &[S]) -> io::Result<Done> {
    let mut errand = Command::new(PROGRAM);
    errand.arg(VERB).args(what).stdin(Stdio::null()).stdout(Stdio::null());
    Ok(match errand.status()?.code() {
        Some(0) => Ok(()),
        Some(code) => Err(Errno::from_raw(code)),
        None => Err(Errno::EINTR),
    })
}

/// Removes the block device of `dev_id`, as [`control::stop`] says.
pub(super) fn stop(dev_id: u32) -> Done {
    run(&["stop", &dev_id.to_string()]).unwrap_or_else(|e| {
        tracing::warn!("cannot start a process to stop ublk device {dev_id}: {e}");
        stop_now(dev_id)
    })
}

/// Waits until the block device can be opened and has its size, and its partitions are there.
///
/// # Errors
/// Failed: it is not ready within `timeout`.
pub(super) fn wait_for_block(dev_id: u32, size: SectorCount, timeout: Duration) -> Result<()> {
    let what = ["settle".to_owned(), dev_id.to_string(), size.0.to_string()];
    let settling = bounded::begin("ublk-settle", move || run(&what));
    let failed = || Error::failed(format!("{} is not ready", node::block_path(dev_id).display()));
    let settled = settling.map_err(|e| failed().because(e))?.wait(timeout);
    match settled {
        Some(Ok(done)) => done.map_err(|errno| {
            let hint = "devtmpfs must be mounted on /dev, or udev must make the node";
            failed().because(errno).hint(hint)
        }),
        Some(Err(e)) => Err(failed().because(e).hint("/proc must be mounted")),
        None => {
            let seconds = timeout.as_secs_f32();
            let hint = "the kernel reads the partition table: does the volume's store answer?";
            Err(failed().because(format!("no answer within {seconds} s")).hint(hint))
        }
    }
}

/// Writes out the page cache of the block device `device`, which this process may serve. Blocks the
/// calling thread for as long as that takes.
///
/// # Errors
/// Those of open(2) and fsync(2), and of starting a process.
pub fn sync(device: &Path) -> io::Result<()> {
    run(&[OsStr::new("sync"), device.as_os_str()])?.map_err(io::Error::from)
}

/// Whether a file system, a swap area or another device has claimed the block device `device`, which
/// this process may serve. Blocks the calling thread, for seconds at most: who cannot find out by then
/// is told no.
pub fn is_claimed(device: &Path) -> bool {
    let what = [OsString::from("claim"), device.into()];
    let looking = bounded::begin("ublk-claim", move || run(&what));
    let looked = looking.ok().and_then(|looking| looking.wait(LOOK));
    matches!(looked, Some(Ok(Err(Errno::EBUSY))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(arguments: &[&str]) -> Option<ExitCode> {
        errand(std::iter::once("program").chain(arguments.iter().copied()).map(Into::into))
    }

    #[test]
    fn only_errands_are_run() {
        assert_eq!(told(&[]), None);
        assert_eq!(told(&["attach", VERB]), None);
        let invalid = Some(ExitCode::from(Errno::EINVAL as i32 as u8));
        for wrong in
            [&[VERB][..], &[VERB, "sync"], &[VERB, "stop", "x"], &[VERB, "settle", "1", "-"]]
        {
            assert_eq!(told(wrong), invalid, "{wrong:?}");
        }
        let absent = Some(ExitCode::from(Errno::ENOENT as i32 as u8));
        assert_eq!(told(&[VERB, "sync", "/nonexistent"]), absent);
        assert_eq!(told(&[VERB, "claim", "/dev/null"]), Some(ExitCode::SUCCESS));
    }
}
