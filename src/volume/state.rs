//! What is behind the volume's one lock.

use super::backlog::{Backlog, Held};
use super::room::Line;
use crate::device::{DeviceError, DeviceResult};
use crate::error::{Error, Result};
use crate::format::{page::Location, record::Record};
use crate::journal::mirror::{Change, Mirror, Unneeded};
use crate::journal::ring::{PIECE_MAX, Stage};
use crate::log::{CommitPoint, OpenChunk, Terms};
use crate::map::{Map, Overlay, Target};
use crate::mutant::{self, Mutant};
use crate::units::{SECTOR_SIZE, Sector, SectorCount, SectorRange, Seq};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

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

/// Largest change, in bytes.
pub(super) const PIECE: usize = PIECE_MAX;

/// Engine state. Every method is short and waits for nothing.
#[derive(Debug)]
pub(super) struct State {
    pub size: SectorCount,
    pub map: Map,
    pub open: OpenChunk,
    /// When the first change of the open chunk was made.
    open_since: Option<Instant>,
    /// Sealed and not committed.
    pub sealed: Backlog,
    pub commit: CommitPoint,
    pub terms: Terms,
    pub phase: Phase,
    /// Takes every change before it is made.
    pub mirror: Option<Mirror>,
    /// Takes every change as well, and makes it durable when somebody flushes.
    pub journal: Option<Stage>,
    /// Why the journal takes no more: flushes wait for the store since.
    pub journal_failure: Option<String>,
    /// The first slot of which a journal that failed has nothing.
    pub journal_end: Seq,
    /// The most bytes that waited for the store, and the longest time.
    pub most: (u64, Duration),
    /// A flush waits for a chunk to be sealed as soon as one of those on their way is done.
    seal_wanted: bool,
    /// Slots since the last checkpoint began.
    pub slots_since_checkpoint: u64,
    /// What went into the log, and where from.
    pub traffic: Traffic,
    /// Who goes first where there is room.
    pub line: Line,
    /// Sectors in the chunks of slots since the last checkpoint, where there are some.
    pub payloads: BTreeMap<Seq, u32>,
    /// Takes the slots of sealed chunks; `None` for read-only volumes and after the end.
    pub uploads: Option<UnboundedSender<Seq>>,
}

/// Sectors since the volume was opened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traffic {
    /// Written by users.
    pub written: u64,
    /// Appended to the log, by whomever.
    pub appended: u64,
    /// Of them by the collector.
    pub moved: u64,
    /// What `appended` was when the last checkpoint began.
    pub frozen: u64,
    /// What may be appended until the next one is due for the sake of space; 0 is no limit.
    pub interval: u64,
}

impl Traffic {
    /// A checkpoint is due, so that what died is freed.
    pub fn is_much(&self) -> bool {
        self.interval > 0 && self.appended - self.frozen >= self.interval
    }
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
    /// Sectors that were appended until then.
    pub appended: u64,
}

impl State {
    pub fn new(
        size: SectorCount,
        map: Map,
        open: OpenChunk,
        terms: Terms,
        uploads: Option<UnboundedSender<Seq>>,
    ) -> State {
        State {
            size,
            map,
            commit: CommitPoint::new(open.seq()),
            open,
            open_since: None,
            sealed: Backlog::default(),
            terms,
            phase: Phase::Live,
            mirror: None,
            journal: None,
            journal_failure: None,
            journal_end: Seq(0),
            most: (0, Duration::ZERO),
            seal_wanted: false,
            slots_since_checkpoint: 0,
            traffic: Traffic::default(),
            line: Line::default(),
            payloads: BTreeMap::new(),
            uploads,
        }
    }

    /// Bytes that wait for the store.
    pub fn dirty(&self) -> u64 {
        self.sealed.bytes() + self.open_weight()
    }

    pub fn open_weight(&self) -> u64 {
        if self.open.is_changed() { self.open.weight() } else { 0 }
    }

