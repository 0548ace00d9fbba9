//! Snapshots: what a volume was at a moment.
//!
//! The owner of a volume is asked ([`owner`]), one that nobody owns is owned for a moment. A list needs neither: whoever has the volume, it is read from the store.

use super::args::Snapshot;
use super::{Context, confirm, duration, owner, render, schedule, size, volume};
use crate::clock::{Clock, SystemClock};
use crate::daemon::{KnownTarget, Request, RunDir, SnapshotAction, SnapshotReport, act, client};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{SnapshotId, VolumeId};
use crate::pool::backend::Backend;
use crate::pool::{VolumeName, VolumeSpec};
use crate::volume::{find_snapshot, kept_snapshots, list_snapshots};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long a file system stays frozen at most: whoever writes to it waits.
const FROZEN_MAX: Duration = Duration::from_secs(30);

pub(super) async fn dispatch(context: &Context, verb: Snapshot) -> Result<()> {
    match verb {
        Snapshot::Create { name, fsfreeze } => {
            create(context, &name.parse()?, fsfreeze.as_deref()).await
        }
        Snapshot::List { name } => list(context, &name.parse()?).await,
        Snapshot::Schedule(set) => schedule::schedule(context, set).await,
        Snapshot::Delete { name, yes } => delete(context, &name.parse()?, yes).await,
        Snapshot::Keep { name } => keep(context, &name.parse()?).await,
        Snapshot::Rollback { name, keep_before_rollback, yes } => {
            let keep = duration::parse_or_off("--keep-before-rollback", &keep_before_rollback)?;
            rollback(context, &name.parse()?, keep, yes).await
        }
    }
}

async fn create(context: &Context, name: &VolumeSpec, fsfreeze: Option<&Path>) -> Result<()> {
    let snapshot = named(name)?;
    let action = SnapshotAction::Make(snapshot.to_owned());
    let done = match fsfreeze {
        None => run(context, &name.volume(), action).await,
        Some(mounted) => {
            let frozen = Frozen::new(mounted)?;
            let done = tokio::time::timeout(FROZEN_MAX, run(context, &name.volume(), action)).await;
            frozen.thaw()?;
            done.unwrap_or_else(|_| {
                let text = format!("the store has not taken the snapshot within {FROZEN_MAX:?}");
                Err(Error::failed(text)
                    .hint("the file system works on; `objblk snapshot list` shows what came of it"))
            })
        }
    };
    let made = one(done.map_err(|e| e.context(format!("cannot make {name}")))?)?;
    let document = document(&name.volume(), &made);
    context.show(&document, || name.to_string())
}

async fn delete(context: &Context, name: &VolumeSpec, yes: bool) -> Result<()> {
    let snapshot = named(name)?;
    refuse_attached(context, name)?;
    confirm::confirm(&format!("deleting the snapshot {name}"), yes)?;
    let action = SnapshotAction::Delete(snapshot.to_owned());
    let done = run(context, &name.volume(), action).await;
    let deleted = one(done.map_err(|e| e.context(format!("cannot delete {name}")))?)?;
    let document = document(&name.volume(), &deleted);
    context.show(&document, || format!("{name}: deleted"))
}

async fn keep(context: &Context, name: &VolumeSpec) -> Result<()> {
    let action = SnapshotAction::Keep(named(name)?.to_owned());
    let done = run(context, &name.volume(), action).await;
    let kept = one(done.map_err(|e| e.context(format!("cannot keep {name}")))?)?;
    let mut document = document(&name.volume(), &kept);
    document["expires_at_ms"] = json!(null);
    context.show(&document, || format!("{name}: stays until you delete it"))
}

