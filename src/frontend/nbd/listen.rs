//! Where a server listens: a Unix socket, a TCP address, or a socket that was handed to it.
//!
//! A Unix socket is reachable by its owner only (mode 0600, set before the first connection can
//! be made). A socket file left behind by a server that died is replaced, one that somebody
//! serves is not; two servers that start at once are kept apart by a lock on the directory.

use super::handed::{self, Handed};
use crate::error::{Error, ErrorKind, Result};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, setsockopt, socket,
    sockopt::KeepAlive,
};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// A place to listen at.
///
/// Parsed from `HOST:PORT`, `[::1]:PORT` or `PORT` (then 127.0.0.1) for TCP, from anything with a
/// slash for a Unix socket, and from `systemd` for the socket of the service manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// The path of a Unix socket.
    Unix(PathBuf),
    /// A TCP address; port 0 lets the kernel choose.
    Tcp(SocketAddr),
    /// The socket that the service manager started this process with.
    Handed,
}

/// What stands for [`Listen::Handed`].
const HANDED: &str = "systemd";

impl FromStr for Listen {
    type Err = Error;

    fn from_str(text: &str) -> Result<Listen> {
        if text.contains('/') {
            return Ok(Listen::Unix(text.into()));
        }
        if text == HANDED {
            return Ok(Listen::Handed);
        }
        if let Ok(port) = text.parse::<u16>() {
            return Ok(Listen::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)));
        }
        let wrong = || {
            Error::usage(format!("cannot listen at {text:?}"))
                .hint("give HOST:PORT, [IPV6]:PORT, a PORT alone, or the path of a socket")
        };
        let mut found = text.to_socket_addrs().map_err(|error| wrong().because(error))?;
        found.next().map(Listen::Tcp).ok_or_else(wrong)
    }
}

/// A listening socket.
#[derive(Debug)]
pub(in crate::frontend) enum Listener {
    Unix(UnixListener, SocketFile),
    Tcp(TcpListener, SocketAddr),
}

/// An accepted connection.
#[derive(Debug)]
pub(in crate::frontend) enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Listener {
    /// Listens at `at`. Needs a tokio runtime.
    ///
    /// Errors: [`ErrorKind::Busy`] where somebody listens there, [`ErrorKind::Exists`] where the
    /// path is something else than a socket, [`ErrorKind::Failed`].
    pub(in crate::frontend) async fn bind(at: &Listen) -> Result<Listener> {
        match at {
            Listen::Unix(path) => bind_unix(path),
            Listen::Tcp(address) => bind_tcp(*address).await,
            Listen::Handed => use_handed(),
        }
    }

    pub(in crate::frontend) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Listener::Unix(listener, _) => Ok(Accepted::Unix(listener.accept().await?.0)),
            Listener::Tcp(listener, _) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                // Without it, the connection of a client that lost power would stay for ever.
                setsockopt(&stream, KeepAlive, &true)?;
                Ok(Accepted::Tcp(stream))
            }
        }
    }
}

fn use_handed() -> Result<Listener> {
    let failed =
        |e: io::Error| Error::failed("cannot use the socket of the service manager").because(e);
    Ok(match handed::take()? {
        Handed::Unix(listener, path) => {
            let listener = UnixListener::from_std(listener).map_err(failed)?;
            let path = std::path::absolute(path).map_err(failed)?;
            Listener::Unix(listener, SocketFile { path, identity: None })
        }
        Handed::Tcp(listener, address) => {
            Listener::Tcp(TcpListener::from_std(listener).map_err(failed)?, address)
        }
    })
}

async fn bind_tcp(address: SocketAddr) -> Result<Listener> {
    let failed = |error: io::Error| {
        let kind = match error.kind() {
            io::ErrorKind::AddrInUse => ErrorKind::Busy,
            _ => ErrorKind::Failed,
        };
        Error::new(kind, format!("cannot listen at {address}")).because(error)
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Listener::Tcp(listener, address))
}

fn bind_unix(path: &Path) -> Result<Listener> {
    let failed =
        |error: io::Error| Error::failed(format!("cannot listen at {path:?}")).because(error);
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = fs::File::open(directory).map_err(failed)?;
    let _lock = Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, errno)| failed(errno.into()))?;
    remove_stale(path)?;
    let listener = listen_private(path).map_err(failed)?;
    let file = SocketFile::of(path).map_err(failed)?;
    Ok(Listener::Unix(listener, file))
}

/// Removes the socket of a server that is gone.
fn remove_stale(path: &Path) -> Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        let message = format!("{path:?} exists and is no socket");
        return Err(Error::new(ErrorKind::Exists, message).hint("choose another path"));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| Error::failed(format!("cannot replace {path:?}")).because(error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => {
            let message = format!("another server listens at {path:?}");
            Err(Error::new(ErrorKind::Busy, message).hint("stop it or choose another path"))
        }
    }
}

/// Binds with mode 0600 before listening: until then nobody can connect.
fn listen_private(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listen(&fd, Backlog::MAXCONN)?;
    UnixListener::from_std(fd.into())
}

/// A socket's file, removed when dropped unless another server has replaced it or it was there
/// before.
#[derive(Debug)]
pub(in crate::frontend) struct SocketFile {
    pub(super) path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<SocketFile> {
        let metadata = fs::symlink_metadata(path)?;
        let path = std::path::absolute(path)?;
        Ok(SocketFile { path, identity: Some((metadata.dev(), metadata.ino())) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| Some((metadata.dev(), metadata.ino())) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = ?self.path, %error, "cannot remove the socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let tcp = |text: &str| match text.parse() {
            Ok(Listen::Tcp(address)) => address.to_string(),
            other => format!("{other:?}"),
        };
        assert_eq!(tcp("10809"), "127.0.0.1:10809");
        assert_eq!(tcp("[::1]:7"), "[::1]:7");
        assert_eq!(tcp("0.0.0.0:0"), "0.0.0.0:0");
        assert_eq!("./s".parse::<Listen>().unwrap(), Listen::Unix("./s".into()));
        for wrong in ["", "70000", "host", "::1:x"] {
            assert_eq!(wrong.parse::<Listen>().unwrap_err().kind(), ErrorKind::Usage, "{wrong}");
        }
    }

    #[tokio::test]
    async fn socket_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        // A dead server's socket: bound, never unlinked.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = Listener::bind(&Listen::Unix(path.clone())).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let busy = Listener::bind(&Listen::Unix(path.clone())).await.unwrap_err();
        assert_eq!(busy.kind(), ErrorKind::Busy);
        drop(listener);
        assert!(!path.exists());
        fs::write(&path, "data").unwrap();
        let exists = Listener::bind(&Listen::Unix(path.clone())).await.unwrap_err();
        assert_eq!(exists.kind(), ErrorKind::Exists);
        let long = dir.path().join("x".repeat(200));
        assert!(Listener::bind(&Listen::Unix(long)).await.is_err());
    }
}
