//! What is mounted where, and how it ends.

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the kernel calls this kind of file system.
const KIND: &str = "fuse.objblk";

/// What is mounted on a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mounted {
    /// Nothing.
    Nothing,
    /// A directory of this program; its process may be dead.
    Ours,
    /// Something else.
    Other,
}

/// What is mounted on `dir`, an absolute path without symlinks.
pub fn mounted_at(dir: &Path) -> Mounted {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    top_of(&table, dir)
}

/// What is on top at `dir` by the lines of `/proc/PID/mountinfo` (proc(5)).
fn top_of(mountinfo: &str, dir: &Path) -> Mounted {
    let mut kinds = mountinfo.lines().filter_map(|line| {
        let (before, behind) = line.split_once(" - ")?;
        let point = PathBuf::from(unescaped(before.split(' ').nth(4)?));
        (point == dir).then(|| behind.split(' ').next() == Some(KIND))
    });
    match kinds.next_back() {
        None => Mounted::Nothing,
        Some(true) => Mounted::Ours,
        Some(false) => Mounted::Other,
    }
}

/// A path with its space, tab, line feed and backslash, which the kernel writes in octal.
fn unescaped(path: &str) -> String {
    let special = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    special.iter().fold(path.to_owned(), |path, (from, to)| path.replace(from, to))
}

/// Ends the mount on `dir`. `lazily`: also where it is in use, for those who come later.
///
/// Blocks the calling thread; not bounded where the file system does not answer, unless lazily.
/// Errors: EBUSY, where it is in use; others.
pub fn unmount(dir: &Path, lazily: bool) -> io::Result<()> {
    let flags = if lazily { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    match umount2(dir, flags | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        // Only root may; for others there is a program.
        Err(Errno::EPERM) => by_program(dir, lazily),
        Err(errno) => Err(errno.into()),
    }
}

fn by_program(dir: &Path, lazily: bool) -> io::Result<()> {
    let mut program = Command::new("fusermount3");
    program.arg("-u").args(lazily.then_some("-z")).arg("--").arg(dir);
    let output = program.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match said.contains("busy") {
        true => Err(Errno::EBUSY.into()),
        false => Err(io::Error::other(said)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_on_top() {
        let table = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                     40 22 0:50 / /mnt/a\\040b rw,nosuid - fuse.objblk objblk rw,user_id=0\n\
                     41 22 0:51 / /mnt/c rw - fuse.objblk objblk rw\n\
                     42 41 0:52 / /mnt/c rw - tmpfs tmpfs rw\nx\n";
        let at = |dir: &str| top_of(table, Path::new(dir));
        assert_eq!(at("/mnt/a b"), Mounted::Ours);
        assert_eq!(at("/mnt/c"), Mounted::Other);
        assert_eq!(at("/mnt"), Mounted::Nothing);
    }
}
