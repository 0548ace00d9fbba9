//! A device that gets another size while it is used.
//!
//! Linux 6.16 and later can tell the users of a device that it has another size (`UBLK_F_UPDATE_SIZE`),
//! as a virtual machine's disk or an array would: an event for udev, and the next look finds it. What
//! is in flight goes on.
//!
//! Contract: the driver is asked only about a device that has been started, has not been stopped, and is
//! the one that was given this token: drivers before Linux 7.0 crash on one without a disk (commit
//! 25966fc09769, "ublk: fix NULL pointer dereference in ublk_ctrl_set_size()"). So the caller sees to it
//! that its own process does not stop the device meanwhile.

use super::{control, host, node};
use crate::error::{Error, ErrorKind, Result};
use crate::units::SectorCount;
use libublk::sys;

/// Fails where the driver of this host cannot do it. Errors: unsupported; those of [`super::check_host`].
pub fn check_growth() -> Result<()> {
    let host = host::check_host()?;
    if host.resize {
        return Ok(());
    }
    let message =
        format!("the ublk driver of Linux {} cannot change the size of a device", host.kernel);
    Err(Error::new(ErrorKind::Unsupported, message)
        .hint("detach it, resize it, and attach it again; Linux 6.16 and later can"))
}

/// Lets device `dev_id`, which was given `token`, grow to `size`. One that has it is left alone. Takes
/// seconds at most.
///
/// # Errors
/// Not found: there is no such device. Failed: it is larger, it is not in service, or the driver does
/// not do it. Unsupported: the driver cannot.
pub fn grow(dev_id: u32, token: u64, size: SectorCount) -> Result<()> {
    let (path, shown) = (node::block_path(dev_id), node::sysfs_size(dev_id)?);
    let path = path.display();
    if shown == size {
        return Ok(());
    }
    if shown > size {
        return Err(Error::failed(format!("{path} is larger than that")).hint("detach it first"));
    }
    check_growth()?;
    let info = control::info(dev_id).map_err(|e| control::info_error(dev_id, e))?;
    if info.ublksrv_flags != token {
        return Err(Error::not_found(format!("ublk device {dev_id} is another one by now")));
    }
    if u32::from(info.state) == sys::UBLK_S_DEV_DEAD {
        return Err(Error::failed(format!("{path} is not in service")));
    }
    control::set_size(dev_id, size)?;
    match node::sysfs_size(dev_id)? {
        now if now == size => Ok(()),
        now => Err(Error::failed(format!("{path} has {} bytes after all", now.bytes()))),
    }
}
