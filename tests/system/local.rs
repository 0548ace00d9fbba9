//! Local durability: a flush is done when the journal on this host has it; the store follows.

use crate::proxy::Proxy;
use crate::s3::S3Lab;
use crate::world::{World, arg};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Where a host keeps its journals, and how much of one.
pub struct Local {
    folder: TempDir,
    size: &'static str,
}

impl Local {
    /// In the build folder: a journal refuses file systems in memory.
    pub fn new(size: &'static str) -> Local {
        Local { folder: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(), size }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The flags of a server with local durability.
    pub fn args(&self) -> Vec<&str> {
        let folder = arg(self.folder());
        vec!["--durability", "local", "--journal", folder, "--journal-size", self.size]
    }

    /// As [`Local::args`], and more.
    pub fn and<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&self.args(), more].concat()
    }

    /// The journal of the volume with this id.
    pub fn file(&self, id: &str) -> PathBuf {
        self.folder().join(format!("{id}.journal"))
    }

    /// The host's disk is lost.
    pub fn lose(&self) {
        fs::remove_dir_all(self.folder()).unwrap();
        fs::create_dir(self.folder()).unwrap();
    }
}

/// A store behind a proxy that can be cut, and the same store past it.
pub fn behind_proxy() -> (World, World, Proxy) {
    let direct = World::s3();
    let proxy = direct.wait(Proxy::start(&S3Lab::get().endpoint));
    (direct.by(proxy.endpoint()), direct, proxy)
}

/// What would be lost if this host vanished now.
#[derive(Clone, Copy, Debug)]
pub struct Lag {
    pub bytes: u64,
    pub time: Duration,
}

/// The volume's status, which must be that of local durability.
#[track_caller]
pub fn status(world: &World) -> Value {
    let status = world.json(&["status", "disk"]);
    assert_eq!(status["durability"], "local", "{status}");
    status
}

#[track_caller]
pub fn lag(world: &World) -> Lag {
    let status = status(world);
    let number = |name: &str| {
        let number = status["commit_lag"][name].as_u64();
        number.unwrap_or_else(|| panic!("no commit_lag.{name}: {status}"))
    };
    Lag { bytes: number("bytes"), time: Duration::from_millis(number("ms")) }
}

/// Waits until the store has everything.
#[track_caller]
pub fn caught_up(world: &World, patience: Duration) -> Duration {
    let begun = Instant::now();
    loop {
        let lag = lag(world);
        if lag.bytes == 0 {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < patience, "the store does not follow: {lag:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}
