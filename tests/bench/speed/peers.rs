//! objblk on S3 beside other disks on object storage: s3backer, ZeroFS and nbdkit's S3 plugin on the same S3
//! server, and Ceph's own block device on the same cluster, below its S3 gateway. fio is the client of all.
//!
//! objblk, ZeroFS and nbdkit are served over NBD, s3backer is a file in FUSE, RBD is fio's own engine. All have
//! what they come with: objblk 64 MiB of cached data, s3backer blocks of 128 KiB and a cache of 512 of them
//! (64 MiB), ZeroFS 64 MiB and all of it on a disk, nbdkit none, librbd its cache. Debian has neither ZeroFS
//! (`cargo install zerofs`) nor nbdkit's plugin (see [`nbdkit_s3`]): without them, their parts are left out, which
//! is said.
//!
//! What a flush means: objblk and RBD have it stored; s3backer 1.5 has no flush, what its cache holds is
//! written 250 ms later (its rate "with a flush each" is that of a cache).

use crate::contest::{Report, Settings, take_turns};
use crate::nbdkit_s3::{self, NbdkitS3};
use crate::s3::{Bucket, S3Lab};
use crate::store::server_settings;
use crate::world::{Served, World, arg, attempt, tool, until};
use crate::zerofs::{self, ZeroFs};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Of the disks.
pub const SIZE: &str = "1g";
pub const SIZE_BYTES: u64 = 1 << 30;

/// What fio does.
#[derive(Clone, Copy, Debug)]
struct Job {
    name: &'static str,
    unit: &'static str,
    args: &'static [&'static str],
    /// How long, in seconds; without, until it is done.
    seconds: Option<f64>,
    /// The disk was closed before, and nothing of it is cached.
    cold: bool,
}

const JOBS: [Job; 6] = [
    Job {
        name: "cold 1 MiB reads in order of what was written so, 1 in flight",
        unit: "MB/s",
        args: &["--rw=read", "--bs=1m", "--iodepth=1", "--size=256m"],
        seconds: None,
        cold: true,
    },
    Job {
        name: "4 KiB random writes and a flush, 32 in flight",
        unit: "MB/s",
        args: &["--rw=randwrite", "--bs=4k", "--iodepth=32", "--end_fsync=1"],
        seconds: Some(20.0),
        cold: false,
    },
    Job {
        name: "4 KiB writes with a flush each",
        unit: "/s",
        args: &["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"],
        seconds: Some(10.0),
        cold: false,
    },
    Job {
        name: "4 KiB random reads of 32 MiB, 32 in flight",
        unit: "MB/s",
        args: &["--rw=randread", "--bs=4k", "--iodepth=32", "--size=32m", "--ramp_time=2"],
        seconds: Some(8.0),
        cold: false,
    },
    Job {
        name: "cold 1 MiB reads in order of random writes, 1 in flight",
        unit: "MB/s",
        args: &["--rw=read", "--bs=1m", "--iodepth=1", "--size=256m"],
        seconds: None,
        cold: true,
    },
    Job {
        name: "cold 4 KiB random reads, 32 in flight",
        unit: "MB/s",
        args: &["--rw=randread", "--bs=4k", "--iodepth=32"],
        seconds: Some(8.0),
        cold: true,
    },
];

/// A disk that fio can use.
pub trait Disk {
    fn name(&self) -> &'static str;
    /// Makes it usable. Returns fio's arguments for it.
    fn open(&mut self) -> Vec<String>;
    /// Has everything stored, and forgets what it cached.
    fn close(&mut self);
}

struct Objblk {
    world: World,
    served: Option<Served>,
}

impl Objblk {
    /// With a new disk instead of what it had.
    fn begin_anew(&mut self) {
        self.close();
        self.world.run(&["delete", "disk", "--now", "--yes"]);
        self.world.run(&["create", "disk", "--size", "1G"]);
    }
}

