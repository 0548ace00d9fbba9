//! A ring's thread: takes requests, polls them on the device, answers them.
//!
//! What the device completes at the first poll is answered in the same turn; what waits is polled
//! again when its slot turns up in the ring's [`Mailbox`](crate::frontend::mailbox::Mailbox). A slot
//! belongs to the number that the ring gives to a request. The thread sleeps on the ring's kick and the
//! mailbox's bell, and asks to be kicked only while it sleeps.
//!
//! Invariants: a request that was taken is answered once, or noted as in flight for whoever comes
//! next; memory of the guest that a request refers to is mapped until its future is gone; a ring
//! that makes no sense is left alone for good, and the VMM is told.

use super::chain::{Broken, Chain, Link};
use super::memory::{Memory, Piece};
use super::request::{Done, Operation, Status, Work};
use super::ring::{Order, Shared, Spec};
use super::status::{Counters, add};
use super::virtqueue::{Packed, Shape, Split, Virtqueue};
use crate::device::{BlockDevice, Checked};
use crate::frontend::slots::{Progress, Slots};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::future::Future;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

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

struct Worker<'a, R, F, B> {
    spec: &'a Spec,
    shared: &'a Shared,
    memory: Arc<Memory>,
    ring: R,
    /// The slots are dropped before the replies that keep their memory.
    slots: Slots<F>,
    replies: Vec<Option<Reply>>,
    begin: B,
    links: Vec<Link>,
    spare: Vec<Work>,
    /// Of the spare ones, and of those in flight.
    copies_kept: usize,
    copies_lent: usize,
    in_flight: usize,
    /// The guest may have to be told of answers.
    untold: bool,
    broken: bool,
}

/// Serves a ring from the calling thread until it is told to end. Returns where the ring stands.
pub(super) fn serve<D: BlockDevice>(
    device: &Checked<D>,
    spec: Spec,
    memory: Arc<Memory>,
    shared: &Shared,
) -> u32 {
    match spec.shape {
        Shape::Split => serve_as::<Split, _>(device, &spec, memory, shared),
        Shape::Packed => serve_as::<Packed, _>(device, &spec, memory, shared),
    }
}

fn serve_as<R: Virtqueue, D: BlockDevice>(
    device: &Checked<D>,
    spec: &Spec,
    memory: Arc<Memory>,
    shared: &Shared,
) -> u32 {
    let begin = move |work: Work| work.serve(device, &spec.id);
    let size = spec.layout.size;
    let slots = Slots::new(shared.mailbox.wakers(size));
    let ring = match R::open(spec, &memory) {
        Ok(ring) => ring,
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
        ring,
        slots,
        replies: (0..size).map(|_| None).collect(),
        begin,
        links: Vec::new(),
        spare: Vec::new(),
        copies_kept: 0,
        copies_lent: 0,
        in_flight: 0,
        untold: false,
        broken: false,
    };
    worker.run()
}

