//! Ctrl-C and SIGTERM, for verbs that have something to put in order first.

use crate::error::{Error, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Hears both signals from its making on, instead of the process being ended by them.
#[derive(Debug)]
pub(super) struct Interrupt {
    terminate: Signal,
    interrupt: Signal,
}

impl Interrupt {
    /// Errors: failed.
    pub(super) fn new() -> Result<Interrupt> {
        let listen =
            |kind| signal(kind).map_err(|e| Error::failed("cannot handle signals").because(e));
        let terminate = listen(SignalKind::terminate())?;
        Ok(Interrupt { terminate, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Ends when a signal is heard.
    pub(super) async fn heard(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// What `work` comes to, or an error once a signal is heard, which drops it.
    pub(super) async fn or<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = work => done,
            _ = self.terminate.recv() => Err(Error::failed("ended by SIGTERM")),
            _ = self.interrupt.recv() => Err(Error::failed("interrupted")),
        }
    }
}
