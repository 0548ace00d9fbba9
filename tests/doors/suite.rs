//! What is expected of a disk, through whichever door: every request is done or refused as one oracle says.

use crate::door::{Answer, Door, EINVAL, Hand, Kind, Refusal};
use crate::home::{Home, until};
use crate::oracle::{Oracle, SECTOR, noise};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

pub const MIB: usize = 1 << 20;
/// Bytes of the volumes' chunks.
const CHUNK: usize = 256 << 10;
/// Bytes that are read at once where all are read.
const PIECE: usize = 512 << 10;

/// The whole of it: for one who has time, `amount` random requests on each disk.
pub fn conforms(kind: Kind, seed: u64, amount: usize) {
    for block in [512, 4096] {
        let largest = if block == 512 { kind.largest } else { MIB };
        let mut desk = Desk::new(kind, seed, largest + MIB + block, block);
        edges(&mut desk, largest);
        random(&mut desk, amount);
        desk.stop();
    }
    overlapping(kind, amount / 4);
}

/// A disk at work, and what it must hold.
struct Desk {
    kind: Kind,
    home: Home,
    door: Option<Box<dyn Door>>,
    hand: Option<Box<dyn Hand>>,
    oracle: Oracle,
    block: usize,
    rng: StdRng,
}

impl Desk {
    fn new(kind: Kind, seed: u64, size: usize, block: usize) -> Desk {
        let home = Home::directory();
        (kind.make)(&home, "disk", size as u64, block);
        let (rng, oracle) = (StdRng::seed_from_u64(seed), Oracle::new(size));
        let mut desk = Desk { kind, home, door: None, hand: None, oracle, block, rng };
        desk.open();
        desk
    }

    fn open(&mut self) {
        let door = (self.kind.open)(&self.home, "disk");
        (self.hand, self.door) = (Some(door.hand()), Some(door));
    }

    fn stop(&mut self) {
        self.hand = None;
        self.door.take().unwrap().stop();
        // An end in order loses nothing.
        self.oracle.flushed();
    }

    fn hand(&mut self) -> &mut dyn Hand {
        &mut **self.hand.as_mut().unwrap()
    }

    fn size(&self) -> usize {
        self.oracle.len()
    }

    fn is_whole(&self, at: usize, len: usize) -> bool {
        self.kind.any_byte || (at.is_multiple_of(self.block) && len.is_multiple_of(self.block))
    }

    /// What must become of it, and how many bytes of it are done.
    fn expected(&self, at: usize, len: usize, beyond: Refusal) -> (Answer<()>, usize) {
        let size = self.size();
        match () {
            () if len == 0 => (Ok(()), 0),
            () if !self.is_whole(at, len) => (Err(self.kind.misaligned), 0),
            () if at + len <= size => (Ok(()), len),
            () if at < size && self.kind.in_part => (Err(Refusal::Short(size - at)), size - at),
            () => (Err(beyond), 0),
        }
    }

    #[track_caller]
    fn write(&mut self, at: usize, data: &[u8], fua: bool) {
        let (wanted, done) = self.expected(at, data.len(), self.kind.beyond.1);
        let answer = self.hand().write(at as u64, data, fua);
        assert_eq!(answer, wanted, "{}: {} bytes written at {at}", self.kind.name, data.len());
        self.oracle.write(at.min(self.size()), &data[..done]);
        if fua && wanted.is_ok() {
            self.oracle.flushed_at(at..at + done);
        }
    }

    #[track_caller]
    fn read(&mut self, at: usize, len: usize) {
        let (wanted, _) = self.expected(at, len, self.kind.beyond.0);
        let answer = self.hand().read(at as u64, len);
        let name = self.kind.name;
        match (answer, wanted) {
            (Ok(data), Ok(())) => {
                let same = data == self.oracle.bytes(at..at + len);
                assert!(same, "{name}: {len} bytes at {at} are not what was written");
            }
            (answer, wanted) => {
                assert_eq!(
                    answer.map(|data| data.len()).err(),
                    wanted.err(),
                    "{name}: {len} at {at}"
                );
            }
        }
    }

    #[track_caller]
    fn clear(&mut self, at: usize, len: usize, discard: bool) {
        let hand = self.hand();
        let answer = match discard {
            true => hand.discard(at as u64, len as u64),
            false => hand.zero(at as u64, len as u64),
        };
        let size = self.size();
        let (wanted, done) = match self.kind.clear_beyond {
            _ if len == 0 => {
                assert!(answer.is_ok() || answer == Err(EINVAL), "{answer:?}");
                return;
            }
            _ if !self.is_whole(at, len) => (Err(self.kind.misaligned), 0),
            Some(refusal) if at + len > size => (Err(refusal), 0),
            _ => (Ok(()), len.min(size.saturating_sub(at))),
        };
        assert_eq!(answer, wanted, "{}: {len} bytes cleared at {at} ({discard})", self.kind.name);
        let at = at.min(size);
        self.oracle.clear(at..at + done);
    }

