//! Names of what says which state of a replica is complete.

use super::{hex16, key};
use crate::format::VolumeId;
use crate::store::Key;

/// Where it says which state of a replica is complete, below its prefix.
pub(in crate::format) const REPLICA_STATES: &str = "replica/";

/// Prefix of what says which state of a replica is complete.
pub fn replica_states(id: VolumeId) -> String {
    format!("volumes/{id}/{REPLICA_STATES}")
}

/// Which state of a replica is complete, said for the time `number`.
pub fn replica_state(id: VolumeId, number: u64) -> Key {
    key(format!("{}{:016x}", replica_states(id), u64::MAX - number))
}

/// The number that a key made by [`replica_state`] names.
pub fn parse_replica_state(id: VolumeId, key: &Key) -> Option<u64> {
    Some(u64::MAX - hex16(key.as_str().strip_prefix(&replica_states(id))?)?)
}
