//! An image in a file or on a block device.

use super::{Image, ImageError, ImageResult};
use async_trait::async_trait;
use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct FileImage {
    file: Arc<File>,
    path: PathBuf,
    size: u64,
    identity: String,
}

impl FileImage {
    pub async fn open(path: PathBuf) -> ImageResult<FileImage> {
        let opening = tokio::task::spawn_blocking(move || open(path)).await;
        opening.unwrap_or_else(|e| Err(ImageError::Unreachable(e.to_string())))
    }
}

fn open(path: PathBuf) -> ImageResult<FileImage> {
    let why = |e: io::Error| refused(&path, &e);
    let mut file = File::open(&path).map_err(why)?;
    let metadata = file.metadata().map_err(why)?;
    let is_device = metadata.file_type().is_block_device();
    if !is_device && !metadata.is_file() {
        return Err(ImageError::Refused(format!("{} is no file", path.display())));
    }
    // A block device has no size of its own in its metadata.
    let size = file.seek(SeekFrom::End(0)).map_err(why)?;
    let identity = identity(&metadata, is_device, size);
    Ok(FileImage { file: Arc::new(file), path, size, identity })
}

fn refused(path: &Path, e: &io::Error) -> ImageError {
    let text = format!("cannot read {}: {e}", path.display());
    match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => ImageError::Refused(text),
        _ => ImageError::Unreachable(text),
    }
}

fn identity(metadata: &Metadata, is_device: bool, size: u64) -> String {
    match is_device {
        true => format!("device of {size} bytes"),
        false => format!("{size} bytes of {}.{:09}", metadata.mtime(), metadata.mtime_nsec()),
    }
}

#[async_trait]
impl Image for FileImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn identity(&self) -> &str {
        &self.identity
    }

    async fn read(&self, offset: u64, len: usize) -> ImageResult<Vec<u8>> {
        let (file, path) = (self.file.clone(), self.path.clone());
        let was = self.identity.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; len];
            let read = file.read_exact_at(&mut bytes, offset);
            // Afterwards: what was read is of the image as it was.
            let metadata = file.metadata().map_err(|e| refused(&path, &e))?;
            let is_device = metadata.file_type().is_block_device();
            if !is_device && identity(&metadata, false, metadata.len()) != was {
                let text = format!("{} was changed: it was {was}", path.display());
                return Err(ImageError::Changed(text));
            }
            read.map(|()| bytes).map_err(|e| refused(&path, &e))
        });
        reading.await.unwrap_or_else(|e| Err(ImageError::Unreachable(e.to_string())))
    }
}
