//! Control commands to the driver, each bounded in time.
//!
//! A command can hang in the kernel (peers saw ADD_DEV hang), so each is [`bounded`] work that owns
//! the command's memory. Dropping a [`Pending`] cancels nothing, and nothing here deletes a device
//! by itself.
//!
//! Source: Linux Documentation/block/ublk.rst, "Control plane".

use super::{bounded, errand, host};
use crate::error::{Error, ErrorKind, Result};
use crate::units::SectorCount;
use io_uring::{IoUring, opcode, squeue, types};
use libublk::sys;
use nix::errno::Errno;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// The driver's control device.
pub(super) const CONTROL: &str = "/dev/ublk-control";

/// How long a command that waits for nobody may take.
pub(super) const PROMPT: Duration = Duration::from_secs(10);

/// `UBLK_U_CMD_UPDATE_SIZE` and `UBLK_F_UPDATE_SIZE` of a `linux/ublk_cmd.h` that is newer than that of
/// `libublk`.
const UPDATE_SIZE: Op = Op {
    code: nix::request_code_readwrite!(b'u', 0x15, size_of::<sys::ublksrv_ctrl_cmd>()) as u32,
    name: "UPDATE_SIZE",
};
pub(super) const F_UPDATE_SIZE: u64 = 1 << 10;

/// The `dev_id` that makes the driver choose one.
const ANY_ID: u32 = u32::MAX;

/// A control command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Op {
    code: u32,
    name: &'static str,
}

macro_rules! op {
    ($name:ident, $code:ident) => {
        const $name: Op = Op { code: sys::$code, name: stringify!($name) };
    };
}

op!(GET_FEATURES, UBLK_U_CMD_GET_FEATURES);
op!(GET_DEV_INFO, UBLK_U_CMD_GET_DEV_INFO);
op!(ADD_DEV, UBLK_U_CMD_ADD_DEV);
op!(SET_PARAMS, UBLK_U_CMD_SET_PARAMS);
op!(START_DEV, UBLK_U_CMD_START_DEV);
op!(STOP_DEV, UBLK_U_CMD_STOP_DEV);
op!(DEL_DEV, UBLK_U_CMD_DEL_DEV);
op!(START_USER_RECOVERY, UBLK_U_CMD_START_USER_RECOVERY);
op!(END_USER_RECOVERY, UBLK_U_CMD_END_USER_RECOVERY);
op!(DEL_DEV_ASYNC, UBLK_U_CMD_DEL_DEV_ASYNC);

/// How drivers answer commands that they do not know: EOPNOTSUPP, ENOTTY, and the kernel's own
/// ENOTSUPP.
const UNKNOWN: [i32; 3] = [-(Errno::EOPNOTSUPP as i32), -(Errno::ENOTTY as i32), -524];

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The control device cannot be opened.
    #[error("cannot open {CONTROL}: {0}")]
    Open(io::Error),
    /// There is no io_uring for it, or no thread.
    #[error("io_uring is not available: {0}")]
    Ring(io::Error),
    /// The driver refused.
    #[error("{0}")]
    Refused(Errno),
    /// The driver does not know the command.
    #[error("not supported by Linux {}", host::kernel())]
    Unknown,
    /// No answer in time.
    #[error("no answer from Linux {kernel} within {seconds} s", kernel = host::kernel(),
        seconds = .0.as_secs_f32())]
    TimedOut(Duration),
}

/// What the driver says to a command.
pub(super) type Answer<T> = std::result::Result<T, Failure>;

