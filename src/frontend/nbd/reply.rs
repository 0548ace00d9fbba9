//! Replies of the transmission phase, laid out in the request's own buffer.
//!
//! A [`Reply`] is a buffer and the spans of it that go to the wire, in order. A read's data stays
//! where the device put it, the header stands right before it. Where a read meets holes, the
//! headers of the chunks are written over the zeros that are not sent: each hole is at least one
//! sector long, more than its own chunk (32 bytes) and the header of the data after it (28).
//!
//! Source: `doc/proto.md`, "Simple reply message" and "Structured reply chunk message".

use super::buffer::{Buffer, HEADROOM};
use super::wire::{
    BASE_ALLOCATION_ID, CHUNK_MAGIC, SIMPLE_REPLY_MAGIC, STATE_HOLE_ZERO, WireError, chunk,
};
use crate::device::{BlockState, StatusExtent};
use std::ops::Range;

const SIMPLE_LEN: usize = 16;
const CHUNK_LEN: usize = 20;
const DATA_CHUNK_LEN: usize = CHUNK_LEN + 8;
const HOLE_CHUNK_LEN: usize = CHUNK_LEN + 12;

/// Longest text sent with an error.
const MAX_MESSAGE: usize = 1024;

/// A reply that is ready to be sent.
#[derive(Debug)]
pub(super) struct Reply {
    buffer: Buffer,
    first: Range<usize>,
    rest: Vec<Range<usize>>,
}

impl Reply {
    fn new(buffer: Buffer, span: Range<usize>) -> Reply {
        Reply { buffer, first: span, rest: Vec::new() }
    }

    /// The pieces to be sent, in order.
    pub(super) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&self.first).chain(&self.rest).map(|span| &self.buffer.all()[span.clone()])
    }

    /// Number of bytes to be sent.
    pub(super) fn len(&self) -> usize {
        self.first.len() + self.rest.iter().map(Range::len).sum::<usize>()
    }

    /// Gives the buffer back.
    pub(super) fn into_buffer(self) -> Buffer {
        self.buffer
    }
}

/// A run of a read, relative to its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Bytes, a multiple of the sector.
    pub(super) len: usize,
    /// Reads as zeros and is not sent.
    pub(super) hole: bool,
}

/// Makes the replies to one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replier {
    /// Structured replies were negotiated.
    pub(super) structured: bool,
    /// The request's mark.
    pub(super) cookie: u64,
    /// The request's offset in bytes.
    pub(super) offset: u64,
}

impl Replier {
    /// Success of anything but a read.
    pub(super) fn done(&self, mut buffer: Buffer) -> Reply {
        self.put_simple(buffer.all_mut(), 0);
        Reply::new(buffer, 0..SIMPLE_LEN)
    }

    /// Failure. `at_offset`: the failure is one of the data at the request's offset.
    pub(super) fn failed(
        &self,
        mut buffer: Buffer,
        error: WireError,
        message: &str,
        at_offset: bool,
    ) -> Reply {
        if !self.structured {
            self.put_simple(buffer.all_mut(), error as u32);
            return Reply::new(buffer, 0..SIMPLE_LEN);
        }
        let message = &message.as_bytes()[..message.floor_char_boundary(MAX_MESSAGE)];
        let (kind, tail) = if at_offset { (chunk::ERROR_OFFSET, 8) } else { (chunk::ERROR, 0) };
        let len = 6 + message.len() + tail;
        let bytes = buffer.all_mut();
        self.put_chunk(bytes, chunk::FLAG_DONE, kind, len);
        let mut put = Put { bytes, at: CHUNK_LEN };
        put.all(&(error as u32).to_be_bytes());
        put.all(&(message.len() as u16).to_be_bytes());
        put.all(message);
        if at_offset {
            put.all(&self.offset.to_be_bytes());
        }
        Reply::new(buffer, 0..CHUNK_LEN + len)
    }

