//! Who wants the target to end, and how badly.

use super::control::Reply;
use crate::error::Error;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

/// How long a forced end still tries to do it in order.
const LAST_CHANCE: Duration = Duration::from_secs(5);

/// An order to end the target.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) force: bool,
    pub(super) client: Option<Client>,
}

/// Somebody on the control socket who waits for the end.
#[derive(Debug)]
pub(super) struct Client(UnboundedSender<Reply>);

impl Client {
    /// A client and what is said to it; it has left once that is dropped.
    pub(super) fn new() -> (Client, UnboundedReceiver<Reply>) {
        let (replies, heard) = unbounded_channel();
        (Client(replies), heard)
    }

    fn tell(&self, reply: Reply) {
        // A client that has left hears nothing.
        let _ = self.0.send(reply);
    }

    /// Returns when it has heard all, or has left; at the latest after a moment.
    async fn leave(self) {
        let _ = tokio::time::timeout(Duration::from_secs(2), self.0.closed()).await;
    }
}

/// Everybody who has ordered the end that is under way.
#[derive(Debug, Default)]
pub(super) struct Callers {
    clients: Vec<Client>,
    signalled: bool,
    forced_at: Option<Instant>,
}

impl Callers {
    pub(super) fn add(&mut self, order: Order) {
        if order.force && self.forced_at.is_none() {
            self.forced_at = Some(Instant::now());
        }
        match order.client {
            Some(client) => self.clients.push(client),
            None => self.signalled = true,
        }
    }

    /// When patience ends; `None` while nobody forces.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.forced_at.map(|at| at + LAST_CHANCE)
    }

    pub(super) fn is_signalled(&self) -> bool {
        self.signalled
    }

    /// Nobody waits any more.
    pub(super) fn are_gone(&self) -> bool {
        !self.signalled && self.clients.iter().all(|client| client.0.is_closed())
    }

    pub(super) fn tell(&self, reply: &Reply) {
        self.clients.iter().for_each(|client| client.tell(reply.clone()));
    }

    /// Tells everybody that the target stays.
    pub(super) fn refuse(self, error: Error) {
        if self.signalled {
            tracing::error!("{error}");
        }
        self.tell(&Reply::Refused(error.into()));
    }

    /// Tells everybody the last word and sees them off.
    pub(super) async fn dismiss(self, reply: Reply) {
        self.tell(&reply);
        for client in self.clients {
            client.leave().await;
        }
    }
}
