//! Files of a local disk, read and written past the page cache through io_uring.
//!
//! [`DirectFile`] is what the journal and the disk cache have in common. One thread for each file
//! owns the ring and every buffer that the kernel may touch (`server`), so a dropped future frees
//! nothing. After a failed write it writes no more; reads still try.
//!
//! Contract: a [`DirectFile`] of [`Use::JOURNAL`] makes every write durable before it returns, one of
//! [`Use::CACHE`] makes none durable. A place that was never written reads as zeros. Once it is
//! dropped, what was in flight is done, but for a disk that does not answer.
//!
//! [`MappedFile`] is one of a file system in memory, for what has to outlive the process alone.

mod blocks;
mod fill;
mod mapped;
mod nowait;
mod server;
mod slots;

pub use blocks::{BLOCK, Blocks, check_place};
pub use fill::{FIRST, GRANULE};
pub use mapped::MappedFile;
pub use nowait::read_from_memory;
pub use slots::{Slot, Slots};

use crate::sync::{Mutex, oneshot};
use fill::Fill;
use nix::fcntl::Flock;
use server::{Inbox, Job, Request};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// How long dropping a file waits for what is in flight, so that it can be opened again at once. A
/// dead device must not hold up its owner any longer.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    name: &'static str,
    /// Writes return when they are durable, and what they will need is filled ahead of them.
    durable: bool,
}

impl Use {
    /// Written front to back, round and round, each write durable.
    pub const JOURNAL: Use = Use { name: "journal", durable: true };
    /// Written anywhere; what is lost with the power is no loss.
    pub const CACHE: Use = Use { name: "cache", durable: false };
}

/// A file of whole blocks, open for direct I/O. See the module's documentation.
#[derive(Debug)]
pub struct DirectFile {
    what: Use,
    size: u64,
    inbox: Arc<Inbox>,
    /// Its other end lives as long as the thread has the file.
    ended: Mutex<Receiver<()>>,
}

impl DirectFile {
    /// Serves `file` of `size` bytes, opened with `O_DIRECT`; it stays locked until the thread has
    /// ended.
    ///
    /// # Errors
    /// There can be no io_uring, or no thread.
    pub fn serve(file: Flock<File>, size: u64, what: Use) -> io::Result<DirectFile> {
        let inbox = Arc::new(Inbox::new()?);
        let (alive, ended) = channel();
        let (ready, is_ready) = channel();
        let shared = inbox.clone();
        let run = move || {
            let fill = what.durable.then(|| Fill::new(&file, size));
            server::serve((file, what), fill, &shared, alive, &ready);
        };
        std::thread::Builder::new().name(format!("objblk-{}", what.name)).spawn(run)?;
        is_ready.recv().unwrap_or_else(|_| Err(io::Error::other("no thread")))?;
        Ok(DirectFile { what, size, inbox, ended: Mutex::new(ended) })
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes all of `blocks` at `offset`. Gives the buffer back.
    ///
    /// # Errors
    /// The place lies outside, or the disk failed, now or before.
    pub async fn write(&self, offset: u64, blocks: Blocks) -> io::Result<Blocks> {
        self.ask(Job::Write, offset, blocks).await
    }

    /// Reads `len` bytes from `offset`.
    ///
    /// # Errors
    /// The place lies outside, or the disk failed.
    pub async fn read(&self, offset: u64, len: usize) -> io::Result<Blocks> {
        check_place(self.size, offset, len)?;
        self.ask(Job::Read, offset, Blocks::zeroed(len)).await
    }

    async fn ask(&self, job: Job, offset: u64, blocks: Blocks) -> io::Result<Blocks> {
        check_place(self.size, offset, blocks.bytes().len())?;
        if blocks.bytes().is_empty() {
            return Ok(blocks);
        }
        let (reply, answer) = oneshot::channel();
        self.inbox.put(Request { job, offset, blocks, reply });
        let gone = |_| {
            let text = format!("the thread of the {}'s disk has ended", self.what.name);
            Err(io::Error::other(text))
        };
        answer.await.unwrap_or_else(gone)
    }
}

impl Drop for DirectFile {
    fn drop(&mut self) {
        self.inbox.close();
        // Nothing is ever sent: this is the end of the thread, or of the patience.
        if let Ok(ended) = self.ended.get_mut() {
            let _ = ended.recv_timeout(FAREWELL);
        }
    }
}
