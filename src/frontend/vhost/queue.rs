//! A ring's thread: takes requests, polls them on the device, answers them.
//!
//! What the device completes at the first poll is answered in the same turn; what waits is polled
//! again when its slot turns up in the ring's [`Mailbox`](crate::frontend::mailbox::Mailbox). A slot
//! belongs to the descriptor that heads the request. The thread sleeps on the ring's kick and the
//! mailbox's bell, and asks to be kicked only while it sleeps.
//!
//! Invariants: a request that was taken is answered once, or noted as in flight for whoever comes
//! next; memory of the guest that a request refers to is mapped until its future is gone; a ring
//! that makes no sense is left alone for good, and the VMM is told.

use super::chain::{Broken, Chain, Scratch};
use super::memory::{Memory, Piece};
use super::request::{Done, Operation, Status, Work};
use super::ring::{Layout, Order, Shared, Spec};
use super::status::{Counters, add};
use crate::device::{BlockDevice, Checked};
use crate::frontend::slots::{Progress, Slots};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::future::Future;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::Bytes;

/// Bytes of copies at which no more requests are taken: one more than that may be there.
const COPIES_MAX: usize = 16 << 20;

/// What epoll says was woken.
const KICK: u64 = 0;
const BELL: u64 = 1;

/// A request in flight: where its answer goes, and the memory that it refers to.
struct Reply {
    _memory: Arc<Memory>,
    status: Piece,
    /// Bytes that its copy may take.
    copy: usize,
}

struct Worker<'a, F, B> {
    spec: &'a Spec,
    shared: &'a Shared,
    memory: Arc<Memory>,
    queue: Queue,
    /// The slots are dropped before the replies that keep their memory.
    slots: Slots<F>,
    replies: Vec<Option<Reply>>,
    begin: B,
    scratch: Scratch,
    spare: Vec<Work>,
    /// Of the spare ones, and of those in flight.
    copies_kept: usize,
    copies_lent: usize,
    in_flight: usize,
    counter: u64,
    /// The guest may have to be told of answers.
    untold: bool,
    broken: bool,
}

/// Serves a ring from the calling thread until it is told to end. Returns the number of the next
/// request that was not taken.
pub(super) fn serve<D: BlockDevice>(
    device: &Checked<D>,
    spec: Spec,
    memory: Arc<Memory>,
    shared: &Shared,
) -> u16 {
    let (spec, id) = (&spec, spec.id);
    let id = &id;
    let begin = move |work: Work| work.serve(device, id);
    let size = spec.layout.size;
    let slots = Slots::new(shared.mailbox.wakers(size));
    let queue = match ring(spec, &memory) {
        Ok(queue) => queue,
        Err(why) => {
            tracing::warn!(queue = spec.number, "a ring is not served: {why}");
            add(&shared.counters.broken_rings, 1);
            shared.complain();
            return spec.base;
        }
    };
    let mut worker = Worker {
        spec,
        shared,
        memory,
        queue,
        slots,
        replies: (0..size).map(|_| None).collect(),
        begin,
        scratch: Scratch::default(),
        spare: Vec::new(),
        copies_kept: 0,
        copies_lent: 0,
        in_flight: 0,
        counter: 0,
        untold: false,
        broken: false,
    };
    worker.run()
}

/// The ring, as it stands.
fn ring(spec: &Spec, memory: &Memory) -> Result<Queue, String> {
    let Layout { size, table, avail, used } = spec.layout;
    let wrong = |e: virtio_queue::Error| e.to_string();
    let mut queue = Queue::new(size).map_err(wrong)?;
    queue.try_set_size(size).map_err(wrong)?;
    queue.try_set_desc_table_address(table).map_err(wrong)?;
    queue.try_set_avail_ring_address(avail).map_err(wrong)?;
    queue.try_set_used_ring_address(used).map_err(wrong)?;
    queue.set_event_idx(spec.event_idx);
    queue.set_ready(true);
    if !queue.is_valid(memory.guest()) {
        return Err("it lies outside of the memory".into());
    }
    let used = queue.used_idx(memory.guest(), Acquire).map_err(wrong)?;
    queue.set_next_used(used.0);
    queue.set_next_avail(spec.base);
    Ok(queue)
}

