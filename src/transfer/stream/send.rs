//! Writing a stream.

use super::OnData;
use super::pieces::{Piece, pieces};
use crate::error::{Error, Result};
use crate::format::stream::{StreamEntry, StreamHeader, StreamPosition};
use crate::units::SectorRange;
use crate::volume::Volume;
use futures::stream::StreamExt;
use std::pin::pin;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// What a stream holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Bytes of data.
    pub data_bytes: u64,
    /// Bytes that became zeros.
    pub zero_bytes: u64,
    /// All of the stream.
    pub stream_bytes: u64,
}

/// Writes to `out` what differs in `view` from `base`: the states that `header` names. Flushes it.
///
/// # Errors
/// Those of [`pieces`]. Failed: it cannot be written.
///
/// Cancellation: what was written has no end, and is refused by who reads it.
pub async fn send(
    header: &StreamHeader,
    (view, base): (&Volume, Option<&Volume>),
    out: &mut (impl AsyncWrite + Unpin),
    on_data: OnData<'_>,
) -> Result<Sent> {
    let bytes = header.encode();
    let position = StreamPosition::behind(header, &bytes);
    put(out, &bytes).await?;
    let mut writer = Writer { out, position, zeros: None, sent: Sent::default() };
    let mut pieces = pin!(pieces(view, base));
    while let Some(piece) = pieces.next().await {
        match piece? {
            Piece::Data(range, data) => {
                writer.data(range, &data).await?;
                on_data(data.len() as u64);
            }
            Piece::Zeros(range) => writer.zeros(range).await?,
        }
    }
    writer.end().await
}

struct Writer<'a, W> {
    out: &'a mut W,
    position: StreamPosition,
    /// Zeros that are not written yet: more may follow.
    zeros: Option<SectorRange>,
    sent: Sent,
}

impl<W: AsyncWrite + Unpin> Writer<'_, W> {
    async fn data(&mut self, range: SectorRange, data: &[u8]) -> Result<()> {
        self.put_zeros().await?;
        self.entry(StreamEntry::Data { range, crc: crc32c::crc32c(data) }).await?;
        self.sent.data_bytes += data.len() as u64;
        put(self.out, data).await
    }

    async fn zeros(&mut self, range: SectorRange) -> Result<()> {
        match &mut self.zeros {
            Some(zeros) if zeros.end() == range.start() => {
                *zeros = SectorRange::between(zeros.start(), range.end());
            }
            _ => {
                self.put_zeros().await?;
                self.zeros = Some(range);
            }
        }
        Ok(())
    }

    async fn put_zeros(&mut self) -> Result<()> {
        let Some(zeros) = self.zeros.take() else { return Ok(()) };
        self.sent.zero_bytes += zeros.len().bytes();
        self.entry(StreamEntry::Zeros(zeros)).await
    }

    async fn entry(&mut self, entry: StreamEntry) -> Result<()> {
        let bytes = self.position.encode(entry);
        put(self.out, &bytes).await
    }

    async fn end(mut self) -> Result<Sent> {
        self.put_zeros().await?;
        self.entry(StreamEntry::End).await?;
        self.out.flush().await.map_err(broken)?;
        Ok(Sent { stream_bytes: self.position.offset(), ..self.sent })
    }
}

async fn put(out: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).await.map_err(broken)
}

fn broken(e: std::io::Error) -> Error {
    Error::failed("cannot write the stream").because(e)
}