    /// How long the oldest change has waited for the store.
    pub fn lag(&self) -> Duration {
        let since = self.sealed.since().or(self.open_since);
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Whether a request may go on.
    pub fn check(&self) -> DeviceResult<()> {
        match &self.phase {
            Phase::Live => Ok(()),
            Phase::Closed => Err(DeviceError::Shutdown),
            Phase::Failed(why) => Err(DeviceError::Io(why.to_string())),
        }
    }

    /// The mirror forgets what the store has, or a journal at work. Returns files to be
    /// removed or used again.
    pub fn shorten_mirror(&mut self) -> Vec<Unneeded> {
        let committed = self.commit.next();
        let journaled = self.working_journal().map(Stage::complete);
        let Some(mirror) = &mut self.mirror else { return Vec::new() };
        // What the journal had acknowledged is not needed from it any more.
        if journaled.is_none() && committed >= self.journal_end {
            mirror.stand_alone(committed);
        }
        mirror.forget_before(match mutant::on(Mutant::MirrorForgottenEarly) {
            true => self.open.seq(),
            false => journaled.map_or(committed, |journaled| journaled.max(committed)),
        })
    }

    /// The journal, if flushes count on it.
    pub fn working_journal(&self) -> Option<&Stage> {
        self.journal.as_ref().filter(|_| self.journal_failure.is_none())
    }

    /// Puts a change into mirror and journal, where there are such. A mirror that cannot be written is
    /// given up: the device works on, and could not be recovered.
    pub fn record(&mut self, change: Change<'_>) -> DeviceResult<()> {
        self.mirror(change)?;
        if self.journal_failure.is_none()
            && let Some(journal) = &mut self.journal
        {
            journal.push(change);
        }
        self.open_since.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn mirror(&mut self, change: Change<'_>) -> DeviceResult<()> {
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

    /// Whether everything is lost.
    pub fn check_failure(&self) -> Result<()> {
        match &self.phase {
            Phase::Failed(why) => Err(Error::new(why.kind(), why.to_string())),
            _ => Ok(()),
        }
    }

    fn check_open(&self) -> Result<()> {
        self.check_failure()?;
        match self.phase {
            Phase::Closed => Err(Error::failed("the volume is closed")),
            _ => Ok(()),
        }
    }

    /// Fills `out` with what is at `place`, if that is in a chunk in memory.
    pub fn copy_from_memory(&self, place: Location, out: &mut [u8]) -> bool {
        if place.seq == self.open.seq() {
            let from = place.offset as usize * SECTOR_SIZE as usize;
            out.copy_from_slice(&self.open.payload()[from..from + out.len()]);
        } else if let Some(Held::Memory(chunk)) = self.sealed.get(place.seq) {
            chunk.payload.copy(place.offset, out);
        } else {
            return false;
        }
        true
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
            self.traffic.written += whole.len().0;
            return Ok(whole.len());
        }
        let len = whole.len().min(self.open.room());
        let range = SectorRange::between(start, Sector(start.0 + len.0));
        let data = &data[..len.bytes() as usize];
        self.record(Change::Data { start, offset: self.open.next_offset(), data })?;
        self.append(range, data);
        self.traffic.written += len.0;
        Ok(len)
    }

    /// Puts `data`, which is recorded, into the open chunk, where there is room for it.
    pub fn append(&mut self, range: SectorRange, data: &[u8]) {
        let location = self.open.append(range, data);
        self.map.insert(range, Target::Data(location));
        self.traffic.appended += range.len().0;
        if self.open.room().0 == 0 {
            self.seal();
        }
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
        if chunk.moved && !mutant::on(Mutant::MapNotInOrder) {
            self.map.moved(chunk.seq, &chunk.records);
        }
        if let Some(mirror) = &mut self.mirror {
            mirror.rotate();
        }
        if self.journal_failure.is_none()
            && let Some(journal) = &mut self.journal
        {
            journal.end_slot();
            journal.want_all();
        }
        self.seal_wanted = false;
        self.slots_since_checkpoint += 1;
        let (seq, since) = (chunk.seq, self.open_since.take());
        self.sealed.push(chunk, since.unwrap_or_else(Instant::now));
        if let Some(uploads) = &self.uploads {
            // The receiver ends only after a loss, which fails the volume.
            let _ = uploads.send(seq);
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
        self.most = (self.most.0.max(self.dirty()), self.most.1.max(self.lag()));
        let committed = self.commit.complete(seq);
        for chunk in self.sealed.commit(committed) {
            if let Ok(chunk) = Arc::try_unwrap(chunk) {
                self.open.reuse(chunk.payload.into_memory());
            }
        }
        if let Some(journal) = &mut self.journal {
            journal.commit(committed);
        }
        if self.seal_wanted && self.sealed.len() < FLUSH_PARALLEL {
            self.seal();
        }
        committed
    }

    /// Nothing can be committed any more.
    pub fn fail(&mut self, why: Error) {
        if self.check_failure().is_ok() {
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

    /// Ends service: of a read-only volume, or without a close record.
    pub fn end_service(&mut self) {
        if matches!(self.phase, Phase::Live) {
            self.phase = Phase::Closed;
        }
    }

    /// Ends everything. Returns the bytes that were never committed.
    pub fn abandon(&mut self) -> u64 {
        let lost = self.dirty();
        self.fail(Error::failed(format!("abandoned with {lost} bytes that the store never took")));
        lost
    }

    /// Begins a checkpoint: everything up to here, in whole slots.
    pub fn freeze(&mut self) -> Frozen {
        if self.open.is_changed() {
            self.seal();
        }
        self.slots_since_checkpoint = 0;
        self.traffic.frozen = self.traffic.appended;
        Frozen {
            changes: self.map.freeze(),
            next: self.open.seq(),
            size: self.size,
            terms: self.terms.clone(),
            closed: matches!(self.phase, Phase::Closed),
            appended: self.traffic.appended,
        }
    }

    /// Puts a record that changes no contents into the log. Returns the commit point to wait for.
    pub fn log(&mut self, record: Record) -> Result<Seq> {
        self.check_open()?;
        if !mutant::on(Mutant::SnapshotNotLogged) {
            self.open.push(record);
        }
        self.seal();
        Ok(self.open.seq())
    }

    /// Commits a chunk although nothing changed. Returns the commit point to wait for.
    pub fn probe(&mut self) -> DeviceResult<Seq> {
        self.check()?;
        self.seal();
        Ok(self.open.seq())
    }
}
