//! The engine's parts against models that are too simple to be wrong: range maps and sets.
//!
//! Every test draws its cases from a seed: `OBJBLK_SEED=7 OBJBLK_CASES=1000 cargo test --test model`
//! runs others, and more. A failing case is shrunk and printed.

#![allow(clippy::unwrap_used)]

#[path = "model/accounts.rs"]
mod accounts;
#[path = "model/extents.rs"]
mod extents;
#[path = "model/map.rs"]
mod map;
#[path = "model/paging.rs"]
mod paging;
#[path = "model/recovery.rs"]
mod recovery;
#[path = "engine/rig.rs"]
#[allow(dead_code)]
mod rig;
#[path = "model/small.rs"]
mod small;
#[path = "model/space.rs"]
mod space;

use proptest::test_runner::{Config, RngSeed};

/// `cases` of the default seed, or what the environment asks for.
fn config(cases: u32) -> Config {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    let seed = number("OBJBLK_SEED").unwrap_or(0);
    let cases = number("OBJBLK_CASES").map_or(cases, |cases| cases as u32);
    eprintln!("replay: OBJBLK_SEED={seed} OBJBLK_CASES={cases} cargo test --test model");
    Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        // A seed says it all; files of old failures would be a new top-level folder.
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    }
}

/// Runs a future with tokio's clock stopped: time passes when everybody waits.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap().block_on(future)
}
