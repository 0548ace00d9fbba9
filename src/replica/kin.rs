//! Clones: shipped once they need nothing of their origins any more, as what is of another volume is not shipped.
//!
//! A clone that was flattened is no child of its origin from then on, and nothing makes it one that needs it again: what
//! it writes, its snapshots and its past are its own. Should the mark of a child be lost, the state itself tells.

use super::Way;
use crate::error::{Error, Result};
use crate::format::keys;
use crate::store::{Key, StoreErrorKind};
use crate::volume::needs_ancestors;

impl Way {
    /// Refuses a clone that needs its origin, as of the `newest` checkpoint. False: it is gone, as there is a newer one.
    ///
    /// # Errors
    /// Usage: it does. Corrupt, store.
    pub(super) async fn check_alone(&self, newest: Option<&Key>) -> Result<bool> {
        let Some(origin) = self.volume.origin() else { return Ok(true) };
        let needs = || {
            Error::usage(
                "the volume is a clone that needs its origin, which is not shipped with it",
            )
            .hint("end that with `objblk flatten`")
        };
        let mark = keys::child(origin.volume, origin.snapshot, self.id());
        match self.source.raw.head(&mark).await {
            Err(e) if e.kind == StoreErrorKind::NotFound => {}
            Err(e) => return Err(e.into()),
            Ok(_) => return Err(needs()),
        }
        let newest = newest.ok_or_else(needs)?;
        // Sealed, it can be told by the mark alone.
        if self.volume.is_encrypted() && !self.source.plain.unseals(&keys::volume(self.id())) {
            return Ok(true);
        }
        match needs_ancestors(&self.source.plain, &self.volume, newest).await? {
            Some(true) => Err(needs()),
            found => Ok(found.is_some()),
        }
    }
}
