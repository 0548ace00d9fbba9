//! [`FileDisk`]: a preallocated file, read and written past the page cache through io_uring.
//!
//! Contract: that of [`Disk`]. Besides, one process at a time has a file open, a file is never seen
//! half made, and reads do not wait behind writes.
//!
//! * A durable write is one submission with `RWF_DSYNC`. Where the blocks were written before it
//!   changes no metadata, so the kernel needs no more than the data and a flush of the device's
//!   cache. What was only reserved is therefore filled with zeros ahead of its first use (`fill`).
//! * One thread for each disk owns the ring and every buffer that the kernel may touch (`server`):
//!   a dropped future frees nothing.
//! * After a failed write the thread writes no more. Reads still try.
//!
//! Invariant: as long as its `FileDisk` lives, no other one changes the file.

mod file;
mod fill;
mod server;

use crate::error::{Error, Result};
use crate::journal::disk::{Blocks, Disk, check_place};
use crate::sync::{Mutex, oneshot};
use async_trait::async_trait;
pub use file::Glance;
use server::{Inbox, Job, Request};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// How long dropping a disk waits for what is in flight, so that its file can be opened again at
/// once. A dead device must not hold up its owner any longer.
const FAREWELL: Duration = Duration::from_secs(2);

/// A journal's file. See the module's documentation.
#[derive(Debug)]
pub struct FileDisk {
    path: PathBuf,
    size: u64,
    inbox: Arc<Inbox>,
    /// Its other end lives as long as the thread has the file.
    ended: Mutex<Receiver<()>>,
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

    fn serve(file: file::Locked, path: &Path) -> Result<FileDisk> {
        let failed = || Error::failed(format!("cannot use the journal {}", path.display()));
        let size = file.size;
        let inbox = Arc::new(Inbox::new().map_err(|e| failed().because(e))?);
        let (alive, ended) = channel();
        let (ready, is_ready) = channel();
        let shared = inbox.clone();
        let run = move || server::serve(file, &shared, alive, &ready);
        std::thread::Builder::new()
            .name("objblk-journal".into())
            .spawn(run)
            .map_err(|e| failed().because(e))?;
        let started = is_ready.recv().unwrap_or_else(|_| Err(io::Error::other("no thread")));
        started.map_err(|e| {
            let hint = "a journal needs io_uring: see the sysctl kernel.io_uring_disabled";
            failed().because(e).hint(hint)
        })?;
        Ok(FileDisk { path: path.into(), size, inbox, ended: Mutex::new(ended) })
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

    async fn ask(&self, job: Job, offset: u64, blocks: Blocks) -> io::Result<Blocks> {
        check_place(self.size, offset, blocks.bytes().len())?;
        if blocks.bytes().is_empty() {
            return Ok(blocks);
        }
        let (reply, answer) = oneshot::channel();
        self.inbox.put(Request { job, offset, blocks, reply });
        let gone = |_| Err(io::Error::other("the thread of the journal's disk has ended"));
        answer.await.unwrap_or_else(gone)
    }
}

#[async_trait]
impl Disk for FileDisk {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn size(&self) -> u64 {
        self.size
    }

    async fn write(&self, offset: u64, blocks: Blocks) -> io::Result<Blocks> {
        self.ask(Job::Write, offset, blocks).await
    }

    async fn retire(&self) -> io::Result<()> {
        self.remove().map_err(io::Error::other)
    }

    async fn read(&self, offset: u64, len: usize) -> io::Result<Blocks> {
        check_place(self.size, offset, len)?;
        self.ask(Job::Read, offset, Blocks::zeroed(len)).await
    }
}

impl Drop for FileDisk {
    fn drop(&mut self) {
        self.inbox.close();
        // Nothing is ever sent: this is the end of the thread, or of the patience.
        if let Ok(ended) = self.ended.get_mut() {
            let _ = ended.recv_timeout(FAREWELL);
        }
    }
}
