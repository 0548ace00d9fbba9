//! Moving slots to where the newest version of the pool's stores puts them.
//!
//! Each is verified against its own checksums before it is copied (one that is sealed has none that can be verified
//! without its key), and its copy is read back before it is deleted where it was. Nothing
//! is remembered but what the stores hold: a crash costs at most the copies that were under way.

use super::Several;
use super::census::{Waiting, is_fence};
use crate::error::{Error, ErrorKind, Result};
use crate::format::chunk::ChunkHeader;
use crate::format::fence::{self, Fence};
use crate::format::keys::{self, ChunkId};
use crate::format::placement::Stay;
use crate::format::pool::encode_json;
use crate::format::sealed;
use crate::format::volume::EpochObject;
use crate::format::{FormatError, VolumeId};
use crate::spread::{FENCE_MAX, Version, is_like_fence, name_in};
use crate::store::{GetRange, Key, MAX_PAGE, ReadBack, Store, StoreErrorKind};
use crate::units::Seq;
use crate::volume::settled;
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Slots that are moved at a time.
const PARALLEL: usize = 4;
/// Slots that wait for their turn in memory, by name.
const BATCH: usize = 256;

/// What was moved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// Objects.
    pub objects: u64,
    /// Their size together.
    pub bytes: u64,
    /// Fences that are where they should be as well.
    pub fences: u64,
    /// What cannot be moved now.
    pub waiting: Vec<Waiting>,
    /// Objects that are damaged, and stay where they are.
    pub damaged: Vec<String>,
}

/// How far it is.
#[derive(Debug, Default)]
pub struct Progress {
    objects: AtomicU64,
    bytes: AtomicU64,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (objects, bytes) = (self.objects.load(Relaxed), self.bytes.load(Relaxed));
        write!(f, "moved {objects} objects, {} MiB", bytes >> 20)
    }
}

/// A slot at one stay that belongs to another one.
#[derive(Clone, Debug)]
struct Job {
    key: Key,
    size: u64,
    from: Stay,
    to: Stay,
}

#[derive(Debug)]
enum Done {
    Moved(u64),
    Fence,
    /// Somebody else has moved or deleted it.
    Gone,
    Damaged(String),
}

/// Keeps bytes to a rate.
#[derive(Debug)]
struct Pace {
    rate: Option<u64>,
    next: Mutex<Instant>,
}

impl Pace {
    fn new(rate: Option<u64>) -> Pace {
        Pace { rate, next: Mutex::new(Instant::now()) }
    }

    /// Returns when so many bytes may be moved.
    async fn turn(&self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let turn = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*next).max(Instant::now());
            *next = turn + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            turn
        };
        tokio::time::sleep_until(turn).await;
    }
}

impl Several {
    /// Moves everything that can be moved, at most `rate` bytes a second. `by` is this process.
    ///
    /// # Errors
    /// Store; corrupt, where a copy is not what was copied.
    ///
    /// Cancellation: what was moved is moved; others then take this process for one that still moves, as
    /// long as it lives.
    pub async fn rebalance(
        &self,
        by: &EpochObject,
        rate: Option<u64>,
        progress: &Progress,
    ) -> Result<Moved> {
        let home = self.spread.home(self.patience);
        let said = keys::moving(uuid::Uuid::new_v4());
        home.put_if_absent(&said, encode_json(by).into()).await?;
        // Only now, so that who removes a store knows of it or is known of here.
        let version = self.spread.refresh(self.patience).await?;
        let moved = self.move_all(&version, &Pace::new(rate), progress).await;
        home.delete(&[said]).await?;
        moved
    }

    async fn move_all(&self, version: &Version, pace: &Pace, progress: &Progress) -> Result<Moved> {
        let mut moved = Moved::default();
        let stays = version.all_stays();
        if stays.len() < 2 {
            return Ok(moved);
        }
        for id in self.pool.volume_ids().await? {
            let before = match settled(&**self.spread.home(self.patience), id).await {
                Ok(settled) => settled.is_current.then_some(settled.before),
                Err(e) if e.kind() == ErrorKind::Store => return Err(e),
                Err(e) => {
                    tracing::warn!("the objects of volume {id} stay where they are: {e}");
                    None
                }
            };
            let mut waiting = Waiting { volume: id, objects: 0, bytes: 0 };
            for from in &stays {
                self.move_from(
                    version,
                    *from,
                    (id, before),
                    (pace, progress),
                    &mut moved,
                    &mut waiting,
                )
                .await?;
            }
            if waiting.objects > 0 {
                moved.waiting.push(waiting);
            }
        }
        Ok(moved)
    }

    /// Moves a volume's slots that are at one stay.
    async fn move_from(
        &self,
        version: &Version,
        from: Stay,
        (id, before): (VolumeId, Option<Seq>),
        (pace, progress): (&Pace, &Progress),
        moved: &mut Moved,
        waiting: &mut Waiting,
    ) -> Result<()> {
        let store = self.spread.member(self.patience, from.store).await?;
        let below = keys::generation(from.generation);
        let prefix = format!("{below}{}", keys::log(id));
        let mut after: Option<Key> = None;
        loop {
            let page = store.list(&prefix, after.as_ref(), BATCH.min(MAX_PAGE)).await?;
            let mut jobs = Vec::new();
            for object in &page.objects {
                let key = object.key.as_str().strip_prefix(&below).and_then(Key::new);
                let Some(key) = key else { continue };
                let Some((seq, _)) = keys::parse_slot(id, &key) else { continue };
                let to = version.stays(&key).first().copied().filter(|to| *to > from);
                let Some(to) = to else { continue };
                let job = Job { key, size: object.size, from, to };
                match before {
                    Some(before) if seq < before => jobs.push(job),
                    _ => waiting.add(object.size),
                }
            }
            let done = stream::iter(jobs).map(|job| async move {
                pace.turn(job.size).await;
                let done = self.move_one(&job).await?;
                if let Done::Moved(bytes) = &done {
                    progress.objects.fetch_add(1, Relaxed);
                    progress.bytes.fetch_add(*bytes, Relaxed);
                }
                Ok::<_, Error>(done)
            });
            let done: Vec<Done> = done.buffer_unordered(PARALLEL).try_collect().await?;
            done.into_iter().for_each(|done| moved.count(done));
            after = page.objects.last().map(|object| object.key.clone());
            if !page.more || after.is_none() {
                return Ok(());
            }
        }
    }

