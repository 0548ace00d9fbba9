//! Reading the log back from a position, and fencing its end.
//!
//! Slots are read ahead in parallel (headers only). A fence leads on to the next term; the first
//! missing slot ends the log. A new owner puts its fence there; where that is refused, somebody's
//! object has arrived meanwhile: it is read and the search goes on behind it.
//!
//! A missing slot is the end only if no later chunk of the term says it was committed: an object
//! that was lost is damage ([`ErrorKind::Corrupt`]), never a silent end.

use super::fetch::{FetchError, HEADER_GUESS, finish_header};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::chunk::ChunkHeader;
use crate::format::fence::{self, Fence};
use crate::format::keys::{self, ChunkId};
use crate::mutant::{self, Mutant};
use crate::store::{GetRange, Store, StoreErrorKind};
use crate::units::{Epoch, Seq};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};

/// Slots read ahead. More than an owner has in flight (besides what writers fill, a flush, the
/// chunk's age, a checkpoint and the owner's watch seal a few), so that every chunk that could
/// prove a missing slot committed is looked at.
const WINDOW: u64 = super::IN_FLIGHT_MAX as u64 + 8;

/// What a slot holds.
#[derive(Debug)]
pub enum Slot {
    /// A chunk.
    Chunk(Box<ChunkHeader>),
    /// The end of the term.
    Fence(Fence),
    /// Nothing.
    Missing,
}

/// Where the log ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEnd {
    /// The first missing slot (which a fence occupies now, if one was put).
    pub slot: Seq,
    /// The term it belongs to.
    pub epoch: Epoch,
    /// Slots behind it that hold chunks: never committed, never part of the volume.
    pub strays: Vec<Seq>,
}

/// A reader of the log, slot after slot.
pub struct Replay<'a> {
    store: &'a dyn Store,
    volume: VolumeId,
    next: Seq,
    epoch: Epoch,
    ahead: FuturesOrdered<BoxFuture<'a, (Seq, Result<Slot>)>>,
    ahead_next: Seq,
}

impl<'a> Replay<'a> {
    /// Begins at slot `next`, which belongs to `epoch`.
    pub fn new(store: &'a dyn Store, volume: VolumeId, next: Seq, epoch: Epoch) -> Replay<'a> {
        let ahead = FuturesOrdered::new();
        Replay { store, volume, next, epoch, ahead, ahead_next: next }
    }

    /// The term that the log is in.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The next slot to be read.
    pub fn next_slot(&self) -> Seq {
        self.next
    }

    /// The next chunk of the log, or `None` at its end. Terms that begin are told to `term` with
    /// their first slot.
    ///
    /// # Errors
    /// Corrupt: a slot is damaged or was lost. Store.
    pub async fn next_chunk(
        &mut self,
        term: &mut (dyn FnMut(Seq, Epoch) + Send),
    ) -> Result<Option<ChunkHeader>> {
        loop {
            match self.read_next().await? {
                Slot::Chunk(header) => {
                    self.next = self.next.next();
                    return Ok(Some(*header));
                }
                Slot::Fence(fence) => {
                    self.next = self.next.next();
                    if mutant::on(Mutant::FenceSteppedOver) {
                        continue;
                    }
                    self.enter(fence.next_epoch);
                    term(self.next, self.epoch);
                }
                Slot::Missing => return Ok(None),
            }
        }
    }

    fn enter(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.restart();
    }

    fn restart(&mut self) {
        self.ahead = FuturesOrdered::new();
        self.ahead_next = self.next;
    }

    async fn read_next(&mut self) -> Result<Slot> {
        while self.ahead_next.0 < self.next.0 + WINDOW {
            let (store, volume, epoch, seq) =
                (self.store, self.volume, self.epoch, self.ahead_next);
            self.ahead.push_back(Box::pin(async move {
                (seq, read_slot(store, ChunkId { volume, epoch, seq }).await)
            }));
            self.ahead_next = self.ahead_next.next();
        }
        match self.ahead.next().await {
            Some((seq, slot)) if seq == self.next => slot,
            _ => Err(Error::failed("the replay window lost its place")),
        }
    }

    /// Verifies that the log really ends at the next slot, which was found missing. `None`: it
    /// has grown since then; read on.
    ///
    /// # Errors
    /// Corrupt: a later chunk proves that the slot was committed.
    pub async fn verify_end(&mut self) -> Result<Option<LogEnd>> {
        let mut strays = Vec::new();
        while let Some((seq, slot)) = self.ahead.next().await {
            let header = match slot {
                Ok(Slot::Chunk(header)) => header,
                Ok(Slot::Fence(_) | Slot::Missing) => continue,
                // A stray that is damaged proves nothing and harms nobody.
                Err(e) if e.kind() == ErrorKind::Corrupt => continue,
                Err(e) => return Err(e),
            };
            if header.committed > self.next {
                self.restart();
                // An owner that lives may have filled the slot between the look at it and at
                // the later one.
                let id = ChunkId { volume: self.volume, epoch: self.epoch, seq: self.next };
                if !matches!(read_slot(self.store, id).await?, Slot::Missing) {
                    return Ok(None);
                }
                let key = keys::slot(self.volume, self.next, self.epoch);
                return Err(Error::corrupt(format!(
                    "log object {key} is missing although slot {seq} says it was committed"
                ))
                .hint("restore the object from a copy of the bucket"));
            }
            strays.push(seq);
        }
        self.restart();
        Ok(Some(LogEnd { slot: self.next, epoch: self.epoch, strays }))
    }

    /// Puts `fence` in the next slot, which was found missing. False: somebody's object is there
    /// now; read on.
    pub async fn place(&mut self, next_epoch: Epoch, owner: &str) -> Result<bool> {
        let fence = Fence {
            volume: self.volume,
            epoch: self.epoch,
            seq: self.next,
            next_epoch,
            owner: owner.into(),
        };
        if mutant::on(Mutant::NoFence) {
            return Ok(true);
        }
        let key = keys::slot(self.volume, self.next, self.epoch);
        match self.store.put_if_absent(&key, Bytes::from(fence.encode())).await {
            Ok(()) => Ok(true),
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => {
                self.restart();
                Ok(false)
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// Reads what a slot holds.
async fn read_slot(store: &dyn Store, id: ChunkId) -> Result<Slot> {
    let key = id.key();
    let range = GetRange::Part { offset: 0, len: HEADER_GUESS };
    let bytes = match store.get(&key, range).await {
        Ok(bytes) => bytes,
        Err(e) if e.kind == StoreErrorKind::NotFound => return Ok(Slot::Missing),
        Err(e) => return Err(e.into()),
    };
    if !bytes.starts_with(fence::MAGIC) {
        return match finish_header(store, id, bytes).await {
            Ok(header) => Ok(Slot::Chunk(Box::new(header))),
            Err(FetchError::Store(e)) => Err(e.into()),
            Err(e) => Err(Error::corrupt("the log cannot be read").because(e)),
        };
    }
    let fence = Fence::parse(&bytes)
        .map_err(|e| Error::corrupt(format!("log object {key} is damaged")).because(e))?;
    if (fence.volume, fence.epoch, fence.seq) == (id.volume, id.epoch, id.seq) {
        return Ok(Slot::Fence(fence));
    }
    Err(Error::corrupt(format!("log object {key} is a fence of another slot")))
}
