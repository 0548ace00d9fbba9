//! kill -9 of a server with local durability: the journal has what was flushed, where the store was
//! gone as well, and where the successor was killed while it took over.

use crate::ledger::{Findings, Ledger};
use crate::load::{Counts, clients, ledger, until_trouble, whole};
use crate::local::{Local, behind_proxy};
use crate::proxy::Proxy;
use crate::table::{print, row};
use crate::times::Times;
use crate::world::{Served, World, full, seed};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What happens besides the kill.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Round {
    /// Nothing.
    Plain,
    /// The store is out of reach for the second half of the load: the journal alone has that.
    Alone,
    /// As [`Round::Alone`], and the successor is killed as well, early in its life.
    Twice,
}

/// Changes the disk until the server is killed: what was done, and how many flushes of it the
/// journal alone acknowledged.
fn until_killed(
    server: Served,
    life: Duration,
    random: u64,
    (ledger, proxy, round): (&Ledger, &Proxy, Round),
) -> (Counts, u64) {
    let (counts, killed) = (Counts::default(), AtomicBool::new(false));
    let clients = clients(&server);
    let alone = std::thread::scope(|scope| {
        scope.spawn(|| {
            for trouble in until_trouble(clients, random, ledger, &counts) {
                let expected = killed.load(Ordering::SeqCst);
                assert!(expected, "a healthy disk failed: {trouble:?}");
            }
        });
        std::thread::sleep(life / 2);
        proxy.outage(round != Round::Plain);
        let before = counts.flushes.load(Ordering::Relaxed);
        std::thread::sleep(life / 2);
        let after = counts.flushes.load(Ordering::Relaxed);
        killed.store(true, Ordering::SeqCst);
        server.kill();
        if round == Round::Plain { 0 } else { after - before }
    });
    proxy.outage(false);
    (counts, alone)
}

/// A server that is killed soon after its start, in whatever it is doing.
fn short_life(world: &World, args: &[&str], life: Duration) {
    let socket = world.path("short.nbd");
    let mut command = world.objblk(&["serve", "nbd", "disk", "--socket"]);
    command.arg(socket).args(args).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    std::thread::sleep(life);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn s3_kill_9_loses_nothing_that_the_journal_has() {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let (world, direct, proxy) = behind_proxy();
    let ledger = ledger();
    let local = Local::new("256M");
    world.run(&["create", "disk", "--size", "64M", "--chunk-size", "256K"]);
    let mut server = world.serve("disk", &local.args());
    let heading = ["round", "kind", "changes", "flushes", "alone", "ready ms", "kept", "beyond"];
    let mut table = vec![heading.map(String::from).to_vec()];
    let (mut recovery, mut all_alone) = (Times::default(), 0);
    for number in 0..if full() { 200 } else { 3 } {
        let round = [Round::Alone, Round::Twice, Round::Plain][number % 3];
        let life = Duration::from_millis(rng.random_range(300..1500));
        let (counts, alone) = until_killed(server, life, rng.random(), (&ledger, &proxy, round));
        all_alone += alone;
        // The owner is known to be dead: it is succeeded with the flag and without.
        let args = local.and(if number % 2 == 0 { &[] } else { &["--takeover"] });
        if round == Round::Twice {
            short_life(&world, &args, Duration::from_millis(rng.random_range(20..800)));
        }
        server = world.serve("disk", &args);
        recovery.add(server.first_read());
        let Findings { demanded, beyond, .. } = ledger.judge(&whole(&server));
        let changes = counts.changes.load(Ordering::Relaxed);
        let flushes = counts.flushes.load(Ordering::Relaxed);
        let (kind, ready) = (format!("{round:?}"), server.took.as_millis());
        let cells = row(&[&number, &kind, &changes, &flushes, &alone, &ready, &demanded, &beyond]);
        // A loop that is ended early has still shown what it saw.
        eprintln!("{}", cells.join("  "));
        table.push(cells);
    }
    print(&format!("kill -9 with a journal, seed {seed}: first read after {recovery}"), &table);
    assert!(all_alone > 0, "the journal alone never acknowledged anything");
    server.stop();
    // All of it is in the store: another host finds it there, and needs no force.
    let server = direct.elsewhere().serve("disk", &[]);
    ledger.judge(&whole(&server));
    server.stop();
}
