//! A queue's thread: takes requests from the driver, polls them on the device, commits results.
//!
//! Each tag goes round: FETCH, then for each request a completion, the device's work, and
//! COMMIT_AND_FETCH, until the driver aborts the tag because the device goes away. What the device
//! completes at the first poll is committed in the same turn; what waits is polled again when its
//! tag turns up in the queue's [`Mailbox`], whose bell is polled for in the same ring. A turn is
//! one system call, however many requests it serves.
//!
//! Invariant: a delivered request is committed exactly once, with EIO in the worst case.
//! Source: Linux Documentation/block/ublk.rst, "Data plane".

use super::memory::{Buffers, Descriptors};
use super::partitions;
use super::request::Request;
use super::stats::{Counters, add};
use crate::device::{BlockDevice, Checked};
use crate::error::{Error, Result};
use crate::frontend::mailbox::Mailbox;
use crate::frontend::slots::{Progress, Slots};
use io_uring::{IoUring, cqueue, opcode, types};
use libublk::sys;
use nix::errno::Errno;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// `user_data` of the bell's poll; the others are tags.
const BELL: u64 = u64::MAX;

/// The character device, as registered with the ring.
const CDEV: types::Fixed = types::Fixed(0);

/// What a queue thread is to do with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Order {
    /// Have the device serve them.
    Serve,
    /// Give up the waiting ones and answer all with EIO.
    Abandon,
    /// Leave; the driver answers.
    Quit,
}

/// What a queue thread shares with others.
#[derive(Debug)]
pub(super) struct Shared {
    /// Where the queue's tags are woken.
    pub(super) mailbox: Arc<Mailbox>,
    /// What the queue has done.
    pub(super) counters: Counters,
    order: AtomicU8,
}

impl Shared {
    /// For a queue of `depth` tags.
    pub(super) fn new(depth: u16) -> io::Result<Shared> {
        let mailbox = Arc::new(Mailbox::new(depth)?);
        Ok(Shared { mailbox, counters: Counters::default(), order: (Order::Serve as u8).into() })
    }

    /// Gives an order. Orders only get stricter.
    pub(super) fn order(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::SeqCst);
        self.mailbox.ring();
    }

    fn ordered(&self, order: Order) -> bool {
        self.order.load(Ordering::SeqCst) >= order as u8
    }
}

/// Which queue, of which device.
pub(super) struct Spec {
    /// `/dev/ublkcN`, open.
    pub(super) cdev: Arc<File>,
    /// The queue's number.
    pub(super) qid: u16,
    /// Its number of tags.
    pub(super) depth: u16,
    /// Bytes in each tag's buffer.
    pub(super) max_io: u32,
    /// Its thread does without CAP_SYS_ADMIN, see [`partitions`].
    pub(super) unprivileged: bool,
}

/// Serves a queue from the calling thread until the device goes away; calls `ready` when every
/// tag waits for requests. Errors: the kernel refused memory or the ring.
pub(super) fn serve<D: BlockDevice>(
    device: &Checked<D>,
    spec: &Spec,
    shared: &Shared,
    ready: impl FnOnce(),
) -> Result<()> {
    if spec.unprivileged {
        partitions::keep_out_of_start()?;
    }
    let failed = |what: &'static str| move |errno: Errno| Error::failed(what).because(errno);
    let buffers = Buffers::new(spec.depth, spec.max_io as usize)
        .map_err(failed("cannot map request buffers"))?;
    let descriptors = Descriptors::map(&spec.cdev, spec.qid, spec.depth)
        .map_err(failed("cannot map request descriptors"))?;
    let buffer_size = buffers.size();
    let begin = |tag: u16| {
        let request = Request::decode(&descriptors.get(tag), buffer_size)?;
        shared.counters.count(&request);
        // SAFETY: `begin` is called once for each delivered request, and its result is committed
        // only after the future, which alone holds this reference, is gone.
        let buffer = unsafe { buffers.get(tag) };
        Ok(request.serve(device, buffer))
    };
    let ring = new_ring(spec).map_err(|e| {
        let hint = "raise the limit of locked memory (ulimit -l)";
        Error::failed("cannot make the queue's io_uring").because(e).hint(hint)
    })?;
    let slots = Slots::new(shared.mailbox.wakers(spec.depth));
    let mut queue =
        Queue { ring, spec, shared, buffers: &buffers, slots, begin, live: 0, abandoned: false };
    let ended = queue.fetch_all().and_then(|()| {
        ready();
        queue.run()
    });
    ended.map_err(|e| Error::failed("the queue's io_uring failed").because(e))
}

fn new_ring(spec: &Spec) -> io::Result<IoUring> {
    // A command for each tag and the bell.
    let entries = u32::from(spec.depth) + 1;
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_cqsize(2 * entries)
        .build(entries)?;
    ring.submitter().register_files(&[spec.cdev.as_raw_fd()])?;
    Ok(ring)
}

struct Queue<'a, F, B> {
    ring: IoUring,
    spec: &'a Spec,
    shared: &'a Shared,
    buffers: &'a Buffers,
    slots: Slots<F>,
    begin: B,
    /// Tags that the driver has not aborted.
    live: u16,
    abandoned: bool,
}

