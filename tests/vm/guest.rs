//! Guests that run one of the scripts of this folder, heard line by line while they run.

use crate::s3::{Bucket, S3Lab};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub const KERNELS: [&str; 2] = ["6.12", "7.2"];
/// The host of forwarded ports, as a guest sees it.
const GATEWAY: &str = "10.0.2.100";
/// Exit code of `scripts/vm/run.sh` after a power cut.
const POWER_CUT: i32 = 123;
/// For anything that a guest does between two lines.
const PATIENCE: Duration = Duration::from_secs(180);
/// Lines that a failure shows.
const SHOWN: usize = 60;

pub fn full() -> bool {
    std::env::var("OBJBLK_FULL").is_ok_and(|value| value == "1")
}

/// The seed of a run: a new one unless `OBJBLK_SEED` says which.
pub fn seed() -> u64 {
    let seed = match std::env::var("OBJBLK_SEED") {
        Ok(text) => text.parse().expect("OBJBLK_SEED is a number"),
        Err(_) => rand::random(),
    };
    println!("the same moments again: OBJBLK_SEED={seed} cargo nextest run --test vm_crash");
    seed
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A pool in a bucket of its own, and its users: this host, and guests.
pub struct Pool {
    runtime: Runtime,
    bucket: Bucket,
    /// What guests say on standard error.
    folder: TempDir,
}

impl Pool {
    pub fn new() -> Pool {
        let runtime = Runtime::new().unwrap();
        let bucket = runtime.block_on(S3Lab::get().bucket());
        let pool = Pool { runtime, bucket, folder: tempfile::tempdir().unwrap() };
        pool.objblk(&["pool", "init"]);
        pool
    }

    /// What the program prints on this host. It must succeed.
    pub fn objblk(&self, arguments: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_objblk"))
            .args(arguments)
            .env("OBJBLK_STORE", self.url())
            .env("OBJBLK_RUN_DIR", self.folder.path().join("run"))
            .envs(&S3Lab::get().env)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "objblk {arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn url(&self) -> String {
        format!("s3://{}/pool", self.bucket.name)
    }

    /// Boots a guest that runs `script`.
    pub fn guest(&self, kernel: &'static str, script: &str, arguments: &[&str]) -> Guest {
        self.guest_on(kernel, &[], script, arguments)
    }

    /// Boots a guest that also reaches this host's ports `ports`.
    pub fn guest_on(
        &self,
        kernel: &'static str,
        ports: &[u16],
        script: &str,
        arguments: &[&str],
    ) -> Guest {
        assert!(KERNELS.contains(&kernel));
        let lab = S3Lab::get();
        let store_port = lab.endpoint.rsplit(':').next().unwrap().trim_end_matches('/');
        let mut run = Command::new(root().join("scripts/vm/run.sh"));
        run.args(["-k", kernel, "-t", if full() { "3000" } else { "600" }, "-F", store_port]);
        for port in ports {
            run.arg("-F").arg(port.to_string());
        }
        let files = root().join("tests/vm");
        run.arg("-p").arg(env!("CARGO_BIN_EXE_objblk"));
        for file in ["crash-lib.sh", "ledger.py", "replay-log.py"] {
            run.arg("-p").arg(files.join(file));
        }
        let endpoint = format!("http://{GATEWAY}:{store_port}");
        let variable = |name: &str, value: &str| format!("{name}={value}");
        run.arg("-e").arg(variable("OBJBLK_STORE", &self.url()));
        run.arg("-e").arg(variable("AWS_ENDPOINT_URL", &endpoint));
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"] {
            run.arg("-e").arg(variable(name, lab.var(name)));
        }
        run.arg("-f").arg(files.join(script)).arg("--").args(arguments);
        let name = format!("kernel {kernel}, {script} {}", arguments.join(" "));
        Guest::boot(run, name, self.folder.path().join(format!("{}", rand::random::<u64>())))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.runtime.block_on(self.bucket.empty());
        }
    }
}

/// A guest and what it prints.
pub struct Guest {
    run: Child,
    lines: Receiver<String>,
    heard: Vec<String>,
    name: String,
    errors: PathBuf,
    ended: bool,
}

impl Guest {
    fn boot(mut run: Command, name: String, errors: PathBuf) -> Guest {
        run.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&errors).unwrap());
        let mut run = run.spawn().expect("scripts/vm/run.sh can be run");
        let mut output = BufReader::new(run.stdout.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || {
            let mut line = Vec::new();
            while let Ok(1..) = output.read_until(b'\n', &mut line) {
                // A power cut may end the output in the middle of a line, which then says nothing.
                let whole = line.strip_suffix(b"\n").map(|line| String::from_utf8_lossy(line));
                if whole.is_none_or(|line| send.send(line.into_owned()).is_err()) {
                    return;
                }
                line.clear();
            }
        });
        Guest { run, lines, heard: Vec::new(), name, errors, ended: false }
    }

    /// The next line, if there is one before `deadline`; none, once the guest has ended.
    pub fn line_before(&mut self, deadline: Instant) -> Option<String> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => {
                self.heard.push(line.clone());
                Some(line)
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                self.ended = true;
                None
            }
        }
    }

    /// The next line; none, once the guest has ended. It may not stay silent for long.
    pub fn line(&mut self) -> Option<String> {
        let line = self.line_before(Instant::now() + PATIENCE);
        if line.is_none() && !self.ended {
            self.fail(&format!("has said nothing for {} s", PATIENCE.as_secs()));
        }
        line
    }

    /// Nothing is written out, nobody is told.
    pub fn cut_power(&self) {
        self.signal("-USR1");
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.run.id().to_string()]).status();
        assert!(sent.unwrap().success(), "{}: cannot be sent {signal}", self.name);
    }

    /// The guest's power was cut, and its kernel had complained of nothing.
    pub fn was_cut(&mut self) {
        self.ends_with(POWER_CUT);
    }

    /// The guest's script came to its end, and its kernel complained of nothing.
    pub fn succeeded(&mut self) {
        self.ends_with(0);
    }

    fn ends_with(&mut self, wanted: i32) {
        let code = self.run.wait().unwrap().code();
        if code != Some(wanted) {
            self.fail(&format!("ended with {code:?}, not {wanted}"));
        }
    }

    /// Fails the test, with what the guest said last.
    pub fn fail(&self, why: &str) -> ! {
        let shown: Vec<&str> = self.heard.iter().map(String::as_str).collect();
        let worth: Vec<&str> = shown.iter().copied().filter(|l| !l.starts_with("ack ")).collect();
        let from = worth.len().saturating_sub(SHOWN);
        let errors = std::fs::read_to_string(&self.errors).unwrap_or_default();
        panic!(
            "{}: {why}\nlast lines, without acknowledgements:\n{}\n{errors}",
            self.name,
            worth[from..].join("\n")
        );
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Ok(None) = self.run.try_wait() {
            // Its trap ends QEMU and the file server.
            let _ = Command::new("kill").arg(self.run.id().to_string()).status();
            let _ = self.run.wait();
        }
    }
}