/// Makes the volume what the snapshot is, after a snapshot of what it was, which is kept for that long.
async fn rollback(
    context: &Context,
    name: &VolumeSpec,
    keep: Option<Duration>,
    yes: bool,
) -> Result<()> {
    let snapshot = named(name)?;
    let volume = name.volume();
    let backend = context.open().await?;
    let (id, _) = backend.pool.lookup(&volume).await?;
    find_snapshot(&*backend.stores.setup, id, snapshot).await?;
    let run_dir = RunDir::open()?;
    let held = run_dir.take(&[(id, volume.clone().into())]).map_err(detach_first)?;
    let done = async {
        confirm::confirm(&format!("rolling back volume {volume} to {name}"), yes)?;
        let owned = volume::own(&backend, id, &volume).await.map_err(detach_first)?;
        let now = SystemClock.now_ms();
        let kept = format!("before-rollback-{}", render::stamp(now));
        let until = |keep: Duration| {
            now.saturating_add(u64::try_from(keep.as_millis()).unwrap_or(u64::MAX))
        };
        let kept_id = match keep {
            Some(keep) => SnapshotId::expiring(until(keep), rand::random()),
            None => SnapshotId::from_random(rand::random()),
        };
        let done = owned.roll_back(snapshot, (kept_id, &kept)).await;
        if done.is_err() && owned.close().await.is_err() {
            owned.abandon();
        }
        done
    };
    let done = done.await;
    held.release();
    let kept =
        SnapshotReport::from(done.map_err(|e| e.context(format!("cannot roll back to {name}")))?);
    let (until_ms, kept) = (kept.id.expires_at_ms(), format!("{volume}@{}", kept.name));
    let document =
        json!({ "name": volume, "rolled_back_to": name, "kept": kept, "kept_until_ms": until_ms });
    context.show(&document, || {
        let until = match until_ms {
            Some(ms) => {
                format!("{}, or longer: `objblk snapshot keep {kept}`", render::time(ms))
            }
            None => "you delete that".into(),
        };
        format!("{volume}: as in {name}; what it was is kept as {kept}, until {until}")
    })
}

fn detach_first(e: Error) -> Error {
    match e.kind() {
        ErrorKind::Busy => e.context("a volume can be rolled back only while it is detached"),
        _ => e,
    }
}

async fn list(context: &Context, name: &VolumeName) -> Result<()> {
    let backend = context.open().await?;
    let (id, _) = backend.pool.lookup(name).await?;
    let reports: Vec<SnapshotReport> = match serving(&RunDir::open()?, id)? {
        Some(target) => client::snapshots(&target, id, SnapshotAction::List).await?,
        None => {
            let entries = list_snapshots(&*backend.stores.setup, id).await?;
            entries.into_iter().map(SnapshotReport::from).collect()
        }
    };
    let expires = reports.iter().any(|report| report.id.expires_at_ms().is_some());
    let kept = match expires {
        true => kept_snapshots(&*backend.stores.setup, id).await?,
        false => BTreeSet::new(),
    };
    let tell = |report: &SnapshotReport| {
        let mut told = document(name, report);
        if kept.contains(&report.id) {
            told["expires_at_ms"] = json!(null);
        }
        told
    };
    let documents: Vec<_> = reports.iter().map(tell).collect();
    context.show(&documents, || {
        let rows = reports.iter().map(|report| {
            vec![
                format!("{name}@{}", report.name),
                size::show(report.size),
                size::show(report.used),
                render::time(report.made_at_ms),
            ]
        });
        render::table(&["NAME", "SIZE", "USED", "MADE"], &[1, 2], rows.collect())
    })
}

/// Who reads it here would get I/O errors.
fn refuse_attached(context: &Context, name: &VolumeSpec) -> Result<()> {
    let store = context.location()?.url;
    let reads = |target: &KnownTarget| {
        let mut volumes = target.state.volumes.iter();
        target.alive && target.state.store == store && volumes.any(|volume| volume.name == *name)
    };
    match RunDir::open()?.targets()?.iter().find(|target| reads(target)) {
        None => Ok(()),
        Some(target) => {
            let message = format!("{name} is attached by process {}", target.state.pid);
            Err(Error::new(ErrorKind::Busy, message)
                .hint(format!("detach it first with `objblk detach {name}`")))
        }
    }
}

