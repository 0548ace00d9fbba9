//! What this host offers for ublk devices, and in words what it lacks.

use super::control::{self, CONTROL, Failure};
use crate::error::{Error, ErrorKind, Result};
use libublk::sys;
use nix::errno::Errno;
use std::fs::OpenOptions;
use std::io;
use std::path::Path;

/// What the frontend cannot work without.
const NEEDED: u64 = sys::UBLK_F_CMD_IOCTL_ENCODE as u64;

/// `PR_SET_IO_FLUSHER` of `prctl(2)`.
const PR_SET_IO_FLUSHER: nix::libc::c_int = 57;

/// What this host can do.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct HostSupport {
    /// The kernel's release.
    pub kernel: String,
    /// The driver's feature bits (`UBLK_F_*` of `linux/ublk_cmd.h`).
    pub features: u64,
    /// A device can outlive its server ([`super::UblkOptions::recovery`]).
    pub recovery: bool,
    /// A device can get another size while it is used ([`super::grow`]).
    pub resize: bool,
}

/// Looks at what the host offers, without side effects.
///
/// Errors, each saying what to do: the driver is missing, this process may not use it, io_uring
/// is switched off, the kernel is too old, or the driver does not answer.
pub fn check_host() -> Result<HostSupport> {
    check_control(Path::new(CONTROL))?;
    let features = control::features().map_err(|failure| match failure {
        Failure::Unknown | Failure::Refused(Errno::EINVAL) => too_old(),
        Failure::Refused(Errno::EPERM | Errno::EACCES) => not_permitted(Path::new(CONTROL)),
        failure => failure.into_features_error(),
    })?;
    if features & NEEDED != NEEDED {
        return Err(too_old());
    }
    let recovery = sys::UBLK_F_USER_RECOVERY | sys::UBLK_F_USER_RECOVERY_REISSUE;
    let recovery = u64::from(recovery);
    Ok(HostSupport {
        kernel: kernel(),
        features,
        recovery: features & recovery == recovery,
        resize: features & control::F_UPDATE_SIZE != 0,
    })
}

fn check_control(path: &Path) -> Result<()> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map(|_| ()).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            let message = format!("{} is absent: there is no ublk driver", path.display());
            Error::not_found(message).hint(
                "modprobe ublk_drv as root; it needs Linux 6.5 or later with CONFIG_BLK_DEV_UBLK",
            )
        }
        io::ErrorKind::PermissionDenied => not_permitted(path),
        _ => Error::failed(format!("cannot open {}", path.display()))
            .because(error)
            .hint("reload the driver: modprobe -r ublk_drv; modprobe ublk_drv"),
    })
}

fn not_permitted(path: &Path) -> Error {
    Error::failed(format!("this process may not use {}", path.display()))
        .hint("run as root or with CAP_SYS_ADMIN")
}

fn too_old() -> Error {
    let message = format!("the ublk driver of Linux {} is too old", kernel());
    Error::new(ErrorKind::Unsupported, message).hint("use Linux 6.5 or later")
}

/// The running kernel's release.
pub(super) fn kernel() -> String {
    match nix::sys::utsname::uname() {
        Ok(uname) => uname.release().to_string_lossy().into_owned(),
        Err(_) => "unknown".into(),
    }
}

/// Marks the calling thread as one that block I/O depends on (`PR_SET_IO_FLUSHER`): when it
/// allocates memory the kernel will not wait for I/O, which might be to the very device that the
/// thread serves. Queue threads do it by themselves; whoever runs a device on other threads
/// should do it on those. Errors: without CAP_SYS_RESOURCE.
pub fn become_io_flusher() -> io::Result<()> {
    // SAFETY: this prctl takes plain numbers and touches no memory of the process.
    match unsafe { nix::libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_driver_is_named_with_what_to_do() {
        let error = check_control(Path::new("/nonexistent/ublk-control")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(
            error.to_string(),
            "/nonexistent/ublk-control is absent: there is no ublk driver; modprobe ublk_drv as \
             root; it needs Linux 6.5 or later with CONFIG_BLK_DEV_UBLK"
        );
    }

    #[test]
    fn an_unusable_control_device_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = check_control(folder.path()).unwrap_err();
        assert!(error.to_string().contains("reload the driver"), "{error}");
    }
}
