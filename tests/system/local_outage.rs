//! The store is out of reach for long, under write load, with local durability: nothing fails,
//! memory stays bounded, the store catches up, and another host finds the same bytes.

use crate::client::Client;
use crate::local::{Local, behind_proxy, caught_up, lag, status};
use crate::table::{print, row};
use crate::world::{Served, World, arg, full, tool};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
/// Size of the disk.
const DISK: usize = 512 * MIB;
/// All memory of the server: that of the program itself, the dirty budget, the cache.
const PEAK_KIB: u64 = 256 << 10;

/// A MiB of the disk in its version.
fn content(place: usize, version: u64) -> Vec<u8> {
    let seed = (version << 20 | place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let word = |at: u64| (seed ^ at).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (0..MIB as u64 / 8).flat_map(|at| word(at).to_le_bytes()).collect()
}

/// How long the slowest of each kind of request took.
#[derive(Default)]
struct Slowest([AtomicU64; 3]);

impl Slowest {
    fn time<T>(&self, kind: usize, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        self.0[kind].fetch_max(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
        done
    }

    fn of(&self, kind: usize) -> u64 {
        self.0[kind].load(Ordering::Relaxed)
    }
}

const WRITE: usize = 0;
const FLUSH: usize = 1;
const READ: usize = 2;

/// Writes the disk from front to back, again and again, `rate` MiB a second, with a flush behind
/// every fourth, and reads what was written a while ago, until `ends`. How many MiB it wrote.
fn load(client: &mut Client, rate: u32, ends: &AtomicBool, slowest: &Slowest) -> usize {
    let places = DISK / MIB;
    let begun = Instant::now();
    for number in 0.. {
        if ends.load(Ordering::SeqCst) {
            client.flush().unwrap();
            return number;
        }
        let (place, version) = (number % places, (number / places) as u64 + 1);
        let data = content(place, version);
        slowest.time(WRITE, || client.write((place * MIB) as u64, &data)).unwrap();
        if number % 4 == 3 {
            slowest.time(FLUSH, || client.flush()).unwrap();
            // Long enough ago to have left memory, and written in this outage.
            if let Some(old) = number.checked_sub(places / 4) {
                let (place, version) = (old % places, (old / places) as u64 + 1);
                let found = slowest.time(READ, || client.read((place * MIB) as u64, MIB)).unwrap();
                assert!(found == content(place, version), "MiB {place} in version {version}");
            }
        }
        let due = Duration::from_secs(1) * (number as u32 + 1) / rate;
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
    }
    unreachable!("it ends when it is told to")
}

fn copy_out(world: &World, server: &Served, name: &str) -> std::path::PathBuf {
    let file = world.path(name);
    tool("libnbd-bin", "nbdcopy", &[&server.uri, arg(&file)]);
    file
}

#[test]
fn s3_outage_is_ridden_out_by_the_journal() {
    let (seconds, rate, size) = if full() { (600, 5, "4G") } else { (12, 16, "512M") };
    let (world, direct, proxy) = behind_proxy();
    let local = Local::new(size);
    world.run(&["create", "disk", "--size", "512M"]);
    let server = world.serve("disk", &local.and(&["--mem-cache", "16M"]));
    let (mut client, ends, slowest) =
        (server.connect(), AtomicBool::new(false), Slowest::default());
    proxy.outage(true);
    let (written, worst) = std::thread::scope(|scope| {
        let load = scope.spawn(|| load(&mut client, rate, &ends, &slowest));
        std::thread::sleep(Duration::from_secs(seconds));
        let worst = lag(&world);
        ends.store(true, Ordering::SeqCst);
        (load.join().unwrap(), worst)
    });
    let shown = status(&world);
    let peak = server.peak_kib();
    assert!(written >= 128, "{written} MiB in {seconds} s are no load beyond the dirty budget");
    assert!(peak < PEAK_KIB, "{peak} KiB of memory with {written} MiB that no store has");
    let used = shown["journal"]["used_bytes"].as_u64().unwrap();
    assert!(used >= (written * MIB) as u64 / 2, "{shown}");
    proxy.outage(false);
    let behind = caught_up(&world, Duration::from_secs(if full() { 600 } else { 90 }));
    drop(client);
    let ours = copy_out(&world, &server, "ours");
    server.stop();
    let server = direct.elsewhere().serve("disk", &["--read-only"]);
    let theirs = copy_out(&world, &server, "theirs");
    server.stop();
    tool("diffutils", "cmp", &[arg(&ours), arg(&theirs)]);
    judge(&ours, written);
    let lag_mib = worst.bytes >> 20;
    let table = [
        row(&[&"outage s", &"MiB", &"lag MiB", &"lag s", &"peak MiB", &"caught up s"]),
        row(&[
            &seconds,
            &written,
            &lag_mib,
            &worst.time.as_secs(),
            &(peak >> 10),
            &behind.as_secs(),
        ]),
    ];
    print("an outage under write load, with a journal", &table);
    let [write, flush, read] = [WRITE, FLUSH, READ].map(|kind| slowest.of(kind));
    println!("  slowest write {write} ms, flush {flush} ms, read {read} ms");
}

/// The image is what was written.
fn judge(image: &std::path::Path, written: usize) {
    let disk = std::fs::read(image).unwrap();
    let places = DISK / MIB;
    assert_eq!(disk.len(), DISK);
    for (place, found) in disk.chunks(MIB).enumerate() {
        let version = (written + places - 1 - place) / places;
        let expected = if version == 0 { vec![0; MIB] } else { content(place, version as u64) };
        assert!(found == expected, "MiB {place} is not in version {version}");
    }
}
