//! Journals of this host: one file a volume, `<volume id>.journal`, in a folder of the user's.
//!
//! A claim names the file of its owner, in the store. So whoever opens the volume later without it
//! learns that there may be writes which the store lacks, and where.

use super::spec::JournalSpec;
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::volume::EpochObject;
use crate::host::Host;
use crate::journal::disk::Disk;
use crate::journal::ring::Found;
use crate::journal::uring::{FileDisk, Glance};
use crate::pool::{Standing, VolumeSpec};
use crate::volume::{JournalOptions, Mode, Ownership};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A journal that is about to be used.
#[derive(Debug)]
pub(super) struct Opened {
    disk: Arc<FileDisk>,
    /// It was made just now.
    is_new: bool,
    /// So was its folder.
    folder: Option<NewFolder>,
}

/// A folder that was made just now; removed unless it is [kept](NewFolder::keep).
#[derive(Debug)]
struct NewFolder {
    path: Option<PathBuf>,
}

impl NewFolder {
    /// Makes `path`, durably and for this user only; `None` where it is there. Not its parents: those
    /// of a path that is mistyped, or on a disk that is not mounted, are missing. Errors: failed.
    fn make(path: &Path) -> Result<Option<NewFolder>> {
        let failed = |e: io::Error| {
            Error::failed(format!("cannot make the journal folder {}", path.display())).because(e)
        };
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(
                    failed(e).hint("make the folder that it is to be in, or mount its disk")
                );
            }
            Err(e) => return Err(failed(e)),
        }
        let made = NewFolder { path: Some(path.to_owned()) };
        // Journals are found again after a loss of power.
        let parent = path.parent().unwrap_or(path);
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)?;
        Ok(Some(made))
    }

    fn keep(mut self) {
        self.path = None;
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        // Somebody else may have put a journal into it meanwhile: then it stays.
        self.path.take().map(fs::remove_dir);
    }
}

/// The file of a volume's journal.
pub(super) fn path(folder: &Path, id: VolumeId) -> PathBuf {
    folder.join(format!("{id}.journal"))
}

/// Opens the journal of a volume, made where there is none, as is its folder. Errors: those of
/// [`FileDisk`]; failed, where the folder cannot be made.
pub(super) fn open(spec: &JournalSpec, id: VolumeId) -> Result<Opened> {
    let folder = NewFolder::make(&spec.folder)?;
    let path = path(&spec.folder, id);
    let is_new = !path.exists();
    let disk = if is_new { FileDisk::create(&path, spec.size)? } else { FileDisk::open(&path)? };
    if disk.size() != spec.size {
        tracing::warn!("the journal {} stays as large as it is", path.display());
    }
    Ok(Opened { disk: Arc::new(disk), is_new, folder })
}

/// Opens the journal of a process that has just died, which may hold on to it for a while: what it
/// was writing comes to an end first. Errors: those of [`FileDisk::open`].
pub(super) async fn reopen(spec: &JournalSpec, id: VolumeId, patience: Duration) -> Result<Opened> {
    let path = path(&spec.folder, id);
    let deadline = Instant::now() + patience;
    loop {
        match FileDisk::open(&path) {
            Err(e) if e.kind() == ErrorKind::Busy && Instant::now() < deadline => {
                sleep(Duration::from_millis(50)).await;
            }
            opened => return Ok(Opened { disk: Arc::new(opened?), is_new: false, folder: None }),
        }
    }
}

impl Opened {
    /// What the engine is told of it.
    pub(super) fn options(&self, spec: &JournalSpec) -> JournalOptions {
        let (max_lag_bytes, max_lag) = (spec.max_lag_bytes, spec.max_lag);
        JournalOptions { disk: self.disk.clone(), max_lag_bytes, max_lag }
    }

    /// The owner `claimant` with the name of this journal.
    pub(super) fn named_by(&self, claimant: EpochObject) -> EpochObject {
        EpochObject { journal: Some(self.disk.name()), ..claimant }
    }

    /// The volume was opened with it.
    pub(super) fn keep(self) {
        if let Some(folder) = self.folder {
            folder.keep();
        }
    }

    /// The volume was not opened: leaves nothing that was not there.
    pub(super) fn undo(self) {
        if self.is_new
            && let Err(e) = self.disk.remove()
        {
            tracing::warn!("{e}");
        }
    }
}

