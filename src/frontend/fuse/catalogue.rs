//! What the frontend asks of those above it.

use super::image::Lease;
use crate::device::BlockDevice;
use crate::error::Result;
use std::fmt;
use std::future::Future;

/// A volume, or a snapshot of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageName {
    /// Name of the volume.
    pub volume: String,
    /// Name of its snapshot.
    pub snapshot: Option<String>,
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.snapshot {
            None => f.write_str(&self.volume),
            Some(snapshot) => write!(f, "{}@{snapshot}", self.volume),
        }
    }
}

/// What is known of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Names it for ever, whatever it is called.
    pub id: [u8; 16],
    /// Size in bytes.
    pub size: u64,
    /// Bytes that hold data.
    pub used: u64,
    /// It can only be read.
    pub read_only: bool,
    /// When it was last changed, as far as is known, in milliseconds since 1970.
    pub changed_at_ms: u64,
    /// Shown as extended attributes `user.objblk.NAME`.
    pub attributes: Vec<(&'static str, String)>,
}

/// Which images there are. May be asked from a tokio runtime only.
pub trait Catalogue: Send + Sync + 'static {
    /// What the images are kept on.
    type Device: BlockDevice;

    /// Names of the volumes. Errors: those of the store.
    fn volumes(&self) -> impl Future<Output = Result<Vec<String>>> + Send;

    /// Names of the snapshots of a volume. Errors: not found; those of the store.
    fn snapshots(&self, volume: &str) -> impl Future<Output = Result<Vec<String>>> + Send;

    /// The image `name`, if there is one. Errors: those of the store.
    fn find(&self, name: &ImageName) -> impl Future<Output = Result<Option<Facts>>> + Send;

    /// Opens an image, which stays open at least as long as the lease lives.
    /// Errors: not found; busy, where somebody else has it; those of the store.
    fn open(&self, name: &ImageName) -> impl Future<Output = Result<Lease<Self::Device>>> + Send;
}
