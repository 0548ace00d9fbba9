//! Reading the log back from a position, and fencing its end.
//!
//! Slots are read ahead in parallel (headers only). A fence leads on to the next term; the first
//! missing slot ends the log. A new owner puts its fence there; where that is refused, somebody's
//! object has arrived meanwhile: it is read and the search goes on behind it.
//!
//! A missing slot is the end only if no later chunk of the term says it was committed: an object
//! that was lost is damage ([`ErrorKind::Corrupt`]), never a silent end. One that was merely looked
//! at before its owner filled it is there when it is looked at again.
//!
//! An owner that is at work and closer to the store fills slots faster than its successor can find
//! the first missing one. So the successor, once refused or after many slots of a term, puts a fence
//! ahead ([`Replay::bar`]): the owner cannot get past it, and the search has an end.
//! The first fence in the order of slots is the one that counts; what lies behind it never does.

use super::fetch::{FetchError, HEADER_GUESS, finish_header};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::chunk::ChunkHeader;
use crate::format::fence::{self, Fence};
use crate::format::keys::{self, ChunkId};
use crate::mutant::{self, Mutant};
use crate::store::{GetRange, Key, Store, StoreErrorKind};
use crate::units::{Epoch, Seq};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};

/// Slots read ahead. More than an owner has in flight (besides what writers fill, a flush, the
/// chunk's age, a checkpoint and the owner's watch seal a few), so that every chunk that could
/// prove a missing slot committed is looked at.
const WINDOW: u64 = super::IN_FLIGHT_MAX as u64 + 8;

/// Slots of one term after which its owner is taken to be at work: more than a checkpoint leaves
/// behind of an owner that wrote little, so that an ordinary attach puts no fence ahead.
const LONG_TERM: u64 = 4 * WINDOW;

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

/// Where the log of a replica was cut off: what lies behind came early or late, and is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The first slot that is not part of it.
    pub slot: Seq,
    /// The epoch of the log there.
    pub epoch: Epoch,
    /// The epoch in which it goes on behind that slot; `None`: it ends.
    pub then: Option<Epoch>,
}

/// A reader of the log, slot after slot.
pub struct Replay<'a> {
    store: &'a dyn Store,
    volume: VolumeId,
    next: Seq,
    epoch: Epoch,
    ahead: FuturesOrdered<BoxFuture<'a, (Seq, Result<Slot>)>>,
    ahead_next: Seq,
    /// The term before, and the slot of the fence that ended it.
    left: Option<(Seq, Epoch)>,
    /// Slots of this term that were read.
    read: u64,
    /// A fence lies ahead in this term.
    barred: bool,
    /// All fences that were put ahead.
    bars: Vec<(Seq, Epoch)>,
    /// It was not passed yet.
    cut: Option<Cut>,
}

impl<'a> Replay<'a> {
    /// Begins at slot `next`, which belongs to `epoch`.
    pub fn new(store: &'a dyn Store, volume: VolumeId, next: Seq, epoch: Epoch) -> Replay<'a> {
        Replay {
            store,
            volume,
            next,
            epoch,
            ahead: FuturesOrdered::new(),
            ahead_next: next,
            left: None,
            read: 0,
            barred: false,
            bars: Vec::new(),
            cut: None,
        }
    }

    /// The same of a replica, whose log was cut off there.
    pub fn cut(self, cut: Option<Cut>) -> Replay<'a> {
        Replay { cut, ..self }
    }

