//! The process that serves a disk dies, and its guest goes on: nothing that was acknowledged is
//! missing, nothing that was asked for is forgotten, and where that cannot be had the guest is told.

use super::master::{Master, OK, PACKED, READ, Request, SPLIT, WRITE, Wishes};
use super::program::Home;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;

fn home() -> Home {
    let home = Home::new();
    home.ok(&["create", "disk", "--size", "64M"]);
    home
}

fn block(number: u64, version: u64) -> Vec<u8> {
    let word = (number << 32 | version).to_le_bytes();
    word.iter().copied().cycle().take(BLOCK).collect()
}

/// Kills come at any moment of a load of writes, reads and flushes on two queues. The guest writes each
/// block again only when its last write was answered, so it knows what every block holds.
#[test]
fn kills_under_load_are_not_noticed() {
    kills_under_load(&home(), &["disk"], SPLIT);
}

/// Over packed rings only the notes know where the dead process stood.
#[test]
fn kills_under_load_are_not_noticed_over_packed_rings() {
    kills_under_load(&home(), &["disk"], PACKED);
}

/// The same of an encrypted volume: whoever goes on has the key, and what was acknowledged is nowhere in the clear.
#[test]
fn kills_of_an_encrypted_disk_under_load_are_not_noticed() {
    let home = Home::new();
    let key = home.path("key");
    std::fs::write(&key, std::array::from_fn::<u8, 32, _>(|_| rand::random())).unwrap();
    let key = key.to_str().unwrap();
    home.ok(&["create", "disk", "--size", "64M", "--encrypt", "--key-file", key]);
    kills_under_load(&home, &["disk", "--key-file", key], SPLIT);
}

/// Without its key the disk waits: nothing is given up, and whoever has it goes on.
#[test]
fn an_encrypted_disk_waits_for_its_key() {
    let home = Home::new();
    let keys = ["right", "wrong"].map(|name| {
        std::fs::write(home.path(name), format!("{name:?}").repeat(9)).unwrap();
        home.path(name).to_str().unwrap().to_owned()
    });
    let [right, wrong] = &keys;
    home.ok(&["create", "disk", "--size", "64M", "--encrypt", "--key-file", right]);
    let serving = home.serve(&["disk", "--key-file", right]);
    let mut master = Master::begin(&home.socket(), Wishes::default());
    master.write(0, &block(7, 1));
    serving.kill();
    // Of what was acknowledged and never flushed nothing is in the run directory.
    let pattern = &block(7, 1)[..16];
    let mut folders = vec![home.path("run")];
    let mut bytes = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let Ok(body) = std::fs::read(&path) else { continue };
                    bytes += body.len();
                    assert!(!body.windows(16).any(|found| found == pattern), "{}", path.display());
                }
            }
        }
    }
    assert!(bytes > BLOCK, "{bytes} bytes are there");
    let said = home.try_serve(&["disk", "--key-file", wrong]).err().unwrap();
    assert!(said.contains("opens no slot"), "{said}");
    let said = home.try_serve(&["disk"]).err().unwrap();
    assert!(said.contains("its key was not given"), "{said}");
    let _serving = home.serve(&["disk", "--key-file", right]);
    let mut master = master.come_back(&home.socket()).map_err(|(e, _)| e).unwrap();
    assert!(master.read(0, BLOCK) == block(7, 1));
}

fn kills_under_load(home: &Home, volume: &[&str], wishes: Wishes) {
    let mut serving = home.serve(volume);
    let mut master = Master::begin(&home.socket(), Wishes { queues: 2, ..wishes });
    let mut disk: BTreeMap<u64, u64> = BTreeMap::new();
    let mut in_flight: BTreeMap<(usize, u16), (u32, u64, u64)> = BTreeMap::new();
    let (mut version, mut answered, mut resubmitted) = (0, 0u64, 0);
    for round in 0..6u64 {
        let deadline = Instant::now() + Duration::from_millis(150 + 130 * round);
        // Full queues at the time of the kill.
        while Instant::now() < deadline {
            step(&mut master, &mut disk, &mut in_flight, &mut version, &mut answered);
        }
        fill(&mut master, &disk, &mut in_flight, &mut version);
        serving.kill();
        serving = home.serve(volume);
        assert!(serving.said().contains("going on for process"), "{}", serving.said());
        master = master.come_back(&home.socket()).map_err(|(e, _)| e).unwrap();
        resubmitted += home.status()["requests"]["resubmitted"].as_u64().unwrap();
        drain(&mut master, &mut disk, &mut in_flight, &mut answered);
        for (number, version) in &disk {
            assert!(master.read(number * 8, BLOCK) == block(*number, *version), "block {number}");
        }
    }
    println!("{answered} requests answered, {resubmitted} of them by another process than first");
    assert!(answered > 100 && resubmitted > 0);
    drop(master);
    serving.signal("TERM");
    assert_eq!(serving.ended().0, Some(0));
    // All of it reached the store.
    let serving = home.serve(volume);
    let mut master = Master::begin(&home.socket(), Wishes::default());
    for (number, version) in &disk {
        assert!(master.read(number * 8, BLOCK) == block(*number, *version), "block {number}");
    }
    drop((master, serving));
}

