//! The thread of a connection: messages of the VMM, one after the other, until it leaves.
//!
//! The messages' parsing is the `vhost` crate's. One thing it does not offer is taken from the
//! socket before it: the channel by which the VMM hears that the configuration has changed.

use super::inflight::Identity;
use super::request::ID_LEN;
use super::session::Session;
use super::{Common, LATE};
use crate::device::{BlockDevice, Checked};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recv, recvmsg};
use std::io::{self, IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vhost::vhost_user::message::{BackendReq, FrontendReq};
use vhost::vhost_user::{BackendReqHandler, Error};

/// Time in which a VMM has to say something at all.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// Time that a message to the VMM may take.
const PROMPT: Duration = Duration::from_secs(1);

/// Bytes of a message's header: code, flags, size.
const HEADER: usize = 12;

/// The version of the protocol, as the flags have it.
const VERSION: u32 = 1;

/// Serves a VMM until it leaves or makes no sense.
pub(super) fn serve<D: BlockDevice>(
    device: Arc<Checked<D>>,
    stream: &UnixStream,
    common: &Arc<Common>,
    identity: Identity,
    id: [u8; ID_LEN],
) {
    let session = Session::new(device, common.clone(), identity, id);
    let session = Arc::new(Mutex::new(session));
    let talked = catch_unwind(AssertUnwindSafe(|| talk(stream, &session, common)));
    match talked {
        Ok(Ok(())) => tracing::debug!("the VMM left"),
        Ok(Err(e)) => tracing::warn!("a VMM is sent away: {e}"),
        Err(_) => tracing::error!("a VMM is sent away: its message was the last straw"),
    }
    // Those who were told to end have answered what they had; all others have nobody to answer.
    session.lock().unwrap_or_else(PoisonError::into_inner).end(LATE);
}

fn talk<D: BlockDevice>(
    stream: &UnixStream,
    session: &Arc<Mutex<Session<D>>>,
    common: &Common,
) -> Result<(), Error> {
    let ours = stream.try_clone().map_err(Error::SocketError)?;
    let mut handler = BackendReqHandler::from_stream(ours, session.clone());
    stream.set_read_timeout(Some(FIRST_WORD)).map_err(Error::SocketError)?;
    let mut first = true;
    loop {
        if let Some(channel) = channel(stream).map_err(Error::SocketError)? {
            common.set_channel(channel);
        }
        match handler.handle_request() {
            Ok(()) => {}
            Err(Error::Disconnected) => return Ok(()),
            Err(e) => return Err(e),
        }
        if std::mem::take(&mut first) {
            stream.set_read_timeout(None).map_err(Error::SocketError)?;
        }
    }
}

/// The channel that the next message brings, if it is such a message. The message stays.
fn channel(stream: &UnixStream) -> io::Result<Option<UnixStream>> {
    let mut header = [0; HEADER];
    let fd = stream.as_raw_fd();
    let read = loop {
        match recv(fd, &mut header, MsgFlags::MSG_PEEK | MsgFlags::MSG_WAITALL) {
            Err(nix::errno::Errno::EINTR) => {}
            read => break read?,
        }
    };
    let code = u32::from(FrontendReq::SET_BACKEND_REQ_FD).to_ne_bytes();
    if read < HEADER || header[..4] != code {
        return Ok(None);
    }
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 32]);
    let mut into = [IoSliceMut::new(&mut header)];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(fd, &mut into, Some(&mut space), flags)?;
    let mut files = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel has just made these descriptors for this call.
            files.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    // More or fewer are an error of the message, which is found next.
    Ok(files.pop().filter(|_| files.is_empty()).map(UnixStream::from))
}

/// Tells the VMM by its channel to read the configuration again.
pub(super) fn tell_changed(mut channel: &UnixStream) -> io::Result<()> {
    let code = u32::from(BackendReq::CONFIG_CHANGE_MSG);
    let words = [code, VERSION, 0];
    let message: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    channel.set_write_timeout(Some(PROMPT))?;
    channel.write_all(&message)
}
