//! Durability before the store: the [journal](crate::journal::ring) of an owner at work.
//!
//! A flush is done when the journal's disk has everything that was written before it. One task
//! writes whatever is staged, so flushes that come together share a write. Chunks that the journal
//! has whole may leave memory while they wait for the store; they are made again from it when their
//! turn comes, byte for byte.
//!
//! When the disk fails, nothing is acknowledged from it any more: flushes wait for the store from
//! then on, as without a journal. What had left memory is read from the disk as long as that works;
//! if it does not, the volume fails, because something that was acknowledged is lost.

use super::backlog::Held;
use super::shared::Shared;
use super::state::State;
use super::takeover::TakenOver;
use crate::device::DeviceError;
use crate::error::{Error, Result};
use crate::format::chunk::FRAME_SIZE;
use crate::format::codec::FormatResult;
use crate::format::keys::ChunkId;
use crate::format::record::Record;
use crate::journal::disk::{Blocks, Disk};
use crate::journal::entry::Change;
use crate::journal::ring::{BatchNumber, PIECE_MAX, Place, SlotIndex, Write, read_slot};
use crate::log::{OpenChunk, SealedChunk};
use crate::mutant::{self, Mutant};
use crate::units::{SECTOR_SIZE, Sector, SectorCount, SectorRange, Seq};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use tokio::time::Instant;

/// How a flush becomes durable.
pub(super) enum Promise {
    /// When batches of the journal before this one are.
    Journal(BatchNumber),
    /// When slots before this one are in the store.
    Store(Seq),
}

impl State {
    /// What makes everything written so far durable.
    pub fn promise(&mut self) -> Promise {
        match &mut self.journal {
            Some(journal) if self.journal_failure.is_none() => Promise::Journal(journal.want_all()),
            _ => Promise::Store(self.flush_target()),
        }
    }

    /// Takes what a journal holds for this term: the slots that are put before all others.
    pub fn go_on(&mut self, taken: TakenOver, chunk_size: u64) {
        let now = Instant::now();
        for (seq, weight) in taken.slots {
            self.sealed.push_journaled(seq, weight, now);
            self.slots_since_checkpoint += 1;
            if let Some(uploads) = &self.uploads {
                // The receiver is in a task that begins later.
                let _ = uploads.send(seq);
            }
            self.open = OpenChunk::new(seq.next(), chunk_size);
        }
        self.journal = Some(taken.stage);
    }

    fn take_batch(&mut self) -> Option<Write> {
        self.journal.as_mut()?.take()
    }

    /// The journal has one more batch; chunks leave memory beyond half of `budget`.
    fn batch_written(&mut self, blocks: Blocks, budget: u64) {
        let Some(journal) = &mut self.journal else { return };
        journal.written(blocks);
        self.sealed.spill(budget / 2, |seq| journal.is_complete(seq));
    }
}

impl Shared {
    /// See [`crate::device::BlockDevice::flush`].
    pub async fn flush(&self) -> std::result::Result<(), DeviceError> {
        loop {
            let promise = {
                let mut state = self.state();
                state.check()?;
                state.promise()
            };
            let done = match promise {
                Promise::Journal(_) if mutant::on(Mutant::FlushBeforeJournal) => return Ok(()),
                Promise::Store(_) if mutant::on(Mutant::FlushBeforeCommit) => return Ok(()),
                Promise::Journal(batch) => {
                    self.journal_due.notify_one();
                    self.wait_journaled(batch).await
                }
                Promise::Store(target) => self.wait_committed(target).await.map(|()| true),
            };
            match done {
                Ok(true) => return Ok(()),
                // The journal failed meanwhile: the store has to have it.
                Ok(false) => {}
                Err(why) => return Err(DeviceError::Io(why.to_string())),
            }
        }
    }

    /// Waits until every batch before `target` is durable. False: the journal failed.
    pub async fn wait_journaled(&self, target: BatchNumber) -> Result<bool> {
        loop {
            let progress = self.next_progress();
            {
                let state = self.state();
                match &state.journal {
                    Some(_) if state.journal_failure.is_some() => {
                        return Ok(mutant::on(Mutant::JournalFailureIgnored));
                    }
                    Some(journal) if journal.durable() >= target => return Ok(true),
                    Some(_) => {}
                    None => return Ok(false),
                }
                state.check_failure()?;
            }
            progress.await;
        }
    }

    fn journal_failed(&self, disk: &dyn Disk, why: &std::io::Error) {
        let name = disk.name();
        tracing::error!(
            volume = %self.id,
            "the journal {name} cannot be written: {why}; flushes wait for the store from now on"
        );
        {
            let mut state = self.state();
            if !mutant::on(Mutant::JournalFailureHidden) {
                state.journal_failure = Some(format!("the journal {name} failed: {why}"));
            }
            // The journal was to make it durable: now the store has to, soon.
            if state.open.is_changed() && state.uploads.is_some() {
                state.seal();
            }
            state.journal_end = state.open.seq();
        }
        self.shorten_mirror();
        self.wake();
    }

