//! Verbs that make and change volumes.

use super::snapshot::serving;
use super::{Context, args, attach, duration, key, owner, retain, size, stores};
use crate::daemon::journals::refuse_journaled;
use crate::daemon::{FrontendKind, Request, RunDir, TargetSpec, environment};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::frame::Compression;
use crate::format::source::SourceObject;
use crate::format::volume::EpochObject;
use crate::host::Host;
use crate::image::{ImageUrl, Images, Outside};
use crate::pool::backend::Backend;
use crate::pool::{NewVolume, VolumeName, standing};
use crate::seal::{KeyGiven, Material};
use crate::settings::Location;
use crate::store::url::StoreUrl;
use crate::units::{BlockSize, SectorCount};
use crate::volume::{Mode, Volume, VolumeOptions, as_receiver, ownership};
use serde_json::json;
use std::sync::Arc;

pub(super) async fn create(context: &Context, create: args::Create) -> Result<()> {
    let name = match &create.name {
        Some(name) => name.parse()?,
        None => VolumeName::generate(),
    };
    let block_size = block_size(&create.block_size)?;
    let source = match &create.source {
        Some(text) => Some(source_at(&ImageUrl::typed(text)?).await?),
        None => None,
    };
    let new = NewVolume {
        size: size_of(&create, source.as_ref(), block_size)?,
        block_size,
        chunk_size: size::parse("--chunk-size", &create.chunk_size)?,
        compression: compression(&create.compress)?,
        mirrored: create.replicas == 2,
    };
    new.validate()?;
    source.iter().try_for_each(|source| new.can_begin_as(source))?;
    let retain = create.retain.as_deref();
    let retain = retain.map(|time| duration::parse_some("--retain", time)).transpose()?;
    let location = context.location()?;
    let lock = key::lock(context, create.encrypt, name.as_str()).await?;
    let backend = open_or_create(&location).await?;
    if new.mirrored {
        stores::refuse_alone(&backend)?;
    }
    let id = backend.pool.create_locked(&name, new, source, lock.as_ref()).await?;
    if retain.is_some() {
        let kept = retain::set(context, &backend, &name, retain).await;
        kept.map_err(|e| {
            let hint = format!("try again with `objblk retain {name}`");
            e.context(format!("made volume {name}, but its past is not kept")).hint(hint)
        })?;
    }
    if !create.attach {
        let document = json!({ "name": name, "id": id, "size": new.size });
        return context.show(&document, || name.to_string());
    }
    let key = match (context.global.key.key()?, lock) {
        (None, Some(Material::Passphrase(answer))) => Some(KeyGiven::answered(answer)),
        (given, _) => given,
    };
    let spec = TargetSpec { key, ..attach::plain(location, name.clone().into()) };
    let ready = attach::background(context, &spec);
    let ready = ready.map_err(|e| e.context(format!("made volume {name}, but")))?;
    let device = &ready.volumes[0].device;
    let document = json!({ "name": name, "id": id, "size": new.size, "device": device });
    context.show(&document, || format!("{name}\n{device}"))
}

pub(super) fn block_size(text: &str) -> Result<BlockSize> {
    let block_size = text.parse().ok().and_then(BlockSize::from_bytes);
    block_size.ok_or_else(|| {
        Error::usage(format!("--block-size {text:?} is no block size")).hint("use 512 or 4096")
    })
}

pub(super) fn compression(text: &str) -> Result<Compression> {
    text.parse().map_err(|e| {
        Error::usage(format!("--compress {text:?} is no compression: {e}"))
            .hint("use lz4, which costs least, zstd where space counts most, or none")
    })
}

/// The image at `url`, as it is now.
async fn source_at(url: &ImageUrl) -> Result<SourceObject> {
    let refused = |e| Error::failed(format!("{url} cannot be a source")).because(e);
    let image = Outside.open(&url.to_string()).await.map_err(refused)?;
    if image.size() == 0 {
        return Err(Error::usage(format!("{url} is empty, and no source")));
    }
    Ok(SourceObject::new(url.to_string(), image.size(), image.identity().to_owned()))
}

/// What was asked for, or the whole source.
fn size_of(create: &args::Create, source: Option<&SourceObject>, block: BlockSize) -> Result<u64> {
    match (&create.size, source) {
        (Some(text), _) => size::parse("--size", text),
        (None, Some(source)) => Ok(source.size.next_multiple_of(u64::from(block.bytes()))),
        (None, None) => Err(Error::usage("a volume needs a --size")),
    }
}

/// The pool, made on the way to its first volume, which is said.
pub(super) async fn open_or_create(location: &Location) -> Result<Backend> {
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
    let compression = volume.features.compression();
    let mirrored = volume.is_mirrored();
    NewVolume { size, block_size, chunk_size, compression, mirrored }.validate()?;
    let asked = owner::ask(context, &backend, (id, name), Request::Grow { volume: id, size }).await;
    let old = match asked.map_err(|e| e.context(format!("cannot resize {name}")))? {
        Some(reply) => {
            let old = reply.grown()?;
            let local = serving(&RunDir::open()?, id)?;
            if size > old && local.is_some_and(|t| t.state.frontend == FrontendKind::Nbd) {
                eprintln!("objblk: clients of {name} see its new size when they connect again");
            }
            old
        }
        None => {
            let held = RunDir::open()?.take(&[(id, name.clone().into())]).map_err(detach_first)?;
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
    own_with(backend, id, name, VolumeOptions::default()).await
}

/// Opens a volume that nobody has, with these options but for its mode.
pub(super) async fn own_with(
    backend: &Backend,
    id: VolumeId,
    name: &VolumeName,
    options: VolumeOptions,
) -> Result<Volume> {
    let host = Host::local()?;
    let ownership = ownership(&*backend.stores.setup, id).await?;
    let standing = standing(&ownership, &host);
    if standing.is_held() {
        return Err(standing.refusal(name, "take it over with `objblk attach --takeover`"));
    }
    refuse_journaled(&name.clone().into(), &ownership, &standing)?;
    open_as(backend, id, host.owner(), (!ownership.closed, options)).await
}

/// Opens a volume that nobody has, or with `takeover` whoever has it, to receive changes.
pub(super) async fn own_to_receive(
    backend: &Backend,
    id: VolumeId,
    name: &VolumeName,
    takeover: bool,
) -> Result<Volume> {
    let host = Host::local()?;
    let ownership = ownership(&*backend.stores.setup, id).await?;
    let standing = standing(&ownership, &host);
    if standing.is_held() && !takeover {
        return Err(standing.refusal(name, "add --takeover if it is gone for good"));
    }
    if !takeover {
        refuse_journaled(&name.clone().into(), &ownership, &standing)?;
    }
    let options = VolumeOptions::default();
    open_as(backend, id, as_receiver(host.owner()), (!ownership.closed, options)).await
}

async fn open_as(
    backend: &Backend,
    id: VolumeId,
    owner: EpochObject,
    (takeover, options): (bool, VolumeOptions),
) -> Result<Volume> {
    let images: Option<Arc<dyn Images>> = Some(Arc::new(Outside));
    let mode = Mode::ReadWrite { takeover };
    let options = VolumeOptions { mode, images, ..options };
    Volume::open(environment(), backend.stores.clone(), id, owner, options).await
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
