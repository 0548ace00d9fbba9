//! `objblk serve vhost-user` against `qemu-storage-daemon` with a file in memory, with the tests' own driver as
//! the guest of both: 32 requests of 4 KiB in flight, on two queues.

use crate::contest::{Report, Settings, take_turns};
use crate::disk::{Dice, noise};
use crate::master::{Master, OK, PACKED, Request, SLOTS, SPLIT, Wishes};
use crate::storing::{Storing, folder};
use crate::world::{World, arg, until};
use std::cell::Cell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const LIMIT: &str = "qemu-storage-daemon, RAM";
/// What goes on to a store is put there by somebody else, at the same rate.
const STORING: &str = "the same, and as many bytes put";
const MIB: u64 = 256;
const PAGE: usize = 4096;
/// Pages, and the sectors of one.
const PAGES: u64 = MIB << 8;
const SECTORS: u64 = 8;
const QUEUES: usize = 2;
/// A server, until it is dropped.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(mut command: Command, socket: PathBuf) -> Server {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.expect("a server is missing: install the Debian package qemu-utils");
        until("it listens", || socket.exists());
        Server { child, socket }
    }

    fn connect(&self, shape: Wishes) -> Master {
        let wishes = Wishes { queues: QUEUES, inflight: false, ..shape };
        let master = Master::begin_when_free(&self.socket, wishes);
        assert_eq!(master.is_packed(), shape.packed, "packed rings are not offered");
        master
    }
}

fn daemon(folder: &Path) -> Server {
    let (file, socket) = (folder.join("ram"), folder.join("qsd.sock"));
    File::create(&file).unwrap().set_len(MIB << 20).unwrap();
    let mut command = Command::new("qemu-storage-daemon");
    command.arg("--blockdev").arg(format!("driver=file,node-name=ram,filename={}", arg(&file)));
    let export = "type=vhost-user-blk,id=export,node-name=ram,writable=on,num-queues=2";
    let address = format!("addr.type=unix,addr.path={}", arg(&socket));
    command.arg("--export").arg(format!("{export},{address}"));
    Server::start(command, socket)
}

/// With its run directory in memory, as `/run` is: what a successor goes on from is written there.
fn ours(world: &World, store: &str, run: &Path) -> Server {
    let (size, socket) = (format!("{MIB}M"), world.path("vhost.sock"));
    world.run(&["create", "disk", "--size", &size, "--compress", "none", store]);
    let serve = ["serve", "vhost-user", "disk", "--mem-cache", "512M", store, "--socket"];
    let mut command = world.objblk(&serve);
    command.arg(&socket).env("OBJBLK_RUN_DIR", run);
    Server::start(command, socket)
}

/// What is asked for.
#[derive(Clone, Copy)]
enum Work {
    Read,
    Write,
}

/// Thousands of requests a second.
fn drive(server: &Server, shape: Wishes, work: Work, turn: Duration) -> f64 {
    let mut master = server.connect(shape);
    let (data, mut dice, mut done) = (noise(PAGE), Dice::new(8), 0_u64);
    let mut ask = |master: &mut Master, ring| {
        let sector = dice.below(PAGES) * SECTORS;
        match work {
            Work::Read => master.submit(ring, &Request::read(sector, PAGE)),
            Work::Write => master.submit(ring, &Request::write(sector, &data)),
        };
    };
    for ring in 0..QUEUES {
        (0..SLOTS).for_each(|_| ask(&mut master, ring));
        master.kick(ring);
    }
    let begun = Instant::now();
    while begun.elapsed() < turn {
        let before = done;
        for ring in 0..QUEUES {
            let mut answered = 0;
            while let Some((slot, _)) = master.poll(ring) {
                assert_eq!(master.outcome(ring, slot, 0).0, OK);
                ask(&mut master, ring);
                answered += 1;
            }
            if answered > 0 {
                master.kick(ring);
                done += answered;
            }
        }
        if done == before {
            // Both processors are wanted by others.
            std::thread::yield_now();
        }
    }
    let rate = done as f64 / begun.elapsed().as_secs_f64() / 1e3;
    for ring in 0..QUEUES {
        for _ in 0..SLOTS {
            master.wait(ring);
        }
    }
    rate
}

/// Writes all of it and reads it back, so that the server has it in memory.
fn fill(server: &Server) {
    let mut master = server.connect(SPLIT);
    let piece = noise(256 << 10);
    let sectors = piece.len() as u64 / 512;
    for at in (0..(MIB << 20) / 512).step_by(sectors as usize) {
        master.write(at, &piece);
    }
    master.flush();
    for at in (0..(MIB << 20) / 512).step_by(sectors as usize) {
        assert!(master.read(at, piece.len()) == piece);
    }
}

pub fn run(settings: &Settings, report: &mut Report) {
    let memory = || TempDir::new_in("/dev/shm").unwrap();
    let (turn, world) = (settings.turn(3.0), World::directory());
    let (store, ram, run) = (folder(), memory(), memory());
    let store = format!("--store=file://{}", arg(store.path()));
    let (ours, limit) = (ours(&world, &store, &run.path().join("run")), daemon(ram.path()));
    for server in [&ours, &limit] {
        fill(server);
    }
    let works = [(Work::Read, "cached 4 KiB random reads"), (Work::Write, "4 KiB random writes")];
    for (work, name) in works {
        // The daemon offers no packed rings.
        for (shape, rings) in [(SPLIT, ""), (PACKED, ", packed rings")] {
            let figures = take_turns(
                settings.rounds,
                [&mut || drive(&ours, shape, work, turn), &mut || drive(&limit, SPLIT, work, turn)],
            );
            report.add(&format!("{name}, 2 x 16 in flight{rings}"), "k/s", LIMIT, figures);
        }
    }
    let rate = Cell::new(0.0);
    let mut write = || {
        rate.set(drive(&ours, SPLIT, Work::Write, turn));
        rate.get()
    };
    let mut storing = || {
        let _storing = Storing::begin(rate.get() * 1e3 * PAGE as f64);
        drive(&limit, SPLIT, Work::Write, turn)
    };
    let figures = take_turns(settings.rounds, [&mut write, &mut storing]);
    report.add("4 KiB random writes, 2 x 16 in flight", "k/s", STORING, figures);
}