impl Failure {
    /// True where the driver is not ready for the command yet.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self, Failure::Refused(Errno::EBUSY))
    }

    /// True where the driver has no such device.
    pub(super) fn is_no_device(&self) -> bool {
        matches!(self, Failure::Refused(Errno::ENODEV))
    }

    fn is_unknown_command(&self) -> bool {
        matches!(self, Failure::Unknown)
    }

    /// The error of a look at the driver's features.
    pub(super) fn into_features_error(self) -> Error {
        self.into_error(GET_FEATURES, "of this host")
    }

    /// The error for the user: `op` failed on the device called `what`.
    pub(super) fn into_error(self, op: Op, what: &str) -> Error {
        if self.is_no_device() {
            let message = format!("the ublk driver has no {what}");
            return Error::not_found(message).hint("list the devices with ls /dev/ublkc*");
        }
        let (kind, hint) = match &self {
            Failure::Open(_) => (ErrorKind::Failed, "load the driver: modprobe ublk_drv".into()),
            Failure::Ring(_) => {
                (ErrorKind::Failed, "check the sysctl kernel.io_uring_disabled".into())
            }
            Failure::TimedOut(_) if op == START_DEV => {
                let hint = "the kernel reads the partition table: does the volume's store answer?";
                (ErrorKind::Failed, hint.into())
            }
            Failure::TimedOut(_) => {
                let hint = "the driver is stuck: look at the kernel's log; a reboot may be needed";
                (ErrorKind::Failed, hint.into())
            }
            Failure::Refused(Errno::EPERM) => {
                (ErrorKind::Failed, "run as root or with CAP_SYS_ADMIN".into())
            }
            Failure::Refused(Errno::EEXIST) => {
                (ErrorKind::Busy, "let the kernel choose the number".into())
            }
            Failure::Refused(Errno::EACCES | Errno::ENOSPC) if op == ADD_DEV => {
                (ErrorKind::Failed, format!("the limit of devices is reached{}", limit_text()))
            }
            Failure::Unknown => (ErrorKind::Unsupported, "use Linux 6.5 or later".into()),
            Failure::Refused(_) => (ErrorKind::Failed, "look at the kernel's log".into()),
        };
        let message = format!("the ublk driver failed to {} {what}", op.name);
        Error::new(kind, message).because(self).hint(hint)
    }
}

fn limit_text() -> String {
    const LIMIT: &str = "/sys/module/ublk_drv/parameters/ublks_max";
    match std::fs::read_to_string(LIMIT) {
        Ok(max) => format!(": detach one, or raise {LIMIT} (now {})", max.trim()),
        Err(_) => ": detach one".into(),
    }
}

/// A command under way.
pub(super) struct Pending<T>(io::Result<bounded::Pending<Answer<T>>>);

impl<T> Pending<T> {
    /// The answer, if it comes within `timeout`. May be called again after a time-out.
    pub(super) fn wait(&self, timeout: Duration) -> Answer<T> {
        match &self.0 {
            Ok(pending) => pending.wait(timeout).unwrap_or(Err(Failure::TimedOut(timeout))),
            Err(error) => Err(Failure::Ring(io::Error::new(error.kind(), error.to_string()))),
        }
    }
}

/// Types that a command may carry: plain data of the driver's header, valid as any bytes.
trait Payload: Copy + Send + 'static {}
impl Payload for () {}
impl Payload for u64 {}
impl Payload for sys::ublksrv_ctrl_dev_info {}
impl Payload for sys::ublk_params {}

/// Issues `op`: `value` is what the driver reads or fills, `data` its inline argument.
fn begin<T: Payload>(op: Op, dev_id: u32, data: u64, value: T) -> Pending<T> {
    Pending(bounded::begin("ublk-control", move || submit(op, dev_id, data, value)))
}

fn submit<T: Payload>(op: Op, dev_id: u32, data: u64, mut value: T) -> Answer<T> {
    let control = OpenOptions::new().read(true).write(true).open(CONTROL);
    let control = control.map_err(Failure::Open)?;
    let ring = IoUring::<squeue::Entry128>::builder().build(1);
    let mut ring = ring.map_err(Failure::Ring)?;
    let command = encode(dev_id, data, (&raw mut value) as u64, size_of::<T>() as u16);
    let entry = opcode::UringCmd80::new(types::Fd(control.as_raw_fd()), op.code);
    let entry = entry.cmd(command).build();
    // SAFETY: the command refers to `value`, `size_of::<T>()` bytes that are valid whatever the
    // driver writes (`Payload`), and this function does not return before the driver is done.
    let pushed = unsafe { ring.submission().push(&entry) };
    pushed.expect("a new ring has room for one command");
    loop {
        match ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Failure::Ring(e)),
        }
        if let Some(event) = ring.completion().next() {
            return match event.result() {
                result if UNKNOWN.contains(&result) => Err(Failure::Unknown),
                result if result < 0 => Err(Failure::Refused(Errno::from_raw(-result))),
                _ => Ok(value),
            };
        }
    }
}

