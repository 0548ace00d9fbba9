//! A stream that has to be read anywhere: put into a file that nobody else sees, and that goes with its
//! process, however that ends.

use super::progress::Progress;
use super::zeros::is_zero;
use crate::error::{Error, Result};
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes that are read at once.
const PART: usize = 1 << 20;

/// A file without a name.
#[derive(Debug)]
pub struct Spool {
    file: File,
    size: u64,
}

impl Spool {
    /// Makes one in the directory for temporary files (`$TMPDIR`) of all that is left in `stream`. Errors: failed.
    pub async fn of(
        stream: &mut (dyn AsyncRead + Send + Unpin),
        progress: &Progress,
    ) -> Result<Spool> {
        let file = nameless()?;
        let (mut buf, mut size) = (vec![0; PART], 0);
        loop {
            let read = stream.read(&mut buf).await;
            let read = read.map_err(|e| Error::failed("cannot read the image").because(e))?;
            if read == 0 {
                break;
            }
            if !is_zero(&buf[..read]) {
                file.write_all_at(&buf[..read], size).map_err(cannot_keep)?;
            }
            size += read as u64;
            progress.add(read as u64);
        }
        file.set_len(size).map_err(cannot_keep)?;
        Ok(Spool { file, size })
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where other processes of this user find it, as long as this one lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }
}

fn nameless() -> Result<File> {
    let path = std::env::temp_dir().join(format!(".objblk-{:016x}", rand::random::<u64>()));
    let mut options = OpenOptions::new();
    let made = options.read(true).write(true).create_new(true).mode(0o600).open(&path);
    let file = made.map_err(cannot_keep)?;
    std::fs::remove_file(&path).map_err(cannot_keep)?;
    Ok(file)
}

fn cannot_keep(e: std::io::Error) -> Error {
    let folder = std::env::temp_dir();
    Error::failed(format!("cannot keep the image in {}", folder.display()))
        .because(e)
        .hint("name a directory with more room by TMPDIR, or save the image to a file first")
}
