//! The frontend of a target, whichever it is.

use super::spec::DoorSpec;
use super::state::FrontendKind;
use crate::device::Checked;
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::frontend::fuse::Image;
use crate::frontend::nbd::{ExportStatus, Exports, Limits, Listen, Server, Tls, TlsOptions};
use crate::frontend::ublk::{self, Ublk, UblkOptions};
use crate::frontend::vhost::{Identity, VhostUser};
use crate::pool::VolumeSpec;
use crate::units::{Epoch, SectorCount};
use crate::volume::Volume;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, spawn_blocking};

/// An open volume under its name, for a frontend.
pub(super) type Served = (VolumeSpec, Arc<Checked<Volume>>);

/// A running frontend.
pub(super) enum Door {
    Ublk(Ublk),
    Nbd(NbdDoor),
    File(FileDoor),
    VhostUser(VhostUser),
}

/// A file of a mounted directory.
pub(super) struct FileDoor {
    path: PathBuf,
    image: Arc<Image<Volume>>,
}

/// A running NBD server.
pub(super) struct NbdDoor {
    uris: Vec<String>,
    status: Box<dyn Fn() -> Vec<ExportStatus> + Send + Sync>,
    stop: oneshot::Sender<()>,
    ended: watch::Receiver<bool>,
    task: JoinHandle<Result<()>>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind().name())
    }
}

impl Door {
    /// Opens the frontend; it is ready for I/O on return. `token` marks its block device, which
    /// outlives this process if `recovery`. `first` is the id of the first volume; a guest that comes
    /// back to it is let in if it has the token or was served in the term that `first` names, which
    /// ended in order before this one. Errors: the frontend's.
    pub(super) async fn open(
        spec: &DoorSpec,
        volumes: &[Served],
        (token, recovery): (u64, bool),
        first: (VolumeId, Option<Epoch>),
    ) -> Result<Door> {
        match spec {
            DoorSpec::Ublk { queues, depth, .. } => {
                let (name, device) = volumes.first().expect("a target has a volume");
                let options = UblkOptions {
                    queues: *queues,
                    depth: *depth,
                    token,
                    recovery,
                    ..UblkOptions::new(name.as_str())
                };
                let device = Arc::clone(device);
                let started = spawn_blocking(move || Ublk::start(device, options)).await;
                let started = started.map_err(|e| Error::failed("ublk").because(e))?;
                started.map(Door::Ublk).map_err(|e| lacking(name, e))
            }
            DoorSpec::Nbd { listen, tls, connections } => {
                let tls = load_tls(tls.as_ref()).await?;
                open_nbd(listen, tls, *connections, volumes).await.map(Door::Nbd)
            }
            DoorSpec::File { path } => {
                let (_, device) = volumes.first().expect("a target has a volume");
                let image = Image::new(Arc::clone(device));
                Ok(Door::File(FileDoor { path: path.clone(), image }))
            }
            DoorSpec::VhostUser { socket, .. } => {
                open_vhost_user(socket, volumes, token, first).await.map(Door::VhostUser)
            }
        }
    }

    /// Serves the block device that a dead target left. Errors: the frontend's; the device then
    /// waits on.
    pub(super) async fn recover(served: &Served, dev: (u32, u64)) -> Result<Door> {
        let (options, device) = (UblkOptions::new(served.0.as_str()), Arc::clone(&served.1));
        let recovered = spawn_blocking(move || Ublk::recover(device, dev, options)).await;
        recovered.map_err(|e| Error::failed("ublk").because(e))?.map(Door::Ublk)
    }

    /// Fails where the host cannot have such a frontend, before anything is touched. Returns
    /// whether its device is to outlive this process.
    pub(super) async fn check(spec: &DoorSpec, name: &VolumeSpec) -> Result<bool> {
        match spec {
            DoorSpec::Nbd { listen, tls, .. } => {
                listen.parse::<Listen>()?;
                load_tls(tls.as_ref()).await.map(|_| false)
            }
            DoorSpec::File { .. } => Ok(false),
            DoorSpec::VhostUser { recovery, .. } => Ok(*recovery),
            DoorSpec::Ublk { recovery, .. } => {
                let checked = spawn_blocking(ublk::check_host).await;
                let checked = checked.map_err(|e| Error::failed("ublk").because(e))?;
                checked.map(|host| *recovery && host.recovery).map_err(|e| lacking(name, e))
            }
        }
    }

