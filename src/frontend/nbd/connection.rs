//! The transmission phase of one connection: one task that reads, executes and replies.
//!
//! The task is a state machine without locks. A request is started as soon as it is read; where
//! the device answers at once, its reply is queued at once, and nothing was spawned or allocated.
//! Only a request that has to wait is kept among those in flight. Replies go out in the order of
//! completion, as many as there are in one vectored write.
//!
//! Invariants: at most [`Limits::requests`] requests wait for the device; no request is begun
//! while more than [`Limits::bytes`] of buffers are in use, so memory is bounded by that plus one
//! request. An intake that pauses goes on when replies are sent.

use super::buffer::{Buffer, Pool};
use super::execute::{Session, execute};
use super::exports::Counters;
use super::input::{Ended, Input};
use super::output::Output;
use super::reply::Reply;
use super::request::Request;
use super::server::Limits;
use crate::device::BlockDevice;
use futures::Stream;
use futures::stream::FuturesUnordered;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

/// Bytes of unsent replies at which the intake pauses: enough for a large vectored write, and
/// little enough that replies are still in the processor's cache when they are sent.
const UNSENT_BYTES: usize = 512 << 10;

/// Time for the last bytes of a connection that has nothing more to say.
const GOODBYE: Duration = Duration::from_secs(5);

/// Serves requests until the client leaves or `stop` turns true, then finishes those in flight.
pub(super) async fn transmit<S, D>(
    stream: S,
    session: &Session<D>,
    limits: &Limits,
    stop: &mut watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    D: BlockDevice,
{
    let _present = Present::enter(&session.export.counters);
    let start = |request, buffer| execute(session, request, buffer);
    let mut connection = Connection::new(stream, start, limits);
    let ended = tokio::select! {
        biased;
        ended = poll_fn(|cx| connection.poll_serve(cx)) => Some(ended),
        _ = stop.wait_for(|stop| *stop) => None,
    };
    let export = &session.export.name;
    match &ended {
        Some(Ended::Disconnected | Ended::Closed) => tracing::debug!(export, "client left"),
        Some(Ended::CutOff) => tracing::info!(export, "client vanished inside a request"),
        Some(Ended::Garbage) => tracing::warn!(export, "dropped a client: not an NBD request"),
        Some(Ended::Broken(error)) => tracing::info!(export, %error, "connection broke"),
        None => tracing::debug!(export, "closing a connection: the server shuts down"),
    }
    let finish = poll_fn(|cx| connection.poll_finish(cx));
    match tokio::time::timeout(limits.drain, finish).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(export, %error, "replies could not be sent"),
        Err(_) => tracing::warn!(export, "gave up on requests in flight of a closing connection"),
    }
    // The client may be gone already, or never read the goodbye of TLS.
    let _ = tokio::time::timeout(GOODBYE, connection.stream.shutdown()).await;
}

/// Counts a connection while it lives.
struct Present<'a>(&'a Counters);

impl Present<'_> {
    fn enter(counters: &Counters) -> Present<'_> {
        Counters::add(&counters.connections, 1);
        Counters::add(&counters.connections_total, 1);
        Present(counters)
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

/// Requests that the device has not answered yet.
struct InFlight<F> {
    waiting: FuturesUnordered<Pin<Box<F>>>,
    /// Memory for the next request's future: given away only with one that has to wait.
    spare: Option<Pin<Box<F>>>,
}

impl<F: Future<Output = Reply>> InFlight<F> {
    /// Starts a request; its reply, where the device answers at once.
    fn start(&mut self, future: F, cx: &mut Context<'_>) -> Option<Reply> {
        let mut slot = match self.spare.take() {
            Some(mut slot) => {
                slot.set(future);
                slot
            }
            None => Box::pin(future),
        };
        match slot.as_mut().poll(cx) {
            Poll::Ready(reply) => {
                self.spare = Some(slot);
                Some(reply)
            }
            Poll::Pending => {
                self.waiting.push(slot);
                None
            }
        }
    }

    fn poll_finished(&mut self, cx: &mut Context<'_>) -> Poll<Option<Reply>> {
        Pin::new(&mut self.waiting).poll_next(cx)
    }
}

struct Connection<'a, S, M, F> {
    stream: S,
    start: M,
    limits: &'a Limits,
    input: Input,
    output: Output,
    pool: Pool,
    in_flight: InFlight<F>,
}

impl<'a, S, M, F> Connection<'a, S, M, F>
where
    S: AsyncRead + AsyncWrite + Unpin,
    M: Fn(Request, Buffer) -> F,
    F: Future<Output = Reply>,
{
    fn new(stream: S, start: M, limits: &'a Limits) -> Connection<'a, S, M, F> {
        Connection {
            stream,
            start,
            limits,
            input: Input::new(),
            output: Output::default(),
            pool: Pool::default(),
            in_flight: InFlight { waiting: FuturesUnordered::new(), spare: None },
        }
    }

    /// Ready when no further request will come. May be dropped at any point without loss.
    fn poll_serve(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        loop {
            let dry = match self.take_requests(cx) {
                Ok(dry) => dry,
                Err(ended) => return Poll::Ready(ended),
            };
            // After the intake, so that futures that were just started are polled with their own
            // waker before this task sleeps.
            self.collect(cx);
            let sent = self.output.poll_send(cx, &mut self.stream, &mut self.pool);
            if let Poll::Ready(Err(error)) = sent {
                return Poll::Ready(Ended::Broken(error));
            }
            if dry || !self.has_room() {
                return Poll::Pending;
            }
        }
    }

    /// Ready when nothing is in flight and every reply is sent.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let idle = self.collect(cx);
        match self.output.poll_send(cx, &mut self.stream, &mut self.pool) {
            Poll::Ready(Ok(())) if idle => Poll::Ready(Ok(())),
            // Requests of a client that is gone are finished all the same.
            Poll::Ready(Err(error)) if idle => Poll::Ready(Err(error)),
            _ => Poll::Pending,
        }
    }

    /// Starts requests until a limit is reached, or until the socket has no whole request: then
    /// true.
    fn take_requests(&mut self, cx: &mut Context<'_>) -> Result<bool, Ended> {
        while self.has_room() {
            match self.input.poll_request(cx, &mut self.stream, &mut self.pool) {
                Poll::Ready(next) => {
                    let (request, buffer) = next?;
                    let future = (self.start)(request, buffer);
                    if let Some(reply) = self.in_flight.start(future, cx) {
                        self.output.push(reply);
                    }
                }
                Poll::Pending => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Queues the replies of finished requests; true where none is left in flight.
    fn collect(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            match self.in_flight.poll_finished(cx) {
                Poll::Ready(Some(reply)) => self.output.push(reply),
                Poll::Ready(None) => return true,
                Poll::Pending => return false,
            }
        }
    }

    fn has_room(&self) -> bool {
        self.output.waiting() < UNSENT_BYTES
            && self.in_flight.waiting.len() < self.limits.requests
            // A request that has begun owns its memory already: the rest of it is always let in.
            && (self.input.is_midway() || self.pool.lent() < self.limits.bytes)
    }
}
