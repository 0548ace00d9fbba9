//! What a target does not do with a volume that should be encrypted, and is not.

use super::spec::{DoorSpec, TargetSpec};
use crate::error::{Error, Result};
use crate::format::volume::VolumeObject;
use crate::pool::VolumeSpec;
use crate::seal::KeyPlace;

/// Refuses a volume that is not encrypted where a key is given for it alone: somebody may have made it look so.
pub(super) fn refuse_to_write_clear(
    spec: &TargetSpec,
    name: &VolumeSpec,
    volume: &VolumeObject,
) -> Result<()> {
    let given = spec.key.as_ref().is_some_and(|key| *key.place() != KeyPlace::Asked);
    let is_alone = spec.volumes.len() == 1 && !matches!(spec.door, DoorSpec::File { .. });
    match given && is_alone && !volume.is_encrypted() {
        false => Ok(()),
        true => Err(Error::usage(format!("a key is given, and volume {name} is not encrypted"))
            .hint("leave out the key, if it should not be")),
    }
}
