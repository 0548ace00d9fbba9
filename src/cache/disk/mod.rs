//! Frames on a local disk, for all volumes of a host. Never needed for correctness.
//!
//! A cache is a folder with two files of a fixed size: `frames`, slots of 64 KiB that are read and
//! written past the page cache through io_uring, and `index`, which says what is in them ([`entry`]).
//! Every process of the host that names the folder uses the same cache, without asking the others.
//!
//! Contract:
//! * [`DiskCache::get`] gives the bytes that [`DiskCache::offer`] was given for that key, at any time
//!   by any process, or none. Whatever is wrong (a torn write, damage, a race, a crash) is a miss.
//! * Nothing waits for the cache: an offer is dropped where too many wait, and a lookup is a miss
//!   where too many are under way or the disk does not answer in time.
//! * When the disk fails, or again and again does not answer, this process uses the cache no more,
//!   and says so.
//!
//! Invariants: an entry is cleared before its slot is written and written after it; a payload is
//! given out only if it has the checksum of its entry. Nothing is ever synced. What is offered with a key is
//! sealed before it is written, and is a miss for who has not that key, and in any other slot.

pub mod entry;
mod files;
mod index;

pub use entry::{Claim, FrameKey};

use crate::cipher::LocalKey;
use crate::direct::{Blocks, DirectFile, Use};
use crate::error::{Error, Result};
use crate::format::chunk::FRAME_SIZE;
use async_trait::async_trait;
use bytes::Bytes;
use entry::{Entry, Geometry, USES_MAX};
use futures::future::{join_all, try_join_all};
use index::{Index, Slot};
use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// Frames that wait to be written; what is offered beyond them is dropped.
const QUEUE_MAX: usize = 512;
/// Frames that are written at once.
const BATCH_MAX: usize = 16;
/// Frames that are read at once; the others are misses.
const READS_MAX: usize = 256;
/// Lookups that are being counted at once.
const COUNTS_MAX: usize = 32;
/// How long a lookup may take before it is a miss.
const PATIENCE: Duration = Duration::from_secs(1);
/// Lookups in a row that took longer, after which the cache is used no more.
const LATE_MAX: u32 = 8;

/// The slots of a cache: a file, but for tests.
#[async_trait]
pub trait Slots: Send + Sync + fmt::Debug {
    /// Reads `len` bytes from `offset`, both multiples of 4 KiB.
    ///
    /// # Errors
    /// The disk failed.
    async fn read(&self, offset: u64, len: usize) -> io::Result<Blocks>;

    /// Writes all of `blocks` at `offset`.
    ///
    /// # Errors
    /// The disk failed.
    async fn write(&self, offset: u64, blocks: Blocks) -> io::Result<()>;
}

#[async_trait]
impl Slots for DirectFile {
    async fn read(&self, offset: u64, len: usize) -> io::Result<Blocks> {
        DirectFile::read(self, offset, len).await
    }

    async fn write(&self, offset: u64, blocks: Blocks) -> io::Result<()> {
        DirectFile::write(self, offset, blocks).await.map(drop)
    }
}

/// A cache on a local disk, as this process uses it. See the module's documentation.
#[derive(Debug)]
pub struct DiskCache {
    inner: Arc<Inner>,
    writer: AbortHandle,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    index: Index,
    slots: Arc<dyn Slots>,
    runtime: Handle,
    /// Why it is used no more.
    off: OnceLock<String>,
    reads: Semaphore,
    /// For those who note what was found.
    counts: Arc<Semaphore>,
    /// Lookups in a row that took too long.
    late: AtomicU32,
    queue: Mutex<Queue>,
    /// Something waits to be written.
    due: Notify,
    /// Nothing does.
    idle: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    busy: bool,
}

/// A payload of so many bytes on its way to the disk.
#[derive(Debug)]
struct Waiting {
    key: FrameKey,
    blocks: Blocks,
    len: usize,
    /// Seals it.
    by: Option<Arc<LocalKey>>,
}

impl DiskCache {
    /// Opens the cache in `folder`, of at most `size` bytes. It is made where there is none, as is
    /// the folder (but not what that is in); one of another size, or a damaged one, is made anew,
    /// unless other processes use it.
    ///
    /// # Errors
    /// Usage: `size` is too small. Failed: the folder holds something else, the file system is full or
    /// not fit for a cache, or the kernel allows no io_uring. Busy: others hold on to what has to be
    /// made anew.
    pub fn open(folder: &Path, size: u64, runtime: Handle) -> Result<DiskCache> {
        DiskCache::open_over(folder, size, runtime, |slots| slots)
    }

    /// Opens the cache that is in `folder`, as large as it is.
    ///
    /// # Errors
    /// NotFound: there is none. Those of [`DiskCache::open`].
    pub fn reopen(folder: &Path, runtime: Handle) -> Result<DiskCache> {
        let geometry = files::existing(folder)?;
        let size = geometry.frames_len() + geometry.index_len();
        DiskCache::open(folder, size, runtime)
    }

