//! Running seeds: on all processors, with a summary, or one of them with its story.

use crate::counts::Counts;
use crate::device;
use crate::director::Director;
use crate::sites::{self, Hits};
use crate::world::World;
use std::cell::Cell;
use std::io::IsTerminal;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

/// Seeds that a plain run of the tests runs.
const SEEDS: u64 = 4000;
/// Seeds from which on a site that was never hit is a fault of the simulator.
const ENOUGH: u64 = 4000;

/// What a seed did.
#[derive(Debug, Default)]
pub struct Outcome {
    pub violation: Option<String>,
    pub counts: Counts,
    pub hits: Hits,
    pub trace: Vec<String>,
}

thread_local! {
    static PANICKED: Cell<bool> = const { Cell::new(false) };
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// A panic in a task ends that task only: note it, so that the seed fails.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICKED.set(true);
            if !QUIET.get() {
                before(info);
            }
        }));
    });
}

/// Runs all of it on this thread, in time that passes only while everybody waits.
pub fn in_virtual_time<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime of one thread needs nothing");
    runtime.block_on(work)
}

/// Runs one seed on this thread.
pub fn seed(seed: u64, traced: bool) -> Outcome {
    watch_panics();
    PANICKED.set(false);
    let folder = device::folder();
    let world = Arc::new(World::new(seed, traced, folder.path()));
    let told = AssertUnwindSafe(|| in_virtual_time(Director::new(world.clone()).run()));
    if std::panic::catch_unwind(told).is_err() {
        let violation = Some("the simulation itself panicked".to_owned());
        return Outcome { violation, ..Outcome::default() };
    }
    let panicked = PANICKED.get().then(|| "a task panicked".to_owned());
    let violation = world.violation().or(panicked);
    let trace = world.take_trace();
    let state = world.state();
    Outcome { violation, counts: state.counts.clone(), hits: state.hits.clone(), trace }
}

/// [`seed`], silent about panics: for mistakes that are made on purpose.
pub fn quietly(number: u64) -> Outcome {
    QUIET.set(true);
    let outcome = seed(number, false);
    QUIET.set(false);
    outcome
}

/// The work of all processors on a range of numbers, in order, until `work` says that it is enough.
pub fn spread(numbers: Range<u64>, work: impl Fn(u64) -> bool + Sync) {
    let next = AtomicU64::new(numbers.start);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= numbers.end || !work(number) {
                        next.store(numbers.end, Relaxed);
                        return;
                    }
                }
            });
        }
    });
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[derive(Default)]
struct Total {
    seeds: u64,
    counts: Counts,
    hits: Hits,
    failed: Vec<(u64, String)>,
}

impl Total {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.seeds += 1;
        self.counts.add(&outcome.counts);
        for (site, hits) in outcome.hits {
            *self.hits.entry(site).or_default() += hits;
        }
        self.failed.extend(outcome.violation.map(|what| (seed, what)));
    }

    fn show_progress(&self) {
        if self.seeds.is_multiple_of(500) && std::io::stderr().is_terminal() {
            eprint!("\r{} seeds, {} failed ", self.seeds, self.failed.len());
        }
    }

    fn print(&self, begun: Instant) {
        let took = begun.elapsed().as_secs_f64();
        let Counts { operations, requests, .. } = self.counts;
        let rate = |n: u64| (n as f64 * 60.0 / took) as u64;
        println!("{} seeds in {took:.1} s, {} seeds a minute", self.seeds, rate(self.seeds));
        println!("{operations} operations ({} a minute), {requests} requests", rate(operations));
        println!("{}", self.counts);
        println!("fault sites hit: {} of {}", self.hits.len(), sites::all().len());
    }
}

#[test]
fn seeds() {
    if let Some(only) = number("OBJBLK_SEED") {
        let outcome = seed(only, true);
        outcome.trace.iter().for_each(|line| println!("{line}"));
        println!("{} {:?}", outcome.counts, outcome.hits);
        assert_eq!(outcome.violation, None);
        return;
    }
    let first = number("OBJBLK_SIM_FIRST").unwrap_or(0);
    let time = number("OBJBLK_SIM_HOURS").map(|hours| Duration::from_secs(hours * 3600));
    let count = number("OBJBLK_SIM_SEEDS").unwrap_or(if time.is_some() { 1 << 40 } else { SEEDS });
    let (total, begun) = (Mutex::new(Total::default()), Instant::now());
    spread(first..first + count, |number| {
        let outcome = seed(number, false);
        let mut total = total.lock().unwrap();
        total.add(number, outcome);
        total.show_progress();
        total.failed.len() < 5 && time.is_none_or(|time| begun.elapsed() < time)
    });
    let total = total.into_inner().unwrap();
    total.print(begun);
    for (seed, what) in &total.failed {
        println!("seed {seed}: {what}");
        println!("  replay: OBJBLK_SEED={seed} cargo test --test sim run::seeds -- --nocapture");
    }
    assert!(total.failed.is_empty(), "violations: {:?}", total.failed);
    let missed: Vec<_> =
        sites::all().into_iter().filter(|site| !total.hits.contains_key(site)).collect();
    assert!(total.counts.collected > total.seeds / 10, "hardly anything was collected");
    assert!(missed.is_empty() || total.seeds < ENOUGH, "sites that were never hit: {missed:?}");
}

#[test]
fn a_seed_replays_exactly() {
    for number in 0..40 {
        let (first, second) = (seed(number, true), seed(number, true));
        assert!(first.trace == second.trace, "seed {number} has two stories");
        assert!(first.trace.len() > 20, "seed {number} has a story");
    }
}
