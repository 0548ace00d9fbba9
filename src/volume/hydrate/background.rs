//! Fetching what nobody has asked for yet.

use super::{DELAY_MAX, Hydration};
use crate::device::DeviceResult;
use crate::volume::shared::Shared;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::sync::{Arc, Weak};

/// Fetches under way.
const PARALLEL: usize = 4;

/// Brings all that is absent, in order. Ends at the first error.
pub(super) async fn bring_all(
    shared: &Arc<Shared>,
    hydration: &Arc<Hydration>,
    progress: &mut (dyn FnMut(u64) + Send),
) -> DeviceResult<()> {
    let end = hydration.source.blocks();
    let (mut at, mut under_way) = (0, FuturesUnordered::new());
    loop {
        while under_way.len() < PARALLEL
            && let Some(next) = hydration.next(at..end)
        {
            at = next.end;
            under_way.push(hydration.brought(shared, next));
        }
        let Some(done) = under_way.next().await else { return Ok(()) };
        done?;
        progress(hydration.present().absent_bytes());
    }
}

/// Brings everything, as long as the volume lives.
pub(in crate::volume) async fn run(shared: Weak<Shared>) {
    loop {
        let Some(shared) = shared.upgrade() else { return };
        let Some(hydration) = shared.hydration().cloned() else { return };
        let done = bring_all(&shared, &hydration, &mut |_| {}).await;
        if done.is_ok() || shared.state().check().is_err() {
            // So that the source can go even if nobody writes.
            if shared.flush().await.is_err() {
                tracing::debug!(volume = %shared.id, "ended before all of its source was stored");
            }
            return;
        }
        drop(shared);
        tokio::time::sleep(DELAY_MAX).await;
    }
}
