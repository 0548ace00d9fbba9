//! kill -9 of the server under load: no flushed change is lost, none is torn, the order is kept.

use crate::ledger::Findings;
use crate::load::{ledger, until_killed, whole};
use crate::proxy::Proxy;
use crate::s3::S3Lab;
use crate::table::{print, row};
use crate::world::{World, full, seed};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::atomic::{AtomicBool, Ordering};
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
        let Findings { demanded, beyond, gone } = ledger.judge(&whole(&server));
        let changes = counts.changes.load(Ordering::Relaxed);
        let flushes = counts.flushes.load(Ordering::Relaxed);
        let ready = server.took.as_millis();
        table.push(row(&[&round, &lived, &changes, &flushes, &ready, &demanded, &beyond, &gone]));
    }
    print(&format!("kill -9 on {name}, seed {seed}"), &table);
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

/// Replies of the store are lost now and then, also while the successor opens the volume: nobody
/// knows which of his objects were stored.
#[test]
fn s3_kill_9_with_lost_replies_loses_nothing_flushed() {
    let world = World::s3();
    let proxy = world.wait(Proxy::start(&S3Lab::get().endpoint));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // One in six that come alone, so that no request fails too often in a row.
            let mut rng = StdRng::seed_from_u64(1);
            while !over.load(Ordering::Relaxed) {
                proxy.lose_replies(usize::from(rng.random_ratio(1, 6)));
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let work = std::panic::AssertUnwindSafe(|| {
            rounds(&world.by(proxy.endpoint()), "S3 with lost replies", 3);
        });
        let done = std::panic::catch_unwind(work);
        over.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|e| std::panic::resume_unwind(e));
    });
    println!("{} connections broken or made anew", proxy.connections());
}
