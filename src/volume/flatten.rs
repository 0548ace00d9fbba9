//! Flattening: a clone does without its origin.
//!
//! What is live in chunks of ancestors is moved to the clone's own log as the collector moves what is live
//! in victims; each leaf of the map that named them is written again with that. So an interrupted
//! flattening has moved what it has moved, and the next one goes on. Snapshots of the clone may go on to
//! need the origin: then it stays needed.

use super::kept::{self, Needed};
use super::pace::{Pace, Tempo};
use super::shared::Shared;
use super::{Volume, checkpoint, victims};
use crate::error::{Error, Result};
use crate::format::page::CHUNKS_PER_PAGE;
use crate::gc::Candidate;
use crate::units::{SECTOR_SIZE, Seq};
use std::sync::Arc;

/// Sectors that are moved between two looks at what is left.
const BATCH: u64 = (16 << 20) / SECTOR_SIZE;

/// What became of a flattening.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Flattened {
    /// Bytes that were moved.
    pub moved_bytes: u64,
    /// Snapshots that need the origin.
    pub needed_by: Vec<String>,
    /// What is kept of the clone's past needs it, as far as can be told.
    #[serde(default)]
    pub past: bool,
    /// Nothing needs the origin any more.
    pub done: bool,
}

impl Volume {
    /// Moves everything that is in chunks of ancestors to the volume's own log. `progress` is told
    /// the bytes that are left to be moved.
    ///
    /// # Errors
    /// Usage: the volume is open read-only. Failed: the volume was closed, or something of the origin cannot be
    /// read. Those of a checkpoint.
    ///
    /// Cancellation: what was moved is moved.
    pub async fn flatten(&self, progress: &mut (dyn FnMut(u64) + Send)) -> Result<Flattened> {
        let shared = &self.shared;
        shared.check_owner()?;
        self.hydrate(progress).await?;
        let moved = || shared.state().traffic.moved * SECTOR_SIZE;
        let before = moved();
        let mut left = None;
        loop {
            checkpoint::run(shared, checkpoint::Kind::Running).await?;
            let foreign = foreign(shared).await?;
            let live = foreign.iter().map(|c| u64::from(c.live)).sum::<u64>();
            progress(live * SECTOR_SIZE);
            if foreign.is_empty() {
                break;
            }
            if left.replace(live).is_some_and(|left| left <= live) {
                let text = "what is left of the origin cannot be moved";
                return Err(Error::failed(text).hint("the log says which objects are damaged"));
            }
            move_all(shared, foreign).await?;
        }
        let needed_by = needed_by(shared).await?;
        let (now, past) = {
            let checkpointer = shared.checkpointer.lock().await;
            (checkpointer.last().clone(), checkpointer.retention.has_points())
        };
        let is_foreign = Needed::by(&now).is_foreign(&shared.items).await?;
        let done = !is_foreign && needed_by.is_empty() && !past;
        Ok(Flattened { moved_bytes: moved() - before, needed_by, past, done })
    }
}

/// Chunks of ancestors that hold something live as of the last checkpoint.
async fn foreign(shared: &Arc<Shared>) -> Result<Vec<Candidate>> {
    let root = shared.checkpointer.lock().await.last().chunk_root.clone();
    let first = shared.lineage.first_slot();
    let mut found = Vec::new();
    for (page, item) in root {
        if page * CHUNKS_PER_PAGE >= first.0 {
            break;
        }
        for (slot, used) in shared.items.chunk_page(item).await?.iter() {
            let seq = Seq(page * CHUNKS_PER_PAGE + u64::from(*slot));
            if !shared.lineage.owns_slot(seq) {
                found.push(Candidate {
                    seq,
                    payload: used.payload.max(used.live),
                    live: used.live,
                });
            }
        }
    }
    Ok(found)
}

async fn move_all(shared: &Arc<Shared>, foreign: Vec<Candidate>) -> Result<()> {
    let (mut batch, mut sectors) = (Vec::new(), 0);
    let last = foreign.len() - 1;
    for (at, chunk) in foreign.into_iter().enumerate() {
        sectors += u64::from(chunk.live);
        batch.push(chunk);
        if sectors >= BATCH || at == last {
            let mut pace = Pace::new(shared, Tempo::steady(sectors));
            let moving = std::mem::take(&mut batch);
            let mut work = shared.collection.work.lock().await;
            victims::empty(shared, &mut work.knowledge, moving, &mut pace).await?;
            sectors = 0;
        }
    }
    Ok(())
}

/// The snapshots that need an ancestor.
async fn needed_by(shared: &Arc<Shared>) -> Result<Vec<String>> {
    let entries: Vec<_> = shared.snapshots().all().to_vec();
    let mut needed_by = Vec::new();
    for entry in entries {
        let needs = kept::needs(&*shared.stores.background, shared.id, entry.id).await?;
        let is_foreign = match needs {
            Some(needed) => needed.is_foreign(&shared.items).await?,
            None => true,
        };
        if is_foreign {
            needed_by.push(entry.name);
        }
    }
    Ok(needed_by)
}
