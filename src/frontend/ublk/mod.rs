//! The ublk frontend: a [`BlockDevice`] as `/dev/ublkbN`.
//!
//! ```text
//! application -> /dev/ublkbN -> ublk driver -> queue thread -> BlockDevice
//!                                                   ^              |
//!                                                mailbox <--- waker of the tag
//! ```
//!
//! [`Ublk::start`] adds a device, starts a thread for each queue and returns when the block
//! device is ready for I/O. Each queue thread owns an io_uring and polls its requests' futures
//! itself: what is ready at the first poll is answered without a hop, what waits is polled again
//! when its waker, usable from any thread, posts the tag.
//!
//! Contract:
//! * Every request is answered once, with EIO in the worst case ([`UblkOptions::drain_timeout`]).
//! * Every wait for the kernel is bounded; a time-out names the kernel.
//! * No thread waits for the device that its own process serves: errands do ([`errand()`]).
//! * A killed server leaves no hanging application (unless [`UblkOptions::recovery`] asks for
//!   that, until [`Ublk::recover`]) and nothing that [`reap()`] does not remove.
//! * The kernel chooses device numbers, and a device is stopped or deleted only after the token
//!   that [`Ublk::start`] gave it was found in it: a number may have passed to another server.
//!
//! The driver's protocol is spoken here directly, on structures and constants of `libublk::sys`:
//! the objects of libublk delete devices when dropped, keep rings in thread-locals and wait
//! without limit.

mod bounded;
mod control;
mod errand;
mod host;
mod link;
mod memory;
mod node;
mod options;
mod params;
mod partitions;
mod queue;
mod reap;
mod request;
mod resize;
mod stats;
mod uevent;

pub use errand::{errand, is_claimed, sync};
pub use host::{HostSupport, become_io_flusher, check_host};
pub use link::link_path;
pub use options::UblkOptions;
pub use reap::{evict, find, is_there, reap};
pub use resize::{check_growth, grow};
pub use stats::Stats;
pub use uevent::announce;

use crate::device::{BlockDevice, Checked};
use crate::error::{Error, ErrorKind, Result};
use control::Failure;
use libublk::sys;
use link::{FOLDER, Link, Links};
use queue::{Order, Shared, Spec};
use reap::orphan;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;

/// How long what only needs CPU time may take after it was told to end.
const GRACE: Duration = Duration::from_secs(5);

/// A running device. Dropping it stops it, as [`Ublk::stop`] does, without a report.
#[derive(Debug)]
pub struct Ublk {
    dev_id: u32,
    /// What marks the driver's device as this one.
    token: u64,
    path: PathBuf,
    link: Option<Link>,
    drain_timeout: Duration,
    /// The driver is kept from reading the partition table.
    late_partitions: bool,
    queues: Arc<[Shared]>,
    threads: Vec<JoinHandle<()>>,
    /// Number of queue threads that have ended.
    ended: watch::Receiver<usize>,
    down: bool,
}

impl Ublk {
    /// Puts `device` on `/dev/ublkbN` and `/dev/objblk/NAME`; returns when it is ready for I/O.
    /// Blocks the calling thread, which must not be one that the device's futures need.
    ///
    /// Errors: those of [`check_host`]; usage, where an option is out of range; busy, where the
    /// name or the number is taken; unsupported, where recovery is asked of a kernel without it;
    /// failed, where the driver refuses or does not answer. Nothing is left behind then.
    pub fn start<D: BlockDevice>(device: Arc<Checked<D>>, options: UblkOptions) -> Result<Ublk> {
        options.validate()?;
        let geometry = device.geometry();
        if geometry.size.0 == 0 {
            let message = format!("{} has no size", options.name);
            return Err(Error::usage(message).hint("resize it first"));
        }
        let host = check_host()?;
        let flags = flags(&host, &options)?;
        Links::new(FOLDER).check(&options.name)?;
        let token = options.token;
        let info = control::add(
            options.id,
            sys::ublksrv_ctrl_dev_info {
                nr_hw_queues: options.queues,
                queue_depth: options.depth,
                max_io_buf_bytes: options.max_io,
                flags,
                ublksrv_flags: token,
                ..Default::default()
            },
        )?;
        let (ending, ended) = watch::channel(0);
        let mut ublk = Ublk::unserved(&info, token, ended, &options);
        ublk.late_partitions = partitions::read_inside_start(&host.kernel);
        match ublk.bring_up(device, &info, &options, &ending) {
            Ok(()) => Ok(ublk),
            Err(error) => {
                ublk.drain_timeout = Duration::ZERO;
                Err(error.context(format_args!("cannot attach {}", options.name)))
            }
        }
    }

