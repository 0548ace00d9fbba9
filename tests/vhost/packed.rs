//! What only packed rings have: any number of entries, places that go round, numbers of the guest's own;
//! and layouts that close the ring, of one kind at a time.

use super::device::{Gate, Served, ram};
use super::master::driver_ring::{
    INDIRECT, Link, NEXT, PACKED_START, Place, WRITABLE, packed_descriptor,
};
use super::master::{Guest, IO_ERROR, Master, OK, PACKED, Request, Wishes};
use std::time::{Duration, Instant};
use vhost::VhostBackend;

/// Rings of sizes that are no power of two, gone round many times with answers in any order.
#[test]
fn rings_of_any_size_go_round() {
    for entries in [3, 7, 12, 255] {
        let served = Served::new(Gate::new(4096));
        let mut master = Master::begin(&served.path, Wishes { entries, ..PACKED });
        let at_once = (entries / 3).min(16);
        for round in 0..200u64 {
            // Reads are answered before the writes, which wait.
            let write = master.submit(0, &Request::write(round, &[round as u8; 512]));
            for _ in 1..at_once {
                master.submit(0, &Request::read(0, 512));
            }
            master.kick(0);
            for _ in 1..at_once {
                let (slot, written) = master.wait(0);
                assert_eq!((master.outcome(0, slot, 0).0, written), (OK, 513));
                assert_ne!(slot, write);
            }
            served.disk.inner().open.add_permits(1);
            assert_eq!(master.wait(0), (write, 1));
            assert_eq!(master.outcome(0, write, 0).0, OK);
        }
        let end = master.rings[0].end();
        assert_eq!(master.frontend.get_vring_base(0).unwrap(), end, "{entries} entries");
        master.start_ring(0, end);
        for sector in 0..200 {
            assert_eq!(master.read(sector, 512), [sector as u8; 512]);
        }
        assert_eq!(served.frontend.status().broken_rings, 0);
    }
}

/// The guest comes back again and again, at every place of the ring, with the same stale idea of where
/// its device stood.
#[test]
fn a_guest_comes_back_at_every_place_of_its_ring() {
    let served = Served::new(Gate::new(64));
    let mut master = Master::begin(&served.path, Wishes { entries: 7, ..PACKED });
    for round in 0..30u8 {
        let write = master.submit(0, &Request::write(u64::from(round), &[round; 512]));
        let read = master.submit(0, &Request::read(63, 512));
        master.kick(0);
        // Its answer is written over a descriptor of the write.
        assert_eq!(master.wait(0), (read, 513));
        master = master.come_back(&served.path).map_err(|(e, _)| e).unwrap();
        assert_eq!(master.rings[0].told, PACKED_START);
        served.disk.inner().open.add_permits(1);
        assert_eq!(master.wait(0), (write, 1));
        assert_eq!(master.read(u64::from(round), 512), [round; 512]);
    }
    let status = served.frontend.status();
    assert_eq!((status.resubmitted, status.errors, status.broken_rings), (30, 0, 0));
}

/// A ring that is not served yet, of 16 entries.
fn at_rest(served: &Served<objblk::device::ram::RamDisk>) -> Master {
    let wishes = Wishes { entries: 16, inflight: false, ..PACKED };
    let master = Master::begin_when_free(&served.path, wishes);
    assert_eq!(master.frontend.get_vring_base(0).unwrap(), PACKED_START);
    // A header of a write, one of a read.
    master.guest.put(HEADER, &[&[1], &[0; 15][..]].concat());
    master.guest.put(READ_HEADER, &[0; 16]);
    master
}

const HEADER: u64 = 1 << 20;
const READ_HEADER: u64 = HEADER + 64;
const STATUS: u64 = HEADER + 128;
const DATA: u64 = HEADER + 4096;
const TABLE: u64 = HEADER + 2048;

/// Puts descriptors, with all of their flags, at the ring's start.
fn lay(guest: &Guest, table: u64, id: u16, links: &[Link]) {
    for (index, (at, len, flags)) in (0..).zip(links) {
        packed_descriptor(&guest.memory, table, index, (*at, *len), id, *flags);
    }
}

