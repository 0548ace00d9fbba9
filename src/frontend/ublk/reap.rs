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

/// What the driver knows of device `dev_id`, if it is the one that was given `token` and it has no
/// server. Errors: not found; busy; failed.
pub(super) fn orphan(dev_id: u32, token: u64) -> Result<sys::ublksrv_ctrl_dev_info> {
    host::check_host()?;
    let info = control::info(dev_id).map_err(|e| control::info_error(dev_id, e))?;
    if info.ublksrv_flags != token {
        let message = format!("ublk device {dev_id} is another one by now");
        return Err(Error::not_found(message));
    }
    if !node::is_unserved(dev_id) {
        let message = format!("process {} still serves ublk device {dev_id}", info.ublksrv_pid);
        return Err(Error::new(ErrorKind::Busy, message).hint("detach it there"));
    }
    Ok(info)
}

/// Whether the driver has device `dev_id` and it is the one that was given `token`, served or not.
/// What cannot be known counts as yes.
pub fn is_there(dev_id: u32, token: u64) -> bool {
    match control::info(dev_id) {
        Ok(info) => info.ublksrv_flags == token,
        Err(failure) => !failure.is_no_device(),
    }
}

/// The number of the device that was given `token`, if there is one.
pub fn find(token: u64) -> Option<u32> {
    let nodes = std::fs::read_dir("/dev").ok()?;
    let names = nodes.flatten().map(|node| node.file_name());
    let mut numbers = names.filter_map(|name| name.to_str()?.strip_prefix("ublkc")?.parse().ok());
    numbers.find(|number| control::info(*number).is_ok_and(|info| info.ublksrv_flags == token))
}

fn delete(dev_id: u32) -> Result<()> {
    control::delete(dev_id)?;
    Links::new(FOLDER).remove_to(&node::block_name(dev_id))
}
