//! A device that outlives its server: the journal that one process leaves to the next.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Where worlds keep their journals: in memory, where there is such a folder.
fn place() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

/// One block device, served by one process after the other.
#[derive(Debug)]
pub struct Device {
    pub journal: PathBuf,
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
    pub fn new() -> Device {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        let name = format!("objblk-sim-{}-{number}", std::process::id());
        Device { journal: place().join(name), state: Mutex::default() }
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

impl Drop for Device {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = std::fs::remove_dir_all(&self.journal);
    }
}
