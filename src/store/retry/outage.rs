//! When a store is out, in terms of the requests that suffer from it: for the log.
//!
//! An outage begins with the first failed attempt while no other request is being tried again,
//! and ends when no request is any more. The end counts as a recovery whether the last request
//! succeeded or was given up by its caller: nothing is waiting for the store then.

use crate::store::StoreError;
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// An outage so soon after the last one is the same trouble: not worth another warning.
const SAME_TROUBLE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Outages {
    url: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sufferers: usize,
    begun: Option<Instant>,
    ended: Option<Instant>,
    loud: bool,
}

/// A request that is being tried again.
pub(super) struct Sufferer<'a> {
    outages: &'a Outages,
}

impl Outages {
    pub(super) fn new(url: String) -> Outages {
        Outages { url, state: Mutex::default() }
    }

    /// A request failed for the first time, by `error`.
    pub(super) fn begin(&self, error: &StoreError) -> Sufferer<'_> {
        let mut state = self.state();
        state.sufferers += 1;
        if state.sufferers == 1 {
            state.begun = Some(Instant::now());
            state.loud = state.ended.is_none_or(|ended| ended.elapsed() > SAME_TROUBLE);
            if state.loud {
                tracing::warn!("the store fails, trying again: {error}");
            } else {
                tracing::debug!("the store fails again: {error}");
            }
        }
        Sufferer { outages: self }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

impl Drop for Sufferer<'_> {
    fn drop(&mut self) {
        let mut state = self.outages.state();
        state.sufferers -= 1;
        if state.sufferers == 0 {
            state.ended = Some(Instant::now());
            let lasted = state.begun.map(|begun| begun.elapsed()).unwrap_or_default();
            if state.loud {
                tracing::info!("store {}: the outage of {lasted:.1?} is over", self.outages.url);
            }
        }
    }
}
