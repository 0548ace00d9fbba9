//! The time that a request to the device may take.

use super::shared::Shared;
use crate::device::{DeviceError, DeviceResult};
use futures::future::{Either, select};
use std::pin::pin;
use std::task::Poll;
use tokio::task::JoinSet;

impl Shared {
    /// Does `request`, or fails where it takes longer than the owner allowed: `what` is said to
    /// have waited for `cause`. What it has begun goes on; see `VolumeOptions::io_timeout`.
    ///
    /// The timer runs on the volume's runtime, since any executor may poll this, and only once the
    /// request turns out to wait.
    pub async fn patiently<T>(
        &self,
        what: &str,
        cause: &str,
        request: impl Future<Output = DeviceResult<T>>,
    ) -> DeviceResult<T> {
        let Some(limit) = self.options.io_timeout else { return request.await };
        let mut request = pin!(request);
        if let Poll::Ready(done) = futures::poll!(request.as_mut()) {
            return done;
        }
        let mut timer = JoinSet::new();
        // In a block of its own: a timer is made where it runs.
        timer.spawn_on(async move { tokio::time::sleep(limit).await }, &self.env.runtime);
        let timer = pin!(timer.join_next());
        match select(request, timer).await {
            Either::Left((done, _)) => done,
            Either::Right(_) => {
                let dirty = self.state().dirty();
                let why = format!(
                    "{what} has waited {limit:?} for {cause} ({dirty} bytes are not stored yet)"
                );
                tracing::warn!(volume = %self.id, "{why}: it fails, the device goes on");
                Err(DeviceError::Io(why))
            }
        }
    }
}
