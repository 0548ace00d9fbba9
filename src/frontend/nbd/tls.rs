//! TLS of a server: who must use it, what with, and who a client is.
//!
//! A connection begins in the clear, and its client asks for TLS with an option of the handshake;
//! from then on all of it goes through [`Tls::accept`]. The files are looked at for each connection
//! and read again where they changed, so a certificate is renewed by putting the new one in its place.
//! Files that do not work (a new certificate whose key is not there yet) leave the former ones in use.
//!
//! Invariants: nothing that a client sent in the clear counts after TLS began. Sessions are not
//! resumed, so each connection shows its certificate. At most one thread waits for the files, so a
//! file system that hangs stops no client.

use super::credentials::{self, Credentials};
use super::rights::Granted;
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Bytes that are read from a socket at a time: several records.
const READ_BYTES: usize = 64 << 10;

/// Where TLS gets what it needs, and whom it lets in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsOptions {
    /// The server's certificate and those between it and its authority, PEM.
    pub certificate: PathBuf,
    /// The key of the certificate, PEM.
    pub key: PathBuf,
    /// The authorities of clients, PEM: who has no certificate of theirs is refused. Without it no
    /// certificate is asked for.
    pub client_ca: Option<PathBuf>,
    /// Whoever does not use TLS is refused.
    pub required: bool,
    /// Rules about who may use what, see [`Rights`](super::rights::Rights). Without any, everybody
    /// who is let in may use everything.
    pub allow: Vec<String>,
    /// A file of more such rules.
    pub allow_file: Option<PathBuf>,
}

/// TLS of one server.
pub struct Tls {
    options: TlsOptions,
    current: Mutex<Arc<Credentials>>,
    /// What the files were like when they were read last, whether they worked or not. Held while they
    /// are read.
    seen: Mutex<Stamps>,
}

/// By which a file is known to have changed: device, inode, size, and the times of its data and of
/// itself. `None`: it cannot be looked at.
type Stamp = Option<(u64, u64, u64, (i64, i64), (i64, i64))>;

type Stamps = [Stamp; 4];

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("options", &self.options).finish_non_exhaustive()
    }
}

/// A client behind TLS.
#[derive(Debug)]
pub(super) struct Guest<S> {
    pub(super) stream: Box<TlsStream<BufReader<S>>>,
    /// The names in its certificate.
    pub(super) names: Vec<String>,
    pub(super) granted: Granted,
}

impl Tls {
    /// Reads the files.
    ///
    /// Errors: [`Usage`](crate::error::ErrorKind::Usage) for a file that is not what it should be,
    /// and for a key that others may read.
    pub fn load(options: TlsOptions) -> Result<Tls> {
        let seen = Mutex::new(stamps(&options));
        let current = Mutex::new(Arc::new(credentials::load(&options)?));
        Ok(Tls { options, current, seen })
    }

    /// Whether a client that does not use TLS is refused.
    pub(super) fn is_required(&self) -> bool {
        self.options.required
    }

    /// Shakes hands. The caller bounds the time.
    pub(super) async fn accept<S>(self: &Arc<Tls>, stream: S) -> io::Result<Guest<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let credentials = self.credentials().await;
        let stream = BufReader::with_capacity(READ_BYTES, stream);
        let acceptor = TlsAcceptor::from(Arc::clone(&credentials.config));
        let stream = Box::new(acceptor.accept(stream).await?);
        let (_, session) = stream.get_ref();
        let shown = session.peer_certificates().and_then(|chain| chain.first());
        let names = shown.map(credentials::names).unwrap_or_default();
        let granted = match &credentials.rights {
            Some(rights) => rights.of(&names),
            None => Granted::Everything,
        };
        Ok(Guest { stream, names, granted })
    }

    /// What a handshake goes by now.
    async fn credentials(self: &Arc<Tls>) -> Arc<Credentials> {
        let tls = Arc::clone(self);
        // It fails only where the runtime ends.
        let _ = tokio::task::spawn_blocking(move || tls.renew()).await;
        Arc::clone(&held(&self.current))
    }

    /// Reads the files again if they changed, unless another thread does just that.
    fn renew(&self) {
        let mut seen = match self.seen.try_lock() {
            Ok(seen) => seen,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let now = stamps(&self.options);
        if *seen == now {
            return;
        }
        *seen = now;
        match credentials::load(&self.options) {
            Ok(credentials) => {
                *held(&self.current) = Arc::new(credentials);
                tracing::info!("read the files of TLS again: they changed");
            }
            Err(error) => {
                tracing::warn!(%error, "the files of TLS changed and do not work: using the former");
            }
        }
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stamps(options: &TlsOptions) -> Stamps {
    let TlsOptions { certificate, key, client_ca, allow_file, .. } = options;
    [Some(certificate), Some(key), client_ca.as_ref(), allow_file.as_ref()].map(|path| {
        let m = std::fs::metadata(path?).ok()?;
        let (data, file) = ((m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec()));
        Some((m.dev(), m.ino(), m.size(), data, file))
    })
}