    /// Serves device `dev_id`, which has lost its server and was told to wait for a new one
    /// ([`UblkOptions::recovery`]), from this process: `/dev/ublkbN` stays as it is, and so do its
    /// users. `token` is its [`UblkOptions::token`]; of the options, those count that the
    /// kernel does not remember: the name and the time limits. The requests that the old server
    /// had not answered are sent again, so `device` must hold all that it had. It may have grown: its
    /// users see that now.
    ///
    /// Errors: not found, where there is no such device; busy, where it still has a server; failed,
    /// where `device` is smaller, or the driver refuses or does not answer; unsupported, where it has
    /// grown and the driver cannot. The device then waits on.
    pub fn recover<D: BlockDevice>(
        device: Arc<Checked<D>>,
        (dev_id, token): (u32, u64),
        options: UblkOptions,
    ) -> Result<Ublk> {
        let info = orphan(dev_id, token)?;
        let (size, shown) = (device.geometry().size, node::sysfs_size(dev_id)?);
        if shown > size {
            let path = node::block_path(dev_id);
            let message = format!("{} is larger than {}", path.display(), options.name);
            return Err(Error::failed(message).hint("detach it with --force"));
        }
        if shown < size {
            let grown = |e: Error| e.context(format!("{} has grown", options.name));
            resize::check_growth().map_err(grown)?;
        }
        let (ending, ended) = watch::channel(0);
        let mut ublk = Ublk::unserved(&info, token, ended, &options);
        let options = UblkOptions { max_io: info.max_io_buf_bytes, ..options };
        match ublk.adopt(device, &info, &options, &ending) {
            Ok(()) => Ok(ublk),
            Err(error) => {
                // Not stopped: whoever uses it waits for the next attempt.
                ublk.down = true;
                ublk.order(Order::Quit);
                let _ = ublk.end_queues();
                Err(error.context(format_args!("cannot recover {}", options.name)))
            }
        }
    }

    fn adopt<D: BlockDevice>(
        &mut self,
        device: Arc<Checked<D>>,
        info: &sys::ublksrv_ctrl_dev_info,
        options: &UblkOptions,
        ending: &watch::Sender<usize>,
    ) -> Result<()> {
        let mut last = None;
        let begun =
            node::poll_until(control::PROMPT, || match control::begin_recovery(self.dev_id) {
                Err(failure) if failure.is_busy() => false,
                answer => {
                    last = Some(answer);
                    true
                }
            });
        match last {
            Some(Err(e)) => return Err(control::begin_recovery_error(self.dev_id, e)),
            None if !begun => {
                let message = format!("{} still has its old server", self.path.display());
                return Err(Error::new(ErrorKind::Busy, message).hint("try again"));
            }
            _ => {}
        }
        let size = device.geometry().size;
        self.serve_queues(device, info, options, ending)?;
        control::end_recovery(self.dev_id)?;
        if let Err(error) = resize::grow(self.dev_id, self.token, size) {
            // It is as useful as it was, and can be told once more.
            tracing::error!("{} has grown, its device has not: {error}", options.name);
        }
        let name = node::block_name(self.dev_id);
        self.link = Some(Links::new(FOLDER).create(&options.name, &name)?);
        Ok(())
    }

    fn unserved(
        info: &sys::ublksrv_ctrl_dev_info,
        token: u64,
        ended: watch::Receiver<usize>,
        options: &UblkOptions,
    ) -> Ublk {
        Ublk {
            dev_id: info.dev_id,
            token,
            path: node::block_path(info.dev_id),
            link: None,
            drain_timeout: options.drain_timeout,
            late_partitions: false,
            queues: Arc::default(),
            threads: Vec::new(),
            ended,
            down: false,
        }
    }

