//! A simulated host: processes run on it, and its disk is there for the next one.

use crate::device::Device;
use crate::disk::Medium;
use crate::process::Process;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

#[derive(Debug)]
pub struct Host {
    pub number: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    medium: Arc<Medium>,
    processes: Vec<Weak<Process>>,
    devices: Vec<Arc<Device>>,
}

impl Host {
    pub fn new(number: u32, medium: Medium) -> Host {
        let state = State { medium: Arc::new(medium), processes: Vec::new(), devices: Vec::new() };
        Host { number, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// A process begins here.
    pub fn runs(&self, process: &Arc<Process>) {
        self.state().processes.push(Arc::downgrade(process));
    }

    /// A device that outlives its server, not the host.
    pub fn has(&self, device: &Arc<Device>) {
        self.state().devices.push(device.clone());
    }

    pub fn take_devices(&self) -> Vec<Arc<Device>> {
        std::mem::take(&mut self.state().devices)
    }

    /// The processes that run here.
    pub fn processes(&self) -> Vec<Arc<Process>> {
        let all: Vec<_> = self.state().processes.iter().filter_map(Weak::upgrade).collect();
        all.into_iter().filter(|process| !process.is_ended()).collect()
    }

    pub fn medium(&self) -> Arc<Medium> {
        self.state().medium.clone()
    }

    /// The journal's disk, unless a process has it.
    pub fn free_medium(&self) -> Option<Arc<Medium>> {
        let busy = self.processes().iter().any(|process| process.journal.is_some());
        (!busy).then(|| self.medium())
    }

    /// Another disk takes the place of the one that was there, with all that was on it.
    pub fn gets(&self, medium: Medium) {
        self.state().medium = Arc::new(medium);
    }
}
