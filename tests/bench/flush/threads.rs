//! Many who flush at once: how much they do together, against one alone.

use crate::disk::Appended;
use crate::local::Local;
use crate::table::{print, row};
use crate::world::World;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const MANY: usize = 32;
const TURN: Duration = Duration::from_secs(5);
const TURNS: u32 = 3;
const PAGE: usize = 4096;

/// Turns of work that every one of `workers` does for a while: how many a second, together.
fn rate<W: FnMut() + Send>(workers: Vec<W>) -> f64 {
    let ends = AtomicBool::new(false);
    let work = |mut worker: W| {
        let mut done = 0;
        while !ends.load(Ordering::Relaxed) {
            worker();
            done += 1;
        }
        done
    };
    let done: u64 = std::thread::scope(|scope| {
        let work = &work;
        let all: Vec<_> = workers.into_iter().map(|one| scope.spawn(move || work(one))).collect();
        std::thread::sleep(TURN);
        ends.store(true, Ordering::Relaxed);
        all.into_iter().map(|one| one.join().unwrap()).sum()
    });
    done as f64 / TURN.as_secs_f64()
}

pub fn run() {
    let (world, local) = (World::s3(), Local::new("1G"));
    world.run(&["create", "disk", "--size", "256M"]);
    let server = world.serve("disk", &local.args());
    std::thread::sleep(Duration::from_secs(10));
    let appends = |count: usize| {
        let one = |number| {
            let mut file = Appended::new(&local.folder().join(format!("bare-{number}")));
            move || file.append()
        };
        rate((0..count).map(one).collect())
    };
    let flushes = |count: usize| {
        let one = |number: usize| {
            let mut client = server.connect();
            let mut turn = 0;
            move || {
                turn += 1;
                let place = (turn % 2048 * MANY + number) * PAGE;
                client.write(place as u64, &[1; PAGE]).unwrap();
                client.flush().unwrap();
            }
        };
        rate((0..count).map(one).collect())
    };
    let mut sums = [0.0; 4];
    for _ in 0..TURNS {
        let turns = [appends(1), flushes(1), appends(MANY), flushes(MANY)];
        sums.iter_mut().zip(turns).for_each(|(sum, turn)| *sum += turn);
    }
    let [append, flush, appends, flushes] = sums.map(|sum| sum / f64::from(TURNS));
    let line = |name: &str, one: f64, many: f64| {
        let scaling = format!("{:.1}", many / one);
        row(&[&name, &format!("{one:.0}"), &format!("{many:.0}"), &scaling])
    };
    let heading = row(&[&"", &"one", &format!("{MANY} at once"), &"scaling"]);
    let bare = line("append of 4 KiB and fdatasync, a file each", append, appends);
    let ours = line("write of 4 KiB and flush over NBD, local durability", flush, flushes);
    print("\nFlushes a second", &[heading, bare, ours]);
    server.stop();
}