fn named(name: &VolumeSpec) -> Result<&str> {
    name.snapshot().ok_or_else(|| {
        Error::usage(format!("{name} names no snapshot")).hint(format!("write it as {name}@SNAP"))
    })
}

fn one(reports: Vec<SnapshotReport>) -> Result<SnapshotReport> {
    reports.into_iter().next().ok_or_else(|| Error::failed("the target told of no snapshot"))
}

fn document(volume: &VolumeName, report: &SnapshotReport) -> serde_json::Value {
    json!({
        "name": format!("{volume}@{}", report.name),
        "volume": volume,
        "snapshot": report.name,
        "id": report.id,
        "made_at_ms": report.made_at_ms,
        "size": report.size,
        "used": report.used,
        "seq": report.seq,
        "scheduled": report.id.is_scheduled(),
        "expires_at_ms": report.id.expires_at_ms(),
    })
}

/// The target of this host that owns the volume.
pub(super) fn serving(run_dir: &RunDir, id: VolumeId) -> Result<Option<KnownTarget>> {
    let owns = |target: &KnownTarget| {
        let mut volumes = target.state.volumes.iter();
        target.alive && volumes.any(|volume| volume.id == id && !volume.read_only)
    };
    Ok(run_dir.targets()?.into_iter().find(owns))
}

/// Has the owner do it, or owns the volume for that time.
pub(super) async fn run(
    context: &Context,
    name: &VolumeName,
    action: SnapshotAction,
) -> Result<Vec<SnapshotReport>> {
    let backend = context.open().await?;
    let (id, _) = backend.pool.lookup(name).await?;
    let request = Request::Snapshots { volume: id, action: action.clone() };
    match owner::ask(context, &backend, (id, name), request).await? {
        Some(reply) => reply.snapshots(),
        None => detached(&backend, &RunDir::open()?, (id, name), action).await,
    }
}

async fn detached(
    backend: &Backend,
    run_dir: &RunDir,
    (id, name): (VolumeId, &VolumeName),
    action: SnapshotAction,
) -> Result<Vec<SnapshotReport>> {
    let held = run_dir.take(&[(id, name.clone().into())])?;
    let done = async {
        let volume = volume::own(backend, id, name).await.map_err(go_there)?;
        let done = act(&volume, action, SnapshotId::from_random(rand::random())).await;
        let closed = volume.close().await;
        let done = done?;
        closed.map(|()| done)
    };
    let done = done.await;
    held.release();
    done
}

pub(super) fn go_there(e: Error) -> Error {
    match e.kind() {
        ErrorKind::Busy => e.context("the owner of a volume makes and deletes its snapshots"),
        _ => e,
    }
}

/// A file system that takes no changes until this is dropped.
struct Frozen {
    mounted: PathBuf,
    thawed: bool,
}

impl Frozen {
    /// Freezes what is mounted at `mounted`. Errors: failed.
    fn new(mounted: &Path) -> Result<Frozen> {
        fsfreeze("--freeze", mounted)?;
        Ok(Frozen { mounted: mounted.into(), thawed: false })
    }

    fn thaw(mut self) -> Result<()> {
        self.thawed = true;
        fsfreeze("--unfreeze", &self.mounted)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if !self.thawed
            && let Err(e) = fsfreeze("--unfreeze", &self.mounted)
        {
            eprintln!("objblk: {e}");
        }
    }
}

/// `fsfreeze` of util-linux.
fn fsfreeze(what: &str, mounted: &Path) -> Result<()> {
    let failed = || Error::failed(format!("fsfreeze {what} {} failed", mounted.display()));
    let output = Command::new("fsfreeze").arg(what).arg(mounted).output();
    let output = output.map_err(|e| failed().because(e).hint("install util-linux"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed().because(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}
