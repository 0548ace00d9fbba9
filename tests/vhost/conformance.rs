//! What the virtio and vhost-user specifications say, request by request.

use super::device::{Gate, Served, ram};
use super::master::driver_ring::WISH_NONE;
use super::master::{
    Answer, DISCARD, F_DISCARD, F_EVENT_IDX, F_FLUSH, F_RO, FLUSH, Guest, IDENTIFY, IO_ERROR,
    Master, OK, PACKED, Request, SPLIT, UNSUPPORTED, WRITE, Wishes, ZERO,
};
use std::io::Read;
use std::time::{Duration, Instant};

/// Once with rings of either shape.
macro_rules! of_both_shapes {
    ($($name:ident,)*) => {
        mod split {
            $(#[test] fn $name() { super::$name(super::SPLIT); })*
        }
        mod packed {
            $(#[test] fn $name() { super::$name(super::PACKED); })*
        }
    };
}

of_both_shapes! {
    reads_and_writes_with_event_indices,
    reads_and_writes_without_event_indices,
    ranges_are_cleared,
    several_queues_at_once,
    nobody_is_woken_in_vain,
    nobody_is_woken_who_did_not_wish,
    a_ring_that_is_stopped_answers_what_it_has_taken,
    a_guest_that_comes_back_finds_its_requests_answered,
    a_disk_that_ends_answers_first,
}

/// Bytes that differ everywhere.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| next()).take(len).collect()
}

fn ranges(ranges: &[(u64, u32, u32)]) -> Vec<u8> {
    let raw = ranges.iter().flat_map(|(sector, count, flags)| {
        let count = count.to_le_bytes().into_iter().chain(flags.to_le_bytes());
        sector.to_le_bytes().into_iter().chain(count)
    });
    raw.collect()
}

/// Reads and writes in every shape that a driver may give them.
fn shapes(wishes: Wishes) {
    let served = Served::new(ram(8192));
    let mut master = Master::begin(&served.path, wishes);
    assert_eq!(master.is_packed(), wishes.packed);
    let mut sector = 0;
    for (i, len) in [512, 4096, 5120, 65536, 300 << 10].into_iter().enumerate() {
        for (pieces, indirect) in [(1, false), (5, false), (1, true), (100, true)] {
            let data = pattern(sector + 1, len);
            let write = Request { pieces, indirect, ..Request::write(sector, &data) };
            assert_eq!(master.ask(0, &write), Answer { status: OK, written: 1, data: vec![] });
            let read = Request { pieces, indirect, ..Request::read(sector, len) };
            let answer = master.ask(0, &read);
            assert_eq!((answer.status, answer.written), (OK, len as u32 + 1));
            assert!(answer.data == data, "{i} {len} {pieces} {indirect}");
            sector = (sector + len as u64 / 512) % 4096;
        }
    }
    assert_eq!(served.disk.inner().flushes(), 0);
    master.flush();
    assert_eq!(served.disk.inner().flushes(), 1);
    let status = served.frontend.status();
    assert_eq!((status.writes, status.reads, status.flushes), (20, 20, 1));
    assert_eq!((status.errors, status.waited, status.inline), (0, 0, 41));
    assert_eq!(status.process, Some(std::process::id() as i32));
    drop(master);
    served.frontend.stop().unwrap();
}

fn reads_and_writes_with_event_indices(wishes: Wishes) {
    shapes(wishes);
}

fn reads_and_writes_without_event_indices(wishes: Wishes) {
    shapes(Wishes { without: F_EVENT_IDX, ..wishes });
}

fn ranges_are_cleared(wishes: Wishes) {
    let served = Served::new(ram(1024));
    let mut master = Master::begin(&served.path, wishes);
    let data = pattern(3, 64 << 10);
    master.write(0, &data);
    let some = ranges(&[(1, 2, 0), (8, 1, 0), (5, 0, 0)]);
    let discard = Request { out: &some, ..Request::new(DISCARD, 0) };
    assert_eq!(master.ask(0, &discard).status, OK);
    let some = ranges(&[(16, 4, 0), (32, 8, 1)]);
    let zero = Request { out: &some, ..Request::new(ZERO, 0) };
    assert_eq!(master.ask(0, &zero).status, OK);
    let mut expected = data;
    for (at, len) in [(1, 2), (8, 1), (16, 4), (32, 8)] {
        expected[at * 512..(at + len) * 512].fill(0);
    }
    assert!(master.read(0, expected.len()) == expected);
    for (kind, range, status) in [
        (DISCARD, (0, 1, 1), UNSUPPORTED),
        (ZERO, (0, 1, 2), UNSUPPORTED),
        (ZERO, (1023, 2, 0), IO_ERROR),
        (DISCARD, (u64::MAX, 1, 0), IO_ERROR),
        (DISCARD, (u64::MAX / 512, u32::MAX, 0), IO_ERROR),
    ] {
        let out = ranges(&[range]);
        let request = Request { out: &out, ..Request::new(kind, 0) };
        assert_eq!(master.ask(0, &request).status, status, "{kind} {range:?}");
    }
    for out in [vec![], vec![0; 15], vec![0; 16 * 17]] {
        let request = Request { out: &out, ..Request::new(DISCARD, 0) };
        assert_eq!(master.ask(0, &request).status, IO_ERROR, "{} bytes", out.len());
    }
    assert!(master.read(0, expected.len()) == expected, "a refused range was cleared");
}

#[test]
fn identity_and_what_is_not_known() {
    let served = Served::new(ram(64));
    let mut master = Master::begin(&served.path, Wishes::default());
    let whole = master.ask(0, &Request { back: 20, ..Request::new(IDENTIFY, 0) });
    assert_eq!((whole.status, whole.written), (OK, 21));
    assert_eq!(whole.data, b"0123456789abcdefghij");
    let short = master.ask(0, &Request { back: 7, ..Request::new(IDENTIFY, 0) });
    assert_eq!((short.status, &short.data[..]), (OK, &b"0123456"[..]));
    for kind in [2, 3, 7, 14, 0x8000_0000, u32::MAX] {
        assert_eq!(master.ask(0, &Request::new(kind, 0)).status, UNSUPPORTED, "{kind}");
    }
    for (sector, len) in [(64, 512), (63, 1024), (u64::MAX, 512), (0, 511), (0, 513)] {
        let read = master.ask(0, &Request::read(sector, len));
        assert_eq!((read.status, read.written), (IO_ERROR, 1), "{sector} {len}");
    }
    assert_eq!(master.ask(0, &Request::read(0, 0)).status, OK, "nothing is asked for");
    assert_eq!(served.frontend.status().errors, 11);
}

#[test]
fn a_disk_that_can_only_be_read() {
    let served = Served::new(ram(64).read_only());
    let mut master = Master::begin(&served.path, Wishes::default());
    assert_eq!(master.features & (F_RO | F_DISCARD), F_RO);
    assert!(master.read(0, 4096).iter().all(|b| *b == 0));
    assert_eq!(master.ask(0, &Request::write(0, &[1; 512])).status, IO_ERROR);
    let some = ranges(&[(0, 1, 0)]);
    for kind in [DISCARD, ZERO] {
        assert_eq!(
            master.ask(0, &Request { out: &some, ..Request::new(kind, 0) }).status,
            IO_ERROR
        );
    }
    assert_eq!(master.ask(0, &Request::new(FLUSH, 0)).status, OK);
    assert!(master.read(0, 512).iter().all(|b| *b == 0));
}

/// A guest that cannot flush must not need to.
#[test]
fn writes_are_durable_at_once_for_a_guest_that_cannot_flush() {
    let served = Served::new(ram(64));
    let wishes = Wishes { without: F_FLUSH, ..Wishes::default() };
    let mut master = Master::begin(&served.path, wishes);
    master.write(0, &[1; 512]);
    assert_eq!(served.disk.inner().flushes(), 1);
    let some = ranges(&[(0, 1, 0)]);
    assert_eq!(master.ask(0, &Request { out: &some, ..Request::new(ZERO, 0) }).status, OK);
    assert_eq!(served.disk.inner().flushes(), 2);
    assert_eq!(master.ask(0, &Request { out: &some, ..Request::new(DISCARD, 0) }).status, OK);
    assert_eq!(served.disk.inner().flushes(), 3);
}

fn several_queues_at_once(wishes: Wishes) {
    let served = Served::new(ram(65536));
    assert_eq!(served.frontend.user(), None);
    let mut master = Master::begin(&served.path, Wishes { queues: 4, ..wishes });
    assert_eq!(served.frontend.status().rings, 4);
    assert!(served.frontend.user().unwrap().contains("virtual machine"));
    for round in 0..50u64 {
        let place = |queue: u64, slot: u64| (queue * 16 + slot) * 64 + round % 7 * 8;
        let mut wanted = Vec::new();
        for queue in 0..4 {
            for slot in 0..16 {
                let data = pattern(round * 64 + queue * 16 + slot + 1, 4096);
                master.submit(queue as usize, &Request::write(place(queue, slot), &data));
                wanted.push((queue, slot, data));
            }
            master.kick(queue as usize);
        }
        for queue in 0..4 {
            for _ in 0..16 {
                let (slot, _) = master.wait(queue);
                assert_eq!(master.outcome(queue, slot, 0).0, OK);
            }
        }
        for (queue, slot, data) in wanted {
            // By another queue than it was written.
            let answer =
                master.ask((queue as usize + 1) % 4, &Request::read(place(queue, slot), 4096));
            assert!(answer.status == OK && answer.data == data, "{round} {queue} {slot}");
        }
    }
}

/// The driver is told of answers from where it asked to be, and asked for kicks only when the device
/// sleeps.
fn nobody_is_woken_in_vain(wishes: Wishes) {
    let served = Served::new(ram(64));
    let mut master = Master::begin(&served.path, wishes);
    // The driver wants to hear of the fourth answer.
    master.rings[0].wish_call(&master.guest.memory, 4, 3);
    for i in 0..4 {
        master.read(0, 512);
        if i < 3 {
            assert!(master.rings[0].call.read().is_err(), "called for answer {i}");
        }
    }
    let begun = Instant::now();
    while master.rings[0].call.read().is_err() {
        assert!(begun.elapsed() < Duration::from_secs(10), "never called");
        std::thread::yield_now();
    }
    // The device went to sleep, so it must be asked to be woken.
    std::thread::sleep(Duration::from_millis(50));
    master.submit(0, &Request::read(0, 512));
    assert!(master.kick(0), "a device that sleeps wants a kick");
    master.wait(0);
}

/// Without event indices, too: each side says whether it wants to be woken at all.
fn nobody_is_woken_who_did_not_wish(wishes: Wishes) {
    let served = Served::new(ram(64));
    let wishes = Wishes { without: F_EVENT_IDX, ..wishes };
    let mut master = Master::begin(&served.path, wishes);
    master.read(0, 512);
    let called = |master: &mut Master| master.rings[0].call.read().is_ok();
    let begun = Instant::now();
    while !called(&mut master) {
        assert!(begun.elapsed() < Duration::from_secs(10), "never called");
        std::thread::yield_now();
    }
    let never = if wishes.packed { WISH_NONE } else { 1 };
    master
        .guest
        .put(master.rings[0].avail(), &never.to_le_bytes()[..if wishes.packed { 4 } else { 2 }]);
    for _ in 0..4 {
        master.read(0, 512);
    }
    std::thread::sleep(Duration::from_millis(50));
    assert!(!called(&mut master), "called against its wish");
    master.submit(0, &Request::read(0, 512));
    assert!(master.kick(0), "a device that sleeps wants a kick");
    master.wait(0);
}

#[test]
fn the_configuration_and_its_change() {
    let served = Served::new(ram(2048));
    let mut master = Master::begin(&served.path, Wishes::default());
    assert_eq!(master.capacity(), 1 << 20);
    assert_eq!(master.config(20, 4), 512u32.to_le_bytes());
    let segments = u32::from_le_bytes(master.config(12, 4).try_into().unwrap());
    assert!(segments >= 62);
    assert_eq!(master.frontend_queues(), 64);
    served.frontend.resized();
    let mut message = [0; 12];
    master.channel.read_exact(&mut message).unwrap();
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
}

/// Requests that wait are finished while their ring is being stopped, and no others are begun.
fn a_ring_that_is_stopped_answers_what_it_has_taken(wishes: Wishes) {
    let served = Served::new(Gate::new(64));
    let mut master = Master::begin(&served.path, wishes);
    for sector in 0..3 {
        master.submit(0, &Request::write(sector, &[sector as u8 + 1; 512]));
    }
    master.kick(0);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(master.poll(0), None);
    let disk = served.disk.clone();
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        disk.inner().open.add_permits(3);
    });
    use vhost::VhostBackend;
    let base = master.frontend.get_vring_base(0).unwrap();
    assert_eq!(base, master.rings[0].end());
    assert_eq!(base, if wishes.packed { 0x8009_8009 } else { 3 });
    late.join().unwrap();
    for _ in 0..3 {
        let (slot, _) = master.poll(0).expect("answered before the ring was given back");
        assert_eq!(master.outcome(0, slot, 0).0, OK);
    }
    // It goes on where it stood.
    master.submit(0, &Request::read(2, 512));
    master.kick(0);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(master.poll(0), None, "a ring that was given back is served");
    master.start_ring(0, base);
    let (slot, _) = master.wait(0);
    assert_eq!(master.outcome(0, slot, 512), (OK, vec![3; 512]));
    assert!(served.frontend.status().waited >= 3);
}

