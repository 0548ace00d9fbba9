//! A pool as a directory: the process behind `objblk mount`.
//!
//! ```text
//! objblk mount DIR --spec--> process: place -> FUSE session -> images -> target of NAME (while in use)
//! objblk umount DIR --JSON lines--> its control socket
//! ```
//!
//! A volume is owned from the moment its file is opened, for reading too, until some seconds after it
//! was closed the last time; then its target is closed as by a detach. With `read_only`, a volume that
//! nobody owns is read as it is, and nothing is owned. Snapshots are never owned.
//!
//! Ending is done in this order (`end`): what was written is made durable while the directory still
//! works; it is unmounted, which the kernel refuses while it is in use; the volumes are closed. If
//! somebody else unmounts it, only the last is left to do. If the process is killed, whoever uses the
//! directory gets ENOTCONN, and the next `mount` or `umount` of it cleans up.

mod end;
mod images;
mod place;
mod umount;

pub use umount::{Unmounted, umount};

use super::background::{Answer, answer, detach_from_terminal, open_log_at, read_spec};
use super::control::Outcome;
use super::rundir::RunDir;
use super::server;
use super::spec::{Orders, TargetSpec};
use super::target::{Ready, listen_to_signals, open_cache};
use crate::error::{Error, Result};
use crate::frontend::fuse::{MountOptions, Session};
use crate::pool::backend::Backend;
use crate::seal::KeyGiven;
use end::Running;
use images::Images;
use nix::unistd::setsid;
use place::Place;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc::unbounded_channel;

/// What a mounting process is to do; goes to one in the background as one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountSpec {
    /// The directory.
    pub dir: PathBuf,
    /// Other users may use it.
    pub allow_other: bool,
    /// How each volume is opened; it names none, and its frontend counts for nothing.
    pub each: TargetSpec,
}

impl Orders for MountSpec {
    fn key(&self) -> Option<&KeyGiven> {
        self.each.key()
    }

    fn key_mut(&mut self) -> Option<&mut KeyGiven> {
        self.each.key_mut()
    }
}

/// Mounts the pool and serves it in this process until it is unmounted or told to end. `ready` is
/// called once the directory can be used; an error of it ends the mount again.
///
/// Errors: not found, where there is no such directory; busy, where it is mounted already; those of
/// the store and of FUSE.
pub async fn run(spec: &MountSpec, ready: impl FnOnce(&Ready) -> Result<()>) -> Result<Outcome> {
    let run_dir = RunDir::open()?;
    let (ordering, orders) = unbounded_channel();
    listen_to_signals(ordering.clone())?;
    let place = Place::take(&run_dir, &spec.dir).await?;
    let starting = async {
        let (url, s3) = spec.each.location.parts()?;
        let backend = Backend::open(&url, &s3).await?.with_key(spec.each.key.clone());
        let cache = spec.each.disk_cache.as_ref().map(open_cache).transpose()?;
        place.announce(&backend.pool.store().url())?;
        server::listen(&place.socket(), None, ordering.clone())?;
        let images =
            Arc::new(Images::new((backend, cache), &run_dir, spec.each.clone(), place.dir()));
        let options =
            MountOptions { read_only: spec.each.read_only, allow_other: spec.allow_other };
        let session = Session::mount(Arc::clone(&images), place.dir(), options).await?;
        Ok((images, session))
    };
    let (images, session) = match starting.await {
        Ok(started) => started,
        Err(e) => {
            place.leave();
            return Err(e);
        }
    };
    let told = ready(&Ready { pid: std::process::id(), volumes: Vec::new() });
    if told.is_err() {
        // The receiver is just here.
        let _ = ordering.send(super::orders::Order { force: false, client: None });
    }
    let outcome = Running { images, session, place, orders }.run().await;
    told.map(|()| outcome)
}

/// The other side of a mount in the background: reads the specification, mounts, answers. Returns when
/// the mount has ended; its errors have been told. `unwatched` is called once it is on its own.
///
/// Errors: failed, where it cannot become a background process.
pub async fn run_child(unwatched: impl FnOnce()) -> Result<()> {
    setsid().map_err(|e| Error::failed("cannot become a background process").because(e))?;
    let spec: MountSpec = read_spec()?;
    let log = Place::log(&RunDir::open()?, &spec.dir);
    let mut told = false;
    let outcome = run(&spec, |ready| {
        let file = open_log_at(&log)?;
        answer(&Answer::Ready(ready.clone()))?;
        told = true;
        detach_from_terminal(&file)?;
        unwatched();
        Ok(())
    });
    match (outcome.await, told) {
        (Ok(outcome), true) if outcome == Outcome::default() => {
            // All went well: nobody will want to read it.
            let _ = fs::remove_file(log);
            Ok(())
        }
        (Ok(_), _) => Ok(()),
        (Err(e), false) => answer(&Answer::Failed(e.into())),
        (Err(e), true) => {
            tracing::error!("{e}");
            Ok(())
        }
    }
}
