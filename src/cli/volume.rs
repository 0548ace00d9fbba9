//! Verbs that make and change volumes.

use super::{Context, args, attach, size};
use crate::daemon::{KnownTarget, RunDir, client, environment};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::host::Host;
use crate::pool::backend::Backend;
use crate::pool::{NewVolume, VolumeName, standing};
use crate::settings::Location;
use crate::store::url::StoreUrl;
use crate::units::{BlockSize, SectorCount};
use crate::volume::{Mode, Volume, VolumeOptions, ownership};
use serde_json::json;

pub(super) async fn create(context: &Context, create: args::Create) -> Result<()> {
    let name = match &create.name {
        Some(name) => name.parse()?,
        None => VolumeName::generate(),
    };
    let block_size = create.block_size.parse().ok().and_then(BlockSize::from_bytes);
    let block_size = block_size.ok_or_else(|| {
        Error::usage(format!("--block-size {:?} is no block size", create.block_size))
            .hint("use 512 or 4096")
    })?;
    let new = NewVolume {
        size: size::parse("--size", &create.size)?,
        block_size,
        chunk_size: size::parse("--chunk-size", &create.chunk_size)?,
    };
    new.validate()?;
    let location = context.location()?;
    let backend = open_or_create(&location).await?;
    let id = backend.pool.create(&name, new).await?;
    if !create.attach {
        let document = json!({ "name": name, "id": id, "size": new.size });
        return context.show(&document, || name.to_string());
    }
    let ready = attach::background(context, &attach::plain(location, name.clone().into()));
    let ready = ready.map_err(|e| e.context(format!("made volume {name}, but")))?;
    let device = &ready.volumes[0].device;
    let document = json!({ "name": name, "id": id, "size": new.size, "device": device });
    context.show(&document, || format!("{name}\n{device}"))
}

/// The pool, made on the way to its first volume, which is said.
async fn open_or_create(location: &Location) -> Result<Backend> {
    let (url, s3) = location.parts()?;
    let (backend, made) = Backend::open_or_create(&url, &s3).await?;
    if made {
        let kind = if matches!(url, StoreUrl::S3(_)) { "bucket" } else { "directory" };
        eprintln!("objblk: made a new pool in the {kind} {url}");
    }
    Ok(backend)
}

pub(super) async fn rename(context: &Context, from: &str, to: &str) -> Result<()> {
    let (from, to) = (from.parse()?, to.parse()?);
    context.open().await?.pool.rename(&from, &to).await?;
    context.show(&json!({ "name": to, "renamed_from": from }), || to.to_string())
}

pub(super) async fn resize(
    context: &Context,
    name: &VolumeName,
    new: &str,
    shrink: bool,
) -> Result<()> {
    let size = size::parse("--size", new)?;
    let backend = context.open().await?;
    let (id, volume) = backend.pool.lookup(name).await?;
    let (block_size, chunk_size) = (volume.block(), volume.chunk_size);
    NewVolume { size, block_size, chunk_size }.validate()?;
    let run_dir = RunDir::open()?;
    let serves = |target: &KnownTarget| {
        target.alive && target.state.volumes.iter().any(|v| v.id == id && !v.read_only)
    };
    let old = match run_dir.targets()?.into_iter().find(serves) {
        Some(target) => {
            let old = client::grow(&target, id, size).await;
            let old = old.map_err(|e| e.context(format!("cannot resize {name}")))?;
            if size > old {
                eprintln!("objblk: clients of {name} see its new size when they connect again");
            }
            old
        }
        None => {
            let held = run_dir.take(&[(id, name.clone().into())]).map_err(detach_first)?;
            let resized = resize_held(&backend, id, name, size, shrink).await;
            held.release();
            resized?
        }
    };
    let document = json!({ "name": name, "size": size, "old_size": old });
    context.show(&document, || format!("{name}: {} -> {}", size::show(old), size::show(size)))
}

fn detach_first(e: Error) -> Error {
    match e.kind() {
        ErrorKind::Busy => e.context("a volume is resized by its owner"),
        _ => e,
    }
}

/// Opens a volume that nobody has.
pub(super) async fn own(backend: &Backend, id: VolumeId, name: &VolumeName) -> Result<Volume> {
    let host = Host::local()?;
    let ownership = ownership(&*backend.stores.setup, id).await?;
    let standing = standing(&ownership, &host);
    if standing.is_held() {
        return Err(standing.refusal(name, "take it over with `objblk attach --takeover`"));
    }
    let mode = Mode::ReadWrite { takeover: !ownership.closed };
    let options = VolumeOptions { mode, ..VolumeOptions::default() };
    let stores = backend.stores.clone();
    Volume::open(environment(), stores, id, host.owner(), options).await
}

/// Owns the volume for a moment. Returns its size before.
async fn resize_held(
    backend: &Backend,
    id: VolumeId,
    name: &VolumeName,
    size: u64,
    shrink: bool,
) -> Result<u64> {
    let volume = own(backend, id, name).await.map_err(detach_first)?;
    // Only the open volume knows its size: it may not have been closed.
    let old = volume.status().size;
    let resized = if size < old && !shrink {
        let message = format!("volume {name} has {}, more than that", size::show(old));
        Err(Error::usage(message).hint("add --shrink to lose what lies beyond the new size"))
    } else {
        volume.resize(SectorCount(size / crate::units::SECTOR_SIZE)).await
    };
    let closed = volume.close().await;
    resized.and(closed).map(|()| old)
}
