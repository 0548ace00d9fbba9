//! A target: volumes, their frontend, and who listens to them.

use super::control::Outcome;
use super::door::{Door, Served};
use super::journals;
use super::orders::Order;
use super::rundir::{Held, RunDir};
use super::sealed::refuse_to_write_clear;
use super::server;
use super::shared::Shared;
use super::spec::{CacheSpec, DoorSpec, TargetSpec};
use super::state::{Attached, FrontendKind, Serving, TargetState};
use crate::cache::disk::DiskCache;
use crate::clock::SystemClock;
use crate::device::Checked;
use crate::error::{Error, Result};
use crate::format::VolumeId;
use crate::format::volume::VolumeObject;
use crate::frontend::ublk;
use crate::host::Host;
use crate::image::Outside;
use crate::pool::backend::Backend;
use crate::pool::{Standing, VolumeSpec, standing};
use crate::store::KEY_HINT;
use crate::units::Epoch;
use crate::volume::{
    Env, Mode, Moment, Ownership, Volume, VolumeOptions, list_snapshots, ownership,
};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What a target says when it is ready for I/O.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Ready {
    /// Its process.
    pub pid: u32,
    /// Its volumes, in the order in which they were asked for.
    pub volumes: Vec<Attached>,
}

/// A running target.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) shared: Arc<Shared>,
    pub(super) orders: UnboundedReceiver<Order>,
    pub(super) run_dir: RunDir,
    pub(super) held: Held,
}

/// The environment of volumes that run on the present runtime.
pub fn environment() -> Env {
    Env { runtime: tokio::runtime::Handle::current(), clock: Arc::new(SystemClock) }
}

/// Runs a target in this process, until it is told to end. `ready` is called once it serves; an
/// error of it ends the target again.
pub async fn run_foreground(
    spec: &TargetSpec,
    ready: impl FnOnce(&Ready) -> Result<()>,
) -> Result<Outcome> {
    let run_dir = RunDir::open()?;
    let (ordering, orders) = unbounded_channel();
    // Before the volumes are opened: a signal must not leave them open.
    listen_to_signals(ordering.clone())?;
    let ears = (ordering.clone(), orders);
    let target = match spec.recover {
        None => Target::start(spec, run_dir, ears).await?,
        Some(id) => Target::recover(spec, id, run_dir, ears).await?,
    };
    let volumes = target.shared.attached();
    let told = ready(&Ready { pid: std::process::id(), volumes });
    if told.is_err() {
        // The receiver is in the target.
        let _ = ordering.send(Order { force: false, client: None });
    }
    let outcome = target.run().await;
    told.map(|()| outcome)
}

/// Has SIGTERM and SIGINT end this process in order, a second one by force.
pub(super) fn listen_to_signals(orders: UnboundedSender<Order>) -> Result<()> {
    let listen = |kind| signal(kind).map_err(|e| Error::failed("cannot handle signals").because(e));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    tokio::spawn(async move {
        let mut force = false;
        loop {
            let heard = tokio::select! {
                heard = terminate.recv() => heard,
                heard = interrupt.recv() => heard,
            };
            let order = Order { force, client: None };
            if heard.is_none() || orders.send(order).is_err() {
                return;
            }
            let how = if force { "by force" } else { "in order; a second signal forces it" };
            tracing::info!("a signal: ending {how}");
            force = true;
        }
    });
    Ok(())
}

impl Target {
    async fn start(
        spec: &TargetSpec,
        run_dir: RunDir,
        (ordering, orders): (UnboundedSender<Order>, UnboundedReceiver<Order>),
    ) -> Result<Target> {
        let (url, s3) = spec.location.parts()?;
        let backend = Backend::open(&url, &s3).await?.with_key(spec.key.clone());
        if spec.disk_cache.is_some() {
            // Before there is a cache for nothing.
            for name in &spec.volumes {
                refuse_to_write_clear(spec, name, &identity(&backend, name, spec.at).await?.1)?;
            }
        }
        let cache = spec.disk_cache.as_ref().map(open_cache).transpose()?;
        Target::start_on(spec, (backend, cache), run_dir, (ordering, orders)).await
    }

