//! Work that may hang in the kernel, done where it can be waited for with a limit.
//!
//! The work runs on a thread of its own, which owns all that the work refers to. Whoever started
//! it waits as long as they like and may give up; that ends neither the work nor the thread.

use std::io;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

/// Work under way.
pub(super) struct Pending<T> {
    answer: Receiver<T>,
}

/// Starts `work` on a thread called `name` (15 bytes are shown). Errors: no thread can be had.
pub(super) fn begin<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Pending<T>> {
    let (reply, answer) = sync_channel(1);
    thread::Builder::new().name(name.into()).spawn(move || {
        // Whoever asked may have given up.
        let _ = reply.send(work());
    })?;
    Ok(Pending { answer })
}

impl<T> Pending<T> {
    /// The result, if it comes within `timeout`. May be asked again after a `None`; work that
    /// panicked never answers.
    pub(super) fn wait(&self, timeout: Duration) -> Option<T> {
        self.answer.recv_timeout(timeout).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_may_give_up_and_ask_again() {
        let (go, gone) = sync_channel::<u32>(0);
        let pending = begin("test", move || gone.recv().unwrap()).unwrap();
        assert_eq!(pending.wait(Duration::from_millis(1)), None);
        go.send(5).unwrap();
        assert_eq!(pending.wait(Duration::from_secs(5)), Some(5));
    }
}
