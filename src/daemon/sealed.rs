//! What a target does not do with an encrypted volume, nor with one that should be.

use super::spec::{DoorSpec, TargetSpec};
use crate::error::{Error, Result};
use crate::format::volume::VolumeObject;
use crate::pool::VolumeSpec;
use crate::seal::KeyPlace;

/// Refuses a volume that is not encrypted where a key is given for it alone: somebody may have made it look so.
fn refuse_to_write_clear(spec: &TargetSpec, name: &VolumeSpec) -> Result<()> {
    let given = spec.key.as_ref().is_some_and(|key| *key.place() != KeyPlace::Asked);
    let is_alone = spec.volumes.len() == 1 && !matches!(spec.door, DoorSpec::File { .. });
    match given && is_alone {
        false => Ok(()),
        true => Err(Error::usage(format!("a key is given, and volume {name} is not encrypted"))
            .hint("leave out the key, if it should not be")),
    }
}

/// Refuses what would write the contents of an encrypted volume to a local disk as they are.
pub(super) fn refuse_clear_copies(
    spec: &TargetSpec,
    name: &VolumeSpec,
    volume: &VolumeObject,
) -> Result<()> {
    let (what, hint) = match (&spec.journal, &spec.disk_cache) {
        _ if !volume.is_encrypted() => return refuse_to_write_clear(spec, name),
        (Some(_), _) => ("a journal", "use --durability object"),
        (_, Some(_)) => ("a cache on a disk", "leave out --cache-dir; --mem-cache may be larger"),
        (None, None) => return Ok(()),
    };
    let text =
        format!("volume {name} is encrypted, and {what} would hold its contents in the clear");
    Err(Error::usage(text).hint(hint))
}
