//! A simulated process of objblk: alive, paused or killed.
//!
//! A process acts through its requests to the store and the answers to its clients only, so it is
//! killed by never letting another one through, and paused by holding them back. Requests that
//! are on the wire are not its own any more.

use crate::device::Device;
use crate::disk::Medium;
use crate::host::Host;
use objblk::volume::Volume;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Running,
    Paused,
    Dead,
}

#[derive(Debug)]
pub struct Process {
    pub pid: u32,
    pub host: Arc<Host>,
    /// Its journal is here.
    pub journal: Option<Arc<Medium>>,
    /// What it serves, if that outlives it.
    pub device: Option<Arc<Device>>,
    life: Mutex<Life>,
    changed: Notify,
    /// Its host cannot reach the store.
    pub cut_off: AtomicBool,
    closing: AtomicBool,
    disk_trouble: AtomicBool,
    lost_chunks: AtomicBool,
    volume: Mutex<Option<Volume>>,
    ended: AtomicBool,
    tasks: Mutex<Vec<AbortHandle>>,
    /// What its clients wait for, and since when.
    waiting: Mutex<Vec<(&'static str, Instant)>>,
}

/// A client's request under way.
pub struct Request<'a> {
    process: &'a Process,
    what: (&'static str, Instant),
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        let mut waiting = self.process.waiting.lock().expect("not poisoned");
        let at = waiting.iter().position(|what| *what == self.what);
        waiting.swap_remove(at.expect("it was put there"));
    }
}

impl Process {
    /// A process on `host`, with a journal or without.
    pub fn new(
        pid: u32,
        host: Arc<Host>,
        journal: Option<Arc<Medium>>,
        device: Option<Arc<Device>>,
    ) -> Arc<Process> {
        let disk = journal.as_ref().map(|journal| &journal.heritage);
        let things = disk.into_iter().chain(device.as_ref().map(|device| &device.heritage));
        things.for_each(|thing| thing.goes_to(pid));
        let process = Arc::new(Process {
            pid,
            host: host.clone(),
            journal,
            device,
            disk_trouble: AtomicBool::new(false),
            lost_chunks: AtomicBool::new(false),
            life: Mutex::new(Life::Running),
            changed: Notify::new(),
            cut_off: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            volume: Mutex::default(),
            ended: AtomicBool::new(false),
            tasks: Mutex::default(),
            waiting: Mutex::default(),
        });
        host.runs(&process);
        process
    }

    pub fn life(&self) -> Life {
        *self.life.lock().expect("not poisoned")
    }

    pub fn is_cut_off(&self) -> bool {
        self.cut_off.load(Relaxed)
    }

    /// Goes on once the process runs; never, once it is dead.
    pub async fn pass(&self) {
        while self.life() != Life::Running {
            self.changed.notified().await;
        }
    }

    /// Goes on unless the process is dead.
    pub async fn alive(&self) {
        if self.life() == Life::Dead {
            std::future::pending().await
        }
    }

    /// Returns when the process is dead.
    pub async fn dies(&self) {
        while !self.is_dead() {
            self.changed.notified().await;
        }
    }

    pub fn pause(&self) {
        self.change(Life::Running, Life::Paused);
    }

    pub fn resume(&self) {
        self.change(Life::Paused, Life::Running);
    }

    fn change(&self, from: Life, to: Life) {
        let mut life = self.life.lock().expect("not poisoned");
        if *life == from {
            *life = to;
            drop(life);
            self.changed.notify_waiters();
        }
    }

    /// It has the volume open now.
    pub fn has(&self, volume: &Volume) {
        *self.volume.lock().expect("not poisoned") = Some(volume.clone());
    }

    /// A task that ends with the process.
    pub fn owns(&self, task: AbortHandle) {
        self.tasks.lock().expect("not poisoned").push(task);
    }

    /// Lets go of the volume, which holds the way to the store, which holds this.
    pub fn forget(&self) {
        self.volume.lock().expect("not poisoned").take();
    }

    /// Its disk has failed it, or misled it.
    pub fn has_disk_trouble(&self) {
        self.disk_trouble.store(true, Relaxed);
    }

    pub fn had_disk_trouble(&self) -> bool {
        self.disk_trouble.load(Relaxed)
    }

    /// A read of its disk failed. Once the volume is open, nothing is read there but chunks that
    /// have left memory.
    pub fn could_not_read(&self) {
        self.has_disk_trouble();
        self.lost_chunks.fetch_or(!self.is_opening(), Relaxed);
    }

    pub fn has_lost_chunks(&self) -> bool {
        self.lost_chunks.load(Relaxed)
    }

    fn let_go_of_the_disk(&self) {
        if let Some(medium) = &self.journal {
            medium.settle(self.pid);
        }
    }

    /// kill -9.
    pub fn kill(&self) {
        *self.life.lock().expect("not poisoned") = Life::Dead;
        self.changed.notify_waiters();
        self.let_go_of_the_disk();
        for task in self.tasks.lock().expect("not poisoned").drain(..) {
            task.abort();
        }
        if let Some(volume) = self.volume.lock().expect("not poisoned").take() {
            volume.abandon();
        }
    }

    pub fn is_dead(&self) -> bool {
        self.life() == Life::Dead
    }

    /// A client begins to wait.
    pub fn begins(&self, what: &'static str) -> Request<'_> {
        let what = (what, Instant::now());
        self.waiting.lock().expect("not poisoned").push(what);
        Request { process: self, what }
    }

    /// What a client has waited for longest.
    pub fn waits_for(&self) -> Option<(&'static str, Duration)> {
        let waiting = self.waiting.lock().expect("not poisoned");
        waiting.iter().map(|(what, since)| (*what, since.elapsed())).max_by_key(|(_, time)| *time)
    }

    /// It has nothing more to do.
    pub fn end(&self) {
        self.ended.store(true, Relaxed);
        self.let_go_of_the_disk();
    }

    pub fn is_ended(&self) -> bool {
        self.life() == Life::Dead || self.ended.load(Relaxed)
    }

    /// It has not opened the volume yet.
    pub fn is_opening(&self) -> bool {
        self.volume.lock().expect("not poisoned").is_none()
    }

    /// It believes that it owns the volume.
    pub fn is_healthy(&self) -> bool {
        let volume = self.volume.lock().expect("not poisoned");
        volume.as_ref().is_some_and(|volume| volume.status().failure.is_none())
    }

    /// Chunks that it has emptied.
    pub fn collected(&self) -> u64 {
        let volume = self.volume.lock().expect("not poisoned");
        volume.as_ref().map_or(0, |volume| volume.status().space.collected_chunks)
    }

    /// It shall close the volume when its requests are done.
    pub fn close_soon(&self) {
        self.closing.store(true, Relaxed);
        self.changed.notify_waiters();
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(Relaxed)
    }

    /// Waits until the process shall close the volume.
    pub async fn until_closing(&self) {
        while !self.is_closing() {
            self.changed.notified().await;
        }
    }
}
