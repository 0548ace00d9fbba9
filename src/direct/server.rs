//! The thread of a file: it owns the ring and every buffer that the kernel may touch.
//!
//! Callers put requests into the [`Inbox`]; its bell, an eventfd, is polled for in the same ring and
//! rung only while the thread sleeps. Several reads and writes may be in flight; a filling is alone
//! with the writes that it does not concern.
//!
//! Invariants: a buffer is freed or given back only when the kernel is done with it; after a write
//! that failed, no write is submitted and none succeeds.

use super::Use;
use super::blocks::{BLOCK, Blocks};
use super::fill::Fill;
use crate::sync::{Mutex, MutexGuard, PoisonError, oneshot};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use nix::errno::Errno;
use nix::fcntl::Flock;
use nix::libc;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// Reads and writes in flight; more wait in the inbox.
const DEPTH: usize = 32;

/// `user_data` of the bell's poll; the others are places in [`Flights`].
const BELL: u64 = u64::MAX;

/// The disk counts as idle when nobody asked for anything for so long.
const IDLE_AFTER: Duration = Duration::from_millis(10);

/// A read that the kernel did not do is asked for again, so many times.
const READ_TRIES: u8 = 8;

/// One submission's bytes; what is left of a longer request follows when it is done.
const SUBMISSION_MAX: usize = 1 << 30;

/// What to do with blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Durably, if the file is for that.
    Write,
    Read,
    /// A write of zeros that nobody waits for.
    Fill,
}

/// What a caller asks for.
pub(super) struct Request {
    pub(super) job: Job,
    pub(super) offset: u64,
    pub(super) blocks: Blocks,
    pub(super) reply: oneshot::Sender<io::Result<Blocks>>,
}

/// Where requests wait for the thread.
#[derive(Debug)]
pub(super) struct Inbox {
    state: Mutex<InboxState>,
    bell: EventFd,
}

#[derive(Default)]
struct InboxState {
    requests: VecDeque<Request>,
    /// The thread sleeps, or is about to: ring.
    asleep: bool,
    closed: bool,
    /// The thread is gone.
    ended: bool,
}

impl std::fmt::Debug for InboxState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} requests", self.requests.len())
    }
}

impl Inbox {
    pub(super) fn new() -> io::Result<Inbox> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Inbox { state: Mutex::default(), bell })
    }

    fn state(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a request to the thread, or drops it where that is gone.
    pub(super) fn put(&self, request: Request) {
        self.change(|state| {
            if !state.ended {
                state.requests.push_back(request);
            }
        });
    }

    /// Tells the thread to end after what is there.
    pub(super) fn close(&self) {
        self.change(|state| state.closed = true);
    }

    fn change(&self, change: impl FnOnce(&mut InboxState)) {
        let mut state = self.state();
        change(&mut state);
        let ring = std::mem::take(&mut state.asleep);
        drop(state);
        if ring {
            // The counter cannot get near 2^64; nothing else makes the write fail.
            let _ = self.bell.write(1);
        }
    }
}

/// A request in the kernel.
struct Flight {
    job: Job,
    offset: u64,
    blocks: Blocks,
    /// Bytes of it that are done.
    done: usize,
    tries: u8,
    /// Nobody waits for a filling.
    reply: Option<oneshot::Sender<io::Result<Blocks>>>,
}

impl Flight {
    fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.blocks.bytes().len() as u64
    }
}

/// What is in the kernel, by place.
#[derive(Default)]
struct Flights {
    places: Vec<Option<Flight>>,
}

impl Flights {
    fn count(&self) -> usize {
        self.places.iter().flatten().count()
    }

    fn of(&self, job: Job) -> impl Iterator<Item = &Flight> {
        self.places.iter().flatten().filter(move |flight| flight.job == job)
    }

    fn add(&mut self, flight: Flight) -> usize {
        let place = self.places.iter().position(Option::is_none).unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[place] = Some(flight);
        place
    }
}

impl Drop for Flights {
    fn drop(&mut self) {
        // The ring broke, and the kernel may still read from and write to this memory.
        for flight in std::mem::take(&mut self.places).into_iter().flatten() {
            std::mem::forget(flight.blocks);
        }
    }
}

