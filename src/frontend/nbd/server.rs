//! The server: a listener, its exports, and the life of its connections.
//!
//! A client is in the lobby until it has chosen an export, and has a seat from then on. Both are
//! bounded: who lingers in the lobby makes room for those who come, who finds no seat is told so.

use super::connection::transmit;
use super::execute::Session;
use super::exports::Exports;
use super::handshake::{Agreement, Security, Terms, greet, negotiate};
use super::listen::{Accepted, Listen, Listener};
use super::lobby::{Lobby, Ticket};
use super::rights::Granted;
use super::tls::{Guest, Tls};
use super::uri::{tcp_uri, unix_uri};
use crate::device::BlockDevice;
use crate::error::{Error, Result};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_rustls::server::TlsStream;

/// Pause after a failed accept (out of file descriptors): the next one would fail as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What clients may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections that have chosen an export; further ones are refused.
    pub connections: usize,
    /// Connections that have not yet; the oldest make room for further ones.
    pub handshakes: usize,
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
            connections: 256,
            handshakes: 128,
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
    tls: Option<Arc<Tls>>,
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
        Ok(Server { listener, exports: Arc::new(exports), limits: Limits::default(), tls: None })
    }

    /// Lets clients use TLS, or requires it of them.
    pub fn tls(mut self, tls: Tls) -> Server<D> {
        self.tls = Some(Arc::new(tls));
        self
    }

    /// Uses other limits than the default ones.
    pub fn limits(mut self, limits: Limits) -> Server<D> {
        self.limits = limits;
        self
    }

    /// The URI of each export, in the order of their names.
    pub fn uris(&self) -> Vec<String> {
        let uri = |name: &str| match &self.listener {
            Listener::Unix(_, file) => unix_uri(&file.path, name, self.tls.is_some()),
            Listener::Tcp(_, address) => {
                let host = hostname::get().unwrap_or_else(|_| "localhost".into());
                tcp_uri(*address, &host.to_string_lossy(), name, self.tls.is_some())
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
        let Server { listener, exports, limits, tls } = self;
        let service = Arc::new(Service::new(exports.clone(), limits, tls));
        let (stop, stopped) = watch::channel(false);
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(ended) = connections.join_next() => report(ended),
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => {
                        let (service, stop) = (service.clone(), stopped.clone());
                        // Here, in the order in which they came: tasks begin in any order.
                        let ticket = service.lobby.enter();
                        match accepted {
                            Accepted::Unix(stream) => {
                                connections.spawn(serve_guest(stream, service, ticket, stop))
                            }
                            Accepted::Tcp(stream) => {
                                connections.spawn(serve_guest(stream, service, ticket, stop))
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

/// What all clients of a server share.
#[derive(Debug)]
pub struct Service<D> {
    exports: Arc<Exports<D>>,
    limits: Limits,
    tls: Option<Arc<Tls>>,
    lobby: Arc<Lobby>,
    seats: Arc<Semaphore>,
}

impl<D> Service<D> {
    /// Of these exports, with TLS where there is some.
    pub fn new(exports: Arc<Exports<D>>, limits: Limits, tls: Option<Arc<Tls>>) -> Service<D> {
        let lobby = Arc::new(Lobby::new(limits.handshakes));
        let seats = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
        Service { exports, limits, tls, lobby, seats }
    }

    fn terms<'a>(
        &'a self,
        security: Security,
        granted: &'a Granted,
        no_zeroes: bool,
    ) -> Terms<'a, D> {
        Terms { exports: &self.exports, seats: &self.seats, security, granted, no_zeroes }
    }
}

/// Serves one client on a connection that exists already (a pipe, a socket that was handed over),
/// from the greeting until it leaves or `stop` turns true. Needs a tokio runtime with time enabled.
pub async fn serve_client<S, D>(stream: S, service: Arc<Service<D>>, stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: BlockDevice,
{
    let ticket = service.lobby.enter();
    serve_guest(stream, service, ticket, stop).await;
}

/// As [`serve_client`], for one that is in the lobby already.
async fn serve_guest<S, D>(
    stream: S,
    service: Arc<Service<D>>,
    mut ticket: Ticket,
    mut stop: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    D: BlockDevice,
{
    let (limits, lobby) = (&service.limits, &service.lobby);
    let entered = tokio::select! {
        entered = tokio::time::timeout(limits.handshake, enter(stream, &service)) => entered,
        _ = stop.wait_for(|stop| *stop) => return,
        () = ticket.called_in() => {
            return lobby.complain(&"too many have not chosen an export yet");
        }
    };
    drop(ticket);
    match entered {
        Ok(Ok(Some(Entered::Plain(stream, session)))) => {
            transmit(stream, &session, limits, &mut stop).await;
        }
        Ok(Ok(Some(Entered::Secure(stream, session)))) => {
            transmit(stream, &session, limits, &mut stop).await;
        }
        Ok(Ok(None)) => tracing::debug!("client left during the handshake"),
        Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => lobby.complain(&error),
        Ok(Err(error)) => tracing::debug!(%error, "client vanished during the handshake"),
        Err(_) => lobby.complain(&"it did not finish in time"),
    }
}

/// A client with its export.
enum Entered<S, D> {
    Plain(S, Session<D>),
    Secure(Box<TlsStream<BufReader<S>>>, Session<D>),
}

/// The handshake, TLS included. `None`: the client left.
async fn enter<S, D>(mut stream: S, service: &Service<D>) -> io::Result<Option<Entered<S, D>>>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: BlockDevice,
{
    let no_zeroes = greet(&mut stream).await?;
    let security = match &service.tls {
        None => Security::Absent,
        Some(tls) if tls.is_required() => Security::Required,
        Some(_) => Security::Offered,
    };
    // Who is let in without TLS is let in everywhere: rules come with TLS that is required.
    let terms = service.terms(security, &Granted::Everything, no_zeroes);
    match (negotiate(&mut stream, &terms).await?, &service.tls) {
        (Agreement::Session(session), _) => Ok(Some(Entered::Plain(stream, session))),
        (Agreement::StartTls, Some(tls)) => {
            // Boxed: its size is for those who use it.
            Box::pin(enter_secured(stream, (service, tls), no_zeroes)).await
        }
        (Agreement::Left | Agreement::StartTls, _) => Ok(None),
    }
}

async fn enter_secured<S, D>(
    stream: S,
    (service, tls): (&Service<D>, &Arc<Tls>),
    no_zeroes: bool,
) -> io::Result<Option<Entered<S, D>>>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: BlockDevice,
{
    let Guest { mut stream, names, granted } = tls.accept(stream).await?;
    let terms = service.terms(Security::Active, &granted, no_zeroes);
    let agreed = negotiate(&mut stream, &terms).await?;
    let Agreement::Session(session) = agreed else { return Ok(None) };
    tracing::debug!(?names, export = session.export.name, "a client behind TLS");
    Ok(Some(Entered::Secure(stream, session)))
}
