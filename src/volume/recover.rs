//! Going on where a dead owner left off, with all that it had acknowledged.
//!
//! The device outlives its server, so its users go on as if nothing had happened: whatever the
//! dead owner had acknowledged must be there, flushed or not. The log has what was committed, the
//! [mirror](crate::journal::mirror) the rest. It counts only if nobody else had the volume since: every
//! epoch that was claimed since the mirror's own must be one that was claimed for this device.
//!
//! **With a journal** the mirror has only what is not in the journal yet. That is appended to the
//! journal, in the dead owner's term; then the journal alone has everything, and is gone on from as
//! after any death ([`takeover`]). A journal in whose newest term the mirror's owner
//! is not needs nothing from the mirror any more.
//!
//! **Without one** the changes are made again through the ordinary write path, in order, and so are
//! in the mirror of the new epoch before the old one goes. Until then a successor of this owner
//! begins where this one did; making changes again that the log has already changes nothing. The
//! same is done where the journal cannot be used and the log has everything that the mirror forgot;
//! if the log has not, nothing is changed. Once it was decided so, the mirror says it: two
//! successors must not choose differently.

use super::hydrate::range_of;
use super::local::local_key;
use super::look::Ownership;
use super::open;
use super::options::{Mode, VolumeOptions};
use super::shared::Shared;
use super::takeover::{self, Left, Prepared};
use crate::error::{Error, ErrorKind, Result};
use crate::format::record::Record;
use crate::format::source::is_of_marks;
use crate::format::volume::{EpochObject, VolumeObject};
use crate::format::{VolumeId, keys};
use crate::journal::mirror::{self, Change, Recorded};
use crate::log::Terms;
use crate::mutant::{self, Mutant};
use crate::store::{Store, StoreErrorKind, get_parsed};
use crate::units::{Epoch, Sector, SectorCount, SectorRange, Seq};

/// What the nonce of an owner ends with that goes on without the journal of the one before.
const ALONE: &str = "-alone";

/// What a new owner goes on from.
#[derive(Debug)]
pub(super) struct Legacy {
    /// A dead owner's mirror.
    pub mirror: Option<Recorded>,
    /// A journal, with or without anything in it.
    pub journal: Option<Prepared>,
    /// There is a journal that cannot be used: only the mirror and the log are gone on from.
    pub is_alone: bool,
}

/// Makes mirror and journal ready for a new owner, before an epoch is claimed. Takes a journal that
/// must not be used out of the options.
///
/// # Errors
/// Failed: what is left does not hold all that was acknowledged. Fenced: somebody else has had the
/// volume since. Store, and those of [`takeover::look`].
pub(super) async fn prepare(
    store: &dyn Store,
    description: &VolumeObject,
    ownership: &mut Ownership,
    options: &mut VolumeOptions,
    owner: &mut EpochObject,
) -> Result<Legacy> {
    let id = description.id;
    let mut mirror = prepare_mirror(store, id, ownership, options).await?;
    let prepared = match &mirror {
        Some(mirror) => prepare_beside(store, id, ownership, options, (mirror, owner)).await,
        None => prepare_journal(store, id, ownership, options, owner).await,
    };
    let mut is_alone = false;
    let journal = match (prepared, &mut mirror) {
        (Ok(Some(journal)), _) => Some(journal),
        (Ok(None), None) => None,
        (Ok(None), Some(_)) => {
            go_alone(options, owner, "it had failed");
            None
        }
        (Err(why), Some(mirror)) if may_go_alone(&why) => {
            let from = (mirror.epoch(), mirror.first());
            if !open::has_all_before(store, description, from).await? {
                let what = "what was acknowledged last is in a journal that cannot be used";
                return Err(Error::failed(what).because(why));
            }
            if let Some(root) = &options.mirror {
                mirror.stand_alone(root)?;
            }
            go_alone(options, owner, &why.to_string());
            is_alone = true;
            None
        }
        (Err(why), _) => return Err(why),
    };
    if let Some(root) = options.mirror.as_deref().filter(|_| options.mode != Mode::ReadOnly) {
        mirror::note_claim(root, &owner.nonce)?;
    }
    Ok(Legacy { mirror, journal, is_alone })
}

