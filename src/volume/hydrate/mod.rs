//! A volume that began as an image outside the pool: fetched block by block when it is needed, and the
//! rest in the background.
//!
//! A block that is read is fetched from the image and written to the volume first, then it is marked as
//! there ([`format::source`](crate::format::source)), then it is read like any other. A write that covers
//! a block fetches nothing; one that covers a part of it fetches the block first. Blocks of zeros are
//! only marked. All of it goes through the log like writes of users, so whatever is lost in a crash is
//! fetched again, and marks are never ahead of what they speak of.
//!
//! Who only reads a volume, or a snapshot, has nothing written: it passes on what the image says.
//!
//! Invariants: a block is marked after it was written; a block that is not marked has nothing in the map
//! but what a crash or a request that was given up left there, and that is never read; of all who would
//! bring or cover a block one does at a time.

mod background;
mod present;

use super::shared::Shared;
use crate::device::{DeviceError, DeviceResult};
use crate::error::{Error, ErrorKind, Result};
use crate::format::source::{COMPLETE, SourceObject};
use crate::image::{Image, ImageError, ImageResult, Images};
use crate::mutant::{self, Mutant};
use crate::sync::{Mutex, MutexGuard, Notify, PoisonError};
use crate::units::{SECTOR_SIZE, Sector, SectorCount, SectorRange};
use present::Present;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bytes that are fetched at once, at most, or a block.
const FETCH: u64 = 1 << 20;
/// First and longest wait before an image that cannot be reached is asked again.
const DELAY: Duration = Duration::from_millis(200);
const DELAY_MAX: Duration = Duration::from_secs(5);

/// How far a volume has its source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Where the source is.
    pub url: String,
    /// Bytes that the volume lacks.
    pub absent_bytes: u64,
    /// Bytes that were fetched since it was opened.
    pub fetched_bytes: u64,
    /// Why fetching does not get on.
    pub trouble: Option<String>,
}

/// The source of an open volume that lacks some of it.
#[derive(Debug)]
pub(super) struct Hydration {
    source: SourceObject,
    images: Option<Arc<dyn Images>>,
    image: tokio::sync::OnceCell<Arc<dyn Image>>,
    present: Mutex<Present>,
    /// Blocks were given back.
    freed: Notify,
    /// Held from the choice of marks until they are written: later ones are written later.
    marking: tokio::sync::Mutex<()>,
    fetched: AtomicU64,
    trouble: Mutex<Option<String>>,
}

/// Blocks that one caller has for itself.
#[derive(Debug)]
struct Turn {
    hydration: Arc<Hydration>,
    blocks: Range<u64>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.hydration.present().give_back(&self.blocks);
        self.hydration.freed.notify_waiters();
    }
}

/// Finds out what the volume lacks of its source; an owner begins to fetch it, where the options say so.
///
/// # Errors
/// As those of [`load`].
pub(super) async fn start(shared: &Arc<Shared>) -> Result<()> {
    let Some(hydration) = load(shared).await? else { return Ok(()) };
    let is_wanted = shared.options.hydrate && !hydration.is_complete() && !shared.is_read_only();
    shared.hydrates(hydration);
    if is_wanted {
        shared.start_task(background::run(Arc::downgrade(shared)));
    }
    Ok(())
}

/// What the volume lacks of its source; `None` where it lacks nothing.
///
/// # Errors
/// Corrupt, Store: what it has cannot be told.
async fn load(shared: &Arc<Shared>) -> Result<Option<Hydration>> {
    let Some(source) = shared.description.source.clone() else { return Ok(None) };
    let unknown = |e: DeviceError| {
        Error::corrupt("what the volume has of its source cannot be told").because(e)
    };
    let at = SourceObject::complete_mark();
    let mut mark = vec![0; at.len().bytes() as usize];
    shared.read(at.start(), &mut mark).await.map_err(unknown)?;
    if mark.starts_with(COMPLETE) {
        return Ok(None);
    }
    let at = SourceObject::marks_of(&(0..source.blocks()));
    let mut marks = vec![0; at.len().bytes() as usize];
    shared.read(at.start(), &mut marks).await.map_err(unknown)?;
    Ok(Some(Hydration {
        present: Mutex::new(Present::new(source.clone(), marks)),
        source,
        images: shared.options.images.clone(),
        image: tokio::sync::OnceCell::new(),
        freed: Notify::new(),
        marking: tokio::sync::Mutex::new(()),
        fetched: AtomicU64::new(0),
        trouble: Mutex::new(None),
    }))
}