    fn bring_up<D: BlockDevice>(
        &mut self,
        device: Arc<Checked<D>>,
        info: &sys::ublksrv_ctrl_dev_info,
        options: &UblkOptions,
        ending: &watch::Sender<usize>,
    ) -> Result<()> {
        let geometry = device.geometry();
        control::set_params(self.dev_id, params::params(&geometry, options))?;
        self.serve_queues(device, info, options, ending)?;
        control::start(self.dev_id, options.start_timeout)?;
        errand::wait_for_block(self.dev_id, geometry.size, options.start_timeout)?;
        let device = node::block_name(self.dev_id);
        self.link = Some(Links::new(FOLDER).create(&options.name, &device)?);
        Ok(())
    }

    /// Starts the queue threads; returns when all of them wait for requests.
    fn serve_queues<D: BlockDevice>(
        &mut self,
        device: Arc<Checked<D>>,
        info: &sys::ublksrv_ctrl_dev_info,
        options: &UblkOptions,
        ending: &watch::Sender<usize>,
    ) -> Result<()> {
        let queues: std::io::Result<_> =
            (0..info.nr_hw_queues).map(|_| Shared::new(info.queue_depth)).collect();
        self.queues = queues.map_err(|e| Error::failed("cannot make an eventfd").because(e))?;
        let cdev = Arc::new(node::open_character(self.dev_id)?);
        let (report, reports) = channel();
        for qid in 0..info.nr_hw_queues {
            let cdev = cdev.clone();
            let (depth, max_io) = (info.queue_depth, options.max_io);
            let spec = Spec { cdev, qid, depth, max_io, unprivileged: self.late_partitions };
            let (queues, ending) = (self.queues.clone(), ending.clone());
            let ends = Ends { queues, ending, cleanly: false };
            self.spawn(device.clone(), spec, ends, report.clone())?;
        }
        drop((cdev, report));
        for _ in 0..info.nr_hw_queues {
            reports.recv_timeout(GRACE).map_err(|_| Error::failed("a queue did not start"))??;
        }
        Ok(())
    }

