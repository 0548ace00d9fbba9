//! A host with a pool, and the program at work on it.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// For whatever has to come about.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Says where the program is, in a guest that has it elsewhere than where it was built.
const PROGRAM: &str = "OBJBLK_DOORS_PROGRAM";

/// A run directory, and the way to a pool.
#[derive(Clone)]
pub struct Home {
    folder: Arc<TempDir>,
    host: &'static str,
    env: Vec<(&'static str, String)>,
}

impl Home {
    /// With a pool in a directory.
    pub fn directory() -> Home {
        let home = Home::of("", Vec::new());
        let store = format!("file://{}", home.store().display());
        Home { env: vec![("OBJBLK_STORE", store)], ..home }
    }

    /// With the pool at `store`, which these variables are for as well.
    pub fn of(store: &str, env: Vec<(&'static str, String)>) -> Home {
        // In memory: nobody waits for a disk that many tests share.
        let folder = Arc::new(tempfile::tempdir_in("/dev/shm").unwrap());
        let store = ("OBJBLK_STORE", store.to_owned());
        Home { folder, host: "here", env: env.into_iter().chain([store]).collect() }
    }

    /// The same pool, seen from another host.
    pub fn elsewhere(&self) -> Home {
        Home { host: "elsewhere", ..self.clone() }
    }

    /// Where the pool is, if it is in a directory.
    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let program = std::env::var(PROGRAM);
        let program = program.unwrap_or_else(|_| env!("CARGO_BIN_EXE_objblk").to_owned());
        let mut command = Command::new(program);
        let ours = |name: &str| name.starts_with("AWS_") || name.starts_with("OBJBLK_");
        for (name, _) in std::env::vars().filter(|(name, _)| ours(name)) {
            command.env_remove(name);
        }
        command.env_remove("RUST_LOG").env_remove("XDG_CONFIG_HOME").env("HOME", self.path(""));
        command.env("OBJBLK_RUN_DIR", self.path(self.host));
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.args(args).stdin(Stdio::null());
        command
    }

    /// Runs a verb that must succeed; what it printed.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "objblk {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["--json"]].concat())).unwrap()
    }

    /// Starts a server that says a line when it is ready.
    #[track_caller]
    pub fn start(&self, args: &[&str]) -> Server {
        let log = self.path(&format!("log-{}", rand::random::<u64>()));
        let mut command = self.command(args);
        command.stdout(Stdio::piped()).stderr(File::create(&log).unwrap());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let server = Server { child, log, line: line.trim_end().to_owned() };
        assert!(!server.line.is_empty(), "objblk {args:?}: {}", server.said());
        server
    }
}

/// A running server. Killed where the test fails.
pub struct Server {
    child: Child,
    log: PathBuf,
    /// What it said when it was ready.
    pub line: String,
}

impl Server {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Ends it as a crash does.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it in order.
    #[track_caller]
    pub fn stop(mut self) {
        tool("kill", &["-s", "TERM", &self.pid().to_string()]);
        until("the server ends", || self.child.try_wait().unwrap().is_some());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.said());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something is so.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs another program, which must succeed; what it printed.
#[track_caller]
pub fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{program} cannot be run: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}
