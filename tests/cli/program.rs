//! Runs the program in a home of its own: its store, run directory and environment.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Exit codes of the command line.
pub const USAGE: i32 = 2;
pub const NOT_FOUND: i32 = 3;
pub const EXISTS: i32 = 4;
pub const BUSY: i32 = 5;
pub const STORE: i32 = 6;
pub const CORRUPT: i32 = 7;

/// A user on a host, with nothing from the outside.
pub struct Home {
    dir: TempDir,
    env: BTreeMap<String, String>,
}

/// What a command did.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Done {
    fn of(output: Output) -> Done {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let code = output.status.code().expect("the program was killed by a signal");
        Done { code, out: text(output.stdout), err: text(output.stderr) }
    }

    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out.trim_end().to_owned()
    }

    #[track_caller]
    pub fn json(self) -> Value {
        serde_json::from_str(&self.ok()).expect("one JSON document")
    }

    /// It failed with `code` and one sentence, which holds `words`.
    #[track_caller]
    pub fn fails(self, code: i32, words: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.out, "", "{self:?}");
        let errors: Vec<&str> = self.err.lines().filter(|l| l.starts_with("objblk: ")).collect();
        assert_eq!(errors.len(), 1, "one sentence: {self:?}");
        assert!(errors[0].contains(words), "{words:?} is not in {self:?}");
        assert!(!self.err.contains("internal error"), "{self:?}");
    }

    /// As [`Done::fails`], after something else was said.
    #[track_caller]
    pub fn fails_so(self, code: i32, words: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(
            self.out.is_empty() && self.err.lines().last().unwrap().contains(words),
            "{self:?}"
        );
    }

    /// As [`Done::fails`], and nothing else was said.
    #[track_caller]
    pub fn refuses(self, code: i32, words: &str) {
        assert_eq!(self.err.lines().count(), 1, "{self:?}");
        self.fails(code, words);
    }
}

impl Home {
    /// A home with a directory store that is not there yet.
    pub fn new() -> Home {
        let dir = tempfile::tempdir().unwrap();
        let mut home = Home { dir, env: BTreeMap::new() };
        let run = home.path("run");
        let store = format!("file://{}", home.store().display());
        home.set("OBJBLK_STORE", &store);
        home.set("OBJBLK_RUN_DIR", run.to_str().unwrap());
        home.set("HOME", home.path("").to_str().unwrap().to_owned().as_str());
        home
    }

    /// The same store seen from another host: another run directory.
    pub fn other_host(&self) -> Home {
        let mut other = Home::new();
        let run = other.env["OBJBLK_RUN_DIR"].clone();
        other.env = self.env.clone();
        other.set("OBJBLK_RUN_DIR", &run);
        other
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.env.insert(name.into(), value.into());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_objblk"));
        let ours = |name: &str| name.starts_with("AWS_") || name.starts_with("OBJBLK_");
        std::env::vars().filter(|(name, _)| ours(name)).for_each(|(name, _)| {
            command.env_remove(name);
        });
        command.env_remove("RUST_LOG").env_remove("XDG_CONFIG_HOME");
        command.envs(&self.env).args(args).stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Done {
        Done::of(self.command(args).output().expect("the program runs"))
    }

    /// Every object of the store with its size.
    pub fn objects(&self) -> BTreeMap<PathBuf, u64> {
        let mut found = BTreeMap::new();
        if self.store().exists() {
            walk(&self.store(), &mut found);
        }
        found
    }

    /// What is in the run directory.
    pub fn run_files(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path("run")) else { return Vec::new() };
        let name = |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        entries.map(name).collect()
    }

    /// Serves the volumes over NBD, ready when it returns.
    pub fn serve(&self, args: &[&str]) -> Server {
        let mut command = self.command(&["serve", "nbd"]);
        let log =
            self.path(&format!("server-{}.log", fs::read_dir(self.path("")).unwrap().count()));
        let err = fs::File::create(&log).unwrap();
        let mut child = command.args(args).stdout(Stdio::piped()).stderr(err).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let log_text = fs::read_to_string(&log).unwrap();
        assert!(line.starts_with("nbd"), "no server: {line:?} {log_text}");
        Server { child, uri: line.trim_end().to_owned(), log }
    }
}

fn walk(dir: &Path, found: &mut BTreeMap<PathBuf, u64>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => walk(&path, found),
            false => {
                // A temporary file may have gone.
                if let Ok(metadata) = fs::metadata(&path) {
                    found.insert(path, metadata.size());
                }
            }
        }
    }
}

/// A running NBD server; killed when dropped.
pub struct Server {
    child: Child,
    pub uri: String,
    log: PathBuf,
}

impl Server {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        tool("kill", &["-s", name, &self.pid().to_string()]);
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has ended. Returns its exit code and what it said.
    pub fn ended(mut self) -> (i32, String) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let said = fs::read_to_string(&self.log).unwrap();
                return (status.code().expect("killed by a signal"), said);
            }
            assert!(begun.elapsed() < Duration::from_secs(90), "the server does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a tool that the tests need.
pub fn attempt(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap_or_else(|e| {
        panic!("{program} cannot be run ({e}): install libnbd-bin, qemu-utils and procps")
    })
}

#[track_caller]
pub fn tool(program: &str, args: &[&str]) -> String {
    let output = attempt(program, args);
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs qemu-io commands on an export; true where all of them succeeded.
pub fn qemu_io(uri: &str, commands: &[&str]) -> bool {
    run_qemu_io(&["-f", "raw"], uri, commands)
}

/// As [`qemu_io`], for an export that can only be read.
pub fn qemu_io_reading(uri: &str, commands: &[&str]) -> bool {
    run_qemu_io(&["-r", "-f", "raw"], uri, commands)
}

fn run_qemu_io(options: &[&str], uri: &str, commands: &[&str]) -> bool {
    let mut args = options.to_vec();
    commands.iter().for_each(|command| args.extend(["-c", command]));
    args.push(uri);
    let output = attempt("qemu-io", &args);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success() && !said.contains("failed")
}

/// Bytes that do not repeat and do not compress.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| next()).take(len).collect()
}

/// Waits until `condition` holds.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(60), "still not: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
