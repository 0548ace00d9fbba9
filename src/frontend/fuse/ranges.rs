//! Locks on ranges of bytes, so that a write of part of a block and another one of the same block take
//! effect one after the other.

use std::ops::Range;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The ranges of one image that are being changed. There are as many as requests in flight, so few.
#[derive(Debug, Default)]
pub(super) struct RangeLocks {
    held: Mutex<Vec<Range<u64>>>,
    freed: Notify,
}

/// A locked range, until it is dropped.
#[derive(Debug)]
pub(super) struct RangeGuard {
    locks: Arc<RangeLocks>,
    range: Range<u64>,
}

impl RangeLocks {
    /// Locks `range` once nobody has a part of it; at the first poll if that is so now.
    pub(super) async fn lock(self: &Arc<Self>, range: Range<u64>) -> RangeGuard {
        loop {
            let mut freed = pin!(self.freed.notified());
            // Before the look, or the news could come in between.
            freed.as_mut().enable();
            match self.try_lock(&range) {
                Some(guard) => return guard,
                None => freed.await,
            }
        }
    }

    /// Locks `range`, unless somebody has a part of it.
    pub(super) fn try_lock(self: &Arc<Self>, range: &Range<u64>) -> Option<RangeGuard> {
        let mut held = self.held();
        if held.iter().any(|other| other.start < range.end && range.start < other.end) {
            return None;
        }
        held.push(range.clone());
        Some(RangeGuard { locks: Arc::clone(self), range: range.clone() })
    }

    fn held(&self) -> MutexGuard<'_, Vec<Range<u64>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        let mut held = self.locks.held();
        if let Some(at) = held.iter().position(|range| *range == self.range) {
            held.swap_remove(at);
        }
        drop(held);
        self.locks.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn only_what_overlaps_waits() {
        let locks = Arc::new(RangeLocks::default());
        let mut context = Context::from_waker(Waker::noop());
        let mut first = pin!(locks.lock(0..512));
        let Poll::Ready(first) = first.as_mut().poll(&mut context) else { panic!("it was free") };
        let mut beside = pin!(locks.lock(512..1024));
        let Poll::Ready(_beside) = beside.as_mut().poll(&mut context) else {
            panic!("it was free")
        };
        let mut across = pin!(locks.lock(511..512));
        assert!(across.as_mut().poll(&mut context).is_pending());
        drop(first);
        assert!(across.as_mut().poll(&mut context).is_ready());
    }
}
