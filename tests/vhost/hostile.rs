//! Guests and VMMs that mean harm: whatever they write, the process lives, does not grow, and serves
//! the next guest as if nothing had been. OBJBLK_FULL=1 takes ten times as many.

use super::device::{Served, ram};
use super::master::driver_ring::{
    AVAIL, INDIRECT, NEXT, PACKED_START, Place, USED, WRITABLE, packed_descriptor,
};
use super::master::{ENTRIES, Guest, MEMORY, Master, PACKED, Wishes};
use objblk::device::ram::RamDisk;
use rand::prelude::IndexedRandom;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

fn rounds(usual: u64) -> u64 {
    if std::env::var_os("OBJBLK_FULL").is_some() { 10 * usual } else { usual }
}

/// Kilobytes of memory of this process, and its threads and descriptors.
fn cost() -> (u64, u64, usize) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let files = std::fs::read_dir("/proc/self/fd").unwrap().count();
    (field("VmRSS:"), field("Threads:"), files)
}

/// The process is as it was, but for a few megabytes.
#[track_caller]
fn assert_no_growth(before: (u64, u64, usize)) {
    let begun = Instant::now();
    loop {
        let now = cost();
        let same = now.0 < before.0 + (24 << 10) && now.1 <= before.1 && now.2 <= before.2;
        if same {
            println!("{before:?} before, {now:?} after");
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{before:?} before, {now:?} after");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The disk still works, for a guest that behaves.
fn assert_alive(served: &Served<RamDisk>) {
    let mut master = Master::begin_when_free(&served.path, Wishes::default());
    master.write(1, &[0x5a; 4096]);
    assert!(master.read(1, 4096).iter().all(|b| *b == 0x5a));
}

/// An address that is worth a try.
fn address(random: &mut StdRng) -> u64 {
    match random.random_range(0..10) {
        0 => random.random(),
        1 => u64::MAX - random.random_range(0..4096),
        2 => MEMORY - random.random_range(0..64),
        3 => MEMORY + random.random_range(0..4096),
        // The rings themselves.
        4 => random.random_range(0..0x6000),
        _ => (1 << 20) + random.random_range(0..8u64 << 20),
    }
}

fn length(random: &mut StdRng) -> u32 {
    match random.random_range(0..10) {
        0 => random.random(),
        1 => 0,
        2 => u32::MAX,
        3 => 16 * random.random_range(0..2000),
        4 => 512 * random.random_range(0..20000),
        5 => 16,
        6 => 1,
        _ => 512 * random.random_range(1..9),
    }
}

fn flags(random: &mut StdRng) -> u16 {
    match random.random_range(0..8) {
        0 => random.random(),
        1 => INDIRECT,
        2 => INDIRECT | NEXT,
        3 => WRITABLE,
        4 | 5 => WRITABLE | NEXT,
        _ => NEXT,
    }
}

/// Fills a table with descriptors of every kind.
fn scribble(master: &Master, random: &mut StdRng, table: u64, entries: u16) {
    for index in 0..entries {
        let place = (address(random), length(random));
        let next = match random.random_range(0..6) {
            0 => random.random(),
            1 => index,
            _ => random.random_range(0..entries),
        };
        master.descriptor(table, index, place, flags(random), next);
    }
}

/// A header of a request, mostly of one that is known.
fn header(random: &mut StdRng) -> Vec<u8> {
    let kind = *[0u32, 1, 4, 8, 11, 13, 0xffff, 2].choose(random).unwrap();
    let sector: u64 = match random.random_range(0..4) {
        0 => random.random(),
        1 => u64::MAX,
        _ => random.random_range(0..100),
    };
    [kind.to_le_bytes(), [0; 4]].concat().into_iter().chain(sector.to_le_bytes()).collect()
}

/// One ring of a hostile guest, in whatever state. True where the connection survived it.
fn one_layout(master: &mut Master, random: &mut StdRng) -> bool {
    let (table, used) = (master.rings[0].table(), master.rings[0].used());
    let entries = *[ENTRIES, 16, 16, 16, 8, 4].choose(random).unwrap();
    scribble(master, random, table, entries);
    // Places that tables and headers may be found at.
    for _ in 0..4 {
        let at = (1 << 20) + 16 * random.random_range(0..1000u64);
        scribble(master, random, at, 16);
        master.guest.put((1 << 20) + 512 * random.random_range(0..64u64), &header(random));
    }
    let several = random.random_range(1..12);
    let avail = master.rings[0].avail();
    for slot in 0..several {
        let head: u16 = match random.random_range(0..8) {
            0 => random.random(),
            _ => random.random_range(0..entries),
        };
        // Some of them good: read or write, beside all others.
        if random.random_bool(0.3) && head < entries - 3 {
            let at = (2 << 20) + 4096 * u64::from(slot);
            master.guest.put(at, &header(random));
            master.descriptor(table, head, (at, 16), NEXT, head + 1);
            let data = if random.random_bool(0.5) { NEXT } else { NEXT | WRITABLE };
            let place = match random.random_bool(0.6) {
                true => {
                    ((4 << 20) + 8 * random.random_range(0..4096), 512 * random.random_range(1..9))
                }
                false => (address(random), length(random)),
            };
            master.descriptor(table, head + 1, place, data, head + 2);
            master.descriptor(table, head + 2, (at + 32, 1), WRITABLE, 0);
        }
        master.guest.put(avail + 4 + 2 * u64::from(slot), &head.to_le_bytes());
    }
    let index: u16 = match random.random_range(0..12) {
        0 => random.random(),
        _ => several,
    };
    master.guest.put(avail, &[0; 2]);
    master.guest.put(avail + 2, &index.to_le_bytes());
    master.guest.put(used, &[0; 4]);
    master.set_base(0, 0) && run_ring(master, entries, random)
}

/// A packed ring of a hostile guest, from where the last one ended.
fn one_packed_layout(master: &mut Master, random: &mut StdRng, base: u32) -> Option<u32> {
    let (table, size) = (master.rings[0].table(), master.rings[0].entries);
    let memory = master.guest.memory.clone();
    let put = |place: Place, data: (u64, u32), id: u16, flags: u16| {
        packed_descriptor(&memory, table, place.index, data, id, flags);
    };
    for index in 0..size {
        let wrap = random.random::<u16>() & (AVAIL | USED);
        let flags = if random.random_bool(0.5) { wrap } else { flags(random) | wrap };
        put(Place { index, wrap: true }, (address(random), length(random)), random.random(), flags);
    }
    for _ in 0..4 {
        let at = (1 << 20) + 16 * random.random_range(0..1000u64);
        scribble(master, random, at, 16);
        master.guest.put((1 << 20) + 512 * random.random_range(0..64u64), &header(random));
    }
    let mut place = Place::of(base);
    for slot in 0..random.random_range(1..8u64) {
        let at = (2 << 20) + 4096 * slot;
        let id = if random.random_bool(0.5) { random.random() } else { slot as u16 };
        // Some of them good: read or write, beside all others.
        let links = if random.random_bool(0.5) {
            master.guest.put(at, &header(random));
            let data = if random.random_bool(0.5) { NEXT } else { NEXT | WRITABLE };
            let far = (address(random), length(random));
            let near =
                ((4 << 20) + 8 * random.random_range(0..4096), 512 * random.random_range(1..9));
            let middle = if random.random_bool(0.7) { near } else { far };
            vec![((at, 16), NEXT), (middle, data), ((at + 32, 1), WRITABLE)]
        } else {
            let count = random.random_range(1..5);
            let any = |_| ((address(random), length(random)), flags(random) & !(AVAIL | USED));
            (0..count).map(any).collect()
        };
        for (data, flags) in links {
            let round = match random.random_range(0..40) {
                0 => random.random::<u16>() & (AVAIL | USED),
                _ => place.available(),
            };
            put(place, data, id, flags | round);
            place = place.next(size);
        }
    }
    // Mostly an end, which is where the device finds what it has used, or what is not there yet.
    if random.random_bool(0.9) {
        put(place, (0, 0), 0, if place.wrap { USED } else { AVAIL });
    }
    let driver = master.rings[0].avail();
    master.guest.put(driver, &random.random::<u32>().to_le_bytes());
    let told = if random.random_range(0..50) == 0 { random.random() } else { base };
    if !master.set_base(0, told) || !run_ring(master, size, random) {
        return None;
    }
    let ended = master.frontend.get_vring_base(0).ok()?;
    Some(if Place::of(ended).index < size { ended } else { base })
}

#[test]
fn ten_thousand_hostile_packed_rings() {
    let seed = std::env::var("OBJBLK_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    println!("the same rings again: OBJBLK_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let served = Served::new(ram(8192));
    let fresh = |round: u64| {
        // Half of them noted.
        let entries = [256, 16, 7, 64][round as usize % 4];
        let wishes = Wishes { inflight: round % 8 < 4, entries, ..PACKED };
        let master = Master::begin_when_free(&served.path, wishes);
        assert_eq!(master.frontend.get_vring_base(0).unwrap(), PACKED_START);
        master
    };
    let (mut master, mut base) = (fresh(0), PACKED_START);
    let (mut before, mut lost) = (cost(), 0);
    let all = rounds(10_000);
    for round in 0..all {
        let ended = one_packed_layout(&mut master, &mut random, base);
        lost += u64::from(ended.is_none());
        base = match ended {
            Some(base) if round % 50 != 49 => base,
            _ => {
                drop(master);
                master = fresh(round / 50);
                PACKED_START
            }
        };
        if round == all / 10 {
            before = cost();
        }
    }
    let status = served.frontend.status();
    println!("{lost} of {all} connections lost; {status:?}");
    assert!(status.broken_rings > all / 10 && status.errors > all / 10, "they were not hostile");
    assert!(status.reads.min(status.writes) > all / 250, "nothing of it was a request");
    assert_eq!(lost, 0, "a ring that makes no sense is not the VMM's fault");
    assert_no_growth(before);
    drop(master);
    assert_alive(&served);
    served.frontend.stop().unwrap();
}

/// Gives the ring to the device and takes it back, which waits until all is answered.
fn run_ring(master: &mut Master, entries: u16, random: &mut StdRng) -> bool {
    let front = &mut master.frontend;
    let ring = &master.rings[0];
    let done = (|| {
        front.set_vring_num(0, entries)?;
        front.set_vring_kick(0, &ring.kick)?;
        front.set_vring_enable(0, true)?;
        ring.kick.write(1).unwrap();
        if random.random_bool(0.1) {
            // Without waiting for it to be looked at.
            front.set_vring_enable(0, false)?;
        } else {
            std::thread::yield_now();
        }
        front.get_vring_base(0)
    })();
    done.is_ok()
}

/// A guest whose ring is not served yet.
fn at_rest(served: &Served<RamDisk>, inflight: bool) -> Master {
    let wishes = Wishes { inflight, ..Wishes::default() };
    let master = Master::begin_when_free(&served.path, wishes);
    assert_eq!(master.frontend.get_vring_base(0).unwrap(), 0);
    master
}

#[test]
fn ten_thousand_hostile_rings() {
    let seed = std::env::var("OBJBLK_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    println!("the same rings again: OBJBLK_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let served = Served::new(ram(8192));
    let mut master = at_rest(&served, true);
    let (mut before, mut lost) = (cost(), 0);
    let all = rounds(10_000);
    for round in 0..all {
        let survived = one_layout(&mut master, &mut random);
        lost += u64::from(!survived);
        // Half of them with what the others have left in the notes of requests in flight.
        if !survived || round == all / 2 {
            drop(master);
            master = at_rest(&served, round < all / 2);
        }
        if round == all / 10 {
            before = cost();
        }
    }
    let status = served.frontend.status();
    println!("{lost} of {all} connections lost; {status:?}");
    assert!(status.broken_rings > all / 10 && status.errors > all / 10, "they were not hostile");
    assert!(status.reads.min(status.writes) > all / 1000, "nothing of it was a request");
    assert_eq!(lost, 0, "a ring that makes no sense is not the VMM's fault");
    assert_no_growth(before);
    drop(master);
    assert_alive(&served);
    served.frontend.stop().unwrap();
}

/// A guest that fills its rings with the largest writes that there are.
#[test]
fn many_large_requests_take_bounded_memory() {
    let served = Served::new(ram(65536).delayed(slow(), Duration::from_millis(2)));
    let mut master = Master::begin(&served.path, Wishes::default());
    let before = cost().0;
    let (table, entries) = (master.rings[0].table(), ENTRIES);
    // Each: header, 7 MiB of data, status.
    for i in 0..entries / 4 {
        let head = 4 * i;
        let at = (40 << 20) + 64 * u64::from(head);
        master.guest.put(at, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        master.descriptor(table, head, (at, 16), NEXT, head + 1);
        master.descriptor(table, head + 1, (1 << 20, 7 << 20), NEXT, head + 2);
        master.descriptor(table, head + 2, (at + 32, 1), WRITABLE, 0);
        master.offer(0, head);
    }
    master.kick(0);
    let mut most = 0;
    let begun = Instant::now();
    while served.frontend.status().writes < u64::from(entries / 4) {
        most = most.max(cost().0.saturating_sub(before));
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", served.frontend.status());
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("{} KiB more at most, for {} MiB in flight", most, 7 * entries / 4);
    // 16 MiB and one request of copies, and of this test's own disk and memory what it touched.
    assert!(most < 100 << 10, "{most} KiB");
    drop(master);
    assert_alive(&served);
}

fn slow() -> tokio::runtime::Handle {
    static RUNTIME: std::sync::LazyLock<tokio::runtime::Runtime> =
        std::sync::LazyLock::new(|| tokio::runtime::Runtime::new().unwrap());
    RUNTIME.handle().clone()
}

/// Messages of every number, with bodies and descriptors of every length.
#[test]
fn messages_that_make_no_sense_end_their_connection_only() {
    let seed = std::env::var("OBJBLK_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    println!("the same messages again: OBJBLK_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let served = Served::new(ram(64));
    assert_alive(&served);
    let before = cost();
    for _ in 0..rounds(1500) {
        let Ok(mut stream) = UnixStream::connect(&served.path) else { panic!("nobody listens") };
        stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        if random.random_bool(0.5) {
            talk(&mut stream, &mut random);
        } else {
            negotiated(stream, &mut random);
        }
    }
    assert_no_growth(before);
    assert_alive(&served);
    served.frontend.stop().unwrap();
}

fn talk(stream: &mut UnixStream, random: &mut StdRng) {
    for _ in 0..random.random_range(1..6) {
        let code: u32 =
            if random.random_bool(0.9) { random.random_range(0..45) } else { random.random() };
        let flags: u32 = *[1, 9, 5, 0, u32::MAX].choose(random).unwrap();
        let len = *[0usize, 8, 8, 16, 40, 40, 4096].choose(random).unwrap();
        let told = if random.random_bool(0.9) { len as u32 } else { random.random() };
        let mut message: Vec<u8> =
            [code, flags, told].iter().flat_map(|w| w.to_ne_bytes()).collect();
        let small = random.random_bool(0.5);
        message.extend((0..len).map(|_| match (small, random.random::<u8>()) {
            (true, byte) => byte & 1,
            (false, byte) => byte,
        }));
        if stream.write_all(&message).is_err() {
            return;
        }
    }
}

/// Calls in an order that nobody meant, with numbers that nobody has.
fn negotiated(stream: UnixStream, random: &mut StdRng) {
    let wishes = Wishes { packed: random.random(), ..Wishes::default() };
    let Ok(mut master) = Master::over(stream, Guest::new(), wishes) else { return };
    let event = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    for _ in 0..20 {
        let number = *[0usize, 1, 63, 64, 200, 255].choose(random).unwrap();
        let some = *[0u16, 1, 2, 3, 256, 1024, 2048, 0x8000, 0xffff].choose(random).unwrap();
        let front = &mut master.frontend;
        let config = vhost::VringConfigData {
            queue_max_size: 32768,
            queue_size: some.min(32768),
            flags: 0,
            desc_table_addr: 0x7f00_0000_0000 + (random.random_range(0..MEMORY + 64) & !0xf),
            used_ring_addr: 0x7f00_0000_0000 + random.random_range(0..MEMORY + 64),
            avail_ring_addr: if random.random_bool(0.1) {
                random.random()
            } else {
                0x7f00_0000_1000
            },
            log_addr: None,
        };
        let ended = match random.random_range(0..11) {
            0 => front.set_vring_num(number, some).is_err(),
            1 => front.set_vring_addr(number, &config).is_err(),
            2 => !master.set_base(number, random.random::<u32>() & 0x8fff_8fff),
            3 => front.set_vring_kick(number, &event).is_err(),
            4 => front.set_vring_call(number, &event).is_err(),
            5 => front.set_vring_enable(number, random.random()).is_err(),
            6 => front.get_vring_base(number).is_err(),
            7 => front.set_features(random.random()).is_err(),
            8 => {
                let told = vhost::vhost_user::message::VhostUserInflight::new(
                    random.random_range(0..100_000),
                    random.random_range(0..2) * 4096,
                    number as u16,
                    some,
                );
                front.set_inflight_fd(&told, event.as_raw_fd()).is_err()
            }
            9 => {
                let told = vhost::vhost_user::message::VhostUserInflight::new(0, 0, some, some);
                front.get_inflight_fd(&told).is_err()
            }
            _ => front.reset_owner().is_err(),
        };
        if ended && random.random_bool(0.5) {
            return;
        }
    }
}
