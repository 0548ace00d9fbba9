//! How much smaller compression makes a volume, told by a look at the headers of some of its chunks.
//!
//! Contract: a few requests, however large the volume is. The chunks come from the beginning of the log's
//! listing, whose order spreads them evenly over the time in which they were written; what is dead in
//! them counts as well.

use crate::error::Result;
use crate::format::VolumeId;
use crate::format::frame::frame_payload_len;
use crate::format::keys;
use crate::log::fetch::{FetchError, fetch_header};
use crate::store::Store;
use futures::stream::{self, StreamExt, TryStreamExt};

/// Names that are listed, and headers that are read of them.
const LISTED: usize = 1000;
const CHUNKS: usize = 32;
const PARALLEL: usize = 16;

/// What was found in some chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Chunks with data that were looked at.
    pub chunks: u64,
    /// Bytes of data in them.
    pub payload_bytes: u64,
    /// Bytes that take its place in the store.
    pub stored_bytes: u64,
}

impl Sample {
    /// Bytes of data for each one that is stored.
    pub fn ratio(&self) -> Option<f64> {
        (self.stored_bytes > 0).then(|| self.payload_bytes as f64 / self.stored_bytes as f64)
    }

    fn plus(self, other: Sample) -> Sample {
        Sample {
            chunks: self.chunks + other.chunks,
            payload_bytes: self.payload_bytes + other.payload_bytes,
            stored_bytes: self.stored_bytes + other.stored_bytes,
        }
    }
}

/// Looks at some chunks of a volume; those that cannot be read or went meanwhile tell nothing.
///
/// # Errors
/// Store.
pub async fn compression_sample(store: &dyn Store, id: VolumeId) -> Result<Sample> {
    let listed = store.list(&keys::log(id), None, LISTED).await?.objects;
    let slots: Vec<_> = listed.iter().filter_map(|o| keys::parse_slot(id, &o.key)).collect();
    let step = slots.len().div_ceil(CHUNKS).max(1);
    let looks = slots.into_iter().step_by(step).map(|(seq, epoch)| async move {
        match fetch_header(store, keys::ChunkId { volume: id, epoch, seq }).await {
            Ok(header) => {
                let frames = &header.frames;
                let count = frames.entries.len();
                let payload = (0..count).map(|n| frame_payload_len(frames.payload_sectors, n));
                Ok(Sample {
                    chunks: u64::from(count > 0),
                    payload_bytes: payload.map(|len| len as u64).sum(),
                    stored_bytes: frames.encoded_len(),
                })
            }
            Err(FetchError::Store(e)) => Err(e),
            // A fence, or something that `check` tells.
            Err(_) => Ok(Sample::default()),
        }
    });
    let found: Vec<Sample> = stream::iter(looks).buffer_unordered(PARALLEL).try_collect().await?;
    Ok(found.into_iter().fold(Sample::default(), Sample::plus))
}
