//! What an independent reader makes of the objects is what the engine returns; where objects are damaged
//! it says so and gives no wrong byte.

use crate::clones::Family;
use crate::dump::dump;
use crate::script::{Answer, command, run};
use crate::sums;
use objblk::units::SectorCount;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const STEPS: usize = 48;

fn read(pool: &Path, verb: &str, args: &[&str]) -> Answer {
    run(command(&[&[verb, pool.to_str().unwrap()], args].concat()))
}

/// The pool as it is in a directory, and the checksums of what the engine returns of all states.
async fn state(family: &Family) -> (TempDir, Vec<String>) {
    family.flush().await;
    family.verify().await;
    left_by(family)
}

/// The same of volumes that are closed.
fn left_by(family: &Family) -> (TempDir, Vec<String>) {
    let (pool, images) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (name, image) in family.images() {
        fs::write(images.path().join(name), image).unwrap();
    }
    dump(&family.rig.memory, pool.path());
    (pool, sums::of(images.path()))
}

async fn agree(family: &Family) {
    let (pool, expected) = state(family).await;
    assert_eq!(sums::printed(read(pool.path(), "sha256", &["--all"])), expected);
    let checked = read(pool.path(), "check", &[]);
    assert!(checked.code == 0, "{}{}", checked.out, checked.err);
}

/// Sizes change too.
async fn resize(family: &mut Family) {
    let of = family.pick();
    let blocks = family.rng.random_range(60..700);
    let member = family.members.get_mut(&of).unwrap();
    member.volume.resize(SectorCount(blocks as u64 * crate::clones::BLOCK)).await.unwrap();
    member.now.resize(blocks, 0);
}

async fn live(seed: u64) -> Family {
    let mut family = Family::new(seed).await;
    for step in 1..=STEPS {
        family.step().await;
        if step % 5 == 0 {
            resize(&mut family).await;
        }
        if step % 24 == 0 {
            agree(&family).await;
        }
    }
    family
}

fn seeds(count: u64) -> std::ops::Range<u64> {
    let first = std::env::var("OBJBLK_SEED").ok().map(|seed| seed.parse().unwrap());
    first.map_or(0..count, |first| first..first + 1)
}

fn in_virtual_time<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread();
    { runtime }.enable_all().start_paused(true).build().unwrap().block_on(work)
}

#[test]
fn a_reader_of_objects_finds_what_the_engine_returns() {
    for seed in seeds(4) {
        eprintln!("replay: OBJBLK_SEED={seed} cargo test --test engine a_reader_of_objects");
        in_virtual_time(live(seed));
    }
}

/// All objects of a pool.
fn objects(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => objects(&path, found),
            false => found.push(path),
        }
    }
}

/// One thing goes wrong with one object. Returns what.
fn harm(object: &Path, rng: &mut StdRng) -> String {
    let mut body = fs::read(object).unwrap();
    match rng.random_range(0..4) {
        0 => {
            fs::remove_file(object).unwrap();
            "is deleted".into()
        }
        1 if !body.is_empty() => {
            let len = rng.random_range(0..body.len());
            fs::write(object, &body[..len]).unwrap();
            format!("is cut off at {len} of {}", body.len())
        }
        _ if !body.is_empty() => {
            let bit = rng.random_range(0..body.len() * 8);
            body[bit / 8] ^= 1 << (bit % 8);
            fs::write(object, body).unwrap();
            format!("has bit {bit} flipped")
        }
        _ => "is empty".into(),
    }
}

/// Lines that were right without the harm, or an error that says that something is damaged: never a line
/// that is wrong. Returns the exit code.
fn judge(answer: Answer, expected: &[String], what: &str) -> i32 {
    let Answer { code, out, err } = &answer;
    for line in out.lines() {
        assert!(expected.iter().any(|right| right == line), "{what}: a wrong sum: {answer:?}");
    }
    let all = out.lines().count() == expected.len();
    // A name or a volume that is not there any more, or damage.
    let told = [3, 6, 7].contains(code) && err.contains("reader: ");
    assert!(all && *code == 0 || told, "{what}: nothing was said: {answer:?}");
    *code
}

