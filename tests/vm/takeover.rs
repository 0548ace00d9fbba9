//! Two live hosts take a volume from each other, again and again, while it is written.

use crate::guest::{Guest, KERNELS, Pool, full, seed};
use crate::judge::Ledger;
use crate::kills::spread;
use crate::table::{print, row};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Until a guest has done what it was told, on a machine that has other work. An owner that goes on
/// as if nobody had claimed its volume shows here.
const PATIENCE: Duration = Duration::from_secs(240);

/// A guest that does what it is told.
struct Host {
    guest: Guest,
    listener: TcpListener,
    conducted: Option<TcpStream>,
}

impl Host {
    fn boot(pool: &Pool, kernel: &'static str) -> Host {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let guest = pool.guest_on(kernel, &[port], "live-takeover.sh", &[&port.to_string()]);
        Host { guest, listener, conducted: None }
    }

    /// Waits until the guest has booted.
    fn meet(&mut self) {
        // So that a guest that fails before it calls is heard, and not waited for in vain.
        self.listener.set_nonblocking(true).unwrap();
        let deadline = Instant::now() + Duration::from_secs(180);
        let stream = loop {
            match self.listener.accept() {
                Ok((stream, _)) => break stream,
                Err(_) if Instant::now() < deadline => {
                    let soon = Instant::now() + Duration::from_millis(100);
                    let line = self.guest.line_before(soon);
                    if line.is_some_and(|line| line.starts_with("FAIL")) {
                        self.guest.fail("could not begin");
                    }
                }
                Err(e) => self.guest.fail(&format!("does not call: {e}")),
            }
        };
        stream.set_nonblocking(false).unwrap();
        let mut here = String::new();
        BufReader::new(&stream).read_line(&mut here).unwrap();
        assert_eq!(here, "here\n");
        self.conducted = Some(stream);
    }

    fn tell(&mut self, word: &str) {
        let stream = self.conducted.as_mut().unwrap();
        stream.write_all(format!("{word}\n").as_bytes()).unwrap();
    }

    /// Judges lines up to and with one that begins with `wanted`, and returns that.
    fn hear(&mut self, ledger: &mut Ledger, wanted: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        while let Some(line) = self.guest.line_before(deadline) {
            if let Err(why) = ledger.hear(&line) {
                self.guest.fail(&why);
            }
            if line.starts_with(wanted) {
                return line;
            }
        }
        self.guest.fail(&format!("has not said '{wanted}' in {} s", PATIENCE.as_secs()));
    }

    fn hear_for(&mut self, ledger: &mut Ledger, time: Duration) {
        let deadline = Instant::now() + time;
        while let Some(line) = self.guest.line_before(deadline) {
            if let Err(why) = ledger.hear(&line) {
                self.guest.fail(&why);
            }
        }
    }
}

#[test]
fn two_live_hosts_take_a_volume_from_each_other() {
    let rounds = if full() { 4 } else { 1 };
    let mut rng = StdRng::seed_from_u64(seed());
    let pool = Pool::new();
    pool.objblk(&["create", "shared", "--size", "128M"]);
    let mut hosts = KERNELS.map(|kernel| Host::boot(&pool, kernel));
    hosts.iter_mut().for_each(Host::meet);
    let mut ledger = Ledger::default();
    let heading = ["takeover", "new owner", "acks before", "demanded", "ready ms", "noticed ms"];
    let mut table = vec![heading.map(String::from).to_vec()];
    let (mut ready, mut noticed) = (Vec::new(), Vec::new());
    hosts[0].tell("own");
    hosts[0].hear(&mut ledger, "loading");
    for round in 1..=rounds {
        let [old, new] = match hosts.each_mut() {
            [a, b] if round % 2 == 1 => [a, b],
            [a, b] => [b, a],
        };
        let before = ledger.all();
        old.hear_for(&mut ledger, Duration::from_millis(rng.random_range(2000..6000)));
        new.tell("own");
        old.tell("lost");
        // What the old owner acknowledged, however late, the new one must find: its report is judged
        // behind all of it.
        let began = Instant::now();
        old.hear(&mut ledger, "ended");
        noticed.push(began.elapsed().as_millis() as u64);
        let acked = ledger.all().acked - before.acked;
        let line = new.hear(&mut ledger, "ready shared ");
        ready.push(line.rsplit(' ').next().unwrap().parse().unwrap());
        new.hear(&mut ledger, "reported shared");
        old.hear(&mut ledger, "let go");
        new.hear(&mut ledger, "loading");
        assert!(acked > 0, "the old owner has synced nothing");
        let demanded = ledger.all().demanded - before.demanded;
        let (ready, noticed) = (ready[round - 1], noticed[round - 1]);
        table.push(row(&[&round, &KERNELS[round % 2], &acked, &demanded, &ready, &noticed]));
    }
    hosts[rounds % 2].hear_for(&mut ledger, Duration::from_secs(1));
    hosts[rounds % 2].tell("leave");
    hosts[rounds % 2].hear(&mut ledger, "left");
    for host in &mut hosts {
        host.tell("quit");
        host.hear(&mut ledger, "done");
        host.guest.succeeded();
    }
    print("a volume taken over between two live guests", &table);
    println!("ready: {}; old owner's load ended: {}", spread(&ready), spread(&noticed));
    assert_eq!(ledger.lost, 0);
}