    /// As [`Target::start`], with a pool and a cache that others may use too.
    pub(super) async fn start_on(
        spec: &TargetSpec,
        (backend, cache): (Backend, Option<Arc<DiskCache>>),
        run_dir: RunDir,
        (ordering, orders): (UnboundedSender<Order>, UnboundedReceiver<Order>),
    ) -> Result<Target> {
        let first = spec.volumes.first().ok_or_else(|| Error::usage("no volume is named"))?;
        let mut wanted = Vec::new();
        for name in &spec.volumes {
            let (id, volume) = identity(&backend, name, spec.at).await?;
            refuse_to_write_clear(spec, name, &volume)?;
            wanted.push((id, name.clone()));
        }
        refuse_twins(&wanted)?;
        if let Some((id, spec)) = goes_on(&run_dir, spec, wanted[0].0)? {
            return Target::recover(&spec, id, run_dir, (ordering, orders)).await;
        }
        let recovery = Door::check(&spec.door, first).await? && !is_read_only(spec, first);
        let held = run_dir.take(&wanted)?;
        let token = rand::random();
        let served = match announce_device(&run_dir, spec, &backend, &wanted, token) {
            Ok(()) => serve(spec, (&backend, cache), &run_dir, &wanted, (token, recovery)).await,
            Err(e) => Err(e),
        };
        let (volumes, door) = match served {
            Ok(served) => served,
            Err(e) => {
                if let Err(e) = run_dir.remove_files(wanted[0].0) {
                    tracing::warn!("{e}");
                }
                held.release();
                return Err(e);
            }
        };
        let successor = recovery.then(|| TargetSpec {
            recover: Some(volumes[0].0.id),
            takeover: false,
            ..spec.clone()
        });
        let shared = Arc::new(Shared::new(volumes, door, backend, (token, successor)));
        let target = Target { shared, orders, run_dir, held };
        target.announced(ordering).await
    }

    /// The target, announced; or ended again.
    pub(super) async fn announced(self, ordering: UnboundedSender<Order>) -> Result<Target> {
        let target = self;
        match target.announce(ordering).await {
            Ok(()) => Ok(target),
            Err(e) => {
                target.end_after_frontend().await;
                Err(e)
            }
        }
    }

    /// Lets the other commands of this host find the target.
    async fn announce(&self, ordering: UnboundedSender<Order>) -> Result<()> {
        let first = self.shared.first();
        // Whatever is there is of a dead process: its lock is held here.
        self.run_dir.remove_socket(first)?;
        let shared = Some(Arc::clone(&self.shared));
        server::listen(&self.run_dir.socket(first), shared, ordering)?;
        let serving = self.shared.serving().await;
        // What the volume was is no disk to be found by its id.
        let dev_id = serving.dev_id.filter(|_| serving.volumes[0].name.snapshot().is_none());
        let state = TargetState::of_this_process(&Host::local()?, serving);
        state.write(&self.run_dir.state_file(first))?;
        if let Some(dev_id) = dev_id {
            ublk::announce(dev_id, &first.to_string());
        }
        self.shared.open_desks();
        Ok(())
    }

    /// Serves until it is told to end.
    pub(super) async fn run(mut self) -> Outcome {
        loop {
            tokio::select! {
                Some(order) = self.orders.recv() => match self.end(order).await {
                    Ok(outcome) => return outcome,
                    Err(target) => self = *target,
                },
                () = self.shared.door_ended() => {
                    tracing::error!("the frontend ended by itself: closing the volumes");
                    return self.end_after_frontend().await;
                }
            }
        }
    }

    /// Leaves no trace in the run directory.
    pub(super) fn leave(self) {
        if let Err(e) = self.run_dir.remove_files(self.shared.first()) {
            tracing::warn!("{e}");
        }
        self.held.release();
    }
}

/// What to do instead, where a guest waits for this volume's dead target: everything as that did it,
/// at the socket that is named now.
fn goes_on(
    run_dir: &RunDir,
    spec: &TargetSpec,
    id: VolumeId,
) -> Result<Option<(VolumeId, TargetSpec)>> {
    let DoorSpec::VhostUser { .. } = &spec.door else { return Ok(None) };
    let left = run_dir.holder(id)?.filter(|left| left.is_recoverable() && !spec.read_only);
    let Some(state) = left.map(|left| left.state) else { return Ok(None) };
    match state.successor {
        Some(successor) if state.frontend == FrontendKind::VhostUser => {
            let (pid, name) = (state.pid, &state.volumes[0].name);
            eprintln!("objblk: going on for process {pid}, which served {name} and is dead");
            let key = spec.key.clone().or(successor.key);
            Ok(Some((id, TargetSpec { door: spec.door.clone(), key, ..successor })))
        }
        _ => Ok(None),
    }
}

