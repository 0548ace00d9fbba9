//! Names of what a mirrored volume has besides: the states of its copies, and what belongs to a copy alone.

use super::{hex8, key};
use crate::format::VolumeId;
use crate::store::Key;

/// Prefix of everything of all mirrored volumes in a store.
pub const MIRROR: &str = "mirror/";

/// Prefix of everything of a mirrored volume in one of its stores.
pub fn mirror(id: VolumeId) -> String {
    format!("{MIRROR}{id}/")
}

/// The mirrored volume that an object belongs to, by its name in one of its stores.
pub fn parse_mirror(key: &Key) -> Option<VolumeId> {
    let id: VolumeId = key.as_str().strip_prefix(MIRROR)?.split_once('/')?.0.parse().ok()?;
    key.as_str().starts_with(&mirror(id)).then_some(id)
}

/// No object's name: it is behind those of the volume, and before those of any later one.
pub fn behind_mirror(id: VolumeId) -> Key {
    // `0` follows `/`.
    key(format!("{MIRROR}{id}0"))
}

/// Prefix of what says which copies of a mirrored volume are complete.
pub fn mirror_states(id: VolumeId) -> String {
    format!("{}state/", mirror(id))
}

/// State `number` of those.
pub fn mirror_state(id: VolumeId, number: u32) -> Key {
    key(format!("{}{:08x}", mirror_states(id), u32::MAX - number))
}

/// The number that a key made by [`mirror_state`] names.
pub fn parse_mirror_state(id: VolumeId, key: &Key) -> Option<u32> {
    hex8(key.as_str().strip_prefix(&mirror_states(id))?).map(|n| u32::MAX - n)
}

/// Prefix of what belongs to one generation of a copy alone.
pub fn mirror_generation(id: VolumeId, generation: u32) -> String {
    format!("{}{generation:08x}/", mirror(id))
}

/// The generation that an object belongs to alone.
pub fn parse_mirror_generation(id: VolumeId, key: &Key) -> Option<u32> {
    hex8(key.as_str().strip_prefix(&mirror(id))?.split_once('/')?.0)
}
