//! A VMM and its guest's driver, in one: memory, rings, requests.

#[path = "driver_ring.rs"]
pub mod driver_ring;

pub use driver_ring::SLOTS;
use driver_ring::{Link, Ring, WRITABLE};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures as Protocol};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

/// Kinds of request.
pub const READ: u32 = 0;
pub const WRITE: u32 = 1;
pub const FLUSH: u32 = 4;
pub const IDENTIFY: u32 = 8;
pub const DISCARD: u32 = 11;
pub const ZERO: u32 = 13;

/// Outcomes.
pub const OK: u8 = 0;
pub const IO_ERROR: u8 = 1;
pub const UNSUPPORTED: u8 = 2;

/// Features.
pub const F_RO: u64 = 1 << 5;
pub const F_FLUSH: u64 = 1 << 9;
pub const F_DISCARD: u64 = 1 << 13;
pub const F_EVENT_IDX: u64 = 1 << 29;
pub const F_PROTOCOL: u64 = 1 << 30;
pub const F_PACKED: u64 = 1 << 34;

/// Bytes of the guest's memory, and where the VMM has it.
pub const MEMORY: u64 = 64 << 20;
const USER: u64 = 0x7f00_0000_0000;

/// Entries of a ring, unless others are wished for.
pub const ENTRIES: u16 = 256;
/// Memory of a request.
const SLOT_BYTES: u64 = 0x8_0000;

/// For anything that the other side does.
const PATIENCE: Duration = Duration::from_secs(20);

/// The guest's memory: outlives every connection.
pub struct Guest {
    file: File,
    pub memory: GuestMemoryMmap,
    /// Where requests in flight are noted, once there is such.
    pub inflight: Option<(VhostUserInflight, File)>,
}

impl Guest {
    pub fn new() -> Guest {
        let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(MEMORY).unwrap();
        let mapped = FileOffset::new(file.try_clone().unwrap(), 0);
        let ranges = [(GuestAddress(0), MEMORY as usize, Some(mapped))];
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
        Guest { file, memory, inflight: None }
    }

    fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }
}

/// What a VMM asks for when it connects.
#[derive(Clone, Copy)]
pub struct Wishes {
    pub queues: usize,
    /// Of those offered, without these.
    pub without: u64,
    pub inflight: bool,
    /// Packed rings, if they are offered.
    pub packed: bool,
    pub entries: u16,
}

/// Rings of either shape.
pub const SPLIT: Wishes =
    Wishes { queues: 1, without: 0, inflight: true, packed: false, entries: ENTRIES };
pub const PACKED: Wishes = Wishes { packed: true, ..SPLIT };

impl Default for Wishes {
    fn default() -> Wishes {
        SPLIT
    }
}

/// A VMM that is connected, and its guest's driver.
pub struct Master {
    pub guest: Guest,
    pub frontend: Frontend,
    pub features: u64,
    pub rings: Vec<Ring>,
    /// Where the backend tells of changes.
    pub channel: UnixStream,
    wishes: Wishes,
    /// The socket, for what `frontend` cannot say.
    stream: UnixStream,
}

/// A request, as the driver sees it.
#[derive(Clone)]
pub struct Request<'a> {
    pub kind: u32,
    pub sector: u64,
    /// Bytes for the device.
    pub out: &'a [u8],
    /// Bytes that it is asked for.
    pub back: usize,
    /// The data are in so many places.
    pub pieces: usize,
    pub indirect: bool,
}

impl<'a> Request<'a> {
    pub fn new(kind: u32, sector: u64) -> Request<'a> {
        Request { kind, sector, out: &[], back: 0, pieces: 1, indirect: false }
    }

    pub fn write(sector: u64, out: &'a [u8]) -> Request<'a> {
        Request { out, ..Request::new(WRITE, sector) }
    }

    pub fn read(sector: u64, back: usize) -> Request<'a> {
        Request { back, ..Request::new(READ, sector) }
    }
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u8,
    /// Bytes that the device says it has written.
    pub written: u32,
    pub data: Vec<u8>,
}

/// The memory of a slot: header, status, a table, data.
fn slot_at(ring: usize, slot: u16) -> u64 {
    (1 << 20) + (ring as u64 * u64::from(SLOTS) + u64::from(slot)) * SLOT_BYTES
}

const STATUS_AT: u64 = 0x20;
const TABLE_AT: u64 = 0x100;
const DATA_AT: u64 = 0x1000;

impl Master {
    /// Connects and negotiates; no ring runs yet.
    pub fn connect(path: &Path, guest: Guest, wishes: Wishes) -> Result<Master, String> {
        let stream = UnixStream::connect(path).map_err(|e| e.to_string())?;
        Master::over(stream, guest, wishes).map_err(|(e, _)| e)
    }

