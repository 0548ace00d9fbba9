//! kill -9 under a file system with files and a database on it, each with a ledger outside.
//!
//! After every crash the journal is replayed by a mount, the ledgers are held against what is there,
//! and the file system is checked.

use crate::database::{Bookkeeper, Journal};
use crate::device::Device;
use crate::fault_proxy::STORM;
use crate::rough::through;
use crate::table::{print, row};
use crate::times::Times;
use crate::world::{World, full, seed, tool};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

/// A kind of file system: how it is made and how it is checked.
struct Kind {
    name: &'static str,
    make: &'static [&'static str],
    check: &'static [&'static str],
    package: &'static str,
}

const EXT4: Kind = Kind {
    name: "ext4",
    make: &["mkfs.ext4", "-q"],
    check: &["fsck.ext4", "-fn"],
    package: "e2fsprogs",
};

const XFS: Kind = Kind {
    name: "xfs",
    make: &["mkfs.xfs", "-q"],
    check: &["xfs_repair", "-n"],
    package: "xfsprogs",
};

/// How long the first file and the first commit of a round may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Files that are replaced whole, again and again.
const NAMES: u64 = 24;

/// What is known of a file: the version that must be there at least, and the newest that was begun.
#[derive(Clone, Copy, Debug, Default)]
struct Versions {
    durable: u64,
    begun: u64,
}

#[derive(Default)]
struct Files {
    known: BTreeMap<u64, Versions>,
    last: u64,
}

fn content(name: u64, version: u64) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(name << 32 ^ version);
    let mut bytes = format!("{name} {version}\n").into_bytes();
    let begin = bytes.len();
    bytes.resize(begin + rng.random_range(0..96 << 10), 0);
    rng.fill(&mut bytes[begin..]);
    bytes
}

impl Files {
    /// Replaces files until that fails; tells of the first. Returns how many were.
    fn replace(&mut self, dir: &Path, rng: &mut StdRng, first: &Sender<()>) -> u64 {
        for done in 0.. {
            let name = rng.random_range(0..NAMES);
            self.last += 1;
            let versions = self.known.entry(name).or_default();
            versions.begun = self.last;
            if replace(dir, name, self.last).is_err() {
                return done;
            }
            versions.durable = self.last;
            if done == 0 {
                first.send(()).unwrap();
            }
        }
        unreachable!("it ends by a failure")
    }

    /// Every file is whole, and not older than it must be.
    fn judge(&mut self, dir: &Path) {
        for (name, versions) in &mut self.known {
            let found = match fs::read(dir.join(name.to_string())) {
                Ok(bytes) => bytes,
                Err(e) => {
                    assert_eq!(versions.durable, 0, "file {name} ({versions:?}): {e}");
                    continue;
                }
            };
            let line = String::from_utf8_lossy(found.split(|byte| *byte == b'\n').next().unwrap())
                .into_owned();
            let version = line.split(' ').nth(1).and_then(|text| text.parse().ok());
            let version = version.unwrap_or_else(|| panic!("file {name} begins with {line:?}"));
            assert!(found == content(*name, version), "file {name} is not whole");
            let expected = versions.durable..=versions.begun;
            assert!(expected.contains(&version), "file {name} is {version}, of {versions:?}");
            *versions = Versions { durable: version, begun: version };
        }
    }
}

/// One file, made durable under its name.
fn replace(dir: &Path, name: u64, version: u64) -> io::Result<()> {
    let new = dir.join("new");
    let mut file = File::create(&new)?;
    file.write_all(&content(name, version))?;
    file.sync_all()?;
    fs::rename(&new, dir.join(name.to_string()))?;
    File::open(dir)?.sync_all()
}

fn rounds(world: &World, store: &str, kind: &Kind, rounds: u64) {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    world.run(&["create", "disk", "--size", "512M", "--chunk-size", "1M"]);
    let mut server = world.serve("disk", &[]);
    let mut device = Device::begin(world, &server);
    tool(kind.package, kind.make[0], &[&kind.make[1..], &[&*device.name]].concat());
    let (mut files, mut books) = (Files::default(), Bookkeeper::default());
    let mut table =
        vec![row(&[&"round", &"killed ms", &"files", &"commits", &"kept", &"ready ms"])];
    let mut recovery = Times::default();
    for round in 0..if full() { 10 * rounds } else { rounds } {
        let mounted = device.mount("noatime").to_owned();
        let (life, random) = (Duration::from_millis(rng.random_range(800..2500)), rng.random());
        let journal = if round % 2 == 0 { Journal::Wal } else { Journal::Rollback };
        let (mut replaced, mut committed) = (0, 0);
        let (first, firsts) = channel();
        let at_work = std::thread::scope(|scope| {
            let first = &first;
            let (files, books, mounted) = (&mut files, &mut books, &mounted);
            let (replaced, committed) = (&mut replaced, &mut committed);
            scope.spawn(move || {
                *replaced = files.replace(mounted, &mut StdRng::seed_from_u64(random), first);
            });
            scope.spawn(move || *committed = books.keep(&mounted.join("books"), journal, first));
            // In a storm the first commit may take longer than the whole life of another round.
            let at_work = (0..2).all(|_| firsts.recv_timeout(PATIENCE).is_ok());
            std::thread::sleep(life);
            server.kill();
            at_work
        });
        assert!(at_work, "files or commits did not begin within {PATIENCE:?}");
        device.abandon();
        server = world.serve("disk", &["--takeover"]);
        let ready = server.first_read();
        recovery.add(ready);
        device = Device::begin(world, &server);
        let mounted = device.mount("noatime").to_owned();
        files.judge(&mounted);
        let kept = books.judge(&mounted.join("books"));
        device.unmount();
        tool(kind.package, kind.check[0], &[&kind.check[1..], &[&*device.name]].concat());
        let (life, ready) = (life.as_millis(), ready.as_millis());
        table.push(row(&[&round, &life, &replaced, &committed, &kept, &ready]));
    }
    let title =
        format!("{} on {store} and kill -9, seed {seed}: first read after {recovery}", kind.name);
    print(&title, &table);
    device.end();
    server.stop();
}

#[test]
fn s3_kill_9_under_ext4_and_sqlite() {
    rounds(&World::s3(), "S3", &EXT4, 2);
}

#[test]
fn kill_9_under_xfs_and_sqlite_on_a_directory() {
    rounds(&World::directory(), "a directory", &XFS, 2);
}

#[test]
fn s3_kill_9_under_xfs_and_sqlite_in_a_storm() {
    through(&STORM, |world| rounds(world, "S3 in a storm", &XFS, 1));
}
