//! A ring that is being served, as the connection sees it: started, given orders, stopped.
//!
//! Everything that the VMM may change while the ring runs is in [`Shared`]; all else is fixed at
//! its start.

use super::inflight::Part;
use super::memory::Memory;
use super::queue;
use super::request::ID_LEN;
use super::status::Counters;
use super::virtqueue::Shape;
use crate::device::{BlockDevice, Checked};
use crate::frontend::mailbox::Mailbox;
use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vm_memory::GuestAddress;

/// How long what only needs CPU time may take.
const GRACE: Duration = Duration::from_secs(5);

/// What a ring's thread is to do with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Order {
    /// Serve them.
    Serve,
    /// Take no more, and end when those in flight are answered.
    Drain,
    /// End now.
    Abandon,
}

/// Where a ring lies, in the guest's words, and how large it is. Of a packed one, `table` is the ring
/// itself, `avail` what the driver wishes, and `used` what the device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) size: u16,
    pub(super) table: GuestAddress,
    pub(super) avail: GuestAddress,
    pub(super) used: GuestAddress,
}

/// What a ring is started with.
#[derive(Debug)]
pub(super) struct Spec {
    pub(super) number: usize,
    pub(super) shape: Shape,
    pub(super) layout: Layout,
    /// Where it stands, as the protocol has it.
    pub(super) base: u32,
    /// The guest says and wants to hear from where on to be woken.
    pub(super) event_idx: bool,
    /// The guest does not know of flushes.
    pub(super) durable: bool,
    pub(super) kick: File,
    /// Where requests in flight are noted.
    pub(super) part: Option<Part>,
    pub(super) id: [u8; ID_LEN],
}

/// What a ring's thread shares with others.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) counters: Arc<Counters>,
    order: AtomicU8,
    enabled: AtomicBool,
    /// True where `memory` is another than before.
    remapped: AtomicBool,
    memory: Mutex<Arc<Memory>>,
    call: Mutex<Option<File>>,
    error: Mutex<Option<File>>,
    ended: AtomicBool,
}

impl Shared {
    pub(super) fn order(&self, order: Order) {
        self.order.fetch_max(order as u8, SeqCst);
        self.mailbox.ring();
    }

    pub(super) fn is_ordered(&self, order: Order) -> bool {
        self.order.load(SeqCst) >= order as u8
    }

    pub(super) fn enable(&self, enabled: bool) {
        self.enabled.store(enabled, SeqCst);
        self.mailbox.ring();
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.enabled.load(SeqCst)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(SeqCst)
    }

    /// Gives the ring another memory.
    pub(super) fn remap(&self, memory: Arc<Memory>) {
        *lock(&self.memory) = memory;
        self.remapped.store(true, SeqCst);
        self.mailbox.ring();
    }

    /// The memory, if it is another than that of the last call.
    pub(super) fn remapped(&self) -> Option<Arc<Memory>> {
        let changed = self.remapped.load(SeqCst) && self.remapped.swap(false, SeqCst);
        changed.then(|| lock(&self.memory).clone())
    }

    pub(super) fn set_call(&self, call: Option<File>) {
        *lock(&self.call) = call;
    }

    pub(super) fn set_error(&self, error: Option<File>) {
        *lock(&self.error) = error;
    }

    /// What it told others by, once it has ended.
    pub(super) fn take_events(&self) -> (Option<File>, Option<File>) {
        (lock(&self.call).take(), lock(&self.error).take())
    }

    /// Tells the guest that there are answers.
    pub(super) fn notify(&self) {
        tell(&lock(&self.call));
    }

    /// Tells the VMM that this ring is not served any more.
    pub(super) fn complain(&self) {
        tell(&lock(&self.error));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tell(event: &Option<File>) {
    if let Some(mut event) = event.as_ref() {
        // A counter that is full has told enough; nobody hears one that is gone.
        let _ = event.write(&1u64.to_ne_bytes());
    }
}

/// A ring whose thread runs.
#[derive(Debug)]
pub(super) struct Ring {
    shared: Arc<Shared>,
    end: Receiver<u32>,
}

impl Ring {
    /// Starts serving a ring on a thread of its own. Errors: the kernel has none, or no descriptor.
    pub(super) fn start<D: BlockDevice>(
        device: Arc<Checked<D>>,
        spec: Spec,
        memory: Arc<Memory>,
        (call, error): (Option<File>, Option<File>),
        (enabled, counters): (bool, Arc<Counters>),
    ) -> io::Result<Ring> {
        let shared = Arc::new(Shared {
            mailbox: Arc::new(Mailbox::new(spec.layout.size)?),
            counters,
            order: AtomicU8::new(Order::Serve as u8),
            enabled: AtomicBool::new(enabled),
            remapped: AtomicBool::new(false),
            memory: Mutex::new(memory.clone()),
            call: Mutex::new(call),
            error: Mutex::new(error),
            ended: AtomicBool::new(false),
        });
        let seen = shared.clone();
        let (report, end) = channel();
        let name = format!("vhost-q{}", spec.number);
        std::thread::Builder::new().name(name).spawn(move || {
            let base = queue::serve(&device, spec, memory, &seen);
            // Whoever asked for the device may wait for it to be let go.
            drop(device);
            seen.ended.store(true, SeqCst);
            // Nobody listens where the connection has ended first.
            let _ = report.send(base);
        })?;
        Ok(Ring { shared, end })
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Ends it: requests in flight are answered within `patience` or left. Returns where it
    /// stands; none where the thread does not end.
    pub(super) fn stop(self, patience: Duration) -> Option<u32> {
        self.shared.order(Order::Drain);
        if let Ok(base) = self.end.recv_timeout(patience) {
            return Some(base);
        }
        self.shared.order(Order::Abandon);
        self.end.recv_timeout(GRACE).ok()
    }
}
