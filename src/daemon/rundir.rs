//! The run directory: what targets of this host and user leave for each other to find.
//!
//! ```text
//! <id>.lock    held by the target of that volume for as long as it lives
//! <id>.json    its state                 |  both by the id of
//! <id>.sock    its control socket        |  the target's first volume
//! <id>.mirror what its successor needs, see [`mirror`]
//! <pid>.nbd    where a process meets a program that it started
//! <name>.log   what a background target has to say
//! <n>.mount, <n>.mount-lock, <n>.mount-sock, <n>.mount-log
//!              of the process of a mounted directory, by a number made of its path
//! ```
//!
//! It is `$OBJBLK_RUN_DIR`, else `/run/objblk` for root, else `$XDG_RUNTIME_DIR/objblk`, else
//! `/tmp/objblk-UID`; mode 0700 and owned by the user, or it is refused.

use super::lock::VolumeLock;
use super::state::{FrontendKind, TargetState};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::frontend::ublk;
use crate::host::{Host, is_running};
use crate::journal::mirror;
use crate::pool::VolumeSpec;
use std::env;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Longest path of a Unix socket, in bytes (`sun_path` without its NUL).
const SOCKET_PATH_MAX: usize = 107;

/// The run directory.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
}

/// A target that left a state file.
#[derive(Clone, Debug)]
pub struct Target {
    /// What it says of itself.
    pub state: TargetState,
    /// Its process lives.
    pub alive: bool,
    pub(super) socket: PathBuf,
}

/// Volumes that this process holds on this host. The kernel drops them when it ends.
#[derive(Debug)]
pub struct Held(Vec<VolumeLock>);

impl Held {
    /// Gives them up and leaves no trace.
    pub fn release(self) {
        self.0.into_iter().for_each(VolumeLock::release);
    }
}

impl Target {
    /// It is dead, and users wait for a successor: the kernel keeps its device, or it served a guest.
    pub fn is_recoverable(&self) -> bool {
        let state = &self.state;
        let here = || Host::local().is_ok_and(|host| host.boot() == state.boot);
        if state.frontend == FrontendKind::VhostUser {
            return state.successor.is_some() && !self.alive && here();
        }
        match (state.successor.is_some(), state.dev_id, state.token) {
            (true, Some(dev_id), Some(token)) if !self.alive => {
                here() && ublk::is_there(dev_id, token)
            }
            _ => false,
        }
    }

    /// Why nothing else may be done with the volume `name` of this dead target.
    pub fn kept(&self, name: &VolumeSpec) -> Error {
        let (pid, device) = (self.state.pid, &self.state.volumes[0].device);
        let message = format!("process {pid}, which served {name}, is dead, and {device} waits");
        Error::new(ErrorKind::Busy, message).hint(format!(
            "bring it back with `objblk recover {name}`, or give up the device and what it had \
             not stored with `objblk detach --force {name}`"
        ))
    }
}

impl RunDir {
    /// Opens the run directory, made where it is missing. Errors: failed.
    pub fn open() -> Result<RunDir> {
        let uid = nix::unistd::geteuid();
        let variable = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let path = match variable("OBJBLK_RUN_DIR") {
            Some(path) => path,
            None if uid.is_root() => "/run/objblk".into(),
            None => match variable("XDG_RUNTIME_DIR") {
                Some(path) => path.join("objblk"),
                None => format!("/tmp/objblk-{uid}").into(),
            },
        };
        RunDir::at(path)
    }

