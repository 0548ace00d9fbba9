//! What is behind the volume's one lock.

use crate::device::{DeviceError, DeviceResult};
use crate::error::{Error, ErrorKind, Result};
use crate::format::record::Record;
use crate::journal::mirror::{Change, Mirror};
use crate::log::{CommitPoint, IN_FLIGHT_MAX, OpenChunk, SealedChunk, Terms};
use crate::map::{Map, Overlay, Target};
use crate::mutant::{self, Mutant};
use crate::units::{Sector, SectorCount, SectorRange, Seq};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedSender;

/// Chunks on their way at which a flush waits for its turn instead of sealing at once, so that
/// flushes that come together share a chunk.
const FLUSH_PARALLEL: usize = 4;

/// Whether requests are served.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// Yes.
    Live,
    /// The owner is leaving or has left.
    Closed,
    /// Never again, for this reason.
    Failed(Arc<Error>),
}

/// Engine state. Every method is short and waits for nothing.
#[derive(Debug)]
pub(super) struct State {
    pub size: SectorCount,
    pub map: Map,
    pub open: OpenChunk,
    /// Sealed and not committed, by slot.
    pub sealed: BTreeMap<Seq, Arc<SealedChunk>>,
    sealed_weight: u64,
    pub commit: CommitPoint,
    pub terms: Terms,
    pub phase: Phase,
    /// Takes every change before it is made.
    pub mirror: Option<Mirror>,
    /// A flush waits for a chunk to be sealed as soon as one of those on their way is done.
    seal_wanted: bool,
    /// Slots since the last checkpoint began.
    pub slots_since_checkpoint: u64,
    /// Takes sealed chunks; `None` for read-only volumes and after the end.
    pub uploads: Option<UnboundedSender<Arc<SealedChunk>>>,
}

/// What a checkpoint begins with.
#[derive(Debug)]
pub(super) struct Frozen {
    /// All changes since the last checkpoint.
    pub changes: Arc<Overlay>,
    /// Every slot before this one is in `changes` or in the last checkpoint.
    pub next: Seq,
    /// Size of the volume at that position.
    pub size: SectorCount,
    /// Names of the slots.
    pub terms: Terms,
    /// The owner's close record is in it: nothing of this term follows.
    pub closed: bool,
}

impl State {
    pub fn new(
        size: SectorCount,
        map: Map,
        open: OpenChunk,
        terms: Terms,
        uploads: Option<UnboundedSender<Arc<SealedChunk>>>,
    ) -> State {
        State {
            size,
            map,
            commit: CommitPoint::new(open.seq()),
            open,
            sealed: BTreeMap::new(),
            sealed_weight: 0,
            terms,
            phase: Phase::Live,
            mirror: None,
            seal_wanted: false,
            slots_since_checkpoint: 0,
            uploads,
        }
    }

    /// Bytes that wait for the store.
    pub fn dirty(&self) -> u64 {
        let open = if self.open.is_changed() { self.open.weight() } else { 0 };
        self.sealed_weight + open
    }

    /// Whether a request may go on.
    pub fn check(&self) -> DeviceResult<()> {
        match &self.phase {
            Phase::Live => Ok(()),
            Phase::Closed => Err(DeviceError::Shutdown),
            Phase::Failed(why) => Err(DeviceError::Io(why.to_string())),
        }
    }

    /// Whether as much waits for the store as `budget` allows, in memory or in the mirror (where
    /// what was overwritten still counts).
    pub fn is_full(&self, budget: u64) -> bool {
        let mirror = self.mirror.as_ref().map_or(0, Mirror::bytes);
        self.dirty().max(mirror) >= budget || self.sealed.len() >= IN_FLIGHT_MAX
    }

    /// Puts a change into the mirror, where there is one. A mirror that cannot be written is
    /// given up: the device works on, and could not be recovered.
    fn record(&mut self, change: Change<'_>) -> DeviceResult<()> {
        let Some(mirror) = &mut self.mirror else { return Ok(()) };
        let Err(why) = mirror.append(change) else { return Ok(()) };
        tracing::error!(
            "the mirror cannot be written: {why}; this device works on, but it could not be \
             recovered if this process died"
        );
        match self.mirror.take().map_or(Ok(()), Mirror::give_up) {
            Ok(()) => Ok(()),
            Err(e) => {
                // What it lacks would be missed by a successor.
                let why = "the mirror is incomplete and cannot be removed";
                self.fail(Error::failed(why).because(e));
                Err(DeviceError::Io(why.into()))
            }
        }
    }

    fn check_open(&self) -> Result<()> {
        match &self.phase {
            Phase::Live => Ok(()),
            Phase::Closed => Err(Error::failed("the volume is closed")),
            Phase::Failed(why) => Err(Error::new(why.kind(), why.to_string())),
        }
    }