    /// A read's `len` bytes of data, as one chunk.
    pub(super) fn data(&self, mut buffer: Buffer, len: usize) -> Reply {
        let start = match (self.structured, len) {
            (false, _) => {
                self.put_simple(&mut buffer.all_mut()[HEADROOM - SIMPLE_LEN..], 0);
                HEADROOM - SIMPLE_LEN
            }
            // A data chunk must not be empty.
            (true, 0) => {
                let start = HEADROOM - CHUNK_LEN;
                self.put_chunk(&mut buffer.all_mut()[start..], chunk::FLAG_DONE, chunk::NONE, 0);
                start
            }
            (true, _) => {
                let start = HEADROOM - DATA_CHUNK_LEN;
                self.put_data_header(&mut buffer, 0, len, chunk::FLAG_DONE);
                start
            }
        };
        Reply::new(buffer, start..HEADROOM + len)
    }

    /// A read's data and holes, a chunk each. Only with structured replies.
    ///
    /// `runs` alternate between data and hole, and a hole is at least a sector long.
    pub(super) fn sparse(&self, mut buffer: Buffer, runs: &[Run]) -> Reply {
        let mut spans: Vec<Range<usize>> = Vec::with_capacity(runs.len());
        let mut at = 0;
        for (index, run) in runs.iter().enumerate() {
            let flags = if index + 1 == runs.len() { chunk::FLAG_DONE } else { 0 };
            let area = HEADROOM + at;
            let span = if run.hole {
                self.put_hole(&mut buffer, at, run.len, flags);
                area..area + HOLE_CHUNK_LEN
            } else {
                self.put_data_header(&mut buffer, at, run.len, flags);
                area - DATA_CHUNK_LEN..area + run.len
            };
            match spans.last_mut() {
                Some(last) if last.end == span.start => last.end = span.end,
                _ => spans.push(span),
            }
            at += run.len;
        }
        let mut spans = spans.into_iter();
        let first = spans.next().unwrap_or(0..0);
        Reply { buffer, first, rest: spans.collect() }
    }

    /// States of a range. Only with structured replies; `extents` must fit the buffer.
    pub(super) fn block_status(&self, mut buffer: Buffer, extents: &[StatusExtent]) -> Reply {
        let len = 4 + 8 * extents.len();
        let bytes = buffer.all_mut();
        self.put_chunk(bytes, chunk::FLAG_DONE, chunk::BLOCK_STATUS, len);
        let mut put = Put { bytes, at: CHUNK_LEN };
        put.all(&BASE_ALLOCATION_ID.to_be_bytes());
        for extent in extents {
            let state = match extent.state {
                BlockState::Data => 0,
                BlockState::Hole => STATE_HOLE_ZERO,
            };
            put.all(&(extent.len.bytes() as u32).to_be_bytes());
            put.all(&state.to_be_bytes());
        }
        Reply::new(buffer, 0..CHUNK_LEN + len)
    }

    fn put_simple(&self, bytes: &mut [u8], error: u32) {
        let mut put = Put { bytes, at: 0 };
        put.all(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        put.all(&error.to_be_bytes());
        put.all(&self.cookie.to_be_bytes());
    }

    fn put_chunk(&self, bytes: &mut [u8], flags: u16, kind: u16, len: usize) {
        let mut put = Put { bytes, at: 0 };
        put.all(&CHUNK_MAGIC.to_be_bytes());
        put.all(&flags.to_be_bytes());
        put.all(&kind.to_be_bytes());
        put.all(&self.cookie.to_be_bytes());
        put.all(&(len as u32).to_be_bytes());
    }

    /// Header of the data at `at` of the data area, right before it.
    fn put_data_header(&self, buffer: &mut Buffer, at: usize, len: usize, flags: u16) {
        let bytes = &mut buffer.all_mut()[HEADROOM + at - DATA_CHUNK_LEN..];
        self.put_chunk(bytes, flags, chunk::OFFSET_DATA, 8 + len);
        let mut put = Put { bytes, at: CHUNK_LEN };
        put.all(&(self.offset + at as u64).to_be_bytes());
    }

    /// Chunk of the hole at `at` of the data area, over its first bytes.
    fn put_hole(&self, buffer: &mut Buffer, at: usize, len: usize, flags: u16) {
        let bytes = &mut buffer.all_mut()[HEADROOM + at..];
        self.put_chunk(bytes, flags, chunk::OFFSET_HOLE, 12);
        let mut put = Put { bytes, at: CHUNK_LEN };
        put.all(&(self.offset + at as u64).to_be_bytes());
        put.all(&(len as u32).to_be_bytes());
    }
}

/// Writes fields one after the other.
struct Put<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Put<'_> {
    fn all(&mut self, field: &[u8]) {
        self.bytes[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
    }
}

#[cfg(test)]
mod tests {
    use super::super::buffer::Pool;
    use super::super::wire::Cursor;
    use super::*;
    use proptest::prelude::*;