    pub(super) fn kind(&self) -> FrontendKind {
        match self {
            Door::Ublk(_) => FrontendKind::Ublk,
            Door::Nbd(_) => FrontendKind::Nbd,
            Door::File(_) => FrontendKind::Fuse,
            Door::VhostUser(_) => FrontendKind::VhostUser,
        }
    }

    /// Where each volume is to be found, in the order of `volumes`.
    pub(super) fn devices(&self, volumes: &[Served]) -> Vec<String> {
        match self {
            Door::Ublk(ublk) => vec![ublk.path().display().to_string()],
            Door::File(file) => vec![file.path.display().to_string()],
            Door::VhostUser(disk) => vec![disk.path().display().to_string()],
            // The server names its exports in the order of their names.
            Door::Nbd(nbd) => {
                let mut names: Vec<_> = volumes.iter().map(|(name, _)| name.as_str()).collect();
                names.sort_unstable();
                let place = |name: &VolumeSpec| names.iter().position(|n| *n == name.as_str());
                let uris = volumes.iter().filter_map(|(name, _)| nbd.uris.get(place(name)?));
                uris.cloned().collect()
            }
        }
    }

    /// The block device, where there is one, with its number.
    pub(super) fn block_device(&self) -> Option<(PathBuf, u32)> {
        match self {
            Door::Ublk(ublk) => Some((ublk.path().into(), ublk.dev_id())),
            Door::Nbd(_) | Door::File(_) | Door::VhostUser(_) => None,
        }
    }

    /// Who uses it, where that is known and it should not be pulled away from them.
    pub(super) fn user(&self) -> Option<(PathBuf, String)> {
        match self {
            Door::VhostUser(disk) => disk.user().map(|user| (disk.path().into(), user)),
            Door::Ublk(_) | Door::Nbd(_) | Door::File(_) => None,
        }
    }

    /// Fails where its users would never see that a volume has grown. Errors: unsupported; the
    /// frontend's.
    pub(super) async fn check_growth(&self) -> Result<()> {
        let Door::Ublk(_) = self else { return Ok(()) };
        let checked = spawn_blocking(ublk::check_growth).await;
        checked.map_err(|e| Error::failed("ublk").because(e))?
    }

    /// Shows its users that a volume has grown to `size`; those of a protocol without a word for it see
    /// it when they connect again. The frontend is not to be stopped meanwhile. Errors: the frontend's.
    pub(super) async fn grow(&self, size: SectorCount) -> Result<()> {
        let (dev_id, token) = match self {
            Door::Ublk(ublk) => (ublk.dev_id(), ublk.token()),
            Door::VhostUser(disk) => {
                disk.resized();
                return Ok(());
            }
            Door::Nbd(_) | Door::File(_) => return Ok(()),
        };
        let grown = spawn_blocking(move || ublk::grow(dev_id, token, size)).await;
        grown.map_err(|e| Error::failed("ublk").because(e))?
    }

    /// The file, where it is one, and what it shows.
    pub(super) fn file(&self) -> Option<(PathBuf, Arc<Image<Volume>>)> {
        match self {
            Door::File(file) => Some((file.path.clone(), Arc::clone(&file.image))),
            Door::Ublk(_) | Door::Nbd(_) | Door::VhostUser(_) => None,
        }
    }

    /// The symlink to the block device.
    pub(super) fn link(&self) -> Option<String> {
        match self {
            Door::Ublk(ublk) => ublk.link().map(|link| link.display().to_string()),
            Door::Nbd(_) | Door::File(_) | Door::VhostUser(_) => None,
        }
    }

