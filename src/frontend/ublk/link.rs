//! The symlinks `/dev/objblk/NAME -> ../ublkbN`, by which users find a volume's device.
//!
//! A name becomes one path component: bytes other than letters, digits and `._-+:@` (and a
//! leading dot) are written as `%XX`. Changes are made under a lock on the folder, so that two
//! processes cannot both take a name. A link that leads nowhere is stale and may be replaced.

use crate::error::{Error, ErrorKind, Result};
use nix::fcntl::{Flock, FlockArg};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Where the links are.
pub(super) const FOLDER: &str = "/dev/objblk";

/// Longest file name on Linux, in bytes.
const NAME_MAX: usize = 255;

/// The path of the link for the volume called `name`. Errors: usage, where the name is empty or
/// too long for a file name.
pub fn link_path(name: &str) -> Result<PathBuf> {
    Ok(Path::new(FOLDER).join(component(name)?))
}

fn component(name: &str) -> Result<String> {
    let mut escaped = String::with_capacity(name.len());
    for (i, byte) in name.bytes().enumerate() {
        match byte {
            b'.' if i == 0 => escaped.push_str("%2E"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => escaped.push(byte.into()),
            b'.' | b'_' | b'-' | b'+' | b':' | b'@' => escaped.push(byte.into()),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    match escaped.len() {
        0 => Err(Error::usage("the volume's name is empty").hint("give it a name")),
        len if len > NAME_MAX => {
            let message = format!("the volume's name takes {len} bytes as a file name");
            Err(Error::usage(message).hint(format!("at most {NAME_MAX} fit: shorten it")))
        }
        _ => Ok(escaped),
    }
}

/// A folder of links.
#[derive(Debug)]
pub(super) struct Links {
    folder: PathBuf,
}

/// A link that this process made; removed by [`Link::remove`] only.
#[derive(Debug)]
pub(super) struct Link {
    links: Links,
    path: PathBuf,
    target: PathBuf,
}

impl Links {
    /// The links in `folder`, which need not exist yet.
    pub(super) fn new(folder: impl Into<PathBuf>) -> Links {
        Links { folder: folder.into() }
    }

    fn failed(&self, what: &str, error: io::Error) -> Error {
        Error::failed(format!("cannot {what} {}", self.folder.display()))
            .because(error)
            .hint("make the folder writable for this process, or run it as root")
    }

    fn lock(&self) -> Result<Flock<File>> {
        fs::create_dir_all(&self.folder).map_err(|e| self.failed("make the folder", e))?;
        let folder = File::open(&self.folder).map_err(|e| self.failed("open", e))?;
        Flock::lock(folder, FlockArg::LockExclusive)
            .map_err(|(_, errno)| self.failed("lock", errno.into()))
    }

    /// Makes sure that [`Links::create`] could take `name` now. Errors: usage; busy, where the
    /// name leads to a live device; failed, where the folder cannot be written.
    pub(super) fn check(&self, name: &str) -> Result<()> {
        let path = self.folder.join(component(name)?);
        let _lock = self.lock()?;
        self.vacate(&path, None)?;
        nix::unistd::access(&self.folder, nix::unistd::AccessFlags::W_OK)
            .map_err(|errno| self.failed("write to", errno.into()))
    }

    /// Links `name` to `device`, the name of a device node beside the folder. Errors: as
    /// [`Links::check`].
    pub(super) fn create(self, name: &str, device: &str) -> Result<Link> {
        let path = self.folder.join(component(name)?);
        let target = Path::new("..").join(device);
        let lock = self.lock()?;
        self.vacate(&path, Some(&target))?;
        symlink(&target, &path).map_err(|e| self.failed("make a symlink in", e))?;
        drop(lock);
        Ok(Link { links: self, path, target })
    }

    /// Removes a stale link, or one to `own`, from `path`.
    fn vacate(&self, path: &Path, own: Option<&Path>) -> Result<()> {
        let target = match fs::read_link(path) {
            Ok(target) => target,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(_) => {
                let message = format!("{} exists and is no symlink", path.display());
                return Err(Error::new(ErrorKind::Exists, message).hint("move it away"));
            }
        };
        if own != Some(&target) && self.folder.join(&target).exists() {
            let message = format!("{} leads to a live device", path.display());
            let hint = format!("detach {} first", base_name(&target));
            return Err(Error::new(ErrorKind::Busy, message).hint(hint));
        }
        fs::remove_file(path).map_err(|e| self.failed("remove a stale symlink from", e))
    }

    /// Removes every link to `device`.
    pub(super) fn remove_to(&self, device: &str) -> Result<()> {
        if !self.folder.exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let entries = fs::read_dir(&self.folder).map_err(|e| self.failed("list", e))?;
        let target = Path::new("..").join(device);
        for path in entries.flatten().map(|entry| entry.path()) {
            if fs::read_link(&path).is_ok_and(|found| found == target) {
                fs::remove_file(&path).map_err(|e| self.failed("remove a symlink from", e))?;
            }
        }
        Ok(())
    }
}

fn base_name(target: &Path) -> String {
    target.file_name().unwrap_or(OsStr::new("it")).to_string_lossy().into_owned()
}

impl Link {
    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, unless it has become another's.
    pub(super) fn remove(self) -> Result<()> {
        let _lock = self.links.lock()?;
        match fs::read_link(&self.path) {
            Ok(target) if target == self.target => fs::remove_file(&self.path)
                .map_err(|e| self.links.failed("remove the symlink from", e)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_one_component() {
        let path = |name| link_path(name).unwrap().to_str().unwrap().to_owned();
        assert_eq!(path("db-1_a.x@s:+"), "/dev/objblk/db-1_a.x@s:+");
        assert_eq!(path("../etc/passwd"), "/dev/objblk/%2E.%2Fetc%2Fpasswd");
        assert_eq!(path("."), "/dev/objblk/%2E");
        assert_eq!(path("a b%é"), "/dev/objblk/a%20b%25%C3%A9");
        assert_eq!(link_path("").unwrap_err().kind(), ErrorKind::Usage);
        assert!(link_path(&"x".repeat(255)).is_ok());
        assert!(link_path(&"x".repeat(256)).is_err());
        assert!(link_path(&"/".repeat(100)).is_err());
    }

    struct Dev {
        root: tempfile::TempDir,
    }

    impl Dev {
        fn new() -> Dev {
            Dev { root: tempfile::tempdir().unwrap() }
        }

        fn links(&self) -> Links {
            Links::new(self.root.path().join("objblk"))
        }

        fn node(&self, name: &str) -> PathBuf {
            let path = self.root.path().join(name);
            File::create(&path).unwrap();
            path
        }
    }

    #[test]
    fn made_resolved_and_removed() {
        let dev = Dev::new();
        let node = dev.node("ublkb0");
        dev.links().check("v").unwrap();
        let link = dev.links().create("v", "ublkb0").unwrap();
        assert_eq!(link.path().canonicalize().unwrap(), node.canonicalize().unwrap());
        let path = link.path().to_path_buf();
        link.remove().unwrap();
        assert!(fs::symlink_metadata(path).is_err());
    }

    #[test]
    fn a_live_device_of_another_is_refused_and_a_stale_link_replaced() {
        let dev = Dev::new();
        let node = dev.node("ublkb0");
        let first = dev.links().create("v", "ublkb0").unwrap();
        let error = dev.links().check("v").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.to_string().ends_with("leads to a live device; detach ublkb0 first"));
        assert!(dev.links().create("v", "ublkb1").is_err());
        fs::remove_file(node).unwrap();
        dev.node("ublkb1");
        let second = dev.links().create("v", "ublkb1").unwrap();
        first.remove().unwrap();
        assert_eq!(fs::read_link(second.path()).unwrap(), Path::new("../ublkb1"));
        // The number of a dead server's device was given out again, to us.
        let again = dev.links().create("v", "ublkb1").unwrap();
        dev.links().remove_to("ublkb0").unwrap();
        assert!(again.path().exists());
        dev.links().remove_to("ublkb1").unwrap();
        assert!(fs::symlink_metadata(again.path()).is_err());
    }

    #[test]
    fn what_is_no_link_is_left_alone() {
        let dev = Dev::new();
        fs::create_dir_all(dev.root.path().join("objblk/v")).unwrap();
        assert_eq!(dev.links().check("v").unwrap_err().kind(), ErrorKind::Exists);
        dev.node("file");
        let error = Links::new(dev.root.path().join("file")).check("v").unwrap_err();
        assert!(error.to_string().contains("make the folder writable"), "{error}");
    }
}
