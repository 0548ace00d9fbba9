//! Block devices: that of an attached volume, and for comparison one that is none of ours.

use crate::door::{Door, EINVAL, ENOSPC, Hand, Kind, Refusal, make};
use crate::file_hand::{Behind, FileHand};
use crate::home::{Home, arg, tool, until};
use std::fs::File;
use std::path::PathBuf;

/// Of a device that can only be read. (Kernels before 6.8 do not let it be opened for writing.)
const EPERM: Refusal = Refusal::Errno(1);

pub const UBLK: Kind = Kind {
    name: "ublk",
    make,
    open: attach,
    any_byte: false,
    offsets_in_bytes: true,
    // The kernel makes many of it.
    largest: 4 << 20,
    whole: 512,
    misaligned: EINVAL,
    beyond: (Refusal::Short(0), ENOSPC),
    in_part: true,
    clear_beyond: Some(EINVAL),
    read_only: EPERM,
    outlives: true,
    growth_is_seen: true,
};

/// The kernel's own block device on a file: what the suite expects of a disk is what disks do.
pub const LOOP: Kind = Kind { name: "loop", make: make_file, open: set_up, whole: 8, ..UBLK };

struct UblkDoor {
    home: Home,
    volume: String,
    device: PathBuf,
}

fn attach(home: &Home, volume: &str) -> Box<dyn Door> {
    let device = PathBuf::from(home.ok(&["attach", volume]));
    Box::new(UblkDoor { home: home.clone(), volume: volume.to_owned(), device })
}

impl UblkDoor {
    fn pid(&self) -> Option<u64> {
        let output = self.home.command(&["status", &self.volume, "--json"]).output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        status["pid"].as_u64().or_else(|| status[0]["pid"].as_u64())
    }
}

impl Door for UblkDoor {
    fn hand(&self) -> Box<dyn Hand> {
        Box::new(FileHand::open(&self.device, Behind::BlockDevice))
    }

    /// Its supervisor starts another; the device stays. Then that ends, so that it can be opened anew.
    fn kill(self: Box<Self>) {
        let before = self.pid().expect("the volume is attached");
        tool("kill", &["-9", &before.to_string()]);
        until("a successor serves it", || self.pid().is_some_and(|pid| pid != before));
        self.home.ok(&["detach", &self.volume]);
    }

    fn stop(self: Box<Self>) {
        self.home.ok(&["detach", &self.volume]);
        assert!(!self.device.exists());
    }

    fn give_up(self: Box<Self>) {
        self.home.ok(&["detach", &self.volume, "--force"]);
    }
}

impl Drop for UblkDoor {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.home.command(&["detach", &self.volume, "--force"]).output();
        }
    }
}

fn make_file(home: &Home, name: &str, bytes: u64, block: usize) {
    File::create(home.path(&format!("{name}-{block}"))).unwrap().set_len(bytes).unwrap();
}

struct LoopDoor(PathBuf);

fn set_up(home: &Home, name: &str) -> Box<dyn Door> {
    let blocks =
        [512, 4096].map(|block| (block.to_string(), home.path(&format!("{name}-{block}"))));
    let (block, file) = blocks.iter().find(|(_, file)| file.exists()).unwrap();
    let device = tool("losetup", &["--find", "--show", "--sector-size", block, arg(file)]);
    Box::new(LoopDoor(device.into()))
}

impl Door for LoopDoor {
    fn hand(&self) -> Box<dyn Hand> {
        Box::new(FileHand::open(&self.0, Behind::BlockDevice))
    }

    fn kill(self: Box<Self>) {
        unreachable!("nobody serves it");
    }

    fn stop(self: Box<Self>) {}

    fn give_up(self: Box<Self>) {}
}

impl Drop for LoopDoor {
    fn drop(&mut self) {
        tool("losetup", &["--detach", arg(&self.0)]);
    }
}
