//! What an image is imported from, found by what the user called it.

use super::convert::verify_qcow2;
use super::image::{Format, HEAD, Qcow2, detect};
use super::progress::Progress;
use super::source::{LocalFile, Source};
use super::spool::Spool;
use super::web::{Download, Found, Remote, is_url, shown};
use crate::error::{Error, Result};
use std::fmt;
use std::fs::File;
use std::io::Cursor;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt};

/// An image that is ready to be read.
#[derive(Debug)]
pub struct Origin {
    /// What it is, for people.
    pub shown: String,
    /// Size of its disk in bytes, if that is known.
    pub size: Option<u64>,
    /// What tells it from other images, and from itself at another time; `None` where nothing does.
    pub fingerprint: Option<String>,
    /// Its contents.
    pub contents: Contents,
}

/// How an image can be read.
pub enum Contents {
    /// The bytes of the disk, anywhere.
    Raw(Arc<Source>),
    /// A file for `qemu-img`.
    Qcow2(ImageFile),
    /// The bytes of the disk, one after the other, and what brings them here.
    Stream(Stream, Option<Download>),
}

/// Bytes, one after the other.
pub type Stream = Box<dyn AsyncRead + Send + Unpin>;

/// A file that another program can open.
#[derive(Debug)]
pub enum ImageFile {
    /// One of the user's.
    Local(LocalFile),
    /// One of this process.
    Spooled(Spool),
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Contents::Raw(_) => "raw",
            Contents::Qcow2(_) => "qcow2",
            Contents::Stream(..) => "stream",
        })
    }
}

impl ImageFile {
    /// Where other processes of this user find it, as long as this one lives.
    pub fn path(&self) -> PathBuf {
        match self {
            ImageFile::Local(file) => file.path(),
            ImageFile::Spooled(spool) => spool.path(),
        }
    }

    /// Looks whether it is still what it was. Errors: failed, where it is not.
    pub fn verify_unchanged(&self) -> Result<()> {
        match self {
            ImageFile::Local(file) => file.verify_unchanged(),
            ImageFile::Spooled(_) => Ok(()),
        }
    }
}

impl Origin {
    /// Finds the image that the user calls `what`: `-`, a URL or a path. Its format is told by its first
    /// bytes, unless it is given. What `qemu-img` has to read and cannot is fetched first; `progress` shows that.
    ///
    /// Errors: not found; usage, for an image that cannot be imported; failed.
    pub async fn find(
        what: &str,
        format: Option<&str>,
        progress: impl Fn(Option<u64>) -> Progress,
    ) -> Result<Origin> {
        let given =
            format.map(|format| if format == "qcow2" { Format::Qcow2 } else { Format::Raw });
        if what == "-" {
            let stdin = std::io::stdin().as_fd().try_clone_to_owned();
            let stdin =
                stdin.map_err(|e| Error::failed("cannot read standard input").because(e))?;
            let stream = tokio::fs::File::from_std(File::from(stdin));
            return streamed("standard input", given, (Box::new(stream), None), None, progress)
                .await;
        }
        if is_url(what) {
            return from_web(what, given, progress).await;
        }
        match LocalFile::open(Path::new(what))? {
            Ok(file) => from_file(what, given, file).await,
            Err(pipe) => {
                let stream = Box::new(tokio::fs::File::from_std(pipe));
                streamed(what, given, (stream, None), None, progress).await
            }
        }
    }
}

async fn from_file(what: &str, given: Option<Format>, file: LocalFile) -> Result<Origin> {
    let head = file.head()?;
    let format = given.map_or_else(|| detect(what, &head), Ok)?;
    let fingerprint = file.fingerprint(format.name());
    let (size, contents) = match format {
        Format::Raw => (file.size(), Contents::Raw(Arc::new(Source::File(Arc::new(file))))),
        Format::Qcow2 => {
            let header = Qcow2::parse(what, &head)?;
            verify_qcow2(&file.path(), what, &header).await?;
            (header.size, Contents::Qcow2(ImageFile::Local(file)))
        }
    };
    Ok(Origin { shown: what.into(), size: Some(size), fingerprint, contents })
}

async fn from_web(
    url: &str,
    given: Option<Format>,
    progress: impl Fn(Option<u64>) -> Progress,
) -> Result<Origin> {
    let name = shown(url);
    let length = match Remote::look(url).await? {
        Found::Whole(length) => length,
        Found::Parts(remote, head) => {
            let format = given.map_or_else(|| detect(&name, &head), Ok)?;
            let fingerprint = remote.fingerprint(format.name());
            if format == Format::Raw {
                let (size, source) = (remote.size(), Source::Web(Arc::new(remote)));
                let contents = Contents::Raw(Arc::new(source));
                return Ok(Origin { shown: name, size: Some(size), fingerprint, contents });
            }
            Qcow2::parse(&name, &head)?;
            let (download, stream) = Download::begin(url)?;
            let from = (Box::new(stream) as Stream, Some(download));
            let origin = streamed(&name, Some(format), from, Some(remote.size()), progress).await?;
            return Ok(Origin { fingerprint, ..origin });
        }
    };
    let (download, stream) = Download::begin(url)?;
    streamed(&name, given, (Box::new(stream), Some(download)), length, progress).await
}

/// What comes as a stream, of `length` bytes if that is known.
async fn streamed(
    name: &str,
    given: Option<Format>,
    (mut stream, download): (Stream, Option<Download>),
    length: Option<u64>,
    progress: impl Fn(Option<u64>) -> Progress,
) -> Result<Origin> {
    let mut head = Vec::new();
    let read = (&mut stream).take(HEAD as u64).read_to_end(&mut head).await;
    read.map_err(|e| Error::failed(format!("cannot read {name}")).because(e))?;
    let format = given.map_or_else(|| detect(name, &head), Ok)?;
    let shown = name.to_owned();
    if format == Format::Raw {
        let stream: Stream = Box::new(Cursor::new(head).chain(stream));
        let contents = Contents::Stream(stream, download);
        return Ok(Origin { shown, size: length, fingerprint: None, contents });
    }
    let header = Qcow2::parse(name, &head)?;
    let spool = Spool::of(&mut Cursor::new(head).chain(stream), &progress(length)).await?;
    if let Some(download) = download {
        download.end().await?;
    }
    if length.is_some_and(|length| length != spool.size()) {
        return Err(Error::failed(format!("{name} ends too early")));
    }
    verify_qcow2(&spool.path(), name, &header).await?;
    let contents = Contents::Qcow2(ImageFile::Spooled(spool));
    Ok(Origin { shown, size: Some(header.size), fingerprint: None, contents })
}