/// What was in flight when the connection broke is done once more, once, for the guest that comes
/// back.
fn a_guest_that_comes_back_finds_its_requests_answered(wishes: Wishes) {
    let served = Served::new(Gate::new(64));
    let mut master = Master::begin(&served.path, Wishes { queues: 2, ..wishes });
    for sector in 0..5 {
        let queue = sector as usize % 2;
        master.submit(queue, &Request::write(sector, &[sector as u8 + 1; 512]));
        master.kick(queue);
    }
    // What comes behind them is answered, so they are in flight.
    for queue in 0..2 {
        assert_eq!(master.ask(queue, &Request::read(60, 512)).status, OK);
    }
    let mut master = master.come_back(&served.path).map_err(|(e, _)| e).unwrap();
    assert_eq!(master.poll(0).or(master.poll(1)), None);
    served.disk.inner().open.add_permits(5);
    let mut answers = Vec::new();
    for queue in [0, 0, 0, 1, 1] {
        let (slot, _) = master.wait(queue);
        assert_eq!(master.outcome(queue, slot, 0).0, OK);
        answers.push((queue, slot));
    }
    answers.sort_unstable();
    answers.dedup();
    assert_eq!(answers.len(), 5);
    for sector in 0..5 {
        assert_eq!(master.read(sector, 512), vec![sector as u8 + 1; 512]);
    }
    assert_eq!(served.frontend.status().resubmitted, 5);
    assert_eq!(served.disk.inner().open.available_permits(), 0);
}

