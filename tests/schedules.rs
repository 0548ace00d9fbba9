//! Interleavings of what waits for each other, explored by a scheduler (shuttle).
//!
//! The very source files of the product are compiled in here, with locks and channels that the
//! scheduler controls in place of those of `objblk::sync`; everything else is the library's. Between
//! any two uses of a lock or channel any other thread may run. What is not explored: other orders
//! of memory, and the insides of tokio's channels, each use of which is one step.
//!
//! Thousands of schedules are tried, half of them uniformly at random, half by PCT (few preemptions
//! at drawn places). A thread that waits for ever is a deadlock, which fails. A failing schedule is
//! printed: `OBJBLK_SCHEDULE=... cargo test --test schedules NAME` replays it, `OBJBLK_SEED=7
//! OBJBLK_SCHEDULES=100000` tries others, and more.

#![allow(clippy::unwrap_used)]

// What the included files call `crate::...`.
use objblk::{
    cache, cipher, clock, device, error, format, journal, log, map, mutant, store, units,
};

#[path = "schedules/single_flight.rs"]
mod single_flight;
#[path = "schedules/sync.rs"]
mod sync;
#[path = "schedules/volume.rs"]
mod volume;

#[path = "../src/flight.rs"]
mod flight;

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, MaxSteps, Runner};

/// Schedules of each scheduler.
const SCHEDULES: usize = 2000;

/// Points at which PCT preempts.
const DEPTH: usize = 4;

fn explore(test: impl Fn() + Send + Sync + Copy + 'static) {
    if let Ok(schedule) = std::env::var("OBJBLK_SCHEDULE") {
        return shuttle::replay(test, &schedule);
    }
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    let seed = number("OBJBLK_SEED").unwrap_or(0);
    let count = number("OBJBLK_SCHEDULES").map_or(SCHEDULES, |count| count as usize);
    run(RandomScheduler::new_from_seed(seed, count), test);
    run(PctScheduler::new_from_seed(seed, DEPTH, count), test);
}

fn run(scheduler: impl Scheduler + 'static, test: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    config.silence_warnings = true;
    // A schedule takes some hundred steps: one that takes so many goes round in circles.
    config.max_steps = MaxSteps::FailAfter(100_000);
    Runner::new(scheduler, config).run(test);
}