async fn prepare_mirror(
    store: &dyn Store,
    id: VolumeId,
    ownership: &mut Ownership,
    options: &VolumeOptions,
) -> Result<Option<Recorded>> {
    match (options.mode, &options.mirror) {
        (Mode::Recover, None) => Err(Error::usage("there is no mirror to recover from")),
        (Mode::Recover, Some(root)) => {
            let recorded = Recorded::read(root, id, local_key(store, id).as_deref())?;
            if !mutant::on(Mutant::RivalIgnored) {
                let is_own = |nonce: &str| recorded.is_own_claim(nonce);
                ownership.epoch = check_succession(store, id, recorded.epoch(), is_own).await?;
            }
            if mutant::on(Mutant::MirrorRetiredEarly) {
                mirror::retire_before(root, Epoch(u64::MAX))?;
            }
            Ok(Some(recorded))
        }
        (Mode::ReadWrite { .. }, Some(root)) => mirror::create(root).map(|()| None),
        _ => Ok(None),
    }
}

async fn prepare_journal(
    store: &dyn Store,
    id: VolumeId,
    ownership: &mut Ownership,
    options: &VolumeOptions,
    owner: &EpochObject,
) -> Result<Option<Prepared>> {
    let left = takeover::look(store, id, ownership, options).await?;
    match (left, &options.journal) {
        (Some(left), Some(journal)) => left.claim(&*journal.disk, id, &owner.nonce).await.map(Some),
        _ => Ok(None),
    }
}

/// Makes the journal of the owner whose mirror that is ready. `None`: nobody needs it.
async fn prepare_beside(
    store: &dyn Store,
    id: VolumeId,
    ownership: &mut Ownership,
    options: &VolumeOptions,
    (mirror, owner): (&Recorded, &EpochObject),
) -> Result<Option<Prepared>> {
    let Some(journal) = options.journal.as_ref().filter(|_| mirror.is_journaled()) else {
        return match mirror.is_journaled() {
            true => Err(Error::failed("it is not there")),
            false => Ok(None),
        };
    };
    let mut by_journal = ownership.clone();
    let left = takeover::look(store, id, &mut by_journal, options).await?;
    let is_its = |left: &Left| left.epoch().is_some_and(|epoch| epoch >= mirror.epoch());
    let Some(left) = left.filter(is_its) else {
        let name = journal.disk.name();
        return Err(Error::failed(format!("{name} is not the journal that the device had")));
    };
    let prepared = left.claim(&*journal.disk, id, &owner.nonce).await?;
    *ownership = by_journal;
    Ok(Some(prepared))
}

/// Whether the mirror may be enough where the journal cannot be used.
fn may_go_alone(why: &Error) -> bool {
    !matches!(why.kind(), ErrorKind::Store | ErrorKind::Fenced)
}

/// Goes on without a journal, under a nonce of which the journal knows nothing, whatever became of
/// an attempt to write it: nobody may ever go on from it behind this owner's back.
fn go_alone(options: &mut VolumeOptions, owner: &mut EpochObject, why: &str) {
    if let Some(journal) = options.journal.take() {
        let name = journal.disk.name();
        tracing::error!("goes on without the journal {name}, flushes wait for the store: {why}");
        owner.nonce.push_str(ALONE);
        owner.journal = None;
    }
}

