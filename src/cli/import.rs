//! Making a volume of an image.
//!
//! The volume is filled without a name, and gets it when everything is in the store. Until then an object of the
//! pool says what it is to be called and what it is made of, so that another `import --resume` goes on with it
//! and `delete` removes it.

use super::interrupt::Interrupt;
use super::{Context, args, key, size, volume};
use crate::daemon::journals::refuse_journaled;
use crate::daemon::{RunDir, environment};
use crate::device::{BlockDevice, Checked};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::pool::ImportObject;
use crate::host::Host;
use crate::pool::backend::Backend;
use crate::pool::{Executioner, NewVolume, VolumeName, standing};
use crate::seal::Material;
use crate::transfer::convert::{Meeting, fill_from_qcow2};
use crate::transfer::import::{FIRST_SIZE, fill, pour, resume_point};
use crate::transfer::origin::{Contents, Origin};
use crate::transfer::progress::Progress;
use crate::units::{SECTOR_SIZE, SectorCount};
use crate::volume::{Mode, Volume, VolumeOptions, ownership};
use serde_json::json;
use std::sync::Arc;

/// What an import came to.
struct Imported {
    /// Size of the image, in bytes.
    image: u64,
    /// Bytes that were written, where that is known.
    written: Option<u64>,
    /// Where it went on.
    from: u64,
}

/// A volume that is being filled.
struct Filling<'a> {
    backend: &'a Backend,
    name: &'a VolumeName,
    id: VolumeId,
    new: NewVolume,
    lock: Option<Material>,
    /// An earlier import began it.
    resumed: bool,
}

pub(super) async fn import(context: &Context, args: args::Import) -> Result<()> {
    let name: VolumeName = args.name.parse()?;
    let block_size = volume::block_size(&args.block_size)?;
    let chunk_size = size::parse("--chunk-size", &args.chunk_size)?;
    let compression = volume::compression(&args.compress)?;
    let wanted = args.size.as_deref().map(|text| size::parse("--size", text)).transpose()?;
    let location = context.location()?;
    // Before anything is fetched for nothing.
    match context.open().await {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        Ok(backend) => drop(backend.pool.import_to_resume(&name, args.resume).await?),
        Err(_) => {}
    }
    let show = |total| Progress::shown(total, format!("fetching {}", args.from), args.progress);
    let origin = Origin::find(&args.from, args.format.as_deref(), show).await;
    // Until here there is nothing to put in order.
    let mut interrupt = Interrupt::new()?;
    let origin = origin.map_err(|e| e.context(format!("cannot import {name}")))?;
    let size = volume_size(&origin, wanted, block_size.bytes().into())?;
    let new = NewVolume { size, block_size, chunk_size, compression, mirrored: false };
    new.validate()?;
    let lock = key::lock(context, args.encrypt, name.as_str()).await?;
    let backend = volume::open_or_create(&location).await?.with_key(context.given()?);
    let begun = backend.pool.import_to_resume(&name, args.resume).await?;
    let (import, resumed) = begin(&backend, &name, &origin, begun).await?;
    let id = import.volume;
    // All that was missing may have been its name.
    if backend.pool.lookup(&name).await.is_ok_and(|(named, _)| named == id) {
        backend.pool.finish_import(&name, id).await?;
        return context.show(&json!({ "name": name, "id": id, "size": size }), || name.to_string());
    }
    let filling = Filling { backend: &backend, name: &name, id, new, lock, resumed };
    let (imported, size) = filling.run(origin, wanted, &args, &mut interrupt).await?;
    let document = json!({
        "name": name, "id": id, "size": size, "image_size": imported.image,
        "written_bytes": imported.written, "resumed_from": resumed.then_some(imported.from),
    });
    context.show(&document, || name.to_string())
}

