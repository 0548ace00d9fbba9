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

use super::local::{Wanted, rebuild, write_batch};
use super::open::Ownership;
use super::options::{JournalOptions, Mode, VolumeOptions};
use super::recover::check_succession;
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::journal::ring::{Found, SlotIndex, Stage, Term, note_claim};
use crate::log::{SealedChunk, Terms};
use crate::mutant::{self, Mutant};
use crate::store::Store;
use crate::units::{Epoch, Seq};

/// A journal before its owner's term begins.
#[derive(Debug)]
pub(super) struct Prepared {
    found: Found,
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

/// Reads the journal, if there is one, and notes the claim that is about to be made.
///
/// # Errors
/// Fenced: somebody else has had the volume, and the journal holds what the store may lack.
/// Failed: it is another volume's, or cannot be read or written. Corrupt: it is damaged. Store.
pub(super) async fn prepare(
    store: &dyn Store,
    id: VolumeId,
    ownership: &mut Ownership,
    options: &VolumeOptions,
    nonce: &str,
) -> Result<Option<Prepared>> {
    let (Some(journal), true) = (&options.journal, options.mode != Mode::ReadOnly) else {
        return Ok(None);
    };
    let disk = &*journal.disk;
    let mut found = Found::read(disk).await?;
    let mut is_succession = false;
    if let Some(left) = &found {
        if left.volume() != id {
            let (name, other) = (disk.name(), left.volume());
            let text = format!("the journal {name} is that of another volume ({other})");
            return Err(Error::failed(text).hint("use another directory for journals"));
        }
        match left.term() {
            Some(term) => match succession(store, id, left, term).await {
                Ok(newest) => (ownership.epoch, is_succession) = (newest, true),
                Err(e) if e.kind() == ErrorKind::Fenced => {
                    refuse_superseded(left, journal, &e)?;
                    found = None;
                }
                Err(e) => return Err(e),
            },
            // Nothing was written yet.
            None => found = None,
        }
    }
    if mutant::on(Mutant::ClaimNotNoted) {
        let found = note_claim(disk, id, found, "nobody").await?;
        return Ok(Some(Prepared { found, is_succession }));
    }
    let found = note_claim(disk, id, found, nonce).await?;
    Ok(Some(Prepared { found, is_succession }))
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

    /// Takes over what the log lacks. `apply` makes the changes of a chunk in the map, in order.
    ///
    /// # Errors
    /// Corrupt: the journal is damaged, or the log lacks what it had. Failed: it cannot be read or
    /// written.
    pub async fn take_over(
        self,
        options: &VolumeOptions,
        (epoch, first, nonce): (Epoch, Seq, &str),
        (terms, chunk_size): (&Terms, u64),
        mut apply: impl FnMut(&SealedChunk) -> Result<()>,
    ) -> Result<Option<TakenOver>> {
        let Some(journal) = &options.journal else { return Ok(None) };
        let disk = &*journal.disk;
        let next = self.found.next_slot();
        let base = match self.found.term() {
            Some(_) if mutant::on(Mutant::JournalNotReplayed) => next,
            Some(term) => self.first_lacking(term, terms)?,
            None => next,
        };
        let term = Term { epoch, first, base };
        let mut stage = self.found.resume(term);
        let mut slots = Vec::new();
        for index in base.0..next.0 {
            let seq = Seq(first.0 + index - base.0);
            let wanted = Wanted { seq, first, place: stage.places(seq), committed: first };
            let chunk = rebuild(disk, wanted, chunk_size).await?;
            apply(&chunk)?;
            slots.push((seq, chunk.weight()));
        }
        let failed =
            |e: std::io::Error| Error::failed(format!("cannot write {}", disk.name())).because(e);
        while let Some(write) = stage.take() {
            let blocks = write_batch(disk, write).await.map_err(failed)?;
            stage.written(blocks);
        }
        if stage.durable() < stage.staged() {
            let text = format!("the journal {} has no place for a new term", disk.name());
            return Err(Error::failed(text));
        }
        Found::settle(disk, nonce).await?;
        Ok(Some(TakenOver { stage, slots }))
    }
}
