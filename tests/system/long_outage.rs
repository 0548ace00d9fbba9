//! The way to the store is cut under load, for long, and is there again.

use crate::client::{Client, EIO, Trouble};
use crate::fault_proxy::{Distance, Profile};
use crate::times::Times;
use crate::world::{Served, World, full, seed, until};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// Written before the outage, and more than is cached.
const OLD: u64 = 64;
/// Where the writer writes, in a ring, and how much at once.
const RING: (u64, u64) = (64, 128);
const STEP: u64 = 64 << 10;
/// The writer's pauses: the store keeps up with it, and the dirty budget lasts for some 10 s.
const PACE: Duration = Duration::from_millis(10);
/// Who reads what is not cached.
const READERS: usize = 40;
/// What the tests' machines may need beyond an outage.
const MINUTES: Duration = Duration::from_secs(120);
const TRIP: Duration = Duration::from_millis(25);

/// Far enough away that round trips can be told from each other.
const AWAY: Profile = Profile {
    name: "a server that is 25 ms away",
    faults: &[],
    deck: 1,
    distance: Some(Distance { trip: (25, 26), tail: (1000, 27), rate: 400 << 20 }),
};

fn old(mib: u64) -> Vec<u8> {
    vec![mib as u8 + 1; MIB as usize]
}

/// Sets up a disk of 256 MiB of which the first 64 were written and flushed, and hardly any are
/// cached.
fn disk(args: &[&str]) -> (World, Served) {
    let world = World::s3_through(&AWAY, seed());
    world.run(&["create", "disk", "--size", "256M"]);
    let server = world.serve("disk", &[&["--mem-cache", "8M"], args].concat());
    let mut client = server.connect();
    for mib in 0..OLD {
        client.write(mib * MIB, &old(mib)).unwrap();
    }
    client.flush().unwrap();
    (world, server)
}

/// What step `number` of the writer leaves at its place.
fn step(number: u64) -> (u64, Vec<u8>) {
    let steps = (RING.1 - RING.0) * MIB / STEP;
    let mut data = vec![number as u8; STEP as usize];
    data[..8].copy_from_slice(&number.to_le_bytes());
    (RING.0 * MIB + number % steps * STEP, data)
}

/// Writes until told to stop; returns the longest time of one write.
fn write_on(mut client: Client, written: &AtomicU64, stop: &AtomicBool) -> Duration {
    let mut longest = Duration::ZERO;
    while !stop.load(SeqCst) {
        let (offset, data) = step(written.load(SeqCst));
        let begun = Instant::now();
        client.write(offset, &data).unwrap();
        longest = longest.max(begun.elapsed());
        written.fetch_add(1, SeqCst);
        std::thread::sleep(PACE);
    }
    client.flush().unwrap();
    longest
}

/// Reads what is in memory for as long as the outage lasts.
fn read_cached(client: &mut Client, time: Duration) -> Times {
    let (begun, mut times) = (Instant::now(), Times::default());
    while begun.elapsed() < time {
        let read = Instant::now();
        assert_eq!(client.read(0, 4096).unwrap(), old(0)[..4096]);
        times.add(read.elapsed());
        assert!(read.elapsed() < Duration::from_secs(2), "cached data waits: {times}");
        std::thread::sleep(Duration::from_millis(50));
    }
    times
}

/// The contents of a disk of which the writer made `written` steps.
#[track_caller]
fn verify(client: &mut Client, written: u64) {
    for mib in 0..OLD {
        assert_eq!(client.read(mib * MIB, MIB as usize).unwrap(), old(mib), "MiB {mib}");
    }
    let steps = (RING.1 - RING.0) * MIB / STEP;
    let ring: Vec<u8> =
        (RING.0..RING.1).flat_map(|mib| client.read(mib * MIB, MIB as usize).unwrap()).collect();
    for number in written.saturating_sub(steps)..written {
        let (offset, data) = step(number);
        let at = (offset - RING.0 * MIB) as usize;
        assert!(ring[at..at + data.len()] == data, "step {number}");
    }
}

