//! The files of a directory store: create by link, replace by rename, read, remove.
//!
//! Everything here blocks. Failures are `io::Error`s whose kind the store translates; two kinds
//! carry a meaning of their own: `InvalidInput` is a range past the end, `Unsupported` a file
//! system without hard links.

use crate::direct::{BLOCK, Blocks};
use crate::store::{GetRange, Key};
use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// Holds the temporary files; `~` is no character of a key.
const TEMPORARIES: &str = "~tmp";

/// Age at which a temporary file can only be a leftover.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// Objects of at least so many bytes are written past the page cache.
const DIRECT_FROM: usize = 256 << 10;

/// Bytes of such an object that are written at once.
const PIECE: usize = 1 << 20;

/// How often a put makes its directory anew when deletes keep removing it as empty.
const DIRECTORY_ATTEMPTS: usize = 100;

/// Makes `path`'s entries durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The root, and what is known of the directories below it.
pub(super) struct Files {
    root: PathBuf,
    /// Directories whose whole path this process has made durable, by inode: one that was removed
    /// and made again is another inode and has to be made durable again.
    durable: Mutex<HashMap<PathBuf, u64>>,
}

impl Files {
    pub(super) fn new(root: PathBuf) -> Files {
        Files { root, durable: Mutex::default() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }

    /// The bytes of an object. `InvalidInput` where `range` starts past its end.
    pub(super) fn read(&self, key: &Key, range: GetRange) -> io::Result<Bytes> {
        let file = File::open(self.path(key))?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let size = meta.len();
        let at = range.within(size).ok_or_else(|| {
            let text = format!("the object ends at byte {size}, before the range");
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })?;
        let len = usize::try_from(at.end - at.start).map_err(io::Error::other)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(io::Error::other)?;
        bytes.resize(len, 0);
        file.read_exact_at(&mut bytes, at.start)?;
        Ok(bytes.into())
    }

    /// The size of an object.
    pub(super) fn size(&self, key: &Key) -> io::Result<u64> {
        let meta = fs::metadata(self.path(key))?;
        if meta.is_file() { Ok(meta.len()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// Creates an object; `AlreadyExists` where there is one.
    pub(super) fn create(&self, key: &Key, body: &[u8]) -> io::Result<()> {
        let path = self.path(key);
        if fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_dir()) {
            self.settle(&path)?;
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let temporary = self.write_temporary(body)?;
        self.with_directory(&path, |path| match fs::hard_link(&temporary.path, path) {
            // NFS may have lost the reply to a link that it made: then our file has two names.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && temporary.links()? < 2 => {
                if path.is_dir() {
                    return Err(io::ErrorKind::IsADirectory.into());
                }
                self.settle(path)?;
                Err(e)
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) if matches!(os_error(&e), Errno::EPERM | Errno::EOPNOTSUPP) => {
                Err(io::ErrorKind::Unsupported.into())
            }
            other => other,
        })
    }

    /// Creates or replaces an object.
    pub(super) fn replace(&self, key: &Key, body: &[u8]) -> io::Result<()> {
        let temporary = self.write_temporary(body)?;
        self.with_directory(&self.path(key), |path| fs::rename(&temporary.path, path))
    }

    /// Removes objects, and the directories that this leaves empty.
    pub(super) fn remove(&self, keys: &[Key]) -> io::Result<()> {
        let mut touched = BTreeSet::new();
        for key in keys {
            let path = self.path(key);
            match fs::remove_file(&path) {
                Ok(()) => {
                    touched.extend(path.parent().map(Path::to_owned));
                }
                Err(e) if absent(&e) || e.kind() == io::ErrorKind::IsADirectory => {}
                Err(e) => return Err(e),
            }
        }
        while let Some(directory) = touched.pop_last() {
            if directory != self.root && fs::remove_dir(&directory).is_ok() {
                self.durable().remove(&directory);
                touched.extend(directory.parent().map(Path::to_owned));
                continue;
            }
            match sync_directory(&directory) {
                Err(e) if !absent(&e) => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes temporary files that no living writer can own. Failing to is harmless.
    pub(super) fn remove_stale_temporaries(&self) {
        let Ok(entries) = fs::read_dir(self.root.join(TEMPORARIES)) else { return };
        for entry in entries.flatten() {
            let age = entry.metadata().and_then(|m| m.modified()).map(|t| t.elapsed());
            if matches!(age, Ok(Ok(age)) if age > STALE) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// A complete and durable file under a temporary name.
    fn write_temporary(&self, body: &[u8]) -> io::Result<Temporary> {
        let directory = self.root.join(TEMPORARIES);
        match fs::create_dir(&directory) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let path = directory.join(uuid::Uuid::new_v4().to_string());
        let file = File::create_new(&path)?;
        let temporary = Temporary { path };
        if body.len() < DIRECT_FROM || !write_direct(&file, body)? {
            file.write_all_at(body, 0)?;
        }
        file.sync_all()?;
        Ok(temporary)
    }

    /// Runs `name`, which gives a file the name `path`, in a directory that exists, and makes the
    /// name durable.
    fn with_directory(
        &self,
        path: &Path,
        name: impl Fn(&Path) -> io::Result<()>,
    ) -> io::Result<()> {
        let directory = path.parent().unwrap_or(&self.root);
        let mut attempts = DIRECTORY_ATTEMPTS;
        loop {
            let done = name(path);
            attempts -= 1;
            match done {
                Err(e) if e.kind() == io::ErrorKind::NotFound && attempts > 0 => {
                    self.make_directory(directory)?;
                }
                Err(e) => return Err(e),
                Ok(()) => return self.settle(path),
            }
        }
    }

    /// Makes `directory` and the missing ones between the root and it. A missing root is an error:
    /// it may be a file system that is not mounted.
    fn make_directory(&self, directory: &Path) -> io::Result<()> {
        let below = directory.strip_prefix(&self.root).map_err(io::Error::other)?;
        let mut path = self.root.clone();
        for part in below {
            path.push(part);
            match fs::create_dir(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound && self.root.is_dir() => {
                    return Ok(());
                }
                Err(e) => return Err(e),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Makes the name `path` durable: its directory, and once those above it.
    fn settle(&self, path: &Path) -> io::Result<()> {
        let directory = path.parent().unwrap_or(&self.root);
        let file = match File::open(directory) {
            // The object and its directory were removed in the meantime: nothing to keep.
            Err(e) if absent(&e) => return Ok(()),
            other => other?,
        };
        file.sync_all()?;
        let inode = file.metadata()?.ino();
        if self.durable().get(directory) == Some(&inode) {
            return Ok(());
        }
        for above in directory.ancestors().skip(1).take_while(|p| p.starts_with(&self.root)) {
            sync_directory(above)?;
        }
        self.durable().insert(directory.to_owned(), inode);
        Ok(())
    }

    fn durable(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, u64>> {
        self.durable.lock().expect("no holder of this lock panics")
    }
}

/// Writes `body` past the page cache, whose copy of a chunk costs the kernel several times what the
/// write does, and pushes out what is read. False where the file system refuses to: then what the file
/// holds is anything, and its flags are as before.
fn write_direct(file: &File, body: &[u8]) -> io::Result<bool> {
    let (blocks, tail) = body.split_at(body.len() - body.len() % BLOCK);
    let flags = |flags| fcntl(file, FcntlArg::F_SETFL(flags)).map_err(io::Error::from);
    let write = || -> io::Result<()> {
        flags(OFlag::O_DIRECT)?;
        let mut aligned = Blocks::zeroed(PIECE.min(blocks.len()));
        for (piece, at) in blocks.chunks(PIECE).zip((0..).step_by(PIECE)) {
            let aligned = &mut aligned.bytes_mut()[..piece.len()];
            aligned.copy_from_slice(piece);
            file.write_all_at(aligned, at)?;
        }
        Ok(())
    };
    let written = write();
    flags(OFlag::empty())?;
    match written {
        Ok(()) => file.write_all_at(tail, blocks.len() as u64).map(|()| true),
        Err(e) if os_error(&e) == Errno::EINVAL => Ok(false),
        Err(e) => Err(e),
    }
}

fn absent(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn os_error(e: &io::Error) -> Errno {
    Errno::from_raw(e.raw_os_error().unwrap_or(0))
}

/// A temporary file: its name goes when this is dropped, the bytes stay if they got another name.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn links(&self) -> io::Result<u64> {
        Ok(fs::metadata(&self.path)?.nlink())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove.
        let _ = fs::remove_file(&self.path);
    }
}
