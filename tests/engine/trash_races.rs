//! Several who delete, restore, remove, rename and clone one volume at the same time.

use crate::rig::{owner, pattern, read};
use crate::trash::{World, name, size};
use objblk::error::{ErrorKind, Result};
use objblk::mutant::{self, Mutant};
use objblk::pool::{KEEP, TrashState, Trashed};
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::volume::{Mode, Volume, VolumeOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What somebody wants.
#[derive(Clone, Copy, Debug)]
enum Wish {
    Delete,
    DeleteNow,
    Restore,
    Purge,
    Rename,
    Clone,
    CreateAnother,
}

const WISHES: [Wish; 7] = [
    Wish::Delete,
    Wish::DeleteNow,
    Wish::Restore,
    Wish::Purge,
    Wish::Rename,
    Wish::Clone,
    Wish::CreateAnother,
];

async fn grant(world: Arc<World>, wish: Wish, number: u64) -> Result<()> {
    let (by, pool) = (world.by(), &world.pool);
    let called = async |called: &str| -> Result<bool> {
        Ok(pool.names().await?.iter().any(|(name, id)| name == called && *id == world.id))
    };
    let current = if called("data").await? { "data" } else { "moved" };
    match wish {
        Wish::Delete => pool.delete(&name(current), KEEP, &by).await.map(drop),
        Wish::DeleteNow => pool.delete_now(&name(current), &by).await.map(drop),
        Wish::Restore => pool.restore(world.id, &name("data")).await,
        Wish::Purge => world.purge().await,
        Wish::Rename => pool.rename(&name(current), &name("moved")).await,
        Wish::Clone => {
            let new = name(&format!("clone{number}"));
            pool.clone_volume(&name(current), "old", &new).await.map(drop)
        }
        Wish::CreateAnother => pool.create(&name("data"), size()).await.map(drop),
    }
}

/// What came of a wish.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    wish: Wish,
    begun: Instant,
    ended: Instant,
    /// `None`: whoever had it died.
    ok: Option<bool>,
}

/// Somebody was told that the volume has a name, and nobody deleted it since.
fn must_be_there(outcomes: &[Outcome]) -> bool {
    let deletions = outcomes.iter().filter(|o| matches!(o.wish, Wish::Delete | Wish::DeleteNow));
    let gone_by = deletions.map(|o| o.ok.map(|_| o.ended)).collect::<Option<Vec<Instant>>>();
    let Some(gone_by) = gone_by else { return false };
    let named = |o: &&Outcome| {
        matches!(o.wish, Wish::Restore | Wish::Rename | Wish::Clone) && o.ok == Some(true)
    };
    outcomes.iter().filter(named).any(|o| gone_by.iter().all(|ended| *ended <= o.begun))
}

/// After the dust has settled, whatever has a name is whole, and so is what can be restored.
async fn judge(world: &World, what: &str) -> bool {
    let mut names = world.pool.names().await.unwrap();
    let trash = world.pool.trash().await.unwrap();
    let can_be_restored =
        |trashed: &&Trashed| matches!(trashed.state, TrashState::Kept | TrashState::Lost);
    for trashed in trash.iter().filter(can_be_restored) {
        let to = format!("restored-{}", trashed.id);
        world.pool.restore(trashed.id, &name(&to)).await.unwrap();
        names.push((to, trashed.id));
    }
    let mut is_there = false;
    for (called, id) in &names {
        let found = world.pool.lookup(&name(called)).await;
        // What is being removed says so; a name that came late for what is gone does, too.
        let description = match found {
            Ok((_, description)) => description,
            Err(e) => {
                let is_known = matches!(e.kind(), ErrorKind::Busy | ErrorKind::Corrupt);
                assert!(*id == world.id && is_known, "{what}: {called}: {e}");
                continue;
            }
        };
        if *id == world.id {
            is_there = true;
            world.is_whole(*id, 2).await;
        } else if description.origin().is_some() {
            let options = VolumeOptions {
                mode: Mode::ReadWrite { takeover: true },
                ..world.rig.options.clone()
            };
            let by = world.by();
            let volume = Volume::open(by.env, by.stores, *id, owner(1), options).await;
            let volume = volume.unwrap_or_else(|e| panic!("{what}: {called}: {e}"));
            assert!(read(&volume, 0, 64).await.unwrap() == pattern(0, 64, 1), "{what}: {called}");
            volume.close().await.unwrap();
        }
    }
    is_there
}

