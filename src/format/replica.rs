//! Replicas: volumes that are shipped from another pool, and which state of them is complete. JSON.
//!
//! ```text
//! replica/<~n>  version (1), volume, number, pool (that it is shipped from), from (its address, for people),
//!               shipped {checkpoint {next, epoch} or none, end {next, epoch}, seen_at_ms},
//!               branches [epochs], where the volume is one that was a replica itself,
//!               promoted {epoch, at_ms, by}, once it is a volume of its own
//! ```
//!
//! Only the newest one counts. It says what the objects of the volume are worth, of which there may be more: the
//! state of `checkpoint` (none: the state that the volume was made with), and the log behind it up to the slot
//! `end`, which is the first one that is not in it. All else came early or late, and is nothing.
//!
//! From the promotion on the log goes on in the slot behind `end`, in the promoted epoch, which nobody claims. Slot `end` is
//! that of a fence: whatever it holds is not read. And checkpoints count only if they are of later epochs, or are `checkpoint`. The promoted epoch is
//! chosen at random far behind all that the source will ever claim ([`ReplicaObject::promoted_epoch`]), so no two
//! objects of one name are ever written by both, and what still comes from the source is not looked at.

use super::VolumeId;
use super::codec::{FormatError, FormatResult, Problem};
use super::page::SEQ_MAX;
use super::pool::parse_json;
use crate::units::{Epoch, Seq};
use serde::{Deserialize, Serialize};

/// The version of the object.
pub const REPLICA_VERSION: u32 = 1;
/// So many epochs lie between a source and a replica that is promoted, at least.
const APART: u64 = 1 << 40;
/// How often a volume may be promoted, and shipped on.
pub const BRANCHES_MAX: usize = 256;
/// The greatest epoch that a replica may be promoted to: there are enough behind it for all owners.
const EPOCH_MAX: u64 = u64::MAX / 4;

/// A position of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The slot.
    pub next: Seq,
    /// The epoch in which it is written.
    pub epoch: Epoch,
}

/// A state of the source that is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shipped {
    /// The checkpoint that it begins with; none: what the volume was made with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Position>,
    /// The first slot that is not in it.
    pub end: Position,
    /// It has all that the source had then, in milliseconds since 1970; 0: nothing was shipped yet.
    pub seen_at_ms: u64,
}

/// The end of a replica: the volume is one of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promoted {
    /// The epoch in which the log goes on.
    pub epoch: Epoch,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// On which host.
    pub by: String,
}

/// `replica/<~n>`: which state of a replica is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaObject {
    /// Layout version.
    pub version: u32,
    /// The volume.
    pub volume: VolumeId,
    /// The number in its name.
    pub number: u64,
    /// The pool that it is shipped from.
    pub pool: VolumeId,
    /// Where that is, for people.
    pub from: String,
    /// What is complete.
    pub shipped: Shipped,
    /// The epochs that the volume was promoted to before it was shipped, ascending: their terms begin without a fence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub branches: Vec<Epoch>,
    /// It is no replica any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted: Option<Promoted>,
}

impl ReplicaObject {
    /// Of `volume`, of which nothing was shipped yet.
    pub fn initial(volume: VolumeId, pool: VolumeId, from: String) -> ReplicaObject {
        let end = Position { next: Seq(0), epoch: Epoch(0) };
        ReplicaObject {
            version: REPLICA_VERSION,
            volume,
            number: 0,
            pool,
            from,
            shipped: Shipped { checkpoint: None, end, seen_at_ms: 0 },
            branches: Vec::new(),
            promoted: None,
        }
    }