/// Leaves the token of a block device before there is one: whoever comes after the death of this
/// process finds the device by it.
fn announce_device(
    run_dir: &RunDir,
    spec: &TargetSpec,
    backend: &Backend,
    wanted: &[(VolumeId, VolumeSpec)],
    token: u64,
) -> Result<()> {
    let (DoorSpec::Ublk { .. }, Some((id, name))) = (&spec.door, wanted.first()) else {
        return Ok(());
    };
    let serving = Serving {
        store: backend.pool.store().url(),
        frontend: FrontendKind::Ublk,
        dev_id: None,
        token: Some(token),
        successor: None,
        volumes: vec![Attached {
            id: *id,
            name: name.clone(),
            device: "-".into(),
            link: None,
            read_only: is_read_only(spec, name),
        }],
    };
    let state = TargetState::of_this_process(&Host::local()?, serving);
    state.write(&run_dir.state_file(*id))
}

/// What `name` is known by on this host: the id of the volume, or of the snapshot, which is served
/// beside its volume.
async fn identity(
    backend: &Backend,
    name: &VolumeSpec,
    at: Option<Moment>,
) -> Result<(VolumeId, VolumeObject)> {
    let (id, volume) = backend.pool.lookup(&name.volume()).await?;
    if !backend.pool.is_open(&volume) {
        let text = format!("volume {name} is encrypted, and its key was not given");
        return Err(Error::usage(text).hint(KEY_HINT));
    }
    if let Some(moment) = at {
        return Ok((at_moment(id, moment), volume));
    }
    let Some(snapshot) = name.snapshot() else { return Ok((id, volume)) };
    let all = list_snapshots(&*backend.stores.setup, id).await?;
    let found = all.into_iter().find(|entry| entry.name == snapshot);
    let found = found.ok_or_else(|| Error::not_found(format!("there is no snapshot {name}")))?;
    Ok((VolumeId::from_bytes(found.id.bytes()), volume))
}

/// What a volume is known by as of a moment.
fn at_moment(id: VolumeId, moment: Moment) -> VolumeId {
    let (kind, number) = match moment {
        Moment::Slot(slot) => (1, slot.0),
        Moment::Time(ms) => (2, ms),
    };
    let mut bytes = id.bytes();
    bytes[0] ^= kind;
    bytes[8..].iter_mut().zip(number.to_le_bytes()).for_each(|(byte, more)| *byte ^= more);
    VolumeId::from_bytes(bytes)
}

fn is_read_only(spec: &TargetSpec, name: &VolumeSpec) -> bool {
    spec.read_only || name.snapshot().is_some()
}

fn refuse_twins(wanted: &[(VolumeId, VolumeSpec)]) -> Result<()> {
    for (i, (id, name)) in wanted.iter().enumerate() {
        if let Some((_, twin)) = wanted[..i].iter().find(|(other, _)| other == id) {
            let message = format!("{twin} and {name} are one volume");
            return Err(Error::usage(message).hint("name each volume once"));
        }
    }
    Ok(())
}

/// Opens the volumes and the frontend, or nothing.
async fn serve(
    spec: &TargetSpec,
    (backend, cache): (&Backend, Option<Arc<DiskCache>>),
    run_dir: &RunDir,
    wanted: &[(VolumeId, VolumeSpec)],
    (token, recovery): (u64, bool),
) -> Result<(Vec<(Attached, Volume)>, Door)> {
    let mut opened: Vec<Volume> = Vec::new();
    let opening = async {
        let mut served: Vec<Served> = Vec::new();
        let before = closed_term(spec, backend, &wanted[0]).await?;
        for (id, name) in wanted {
            let mirror = recovery.then(|| run_dir.mirror(*id));
            let volume = open(spec, backend, (*id, name), mirror, cache.clone()).await?;
            opened.push(volume.clone());
            volume.check_source().await.map_err(|e| e.context(format!("cannot open {name}")))?;
            served.push((name.clone(), Arc::new(Checked::new(volume))));
        }
        let epochs = before.zip(opened.first().map(|volume| Epoch(volume.status().epoch)));
        let closed = epochs
            .and_then(|(before, now)| (now == Epoch(0) || before.next() == now).then_some(before));
        let first = (wanted[0].0, closed);
        let door = Door::open(&spec.door, &served, (token, recovery), first).await?;
        let devices = door.devices(&served);
        Ok((door, devices))
    };
    match opening.await {
        Ok((door, devices)) => {
            let attached = wanted.iter().zip(devices).map(|((id, name), device)| {
                let (link, read_only) = (door.link(), is_read_only(spec, name));
                Attached { id: *id, name: name.clone(), device, link, read_only }
            });
            let volumes = attached.zip(opened).collect();
            Ok((volumes, door))
        }
        Err(e) => {
            for volume in opened {
                if let Err(e) = volume.close().await {
                    tracing::warn!("cannot close a volume again: {e}");
                    volume.abandon();
                }
            }
            Err(e)
        }
    }
}

