//! Received snapshots: which snapshot of another volume one of this volume equals.
//!
//! Every copy of a snapshot has an id of its own in the volume that holds it, since no name in a store is
//! used twice: a deletion that is late must find nothing. What it is a copy of is said by an object of its
//! own, made before anything of the copy is.
//!
//! Until the snapshot is there, the object says: the owner of `begun_in` found the volume to be what `base`
//! is, or to be left by another attempt of the same, and from then on makes it what `snapshot` is.

use super::codec::FormatResult;
use super::pool::parse_json;
use super::{SnapshotId, VolumeId};
use crate::units::Epoch;
use serde::{Deserialize, Serialize};

/// `received/<snapshot>`: what a snapshot is a copy of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceivedObject {
    /// The volume that it was read from.
    pub source: VolumeId,
    /// The snapshot that it equals, by the id that it was made with.
    pub snapshot: SnapshotId,
    /// The snapshot of this volume that the changes apply to; `None`: a volume that was never written.
    pub base: Option<SnapshotId>,
    /// The owner's term.
    pub begun_in: Epoch,
}

impl ReceivedObject {
    /// Parses the object.
    pub fn parse(bytes: &[u8]) -> FormatResult<ReceivedObject> {
        parse_json("received", bytes)
    }
}
