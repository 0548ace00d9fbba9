//! Going on from the journal of an owner that is gone, whose process or host died.
//!
//! What it had acknowledged as durable is in the log or in the journal. The journal counts if every
//! epoch since its own was claimed for it; otherwise somebody else has had the volume, and what the
//! journal holds besides cannot be put into a log that went another way: it is kept, and nobody
//! attaches with it before it was discarded.
//!
//! The slots that the log lacks are taken over one by one: the first of them becomes the first slot
//! of the new term, and so on, each chunk as the dead owner would have put it. That is settled, in
//! the journal, before anything else is put into the log. So at any moment the log is a prefix of
//! what the dead owner did, and the next successor finds out in the same way how far this one got.
//!
//! Where a process died and not its host, its [mirror](crate::journal::mirror) has besides what was
//! never flushed. It is appended to the journal first, in the dead owner's term, as the owner would
//! have done; the new term begins when that is durable. So a journal in a later term than the
//! mirror's has all of the mirror, and a power cut meanwhile leaves a prefix of what was done.

use super::local::{Wanted, local_key, rebuild, write_batch};
use super::look::Ownership;
use super::options::{JournalOptions, Mode, VolumeOptions};
use super::recover::check_succession;
use crate::cipher::LocalKey;
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::journal::disk::Disk;
use crate::journal::mirror::Recorded;
use crate::journal::ring::{Found, SlotIndex, Stage, Term, note_claim};
use crate::log::{SealedChunk, Terms};
use crate::mutant::{self, Mutant};
use crate::store::Store;
use crate::units::{Epoch, Seq};
use std::sync::Arc;

/// A journal as it was left.
#[derive(Debug)]
pub(super) struct Left {
    found: Option<Found>,
    key: Option<Arc<LocalKey>>,
    /// It goes on from a dead owner's.
    is_succession: bool,
}

/// A journal before its owner's term begins.
#[derive(Debug)]
pub(super) struct Prepared {
    found: Found,
    key: Option<Arc<LocalKey>>,
    /// It goes on from a dead owner's.
    pub is_succession: bool,
}

/// A journal that goes on in a new term.
#[derive(Debug)]
pub(super) struct TakenOver {
    pub stage: Stage,
    /// The slots that the store lacks, with the weight of their chunks.
    pub slots: Vec<(Seq, u64)>,
}

/// Looks at the journal, if there is one.
///
/// # Errors
/// Fenced: somebody else has had the volume, and the journal holds what the store may lack.
/// Failed: it is another volume's, or cannot be read. Corrupt: it is damaged. Store.
pub(super) async fn look(
    store: &dyn Store,
    id: VolumeId,
    ownership: &mut Ownership,
    options: &VolumeOptions,
) -> Result<Option<Left>> {
    let (Some(journal), true) = (&options.journal, options.mode != Mode::ReadOnly) else {
        return Ok(None);
    };
    let disk = &*journal.disk;
    let key = local_key(store, id);
    let mut found = Found::read(disk, key.as_ref()).await?;
    let mut is_succession = false;
    if let Some(left) = &found {
        if left.volume() != id {
            let (name, other) = (disk.name(), left.volume());
            let text = format!("the journal {name} is that of another volume ({other})");
            return Err(Error::failed(text).hint("use another directory for journals"));
        }
        left.check_sealed(disk, key.is_some())?;
        match left.term() {
            Some(term) => match succession(store, id, left, term).await {
                Ok(newest) => (ownership.epoch, is_succession) = (newest, true),
                // What is in a device's journal is not given up, its users still count on it.
                Err(e) if e.kind() == ErrorKind::Fenced && options.mode != Mode::Recover => {
                    refuse_superseded(left, journal, &e)?;
                    found = None;
                }
                Err(e) => return Err(e),
            },
            // Nothing was written yet.
            None => found = None,
        }
    }
    Ok(Some(Left { found, key, is_succession }))
}

impl Left {
    /// The epoch of its newest term.
    pub fn epoch(&self) -> Option<Epoch> {
        self.found.as_ref()?.term().map(|term| term.epoch)
    }

    /// Notes the claim that is about to be made.
    ///
    /// # Errors
    /// Failed: it cannot be written.
    pub async fn claim(self, disk: &dyn Disk, id: VolumeId, nonce: &str) -> Result<Prepared> {
        let nonce = if mutant::on(Mutant::ClaimNotNoted) { "nobody" } else { nonce };
        let found = note_claim(disk, (id, self.key.as_ref()), self.found, nonce).await?;
        Ok(Prepared { found, key: self.key, is_succession: self.is_succession })
    }
}

async fn succession(store: &dyn Store, id: VolumeId, left: &Found, term: Term) -> Result<Epoch> {
    let is_own = |nonce: &str| mutant::on(Mutant::JournalRivalIgnored) || left.is_own_claim(nonce);
    check_succession(store, id, term.epoch, is_own).await
}