    /// The chunk of a sealed slot, from memory or made again.
    pub async fn sealed_chunk(&self, seq: Seq) -> Result<Arc<SealedChunk>> {
        let wanted = {
            let state = self.state();
            match (state.sealed.get(seq), &state.journal) {
                (Some(Held::Memory(chunk)), _) => return Ok(chunk.clone()),
                (Some(Held::Journal), Some(journal)) => {
                    let first = journal.term().first;
                    Wanted {
                        seq,
                        first,
                        place: journal.places(seq),
                        committed: state.commit.next(),
                    }
                }
                _ => return Err(Error::failed(format!("slot {seq} does not wait for the store"))),
            }
        };
        let Some(journal) = &self.options.journal else {
            return Err(Error::failed("there is no journal"));
        };
        let chunk = rebuild(&*journal.disk, wanted, self.description.chunk_size).await;
        chunk.map(Arc::new)
    }

    /// Frames of a chunk that is in the journal only; `None` for all others.
    pub async fn journaled_frames(
        &self,
        id: ChunkId,
        range: &Range<u32>,
    ) -> Option<Result<Vec<Bytes>>> {
        if id.epoch != self.epoch || self.state().sealed.get(id.seq).is_none() {
            return None;
        }
        let chunk = match self.sealed_chunk(id.seq).await {
            Ok(chunk) => chunk,
            // The store may have taken it meanwhile, and its place was used again.
            Err(_) if self.state().sealed.get(id.seq).is_none() => return None,
            Err(e) => return Some(Err(e)),
        };
        self.cache_payload(&chunk);
        let frame = |index: u32| {
            let from = (index as usize * FRAME_SIZE).min(chunk.payload.len());
            let to = (from + FRAME_SIZE).min(chunk.payload.len());
            let mut frame = vec![0; to - from];
            chunk.payload.copy((from as u64 / SECTOR_SIZE) as u32, &mut frame);
            Bytes::from(frame)
        };
        Some(Ok(range.clone().map(frame).collect()))
    }
}

/// Writes what is staged, batch after batch, until the disk fails.
pub(super) async fn write_journal(shared: Arc<Shared>) {
    let Some(options) = &shared.options.journal else { return };
    loop {
        let Some(write) = shared.state().take_batch() else {
            shared.journal_due.notified().await;
            continue;
        };
        match write_batch(&*options.disk, write).await {
            Ok(blocks) => {
                shared.state().batch_written(blocks, shared.limits.dirty_bytes);
                shared.shorten_mirror();
                shared.wake();
            }
            Err(why) => return shared.journal_failed(&*options.disk, &why),
        }
    }
}

/// Writes a batch, and the header of its segment before it.
pub(super) async fn write_batch(disk: &dyn Disk, mut write: Write) -> std::io::Result<Blocks> {
    write.finish();
    if let Some((place, header)) = write.segment.take()
        && !mutant::on(Mutant::SegmentHeaderSkipped)
    {
        disk.write(place, header).await?;
    }
    disk.write(write.place.offset, write.blocks).await
}

/// A chunk to be made again.
pub(super) struct Wanted {
    pub seq: Seq,
    /// The first slot of the term.
    pub first: Seq,
    pub place: (SlotIndex, Vec<Place>),
    /// The present commit point.
    pub committed: Seq,
}

/// Makes the chunk of a slot again.
pub(super) async fn rebuild(disk: &dyn Disk, wanted: Wanted, capacity: u64) -> Result<SealedChunk> {
    let lost = |why: Box<dyn std::error::Error + Send + Sync>| {
        let text = format!("slot {} cannot be read from the journal {}", wanted.seq, disk.name());
        Error::corrupt(text).because(why)
    };
    let slots = read_slot(disk, wanted.place).await.map_err(|e| lost(e.into()))?;
    let open = match wanted.seq == wanted.first {
        true => OpenChunk::first_of_term(wanted.seq, capacity),
        false => OpenChunk::new(wanted.seq, capacity),
    };
    let open = refill(open, slots.changes()).map_err(|e| lost(e.into()))?;
    let Some(mut open) = open else {
        return Err(lost("its changes do not follow each other".into()));
    };
    Ok(open.seal(wanted.committed))
}

/// Makes `changes` in an empty chunk. `None`: they are not those of one chunk.
fn refill(
    mut open: OpenChunk,
    changes: FormatResult<Vec<Change<'_>>>,
) -> FormatResult<Option<OpenChunk>> {
    for change in changes? {
        match change {
            Change::Data { start, offset, data } => {
                let len = SectorCount(data.len() as u64 / SECTOR_SIZE);
                let end = u64::from(offset) + len.0;
                let (next, room) = (open.next_offset(), open.payload_room());
                let range = SectorRange::between(start, Sector(start.0 + len.0));
                if offset == next && len.0 <= room.0 && data.len() <= PIECE_MAX {
                    open.append(range, data);
                } else if end <= u64::from(next) {
                    open.overwrite(offset, data);
                } else {
                    return Ok(None);
                }
            }
            Change::Zero(range) => open.push(Record::Zero(range)),
            Change::Trim(range) => open.push(Record::Trim(range)),
            Change::Resize(size) => open.push(Record::Resize(size)),
        }
    }
    Ok(Some(open))
}
