//! The simulator: the whole engine in seeded worlds of faults, crashes and rival owners.
//!
//! One seed is one world (`sim/world.rs`): a store, a volume and a few processes that open it, use
//! it, and are killed, paused, cut off and superseded, all on one thread in virtual time. After
//! every step a reference model (`sim/model.rs`, `sim/shelf.rs`) and an independent reader of the bucket
//! (`sim/audit.rs`) say whether what happened is allowed. Beside the volume there are clones of it
//! (`sim/clone.rs`) and of its past (`sim/clone_past.rs`), a volume that begins as an image (`sim/source.rs`) and copies by streams of changes
//! (`sim/stream.rs`), each with a model of its own; owners make snapshots by schedules (`sim/schedule.rs`)
//! and delete others when their time has come (`sim/aging.rs`).
//!
//! * `make sim SEEDS=N` runs N seeds; `OBJBLK_SEED=n` replays one, with its whole story.
//! * The control arm (`sim/mutants.rs`) shows that the simulator notices mistakes.

#![allow(clippy::unwrap_used)]

#[path = "sim/actor.rs"]
mod actor;
#[path = "sim/aging.rs"]
mod aging;
#[path = "sim/audit.rs"]
mod audit;
#[path = "sim/client.rs"]
mod client;
#[path = "sim/clone.rs"]
mod clone;
#[path = "sim/clone_past.rs"]
mod clone_past;
#[path = "sim/counts.rs"]
mod counts;
#[path = "sim/device.rs"]
mod device;
#[path = "sim/director.rs"]
mod director;
#[path = "sim/disk.rs"]
mod disk;
#[path = "support/dump.rs"]
mod dump;
#[path = "sim/heritage.rs"]
mod heritage;
#[path = "sim/host.rs"]
mod host;
#[path = "sim/layout.rs"]
mod layout;
#[path = "sim/model.rs"]
mod model;
#[path = "sim/mutants.rs"]
mod mutants;
#[path = "sim/past.rs"]
mod past;
#[path = "sim/process.rs"]
mod process;
#[path = "sim/reader.rs"]
mod reader;
#[path = "sim/rings.rs"]
mod rings;
#[path = "sim/run.rs"]
mod run;
#[path = "sim/schedule.rs"]
mod schedule;
#[path = "support/reader.rs"]
mod script;
#[path = "sim/shelf.rs"]
mod shelf;
#[path = "sim/sites.rs"]
mod sites;
#[path = "sim/source.rs"]
mod source;
#[path = "sim/stream.rs"]
mod stream;
#[path = "sim/vault.rs"]
mod vault;
#[path = "sim/weather.rs"]
mod weather;
#[path = "sim/wire.rs"]
mod wire;
#[path = "sim/world.rs"]
mod world;
