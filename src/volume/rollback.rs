//! Rollback: the volume is again what a snapshot is.
//!
//! What it was before becomes a snapshot itself, so a rollback can be undone. Then a record in the log says
//! what the volume goes on from; with it the rollback is done. The map's tree is that of the snapshot from
//! there on, so nothing is copied. All snapshots stay, those made after it too.
//!
//! It ends the owner's term: nobody uses the volume meanwhile, since what is mounted on a disk does not
//! expect other contents.

use super::Volume;
use super::checkpoint::{self, Checkpointer};
use super::shared::Shared;
use super::snapshots;
use crate::error::{Error, ErrorKind, Result};
use crate::format::checkpoint::Checkpoint;
use crate::format::record::Record;
use crate::format::snapshot::SnapshotEntry;
use crate::format::{SnapshotId, VolumeId};
use crate::map::{Base, Map};
use crate::mutant::{self, Mutant};
use crate::store::Store;
use crate::units::Seq;
use std::sync::Arc;

/// The state `id`, to go back to.
///
/// # Errors
/// Corrupt: its object is damaged or missing. Store.
pub(super) async fn state_of(
    store: &dyn Store,
    volume: VolumeId,
    id: SnapshotId,
) -> Result<Checkpoint> {
    match snapshots::read(store, volume, id).await {
        Ok(object) => Ok(object.checkpoint),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            Err(Error::corrupt("the snapshot that the volume was rolled back to is lost")
                .because(e))
        }
        Err(e) => Err(e),
    }
}

/// The map of a state.
pub(super) fn map_of(state: &Checkpoint) -> Map {
    Map::new(Base { root: state.map_root.iter().copied().collect() })
}

/// What the next checkpoint builds on is the contents of `to`, at the position of `last`.
pub(super) fn go_back(last: &mut Checkpoint, to: &Checkpoint) {
    last.map_root.clone_from(&to.map_root);
    last.chunk_root.clone_from(&to.chunk_root);
    last.map_objects.clone_from(&to.map_objects);
    (last.live, last.size) = (to.live, to.size);
}

impl Volume {
    /// Makes a snapshot of the volume, called `kept`, then makes the volume what its snapshot `name` is,
    /// and closes it. Returns the new snapshot. Nobody may use the volume meanwhile.
    ///
    /// # Errors
    /// NotFound: no such snapshot. Busy: somebody wrote meanwhile. Corrupt: the snapshot is damaged. Those of
    /// [`Volume::make_snapshot`] and [`Volume::close`]. Where it could not be closed, and nothing else
    /// was wrong, the rollback is done.
    ///
    /// Cancellation: it may be done all the same; the volume is to be abandoned.
    pub async fn roll_back(&self, name: &str, kept: (SnapshotId, &str)) -> Result<SnapshotEntry> {
        let (shared, name) = (self.shared.clone(), name.to_owned());
        let (id, kept) = (kept.0, kept.1.to_owned());
        let work = roll_back(shared, name, (id, kept));
        let (entry, target) = self.shared.to_its_end(work).await?;
        self.shared.wait_committed(target).await?;
        self.end_term().await?;
        Ok(entry)
    }
}

async fn roll_back(
    shared: Arc<Shared>,
    name: String,
    (id, kept): (SnapshotId, String),
) -> Result<(SnapshotEntry, Seq)> {
    shared.check_owner()?;
    let missing = || {
        Error::not_found(format!("there is no snapshot {name}"))
            .hint("`objblk snapshot list` shows those there are")
    };
    let to = shared.snapshots().find(&name).map(|entry| entry.id).ok_or_else(missing)?;
    let state = state_of(&*shared.stores.background, shared.id, to).await?;
    let written = shared.state().traffic.written;
    let entry = shared.clone().make_snapshot(id, kept).await?;
    let mut checkpointer = shared.checkpointer.lock().await;
    // No newer one: what it wrote of the map would be nobody's.
    checkpoint::settle(&shared, &mut checkpointer).await?;
    if shared.snapshots().find(&name).is_none_or(|entry| entry.id != to) {
        return Err(missing());
    }
    let target = enter(&shared, &mut checkpointer, (to, &state), written)?;
    Ok((entry, target))
}

/// From here on the volume is what `to` is, and closed to users.
fn enter(
    shared: &Shared,
    checkpointer: &mut Checkpointer,
    (to, of): (SnapshotId, &Checkpoint),
    written: u64,
) -> Result<Seq> {
    let mut state = shared.state();
    if state.traffic.written != written {
        let text = "the volume is written to: what is in use cannot be rolled back";
        return Err(Error::new(ErrorKind::Busy, text).hint("detach it first"));
    }
    state.log(Record::RolledBack(to))?;
    let target = state.begin_close()?;
    state.map = map_of(of);
    state.size = of.size;
    checkpointer.go_back(of);
    if !mutant::on(Mutant::RollbackKeepsBase) {
        shared.snapshots().go_on_from(to);
    }
    Ok(target)
}
