//! What each request means, whatever protocol it came by.

use super::attributes::Access;
use super::catalogue::{Catalogue, Facts, ImageName};
use super::handles::{Handles, Listed, Open, OpenDirectory};
use super::image::{Bytes, Clear, Seek};
use super::tree::{Child, Node, RAW, SNAPSHOTS, Tree};
use super::writing::{Begun, Progress};
use crate::device::DeviceError;
use crate::error::{Error, ErrorKind};
use fuser::{Errno, FileAttr, FileHandle, INodeNo, OpenAccMode, OpenFlags};
use nix::fcntl::FallocateFlags;
use std::ffi::OsStr;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// `SEEK_DATA` and `SEEK_HOLE` of lseek(2).
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// Why a request fails: the errno it is answered with.
pub(super) type Refusal = Errno;

/// The files of a mount, and what is open of them.
pub(super) struct Files<C: Catalogue> {
    catalogue: Arc<C>,
    access: Access,
    tree: Mutex<Tree>,
    opened: Handles<Open<C::Device>>,
    directories: Handles<OpenDirectory>,
}

impl<C: Catalogue> Files<C> {
    pub(super) fn new(catalogue: Arc<C>, access: Access) -> Files<C> {
        let (opened, directories) = (Handles::new(), Handles::new());
        Files { catalogue, access, tree: Mutex::new(Tree::new()), opened, directories }
    }

    /// The kernel forgets a number as often as it was told of it.
    pub(super) fn forget(&self, number: INodeNo, lookups: u64) {
        self.tree().forget(number.0, lookups);
    }

    /// The kernel has no more use for a handle.
    pub(super) fn release(&self, handle: FileHandle) {
        self.opened.remove(handle.0);
    }

    pub(super) async fn read(&self, handle: FileHandle, at: (u64, u32)) -> Result<Bytes, Refusal> {
        let file = self.file(handle)?;
        file.image.read(at.0, at.1.into()).await.map_err(|e| device_refusal(&e))
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self, number: INodeNo) -> Result<Node, Refusal> {
        self.tree().node(number.0).ok_or(Errno::ESTALE)
    }

    fn file(&self, handle: FileHandle) -> Result<Arc<Open<C::Device>>, Refusal> {
        self.opened.get(handle.0).ok_or(Errno::EBADF)
    }

    async fn find(&self, name: &ImageName) -> Result<Option<Facts>, Refusal> {
        self.catalogue.find(name).await.map_err(|e| refusal(&e))
    }

    /// What is known of the file behind a number.
    pub(super) async fn facts(&self, number: INodeNo) -> Result<Facts, Refusal> {
        let Node::Image { name, id } = self.node(number)? else { return Err(Errno::EISDIR) };
        let found = self.find(&name).await?;
        found.filter(|facts| facts.id == id).ok_or(Errno::ESTALE)
    }

