//! Writing a volume or a snapshot out as an image.
//!
//! What is exported stands still: a snapshot, or a volume that nobody has, or, of a volume that is attached, on
//! whatever host, a snapshot for that time, which its owner makes and deletes again.

use super::interrupt::Interrupt;
use super::{Context, args, moment, snapshot, view, volume};
use crate::clock::SystemClock;
use crate::daemon::{Held, KnownTarget, RunDir, SnapshotAction, environment};
use crate::device::{BlockDevice, Checked};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::host::{Host, is_running, process_start};
use crate::image::{Images, Outside};
use crate::pool::backend::Backend;
use crate::pool::{Standing, VolumeName, VolumeSpec, standing};
use crate::transfer::convert::{Meeting, save_as_qcow2};
use crate::transfer::export::{Sink, save};
use crate::transfer::image::Format;
use crate::transfer::partial::Partial;
use crate::transfer::place::Place;
use crate::transfer::progress::Progress;
use crate::transfer::resume::{Exported, Notes};
use crate::units::{Epoch, Seq};
use crate::volume::{Mode, Moment, Volume, VolumeOptions, list_snapshots, ownership};
use serde_json::json;
use std::fs::File;
use std::sync::Arc;

pub(super) async fn export(context: &Context, args: args::Export) -> Result<()> {
    let mut name: VolumeSpec = args.name.parse()?;
    let at = args.at.as_deref().map(|at| moment::parse(at, &SystemClock)).transpose()?;
    if let Some(at) = at {
        name = moment::view(&name, at)?;
    }
    let format = match args.format.as_deref() {
        Some("qcow2") => Format::Qcow2,
        None if args.to.ends_with(".qcow2") => Format::Qcow2,
        _ => Format::Raw,
    };
    if args.compress && format == Format::Raw {
        let e = Error::usage("a raw image cannot be compressed");
        return Err(e.hint("add --format qcow2, or pipe it: `objblk export NAME - | zstd >FILE`"));
    }
    let (backend, run_dir) = (context.open().await?, RunDir::open()?);
    let place = Place::open(&args.to, format, (args.force, args.resume))?;
    if matches!(place, Place::Stream(_)) && context.global.json {
        let e = Error::usage("--json would be printed into the image");
        return Err(e.hint("export to a file, or without --json"));
    }
    let mut interrupt = Interrupt::new()?;
    let source = match at {
        Some(at) => Source::at(&backend, &name, at).await?,
        None => Source::open(context, &backend, &run_dir, &name).await?,
    };
    let (device, meeting) = (&source.device, run_dir.meeting());
    let length = device.geometry().size.bytes();
    let what = format!("exporting {name}");
    let progress = Arc::new(Progress::shown(Some(length), what, args.progress));
    let work = async {
        let how = (format, args.compress);
        let (place, data) = write(&source, place, how, (Meeting(&meeting), &progress)).await?;
        place.finish().await?;
        Ok(data)
    };
    let done = interrupt.or(work).await;
    let done = match done {
        Err(e) => Err(source.explain(&backend, e).await),
        done => done,
    };
    let closed = source.close(context, &name.volume()).await;
    let data = done.map_err(|e| {
        let text = format!("cannot export {name} to {}", args.to);
        let e = Error::new(e.kind(), text).because(e);
        match args.resume && e.kind() != ErrorKind::Usage {
            true => e.hint("go on with it by the same command"),
            false => e,
        }
    })?;
    closed?;
    progress.finish();
    if args.to == "-" {
        return Ok(());
    }
    let document = json!({
        "name": name, "file": args.to, "format": format.name(), "size": length, "data_bytes": data,
    });
    context.show(&document, || args.to.clone())
}

