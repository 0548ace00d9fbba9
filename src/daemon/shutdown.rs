//! The end of a target, in an order that loses nothing.
//!
//! | phase | what | may be called off |
//! | --- | --- | --- |
//! | flushing | the page cache and the volumes are made durable; all still works | yes |
//! | stopping | the frontend answers what is in flight and goes | no |
//! | closing | the volumes write their close record | no |
//!
//! Each waits for the store for as long as it takes. A forced end gives all of it together a few
//! seconds, then abandons the volumes: every request fails from then on, so the frontend ends at
//! once, and what was never stored is counted. A volume that has failed already (it was fenced) is
//! abandoned as well: there is nothing it could still commit.

use super::control::{Outcome, Phase, Reply};
use super::door::Door;
use super::in_use;
use super::orders::{Callers, Order};
use super::shared::Shared;
use super::target::Target;
use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::ublk;
use crate::volume::{Left, Volume};
use std::future::Future;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

/// How often callers are told how it goes.
const PROGRESS: Duration = Duration::from_millis(200);

/// How long a volume that is given up waits for its journal's disk.
const LAST_WRITE: Duration = Duration::from_secs(5);

/// How waiting ended.
enum Waited<T> {
    Done(T),
    /// Somebody forces, and patience is over.
    Forced,
    /// Nobody wants it any more.
    CalledOff,
}

/// The callers of an end, attended to while something is waited for.
struct End<'a> {
    shared: Arc<Shared>,
    orders: &'a mut UnboundedReceiver<Order>,
    callers: Callers,
}

impl Target {
    /// Ends the target, unless that is refused or called off: then it stays, as it was.
    pub(super) async fn end(mut self, first: Order) -> std::result::Result<Outcome, Box<Target>> {
        let mut callers = Callers::default();
        callers.add(first);
        let shared = Arc::clone(&self.shared);
        let mut end = End { shared, orders: &mut self.orders, callers };
        match end.flush().await {
            Ok(Waited::CalledOff) => {
                tracing::info!("the detach was called off");
                self.shared.set_phase(Phase::Attached);
                return Err(Box::new(self));
            }
            Err(refusal) => {
                end.callers.refuse(refusal);
                self.shared.set_phase(Phase::Attached);
                return Err(Box::new(self));
            }
            Ok(Waited::Done(()) | Waited::Forced) => {}
        }
        let outcome = end.stop_and_close().await;
        let callers = end.callers;
        self.leave();
        callers.dismiss(Reply::Detached(outcome.clone())).await;
        Ok(outcome)
    }

    /// Ends the target whose frontend has ended by itself.
    pub(super) async fn end_after_frontend(mut self) -> Outcome {
        let (shared, callers) = (Arc::clone(&self.shared), Callers::default());
        let mut end = End { shared, orders: &mut self.orders, callers };
        let mut outcome = end.stop_and_close().await;
        let callers = end.callers;
        outcome.trouble.get_or_insert_with(|| "the frontend ended by itself".into());
        self.leave();
        callers.dismiss(Reply::Detached(outcome.clone())).await;
        outcome
    }
}

