//! A journal's file: made whole, locked, open past the page cache.

use crate::direct::{FIRST, GRANULE};
use crate::error::{Error, ErrorKind, Result};
use crate::journal::disk::{BLOCK, Blocks, Disk, check_place};
use async_trait::async_trait;
use nix::errno::Errno;
use nix::fcntl::{
    AT_FDCWD, FallocateFlags, Flock, FlockArg, OFlag, RenameFlags, fallocate, renameat2,
};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::sys::statvfs::statvfs;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a file stays locked by those who look whether it is, at most.
const LOOKING: Duration = Duration::from_secs(1);

/// The file of a journal, held by this process.
#[derive(Debug)]
pub(super) struct Locked {
    /// Open for direct reads and writes.
    pub(super) file: Flock<File>,
    /// Its size in bytes, whole blocks.
    pub(super) size: u64,
}

/// Makes `path`. See [`super::FileDisk::create`].
pub(super) fn create(path: &Path, size: u64) -> Result<Locked> {
    if size == 0 || !size.is_multiple_of(BLOCK as u64) {
        return Err(Error::usage(format!("a journal of {size} bytes is not made of 4 KiB blocks")));
    }
    if path.exists() {
        return Err(exists(path));
    }
    // Made under another name: a crash leaves no half-made journal behind under its own.
    let temporary = with_suffix(path, ".new");
    let file = loop {
        if let Some(file) = lock(&temporary, OpenOptions::new().create(true).mode(0o600))? {
            break file;
        }
    };
    let made = fill_and_name(&file, &temporary, path, size);
    if made.is_err() {
        // Removed while locked: it cannot be anybody else's by now.
        let _ = fs::remove_file(&temporary);
    }
    made.map(|()| Locked { file, size })
}

fn fill_and_name(file: &File, temporary: &Path, path: &Path, size: u64) -> Result<()> {
    let failed = || Error::failed(format!("cannot make the journal {}", path.display()));
    suits(file, path)?;
    // What an interrupted attempt left.
    file.set_len(0).map_err(|e| failed().because(e))?;
    let free = free_bytes(folder(path)).map_err(|e| failed().because(e))?;
    let full = || {
        let text = format!(
            "cannot make the journal {}: it needs {size} bytes, the file system has {free} free",
            path.display()
        );
        Error::failed(text).hint("choose a smaller --journal-size or another --journal folder")
    };
    // Asked first, so that a hopeless attempt does not fill the disk of others for a moment.
    if free < size {
        return Err(full());
    }
    let length = i64::try_from(size).map_err(|_| full())?;
    fallocate(file, FallocateFlags::empty(), 0, length).map_err(|errno| match errno {
        Errno::ENOSPC | Errno::EDQUOT => full(),
        Errno::EOPNOTSUPP => failed()
            .because("its file system cannot reserve space")
            .hint("choose a --journal folder on ext4 or xfs"),
        _ => failed().because(errno),
    })?;
    let zeros = Blocks::zeroed(GRANULE.min(size) as usize);
    for at in (0..FIRST.min(size)).step_by(GRANULE as usize) {
        let part = &zeros.bytes()[..(size - at).min(GRANULE) as usize];
        file.write_all_at(part, at).map_err(|e| failed().because(e))?;
    }
    file.sync_all().map_err(|e| failed().because(e))?;
    let named = renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RenameFlags::RENAME_NOREPLACE);
    named.map_err(|errno| match errno {
        Errno::EEXIST => exists(path),
        _ => failed().because(errno),
    })?;
    sync_folder(path).map_err(|e| failed().because(e))
}

/// Opens `path`. See [`super::FileDisk::open`].
pub(super) fn open(path: &Path) -> Result<Locked> {
    let Some(file) = lock(path, &mut OpenOptions::new())? else {
        return Err(Error::failed(format!("the journal {} was just removed", path.display())));
    };
    suits(&file, path)?;
    let failed = || Error::failed(format!("cannot open the journal {}", path.display()));
    let size = journal_size(&file)
        .map_err(|why| failed().because(why).hint("it was cut, or never was a journal"))?;
    // What a dead writer's last write left may be readable and not yet durable: whoever acts on it
    // must not find less after the next loss of power.
    file.sync_data().map_err(|e| failed().because(e))?;
    Ok(Locked { file, size })
}

/// Removes the name `path`, durably.
pub(super) fn remove(path: &Path) -> Result<()> {
    let removed = fs::remove_file(path).and_then(|()| sync_folder(path));
    removed.map_err(|e| {
        Error::failed(format!("cannot remove the journal {}", path.display())).because(e)
    })
}

