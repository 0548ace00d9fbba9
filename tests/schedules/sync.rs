//! What stands for `objblk::sync`: locks that are the scheduler's, and tokio's channels with a point
//! before each use at which the scheduler may run somebody else.

pub use shuttle::sync::{Mutex, MutexGuard, PoisonError};
use shuttle::thread::yield_now;

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

pub mod watch {
    use super::yield_now;
    use tokio::sync::watch;
    pub use tokio::sync::watch::Ref;
    use tokio::sync::watch::error::RecvError;

    #[derive(Debug)]
    pub struct Sender<T>(watch::Sender<T>);

    #[derive(Debug)]
    pub struct Receiver<T>(watch::Receiver<T>);

    impl<T> Sender<T> {
        pub fn new(value: T) -> Sender<T> {
            Sender(watch::Sender::new(value))
        }

        pub fn subscribe(&self) -> Receiver<T> {
            yield_now();
            Receiver(self.0.subscribe())
        }

        pub fn send_modify(&self, change: impl FnOnce(&mut T)) {
            yield_now();
            self.0.send_modify(change);
        }
    }

    impl<T> Receiver<T> {
        pub fn borrow(&self) -> Ref<'_, T> {
            yield_now();
            self.0.borrow()
        }

        pub async fn changed(&mut self) -> Result<(), RecvError> {
            yield_now();
            self.0.changed().await
        }

        pub async fn wait_for(
            &mut self,
            condition: impl FnMut(&T) -> bool,
        ) -> Result<Ref<'_, T>, RecvError> {
            yield_now();
            self.0.wait_for(condition).await
        }
    }
}