impl<F, B> Worker<'_, F, B>
where
    F: Future<Output = Done>,
    B: Fn(Work) -> F,
{
    fn run(&mut self) -> u16 {
        let epoll = match self.listen() {
            Ok(epoll) => epoll,
            Err(errno) => {
                tracing::error!(queue = self.spec.number, %errno, "a ring is not served");
                self.shared.complain();
                return self.queue.next_avail();
            }
        };
        self.serve_left();
        loop {
            if let Some(memory) = self.shared.remapped() {
                self.memory = memory;
            }
            self.resume();
            if self.may_take() {
                self.take_requests();
            }
            self.tell_guest();
            if self.shared.is_ordered(Order::Abandon) {
                self.abandon();
            }
            if self.shared.is_ordered(Order::Drain) && self.in_flight == 0 {
                return self.queue.next_avail();
            }
            if self.may_take() && self.is_more() {
                continue;
            }
            if self.shared.mailbox.may_sleep() {
                self.sleep(&epoll);
            }
            self.shared.mailbox.awake();
        }
    }

    fn listen(&self) -> Result<Epoll, Errno> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        // By edges: a kick that cannot be read must not keep the thread awake.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll.add(&self.spec.kick, EpollEvent::new(flags, KICK))?;
        // SAFETY: the mailbox lives as long as `shared`, and so longer than the borrow.
        let bell = unsafe { BorrowedFd::borrow_raw(self.shared.mailbox.bell()) };
        epoll.add(bell, EpollEvent::new(flags, BELL))?;
        Ok(epoll)
    }

    fn sleep(&self, epoll: &Epoll) {
        let mut events = [EpollEvent::empty(); 2];
        let woken = epoll.wait(&mut events, EpollTimeout::NONE).unwrap_or(0);
        if events[..woken].iter().any(|event| event.data() == KICK) {
            // What matters is that it came; a descriptor that cannot be read tells no more.
            let _ = Read::read(&mut &self.spec.kick, &mut [0; 8]);
        }
    }

    fn may_take(&self) -> bool {
        !self.broken
            && self.copies_lent < COPIES_MAX
            && self.shared.is_enabled()
            && !self.shared.is_ordered(Order::Drain)
    }

    /// Asks to be kicked; true where requests came before that.
    fn is_more(&mut self) -> bool {
        match self.queue.enable_notification(self.memory.guest()) {
            Ok(more) => more,
            Err(e) => {
                self.give_up(&e.to_string());
                false
            }
        }
    }

    /// Serves what a predecessor was serving, oldest first.
    fn serve_left(&mut self) {
        let Some(part) = &self.spec.part else { return };
        let used = self.queue.next_used();
        let (left, next) = part.left(used, self.spec.layout.size);
        self.counter = next;
        // The ring tells how many were answered, the notes how many were taken besides.
        self.queue.set_next_avail(used.wrapping_add(left.len() as u16));
        if !left.is_empty() {
            tracing::info!(queue = self.spec.number, requests = left.len(), "served once more");
            add(&self.shared.counters.resubmitted, left.len() as u64);
        }
        for head in left {
            if !self.broken {
                self.start(head);
            }
        }
    }

    /// Takes requests, one round of the ring at most.
    fn take_requests(&mut self) {
        // A hint, which the guest may ignore; errors show below.
        let _ = self.queue.disable_notification(self.memory.guest());
        for _ in 0..self.spec.layout.size {
            if !self.may_take() {
                return;
            }
            let next = match self.queue.iter(self.memory.guest()) {
                Ok(mut chains) => chains.next().map(|chain| chain.head_index()),
                Err(e) => return self.give_up(&e.to_string()),
            };
            let Some(head) = next else { return };
            if usize::from(head) >= self.replies.len() {
                return self.give_up("a request beyond the ring");
            }
            if self.replies[usize::from(head)].is_some() {
                return self.give_up("a request twice at a time");
            }
            if let Some(part) = &self.spec.part {
                part.begin(head, self.counter);
                self.counter = self.counter.wrapping_add(1);
            }
            self.start(head);
        }
    }

    fn start(&mut self, head: u16) {
        let mut work = self.spare.pop().unwrap_or_default();
        self.copies_kept -= work.kept();
        let place = (self.spec.layout.table, self.spec.layout.size);
        let parsed = Chain::parse(&self.memory, place, head, (&mut self.scratch, &mut work.pieces));
        let Chain { status, asked } = match parsed {
            Ok(chain) => chain,
            Err(Broken(why)) => return self.give_up(why),
        };
        let taken = asked.ok_or(Status::IoError);
        let taken = taken.and_then(|asked| work.take(&asked, self.spec.durable));
        let reply = Reply { _memory: self.memory.clone(), status, copy: work.kept() };
        self.copies_lent += reply.copy;
        self.in_flight += 1;
        self.replies[usize::from(head)] = Some(reply);
        if let Err(status) = taken {
            return self.finish(head, Done { status, written: 0, work });
        }
        let progress = self.slots.start(head, (self.begin)(work));
        if let Progress::Done(_) = progress {
            add(&self.shared.counters.inline, 1);
        }
        self.settle(head, progress);
    }

    /// Polls the requests that were woken.
    fn resume(&mut self) {
        for word in 0..self.shared.mailbox.words() {
            let mut ready = self.shared.mailbox.take(word);
            while ready != 0 {
                let head = (word * 64) as u16 + ready.trailing_zeros() as u16;
                ready &= ready - 1;
                let progress = self.slots.poll(head);
                if let Progress::Done(_) = progress {
                    add(&self.shared.counters.waited, 1);
                }
                self.settle(head, progress);
            }
        }
    }

    fn settle(&mut self, head: u16, progress: Progress<Done>) {
        match progress {
            Progress::Idle | Progress::Waiting => {}
            Progress::Done(done) => self.finish(head, done),
            Progress::Panicked => {
                tracing::error!(
                    queue = self.spec.number,
                    head,
                    "the device panicked: answered EIO"
                );
                let (status, work) = (Status::IoError, Work::default());
                self.finish(head, Done { status, written: 0, work });
            }
        }
    }

    /// Answers the request at `head`.
    fn finish(&mut self, head: u16, done: Done) {
        let Some(reply) = self.replies[usize::from(head)].take() else { return };
        self.copies_lent -= reply.copy;
        self.in_flight -= 1;
        count(&self.shared.counters, &done);
        // SAFETY: the reply keeps the memory that it is of.
        unsafe { reply.status.copy_from(&[done.status as u8]) };
        if let Some(part) = &self.spec.part {
            part.answering(head);
        }
        let answered = self.queue.add_used(self.memory.guest(), head, done.written + 1);
        match answered {
            Ok(()) => {
                if let Some(part) = &self.spec.part {
                    part.answered(head, self.queue.next_used());
                }
                self.untold = true;
            }
            Err(e) => self.give_up(&e.to_string()),
        }
        if self.copies_kept + done.work.kept() <= COPIES_MAX {
            self.copies_kept += done.work.kept();
            self.spare.push(done.work);
        }
    }

    fn tell_guest(&mut self) {
        if !std::mem::take(&mut self.untold) {
            return;
        }
        let wanted = match self.spec.event_idx {
            true => self.queue.needs_notification(self.memory.guest()).unwrap_or(true),
            false => {
                // The answers must be seen before the guest's wish is looked at.
                std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
                let flags = self.memory.guest().load::<u16>(self.spec.layout.avail, Relaxed);
                let flags = flags.map_or(0, u16::from_le);
                u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0
            }
        };
        if wanted {
            self.shared.notify();
        }
    }

    /// Lets go of what is in flight: for a successor where that is noted, otherwise with an error.
    fn abandon(&mut self) {
        self.broken = true;
        for head in 0..self.spec.layout.size {
            if !self.slots.abandon(head) {
                continue;
            }
            match self.spec.part {
                Some(_) => {
                    self.replies[usize::from(head)] = None;
                    self.in_flight -= 1;
                }
                None => {
                    let (status, work) = (Status::IoError, Work::default());
                    self.finish(head, Done { status, written: 0, work });
                }
            }
        }
        self.tell_guest();
    }

    /// Takes no more from this ring, which makes no sense.
    fn give_up(&mut self, why: &str) {
        if !std::mem::replace(&mut self.broken, true) {
            tracing::warn!(queue = self.spec.number, "a ring is served no more: {why}");
            add(&self.shared.counters.broken_rings, 1);
            self.shared.complain();
        }
    }
}

fn count(counters: &Counters, done: &Done) {
    if done.status != Status::Ok {
        return add(&counters.errors, 1);
    }
    let bytes = done.work.bytes() as u64;
    match done.work.operation() {
        Operation::Read(_) => {
            add(&counters.reads, 1);
            add(&counters.read_bytes, bytes);
        }
        Operation::Write(_) => {
            add(&counters.writes, 1);
            add(&counters.written_bytes, bytes);
        }
        Operation::Flush => add(&counters.flushes, 1),
        Operation::Discard => add(&counters.discards, 1),
        Operation::Zero => add(&counters.write_zeroes, 1),
        Operation::Identify => {}
    }
}