/// A journal's file for those who only look: it keeps nobody from opening it, so what is in it may
/// change meanwhile.
#[derive(Debug)]
pub struct Glance {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Glance {
    /// Opens `path`.
    ///
    /// # Errors
    /// Failed: it is no journal, or cannot be read.
    pub fn open(path: &Path) -> Result<Glance> {
        let failed = || Error::failed(format!("cannot read the journal {}", path.display()));
        let flags = (OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = opened.map_err(|e| failed().because(e))?;
        let size = journal_size(&file).map_err(|why| failed().because(why))?;
        Ok(Glance { path: path.into(), file, size })
    }

    /// Fails where a process has the journal open.
    ///
    /// # Errors
    /// Busy; failed, where that cannot be seen.
    pub fn check_unused(&self) -> Result<()> {
        // Let go of at once, and whoever opens a journal waits for longer than that.
        let file = self.file.try_clone().map_err(|e| {
            Error::failed(format!("cannot read the journal {}", self.path.display())).because(e)
        })?;
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(lock) => drop(lock.unlock()),
            Err((_, Errno::EWOULDBLOCK)) => return Err(in_use(&self.path)),
            Err((_, errno)) => {
                let text = format!("cannot read the journal {}", self.path.display());
                return Err(Error::failed(text).because(errno));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Disk for Glance {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn size(&self) -> u64 {
        self.size
    }

    async fn write(&self, _: u64, _: Blocks) -> io::Result<Blocks> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    async fn read(&self, offset: u64, len: usize) -> io::Result<Blocks> {
        check_place(self.size, offset, len)?;
        let mut blocks = Blocks::zeroed(len);
        self.file.read_exact_at(blocks.bytes_mut(), offset)?;
        Ok(blocks)
    }
}

/// The size of a journal's file, or why it is none.
fn journal_size(file: &File) -> std::result::Result<u64, String> {
    let about = file.metadata().map_err(|e| e.to_string())?;
    let size = about.len();
    if !about.is_file() || size == 0 || !size.is_multiple_of(BLOCK as u64) {
        return Err(format!("it is no file of whole 4 KiB blocks ({size} bytes)"));
    }
    Ok(size)
}

fn in_use(path: &Path) -> Error {
    let text = format!("the journal {} is in use by another process", path.display());
    Error::new(ErrorKind::Busy, text).hint("detach its volume there first")
}

/// Locks the file for this process alone. Somebody may just be looking whether it is locked.
fn lock_alone(mut file: File) -> std::result::Result<Flock<File>, Errno> {
    let begun = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((back, Errno::EWOULDBLOCK)) if begun.elapsed() < LOOKING => file = back,
            Err((_, errno)) => return Err(errno),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Opens and locks; `None` where the name is not this file's any more.
fn lock(path: &Path, options: &mut OpenOptions) -> Result<Option<Flock<File>>> {
    let failed = || Error::failed(format!("cannot open the journal {}", path.display()));
    let direct = OFlag::O_DIRECT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let opened = options.read(true).write(true).custom_flags(direct.bits()).open(path);
    let file = opened.map_err(|e| match e.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EINVAL) => failed()
            .because("its file system has no direct I/O (O_DIRECT)")
            .hint("choose a --journal folder on ext4 or xfs"),
        _ => failed().because(e),
    })?;
    let file = match lock_alone(file) {
        Ok(file) => file,
        Err(Errno::EWOULDBLOCK) => return Err(in_use(path)),
        Err(errno) => return Err(failed().because(errno)),
    };
    // The one who had it may have renamed or removed it between the opening and the lock.
    let locked = file.metadata().map_err(|e| failed().because(e))?;
    let same = |there: fs::Metadata| (there.dev(), there.ino()) == (locked.dev(), locked.ino());
    Ok(fs::symlink_metadata(path).is_ok_and(same).then_some(file))
}

/// Refuses a file system whose files do not outlive the host.
fn suits(file: &File, path: &Path) -> Result<()> {
    let failed = || Error::failed(format!("cannot keep the journal {}", path.display()));
    let kind = fstatfs(file).map_err(|errno| failed().because(errno))?.filesystem_type();
    if kind == TMPFS_MAGIC {
        let hint = "choose a --journal folder on a disk";
        return Err(failed().because("its file system is in memory (tmpfs)").hint(hint));
    }
    Ok(())
}

fn exists(path: &Path) -> Error {
    Error::failed(format!("the journal {} exists already", path.display()))
        .hint("attach the volume that it belongs to, or see `objblk journal list`")
}

fn free_bytes(folder: &Path) -> nix::Result<u64> {
    let about = statvfs(folder)?;
    Ok(about.blocks_available().saturating_mul(about.fragment_size()))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder(path))?.sync_all()
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
