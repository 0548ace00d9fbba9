//! The other side: `objblk umount`.

use super::place::{self, PlaceState, resolved};
use crate::daemon::client::end;
use crate::daemon::control::{Outcome, Phase};
use crate::daemon::lock::VolumeLock;
use crate::daemon::rundir::RunDir;
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::fuse::{Mounted, mounted_at};
use std::path::{Path, PathBuf};

/// How a mount ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmounted {
    /// The directory.
    pub dir: PathBuf,
    /// Its process was dead, or did not answer one who forces.
    pub was_dead: bool,
    /// What came of its volumes.
    pub outcome: Outcome,
}

/// Ends the mount on a directory and waits until its volumes are closed, however long that takes
/// (with `force` it is bounded). `progress` hears what is being done and how many bytes the store lacks.
/// Dropping the future while the data is being stored leaves everything as it was.
///
/// Errors: not found, where nothing of objblk is mounted; busy, where it is in use or its process does
/// not answer.
pub async fn umount(
    dir: &Path,
    force: bool,
    progress: impl FnMut(Phase, u64),
) -> Result<Unmounted> {
    let (run_dir, dir) = (RunDir::open()?, resolved(dir)?);
    let known = place::find(&run_dir, &dir)?;
    let alive = known.as_ref().filter(|state| state.is_alive());
    if let Some(PlaceState { pid, .. }) = alive {
        let ended = end((*pid, &place::socket(&run_dir, &dir)), force, progress).await;
        match ended {
            Ok(outcome) => return Ok(Unmounted { dir, was_dead: false, outcome }),
            // It is mounted still, by one who does not even answer.
            Err(e) if force && e.kind() == ErrorKind::Busy => tracing::warn!("{e}"),
            Err(e) => return Err(e),
        }
    }
    match (mounted_at(&dir), &known) {
        (Mounted::Ours, _) | (Mounted::Nothing, Some(_)) => {}
        (Mounted::Nothing, None) => {
            let message = format!("nothing is mounted on {}", dir.display());
            return Err(Error::not_found(message).hint("`findmnt -t fuse.objblk` shows what is"));
        }
        (Mounted::Other, _) => {
            let message = format!("what is mounted on {} is not of objblk", dir.display());
            return Err(Error::usage(message).hint("umount(8) ends it"));
        }
    }
    // Held: nobody mounts it anew meanwhile. One who does not answer has it still.
    let lock = VolumeLock::try_take(&place::lock(&run_dir, &dir))?;
    if lock.is_none() && known.is_none() {
        let busy = format!("{} is just being mounted", dir.display());
        return Err(Error::new(ErrorKind::Busy, busy).hint("try again"));
    }
    let cleared = place::clear(&run_dir, &dir, known.as_ref()).await;
    if let Some(lock) = lock {
        lock.release();
    }
    cleared?;
    Ok(Unmounted { dir, was_dead: true, outcome: Outcome::default() })
}
