//! A new target for the device of a dead one.
//!
//! The device keeps its number, its users and the requests that nobody answered; the new target
//! takes the volume over with all that the dead one had acknowledged, then serves the device.
//!
//! Where that cannot be had, the device must not come back: it would have lost writes without
//! its users' noticing. It is removed then, and its users get errors, as from a disk that fails.
//! What may pass (the store does not answer, the driver refuses) leaves everything as it is.

use super::door::{Door, Served};
use super::journals;
use super::orders::Order;
use super::rundir::{Held, RunDir, Target as Left};
use super::shared::Shared;
use super::spec::TargetSpec;
use super::state::{Attached, FrontendKind};
use super::target::{Target, environment, open_cache};
use crate::device::Checked;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{VolumeId, keys};
use crate::host::Host;
use crate::image::Outside;
use crate::journal::mirror::{self, Recorded};
use crate::pool::backend::Backend;
use crate::volume::{Mode, Volume, VolumeOptions};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, sleep};

/// How long a dying process may take to let go of its volume.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the key of an encrypted volume is missing.
const RECOVER_HINT: &str = "it waits: bring it back by `objblk recover NAME --key-file FILE`";

/// Why a device did not come back.
enum Refused {
    /// It never will.
    ForGood(Error),
    /// It waits on.
    ForNow(Error),
}

impl Target {
    /// Brings back the device of the dead target of volume `id`.
    ///
    /// Errors: not found, where it left nothing; busy, where it lives or somebody is at it; failed
    /// or fenced, where the device was removed; those of the store, where it waits on.
    pub(super) async fn recover(
        spec: &TargetSpec,
        id: VolumeId,
        run_dir: RunDir,
        (ordering, orders): (UnboundedSender<Order>, UnboundedReceiver<Order>),
    ) -> Result<Target> {
        let (left, held) = take(&run_dir, id).await?;
        let name = &left.state.volumes[0].name;
        match bring_back(spec, &run_dir, &left).await {
            Ok(shared) => {
                let target = Target { shared: Arc::new(shared), orders, run_dir, held };
                target.announced(ordering).await
            }
            Err(Refused::ForNow(e)) => {
                held.release();
                Err(e.context(format!("{name} cannot be recovered yet")))
            }
            Err(Refused::ForGood(e)) => {
                let device = &left.state.volumes[0].device;
                let what = match left.state.frontend {
                    FrontendKind::VhostUser => format!(
                        "{name} cannot be recovered, so the guest at {device} is not let in any \
                         more until it is reset"
                    ),
                    _ => format!("{name} cannot be recovered, so {device} was removed"),
                };
                let cleaned = run_dir.clean_up(&left);
                held.release();
                cleaned.map_err(|e| e.context(format!("cannot remove {device}")))?;
                Err(e.context(what))
            }
        }
    }
}

/// What the dead target left, for this process alone. A process that was just killed may hold on to
/// it for a moment.
async fn take(run_dir: &RunDir, id: VolumeId) -> Result<(Left, Held)> {
    let look = || {
        let left = run_dir.holder(id)?;
        left.ok_or_else(|| Error::not_found(format!("no target of volume {id} left anything")))
    };
    let deadline = Instant::now() + PATIENCE;
    let held = loop {
        let left = look()?;
        match run_dir.succeed(&left) {
            Err(e) if e.kind() == ErrorKind::Busy && !left.alive && Instant::now() < deadline => {
                sleep(Duration::from_millis(50)).await;
            }
            taken => break taken?,
        }
    };
    // Somebody may have been at it before the lock was taken.
    match look() {
        Ok(left) if !left.alive => Ok((left, held)),
        other => {
            held.release();
            let name = &other?.state.volumes[0].name;
            Err(Error::new(ErrorKind::Busy, format!("volume {name} is served")))
        }
    }
}

