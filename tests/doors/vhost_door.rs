//! vhost-user, by the tests' own machine and its driver.

use crate::door::{Answer, Door, EIO, Hand, Kind, make};
use crate::home::{Home, PATIENCE, Server, arg};
use crate::master::{DISCARD, FLUSH, Master, OK, PACKED, Request, SPLIT, Wishes, ZERO};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// As many users of a machine's disk at once: each has a ring.
const RINGS: usize = 4;

pub const VHOST: Kind = Kind {
    name: "vhost-user",
    make,
    open,
    any_byte: false,
    offsets_in_bytes: false,
    largest: 8 << 20,
    whole: 512,
    // There are three outcomes of a request.
    misaligned: EIO,
    beyond: (EIO, EIO),
    in_part: false,
    clear_beyond: Some(EIO),
    read_only: EIO,
    outlives: true,
    growth_is_seen: true,
};

/// The same over packed rings.
pub const VHOST_PACKED: Kind = Kind { name: "vhost-user-packed", open: open_packed, ..VHOST };

struct VhostDoor {
    wishes: Wishes,
    server: Server,
    socket: PathBuf,
    machine: OnceLock<Arc<Mutex<Master>>>,
    hands: AtomicUsize,
}

fn open(home: &Home, volume: &str) -> Box<dyn Door> {
    open_as(home, volume, SPLIT)
}

fn open_packed(home: &Home, volume: &str) -> Box<dyn Door> {
    open_as(home, volume, PACKED)
}

fn open_as(home: &Home, volume: &str, wishes: Wishes) -> Box<dyn Door> {
    let socket = home.path(&format!("{volume}-{}.vhost", rand::random::<u32>()));
    let server = home.start(&["serve", "vhost-user", volume, "--socket", arg(&socket)]);
    let (machine, hands) = (OnceLock::new(), AtomicUsize::new(0));
    let wishes = Wishes { queues: RINGS, ..wishes };
    Box::new(VhostDoor { wishes, server, socket, machine, hands })
}

impl Door for VhostDoor {
    fn hand(&self) -> Box<dyn Hand> {
        let begin = || Master::begin(&self.socket, self.wishes);
        let master = Arc::clone(self.machine.get_or_init(|| Arc::new(Mutex::new(begin()))));
        let ring = self.hands.fetch_add(1, Ordering::SeqCst) % RINGS;
        Box::new(VhostHand { master, ring })
    }

    fn kill(self: Box<Self>) {
        self.server.kill();
    }

    fn stop(self: Box<Self>) {
        drop(self.machine);
        self.server.stop();
    }

    fn give_up(self: Box<Self>) {
        self.server.kill();
    }
}

struct VhostHand {
    master: Arc<Mutex<Master>>,
    ring: usize,
}

impl VhostHand {
    /// The ring is this hand's alone, so the answer is to its question.
    fn ask(&mut self, request: &Request<'_>) -> Answer<Vec<u8>> {
        let slot = {
            let mut master = self.master.lock().unwrap();
            let slot = master.submit(self.ring, request);
            master.kick(self.ring);
            slot
        };
        let begun = Instant::now();
        loop {
            let mut master = self.master.lock().unwrap();
            if let Some((answered, _)) = master.poll(self.ring) {
                assert_eq!(answered, slot);
                let (status, data) = master.outcome(self.ring, slot, request.back);
                return if status == OK { Ok(data) } else { Err(EIO) };
            }
            drop(master);
            assert!(begun.elapsed() < PATIENCE, "no answer on ring {}", self.ring);
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn clear(&mut self, kind: u32, at: u64, len: u64) -> Answer<()> {
        let mut range = (at / 512).to_le_bytes().to_vec();
        range.extend(((len / 512) as u32).to_le_bytes());
        range.extend([0; 4]);
        self.ask(&Request { out: &range, ..Request::new(kind, 0) }).map(drop)
    }
}

impl Hand for VhostHand {
    fn read(&mut self, at: u64, len: usize) -> Answer<Vec<u8>> {
        self.ask(&Request::read(at / 512, len))
    }

    fn write(&mut self, at: u64, data: &[u8], fua: bool) -> Answer<()> {
        self.ask(&Request::write(at / 512, data))?;
        // A driver makes it of two.
        if fua { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Answer<()> {
        self.ask(&Request::new(FLUSH, 0)).map(drop)
    }

    fn discard(&mut self, at: u64, len: u64) -> Answer<()> {
        self.clear(DISCARD, at, len)
    }

    fn zero(&mut self, at: u64, len: u64) -> Answer<()> {
        self.clear(ZERO, at, len)
    }

    fn size(&mut self) -> u64 {
        self.master.lock().unwrap().capacity()
    }
}
