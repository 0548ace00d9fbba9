//! A socket that is open already: systemd's socket activation, as nbdkit and qemu-nbd know it.
//!
//! Contract: the service manager (or libnbd) passes exactly one listening stream socket as descriptor 3
//! and says so in `LISTEN_FDS` and `LISTEN_PID`; it is taken at most once. Its file stays when the
//! server ends: it is the manager's.

use crate::error::{Error, Result};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// It was taken: whoever took it may have closed it.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// A listening socket and where it listens.
#[derive(Debug)]
pub(super) enum Handed {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener, SocketAddr),
}

/// True where this process was started with sockets.
pub fn was_handed() -> bool {
    sd_notify::listen_fds().is_ok_and(|mut sockets| sockets.next().is_some())
}

/// Takes the socket. Errors: [`Usage`](crate::error::ErrorKind::Usage) where there is not exactly one,
/// where it is none to serve at, or where it was taken before.
pub(super) fn take() -> Result<Handed> {
    let wrong = |why: &str| {
        Error::usage(format!("cannot use the socket of the service manager: {why}"))
            .hint("pass one listening Unix or TCP socket, or say --socket or --listen")
    };
    let mut sockets = sd_notify::listen_fds().map_err(|e| wrong("it is not there").because(e))?;
    let (Some(fd), None) = (sockets.next(), sockets.next()) else {
        return Err(wrong("there is not exactly one"));
    };
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(wrong("it is in use already"));
    }
    // SAFETY: the environment says that whoever started this very process left the descriptor for it,
    // so nothing else here opened it, and it is taken only once.
    let listener = UnixListener::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let failed = |e: std::io::Error| wrong("it is no socket to serve at").because(e);
    listener.set_nonblocking(true).map_err(failed)?;
    match listener.local_addr() {
        Ok(address) => {
            let path = address.as_pathname().ok_or_else(|| wrong("it has no path"))?.to_owned();
            Ok(Handed::Unix(listener, path))
        }
        // Of another family.
        Err(_) => {
            let listener = TcpListener::from(OwnedFd::from(listener));
            let address = listener.local_addr().map_err(failed)?;
            Ok(Handed::Tcp(listener, address))
        }
    }
}
