//! The engine on a memory store: model, crashes, takeovers, damage, size.

#![allow(clippy::unwrap_used)]

#[path = "engine/cache_files.rs"]
mod cache_files;
#[path = "engine/cached.rs"]
mod cached;
#[path = "engine/chase.rs"]
mod chase;
#[path = "engine/clones.rs"]
mod clones;
#[path = "engine/collect.rs"]
mod collect;
#[path = "engine/compressed.rs"]
mod compressed;
#[path = "engine/crash.rs"]
mod crash;
#[path = "engine/damage.rs"]
mod damage;
#[path = "engine/deletion.rs"]
mod deletion;
#[path = "engine/diff.rs"]
mod diff;
#[path = "engine/disk.rs"]
mod disk;
#[path = "engine/doctor.rs"]
mod doctor;
#[path = "support/dump.rs"]
mod dump;
#[path = "engine/durability.rs"]
mod durability;
#[path = "engine/file_disk.rs"]
mod file_disk;
#[path = "engine/gate.rs"]
mod gate;
#[path = "engine/golden_pool.rs"]
mod golden_pool;
#[path = "engine/hosts.rs"]
mod hosts;
#[path = "engine/idle.rs"]
mod idle;
#[path = "engine/linear.rs"]
mod linear;
#[path = "engine/local.rs"]
mod local;
#[path = "engine/mend.rs"]
mod mend;
#[path = "engine/mirror.rs"]
mod mirror;
#[path = "engine/model.rs"]
mod model;
#[path = "engine/past.rs"]
mod past;
#[path = "engine/past_family.rs"]
mod past_family;
#[path = "engine/patience.rs"]
mod patience;
#[path = "engine/profile.rs"]
mod profile;
#[path = "engine/reader.rs"]
mod reader;
#[path = "engine/recover.rs"]
mod recover;
#[path = "engine/recover_local.rs"]
mod recover_local;
#[path = "engine/replica.rs"]
mod replica;
#[path = "engine/rig.rs"]
mod rig;
#[path = "engine/ring.rs"]
mod ring;
#[path = "engine/scale.rs"]
mod scale;
#[path = "engine/scattered.rs"]
mod scattered;
#[path = "engine/schedule.rs"]
mod schedule;
#[path = "support/reader.rs"]
mod script;
#[path = "engine/scrub.rs"]
mod scrub;
#[path = "engine/sealed.rs"]
mod sealed;
#[path = "engine/sealed_local.rs"]
mod sealed_local;
#[path = "engine/several.rs"]
mod several;
#[path = "engine/snapshots.rs"]
mod snapshots;
#[path = "engine/source.rs"]
mod source;
#[path = "support/sums.rs"]
mod sums;
#[path = "engine/trash.rs"]
mod trash;
#[path = "engine/trash_races.rs"]
mod trash_races;
#[path = "engine/turns.rs"]
mod turns;
