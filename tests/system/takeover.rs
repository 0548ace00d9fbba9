//! A volume goes from host to host while it is written: every flush that was acknowledged goes with
//! it, and the host that lost it says so, whatever it was doing.

use crate::client::{EIO, Trouble};
use crate::fault_proxy::{CALM, FaultProxy};
use crate::hosts::Host;
use crate::load::{Counts, clients, ledger, until_trouble, whole};
use crate::s3::S3Lab;
use crate::table::{print, row};
use crate::times::Times;
use crate::world::{BUSY, Served, World, attempt, full, seed, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::process::Output;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The ledger's pages come first, then what fio has flushed, then what it writes on and on.
const SIZE: &str = "128M";

/// What the old owner is doing while it loses the volume.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// It writes.
    Writing,
    /// Its process is stopped and goes on later.
    Stopped,
    /// Its network is down and comes back later.
    CutOff,
}

fn fio(server: &Served, part: (&str, &str), seed: u64, args: &[&str]) -> Output {
    let (uri, seed) = (format!("--uri={}", server.uri), format!("--randseed={}", seed >> 33));
    let (offset, size) = (format!("--offset={}", part.0), format!("--size={}", part.1));
    let all = ["--name=takeover", "--ioengine=nbd", "--iodepth=8", "--bs=16k", "--verify=crc32c"];
    let own = [&*uri, &*seed, &*offset, &*size, "--verify_state_save=0", "--rw=randwrite"];
    attempt("fio", "fio", &[&all[..], &own, args].concat())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// Ends a server when the test fails while others wait for it.
struct Deadman(Pid);

impl Drop for Deadman {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = kill(self.0, Signal::SIGKILL);
        }
    }
}

/// What a round was like.
struct Round {
    counts: Counts,
    /// From the new owner's start to its first read.
    ready: Duration,
    /// From then, or the old owner's return, until all of its clients knew.
    noticed: Duration,
}

/// The volume goes from `old` on `here` to `there`, whose server is returned.
fn go(
    (here, there): (&World, &World),
    old: &Served,
    fate: Fate,
    rng: &mut StdRng,
    ledger: &crate::ledger::Ledger,
) -> (Served, Round) {
    let (random, sealed) = (rng.random(), rng.random());
    let written = fio(old, ("64m", "4m"), sealed, &["--do_verify=0", "--end_fsync=1"]);
    assert!(written.status.success(), "{}", said(&written));
    let counts = Counts::default();
    let life = Duration::from_millis(rng.random_range(200..1500));
    let endless = ["--fsync=16", "--do_verify=0", "--time_based", "--runtime=600"];
    let clients = clients(old);
    let (next, ready, noticed) = std::thread::scope(|scope| {
        let deadman = Deadman(Pid::from_raw(old.pid() as i32));
        let load = scope.spawn(|| until_trouble(clients, random, ledger, &counts));
        let fio_load = scope.spawn(|| fio(old, ("96m", "32m"), random, &endless));
        std::thread::sleep(life);
        match fate {
            Fate::Writing => {}
            Fate::Stopped => old.signal("STOP"),
            Fate::CutOff => here.apart().cut(true),
        }
        let next = there.serve("disk", &["--takeover"]);
        let ready = next.first_read();
        let image = whole(&next);
        let mut client = next.connect();
        client.write(72 << 20, &[7; 4096]).unwrap();
        client.flush().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let returns = Instant::now();
        match fate {
            Fate::Writing => {}
            Fate::Stopped => old.signal("CONT"),
            Fate::CutOff => here.apart().cut(false),
        }
        for trouble in load.join().unwrap() {
            assert!(matches!(trouble, Trouble::Refused(EIO)), "{fate:?}: {trouble:?}");
        }
        let loaded = fio_load.join().unwrap();
        let noticed = returns.elapsed();
        let told = said(&loaded);
        let eio = told.contains("error=Input/output error") || told.contains("err= 5");
        assert!(!loaded.status.success() && eio, "{told}");
        // Only now, so that it knows all that the old owner ever acknowledged.
        ledger.judge(&image);
        assert!(whole(&next) == image, "{fate:?}: the old owner's changes appear behind the fence");
        drop(deadman);
        (next, ready, noticed)
    });
    let verified = fio(&next, ("64m", "4m"), sealed, &["--verify_only"]);
    assert!(verified.status.success(), "{fate:?}: fio's flushed data: {}", said(&verified));
    (next, Round { counts, ready, noticed })
}

/// The old owner says who has the volume, and leaves when it is told to.
fn leaves(here: &World, there: &World, old: Served, next: &Served) {
    let who = format!("process {} on host {}", next.pid(), there.apart().name());
    until("it knows", || here.json(&["status", "disk"])["state"] == "failed");
    let failure = here.json(&["status", "disk"])["failure"].as_str().unwrap().to_owned();
    assert!(failure.contains(&who) && failure.contains("taken over"), "{failure}");
    let (_, told) = here.run(&["detach", "disk"]);
    assert!(told.contains(&who), "{told}");
    let (code, told) = old.ended(Duration::from_secs(20));
    assert_eq!(code, BUSY, "{told}");
    assert!(told.contains(&who), "{told}");
    assert_eq!(here.json(&["status"]), serde_json::json!([]));
}

#[test]
fn s3_goes_from_host_to_host_under_load() {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let world = World::s3();
    // Each host has a network of its own, so a way of its own to the server.
    let (hosts, _ways): (Vec<World>, Vec<FaultProxy>) = ["castor", "pollux"]
        .into_iter()
        .map(|name| {
            let host = Host::new(name, &world.path(""));
            let way = FaultProxy::start(&S3Lab::get().endpoint, host.gateway(), &CALM, seed);
            let way = world.wait(way);
            (world.at(host, way.endpoint()), way)
        })
        .unzip();
    let (mut here, mut there) = (&hosts[0], &hosts[1]);
    let ledger = ledger();
    here.run(&["create", "disk", "--size", SIZE, "--chunk-size", "256K"]);
    let mut owner = here.serve("disk", &[]);
    let refusal = there.refused(BUSY, &["serve", "nbd", "disk"]);
    assert!(refusal.contains("on host castor") && refusal.contains("--takeover"), "{refusal}");
    let heading = ["round", "from", "old owner", "changes", "flushes", "ready ms", "EIO after ms"];
    let mut table = vec![heading.map(String::from).to_vec()];
    let mut recovery = Times::default();
    for round in 0..if full() { 24 } else { 3 } {
        let fate = [Fate::Writing, Fate::Stopped, Fate::CutOff][round % 3];
        let (next, Round { counts, ready, noticed }) =
            go((here, there), &owner, fate, &mut rng, &ledger);
        leaves(here, there, owner, &next);
        let (changes, flushes) =
            (counts.changes.load(Ordering::Relaxed), counts.flushes.load(Ordering::Relaxed));
        let (ready_ms, noticed_ms) = (ready.as_millis(), noticed.as_millis());
        let (from, fate) = (here.apart().name(), format!("{fate:?}"));
        table.push(row(&[&round, &from, &fate, &changes, &flushes, &ready_ms, &noticed_ms]));
        recovery.add(ready);
        owner = next;
        std::mem::swap(&mut here, &mut there);
    }
    print(&format!("takeovers under load, seed {seed}: first read after {recovery}"), &table);
    owner.stop();
}
