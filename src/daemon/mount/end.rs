//! The end of a mount, in an order that loses nothing.

use super::images::Images;
use super::place::Place;
use crate::daemon::control::{Outcome, Phase, Reply};
use crate::daemon::orders::{Callers, Order};
use crate::error::{Error, ErrorKind};
use crate::frontend::fuse::{Mounted, Session, mounted_at, unmount};
use nix::errno::Errno;
use std::fs::File;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

/// How often callers are told how it goes.
const PROGRESS: Duration = Duration::from_millis(200);

/// A mounted directory.
pub(super) struct Running {
    pub(super) images: Arc<Images>,
    pub(super) session: Session,
    pub(super) place: Place,
    pub(super) orders: UnboundedReceiver<Order>,
}

/// How waiting ended.
enum Waited<T> {
    Done(T),
    /// Somebody forces, and patience is over.
    Forced,
    /// Nobody wants it any more.
    CalledOff,
}

impl Running {
    /// Serves until it is unmounted or told to end.
    pub(super) async fn run(mut self) -> Outcome {
        loop {
            let ended = tokio::select! {
                order = self.orders.recv() => order,
                () = self.session.ended() => None,
            };
            let mut callers = Callers::default();
            if let Some(order) = ended {
                callers.add(order);
                if let Err(refusal) = self.unmounted(&mut callers).await {
                    match refusal {
                        Some(refusal) => callers.refuse(refusal),
                        None => tracing::info!("the unmount was called off"),
                    }
                    continue;
                }
            }
            let outcome = self.close(&mut callers).await;
            self.place.leave();
            callers.dismiss(Reply::Detached(outcome.clone())).await;
            return outcome;
        }
    }

    /// Makes durable what was written and unmounts. The error says why it stays; none, if nobody
    /// waits any more.
    async fn unmounted(&mut self, callers: &mut Callers) -> std::result::Result<(), Option<Error>> {
        let (images, dir) = (Arc::clone(&self.images), self.place.dir().to_owned());
        let forced = callers.deadline().is_some();
        let mut work = pin!(async {
            // What shared mappings have changed; it comes as writes.
            let at = dir.clone();
            let synced = spawn_blocking(move || sync(&at)).await;
            let synced = synced.unwrap_or_else(|e| Err(std::io::Error::other(e)));
            let failed =
                |e| Error::failed(format!("cannot write out {}", dir.display())).because(e);
            synced.map_err(failed)?;
            images.flush().await
        });
        match self.attend(Phase::Flushing, callers, work.as_mut()).await {
            Waited::Done(Err(e)) if !forced => {
                let hint = "unmount with --force to give up what is not stored";
                return Err(Some(e.hint(hint)));
            }
            Waited::CalledOff => return Err(None),
            Waited::Done(_) | Waited::Forced => {}
        }
        let lazily = callers.deadline().is_some() || callers.is_signalled();
        let at = dir.clone();
        let work = async move {
            let done = spawn_blocking(move || end_mount(&at, lazily)).await;
            done.unwrap_or_else(|e| Err(std::io::Error::other(e)))
        };
        let mut work = pin!(work);
        match self.attend(Phase::Stopping, callers, work.as_mut()).await {
            Waited::Done(Ok(())) => Ok(()),
            Waited::Done(Err(e)) if e.raw_os_error() == Some(Errno::EBUSY as i32) => {
                let busy = Error::new(ErrorKind::Busy, format!("{} is in use", dir.display()));
                Err(Some(busy.hint("end what uses it (`fuser -vm` shows it), or use --force")))
            }
            Waited::Done(Err(e)) => {
                Err(Some(Error::failed(format!("cannot unmount {}", dir.display())).because(e)))
            }
            // The volumes are closed all the same; with the process the rest of the mount goes.
            Waited::Forced | Waited::CalledOff => Ok(()),
        }
    }

    /// Closes the volumes, however long the store takes, unless somebody forces.
    async fn close(&mut self, callers: &mut Callers) -> Outcome {
        let images = Arc::clone(&self.images);
        let mut work = pin!(images.close(callers.deadline().is_some()));
        match self.attend(Phase::Closing, callers, work.as_mut()).await {
            Waited::Done(outcome) => outcome,
            Waited::Forced | Waited::CalledOff => {
                // Each gives the store a last chance by itself, so this comes to an end.
                self.images.force();
                work.await
            }
        }
    }

    /// Waits for `work`, telling the callers how it goes.
    async fn attend<T>(
        &mut self,
        phase: Phase,
        callers: &mut Callers,
        mut work: Pin<&mut impl Future<Output = T>>,
    ) -> Waited<T> {
        let mut progress = interval(PROGRESS);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let deadline = callers.deadline();
            let patience = sleep_until(deadline.unwrap_or_else(Instant::now));
            tokio::select! {
                biased;
                done = &mut work => return Waited::Done(done),
                Some(order) = self.orders.recv() => callers.add(order),
                () = patience, if deadline.is_some() => return Waited::Forced,
                _ = progress.tick() => {
                    if phase == Phase::Flushing && callers.are_gone() {
                        return Waited::CalledOff;
                    }
                    let dirty_bytes = self.images.dirty_bytes();
                    callers.tell(&Reply::Progress { phase, dirty_bytes });
                }
            }
        }
    }
}

/// Writes out what the kernel holds back of the file system on `dir`. Blocks the calling thread.
fn sync(dir: &Path) -> std::io::Result<()> {
    match mounted_at(dir) {
        Mounted::Ours => Ok(nix::unistd::syncfs(File::open(dir)?)?),
        _ => Ok(()),
    }
}

fn end_mount(dir: &Path, lazily: bool) -> std::io::Result<()> {
    match mounted_at(dir) {
        Mounted::Ours => {}
        // Somebody else was quicker, or has put something on top of it.
        Mounted::Nothing => return Ok(()),
        Mounted::Other => return Err(Errno::EBUSY.into()),
    }
    match unmount(dir, false) {
        Err(e) if lazily => {
            tracing::warn!("{} is unmounted although it is in use: {e}", dir.display());
            unmount(dir, true)
        }
        done => done,
    }
}
