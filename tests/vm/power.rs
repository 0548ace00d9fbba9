//! The power of a host is cut: all that its kernel, its page cache and its targets held is gone.

use crate::guest::{Guest, KERNELS, Pool, full, seed};
use crate::judge::{Counts, Ledger, volume_of};
use crate::kills::spread;
use crate::table::{print, row};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// File systems, which have a volume of their name each. The short version leaves xfs to the kills.
const VOLUMES: [(&str, &str); 2] = [("ext4", "256M"), ("xfs", "512M")];

fn volumes() -> &'static [(&'static str, &'static str)] {
    &VOLUMES[..if full() { 2 } else { 1 }]
}

/// What a life of the host came to.
#[derive(Default)]
struct Life {
    /// It has synced something on these volumes.
    working: BTreeSet<String>,
    replayed: BTreeSet<String>,
    /// Milliseconds from attach to a device that answers, of each volume.
    ready: Vec<(String, u64)>,
    acked: u64,
}

impl Life {
    /// Judges `line`, and notes what it tells of this life.
    fn hear(&mut self, guest: &Guest, ledger: &mut Ledger, line: &str) {
        let before = ledger.all().acked;
        if let Err(why) = ledger.hear(line) {
            guest.fail(&why);
        }
        self.acked += ledger.all().acked - before;
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["ack", key, _] => drop(self.working.insert(volume_of(key).to_owned())),
            ["replayed", volume] => drop(self.replayed.insert(volume.to_owned())),
            ["ready", volume, ms] => self.ready.push((volume.to_owned(), ms.parse().unwrap())),
            // Nothing but the power may end the load.
            ["stopped" | "ended", ..] => guest.fail(line),
            _ => {}
        }
    }

    fn hear_until(
        &mut self,
        guest: &mut Guest,
        ledger: &mut Ledger,
        is_it: impl Fn(&Life, &str) -> bool,
    ) {
        while let Some(line) = guest.line() {
            self.hear(guest, ledger, &line);
            if is_it(self, &line) {
                return;
            }
        }
        guest.fail("ended early");
    }

    fn hear_for(&mut self, guest: &mut Guest, ledger: &mut Ledger, time: Duration) {
        let deadline = Instant::now() + time;
        while let Some(line) = guest.line_before(deadline) {
            self.hear(guest, ledger, &line);
        }
    }

    /// Lives until the power is cut: `after` it began to work, or, if `early`, to recover.
    fn until_cut(guest: &mut Guest, ledger: &mut Ledger, early: bool, after: Duration) -> Life {
        let mut life = Life::default();
        match early {
            true => life.hear_until(guest, ledger, |_, line| line == "recovering"),
            false => {
                life.hear_until(guest, ledger, |life, _| life.working.len() == volumes().len());
            }
        }
        life.hear_for(guest, ledger, after);
        guest.cut_power();
        while let Some(line) = guest.line() {
            life.hear(guest, ledger, &line);
        }
        guest.was_cut();
        life
    }

    fn to_the_end(guest: &mut Guest, ledger: &mut Ledger) -> Life {
        let mut life = Life::default();
        life.hear_until(guest, ledger, |_, line| line == "done");
        guest.succeeded();
        life
    }
}

/// A host whose lives are short.
struct Host {
    pool: Pool,
    ledger: Ledger,
    rng: StdRng,
    /// Whether all file systems were at work when the power was last cut.
    worked: bool,
    ready: Vec<(String, u64)>,
    table: Vec<Vec<String>>,
}

impl Host {
    fn new() -> Host {
        let pool = Pool::new();
        for (name, size) in volumes() {
            pool.objblk(&["create", name, "--size", size]);
        }
        let heading = ["life", "kernel", "cut in", "after ms", "acks", "demanded", "ready ms"];
        Host {
            pool,
            ledger: Ledger::default(),
            rng: StdRng::seed_from_u64(seed()),
            worked: false,
            ready: Vec::new(),
            table: vec![heading.map(String::from).to_vec()],
        }
    }