#[test]
fn layouts_that_make_no_sense_close_the_ring() {
    let served = Served::new(ram(64));
    let mut master = at_rest(&served);
    let yes = Place::of(PACKED_START).available();
    let endless = vec![(DATA, 512, yes | NEXT); 16];
    let indirect = |len| vec![(TABLE, len, yes | INDIRECT)];
    let layouts: [(&str, Vec<Link>); 9] = [
        ("a chain without an end", endless),
        ("available in part", vec![(HEADER, 16, yes | NEXT), (STATUS, 1, WRITABLE)]),
        ("no place for the status", vec![(HEADER, 16, yes)]),
        ("a status that is nowhere", vec![(HEADER, 16, yes | NEXT), (1 << 40, 1, yes | WRITABLE)]),
        ("a table beside others", vec![(HEADER, 16, yes | NEXT), (TABLE, 32, yes | INDIRECT)]),
        ("a table and more", vec![(TABLE, 32, yes | INDIRECT | NEXT), (STATUS, 1, yes | WRITABLE)]),
        ("a table of no whole entries", indirect(33)),
        ("an empty table", indirect(0)),
        ("a table of too many entries", indirect(16 * 1025)),
    ];
    for (number, (what, links)) in layouts.iter().enumerate() {
        lay(&master.guest, master.rings[0].table(), 0, &[(0, 0, 0); 16]);
        lay(&master.guest, master.rings[0].table(), 0, links);
        master.start_ring(0, PACKED_START);
        let begun = Instant::now();
        while master.rings[0].error.read().is_err() {
            assert!(begun.elapsed() < Duration::from_secs(10), "{what}: the VMM is not told");
            std::thread::yield_now();
        }
        assert_eq!(served.frontend.status().broken_rings, number as u64 + 1, "{what}");
        assert_eq!(master.frontend.get_vring_base(0).unwrap(), PACKED_START, "{what}: taken");
    }
    // Where the VMM says that it begins: places that there are not, or too far apart.
    let wrong = [0x8010_8010, 0x8000_8010, 0x0000_8001, 0x8005_8004, 0x8000_0001];
    for (number, base) in wrong.into_iter().enumerate() {
        master.start_ring(0, base);
        assert_eq!(master.frontend.get_vring_base(0).unwrap(), base);
        let broken = layouts.len() + number + 1;
        assert_eq!(served.frontend.status().broken_rings, broken as u64, "{base:#x}");
    }
    let status = served.frontend.status();
    assert_eq!((status.reads, status.writes, status.errors), (0, 0, 0));
}

/// Their numbers are the guest's; what is in a table is told by its length alone.
#[test]
fn odd_layouts_are_served() {
    let served = Served::new(ram(64));
    let mut master = at_rest(&served);
    let (table, yes) = (master.rings[0].table(), Place::of(PACKED_START).available());
    master.guest.put(DATA, &[7; 512]);
    let write = [(HEADER, 16, NEXT | yes), (DATA, 512, NEXT | yes), (STATUS, 1, WRITABLE | yes)];
    lay(&master.guest, table, 0xffff, &write);
    // Flags in a table that mean nothing there; the same number again.
    let read = [
        (READ_HEADER, 16, 0),
        (DATA + 512, 512, WRITABLE | NEXT),
        (STATUS + 1, 1, WRITABLE | INDIRECT),
    ];
    lay(&master.guest, TABLE, 9, &read);
    packed_descriptor(&master.guest.memory, table, 3, (TABLE, 48), 0xffff, INDIRECT | yes);
    // A request whose data are nowhere has an answer of its own.
    packed_descriptor(&master.guest.memory, table, 4, (HEADER, 16), 1, NEXT | yes);
    packed_descriptor(&master.guest.memory, table, 5, (1 << 50, 512), 1, NEXT | yes);
    packed_descriptor(&master.guest.memory, table, 6, (STATUS + 2, 1), 1, WRITABLE | yes);
    master.guest.put(STATUS, &[0xff; 3]);
    master.start_ring(0, PACKED_START);
    let begun = Instant::now();
    while master.guest.get(STATUS, 3).contains(&0xff) {
        assert!(begun.elapsed() < Duration::from_secs(10), "not answered");
        std::thread::yield_now();
    }
    assert_eq!(master.frontend.get_vring_base(0).unwrap(), 0x8007_8007);
    assert_eq!(master.guest.get(STATUS, 3), [OK, OK, IO_ERROR]);
    assert_eq!(master.guest.get(DATA + 512, 512), [7; 512]);
    let answer = |index: u64| {
        let raw = master.guest.get(table + 16 * index + 8, 8);
        let word = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
        (word(4), word(0), word(6))
    };
    let used = 1 << 7 | 1 << 15 | WRITABLE;
    assert_eq!(
        (answer(0), answer(3), answer(4)),
        ((0xffff, 1, used), (0xffff, 513, used), (1, 1, used))
    );
    let status = served.frontend.status();
    assert_eq!((status.reads, status.writes, status.errors, status.broken_rings), (1, 1, 1, 0));
}
