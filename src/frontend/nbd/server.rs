//! The server: a listener, its exports, and the life of its connections.

use super::connection::transmit;
use super::exports::Exports;
use super::handshake::negotiate;
use super::listen::{Accepted, Listen, Listener};
use super::uri::{tcp_uri, unix_uri};
use crate::device::BlockDevice;
use crate::error::{Error, Result};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

/// Pause after a failed accept (out of file descriptors): the next one would fail as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a client may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Requests of a connection that wait for the device at a time.
    pub requests: usize,
    /// Bytes of a connection's requests and replies in memory; one request more may be.
    pub bytes: usize,
    /// Time in which a client must choose its export.
    pub handshake: Duration,
    /// Time that requests in flight get when their connection or the server ends.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            requests: 128,
            bytes: 64 << 20,
            handshake: Duration::from_secs(10),
            drain: Duration::from_secs(30),
        }
    }
}

/// An NBD server that listens.
#[derive(Debug)]
pub struct Server<D> {
    listener: Listener,
    exports: Arc<Exports<D>>,
    limits: Limits,
}

impl<D: BlockDevice> Server<D> {
    /// Listens at `at`; clients are served once [`Server::run`] is called. Needs a tokio runtime
    /// with I/O and time enabled.
    ///
    /// Errors: [`Busy`](crate::error::ErrorKind::Busy) where somebody listens there,
    /// [`Exists`](crate::error::ErrorKind::Exists) where the path is something else than a
    /// socket, [`Failed`](crate::error::ErrorKind::Failed).
    pub async fn bind(at: &Listen, exports: Exports<D>) -> Result<Server<D>> {
        let listener = Listener::bind(at).await?;
        Ok(Server { listener, exports: Arc::new(exports), limits: Limits::default() })
    }

    /// Uses other limits than the default ones.
    pub fn limits(mut self, limits: Limits) -> Server<D> {
        self.limits = limits;
        self
    }

    /// The URI of each export, in the order of their names.
    pub fn uris(&self) -> Vec<String> {
        let uri = |name: &str| match &self.listener {
            Listener::Unix(_, file) => unix_uri(&file.path, name),
            Listener::Tcp(_, address) => {
                let host = hostname::get().unwrap_or_else(|_| "localhost".into());
                tcp_uri(*address, &host.to_string_lossy(), name)
            }
        };
        self.exports.iter().map(|export| uri(&export.name)).collect()
    }

    /// The exports, whose [`Exports::status`] tells their counters while the server runs.
    pub fn exports(&self) -> Arc<Exports<D>> {
        self.exports.clone()
    }

    /// Serves until `shutdown` is ready; then accepts no more, finishes what is in flight (at most
    /// [`Limits::drain`] long), and flushes every device.
    ///
    /// Errors: [`Failed`](crate::error::ErrorKind::Failed) where a device could not be flushed.
    /// Dropping the future cuts all connections off, without a flush.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<()> {
        let Server { listener, exports, limits } = self;
        let limits = Arc::new(limits);
        let (stop, stopped) = watch::channel(false);
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(ended) = connections.join_next() => report(ended),
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => {
                        let (exports, limits) = (exports.clone(), limits.clone());
                        let stop = stopped.clone();
                        match accepted {
                            Accepted::Unix(stream) => {
                                connections.spawn(serve_client(stream, exports, limits, stop))
                            }
                            Accepted::Tcp(stream) => {
                                connections.spawn(serve_client(stream, exports, limits, stop))
                            }
                        };
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(listener);
        stop.send_replace(true);
        // Bounded: each connection bounds its own end.
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
        flush_all(&exports).await
    }
}

fn report(ended: std::result::Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "the task of a connection failed");
    }
}

async fn flush_all<D: BlockDevice>(exports: &Exports<D>) -> Result<()> {
    let mut outcome = Ok(());
    for export in exports.iter() {
        if let Err(error) = export.device.flush().await {
            let message = format!("cannot flush {:?}", export.name);
            outcome = outcome.and(Err(Error::failed(message).because(error)));
        }
    }
    outcome
}

/// Serves one client on a connection that exists already (a pipe, a socket that was handed over),
/// from the greeting until it leaves or `stop` turns true. Needs a tokio runtime with time enabled.
pub async fn serve_client<S, D>(
    mut stream: S,
    exports: Arc<Exports<D>>,
    limits: Arc<Limits>,
    mut stop: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    D: BlockDevice,
{
    let handshake = negotiate(&mut stream, &exports);
    let handshake = tokio::time::timeout(limits.handshake, handshake);
    let negotiated = tokio::select! {
        negotiated = handshake => negotiated,
        _ = stop.wait_for(|stop| *stop) => return,
    };
    match negotiated {
        Ok(Ok(Some(session))) => transmit(stream, &session, &limits, &mut stop).await,
        Ok(Ok(None)) => tracing::debug!("client left during the handshake"),
        Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::warn!(%error, "dropped a client during the handshake");
        }
        Ok(Err(error)) => tracing::debug!(%error, "client vanished during the handshake"),
        Err(_) => tracing::warn!("dropped a client that did not finish its handshake in time"),
    }
}