/// `struct ublksrv_ctrl_cmd`, for no queue.
fn encode(dev_id: u32, data: u64, address: u64, len: u16) -> [u8; 80] {
    let mut command = [0; 80];
    command[0..4].copy_from_slice(&dev_id.to_ne_bytes());
    command[4..6].copy_from_slice(&u16::MAX.to_ne_bytes());
    command[6..8].copy_from_slice(&len.to_ne_bytes());
    if len != 0 {
        command[8..16].copy_from_slice(&address.to_ne_bytes());
    }
    command[16..24].copy_from_slice(&data.to_ne_bytes());
    command
}

/// The driver's feature bits (`UBLK_F_*`).
pub(super) fn features() -> Answer<u64> {
    begin(GET_FEATURES, ANY_ID, 0, 0u64).wait(PROMPT)
}

/// What the driver knows of a device.
pub(super) fn info(dev_id: u32) -> Answer<sys::ublksrv_ctrl_dev_info> {
    begin(GET_DEV_INFO, dev_id, 0, sys::ublksrv_ctrl_dev_info::default()).wait(PROMPT)
}

/// Adds a device; the driver corrects `wanted` where it must (identity, number of queues).
pub(super) fn add(
    id: Option<u32>,
    wanted: sys::ublksrv_ctrl_dev_info,
) -> Result<sys::ublksrv_ctrl_dev_info> {
    let dev_id = id.unwrap_or(ANY_ID);
    let wanted = sys::ublksrv_ctrl_dev_info { dev_id, ..wanted };
    begin(ADD_DEV, dev_id, 0, wanted).wait(PROMPT).map_err(|failure| {
        let what = id.map_or("a device".into(), |id| format!("device {id}"));
        failure.into_error(ADD_DEV, &what)
    })
}

/// Sets the block layer's limits, before the start.
pub(super) fn set_params(dev_id: u32, params: sys::ublk_params) -> Result<()> {
    let answer = begin(SET_PARAMS, dev_id, 0, params).wait(PROMPT);
    answer.map(|_| ()).map_err(|failure| failure.into_error(SET_PARAMS, &device(dev_id)))
}

/// Makes the block device appear. Its partition table is read meanwhile, so the queues must be
/// served and the command takes as long as that.
pub(super) fn start(dev_id: u32, timeout: Duration) -> Result<()> {
    let answer = begin(START_DEV, dev_id, std::process::id().into(), ()).wait(timeout);
    answer.map_err(|failure| failure.into_error(START_DEV, &device(dev_id)))
}

/// Makes a device that has lost its server ready for a new one. Busy until the driver has seen the
/// old one off.
pub(super) fn begin_recovery(dev_id: u32) -> Answer<()> {
    begin(START_USER_RECOVERY, dev_id, 0, ()).wait(PROMPT)
}

/// The error of a recovery that could not begin.
pub(super) fn begin_recovery_error(dev_id: u32, failure: Failure) -> Error {
    failure.into_error(START_USER_RECOVERY, &device(dev_id))
}

/// Has the driver send requests to this process, whose queues must be served: first those that the
/// old server never answered.
pub(super) fn end_recovery(dev_id: u32) -> Result<()> {
    let pid = std::process::id().into();
    let answer = begin(END_USER_RECOVERY, dev_id, pid, ()).wait(PROMPT);
    answer.map_err(|failure| failure.into_error(END_USER_RECOVERY, &device(dev_id)))
}

