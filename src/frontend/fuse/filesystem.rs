//! The kernel's requests, each answered exactly once.

use super::attributes::{self, Access};
use super::catalogue::Catalogue;
use super::operations::{Change, Files, Refusal};
use super::writing::Progress;
use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, SystemTime};
use tokio::runtime::Handle;
use tokio::sync::watch;

/// How long the kernel goes on believing what it was told of names and sizes.
const FRESH: Duration = Duration::from_secs(1);

/// The most that the kernel writes at once, in bytes.
const WRITE_MAX: u32 = 1 << 20;

/// Requests that the kernel sends without waiting for others, as read-ahead.
const BACKGROUND: u16 = 64;

/// An inode number in a list, where there is none yet.
const UNKNOWN: u64 = u32::MAX as u64;

/// The file system of one mount.
pub(super) struct FileSystem<C: Catalogue> {
    files: Arc<Files<C>>,
    runtime: Handle,
    ended: watch::Sender<bool>,
    /// The kernel can map a file that it does not cache.
    maps_uncached: bool,
}

impl<C: Catalogue> FileSystem<C> {
    /// `ended` becomes true when the kernel has no more requests.
    pub(super) fn new(
        catalogue: Arc<C>,
        runtime: Handle,
        access: Access,
        ended: watch::Sender<bool>,
    ) -> FileSystem<C> {
        let files = Arc::new(Files::new(catalogue, access));
        FileSystem { files, runtime, ended, maps_uncached: false }
    }

    /// Does `work`: here, as far as it goes without waiting; the rest in the runtime.
    fn begin<W: Future<Output = ()> + Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Files<C>>) -> W,
    ) {
        let _context = self.runtime.enter();
        let mut work = Box::pin(work(Arc::clone(&self.files)));
        let mut first = Context::from_waker(Waker::noop());
        if work.as_mut().poll(&mut first).is_pending() {
            // It is polled there at once, and so has a waker that wakes.
            self.runtime.spawn(work);
        }
    }
}

fn empty(reply: ReplyEmpty, outcome: Result<(), Refusal>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

/// Answers with `value`, or with its length where that is what is asked for.
fn extended(reply: ReplyXattr, size: u32, value: Result<Vec<u8>, Refusal>) {
    match value {
        Err(errno) => reply.error(errno),
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
    }
}

impl<C: Catalogue> Filesystem for FileSystem<C> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // What an old kernel does not offer is done without: each only makes things quicker, but for
        // the second, without which truncating fails.
        for wanted in [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_PARALLEL_DIROPS,
        ] {
            let _ = config.add_capabilities(wanted);
        }
        let mapped = config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
        self.maps_uncached = mapped.is_ok();
        let refused = |_| std::io::Error::other("the kernel takes no requests of 1 MiB");
        config.set_max_write(WRITE_MAX).map_err(refused)?;
        let refused = |_| std::io::Error::other("the kernel takes no 64 requests at once");
        config.set_max_background(BACKGROUND).map_err(refused)?;
        Ok(())
    }

    fn destroy(&mut self) {
        self.ended.send_replace(true);
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.begin(|files| async move {
            match files.lookup(parent, &name).await {
                Ok(attributes) => reply.entry(&FRESH, &attributes, Generation(0)),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn forget(&self, _: &Request, number: INodeNo, lookups: u64) {
        self.files.forget(number, lookups);
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.begin(|files| async move {
            match files.attributes(number).await {
                Ok(attributes) => reply.attr(&FRESH, &attributes),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.begin(|files| async move {
            match files.change(number, Change { mode, uid, gid, size }).await {
                Ok(attributes) => reply.attr(&FRESH, &attributes),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn open(&self, _: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        // Of a file that somebody opens past the cache, the kernel lets several be written at once only
        // where it knows that this handle never uses its cache: elsewhere it ignores the second flag.
        let uncached = match self.maps_uncached && flags.0 & nix::libc::O_DIRECT != 0 {
            true => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
            false => FopenFlags::empty(),
        };
        self.begin(move |files| async move {
            match files.open(number, flags).await {
                Ok(handle) => reply.opened(FileHandle(handle), uncached),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.begin(|files| async move {
            match files.read(handle, (offset, size)).await {
                Ok(bytes) => reply.data(&bytes),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let begun = match self.files.write_now(handle, offset, data) {
            Ok(Progress::Done(len)) => return reply.written(len as u32),
            Ok(Progress::Waits(begun)) => begun,
            Err(errno) => return reply.error(errno),
        };
        let rest = data[begun.written()..].to_vec();
        self.begin(|files| async move {
            match files.write(handle, offset, begun, &rest).await {
                Ok(len) => reply.written(len as u32),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, handle: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.begin(|files| async move { empty(reply, files.flush(handle, false).await) });
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        self.begin(|files| async move { empty(reply, files.flush(handle, true).await) });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.files.release(handle);
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.begin(|files| async move {
            empty(reply, files.allocate(handle, (offset, len), mode).await);
        });
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.begin(|files| async move {
            match files.seek(handle, offset, whence).await {
                Ok(at) => reply.offset(at),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(self.files.open_directory(number), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.begin(|files| async move {
            let entries = match files.entries(handle, offset == 0).await {
                Ok(entries) => entries,
                Err(errno) => return reply.error(errno),
            };
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            for (at, entry) in entries.iter().enumerate().skip(from) {
                let (file, directory) = (FileType::RegularFile, FileType::Directory);
                let kind = if entry.directory { directory } else { file };
                if reply.add(INodeNo(UNKNOWN), at as u64 + 1, kind, &entry.name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.files.release_directory(handle);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        // A store has no size.
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }

    fn getxattr(&self, _: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.to_string_lossy().into_owned();
        // The kernel asks for others again and again: not worth a question to the store.
        if !name.starts_with("user.") {
            return reply.error(Errno::NO_XATTR);
        }
        self.begin(|files| async move {
            let facts = files.facts(number).await;
            let value = facts.and_then(|facts| {
                let value = attributes::value(&facts, &name);
                value.map(String::into_bytes).ok_or(Errno::NO_XATTR)
            });
            extended(reply, size, value);
        });
    }

    fn listxattr(&self, _: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        self.begin(|files| async move {
            let names = match files.facts(number).await {
                Err(errno) if errno.code() == Errno::EISDIR.code() => Ok(Vec::new()),
                facts => facts.map(|facts| attributes::names(&facts)),
            };
            extended(reply, size, names);
        });
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks the modes by itself.
        reply.ok();
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: fuser::IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EPERM);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }
}
