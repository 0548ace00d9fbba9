//! Repairing what an examination has found.
//!
//! What can be repaired is planned and shown first. The owner of a volume does it, if it is on this host;
//! nobody else has the volume meanwhile, if none has it. A repair that was broken off is begun again: what is
//! whole stays as it is. What is damaged in one copy of a mirrored volume is repaired from the other one.

use super::args::Check;
use super::confirm::confirm;
use super::volume::own_with;
use crate::cache::disk::DiskCache;
use crate::daemon::{KnownTarget, RunDir, client};
use crate::doctor::{Damage, Doctor, Report, VolumeReport};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::keys;
use crate::pool::VolumeName;
use crate::pool::backend::Backend;
use crate::store::Key;
use crate::volume::{Mended, Mending, Volume, VolumeOptions};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use tokio::runtime::Handle;

/// Objects that are shown; `--json` has all.
const SHOWN: usize = 20;

/// What is, or was, to be repaired of a volume.
#[derive(Debug, Serialize)]
pub(super) struct Repair {
    name: String,
    id: VolumeId,
    /// Damaged objects that something can be done about.
    planned: Vec<String>,
    /// What became of them; none where it was only planned.
    objects: Vec<Mended>,
    /// Why it was not repaired, or not to the end.
    error: Option<String>,
    /// It is in two stores.
    #[serde(skip)]
    twice: bool,
    #[serde(skip)]
    damaged: Damaged,
}

#[derive(Debug, Default)]
struct Damaged {
    /// Newest checkpoints: whoever opens the volume needs one.
    checkpoints: Vec<Key>,
    others: Vec<Key>,
}

impl Repair {
    fn of(volume: &VolumeReport, twice: bool) -> Repair {
        Repair {
            name: volume.name.clone(),
            id: volume.id,
            planned: Vec::new(),
            objects: Vec::new(),
            error: None,
            twice,
            damaged: Damaged::default(),
        }
    }

    fn add(&mut self, volume: &VolumeReport) {
        for damage in &volume.damages {
            let Some(key) = object(damage) else { continue };
            let Some(of) = keys::parse_volume(&key) else { continue };
            let is_other = keys::parse_slot(of, &key).is_some()
                || keys::parse_map_object(of, &key).is_some()
                || keys::parse_child(of, &key).is_some()
                || keys::parse_scrub(of, &key).is_some()
                || key == keys::profile(of)
                || self.twice && key != keys::volume(of);
            let list = match keys::parse_checkpoint(volume.id, &key) {
                Some(_) => &mut self.damaged.checkpoints,
                None if is_other => &mut self.damaged.others,
                None => continue,
            };
            if !list.contains(&key) {
                self.planned.push(key.to_string());
                list.push(key);
            }
        }
    }

    fn join(&mut self, later: Repair) {
        self.planned.extend(later.planned);
        self.objects.extend(later.objects);
        self.error = later.error.or(self.error.take());
    }

    pub(super) fn tell(&self) -> Vec<String> {
        let name = &self.name;
        let one = |mended: &Mended| format!("{name}: {}: {}", mended.object, words(mended));
        let mut lines: Vec<String> = self.objects.iter().take(SHOWN).map(one).collect();
        if self.objects.len() > SHOWN {
            let more = self.objects.len() - SHOWN;
            lines.push(format!("{name}: and {more} more, which --json shows"));
        }
        lines.extend(self.error.as_ref().map(|why| format!("{name}: not repaired: {why}")));
        lines
    }
}

fn object(damage: &Damage) -> Option<Key> {
    damage.object.as_deref().and_then(Key::new)
}

fn words(mended: &Mended) -> String {
    let bytes = |bytes| super::size::show(bytes);
    match mended.how {
        Mending::Whole => "is whole".into(),
        Mending::PutBack => "has the bytes again that it was written with".into(),
        Mending::Moved => format!("{} of it were written anew", bytes(mended.moved_bytes)),
        Mending::Unneeded => "the volume as it is now needs nothing of it".into(),
        Mending::Removed => "removed: nothing depends on it".into(),
        Mending::Made => "made again".into(),
        Mending::Lost if mended.moved_bytes > 0 => format!(
            "{} of it were written anew, {} were found nowhere",
            bytes(mended.moved_bytes),
            bytes(mended.lost_bytes)
        ),
        Mending::Lost => "what it held was found nowhere".into(),
    }
}

