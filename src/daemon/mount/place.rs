//! A mounted directory, as other processes of this host find it.

use crate::daemon::lock::VolumeLock;
use crate::daemon::rundir::RunDir;
use crate::daemon::state::FrontendKind;
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::fuse::{Mounted, mounted_at, unmount};
use crate::host::{Host, is_running};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// The version of the state file.
const VERSION: u32 = 1;

/// Longest state file that is read, in bytes.
const LEN_MAX: u64 = 64 << 10;

/// How long a directory may take to say that it is dead.
const PROMPT: Duration = Duration::from_secs(5);

/// The state file: who serves which directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlaceState {
    version: u32,
    /// Process id.
    pub(super) pid: u32,
    pid_start: u64,
    boot: String,
    dir: PathBuf,
    store: String,
}

impl PlaceState {
    /// Its process lives.
    pub(super) fn is_alive(&self) -> bool {
        let here = Host::local().is_ok_and(|host| host.boot() == self.boot);
        here && is_running(self.pid, self.pid_start)
    }
}

/// The place of this process.
#[derive(Debug)]
pub(super) struct Place {
    run_dir: RunDir,
    dir: PathBuf,
    lock: VolumeLock,
}

/// The path of a directory without symlinks, also where what is mounted on it is dead.
/// Errors: not found.
pub(super) fn resolved(dir: &Path) -> Result<PathBuf> {
    let shown = dir.display();
    let missing = |e| Error::not_found(format!("there is no directory {shown}")).because(e);
    let absolute = std::path::absolute(dir).map_err(missing)?;
    match absolute.canonicalize() {
        Ok(path) => Ok(path),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(missing(e).hint(format!("make it with `mkdir -p {shown}`")))
        }
        // Nobody answers there: what leads there does.
        Err(e) => match (absolute.parent(), absolute.file_name()) {
            (Some(parent), Some(name)) => Ok(parent.canonicalize().map_err(missing)?.join(name)),
            _ => Err(missing(e)),
        },
    }
}

fn number(dir: &Path) -> u32 {
    crc32c::crc32c(dir.as_os_str().as_encoded_bytes())
}

/// What is known of a directory that is, or was, mounted. Errors: failed.
pub(super) fn find(run_dir: &RunDir, dir: &Path) -> Result<Option<PlaceState>> {
    let path = run_dir.of_mount(number(dir), "mount");
    let failed = || Error::failed(format!("cannot read {}", path.display()));
    let file = match fs::File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed().because(e)),
    };
    let mut text = String::new();
    file.take(LEN_MAX).read_to_string(&mut text).map_err(|e| failed().because(e))?;
    let parsed: serde_json::Result<PlaceState> = serde_json::from_str(&text);
    let state = parsed.map_err(|e| failed().because(e).hint("remove it if no objblk runs here"))?;
    if state.version != VERSION {
        return Err(failed().because(format!("it is of version {}", state.version)));
    }
    Ok(Some(state).filter(|state| state.dir == dir))
}

/// The control socket of the process of a directory.
pub(super) fn socket(run_dir: &RunDir, dir: &Path) -> PathBuf {
    run_dir.of_mount(number(dir), "mount-sock")
}

/// What the process of a directory holds for as long as it lives.
pub(super) fn lock(run_dir: &RunDir, dir: &Path) -> PathBuf {
    run_dir.of_mount(number(dir), "mount-lock")
}

/// Removes what a dead process left of a directory, the mount itself included. Errors: failed.
pub(super) async fn clear(run_dir: &RunDir, dir: &Path, left: Option<&PlaceState>) -> Result<()> {
    if mounted_at(dir) == Mounted::Ours {
        let at = dir.to_owned();
        let unmounted = spawn_blocking(move || unmount(&at, true)).await;
        let unmounted = unmounted.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        let failed = |e| Error::failed(format!("cannot unmount {}", dir.display())).because(e);
        unmounted.map_err(failed)?;
    }
    if let Some(left) = left {
        for target in run_dir.targets()? {
            let state = &target.state;
            if state.pid == left.pid && state.frontend == FrontendKind::Fuse && !target.alive {
                run_dir.remove_dead(&target)?;
            }
        }
    }
    remove(run_dir, dir)
}

