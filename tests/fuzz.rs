//! Parsers under mutated input: what the fuzzers of `tests/fuzz` run, on stable and for seconds.
//!
//! Each target runs over its corpus (`tests/fuzz/corpus/TARGET`), then over inputs made of it by
//! cutting, changing and joining. Every input follows from a seed and its number alone.
//!
//! More: `OBJBLK_SEED=7 OBJBLK_CASES=1000000 cargo test --test fuzz`. A failing input is printed
//! with the command that replays it.

#![allow(clippy::unwrap_used)]

#[path = "fuzz/seeds.rs"]
mod seeds;
#[path = "fuzz/src/lib.rs"]
mod targets;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Inputs made for each target: about a second's worth, less where an input is a conversation.
const CASES: u64 = 400_000;
const CONVERSATIONS: u64 = 40_000;

/// Longest input that is made.
const LEN_MAX: usize = 4096;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(name)
}

/// File names below a folder of the fuzz crate.
fn files(name: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let below = format!("corpus/{target}");
    let read = |name: &String| std::fs::read(folder(&below).join(name)).unwrap();
    files(&below).iter().map(read).collect()
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Says how to replay an input when it makes its target panic.
struct Replay<'a> {
    target: &'a str,
    input: &'a [u8],
    case: Option<(u64, u64)>,
}

impl Drop for Replay<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let Replay { target, input, case } = self;
        let hex: String = input.iter().map(|b| format!("{b:02x}")).collect();
        eprintln!("{target} fails on {} bytes: {hex}", input.len());
        if let Some((seed, case)) = case {
            eprintln!(
                "replay: OBJBLK_SEED={seed} OBJBLK_CASE={case} cargo test --test fuzz {target}"
            );
        }
    }
}

fn run(target: &str) {
    let corpus = corpus(target);
    assert!(!corpus.is_empty(), "{target} has a corpus");
    for input in &corpus {
        let _replay = Replay { target, input, case: None };
        targets::run(target, input);
    }
    let seed = variable("OBJBLK_SEED").unwrap_or(0);
    let few = if target.starts_with("nbd") { CONVERSATIONS } else { CASES };
    let cases = match variable("OBJBLK_CASE") {
        Some(case) => case..case + 1,
        None => 0..variable("OBJBLK_CASES").unwrap_or(few),
    };
    for case in cases {
        let input = make(&mut StdRng::seed_from_u64(seed << 40 ^ case), &corpus);
        let _replay = Replay { target, input: &input, case: Some((seed, case)) };
        targets::run(target, &input);
    }
}

/// An input: noise now and then, else one of the corpus, changed a few times.
fn make(rng: &mut StdRng, corpus: &[Vec<u8>]) -> Vec<u8> {
    if rng.random_ratio(1, 32) {
        let len = rng.random_range(0..256);
        return (0..len).map(|_| rng.random()).collect();
    }
    let mut input = corpus.choose(rng).cloned().unwrap_or_default();
    for _ in 0..rng.random_range(1..=5) {
        change(rng, &mut input, corpus);
    }
    input.truncate(LEN_MAX);
    input
}

/// Numbers at which comparisons turn.
const EDGES: [u64; 12] =
    [0, 1, 2, 127, 128, 255, 256, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 48, u64::MAX];

fn change(rng: &mut StdRng, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let at = rng.random_range(0..=input.len());
    let end = (at + rng.random_range(0..32)).min(input.len());
    match rng.random_range(0..9) {
        0 => input.truncate(at),
        1 => drop(input.drain(at..end)),
        2 => input.insert(at, rng.random()),
        3 => {
            let copy = input[at..end].to_vec();
            let to = rng.random_range(0..=input.len());
            drop(input.splice(to..to, copy));
        }
        4 => {
            let other = corpus.choose(rng).cloned().unwrap_or_default();
            let from = rng.random_range(0..=other.len());
            drop(input.splice(at.., other[from..].iter().copied()));
        }
        5 if at < input.len() => input[at] ^= 1 << rng.random_range(0..8),
        6 if at < input.len() => input[at] = rng.random(),
        _ => {
            let number = EDGES.choose(rng).copied().unwrap_or(0);
            let width = [1, 2, 4, 8].choose(rng).copied().unwrap_or(1);
            let mut bytes = number.to_le_bytes()[..width].to_vec();
            if rng.random() {
                bytes.reverse();
            }
            let to = (at + width).min(input.len());
            drop(input.splice(at..to, bytes));
        }
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            run(stringify!($name));
        })*

        const TESTS: &[&str] = &[$(stringify!($name)),*];
    };
}

targets! {
    chunk record fence map_object page checkpoint snapshot profile journal cache stream sealed json names size store_url settings
    image control nbd_handshake nbd_tls nbd_transmission
}

/// No target is left out: each has a test here, a fuzzer, and a corpus.
#[test]
fn every_target_has_test_fuzzer_and_corpus() {
    let names: BTreeSet<String> = targets::TARGETS.iter().map(|t| t.name.to_owned()).collect();
    assert_eq!(names, TESTS.iter().map(|name| (*name).to_owned()).collect());
    assert_eq!(names, files("corpus"));
    let fuzzers = names.iter().map(|name| format!("{name}.rs")).collect();
    assert_eq!(files("fuzz_targets"), fuzzers);
    let manifest = std::fs::read_to_string(folder("Cargo.toml")).unwrap();
    for name in names {
        let text = std::fs::read_to_string(folder("fuzz_targets").join(format!("{name}.rs")));
        assert!(text.unwrap().contains(&format!("run(\"{name}\", data)")), "{name}");
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
    }
}

/// The corpus holds the golden objects and what the other seeds are made of, as they are now.
#[test]
fn the_corpus_holds_every_seed() {
    // Written once for a new seed: OBJBLK_WRITE_CORPUS=1 creates missing files.
    let create = std::env::var_os("OBJBLK_WRITE_CORPUS").is_some();
    for (target, name, bytes) in seeds::all() {
        let path = folder("corpus").join(target).join(name);
        if create && !path.exists() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        assert!(std::fs::read(&path).is_ok_and(|found| found == bytes), "{}", path.display());
    }
}

/// A parser that takes memory on the word of its input does not pass the guard.
#[test]
#[should_panic(expected = "1048576 bytes were allocated for 4 of input (bound 4112)")]
fn the_guard_notices_an_allocation_that_the_input_asked_for() {
    let bound = targets::Bound { factor: 4, constant: 4096 };
    let input = [0, 0, 16, 0];
    let parse = || drop(Vec::<u8>::with_capacity(u32::from_le_bytes(input) as usize));
    bound.check(input.len(), parse);
}
