//! `objblk serve nbd` against nbdkit's memory plugin, with fio as the client of both, on unix sockets.

use crate::contest::{Report, Settings, take_turns};
use crate::storing::{Storing, folder};
use crate::world::{Served, World, arg, tool};
use serde_json::Value;
use std::cell::Cell;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const LIMIT: &str = "nbdkit memory";
/// What goes on to a store is put there by somebody else, at the same rate.
const STORING: &str = "nbdkit memory, and as many bytes put";
/// Of what is read, all of it from memory.
const READ: &str = "256m";
/// Of what is written: so much that a turn leaves little to collect.
const WRITTEN: &str = "8g";
/// Bytes of a burst, how many make a turn, and how long the pauses are.
const BURST: usize = 32 << 20;
const BURSTS: usize = 8;
const PAUSE: Duration = Duration::from_millis(300);
/// In flight on each connection.
const DEPTH: &str = "--iodepth=32";

/// nbdkit, until it is dropped.
struct Nbdkit {
    child: Child,
    uri: String,
    _folder: TempDir,
}

impl Nbdkit {
    fn start(size: &str) -> Nbdkit {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("nbdkit.sock");
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--unix", arg(&socket), "memory", size]);
        let child = command.stdin(Stdio::null()).spawn();
        let child = child.expect("nbdkit is missing: install the Debian package nbdkit");
        crate::world::until("nbdkit serves", || socket.exists());
        let uri = format!("nbd+unix:///?socket={}", arg(&socket));
        Nbdkit { child, uri, _folder: folder }
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// objblk on a store in a directory.
struct Ours {
    world: World,
    folder: TempDir,
}

impl Ours {
    fn new() -> Ours {
        Ours { world: World::directory(), folder: folder() }
    }

    /// Serves a new volume, which does not compress: the limit does not either.
    fn serve(&self, size: &str, cache: &str) -> Served {
        let store = format!("--store=file://{}", arg(self.folder.path()));
        self.world.run(&["create", "disk", "--size", size, "--compress", "none", &store]);
        self.world.serve("disk", &["--mem-cache", cache, &store])
    }

    /// Frees the room of its store.
    fn delete(&self) {
        let store = format!("--store=file://{}", arg(self.folder.path()));
        self.world.run(&["delete", "disk", "--now", "--yes", &store]);
    }
}

/// Has fio do it at `args`: thousands a second.
fn fio(uri: &str, work: &str, connections: usize, args: &[&str]) -> f64 {
    let (rw, uri) = (format!("--rw={work}"), format!("--uri={uri}"));
    let jobs = format!("--numjobs={connections}");
    let size = format!("--size={}", if work == "randread" { READ } else { WRITTEN });
    let mut all = vec!["--name=speed", "--ioengine=nbd", "--bs=4k", "--thread", DEPTH];
    all.extend(["--group_reporting", "--norandommap", "--randrepeat=0"]);
    all.extend(["--output-format=json", &rw, &uri, &jobs, &size]);
    all.extend(args);
    let said = tool("fio", "fio", &all);
    // Notes for people may come first.
    let json = said.find('{').map(|at| &said[at..]).expect("fio prints its figures");
    let figures: Value = serde_json::from_str(json).unwrap();
    let direction = work.trim_start_matches("rand");
    let rate = figures["jobs"][0][direction]["iops"].as_f64().expect("a rate");
    assert!(rate > 0.0, "fio did nothing: {said}");
    rate / 1e3
}

/// For a while, and as long before that what does not count.
fn on_and_on(uri: &str, work: &str, connections: usize, turn: Duration) -> f64 {
    let [ramp, time] =
        ["ramp_time", "runtime"].map(|what| format!("--{what}={}ms", turn.as_millis()));
    fio(uri, work, connections, &["--time_based", &ramp, &time])
}

/// Random writes in bursts that memory takes, with pauses in which they are stored: the bursts alone.
fn in_bursts(uri: &str, connections: usize) -> f64 {
    let each = format!("--io_size={}", BURST / connections);
    let burst = || {
        std::thread::sleep(PAUSE);
        fio(uri, "randwrite", connections, &[&each])
    };
    // The first ones warm up.
    let mut rates: Vec<f64> = (0..BURSTS).map(|_| burst()).skip(BURSTS / 4).collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// Writes all of it and reads it back, so that the server has it in memory.
fn fill(uri: &str, size: &str) {
    for work in ["write", "read"] {
        let (rw, uri, size) =
            (format!("--rw={work}"), format!("--uri={uri}"), format!("--size={size}"));
        let args = ["--name=fill", "--ioengine=nbd", "--bs=1m", "--end_fsync=1", &rw, &uri, &size];
        tool("fio", "fio", &args);
    }
}

pub fn run(settings: &Settings, report: &mut Report) {
    let turn = settings.turn(3.0);
    let limit = Nbdkit::start(READ);
    fill(&limit.uri, READ);
    for connections in [1, 4] {
        let ours = Ours::new();
        let served = ours.serve(READ, "512M");
        fill(&served.uri, READ);
        let figures = take_turns(
            settings.rounds,
            [&mut || on_and_on(&served.uri, "randread", connections, turn), &mut || {
                on_and_on(&limit.uri, "randread", connections, turn)
            }],
        );
        let work = format!("cached 4 KiB random reads, {connections} x 32 in flight");
        report.add(&work, "k/s", LIMIT, figures);
        served.stop();
    }
    drop(limit);
    let limit = Nbdkit::start(WRITTEN);
    fill(&limit.uri, WRITTEN);
    for connections in [1, 4] {
        let ours = Ours::new();
        let served = ours.serve(WRITTEN, "256M");
        let mut write = || in_bursts(&served.uri, connections);
        let mut alone = || in_bursts(&limit.uri, connections);
        let figures = take_turns(settings.rounds, [&mut write, &mut alone]);
        let work =
            format!("buffered 4 KiB random writes, bursts of 32 MiB, {connections} x 32 in flight");
        report.add(&work, "k/s", LIMIT, figures);
        served.stop();
        ours.delete();
        let rate = Cell::new(0.0);
        let mut write = || {
            let served = ours.serve(WRITTEN, "256M");
            rate.set(on_and_on(&served.uri, "randwrite", connections, turn));
            served.stop();
            ours.delete();
            rate.get()
        };
        let work = format!("buffered 4 KiB random writes, {connections} x 32 in flight");
        let mut alone = || on_and_on(&limit.uri, "randwrite", connections, turn);
        let figures = take_turns(settings.rounds, [&mut write, &mut alone]);
        report.add(&work, "k/s", LIMIT, figures);
        let mut storing = || {
            let _storing = Storing::begin(rate.get() * 1e3 * 4096.0);
            on_and_on(&limit.uri, "randwrite", connections, turn)
        };
        let figures = take_turns(settings.rounds, [&mut write, &mut storing]);
        report.add(&work, "k/s", STORING, figures);
    }
}
