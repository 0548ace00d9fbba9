//! A file that has its name only when it is complete: until then it is `FILE.partial` beside it, and how far it
//! is may be said in `FILE.partial.note` (see [`resume`](super::resume)).

use crate::error::{Error, ErrorKind, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// An unfinished file. Removed when it is dropped, unless it is to stay; a process that is killed leaves it, for
/// the next one to use.
#[derive(Debug)]
pub struct Partial {
    path: PathBuf,
    partial: PathBuf,
    replace: bool,
    /// Somebody will go on with it.
    stays: bool,
    /// Nobody else writes it meanwhile.
    file: Flock<File>,
    finished: bool,
}

impl Partial {
    /// Begins an empty one for `path`. Errors: exists, where that is there and is not to be replaced; busy, where
    /// somebody else writes it; failed.
    pub fn begin(path: &Path, replace: bool) -> Result<Partial> {
        let partial = Partial::open(path, replace)?;
        // Nobody is to take the file for what the note speaks of.
        partial.forget()?;
        partial.file.set_len(0).map_err(|e| partial.cannot_write(e))?;
        Ok(partial)
    }

    /// Goes on with what an earlier process left, or begins an empty one. It stays when it is dropped. Errors: as
    /// for [`begin`](Self::begin).
    pub fn go_on(path: &Path, replace: bool) -> Result<Partial> {
        let mut partial = Partial::open(path, replace)?;
        partial.stays = true;
        Ok(partial)
    }

    fn open(path: &Path, replace: bool) -> Result<Partial> {
        // A symlink stays one.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if !replace && fs::symlink_metadata(&path).is_ok() {
            return Err(there(&path));
        }
        let mut partial = path.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let failed =
            |e: io::Error| Error::failed(format!("cannot write {}", partial.display())).because(e);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&partial);
        let busy = || {
            let text = format!("another process writes {}", partial.display());
            Error::new(ErrorKind::Busy, text).hint("wait for it, or name another file")
        };
        let file = match Flock::lock(file.map_err(failed)?, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, Errno::EWOULDBLOCK)) => return Err(busy()),
            Err((_, e)) => return Err(failed(e.into())),
        };
        // Whoever had the lock may have given the file its final name since it was opened.
        let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
        let (mine, named) = (file.metadata().map(identity), fs::metadata(&partial).map(identity));
        if named.map_err(|_| busy())? != mine.map_err(failed)? {
            return Err(busy());
        }
        Ok(Partial { path, partial, replace, stays: false, file, finished: false })
    }

    fn cannot_write(&self, e: io::Error) -> Error {
        Error::failed(format!("cannot write {}", self.partial.display())).because(e)
    }

    /// The file, of that length: what it grows by is a hole. Errors: failed.
    pub fn sized(&self, length: u64) -> Result<File> {
        let sized = self.file.set_len(length).and_then(|()| self.file.try_clone());
        sized.map_err(|e| self.cannot_write(e))
    }

    /// How long it is. Errors: failed.
    pub fn length(&self) -> Result<u64> {
        self.file.metadata().map(|meta| meta.len()).map_err(|e| self.cannot_write(e))
    }

    /// Where it is said how far it is.
    pub fn note(&self) -> PathBuf {
        let mut note = self.partial.clone().into_os_string();
        note.push(".note");
        note.into()
    }

    /// Removes the note. Errors: failed.
    fn forget(&self) -> Result<()> {
        match fs::remove_file(self.note()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                let text = format!("cannot remove {}", self.note().display());
                Err(Error::failed(text).because(e))
            }
            _ => Ok(()),
        }
    }

    /// Where it is.
    pub fn unfinished(&self) -> &Path {
        &self.partial
    }

    /// Gives it its name, once it is durable. Errors: exists; failed.
    pub fn finish(mut self) -> Result<()> {
        let failed = |e: io::Error| {
            Error::failed(format!("cannot finish {}", self.path.display())).because(e)
        };
        self.file.sync_all().map_err(failed)?;
        match self.replace {
            true => fs::rename(&self.partial, &self.path).map_err(failed)?,
            false => self.rename_to_new()?,
        }
        self.finished = true;
        self.forget()?;
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new("."))).map_err(failed)?;
        folder.sync_all().map_err(failed)
    }

    fn rename_to_new(&self) -> Result<()> {
        let (from, to) = (&self.partial, &self.path);
        let renamed = renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE);
        let renamed = match renamed {
            // The file system cannot do that.
            Err(Errno::EINVAL) if fs::symlink_metadata(to).is_err() => {
                fs::rename(from, to).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))
            }
            Err(Errno::EINVAL) => Err(Errno::EEXIST),
            renamed => renamed,
        };
        renamed.map_err(|e| match e {
            Errno::EEXIST => there(to),
            e => Error::failed(format!("cannot finish {}", to.display())).because(e),
        })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.finished || self.stays {
            return;
        }
        if let Err(e) = self.forget() {
            tracing::warn!("{e}");
        }
        if let Err(e) = fs::remove_file(&self.partial) {
            tracing::warn!("cannot remove {}: {e}", self.partial.display());
        }
    }
}

fn there(path: &Path) -> Error {
    Error::new(ErrorKind::Exists, format!("{} is there already", path.display()))
        .hint("name another file, or replace it with --force")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_for_what_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let partial = Partial::begin(&path, false).unwrap();
        assert_eq!(Partial::begin(&path, false).unwrap_err().kind(), ErrorKind::Busy);
        fs::write(partial.unfinished(), "whole").unwrap();
        assert!(!path.exists());
        partial.finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole");
        assert_eq!(Partial::begin(&path, false).unwrap_err().kind(), ErrorKind::Exists);
        // What a process left that was killed is begun anew.
        fs::write(folder.path().join("image.partial"), "left over").unwrap();
        let partial = Partial::begin(&path, true).unwrap();
        assert_eq!(fs::read(partial.unfinished()).unwrap(), b"");
        drop(partial);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let partial = Partial::begin(&folder.path().join("new"), false).unwrap();
        fs::write(folder.path().join("new"), "somebody else's").unwrap();
        assert_eq!(partial.finish().unwrap_err().kind(), ErrorKind::Exists);
        assert_eq!(fs::read_to_string(folder.path().join("new")).unwrap(), "somebody else's");
    }
}