impl Disk for Objblk {
    fn name(&self) -> &'static str {
        "objblk"
    }

    fn open(&mut self) -> Vec<String> {
        let served = self.served.get_or_insert_with(|| self.world.serve("disk", &[]));
        vec!["--ioengine=nbd".into(), format!("--uri={}", served.uri)]
    }

    fn close(&mut self) {
        self.served.take().into_iter().for_each(Served::stop);
    }
}

struct S3backer {
    bucket: Bucket,
    folder: TempDir,
    child: Option<Child>,
}

impl S3backer {
    fn mounted(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }
}

impl Disk for S3backer {
    fn name(&self) -> &'static str {
        "s3backer"
    }

    fn open(&mut self) -> Vec<String> {
        let (lab, mounted) = (S3Lab::get(), self.mounted());
        let file = mounted.join("file");
        if self.child.is_none() {
            let password = self.folder.path().join("password");
            let keys = [lab.var("AWS_ACCESS_KEY_ID"), lab.var("AWS_SECRET_ACCESS_KEY")];
            fs::write(&password, format!("{}:{}\n", keys[0], keys[1])).unwrap();
            fs::create_dir_all(&mounted).unwrap();
            let mut command = Command::new("s3backer");
            command.args(["-f", "--quiet", "--blockSize=128k", "--blockCacheSize=512"]);
            command.args(["--force", "--blockHashPrefix", "--authVersion=aws4"]);
            command.arg(format!("--size={SIZE}")).arg(format!("--accessFile={}", arg(&password)));
            command
                .arg(format!("--baseURL={}/", lab.endpoint))
                .arg(&self.bucket.name)
                .arg(&mounted);
            let child = command.stdin(Stdio::null()).spawn();
            self.child = Some(child.expect("s3backer is missing: install the package s3backer"));
            until("s3backer shows its file", || file.exists());
        }
        let engine = ["--ioengine=libaio", "--direct=1"].map(str::to_owned);
        engine.into_iter().chain([format!("--filename={}", arg(&file))]).collect()
    }

    fn close(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // Its cache is written behind: it ends when that is done.
        tool("util-linux", "umount", &[arg(&self.mounted())]);
        child.wait().unwrap();
    }
}

/// An image in a pool that is made for it.
struct Rbd;

impl Rbd {
    fn new() -> Rbd {
        let config = server_settings();
        let ask = |program, args: &[&str]| {
            tool("ceph-common", program, &[&["-c", arg(&config)], args].concat());
        };
        ask("ceph", &["osd", "pool", "create", "rbd", "8"]);
        ask("ceph", &["osd", "pool", "application", "enable", "rbd", "rbd"]);
        Rbd::remove();
        ask("rbd", &["create", "--size", "1G", "rbd/speed"]);
        Rbd
    }

    fn remove() {
        let rm =
            ["-c", arg(&server_settings()), "rm", "--no-progress", "rbd/speed"].map(str::to_owned);
        attempt("ceph-common", "rbd", &rm.each_ref().map(String::as_str));
    }
}

impl Drop for Rbd {
    fn drop(&mut self) {
        Rbd::remove();
    }
}

impl Disk for Rbd {
    fn name(&self) -> &'static str {
        "rbd"
    }

    fn open(&mut self) -> Vec<String> {
        ["--ioengine=rbd", "--pool=rbd", "--rbdname=speed", "--clientname=admin"]
            .map(str::to_owned)
            .to_vec()
    }

    fn close(&mut self) {}
}

