//! Where an image is exported to, found by what the user called it.

use super::image::Format;
use super::partial::Partial;
use crate::error::{Error, ErrorKind, Result};
use crate::size;
use nix::fcntl::OFlag;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use tokio::io::AsyncWrite;
use tokio::task::spawn_blocking;

/// A place for an image.
pub enum Place {
    /// A file that is not there yet, or is to be replaced.
    File(Partial),
    /// A block device.
    Disk(Disk),
    /// A pipe.
    Stream(Box<dyn AsyncWrite + Send + Unpin>),
}

/// A block device that nobody else uses.
#[derive(Debug)]
pub struct Disk {
    file: Arc<File>,
    name: String,
    size: u64,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File(partial) => partial.fmt(f),
            Place::Disk(disk) => disk.fmt(f),
            Place::Stream(_) => f.write_str("stream"),
        }
    }
}

impl Place {
    /// Finds the place for an image of that format: `-` or a path. With `force`, what is there is replaced; with
    /// `resume`, a file that is unfinished is gone on with, and stays unfinished where this is cut off.
    ///
    /// Errors: exists, where something is there; usage, where such an image cannot be put there; busy; failed.
    pub fn open(what: &str, format: Format, (force, resume): (bool, bool)) -> Result<Place> {
        let place = Place::find(what, format, (force, resume))?;
        match (&place, format) {
            (Place::File(_), Format::Raw) => Ok(place),
            _ if resume => Err(Error::usage(format!("an export to {what} cannot be resumed"))
                .hint("only one of a raw image to a file can; begin anew without --resume")),
            _ => Ok(place),
        }
    }

    fn find(what: &str, format: Format, (force, resume): (bool, bool)) -> Result<Place> {
        let file = |path: &Path| match resume && format == Format::Raw {
            true => Partial::go_on(path, force).map(Place::File),
            false => Partial::begin(path, force).map(Place::File),
        };
        let failed = |e| Error::failed(format!("cannot write {what}")).because(e);
        let in_order = |place: &str| match format {
            Format::Raw => Ok(()),
            Format::Qcow2 => {
                let text = format!("a qcow2 image cannot be written to {place}");
                Err(Error::usage(text).hint("name a file, or add --format raw"))
            }
        };
        if what == "-" {
            in_order("standard output")?;
            let stdout = std::io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
            return Ok(Place::Stream(Box::new(tokio::fs::File::from_std(File::from(stdout)))));
        }
        let path = Path::new(what);
        let Ok(metadata) = fs::metadata(path) else {
            return file(path);
        };
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Err(Error::usage(format!("{what} is a directory")).hint("name a file in it"));
        }
        if kind.is_block_device() {
            in_order("a block device")?;
            if !force {
                return Err(Error::new(ErrorKind::Exists, format!("{what} is a block device"))
                    .hint("overwrite it with --force"));
            }
            return Disk::open(what).map(Place::Disk);
        }
        if kind.is_file() {
            return file(path);
        }
        in_order("a pipe")?;
        let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
        Ok(Place::Stream(Box::new(tokio::fs::File::from_std(file))))
    }

    /// Makes durable what was written, and gives a file its name. Errors: exists; failed.
    pub async fn finish(self) -> Result<()> {
        let finish = move || match self {
            Place::File(partial) => partial.finish(),
            Place::Disk(Disk { file, name, .. }) => {
                let failed = |e| Error::failed(format!("cannot finish {name}")).because(e);
                file.sync_all().map_err(failed)
            }
            Place::Stream(_) => Ok(()),
        };
        spawn_blocking(finish).await.map_err(|e| Error::failed("a write ended").because(e))?
    }
}

impl Disk {
    fn open(name: &str) -> Result<Disk> {
        let mut options = OpenOptions::new();
        // Exclusive: of a block device, that it is not mounted or otherwise in use.
        let exclusive = OFlag::O_EXCL.bits();
        let file =
            options.write(true).custom_flags(exclusive).open(name).map_err(|e| match e.kind() {
                std::io::ErrorKind::ResourceBusy => {
                    Error::new(ErrorKind::Busy, format!("{name} is in use"))
                        .hint("unmount it first")
                }
                _ => Error::failed(format!("cannot write {name}")).because(e),
            })?;
        let size = (&file).seek(SeekFrom::End(0));
        let size = size.map_err(|e| Error::failed(format!("cannot write {name}")).because(e))?;
        Ok(Disk { file: Arc::new(file), name: name.into(), size })
    }

    /// The device.
    pub fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Errors: usage, where an image of `length` bytes does not fit.
    pub fn verify_room(&self, length: u64) -> Result<()> {
        match length <= self.size {
            true => Ok(()),
            false => Err(Error::usage(format!(
                "{} has {}, too little for {}",
                self.name,
                size::show(self.size),
                size::show(length)
            ))
            .hint("use a larger one")),
        }
    }
}