impl Hydration {
    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn status(&self) -> SourceStatus {
        SourceStatus {
            url: self.source.url.clone(),
            absent_bytes: self.present().absent_bytes(),
            fetched_bytes: self.fetched.load(Ordering::Relaxed),
            trouble: self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Whether the volume has everything.
    pub fn is_complete(&self) -> bool {
        self.present().is_complete()
    }

    /// Whether the volume has all that `range` touches.
    pub fn has(&self, range: SectorRange) -> bool {
        self.present().has(range)
    }

    /// Sectors that begin as the image.
    pub fn extent(&self) -> SectorCount {
        SectorCount(self.source.sectors().end().0)
    }

    /// Opens the image, if it is the one that the volume began as.
    async fn image(&self) -> ImageResult<Arc<dyn Image>> {
        let open = || async {
            let Some(images) = &self.images else {
                let text = format!("nobody looks for {} here", self.source.url);
                return Err(ImageError::Refused(text));
            };
            let image = images.open(&self.source.url).await?;
            let (now, was) = (image.identity(), &*self.source.identity);
            if image.size() == self.source.size && now == was {
                return Ok(image);
            }
            let url = &self.source.url;
            Err(ImageError::Changed(format!("{url} was changed: it is {now} and was {was}")))
        };
        self.image.get_or_try_init(open).await.cloned()
    }

    /// The bytes of a run of blocks, whole sectors. Waits for an image that cannot be reached.
    async fn ask(&self, blocks: &Range<u64>) -> DeviceResult<Vec<u8>> {
        let range = self.source.range_of(blocks);
        let offset = blocks.start * self.source.block;
        let len = range.len().bytes().min(self.source.size - offset);
        let mut delay = DELAY;
        loop {
            let answer = match self.image().await {
                Ok(image) => image.read(offset, len as usize).await,
                Err(e) => Err(e),
            };
            let trouble = match answer {
                Ok(mut bytes) => {
                    *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    self.fetched.fetch_add(len, Ordering::Relaxed);
                    bytes.resize(range.len().bytes() as usize, 0);
                    return Ok(bytes);
                }
                Err(e) => e,
            };
            let text = format!("the source: {trouble}");
            let known = {
                let mut known = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                known.replace(text.clone()).is_some_and(|known| known == text)
            };
            if !known {
                tracing::warn!("{text}");
            }
            if !matches!(trouble, ImageError::Unreachable(_)) {
                return Err(DeviceError::Io(text));
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(DELAY_MAX);
        }
    }

    /// Waits until nobody else works on `blocks`.
    async fn turn(self: &Arc<Hydration>, blocks: Range<u64>) -> Turn {
        loop {
            // Asked for before the look: whatever is given back from here on is seen.
            let freed = self.freed.notified();
            if self.present().take(&blocks) {
                return Turn { hydration: self.clone(), blocks };
            }
            freed.await;
        }
    }

    /// Writes down that the volume has `blocks`.
    async fn mark(&self, shared: &Shared, blocks: &Range<u64>) -> DeviceResult<()> {
        let _order = self.marking.lock().await;
        let (at, marks) = self.present().marks_with(blocks);
        shared.write(at, &marks).await?;
        let is_complete = {
            let mut present = self.present();
            present.set(blocks);
            present.is_complete()
        };
        if is_complete {
            let mut mark = vec![0; SECTOR_SIZE as usize];
            mark[..COMPLETE.len()].copy_from_slice(COMPLETE);
            shared.write(SourceObject::complete_mark().start(), &mark).await?;
            tracing::info!(volume = %shared.id, "has all of {} now", self.source.url);
        }
        Ok(())
    }

    /// The first blocks that are absent among `blocks`, as many as are fetched at once.
    fn next(&self, blocks: Range<u64>) -> Option<Range<u64>> {
        self.present().first_absent(blocks, (FETCH / self.source.block).max(1))
    }

    /// Brings what is absent of `blocks`.
    async fn bring(self: &Arc<Hydration>, shared: &Shared, blocks: Range<u64>) -> DeviceResult<()> {
        while let Some(wanted) = self.next(blocks.clone()) {
            let turn = self.turn(wanted.clone()).await;
            // Somebody may have had the turn before.
            let is_absent = self.next(wanted.clone()).is_some_and(|absent| absent == wanted);
            if !is_absent && !mutant::on(Mutant::SourceTurnUnchecked) {
                continue;
            }
            let bytes = self.ask(&turn.blocks).await?;
            if mutant::on(Mutant::SourceMarkedEarly) {
                self.mark(shared, &turn.blocks).await?;
            }
            let block = self.source.block as usize;
            let mut at = self.source.range_of(&turn.blocks).start();
            for block in bytes.chunks(block) {
                if block.iter().any(|byte| *byte != 0) {
                    shared.write(at, block).await?;
                }
                at = Sector(at.0 + block.len() as u64 / SECTOR_SIZE);
            }
            self.mark(shared, &turn.blocks).await?;
        }
        Ok(())
    }

    /// Brings what is absent of `blocks`, on the volume's own threads, to the end even if nobody waits.
    async fn brought(
        self: &Arc<Hydration>,
        shared: &Arc<Shared>,
        blocks: Range<u64>,
    ) -> DeviceResult<()> {
        let (this, owner) = (self.clone(), shared.clone());
        let work = async move { Ok(this.bring(&owner, blocks).await) };
        let done = shared.to_its_end(work).await;
        done.unwrap_or_else(|e| Err(DeviceError::Io(e.to_string())))
    }

    /// The first sectors of `range`: whether the volume lacks all of them, or nothing.
    pub fn first_run(&self, range: SectorRange) -> (bool, SectorRange) {
        let touched = self.source.touched(range);
        let absent = self.present().first_absent(touched, u64::MAX);
        let Some(absent) = absent.map(|absent| self.source.range_of(&absent)) else {
            return (false, range);
        };
        match absent.start() <= range.start() {
            true => (true, range.intersect(absent)),
            false => (false, SectorRange::between(range.start(), absent.start())),
        }
    }

    /// Reads, where the volume lacks something of the range.
    pub async fn read(
        self: &Arc<Hydration>,
        shared: &Arc<Shared>,
        start: Sector,
        buf: &mut [u8],
    ) -> DeviceResult<()> {
        let range = range_of(start, buf.len());
        let touched = self.source.touched(range);
        if !shared.is_read_only() {
            self.brought(shared, touched).await?;
            return shared.read(start, buf).await;
        }
        shared.read(start, buf).await?;
        let mut rest = touched;
        while let Some(absent) = self.next(rest.clone()) {
            rest.start = absent.end;
            let (this, blocks) = (self.clone(), absent.clone());
            let asked = shared.to_its_end(async move { Ok(this.ask(&blocks).await) }).await;
            let bytes = asked.unwrap_or_else(|e| Err(DeviceError::Io(e.to_string())))?;
            let whole = self.source.range_of(&absent);
            let part = whole.intersect(range);
            let len = part.len().bytes() as usize;
            let (to, from) = (part.start().0 - start.0, part.start().0 - whole.start().0);
            let (to, from) = ((to * SECTOR_SIZE) as usize, (from * SECTOR_SIZE) as usize);
            buf[to..to + len].copy_from_slice(&bytes[from..from + len]);
        }
        Ok(())
    }

    /// Does `change`, which gives all of `range` other contents, where the volume lacks something of it.
    pub async fn change(
        self: &Arc<Hydration>,
        shared: &Arc<Shared>,
        range: SectorRange,
        change: impl Future<Output = DeviceResult<()>>,
    ) -> DeviceResult<()> {
        let mut edges = self.present().edges(range);
        edges.retain(|_| !mutant::on(Mutant::SourceEdgeIgnored));
        for edge in edges {
            self.brought(shared, edge..edge + 1).await?;
        }
        let touched = self.source.touched(range);
        let turn = self.turn(touched.clone()).await;
        change.await?;
        if self.next(touched).is_some() && !mutant::on(Mutant::SourceNotMarked) {
            self.mark(shared, &turn.blocks).await?;
        }
        Ok(())
    }
}

/// The sectors of a buffer.
pub(super) fn range_of(start: Sector, len: usize) -> SectorRange {
    SectorRange::between(start, Sector(start.0 + len as u64 / SECTOR_SIZE))
}

impl super::Volume {
    /// Looks whether the source is there and is what the volume began as; nothing where the volume has
    /// all of it.
    ///
    /// # Errors
    /// Failed: it cannot be read. Corrupt: it was changed.
    pub async fn check_source(&self) -> Result<()> {
        let Some(hydration) = self.shared.hydration().filter(|h| !h.is_complete()) else {
            return Ok(());
        };
        let kind = |e: &ImageError| match e {
            ImageError::Changed(_) => ErrorKind::Corrupt,
            _ => ErrorKind::Failed,
        };
        let refused = |e: ImageError| {
            Error::new(kind(&e), format!("the source of the volume is needed: {e}"))
                .hint("bring it back as it was; what the volume has of it is not lost")
        };
        hydration.image().await.map(drop).map_err(refused)
    }

    /// Brings all that the volume lacks of its source, and makes it durable. `progress` is told the bytes
    /// that are left.
    ///
    /// # Errors
    /// Usage: the volume is open read-only. Failed: the source cannot be read, or the volume was closed.
    ///
    /// Cancellation: what was brought is there.
    pub async fn hydrate(&self, progress: &mut (dyn FnMut(u64) + Send)) -> Result<()> {
        let Some(hydration) = self.shared.hydration() else { return Ok(()) };
        self.shared.check_owner()?;
        background::bring_all(&self.shared, hydration, &mut |left| progress(left))
            .await
            .map_err(|e| Error::failed("the source cannot be read").because(e))?;
        self.shared.flush().await.map_err(|_| self.shared.failure())
    }
}
