//! Requests are carried out here, whether they come by the control socket or through the store.
//!
//! For other hosts each volume that is owned here has a [desk](crate::requests): looked at twice in a heartbeat, and
//! not at all where there is none. When the target ends, what is being carried out for another host is ended and
//! answered before the volumes are closed; what takes long is called off.

use super::control::{Reply, Request, decode, encode};
use super::shared::Shared;
use crate::clock::SystemClock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::request::LINE_MAX;
use crate::format::{SnapshotId, VolumeId};
use crate::requests::{Clerk, Desk};
use crate::units::Epoch;
use crate::volume::Volume;
use async_trait::async_trait;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How often in a heartbeat somebody looks who asks.
const LOOKS: u32 = 2;
/// How long an end waits for what is being carried out.
const LAST_ANSWER: Duration = Duration::from_secs(10);

/// The desks of a target.
#[derive(Debug)]
pub(super) struct Desks {
    ending: watch::Sender<bool>,
    serving: Mutex<JoinSet<()>>,
}

impl Default for Desks {
    fn default() -> Desks {
        Desks { ending: watch::channel(false).0, serving: Mutex::default() }
    }
}

impl Shared {
    /// Carries out a request. What it makes is called `token`.
    ///
    /// Errors: usage, for what is not asked of a volume; not found; those of the volume.
    pub(super) async fn carry_out(&self, request: Request, token: SnapshotId) -> Result<Reply> {
        Ok(match request {
            Request::Ping => Reply::Pong,
            Request::Status => Reply::Status(Box::new(self.status().await)),
            Request::Collect { volume, bound_percent } => {
                Reply::Collected(self.collect(volume, bound_percent).await?)
            }
            Request::Flatten { volume } => Reply::Flattened(self.flatten(volume).await?),
            Request::Mend { volume, objects } => Reply::Mended(self.mend(volume, &objects).await?),
            Request::Snapshots { volume, action } => {
                Reply::Snapshots(self.snapshots(volume, (action, token)).await?)
            }
            Request::Grow { volume, size } => {
                Reply::Grown { old_size: self.grow(volume, size).await? }
            }
            Request::Paths { change } => Reply::Paths(self.paths(change).await?),
            Request::Schedule { volume, rules } => {
                self.set_schedule(volume, rules).await?;
                Reply::Scheduled
            }
            Request::Retain { volume, time_ms } => {
                self.retain(volume, time_ms).await?;
                Reply::Retained
            }
            Request::Detach { .. } => return Err(Error::usage("a volume does not end itself")),
        })
    }

    /// Begins to serve other hosts.
    pub(super) fn open_desks(self: &Arc<Shared>) {
        let mut serving = self.desks.serving.lock().unwrap_or_else(PoisonError::into_inner);
        for (attached, volume) in self.volumes() {
            let epoch = Epoch(volume.status().epoch);
            let (false, Some(heartbeat)) = (epoch == Epoch(0), volume.heartbeat()) else {
                continue;
            };
            let (shared, volume, ending) =
                (self.clone(), volume.clone(), self.desks.ending.subscribe());
            let clerk = TargetClerk { shared, id: attached.id, volume, ending: ending.clone() };
            // What waits there is not given up while the store is away.
            let store = self.store().stores.background.clone();
            let desk =
                Desk::new(store, (attached.id, epoch), Arc::new(clerk), Arc::new(SystemClock));
            serving.spawn(desk.serve(heartbeat / LOOKS, ending));
        }
    }

    /// Serves other hosts no more. What is being carried out for them is ended first, if it can be in time.
    pub(super) async fn close_desks(&self) {
        self.desks.ending.send_replace(true);
        // Those that are left when this is dropped are given up.
        let mut serving = {
            let mut serving = self.desks.serving.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *serving)
        };
        let answered = async { while serving.join_next().await.is_some() {} };
        if timeout(LAST_ANSWER, answered).await.is_err() {
            tracing::warn!("a request of another host is left without an answer");
        }
    }
}

/// Works for the owner of one volume of a target.
struct TargetClerk {
    shared: Arc<Shared>,
    id: VolumeId,
    volume: Volume,
    ending: watch::Receiver<bool>,
}

impl TargetClerk {
    async fn try_to(&self, order: &str, token: SnapshotId) -> Result<Reply> {
        let request: Request = decode(order.as_bytes())?;
        if request.for_any_host() != Some(self.id) {
            return Err(Error::usage("that is not done for another host"));
        }
        if !request.is_long() {
            return self.shared.carry_out(request, token).await;
        }
        let mut ending = self.ending.clone();
        tokio::select! {
            done = self.shared.carry_out(request, token) => done,
            _ = ending.wait_for(|ending| *ending) => {
                let text = "it was called off: the volume is being detached";
                Err(Error::new(ErrorKind::Busy, text).hint("try again"))
            }
        }
    }
}

#[async_trait]
impl Clerk for TargetClerk {
    async fn carry_out(&self, order: &str, token: SnapshotId) -> String {
        line(self.try_to(order, token).await)
    }

    fn tell(&self, order: &str, token: SnapshotId) -> String {
        line(decode(order.as_bytes()).and_then(|request| told(&self.volume, &request, token)))
    }

    async fn still_owns(&self) -> bool {
        self.volume.confirm().await.is_ok()
    }
}

/// What the present owner knows of a request that a former one had taken: a snapshot that was made is there.
///
/// Errors: failed, where it cannot be told.
pub fn told(volume: &Volume, request: &Request, token: SnapshotId) -> Result<Reply> {
    if let Request::Snapshots { .. } = request
        && let Some(made) = volume.snapshots().into_iter().find(|entry| entry.id == token)
    {
        return Ok(Reply::Snapshots(vec![made.into()]));
    }
    let text = "the owner that had taken it was replaced before it told what came of it: it is done or it is not";
    Err(Error::failed(text).hint("look whether it is, and ask again if it is not"))
}

/// As it is put into the store.
fn line(reply: Result<Reply>) -> String {
    let encoded = |reply: Reply| {
        let mut line = encode(reply);
        line.pop();
        String::from_utf8(line).ok().filter(|line| line.len() <= LINE_MAX)
    };
    let refused = |e: Error| Reply::Refused(e.into());
    let (kind, long) = match &reply {
        Ok(_) => (ErrorKind::Failed, "it is done, and what came of it is too long to be told"),
        Err(e) => (e.kind(), "it is not done, and why is too long to be told"),
    };
    let line = encoded(reply.unwrap_or_else(refused));
    line.or_else(|| encoded(refused(Error::new(kind, long)))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_told_so() {
        let long = line(Err(Error::not_found("x".repeat(LINE_MAX))));
        let Reply::Refused(refusal) = decode(long.as_bytes()).unwrap() else { panic!("{long}") };
        let e = Error::from(refusal);
        assert!(e.kind() == ErrorKind::NotFound && e.to_string().contains("too long"), "{e}");
        let short = line(Ok(Reply::Scheduled));
        assert_eq!(decode::<Reply>(short.as_bytes()).unwrap(), Reply::Scheduled);
    }
}
