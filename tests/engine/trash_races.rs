//! Several who delete, restore, remove, rename and clone one volume at the same time.

use crate::rig::{owner, pattern, read};
use crate::trash::{World, name, size};
use objblk::error::{ErrorKind, Result};
use objblk::pool::{KEEP, TrashState};
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::volume::{Mode, Volume, VolumeOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::time::Duration;

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

/// After the dust has settled, whatever has a name is whole, and so is what can be restored.
async fn judge(world: &World, what: &str) -> bool {
    let mut names = world.pool.names().await.unwrap();
    let trash = world.pool.trash().await.unwrap();
    for trashed in trash.iter().filter(|trashed| matches!(trashed.state, TrashState::Kept)) {
        let to = format!("restored-{}", trashed.id);
        world.pool.restore(trashed.id, &name(&to)).await.unwrap();
        names.push((to, trashed.id));
    }
    let mut is_there = false;
    for (called, id) in &names {
        let found = world.pool.lookup(&name(called)).await;
        // What is being removed says so; a name that came late for what is gone does, too.
        let Ok((_, description)) = found else {
            let kind = found.unwrap_err().kind();
            assert!(matches!(kind, ErrorKind::Busy | ErrorKind::Corrupt), "{what}: {called}");
            assert!(world.pool.left_over(&name(called)).await.unwrap().is_some() || kind == ErrorKind::Corrupt);
            continue;
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

async fn race(seed: u64) -> (Vec<Wish>, bool) {
    let world = Arc::new(World::new(seed).await);
    let mut rng = StdRng::seed_from_u64(seed);
    if rng.random_bool(0.7) {
        world.delete("data").await.unwrap();
    }
    let (from, to) = (Duration::ZERO, Duration::from_millis(300));
    for at in [Moment::Before, Moment::After] {
        world.rig.faults.add(Rule::new(Fault::Delay { at, from, to }).with_probability(0.5));
    }
    let mut wishes = Vec::new();
    let mut tasks = Vec::new();
    for number in 0..rng.random_range(2..6) {
        let wish = WISHES[rng.random_range(0..WISHES.len())];
        let later = Duration::from_millis(rng.random_range(0..3000));
        // Some die on the way; what they have under way arrives late.
        let patience = match rng.random_bool(0.3) {
            true => Duration::from_millis(rng.random_range(0..4000)),
            false => Duration::from_secs(600),
        };
        wishes.push(wish);
        let world = world.clone();
        tasks.push(tokio::spawn(async move {
            tokio::time::sleep(later).await;
            drop(tokio::time::timeout(patience, grant(world, wish, number)).await);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    world.rig.faults.clear();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let is_there = judge(&world, &format!("seed {seed}, {wishes:?}")).await;
    (wishes, is_there)
}

#[test]
fn whatever_has_a_name_or_can_be_restored_is_whole() {
    let first = std::env::var("OBJBLK_SEED").ok().map(|seed| seed.parse().unwrap());
    let count = std::env::var("OBJBLK_CASES").map_or(300, |count| count.parse().unwrap());
    let mut outcomes = [0, 0];
    for seed in first.map_or(0..count, |first| first..first + 1) {
        eprintln!("replay: OBJBLK_SEED={seed} cargo test --test engine whatever_has_a_name");
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().start_paused(true).build().unwrap();
        let (_, is_there) = runtime.block_on(race(seed));
        outcomes[usize::from(is_there)] += 1;
    }
    assert!(first.is_some() || outcomes.iter().all(|count| *count > 30), "{outcomes:?}");
}
