//! How a replica is read: not what there is counts, but what its newest state says ([`format`](crate::format::replica)).
//!
//! Whoever ships may die at any moment, and leave objects of a state that is not complete: chunks, a checkpoint. So the
//! newest checkpoint is the one that the state names, and the log ends where the state says, whatever lies behind. Once it
//! is promoted the log goes on from there in an epoch of its own, and later checkpoints are those of later epochs; all
//! else is as with any other volume.

use super::look::LOOKUPS;
use super::options::Mode;
use crate::error::{Error, ErrorKind, Result};
use crate::format::checkpoint::Checkpoint;
use crate::format::replica::{Position, ReplicaObject};
use crate::format::volume::VolumeObject;
use crate::format::{VolumeId, keys};
use crate::log::replay::Cut;
use crate::mutant::{self, Mutant};
use crate::store::{Key, Store, StoreErrorKind, get_parsed};
use crate::units::{Epoch, Seq};
use bytes::Bytes;

/// The newest state of the replica `id`; `None`: there is none at all.
///
/// # Errors
/// Corrupt: it is damaged. Busy: it keeps changing. Store.
pub async fn replica_state(store: &dyn Store, id: VolumeId) -> Result<Option<ReplicaObject>> {
    for _ in 0..LOOKUPS {
        let first = store.list(&keys::replica_states(id), None, 1).await?.objects.pop();
        let Some(key) = first.map(|object| object.key) else { return Ok(None) };
        let damaged = |why: String| Error::corrupt(format!("object {key} is damaged")).because(why);
        match get_parsed(store, &key, ReplicaObject::parse).await {
            Ok(Ok(state)) if keys::replica_state(state.volume, state.number) == key => {
                return Ok(Some(state));
            }
            Ok(Ok(_)) => return Err(damaged("it is another state than its name says".into())),
            Ok(Err(e)) => return Err(damaged(e.to_string())),
            // A newer one took its place.
            Err(e) if e.kind == StoreErrorKind::NotFound => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(Error::new(ErrorKind::Busy, format!("the states of the replica {id} keep changing")))
}

/// Makes `state` the newest one. False: somebody else has made one of that number, or newer ones.
///
/// # Errors
/// Store: it may be the newest, or become that.
pub async fn commit_replica_state(store: &dyn Store, state: &ReplicaObject) -> Result<bool> {
    let key = keys::replica_state(state.volume, state.number);
    let body = Bytes::from(crate::format::pool::encode_json(state));
    match store.put_if_absent(&key, body).await {
        Ok(()) => {}
        Err(e) if e.kind == StoreErrorKind::AlreadyExists => {}
        Err(e) => return Err(e.into()),
    }
    // Older ones are deleted, so that this name may have been free again; or its own reply was lost.
    Ok(replica_state(store, state.volume).await?.as_ref() == Some(state))
}

/// What counts of a replica.
#[derive(Clone, Debug)]
pub(super) struct Worth {
    pub state: ReplicaObject,
}

/// What counts of the volume; `None`: all of it, it never was a replica.
///
/// # Errors
/// Corrupt: nothing says it. As [`replica_state`].
pub(super) async fn worth(store: &dyn Store, description: &VolumeObject) -> Result<Option<Worth>> {
    if !description.is_replica() {
        return Ok(None);
    }
    let state = replica_state(store, description.id).await?;
    let state = state.filter(|state| state.volume == description.id).ok_or_else(|| {
        let lost = keys::replica_states(description.id);
        Error::corrupt(format!("what of the replica is complete is lost: nothing is below {lost}"))
            .hint("begin anew: delete it, and replicate once more")
    })?;
    Ok(Some(Worth { state }))
}

/// Whether the log behind `checkpoint` is the one that counts, as far as the volume is a replica, and where it is cut off.
///
/// # Errors
/// As [`worth`].
pub(super) async fn log_behind(
    store: &dyn Store,
    description: &VolumeObject,
    checkpoint: &Checkpoint,
) -> Result<(bool, Option<Cut>)> {
    Ok(match worth(store, description).await? {
        None => (true, None),
        Some(worth) => (worth.is_of(checkpoint), worth.cut(checkpoint.epoch)),
    })
}

/// Refuses to have anybody write to a replica.
///
/// # Errors
/// Busy: it is one. As [`worth`].
pub(super) async fn check_mode(
    store: &dyn Store,
    description: &VolumeObject,
    mode: Mode,
) -> Result<()> {
    if mode == Mode::ReadOnly {
        return Ok(());
    }
    match worth(store, description).await? {
        Some(worth) if worth.state.promoted.is_none() => {
            let text = format!("the volume is a replica of one in {}", worth.state.from);
            Err(Error::new(ErrorKind::Busy, text)
                .because("only what is shipped from there changes it")
                .hint("read it with --read-only, or make it a volume of its own with `objblk promote`"))
        }
        _ => Ok(()),
    }
}

impl Worth {
    /// The epoch in which the log goes on, if it was promoted.
    pub fn promoted(&self) -> Option<Epoch> {
        self.state.promoted.as_ref().map(|promoted| promoted.epoch)
    }

    /// Which of the checkpoints `found`, the newest first, is the newest one that counts.
    pub fn newest(&self, found: &[Key]) -> Option<usize> {
        let id = self.state.volume;
        let own = self.promoted().and_then(|promoted| {
            let epoch = |key| keys::parse_checkpoint(id, key).map(|(_, epoch)| epoch);
            found.iter().position(|key| epoch(key).is_some_and(|epoch| epoch > promoted))
        });
        own.or_else(|| {
            let Position { next, epoch } = self.state.shipped.checkpoint?;
            let key = keys::checkpoint(id, next, epoch);
            found.iter().position(|found| *found == key)
        })
    }

    /// Whether nothing can be missed where no checkpoint counts.
    pub fn begins_empty(&self) -> bool {
        self.state.shipped.checkpoint.is_none()
    }

    /// Whether it is this checkpoint that the log goes on behind: neither is older than the other.
    fn is_of(&self, checkpoint: &Checkpoint) -> bool {
        let is_own = self.promoted().is_some_and(|promoted| checkpoint.epoch > promoted);
        let named = self.state.shipped.checkpoint;
        let beginning = Position { next: Seq(0), epoch: Epoch(0) };
        is_own
            || named.unwrap_or(beginning)
                == Position { next: checkpoint.next, epoch: checkpoint.epoch }
    }

    /// As [`replica_cut`].
    pub fn cut(&self, epoch: Epoch) -> Option<Cut> {
        replica_cut(&self.state, epoch)
    }
}

/// Where the log of a replica that begins in `epoch` is cut off, or goes on in another one.
pub fn replica_cut(state: &ReplicaObject, epoch: Epoch) -> Option<Cut> {
    let end = state.shipped.end;
    let then = state.promoted.as_ref().map(|promoted| promoted.epoch);
    if then.is_some() && mutant::on(Mutant::PromotedLogNotCut) {
        return None;
    }
    let is_before = then.is_none_or(|promoted| epoch < promoted);
    is_before.then_some(Cut { slot: end.next, epoch: end.epoch, then })
}