    pub(super) async fn lookup(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Refusal> {
        let child = name.to_str().and_then(|name| self.node(parent).ok()?.child(name));
        let (node, facts) = match child.ok_or(Errno::ENOENT)? {
            Child::Snapshots => (Node::Snapshots, None),
            Child::SnapshotsOf(volume) => {
                let name = ImageName { volume, snapshot: None };
                self.find(&name).await?.ok_or(Errno::ENOENT)?;
                (Node::SnapshotsOf(name.volume), None)
            }
            Child::Image(name) => {
                let facts = self.find(&name).await?.ok_or(Errno::ENOENT)?;
                (Node::Image { name, id: facts.id }, Some(facts))
            }
        };
        let number = self.tree().tell(&node);
        Ok(match facts {
            Some(facts) => self.access.file(number, &facts),
            None => self.access.directory(number),
        })
    }

    pub(super) async fn attributes(&self, number: INodeNo) -> Result<FileAttr, Refusal> {
        match self.node(number)? {
            Node::Image { .. } => Ok(self.access.file(number.0, &self.facts(number).await?)),
            _ => Ok(self.access.directory(number.0)),
        }
    }

    /// A change of attributes: only one that changes nothing, as of the size to what it is.
    pub(super) async fn change(
        &self,
        number: INodeNo,
        wanted: Change,
    ) -> Result<FileAttr, Refusal> {
        let now = self.attributes(number).await?;
        if wanted.size.is_some_and(|size| size != now.size) {
            tracing::warn!("a volume does not get another size through its file: `objblk resize`");
            return Err(Errno::EPERM);
        }
        let other_mode = wanted.mode.is_some_and(|mode| mode & 0o7777 != u32::from(now.perm));
        let other_owner = wanted.uid.is_some_and(|uid| uid != now.uid)
            || wanted.gid.is_some_and(|gid| gid != now.gid);
        match other_mode || other_owner {
            true => Err(Errno::EPERM),
            // Times are what they are; programs that set them, as cp does, need not know.
            false => Ok(now),
        }
    }

    pub(super) async fn open(&self, number: INodeNo, flags: OpenFlags) -> Result<u64, Refusal> {
        let Node::Image { name, id } = self.node(number)? else { return Err(Errno::EISDIR) };
        let image = self.catalogue.open(&name).await.map_err(|e| {
            tracing::warn!("cannot open {name}: {e}");
            refusal(&e)
        })?;
        // Another image has the name by now, if the number is not of this one.
        let facts = self.find(&name).await?;
        if facts.is_none_or(|facts| facts.id != id) {
            return Err(Errno::ESTALE);
        }
        let truncate = flags.0 & nix::libc::O_TRUNC != 0;
        if image.is_read_only() && (flags.acc_mode() != OpenAccMode::O_RDONLY || truncate) {
            return Err(Errno::EROFS);
        }
        let open = Open { image, written: false.into() };
        if truncate {
            open.written.store(true, SeqCst);
            open.image.clear(0..u64::MAX, Clear::Punch).await.map_err(|e| device_refusal(&e))?;
        }
        Ok(self.opened.add(open))
    }

    /// See [`Image::write_now`](super::image::Image::write_now).
    pub(super) fn write_now(
        &self,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
    ) -> Result<Progress, Refusal> {
        let file = self.file(handle)?;
        let progress = file.image.write_now(offset, data);
        // Also after an error: some of it may have been written.
        file.written.store(true, SeqCst);
        progress.map_err(|e| device_refusal(&e))
    }

    /// See [`Image::write`](super::image::Image::write).
    pub(super) async fn write(
        &self,
        handle: FileHandle,
        offset: u64,
        begun: Begun,
        rest: &[u8],
    ) -> Result<usize, Refusal> {
        let file = self.file(handle)?;
        let written = file.image.write(offset, begun, rest).await;
        file.written.store(true, SeqCst);
        written.map_err(|e| device_refusal(&e))
    }

    pub(super) async fn flush(&self, handle: FileHandle, always: bool) -> Result<(), Refusal> {
        let file = self.file(handle)?;
        if !file.written.swap(false, SeqCst) && !always {
            return Ok(());
        }
        let flushed = file.image.flush().await;
        flushed.map_err(|e| {
            file.written.store(true, SeqCst);
            device_refusal(&e)
        })
    }

    pub(super) async fn allocate(
        &self,
        handle: FileHandle,
        (offset, len): (u64, u64),
        mode: i32,
    ) -> Result<(), Refusal> {
        let file = self.file(handle)?;
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::EOPNOTSUPP)?;
        let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep;
        let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE;
        let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
        if !mode.contains(keep) && end > file.image.size() {
            return Err(Errno::ENOSPC);
        }
        let how = match mode {
            _ if file.image.is_read_only() => return Err(Errno::EROFS),
            mode if mode == punch => Clear::Punch,
            mode if mode == zero || mode == zero | keep => Clear::Zero,
            // Room is taken as it is needed, and there is always more.
            mode if mode.is_empty() || mode == keep => return Ok(()),
            _ => return Err(Errno::EOPNOTSUPP),
        };
        let cleared = file.image.clear(offset..end, how).await;
        file.written.store(true, SeqCst);
        cleared.map_err(|e| device_refusal(&e))
    }

