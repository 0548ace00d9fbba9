//! One state of a volume made out of another, in place.

use super::OnData;
use super::pieces::{Piece, pieces};
use crate::device::{BlockDevice, DeviceError, WriteFlags, ZeroFlags};
use crate::error::{Error, Result};
use crate::volume::Volume;
use futures::stream::StreamExt;
use std::pin::pin;

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutBack {
    /// Bytes of data.
    pub data_bytes: u64,
    /// Bytes that became zeros.
    pub zero_bytes: u64,
}

/// Makes `volume`, which is what `now` is, what `past` is, and that durable.
///
/// # Errors
/// Those of [`pieces`], and of the volume's. After an error it is between the two.
pub async fn put_back(
    past: &Volume,
    now: &Volume,
    volume: &Volume,
    on_data: OnData<'_>,
) -> Result<PutBack> {
    let failed = |e: DeviceError| Error::failed("cannot write the volume").because(e);
    let size = past.geometry().size;
    if volume.geometry().size != size {
        volume.resize(size).await?;
    }
    let mut put = PutBack::default();
    let mut pieces = pin!(pieces(past, Some(now)));
    while let Some(piece) = pieces.next().await {
        match piece? {
            Piece::Data(range, data) => {
                volume.write(range.start(), &data, WriteFlags::default()).await.map_err(failed)?;
                put.data_bytes += data.len() as u64;
                on_data(data.len() as u64);
            }
            Piece::Zeros(range) => {
                let flags = ZeroFlags { may_unmap: true, fua: false };
                volume.write_zeroes(range, flags).await.map_err(failed)?;
                put.zero_bytes += range.len().bytes();
            }
        }
    }
    volume.flush().await.map_err(failed)?;
    Ok(put)
}