    /// Writes as much of `data` at `start` as the open chunk takes, at least one sector: a full
    /// chunk is sealed at once, so the open one always has room. Returns the sectors written.
    pub fn write(&mut self, start: Sector, data: &[u8]) -> DeviceResult<SectorCount> {
        let whole = SectorRange::between(start, Sector(start.0 + data.len() as u64 / 512));
        if let Some(location) = self.map.covering(whole)
            && location.seq == self.open.seq()
        {
            self.record(Change::Data { start, offset: location.offset, data })?;
            self.open.overwrite(location.offset, data);
            return Ok(whole.len());
        }
        let len = whole.len().min(self.open.room());
        let range = SectorRange::between(start, Sector(start.0 + len.0));
        let data = &data[..len.bytes() as usize];
        self.record(Change::Data { start, offset: self.open.next_offset(), data })?;
        let location = self.open.append(range, data);
        self.map.insert(range, Target::Data(location));
        if self.open.room().0 == 0 {
            self.seal();
        }
        Ok(len)
    }

    /// `range` reads as zeros from now on: `record` says why.
    pub fn clear(&mut self, range: SectorRange, record: Record) -> DeviceResult<()> {
        if range.is_empty() {
            return Ok(());
        }
        if !mutant::on(Mutant::TrimNotMirrored) {
            self.record(match record {
                Record::Zero(_) => Change::Zero(range),
                _ => Change::Trim(range),
            })?;
        }
        if !mutant::on(Mutant::TrimNotLogged) {
            self.open.push(record);
        }
        self.map.insert(range, Target::Zero);
        if self.open.room().0 == 0 {
            self.seal();
        }
        Ok(())
    }

    /// The size is `size` from now on.
    pub fn resize(&mut self, size: SectorCount) -> Result<()> {
        self.check_open()?;
        if self.uploads.is_none() {
            return Err(Error::failed("the volume is open read-only"));
        }
        self.record(Change::Resize(size)).map_err(|e| Error::failed("resize").because(e))?;
        self.open.push(Record::Resize(size));
        let gone = SectorRange::between(Sector(size.0), Sector(self.size.0));
        if !mutant::on(Mutant::ShrinkKeepsData) {
            self.map.insert(gone, Target::Zero);
        }
        self.size = size;
        Ok(())
    }

    /// Ends the open chunk and sends it on its way, whatever is in it.
    pub fn seal(&mut self) {
        let chunk = Arc::new(self.open.seal(self.commit.next()));
        if let Some(mirror) = &mut self.mirror {
            mirror.rotate();
        }
        self.seal_wanted = false;
        self.slots_since_checkpoint += 1;
        self.sealed_weight += chunk.weight();
        self.sealed.insert(chunk.seq, chunk.clone());
        if let Some(uploads) = &self.uploads {
            // The receiver ends only after a loss, which fails the volume.
            let _ = uploads.send(chunk);
        }
    }

    /// The commit point at which everything written so far is durable. Seals, or has somebody
    /// seal, what is still open.
    pub fn flush_target(&mut self) -> Seq {
        if !self.open.is_changed() || mutant::on(Mutant::FlushWithoutOpenChunk) {
            return self.open.seq();
        }
        if self.sealed.len() < FLUSH_PARALLEL {
            self.seal();
            return self.open.seq();
        }
        self.seal_wanted = true;
        self.open.seq().next()
    }

    /// The chunk is in the store. Returns the commit point.
    pub fn uploaded(&mut self, seq: Seq) -> Seq {
        let committed = self.commit.complete(seq);
        while let Some(first) = self.sealed.first_entry().filter(|first| *first.key() < committed) {
            self.sealed_weight -= first.get().weight();
            first.remove();
        }
        if self.seal_wanted && self.sealed.len() < FLUSH_PARALLEL {
            self.seal();
        }
        committed
    }

    /// Nothing can be committed any more.
    pub fn fail(&mut self, why: Error) {
        if !matches!(self.phase, Phase::Failed(_)) {
            self.phase = Phase::Failed(Arc::new(why));
        }
        self.uploads = None;
    }

    /// Ends service with a close record. Returns the commit point to wait for.
    pub fn begin_close(&mut self) -> Result<Seq> {
        self.check_open()?;
        self.phase = Phase::Closed;
        self.open.push(Record::Close);
        self.seal();
        Ok(self.open.seq())
    }

    /// Ends service of a read-only volume.
    pub fn close_read_only(&mut self) {
        self.phase = Phase::Closed;
    }

    /// Ends everything. Returns the bytes that were never committed.
    pub fn abandon(&mut self) -> u64 {
        let lost = self.dirty();
        let text = format!("abandoned with {lost} bytes that the store never took");
        self.fail(Error::new(ErrorKind::Failed, text));
        lost
    }

    /// Begins a checkpoint: everything up to here, in whole slots.
    pub fn freeze(&mut self) -> Frozen {
        if self.open.is_changed() {
            self.seal();
        }
        self.slots_since_checkpoint = 0;
        Frozen {
            changes: self.map.freeze(),
            next: self.open.seq(),
            size: self.size,
            terms: self.terms.clone(),
            closed: matches!(self.phase, Phase::Closed),
        }
    }

    /// Commits a chunk although nothing changed, to see whether this owner still can. Returns the
    /// commit point to wait for.
    pub fn probe(&mut self) -> DeviceResult<Seq> {
        self.check()?;
        self.seal();
        Ok(self.open.seq())
    }
}