impl<R, F, B> Worker<'_, R, F, B>
where
    R: Virtqueue,
    F: Future<Output = Done>,
    B: Fn(Work) -> F,
{
    fn run(&mut self) -> u32 {
        let epoll = match self.listen() {
            Ok(epoll) => epoll,
            Err(errno) => {
                tracing::error!(queue = self.spec.number, %errno, "a ring is not served");
                self.shared.complain();
                return self.ring.base();
            }
        };
        self.serve_left();
        loop {
            if let Some(memory) = self.shared.remapped() {
                self.memory = memory;
                if let Err(Broken(why)) = self.ring.remap(&self.memory) {
                    self.give_up(why);
                }
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
                return self.ring.base();
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
        match self.ring.want_kicks() {
            Ok(more) => more,
            Err(Broken(why)) => {
                self.give_up(why);
                false
            }
        }
    }

    /// Serves what a predecessor was serving, oldest first.
    fn serve_left(&mut self) {
        let left = self.ring.left();
        if !left.is_empty() {
            tracing::info!(queue = self.spec.number, requests = left.len(), "served once more");
            add(&self.shared.counters.resubmitted, left.len() as u64);
        }
        for number in left {
            if self.broken {
                return;
            }
            self.links.clear();
            let found = self.ring.again(number, &mut self.links);
            match found.and_then(|()| self.parse()) {
                Ok((chain, work)) => self.start(number, chain, work),
                Err(Broken(why)) => self.give_up(why),
            }
        }
    }

    /// Takes requests, one round of the ring at most.
    fn take_requests(&mut self) {
        self.ring.spare_kicks();
        for _ in 0..self.spec.layout.size {
            if !self.may_take() {
                return;
            }
            self.links.clear();
            let number = match self.ring.next(&mut self.links) {
                Ok(Some(number)) => number,
                Ok(None) => return,
                Err(Broken(why)) => return self.give_up(why),
            };
            let (chain, work) = match self.parse() {
                Ok(parsed) => parsed,
                Err(Broken(why)) => return self.give_up(why),
            };
            self.ring.take();
            self.start(number, chain, work);
        }
    }

    /// What the descriptors ask for that were found last.
    fn parse(&mut self) -> Result<(Chain, Work), Broken> {
        let mut work = self.spare.pop().unwrap_or_default();
        self.copies_kept -= work.kept();
        let chain = Chain::parse(&self.memory, &mut self.links, &mut work.pieces)?;
        Ok((chain, work))
    }

    fn start(&mut self, number: u16, Chain { status, asked }: Chain, mut work: Work) {
        let taken = asked.ok_or(Status::IoError);
        let taken = taken.and_then(|asked| work.take(&asked, self.spec.durable));
        let reply = Reply { _memory: self.memory.clone(), status, copy: work.kept() };
        self.copies_lent += reply.copy;
        self.in_flight += 1;
        self.replies[usize::from(number)] = Some(reply);
        if let Err(status) = taken {
            return self.finish(number, Done { status, written: 0, work });
        }
        let progress = self.slots.start(number, (self.begin)(work));
        if let Progress::Done(_) = progress {
            add(&self.shared.counters.inline, 1);
        }
        self.settle(number, progress);
    }

    /// Polls the requests that were woken.
    fn resume(&mut self) {
        for word in 0..self.shared.mailbox.words() {
            let mut ready = self.shared.mailbox.take(word);
            while ready != 0 {
                let number = (word * 64) as u16 + ready.trailing_zeros() as u16;
                ready &= ready - 1;
                let progress = self.slots.poll(number);
                if let Progress::Done(_) = progress {
                    add(&self.shared.counters.waited, 1);
                }
                self.settle(number, progress);
            }
        }
    }

    fn settle(&mut self, number: u16, progress: Progress<Done>) {
        match progress {
            Progress::Idle | Progress::Waiting => {}
            Progress::Done(done) => self.finish(number, done),
            Progress::Panicked => {
                tracing::error!(
                    queue = self.spec.number,
                    number,
                    "the device panicked: answered EIO"
                );
                let (status, work) = (Status::IoError, Work::default());
                self.finish(number, Done { status, written: 0, work });
            }
        }
    }

    /// Answers a request.
    fn finish(&mut self, number: u16, done: Done) {
        let Some(reply) = self.replies[usize::from(number)].take() else { return };
        self.copies_lent -= reply.copy;
        self.in_flight -= 1;
        count(&self.shared.counters, &done);
        // SAFETY: the reply keeps the memory that it is of.
        unsafe { reply.status.copy_from(&[done.status as u8]) };
        match self.ring.answer(number, done.written + 1) {
            Ok(()) => self.untold = true,
            Err(Broken(why)) => self.give_up(why),
        }
        if self.copies_kept + done.work.kept() <= COPIES_MAX {
            self.copies_kept += done.work.kept();
            self.spare.push(done.work);
        }
    }

    fn tell_guest(&mut self) {
        if std::mem::take(&mut self.untold) && self.ring.wants_call() {
            self.shared.notify();
        }
    }

    /// Lets go of what is in flight: for a successor where that is noted, otherwise with an error.
    fn abandon(&mut self) {
        self.broken = true;
        for number in 0..self.spec.layout.size {
            if !self.slots.abandon(number) {
                continue;
            }
            match self.spec.part {
                Some(_) => {
                    self.replies[usize::from(number)] = None;
                    self.in_flight -= 1;
                }
                None => {
                    let (status, work) = (Status::IoError, Work::default());
                    self.finish(number, Done { status, written: 0, work });
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
