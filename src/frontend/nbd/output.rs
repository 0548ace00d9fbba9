//! The writing side of a connection: replies in, vectored writes out.

use super::buffer::Pool;
use super::reply::Reply;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// Most pieces handed to one vectored write.
const MAX_SLICES: usize = 64;

/// Replies that wait to be sent, in the order in which their requests completed.
#[derive(Debug, Default)]
pub(super) struct Output {
    replies: VecDeque<Reply>,
    /// Bytes of the first reply that are sent already.
    sent: usize,
    /// Bytes of all replies, sent ones of the first included.
    bytes: usize,
    /// The stream may hold back what it took: TLS does.
    unflushed: bool,
}

impl Output {
    /// Queues a reply.
    pub(super) fn push(&mut self, reply: Reply) {
        self.bytes += reply.len();
        self.replies.push_back(reply);
    }

    /// Bytes that wait.
    pub(super) fn waiting(&self) -> usize {
        self.bytes - self.sent
    }

    /// Sends until nothing waits, in the stream neither, or the socket takes no more.
    pub(super) fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
        pool: &mut Pool,
    ) -> Poll<io::Result<()>> {
        if self.replies.is_empty() && !self.unflushed {
            return Poll::Ready(Ok(()));
        }
        while !self.replies.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = self.gather(&mut slices);
            let writer = Pin::new(&mut *stream);
            let sent = ready!(writer.poll_write_vectored(cx, &slices[..count]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.advance(sent, pool);
        }
        ready!(Pin::new(stream).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// Fills `slices` with what is next; returns how many.
    fn gather<'a>(&'a self, slices: &mut [IoSlice<'a>; MAX_SLICES]) -> usize {
        let mut skip = self.sent;
        let mut count = 0;
        for piece in self.replies.iter().flat_map(Reply::pieces) {
            if count == MAX_SLICES {
                break;
            }
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            slices[count] = IoSlice::new(&piece[skip..]);
            count += 1;
            skip = 0;
        }
        count
    }

    fn advance(&mut self, count: usize, pool: &mut Pool) {
        self.sent += count;
        while let Some(len) = self.replies.front().map(Reply::len).filter(|len| *len <= self.sent) {
            self.sent -= len;
            self.bytes -= len;
            if let Some(reply) = self.replies.pop_front() {
                pool.give(reply.into_buffer());
            }
        }
    }
}