async fn race(seed: u64) -> bool {
    let world = Arc::new(World::new(seed).await);
    let mut rng = StdRng::seed_from_u64(seed);
    // Every other one is about purging and restoring, the narrowest of races.
    let is_narrow = seed.is_multiple_of(2);
    if is_narrow || rng.random_bool(0.7) {
        world.delete("data").await.unwrap();
    }
    let (from, to) = (Duration::ZERO, Duration::from_millis(300));
    for at in [Moment::Before, Moment::After] {
        world.rig.faults.add(Rule::new(Fault::Delay { at, from, to }).with_probability(0.5));
    }
    let mut tasks = Vec::new();
    for number in 0..rng.random_range(2..6) {
        let wish = match (is_narrow, number) {
            (true, 0) => Wish::Purge,
            (true, 1) => Wish::Restore,
            (true, _) => {
                if rng.random_bool(0.5) {
                    Wish::Purge
                } else {
                    Wish::Restore
                }
            }
            (false, _) => WISHES[rng.random_range(0..WISHES.len())],
        };
        // A removal makes more requests than the others before it is decided.
        let longest = if is_narrow && matches!(wish, Wish::Restore) { 7000 } else { 3000 };
        let later = Duration::from_millis(rng.random_range(0..longest));
        // Some die on the way; what they have under way arrives late.
        let patience = match !is_narrow && rng.random_bool(0.3) {
            true => Duration::from_millis(rng.random_range(0..4000)),
            false => Duration::from_secs(600),
        };
        let world = world.clone();
        tasks.push(tokio::spawn(async move {
            tokio::time::sleep(later).await;
            let begun = Instant::now();
            let done = tokio::time::timeout(patience, grant(world, wish, number)).await;
            let ok = done.ok().map(|done| done.is_ok());
            Outcome { wish, begun, ended: Instant::now(), ok }
        }));
    }
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.push(task.await.unwrap());
    }
    world.rig.faults.clear();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let is_there = judge(&world, &format!("seed {seed}, {outcomes:?}")).await;
    assert!(is_there || !must_be_there(&outcomes), "seed {seed}: it is gone; {outcomes:?}");
    is_there
}

fn run(seed: u64) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().start_paused(true).build().unwrap();
    runtime.block_on(race(seed))
}

#[test]
fn mistakes_in_the_trash_are_noticed() {
    for mistake in [Mutant::NameUnchecked, Mutant::NeedUnchecked, Mutant::TrashStepShared] {
        let is_noticed =
            |seed| mutant::with(Some(mistake), || std::panic::catch_unwind(|| run(seed)).is_err());
        let noticed = (0..4000).find(|seed| is_noticed(*seed));
        let seed = noticed.unwrap_or_else(|| panic!("{mistake:?} was not noticed"));
        eprintln!("{mistake:?} was noticed by seed {seed}");
    }
}

#[test]
fn whatever_has_a_name_or_can_be_restored_is_whole() {
    let first = std::env::var("OBJBLK_SEED").ok().map(|seed| seed.parse().unwrap());
    let count = std::env::var("OBJBLK_CASES").map_or(300, |count| count.parse().unwrap());
    let mut outcomes = [0, 0];
    for seed in first.map_or(0..count, |first| first..first + 1) {
        eprintln!("replay: OBJBLK_SEED={seed} cargo test --test engine whatever_has_a_name");
        outcomes[usize::from(run(seed))] += 1;
    }
    assert!(first.is_some() || outcomes.iter().all(|count| *count > 30), "{outcomes:?}");
}
