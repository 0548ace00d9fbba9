//! A store of its own for a test, and the program at work on it.

use crate::client::Client;
use crate::fault_proxy::{FaultProxy, Profile};
use crate::hosts::Host;
use crate::leftovers;
use crate::s3::{Bucket, S3Lab};
use objblk::store::{Key, ObjectInfo, Store, list_all};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Exit codes of the command line.
pub const BUSY: i32 = 5;
pub const CORRUPT: i32 = 7;

/// True where the long versions are wanted.
pub fn full() -> bool {
    std::env::var("OBJBLK_FULL").is_ok_and(|value| value == "1")
}

/// The seed of a random test: a new one unless `OBJBLK_SEED` says which.
pub fn seed() -> u64 {
    let seed = match std::env::var("OBJBLK_SEED") {
        Ok(text) => text.parse().expect("OBJBLK_SEED is a number"),
        Err(_) => rand::random(),
    };
    println!("OBJBLK_SEED={seed}");
    seed
}

/// A store and the hosts that use it.
struct Ground {
    dir: TempDir,
    runtime: Runtime,
    bucket: Option<Bucket>,
    faults: Option<FaultProxy>,
}

/// A host: a run directory, and a way to the store.
#[derive(Clone)]
pub struct World {
    ground: Arc<Ground>,
    host: &'static str,
    /// Where it is more than a run directory.
    apart: Option<Arc<Host>>,
    endpoint: Option<String>,
}

impl World {
    /// On a new bucket of the S3 server.
    pub fn s3() -> World {
        let runtime = runtime();
        let bucket = runtime.block_on(S3Lab::get().bucket());
        World::new(runtime, Some(bucket), Some(S3Lab::get().endpoint.clone()), None)
    }

    /// On a new bucket, reached only through a proxy with these faults; see [`World::faults`].
    pub fn s3_through(profile: &'static Profile, seed: u64) -> World {
        let (runtime, lab) = (runtime(), S3Lab::get());
        let bucket = runtime.block_on(lab.bucket());
        let proxy = FaultProxy::start(&lab.endpoint, "127.0.0.1", profile, seed);
        let proxy = runtime.block_on(proxy);
        let endpoint = proxy.endpoint();
        World::new(runtime, Some(bucket), Some(endpoint), Some(proxy))
    }

    /// On a new directory.
    pub fn directory() -> World {
        World::new(runtime(), None, None, None)
    }

    fn new(
        runtime: Runtime,
        bucket: Option<Bucket>,
        endpoint: Option<String>,
        faults: Option<FaultProxy>,
    ) -> World {
        let dir = tempfile::tempdir().unwrap();
        let ground = Arc::new(Ground { dir, runtime, bucket, faults });
        World { ground, host: "here", apart: None, endpoint }
    }

    /// The proxy of [`World::s3_through`].
    pub fn faults(&self) -> &FaultProxy {
        self.ground.faults.as_ref().expect("the world has a proxy")
    }

    /// The same store from a host with a name and a network of its own.
    pub fn at(&self, host: Host, endpoint: String) -> World {
        let name = host.name();
        World { host: name, apart: Some(Arc::new(host)), endpoint: Some(endpoint), ..self.clone() }
    }

    /// The host of [`World::at`].
    pub fn apart(&self) -> &Host {
        self.apart.as_ref().expect("the world is that of a host apart")
    }

    /// The same store from another host.
    pub fn elsewhere(&self) -> World {
        World { host: "elsewhere", ..self.clone() }
    }

    /// The same store by another way.
    pub fn by(&self, endpoint: String) -> World {
        World { endpoint: Some(endpoint), ..self.clone() }
    }

