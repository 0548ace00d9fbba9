//! The vhost-user-blk frontend: a [`BlockDevice`] as the disk of a virtual machine.
//!
//! ```text
//! guest -> ring in its memory -> queue thread -> BlockDevice       VMM -> socket -> connection
//!              ^       ^              ^              |                      (features, memory,
//!            answer  data          mailbox <---- waker of the slot           rings)
//! ```
//!
//! The VMM (QEMU, cloud-hypervisor, Firecracker) shares the guest's memory over a Unix socket and
//! is out of the way from then on: each ring has a thread here that takes requests from the guest's
//! memory, polls their futures itself and puts the answers back. What is ready at the first poll is
//! answered without a hop.
//!
//! Contract:
//! * Split and packed rings with indirect descriptors and event indices, several queues, flush,
//!   discard, write-zeroes, identity; the cache is a write-back one. Dirty logging (live migration)
//!   is not offered.
//! * A guest that does not know of flushes gets every write durable before its answer.
//! * What this process was doing when it died is noted in memory that the VMM keeps, so a successor
//!   does it once more; a successor that lacks what was acknowledged does not let the guest in
//!   (`inflight`).
//! * No byte of a guest makes this process panic, touch what is not the guest's, or take more memory
//!   than a bound for each queue: a request in error is answered with one, a ring in error is
//!   left alone, a message in error ends the connection. A VMM that makes the file of its memory
//!   shorter while it is shared kills this process: VMM and process have the same user.
//! * One VMM at a time; another one is sent away.

mod chain;
mod config;
mod connection;
mod inflight;
mod memory;
mod queue;
mod request;
mod ring;
mod session;
mod status;
mod virtqueue;

pub use inflight::Identity;
pub use status::VhostStatus;

use super::nbd::listen::{Accepted, Listen, Listener};
use crate::device::{BlockDevice, Checked};
use crate::error::{Error, Result};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use request::ID_LEN;
use ring::{Order, Shared};
use status::{Counters, add};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How long requests in flight may take when their ring or the device ends.
const DRAIN: Duration = Duration::from_secs(30);

/// How long they may take when their VMM has left.
const LATE: Duration = Duration::ZERO;

/// How long what only needs CPU time may take.
const GRACE: Duration = Duration::from_secs(10);

/// How long a VMM may take to leave when the next one is there already: it may be the same.
const LEAVING: Duration = Duration::from_secs(1);

/// Pause between two looks at something that changes soon, or after a failed accept.
const PAUSE: Duration = Duration::from_millis(10);

/// What the connection shares with the rest of the process.
#[derive(Debug, Default)]
struct Common {
    counters: Arc<Counters>,
    present: Mutex<Present>,
}

/// What is there now.
#[derive(Debug, Default)]
struct Present {
    /// The connection, and the process at its other end.
    visitor: Option<(UnixStream, Option<i32>)>,
    /// Where the VMM hears of changes.
    channel: Option<UnixStream>,
    rings: Vec<Arc<Shared>>,
    refused: Option<String>,
    /// Nobody is let in any more.
    closed: bool,
}

impl Common {
    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_channel(&self, channel: UnixStream) {
        self.present().channel = Some(channel);
    }

    fn refuse(&self, why: &str) {
        self.present().refused = Some(why.to_owned());
    }

    fn begin_ring(&self, ring: &Arc<Shared>) {
        let mut present = self.present();
        if present.closed {
            ring.order(Order::Drain);
        }
        present.rings.push(ring.clone());
    }

    fn end_ring(&self, ring: &Arc<Shared>) {
        self.present().rings.retain(|other| !Arc::ptr_eq(other, ring));
    }

    fn is_visited(&self) -> bool {
        self.present().visitor.is_some()
    }

    /// Lets a VMM in, unless there is one.
    fn enter(&self, stream: &UnixStream) -> std::io::Result<bool> {
        let process = getsockopt(stream, PeerCredentials).ok().map(|peer| peer.pid());
        let mut present = self.present();
        if present.closed || present.visitor.is_some() {
            return Ok(false);
        }
        present.visitor = Some((stream.try_clone()?, process));
        add(&self.counters.connections, 1);
        Ok(true)
    }

    fn leave(&self) {
        let mut present = self.present();
        (present.visitor, present.channel) = (None, None);
    }
}

/// A served disk. Dropping it ends no connection: [`VhostUser::stop`] does.
#[derive(Debug)]
pub struct VhostUser {
    path: PathBuf,
    common: Arc<Common>,
    accepting: JoinHandle<()>,
}

