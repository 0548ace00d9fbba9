//! The state file of a target: who it is and what it holds, for the other commands on this host.
//!
//! Written whole and renamed into place, so a reader sees all of it or nothing. Parsing is total
//! and bounded; a file that does not parse is an error that names it.

use super::spec::TargetSpec;
use crate::error::{Error, Result};
use crate::format::VolumeId;
use crate::pool::VolumeSpec;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Read;
use std::path::Path;

/// The version of the state file.
const VERSION: u32 = 1;

/// Longest state file that is read, in bytes.
const LEN_MAX: u64 = 1 << 20;

/// A target, as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetState {
    version: u32,
    /// Process id.
    pub pid: u32,
    /// When the process started, in clock ticks since boot.
    pub pid_start: u64,
    /// Boot and process-id namespace of the process.
    pub boot: String,
    /// When it became ready, in milliseconds since 1970.
    pub since_ms: u64,
    /// Address of the store.
    pub store: String,
    /// The frontend.
    pub frontend: FrontendKind,
    /// The N of `/dev/ublkbN`.
    pub dev_id: Option<u32>,
    /// What marks the ublk device as this target's, whatever its number, or the guest of a vhost-user
    /// device as its own.
    #[serde(default)]
    pub token: Option<u64>,
    /// What a successor is to do if this process dies; `None` where its device dies with it.
    #[serde(default)]
    pub successor: Option<TargetSpec>,
    /// The volumes, in the order of their ids.
    pub volumes: Vec<Attached>,
}

/// A volume that a target holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attached {
    /// The volume.
    pub id: VolumeId,
    /// The name by which it was attached.
    pub name: VolumeSpec,
    /// Where it is to be found: a device's path or a URI.
    pub device: String,
    /// The symlink to the device.
    pub link: Option<String>,
    /// It can only be read.
    pub read_only: bool,
}

/// Which frontend a target has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrontendKind {
    /// A kernel block device.
    Ublk,
    /// An NBD server.
    Nbd,
    /// A file of a mounted directory.
    Fuse,
    /// A virtual machine's disk.
    VhostUser,
}

impl FrontendKind {
    /// Its name for users.
    pub fn name(self) -> &'static str {
        match self {
            FrontendKind::Ublk => "ublk",
            FrontendKind::Nbd => "nbd",
            FrontendKind::Fuse => "fuse",
            FrontendKind::VhostUser => "vhost-user",
        }
    }
}

/// What of a state is not known to the process itself.
pub(super) struct Serving {
    pub(super) store: String,
    pub(super) frontend: FrontendKind,
    pub(super) dev_id: Option<u32>,
    pub(super) token: Option<u64>,
    pub(super) successor: Option<TargetSpec>,
    pub(super) volumes: Vec<Attached>,
}

impl TargetState {
    /// The state of this process, ready now.
    pub(super) fn of_this_process(host: &crate::host::Host, serving: Serving) -> TargetState {
        let me = host.owner();
        TargetState {
            version: VERSION,
            pid: me.pid,
            pid_start: me.pid_start,
            boot: me.boot_id,
            since_ms: me.claimed_at_ms,
            store: serving.store,
            frontend: serving.frontend,
            dev_id: serving.dev_id,
            token: serving.token,
            successor: serving.successor,
            volumes: serving.volumes,
        }
    }

    /// Reads a state file; `None` where there is none. Errors: failed.
    pub(super) fn read(path: &Path) -> Result<Option<TargetState>> {
        let failed = || Error::failed(format!("cannot read {}", path.display()));
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed().because(e)),
        };
        let mut text = String::new();
        file.take(LEN_MAX).read_to_string(&mut text).map_err(|e| failed().because(e))?;
        let state = TargetState::parse(&text);
        state.map(Some).map_err(|e| failed().because(e).hint("remove it if no objblk runs here"))
    }

    /// The state that a state file's text tells. The error is for people.
    pub fn parse(text: &str) -> std::result::Result<TargetState, String> {
        let state: TargetState = serde_json::from_str(text).map_err(|e| e.to_string())?;
        match state.version {
            VERSION if state.volumes.is_empty() => Err("it names no volume".into()),
            VERSION => Ok(state),
            version => Err(format!("it is of version {version}, not {VERSION}")),
        }
    }

    /// Writes the state file at once and whole.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).expect("plain structures always serialise");
        let new = path.with_extension("new");
        let written = fs::write(&new, text).and_then(|()| fs::rename(&new, path));
        written.map_err(|e| Error::failed(format!("cannot write {}", path.display())).because(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;

    #[test]
    fn round_trip_and_refusals() {
        let attached = Attached {
            id: VolumeId::from_bytes([1; 16]),
            name: "data".parse().unwrap(),
            device: "/dev/ublkb0".into(),
            link: Some("/dev/objblk/data".into()),
            read_only: false,
        };
        let serving = Serving {
            store: "file:///srv".into(),
            frontend: FrontendKind::Ublk,
            dev_id: Some(0),
            token: Some(u64::MAX),
            successor: None,
            volumes: vec![attached],
        };
        let state = TargetState::of_this_process(&Host::local().unwrap(), serving);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        assert!(TargetState::read(&path).unwrap().is_none());
        state.write(&path).unwrap();
        assert_eq!(TargetState::read(&path).unwrap().unwrap(), state);
        let text = fs::read_to_string(&path).unwrap();
        for bad in ["", "{}", &text.replace("\"version\": 1", "\"version\": 2"), &text[..50]] {
            fs::write(&path, bad).unwrap();
            assert!(TargetState::read(&path).is_err(), "{bad}");
        }
    }
}
