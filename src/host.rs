//! Who am I, and is that owner still alive: the identity an owner leaves in the store.
//!
//! A process is named by host, boot, process id and start time. Only one that carries this host's
//! name *and* boot can be judged from here; of any other nothing is known. The boot id carries the
//! process-id namespace as well, so that a container does not take the process ids of its host
//! for its own. Safety never rests on this: it decides which words and which default a user gets,
//! the fence decides who may write.

use crate::clock::{Clock, SystemClock};
use crate::error::{Error, Result};
use crate::format::volume::EpochObject;
use std::fs;

/// This host, as owners of volumes name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    name: String,
    boot: String,
}

/// What is known of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It runs on this host.
    Alive,
    /// It ran on this host, in this boot, and does not any more.
    Dead,
    /// It belongs to another host, boot or process-id namespace.
    Unknown,
}

impl Host {
    /// The host this process runs on. Errors: failed, where /proc is not there.
    pub fn local() -> Result<Host> {
        let name = hostname::get()
            .map_err(|e| Error::failed("cannot read this host's name").because(e))?;
        let path = "/proc/sys/kernel/random/boot_id";
        let boot = fs::read_to_string(path)
            .map_err(|e| Error::failed(format!("cannot read {path}")).because(e))?;
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        Ok(Host {
            name: name.to_string_lossy().into_owned(),
            boot: format!("{} {}", boot.trim(), namespace.display()),
        })
    }

    /// Boot and process-id namespace, as stored in [`EpochObject::boot_id`].
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// This process as the owner of a volume, claiming it now.
    pub fn owner(&self) -> EpochObject {
        let pid = std::process::id();
        EpochObject {
            host: self.name.clone(),
            boot_id: self.boot.clone(),
            pid,
            pid_start: process_start(pid).unwrap_or(0),
            claimed_at_ms: SystemClock.now_ms(),
            nonce: format!("{:032x}", rand::random::<u128>()),
            journal: None,
        }
    }

    /// Whether `owner` still runs, as far as this host can tell.
    pub fn liveness(&self, owner: &EpochObject) -> Liveness {
        if owner.host != self.name || owner.boot_id != self.boot {
            Liveness::Unknown
        } else if is_running(owner.pid, owner.pid_start) {
            Liveness::Alive
        } else {
            Liveness::Dead
        }
    }
}

/// True while the process `pid` that started at `start` (see [`process_start`]) runs.
pub fn is_running(pid: u32, start: u64) -> bool {
    process_start(pid) == Some(start)
}

/// When the process `pid` started, in clock ticks since boot; `None` where it does not run
/// (a zombie does not).
pub fn process_start(pid: u32) -> Option<u64> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Start time of a running process from its `/proc/PID/stat` (proc(5), fields 3 and 22).
fn parse_stat(stat: &str) -> Option<u64> {
    // The command's name is in parentheses and may hold anything, more of them included.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_judged_only_on_their_own_boot() {
        let host = Host::local().unwrap();
        let me = host.owner();
        assert_eq!(host.liveness(&me), Liveness::Alive);
        let reused = EpochObject { pid_start: me.pid_start + 1, ..me.clone() };
        assert_eq!(host.liveness(&reused), Liveness::Dead);
        let elsewhere = EpochObject { boot_id: "x".into(), ..me.clone() };
        assert_eq!(host.liveness(&elsewhere), Liveness::Unknown);
        assert_ne!(me.nonce, host.owner().nonce);
    }

    #[test]
    fn stat_lines() {
        let line = |state: &str| {
            format!("7 (a) b) {state} 1 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 {} 9 9", 12345)
        };
        assert_eq!(parse_stat(&line("S")), Some(12345));
        assert_eq!(parse_stat(&line("Z")), None);
        assert_eq!(parse_stat("7 (a"), None);
        assert_eq!(parse_stat(""), None);
    }
}
