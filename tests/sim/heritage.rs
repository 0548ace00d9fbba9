//! What outlives processes and is handed from one to the next: a device, a journal's disk.

use std::sync::{Mutex, MutexGuard};

/// Who has had it, and what is in it.
#[derive(Debug, Default)]
pub struct Heritage {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The last term of it in which requests were served.
    served: Option<u64>,
    /// Processes that had it.
    pids: Vec<u32>,
    gone: bool,
}

impl Heritage {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    pub fn goes_to(&self, pid: u32) {
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

    /// Whether one of these epochs, with who claimed it, came after its last term and was claimed
    /// for something else.
    pub fn has_rival(&self, claims: &[(u64, u32)]) -> bool {
        let since = self.last_term().unwrap_or(0);
        claims.iter().any(|(epoch, pid)| *epoch > since && !self.is_of(*pid))
    }

    /// There is nothing to go on from any more.
    pub fn is_gone(&self) -> bool {
        self.state().gone
    }

    pub fn remove(&self) {
        self.state().gone = true;
    }
}
