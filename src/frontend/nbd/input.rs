//! The reading side of a connection: bytes from the socket in, whole requests out.
//!
//! Short requests are read many at a time into one read buffer; a long payload goes from the
//! socket straight into the request's own buffer. A payload is only ever allocated after its
//! length was checked; one that is too long is read past, in bounded memory, so that the request
//! can be refused and the connection lives on.

use super::buffer::{Buffer, Pool};
use super::execute::STATUS_BYTES;
use super::request::{REQUEST_LEN, Request};
use super::wire::{MAX_PAYLOAD, command};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};

/// Size of the read buffer.
const READ_BYTES: usize = 128 << 10;

/// Missing payload from which it is worth a read of its own.
const DIRECT_FROM: usize = 32 << 10;

/// Why no further request comes from a client.
#[derive(Debug)]
pub(super) enum Ended {
    /// It said goodbye.
    Disconnected,
    /// It closed the connection between two requests.
    Closed,
    /// It closed the connection inside a request.
    CutOff,
    /// It sent something that is no request.
    Garbage,
    /// The connection broke.
    Broken(io::Error),
}

/// A request whose payload is still arriving.
#[derive(Debug)]
struct Partial {
    request: Request,
    buffer: Buffer,
    /// Payload bytes that have arrived.
    arrived: usize,
}

impl Partial {
    /// True where the payload is too long to be kept.
    fn is_skipped(&self) -> bool {
        self.request.payload() > MAX_PAYLOAD
    }

    fn missing(&self) -> usize {
        self.request.payload() as usize - self.arrived
    }
}

/// Reading side of one connection.
#[derive(Debug)]
pub(super) struct Input {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    partial: Option<Partial>,
}

impl Input {
    /// Nothing read yet.
    pub(super) fn new() -> Input {
        let bytes = vec![0; READ_BYTES].into_boxed_slice();
        Input { bytes, start: 0, end: 0, partial: None }
    }

    /// The next request, with its payload at the start of the buffer's data area.
    pub(super) fn poll_request<S: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
        pool: &mut Pool,
    ) -> Poll<Result<(Request, Buffer), Ended>> {
        loop {
            let Some(mut partial) = self.partial.take() else {
                match self.next_header(pool)? {
                    Some(partial) => self.partial = Some(partial),
                    None => ready!(self.poll_fill(cx, stream))?,
                }
                continue;
            };
            self.move_payload(&mut partial);
            if partial.missing() == 0 {
                return Poll::Ready(Ok((partial.request, partial.buffer)));
            }
            let direct = !partial.is_skipped() && partial.missing() >= DIRECT_FROM;
            let polled = if direct {
                poll_payload(cx, stream, &mut partial)
            } else {
                self.poll_fill(cx, stream)
            };
            self.partial = Some(partial);
            match ready!(polled) {
                Err(Ended::Closed) => return Poll::Ready(Err(Ended::CutOff)),
                other => other?,
            }
        }
    }

    /// True where a request has begun and its payload is still to come.
    pub(super) fn is_midway(&self) -> bool {
        self.partial.is_some()
    }

    /// Takes a header out of the read buffer, if one is there.
    fn next_header(&mut self, pool: &mut Pool) -> Result<Option<Partial>, Ended> {
        let Some(bytes) = self.bytes[self.start..self.end].first_chunk::<REQUEST_LEN>() else {
            return Ok(None);
        };
        let request = Request::parse(bytes).ok_or(Ended::Garbage)?;
        self.start += REQUEST_LEN;
        if request.is_disconnect() {
            return Err(Ended::Disconnected);
        }
        let room = match request.kind {
            command::READ | command::WRITE if request.len <= MAX_PAYLOAD => request.len as usize,
            command::BLOCK_STATUS => STATUS_BYTES,
            _ => 0,
        };
        Ok(Some(Partial { request, buffer: pool.take(room), arrived: 0 }))
    }

    /// Moves what the read buffer has of the payload.
    fn move_payload(&mut self, partial: &mut Partial) {
        let count = partial.missing().min(self.end - self.start);
        let next = self.start + count;
        if !partial.is_skipped() {
            let to = partial.buffer.data_mut(partial.arrived..partial.arrived + count);
            to.copy_from_slice(&self.bytes[self.start..next]);
        }
        partial.arrived += count;
        self.start = next;
    }

    /// Reads more into the read buffer, in which at most half a header is left.
    fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<Result<(), Ended>> {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let count = ready!(poll_read(cx, stream, &mut self.bytes[self.end..]))?;
        self.end += count;
        Poll::Ready(match count {
            0 if self.end == 0 => Err(Ended::Closed),
            0 => Err(Ended::CutOff),
            _ => Ok(()),
        })
    }
}

