//! Clients that have not chosen an export yet: how many may be there, and what is said about them.
//!
//! A client in its handshake costs a socket and a task. When more than the limit are there, the one
//! that has been there longest has to go: a client that means it is through in milliseconds, so
//! silent ones make room for it, however many they are.
//!
//! Invariant: at most `limit` guests hold a [`Ticket`] that has not been called in.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Between two warnings; what happens in between is counted and logged as detail.
const QUIET: Duration = Duration::from_secs(1);

/// The lobby of one server.
#[derive(Debug)]
pub(super) struct Lobby {
    limit: usize,
    waiting: Mutex<Waiting>,
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    guests: BTreeMap<u64, oneshot::Sender<()>>,
}

#[derive(Debug, Default)]
struct Said {
    last: Option<Instant>,
    untold: u64,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lobby {
    /// An empty one for `limit` guests, at least one.
    pub(super) fn new(limit: usize) -> Lobby {
        let limit = limit.max(1);
        Lobby { limit, waiting: Mutex::default(), said: Mutex::default() }
    }

    /// Lets a guest in; the one that has been there longest goes if there are too many.
    pub(super) fn enter(self: &Arc<Lobby>) -> Ticket {
        let (stay, called) = oneshot::channel();
        let mut waiting = held(&self.waiting);
        let number = waiting.next;
        waiting.next += 1;
        waiting.guests.insert(number, stay);
        if waiting.guests.len() > self.limit {
            waiting.guests.pop_first();
        }
        drop(waiting);
        Ticket { lobby: Arc::clone(self), number, called }
    }

    /// Warns of a client that was dropped, at most once a second: who floods the server does not
    /// flood its log.
    pub(super) fn complain(&self, why: &dyn std::fmt::Display) {
        let mut said = held(&self.said);
        if said.last.is_some_and(|last| last.elapsed() < QUIET) {
            said.untold += 1;
            tracing::debug!("dropped a client during the handshake: {why}");
            return;
        }
        let others = std::mem::take(&mut said.untold);
        said.last = Some(Instant::now());
        tracing::warn!(others, "dropped a client during the handshake: {why}");
    }
}

/// A guest's place in the lobby, until it is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    lobby: Arc<Lobby>,
    number: u64,
    called: oneshot::Receiver<()>,
}

impl Ticket {
    /// Ready when the guest has to go.
    pub(super) async fn called_in(&mut self) {
        // The other end never sends: it is dropped.
        let _ = (&mut self.called).await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        held(&self.lobby.waiting).guests.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn the_one_that_waits_longest_goes() {
        let lobby = Arc::new(Lobby::new(2));
        let (mut first, mut second) = (lobby.enter(), lobby.enter());
        assert!(first.called_in().now_or_never().is_none());
        let mut third = lobby.enter();
        assert!(first.called_in().now_or_never().is_some());
        drop(third);
        third = lobby.enter();
        assert!(second.called_in().now_or_never().is_none());
        assert!(third.called_in().now_or_never().is_none());
        drop((first, second, third));
        assert!(held(&lobby.waiting).guests.is_empty());
    }
}
