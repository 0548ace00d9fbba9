//! What stands for `objblk::sync`: locks that are the scheduler's, and tokio's channels with a point
//! before each use at which the scheduler may run somebody else.

pub use shuttle::sync::{Mutex, MutexGuard, PoisonError};
use shuttle::thread::yield_now;
pub use tokio::sync::futures::Notified;

pub mod oneshot {
    use super::yield_now;
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use tokio::sync::oneshot;

    pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = oneshot::channel();
        (Sender(sender), Receiver(receiver))
    }

    #[derive(Debug)]
    pub struct Sender<T>(oneshot::Sender<T>);

    #[derive(Debug)]
    pub struct Receiver<T>(oneshot::Receiver<T>);

    impl<T> Sender<T> {
        pub fn send(self, value: T) -> Result<(), T> {
            yield_now();
            self.0.send(value)
        }
    }

    impl<T> Future for Receiver<T> {
        type Output = Result<T, oneshot::error::RecvError>;

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
            yield_now();
            Pin::new(&mut self.0).poll(cx)
        }
    }
}

#[derive(Debug, Default)]
pub struct Notify(tokio::sync::Notify);

impl Notify {
    pub fn new() -> Notify {
        Notify::default()
    }

    pub fn notified(&self) -> Notified<'_> {
        yield_now();
        self.0.notified()
    }

    pub fn notify_one(&self) {
        yield_now();
        self.0.notify_one();
    }

    pub fn notify_waiters(&self) {
        yield_now();
        self.0.notify_waiters();
    }
}