    /// As [`Master::connect`]; a refused guest is given back.
    pub fn over(
        stream: UnixStream,
        guest: Guest,
        wishes: Wishes,
    ) -> Result<Master, (String, Guest)> {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let again = stream.try_clone().unwrap();
        let frontend = Frontend::from_stream(stream, 64);
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let (features, rings, channel, stream) = (0, Vec::new(), ours, again);
        let mut master = Master { guest, frontend, features, rings, channel, wishes, stream };
        match master.negotiate(&theirs) {
            Ok(()) => Ok(master),
            Err(e) => Err((e, master.guest)),
        }
    }

    fn negotiate(&mut self, channel: &UnixStream) -> Result<(), String> {
        use vhost::vhost_user::message::VhostUserHeaderFlag as Flag;
        let failed = |e: vhost::Error| format!("{e:?}");
        let front = &mut self.frontend;
        front.set_owner().map_err(failed)?;
        let offered = front.get_features().map_err(failed)?;
        assert_ne!(offered & F_PROTOCOL, 0);
        let protocol = front.get_protocol_features().map_err(failed)?;
        let mut wanted = Protocol::MQ
            | Protocol::CONFIG
            | Protocol::BACKEND_REQ
            | Protocol::CONFIGURE_MEM_SLOTS
            | Protocol::REPLY_ACK;
        wanted.set(Protocol::INFLIGHT_SHMFD, self.wishes.inflight);
        assert!(protocol.contains(wanted), "{protocol:?}");
        front.set_protocol_features(wanted).map_err(failed)?;
        front.set_hdr_flags(Flag::NEED_REPLY);
        let shape = if self.wishes.packed { 0 } else { F_PACKED };
        self.features = offered & !self.wishes.without & !shape;
        front.set_features(self.features).map_err(failed)?;
        front.set_backend_request_fd(channel).map_err(failed)?;
        front.set_mem_table(&[self.guest.region()]).map_err(failed)?;
        if !self.wishes.inflight {
            return Ok(());
        }
        match &self.guest.inflight {
            Some((told, file)) => front.set_inflight_fd(told, file.as_raw_fd()).map_err(failed),
            None => {
                let wanted =
                    VhostUserInflight::new(0, 0, self.wishes.queues as u16, self.wishes.entries);
                self.guest.inflight = Some(front.get_inflight_fd(&wanted).map_err(failed)?);
                Ok(())
            }
        }
    }