    fn at(path: PathBuf) -> Result<RunDir> {
        let failed = |what: &str| {
            Error::failed(format!("cannot use the run directory {}: {what}", path.display()))
        };
        let hint = "set OBJBLK_RUN_DIR to another directory";
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|e| failed("it cannot be made").because(e).hint(hint))?;
        let meta = fs::symlink_metadata(&path).map_err(|e| failed("it is gone").because(e))?;
        if !meta.is_dir() || meta.uid() != nix::unistd::geteuid().as_raw() {
            return Err(failed("it is not a directory of this user").hint(hint));
        }
        if meta.mode() & 0o077 != 0 {
            return Err(failed("others may enter it").hint("chmod 700, or ".to_owned() + hint));
        }
        let path = path.canonicalize().map_err(|e| failed("it has no path").because(e))?;
        let run_dir = RunDir { path };
        let longest = run_dir.file(VolumeId::from_bytes([0; 16]), "sock");
        if longest.as_os_str().len() > SOCKET_PATH_MAX {
            let path = run_dir.path.display();
            let message = format!("cannot use the run directory {path}: its path is too long");
            return Err(Error::failed(message).hint(hint));
        }
        Ok(run_dir)
    }

    fn file(&self, id: VolumeId, extension: &str) -> PathBuf {
        self.path.join(format!("{id}.{extension}"))
    }

    /// A file of the process of a mounted directory.
    pub(super) fn of_mount(&self, number: u32, kind: &str) -> PathBuf {
        self.path.join(format!("{number:08x}.{kind}"))
    }

    pub(super) fn state_file(&self, first: VolumeId) -> PathBuf {
        self.file(first, "json")
    }

    pub(super) fn socket(&self, first: VolumeId) -> PathBuf {
        self.file(first, "sock")
    }

    /// Where what the volume has acknowledged and not stored is kept for its target's successor.
    pub(super) fn mirror(&self, first: VolumeId) -> PathBuf {
        self.file(first, "mirror")
    }

    /// Where a background target of the volume `name` writes its log.
    pub fn log(&self, name: &VolumeSpec) -> PathBuf {
        self.path.join(format!("{name}.log"))
    }

    /// Where an NBD server of the volume `name` listens if nothing else is said.
    pub fn nbd_socket(&self, name: &VolumeSpec) -> PathBuf {
        self.path.join(format!("{name}.nbd"))
    }

    /// Where this process may meet a program that it started.
    pub fn meeting(&self) -> PathBuf {
        self.path.join(format!("{}.nbd", std::process::id()))
    }

    /// Every target of this run directory, the dead ones included, by name.
    /// Errors: failed. A state file that does not parse is passed over with a warning.
    pub fn targets(&self) -> Result<Vec<Target>> {
        let failed = || Error::failed(format!("cannot list {}", self.path.display()));
        let mut targets = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(|e| failed().because(e))? {
            let path = entry.map_err(|e| failed().because(e))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match self.target(&path) {
                Ok(found) => targets.extend(found),
                Err(e) => tracing::warn!("{e}"),
            }
        }
        targets.sort_by(|a, b| a.state.volumes[0].name.cmp(&b.state.volumes[0].name));
        Ok(targets)
    }

    fn target(&self, path: &Path) -> Result<Option<Target>> {
        let Some(state) = TargetState::read(path)? else { return Ok(None) };
        let first = state.volumes[0].id;
        // Not by the lock: whoever tries it would be in the way of one who takes it.
        let alive = state.boot == Host::local()?.boot() && is_running(state.pid, state.pid_start);
        if alive && state.frontend == FrontendKind::Ublk && state.dev_id.is_none() {
            // It has no device yet; it left its token in case that it does not get that far.
            return Ok(None);
        }
        Ok(Some(Target { state, alive, socket: self.socket(first) }))
    }

    /// The target that holds the volume `id`, if any left a state file.
    pub fn holder(&self, id: VolumeId) -> Result<Option<Target>> {
        let holds = |target: &Target| target.state.volumes.iter().any(|v| v.id == id);
        Ok(self.targets()?.into_iter().find(holds))
    }

    /// Takes the volumes for this process, after removing what dead targets left of them.
    /// Errors: busy, where another process has one of them; then none is taken.
    pub fn take(&self, volumes: &[(VolumeId, VolumeSpec)]) -> Result<Held> {
        let mut taken = Held(Vec::new());
        for (id, name) in volumes {
            match VolumeLock::try_take(&self.file(*id, "lock")) {
                Ok(Some(lock)) => taken.0.push(lock),
                refused => {
                    taken.release();
                    refused?;
                    return Err(self.attached_already(*id, name));
                }
            }
        }
        for (id, name) in volumes {
            if let Some(left) = self.holder(*id)? {
                if left.is_recoverable() {
                    taken.release();
                    return Err(left.kept(name));
                }
                // Its first volume may be one of those taken just now: it is dead either way.
                let ours = volumes.iter().any(|(id, _)| *id == left.state.volumes[0].id);
                if ours || !left.alive {
                    self.clean_up(&left)?;
                }
            }
        }
        Ok(taken)
    }

    fn attached_already(&self, id: VolumeId, name: &VolumeSpec) -> Error {
        let Ok(Some(target)) = self.holder(id) else {
            let text = format!("another command of this host has volume {name}");
            return Error::new(ErrorKind::Busy, text).hint("try again when it has ended");
        };
        let device = target.state.volumes.iter().find(|v| v.id == id).map(|v| &v.device);
        let device = device.map(|d| format!(" as {d}")).unwrap_or_default();
        let by = format!("{device} by process {}", target.state.pid);
        Error::new(ErrorKind::Busy, format!("volume {name} is attached already{by}"))
            .hint(format!("detach it first with `objblk detach {name}`"))
    }

    /// Takes the volumes of a dead target and leaves everything else as it is, for a successor.
    /// Errors: busy, where somebody else has one of them.
    pub(super) fn succeed(&self, target: &Target) -> Result<Held> {
        let mut held = Held(Vec::new());
        for volume in &target.state.volumes {
            match VolumeLock::try_take(&self.file(volume.id, "lock")) {
                Ok(Some(lock)) => held.0.push(lock),
                refused => {
                    held.release();
                    refused?;
                    return Err(self.attached_already(volume.id, &volume.name));
                }
            }
        }
        Ok(held)
    }

    /// Removes what a dead target left: its kernel device and its files. Errors: failed; busy,
    /// where it turns out to live.
    pub fn remove_dead(&self, target: &Target) -> Result<()> {
        let mut held = Held(Vec::new());
        for volume in &target.state.volumes {
            match VolumeLock::try_take(&self.file(volume.id, "lock"))? {
                Some(lock) => held.0.push(lock),
                // Another target has that volume by now; it takes care of it.
                None if volume.id != target.state.volumes[0].id => {}
                None => return Err(self.attached_already(volume.id, &volume.name)),
            }
        }
        let cleaned = self.clean_up(target);
        held.release();
        cleaned
    }

    /// As [`RunDir::remove_dead`], for one who holds the lock of the target's first volume.
    pub(super) fn clean_up(&self, target: &Target) -> Result<()> {
        let state = &target.state;
        // The number means this device only within the boot it was given in, and even then it may
        // have been given to another one by now.
        let dev_id = match (state.dev_id, state.token) {
            _ if state.boot != Host::local()?.boot() => None,
            (Some(dev_id), Some(token)) => Some(dev_id).filter(|id| ublk::is_there(*id, token)),
            (None, Some(token)) if state.frontend == FrontendKind::Ublk => ublk::find(token),
            (None, Some(_)) => None,
            (dev_id, None) => dev_id,
        };
        if let Some(dev_id) = dev_id {
            match ublk::reap(dev_id) {
                Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Busy) => {
                    return Err(e.context(format!("process {} is dead", state.pid)));
                }
                _ => tracing::info!("removed the device of process {}, which is dead", state.pid),
            }
        }
        self.remove_files(state.volumes[0].id)
    }

    /// Removes the control socket, the mirror and, last, the state file.
    pub(super) fn remove_files(&self, first: VolumeId) -> Result<()> {
        self.remove_socket(first)?;
        mirror::remove(&self.mirror(first))?;
        remove_file(&self.state_file(first))
    }

    /// Removes the control socket of a dead target.
    pub(super) fn remove_socket(&self, first: VolumeId) -> Result<()> {
        remove_file(&self.socket(first))
    }
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::failed(format!("cannot remove {}", path.display())).because(e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_private_directories_with_room_for_a_socket() {
        let folder = tempfile::tempdir().unwrap();
        let private = RunDir::at(folder.path().join("run")).unwrap();
        assert!(private.targets().unwrap().is_empty());
        let open = folder.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
        let error = RunDir::at(open).unwrap_err().to_string();
        assert!(error.contains("others may enter it; chmod 700"), "{error}");
        let error = RunDir::at(folder.path().join("x".repeat(90))).unwrap_err().to_string();
        assert!(error.contains("its path is too long"), "{error}");
    }

    #[test]
    fn a_volume_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = RunDir::at(folder.path().join("run")).unwrap();
        let a = (VolumeId::from_bytes([1; 16]), "a".parse().unwrap());
        let b = (VolumeId::from_bytes([2; 16]), "b".parse().unwrap());
        let held = run_dir.take(std::slice::from_ref(&b)).unwrap();
        let error = run_dir.take(&[a.clone(), b]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert_eq!(run_dir.take(&[a]).unwrap().0.len(), 1, "the refusal kept the other lock");
        held.release();
    }
}