/// Refuses a volume that was not closed, and whose last owner had a journal: whoever takes it without that gives
/// up what was acknowledged and is only there. Errors: busy.
pub fn refuse_journaled(
    name: &VolumeSpec,
    ownership: &Ownership,
    standing: &Standing,
) -> Result<()> {
    match standing {
        Standing::Free => Ok(()),
        _ => succession(name, ownership, standing, None).map(drop),
    }
}

/// How a volume that is not free may be opened for writing without being taken from anybody.
/// Errors: busy, where its last owner had a journal that is not here.
pub(super) fn succession(
    name: &VolumeSpec,
    ownership: &Ownership,
    standing: &Standing,
    here: Option<&Opened>,
) -> Result<Option<Mode>> {
    let owner = ownership.owner.as_ref();
    let Some((owner, named)) = owner.and_then(|o| Some((o, o.journal.as_ref()?))) else {
        return Ok(None);
    };
    let same = here.is_some_and(|here| here.disk.name() == *named);
    let on_this_host = Host::local()?.owner().host == owner.host;
    match standing {
        Standing::OwnedHere(_) => Ok(None),
        // The engine looks whether it is that journal, and whether it is still the last one.
        _ if same && on_this_host && here.is_some_and(|here| !here.is_new) => {
            Ok(Some(Mode::ReadWrite { takeover: false }))
        }
        _ => {
            let text = format!(
                "volume {name} was last used by {} with the journal {named}, which may hold writes \
                 that the store lacks, and was not closed",
                owner.owner()
            );
            let folder = Path::new(named).parent().unwrap_or(Path::new("/")).display().to_string();
            Err(Error::new(ErrorKind::Busy, text).hint(format!(
                "attach it on that host with --durability local --journal {folder}, or with \
                 --takeover to give up what only the journal has"
            )))
        }
    }
}

/// A journal's file, as a user may see it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct JournalFile {
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// The volume.
    pub volume: Option<VolumeId>,
    /// The epoch of its last owner.
    pub epoch: Option<u64>,
    /// Slots of the log that the store may lack.
    pub slots: u64,
    /// Bytes of the journal that hold them.
    pub bytes: u64,
    /// What it holds is sealed: its volume is encrypted.
    pub encrypted: bool,
    /// Why it cannot be read: in use, damaged.
    pub trouble: Option<String>,
}

/// Every journal in `folder`, by name. Errors: failed, where it cannot be listed.
pub async fn list(folder: &Path) -> Result<Vec<JournalFile>> {
    let failed = |e| Error::failed(format!("cannot list {}", folder.display())).because(e);
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "journal") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut journals = Vec::new();
    for path in paths {
        journals.push(look(&path).await);
    }
    Ok(journals)
}

/// What is in a journal that nobody has open, without keeping anybody from opening it.
async fn glance(path: &Path) -> Result<Option<Found>> {
    let file = Glance::open(path)?;
    file.check_unused()?;
    let found = Found::read(&file, None).await;
    if found.is_err() {
        // It may have been opened and written to meanwhile.
        file.check_unused()?;
    }
    found
}

async fn look(path: &Path) -> JournalFile {
    let size = fs::metadata(path).map_or(0, |meta| meta.len());
    let mut file = JournalFile {
        path: path.to_owned(),
        size,
        volume: None,
        epoch: None,
        slots: 0,
        bytes: 0,
        encrypted: false,
        trouble: None,
    };
    match glance(path).await {
        Ok(Some(found)) => {
            (file.volume, file.encrypted) = (Some(found.volume()), found.is_sealed());
            file.epoch = found.term().map(|term| term.epoch.0);
            (file.slots, file.bytes) = found.uncommitted();
        }
        Ok(None) => {}
        Err(e) => file.trouble = Some(e.to_string()),
    }
    file
}

/// Removes the journal of a volume, with what only it has. Errors: not found; busy, where a process
/// has it open; failed.
pub fn discard(folder: &Path, id: VolumeId) -> Result<PathBuf> {
    let path = path(folder, id);
    if !path.exists() {
        let text = format!("there is no journal {}", path.display());
        return Err(Error::not_found(text).hint("see `objblk journal list`"));
    }
    FileDisk::open(&path)?.remove()?;
    Ok(path)
}