fn refuse_superseded(left: &Found, journal: &JournalOptions, why: &Error) -> Result<()> {
    let (slots, bytes) = left.uncommitted();
    if slots == 0 {
        return Ok(());
    }
    let name = journal.disk.name();
    let text = format!(
        "the journal {name} holds {bytes} bytes that the store may lack, and somebody else has had \
         the volume since"
    );
    Err(Error::new(ErrorKind::Fenced, text).because(why.to_string()).hint(
        "it is kept: attach with another journal directory to go on from what the store has, or \
         give up what the journal holds with `objblk journal discard`",
    ))
}

impl Prepared {
    fn first_lacking(&self, term: Term, terms: &Terms) -> Result<SlotIndex> {
        let Some(end) = terms.end_of(term.epoch) else {
            let text = format!("the log does not say where epoch {} ended", term.epoch);
            return Err(Error::corrupt(text));
        };
        let late = u64::from(mutant::on(Mutant::JournalMisplaced));
        let first = self.found.first_lacking(Seq(end.0 + late));
        first.ok_or_else(|| {
            let message = format!("the log ends at slot {end}, although later slots were stored");
            Error::corrupt(message).hint("restore the objects from a copy of the bucket")
        })
    }

    /// Appends what only the mirror of the journal's last owner has, in that owner's term, where the
    /// log of it ended at the slot `end` of the ring.
    ///
    /// # Errors
    /// Corrupt: the journal is damaged, or slots are missing between the two. Failed: it cannot be
    /// read or written.
    async fn complete(
        &mut self,
        disk: &dyn Disk,
        (term, end): (Term, SlotIndex),
        mirror: &Recorded,
    ) -> Result<()> {
        // A later term begins with all that the mirror has, and its owner has served nobody yet.
        if term.epoch != mirror.epoch() || mutant::on(Mutant::MirrorTailDropped) {
            return Ok(());
        }
        let position = self.found.position(disk).await?;
        let (slot, there) = if position.0 < end { (end, 0) } else { position };
        let from = term.seq(slot);
        if from < mirror.first() {
            let (name, first) = (disk.name(), mirror.first());
            let text =
                format!("the journal {name} ends at slot {from}, the mirror begins at {first}");
            return Err(Error::corrupt(text));
        }
        let mut slots = mirror.slots_from(from).peekable();
        let mut skipped = there + usize::from(mutant::on(Mutant::MirrorTailMisplaced));
        let Some(mut stage) = self.found.extend(term.seq(end), slot) else { return Ok(()) };
        while let Some(changes) = slots.next() {
            for change in changes.into_iter().skip(std::mem::take(&mut skipped)) {
                stage.push(change);
                write_due(disk, &mut stage).await?;
            }
            if slots.peek().is_some() {
                stage.end_slot();
            }
        }
        stage.want_all();
        write_due(disk, &mut stage).await?;
        check_written(disk, &stage)?;
        self.found.extended(stage);
        Ok(())
    }

    /// Takes over what the log lacks. `apply` makes the changes of a chunk in the map, in order.
    ///
    /// # Errors
    /// Corrupt: the journal is damaged, or the log lacks what it had. Failed: it cannot be read or
    /// written.
    pub async fn take_over(
        mut self,
        (options, mirror): (&VolumeOptions, Option<&Recorded>),
        (epoch, first, nonce): (Epoch, Seq, &str),
        (terms, chunk_size): (&Terms, u64),
        mut apply: impl FnMut(&SealedChunk) -> Result<()>,
    ) -> Result<Option<TakenOver>> {
        let Some(journal) = &options.journal else { return Ok(None) };
        let disk = &*journal.disk;
        let base = match self.found.term() {
            Some(_) if mutant::on(Mutant::JournalNotReplayed) => self.found.next_slot(),
            Some(term) => {
                let end = self.first_lacking(term, terms)?;
                if let Some(mirror) = mirror {
                    self.complete(disk, (term, end), mirror).await?;
                }
                end
            }
            None => self.found.next_slot(),
        };
        let next = self.found.next_slot();
        let term = Term { epoch, first, base };
        let mut stage = self.found.resume(term);
        let mut slots = Vec::new();
        for index in base.0..next.0 {
            let seq = Seq(first.0 + index - base.0);
            let wanted = Wanted { seq, first, place: stage.places(seq), committed: first };
            let chunk = rebuild((disk, self.key.as_deref()), wanted, chunk_size).await?;
            apply(&chunk)?;
            slots.push((seq, chunk.weight()));
        }
        write_due(disk, &mut stage).await?;
        check_written(disk, &stage)?;
        Found::settle(disk, nonce).await?;
        Ok(Some(TakenOver { stage, slots }))
    }
}

async fn write_due(disk: &dyn Disk, stage: &mut Stage) -> Result<()> {
    while let Some(write) = stage.take() {
        let written = write_batch(disk, write).await;
        let failed = |e| Error::failed(format!("cannot write {}", disk.name())).because(e);
        stage.written(written.map_err(failed)?);
    }
    Ok(())
}

fn check_written(disk: &dyn Disk, stage: &Stage) -> Result<()> {
    match stage.durable() < stage.staged() {
        true => Err(Error::failed(format!("the journal {} has no more place", disk.name()))),
        false => Ok(()),
    }
}
