//! What the caller chooses about a ublk device.

use crate::error::{Error, Result};
use libublk::sys;
use std::time::Duration;

/// The unit and the smallest size of request buffers, in bytes (a page).
const BUFFER_UNIT: u32 = 4096;

/// Largest request buffer that the driver takes, in bytes.
const MAX_BUFFER: u32 = 32 << 20;

/// How a device is put up. [`UblkOptions::new`] gives values that suit most hosts.
#[derive(Clone, Debug)]
pub struct UblkOptions {
    /// The volume's name, for the symlink under `/dev/objblk`.
    pub name: String,
    /// The N of `/dev/ublkbN`; `None` lets the kernel choose, which cannot collide.
    pub id: Option<u32>,
    /// Marks the device as this one, whatever its number; random.
    pub token: u64,
    /// Hardware queues, each with a thread of its own; the kernel takes at most one per CPU.
    pub queues: u16,
    /// Requests in flight on one queue.
    pub depth: u16,
    /// Largest read or write, in bytes: whole pages, at most 32 MiB. Every queue maps
    /// `depth * max_io` bytes for them and keeps what was ever used.
    pub max_io: u32,
    /// Keeps the block device when this process dies, its requests waiting for a new server.
    /// Off by default: without a server to take over ([`super::Ublk::recover`]), whoever uses the
    /// device hangs until [`super::reap()`] is called, whereas a device without recovery answers with errors at once.
    pub recovery: bool,
    /// How long the start may take, and then the look for partitions. The table is read meanwhile,
    /// in some ten reads one after the other, so a slow store needs a multiple of its latency.
    pub start_timeout: Duration,
    /// How long a stop waits for the device's answers before it answers with EIO instead.
    pub drain_timeout: Duration,
}

impl UblkOptions {
    /// One queue of 128 requests of 512 KiB, no recovery, 30 s to start and to drain.
    pub fn new(name: impl Into<String>) -> UblkOptions {
        UblkOptions {
            name: name.into(),
            id: None,
            token: rand::random(),
            queues: 1,
            depth: 128,
            max_io: 512 << 10,
            recovery: false,
            start_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
        }
    }

    /// Refuses what the driver would refuse, in words. Errors: usage.
    pub(super) fn validate(&self) -> Result<()> {
        let limit = |what: &str, value: u16, max: u32| match u32::from(value) {
            value if (1..=max).contains(&value) => Ok(()),
            value => Err(Error::usage(format!("{value} {what} for {}", self.name))
                .hint(format!("use 1 to {max}"))),
        };
        limit("queues", self.queues, sys::UBLK_MAX_NR_QUEUES)?;
        limit("requests per queue", self.depth, sys::UBLK_MAX_QUEUE_DEPTH)?;
        if !self.max_io.is_multiple_of(BUFFER_UNIT)
            || !(BUFFER_UNIT..=MAX_BUFFER).contains(&self.max_io)
        {
            let message = format!("a largest request of {} bytes for {}", self.max_io, self.name);
            return Err(Error::usage(message).hint("use a multiple of 4096 up to 33554432"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn limits() {
        let with = |change: fn(&mut UblkOptions)| {
            let mut options = UblkOptions::new("v");
            change(&mut options);
            options.validate().map_err(|e| (e.kind(), e.to_string()))
        };
        assert_eq!(with(|_| ()), Ok(()));
        assert_eq!(with(|o| (o.queues, o.depth, o.max_io) = (4096, 4096, 32 << 20)), Ok(()));
        let (kind, text) = with(|o| o.depth = 4097).unwrap_err();
        assert_eq!(kind, ErrorKind::Usage);
        assert_eq!(text, "4097 requests per queue for v; use 1 to 4096");
        assert!(with(|o| o.queues = 0).is_err());
        assert!(with(|o| o.max_io = 0).is_err());
        assert!(with(|o| o.max_io = 4097).is_err());
        assert!(with(|o| o.max_io = (32 << 20) + 4096).is_err());
    }
}