    /// As [`Master::begin`], once the VMM before has been forgotten.
    pub fn begin_when_free(path: &Path, wishes: Wishes) -> Master {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Master::connect(path, Guest::new(), wishes) {
                Ok(master) => return master.started(),
                Err(e) => assert!(Instant::now() < deadline, "not let in: {e}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// True where the rings are packed.
    pub fn is_packed(&self) -> bool {
        self.features & F_PACKED != 0
    }

    /// Connects and starts the rings of a guest that begins.
    pub fn begin(path: &Path, wishes: Wishes) -> Master {
        Master::connect(path, Guest::new(), wishes).unwrap().started()
    }

    fn started(mut self) -> Master {
        let (wishes, master) = (self.wishes, &mut self);
        let event_idx = master.features & F_EVENT_IDX != 0;
        let packed = master.is_packed();
        for index in 0..wishes.queues {
            let ring = Ring::new(index, wishes.entries, event_idx, packed);
            let base = ring.told;
            master.rings.push(ring);
            master.start_ring(index, base);
        }
        self
    }

    /// The guest comes back, with what it waits for, to whoever listens there now.
    pub fn come_back(self, path: &Path) -> Result<Master, (String, Guest)> {
        let Master { guest, rings, wishes, frontend, stream, .. } = self;
        drop((frontend, stream));
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(e) => assert!(Instant::now() < deadline, "nobody listens: {e}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut master = Master::over(stream, guest, wishes)?;
        master.rings = rings;
        for index in 0..wishes.queues {
            let base = master.rings[index].base_after_a_death(&master.guest.memory);
            master.start_ring(index, base);
        }
        Ok(master)
    }

    pub fn start_ring(&mut self, index: usize, base: u32) {
        let ring = &self.rings[index];
        let front = &mut self.frontend;
        front.set_vring_num(index, ring.entries).unwrap();
        let config = VringConfigData {
            queue_max_size: ring.entries,
            queue_size: ring.entries,
            flags: 0,
            desc_table_addr: USER + ring.table(),
            used_ring_addr: USER + ring.used(),
            avail_ring_addr: USER + ring.avail(),
            log_addr: None,
        };
        front.set_vring_addr(index, &config).unwrap();
        assert!(self.set_base(index, base));
        let (ring, front) = (&mut self.rings[index], &mut self.frontend);
        ring.told = base;
        front.set_vring_call(index, &ring.call).unwrap();
        front.set_vring_err(index, &ring.error).unwrap();
        front.set_vring_kick(index, &ring.kick).unwrap();
        front.set_vring_enable(index, true).unwrap();
        // As QEMU does: there may be requests that nobody was woken for.
        ring.kick.write(1).unwrap();
    }

    /// Says where a ring stands: the library has 16 bits for it, a packed ring needs 32. False where
    /// the other side does not take it.
    pub fn set_base(&self, index: usize, base: u32) -> bool {
        // SET_VRING_BASE, of version 1 and with a reply.
        let words = [10u32, 1 | 8, 8, index as u32, base];
        let message: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut reply = [0; 20];
        let mut stream = &self.stream;
        let said = stream.write_all(&message).and_then(|()| stream.read_exact(&mut reply));
        said.is_ok() && reply[12..] == [0; 8]
    }

    pub fn descriptor(&self, table: u64, index: u16, place: (u64, u32), flags: u16, next: u16) {
        driver_ring::descriptor(&self.guest.memory, table, index, place, flags, next);
    }

    /// Puts `head` into a split ring of available requests; the device may see it.
    pub fn offer(&mut self, index: usize, head: u16) {
        self.rings[index].offer(&self.guest.memory, head);
    }

    /// Wakes the device, if it asks for that.
    pub fn kick(&mut self, index: usize) -> bool {
        let wanted = self.rings[index].wants_kick(&self.guest.memory);
        if wanted {
            self.rings[index].kick.write(1).unwrap();
        }
        wanted
    }

    /// Hands a request to the device. Returns its slot.
    pub fn submit(&mut self, index: usize, request: &Request<'_>) -> u16 {
        let slot = self.rings[index].take_slot();
        let at = slot_at(index, slot);
        let mut header = request.kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(request.sector.to_le_bytes());
        self.guest.put(at, &header);
        self.guest.put(at + STATUS_AT, &[0xff]);
        self.guest.put(at + DATA_AT, request.out);
        let mut links: Vec<Link> = vec![(at, 16, 0)];
        for (len, flags) in [(request.out.len(), 0), (request.back, WRITABLE)] {
            let mut done = 0;
            for i in 0..request.pieces {
                let end = len * (i + 1) / request.pieces;
                if end > done {
                    links.push((at + DATA_AT + done as u64, (end - done) as u32, flags));
                }
                done = end;
            }
        }
        links.push((at + STATUS_AT, 1, WRITABLE));
        let table = request.indirect.then_some(at + TABLE_AT);
        self.rings[index].put(&self.guest.memory, slot, &links, table);
        slot
    }

    /// The next answer of the ring, if there is one: its slot and what it says it wrote.
    pub fn poll(&mut self, index: usize) -> Option<(u16, u32)> {
        self.rings[index].poll(&self.guest.memory)
    }

    /// As [`Master::poll`], when there is one.
    pub fn wait(&mut self, index: usize) -> (u16, u32) {
        let begun = Instant::now();
        loop {
            if let Some(answer) = self.poll(index) {
                return answer;
            }
            assert!(begun.elapsed() < PATIENCE, "no answer on ring {index}");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// The status and the first `len` bytes of a slot's data.
    pub fn outcome(&self, index: usize, slot: u16, len: usize) -> (u8, Vec<u8>) {
        let at = slot_at(index, slot);
        (self.guest.get(at + STATUS_AT, 1)[0], self.guest.get(at + DATA_AT, len))
    }

    /// One request, from beginning to end.
    pub fn ask(&mut self, index: usize, request: &Request<'_>) -> Answer {
        let slot = self.submit(index, request);
        self.kick(index);
        let (answered, written) = self.wait(index);
        assert_eq!(answered, slot);
        let (status, data) = self.outcome(index, slot, request.back);
        Answer { status, written, data }
    }

    #[track_caller]
    pub fn write(&mut self, sector: u64, data: &[u8]) {
        let answer = self.ask(0, &Request::write(sector, data));
        assert_eq!((answer.status, answer.written), (OK, 1));
    }

    #[track_caller]
    pub fn read(&mut self, sector: u64, len: usize) -> Vec<u8> {
        let answer = self.ask(0, &Request::read(sector, len));
        assert_eq!((answer.status, answer.written), (OK, len as u32 + 1));
        answer.data
    }

    #[track_caller]
    pub fn flush(&mut self) {
        assert_eq!(self.ask(0, &Request::new(FLUSH, 0)).status, OK);
    }

    /// Queues that the backend takes.
    pub fn frontend_queues(&mut self) -> u64 {
        self.frontend.get_queue_num().unwrap()
    }

    /// True once the other side has left.
    pub fn frontend_is_gone(&mut self) -> bool {
        self.frontend.get_features().is_err()
    }

    /// `len` bytes of the configuration space.
    pub fn config(&mut self, at: u32, len: usize) -> Vec<u8> {
        let flags = VhostUserConfigFlags::empty();
        self.frontend.get_config(at, len as u32, flags, &vec![0; len]).unwrap().1
    }

    /// Bytes of the disk.
    pub fn capacity(&mut self) -> u64 {
        u64::from_le_bytes(self.config(0, 8).try_into().unwrap()) * 512
    }
}
