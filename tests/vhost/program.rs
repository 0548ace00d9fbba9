//! The program serving a disk, in a home of its own.

use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// For a process to begin or end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A user on a host, with a pool in a directory.
pub struct Home {
    folder: Arc<TempDir>,
    host: &'static str,
}

/// A process that serves; killed when dropped.
pub struct Serving {
    child: Child,
    log: PathBuf,
}

impl Home {
    pub fn new() -> Home {
        Home { folder: Arc::new(tempfile::tempdir().unwrap()), host: "" }
    }

    /// The same pool, on another host.
    pub fn other_host(&self) -> Home {
        Home { folder: self.folder.clone(), host: "other-" }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path(&format!("{}disk.sock", self.host))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_objblk"));
        let ours = |name: &str| name.starts_with("AWS_") || name.starts_with("OBJBLK_");
        for (name, _) in std::env::vars().filter(|(name, _)| ours(name)) {
            command.env_remove(name);
        }
        command.env_remove("RUST_LOG").env_remove("XDG_CONFIG_HOME").env("HOME", self.path(""));
        command.env("OBJBLK_STORE", format!("file://{}", self.path("store").display()));
        command
            .env("OBJBLK_RUN_DIR", self.path(&format!("{}run", self.host)))
            .stdin(Stdio::null())
            .args(arguments);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    #[track_caller]
    pub fn refused(&self, arguments: &[&str], code: i32, words: &str) {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(words), "{words:?} is not in {said:?}");
    }

    /// `status` of the only volume that is attached.
    pub fn status(&self) -> Value {
        let all: Value = serde_json::from_str(&self.ok(&["status", "--json"])).unwrap();
        all[0].clone()
    }

    /// Serves the volume, ready when it returns.
    #[track_caller]
    pub fn serve(&self, more: &[&str]) -> Serving {
        self.try_serve(more).unwrap_or_else(|said| panic!("not served: {said}"))
    }

    pub fn try_serve(&self, more: &[&str]) -> Result<Serving, String> {
        let socket = self.socket();
        let mut arguments = vec!["serve", "vhost-user", "--socket", socket.to_str().unwrap()];
        arguments.extend(more);
        let log = self.path(&format!("log-{}", rand::random::<u64>()));
        let mut command = self.command(&arguments);
        command.stdout(Stdio::piped()).stderr(fs::File::create(&log).unwrap());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let serving = Serving { child, log };
        match line.trim_end() == socket.to_str().unwrap() {
            true => Ok(serving),
            false => Err(serving.ended().1),
        }
    }
}

impl Serving {
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Ends it as a fault of its own would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has ended. Returns its exit code and what it said.
    pub fn ended(mut self) -> (Option<i32>, String) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status.code(), self.said());
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end: {}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