struct Server<'a> {
    ring: IoUring,
    inbox: &'a Inbox,
    file: Flock<File>,
    what: Use,
    /// What to fill ahead of the writes, if anything.
    fill: Option<Fill>,
    flights: Flights,
    /// Taken from the inbox, not in the kernel yet.
    waiting: VecDeque<Request>,
    /// Why nothing is written any more.
    broken: Option<String>,
    /// When somebody last asked for something.
    asked: Instant,
    closed: bool,
}

/// Serves `file` until the inbox is closed and empty. Says through `ready` whether that begins;
/// `_alive` is dropped after the file.
pub(super) fn serve(
    (file, what): (Flock<File>, Use),
    fill: Option<Fill>,
    inbox: &Inbox,
    _alive: Sender<()>,
    ready: &Sender<io::Result<()>>,
) {
    let ring = match new_ring() {
        Ok(ring) => ring,
        Err(e) => {
            drop(file);
            // The one who waits for it cannot have left.
            let _ = ready.send(Err(e));
            return;
        }
    };
    let mut server = Server {
        ring,
        inbox,
        file,
        what,
        fill,
        flights: Flights::default(),
        waiting: VecDeque::new(),
        broken: None,
        asked: Instant::now(),
        closed: false,
    };
    let _ = ready.send(Ok(()));
    if let Err(e) = server.run() {
        tracing::error!("the thread of a {}'s disk ended: {e}", what.name);
        // Whoever asks, or asked, is told.
        let mut state = inbox.state();
        state.ended = true;
        state.requests.clear();
    }
}

fn new_ring() -> io::Result<IoUring> {
    let entries = DEPTH as u32 + 2;
    let modern = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(entries);
    // Kernels before 6.1 know none of that.
    modern.or_else(|_| IoUring::new(entries))
}