fn remove(run_dir: &RunDir, dir: &Path) -> Result<()> {
    for kind in ["mount-sock", "mount"] {
        let path = run_dir.of_mount(number(dir), kind);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                let message = format!("cannot remove {}", path.display());
                return Err(Error::failed(message).because(e));
            }
            _ => {}
        }
    }
    Ok(())
}

impl Place {
    /// Takes a directory for this process, after removing what a dead one left of it.
    /// Errors: not found; busy, where another process has it.
    pub(super) async fn take(run_dir: &RunDir, dir: &Path) -> Result<Place> {
        let dir = resolved(dir)?;
        let Some(lock) = VolumeLock::try_take(&lock(run_dir, &dir))? else {
            return Err(already(&dir, find(run_dir, &dir)?.as_ref()));
        };
        let place = Place { run_dir: run_dir.clone(), dir, lock };
        match place.settle().await {
            Ok(()) => Ok(place),
            Err(e) => {
                place.lock.release();
                Err(e)
            }
        }
    }

    async fn settle(&self) -> Result<()> {
        let left = find(&self.run_dir, &self.dir)?;
        if mounted_at(&self.dir) == Mounted::Ours && !is_dead(&self.dir).await {
            return Err(already(&self.dir, None));
        }
        if let Some(left) = &left {
            let dir = self.dir.display();
            tracing::info!("process {}, which had mounted {dir}, is dead", left.pid);
        }
        clear(&self.run_dir, &self.dir, left.as_ref()).await?;
        let shown = self.dir.display();
        match fs::metadata(&self.dir) {
            Ok(meta) if meta.is_dir() => Ok(()),
            Ok(_) => Err(Error::usage(format!("{shown} is no directory"))),
            Err(e) => Err(Error::failed(format!("cannot use the directory {shown}")).because(e)),
        }
    }

    /// The directory, without symlinks.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The control socket.
    pub(super) fn socket(&self) -> PathBuf {
        socket(&self.run_dir, &self.dir)
    }

    /// The log of a process in the background.
    pub(super) fn log(run_dir: &RunDir, dir: &Path) -> PathBuf {
        let dir = resolved(dir).unwrap_or_else(|_| dir.into());
        run_dir.of_mount(number(&dir), "mount-log")
    }

    /// Lets other commands find this process, before anything is mounted. Errors: failed.
    pub(super) fn announce(&self, store: &str) -> Result<()> {
        let me = Host::local()?.owner();
        let state = PlaceState {
            version: VERSION,
            pid: me.pid,
            pid_start: me.pid_start,
            boot: me.boot_id,
            dir: self.dir.clone(),
            store: store.into(),
        };
        let text = serde_json::to_vec_pretty(&state).expect("plain structures always serialise");
        let path = self.run_dir.of_mount(number(&self.dir), "mount");
        let new = path.with_extension("mount-new");
        let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &path));
        written.map_err(|e| Error::failed(format!("cannot write {}", path.display())).because(e))
    }

    /// Leaves no trace in the run directory.
    pub(super) fn leave(self) {
        if let Err(e) = remove(&self.run_dir, &self.dir) {
            tracing::warn!("{e}");
        }
        self.lock.release();
    }
}

fn already(dir: &Path, state: Option<&PlaceState>) -> Error {
    let by = state.map(|state| format!(" by process {}", state.pid)).unwrap_or_default();
    Error::new(ErrorKind::Busy, format!("{} is mounted already{by}", dir.display()))
        .hint(format!("unmount it first with `objblk umount {}`", dir.display()))
}

/// The process behind what is mounted on `dir` is gone. One that does not answer is not.
async fn is_dead(dir: &Path) -> bool {
    let at = dir.to_owned();
    let looked = timeout(PROMPT, spawn_blocking(move || fs::metadata(at).map(drop))).await;
    let gone = nix::errno::Errno::ENOTCONN as i32;
    matches!(looked, Ok(Ok(Err(e))) if e.raw_os_error() == Some(gone))
}
