//! The fault model, written first: what can happen to which request.
//!
//! A **site** is a kind of request and a fault that it can suffer. Every site has to be hit by a
//! run of a few thousand seeds; one that never is makes the run fail.
//!
//! In the model: requests and replies that are slow, refused (unavailable, throttled, denied),
//! swallowed (the caller waits for its time limit); replies that are lost though the request took
//! effect; requests that arrive late, long after their caller gave up or died, or twice; bodies
//! cut off or with a bit flipped; lists of epochs that lag; a host cut off from the store; the
//! store down; the process killed before a request, after its effect, or while it is on the wire;
//! the process stopped (paused) before a request or before its reply, and resumed later.
//!
//! On the local disk: writes and reads that are slow, stuck (until the world is calm) or fail;
//! after a failure, and when the process is killed or its host loses power meanwhile, a write has
//! happened to any of its sectors; reads with a bit flipped; the disk gone for good.
//!
//! Not in the model: what the contract of `Store` excludes, such as two creators that both win, or
//! a list of checkpoints that lags: the pool's probe refuses such stores, or the README names the
//! requirement. A local disk does not lose what it said is durable: the control arm shows that
//! one which does is noticed.

use objblk::format::fence;
use objblk::store::{GetRange, Key};
use std::collections::BTreeMap;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    GetVolume,
    GetEpoch,
    GetCheckpoint,
    GetHeader,
    GetFrames,
    GetSlot,
    GetSnapshot,
    GetMapItem,
    GetMapObject,
    PutEpoch,
    PutChunk,
    PutFence,
    PutMapObject,
    PutSnapshot,
    PutClosed,
    PutCheckpoint,
    HeadEpoch,
    ListEpochs,
    ListCheckpoints,
    ListChildren,
    Delete,
    WriteSuperblock,
    WriteSegment,
    WriteBatch,
    DiskRead,
}

impl What {
    pub const ALL: [What; 25] = [
        What::GetVolume,
        What::GetEpoch,
        What::GetCheckpoint,
        What::GetHeader,
        What::GetFrames,
        What::GetSlot,
        What::GetSnapshot,
        What::GetMapItem,
        What::GetMapObject,
        What::PutEpoch,
        What::PutChunk,
        What::PutFence,
        What::PutMapObject,
        What::PutSnapshot,
        What::PutClosed,
        What::PutCheckpoint,
        What::HeadEpoch,
        What::ListEpochs,
        What::ListCheckpoints,
        What::ListChildren,
        What::Delete,
        What::WriteSuperblock,
        What::WriteSegment,
        What::WriteBatch,
        What::DiskRead,
    ];

    /// The kind of a get.
    pub fn get(key: &Key, range: GetRange) -> What {
        match (part(key.as_str()), range) {
            ("log", GetRange::Part { offset: 0, .. }) => What::GetHeader,
            ("log", GetRange::Part { .. }) => What::GetFrames,
            ("log", GetRange::All) => What::GetSlot,
            ("map", GetRange::Part { .. }) => What::GetMapItem,
            ("map", GetRange::All) => What::GetMapObject,
            ("epochs", _) => What::GetEpoch,
            ("checkpoints", _) => What::GetCheckpoint,
            ("snapshots", _) => What::GetSnapshot,
            _ => What::GetVolume,
        }
    }

    /// The kind of a put.
    pub fn put(key: &Key, body: &[u8]) -> What {
        match part(key.as_str()) {
            "log" if body.starts_with(fence::MAGIC) => What::PutFence,
            "log" => What::PutChunk,
            "map" => What::PutMapObject,
            "epochs" => What::PutEpoch,
            "snapshots" => What::PutSnapshot,
            "children" => What::PutClosed,
            _ => What::PutCheckpoint,
        }
    }

    /// The kind of a list.
    pub fn list(prefix: &str) -> What {
        match part(prefix) {
            "epochs" => What::ListEpochs,
            "children" => What::ListChildren,
            _ => What::ListCheckpoints,
        }
    }