    async fn move_one(&self, job: &Job) -> Result<Done> {
        let source = self.spread.member(self.patience, job.from.store).await?;
        let target = self.spread.member(self.patience, job.to.store).await?;
        let (old, new) =
            (name_in(job.from.generation, &job.key)?, name_in(job.to.generation, &job.key)?);
        let body = match read(&*source, &old, &job.key).await? {
            Read::Sound(body) => body,
            Read::Gone => return Ok(Done::Gone),
            Read::Damaged(why) => {
                return Ok(Done::Damaged(format!("{old} in {}: {why}", source.url())));
            }
        };
        match target.put_if_absent(&new, body.clone()).await {
            Ok(()) => {}
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => {}
            Err(e) => return Err(e.into()),
        }
        let is_fence = is_like_fence(&body, body.len() as u64);
        let Some(there) = read_back(&*target, &new, &body).await? else { return Ok(Done::Gone) };
        if there != body {
            // A claimant that came late put its fence where the slot had been.
            if is_fence {
                return Ok(Done::Fence);
            }
            let text = format!("{new} in {} is not what is to be moved there", target.url());
            return Err(Error::corrupt(text).hint("look at it with `objblk inspect`"));
        }
        if is_fence {
            return Ok(Done::Fence);
        }
        source.delete(&[old]).await?;
        Ok(Done::Moved(body.len() as u64))
    }

    /// Whether something small that lies elsewhere than it should is a fence, which stays there.
    pub(super) async fn stays_there(
        &self,
        store: &dyn Store,
        name: &Key,
        size: u64,
    ) -> Result<bool> {
        if size > FENCE_MAX { Ok(false) } else { is_fence(store, name, size).await }
    }
}

impl Moved {
    fn count(&mut self, done: Done) {
        match done {
            Done::Moved(bytes) => {
                self.objects += 1;
                self.bytes += bytes;
            }
            Done::Fence => self.fences += 1,
            Done::Gone => {}
            Done::Damaged(what) => self.damaged.push(what),
        }
    }
}

enum Read {
    Sound(Bytes),
    Gone,
    Damaged(FormatError),
}

/// Reads the slot `key`, which is called `name` in this store, once more where it is damaged.
async fn read(store: &dyn Store, name: &Key, key: &Key) -> Result<Read> {
    let mut damage = None;
    for _ in 0..2 {
        let bytes = match store.get(name, GetRange::All).await {
            Ok(bytes) => bytes,
            Err(e) if e.kind == StoreErrorKind::NotFound => return Ok(Read::Gone),
            Err(e) => return Err(e.into()),
        };
        match check(&bytes) {
            Ok(None) => return Ok(Read::Sound(bytes)),
            Ok(Some(chunk)) if chunk.key() == *key => return Ok(Read::Sound(bytes)),
            Ok(Some(chunk)) => {
                let text = format!("it is {}, and not what its name says", chunk.key());
                damage = Some(value("name", text));
            }
            Err(e) => damage = Some(e),
        }
    }
    Ok(damage.map_or(Read::Gone, Read::Damaged))
}

/// What a slot's object is, every checksum verified. `None`: it is sealed, so that only who has its key can tell.
fn check(bytes: &[u8]) -> std::result::Result<Option<ChunkId>, FormatError> {
    if bytes.starts_with(sealed::MAGIC) {
        sealed::check_header(bytes)?;
        let len = bytes.len() as u64;
        let whole = sealed::plain_len(len).map(|_| None);
        return whole.ok_or_else(|| value("length", format!("{len} bytes")));
    }
    if bytes.starts_with(fence::MAGIC) {
        let Fence { volume, epoch, seq, .. } = Fence::parse(bytes)?;
        return Ok(Some(ChunkId { volume, epoch, seq }));
    }
    let header = ChunkHeader::parse(bytes)?;
    if header.object_len() != bytes.len() as u64 {
        return Err(value("length", format!("{} bytes", bytes.len())));
    }
    let mut at = header.header_len as usize;
    for (index, frame) in header.frames.entries.iter().enumerate() {
        let end = at + frame.encoded_len as usize;
        if crc32c::crc32c(bytes.get(at..end).unwrap_or_default()) != frame.crc {
            return Err(value("frame", format!("the checksum of frame {index} is wrong")));
        }
        at = end;
    }
    Ok(Some(ChunkId { volume: header.volume, epoch: header.epoch, seq: header.seq }))
}

fn value(field: &'static str, text: String) -> FormatError {
    let problem = crate::format::codec::Problem::Value(text);
    FormatError { object: "chunk", field, offset: 0, problem }
}

/// What is there now; `None`: its owner has deleted it, or somebody has moved it on.
async fn read_back(store: &dyn Store, name: &Key, body: &Bytes) -> Result<Option<Bytes>> {
    let mut back = ReadBack::new(name, body);
    loop {
        match store.get(name, GetRange::All).await {
            Ok(reply) => match back.hears(reply)? {
                None => {}
                there => return Ok(there),
            },
            Err(e) if e.kind == StoreErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    }
}
