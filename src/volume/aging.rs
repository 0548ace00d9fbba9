//! Snapshots that are deleted at a time: what a volume was before a rollback.
//!
//! Their ids say when. The owner deletes them then, as it does those of a [schedule](super::schedule), unless
//! somebody has asked to keep them: `kept/<snapshot>` says so. Those with clones stay.
//!
//! A clock that is wrong deletes them early or late, and nothing else.

use super::Volume;
use super::shared::Shared;
use crate::error::{Error, ErrorKind, Result};
use crate::format::snapshot::SnapshotEntry;
use crate::format::{SnapshotId, VolumeId, keys};
use crate::mutant::{self, Mutant};
use crate::store::{Store, StoreErrorKind, list_all};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long one that stays is left alone.
const AGAIN_AFTER_MS: u64 = 3_600_000;

/// Those that are too old and stay, and when they are looked at again.
pub(super) type Staying = BTreeMap<SnapshotId, u64>;

impl Volume {
    /// The snapshot `name` is not deleted by itself. It is durable on return.
    ///
    /// # Errors
    /// Usage: read-only, or it never would be. NotFound. Fenced: another owner has the volume. Store.
    ///
    /// Cancellation: it is kept or not.
    pub async fn keep_snapshot(&self, name: &str) -> Result<SnapshotEntry> {
        let shared = &self.shared;
        shared.check_owner()?;
        // Nobody decides meanwhile that it is too old.
        let _deciding = shared.schedule.deciding.lock().await;
        let found = shared.snapshots().find(name).cloned();
        let entry =
            found.ok_or_else(|| Error::not_found(format!("there is no snapshot {name}")))?;
        if entry.id.expires_at_ms().is_none() {
            return Err(Error::usage(format!("the snapshot {name} stays until it is deleted")));
        }
        let store = &*shared.stores.background;
        match store.put_if_absent(&keys::kept(shared.id, entry.id), Bytes::new()).await {
            Ok(()) => {}
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => {}
            Err(e) => return Err(e.into()),
        }
        // A deposed owner does not get past this: its successor may have deleted the snapshot.
        let probed = shared.state().probe();
        let target = probed.map_err(|_| shared.failure())?;
        shared.wait_committed(target).await?;
        Ok(entry)
    }
}

/// The snapshots of a volume that somebody has asked to keep.
///
/// # Errors
/// Store.
pub async fn kept_snapshots(store: &dyn Store, id: VolumeId) -> Result<BTreeSet<SnapshotId>> {
    let listed = list_all(store, &keys::all_kept(id)).await?;
    Ok(listed.iter().filter_map(|object| keys::parse_kept(id, &object.key)).collect())
}

/// Deletes those that are too old. False: it is over, there is another owner.
pub(super) async fn age(shared: &Arc<Shared>, staying: &mut Staying) -> bool {
    let now = shared.env.clock.now_ms();
    staying.retain(|_, again| *again > now);
    let is_old = |entry: &&SnapshotEntry| entry.id.expires_at_ms().is_some_and(|at| at <= now);
    let old: Vec<SnapshotEntry> = {
        let snapshots = shared.snapshots();
        let old = snapshots.entries().filter(is_old);
        old.filter(|entry| !staying.contains_key(&entry.id)).cloned().collect()
    };
    for SnapshotEntry { id, name, .. } in old {
        match delete(shared, id, &name).await {
            Ok(true) => tracing::info!(volume = %shared.id, "deleted the snapshot {name}"),
            Err(e) if e.kind() == ErrorKind::Fenced => return false,
            stays => {
                let why = stays.err().map_or("it is kept".into(), |e| e.to_string());
                tracing::info!(volume = %shared.id, "the snapshot {name} stays: {why}");
                staying.insert(id, now.saturating_add(AGAIN_AFTER_MS));
            }
        }
    }
    true
}

/// False: it is kept.
async fn delete(shared: &Arc<Shared>, id: SnapshotId, name: &str) -> Result<bool> {
    let _deciding = shared.schedule.deciding.lock().await;
    match shared.stores.background.head(&keys::kept(shared.id, id)).await {
        Ok(_) if mutant::on(Mutant::WishToKeepIgnored) => {}
        Ok(_) => return Ok(false),
        Err(e) if e.kind == StoreErrorKind::NotFound => {}
        Err(e) => return Err(e.into()),
    }
    let task = shared.clone();
    shared.to_its_end(task.delete_snapshot(name.to_owned())).await.map(|_| true)
}
