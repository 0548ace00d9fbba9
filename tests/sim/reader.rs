//! What a reader that shares no code with the engine finds in the stores that worlds leave behind, at
//! their end or in the middle of it, is what recovery would find.

use crate::audit::Recovered;
use crate::device;
use crate::director::Director;
use crate::dump::dump;
use crate::layout;
use crate::run::in_virtual_time;
use crate::script::{command, run};
use crate::world::World;
use objblk::format::pool::{NameObject, encode_json};
use objblk::format::snapshot::SnapshotObject;
use objblk::format::{SnapshotId, keys};
use objblk::units::Seq;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const WORLDS: u64 = 20;
/// Snapshots of each that are read.
const SNAPSHOTS: usize = 2;

/// The pool that a world leaves: two of three are cut off in the middle of their story.
fn left_by(seed: u64) -> (Arc<World>, TempDir) {
    let folder = device::folder();
    let world = Arc::new(World::new(seed, false, folder.path()));
    let story = Director::new(world.clone()).run();
    in_virtual_time(async {
        match seed % 3 {
            0 => story.await,
            _ => drop(tokio::time::timeout(Duration::from_secs(seed * 4), story).await),
        }
    });
    let pool = tempfile::tempdir().unwrap();
    dump(&world.memory, pool.path());
    let name = pool.path().join("names/v");
    fs::create_dir(name.parent().unwrap()).unwrap();
    fs::write(name, encode_json(&NameObject { volume: world.id })).unwrap();
    (world, pool)
}

/// The reader's image of `name` holds in each sector what the auditor's does.
fn compare(world: &World, pool: &Path, name: &str, found: &Recovered) {
    let out = pool.with_extension("img");
    let (from, to) = (pool.to_str().unwrap(), out.to_str().unwrap());
    let done = run(command(&["read", from, name, to, "--force"]));
    assert!(done.code == 0, "{name}: {done:?}");
    let expected = world.auditor().image(found).unwrap();
    let image = File::open(&out).unwrap();
    let size = image.metadata().unwrap().len();
    assert_eq!(size, world.layout.size(expected.size).bytes(), "size of {name}");
    let mut at = 0;
    while at < expected.size {
        let sectors = world.layout.clip(at..expected.size);
        let range = world.layout.range(&sectors);
        let mut data = vec![0xee; range.len().bytes() as usize];
        image.read_exact_at(&mut data, range.start().0 * 512).unwrap();
        let stamps = layout::stamps(at, &data).unwrap();
        assert_eq!(stamps, expected.stamps[sectors.clone()], "{name} from sector {at} on");
        at = sectors.end;
    }
    fs::remove_file(out).unwrap();
}

/// Moments of the past, from the oldest to the newest that checkpoints tell of. Returns how many.
fn look_back(world: &World, pool: &Path) -> u64 {
    let gone = world.state().archive.gone();
    let Some(kept) = world.auditor().kept(&gone, None).unwrap() else { return 0 };
    let Some(oldest) = kept.points.first() else { return 0 };
    let (first, last) = (oldest.next.0, kept.newest.next.0);
    let slots = [first, first + (last - first) / 2, last];
    for slot in slots {
        let found = world.auditor().state_at(&gone, Seq(slot)).unwrap().unwrap();
        compare(world, pool, &format!("v@#{slot}"), &found);
    }
    slots.len() as u64
}

fn name_of(world: &World, pool: &Path, id: SnapshotId) -> String {
    let object = fs::read(pool.join(keys::snapshot(world.id, id).as_str())).unwrap();
    format!("v@{}", SnapshotObject::parse(&object).unwrap().entry.name)
}

#[test]
fn a_reader_finds_what_recovery_would_find() {
    let only = std::env::var("OBJBLK_SEED").ok().map(|seed| seed.parse().unwrap());
    let (mut written, mut snapshots, mut moments) = (0, 0, 0);
    for seed in only.map_or(0..WORLDS, |only| only..only + 1) {
        eprintln!("replay: OBJBLK_SEED={seed} cargo test --test sim a_reader_finds");
        let (world, pool) = left_by(seed);
        let found = world.auditor().recover(world.initial()).unwrap();
        compare(&world, pool.path(), "v", &found);
        for (id, snapshot) in found.snapshots.iter().take(SNAPSHOTS) {
            compare(&world, pool.path(), &name_of(&world, pool.path(), *id), snapshot);
            snapshots += 1;
        }
        moments += look_back(&world, pool.path());
        let image = world.auditor().image(&found).unwrap();
        written += u64::from(image.stamps.iter().any(|stamp| *stamp > 0));
        let checked = run(command(&["check", pool.path().to_str().unwrap()]));
        let findings: Vec<&str> =
            checked.out.lines().filter(|line| line.starts_with("v: ")).collect();
        assert!(findings.len() == 1 && findings[0].starts_with("v: no findings"), "{checked:?}");
    }
    println!("{written} worlds had data, {snapshots} snapshots and {moments} moments were read");
    let all = written > WORLDS / 2 && snapshots > 5 && moments > 5;
    assert!(only.is_some() || all, "{written} {snapshots} {moments}");
}
