//! A store in a directory: every object a file, its key the path below the root.
//!
//! The layout is plain on purpose: a pool can be copied between a directory and S3 with any tool
//! that copies trees. Create-if-absent is a complete, fsynced temporary file that gets its name
//! by `link(2)`, which the kernel lets exactly one of several racers do, on local file systems and
//! on NFS.
//!
//! Invariants:
//! * A file that has a key's name is complete, never changes, and its bytes were fsynced before
//!   it got the name. When a put returns, the directories on the way to it are durable as well;
//!   a put that reports `AlreadyExists` has made the object that it lost to durable.
//! * Temporary files live in `~tmp` below the root, a name no key can have: they are never listed
//!   or read. What crashed writers leave there is harmless; opening removes what is a day old.
//! * Directories that a delete leaves empty are removed. A put that loses its directory to that
//!   makes it again.
//!
//! Difference from S3: a name cannot be a file and a directory at once, so while `a/b` exists a
//! put of `a` is refused as `Invalid` (and the other way round). objblk's own names never do this.
//!
//! What is large, chunks above all, is written past the page cache where the file system can: the
//! kernel takes an eighth of the processor's time for it, and what is cached belongs to readers.
//!
//! All calls to the kernel run on tokio's blocking threads. A full disk is `Unavailable`: making
//! room cures it.

mod files;
mod listing;

use super::{
    GetRange, Key, ListPage, MAX_PAGE, ObjectInfo, Op, Store, StoreError, StoreErrorKind,
    StoreResult, address,
};
use crate::error::{Error, Result};
use async_trait::async_trait;
use bytes::Bytes;
use files::Files;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Objects as files below a directory. Cheap to clone.
#[derive(Clone)]
pub struct DirStore {
    files: Arc<Files>,
}

impl DirStore {
    /// The store in the directory `root`, which must exist.
    ///
    /// Errors: `NotFound` where there is no such directory, `Failed` where it cannot be read.
    pub fn open(root: impl Into<PathBuf>) -> Result<DirStore> {
        let root = std::path::absolute(root.into())
            .map_err(|e| Error::usage("the store's directory has no absolute path").because(e))?;
        let shown = root.display();
        match std::fs::metadata(&root) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(Error::usage(format!("{shown} is not a directory"))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::not_found(format!("the store's directory {shown} is missing"))
                    .hint("create it, or mount the file system that it lies on"));
            }
            Err(e) => {
                return Err(Error::failed(format!("cannot open the store {shown}")).because(e));
            }
        }
        let files = Files::new(root);
        files.remove_stale_temporaries();
        Ok(DirStore { files: Arc::new(files) })
    }

    /// As [`DirStore::open`], after making the directory (and those above it) where it is missing.
    pub fn create(root: impl Into<PathBuf>) -> Result<DirStore> {
        let root = root.into();
        std::fs::create_dir_all(&root).map_err(|e| {
            Error::failed(format!("cannot create the store's directory {}", root.display()))
                .because(e)
        })?;
        let store = DirStore::open(root)?;
        if let Some(parent) = store.root().parent() {
            files::sync_directory(parent).map_err(|e| {
                Error::failed(format!("cannot make {} durable", store.root().display())).because(e)
            })?;
        }
        Ok(store)
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        self.files.root()
    }

    fn name(&self, key: &Key) -> String {
        address(&self.url(), key.as_str())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        op: Op,
        object: String,
        work: impl FnOnce(&Files) -> io::Result<T> + Send + 'static,
    ) -> StoreResult<T> {
        let files = self.files.clone();
        match tokio::task::spawn_blocking(move || work(&files)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(e)) => Err(self.error(op, object, &e)),
            Err(_) => Err(StoreError::new(
                StoreErrorKind::Unavailable,
                op,
                object,
                "the process is shutting down",
            )),
        }
    }

    fn error(&self, op: Op, object: String, e: &io::Error) -> StoreError {
        let root = self.root().display();
        let (kind, detail) = match e.kind() {
            io::ErrorKind::NotFound if !self.root().is_dir() => {
                (StoreErrorKind::NotFound, format!("the store's directory {root} is missing"))
            }
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory if op != Op::Put => {
                (StoreErrorKind::NotFound, "there is no such object".to_owned())
            }
            io::ErrorKind::NotADirectory => (
                StoreErrorKind::Invalid,
                "a part of its path is an object, so it cannot be a directory".to_owned(),
            ),
            io::ErrorKind::IsADirectory => (
                StoreErrorKind::Invalid,
                "other objects lie below that name, so it is a directory".to_owned(),
            ),
            io::ErrorKind::AlreadyExists => {
                (StoreErrorKind::AlreadyExists, "an object of that name is there".to_owned())
            }
            io::ErrorKind::InvalidInput if op == Op::Get => (StoreErrorKind::Range, e.to_string()),
            io::ErrorKind::InvalidFilename => {
                let kind =
                    if op == Op::Put { StoreErrorKind::Invalid } else { StoreErrorKind::NotFound };
                (kind, "the name is too long for the file system".to_owned())
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                (StoreErrorKind::Denied, e.to_string())
            }
            io::ErrorKind::Unsupported => (
                StoreErrorKind::Invalid,
                format!("the file system of {root} has no hard links, which objects are made with"),
            ),
            _ => (StoreErrorKind::Unavailable, e.to_string()),
        };
        StoreError::new(kind, op, object, detail)
    }
}

impl fmt::Debug for DirStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DirStore({})", self.root().display())
    }
}

#[async_trait]
impl Store for DirStore {
    fn url(&self) -> String {
        format!("file://{}", self.root().display())
    }

    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        let (name, key) = (self.name(key), key.clone());
        self.blocking(Op::Get, name, move |files| files.read(&key, range)).await
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        let (name, key) = (self.name(key), key.clone());
        self.blocking(Op::Put, name, move |files| files.create(&key, &body)).await
    }

    async fn put(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        let (name, key) = (self.name(key), key.clone());
        self.blocking(Op::Put, name, move |files| files.replace(&key, &body)).await
    }

    async fn delete(&self, keys: &[Key]) -> StoreResult<()> {
        let Some(first) = keys.first() else { return Ok(()) };
        let (name, keys) = (self.name(first), keys.to_vec());
        self.blocking(Op::Delete, name, move |files| files.remove(&keys)).await
    }

    async fn head(&self, key: &Key) -> StoreResult<ObjectInfo> {
        let (name, key) = (self.name(key), key.clone());
        self.blocking(Op::Head, name, move |files| {
            let size = files.size(&key)?;
            Ok(ObjectInfo { key, size })
        })
        .await
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> StoreResult<ListPage> {
        let name = address(&self.url(), prefix);
        let (prefix, after) = (prefix.to_owned(), after.cloned());
        let limit = limit.clamp(1, MAX_PAGE);
        self.blocking(Op::List, name, move |files| {
            listing::page(files.root(), &prefix, after.as_ref(), limit)
        })
        .await
    }
}
