//! [`FileDisk`]: a preallocated file, read and written past the page cache through io_uring.
//!
//! Contract: that of [`Disk`]. Besides, one process at a time has a file open, a file is never seen
//! half made, and reads do not wait behind writes.
//!
//! * A durable write is one submission with `RWF_DSYNC`. Where the blocks were written before it
//!   changes no metadata, so the kernel needs no more than the data and a flush of the device's
//!   cache. What was only reserved is therefore filled with zeros ahead of its first use.
//! * How it is read and written is that of a [`DirectFile`]: a dropped future frees nothing, and
//!   after a failed write nothing more is written. Reads still try.
//!
//! Invariant: as long as its `FileDisk` lives, no other one changes the file.

mod file;

use crate::direct::{DirectFile, Use};
use crate::error::{Error, Result};
use crate::journal::disk::{Blocks, Disk};
use async_trait::async_trait;
pub use file::Glance;
use std::io;
use std::path::{Path, PathBuf};

/// A journal's file. See the module's documentation.
#[derive(Debug)]
pub struct FileDisk {
    path: PathBuf,
    file: DirectFile,
}

impl FileDisk {
    /// Makes the file `path` of `size` bytes, all of them reserved and all of them zeros. Its name
    /// appears when that is durable; a failure leaves nothing behind.
    ///
    /// # Errors
    /// Failed: it exists, the file system is full or not fit for a journal, or the kernel allows no
    /// io_uring. Busy: another process is making it. Usage: `size` is not a multiple of 4 KiB.
    pub fn create(path: &Path, size: u64) -> Result<FileDisk> {
        FileDisk::serve(file::create(path, size)?, path)
    }

    /// Opens a file that [`FileDisk::create`] made, with what was written to it.
    ///
    /// # Errors
    /// Busy: a process has it open. Failed: it is not there, not made of whole blocks, or the file
    /// system or the kernel does not let it be used.
    pub fn open(path: &Path) -> Result<FileDisk> {
        FileDisk::serve(file::open(path)?, path)
    }

    fn serve(locked: file::Locked, path: &Path) -> Result<FileDisk> {
        let served = DirectFile::serve(locked.file, locked.size, Use::JOURNAL);
        let file = served.map_err(|e| {
            let hint = "a journal needs io_uring: see the sysctl kernel.io_uring_disabled";
            Error::failed(format!("cannot use the journal {}", path.display()))
                .because(e)
                .hint(hint)
        })?;
        Ok(FileDisk { path: path.into(), file })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file's name: nobody opens this journal again. The disk works on until it is
    /// dropped.
    ///
    /// # Errors
    /// Failed: the folder cannot be changed.
    pub fn remove(&self) -> Result<()> {
        file::remove(&self.path)
    }
}

#[async_trait]
impl Disk for FileDisk {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn size(&self) -> u64 {
        self.file.size()
    }

    async fn write(&self, offset: u64, blocks: Blocks) -> io::Result<Blocks> {
        self.file.write(offset, blocks).await
    }

    async fn retire(&self) -> io::Result<()> {
        self.remove().map_err(io::Error::other)
    }

    async fn read(&self, offset: u64, len: usize) -> io::Result<Blocks> {
        self.file.read(offset, len).await
    }
}
