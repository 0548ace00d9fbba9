//! Copies of snapshots: what they are copies of, and receiving one.
//!
//! Who receives a snapshot claims its epoch as a receiver. It verifies that the volume is what the changes
//! apply to, and stores a [note](ReceivedObject) of that before it writes. Thus after a crash the note says, as
//! long as only receivers have had the volume since, that every sector is what it was in the base or what it
//! is in the snapshot: then the same changes, whole, lead to the snapshot once more. A note may also come from
//! an owner that was deposed meanwhile and could change nothing: it is void once another snapshot has
//! been received since.

use super::Volume;
use super::look::read_owner;
use crate::error::{Error, ErrorKind, Result};
use crate::format::pool::encode_json;
use crate::format::received::ReceivedObject;
use crate::format::snapshot::SnapshotEntry;
use crate::format::volume::EpochObject;
use crate::format::{SnapshotId, VolumeId, keys};
use crate::mutant::{self, Mutant};
use crate::store::{Key, Store, StoreErrorKind, get_parsed, list_all};
use crate::units::Epoch;

/// What the nonce of a receiver ends with.
const RECEIVER: &str = "-receiver";

/// The owner, as one that only receives.
pub fn as_receiver(mut owner: EpochObject) -> EpochObject {
    owner.nonce.push_str(RECEIVER);
    owner
}

/// The snapshot that `snapshot` of the volume is a copy of; itself where it is none.
///
/// # Errors
/// Corrupt: what says so is damaged. Store.
pub async fn original(
    store: &dyn Store,
    volume: VolumeId,
    snapshot: SnapshotId,
) -> Result<SnapshotId> {
    let note = read(store, &keys::received(volume, snapshot)).await?;
    Ok(note.map_or(snapshot, |note| note.snapshot))
}

/// What was being received last and is not there, whoever has had the volume since: `snapshots` are those that
/// there are.
///
/// # Errors
/// Corrupt: what says so is damaged. Store.
pub async fn unfinished_receipt(
    store: &dyn Store,
    volume: VolumeId,
    snapshots: &[SnapshotEntry],
) -> Result<Option<ReceivedObject>> {
    let mut newest: Option<ReceivedObject> = None;
    for key in unfinished(store, volume, snapshots).await? {
        let Some(note) = read(store, &key).await? else { continue };
        if newest.as_ref().is_none_or(|newest| newest.begun_in <= note.begun_in) {
            newest = Some(note);
        }
    }
    Ok(newest)
}

/// Notes of snapshots that there are not.
async fn unfinished(
    store: &dyn Store,
    volume: VolumeId,
    snapshots: &[SnapshotEntry],
) -> Result<Vec<Key>> {
    let listed = list_all(store, &keys::all_received(volume)).await?;
    let is_gone = |key: &Key| {
        let id = keys::parse_received(volume, key);
        id.is_some_and(|id| !snapshots.iter().any(|entry| entry.id == id))
    };
    Ok(listed.into_iter().map(|object| object.key).filter(is_gone).collect())
}

async fn read(store: &dyn Store, key: &Key) -> Result<Option<ReceivedObject>> {
    match get_parsed(store, key, ReceivedObject::parse).await {
        Ok(parsed) => parsed
            .map(Some)
            .map_err(|e| Error::corrupt(format!("object {key} is damaged")).because(e)),
        Err(e) if e.kind == StoreErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}

impl Volume {
    /// The snapshot that `snapshot` of this volume is a copy of, as [`original`].
    ///
    /// # Errors
    /// As [`original`].
    pub async fn original(&self, snapshot: SnapshotId) -> Result<SnapshotId> {
        original(&*self.shared.stores.setup, self.shared.id, snapshot).await
    }

    /// What was being received when an owner died, if nobody but receivers have had the volume since.
    ///
    /// # Errors
    /// Corrupt: what says so is damaged. Store.
    pub async fn interrupted_receipt(&self) -> Result<Option<ReceivedObject>> {
        let shared = &self.shared;
        let store = &*shared.stores.setup;
        let newest = unfinished_receipt(store, shared.id, &self.snapshots()).await?;
        let Some(newest) = newest else { return Ok(None) };
        if self.is_superseded(&newest).await? {
            return Ok(None);
        }
        for epoch in newest.begun_in.0 + 1..=shared.epoch.0 {
            let owner = read_owner(store, shared.id, Epoch(epoch)).await?;
            if owner.is_none_or(|owner| !owner.nonce.ends_with(RECEIVER)) {
                return Ok(None);
            }
        }
        Ok(Some(newest))
    }

    /// Whether what `note` says is over: another snapshot was received in a later term, or in the same one and
    /// is not what the changes apply to. The volume has gone on then; who noted it was deposed, or the note
    /// came late.
    async fn is_superseded(&self, note: &ReceivedObject) -> Result<bool> {
        let store = &*self.shared.stores.setup;
        let mut newest = None;
        for entry in self.snapshots() {
            let receipt = read(store, &keys::received(self.shared.id, entry.id)).await?;
            newest = newest.max(receipt.map(|receipt| (receipt.begun_in, entry.next, entry.id)));
        }
        Ok(newest.is_some_and(|(begun_in, _, id)| {
            begun_in > note.begun_in || begun_in == note.begun_in && note.base != Some(id)
        }))
    }

    /// Notes that the volume now becomes a copy, as its snapshot `id`, which was used nowhere before, of
    /// `snapshot`, a snapshot of `source`. Durable on return.
    ///
    /// # Errors
    /// Usage: the volume is open read-only. Store.
    pub async fn note_receipt(
        &self,
        id: SnapshotId,
        (source, snapshot): (VolumeId, SnapshotId),
        base: Option<SnapshotId>,
    ) -> Result<()> {
        let shared = &self.shared;
        shared.check_owner()?;
        let note = ReceivedObject { source, snapshot, base, begun_in: shared.epoch };
        let key = keys::received(shared.id, id);
        if mutant::on(Mutant::ReceiptNotNoted) {
            return Ok(());
        }
        Ok(shared.stores.background.put_if_absent(&key, encode_json(&note).into()).await?)
    }

    /// Forgets what else was being received than `id`, and what copies were that are there no more.
    ///
    /// # Errors
    /// Fenced: somebody else claimed the volume. Store.
    pub async fn forget_receipts_but(&self, id: SnapshotId) -> Result<()> {
        let shared = &self.shared;
        let mut gone = unfinished(&*shared.stores.setup, shared.id, &self.snapshots()).await?;
        gone.retain(|key| *key != keys::received(shared.id, id));
        // Who was deposed must not forget what is the new owner's.
        match shared.stores.setup.head(&keys::epoch(shared.id, shared.epoch.next())).await {
            Err(e) if e.kind == StoreErrorKind::NotFound => {}
            Ok(_) => return Err(Error::new(ErrorKind::Fenced, "a newer epoch was claimed")),
            Err(e) => return Err(e.into()),
        }
        match gone.is_empty() {
            true => Ok(()),
            false => Ok(shared.stores.background.delete(&gone).await?),
        }
    }
}