/// Nothing fails, what is in memory is served, the store is probed by two, and not overrun when it
/// is back.
#[test]
fn s3_long_outage_under_load() {
    let outage = Duration::from_secs(if full() { 600 } else { 12 });
    let (world, server) = disk(&[]);
    let mut cached = server.connect();
    let (written, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let writer = server.connect().patient(outage + MINUTES);
        let writer = scope.spawn(|| write_on(writer, &written, &stop));
        until("the writer is at work", || written.load(SeqCst) > 64);
        cached.read(0, 4096).unwrap();
        let proxy = world.faults();
        proxy.cut(true);
        proxy.traffic();
        let before = written.load(SeqCst);
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                let mut client = server.connect().patient(outage + MINUTES);
                // In chunks of their own, and behind the cache.
                let mib = 1 + reader as u64;
                scope.spawn(move || {
                    assert_eq!(client.read(mib * MIB, 4096).unwrap(), old(mib)[..4096]);
                })
            })
            .collect();
        let times = read_cached(&mut cached, outage);
        let asked = proxy.traffic().arrivals.len();
        let held = (written.load(SeqCst) - before) * STEP / MIB;
        let dirty = world.json(&["status", "disk"])["dirty_bytes"].as_u64().unwrap() / MIB;
        proxy.cut(false);
        let healed = Instant::now();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        let read = healed.elapsed();
        std::thread::sleep(Duration::from_secs(4));
        let traffic = proxy.traffic();
        stop.store(true, SeqCst);
        let longest = writer.join().unwrap();
        let first = traffic.arrivals[0];
        let within =
            |time: Duration| traffic.arrivals.iter().filter(|at| **at - first < time).count();
        println!(
            "{outage:?} of outage: {asked} requests to the dead store; cached reads {times}; {held} MiB \
             taken meanwhile, {dirty} dirty; the longest write {longest:?}\n\
             healed: noticed after {:?}, {READERS} readers served after {read:?}; requests: {} in the first \
             round trip, {} in two, {} in three, {} in the first second, {} at once",
            first.into_std() - healed,
            within(TRIP),
            within(TRIP * 2),
            within(TRIP * 3),
            within(Duration::from_secs(1)),
            traffic.peak
        );
        // Those under way when it began, then two at a time with pauses of 5 s on average.
        let most = 100 + outage.as_secs() as usize * 2;
        assert!(asked < most, "{asked} requests to a store that is not there");
        assert!(held > 0 && (32..=70).contains(&dirty), "{held} MiB taken, {dirty} dirty");
        assert!(within(TRIP) <= 4, "{} at once", within(TRIP));
        assert!(within(TRIP * 2) <= 10, "{} in two round trips", within(TRIP * 2));
        assert!(traffic.peak <= 64, "{} at once", traffic.peak);
    });
    let mut client = server.connect();
    client.flush().unwrap();
    assert_eq!(world.json(&["status", "disk"])["dirty_bytes"], 0);
    verify(&mut client, written.load(SeqCst));
    drop((client, cached));
    server.stop();
    let server = world.elsewhere().serve("disk", &["--read-only"]);
    verify(&mut server.connect(), written.load(SeqCst));
    server.stop();
}

#[track_caller]
fn times_out<T>(what: &str, request: impl FnOnce() -> Result<T, Trouble>) {
    let begun = Instant::now();
    let answer = request();
    let took = begun.elapsed();
    assert!(matches!(answer, Err(Trouble::Refused(EIO))), "{what}: {:?}", answer.err());
    println!("{what} failed after {took:?}");
    let right = Duration::from_millis(2900)..Duration::from_secs(20);
    assert!(right.contains(&took), "{what} failed after {took:?}");
}

/// The application sees errors instead of a disk that hangs, and goes on when the store is back.
#[test]
fn s3_outage_with_an_io_timeout() {
    let (world, server) = disk(&["--io-timeout", "3s"]);
    let mut client = server.connect();
    world.faults().cut(true);
    client.write(100 * MIB, &[7; 4096]).unwrap();
    assert_eq!(client.read(100 * MIB, 4096).unwrap(), [7; 4096]);
    times_out("a flush", || client.flush());
    times_out("a read", || client.read(5 * MIB, 4096));
    times_out("a write", || {
        (0..100).try_for_each(|mib| client.write((128 + mib) * MIB, &[8; MIB as usize]))
    });
    let status = world.json(&["status", "disk"]);
    assert_eq!(status["state"], "attached", "{status}");
    world.faults().cut(false);
    let begun = Instant::now();
    // Until the store is found to be back requests may still time out.
    while client.flush().is_err() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not heal");
    }
    println!("healed after {:?}", begun.elapsed());
    assert_eq!(client.read(5 * MIB, 4096).unwrap(), old(5)[..4096]);
    client.write(101 * MIB, &[9; 4096]).unwrap();
    client.flush().unwrap();
    drop(client);
    server.stop();
    let server = world.elsewhere().serve("disk", &["--read-only"]);
    let mut client = server.connect();
    assert_eq!(client.read(100 * MIB, 4096).unwrap(), [7; 4096]);
    assert_eq!(client.read(101 * MIB, 4096).unwrap(), [9; 4096]);
    assert_eq!(client.read(128 * MIB, MIB as usize).unwrap(), [8; MIB as usize]);
    drop(client);
    server.stop();
}