fn poll_payload<S: AsyncRead + Unpin>(
    cx: &mut Context<'_>,
    stream: &mut S,
    partial: &mut Partial,
) -> Poll<Result<(), Ended>> {
    let len = partial.request.payload() as usize;
    let count = ready!(poll_read(cx, stream, partial.buffer.data_mut(partial.arrived..len)))?;
    partial.arrived += count;
    Poll::Ready(if count == 0 { Err(Ended::CutOff) } else { Ok(()) })
}

fn poll_read<S: AsyncRead + Unpin>(
    cx: &mut Context<'_>,
    stream: &mut S,
    into: &mut [u8],
) -> Poll<Result<usize, Ended>> {
    let mut into = ReadBuf::new(into);
    match ready!(Pin::new(stream).poll_read(cx, &mut into)) {
        Ok(()) => Poll::Ready(Ok(into.filled().len())),
        // TLS calls it so when a client leaves without the formalities.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(0)),
        Err(error) => Poll::Ready(Err(Ended::Broken(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::REQUEST_MAGIC;
    use super::*;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    fn wire(kind: u16, cookie: u64, len: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(kind.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(0u64.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    /// Everything that comes out of `bytes` when they arrive in pieces of `piece`.
    fn requests(bytes: Vec<u8>, piece: usize) -> (Vec<(Request, Vec<u8>)>, Ended) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut near, mut far) = tokio::io::duplex(piece);
            let sender = async move {
                // The other side may stop reading.
                let _ = near.write_all(&bytes).await;
            };
            let receiver = async move {
                let (mut input, mut pool, mut found) = (Input::new(), Pool::default(), Vec::new());
                loop {
                    let next =
                        std::future::poll_fn(|cx| input.poll_request(cx, &mut far, &mut pool));
                    match next.await {
                        Ok((request, buffer)) => {
                            let kept = Some(request.payload()).filter(|len| *len <= MAX_PAYLOAD);
                            let payload = buffer.data(kept.unwrap_or(0) as usize).to_vec();
                            found.push((request, payload));
                            pool.give(buffer);
                        }
                        Err(ended) => return (found, ended),
                    }
                }
            };
            tokio::join!(sender, receiver).1
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn requests_survive_any_cut(
            lens in proptest::collection::vec((0u16..8, 0usize..100_000), 1..6),
            piece in 1usize..200_000,
        ) {
            let mut bytes = Vec::new();
            let lens: Vec<_> = lens.into_iter().filter(|(kind, _)| *kind != command::DISC).collect();
            for (i, (kind, len)) in lens.iter().enumerate() {
                let payload = vec![i as u8 + 1; if *kind == command::WRITE { *len } else { 0 }];
                bytes.extend(wire(*kind, i as u64, *len as u32, &payload));
            }
            let (found, ended) = requests(bytes, piece);
            prop_assert!(matches!(ended, Ended::Closed));
            prop_assert_eq!(found.len(), lens.len());
            for (i, (request, payload)) in found.iter().enumerate() {
                prop_assert_eq!(request.cookie, i as u64);
                prop_assert_eq!(payload.len(), request.payload() as usize);
                prop_assert!(payload.iter().all(|b| usize::from(*b) == i + 1));
            }
        }

        #[test]
        fn any_bytes_end_in_some_way(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let empty = bytes.is_empty();
            let (found, ended) = requests(bytes, 64);
            prop_assert!(empty || !found.is_empty() || matches!(ended, Ended::Garbage | Ended::CutOff));
        }
    }

    #[test]
    fn too_long_a_payload_is_read_past() {
        let len = MAX_PAYLOAD + 1;
        let mut bytes = wire(command::WRITE, 1, len, &vec![9; len as usize]);
        bytes.extend(wire(command::FLUSH, 2, 0, &[]));
        bytes.extend(wire(command::WRITE, 3, 10, &[9; 5]));
        let (found, ended) = requests(bytes, 1 << 20);
        assert_eq!(found.iter().map(|(r, _)| r.cookie).collect::<Vec<_>>(), [1, 2]);
        assert!(matches!(ended, Ended::CutOff));
    }
}
