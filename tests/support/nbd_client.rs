//! A small NBD client: what a test must see of every single request.
//!
//! Requests may be sent ahead of their answers ([`Client::send`], [`Client::answer`]); the other
//! methods do one request and wait for it.

use crate::nbd::{CMD_DISC, CMD_READ, CMD_WRITE, Raw, flagged};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

pub const FLAG_FUA: u16 = 1;
pub const CMD_FLUSH: u16 = 3;
pub const CMD_TRIM: u16 = 4;

/// The error number of a device that cannot do what was asked.
pub const EIO: u32 = 5;

/// A connection in the transmission phase, with simple replies.
pub struct Client {
    raw: Raw,
    cookies: u64,
}

/// Why a request was not done.
#[derive(Debug)]
pub enum Trouble {
    /// The server answered with this error number.
    Refused(u32),
    /// There is no server any more.
    #[allow(dead_code, reason = "for who reads the failure of a test")]
    Gone(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(e: io::Error) -> Trouble {
        Trouble::Gone(e)
    }
}

pub type Answer<T> = Result<T, Trouble>;

impl Client {
    /// Connects to the only export of the server at `socket`.
    pub fn connect(socket: &Path) -> Client {
        let raw = Raw::transmission(socket);
        raw.0.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        Client { raw, cookies: 0 }
    }

    /// Waits so long for an answer from now on.
    #[allow(dead_code, reason = "each test binary uses a part of it")]
    pub fn patient(self, patience: Duration) -> Client {
        self.raw.0.set_read_timeout(Some(patience)).unwrap();
        self
    }

    /// Sends a request; returns the cookie of its answer. `len` is that of the payload where
    /// there is one.
    pub fn send(
        &mut self,
        (flags, kind): (u16, u16),
        offset: u64,
        len: usize,
        payload: &[u8],
    ) -> io::Result<u64> {
        self.cookies += 1;
        let mut bytes = flagged(flags, kind, self.cookies, offset, len as u32);
        bytes.extend(payload);
        self.raw.0.write_all(&bytes)?;
        Ok(self.cookies)
    }

    /// The next answer without its data: whose it is, and its error number.
    pub fn answer(&mut self) -> io::Result<(u64, u32)> {
        let mut reply = [0; 16];
        self.raw.0.read_exact(&mut reply)?;
        assert_eq!(reply[..4], 0x6744_6698u32.to_be_bytes(), "no simple reply");
        let error = u32::from_be_bytes(reply[4..8].try_into().unwrap());
        Ok((u64::from_be_bytes(reply[8..].try_into().unwrap()), error))
    }

    fn done(&mut self, cookie: u64) -> Answer<()> {
        let (answered, error) = self.answer()?;
        assert_eq!(answered, cookie, "an answer to nobody's question");
        if error == 0 { Ok(()) } else { Err(Trouble::Refused(error)) }
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Answer<Vec<u8>> {
        let cookie = self.send((0, CMD_READ), offset, len, &[])?;
        self.done(cookie)?;
        let mut data = vec![0; len];
        self.raw.0.read_exact(&mut data)?;
        Ok(data)
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Answer<()> {
        let cookie = self.send((0, CMD_WRITE), offset, data.len(), data)?;
        self.done(cookie)
    }

    pub fn trim(&mut self, offset: u64, len: usize) -> Answer<()> {
        let cookie = self.send((0, CMD_TRIM), offset, len, &[])?;
        self.done(cookie)
    }

    pub fn flush(&mut self) -> Answer<()> {
        let cookie = self.send((0, CMD_FLUSH), 0, 0, &[])?;
        self.done(cookie)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The server may be gone already.
        let _ = self.send((0, CMD_DISC), 0, 0, &[]);
    }
}