#[test]
fn one_guest_at_a_time() {
    let served = Served::new(ram(64));
    let mut first = Master::begin(&served.path, Wishes::default());
    let second = Master::connect(&served.path, Guest::new(), Wishes::default());
    assert!(second.is_err(), "two guests write to one disk");
    first.write(0, &[9; 512]);
    drop(first);
    let mut third = Master::begin_when_free(&served.path, Wishes::default());
    assert_eq!(third.capacity(), 64 * 512);
    assert_eq!(served.frontend.status().connections, 2);
    served.frontend.stop().unwrap();
    assert!(!served.path.exists());
    assert!(third.frontend_is_gone());
}

/// Also for a VMM that notes nothing of what is in flight.
fn a_disk_that_ends_answers_first(wishes: Wishes) {
    let served = Served::new(Gate::new(64));
    let wishes = Wishes { inflight: false, ..wishes };
    let mut master = Master::begin(&served.path, wishes);
    let slot = master.submit(0, &Request { out: &[1; 512], ..Request::new(WRITE, 0) });
    master.kick(0);
    std::thread::sleep(Duration::from_millis(100));
    let disk = served.disk.clone();
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        disk.inner().open.add_permits(1);
    });
    served.frontend.stop().unwrap();
    late.join().unwrap();
    assert_eq!(master.poll(0), Some((slot, 1)));
    assert_eq!(master.outcome(0, slot, 0).0, OK, "it had time to be answered");
}
