//! Requests of the transmission phase: 28 bytes in, a typed command or a refusal out.
//!
//! Contract: total over any bytes, no allocation, no I/O. A wrong magic number ends the
//! connection, since the stream can no longer be followed; everything else a client may get wrong
//! is a [`Refusal`], answered with an error while the connection lives on.

use super::wire::{Cursor, MAX_PAYLOAD, REQUEST_MAGIC, WireError, command, command_flag};

/// Length of a request without its payload.
pub(super) const REQUEST_LEN: usize = 28;

/// The fixed part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Command flags.
    pub(super) flags: u16,
    /// Type of the request.
    pub(super) kind: u16,
    /// The client's mark, repeated in the reply.
    pub(super) cookie: u64,
    /// Position in bytes.
    pub(super) offset: u64,
    /// Length in bytes.
    pub(super) len: u32,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Read; `whole`: as one chunk (the DF flag).
    Read { whole: bool },
    /// Write the payload.
    Write { fua: bool },
    /// Make completed writes durable.
    Flush,
    /// Give up a range.
    Trim { fua: bool },
    /// Prefetch a range.
    Cache,
    /// Zero a range; `no_hole`: keep it allocated.
    WriteZeroes { no_hole: bool, fua: bool },
    /// Tell which parts are holes; `one`: only the first run.
    BlockStatus { one: bool },
}

impl Command {
    /// True where it is for writers only.
    pub(super) fn changes(self) -> bool {
        matches!(self, Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. })
    }

    /// True where success would need room on the device.
    pub(super) fn stores(self) -> bool {
        matches!(self, Command::Write { .. } | Command::WriteZeroes { .. })
    }
}

/// Why a request is not carried out: an error number and a text for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) WireError, pub(super) &'static str);

impl Request {
    /// The request in `bytes`; `None` where the magic number is wrong.
    pub(super) fn parse(bytes: &[u8; REQUEST_LEN]) -> Option<Request> {
        let mut cursor = Cursor(bytes);
        if cursor.u32()? != REQUEST_MAGIC {
            return None;
        }
        Some(Request {
            flags: cursor.u16()?,
            kind: cursor.u16()?,
            cookie: cursor.u64()?,
            offset: cursor.u64()?,
            len: cursor.u32()?,
        })
    }

    /// True where the client ends the session with it.
    pub(super) fn is_disconnect(&self) -> bool {
        self.kind == command::DISC
    }

    /// Bytes that follow the request on the wire.
    pub(super) fn payload(&self) -> u32 {
        if self.kind == command::WRITE { self.len } else { 0 }
    }

    /// Checks type, flags and length. `structured`: structured replies were negotiated.
    pub(super) fn command(&self, structured: bool) -> Result<Command, Refusal> {
        use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, REQ_ONE};
        let has = |flag| self.flags & flag != 0;
        let fua = has(FUA);
        let (command, flags) = match self.kind {
            command::READ => {
                (Command::Read { whole: has(DF) }, if structured { FUA | DF } else { FUA })
            }
            command::WRITE => (Command::Write { fua }, FUA),
            command::FLUSH => (Command::Flush, FUA),
            command::TRIM => (Command::Trim { fua }, FUA),
            command::CACHE => (Command::Cache, FUA),
            command::WRITE_ZEROES => {
                (Command::WriteZeroes { no_hole: has(NO_HOLE), fua }, FUA | NO_HOLE | FAST_ZERO)
            }
            command::BLOCK_STATUS => (Command::BlockStatus { one: has(REQ_ONE) }, FUA | REQ_ONE),
            _ => return Err(Refusal(WireError::Invalid, "unknown request type")),
        };
        if self.flags & !flags != 0 {
            return Err(Refusal(WireError::Invalid, "a flag does not apply to this request"));
        }
        self.check_length(command).map(|()| command)
    }

    fn check_length(&self, command: Command) -> Result<(), Refusal> {
        const TOO_LONG: &str = "longer than the maximum block size of 32 MiB";
        let long = self.len > MAX_PAYLOAD;
        match command {
            Command::Read { whole: true } if long => Err(Refusal(WireError::Overflow, TOO_LONG)),
            Command::Read { .. } | Command::Write { .. } if long => {
                Err(Refusal(WireError::Invalid, TOO_LONG))
            }
            Command::Flush if self.offset != 0 || self.len != 0 => {
                Err(Refusal(WireError::Invalid, "offset and length of a flush must be zero"))
            }
            Command::BlockStatus { .. } if self.len == 0 => {
                Err(Refusal(WireError::Invalid, "the length of a block status must not be zero"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(kind: u16, flags: u16, len: u32) -> Request {
        Request { flags, kind, cookie: 7, offset: 0, len }
    }

    #[test]
    fn flags_belong_to_commands() {
        let df = request(command::READ, command_flag::DF, 512);
        assert_eq!(df.command(true), Ok(Command::Read { whole: true }));
        assert!(df.command(false).is_err());
        let fua_on_all = [0, 1, 4, 5, 6, 7].map(|kind| request(kind, command_flag::FUA, 512));
        assert!(fua_on_all.iter().all(|r| r.command(false).is_ok()));
        assert!(request(command::WRITE, command_flag::REQ_ONE, 512).command(true).is_err());
        assert!(request(command::TRIM, 1 << 9, 512).command(true).is_err());
        assert!(request(99, 0, 0).command(true).is_err());
    }

    #[test]
    fn lengths_are_bounded() {
        let over = MAX_PAYLOAD + 1;
        let error = |r: Request| r.command(true).unwrap_err().0;
        assert_eq!(error(request(command::READ, 0, over)), WireError::Invalid);
        assert_eq!(error(request(command::READ, command_flag::DF, over)), WireError::Overflow);
        assert_eq!(error(request(command::WRITE, 0, over)), WireError::Invalid);
        assert_eq!(error(request(command::FLUSH, 0, 1)), WireError::Invalid);
        assert_eq!(error(request(command::BLOCK_STATUS, 0, 0)), WireError::Invalid);
        assert!(request(command::TRIM, 0, u32::MAX).command(true).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(
            mut bytes in any::<[u8; REQUEST_LEN]>(),
            good_magic: bool,
            structured: bool,
        ) {
            if good_magic {
                bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
                bytes[6] = 0;
            }
            let parsed = Request::parse(&bytes);
            prop_assert!(!good_magic || parsed.is_some());
            if let Some(request) = parsed {
                prop_assert!(bytes.ends_with(&request.len.to_be_bytes()));
                if let Ok(Command::Read { .. } | Command::Write { .. }) = request.command(structured) {
                    prop_assert!(request.len <= MAX_PAYLOAD);
                }
            }
        }
    }
}
