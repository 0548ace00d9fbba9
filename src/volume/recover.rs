//! Going on where a dead owner left off, with all that it had acknowledged.
//!
//! The device outlives its server, so its users go on as if nothing had happened: whatever the
//! dead owner had acknowledged must be there, flushed or not. The log has what was committed, the
//! [journal](crate::journal) the rest. It counts only if nobody else had the volume since: every
//! epoch that was claimed since the journal's own must be one that was claimed for this device.
//!
//! The changes are made again through the ordinary write path, in order, and so are in the journal
//! of the new epoch before the old one goes. Until then a successor of this owner begins where
//! this one did; making changes again that the log has already changes nothing.

use super::open::{Ownership, read_owner};
use super::options::{Mode, VolumeOptions};
use super::shared::Shared;
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::record::Record;
use crate::journal::{self, Change, Recorded};
use crate::log::replay::LogEnd;
use crate::mutant::{self, Mutant};
use crate::store::Store;
use crate::units::{Epoch, Sector, SectorCount, SectorRange};

/// Makes the journal ready for a new owner, before an epoch is claimed. Returns the dead owner's
/// where there is one to recover.
///
/// # Errors
/// Failed: the journal does not hold all that was acknowledged. Fenced: somebody else has had the
/// volume since. Store.
pub(super) async fn prepare(
    store: &dyn Store,
    id: VolumeId,
    ownership: &Ownership,
    options: &VolumeOptions,
) -> Result<Option<Recorded>> {
    match (options.mode, &options.journal) {
        (Mode::Recover, None) => Err(Error::usage("there is no journal to recover from")),
        (Mode::Recover, Some(root)) => {
            let recorded = Recorded::read(root, id)?;
            if !mutant::on(Mutant::RivalIgnored) {
                check_succession(store, id, ownership.epoch, &recorded).await?;
            }
            Ok(Some(recorded))
        }
        (Mode::ReadWrite { .. }, Some(root)) => journal::create(root).map(|()| None),
        _ => Ok(None),
    }
}

async fn check_succession(
    store: &dyn Store,
    id: VolumeId,
    newest: Epoch,
    recorded: &Recorded,
) -> Result<()> {
    let mut epoch = recorded.epoch();
    if epoch > newest {
        return Err(Error::failed(format!(
            "the journal is of epoch {epoch}, which nobody claimed"
        )));
    }
    while epoch <= newest {
        let owner = read_owner(store, id, epoch).await?;
        if !owner.as_ref().is_some_and(|owner| recorded.is_own_claim(&owner.nonce)) {
            let owner = owner.map_or_else(|| "an unknown process".into(), |owner| owner.owner());
            let message = format!("volume {id} was taken over by {owner} (epoch {epoch})");
            return Err(Error::new(ErrorKind::Fenced, message)
                .hint("what was not flushed here is lost; the new owner has the volume"));
        }
        epoch = epoch.next();
    }
    Ok(())
}

/// Makes sure that the journal begins before the log ends, where the log ends with its owner's
/// term (an earlier attempt to recover may have gone on from there).
///
/// # Errors
/// Corrupt: the log has lost something that was committed.
pub(super) fn check_reach(recorded: &Recorded, end: &LogEnd) -> Result<()> {
    let (first, slot) = (recorded.first(), end.slot);
    if recorded.epoch() != end.epoch || first <= slot {
        return Ok(());
    }
    let message = format!("the log ends at slot {slot}, although slots before {first} were stored");
    Err(Error::corrupt(message).hint("restore the objects from a copy of the bucket"))
}

/// Makes all recorded changes again and lets go of the old journal.
///
/// # Errors
/// As those of the volume. The old journal is still there then.
pub(super) async fn redo(shared: &Shared, recorded: &Recorded) -> Result<()> {
    let root = shared.options.journal.as_deref();
    if mutant::on(Mutant::JournalRetiredEarly) {
        root.map_or(Ok(()), |root| journal::retire_before(root, shared.epoch))?;
    }
    for change in recorded.changes() {
        // What lies beyond the end was cut off by a later change of size, which the log has.
        let all = SectorRange::between(Sector(0), Sector(shared.state().size.0));
        let done = match change {
            Change::Data { start, data } => {
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
    root.map_or(Ok(()), |root| journal::retire_before(root, shared.epoch))
}
