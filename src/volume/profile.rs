//! What is read first after an attach: recorded once, fetched ahead the next time.
//!
//! A boot, or the start of an application, reads much the same every time, in small pieces, one after
//! the other: each waits for the store. A recorder notes which blocks of the disk are read, for as long as
//! [`RECORD_FOR`], and stores them as the volume's profile. A replay fetches them in that order,
//! neighbours in the store by one GET, many at a time.
//!
//! Hints only: whatever goes wrong is logged, and costs a request the wait that it would have had.

use super::shared::Shared;
use crate::format::keys;
use crate::format::profile::{BLOCK_SIZE, BLOCKS_MAX, Profile};
use crate::store::{StoreErrorKind, get_parsed};
use crate::units::{SECTOR_SIZE, Sector, SectorRange};
use bytes::Bytes;
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long reads are recorded, unless the volume is closed before.
pub const RECORD_FOR: Duration = Duration::from_secs(120);
/// Blocks that are looked up together: 4 MiB of the disk.
const BATCH: usize = 64;
/// Batches that are fetched at the same time.
const BATCHES: usize = 4;

/// What is done about the profile of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProfileUse {
    /// Reads are recorded, and stored as its profile.
    Record,
    /// What the profile names is fetched when the volume is opened.
    Replay,
}

/// Notes which blocks are read, each once.
#[derive(Debug, Default)]
pub(super) struct Recorder(Mutex<Noted>);

#[derive(Debug, Default)]
struct Noted {
    seen: HashSet<u64>,
    order: Vec<u64>,
    ended: bool,
}

impl Recorder {
    /// `range` is being read.
    pub fn note(&self, range: SectorRange) {
        let block = |at: u64| at * SECTOR_SIZE / BLOCK_SIZE;
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Noted { seen, order, ended } = &mut *noted;
        if *ended || range.is_empty() {
            return;
        }
        for block in block(range.start().0)..=block(range.end().0 - 1) {
            if order.len() as u64 == BLOCKS_MAX {
                return;
            }
            if seen.insert(block) {
                order.push(block);
            }
        }
    }

    /// Ends the recording. What was noted, unless it was ended before.
    fn end(&self) -> Option<Vec<u64>> {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = !std::mem::replace(&mut noted.ended, true);
        noted.seen = HashSet::new();
        first.then(|| std::mem::take(&mut noted.order))
    }
}

/// Begins with what the options say.
pub(super) fn start(shared: &Arc<Shared>) {
    let task = shared.clone();
    match shared.options.profile {
        None => {}
        Some(ProfileUse::Record) => shared.start_task(async move {
            tokio::time::sleep(RECORD_FOR).await;
            end_recording(&task).await;
        }),
        Some(ProfileUse::Replay) => shared.start_task(async move { replay(&task).await }),
    }
}

/// Stores what was recorded, if that has not been done.
pub(super) async fn end_recording(shared: &Shared) {
    let Some(blocks) = shared.recorder.as_ref().and_then(Recorder::end) else { return };
    let profile = Profile::new(shared.id, &blocks);
    let body = Bytes::from(profile.encode());
    match shared.stores.setup.put(&keys::profile(shared.id), body).await {
        Ok(()) => {
            tracing::info!(volume = %shared.id, "recorded {} blocks of 64 KiB", blocks.len());
        }
        Err(e) => tracing::warn!(volume = %shared.id, "the profile is not stored: {e}"),
    }
}

async fn replay(shared: &Arc<Shared>) {
    let Some(profile) = load(shared).await else { return };
    // More than the cache holds would push out what is needed first.
    let most = shared.options.cache_bytes * 3 / 4 / BLOCK_SIZE;
    let blocks: Vec<u64> = profile.blocks().take(most as usize).collect();
    let fetch = |batch: &[u64]| {
        let ranges = batch.iter().map(|block| range_of(*block)).collect::<Vec<_>>();
        let shared = shared.clone();
        async move { shared.fetch_ahead(&ranges).await }
    };
    stream::iter(blocks.chunks(BATCH).map(fetch)).buffered(BATCHES).collect::<Vec<()>>().await;
    tracing::info!(volume = %shared.id, "fetched {} blocks of the profile", blocks.len());
}

async fn load(shared: &Shared) -> Option<Profile> {
    let key = keys::profile(shared.id);
    match get_parsed(&*shared.stores.setup, &key, Profile::parse).await {
        Ok(Ok(profile)) if profile.volume == shared.id => return Some(profile),
        Ok(Ok(other)) => tracing::warn!("profile {key} is that of volume {}", other.volume),
        Ok(Err(why)) => tracing::warn!("profile {key} is damaged: {why}"),
        Err(e) if e.kind == StoreErrorKind::NotFound => {
            tracing::warn!(volume = %shared.id, "no profile was recorded yet");
        }
        Err(e) => tracing::warn!(volume = %shared.id, "cannot read the profile: {e}"),
    }
    None
}

fn range_of(block: u64) -> SectorRange {
    let sectors = BLOCK_SIZE / SECTOR_SIZE;
    SectorRange::between(Sector(block * sectors), Sector((block + 1) * sectors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_noted_once_in_order_until_the_end() {
        let recorder = Recorder::default();
        for (start, end) in [(256, 264), (0, 8), (120, 136), (256, 512), (7, 7)] {
            recorder.note(SectorRange::between(Sector(start), Sector(end)));
        }
        assert_eq!(recorder.end(), Some(vec![2, 0, 1, 3]));
        recorder.note(SectorRange::between(Sector(0), Sector(8)));
        assert_eq!(recorder.end(), None);
    }
}