async fn bring_back(
    spec: &TargetSpec,
    run_dir: &RunDir,
    left: &Left,
) -> std::result::Result<Shared, Refused> {
    let (state, attached) = (&left.state, &left.state.volumes[0]);
    let guest = state.frontend == FrontendKind::VhostUser;
    // A guest has no number: it is known by its token.
    let dev_id = state.dev_id.or(guest.then_some(0));
    let (Some(dev_id), Some(token), Some(successor)) = (dev_id, state.token, &state.successor)
    else {
        let what = "it was attached without recovery, so its device died with its process";
        return Err(Refused::ForGood(Error::failed(what)));
    };
    if !left.is_recoverable() {
        return Err(Refused::ForGood(Error::not_found("the kernel has its device no more")));
    }
    let connect = async {
        let (url, s3) = spec.location.parts()?;
        let backend = Backend::open(&url, &s3).await?.with_key(spec.key.clone());
        let unlocked = backend.pool.unlock_id(&attached.name.to_string(), attached.id).await;
        unlocked.map_err(no_key)?;
        Ok::<_, Error>(backend)
    };
    let backend = connect.await.map_err(Refused::ForNow)?;
    let volume = open(spec, run_dir, &backend, attached.id).await?;
    let served: Served = (attached.name.clone(), Arc::new(Checked::new(volume.clone())));
    let volumes = std::slice::from_ref(&served);
    let door = match guest {
        true => Door::open(&spec.door, volumes, (token, true), (attached.id, None)).await,
        false => Door::recover(&served, (dev_id, token)).await,
    };
    match door {
        Ok(door) => {
            let link = door.link();
            let (device, successor) = match guest {
                true => (door.devices(volumes).swap_remove(0), spec),
                false => (attached.device.clone(), successor),
            };
            let attached = Attached { link, device, ..attached.clone() };
            let successor = Some(successor.clone());
            Ok(Shared::new(vec![(attached, volume)], door, backend, (token, successor)))
        }
        Err(e) => {
            // Its mirror is that of the next attempt.
            volume.abandon();
            Err(Refused::ForNow(e))
        }
    }
}

async fn open(
    spec: &TargetSpec,
    run_dir: &RunDir,
    backend: &Backend,
    id: VolumeId,
) -> std::result::Result<Volume, Refused> {
    let root = run_dir.mirror(id);
    let wanted = spec.journal.as_ref().filter(|_| mirror::is_journaled(&root).unwrap_or(true));
    let (journal, trouble) = match wanted {
        None => (None, None),
        Some(wanted) => match journals::reopen(wanted, id, PATIENCE).await {
            Ok(journal) => (Some((journal, wanted)), None),
            // The store may have everything that is in it.
            Err(e) => (None, Some(e)),
        },
    };
    let options = VolumeOptions {
        mode: Mode::Recover,
        mirror: Some(root),
        journal: journal.as_ref().map(|(journal, wanted)| journal.options(wanted)),
        cache_bytes: spec.cache_bytes,
        map_bytes: spec.map_bytes,
        disk_cache: spec.disk_cache.as_ref().and_then(|spec| match open_cache(spec) {
            Ok(cache) => Some(cache),
            Err(e) => {
                // A device is not given up for the sake of its cache.
                tracing::error!("goes on without the disk cache: {e}");
                None
            }
        }),
        io_timeout: spec.io_timeout,
        hopeless: backend.hopeless(),
        watch_every: spec.heartbeat,
        images: Some(Arc::new(Outside)),
        hydrate: !spec.lazy,
        scrub: spec.scrub,
        ..VolumeOptions::default()
    };
    let owner = Host::local().map_err(Refused::ForGood)?.owner();
    let owner = match &journal {
        Some((journal, _)) => journal.named_by(owner),
        None => owner,
    };
    let opened = Volume::open(environment(), backend.stores.clone(), id, owner, options).await;
    let key = backend.stores.setup.local_key(&keys::volume(id));
    let read = || Recorded::read(&run_dir.mirror(id), id, key.as_deref());
    opened.map_err(|e| match wanted.map(|_| read()) {
        // The mirror is right, so it is the journal: its disk may be mounted again.
        Some(Ok(_)) if e.kind() == ErrorKind::Failed => Refused::ForNow(match trouble {
            Some(trouble) => e.because(trouble),
            None => e,
        }),
        _ => judge(e),
    })
}

/// The key of an encrypted volume cannot be had: it may be given later.
fn no_key(e: Error) -> Error {
    match e.kind() {
        ErrorKind::Store => e,
        _ => Error::usage("its key cannot be had").because(e).hint(RECOVER_HINT),
    }
}

/// What the store says now it may not say later, and the key of an encrypted volume may be given then; all else
/// is final.
fn judge(e: Error) -> Refused {
    match e.kind() {
        ErrorKind::Store => Refused::ForNow(e),
        ErrorKind::Usage => Refused::ForNow(e.hint(RECOVER_HINT)),
        _ => Refused::ForGood(e),
    }
}
