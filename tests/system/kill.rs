//! kill -9 of the server under load: no flushed change is lost, none is torn, the order is kept.

use crate::fault_proxy::{CALM, STORM};
use crate::ledger::Findings;
use crate::load::{Counts, clients, ledger, until_killed, until_trouble, whole};
use crate::rough::through;
use crate::s3::S3Lab;
use crate::table::{print, row};
use crate::times::Times;
use crate::world::{World, full, seed, until};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

fn rounds(world: &World, name: &str, rounds: u64) {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let ledger = ledger();
    world.run(&["create", "disk", "--size", "64M", "--chunk-size", "256K"]);
    let mut server = world.serve("disk", &[]);
    let heading =
        ["round", "killed ms", "changes", "flushes", "ready ms", "kept", "beyond", "gone"];
    let mut table = vec![heading.map(String::from).to_vec()];
    let mut recovery = Times::default();
    for round in 0..if full() { 10 * rounds } else { rounds } {
        // The long ones are for the checkpoints of a running volume.
        let longest = if round % 6 == 5 && full() { 8000 } else { 1200 };
        let life = Duration::from_millis(rng.random_range(50..longest));
        let began = Instant::now();
        let counts = until_killed(server, life, rng.random(), &ledger);
        let lived = began.elapsed().as_millis();
        // The owner is known to be dead: it is succeeded with the flag and without.
        let how: &[&str] = if round % 2 == 0 { &[] } else { &["--takeover"] };
        server = world.serve("disk", how);
        recovery.add(server.first_read());
        let Findings { demanded, beyond, gone } = ledger.judge(&whole(&server));
        let changes = counts.changes.load(Ordering::Relaxed);
        let flushes = counts.flushes.load(Ordering::Relaxed);
        let ready = server.took.as_millis();
        table.push(row(&[&round, &lived, &changes, &flushes, &ready, &demanded, &beyond, &gone]));
    }
    print(&format!("kill -9 on {name}, seed {seed}: first read after {recovery}"), &table);
    server.stop();
    let server = world.serve("disk", &[]);
    ledger.judge(&whole(&server));
    server.stop();
}

#[test]
fn s3_kill_9_loses_nothing_flushed() {
    rounds(&World::s3(), "S3", 6);
}

#[test]
fn kill_9_on_a_directory_loses_nothing_flushed() {
    rounds(&World::directory(), "a directory", 6);
}

#[test]
fn s3_kill_9_in_a_storm_loses_nothing_flushed() {
    through(&STORM, |world| rounds(world, "S3 in a storm", 3));
}

/// Requests of the dead owner arrive when his successor has long begun: all that were under way.
#[test]
fn s3_kill_9_and_late_requests_change_nothing() {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let world = World::s3_through(&CALM, seed);
    let direct = world.by(S3Lab::get().endpoint.clone());
    let ledger = ledger();
    world.run(&["create", "disk", "--size", "64M", "--chunk-size", "256K"]);
    let mut table = vec![row(&[&"round", &"late", &"took effect", &"refused", &"kept"])];
    let mut late = 0;
    for round in 0..if full() { 20 } else { 4 } {
        let server = world.serve("disk", &["--takeover"]);
        ledger.judge(&whole(&server));
        // Once nothing arrives any more the load stands still: it waits for a flush, or for room.
        let clients = clients(&server);
        let (counts, random) = (Counts::default(), rng.random());
        std::thread::scope(|scope| {
            scope.spawn(|| until_trouble(clients, random, &ledger, &counts));
            std::thread::sleep(Duration::from_millis(300));
            world.faults().keep_changes();
            until("requests are under way", || world.faults().kept() > 0);
            std::thread::sleep(Duration::from_millis(300));
            server.kill();
        });
        let successor = direct.serve("disk", &["--takeover"]);
        let image = whole(&successor);
        let found = ledger.judge(&image);
        let mut client = successor.connect();
        // Half of the rounds find the fence only, the others find the successor at work.
        if round % 2 == 0 {
            let data = ledger.send_write(0, 16, u64::MAX);
            client.write(0, &data).unwrap();
            ledger.acknowledge(0, 16, false);
            let covered = ledger.covered();
            client.flush().unwrap();
            ledger.flushed(&covered);
        }
        let delivered = world.wait(world.faults().deliver_kept());
        let done = delivered.iter().filter(|(_, status)| *status < 300).count();
        let refused = delivered.iter().filter(|(_, status)| *status == 412).count();
        assert_eq!(done + refused, delivered.len(), "{delivered:?}");
        late += delivered.len();
        ledger.judge(&whole(&successor));
        drop(client);
        successor.kill();
        table.push(row(&[&round, &delivered.len(), &done, &refused, &found.demanded]));
    }
    print(&format!("requests of a dead owner that arrive late, seed {seed}"), &table);
    assert!(late > 0);
    let server = world.serve("disk", &["--takeover"]);
    ledger.judge(&whole(&server));
    server.stop();
}