    pub(super) async fn seek(
        &self,
        handle: FileHandle,
        offset: i64,
        whence: i32,
    ) -> Result<i64, Refusal> {
        let file = self.file(handle)?;
        let (size, offset) = (file.image.size(), u64::try_from(offset).map_err(|_| Errno::ENXIO)?);
        if offset >= size {
            return Err(Errno::ENXIO);
        }
        let what = match whence {
            SEEK_HOLE => Seek::Hole,
            SEEK_DATA => Seek::Data,
            _ => return Err(Errno::EINVAL),
        };
        let found = file.image.seek(offset, what).await.map_err(|e| device_refusal(&e))?;
        // Behind the last byte of a file there is a hole.
        let found = found.or((what == Seek::Hole).then_some(size));
        found.map(u64::cast_signed).ok_or(Errno::ENXIO)
    }

    /// Asks nobody: a directory can be opened to be synced while the store cannot be reached.
    pub(super) fn open_directory(&self, number: INodeNo) -> FileHandle {
        let directory = OpenDirectory { number: number.0, entries: Mutex::default() };
        FileHandle(self.directories.add(directory))
    }

    pub(super) fn release_directory(&self, handle: FileHandle) {
        self.directories.remove(handle.0);
    }

    /// The entries of an open directory; as they are now, for one who begins to read them.
    pub(super) async fn entries(
        &self,
        handle: FileHandle,
        begins: bool,
    ) -> Result<Arc<Vec<Listed>>, Refusal> {
        let directory = self.directories.get(handle.0).ok_or(Errno::EBADF)?;
        let now = match begins {
            true => Some(Arc::new(self.list(INodeNo(directory.number)).await?)),
            false => None,
        };
        let mut entries = directory.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(now) = now {
            *entries = now;
        }
        Ok(Arc::clone(&entries))
    }

    async fn list(&self, number: INodeNo) -> Result<Vec<Listed>, Refusal> {
        let failed = |e: Error| refusal(&e);
        let entry = |name: String, directory| Listed { name, directory };
        let mut listed = vec![entry(".".into(), true), entry("..".into(), true)];
        match self.node(number)? {
            Node::Root => {
                listed.push(entry(SNAPSHOTS.into(), true));
                let volumes = self.catalogue.volumes().await.map_err(failed)?;
                listed.extend(volumes.into_iter().map(|name| entry(name + RAW, false)));
            }
            Node::Snapshots => {
                let volumes = self.catalogue.volumes().await.map_err(failed)?;
                listed.extend(volumes.into_iter().map(|name| entry(name, true)));
            }
            Node::SnapshotsOf(volume) => {
                let snapshots = self.catalogue.snapshots(&volume).await.map_err(failed)?;
                listed.extend(snapshots.into_iter().map(|name| entry(name + RAW, false)));
            }
            Node::Image { .. } => return Err(Errno::ENOTDIR),
        }
        Ok(listed)
    }
}

/// A change of attributes that a program asks for.
pub(super) struct Change {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
}

fn refusal(e: &Error) -> Refusal {
    match e.kind() {
        ErrorKind::NotFound => Errno::ENOENT,
        ErrorKind::Busy => Errno::EBUSY,
        ErrorKind::Usage => Errno::EINVAL,
        ErrorKind::Unsupported => Errno::EOPNOTSUPP,
        _ => {
            tracing::warn!("{e}");
            Errno::EIO
        }
    }
}

fn device_refusal(e: &DeviceError) -> Refusal {
    match e {
        DeviceError::Invalid(_) => Errno::EINVAL,
        DeviceError::BeyondEnd(_) => Errno::ENOSPC,
        DeviceError::ReadOnly => Errno::EROFS,
        DeviceError::Io(_) | DeviceError::Shutdown | DeviceError::TimedOut(_) => Errno::EIO,
    }
}
