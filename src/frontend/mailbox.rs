//! How threads that complete requests tell a queue thread which tags can go on.
//!
//! One bit per tag and one eventfd per queue. Waking a tag sets its bit; the eventfd is written
//! only by the first wake after the queue thread has said that it is about to sleep, so a busy
//! queue is woken by memory alone, and a batch of wakes costs one write.
//!
//! Invariant: a tag whose bit was set is taken by the queue thread, or the eventfd is readable.
//! Both sides write before they read (bit then `rung`, `rung` then bits), in one total order.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::task::{Wake, Waker};

/// The tags that can go on, and the bell.
#[derive(Debug)]
pub(super) struct Mailbox {
    ready: Box<[AtomicU64]>,
    /// True while nobody has to ring: the queue thread is awake or the bell has rung.
    rung: AtomicBool,
    bell: EventFd,
}

impl Mailbox {
    /// A mailbox for tags `0..depth`; its queue thread counts as awake.
    pub(super) fn new(depth: u16) -> io::Result<Mailbox> {
        let words = usize::from(depth).div_ceil(64);
        Ok(Mailbox {
            ready: (0..words).map(|_| AtomicU64::new(0)).collect(),
            rung: AtomicBool::new(true),
            bell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })
    }

    /// The eventfd to wait for. It is never read: only the event of a write counts.
    pub(super) fn bell(&self) -> RawFd {
        self.bell.as_raw_fd()
    }

    /// Rings whatever the queue thread is doing.
    pub(super) fn ring(&self) {
        // The counter cannot get near 2^64; nothing else makes the write fail.
        let _ = self.bell.write(1);
    }

    fn post(&self, tag: u16) {
        let (word, bit) = (usize::from(tag / 64), 1 << (tag % 64));
        let before = self.ready[word].fetch_or(bit, SeqCst);
        if before & bit == 0 && !self.rung.swap(true, SeqCst) {
            self.ring();
        }
    }

    /// Says that the queue thread will sleep; false where a tag is ready and it must not.
    pub(super) fn may_sleep(&self) -> bool {
        self.rung.store(false, SeqCst);
        if self.ready.iter().all(|word| word.load(SeqCst) == 0) {
            return true;
        }
        self.rung.store(true, SeqCst);
        false
    }

    /// Says that the queue thread is awake and will look at the tags before it sleeps again.
    pub(super) fn awake(&self) {
        self.rung.store(true, SeqCst);
    }

    /// Takes the ready tags among `64 * word ..`, as bits.
    pub(super) fn take(&self, word: usize) -> u64 {
        match self.ready[word].load(SeqCst) {
            0 => 0,
            _ => self.ready[word].swap(0, SeqCst),
        }
    }

    /// Number of words for [`Mailbox::take`].
    pub(super) fn words(&self) -> usize {
        self.ready.len()
    }

    /// A waker for every tag of `0..depth`, made once and used for all requests.
    pub(super) fn wakers(self: &Arc<Self>, depth: u16) -> impl Iterator<Item = Waker> {
        let mailbox = self.clone();
        (0..depth).map(move |tag| Waker::from(Arc::new(TagWaker { mailbox: mailbox.clone(), tag })))
    }
}

struct TagWaker {
    mailbox: Arc<Mailbox>,
    tag: u16,
}

impl Wake for TagWaker {
    fn wake(self: Arc<Self>) {
        self.mailbox.post(self.tag);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.mailbox.post(self.tag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rings(mailbox: &Mailbox) -> u64 {
        mailbox.bell.read().unwrap_or(0)
    }

    #[test]
    fn one_ring_per_batch_and_none_while_awake() {
        let mailbox = Arc::new(Mailbox::new(130).unwrap());
        let wakers: Vec<_> = mailbox.wakers(130).collect();
        wakers[129].wake_by_ref();
        assert_eq!(rings(&mailbox), 0);
        assert!(!mailbox.may_sleep());
        assert_eq!((0..mailbox.words()).map(|w| mailbox.take(w)).collect::<Vec<_>>(), [0, 0, 2]);
        assert!(mailbox.may_sleep());
        for waker in &wakers {
            waker.wake_by_ref();
        }
        assert_eq!(rings(&mailbox), 1);
        mailbox.awake();
        assert_eq!(mailbox.take(0), u64::MAX);
        assert_eq!(mailbox.take(1), u64::MAX);
        assert_eq!(mailbox.take(2), 3);
    }

    /// A sleeper that is never woken fails this test by its timeout.
    #[test]
    fn no_wake_is_lost_between_threads() {
        const ROUNDS: u64 = 20_000;
        let mailbox = Arc::new(Mailbox::new(64).unwrap());
        let wakers: Vec<_> = mailbox.wakers(64).collect();
        let (ask, asked) = std::sync::mpsc::channel::<usize>();
        let waking = std::thread::spawn(move || {
            for tag in asked {
                wakers[tag].wake_by_ref();
            }
        });
        for round in 0..ROUNDS {
            let tag = (round % 64) as usize;
            ask.send(tag).unwrap();
            let mut taken = 0;
            while taken == 0 {
                if mailbox.may_sleep() {
                    let mut polled =
                        [nix::poll::PollFd::new(mailbox.bell_fd(), nix::poll::PollFlags::POLLIN)];
                    let events = nix::poll::poll(&mut polled, 5000u16).unwrap();
                    assert_eq!(events, 1, "round {round}: a wake was lost");
                    rings(&mailbox);
                    mailbox.awake();
                }
                taken = mailbox.take(0);
            }
            assert_eq!(taken, 1 << tag);
        }
        drop(ask);
        waking.join().unwrap();
    }

    impl Mailbox {
        fn bell_fd(&self) -> std::os::fd::BorrowedFd<'_> {
            std::os::fd::AsFd::as_fd(&self.bell)
        }
    }
}
