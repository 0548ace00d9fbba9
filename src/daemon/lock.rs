use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A volume held by this process on this host. The kernel drops it when the process ends in
/// whatever way; [`VolumeLock::release`] removes the file as well.
#[derive(Debug)]
pub(super) struct VolumeLock {
    path: PathBuf,
    file: Flock<File>,
}

impl VolumeLock {
    /// Takes the lock at `path` without waiting; `None` where another process has it.
    /// Errors: failed.
    pub(super) fn try_take(path: &Path) -> Result<Option<VolumeLock>> {
        let failed = || Error::failed(format!("cannot lock {}", path.display()));
        loop {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
            let file = file.map_err(|e| failed().because(e))?;
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, errno)) => return Err(failed().because(errno)),
            };
            // The one who had it may have removed the file between the opening and the lock.
            let locked = file.metadata().map_err(|e| failed().because(e))?;
            let same =
                |there: fs::Metadata| (there.dev(), there.ino()) == (locked.dev(), locked.ino());
            if fs::metadata(path).is_ok_and(same) {
                return Ok(Some(VolumeLock { path: path.into(), file }));
            }
        }
    }

    /// Gives it up and removes its file.
    pub(super) fn release(self) {
        // Removed while held: nobody can have taken this very file in between.
        let removed = fs::remove_file(&self.path);
        if let Err(e) = removed {
            tracing::warn!("cannot remove {}: {e}", self.path.display());
        }
        drop(self.file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.lock");
        let held = VolumeLock::try_take(&path).unwrap().unwrap();
        assert!(VolumeLock::try_take(&path).unwrap().is_none());
        held.release();
        assert!(!path.exists());
        drop(VolumeLock::try_take(&path).unwrap().unwrap());
        assert!(VolumeLock::try_take(&path).unwrap().is_some(), "its holder left without a word");
    }
}