/// Gives a device another size. The driver must know the command ([`F_UPDATE_SIZE`]), and the device must
/// have been started and not stopped: see [`super::resize`].
pub(super) fn set_size(dev_id: u32, size: SectorCount) -> Result<()> {
    let answer = begin(UPDATE_SIZE, dev_id, size.0, ()).wait(PROMPT);
    answer.map_err(|failure| failure.into_error(UPDATE_SIZE, &device(dev_id)))
}

/// Removes the block device: waits for the requests in flight, then aborts the queues. An errand,
/// as it waits for the device's server.
pub(super) fn stop(dev_id: u32) -> Pending<()> {
    Pending(bounded::begin("ublk-stop", move || {
        errand::stop(dev_id).map_err(|errno| match errno {
            Errno::EOPNOTSUPP => Failure::Unknown,
            errno => Failure::Refused(errno),
        })
    }))
}

/// As [`stop`], by the calling thread, for as long as it takes.
pub(super) fn stop_here(dev_id: u32) -> Answer<()> {
    submit(STOP_DEV, dev_id, 0, ())
}

/// The error of a stop that failed.
pub(super) fn stop_error(dev_id: u32, failure: Failure) -> Error {
    failure.into_error(STOP_DEV, &device(dev_id))
}

/// Deletes a device; no such device is success. Its number is given up when the last user of the
/// block device has closed it, which is waited for only by drivers before Linux 6.9.
pub(super) fn delete(dev_id: u32) -> Result<()> {
    let mut op = DEL_DEV_ASYNC;
    let mut answer = begin(op, dev_id, 0, ()).wait(PROMPT);
    if answer.as_ref().is_err_and(Failure::is_unknown_command) {
        op = DEL_DEV;
        answer = begin(op, dev_id, 0, ()).wait(PROMPT);
    }
    match answer {
        Err(failure) if !failure.is_no_device() => Err(failure.into_error(op, &device(dev_id))),
        _ => Ok(()),
    }
}

/// The error of a look at a device that failed.
pub(super) fn info_error(dev_id: u32, failure: Failure) -> Error {
    failure.into_error(GET_DEV_INFO, &device(dev_id))
}

fn device(dev_id: u32) -> String {
    format!("device {dev_id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_drivers_layout() {
        let command = encode(7, 0x1122_3344_5566_7788, 0x0102_0304_0506_0708, 64);
        let expected = sys::ublksrv_ctrl_cmd {
            dev_id: 7,
            queue_id: u16::MAX,
            len: 64,
            addr: 0x0102_0304_0506_0708,
            data: [0x1122_3344_5566_7788],
            ..Default::default()
        };
        // SAFETY: both are plain data and the structure is 32 bytes without padding.
        let expected: [u8; 32] = unsafe { std::mem::transmute(expected) };
        assert_eq!(command[..32], expected);
        assert!(command[32..].iter().all(|b| *b == 0));
        assert_eq!(encode(7, 0, 99, 0)[8..16], [0; 8]);
    }

    #[test]
    fn commands_are_encoded_as_the_driver_does() {
        let add = nix::request_code_readwrite!(b'u', 0x04, size_of::<sys::ublksrv_ctrl_cmd>());
        assert_eq!(add as u32, ADD_DEV.code);
        assert_eq!(UPDATE_SIZE.code, 0xc020_7515);
    }

    #[test]
    fn refusals_are_put_in_words() {
        let text = |failure: Failure, op| failure.into_error(op, "device 3").to_string();
        let exists = Failure::Refused(Errno::EEXIST).into_error(ADD_DEV, "device 3");
        assert_eq!(exists.kind(), ErrorKind::Busy);
        assert!(exists.to_string().contains("failed to ADD_DEV device 3"), "{exists}");
        let limit = text(Failure::Refused(Errno::EACCES), ADD_DEV);
        assert!(limit.contains("the limit of devices is reached"), "{limit}");
        let stuck = text(Failure::TimedOut(Duration::from_secs(10)), DEL_DEV);
        assert!(stuck.contains(&format!("Linux {}", host::kernel())), "{stuck}");
        assert!(stuck.contains("10 s"), "{stuck}");
    }
}