    /// As [`DiskCache::open`], with slots that `wrap` makes of those of the file.
    ///
    /// # Errors
    /// As there.
    pub fn open_over(
        folder: &Path,
        size: u64,
        runtime: Handle,
        wrap: impl FnOnce(Arc<dyn Slots>) -> Arc<dyn Slots>,
    ) -> Result<DiskCache> {
        let wanted = Geometry::within(size)
            .ok_or_else(|| Error::usage(format!("{size} bytes is no size for a cache")))?;
        let files::Files { index, frames, geometry } = files::open(folder, wanted)?;
        let file = DirectFile::serve(frames, geometry.frames_len(), Use::CACHE).map_err(|e| {
            Error::failed(format!("cannot use the cache in {}", folder.display()))
                .because(e)
                .hint("a cache needs io_uring: see the sysctl kernel.io_uring_disabled")
        })?;
        let inner = Arc::new(Inner {
            folder: folder.into(),
            index: Index::new(index, geometry),
            slots: wrap(Arc::new(file)),
            runtime: runtime.clone(),
            off: OnceLock::new(),
            reads: Semaphore::new(READS_MAX),
            counts: Arc::new(Semaphore::new(COUNTS_MAX)),
            late: AtomicU32::new(0),
            queue: Mutex::default(),
            due: Notify::new(),
            idle: Notify::new(),
        });
        let writer = runtime.spawn(write_queued(inner.clone())).abort_handle();
        Ok(DiskCache { inner, writer })
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.inner.folder
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        let geometry = self.inner.index.geometry();
        geometry.frames_len() + geometry.index_len()
    }

    /// Why this process uses it no more, if so.
    pub fn failure(&self) -> Option<&str> {
        self.inner.off.get().map(String::as_str)
    }

    /// The payloads of `keys`, as far as they are there, and are sealed `by` that, if by anything.
    pub async fn get(&self, keys: &[FrameKey], by: Option<&Arc<LocalKey>>) -> Vec<Option<Bytes>> {
        let none = vec![None; keys.len()];
        let Ok(count) = u32::try_from(keys.len()) else { return none };
        let Ok(_reading) = self.inner.reads.try_acquire_many(count) else { return none };
        if self.failure().is_some() {
            return none;
        }
        match timeout(PATIENCE, self.inner.look(keys, by)).await {
            Ok(Ok(found)) => {
                self.inner.late.store(0, Ordering::Relaxed);
                found
            }
            Ok(Err(e)) => {
                self.inner.turn_off(&e);
                none
            }
            Err(_) => {
                if self.inner.late.fetch_add(1, Ordering::Relaxed) + 1 >= LATE_MAX {
                    self.inner.turn_off(&io::Error::other("its disk does not answer in time"));
                }
                none
            }
        }
    }

    /// Takes a copy of a payload to keep, sealed `by` that if by anything, unless too many wait to be written. It
    /// must be that of an object that the store has and will never have otherwise.
    pub fn offer(&self, key: FrameKey, payload: &[u8], by: Option<&Arc<LocalKey>>) {
        let has_room = |queue: &Queue| queue.waiting.len() < QUEUE_MAX;
        let fits = (1..=FRAME_SIZE).contains(&payload.len());
        if !fits || self.failure().is_some() || !has_room(&self.inner.queue()) {
            return;
        }
        let (mut blocks, len) = (Blocks::zeroed(payload.len()), payload.len());
        blocks.bytes_mut()[..len].copy_from_slice(payload);
        let mut queue = self.inner.queue();
        if has_room(&queue) {
            queue.waiting.push_back(Waiting { key, blocks, len, by: by.cloned() });
            drop(queue);
            self.inner.due.notify_one();
        }
    }

    /// Waits until what was offered is written or given up.
    pub async fn settle(&self) {
        loop {
            // Woken by `notify_waiters` from its creation on.
            let idle = self.inner.idle.notified();
            {
                let queue = self.inner.queue();
                if self.failure().is_some() || (queue.waiting.is_empty() && !queue.busy) {
                    return;
                }
            }
            idle.await;
        }
    }
}

impl Drop for DiskCache {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

impl Inner {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn_off(&self, why: &io::Error) {
        let text = format!("the cache in {} is used no more: {why}", self.folder.display());
        if self.off.set(text.clone()).is_ok() {
            tracing::error!("{text}; reads go to the store");
        }
        self.queue().waiting.clear();
        self.idle.notify_waiters();
    }

    /// Does what may wait for the index's disk.
    async fn at_index<T: Send + 'static>(
        self: &Arc<Inner>,
        work: impl FnOnce(&Index) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let inner = self.clone();
        let done = self.runtime.spawn_blocking(move || work(&inner.index)).await;
        done.map_err(io::Error::other)?
    }

