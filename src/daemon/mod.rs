//! Targets: the processes that keep volumes attached.
//!
//! ```text
//! objblk attach --spec on a pipe--> target: locks -> volumes -> frontend -> control socket -> ready
//! objblk status, detach --JSON lines--> its control socket
//! ```
//!
//! A **target** is one process with one frontend and the volumes behind it. Every file of a target
//! in the [run directory](rundir) carries the id of its first volume, and a lock per volume says
//! whether the process still lives: the kernel drops it with the process, so a state file without
//! a held lock is what a killed target left behind, and whoever meets it cleans up.
//!
//! A block device that is attached in the background has a **supervisor**, a process that does
//! nothing but wait for the target and start its successor if it dies (`supervisor`, `recovery`):
//!
//! ```text
//! objblk attach --> supervisor --> target (killed)      /dev/ublkbN waits, with its users
//!                              \-> successor            takes volume, mirror and device over
//! ```
//!
//! A **mounted directory** is a process too ([`mount`]); every volume that is in use through it is a target
//! of its own within that process, so that whatever is asked of a volume finds it as it finds others.
//!
//! What is asked of a volume is carried out in one place (`desk`), whether it comes by the control socket or, from
//! another host, through the store ([`requests`](crate::requests)).
//!
//! Ending is done in this order (`shutdown`): what was written is made durable while the device
//! still works (a user who loses patience here has lost nothing), then the frontend stops, then
//! the volumes are closed.

mod background;
pub mod client;
pub mod control;
mod desk;
mod door;
mod in_use;
pub mod journals;
mod lock;
pub mod mount;
mod orders;
mod paths;
mod recovery;
pub mod rundir;
mod sealed;
mod server;
mod shared;
mod shield;
mod shutdown;
mod spec;
mod state;
mod supervisor;
mod target;

pub use background::{run_child, spawn};
pub use control::{
    Outcome, PathChange, Phase, Reply, Request, SnapshotAction, SnapshotReport, TargetStatus,
    VolumeReport,
};
pub use desk::told;
pub use rundir::{Held, RunDir, Target as KnownTarget};
pub use shared::act;
pub use shield::{Serves, shield};
pub use spec::{
    CacheSpec, DoorSpec, JournalSpec, Orders, TargetSpec, default_heartbeat, default_map_bytes,
};
pub use state::{Attached, FrontendKind, TargetState};
pub use supervisor::supervise;
pub use target::{Ready, environment, run_foreground};
