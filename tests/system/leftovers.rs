//! What a test leaves on the machine: nothing, whether it passes or fails.

use crate::world::{arg, attempt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long what is ending may take to be gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// What exists because of the test that works in a directory.
#[derive(Debug, Default)]
struct Leftovers {
    /// Processes that name the directory, other than this one.
    processes: Vec<(i32, String)>,
    /// Block devices of files in it.
    loops: Vec<String>,
    /// Mounts in it, the newest first.
    mounts: Vec<PathBuf>,
}

impl Leftovers {
    fn of(dir: &Path) -> Leftovers {
        Leftovers { processes: processes(dir), loops: loops(dir), mounts: mounts(dir) }
    }

    fn are_none(&self) -> bool {
        self.processes.is_empty() && self.loops.is_empty() && self.mounts.is_empty()
    }

    fn remove(&self) {
        for (pid, _) in &self.processes {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        for mount in &self.mounts {
            attempt("util-linux", "umount", &["--lazy", arg(mount)]);
        }
        for name in &self.loops {
            attempt("util-linux", "losetup", &["--detach", name]);
        }
    }
}

fn processes(dir: &Path) -> Vec<(i32, String)> {
    let named = |pid: &i32| {
        let of = |what: &str| fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
        let (line, environment) = (of("cmdline"), of("environ"));
        let needle = dir.as_os_str().as_encoded_bytes();
        let names = |text: &[u8]| text.windows(needle.len()).any(|part| part == needle);
        (names(&line) || names(&environment))
            .then(|| String::from_utf8_lossy(&line).replace('\0', " "))
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let others = pids.filter(|pid: &i32| *pid != std::process::id() as i32);
    others.filter_map(|pid| Some((pid, named(&pid)?))).collect()
}

fn loops(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir("/sys/block").unwrap().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let ours = |name: &String| {
        let file = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file"));
        file.is_ok_and(|file| Path::new(file.trim_end()).starts_with(dir))
    };
    names.filter(ours).map(|name| format!("/dev/{name}")).collect()
}

fn mounts(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut ours: Vec<PathBuf> = points.filter(|point| point.starts_with(dir)).collect();
    ours.reverse();
    ours
}

/// Whether something is mounted right there.
pub fn is_mounted(point: &Path) -> bool {
    mounts(point).iter().any(|mounted| mounted == point)
}

/// Fails unless nothing is left of the test that worked in `dir`; a test that failed already is
/// told on standard error. Either way it is gone in the end.
pub fn sweep(dir: &Path) {
    let begun = Instant::now();
    let mut left = Leftovers::of(dir);
    // What was killed a moment ago takes its time.
    while !left.are_none() && begun.elapsed() < PATIENCE && !std::thread::panicking() {
        std::thread::sleep(Duration::from_millis(50));
        left = Leftovers::of(dir);
    }
    if left.are_none() {
        return;
    }
    left.remove();
    let said = format!("{left:?} is left");
    while !left.are_none() && begun.elapsed() < 2 * PATIENCE {
        std::thread::sleep(Duration::from_millis(50));
        left = Leftovers::of(dir);
    }
    eprintln!("{said}; {left:?} cannot be removed");
    assert!(std::thread::panicking(), "{said}");
}