    async fn look(
        self: &Arc<Inner>,
        keys: &[FrameKey],
        by: Option<&Arc<LocalKey>>,
    ) -> io::Result<Vec<Option<Bytes>>> {
        let (wanted, sealed) = (keys.to_vec(), by.is_some());
        let find = move |index: &Index| wanted.iter().map(|key| index.find(key, sealed)).collect();
        // As a rule the kernel has the index in memory.
        let there: Option<Vec<_>> = keys.iter().map(|key| self.index.look(key, sealed)).collect();
        let found: Vec<Option<(Slot, Entry)>> = match there {
            Some(found) => {
                self.count_uses(keys, &found);
                found
            }
            None => self.at_index(find).await?,
        };
        let reads = found.into_iter().zip(keys).map(|(found, key)| async move {
            match found {
                Some((slot, entry)) => self.read(slot, entry, (key, by)).await,
                None => Ok(None),
            }
        });
        try_join_all(reads).await
    }

    /// Notes what was found; nobody waits for that, and where it takes long it is left out.
    fn count_uses(self: &Arc<Inner>, keys: &[FrameKey], found: &[Option<(Slot, Entry)>]) {
        let used = |(key, found): (&FrameKey, &Option<(Slot, Entry)>)| match found {
            Some((_, entry)) if entry.uses < USES_MAX => Some((*key, entry.tag.is_some())),
            _ => None,
        };
        let keys: Vec<(FrameKey, bool)> = keys.iter().zip(found).filter_map(used).collect();
        let Ok(permit) = self.counts.clone().try_acquire_owned() else { return };
        if !keys.is_empty() {
            let inner = self.clone();
            self.runtime.spawn_blocking(move || {
                let _permit = permit;
                // A disk that fails is noticed by whoever waits for it.
                keys.iter().for_each(|(key, sealed)| drop(inner.index.find(key, *sealed)));
            });
        }
    }

    /// The payload in a slot, if it is the one that is meant to be there.
    async fn read(
        self: &Arc<Inner>,
        slot: Slot,
        entry: Entry,
        (key, by): (&FrameKey, Option<&Arc<LocalKey>>),
    ) -> io::Result<Option<Bytes>> {
        let len = entry.len as usize;
        let mut blocks = self.slots.read(place(slot), len.next_multiple_of(4096)).await?;
        let payload = &mut blocks.bytes_mut()[..len];
        let by = by.map(|by| &**by);
        if crc32c::crc32c(payload) == entry.crc && entry.open((key, slot.0), payload, by) {
            return Ok(Some(Bytes::from_owner(blocks).slice(..len)));
        }
        self.at_index(move |index| index.forget(slot, &entry)).await?;
        Ok(None)
    }

    /// What to write next: payloads of different sets, so that no two of them meet in a slot.
    fn next_batch(&self) -> Vec<Waiting> {
        let sets = self.index.geometry().sets;
        let mut queue = self.queue();
        let (mut batch, mut taken) = (Vec::new(), HashSet::new());
        while let Some(next) = queue.waiting.front()
            && batch.len() < BATCH_MAX
            && taken.insert(next.key.set(sets))
        {
            batch.extend(queue.waiting.pop_front());
        }
        queue.busy = !batch.is_empty();
        batch
    }

    async fn keep(self: &Arc<Inner>, batch: Vec<Waiting>) -> io::Result<()> {
        let claim = move |index: &Index| {
            let mut claimed = Vec::new();
            for Waiting { key, mut blocks, len, by } in batch {
                let Some(slot) = index.claim(&key, by.is_some())? else { continue };
                let payload = &mut blocks.bytes_mut()[..len];
                let entry = match by {
                    Some(by) => Entry::seal(key, payload, (&by, slot.0)),
                    None => Entry::new(key, payload),
                };
                claimed.push((slot, entry, blocks));
            }
            Ok(claimed)
        };
        let claimed = self.at_index(claim).await?;
        let writes = claimed.into_iter().map(|(slot, entry, blocks)| async move {
            self.slots.write(place(slot), blocks).await.map(|()| (slot, entry))
        });
        let written: io::Result<Vec<_>> = join_all(writes).await.into_iter().collect();
        let written = written?;
        let publish = move |index: &Index| {
            written.iter().try_for_each(|(slot, entry)| index.publish(*slot, entry))
        };
        self.at_index(publish).await
    }
}

/// Where a slot begins.
fn place(slot: Slot) -> u64 {
    slot.0 * FRAME_SIZE as u64
}

/// Writes what is offered, until the disk fails.
async fn write_queued(inner: Arc<Inner>) {
    while inner.off.get().is_none() {
        let batch = inner.next_batch();
        if batch.is_empty() {
            inner.idle.notify_waiters();
            inner.due.notified().await;
        } else if let Err(e) = inner.keep(batch).await {
            inner.turn_off(&e);
        }
    }
}
