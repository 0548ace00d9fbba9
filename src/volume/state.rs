//! What is behind the volume's one lock.

use crate::device::{DeviceError, DeviceResult};
use crate::error::{Error, ErrorKind, Result};
use crate::format::record::Record;
use crate::log::{CommitPoint, OpenChunk, SealedChunk, Terms};
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

    fn check_open(&self) -> Result<()> {
        match &self.phase {
            Phase::Live => Ok(()),
            Phase::Closed => Err(Error::failed("the volume is closed")),
            Phase::Failed(why) => Err(Error::new(why.kind(), why.to_string())),
        }
    }

    /// Writes as much of `data` at `start` as the open chunk takes, at least one sector: a full
    /// chunk is sealed at once, so the open one always has room. Returns the sectors written.
    pub fn write(&mut self, start: Sector, data: &[u8]) -> SectorCount {
        let whole = SectorRange::between(start, Sector(start.0 + data.len() as u64 / 512));
        if let Some(location) = self.map.covering(whole)
            && location.seq == self.open.seq()
        {
            self.open.overwrite(location.offset, data);
            return whole.len();
        }
        let len = whole.len().min(self.open.room());
        let range = SectorRange::between(start, Sector(start.0 + len.0));
        let location = self.open.append(range, &data[..len.bytes() as usize]);
        self.map.insert(range, Target::Data(location));
        if self.open.room().0 == 0 {
            self.seal();
        }
        len
    }

    /// `range` reads as zeros from now on.
    pub fn clear(&mut self, range: SectorRange, record: Record) {
        if range.is_empty() {
            return;
        }
        if !mutant::on(Mutant::TrimNotLogged) {
            self.open.push(record);
        }
        self.map.insert(range, Target::Zero);
        if self.open.room().0 == 0 {
            self.seal();
        }
    }

    /// The size is `size` from now on.
    pub fn resize(&mut self, size: SectorCount) -> Result<()> {
        self.check_open()?;
        if self.uploads.is_none() {
            return Err(Error::failed("the volume is open read-only"));
        }
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
