//! `objblk serve nbd` against nbdkit's memory plugin, with fio as the client of both, on unix sockets.

use crate::contest::{Report, Settings, take_turns};
use crate::storing::Storing;
use crate::world::{Served, World, arg, tool};
use serde_json::Value;
use std::cell::Cell;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const LIMIT: &str = "nbdkit memory";
/// What goes on to a store is put there by somebody else, at the same rate.
const STORING: &str = "nbdkit memory, and as many bytes put";
const SIZE: &str = "256m";
/// In flight on each connection.
const DEPTH: &str = "--iodepth=32";

/// nbdkit, until it is dropped.
struct Nbdkit {
    child: Child,
    uri: String,
    _folder: TempDir,
}

impl Nbdkit {
    fn start() -> Nbdkit {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("nbdkit.sock");
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--unix", arg(&socket), "memory", SIZE]);
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

/// objblk on a store in memory: a directory of the kernel's shared memory.
struct Ours {
    world: World,
    folder: TempDir,
}

impl Ours {
    fn new() -> Ours {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        Ours { world: World::directory(), folder }
    }

    /// Serves a new volume, which does not compress: the limit does not either.
    fn serve(&self) -> Served {
        let store = format!("--store=file://{}", arg(self.folder.path()));
        self.world.run(&["create", "disk", "--size", SIZE, "--compress", "none", &store]);
        self.world.serve("disk", &["--mem-cache", "512M", &store])
    }

    /// Frees the memory of its store.
    fn delete(&self) {
        let store = format!("--store=file://{}", arg(self.folder.path()));
        self.world.run(&["delete", "disk", "--now", "--yes", &store]);
    }
}

/// Has fio do it for a while: thousands a second.
fn fio(uri: &str, work: &str, connections: usize, turn: Duration) -> f64 {
    let (rw, uri) = (format!("--rw={work}"), format!("--uri={uri}"));
    let (jobs, size) = (format!("--numjobs={connections}"), format!("--size={SIZE}"));
    let time = format!("--runtime={}ms", turn.as_millis());
    let mut args = vec!["--name=speed", "--ioengine=nbd", "--bs=4k", "--thread", DEPTH];
    args.extend(["--group_reporting", "--time_based", "--norandommap", "--randrepeat=0"]);
    args.extend(["--output-format=json", &rw, &uri, &jobs, &size, &time]);
    let said = tool("fio", "fio", &args);
    // Notes for people may come first.
    let json = said.find('{').map(|at| &said[at..]).expect("fio prints its figures");
    let figures: Value = serde_json::from_str(json).unwrap();
    let direction = work.trim_start_matches("rand");
    let rate = figures["jobs"][0][direction]["iops"].as_f64().expect("a rate");
    assert!(rate > 0.0, "fio did nothing: {said}");
    rate / 1e3
}

/// Writes all of it and reads it back, so that the server has it in memory.
fn fill(uri: &str) {
    for work in ["write", "read"] {
        let (rw, uri, size) =
            (format!("--rw={work}"), format!("--uri={uri}"), format!("--size={SIZE}"));
        let args = ["--name=fill", "--ioengine=nbd", "--bs=1m", "--end_fsync=1", &rw, &uri, &size];
        tool("fio", "fio", &args);
    }
}

pub fn run(settings: &Settings, report: &mut Report) {
    assert!(Path::new("/dev/shm").is_dir(), "a store in memory needs /dev/shm");
    let turn = settings.turn(3.0);
    let limit = Nbdkit::start();
    fill(&limit.uri);
    for connections in [1, 4] {
        let ours = Ours::new();
        let served = ours.serve();
        fill(&served.uri);
        let figures = take_turns(
            settings.rounds,
            [&mut || fio(&served.uri, "randread", connections, turn), &mut || {
                fio(&limit.uri, "randread", connections, turn)
            }],
        );
        let work = format!("cached 4 KiB random reads, {connections} x 32 in flight");
        report.add(&work, "k/s", LIMIT, figures);
        served.stop();
    }
    for connections in [1, 4] {
        let ours = Ours::new();
        let rate = Cell::new(0.0);
        let mut write = || {
            let served = ours.serve();
            rate.set(fio(&served.uri, "randwrite", connections, turn));
            served.stop();
            ours.delete();
            rate.get()
        };
        let work = format!("buffered 4 KiB random writes, {connections} x 32 in flight");
        let mut alone = || fio(&limit.uri, "randwrite", connections, turn);
        let figures = take_turns(settings.rounds, [&mut write, &mut alone]);
        report.add(&work, "k/s", LIMIT, figures);
        let mut storing = || {
            let _storing = Storing::begin(rate.get() * 1e3 * 4096.0);
            fio(&limit.uri, "randwrite", connections, turn)
        };
        let figures = take_turns(settings.rounds, [&mut write, &mut storing]);
        report.add(&work, "k/s", STORING, figures);
    }
}
