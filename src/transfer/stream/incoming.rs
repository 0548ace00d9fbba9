//! Reading a stream, strictly: what is handed out was verified.

use crate::error::{Error, ErrorKind, Result};
use crate::format::codec::{FormatError, Problem};
use crate::format::stream::{
    ENTRY_LEN, HEADER_FIXED, MAGIC, StreamEntry, StreamHeader, StreamPosition,
};
use crate::units::{Sector, SectorRange};
use tokio::io::{AsyncRead, AsyncReadExt};

/// A stream that is being read. Holds one entry of it.
#[derive(Debug)]
pub struct Incoming<R> {
    input: R,
    header: StreamHeader,
    position: StreamPosition,
    data: Vec<u8>,
}

/// What a stream says of some sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived<'a> {
    /// From the sector on there is this.
    Data(Sector, &'a [u8]),
    /// They are zeros.
    Zeros(SectorRange),
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// Usage: it is no stream. Corrupt: it is damaged or ends early. Unsupported: a newer objblk is needed.
    /// Failed: it cannot be read.
    pub async fn begin(mut input: R) -> Result<Incoming<R>> {
        let at = |field, offset, problem| FormatError { object: "stream", field, offset, problem };
        let cut = |offset| damaged(&at("header", offset, Problem::Truncated));
        let mut fixed = [0; HEADER_FIXED];
        let got = fill(&mut input, &mut fixed).await?;
        if !fixed[..got].starts_with(&MAGIC[..got.min(MAGIC.len())]) || got == 0 {
            return Err(Error::usage("this is no stream of changes")
                .hint("give what `objblk export-diff` has written"));
        }
        if got < fixed.len() {
            return Err(cut(got));
        }
        let mut bytes = fixed.to_vec();
        bytes.resize(StreamHeader::len(&fixed).map_err(|e| damaged(&e))?, 0);
        let got = fill(&mut input, &mut bytes[HEADER_FIXED..]).await?;
        if HEADER_FIXED + got < bytes.len() {
            return Err(cut(HEADER_FIXED + got));
        }
        let header = StreamHeader::parse(&bytes).map_err(|e| damaged(&e))?;
        let position = StreamPosition::behind(&header, &bytes);
        Ok(Incoming { input, header, position, data: Vec::new() })
    }

    /// What it is of.
    pub fn header(&self) -> &StreamHeader {
        &self.header
    }

    /// Bytes that were read.
    pub fn offset(&self) -> u64 {
        self.position.offset()
    }

    /// What comes next; `None` once the stream is complete. Nothing is asked for after that, or after an error.
    ///
    /// # Errors
    /// Corrupt: it is damaged, ends early, or goes on behind its end. Failed: it cannot be read.
    pub async fn next(&mut self) -> Result<Option<Arrived<'_>>> {
        let mut bytes = [0; ENTRY_LEN];
        self.fill_or_cut(&mut bytes).await?;
        match self.position.parse(&bytes).map_err(|e| damaged(&e))? {
            StreamEntry::Data { range, crc } => {
                let mut data = std::mem::take(&mut self.data);
                data.resize(range.len().bytes() as usize, 0);
                self.fill_or_cut(&mut data).await?;
                self.position.check(crc, &data).map_err(|e| damaged(&e))?;
                self.data = data;
                Ok(Some(Arrived::Data(range.start(), &self.data)))
            }
            StreamEntry::Zeros(range) => Ok(Some(Arrived::Zeros(range))),
            StreamEntry::End => match fill(&mut self.input, &mut bytes[..1]).await? {
                0 => Ok(None),
                _ => {
                    let more = Problem::Value("something follows it".into());
                    Err(damaged(&self.position.error("end", more)))
                }
            },
        }
    }

    /// Reads it to its end.
    ///
    /// # Errors
    /// As [`Incoming::next`].
    pub async fn verify(mut self) -> Result<()> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    async fn fill_or_cut(&mut self, bytes: &mut [u8]) -> Result<()> {
        match fill(&mut self.input, bytes).await? == bytes.len() {
            true => Ok(()),
            false => Err(damaged(&self.position.error("entry", Problem::Truncated))),
        }
    }
}

/// Fills `bytes` as far as the input reaches. Returns how far.
async fn fill(input: &mut (impl AsyncRead + Unpin), bytes: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        let got = input.read(&mut bytes[filled..]).await;
        match got.map_err(|e| Error::failed("cannot read the stream").because(e))? {
            0 => break,
            got => filled += got,
        }
    }
    Ok(filled)
}

fn damaged(e: &FormatError) -> Error {
    match e.problem {
        Problem::Unsupported(_) => {
            Error::new(ErrorKind::Unsupported, e.to_string()).hint("update objblk")
        }
        Problem::Truncated => {
            Error::corrupt(e.to_string()).hint("it is incomplete: export it again")
        }
        _ => Error::corrupt(e.to_string()).hint("export it again"),
    }
}
