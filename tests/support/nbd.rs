//! A client made of a bare socket: the pieces of the NBD protocol that tests share.
//!
//! Newstyle negotiation and simple replies; `doc/proto.md` of the NetworkBlockDevice project.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub const OPT_EXPORT_NAME: u32 = 1;
pub const CMD_READ: u16 = 0;
pub const CMD_WRITE: u16 = 1;
pub const CMD_DISC: u16 = 2;

/// A connection.
pub struct Raw<S = UnixStream>(pub S);

impl Raw {
    /// Connects and exchanges greetings.
    pub fn connect(socket: &Path) -> Raw {
        let mut raw = Raw::silent(socket);
        let greeting: [u8; 18] = raw.take();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        assert_eq!(greeting[16..], [0, 3]);
        raw.send(&3u32.to_be_bytes());
        raw
    }

    /// Connects and says nothing.
    pub fn silent(socket: &Path) -> Raw {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Raw(stream)
    }

    /// Connects and enters the transmission phase, with simple replies.
    pub fn transmission(socket: &Path) -> Raw {
        let mut raw = Raw::connect(socket);
        raw.option(OPT_EXPORT_NAME, b"");
        let _: [u8; 10] = raw.take();
        raw
    }
}

impl<S: Read + Write> Raw<S> {
    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn option(&mut self, option: u32, data: &[u8]) {
        self.send(b"IHAVEOPT");
        self.send(&option.to_be_bytes());
        self.send(&(data.len() as u32).to_be_bytes());
        self.send(data);
    }
}

/// A request with command flags, without its payload.
pub fn flagged(flags: u16, kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}