/// The newest term of a guest's disk, if that was closed in order.
async fn closed_term(
    spec: &TargetSpec,
    backend: &Backend,
    (id, name): &(VolumeId, VolumeSpec),
) -> Result<Option<Epoch>> {
    match &spec.door {
        DoorSpec::VhostUser { .. } if name.snapshot().is_none() => {
            let ownership = ownership(&*backend.stores.setup, *id).await?;
            Ok(ownership.closed.then_some(ownership.epoch))
        }
        _ => Ok(None),
    }
}

/// Opens the disk cache of this process. Errors: those of [`DiskCache::open`].
pub(super) fn open_cache(spec: &CacheSpec) -> Result<Arc<DiskCache>> {
    let runtime = tokio::runtime::Handle::current();
    let cache = DiskCache::open(&spec.folder, spec.size, runtime)?;
    Ok(Arc::new(cache))
}

async fn open(
    spec: &TargetSpec,
    backend: &Backend,
    (id, name): (VolumeId, &VolumeSpec),
    mirror: Option<PathBuf>,
    disk_cache: Option<Arc<DiskCache>>,
) -> Result<Volume> {
    if name.snapshot().is_some() {
        return open_view(spec, backend, name, disk_cache).await;
    }
    let host = Host::local()?;
    let ownership = ownership(&*backend.stores.setup, id).await?;
    let spec_of_journal = spec.journal.as_ref().filter(|_| !spec.read_only);
    let journal = spec_of_journal.map(|spec| journals::open(spec, id)).transpose()?;
    let opened = async {
        let mode = mode(spec, name, &ownership, &host, journal.as_ref())?;
        let options = VolumeOptions {
            mode,
            mirror,
            journal: journal.as_ref().zip(spec.journal.as_ref()).map(|(j, spec)| j.options(spec)),
            cache_bytes: spec.cache_bytes,
            map_bytes: spec.map_bytes,
            profile: spec.profile,
            disk_cache,
            io_timeout: spec.io_timeout,
            hopeless: backend.hopeless(),
            watch_every: spec.heartbeat,
            images: Some(Arc::new(Outside)),
            hydrate: !spec.lazy,
            scrub: spec.scrub,
            ..VolumeOptions::default()
        };
        let owner = match &journal {
            Some(journal) => journal.named_by(host.owner()),
            None => host.owner(),
        };
        let stores = backend.stores.clone();
        let opened = Volume::open(environment(), stores, id, owner, options).await;
        opened.map_err(|e| e.context(format!("cannot open {name}")))
    };
    let opened = opened.await;
    match (&opened, journal) {
        (Ok(_), Some(journal)) => journal.keep(),
        (Err(_), Some(journal)) => journal.undo(),
        (_, None) => {}
    }
    opened
}

/// Opens what a snapshot is, or what the volume was at a moment.
async fn open_view(
    spec: &TargetSpec,
    backend: &Backend,
    name: &VolumeSpec,
    disk_cache: Option<Arc<DiskCache>>,
) -> Result<Volume> {
    let (id, _) = backend.pool.lookup(&name.volume()).await?;
    let options = VolumeOptions {
        snapshot: name.snapshot().filter(|_| spec.at.is_none()).map(str::to_owned),
        at: spec.at,
        cache_bytes: spec.cache_bytes,
        map_bytes: spec.map_bytes,
        disk_cache,
        io_timeout: spec.io_timeout,
        images: Some(Arc::new(Outside)),
        hopeless: backend.hopeless(),
        ..VolumeOptions::default()
    };
    let (owner, stores) = (Host::local()?.owner(), backend.stores.clone());
    let opened = Volume::open(environment(), stores, id, owner, options).await;
    opened.map_err(|e| e.context(format!("cannot open {name}")))
}

fn mode(
    spec: &TargetSpec,
    name: &VolumeSpec,
    ownership: &Ownership,
    host: &Host,
    journal: Option<&journals::Opened>,
) -> Result<Mode> {
    let standing = standing(ownership, host);
    let taking = Mode::ReadWrite { takeover: true };
    Ok(match (spec.read_only, &standing) {
        (true, Standing::Free) => Mode::ReadOnly,
        (true, _) => {
            return Err(standing.refusal(name, "attach it without --read-only once"));
        }
        (false, Standing::Free) => Mode::ReadWrite { takeover: spec.takeover },
        (false, _) if spec.takeover => taking,
        (false, _) => match journals::succession(name, ownership, &standing, journal)? {
            Some(mode) => mode,
            None => match &standing {
                Standing::Orphaned(dead) => {
                    let pid = dead.pid;
                    eprintln!("objblk: taking over {name} from process {pid}, which is dead");
                    taking
                }
                _ => return Err(standing.refusal(name, "take it over with --takeover")),
            },
        },
    })
}
