//! `scripts/reader`, which knows the format and nothing of this program, beside the program: both find
//! the same bytes in a pool.

use crate::program::{Home, Server, qemu_io, tool};
use crate::s3_pool;
use crate::script::{Answer, command, run};
use crate::sums;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

/// A pool, as the program and the reader know it.
struct Both {
    home: Home,
    pool: String,
    rng: StdRng,
    served: BTreeMap<String, Server>,
}

impl Both {
    fn new(home: Home, pool: String, name: &str) -> Both {
        let seed = std::env::var("OBJBLK_SEED").map_or(1, |seed| seed.parse().unwrap());
        eprintln!("replay: OBJBLK_SEED={seed} cargo test --test cli {name}");
        let rng = StdRng::seed_from_u64(seed);
        Both { home, pool, rng, served: BTreeMap::new() }
    }

    fn reader(&self, verb: &str, args: &[&str]) -> Answer {
        let mut command = command(&[&[verb, &self.pool], args].concat());
        command.envs(self.home.command(&[]).get_envs().filter_map(|(k, v)| Some((k, v?))));
        run(command)
    }

    fn serve(&mut self, name: &str) {
        let server = self.home.serve(&[name]);
        self.served.insert(name.into(), server);
    }

    fn detach(&mut self, name: &str) {
        self.home.run(&["detach", name]).ok();
        assert_eq!(self.served.remove(name).unwrap().ended().0, 0);
    }

    /// Writes, zeroes and discards of any size, at any place, and a flush.
    fn change(&mut self, name: &str, megabytes: u64) {
        let sectors = megabytes * 2048;
        let rng = &mut self.rng;
        let mut commands: Vec<String> = (0..30)
            .map(|_| {
                let start = rng.random_range(0..sectors);
                let len = rng.random_range(1..=(sectors - start).min(900)) * 512;
                let what = ["write -z", "discard"][rng.random_range(0..2)];
                let what = match rng.random_range(0..3) {
                    0 => what.to_owned(),
                    _ => format!("write -P {}", rng.random_range(1..255)),
                };
                format!("{what} {} {len}", start * 512)
            })
            .collect();
        commands.push("flush".into());
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        assert!(qemu_io(&self.served[name].uri, &commands));
    }

    fn names(&self) -> Vec<String> {
        let listed = self.home.run(&["list", "--json"]).json();
        let mut names = Vec::new();
        for volume in listed.as_array().unwrap() {
            let name = volume["name"].as_str().unwrap();
            names.push(name.to_owned());
            let snapshots = self.home.run(&["snapshot", "list", name, "--json"]).json();
            let of = snapshots.as_array().unwrap().iter();
            names.extend(of.map(|snapshot| snapshot["name"].as_str().unwrap().to_owned()));
        }
        names
    }

    /// What a client of the program reads is what the reader finds, of all volumes and snapshots.
    #[track_caller]
    fn agree(&mut self) {
        let images = tempfile::tempdir().unwrap();
        for name in self.names() {
            let image = images.path().join(&name);
            let is_served = self.served.contains_key(&name);
            if !is_served {
                self.serve(&name);
            }
            tool("nbdcopy", &[&self.served[&name].uri, image.to_str().unwrap()]);
            if !is_served {
                self.detach(&name);
            }
        }
        assert_eq!(sums::printed(self.reader("sha256", &["--all"])), sums::of(images.path()));
        let checked = self.reader("check", &[]);
        assert_eq!(checked.code, 0, "{checked:?}");
        for name in self.names() {
            assert!(self.reader("list", &[]).out.contains(&format!("{name} ")), "{name}");
        }
    }
}

/// A volume with a snapshot, whose owner was killed: there is a fence, and no clean end before it.
fn begin(both: &mut Both) {
    both.home.run(&["create", "data", "--size", "16M", "--chunk-size", "256K"]).ok();
    both.serve("data");
    both.change("data", 16);
    both.home.run(&["snapshot", "create", "data@one"]).ok();
    both.change("data", 16);
    both.served.remove("data").unwrap().kill();
    both.serve("data");
    both.change("data", 16);
    both.agree();
}

fn go_on(both: &mut Both) {
    both.served.remove("data").unwrap().kill();
    both.serve("data");
    both.detach("data");
    both.home.run(&["resize", "data", "--size", "9M", "--shrink"]).ok();
    both.home.run(&["resize", "data", "--size", "20M"]).ok();
    both.home.run(&["snapshot", "create", "data@two"]).ok();
    both.home.run(&["clone", "data@one", "clone"]).ok();
    both.home.run(&["snapshot", "rollback", "data@one", "--yes"]).ok();
    both.serve("clone");
    both.change("clone", 16);
    both.agree();
    both.home.run(&["flatten", "clone"]).ok();
    both.home.run(&["gc", "data", "--full"]).ok();
    both.detach("clone");
    both.agree();
}

#[test]
fn a_reader_without_the_program_finds_the_same() {
    let home = Home::new();
    let pool = home.store().to_str().unwrap().to_owned();
    let mut both = Both::new(home, pool, "a_reader_without_the_program");
    begin(&mut both);
    go_on(&mut both);
}

#[test]
fn s3_a_reader_without_the_program_finds_the_same() {
    let bucket = format!("objblk-test-{}", uuid::Uuid::new_v4());
    let home = s3_pool::home(&bucket);
    home.run(&["pool", "init", "--create-bucket"]).ok();
    let pool = format!("s3://{bucket}/pool");
    begin(&mut Both::new(home, pool, "s3_a_reader_without_the_program"));
}

/// What a user in trouble may mistype, and what is never done.
#[test]
fn the_reader_refuses_in_words() {
    let home = Home::new();
    home.run(&["create", "data", "--size", "1M"]).ok();
    let pool = home.store().to_str().unwrap().to_owned();
    let inside = home.store().join("names/out").to_str().unwrap().to_owned();
    let there = home.path("there").to_str().unwrap().to_owned();
    std::fs::write(&there, "kept").unwrap();
    let before = home.objects();
    let refused = |args: &[&str], code: i32, words: &str| {
        let done = run(command(args));
        assert!(done.code == code && done.err.contains(words), "{args:?}: {done:?}");
    };
    refused(&["read", &pool, "none"], 3, "no volume none");
    refused(&["read", &pool, "data@none"], 3, "no snapshot none");
    refused(&["read", &pool, "data", &inside], 2, "nothing is ever written there");
    refused(&["read", &pool, "data", &there], 4, "--force");
    refused(&["read", "/nowhere", "data"], 6, "/nowhere is not a directory");
    refused(&["sha256", &pool], 2, "--all");
    assert_eq!(std::fs::read_to_string(&there).unwrap(), "kept");
    assert_eq!(run(command(&["read", &pool, "data", &there, "--force"])).code, 0);
    assert!(std::fs::read(&there).unwrap() == vec![0; 1 << 20]);
    let plain = command(&["read", &pool, "data"]).output().unwrap();
    assert!(plain.status.success() && plain.stdout == vec![0; 1 << 20]);
    assert_eq!(home.objects(), before);
}