type InFlight = BTreeMap<(usize, u16), (u32, u64, u64)>;

/// Fills both queues with requests.
fn fill(
    master: &mut Master,
    disk: &BTreeMap<u64, u64>,
    in_flight: &mut InFlight,
    version: &mut u64,
) {
    for queue in 0..2 {
        while in_flight.keys().filter(|(q, _)| *q == queue).count() < 12 {
            let number = rand::random_range(0..2000u64);
            if in_flight.values().any(|(kind, other, _)| *kind != 4 && *other == number) {
                continue;
            }
            *version += 1;
            let data = block(number, *version);
            let (request, now) = match rand::random_range(0..10) {
                0..7 => (Request::write(number * 8, &data), *version),
                7..9 => {
                    let there = disk.get(&number).copied().unwrap_or(0);
                    (Request::read(number * 8, BLOCK), there)
                }
                _ => (Request::new(super::master::FLUSH, 0), 0),
            };
            let slot = master.submit(queue, &request);
            in_flight.insert((queue, slot), (request.kind, number, now));
        }
        master.kick(queue);
    }
}

fn step(
    master: &mut Master,
    disk: &mut BTreeMap<u64, u64>,
    in_flight: &mut InFlight,
    version: &mut u64,
    answered: &mut u64,
) {
    fill(master, disk, in_flight, version);
    for queue in 0..2 {
        let (slot, _) = master.wait(queue);
        settle(master, disk, in_flight, (queue, slot));
        *answered += 1;
    }
}

fn drain(
    master: &mut Master,
    disk: &mut BTreeMap<u64, u64>,
    in_flight: &mut InFlight,
    answered: &mut u64,
) {
    for queue in 0..2 {
        while in_flight.keys().any(|(q, _)| *q == queue) {
            let (slot, _) = master.wait(queue);
            settle(master, disk, in_flight, (queue, slot));
            *answered += 1;
        }
    }
}

fn settle(
    master: &Master,
    disk: &mut BTreeMap<u64, u64>,
    in_flight: &mut InFlight,
    (queue, slot): (usize, u16),
) {
    let (kind, number, version) = in_flight.remove(&(queue, slot)).unwrap();
    let (status, data) = master.outcome(queue, slot, BLOCK);
    assert_eq!(status, OK, "the guest saw an error");
    match kind {
        WRITE => drop(disk.insert(number, version)),
        READ => {
            let expected = if version == 0 { vec![0; BLOCK] } else { block(number, version) };
            assert!(data == expected, "block {number} is not of version {version}");
        }
        _ => {}
    }
}

/// Without what its first process had acknowledged, a guest is not let in; one that begins is.
#[test]
fn a_guest_whose_writes_are_lost_is_not_let_in() {
    let home = home();
    let serving = home.serve(&["disk", "--no-recovery"]);
    let mut master = Master::begin(&home.socket(), Wishes::default());
    master.write(0, &block(0, 1));
    serving.kill();
    let serving = home.serve(&["disk"]);
    let (why, _) = master.come_back(&home.socket()).map(|_| ()).unwrap_err();
    println!("{why}");
    // The VMM is answered before the log is written.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !serving.said().contains("is lost: it is not let in; reset it") {
        assert!(Instant::now() < deadline, "{}", serving.said());
        std::thread::sleep(Duration::from_millis(10));
    }
    let status = home.status();
    let refused = status["requests"]["refused"].as_str().unwrap_or_default();
    assert!(refused.contains("reset it"), "{status}");
    let mut fresh = Master::begin_when_free(&home.socket(), Wishes::default());
    fresh.write(0, &block(0, 2));
    assert!(fresh.read(0, BLOCK) == block(0, 2));
}

/// A process that ends in order has lost nothing: its guest goes on with the next one.
#[test]
fn a_guest_goes_on_after_an_end_in_order() {
    let home = home();
    let mut serving = home.serve(&["disk"]);
    let mut master = Master::begin(&home.socket(), Wishes::default());
    for version in 1..4 {
        master.write(8, &block(1, version));
        serving.signal("TERM");
        assert_eq!(serving.ended().0, Some(0));
        serving = home.serve(&["disk"]);
        master = master.come_back(&home.socket()).map_err(|(e, _)| e).unwrap();
        assert!(master.read(8, BLOCK) == block(1, version));
    }
    // Somebody else had it in between: what the guest remembers may not be what is there.
    serving.signal("TERM");
    assert_eq!(serving.ended().0, Some(0));
    let other = home.serve(&["disk"]);
    other.signal("TERM");
    assert_eq!(other.ended().0, Some(0));
    let _serving = home.serve(&["disk"]);
    assert!(master.come_back(&home.socket()).is_err());
}