/// Has fio do it: its figures, and how long all of it took.
fn fio(disk: &mut dyn Disk, args: &[&str]) -> (Value, f64) {
    let engine = disk.open();
    let mut command = Command::new("fio");
    command.args(["--name=peers", "--thread", "--randrepeat=0", "--norandommap"]);
    command.arg("--output-format=json").arg(format!("--size={SIZE}"));
    // Its RBD engine finds the cluster so.
    command.env("CEPH_CONF", server_settings()).args(engine).args(args);
    let begun = Instant::now();
    let output = command.output().expect("fio is missing: install the Debian package fio");
    let took = begun.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "fio on {}: {said}", disk.name());
    let json = said.find('{').map(|at| &said[at..]).expect("fio prints its figures");
    let figures: Value = serde_json::from_str(json).unwrap();
    (figures["jobs"][0].clone(), took)
}

/// Writes all of it.
fn fill(disk: &mut dyn Disk) {
    fio(disk, &["--rw=write", "--bs=1m", "--iodepth=4", "--end_fsync=1"]);
    disk.close();
}

fn turn(disk: &mut dyn Disk, job: &Job, settings: &Settings) -> f64 {
    if job.cold {
        disk.close();
    }
    let time = job.seconds.map(|usual| settings.turn(usual));
    let time = time.map(|time| format!("--runtime={}ms", time.as_millis()));
    let mut args = job.args.to_vec();
    args.extend(time.iter().flat_map(|time| ["--time_based", time.as_str()]));
    let (figures, took) = fio(disk, &args);
    let direction = if job.args[0].contains("write") { "write" } else { "read" };
    let of = |what: &str| figures[direction][what].as_f64().expect("a figure of fio");
    match (job.unit, direction) {
        ("/s", _) => of("iops"),
        // With the flush at its end.
        (_, "write") => of("io_bytes") / 1e6 / took,
        _ => of("bw_bytes") / 1e6,
    }
}

/// Makes a disk, where it can be had.
type Begin<'a> = Box<dyn Fn() -> Option<Box<dyn Disk>> + 'a>;

/// Those that are there, one after the other.
fn peers(runtime: &Runtime) -> impl Iterator<Item = Box<dyn Disk>> {
    let bucket = || runtime.block_on(S3Lab::get().bucket());
    let s3backer = move || -> Option<Box<dyn Disk>> {
        let folder = tempfile::tempdir().unwrap();
        Some(Box::new(S3backer { bucket: bucket(), folder, child: None }))
    };
    let zerofs = move || -> Option<Box<dyn Disk>> {
        if Command::new(zerofs::PROGRAM).arg("--version").output().is_err() {
            println!("left out: ZeroFS, because there is no {} in PATH", zerofs::PROGRAM);
            return None;
        }
        Some(Box::new(ZeroFs::new(bucket())))
    };
    let nbdkit = move || -> Option<Box<dyn Disk>> {
        let Some(plugin) = std::env::var_os(nbdkit_s3::PLUGIN) else {
            println!(
                "left out: nbdkit's S3 plugin, because {} does not say where it is",
                nbdkit_s3::PLUGIN
            );
            return None;
        };
        Some(Box::new(NbdkitS3::new(bucket(), plugin.to_str().unwrap())))
    };
    let rbd = || -> Option<Box<dyn Disk>> { Some(Box::new(Rbd::new())) };
    let all: [Begin<'_>; 4] =
        [Box::new(rbd), Box::new(s3backer), Box::new(zerofs), Box::new(nbdkit)];
    all.into_iter().filter_map(|begin| begin())
}

pub fn run(settings: &Settings, report: &mut Report) {
    let runtime = Runtime::new().unwrap();
    let world = World::s3();
    world.run(&["create", "disk", "--size", "1G"]);
    let mut ours = Objblk { world, served: None };
    for mut peer in peers(&runtime) {
        // In order, as the peer's.
        ours.begin_anew();
        fill(&mut ours);
        fill(&mut *peer);
        for job in &JOBS {
            let figures = take_turns(
                settings.rounds,
                [&mut || turn(&mut ours, job, settings), &mut || turn(&mut *peer, job, settings)],
            );
            report.add(job.name, job.unit, peer.name(), figures);
        }
        peer.close();
    }
    ours.close();
}
