//! The futures of a queue's requests, one slot per tag.
//!
//! A slot is pinned once and reused for every request of its tag, so a request allocates nothing.
//! A future is polled when its request arrives and whenever its tag's waker was used.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// What became of a slot's future.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress<T> {
    /// The slot holds no future.
    Idle,
    /// It waits for its waker.
    Waiting,
    /// It is finished and gone.
    Done(T),
    /// It panicked and is gone.
    Panicked,
}

struct Slot<F> {
    future: Pin<Box<Option<F>>>,
    waker: Waker,
}

/// One slot per tag.
pub(super) struct Slots<F> {
    slots: Vec<Slot<F>>,
}

impl<F: Future> Slots<F> {
    /// A slot for each of `wakers`, in tag order.
    pub(super) fn new(wakers: impl Iterator<Item = Waker>) -> Slots<F> {
        let slots = wakers.map(|waker| Slot { future: Box::pin(None), waker }).collect();
        Slots { slots }
    }

    /// Puts `future` in the slot of `tag`, in place of what was there, and polls it.
    pub(super) fn start(&mut self, tag: u16, future: F) -> Progress<F::Output> {
        self.slots[usize::from(tag)].future.set(Some(future));
        self.poll(tag)
    }

    /// Polls the future of `tag`.
    pub(super) fn poll(&mut self, tag: u16) -> Progress<F::Output> {
        let Slot { future, waker } = &mut self.slots[usize::from(tag)];
        let Some(pinned) = future.as_mut().as_pin_mut() else { return Progress::Idle };
        let mut context = Context::from_waker(waker);
        let progress = match catch_unwind(AssertUnwindSafe(|| pinned.poll(&mut context))) {
            Ok(Poll::Pending) => return Progress::Waiting,
            Ok(Poll::Ready(output)) => Progress::Done(output),
            Err(_) => Progress::Panicked,
        };
        future.set(None);
        progress
    }

    /// Drops the future of `tag`; false where there was none.
    pub(super) fn abandon(&mut self, tag: u16) -> bool {
        let future = &mut self.slots[usize::from(tag)].future;
        let held = future.is_some();
        future.set(None);
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::future::poll_fn;

    #[test]
    fn a_slot_is_used_again_after_every_end() {
        let gate = Cell::new(false);
        let gate = &gate;
        let mut slots = Slots::new([Waker::noop().clone()].into_iter());
        let request = move |value: u32| {
            poll_fn(move |_| match (value, gate.get()) {
                (13, _) => panic!("the request of this test"),
                (_, true) => Poll::Ready(value),
                (_, false) => Poll::Pending,
            })
        };
        assert_eq!(slots.poll(0), Progress::Idle);
        assert_eq!(slots.start(0, request(1)), Progress::Waiting);
        assert_eq!(slots.poll(0), Progress::Waiting);
        gate.set(true);
        assert_eq!(slots.poll(0), Progress::Done(1));
        assert_eq!(slots.poll(0), Progress::Idle);
        assert_eq!(slots.start(0, request(13)), Progress::Panicked);
        assert_eq!(slots.start(0, request(2)), Progress::Done(2));
        gate.set(false);
        assert_eq!(slots.start(0, request(3)), Progress::Waiting);
        assert!(slots.abandon(0));
        assert!(!slots.abandon(0));
        assert_eq!(slots.poll(0), Progress::Idle);
    }
}
