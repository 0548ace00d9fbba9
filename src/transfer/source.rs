//! Images that can be read anywhere: files and what a web server has.

use super::image::HEAD;
use super::web::Remote;
use super::window::{PIECE, Piece};
use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::fs::{File, Metadata};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::task::spawn_blocking;

/// An image that can be read anywhere.
#[derive(Debug)]
pub enum Source {
    /// A file or a block device.
    File(Arc<LocalFile>),
    /// Something on a web server that serves parts.
    Web(Arc<Remote>),
}

impl Source {
    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Source::File(file) => file.size,
            Source::Web(remote) => remote.size(),
        }
    }

    /// The next piece from `from` on (a multiple of [`PIECE`]) that may hold data; what is passed over reads
    /// as zeros. Errors: failed.
    pub(super) fn next_piece(&self, from: u64) -> Result<Option<Piece>> {
        let (size, start, len) = match self {
            Source::File(file) => match file.next_data(from)? {
                Some(data) => (file.size, data - data % PIECE, PIECE),
                None => return Ok(None),
            },
            Source::Web(remote) => (remote.size(), from, Remote::PIECE),
        };
        let len = size.saturating_sub(start).min(len) as usize;
        Ok((len > 0).then_some(Piece { start, len }))
    }

    /// The bytes of a piece. Errors: failed, where they cannot be read.
    pub(super) async fn read(&self, piece: Piece) -> Result<Vec<u8>> {
        match self {
            Source::File(file) => {
                let file = Arc::clone(file);
                let read = spawn_blocking(move || file.read(piece)).await;
                read.map_err(|e| Error::failed("a read ended").because(e))?
            }
            Source::Web(remote) => remote.read(piece).await,
        }
    }

    /// Looks whether it is still what it was. Errors: failed, where it is not.
    pub fn verify_unchanged(&self) -> Result<()> {
        match self {
            Source::File(file) => file.verify_unchanged(),
            // Each of its answers was compared.
            Source::Web(_) => Ok(()),
        }
    }
}

/// A regular file or a block device.
#[derive(Debug)]
pub struct LocalFile {
    file: File,
    name: String,
    size: u64,
    /// Of a regular file: when it was changed last, in nanoseconds since 1970.
    changed: Option<i128>,
}

impl LocalFile {
    /// Takes `file`, which goes by `name`; `None` where it has no beginning and end (a pipe, a terminal).
    /// Errors: usage, for a directory; failed.
    pub fn new(file: File, name: impl Into<String>) -> Result<Option<LocalFile>> {
        let name = name.into();
        let failed = |e| Error::failed(format!("cannot read {name}")).because(e);
        let metadata = file.metadata().map_err(failed)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Err(Error::usage(format!("{name} is a directory")).hint("name an image"));
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Ok(None);
        }
        let size = (&file).seek(SeekFrom::End(0)).map_err(failed)?;
        (&file).seek(SeekFrom::Start(0)).map_err(failed)?;
        let changed = kind.is_file().then(|| changed(&metadata));
        Ok(Some(LocalFile { file, name, size, changed }))
    }

    /// Opens the file at `path`, as [`LocalFile::new`] takes it; or the open file, where it is none.
    /// Errors: not found; usage; failed.
    pub fn open(path: &Path) -> Result<std::result::Result<LocalFile, File>> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::not_found(format!("there is no file {name}")),
            _ => Error::failed(format!("cannot open {name}")).because(e),
        })?;
        let again = file.try_clone().map_err(|e| Error::failed("cannot open").because(e))?;
        Ok(LocalFile::new(file, name)?.ok_or(again))
    }

    /// Its first bytes, at most [`HEAD`]. Errors: failed.
    pub fn head(&self) -> Result<Vec<u8>> {
        let mut head = Vec::new();
        let read = (&self.file).take(HEAD as u64).read_to_end(&mut head);
        read.map_err(|e| Error::failed(format!("cannot read {}", self.name)).because(e))?;
        Ok(head)
    }

    /// What tells it from other files and from itself at another time; `None` for a block device, of which
    /// nothing can be told. To be resumed with, after `format`.
    pub fn fingerprint(&self, format: &str) -> Option<String> {
        self.changed.map(|changed| format!("{format} {} {changed}", self.size))
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where other processes of this user find it, as long as this one lives: this file, whatever has its
    /// name by then.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Looks whether it is as it was. Errors: failed, where it was written meanwhile.
    pub fn verify_unchanged(&self) -> Result<()> {
        let Some(before) = self.changed else { return Ok(()) };
        let failed = || Error::failed(format!("{} was changed while it was read", self.name));
        let metadata = self.file.metadata().map_err(|e| failed().because(e))?;
        match (metadata.len(), changed(&metadata)) == (self.size, before) {
            true => Ok(()),
            false => Err(failed().hint("import a copy, or a snapshot, of it")),
        }
    }

    /// The first byte from `from` on that may hold data. Errors: failed.
    fn next_data(&self, from: u64) -> Result<Option<u64>> {
        if from >= self.size {
            return Ok(None);
        }
        match lseek(&self.file, from as i64, Whence::SeekData) {
            Ok(at) => Ok(Some(at as u64).filter(|at| *at < self.size)),
            Err(Errno::ENXIO) => Ok(None),
            // Block devices, and file systems that cannot tell.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(Some(from)),
            Err(e) => Err(Error::failed(format!("cannot read {}", self.name)).because(e)),
        }
    }

    fn read(&self, piece: Piece) -> Result<Vec<u8>> {
        let mut buf = vec![0; piece.len];
        let read = self.file.read_exact_at(&mut buf, piece.start);
        read.map(|()| buf).map_err(|e| {
            Error::failed(format!("cannot read {} from byte {} on", self.name, piece.start))
                .because(e)
        })
    }
}

fn changed(metadata: &Metadata) -> i128 {
    i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn holes_are_passed_over() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(10 * PIECE + 100).unwrap();
        file.seek(SeekFrom::Start(3 * PIECE + 5000)).unwrap();
        file.write_all(&[1; 10_000]).unwrap();
        file.write_all_at(&[1], 10 * PIECE + 99).unwrap();
        let local = LocalFile::new(file, "x").unwrap().unwrap();
        let source = Source::File(Arc::new(local));
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(piece) = source.next_piece(at).unwrap() {
            found.push((piece.start, piece.len));
            at = piece.start + PIECE;
        }
        assert_eq!(found, [(3 * PIECE, PIECE as usize), (10 * PIECE, 100)]);
    }

    #[test]
    fn a_change_is_noticed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1000).unwrap();
        let local = LocalFile::open(file.path()).unwrap().unwrap();
        local.verify_unchanged().unwrap();
        assert!(local.fingerprint("raw").unwrap().starts_with("raw 1000 "));
        file.as_file().set_len(1001).unwrap();
        let e = local.verify_unchanged().unwrap_err().to_string();
        assert!(e.contains("was changed while it was read"), "{e}");
    }
}