    /// Goes to a local disk.
    pub fn is_local(self) -> bool {
        self >= What::WriteSuperblock
    }

    /// The kind of a write to a journal.
    pub fn local_write(blocks: &[u8]) -> What {
        match blocks.get(..8) {
            Some(b"OBJBLKSG") => What::WriteSegment,
            Some(b"OBJBLKBA") => What::WriteBatch,
            _ => What::WriteSuperblock,
        }
    }

    fn is_local_write(self) -> bool {
        self.is_local() && self != What::DiskRead
    }

    fn is_get(self) -> bool {
        self <= What::GetMapObject
    }

    fn changes(self) -> bool {
        (What::PutEpoch..=What::PutCheckpoint).contains(&self) || self == What::Delete
    }
}

/// What kind of object of a volume has this name.
fn part(name: &str) -> &str {
    name.split('/').nth(2).unwrap_or(name)
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    SlowRequest,
    SlowReply,
    Unavailable,
    Throttled,
    Denied,
    Swallowed,
    LostReply,
    Late,
    Twice,
    Truncated,
    Flipped,
    Stale,
    CutOff,
    StoreDown,
    Stuck,
    KilledBefore,
    KilledAfter,
    KilledOnTheWire,
    PausedBefore,
    PausedAfter,
    DiskFailed,
    DiskGone,
    PowerCut,
}

impl Fault {
    pub const ALL: [Fault; 23] = [
        Fault::SlowRequest,
        Fault::SlowReply,
        Fault::Unavailable,
        Fault::Throttled,
        Fault::Denied,
        Fault::Swallowed,
        Fault::LostReply,
        Fault::Late,
        Fault::Twice,
        Fault::Truncated,
        Fault::Flipped,
        Fault::Stale,
        Fault::CutOff,
        Fault::StoreDown,
        Fault::Stuck,
        Fault::KilledBefore,
        Fault::KilledAfter,
        Fault::KilledOnTheWire,
        Fault::PausedBefore,
        Fault::PausedAfter,
        Fault::DiskFailed,
        Fault::DiskGone,
        Fault::PowerCut,
    ];

    /// Damages what is returned.
    pub fn damages(self) -> bool {
        matches!(self, Fault::Truncated | Fault::Flipped)
    }

    /// Ends the process, stops it, or takes its disk away.
    pub fn disturbs(self) -> bool {
        self >= Fault::KilledBefore
    }

    fn can_happen_to(self, what: What) -> bool {
        let read = what.is_get() || what == What::DiskRead;
        match self {
            Fault::SlowRequest | Fault::KilledBefore => true,
            Fault::PausedBefore | Fault::PausedAfter => true,
            Fault::Flipped => read,
            Fault::KilledOnTheWire | Fault::KilledAfter => {
                // To a reader, a request without effect is the same however it was lost.
                what.changes() || what.is_local_write()
            }
            Fault::Stuck | Fault::DiskFailed | Fault::DiskGone => what.is_local(),
            Fault::PowerCut => what.is_local_write(),
            _ if what.is_local() => false,
            Fault::Truncated => what.is_get(),
            Fault::Stale => what == What::ListEpochs,
            Fault::Late | Fault::Twice | Fault::LostReply => what.changes(),
            _ => true,
        }
    }
}

/// A kind of request and a fault.
pub type Site = (What, Fault);

/// Every site.
pub fn all() -> Vec<Site> {
    let of = |what| Fault::ALL.into_iter().map(move |fault| (what, fault));
    let sites = What::ALL.into_iter().flat_map(of);
    sites.filter(|(what, fault)| fault.can_happen_to(*what)).collect()
}

/// How often each site was hit.
pub type Hits = BTreeMap<Site, u64>;

/// Whether the fault can happen to the request.
pub fn applies(what: What, fault: Fault) -> bool {
    fault.can_happen_to(what)
}