    /// Life `number` of the host, the last of them if `last`.
    fn live(&mut self, number: usize, last: bool) {
        let kernel = KERNELS[number % 2];
        let step = match (number, last) {
            (_, true) => "last",
            (0, false) => "first",
            _ => "next",
        };
        let mut arguments = vec![step];
        arguments.extend(volumes().iter().map(|(name, _)| name));
        let mut guest = self.pool.guest(kernel, "power-cut.sh", &arguments);
        self.ledger.new_life();
        let before = self.ledger.all().demanded;
        let early = number % 6 == 3;
        let after = self.rng.random_range(if early { 0..3000 } else { 300..6000 });
        let life = match last {
            true => Life::to_the_end(&mut guest, &mut self.ledger),
            false => {
                let after = Duration::from_millis(after);
                Life::until_cut(&mut guest, &mut self.ledger, early, after)
            }
        };
        if self.worked && !early {
            let all = life.replayed.len() == volumes().len();
            assert!(all, "life {number}: only the journals of {:?} were replayed", life.replayed);
        }
        self.worked = !early;
        let (whence, after) = match (last, early) {
            (true, _) => ("-", "-".to_owned()),
            (false, true) => ("recovery", after.to_string()),
            (false, false) => ("work", after.to_string()),
        };
        let ready: Vec<String> = life.ready.iter().map(|(_, ms)| ms.to_string()).collect();
        let (demanded, ready) = (self.ledger.all().demanded - before, ready.join(" + "));
        let line = row(&[&number, &kernel, &whence, &after, &life.acked, &demanded, &ready]);
        println!("{}", line.join(" "));
        self.table.push(line);
        if number > 0 {
            self.ready.extend(life.ready);
        }
    }
}

/// The control arm: a load that syncs nothing, and says that it had, must be caught.
fn a_lie_is_caught() {
    let pool = Pool::new();
    let (name, size) = VOLUMES[0];
    pool.objblk(&["create", name, "--size", size]);
    let mut ledger = Ledger::default();
    let mut guest = pool.guest(KERNELS[0], "power-cut.sh", &["liar", name]);
    while let Some(line) = guest.line() {
        ledger.hear(&line).unwrap_or_else(|why| guest.fail(&why));
        if ledger.all().acked == 500 {
            guest.cut_power();
        }
    }
    guest.was_cut();
    let mut guest = pool.guest(KERNELS[0], "power-cut.sh", &["last", name]);
    let mut wrong = Vec::new();
    while let Some(line) = guest.line() {
        wrong.extend(ledger.hear(&line).err());
    }
    guest.succeeded();
    println!(
        "a lying load: {} losses in {} keys, such as: {:?}",
        ledger.lost,
        wrong.len(),
        wrong.first()
    );
    assert!(ledger.lost > 100, "the losses of a lying load are not seen: {wrong:?}");
}

/// On both kernels in turns: what one has left in the middle of a write, the other one recovers.
#[test]
fn a_power_cut_loses_nothing_synced() {
    let cuts = if full() { 50 } else { 2 };
    if full() {
        a_lie_is_caught();
    }
    let mut host = Host::new();
    for number in 0..=cuts {
        host.live(number, number == cuts);
    }
    print(&format!("{cuts} power cuts"), &host.table);
    for (volume, _) in volumes() {
        let Counts { acked, demanded } = host.ledger.of(volume);
        let ready = host.ready.iter().filter(|(of, _)| of == volume);
        let ready: Vec<u64> = ready.map(|(_, ms)| *ms).collect();
        println!(
            "{volume}: {cuts} cuts, {acked} ledger entries, {demanded} keys demanded, {} lost; \
             ready again: {}",
            host.ledger.lost,
            spread(&ready)
        );
        assert!(demanded > 0 && host.ledger.lost == 0);
    }
}