    fn spawn<D: BlockDevice>(
        &mut self,
        device: Arc<Checked<D>>,
        spec: Spec,
        mut ends: Ends,
        report: Sender<Result<()>>,
    ) -> Result<()> {
        let name = format!("ublk{}-q{}", self.dev_id, spec.qid);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            if let Err(error) = become_io_flusher() {
                tracing::warn!(%error, "PR_SET_IO_FLUSHER: low memory may stall this device");
            }
            // Whoever starts the device may have given up.
            let ready = || drop(report.send(Ok(())));
            let shared = &ends.queues[usize::from(spec.qid)];
            match queue::serve(&device, &spec, shared, ready) {
                Ok(()) => ends.cleanly = true,
                Err(error) => {
                    tracing::error!(queue = spec.qid, %error, "a queue ended");
                    let _ = report.send(Err(error));
                }
            }
            // The driver's device is let go before the end is announced.
            drop((spec, device));
            drop(ends);
        });
        let thread = thread.map_err(|e| Error::failed("cannot start a thread").because(e))?;
        self.threads.push(thread);
        Ok(())
    }

    /// The block device's node, `/dev/ublkbN`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The symlink to it, `/dev/objblk/NAME`.
    pub fn link(&self) -> Option<&Path> {
        self.link.as_ref().map(Link::path)
    }

    /// The N of `/dev/ublkbN`.
    pub fn dev_id(&self) -> u32 {
        self.dev_id
    }

    /// What marks the driver's device as this one.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// What the device has done so far.
    pub fn stats(&self) -> Stats {
        self.queues.iter().map(|queue| queue.counters.snapshot()).sum()
    }

    /// Returns when the device was ended by someone else (deleted by a tool, or given up by the
    /// kernel). Cancelling it changes nothing; call [`Ublk::stop`] afterwards to clean up.
    pub async fn wait(&self) {
        let all = self.threads.len();
        // An error means that every sender is gone, so every thread has ended.
        let _ = self.ended.clone().wait_for(|ended| *ended == all).await;
    }

    /// Ends the device: the page cache is written to it, the requests in flight are served, the
    /// block device, its symlink and its number are given up. A file system that is mounted on it
    /// gets errors from then on.
    ///
    /// Requests that the device has not answered after [`UblkOptions::drain_timeout`] are given
    /// up and answered with EIO. Blocks the calling thread, a few seconds longer than that at most,
    /// unless the kernel is stuck in several commands one after the other.
    ///
    /// Returns what the device did in its life. Errors: failed, where the driver does not answer
    /// or a queue thread is stuck in the device.
    pub fn stop(mut self) -> Result<Stats> {
        self.shut_down().map(|()| self.stats())
    }

    fn shut_down(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.down, true) {
            return Ok(());
        }
        let stopped = self.stop_device();
        let ended = self.end_queues();
        let deleted = match self.is_mine() {
            true => control::delete(self.dev_id),
            false => Ok(()),
        };
        let unlinked = self.link.take().map_or(Ok(()), Link::remove);
        stopped.and(ended).and(deleted).and(unlinked)
    }

    /// True while the driver's device of this number is the one that was added here.
    fn is_mine(&self) -> bool {
        match control::info(self.dev_id) {
            Ok(info) => info.ublksrv_flags == self.token,
            Err(failure) => !failure.is_no_device(),
        }
    }

    fn stop_device(&self) -> Result<()> {
        if !self.is_mine() {
            return Ok(());
        }
        let stop = control::stop(self.dev_id);
        let answer = match stop.wait(self.drain_timeout) {
            Err(Failure::TimedOut(_)) => {
                let waited = self.drain_timeout;
                tracing::warn!(?waited, device = %self.path.display(), "unanswered: giving EIO");
                self.order(Order::Abandon);
                stop.wait(control::PROMPT)
            }
            answer => answer,
        };
        match answer {
            Err(failure) if !failure.is_no_device() => {
                Err(control::stop_error(self.dev_id, failure))
            }
            _ => Ok(()),
        }
    }

    fn order(&self, order: Order) {
        self.queues.iter().for_each(|queue| queue.order(order));
    }

    /// Ends the queue threads, which end by themselves after a stop.
    fn end_queues(&mut self) -> Result<()> {
        let all = self.threads.len();
        let ended = || *self.ended.borrow() == all;
        if !node::poll_until(GRACE, ended) {
            self.order(Order::Quit);
            if !node::poll_until(GRACE, ended) {
                let message = format!("a queue thread of {} does not end", self.path.display());
                return Err(Error::failed(message).hint("its device blocks: end the process"));
            }
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!(device = %self.path.display(), "a queue thread panicked");
            }
        }
        Ok(())
    }
}

impl Drop for Ublk {
    fn drop(&mut self) {
        if let Err(error) = self.shut_down() {
            let device = self.path.display();
            tracing::warn!(%error, %device, "the device did not stop cleanly");
        }
    }
}

/// Counts a queue thread as ended. One that fails ends the others with it: a device that is
/// served in part would hang.
struct Ends {
    queues: Arc<[Shared]>,
    ending: watch::Sender<usize>,
    cleanly: bool,
}

impl Drop for Ends {
    fn drop(&mut self) {
        if !self.cleanly {
            self.queues.iter().for_each(|queue| queue.order(Order::Quit));
        }
        self.ending.send_modify(|ended| *ended += 1);
    }
}

/// The driver's feature flags for a device: only what is used here.
fn flags(host: &HostSupport, options: &UblkOptions) -> Result<u64> {
    let mut flags = sys::UBLK_F_CMD_IOCTL_ENCODE;
    if options.recovery {
        if !host.recovery {
            let message = format!("the ublk driver of Linux {} has no recovery", host.kernel);
            return Err(Error::new(ErrorKind::Unsupported, message).hint("attach without it"));
        }
        flags |= sys::UBLK_F_USER_RECOVERY | sys::UBLK_F_USER_RECOVERY_REISSUE;
    }
    Ok(flags.into())
}