/// Begins the import, or goes on with what was `begun` before; the latter is told.
async fn begin(
    backend: &Backend,
    name: &VolumeName,
    origin: &Origin,
    begun: Option<ImportObject>,
) -> Result<(ImportObject, bool)> {
    let Some(import) = begun else {
        let (shown, fingerprint) = (origin.shown.clone(), origin.fingerprint.clone());
        return Ok((backend.pool.begin_import(name, shown, fingerprint).await?, false));
    };
    let remove = format!("remove what is left with `objblk delete {name}`");
    if import.fingerprint.is_none() {
        let e = format!("the import of {name} from {} cannot be resumed", import.source);
        return Err(Error::new(ErrorKind::Exists, e).hint(remove));
    }
    if import.fingerprint != origin.fingerprint {
        let e = format!("{} is not what the import of {name} was begun with", origin.shown);
        return Err(Error::usage(e)
            .because(format!("that was {}, as it was then", import.source))
            .hint(format!("resume it with that, or {remove}")));
    }
    Ok((import, true))
}

/// The size of the volume at first. Errors: usage, where less is wanted than the image has.
fn volume_size(origin: &Origin, wanted: Option<u64>, block: u64) -> Result<u64> {
    let round = |bytes: u64| {
        bytes.checked_next_multiple_of(block).ok_or_else(|| Error::usage("the image is too large"))
    };
    match (origin.size, wanted) {
        (Some(0), _) => Err(Error::usage(format!("{} is empty", origin.shown))),
        (Some(size), Some(wanted)) if wanted < size => {
            let text = format!("{} has {}, more than --size", origin.shown, size::show(size));
            Err(Error::usage(text).hint("give a larger --size, or none"))
        }
        (_, Some(wanted)) => Ok(wanted),
        (Some(size), None) => round(size),
        (None, None) => Ok(FIRST_SIZE),
    }
}

