//! A snapshot, or what changed since another one, as a stream.

use super::view::View;
use super::{Context, args, size};
use crate::error::{Error, Result};
use crate::pool::VolumeSpec;
use crate::pool::backend::Backend;
use crate::transfer::partial::Partial;
use crate::transfer::progress::Progress;
use crate::transfer::stream::{Sent, send};
use serde_json::json;
use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use tokio::fs::{self, File, OpenOptions};
use tokio::io::{AsyncWrite, AsyncWriteExt, BufWriter};

/// Bytes that are written at once.
const BUFFER: usize = 1 << 20;

pub(super) async fn export_diff(context: &Context, export: args::ExportDiff) -> Result<()> {
    let name: VolumeSpec = export.name.parse()?;
    let to_stdout = export.file == "-";
    if to_stdout && context.global.json {
        return Err(Error::usage("--json has no place beside a stream on standard output")
            .hint("write the stream to a file"));
    }
    if to_stdout && std::io::stdout().is_terminal() {
        return Err(Error::usage("a stream is not for a terminal")
            .hint("name a file, or pipe it into `objblk import-diff`"));
    }
    let backend = context.open().await?;
    let view = View::open(&backend, &name).await?;
    let base = match &export.from {
        Some(from) => Some(View::open(&backend, &older(&name, from)?).await?),
        None => None,
    };
    let views = (&view, base.as_ref());
    let progress = Progress::shown(None, format!("exporting {name}"), export.progress);
    if to_stdout {
        let out = standard(std::io::stdout().as_fd())?;
        let mut out = BufWriter::with_capacity(BUFFER, out);
        write(&backend, views, &mut out, &progress).await?;
        progress.finish();
        return Ok(());
    }
    let path = Path::new(&export.file);
    let sent = to_file(&backend, views, (path, export.force), &progress).await;
    let sent =
        sent.map_err(|e| e.context(format!("cannot export {name} to {}", path.display())))?;
    progress.finish();
    let document = json!({
        "name": name,
        "from": base.as_ref().map(|base| &base.name),
        "file": export.file,
        "data_bytes": sent.data_bytes,
        "zero_bytes": sent.zero_bytes,
        "stream_bytes": sent.stream_bytes,
    });
    context.show(&document, || {
        let since = base.as_ref().map(|base| format!(" since {}", base.entry.name));
        let (data, all) = (size::show(sent.data_bytes), size::show(sent.stream_bytes));
        format!("{name}: {data} of data{}, {all} in {}", since.unwrap_or_default(), export.file)
    })
}

/// A standard stream as a file, read or written as any other.
pub(super) fn standard(stream: BorrowedFd<'_>) -> Result<File> {
    let owned = stream.try_clone_to_owned();
    let owned = owned.map_err(|e| Error::failed("cannot use a standard stream").because(e))?;
    Ok(File::from_std(std::fs::File::from(owned)))
}

/// The snapshot `from` of the same volume; written with or without the volume's name.
pub(super) fn older(name: &VolumeSpec, from: &str) -> Result<VolumeSpec> {
    match from.parse::<VolumeSpec>()? {
        spec if spec.snapshot().is_none() => format!("{}@{from}", name.volume()).parse(),
        spec if spec.volume() == name.volume() => Ok(spec),
        spec => Err(Error::usage(format!("{spec} is a snapshot of another volume"))
            .hint(format!("name one of {}", name.volume()))),
    }
}

async fn write(
    backend: &Backend,
    (view, base): (&View, Option<&View>),
    out: &mut (impl AsyncWrite + Unpin),
    progress: &Progress,
) -> Result<Sent> {
    let header = view.header(backend, base).await?;
    let states = (&view.volume, base.map(|base| &base.volume));
    match send(&header, states, out, &|bytes| progress.add(bytes)).await {
        Ok(sent) => Ok(sent),
        Err(e) => {
            let e = view.explain(backend, e).await;
            Err(match base {
                Some(base) => base.explain(backend, e).await,
                None => e,
            })
        }
    }
}

/// Writes beside the file, under a name that shows it is not complete; then that becomes the file.
async fn to_file(
    backend: &Backend,
    views: (&View, Option<&View>),
    (path, force): (&Path, bool),
    progress: &Progress,
) -> Result<Sent> {
    let failed = |what: &str, e| Error::failed(format!("cannot {what}")).because(e);
    let there = fs::symlink_metadata(path).await.ok();
    if there.as_ref().is_some_and(|there| !there.is_file()) {
        // A pipe, a device, a symbolic link: written as it is.
        let file = OpenOptions::new().write(true).open(path).await;
        let mut out = BufWriter::with_capacity(BUFFER, file.map_err(|e| failed("open it", e))?);
        return write(backend, views, &mut out, progress).await;
    }
    let partial = Partial::begin(path, force)?;
    let mut out = BufWriter::with_capacity(BUFFER, File::from_std(partial.sized(0)?));
    let sent = write(backend, views, &mut out, progress).await?;
    out.flush().await.map_err(|e| failed("write it", e))?;
    partial.finish()?;
    Ok(sent)
}
