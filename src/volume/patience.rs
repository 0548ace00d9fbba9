//! The time that a request to the device may take.

use super::shared::Shared;
use crate::device::{DeviceError, DeviceResult};
use futures::future::{Either, select};
use std::future::pending;
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
        let mut request = pin!(request);
        if let Poll::Ready(done) = futures::poll!(request.as_mut()) {
            return done;
        }
        let (limit, hopeless) = (self.options.io_timeout, self.options.hopeless.clone());
        if limit.is_none() && hopeless.is_none() {
            return request.await;
        }
        let mut timer = JoinSet::new();
        if let Some(limit) = limit {
            // In a block of its own: a timer is made where it runs.
            timer.spawn_on(async move { tokio::time::sleep(limit).await }, &self.env.runtime);
        }
        let timer = pin!(async {
            match limit {
                Some(limit) => {
                    timer.join_next().await;
                    format!("has waited {limit:?} for {cause}")
                }
                None => pending().await,
            }
        });
        let end_of_hope = pin!(async {
            if let Some(mut hopeless) = hopeless
                && hopeless.wait_for(|hopeless| *hopeless).await.is_ok()
            {
                return format!("waits for {cause}, and no path to the store works");
            }
            pending().await
        });
        match select(request, select(timer, end_of_hope)).await {
            Either::Left((done, _)) => done,
            Either::Right((Either::Left((why, _)), _)) => {
                let dirty = self.state().dirty();
                let why = format!("{what} {why} ({dirty} bytes are not stored yet)");
                tracing::warn!(volume = %self.id, "{why}: it fails, the device goes on");
                Err(DeviceError::Io(why))
            }
            // That the paths have failed was said once, for all requests.
            Either::Right((Either::Right((why, _)), _)) => {
                Err(DeviceError::Io(format!("{what} {why}")))
            }
        }
    }
}