impl Filling<'_> {
    /// Fills the volume and gives it its name. Returns its size, too. What is left after an error is said in it.
    async fn run(
        &self,
        origin: Origin,
        wanted: Option<u64>,
        args: &args::Import,
        interrupt: &mut Interrupt,
    ) -> Result<(Imported, u64)> {
        let run_dir = RunDir::open()?;
        let held = run_dir.take(&[(self.id, self.name.clone().into())])?;
        let (shown, resumable) = (origin.shown.clone(), origin.fingerprint.is_some());
        let mut opened = false;
        let done = async {
            self.backend.pool.import_volume(self.id, self.new, self.lock.as_ref()).await?;
            let volume = self.own(args.takeover).await?;
            opened = true;
            let meeting = run_dir.meeting();
            let what = format!("importing {}", self.name);
            let progress = Arc::new(Progress::shown(origin.size, what, args.progress));
            let filled = self.fill(origin, wanted, &volume, (Meeting(&meeting), &progress));
            let filled = interrupt.or(filled).await;
            let size = volume.geometry().size.bytes();
            // Also after an error: what is there need not be copied again.
            let closed = interrupt.or(volume.inner().close()).await;
            if closed.is_err() {
                volume.inner().abandon();
            }
            let filled = match (filled, closed) {
                // Who lost the volume is told that, and not what failed because of it.
                (_, Err(e)) if e.kind() == ErrorKind::Fenced => return Err(e),
                (Err(e), _) | (_, Err(e)) => return Err(e),
                (Ok(filled), Ok(())) => filled,
            };
            self.backend.pool.finish_import(self.name, self.id).await?;
            progress.finish();
            Ok((filled, size))
        };
        let done = done.await;
        let done = match done {
            Err(e) => Err(self.left(e, (&shown, resumable, opened)).await),
            done => done,
        };
        held.release();
        done
    }

    /// Owns the volume.
    async fn own(&self, takeover: bool) -> Result<Arc<Checked<Volume>>> {
        let (host, spec) = (Host::local()?, self.name.clone().into());
        let ownership = ownership(&*self.backend.stores.setup, self.id).await?;
        let standing = standing(&ownership, &host);
        if standing.is_held() && !takeover {
            return Err(standing.refusal(self.name, "take it over with --resume --takeover"));
        }
        refuse_journaled(&spec, &ownership, &standing)?;
        let mode = Mode::ReadWrite { takeover: !ownership.closed };
        let options = VolumeOptions { mode, ..VolumeOptions::default() };
        let stores = self.backend.stores.clone();
        let opened = Volume::open(environment(), stores, self.id, host.owner(), options).await?;
        Ok(Arc::new(Checked::new(opened)))
    }

    /// Copies the image, or what is missing of it; it is durable on return.
    async fn fill(
        &self,
        origin: Origin,
        wanted: Option<u64>,
        volume: &Arc<Checked<Volume>>,
        (meeting, progress): (Meeting<'_>, &Arc<Progress>),
    ) -> Result<Imported> {
        let from = match (&origin.contents, self.resumed) {
            (Contents::Stream(..), _) | (_, false) => 0,
            _ => resume_point(volume).await?,
        };
        let image = origin.size.unwrap_or_default();
        let imported = match origin.contents {
            Contents::Raw(source) => {
                let written = fill(&source, volume, from, progress).await?;
                source.verify_unchanged()?;
                Imported { image, written: Some(written), from }
            }
            Contents::Qcow2(file) => {
                fill_from_qcow2(&file.path(), volume, from, (meeting, progress)).await?;
                file.verify_unchanged()?;
                Imported { image, written: None, from }
            }
            Contents::Stream(mut stream, download) => {
                let limit = origin.size.or(wanted);
                let (image, written) = pour(&mut *stream, volume, limit, progress).await?;
                drop(stream);
                if let Some(download) = download {
                    download.end().await?;
                }
                self.fit(volume.inner(), (image, origin.size), wanted).await?;
                Imported { image, written: Some(written), from }
            }
        };
        volume.flush().await.map_err(|e| Error::failed("the store lacks some of it").because(e))?;
        Ok(imported)
    }

    /// Has the volume be as large as what came through a stream, unless its size was known.
    async fn fit(
        &self,
        volume: &Volume,
        (image, said): (u64, Option<u64>),
        wanted: Option<u64>,
    ) -> Result<()> {
        if said.is_some_and(|said| said != image) {
            return Err(Error::failed(format!("the image ends after {image} bytes, too early")));
        }
        if image == 0 {
            return Err(Error::usage("the image is empty"));
        }
        if wanted.is_some() || said.is_some() {
            return Ok(());
        }
        let size = image.next_multiple_of(self.new.block_size.bytes().into());
        volume.resize(SectorCount(size / SECTOR_SIZE)).await
    }

    /// What to say of an import that failed with `e`. Removes what nobody can go on with.
    async fn left(&self, e: Error, (shown, resumable, opened): (&str, bool, bool)) -> Error {
        let (name, kind) = (self.name, e.kind());
        let error = Error::new(kind, format!("cannot import {name} from {shown}")).because(e);
        let elsewhere = matches!(kind, ErrorKind::Busy | ErrorKind::Fenced | ErrorKind::Exists);
        if self.resumed || elsewhere || (resumable && opened) {
            return error.hint(format!(
                "go on with it with --resume, or remove what is left with `objblk delete {name}`"
            ));
        }
        let by = Host::local().map(|host| Executioner {
            env: environment(),
            stores: self.backend.stores.clone(),
            host,
            force: false,
        });
        let removed = match by {
            Ok(by) => self.remove(&by).await,
            Err(e) => Err(e),
        };
        match removed {
            Ok(()) => error.hint("nothing of it is left"),
            Err(_) => error.hint(format!("remove what is left with `objblk delete {name}`")),
        }
    }

    async fn remove(&self, by: &Executioner) -> Result<()> {
        let pool = &self.backend.pool;
        match pool.import_to_delete(self.name).await? {
            Some(import) => pool.delete_import(self.name, &import, by).await.map(drop),
            None => Ok(()),
        }
    }
}