    #[track_caller]
    fn flush(&mut self) {
        assert_eq!(self.hand().flush(), Ok(()));
        self.oracle.flushed();
    }

    fn whole_image(&mut self) -> Vec<u8> {
        let (size, hand) = (self.size(), self.hand());
        let read = |at: usize| hand.read(at as u64, PIECE.min(size - at)).unwrap();
        (0..size).step_by(PIECE).flat_map(read).collect()
    }

    #[track_caller]
    fn all_is_right(&mut self) {
        assert_eq!(self.hand().size(), self.size() as u64);
        let found = self.whole_image();
        assert_eq!(found.len(), self.size());
        if found == self.oracle.bytes(0..self.size()) {
            return;
        }
        let wrong = (0..self.size()).step_by(SECTOR).find(|at| {
            let sector = *at..*at + SECTOR;
            found[sector.clone()] != *self.oracle.bytes(sector)
        });
        assert_eq!(wrong, None, "{}: the first byte that is wrong", self.kind.name);
    }
}

/// Where one is off by one: nothing, the largest, the ends of the disk and of its blocks.
fn edges(desk: &mut Desk, largest: usize) {
    let (kind, size, block) = (desk.kind, desk.size(), desk.block);
    desk.all_is_right();
    let data = noise(&mut desk.rng, largest);
    desk.write(block, &data, false);
    desk.flush();
    desk.read(block, largest);
    desk.read(0, largest);
    let two = 2 * block;
    for at in [0, block, size - block, size] {
        desk.write(at, &[], false);
        desk.read(at, 0);
        desk.clear(at, 0, true);
        desk.clear(at, 0, false);
    }
    for (at, len) in [(size - block, block), (size - block, two), (size, block), (size + MIB, two)]
    {
        let data = noise(&mut desk.rng, len);
        desk.write(at, &data, false);
        desk.read(at, len);
        desk.clear(at, len, at.is_multiple_of(two));
        desk.write(at, &data, true);
    }
    for (at, len) in [(block, block - 1), (block, block + 1), (0, 1), (block, block / 8)] {
        let data = noise(&mut desk.rng, len);
        desk.write(at, &data, false);
        desk.read(at, len);
        if kind.offsets_in_bytes {
            desk.write(at + 1, &data, false);
            let data = noise_of(desk, block);
            desk.write(at + 7, &data, false);
            desk.clear(at + 1, two, true);
            desk.clear(at + 3, two, false);
            desk.read(at + block / 2, two);
        }
    }
    desk.clear(CHUNK - block, two, true);
    desk.clear(2 * CHUNK - block, two, false);
    desk.all_is_right();
    desk.clear(0, size, true);
    desk.all_is_right();
}

fn noise_of(desk: &mut Desk, len: usize) -> Vec<u8> {
    noise(&mut desk.rng, len)
}

/// One request after the other, of all kinds and sizes.
fn random(desk: &mut Desk, amount: usize) {
    for _ in 0..amount {
        one(desk);
    }
    desk.all_is_right();
    desk.stop();
    desk.open();
    desk.all_is_right();
}

fn one(desk: &mut Desk) {
    let (size, block) = (desk.size(), desk.block);
    let rng = &mut desk.rng;
    let grain = if desk.kind.any_byte && rng.random() { 1 } else { block };
    let at = match rng.random_range(0..10) {
        // Across the border of chunks.
        0..3 => rng.random_range(1..size / CHUNK) * CHUNK - rng.random_range(0..16) * block,
        // At the end, and across it.
        3 => size - rng.random_range(0..40) * block,
        _ => rng.random_range(0..size),
    };
    let at = at / grain * grain;
    let len = match rng.random_range(0..8) {
        0 => block,
        1..4 => rng.random_range(1..17) * block,
        4 => CHUNK + block,
        5 => 64 << 10,
        _ => rng.random_range(1..200_000),
    };
    let len = len.next_multiple_of(grain);
    match rng.random_range(0..20) {
        kind @ 0..9 => {
            let data = noise(rng, len);
            desk.write(at, &data, kind == 0);
        }
        9..14 => desk.read(at, len),
        14 => desk.flush(),
        kind => desk.clear(at, len, kind % 2 == 0),
    }
}

