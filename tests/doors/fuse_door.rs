//! A file of a mounted directory.

use crate::door::{Door, ENOSPC, Hand, Kind, Refusal, make};
use crate::file_hand::{Behind, FileHand};
use crate::home::{Home, arg, tool, until};
use std::fs;
use std::path::PathBuf;

const EROFS: Refusal = Refusal::Errno(30);

pub const FUSE: Kind = Kind {
    name: "FUSE",
    make,
    open,
    any_byte: true,
    offsets_in_bytes: true,
    largest: 16 << 20,
    // The kernel copies to and from its page cache word by word.
    whole: 8,
    misaligned: Refusal::Gone,
    beyond: (Refusal::Short(0), ENOSPC),
    in_part: true,
    clear_beyond: None,
    read_only: EROFS,
    outlives: false,
    growth_is_seen: true,
};

struct FuseDoor {
    home: Home,
    dir: PathBuf,
    file: PathBuf,
    pid: u64,
}

fn open(home: &Home, volume: &str) -> Box<dyn Door> {
    let dir = home.path("mnt");
    let _ = fs::create_dir(&dir);
    let pid = home.json(&["mount", arg(&dir)])["pid"].as_u64().unwrap();
    let file = match volume.split_once('@') {
        None => dir.join(format!("{volume}.raw")),
        Some((volume, snapshot)) => dir.join(format!(".snapshots/{volume}/{snapshot}.raw")),
    };
    Box::new(FuseDoor { home: home.clone(), dir, file, pid })
}

impl Door for FuseDoor {
    fn hand(&self) -> Box<dyn Hand> {
        Box::new(FileHand::open(&self.file, Behind::File))
    }

    fn kill(self: Box<Self>) {
        tool("kill", &["-9", &self.pid.to_string()]);
        until("the kernel knows that the directory is dead", || fs::read_dir(&self.dir).is_err());
        self.home.ok(&["umount", arg(&self.dir)]);
    }

    fn stop(self: Box<Self>) {
        // A program that another thread is just starting has our files until it runs.
        until("nobody has a file of it", || {
            let ended = self.home.command(&["umount", arg(&self.dir)]).output().unwrap();
            let said = String::from_utf8_lossy(&ended.stderr);
            assert!(ended.status.success() || said.contains("is in use"), "{ended:?}");
            ended.status.success()
        });
    }

    fn give_up(self: Box<Self>) {
        self.home.ok(&["umount", "--force", arg(&self.dir)]);
    }
}

impl Drop for FuseDoor {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let umount = ["umount", "--force", arg(&self.dir)];
            let _ = self.home.command(&umount).output();
        }
    }
}
