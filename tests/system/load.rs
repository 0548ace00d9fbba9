//! Random changes to a disk by several connections at once, all noted in a ledger.

use crate::client::{Answer, CMD_FLUSH, CMD_TRIM, Client, FLAG_FUA, Trouble};
use crate::ledger::{Covered, Ledger, PAGE};
use crate::nbd::CMD_WRITE;
use crate::world::Served;
use rand::rngs::StdRng;
use rand::seq::index::sample;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Size of the disk: 64 MiB.
const DISK: usize = 64 << 20;
const CONNECTIONS: usize = 3;
/// Pages in an area; a write stays within one, and an area belongs to one connection.
const AREA: usize = 16;
const AREAS: usize = DISK / PAGE / AREA;

/// The ledger of a new disk.
pub fn ledger() -> Ledger {
    Ledger::new(DISK / PAGE, |page| page / AREA % CONNECTIONS)
}

#[derive(Default)]
pub struct Counts {
    pub changes: AtomicU64,
    pub flushes: AtomicU64,
}

/// A request on its way.
enum Pending {
    Change { first: usize, count: usize, fua: bool },
    Flush(Covered),
}

/// Several areas of this connection written at once, sometimes with a flush behind them.
fn batch(
    client: &mut Client,
    (connection, number): (usize, u64),
    rng: &mut StdRng,
    ledger: &Ledger,
    counts: &Counts,
) -> Answer<()> {
    let mut pending = HashMap::new();
    let many = rng.random_range(1..=8);
    for area in sample(rng, AREAS / CONNECTIONS, many) {
        let count = rng.random_range(1..=AREA);
        let first = rng.random_range(0..=AREA - count);
        let first = (area * CONNECTIONS + connection) * AREA + first;
        let fua = rng.random_ratio(1, 16);
        let flags = if fua { FLAG_FUA } else { 0 };
        let (offset, len) = ((first * PAGE) as u64, count * PAGE);
        let cookie = if rng.random_ratio(1, 8) {
            ledger.send_trim(first, count, number);
            client.send((flags, CMD_TRIM), offset, len, &[])?
        } else {
            let data = ledger.send_write(first, count, number);
            client.send((flags, CMD_WRITE), offset, len, &data)?
        };
        pending.insert(cookie, Pending::Change { first, count, fua });
    }
    if rng.random_ratio(1, 4) {
        let covered = ledger.covered();
        let cookie = client.send((0, CMD_FLUSH), 0, 0, &[])?;
        pending.insert(cookie, Pending::Flush(covered));
    }
    while !pending.is_empty() {
        let (cookie, error) = client.answer()?;
        if error != 0 {
            return Err(Trouble::Refused(error));
        }
        match pending.remove(&cookie).expect("an answer to a request") {
            Pending::Change { first, count, fua } => {
                ledger.acknowledge(first, count, fua);
                counts.changes.fetch_add(1, Ordering::Relaxed);
            }
            Pending::Flush(covered) => {
                ledger.flushed(&covered);
                counts.flushes.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

/// The connections of a load. Made before it begins: on a busy machine they take their time.
pub fn clients(server: &Served) -> Vec<Client> {
    (0..CONNECTIONS).map(|_| server.connect()).collect()
}

/// Changes the disk by all connections until the server answers with an error or is gone: what each
/// of them met.
pub fn until_trouble(
    clients: Vec<Client>,
    seed: u64,
    ledger: &Ledger,
    counts: &Counts,
) -> Vec<Trouble> {
    let work = |connection: usize, mut client: Client| {
        let mut rng = StdRng::seed_from_u64(seed ^ connection as u64);
        let batches =
            (1..).map(|number| batch(&mut client, (connection, number), &mut rng, ledger, counts));
        batches.filter_map(Result::err).next().expect("it does not end by itself")
    };
    std::thread::scope(|scope| {
        let work = &work;
        let numbered = clients.into_iter().enumerate();
        let all: Vec<_> =
            numbered.map(|(number, client)| scope.spawn(move || work(number, client))).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

/// Changes the disk until the server is killed after `life`.
pub fn until_killed(server: Served, life: Duration, seed: u64, ledger: &Ledger) -> Counts {
    let (counts, killed) = (Counts::default(), AtomicBool::new(false));
    let clients = clients(&server);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for trouble in until_trouble(clients, seed, ledger, &counts) {
                let gone = matches!(trouble, Trouble::Gone(_)) && killed.load(Ordering::SeqCst);
                assert!(gone, "a healthy disk failed: {trouble:?}");
            }
        });
        std::thread::sleep(life);
        killed.store(true, Ordering::SeqCst);
        server.kill();
    });
    counts
}

/// All of the disk.
pub fn whole(server: &Served) -> Vec<u8> {
    let mut client = server.connect();
    let part = 1 << 20;
    let parts = (0..DISK / part).map(|at| client.read((at * part) as u64, part).unwrap());
    parts.collect::<Vec<_>>().concat()
}
