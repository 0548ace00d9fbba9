//! The control socket of a target.

use super::control::{Reply, Request, encode, receive};
use super::orders::{Client, Order};
use super::shared::Shared;
use crate::error::{Error, Result};
use crate::format::SnapshotId;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::timeout;

/// How long a client may take to say what it wants, and to hear an answer.
const MANNERS: Duration = Duration::from_secs(10);

/// Answers clients at `path` until the runtime ends; without `shared` those who want an end only. The socket is for this user only: the run
/// directory lets nobody else in. Errors: failed.
pub(super) fn listen(
    path: &Path,
    shared: Option<Arc<Shared>>,
    orders: UnboundedSender<Order>,
) -> Result<()> {
    let listener = UnixListener::bind(path);
    let listener = listener
        .map_err(|e| Error::failed(format!("cannot listen at {}", path.display())).because(e))?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(converse(stream, shared.clone(), orders.clone()));
                }
                Err(e) => {
                    tracing::warn!("the control socket takes no client: {e}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    });
    Ok(())
}

async fn converse(stream: UnixStream, shared: Option<Arc<Shared>>, orders: UnboundedSender<Order>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let request = match timeout(MANNERS, receive::<Request>(&mut read)).await {
        Ok(Ok(Some(request))) => request,
        Ok(Ok(None)) | Err(_) => return,
        Ok(Err(e)) => return drop(say(&mut write, &Reply::Refused(e.into())).await),
    };
    let answered = match (request, shared) {
        (Request::Ping, _) => say(&mut write, &Reply::Pong).await,
        (Request::Detach { force }, _) => detach(read, &mut write, &orders, force).await,
        (_, None) => {
            let other = Error::failed("this process serves a directory: ask about its files");
            say(&mut write, &Reply::Refused(other.into())).await
        }
        (request, Some(shared)) => inquire(request, read, &mut write, &shared).await,
    };
    if let Err(e) = answered {
        tracing::debug!("a control client left: {e}");
    }
}

/// Answers what is about the volumes.
async fn inquire(
    request: Request,
    read: BufReader<OwnedReadHalf>,
    write: &mut OwnedWriteHalf,
    shared: &Shared,
) -> std::io::Result<()> {
    let is_long = request.is_long();
    let work = shared.carry_out(request, SnapshotId::from_random(rand::random()));
    match is_long {
        true => while_heard(read, write, work).await,
        false => say(write, &work.await.unwrap_or_else(|e| Reply::Refused(e.into()))).await,
    }
}

async fn say(write: &mut OwnedWriteHalf, reply: &Reply) -> std::io::Result<()> {
    timeout(MANNERS, write.write_all(&encode(reply))).await?
}

/// Does `work` and says what came of it, unless the client leaves before.
async fn while_heard(
    mut read: BufReader<OwnedReadHalf>,
    write: &mut OwnedWriteHalf,
    work: impl Future<Output = Result<Reply>>,
) -> std::io::Result<()> {
    let mut nothing = [0];
    let reply = tokio::select! {
        done = work => done.unwrap_or_else(|e| Reply::Refused(e.into())),
        // As for a detach: nobody waits for it any more.
        _ = read.read(&mut nothing) => return Ok(()),
    };
    say(write, &reply).await
}

async fn detach(
    mut read: BufReader<OwnedReadHalf>,
    write: &mut OwnedWriteHalf,
    orders: &UnboundedSender<Order>,
    force: bool,
) -> std::io::Result<()> {
    let (client, mut replies) = Client::new();
    if orders.send(Order { force, client: Some(client) }).is_err() {
        let gone = Error::failed("the target is ending already");
        return say(write, &Reply::Refused(gone.into())).await;
    }
    let mut nothing = [0];
    loop {
        tokio::select! {
            reply = replies.recv() => {
                let Some(reply) = reply else { return Ok(()) };
                say(write, &reply).await?;
                if matches!(reply, Reply::Detached(_) | Reply::Refused(_)) {
                    return Ok(());
                }
            }
            // Nothing more is to come but the end: the user has lost patience.
            _ = read.read(&mut nothing) => return Ok(()),
        }
    }
}