/// Writes the image. Returns the bytes of it that are not zero, where that is known.
async fn write(
    source: &Source,
    mut place: Place,
    (format, compress): (Format, bool),
    (meeting, progress): (Meeting<'_>, &Arc<Progress>),
) -> Result<(Place, Option<u64>)> {
    let device = &source.device;
    let length = device.geometry().size.bytes();
    let data = match (&mut place, format) {
        (Place::File(partial), Format::Qcow2) => {
            save_as_qcow2(device, (partial.unfinished(), compress), (meeting, progress)).await?;
            None
        }
        (Place::File(partial), _) => {
            let (file, notes) = begin(partial, source.exported())?;
            Some(save(device, Sink::File(file, notes), progress).await?)
        }
        (Place::Disk(disk), _) => {
            disk.verify_room(length)?;
            Some(save(device, Sink::Disk(disk.file()), progress).await?)
        }
        (Place::Stream(stream), _) => {
            Some(save(device, Sink::Stream(&mut **stream), progress).await?)
        }
    };
    Ok((place, data))
}

/// The file of an export, and how far it is.
fn begin(partial: &Partial, of: Exported) -> Result<(Arc<File>, Notes)> {
    let size = of.size;
    let notes = Notes::begin(partial, of)?;
    let file = Arc::new(partial.sized(size)?);
    Ok((file, notes))
}

/// What is exported.
struct Source {
    device: Arc<Checked<Volume>>,
    id: VolumeId,
    /// The epoch of a volume that is read without being owned.
    read_in: Option<Epoch>,
    /// A snapshot that was made for it.
    made: Option<String>,
    held: Option<Held>,
}

impl Source {
    async fn open(
        context: &Context,
        backend: &Backend,
        run_dir: &RunDir,
        spec: &VolumeSpec,
    ) -> Result<Source> {
        let name = spec.volume();
        let (id, _) = backend.pool.lookup(&name).await?;
        let source = |device, read_in, made, held| {
            let device = Arc::new(Checked::new(device));
            Source { device, id, read_in, made, held }
        };
        if let Some(snapshot) = spec.snapshot() {
            let device = open(backend, id, Mode::ReadOnly, Some(snapshot)).await?;
            return Ok(source(device, None, None, None));
        }
        let owned = ownership(&*backend.stores.setup, id).await?;
        let is_held = standing(&owned, &Host::local()?).is_held();
        if is_held || snapshot::serving(run_dir, id)?.is_some() {
            let made = Source::in_use(context, backend, (id, &name)).await?;
            return match open(backend, id, Mode::ReadOnly, Some(&made)).await {
                Ok(device) => Ok(source(device, None, Some(made), None)),
                Err(e) => {
                    delete(context, &name, made).await;
                    Err(e)
                }
            };
        }
        let reads = |target: &KnownTarget| {
            target.alive && target.state.volumes.iter().any(|v| v.id == id && v.read_only)
        };
        // Who reads it here is in nobody's way.
        let held = match run_dir.targets()?.iter().any(reads) {
            true => None,
            false => Some(run_dir.take(&[(id, name.clone().into())])?),
        };
        let opened = async {
            let ownership = ownership(&*backend.stores.setup, id).await?;
            match standing(&ownership, &Host::local()?) {
                Standing::Free => {
                    let device = open(backend, id, Mode::ReadOnly, None).await?;
                    Ok((device, Some(ownership.epoch)))
                }
                // What its owner left has to be put in order first.
                Standing::Orphaned(_) => Ok((volume::own(backend, id, &name).await?, None)),
                held => Err(held.refusal(&name, "export a snapshot of it")),
            }
        };
        match opened.await {
            Ok((device, read_in)) => Ok(source(device, read_in, None, held)),
            Err(e) => {
                if let Some(held) = held {
                    held.release();
                }
                Err(e)
            }
        }
    }

    /// Has the owner make a snapshot, after those that are left of exports before were deleted.
    async fn in_use(
        context: &Context,
        backend: &Backend,
        (id, name): (VolumeId, &VolumeName),
    ) -> Result<String> {
        let host = Host::local()?;
        for stale in list_snapshots(&*backend.stores.setup, id).await? {
            if is_left_over(&host, &stale.name) {
                snapshot::run(context, name, SnapshotAction::Delete(stale.name)).await?;
            }
        }
        let made = temporary_name(&host);
        snapshot::run(context, name, SnapshotAction::Make(made.clone())).await?;
        Ok(made)
    }

    /// The volume as it was at a moment.
    async fn at(backend: &Backend, spec: &VolumeSpec, moment: Moment) -> Result<Source> {
        let (id, _) = backend.pool.lookup(&spec.volume()).await?;
        let device = Arc::new(Checked::new(view::at_moment(backend, id, moment).await?));
        Ok(Source { device, id, read_in: None, made: None, held: None })
    }

    /// Which state it is. That of a volume which was put in order first is no other's.
    fn exported(&self) -> Exported {
        let status = self.device.inner().status();
        Exported { volume: self.id, slot: Seq(status.next_seq), size: status.size }
    }

    /// Says more of an error where somebody else is the cause of it.
    async fn explain(&self, backend: &Backend, e: Error) -> Error {
        let Some(epoch) = self.read_in.filter(|_| e.kind() == ErrorKind::Corrupt) else { return e };
        match ownership(&*backend.stores.setup, self.id).await {
            Ok(now) if now.epoch != epoch => {
                let text = "the volume was attached elsewhere while it was read";
                Error::new(ErrorKind::Busy, text).because(e).hint("export a snapshot of it")
            }
            _ => e,
        }
    }

    /// Lets go of it.
    async fn close(self, context: &Context, name: &VolumeName) -> Result<()> {
        let closed = self.device.inner().close().await;
        if let Some(made) = self.made {
            delete(context, name, made).await;
        }
        if let Some(held) = self.held {
            held.release();
        }
        closed
    }
}

async fn open(
    backend: &Backend,
    id: VolumeId,
    mode: Mode,
    snapshot: Option<&str>,
) -> Result<Volume> {
    let snapshot = snapshot.map(str::to_owned);
    let images: Option<Arc<dyn Images>> = Some(Arc::new(Outside));
    let options = VolumeOptions { mode, snapshot, images, ..VolumeOptions::default() };
    let (owner, stores) = (Host::local()?.owner(), backend.stores.clone());
    Volume::open(environment(), stores, id, owner, options).await
}

/// Deletes a snapshot that was made for an export; where that fails it is said, and no error.
async fn delete(context: &Context, name: &VolumeName, made: String) {
    let action = SnapshotAction::Delete(made.clone());
    if let Err(e) = snapshot::run(context, name, action).await {
        eprintln!(
            "objblk: the snapshot {name}@{made} is left ({e}): \
             delete it with `objblk snapshot delete {name}@{made}`"
        );
    }
}

/// What the name of a snapshot begins with that this boot of this host makes for exports.
fn prefix(host: &Host) -> String {
    let boot: String = host.boot().chars().filter(char::is_ascii_alphanumeric).take(8).collect();
    format!("export-{boot}-")
}

/// A name for a snapshot that says which process made it.
fn temporary_name(host: &Host) -> String {
    let pid = std::process::id();
    format!("{}{pid}-{}", prefix(host), process_start(pid).unwrap_or_default())
}

/// True for a snapshot that was made for an export of this host whose process is gone.
fn is_left_over(host: &Host, name: &str) -> bool {
    let process = name.strip_prefix(&prefix(host)).and_then(|rest| rest.split_once('-'));
    let process = process.and_then(|(pid, start)| Some((pid.parse().ok()?, start.parse().ok()?)));
    process.is_some_and(|(pid, start)| !is_running(pid, start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn left_over_snapshots_are_those_of_the_dead() {
        let host = Host::local().unwrap();
        let mine = temporary_name(&host);
        assert!(mine.parse::<VolumeName>().is_ok() && !is_left_over(&host, &mine), "{mine}");
        assert!(is_left_over(&host, &format!("{}1-12345", prefix(&host))));
        for other in ["export-00000000-1-12345", "export-", "monday", &prefix(&host)] {
            assert!(!is_left_over(&host, other), "{other}");
        }
    }
}
