//! Removing a device from outside: above all what a dead server left behind.
//!
//! A server that is killed takes its block device with it: the kernel fails the requests in
//! flight and removes `/dev/ublkbN`, or, with [`super::UblkOptions::recovery`], keeps both
//! waiting. `/dev/ublkcN` and the symlink stay in either case.

use super::link::{FOLDER, Links};
use super::{control, host, node};
use crate::error::{Error, ErrorKind, Result};
use libublk::sys;

/// Deletes device `dev_id`, which nobody serves any more, and its symlinks. Requests that wait
/// for a new server are failed. Takes seconds at most.
///
/// A device that another process is adding at this instant, and has not opened yet, looks the
/// same as a dead one: name only devices that are known to be dead.
///
/// Errors: not found; busy, where a process still serves the device; failed, where the driver
/// does not answer; and those of [`super::check_host`].
pub fn reap(dev_id: u32) -> Result<()> {
    host::check_host()?;
    let info = control::info(dev_id).map_err(|e| control::info_error(dev_id, e))?;
    if !node::is_unserved(dev_id) {
        let message = format!("process {} still serves ublk device {dev_id}", info.ublksrv_pid);
        return Err(Error::new(ErrorKind::Busy, message).hint("detach it there"));
    }
    if u32::from(info.state) == sys::UBLK_S_DEV_DEAD {
        return delete(dev_id);
    }
    evict(dev_id)
}

/// Removes device `dev_id` whoever serves it, and its symlinks, as the last resort for a server
/// that does not do it itself. A living server answers the requests in flight first, then finds
/// its device ended ([`super::Ublk::wait`]). Takes ten seconds at most for each of its two steps.
///
/// Errors: not found; failed, where the server or the driver does not answer.
pub fn evict(dev_id: u32) -> Result<()> {
    let stopped = control::stop(dev_id).wait(control::PROMPT);
    stopped.map_err(|failure| control::stop_error(dev_id, failure))?;
    delete(dev_id)
}

fn delete(dev_id: u32) -> Result<()> {
    control::delete(dev_id)?;
    Links::new(FOLDER).remove_to(&node::block_name(dev_id))
}
