//! The two files of a disk cache: found, made, or refused.
//!
//! Whoever uses a cache holds a shared lock of its index; only who holds it alone makes it anew. What
//! does not begin as an index does is somebody else's, and is never written.

use super::entry::{ENTRY_LEN, Geometry, MAGIC, SET_LEN};
use crate::error::{Error, ErrorKind, Result};
use crate::format::codec::{Problem, check_trailing_crc};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, OFlag, fallocate};
use nix::sys::statvfs::statvfs;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long others may take to make the cache.
const MAKING: Duration = Duration::from_secs(30);

/// A cache that is there, and stays as it is while this is held.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) index: Flock<File>,
    /// Open for direct I/O.
    pub(super) frames: Flock<File>,
    pub(super) geometry: Geometry,
}

/// Why a folder is somebody else's.
const FRAMES_ALONE: &str = "it has `frames` and no index";

/// What an index begins with.
enum Head {
    /// Nothing: it is new.
    Blank,
    Sound(Geometry),
    /// It was one.
    Damaged(String),
    Foreign(String),
}

/// Opens the cache in `folder`, made where there is none, of `wanted` unless others use it at another
/// size. See [`super::DiskCache::open`].
pub(super) fn open(folder: &Path, wanted: Geometry) -> Result<Files> {
    make_folder(folder)?;
    let place = Place { folder, index: folder.join("index"), frames: folder.join("frames") };
    let deadline = Instant::now() + MAKING;
    loop {
        if let Some(files) = place.attempt(wanted)? {
            return Ok(files);
        }
        if Instant::now() >= deadline {
            let text = format!(
                "the cache in {} has to be made anew, and another process has it open",
                folder.display()
            );
            return Err(Error::new(ErrorKind::Busy, text).hint("choose another --cache-dir"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How large the cache in `folder` is. Errors: not found.
pub(super) fn existing(folder: &Path) -> Result<Geometry> {
    let place = Place { folder, index: folder.join("index"), frames: folder.join("frames") };
    let none = || Error::not_found(format!("there is no cache in {}", folder.display()));
    let index = File::open(&place.index).map_err(|e| none().because(e))?;
    match place.read_head(&index).map_err(|e| none().because(e))? {
        Head::Sound(geometry) => Ok(geometry),
        Head::Blank => Err(none()),
        Head::Damaged(why) | Head::Foreign(why) => Err(none().because(why)),
    }
}

fn make_folder(folder: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => {
            let text = format!("cannot make the cache folder {}", folder.display());
            let error = Error::failed(text);
            Err(match e.kind() {
                // Those of a path that is mistyped, or on a disk that is not mounted, are missing.
                io::ErrorKind::NotFound => {
                    error.because(e).hint("make the folder that it is to be in, or mount its disk")
                }
                _ => error.because(e),
            })
        }
    }
}

struct Place<'a> {
    folder: &'a Path,
    index: PathBuf,
    frames: PathBuf,
}

impl Place<'_> {
    fn failed(&self) -> Error {
        Error::failed(format!("cannot use the cache in {}", self.folder.display()))
    }

    /// The cache, or `None` where somebody else is at it: to be tried again.
    fn attempt(&self, wanted: Geometry) -> Result<Option<Files>> {
        let failed = |e: io::Error| self.failed().because(e);
        // The index comes before the frames and goes after them.
        let missing = |path: &Path| fs::symlink_metadata(path).is_err();
        if missing(&self.index) && !missing(&self.frames) && missing(&self.index) {
            return Err(self.foreign(FRAMES_ALONE));
        }
        let file = open_file(&self.index, OFlag::empty()).map_err(failed)?;
        let Some(index) = self.locked(file, FlockArg::LockSharedNonblock)? else { return Ok(None) };
        if !self.is_still(&self.index, &index) {
            return Ok(None);
        }
        let head = self.read_head(&index).map_err(failed)?;
        let usable = match &head {
            Head::Foreign(why) => return Err(self.foreign(why)),
            Head::Sound(geometry) => self.open_frames(*geometry)?.map(|frames| (*geometry, frames)),
            Head::Damaged(_) | Head::Blank => None,
        };
        if let Some((geometry, frames)) = usable {
            if geometry == wanted {
                return Ok(Some(Files { index, frames, geometry }));
            }
            drop(frames);
            if self.is_alone(&index)? {
                self.make(&index, wanted, "it is to have another size")?;
                return Ok(None);
            }
            tracing::warn!(
                "the cache in {} stays as large as it is while others use it",
                self.folder.display()
            );
            // Whoever was quicker makes it anew, and is waited for.
            match index.relock(FlockArg::LockSharedNonblock) {
                Err(Errno::EWOULDBLOCK) => return Ok(None),
                locked => locked.map_err(|errno| self.failed().because(errno))?,
            }
            let now = self.read_head(&index).map_err(failed)?;
            let same = matches!(now, Head::Sound(now) if now == geometry);
            let frames = if same { self.open_frames(geometry)? } else { None };
            return Ok(frames.map(|frames| Files { index, frames, geometry }));
        }
        if !self.is_alone(&index)? {
            return Ok(None);
        }
        // Only now nobody changes it any more.
        match self.read_head(&index).map_err(failed)? {
            Head::Foreign(why) => return Err(self.foreign(&why)),
            Head::Blank => self.make_first(&index, wanted)?,
            Head::Damaged(why) => self.make(&index, wanted, &why)?,
            Head::Sound(geometry) if self.open_frames(geometry)?.is_some() => {}
            Head::Sound(_) => self.make(&index, wanted, "its frames are not there")?,
        }
        Ok(None)
    }

    fn foreign(&self, why: &str) -> Error {
        let text = format!("{} holds something else than a cache", self.folder.display());
        Error::failed(text).because(why).hint("choose another --cache-dir; nothing was changed")
    }

    fn locked(&self, file: File, how: FlockArg) -> Result<Option<Flock<File>>> {
        match Flock::lock(file, how) {
            Ok(locked) => Ok(Some(locked)),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(self.failed().because(errno)),
        }
    }

    /// Whether the lock could be turned into one of this process alone.
    fn is_alone(&self, index: &Flock<File>) -> Result<bool> {
        match index.relock(FlockArg::LockExclusiveNonblock) {
            Ok(()) => Ok(true),
            Err(Errno::EWOULDBLOCK) => Ok(false),
            Err(errno) => Err(self.failed().because(errno)),
        }
    }

    /// Whether `path` is the name of `file`.
    fn is_still(&self, path: &Path, file: &File) -> bool {
        let (Ok(there), Ok(here)) = (fs::symlink_metadata(path), file.metadata()) else {
            return false;
        };
        (there.dev(), there.ino()) == (here.dev(), here.ino())
    }

    fn read_head(&self, index: &File) -> io::Result<Head> {
        let about = index.metadata()?;
        if !about.is_file() {
            return Ok(Head::Foreign("its index is no file".into()));
        }
        if about.len() == 0 {
            return Ok(Head::Blank);
        }
        let mut bytes = vec![0; SET_LEN.min(about.len() as usize)];
        index.read_exact_at(&mut bytes, 0)?;
        if !bytes.starts_with(MAGIC) {
            return Ok(Head::Foreign("its index begins with other bytes".into()));
        }
        Ok(match Geometry::parse(&bytes) {
            Ok(geometry) if geometry.index_len() != about.len() => {
                Head::Damaged("its index was cut".into())
            }
            Ok(geometry) => Head::Sound(geometry),
            Err(e) => match (&e.problem, check_trailing_crc("cache index", head(&bytes))) {
                // As it was written, by another objblk.
                (Problem::Unsupported(_), Ok(_)) => Head::Foreign(e.to_string()),
                _ => Head::Damaged(e.to_string()),
            },
        })
    }

    /// The frames of a cache of that size; `None` where they are not there.
    fn open_frames(&self, geometry: Geometry) -> Result<Option<Flock<File>>> {
        let right = |about: fs::Metadata| about.is_file() && about.len() == geometry.frames_len();
        if !fs::symlink_metadata(&self.frames).is_ok_and(right) {
            return Ok(None);
        }
        let opened = open_file(&self.frames, OFlag::O_DIRECT);
        let file = opened.map_err(|e| match e.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EINVAL) => self
                .failed()
                .because("its file system has no direct I/O (O_DIRECT)")
                .hint("choose a --cache-dir on ext4 or xfs"),
            _ => self.failed().because(e),
        })?;
        self.locked(file, FlockArg::LockSharedNonblock)
    }

    /// Makes a cache in a folder that has none.
    fn make_first(&self, index: &File, geometry: Geometry) -> Result<()> {
        if fs::symlink_metadata(&self.frames).is_ok_and(|about| about.len() > 0) {
            return Err(self.foreign(FRAMES_ALONE));
        }
        self.make_whole(index, geometry)
    }

    /// Makes a cache anew.
    fn make(&self, index: &File, geometry: Geometry, why: &str) -> Result<()> {
        tracing::warn!("the cache in {} begins anew, empty: {why}", self.folder.display());
        self.make_whole(index, geometry)
    }

    /// The head goes last: an index without it is known as one that was not finished. That it is an index is
    /// durable before anything else is, so that a power cut leaves nothing that looks like somebody else's.
    fn make_whole(&self, index: &File, geometry: Geometry) -> Result<()> {
        let failed = |e: io::Error| self.failed().because(e);
        let begin = || {
            index.write_all_at(MAGIC, 0)?;
            index.set_len(MAGIC.len() as u64)?;
            index.sync_all()
        };
        begin().map_err(failed)?;
        let frames = open_file(&self.frames, OFlag::empty()).map_err(failed)?;
        if !frames.metadata().map_err(failed)?.is_file() {
            return Err(self.foreign("its frames are no file"));
        }
        frames.set_len(0).map_err(failed)?;
        let reserved = self
            .reserve(&frames, geometry.frames_len(), geometry)
            .and_then(|()| self.reserve(index, geometry.index_len(), geometry));
        if reserved.is_err() {
            // A cache that is not whole is of no use to anybody; it was locked until now.
            let _ = fs::remove_file(&self.frames).and_then(|()| fs::remove_file(&self.index));
        }
        reserved?;
        index.write_all_at(&geometry.encode(), 0).map_err(failed)
    }

    fn reserve(&self, file: &File, bytes: u64, geometry: Geometry) -> Result<()> {
        let about = statvfs(self.folder).map_err(|errno| self.failed().because(errno))?;
        let free = about.blocks_available().saturating_mul(about.fragment_size());
        let full = || {
            let needed = geometry.frames_len() + geometry.index_len();
            let text = format!(
                "cannot make the cache in {}: it needs {needed} bytes, the file system has {free} free",
                self.folder.display()
            );
            Error::failed(text).hint("choose a smaller --cache-size or another --cache-dir")
        };
        // Asked first, so that a hopeless attempt does not fill the disk of others for a moment.
        if free < bytes {
            return Err(full());
        }
        let len = i64::try_from(bytes).map_err(|_| full())?;
        fallocate(file, FallocateFlags::empty(), 0, len).map_err(|errno| match errno {
            Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => full(),
            Errno::EOPNOTSUPP => self
                .failed()
                .because("its file system cannot reserve space")
                .hint("choose a --cache-dir on ext4 or xfs"),
            _ => self.failed().because(errno),
        })
    }
}

fn head(index: &[u8]) -> &[u8] {
    &index[..ENTRY_LEN.min(index.len())]
}

fn open_file(path: &Path, flags: OFlag) -> io::Result<File> {
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600).custom_flags(flags.bits());
    options.open(path)
}
