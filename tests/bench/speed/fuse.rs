//! A file of `objblk mount` against a disk in memory behind the same frontend, with fio as the client of
//! both. Past the kernel's page cache: each request comes to the server.

use crate::contest::{Report, Settings, take_turns};
use crate::world::{World, arg, tool, until};
use objblk::device::Checked;
use objblk::device::ram::RamDisk;
use objblk::error::Result;
use objblk::frontend::fuse::{Catalogue, Facts, Image, ImageName, Lease, MountOptions, Session};
use objblk::units::{BlockSize, SectorCount};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;

const LIMIT: &str = "RAM disk";
const SIZE: u64 = 256 << 20;

/// What fio does, in what unit.
const WORK: [(&str, &str, &str, &[&str]); 4] = [
    ("cached 4 KiB random reads, 32 in flight", "k/s", "read", &["--rw=randread", "--bs=4k"]),
    ("4 KiB random writes, 32 in flight", "k/s", "write", &["--rw=randwrite", "--bs=4k"]),
    ("cached 1 MiB reads in order, 32 in flight", "MB/s", "read", &["--rw=read", "--bs=1m"]),
    ("1 MiB writes in order, 32 in flight", "MB/s", "write", &["--rw=write", "--bs=1m"]),
];

/// One image in memory, by the name `disk`.
struct Memory(Arc<Image<RamDisk>>);

impl Catalogue for Memory {
    type Device = RamDisk;

    async fn volumes(&self) -> Result<Vec<String>> {
        Ok(vec!["disk".to_owned()])
    }

    async fn snapshots(&self, _volume: &str) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    async fn find(&self, name: &ImageName) -> Result<Option<Facts>> {
        let attributes = Vec::new();
        let (id, size, used, changed_at_ms) = ([1; 16], SIZE, SIZE, 0);
        let facts = Facts { id, size, used, read_only: false, changed_at_ms, attributes };
        Ok((name.volume == "disk" && name.snapshot.is_none()).then_some(facts))
    }

    async fn open(&self, _name: &ImageName) -> Result<Lease<RamDisk>> {
        Ok(self.0.lease())
    }
}

/// A mounted directory, until it is dropped.
struct Mounted(TempDir);

impl Mounted {
    fn file(&self) -> PathBuf {
        self.0.path().join("disk.raw")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        tool("util-linux", "umount", &[arg(self.0.path())]);
    }
}

fn memory(runtime: &Runtime) -> Mounted {
    let disk = RamDisk::new(SectorCount(SIZE / 512), BlockSize::B4096);
    let image = Image::new(Arc::new(Checked::new(disk)));
    let dir = TempDir::new().unwrap();
    let (catalogue, options) = (Arc::new(Memory(image)), MountOptions::default());
    runtime.block_on(Session::mount(catalogue, dir.path(), options)).unwrap();
    Mounted(dir)
}

fn ours(world: &World, store: &Path) -> Mounted {
    let store = format!("--store=file://{}", arg(store));
    world.run(&["create", "disk", "--size", "256M", "--compress", "none", &store]);
    let dir = TempDir::new().unwrap();
    world.run(&["mount", arg(dir.path()), "--mem-cache", "512M", &store]);
    let mounted = Mounted(dir);
    until("the volume is a file", || mounted.file().exists());
    mounted
}

fn fio(file: &Path, work: &[&str], direction: &str, time: Option<Duration>) -> Value {
    let size = format!("--size={SIZE}");
    let mut args = vec!["--name=fuse", "--ioengine=libaio", "--direct=1", "--iodepth=32"];
    args.extend(["--thread", "--norandommap", "--randrepeat=0", "--output-format=json"]);
    let name = format!("--filename={}", arg(file));
    args.extend([name.as_str(), &size]);
    args.extend(work);
    let time = time.map(|time| format!("--runtime={}ms", time.as_millis()));
    args.extend(time.iter().flat_map(|time| ["--time_based", time.as_str()]));
    let said = tool("fio", "fio", &args);
    let json = said.find('{').map(|at| &said[at..]).expect("fio prints its figures");
    let figures: Value = serde_json::from_str(json).unwrap();
    figures["jobs"][0][direction].clone()
}

pub fn run(settings: &Settings, report: &mut Report) {
    let runtime = Runtime::new().unwrap();
    let (turn, world) = (settings.turn(3.0), World::directory());
    let store = crate::storing::folder();
    let (ours, limit) = (ours(&world, store.path()), memory(&runtime));
    for (work, unit, direction, args) in WORK {
        let go = |mounted: &Mounted| {
            let figures = fio(&mounted.file(), args, direction, Some(turn));
            let (what, one) = if unit == "k/s" { ("iops", 1e3) } else { ("bw_bytes", 1e6) };
            figures[what].as_f64().filter(|rate| *rate > 0.0).expect("a rate") / one
        };
        for mounted in [&ours, &limit] {
            fio(&mounted.file(), &["--rw=write", "--bs=1m", "--end_fsync=1"], "write", None);
            fio(&mounted.file(), &["--rw=read", "--bs=1m"], "read", None);
        }
        let figures = take_turns(settings.rounds, [&mut || go(&ours), &mut || go(&limit)]);
        report.add(work, unit, LIMIT, figures);
    }
}