impl End<'_> {
    /// Waits for `work`, telling the callers how it goes.
    async fn attend<T>(
        &mut self,
        phase: Phase,
        mut work: Pin<&mut impl Future<Output = T>>,
    ) -> Waited<T> {
        self.shared.set_phase(phase);
        let mut progress = interval(PROGRESS);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let deadline = self.callers.deadline();
            let patience = sleep_until(deadline.unwrap_or_else(Instant::now));
            tokio::select! {
                biased;
                done = &mut work => return Waited::Done(done),
                Some(order) = self.orders.recv() => self.callers.add(order),
                () = patience, if deadline.is_some() => return Waited::Forced,
                _ = progress.tick() => {
                    if phase == Phase::Flushing && self.callers.are_gone() {
                        return Waited::CalledOff;
                    }
                    let dirty_bytes = self.shared.dirty_bytes();
                    self.callers.tell(&Reply::Progress { phase, dirty_bytes });
                }
            }
        }
    }

    /// Makes durable what was written, or says why the target has to stay.
    async fn flush(&mut self) -> Result<Waited<()>> {
        let device = self.shared.block_device().await;
        let forced = self.callers.deadline().is_some();
        let user = match device.clone() {
            Some(device) => spawn_blocking(move || in_use::user_of(&device)).await.unwrap_or(None),
            None => None,
        };
        if let (Some(device), Some(user)) = (&device, user) {
            let message = format!("{} is {user}", device.display());
            if !forced && !self.callers.is_signalled() {
                let busy = Error::new(ErrorKind::Busy, message);
                return Err(busy.hint("unmount it first, or detach with --force"));
            }
            tracing::warn!("{message}, and goes away all the same");
        }
        if let Some((path, user)) = self.shared.user().await
            && !forced
            && !self.callers.is_signalled()
        {
            let busy = Error::new(ErrorKind::Busy, format!("{} is {user}", path.display()));
            return Err(busy.hint("shut that down or unplug it first, or detach with --force"));
        }
        if let Some((path, image)) = self.shared.file().await
            && image.status().open > 0
            && !forced
            && !self.callers.is_signalled()
        {
            let busy = Error::new(ErrorKind::Busy, format!("{} is open", path.display()));
            return Err(busy.hint("end the programs that use it, or detach with --force"));
        }
        let mut work = pin!(flush(device, self.shared.sound()));
        match self.attend(Phase::Flushing, work.as_mut()).await {
            // A volume that failed meanwhile has nothing to stay for.
            Waited::Done(Err(e)) if self.shared.failure().is_none() => match forced {
                true => Ok(Waited::Forced),
                false => Err(e.hint("detach with --force to give up what is not stored")),
            },
            Waited::Done(_) => Ok(Waited::Done(())),
            Waited::Forced => Ok(Waited::Forced),
            Waited::CalledOff => Ok(Waited::CalledOff),
        }
    }

    async fn stop_and_close(&mut self) -> Outcome {
        let (failure, fenced) = (self.shared.failure(), self.shared.is_fenced());
        let mut outcome = Outcome { failure, fenced, ..Outcome::default() };
        let mut open = self.shared.sound();
        outcome.lost_bytes = self.shared.failed().iter().map(Volume::abandon).sum();
        if self.callers.deadline().is_some_and(|at| at <= Instant::now()) {
            leave(open.drain(..), &mut outcome).await;
        }
        let shared = self.shared.clone();
        let mut work = pin!(shared.close_desks());
        self.attend(Phase::Stopping, work.as_mut()).await;
        if let Some(door) = self.shared.take_door().await {
            self.stop(door, &mut open, &mut outcome).await;
        }
        for volume in open {
            self.close(&volume, &mut outcome).await;
        }
        if outcome.lost_bytes > 0 {
            tracing::error!("{} bytes were never stored", outcome.lost_bytes);
        }
        outcome
    }

    async fn stop(&mut self, door: Door, open: &mut Vec<Volume>, outcome: &mut Outcome) {
        let mut work = pin!(door.stop());
        let stopped = match self.attend(Phase::Stopping, work.as_mut()).await {
            Waited::Done(stopped) => stopped,
            Waited::Forced | Waited::CalledOff => {
                // Its requests wait for the store: they fail now, and it can end.
                leave(open.drain(..), outcome).await;
                work.await
            }
        };
        if let Err(e) = stopped {
            // The flush of an abandoned volume fails, as it must.
            if !open.is_empty() {
                tracing::error!("{e}");
                outcome.trouble = Some(e.to_string());
            }
        }
    }

    /// Closes the volume, however long the store takes.
    async fn close(&mut self, volume: &Volume, outcome: &mut Outcome) {
        let mut work = pin!(volume.close());
        match self.attend(Phase::Closing, work.as_mut()).await {
            Waited::Done(Ok(())) => return,
            Waited::Done(Err(e)) if e.kind() == ErrorKind::Fenced => {
                outcome.failure.get_or_insert(e.to_string());
                outcome.fenced = true;
            }
            Waited::Done(Err(e)) => {
                tracing::error!("cannot close the volume: {e}");
                outcome.trouble.get_or_insert(e.to_string());
            }
            Waited::Forced | Waited::CalledOff => {}
        }
        leave(std::iter::once(volume.clone()), outcome).await;
    }
}

/// Gives the volumes up: their journals keep what the store lacks, where they have such.
async fn leave(volumes: impl Iterator<Item = Volume>, outcome: &mut Outcome) {
    for volume in volumes {
        // A journal's disk that does not answer keeps nobody.
        let left = tokio::time::timeout(LAST_WRITE, volume.leave()).await;
        let lost = |_| Left { lost_bytes: volume.abandon(), kept_bytes: 0 };
        let left = left.unwrap_or_else(lost);
        outcome.lost_bytes += left.lost_bytes;
        outcome.kept_bytes += left.kept_bytes;
    }
}

/// Writes out the page cache of the block device, then what the volumes hold.
async fn flush(device: Option<PathBuf>, volumes: Vec<Volume>) -> Result<()> {
    if let Some(device) = device.filter(|_| !volumes.is_empty()) {
        let synced = spawn_blocking({
            let device = device.clone();
            move || ublk::sync(&device)
        });
        let synced = synced.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        let failed = |e| Error::failed(format!("cannot write out {}", device.display())).because(e);
        synced.map_err(failed)?;
    }
    for volume in volumes {
        volume.flush().await.map_err(|e| {
            Error::new(ErrorKind::Store, "cannot make durable what was written").because(e)
        })?;
    }
    Ok(())
}
