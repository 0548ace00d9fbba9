//! NBD, by the tests' own client.

use crate::client::{CMD_FLUSH, CMD_TRIM, Client, FLAG_FUA, Trouble};
use crate::door::{Answer, Door, EINVAL, ENOSPC, Hand, Kind, Refusal, make};
use crate::home::{Home, Server, arg};
use crate::nbd::{CMD_WRITE, OPT_EXPORT_NAME, Raw};
use std::path::{Path, PathBuf};

const CMD_WRITE_ZEROES: u16 = 6;
/// The protocol has no number for a disk that can only be read.
const EPERM: Refusal = Refusal::Errno(1);

pub const NBD: Kind = Kind {
    name: "NBD",
    make,
    open,
    any_byte: false,
    offsets_in_bytes: true,
    largest: 32 << 20,
    whole: 512,
    misaligned: EINVAL,
    beyond: (EINVAL, ENOSPC),
    in_part: false,
    clear_beyond: Some(EINVAL),
    read_only: EPERM,
    outlives: false,
    growth_is_seen: false,
};

struct NbdDoor {
    server: Server,
    socket: PathBuf,
}

fn open(home: &Home, volume: &str) -> Box<dyn Door> {
    let socket = home.path(&format!("{volume}-{}.nbd", rand::random::<u32>()));
    let server = home.start(&["serve", "nbd", volume, "--socket", arg(&socket)]);
    Box::new(NbdDoor { server, socket })
}

impl Door for NbdDoor {
    fn hand(&self) -> Box<dyn Hand> {
        let client = Client::connect(&self.socket);
        Box::new(NbdHand { client, size: size(&self.socket) })
    }

    fn kill(self: Box<Self>) {
        self.server.kill();
    }

    fn stop(self: Box<Self>) {
        self.server.stop();
    }

    fn give_up(self: Box<Self>) {
        self.server.kill();
    }
}

/// What a client is told when it connects.
fn size(socket: &Path) -> u64 {
    let mut raw = Raw::connect(socket);
    raw.option(OPT_EXPORT_NAME, b"");
    let told: [u8; 10] = raw.take();
    u64::from_be_bytes(*told.first_chunk().unwrap())
}

struct NbdHand {
    client: Client,
    size: u64,
}

impl From<Trouble> for Refusal {
    fn from(trouble: Trouble) -> Refusal {
        match trouble {
            Trouble::Refused(number) => Refusal::Errno(number as i32),
            Trouble::Gone(_) => Refusal::Gone,
        }
    }
}

impl NbdHand {
    fn ask(&mut self, command: (u16, u16), at: u64, len: usize, data: &[u8]) -> Answer<()> {
        let gone = |_| Refusal::Gone;
        let cookie = self.client.send(command, at, len, data).map_err(gone)?;
        let (answered, error) = self.client.answer().map_err(gone)?;
        assert_eq!(answered, cookie, "an answer to nobody's question");
        if error == 0 { Ok(()) } else { Err(Refusal::Errno(error as i32)) }
    }
}

impl Hand for NbdHand {
    fn read(&mut self, at: u64, len: usize) -> Answer<Vec<u8>> {
        Ok(self.client.read(at, len)?)
    }

    fn write(&mut self, at: u64, data: &[u8], fua: bool) -> Answer<()> {
        let flags = if fua { FLAG_FUA } else { 0 };
        self.ask((flags, CMD_WRITE), at, data.len(), data)
    }

    fn flush(&mut self) -> Answer<()> {
        self.ask((0, CMD_FLUSH), 0, 0, &[])
    }

    fn discard(&mut self, at: u64, len: u64) -> Answer<()> {
        self.ask((0, CMD_TRIM), at, len as usize, &[])
    }

    fn zero(&mut self, at: u64, len: u64) -> Answer<()> {
        match self.ask((0, CMD_WRITE_ZEROES), at, len as usize, &[]) {
            // It would have to store something there.
            Err(ENOSPC) => Err(EINVAL),
            answer => answer,
        }
    }

    fn size(&mut self) -> u64 {
        self.size
    }
}