/// Some read what another is writing: what they find was once there, and is no older than what had been
/// acknowledged before they asked.
pub fn overlapping(kind: Kind, versions: usize) {
    const REGION: usize = 32 << 10;
    const AT: usize = CHUNK - REGION / 2;
    let home = Home::directory();
    (kind.make)(&home, "disk", 2 * MIB as u64, 512);
    let door = (kind.open)(&home, "disk");
    let (begun, done, over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let reader = |mut hand: Box<dyn Hand>, seed: u64, reads: &AtomicU64| {
        let mut rng = StdRng::seed_from_u64(seed);
        while !over.load(SeqCst) {
            let sectors = REGION / SECTOR;
            let first = rng.random_range(0..sectors);
            let count = rng.random_range(1..=sectors - first);
            let oldest = done.load(SeqCst);
            let found = hand.read((AT + first * SECTOR) as u64, count * SECTOR).unwrap();
            let newest = begun.load(SeqCst);
            for (at, whole) in found.chunks(kind.whole).enumerate() {
                let words = whole.chunks(8).map(|w| u64::from_le_bytes(w.try_into().unwrap()));
                let mut words = words.enumerate();
                let place = |word: usize| ((first * SECTOR + at * kind.whole) / 8 + word) as u64;
                let (_, word) = words.next().unwrap();
                let version = word >> 16;
                assert!((oldest..=newest).contains(&version), "{version} of {oldest}..={newest}");
                assert!(version == 0 || word & 0xffff == place(0), "of another place");
                let same =
                    |(i, word)| word == if version == 0 { 0 } else { version << 16 | place(i) };
                assert!(words.all(same), "{}: half a sector was read", kind.name);
            }
            reads.fetch_add(1, SeqCst);
        }
    };
    let mut writer = door.hand();
    let (hands, reads) = ([door.hand(), door.hand()], [(); 2].map(|()| AtomicU64::new(0)));
    std::thread::scope(|scope| {
        let readers = hands.into_iter().zip(1..).zip(&reads).map(|((hand, seed), reads)| {
            let reader = &reader;
            scope.spawn(move || reader(hand, seed, reads))
        });
        let readers: Vec<_> = readers.collect();
        // As often as that at least, and until all have read meanwhile.
        let meanwhile = || reads.iter().all(|reads| reads.load(SeqCst) > 0);
        for version in (1..).take_while(|version| *version <= versions as u64 || !meanwhile()) {
            let words =
                (0..REGION as u64 / 8).flat_map(|place| (version << 16 | place).to_le_bytes());
            let data: Vec<u8> = words.collect();
            begun.store(version, SeqCst);
            let written = writer.write(AT as u64, &data, false);
            done.store(version, SeqCst);
            assert_eq!(written, Ok(()));
            if readers.iter().any(|reader| reader.is_finished()) {
                break;
            }
        }
        over.store(true, SeqCst);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        println!("{}: {} writes while {reads:?} reads", kind.name, done.load(SeqCst));
    });
    drop(writer);
    door.stop();
}

/// A snapshot is a disk that can only be read.
pub fn read_only(kind: Kind, seed: u64) {
    let mut desk = Desk::new(kind, seed, MIB, 512);
    let data = noise_of(&mut desk, MIB / 2);
    desk.write(4096, &data, false);
    desk.stop();
    desk.home.ok(&["snapshot", "create", "disk@then"]);
    let door = (kind.open)(&desk.home, "disk@then");
    (desk.hand, desk.door) = (Some(door.hand()), Some(door));
    desk.all_is_right();
    let hand = desk.hand();
    assert_eq!(hand.write(0, &[1; 4096], false), Err(kind.read_only));
    assert_eq!(hand.write(4096, &[1; 512], true), Err(kind.read_only));
    assert_eq!(hand.discard(0, 8192), Err(kind.read_only));
    assert_eq!(hand.zero(0, 8192), Err(kind.read_only));
    assert_eq!(hand.flush(), Ok(()));
    desk.all_is_right();
    desk.stop();
}

/// The server is killed, again and again: what was flushed is there.
pub fn kills(kind: Kind, seed: u64, amount: usize) {
    let mut desk = Desk::new(kind, seed, 4 * MIB, 512);
    let mut lost = 0;
    for round in 0..3 {
        for _ in 0..amount {
            one(&mut desk);
        }
        desk.flush();
        for _ in 0..amount / 2 * round {
            one(&mut desk);
        }
        desk.hand = None;
        desk.door.take().unwrap().kill();
        desk.open();
        let found = desk.whole_image();
        lost += desk.oracle.crashed(&found);
    }
    println!("{}: {lost} sectors that were not flushed were lost in three kills", kind.name);
    assert!(!kind.outlives || lost == 0, "{lost} sectors were lost");
    desk.stop();
}

/// A volume grows while it is in use.
pub fn grows(kind: Kind, seed: u64) {
    let mut desk = Desk::new(kind, seed, MIB, 512);
    let data = noise_of(&mut desk, 8192);
    desk.write(MIB - 8192, &data, false);
    desk.home.ok(&["resize", "disk", "--size", "3M"]);
    desk.oracle.grow(3 * MIB);
    if !kind.growth_is_seen {
        desk.hand = Some(desk.door.as_ref().unwrap().hand());
    }
    until("it is seen to be larger", || desk.hand().size() == 3 * MIB as u64);
    desk.write(MIB - 4096, &data, false);
    desk.write(3 * MIB - 8192, &data, true);
    desk.all_is_right();
    desk.stop();
    desk.open();
    desk.all_is_right();
    desk.stop();
}
