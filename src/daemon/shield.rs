//! What keeps a disk's server at work when its host runs out of memory.
//!
//! The kernel frees memory by writing dirty pages out, also to the disk that this process serves. It
//! must then not have to wait for that very disk, nor lose the process. So, before there are threads:
//!
//! * no allocation of this process makes the kernel begin I/O (`PR_SET_IO_FLUSHER`);
//! * it is the last to be killed for its memory (`oom_score_adj`);
//! * the server of a block device of this host stays in memory, code and all (`mlockall`): what is swapped
//!   out or dropped may be on that device.
//!
//! Processes that it starts inherit the first two. What the host refuses to one without privileges is
//! logged and done without: such a process serves no block device.
//!
//! There is no mount namespace of its own: it would keep mounted, for as long as a successor lives, every
//! file system that was when that began, and the device of one could never be detached. Files are
//! opened and the working directory is left before a file system can be mounted on the device; from
//! then on the data path writes to the journal, the cache and the run directory only.

use crate::frontend::ublk::become_io_flusher;
use caps::{CapSet, Capability};
use nix::libc::MCL_ONFAULT;
use nix::sys::mman::{MlockAllFlags, mlockall};
use std::fs;

/// Never, by the words of proc(5).
const NEVER_KILLED: &str = "-1000";
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// What a process serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// A block device of this host's kernel.
    BlockDevice,
    /// Others, who may be on this host as well.
    Others,
}

/// Protects the process from the lack of memory, as far as the host lets it. For its first thread,
/// before there are others: they inherit it.
pub fn shield(what: Serves) {
    if let Err(e) = become_io_flusher() {
        tracing::debug!("this process may wait for its own disk when memory is short: {e}");
    }
    if let Err(e) = fs::write(OOM_SCORE, NEVER_KILLED) {
        tracing::debug!("this process may be killed for its memory: {e}");
    }
    if what == Serves::BlockDevice
        && let Err(e) = lock_memory()
    {
        tracing::warn!("this process may be swapped out: {e}");
    }
}

/// Only where there is no limit: beyond one, memory that is asked for later would be refused.
fn lock_memory() -> Result<(), String> {
    let may = caps::has_cap(None, CapSet::Effective, Capability::CAP_IPC_LOCK);
    if !may.map_err(|e| e.to_string())? {
        return Err("CAP_IPC_LOCK is missing".into());
    }
    // Pages once they are used: stacks and caches are larger than what is used of them.
    let flags = MlockAllFlags::MCL_CURRENT
        | MlockAllFlags::MCL_FUTURE
        | MlockAllFlags::from_bits_retain(MCL_ONFAULT);
    mlockall(flags).map_err(|e| e.desc().to_owned())
}