    /// Counters for the volume called `name`.
    pub(super) fn counters(&self, name: &VolumeSpec) -> serde_json::Value {
        let value = match self {
            Door::Ublk(ublk) => serde_json::to_value(ublk.stats()),
            Door::File(file) => serde_json::to_value(file.image.status()),
            Door::VhostUser(disk) => serde_json::to_value(disk.status()),
            Door::Nbd(nbd) => {
                let exports = (nbd.status)();
                serde_json::to_value(exports.iter().find(|e| e.name == name.as_str()))
            }
        };
        value.unwrap_or_default()
    }

    /// Returns when the frontend has ended by itself.
    pub(super) async fn ended(&self) {
        match self {
            Door::Ublk(ublk) => ublk.wait().await,
            Door::Nbd(nbd) => drop(nbd.ended.clone().wait_for(|ended| *ended).await),
            Door::File(_) | Door::VhostUser(_) => std::future::pending().await,
        }
    }

    /// Ends it, requests in flight answered. Bounded, as the frontends are. Errors: failed.
    pub(super) async fn stop(self) -> Result<()> {
        let ended = match self {
            Door::Ublk(ublk) => spawn_blocking(move || ublk.stop().map(drop)).await,
            Door::VhostUser(disk) => spawn_blocking(move || disk.stop()).await,
            Door::Nbd(nbd) => {
                // It may have ended already.
                let _ = nbd.stop.send(());
                nbd.task.await
            }
            Door::File(file) => {
                file.image.retire().await;
                return Ok(());
            }
        };
        ended.map_err(|e| Error::failed("the frontend did not end in order").because(e))?
    }
}

/// Reads the files of TLS, where there is some.
async fn load_tls(options: Option<&TlsOptions>) -> Result<Option<Tls>> {
    let Some(options) = options.cloned() else { return Ok(None) };
    let loaded = spawn_blocking(|| Tls::load(options)).await;
    loaded.map_err(|e| Error::failed("cannot set up TLS").because(e))?.map(Some)
}

async fn open_nbd(
    listen: &str,
    tls: Option<Tls>,
    connections: Option<usize>,
    volumes: &[Served],
) -> Result<NbdDoor> {
    let mut exports = Exports::new();
    for (name, device) in volumes {
        exports.add(name.as_str(), "objblk volume", Arc::clone(device))?;
    }
    let mut server = Server::bind(&listen.parse()?, exports).await?;
    if let Some(tls) = tls {
        server = server.tls(tls);
    }
    if let Some(connections) = connections {
        server = server.limits(Limits { connections, ..Limits::default() });
    }
    let (uris, offered) = (server.uris(), server.exports());
    let status = Box::new(move || offered.status());
    let (stop, stopped) = oneshot::channel();
    let (ending, ended) = watch::channel(false);
    let task = tokio::spawn(async move {
        let outcome = server.run(async move { drop(stopped.await) }).await;
        ending.send_replace(true);
        outcome
    });
    Ok(NbdDoor { uris, status, stop, ended, task })
}

async fn open_vhost_user(
    socket: &Path,
    volumes: &[Served],
    token: u64,
    (id, closed): (VolumeId, Option<Epoch>),
) -> Result<VhostUser> {
    let (_, device) = volumes.first().expect("a target has a volume");
    let now = device.inner().status();
    let serial: String = id.to_string().chars().filter(|c| *c != '-').collect();
    let identity = Identity {
        volume: id.bytes(),
        token,
        // A volume that is only read has no term of its own.
        epoch: closed.filter(|_| now.read_only).map_or(now.epoch, |epoch| epoch.0),
        closed: closed.map(|epoch| epoch.0),
        unchanging: now.read_only && closed.is_none(),
    };
    VhostUser::start(Arc::clone(device), socket, &serial, identity).await
}

/// What the host lacks is not a thing that the user named: not `NotFound`.
fn lacking(name: &VolumeSpec, e: Error) -> Error {
    match e.kind() {
        ErrorKind::NotFound => Error::failed(format!("cannot attach {name}"))
            .because(e)
            .hint("without ublk, `objblk serve nbd` serves the volume as well"),
        _ => e,
    }
}
