//! Images outside the pool that a volume may begin as: files, HTTP servers, NBD exports. Only read.
//!
//! Contract: an image has one size and one identity for as long as it is what it was. Reads say so where
//! they can tell that it is not ([`ImageError::Changed`]); a file and an HTTP server with an `ETag` or
//! a `Last-Modified` date can, an NBD server is trusted. Nothing is retried here.

mod address;
mod file;
mod http;
mod nbd;

pub use address::ImageUrl;

use async_trait::async_trait;
use std::fmt;
use std::sync::Arc;

/// Why an image cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// There is none, or not for us: trying again is of no use.
    #[error("{0}")]
    Refused(String),
    /// It is another one than before.
    #[error("{0}")]
    Changed(String),
    /// It may be there again later.
    #[error("{0}")]
    Unreachable(String),
}

/// Result of what an image is asked for.
pub type ImageResult<T> = Result<T, ImageError>;

/// An open image.
#[async_trait]
pub trait Image: fmt::Debug + Send + Sync {
    /// Its size, in bytes.
    fn size(&self) -> u64;

    /// Tells it from another one.
    fn identity(&self) -> &str;

    /// `len` bytes at `offset`, all of them inside the image.
    async fn read(&self, offset: u64, len: usize) -> ImageResult<Vec<u8>>;
}

/// What opens images.
#[async_trait]
pub trait Images: fmt::Debug + Send + Sync {
    /// Opens the one at `url`.
    async fn open(&self, url: &str) -> ImageResult<Arc<dyn Image>>;
}

/// The images that this host can reach.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outside;

#[async_trait]
impl Images for Outside {
    async fn open(&self, url: &str) -> ImageResult<Arc<dyn Image>> {
        let parsed: Result<ImageUrl, _> = url.parse();
        match parsed.map_err(|e| ImageError::Refused(e.to_string()))? {
            ImageUrl::File(path) => Ok(Arc::new(file::FileImage::open(path).await?)),
            ImageUrl::Http(url) => Ok(Arc::new(http::HttpImage::open(url).await?)),
            ImageUrl::Nbd(at) => Ok(Arc::new(nbd::NbdImage::open(at).await?)),
        }
    }
}