    /// Parses the object and checks every value.
    pub fn parse(bytes: &[u8]) -> FormatResult<ReplicaObject> {
        let object: ReplicaObject = parse_json("replica", bytes)?;
        let error = |field, problem| FormatError { object: "replica", field, offset: 0, problem };
        if object.version != REPLICA_VERSION {
            return Err(error("version", Problem::Unsupported(object.version.to_string())));
        }
        let Shipped { checkpoint, end, .. } = object.shipped;
        let bad = |field, what: String| Err(error(field, Problem::Value(what)));
        if end.next.0 > SEQ_MAX || end.epoch.0 > EPOCH_MAX {
            return bad("end", format!("{} in epoch {}", end.next, end.epoch));
        }
        if checkpoint.is_some_and(|from| from.next > end.next || from.epoch > end.epoch) {
            return bad("checkpoint", "it is behind the end".into());
        }
        let ascend = object.branches.windows(2).all(|pair| pair[0] < pair[1]);
        if object.branches.len() > BRANCHES_MAX || !ascend {
            return bad("branches", format!("{}, or out of order", object.branches.len()));
        }
        match &object.promoted {
            Some(promoted) if promoted.epoch <= end.epoch || promoted.epoch.0 > EPOCH_MAX => {
                bad("promoted", promoted.epoch.to_string())
            }
            _ => Ok(object),
        }
    }

    /// Whether a term of that epoch begins without a fence.
    pub fn is_branch(&self, epoch: Epoch) -> bool {
        self.branches.contains(&epoch) || self.promoted.as_ref().is_some_and(|p| p.epoch == epoch)
    }

    /// An epoch to promote it to, by 40 `random` bits; none are left, where it was promoted millions of times.
    pub fn promoted_epoch(&self, random: u64) -> Option<Epoch> {
        let epoch = self.shipped.end.epoch.0.checked_add(APART)?.checked_add(random % APART)?;
        Some(Epoch(epoch)).filter(|epoch| epoch.0 <= EPOCH_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::super::pool::encode_json;
    use super::*;

    fn replica() -> ReplicaObject {
        let (id, pool) = (VolumeId::from_bytes([7; 16]), VolumeId::from_bytes([8; 16]));
        let mut replica = ReplicaObject::initial(id, pool, "mem://".into());
        let at = |next, epoch| Position { next: Seq(next), epoch: Epoch(epoch) };
        replica.shipped = Shipped { checkpoint: Some(at(9, 2)), end: at(12, 3), seen_at_ms: 1 };
        replica
    }

    #[test]
    fn epochs_are_far_apart() {
        let replica = replica();
        let (low, high) = (replica.promoted_epoch(0), replica.promoted_epoch(u64::MAX));
        assert_eq!(low, Some(Epoch(3 + APART)));
        assert_eq!(high, Some(Epoch(2 + 2 * APART)));
        let mut last = replica;
        last.shipped.end.epoch = Epoch(EPOCH_MAX);
        assert_eq!(last.promoted_epoch(0), None);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let parses = |change: fn(&mut ReplicaObject)| {
            let mut object = replica();
            change(&mut object);
            ReplicaObject::parse(&encode_json(&object)).is_ok()
        };
        let promoted = |epoch| Some(Promoted { epoch: Epoch(epoch), at_ms: 0, by: "h".into() });
        assert!(parses(|_| {}));
        assert!(!parses(|r| r.version = 2));
        assert!(!parses(|r| r.shipped.end.next = Seq(8)));
        assert!(!parses(|r| r.shipped.end.epoch = Epoch(1)));
        assert!(!parses(|r| r.shipped.end.next = Seq(u64::MAX)));
        assert!(parses(|r| r.branches = vec![Epoch(1), Epoch(2)]));
        assert!(!parses(|r| r.branches = vec![Epoch(2), Epoch(2)]));
        assert!(!parses(|r| r.branches = (0..=BRANCHES_MAX as u64).map(Epoch).collect()));
        let mut object = replica();
        for (epoch, good) in [(3, false), (4, true), (u64::MAX, false)] {
            object.promoted = promoted(epoch);
            assert_eq!(ReplicaObject::parse(&encode_json(&object)).is_ok(), good, "{epoch}");
        }
    }
}
