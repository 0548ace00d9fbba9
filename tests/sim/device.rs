//! A device that outlives its server: the mirror that one process leaves to the next.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A folder for the mirrors of one world: in memory, where there is such a place.
pub fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    made.expect("a folder for mirrors can be made")
}

/// One block device, served by one process after the other.
#[derive(Debug)]
pub struct Device {
    pub mirror: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The last term of it in which requests were served.
    served: Option<u64>,
    /// Processes that served it.
    pids: Vec<u32>,
    gone: bool,
}

impl Device {
    /// The device `number` of a world.
    pub fn new(folder: &Path, number: u32) -> Device {
        Device { mirror: folder.join(number.to_string()), state: Mutex::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    pub fn served_by(&self, pid: u32) {
        self.state().pids.push(pid);
    }

    pub fn is_of(&self, pid: u32) -> bool {
        self.state().pids.contains(&pid)
    }

    pub fn served_in(&self, epoch: u64) {
        self.state().served = Some(epoch);
    }

    /// The last term in which requests were served.
    pub fn last_term(&self) -> Option<u64> {
        self.state().served
    }

    /// There is nothing to recover any more.
    pub fn is_gone(&self) -> bool {
        self.state().gone
    }

    pub fn remove(&self) {
        self.state().gone = true;
    }
}
