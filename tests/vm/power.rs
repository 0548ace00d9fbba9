//! The power of a host is cut: all that its kernel, its page cache and its targets held is gone.

use crate::guest::{Guest, KERNELS, Pool, full, seed};
use crate::judge::{Counts, Ledger};
use crate::kills::spread;
use crate::table::{print, row};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const VOLUMES: [&str; 2] = ["ext4", "xfs"];

/// What a life of the host came to.
#[derive(Default)]
struct Life {
    /// It has synced something on these volumes.
    working: BTreeSet<&'static str>,
    replayed: Vec<String>,
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
            ["ack", key, _] => self.working.extend(VOLUMES.iter().filter(|v| key.starts_with(**v))),
            ["replayed", volume] => self.replayed.push(volume.to_owned()),
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

    /// Lives until the power is cut: while it works, or, if `early`, while it recovers.
    fn until_cut(guest: &mut Guest, ledger: &mut Ledger, early: bool, after: Duration) -> Life {
        let mut life = Life::default();
        match early {
            true => life.hear_until(guest, ledger, |_, line| line == "recovering"),
            false => life.hear_until(guest, ledger, |life, _| life.working.len() == VOLUMES.len()),
        }
        life.hear_for(guest, ledger, after);
        guest.cut_power();
        while let Some(line) = guest.line() {
            life.hear(guest, ledger, &line);
        }
        guest.was_cut();
        life
    }
}

/// Two hosts' lives in turns, on both kernels.
#[test]
fn a_power_cut_loses_nothing_synced() {
    let cuts = if full() { 50 } else { 2 };
    let mut rng = StdRng::seed_from_u64(seed());
    let pool = Pool::new();
    for (name, size) in [("ext4", "256M"), ("xfs", "512M")] {
        pool.objblk(&["create", name, "--size", size]);
    }
    let mut ledger = Ledger::default();
    let heading = ["cut", "kernel", "in", "after ms", "acks", "demanded", "ready ms"];
    let mut table = vec![heading.map(String::from).to_vec()];
    let mut ready = Vec::new();
    // Whether the file systems were at work when the power was last cut.
    let mut worked = false;
    for number in 0..=cuts {
        let kernel = KERNELS[number % 2];
        let step = if number == 0 { "first" } else { "next" };
        let step = if number == cuts { "last" } else { step };
        let mut guest = pool.guest(kernel, "power-cut.sh", &[step]);
        ledger.new_life();
        let demanded = ledger.all().demanded;
        let early = number % 6 == 3;
        let after =
            Duration::from_millis(rng.random_range(if early { 0..3000 } else { 300..6000 }));
        let mut life = if number < cuts {
            Life::until_cut(&mut guest, &mut ledger, early, after)
        } else {
            let mut life = Life::default();
            life.hear_until(&mut guest, &mut ledger, |_, line| line == "done");
            guest.succeeded();
            life
        };
        if worked && !early {
            life.replayed.sort();
            assert_eq!(life.replayed, VOLUMES, "life {number}: the journals were not replayed");
        }
        worked = !early;
        if number > 0 {
            ready.extend(life.ready.clone());
        }
        let ready: Vec<String> = life.ready.iter().map(|(_, ms)| ms.to_string()).collect();
        let whence = if early { "recovery" } else { "work" };
        let (cut, whence, after) = match number == cuts {
            true => ("-".to_owned(), "-", "-".to_owned()),
            false => ((number + 1).to_string(), whence, after.as_millis().to_string()),
        };
        let demanded = ledger.all().demanded - demanded;
        table.push(row(&[
            &cut,
            &kernel,
            &whence,
            &after,
            &life.acked,
            &demanded,
            &ready.join(" + "),
        ]));
        println!("{}", table.last().unwrap().join(" "));
    }
    print(&format!("{cuts} power cuts, on ext4 and xfs at once"), &table);
    for volume in VOLUMES {
        let Counts { acked, demanded } = ledger.of(volume);
        let of_it: Vec<u64> =
            ready.iter().filter(|(of, _)| of == volume).map(|(_, ms)| *ms).collect();
        println!(
            "{volume}: {cuts} cuts, {acked} ledger entries, {demanded} keys demanded, {} lost; ready again: {}",
            ledger.lost,
            spread(&of_it)
        );
        assert!(demanded > 0 && ledger.lost == 0);
    }
}
