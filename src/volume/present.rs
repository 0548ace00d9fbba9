//! What a volume is by what the store has, for those who examine it and own nothing: the same that an
//! owner would go on from, read by the same code.
//!
//! What is told is immutable but for this: who owns the volume may make newer checkpoints, and then
//! delete what only older ones name. So an object that is missing is lost only if the checkpoint that
//! names it [is the newest one](is_newest) *after* it was missed.

use super::look;
use super::open::{Loaded, load_newest};
use super::snapshots;
use crate::error::{ErrorKind, Result};
use crate::format::checkpoint::Checkpoint;
use crate::format::snapshot::{SnapshotEntry, SnapshotObject};
use crate::format::volume::VolumeObject;
use crate::format::{SnapshotId, VolumeId};
use crate::log::Terms;
use crate::log::replay::LogEnd;
use crate::map::Overlay;
use crate::store::Store;
use crate::units::SectorCount;
use std::sync::Arc;

/// The state of a volume: a checkpoint, and what the log has behind it.
#[derive(Debug)]
pub struct Present {
    /// The newest checkpoint; after a rollback that it does not know of, with the contents of the
    /// snapshot that the log goes on from.
    pub checkpoint: Checkpoint,
    /// What the log changed since.
    pub changes: Arc<Overlay>,
    /// Size of the volume.
    pub size: SectorCount,
    /// How slots are named, the newest term included.
    pub terms: Terms,
    /// Where the log ends.
    pub end: LogEnd,
    /// Its snapshots by position, those too that were deleted and that others came from.
    pub snapshots: Vec<SnapshotEntry>,
}

/// Reads the state of a volume, whoever owns it.
///
/// # Errors
/// Corrupt: nobody could attach it: an object that is needed is damaged or missing. Busy: its owner is
/// too quick. Store.
pub async fn present(store: &dyn Store, description: &VolumeObject) -> Result<Present> {
    let mut looks = 0;
    loop {
        let loaded = load_newest(store, description, None, None).await;
        looks += 1;
        match loaded {
            Ok(loaded) => return Ok(Present::new(loaded)),
            // Its owner may have deleted what was being read.
            Err(e) if e.kind() == ErrorKind::Corrupt && looks < look::LOOKUPS => {}
            Err(e) => return Err(e),
        }
    }
}

impl Present {
    fn new(loaded: Loaded) -> Present {
        let Loaded { checkpoint, mut map, size, terms, end, snapshots, .. } = loaded;
        let (changes, snapshots) = (map.freeze(), snapshots.all().to_vec());
        Present { checkpoint, changes, size, terms, end, snapshots }
    }
}

/// The newest checkpoint alone, for when the log behind it cannot be read.
///
/// # Errors
/// Corrupt: it is damaged. Busy. Store.
pub async fn newest_checkpoint(
    store: &dyn Store,
    description: &VolumeObject,
) -> Result<Checkpoint> {
    look::only_newest_checkpoint(store, description).await
}

/// Whether no newer checkpoint than this one is there.
///
/// # Errors
/// Store.
pub async fn is_newest(store: &dyn Store, checkpoint: &Checkpoint) -> Result<bool> {
    look::is_newest(store, checkpoint).await
}

/// The object of a snapshot.
///
/// # Errors
/// Corrupt: it is damaged. NotFound. Store.
pub async fn snapshot(store: &dyn Store, id: VolumeId, of: SnapshotId) -> Result<SnapshotObject> {
    snapshots::read(store, id, of).await
}