impl<F, B> Queue<'_, F, B>
where
    F: Future<Output = i32>,
    B: Fn(u16) -> std::result::Result<F, Errno>,
{
    fn fetch_all(&mut self) -> io::Result<()> {
        for tag in 0..self.spec.depth {
            self.command(sys::UBLK_U_IO_FETCH_REQ, tag, 0);
        }
        self.live = self.spec.depth;
        self.listen();
        self.ring.submit().map(|_| ())
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            self.reap();
            self.resume();
            if !self.abandoned && self.shared.ordered(Order::Abandon) {
                self.abandon();
            }
            if self.live == 0 || self.shared.ordered(Order::Quit) {
                return Ok(());
            }
            let want = usize::from(self.shared.mailbox.may_sleep());
            let turn = self.ring.submit_and_wait(want);
            self.shared.mailbox.awake();
            match turn.map_err(|e| (e.raw_os_error().map(Errno::from_raw), e)) {
                Ok(_) | Err((Some(Errno::EINTR | Errno::EBUSY | Errno::EAGAIN), _)) => {}
                Err((_, error)) => return Err(error),
            }
        }
    }

    /// Handles the completions that are there.
    fn reap(&mut self) {
        while let Some(event) = self.next_event() {
            if event.user_data() == BELL {
                if !cqueue::more(event.flags()) {
                    self.listen();
                }
                continue;
            }
            let tag = event.user_data() as u16;
            match event.result() {
                0 => self.start(tag),
                result => self.retire(tag, result),
            }
        }
    }

    fn next_event(&mut self) -> Option<cqueue::Entry> {
        self.ring.completion().next()
    }

    fn start(&mut self, tag: u16) {
        if self.abandoned {
            return self.finish(tag, Err(Errno::EIO));
        }
        match (self.begin)(tag) {
            Err(errno) => self.finish(tag, Err(errno)),
            Ok(future) => {
                let progress = self.slots.start(tag, future);
                if let Progress::Done(_) = progress {
                    add(&self.shared.counters.inline, 1);
                }
                self.settle(tag, progress);
            }
        }
    }

    /// Polls the requests that were woken.
    fn resume(&mut self) {
        for word in 0..self.shared.mailbox.words() {
            let mut ready = self.shared.mailbox.take(word);
            while ready != 0 {
                let tag = (word * 64) as u16 + ready.trailing_zeros() as u16;
                ready &= ready - 1;
                let progress = self.slots.poll(tag);
                if let Progress::Done(_) = progress {
                    add(&self.shared.counters.waited, 1);
                }
                self.settle(tag, progress);
            }
        }
    }

    fn settle(&mut self, tag: u16, progress: Progress<i32>) {
        match progress {
            Progress::Idle | Progress::Waiting => {}
            Progress::Done(result) if result < 0 => {
                self.finish(tag, Err(Errno::from_raw(-result)));
            }
            Progress::Done(result) => self.finish(tag, Ok(result)),
            Progress::Panicked => {
                tracing::error!(queue = self.spec.qid, tag, "the device panicked: answered EIO");
                self.finish(tag, Err(Errno::EIO));
            }
        }
    }

    /// Commits a request's result and fetches the tag's next one.
    fn finish(&mut self, tag: u16, result: std::result::Result<i32, Errno>) {
        let result = result.unwrap_or_else(|errno| {
            add(&self.shared.counters.errors, 1);
            -(errno as i32)
        });
        self.command(sys::UBLK_U_IO_COMMIT_AND_FETCH_REQ, tag, result);
    }

    fn abandon(&mut self) {
        self.abandoned = true;
        for tag in 0..self.spec.depth {
            if self.slots.abandon(tag) {
                self.finish(tag, Err(Errno::EIO));
            }
        }
    }

    /// The driver will deliver no more requests for `tag`.
    fn retire(&mut self, tag: u16, result: i32) {
        if result != sys::UBLK_IO_RES_ABORT {
            let errno = Errno::from_raw(-result);
            tracing::error!(queue = self.spec.qid, tag, %errno, "the driver refused a command");
        }
        self.live -= 1;
    }

    fn command(&mut self, op: u32, tag: u16, result: i32) {
        let address = self.buffers.address(tag);
        let mut command = [0; size_of::<sys::ublksrv_io_cmd>()];
        command[0..2].copy_from_slice(&self.spec.qid.to_ne_bytes());
        command[2..4].copy_from_slice(&tag.to_ne_bytes());
        command[4..8].copy_from_slice(&result.to_ne_bytes());
        command[8..16].copy_from_slice(&address.to_ne_bytes());
        let entry = opcode::UringCmd16::new(CDEV, op).cmd(command).build();
        self.push(entry.user_data(tag.into()));
    }

    fn listen(&mut self) {
        let bell = types::Fd(self.shared.mailbox.bell());
        let poll = opcode::PollAdd::new(bell, nix::libc::POLLIN as u32).multi(true).build();
        self.push(poll.user_data(BELL));
    }

    fn push(&mut self, entry: io_uring::squeue::Entry) {
        // SAFETY: commands refer to the tag's buffer, which outlives the ring, and the poll to
        // the mailbox's eventfd, which does too.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the ring has room for one command of each tag and the bell");
    }
}
