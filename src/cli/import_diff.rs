//! A stream of changes into a volume.

use super::{Context, args, export_diff, size, volume};
use crate::daemon::RunDir;
use crate::error::{Error, ErrorKind, Result};
use crate::format::stream::StreamHeader;
use crate::format::{SnapshotId, VolumeId};
use crate::pool::backend::Backend;
use crate::pool::{NewVolume, VolumeName};
use crate::transfer::progress::Progress;
use crate::transfer::stream::{Incoming, Received, receive};
use crate::volume::Volume;
use serde_json::json;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncSeekExt, BufReader};

/// Bytes that are read at once.
const BUFFER: usize = 1 << 20;

pub(super) async fn import_diff(context: &Context, import: args::ImportDiff) -> Result<()> {
    let name: VolumeName = import.name.parse()?;
    let progress = Progress::shown(None, format!("importing {name}"), import.progress);
    let received = if import.file == "-" {
        if std::io::stdin().is_terminal() {
            return Err(Error::usage("a stream does not come from a terminal")
                .hint("name a file, or pipe `objblk export-diff` into it"));
        }
        let input = export_diff::standard(std::io::stdin().as_fd())?;
        let input = BufReader::with_capacity(BUFFER, input);
        from(context, input, (&name, import.takeover), &progress).await
    } else {
        let input = file(&import.file).await?;
        from(context, input, (&name, import.takeover), &progress).await
    };
    let from_where = if import.file == "-" { "standard input" } else { &import.file };
    let (header, received) =
        received.map_err(|e| e.context(format!("cannot import {from_where} into {name}")))?;
    progress.finish();
    show(context, &name, &header, &received)
}

/// Tells what became of a stream.
pub(super) fn show(
    context: &Context,
    name: &VolumeName,
    header: &StreamHeader,
    received: &Received,
) -> Result<()> {
    let snapshot = format!("{name}@{}", received.snapshot.name);
    let document = json!({
        "name": snapshot,
        "volume": name,
        "snapshot": received.snapshot.name,
        "id": received.snapshot.id,
        "original_id": header.to.snapshot,
        "from": header.base.as_ref().map(|base| &base.name),
        "size": received.snapshot.size.bytes(),
        "data_bytes": received.data_bytes,
        "zero_bytes": received.zero_bytes,
        "was_there": received.was_there,
        "resumed": received.resumed,
    });
    context.show(&document, || {
        if received.was_there {
            return format!("{snapshot}: was there already");
        }
        let since = header.base.as_ref().map(|base| format!(" since {}", base.name));
        format!(
            "{snapshot}: {} written{}",
            size::show(received.data_bytes),
            since.unwrap_or_default()
        )
    })
}

/// Opens a file. A damaged one is noticed before anything is changed.
async fn file(path: &str) -> Result<BufReader<File>> {
    let failed = |e: std::io::Error| {
        let text = format!("cannot read {path}");
        match e.kind() {
            std::io::ErrorKind::NotFound => Error::not_found(text).because(e),
            _ => Error::failed(text).because(e),
        }
    };
    let file = File::open(path).await.map_err(failed)?;
    let is_file = file.metadata().await.map_err(failed)?.is_file();
    let mut input = BufReader::with_capacity(BUFFER, file);
    if is_file {
        let whole = async { Incoming::begin(&mut input).await?.verify().await };
        whole.await.map_err(|e| e.context(format!("cannot import {path}")))?;
        input.rewind().await.map_err(failed)?;
    }
    Ok(input)
}

async fn from(
    context: &Context,
    input: impl AsyncRead + Unpin,
    (name, takeover): (&VolumeName, bool),
    progress: &Progress,
) -> Result<(StreamHeader, Received)> {
    let incoming = Incoming::begin(input).await?;
    let header = incoming.header().clone();
    let backend = match header.base {
        Some(_) => context.open().await?,
        None => {
            let backend = volume::open_or_create(&context.location()?).await?;
            backend.with_key(context.given()?)
        }
    };
    let received = into(&backend, &header, (name, takeover), async |volume: &Volume| {
        receive(volume, incoming, new_id(), &|bytes| progress.add(bytes)).await
    });
    Ok((header.clone(), received.await?))
}

/// The id of a snapshot that is to be made.
pub(super) fn new_id() -> SnapshotId {
    SnapshotId::from_random(rand::random())
}

/// Owns the volume for as long as `work` changes it. It is made where the stream has no base.
pub(super) async fn into(
    backend: &Backend,
    header: &StreamHeader,
    (name, takeover): (&VolumeName, bool),
    work: impl AsyncFnOnce(&Volume) -> Result<Received>,
) -> Result<Received> {
    let id = target(backend, header, name).await?;
    let held = RunDir::open()?.take(&[(id, name.clone().into())]).map_err(detach_first)?;
    let done = async {
        let owned = volume::own_to_receive(backend, id, name, takeover).await;
        let volume = owned.map_err(detach_first)?;
        let done = work(&volume).await;
        let closed = volume.close().await;
        if closed.is_err() {
            volume.abandon();
        }
        let done = done?;
        closed.map(|()| done)
    };
    let done = done.await;
    held.release();
    done
}

async fn target(backend: &Backend, header: &StreamHeader, name: &VolumeName) -> Result<VolumeId> {
    match backend.pool.lookup(name).await {
        Err(e) if e.kind() == ErrorKind::NotFound => match &header.base {
            None => {
                let new = NewVolume {
                    block_size: header.block_size,
                    chunk_size: header.chunk_size,
                    ..NewVolume::of_size(header.to.size.bytes())
                };
                backend.pool.create(name, new).await
            }
            Some(base) => Err(e.hint(format!(
                "the stream holds what changed since {}: import one that holds all there was first",
                base.name
            ))),
        },
        found => found.map(|(id, _)| id),
    }
}

fn detach_first(e: Error) -> Error {
    match e.kind() {
        ErrorKind::Busy => e.context("changes are imported only into a volume that is detached"),
        _ => e,
    }
}