impl Server<'_> {
    fn run(&mut self) -> io::Result<()> {
        self.listen();
        loop {
            self.take_requests();
            self.start_waiting();
            self.start_filling();
            if self.closed && self.waiting.is_empty() && self.flights.count() == 0 {
                return Ok(());
            }
            self.turn()?;
            self.reap();
        }
    }

    fn take_requests(&mut self) {
        let mut state = self.inbox.state();
        state.asleep = false;
        self.closed = state.closed;
        if !state.requests.is_empty() {
            self.asked = Instant::now();
            self.waiting.append(&mut state.requests);
        }
    }

    /// Puts into the kernel what may go there, in order.
    fn start_waiting(&mut self) {
        while let Some(next) = self.waiting.front() {
            let range = next.offset..next.offset + next.blocks.bytes().len() as u64;
            let meets =
                |fill: &Flight| fill.range().start < range.end && range.start < fill.range().end;
            let held = next.job == Job::Write && self.flights.of(Job::Fill).any(meets);
            if held || self.flights.count() >= DEPTH {
                return;
            }
            let Some(Request { job, offset, blocks, reply }) = self.waiting.pop_front() else {
                return;
            };
            if let (Job::Write, Some(why)) = (job, &self.broken) {
                let _ = reply.send(Err(io::Error::other(why.clone())));
                continue;
            }
            if let (Job::Write, Some(fill)) = (job, &mut self.fill) {
                fill.writing(range);
            }
            self.start(Flight { job, offset, blocks, done: 0, tries: 0, reply: Some(reply) });
        }
    }

    fn idle(&self) -> bool {
        self.flights.count() == 0 && self.waiting.is_empty()
    }

    fn start_filling(&mut self) {
        let busy = self.flights.of(Job::Write).chain(self.flights.of(Job::Fill)).next().is_some();
        if busy || !self.waiting.is_empty() || self.closed || self.broken.is_some() {
            return;
        }
        let idle = self.idle() && self.asked.elapsed() >= IDLE_AFTER;
        if let Some(range) = self.fill.as_mut().and_then(|fill| fill.take(idle)) {
            let blocks = Blocks::zeroed((range.end - range.start) as usize);
            let offset = range.start;
            self.start(Flight { job: Job::Fill, offset, blocks, done: 0, tries: 0, reply: None });
        }
    }

    fn start(&mut self, flight: Flight) {
        let place = self.flights.add(flight);
        self.submit(place);
    }

    /// Submits what is left of a flight.
    fn submit(&mut self, place: usize) {
        let Some(flight) = &mut self.flights.places[place] else { return };
        let left = &mut flight.blocks.bytes_mut()[flight.done..];
        let (at, len) = (left.as_mut_ptr(), left.len().min(SUBMISSION_MAX) as u32);
        let fd = types::Fd(self.file.as_raw_fd());
        let offset = flight.offset + flight.done as u64;
        let entry = match flight.job {
            Job::Read => opcode::Read::new(fd, at, len).offset(offset).build(),
            Job::Write | Job::Fill => {
                let flags = if self.what.durable { libc::RWF_DSYNC } else { 0 };
                opcode::Write::new(fd, at, len).offset(offset).rw_flags(flags).build()
            }
        };
        self.push(entry.user_data(place as u64));
    }

    fn listen(&mut self) {
        let bell = types::Fd(self.inbox.bell.as_raw_fd());
        let poll = opcode::PollAdd::new(bell, libc::POLLIN as u32).multi(true).build();
        self.push(poll.user_data(BELL));
    }

    fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: the entry refers to the bell, which outlives the ring, or to the file and the
        // buffer of a flight, which stay where they are until the flight's completion is reaped; a
        // ring that breaks before leaves them to the kernel for good (see `Flights`).
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the ring has room for every flight and the bell");
    }

    /// Submits, and sleeps where there is nothing to do before something is done.
    fn turn(&mut self) -> io::Result<()> {
        let may_sleep = {
            let mut state = self.inbox.state();
            state.asleep = state.requests.is_empty() && state.closed == self.closed;
            state.asleep
        };
        let wait = self.until_idle().filter(|_| may_sleep);
        let turned = match wait {
            Some(time) => {
                let time = types::Timespec::from(time);
                let args = types::SubmitArgs::new().timespec(&time);
                self.ring.submitter().submit_with_args(1, &args)
            }
            None => self.ring.submit_and_wait(usize::from(may_sleep)),
        };
        match turned.map_err(|e| (e.raw_os_error().map(Errno::from_raw), e)) {
            Ok(_) => Ok(()),
            Err((Some(Errno::ETIME | Errno::EINTR | Errno::EBUSY | Errno::EAGAIN), _)) => Ok(()),
            Err((_, e)) => Err(e),
        }
    }

    /// When to look for something to fill; never where there is nothing.
    fn until_idle(&self) -> Option<Duration> {
        let may = self.idle() && !self.closed && self.broken.is_none() && self.some_to_fill();
        may.then(|| IDLE_AFTER.saturating_sub(self.asked.elapsed()) + Duration::from_millis(1))
    }

    fn some_to_fill(&self) -> bool {
        self.fill.as_ref().is_some_and(Fill::some_left)
    }

    fn reap(&mut self) {
        while let Some(event) = self.next_event() {
            if event.user_data() != BELL {
                self.landed(event.user_data() as usize, event.result());
            } else if !cqueue::more(event.flags()) {
                self.listen();
            }
        }
    }

    fn next_event(&mut self) -> Option<cqueue::Entry> {
        self.ring.completion().next()
    }

    /// The kernel is done with a submission: the flight goes on or ends.
    fn landed(&mut self, place: usize, result: i32) {
        let Some(flight) = self.flights.places[place].as_mut() else { return };
        let again = result == -libc::EINTR || result == -libc::EAGAIN;
        if flight.job == Job::Read && again && flight.tries < READ_TRIES {
            flight.tries += 1;
            return self.submit(place);
        }
        let outcome = match usize::try_from(result) {
            // A part of a block is done again, from its beginning.
            Ok(bytes) if bytes >= BLOCK => {
                flight.done += bytes / BLOCK * BLOCK;
                if flight.done < flight.blocks.bytes().len() {
                    return self.submit(place);
                }
                Ok(())
            }
            Ok(_) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends before")),
            Err(_) => Err(io::Error::from_raw_os_error(-result)),
        };
        if let Some(flight) = self.flights.places[place].take() {
            self.end(flight, outcome);
        }
    }

    fn end(&mut self, flight: Flight, outcome: io::Result<()>) {
        let mut outcome = outcome;
        if flight.job != Job::Read {
            match (&outcome, &self.broken) {
                (Err(e), None) => {
                    let name = self.what.name;
                    tracing::error!("a {name} is written no more: {e}");
                    self.broken = Some(format!("the {name}'s disk failed before: {e}"));
                }
                // It may have been reported to the other write what happened to this one.
                (Ok(()), Some(why)) => outcome = Err(io::Error::other(why.clone())),
                _ => {}
            }
        }
        if let Some(reply) = flight.reply {
            // Nobody may wait for it any more.
            let _ = reply.send(outcome.map(|()| flight.blocks));
        }
    }
}