    /// Applies the chunks of a structured read reply to `image`; false where it is malformed.
    fn apply(wire: &[u8], offset: u64, image: &mut [u8]) -> Option<()> {
        let mut cursor = Cursor(wire);
        loop {
            assert_eq!(cursor.u32()?, CHUNK_MAGIC);
            let (flags, kind) = (cursor.u16()?, cursor.u16()?);
            assert_eq!(cursor.u64()?, 99);
            let len = cursor.u32()? as usize;
            let at = (cursor.u64()? - offset) as usize;
            match kind {
                chunk::OFFSET_DATA => {
                    image[at..at + len - 8].copy_from_slice(cursor.bytes(len - 8)?);
                }
                chunk::OFFSET_HOLE => {
                    let hole = cursor.u32()? as usize;
                    image[at..at + hole].fill(0);
                }
                _ => return None,
            }
            if flags == chunk::FLAG_DONE {
                return cursor.is_empty().then_some(());
            }
        }
    }

    proptest! {
        #[test]
        fn sparse_replies_carry_the_whole_image(
            sectors in proptest::collection::vec(1usize..20, 1..30),
            hole_first: bool,
            offset in 0u64..1 << 40,
        ) {
            let runs: Vec<Run> = sectors
                .iter()
                .enumerate()
                .map(|(i, n)| Run { len: n * 512, hole: (i % 2 == 0) == hole_first })
                .collect();
            let total: usize = runs.iter().map(|run| run.len).sum();
            let mut buffer = Pool::default().take(total);
            let mut expected = Vec::new();
            for run in &runs {
                let at = expected.len();
                expected.extend((at..at + run.len).map(|i| if run.hole { 0 } else { i as u8 | 1 }));
            }
            buffer.data_mut(0..total).copy_from_slice(&expected);
            let replier = Replier { structured: true, cookie: 99, offset };
            let reply = replier.sparse(buffer, &runs);
            let wire: Vec<u8> = reply.pieces().flatten().copied().collect();
            prop_assert_eq!(wire.len(), reply.len());
            let mut image = vec![0xee; total];
            prop_assert!(apply(&wire, offset, &mut image).is_some());
            prop_assert!(image == expected);
        }
    }

    #[test]
    fn one_piece_for_plain_data() {
        for structured in [false, true] {
            let mut buffer = Pool::default().take(512);
            buffer.data_mut(0..512).fill(7);
            let reply = Replier { structured, cookie: 99, offset: 512 }.data(buffer, 512);
            let pieces: Vec<&[u8]> = reply.pieces().collect();
            assert_eq!(pieces.len(), 1);
            assert_eq!(pieces[0].len(), 512 + if structured { 28 } else { 16 });
            assert!(pieces[0].ends_with(&[7; 512]));
        }
    }

    #[test]
    fn messages_are_cut() {
        let buffer = Pool::default().take(0);
        let replier = Replier { structured: true, cookie: 1, offset: 2 };
        let reply = replier.failed(buffer, WireError::Io, &"é".repeat(5000), true);
        assert_eq!(reply.len(), CHUNK_LEN + 6 + MAX_MESSAGE + 8);
    }
}