/// What can be repaired of what was found, and was not tried.
async fn plan(backend: &Backend, report: &Report, done: &[Repair]) -> Result<Vec<Repair>> {
    let mut repairs: Vec<Repair> = Vec::new();
    // A volume that is in two stores is reported once for each.
    for volume in &report.volumes {
        let known = repairs.iter().position(|repair| repair.id == volume.id);
        let at = match known {
            Some(at) => at,
            None => {
                let state = backend.mirror_state(volume.id).await?;
                let twice = state.is_some_and(|state| state.in_sync.len() > 1);
                repairs.push(Repair::of(volume, twice));
                repairs.len() - 1
            }
        };
        repairs[at].add(volume);
    }
    for repair in &mut repairs {
        let tried = done.iter().filter(|done| done.id == repair.id).flat_map(|done| &done.planned);
        let tried: BTreeSet<&String> = tried.collect();
        repair.planned.retain(|object| !tried.contains(object));
        let is_new = |key: &Key| !tried.contains(&key.to_string());
        repair.damaged.checkpoints.retain(is_new);
        repair.damaged.others.retain(is_new);
    }
    repairs.retain(|repair| !repair.planned.is_empty());
    Ok(repairs)
}

/// Shows what is to be done about a report, asks, does it, and adds it to what was `done`. False: nothing was.
pub(super) async fn carry_out(
    backend: &Backend,
    check: &Check,
    report: &Report,
    done: &mut Vec<Repair>,
) -> Result<bool> {
    let mut repairs = plan(backend, report, done).await?;
    if repairs.is_empty() {
        return Ok(false);
    }
    let cache = match &check.cache_dir {
        Some(folder) => Some(reopen(folder)?),
        None => None,
    };
    for repair in repairs.iter() {
        eprintln!("to be repaired of {}, as far as its bytes are found:", repair.name);
        repair.planned.iter().take(SHOWN).for_each(|object| eprintln!("  {object}"));
        if repair.planned.len() > SHOWN {
            eprintln!("  and {} more", repair.planned.len() - SHOWN);
        }
    }
    if check.dry_run {
        done.append(&mut repairs);
        return Ok(false);
    }
    let count: usize = repairs.iter().map(|repair| repair.planned.len()).sum();
    confirm(&format!("repairing {count} damaged objects"), check.yes)?;
    for repair in repairs.iter_mut() {
        if let Err(e) = mend(backend, repair, cache.clone()).await {
            repair.error = Some(e.to_string());
        }
    }
    for repair in repairs {
        match done.iter_mut().find(|done| done.id == repair.id) {
            Some(done) => done.join(repair),
            None => done.push(repair),
        }
    }
    Ok(true)
}

fn reopen(folder: &Path) -> Result<Arc<DiskCache>> {
    let folder = std::path::absolute(folder)
        .map_err(|e| Error::usage("--cache-dir is no path").because(e))?;
    DiskCache::reopen(&folder, Handle::current()).map(Arc::new)
}

async fn mend(backend: &Backend, repair: &mut Repair, cache: Option<Arc<DiskCache>>) -> Result<()> {
    let name: VolumeName = repair.name.parse()?;
    let Damaged { mut checkpoints, mut others } = std::mem::take(&mut repair.damaged);
    if repair.twice {
        // Whoever opens it reads the other copy.
        others.append(&mut checkpoints);
    }
    for key in &checkpoints {
        let how = match Doctor::new(&backend.pool, true, None).is_whole_without(&name, key).await? {
            true => {
                backend.pool.store().delete(std::slice::from_ref(key)).await?;
                Mending::Removed
            }
            false => Mending::Lost,
        };
        let object = key.to_string();
        repair.objects.push(Mended { object, how, moved_bytes: 0, lost_bytes: 0 });
    }
    if others.is_empty() {
        return Ok(());
    }
    let run_dir = RunDir::open()?;
    let serves = |target: &KnownTarget| {
        target.alive && target.state.volumes.iter().any(|v| v.id == repair.id && !v.read_only)
    };
    let mended = match run_dir.targets()?.into_iter().find(serves) {
        Some(target) => {
            if cache.is_some() {
                eprintln!("objblk: {name} is attached: its own cache counts, not --cache-dir");
            }
            client::mend(&target, repair.id, &others).await
        }
        None => {
            let held = run_dir.take(&[(repair.id, name.clone().into())])?;
            let mended = detached(backend, (repair.id, &name), &others, cache).await;
            held.release();
            mended
        }
    };
    repair.objects.extend(mended?);
    Ok(())
}

/// Owns the volume for a moment.
async fn detached(
    backend: &Backend,
    (id, name): (VolumeId, &VolumeName),
    damaged: &[Key],
    disk_cache: Option<Arc<DiskCache>>,
) -> Result<Vec<Mended>> {
    // What is damaged would only be met again by the collector.
    let options = VolumeOptions { disk_cache, collection: None, ..VolumeOptions::default() };
    let volume: Volume = own_with(backend, id, name, options).await.map_err(go_there)?;
    let mended = volume.mend(damaged).await;
    if let Err(e) = volume.close().await {
        tracing::warn!("{name} is not closed: {e}");
        volume.abandon();
    }
    mended
}

fn go_there(e: Error) -> Error {
    match e.kind() {
        ErrorKind::Busy => e.context("a volume is repaired by its owner, on its owner's host"),
        _ => e,
    }
}