    /// A path in the test's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.ground.dir.path().join(name)
    }

    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.ground.runtime.block_on(work)
    }

    /// The program with `args`, in an environment that says where the store is and nothing else.
    pub fn objblk(&self, args: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_objblk");
        let mut command = match &self.apart {
            None => Command::new(program),
            Some(host) => host.command(program),
        };
        let ours = |name: &String| name.starts_with("AWS_") || name.starts_with("OBJBLK_");
        for name in std::env::vars().map(|(name, _)| name).filter(ours) {
            command.env_remove(name);
        }
        command.env_remove("RUST_LOG").env_remove("XDG_CONFIG_HOME");
        command.env("HOME", self.path("")).env("OBJBLK_RUN_DIR", self.path(self.host));
        let store = match &self.ground.bucket {
            Some(bucket) => format!("s3://{}/pool", bucket.name),
            None => format!("file://{}", self.path("store").display()),
        };
        command.env("OBJBLK_STORE", store);
        if let Some(endpoint) = &self.endpoint {
            command.env("OBJBLK_ENDPOINT_URL", endpoint);
            for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
                command.env(name, S3Lab::get().var(name));
            }
        }
        command.args(args).stdin(Stdio::null());
        command
    }

    /// Runs a verb that must succeed; what it printed, and what it said beside that.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> (String, String) {
        let output = self.objblk(args).output().unwrap();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "objblk {args:?}: {}\n{out}{err}", output.status);
        (out, err)
    }

    /// Runs a verb that must fail with exit code `code` and one sentence, which is returned.
    #[track_caller]
    pub fn refused(&self, code: i32, args: &[&str]) -> String {
        let output = self.objblk(args).output().unwrap();
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "objblk {args:?}: {err}");
        let sentences = err.lines().filter(|line| line.starts_with("objblk: "));
        assert_eq!(sentences.count(), 1, "objblk {args:?} says more than one sentence: {err}");
        err
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let mut args = args.to_vec();
        args.push("--json");
        serde_json::from_str(&self.run(&args).0).unwrap()
    }

    /// Serves the volume over NBD; it is ready when this returns.
    #[track_caller]
    pub fn serve(&self, name: &str, args: &[&str]) -> Served {
        self.serve_by(self.objblk(&["serve", "nbd", name]), name, args)
    }

    /// As [`World::serve`], by a command that runs it in some way.
    #[track_caller]
    pub fn serve_by(&self, mut command: Command, name: &str, args: &[&str]) -> Served {
        let socket = self.path(&format!("{}-{name}.nbd", self.host));
        let log = self.path(&format!("{}-{name}.log", self.host));
        command.arg("--socket").arg(&socket).args(args);
        let begun = Instant::now();
        let err = File::create(&log).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(err).spawn().unwrap();
        let mut uri = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut uri).unwrap();
        let took = begun.elapsed();
        let served = Served { child, uri: uri.trim_end().into(), socket, log, begun, took };
        assert!(served.uri.starts_with("nbd"), "objblk serves nothing: {}", served.said());
        served
    }

    /// The volume's id.
    pub fn id(&self, name: &str) -> String {
        self.json(&["info", name])["id"].as_str().unwrap().to_owned()
    }

    /// The bucket of the pool.
    pub fn bucket(&self) -> String {
        self.ground.bucket.as_ref().expect("on S3").name.clone()
    }

    /// Deletes the bucket and all that is in it.
    pub fn remove_bucket(&self) {
        let bucket = self.ground.bucket.as_ref().expect("on S3");
        self.wait(bucket.remove());
    }

    /// The pool's store, past the program.
    pub fn store(&self) -> objblk::store::s3::S3Store {
        let bucket = self.ground.bucket.as_ref().expect("on S3");
        self.wait(bucket.store("pool"))
    }

    /// The pool's objects below `prefix`.
    pub fn objects(&self, prefix: &str) -> Vec<ObjectInfo> {
        self.wait(list_all(&self.store(), prefix)).unwrap()
    }

    /// Gives an object other bytes, which no owner would do.
    pub fn replace(&self, key: &Key, body: Vec<u8>) {
        let store = self.store();
        self.wait(store.delete(std::slice::from_ref(key))).unwrap();
        self.wait(store.put_if_absent(key, body.into())).unwrap();
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // What a failed test leaves is evidence.
        if let (Some(bucket), false) = (&self.bucket, std::thread::panicking()) {
            self.runtime.block_on(bucket.empty());
        }
        leftovers::sweep(self.dir.path());
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// A running server of one volume. Killed where the test fails.
pub struct Served {
    child: Child,
    pub uri: String,
    pub socket: PathBuf,
    log: PathBuf,
    begun: Instant,
    /// From its start until it was ready.
    pub took: Duration,
}

impl Served {
    pub fn connect(&self) -> Client {
        Client::connect(&self.socket)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        tool("util-linux", "kill", &["-s", name, &self.pid().to_string()]);
    }

    /// Kills it as a crash does.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the end of one that was killed by somebody else.
    #[track_caller]
    pub fn expect_killed(mut self) {
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), None, "it was not killed: {status}, {}", self.said());
    }

    /// The time from its start until it has answered a read, now.
    #[track_caller]
    pub fn first_read(&self) -> Duration {
        self.connect().read(0, 4096).unwrap();
        self.begun.elapsed()
    }

    /// What it said on standard error.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its largest memory so far, in KiB.
    pub fn peak_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Ends it in order.
    #[track_caller]
    pub fn stop(self) {
        self.signal("TERM");
        let (code, said) = self.ended(Duration::from_secs(120));
        assert_eq!(code, 0, "{said}");
    }

    /// Waits for its end, but not longer than `patience`: its exit code and what it said.
    #[track_caller]
    pub fn ended(mut self, patience: Duration) -> (i32, String) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status.code().expect("no signal killed it"), self.said());
            }
            assert!(begun.elapsed() < patience, "it does not end: {}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs another program, which comes with the Debian package `package`.
pub fn attempt(package: &str, program: &str, args: &[&str]) -> Output {
    let output = Command::new("timeout").arg("900").arg(program).args(args).output().unwrap();
    let missing = output.status.code() == Some(127);
    assert!(!missing, "{program} is missing: install the Debian package {package}");
    output
}

/// As [`attempt`], and it must succeed; what it printed.
#[track_caller]
pub fn tool(package: &str, program: &str, args: &[&str]) -> String {
    let output = attempt(package, program, args);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {}\n{out}\n{err}", output.status);
    out
}

/// Waits until something is so.
#[track_caller]
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}