/// Checks that every epoch from `first` on was claimed for the same mirror or journal. Returns the
/// newest: looked up one by one, because a list may lag.
///
/// # Errors
/// Fenced: one was claimed by somebody else. Failed: `first` was not claimed. Corrupt, Store.
pub(super) async fn check_succession(
    store: &dyn Store,
    id: VolumeId,
    first: Epoch,
    is_own_claim: impl Fn(&str) -> bool,
) -> Result<Epoch> {
    let mut newest = None;
    loop {
        let epoch = newest.map_or(first, Epoch::next);
        let Some(owner) = read_claim(store, id, epoch).await? else { break };
        if !is_own_claim(&owner.nonce) {
            let owner = owner.owner();
            let message = format!("volume {id} was taken over by {owner} (epoch {epoch})");
            return Err(Error::new(ErrorKind::Fenced, message)
                .hint("what was not flushed here is lost; the new owner has the volume"));
        }
        newest = Some(epoch);
    }
    newest.ok_or_else(|| {
        Error::failed(format!("what was left here is of epoch {first}, which nobody claimed"))
    })
}

async fn read_claim(store: &dyn Store, id: VolumeId, epoch: Epoch) -> Result<Option<EpochObject>> {
    let key = keys::epoch(id, epoch);
    match get_parsed(store, &key, EpochObject::parse).await {
        Ok(parsed) => parsed
            .map(Some)
            .map_err(|e| Error::corrupt(format!("object {key} is damaged")).because(e)),
        Err(e) if e.kind == StoreErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The first slot whose changes the log does not have: where the dead owner's term ended. Changes
/// before it are not made again: a flush may have covered them, and while old contents are put back
/// over newer ones, for a moment, a host that takes over would find the old.
///
/// # Errors
/// Corrupt: the log has lost something that was committed.
pub(super) fn first_to_redo(recorded: &Recorded, terms: &Terms) -> Result<Seq> {
    let Some(end) = terms.end_of(recorded.epoch()) else { return Ok(recorded.first()) };
    if recorded.first() <= end {
        return Ok(end);
    }
    let first = recorded.first();
    let message = format!("the log ends at slot {end}, although slots before {first} were stored");
    Err(Error::corrupt(message).hint("restore the objects from a copy of the bucket"))
}

/// Makes what has to be made again, `from` says from which slot of which mirror on, and lets go of
/// older mirrors. `is_alone`: when the store has all of it.
///
/// # Errors
/// As those of the volume. The older mirrors are still there then.
pub(super) async fn finish(
    shared: &Shared,
    from: Option<(&Recorded, Seq)>,
    is_alone: bool,
) -> Result<()> {
    if let Some((recorded, first)) = from {
        redo(shared, recorded, first).await?;
    }
    if is_alone {
        // The journal had promised that a power cut would not matter.
        shared.flush().await.map_err(|_| shared.failure())?;
    }
    match &shared.options.mirror {
        Some(root) if !shared.is_read_only() => mirror::retire_before(root, shared.epoch),
        _ => Ok(()),
    }
}

/// Makes the recorded changes of slots from `first` on again.
///
/// # Errors
/// As those of the volume.
async fn redo(shared: &Shared, recorded: &Recorded, first: Seq) -> Result<()> {
    for change in recorded.slots_from(first).flatten() {
        // What lies beyond the end was cut off by a later change of size, which the log has.
        let all = SectorRange::between(Sector(0), Sector(shared.state().size.0));
        let done = match change {
            Change::Data { start, data, .. } if is_of_marks(range_of(start, data.len())) => {
                shared.write(start, data).await
            }
            Change::Data { start, data, .. } => {
                let end = Sector(start.0 + SectorCount(data.len() as u64 / 512).0);
                let inside = SectorRange::between(start, end).intersect(all);
                shared.write(start, &data[..inside.len().bytes() as usize]).await
            }
            Change::Zero(range) => {
                let range = range.intersect(all);
                shared.clear(range, Record::Zero(range)).await
            }
            Change::Trim(range) => {
                let range = range.intersect(all);
                shared.clear(range, Record::Trim(range)).await
            }
            Change::Resize(size) => {
                shared.state().resize(size)?;
                Ok(())
            }
        };
        done.map_err(|_| shared.failure())?;
    }
    Ok(())
}