    fn is_at_cut(&self) -> bool {
        self.cut.is_some_and(|cut| (cut.slot, cut.epoch) == (self.next, self.epoch))
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
            if self.is_at_cut() {
                let Some(epoch) = self.cut.and_then(|cut| cut.then) else { return Ok(None) };
                self.next = self.next.next();
                (self.cut, self.left, self.epoch) = (None, None, epoch);
                (self.read, self.barred) = (0, false);
                self.restart();
                term(self.next, epoch);
            }
            match self.read_next().await? {
                Slot::Chunk(header) => {
                    self.next = self.next.next();
                    self.read += 1;
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
        self.left = Some((Seq(self.next.0 - 1), self.epoch));
        self.epoch = epoch;
        (self.read, self.barred) = (0, false);
        self.restart();
    }

    /// True where so many slots were read that the term's owner may be filling them still.
    pub fn is_long(&self) -> bool {
        !self.barred && self.read >= LONG_TERM && self.cut.is_none()
    }

    /// The fences put ahead that turned out to lie behind `end`.
    pub fn bars_behind(&self, end: &LogEnd) -> Vec<Key> {
        let behind = self.bars.iter().filter(|bar| **bar != (end.slot, end.epoch));
        behind.map(|(seq, epoch)| keys::slot(self.volume, *seq, *epoch)).collect()
    }

    /// Gives up what is being read ahead: nobody reads on while this waits for something else, and
    /// requests that nobody attends to would keep the turns that it needs.
    pub fn restart(&mut self) {
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

    /// Verifies that the log really ends at the next slot, which was found missing. `None`: it has
    /// been filled since; read on.
    ///
    /// # Errors
    /// Corrupt: a later chunk proves that the slot was committed.
    pub async fn verify_end(&mut self) -> Result<Option<LogEnd>> {
        if self.is_at_cut() {
            self.restart();
            return Ok(Some(LogEnd { slot: self.next, epoch: self.epoch, strays: Vec::new() }));
        }
        let mut strays = Vec::new();
        // What was shipped is complete.
        let mut proof = self.cut.map(|cut| cut.slot);
        while let Some((seq, slot)) = self.ahead.next().await {
            match slot {
                Ok(Slot::Chunk(header)) if header.committed > self.next => proof = Some(seq),
                // Somebody's fence was put ahead: behind this slot it ends nothing.
                Ok(Slot::Chunk(_) | Slot::Fence(_)) => strays.push(seq),
                Ok(Slot::Missing) => {}
                // A stray that is damaged proves nothing and harms nobody.
                Err(e) if e.kind() == ErrorKind::Corrupt => {}
                Err(e) => return Err(e),
            }
        }
        self.restart();
        let Some(seq) = proof else {
            return Ok(Some(LogEnd { slot: self.next, epoch: self.epoch, strays }));
        };
        let id = ChunkId { volume: self.volume, epoch: self.epoch, seq: self.next };
        match read_slot(self.store, id).await? {
            Slot::Missing => {
                let key = id.key();
                Err(Error::corrupt(format!(
                    "log object {key} is missing although slot {seq} says it was committed"
                ))
                .hint("restore the object from a copy of the bucket"))
            }
            Slot::Chunk(_) | Slot::Fence(_) => Ok(None),
        }
    }

    /// The end of the last term but this one, which the caller's own fence ended: it was put ahead,
    /// or it was put and refused nevertheless.
    ///
    /// # Errors
    /// Store.
    pub async fn own_end(&mut self) -> Result<Option<LogEnd>> {
        let Some((slot, epoch)) = self.left else { return Ok(None) };
        self.restart();
        let (store, volume) = (self.store, self.volume);
        let behind = (slot.0 + 1..slot.0 + 1 + WINDOW).map(Seq).map(|seq| async move {
            (seq, read_slot(store, ChunkId { volume, epoch, seq }).await)
        });
        let mut strays = Vec::new();
        for (seq, found) in futures::future::join_all(behind).await {
            match found {
                Ok(Slot::Chunk(_) | Slot::Fence(_)) => strays.push(seq),
                Ok(Slot::Missing) => {}
                Err(e) if e.kind() == ErrorKind::Corrupt => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Some(LogEnd { slot, epoch, strays }))
    }

    /// Puts a fence in the next slot, which was found missing. False: somebody's object is there
    /// now; read on.
    ///
    /// # Errors
    /// Store.
    pub async fn place(&mut self, next_epoch: Epoch, owner: &str) -> Result<bool> {
        let placed = self.fence(self.next, next_epoch, owner).await?;
        if !placed {
            self.restart();
        }
        Ok(placed)
    }

    /// Puts a fence closely ahead of an owner that may be at work; once a term.
    ///
    /// # Errors
    /// Store.
    pub async fn bar(&mut self, next_epoch: Epoch, owner: &str) -> Result<()> {
        // The owner is past the slots at these distances, and not past those.
        let (mut past, mut ahead) = (0, WINDOW);
        self.restart();
        while !self.barred {
            self.barred = self.bar_at(ahead, next_epoch, owner).await?;
            if !self.barred {
                (past, ahead) = (ahead, ahead.saturating_mul(2));
            }
        }
        // An owner that writes little would take long to come that far.
        while ahead - past > WINDOW {
            let between = past + (ahead - past) / 2;
            match self.bar_at(between, next_epoch, owner).await? {
                true => ahead = between,
                false => past = between,
            }
        }
        Ok(())
    }

    async fn bar_at(&mut self, distance: u64, next_epoch: Epoch, owner: &str) -> Result<bool> {
        let seq = Seq(self.next.0 + distance);
        let placed = self.fence(seq, next_epoch, owner).await?;
        if placed {
            self.bars.push((seq, self.epoch));
        }
        Ok(placed)
    }

    /// Only an older term can be ended: who claimed an epoch, slept and woke up in the log of a later
    /// owner must not touch it.
    async fn fence(&mut self, seq: Seq, next_epoch: Epoch, owner: &str) -> Result<bool> {
        let (volume, epoch) = (self.volume, self.epoch);
        if next_epoch <= epoch {
            return Err(superseded(volume, epoch));
        }
        let fence = Fence { volume, epoch, seq, next_epoch, owner: owner.into() };
        if mutant::on(Mutant::NoFence) {
            return Ok(true);
        }
        let key = keys::slot(volume, seq, epoch);
        match self.store.put_if_absent(&key, Bytes::from(fence.encode())).await {
            Ok(()) => Ok(true),
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

/// The error of a claimant that meets a later one.
pub fn superseded(volume: VolumeId, by: Epoch) -> Error {
    let text = format!("volume {volume} was taken over by epoch {by} meanwhile");
    Error::new(ErrorKind::Busy, text).hint("look who has it with `objblk info`")
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