impl VhostUser {
    /// Serves `device` at the Unix socket `path`, for guests that were served as `identity` allows.
    /// `serial` is cut to the 20 bytes that the protocol has for it. Needs a tokio runtime.
    ///
    /// Errors: [`Busy`](crate::error::ErrorKind::Busy) where somebody listens there,
    /// [`Exists`](crate::error::ErrorKind::Exists) where the path is something else than a socket,
    /// [`Failed`](crate::error::ErrorKind::Failed).
    pub async fn start<D: BlockDevice>(
        device: Arc<Checked<D>>,
        path: &Path,
        serial: &str,
        identity: Identity,
    ) -> Result<VhostUser> {
        let failed = |e| Error::failed(format!("cannot listen at {path:?}")).because(e);
        let listener = Listener::bind(&Listen::Unix(path.into())).await?;
        let path = std::path::absolute(path).map_err(failed)?;
        let mut id = [0; ID_LEN];
        id.iter_mut().zip(serial.bytes()).for_each(|(to, from)| *to = from);
        let common = Arc::new(Common::default());
        let accepting = tokio::spawn(accept(listener, device, common.clone(), identity, id));
        Ok(VhostUser { path, common, accepting })
    }

    /// Where it is to be found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// State and counters.
    pub fn status(&self) -> VhostStatus {
        let present = self.common.present();
        VhostStatus {
            process: present.visitor.as_ref().and_then(|(_, process)| *process),
            rings: present.rings.len(),
            refused: present.refused.clone(),
            ..self.common.counters.snapshot()
        }
    }

    /// Who uses it, in words; nobody where no guest has begun to.
    pub fn user(&self) -> Option<String> {
        let status = self.status();
        (status.rings > 0).then(|| match status.process {
            Some(process) => format!("the disk of the virtual machine of process {process}"),
            None => "the disk of a virtual machine".to_owned(),
        })
    }

    /// Tells the guest that the size has changed.
    pub fn resized(&self) {
        let channel = self.common.present().channel.as_ref().map(UnixStream::try_clone);
        let told = match channel {
            Some(channel) => channel.and_then(|channel| connection::tell_changed(&channel)),
            None => return,
        };
        if let Err(e) = told {
            tracing::warn!("the guest was not told of its disk's size: {e}");
        }
    }

    /// Ends it: nobody is let in any more, requests in flight are answered, the VMM is left. Blocks
    /// the calling thread, for less than a minute. Errors: failed, where something is stuck.
    pub fn stop(self) -> Result<()> {
        // It owns the socket.
        self.accepting.abort();
        let rings = {
            let mut present = self.common.present();
            present.closed = true;
            present.rings.clone()
        };
        rings.iter().for_each(|ring| ring.order(Order::Drain));
        until(DRAIN, || rings.iter().all(|ring| ring.has_ended()));
        rings.iter().for_each(|ring| ring.order(Order::Abandon));
        if let Some((stream, _)) = &self.common.present().visitor {
            // It may have left by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
        let gone = || self.common.present().visitor.is_none() && self.accepting.is_finished();
        match until(GRACE, gone) {
            true => Ok(()),
            false => Err(Error::failed("a thread of the vhost-user frontend is stuck")),
        }
    }
}

/// Waits for something to come true, so long at most.
fn until(patience: Duration, true_now: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if true_now() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Lets VMMs in, one at a time.
async fn accept<D: BlockDevice>(
    listener: Listener,
    device: Arc<Checked<D>>,
    common: Arc<Common>,
    identity: Identity,
    id: [u8; ID_LEN],
) {
    loop {
        let stream = match listener.accept().await {
            Ok(Accepted::Unix(stream)) => stream.into_std().and_then(|stream| {
                stream.set_nonblocking(false)?;
                Ok(stream)
            }),
            Ok(_) => continue,
            Err(e) => Err(e),
        };
        let deadline = Instant::now() + LEAVING;
        while common.is_visited() && Instant::now() < deadline {
            tokio::time::sleep(PAUSE).await;
        }
        let let_in = stream.and_then(|stream| {
            if !common.enter(&stream)? {
                tracing::info!("a second VMM is sent away");
                return Ok(());
            }
            let visited = Visit(common.clone());
            let (device, identity) = (device.clone(), identity.clone());
            let thread = std::thread::Builder::new().name("vhost-control".into());
            thread.spawn(move || {
                connection::serve(device, &stream, &visited.0, identity, id);
                // The VMM hears the end before the next one is let in.
                drop((stream, visited));
            })?;
            Ok(())
        });
        if let Err(e) = let_in {
            tracing::warn!("a VMM is not let in: {e}");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// A VMM that was let in; leaves when dropped.
struct Visit(Arc<Common>);

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.leave();
    }
}