#[test]
fn a_reader_says_what_is_damaged_and_gives_no_wrong_byte() {
    let (mut told, mut silent, mut found) = (0, 0, 0);
    for seed in seeds(2) {
        eprintln!("replay: OBJBLK_SEED={seed} cargo test --test engine a_reader_says");
        let family = in_virtual_time(async {
            let mut family = live(seed).await;
            // What a clean end leaves: nothing is lost with the last slots.
            family.close().await;
            family
        });
        let (whole, expected) = left_by(&family);
        let names: Vec<&str> = expected.iter().map(|line| &line[66..]).collect();
        let mut all = Vec::new();
        objects(whole.path(), &mut all);
        all.sort();
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..12 {
            let object = all.choose(&mut rng).unwrap();
            let kept = fs::read(object).unwrap();
            let what = format!("{} {}", object.display(), harm(object, &mut rng));
            let code = judge(read(whole.path(), "sha256", &names), &expected, &what);
            told += usize::from(code != 0);
            silent += usize::from(code == 0);
            // What is damaged and never read is found too, if anything needs it.
            let checked = read(whole.path(), "check", &[]);
            assert!(code != 7 || checked.code == 7, "{what}: {checked:?}");
            found += usize::from(checked.code == 7);
            fs::write(object, kept).unwrap();
        }
        assert_eq!(sums::printed(read(whole.path(), "sha256", &names)), expected);
    }
    println!("damage was told {told} times, harmless {silent} times, found by check {found} times");
    // Which objects there are depends on ids drawn at random.
    assert!(told > 2 && silent > 0 && found > 2, "{told} {silent} {found}");
}

/// Reads `v0` with damage in it. Returns how many sectors were left out, all of which are listed, while all
/// others are right.
fn rescue(pool: &Path, right: &[u8]) -> usize {
    let out = pool.with_extension("img");
    let out_name = out.to_str().unwrap();
    assert_eq!(read(pool, "read", &["v0", out_name]).code, 7);
    assert!(!out.exists(), "half an image");
    let done = read(pool, "read", &["v0", out_name, "--keep-going"]);
    assert_eq!(done.code, 7, "{done:?}");
    let found = fs::read(&out).unwrap();
    fs::remove_file(&out).unwrap();
    assert_eq!(found.len(), right.len());
    let lost: Vec<Range<usize>> = done.err.lines().filter_map(listed).collect();
    let mut count = 0;
    for (sector, (found, right)) in found.chunks(512).zip(right.chunks(512)).enumerate() {
        let is_listed = lost.iter().any(|range| range.contains(&sector));
        match is_listed {
            true => assert!(found.iter().all(|byte| *byte == 0), "sector {sector}"),
            false => assert!(found == right, "sector {sector}"),
        }
        count += usize::from(is_listed);
    }
    count
}

/// The sectors that a line says are lost.
fn listed(line: &str) -> Option<Range<usize>> {
    let words: Vec<&str> = line.split_once("; sectors ")?.1.split(' ').collect();
    Some(words[0].parse().unwrap()..words[2].parse().unwrap())
}

#[test]
fn what_is_unreadable_is_left_as_zeros_and_listed() {
    let family = in_virtual_time(async {
        let mut family = Family::new(1).await;
        family.change("v0", 150).await;
        family.snapshot("v0").await;
        // Of this the map in the store knows nothing.
        family.change("v0", 40).await;
        family.flush().await;
        family
    });
    let image = family.images().remove("v0").unwrap();
    let is_in = |part: &'static str| move |path: &PathBuf| path.to_str().unwrap().contains(part);
    let mut counts = Vec::new();
    for part in ["/log/", "/map/"] {
        let pool = tempfile::tempdir().unwrap();
        dump(&family.rig.memory, pool.path());
        let mut all = Vec::new();
        objects(&pool.path().join("volumes"), &mut all);
        all.retain(is_in(part));
        // Of the log the largest, which holds data for sure: its last byte; of the map whatever there is.
        all.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).unwrap().len()));
        for (nth, path) in all.iter().enumerate() {
            let mut body = fs::read(path).unwrap();
            match (part, nth) {
                ("/log/", 0) => *body.last_mut().unwrap() ^= 1,
                ("/map/", _) => body[56] ^= 1,
                _ => continue,
            }
            fs::write(path, body).unwrap();
        }
        counts.push(rescue(pool.path(), &image));
    }
    let all = image.len() / 512;
    assert!((1..=128).contains(&counts[0]) && (129..all).contains(&counts[1]), "{counts:?}");
}
