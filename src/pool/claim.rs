//! May this host take a volume, and what to say to a user where it may not.

use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind};
use crate::format::volume::EpochObject;
use crate::host::{Host, Liveness};
use crate::volume::Ownership;

/// What a volume's ownership means to this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody owns it: it was never opened, or was closed in order.
    Free,
    /// Its owner ran on this host and is dead: taking over needs nobody's consent.
    Orphaned(EpochObject),
    /// Its owner runs on this host.
    OwnedHere(EpochObject),
    /// It was not closed, and its owner cannot be judged from here.
    OwnedElsewhere(Option<EpochObject>),
}

/// What `ownership` means to `host`.
pub fn standing(ownership: &Ownership, host: &Host) -> Standing {
    match &ownership.owner {
        _ if ownership.closed || ownership.epoch.0 == 0 => Standing::Free,
        None => Standing::OwnedElsewhere(None),
        Some(owner) => match host.liveness(owner) {
            Liveness::Dead => Standing::Orphaned(owner.clone()),
            Liveness::Alive => Standing::OwnedHere(owner.clone()),
            Liveness::Unknown => Standing::OwnedElsewhere(Some(owner.clone())),
        },
    }
}

impl Standing {
    /// True where a claim would cut off an owner that may be alive.
    pub fn is_held(&self) -> bool {
        matches!(self, Standing::OwnedHere(_) | Standing::OwnedElsewhere(_))
    }

    /// Who owns it, and since when.
    pub fn owner(&self) -> String {
        match self {
            Standing::OwnedHere(owner) => {
                format!("process {} on this host, {}", owner.pid, since(owner))
            }
            Standing::OwnedElsewhere(Some(owner)) => {
                format!("{}, {}", owner.owner(), since(owner))
            }
            Standing::Orphaned(owner) => format!("process {}, which is dead", owner.pid),
            _ => "an owner that left no trace".into(),
        }
    }

    /// The refusal for a volume that is held; `instead` is what the user may do.
    pub fn refusal(&self, name: impl std::fmt::Display, instead: &str) -> Error {
        let owner = self.owner();
        let error = Error::new(ErrorKind::Busy, format!("volume {name} is owned by {owner}"));
        match self {
            Standing::Orphaned(_) => error.hint(instead),
            _ => error.hint(format!("detach it there, or {instead}")),
        }
    }
}

fn since(owner: &EpochObject) -> String {
    let seconds = SystemClock.now_ms().saturating_sub(owner.claimed_at_ms) / 1000;
    let age = match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    };
    format!("for {age}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Epoch, SectorCount};

    fn owned(owner: Option<EpochObject>) -> Ownership {
        Ownership {
            epoch: Epoch(3),
            closed: false,
            owner,
            size: SectorCount(8),
            live: SectorCount(0),
            snapshots: 0,
            checkpoint_at_ms: 0,
            retention_ms: 0,
            replica: None,
        }
    }

    #[test]
    fn only_the_dead_of_this_boot_are_succeeded_without_asking() {
        let host = Host::local().unwrap();
        let me = host.owner();
        let dead = EpochObject { pid_start: me.pid_start + 1, ..me.clone() };
        let far = EpochObject { host: "far".into(), ..me.clone() };
        let judge = |owner: &EpochObject| standing(&owned(Some(owner.clone())), &host);
        assert_eq!(judge(&me), Standing::OwnedHere(me.clone()));
        assert_eq!(judge(&dead), Standing::Orphaned(dead.clone()));
        assert_eq!(judge(&far), Standing::OwnedElsewhere(Some(far.clone())));
        assert!(!judge(&dead).is_held());
        let closed = Ownership { closed: true, ..owned(Some(far.clone())) };
        assert_eq!(standing(&closed, &host), Standing::Free);
        let name = "data";
        let text = judge(&far).refusal(name, "take it over with --takeover").to_string();
        assert!(text.starts_with("volume data is owned by process"), "{text}");
        assert!(text.contains("on host far, for 0 s; detach it there, or take it over"), "{text}");
    }
}
