//! A volume on `/dev/ublkbN` against a disk in memory behind the same frontend, where there is a kernel that
//! has ublk. All turns of a run take place in one guest; only the ratios say something of a real machine.
//!
//! `ublk`: an emulated machine. It is slow at all that is done for a request, and slowest at what real processors
//! have instructions for: checksums take it a hundred times as long, and they are half of what a write costs
//! there.
//!
//! `uml`: a user-mode Linux, whose programs run at this machine's own speed. Its system calls and page faults
//! are round trips between processes of this host: a system call takes some microseconds, a page that is touched
//! for the first time some tens.

use crate::contest::{Report, Settings};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const KERNEL: &str = "7.2";
/// Volume, cache, RAM disk, mirror and store are all in the guest's memory.
const MEMORY: &str = "4G";
const LIMIT: &str = "RAM disk";

/// What the guest's script calls it, what it is, its unit, and how many of the script's figures make one.
const WORK: [(&str, &str, &str, f64); 6] = [
    ("reads_1", "cached 4 KiB random reads, 1 x 32 in flight", "k/s", 1e3),
    ("reads_4", "cached 4 KiB random reads, 4 x 32 in flight", "k/s", 1e3),
    ("large_reads", "cached 1 MiB reads in order, 8 in flight", "MB/s", 1e6 / 1024.0),
    ("bursts", "buffered 4 KiB random writes, bursts of 32 MiB", "k/s", 1e3),
    ("writes", "buffered 4 KiB random writes without a pause", "k/s", 1e3),
    ("bursts_alone", "the bursts, attached with --no-recovery", "k/s", 1e3),
];

/// Turns by the work that they measure: those of objblk, those of the limit.
type Figures = BTreeMap<String, [Vec<f64>; 2]>;

/// The RAM disk's program, as optimised as objblk is: benchmarks are built without the examples.
fn ram_disk(objblk: &Path) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--locked", "--example", "ublk_ram"]);
    let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).status();
    assert!(built.is_ok_and(|status| status.success()), "the example ublk_ram can be built");
    let program = objblk.parent().unwrap().join("examples/ublk_ram");
    assert!(program.exists(), "{} is of the same profile", program.display());
    program
}

/// Where there is a kernel with ublk.
#[derive(Clone, Copy, Debug)]
enum Guest {
    Emulated,
    UserMode,
}

impl Guest {
    fn command(self, root: &Path) -> Command {
        match self {
            Guest::Emulated => {
                let mut run = Command::new(root.join("scripts/vm/run.sh"));
                let processors = std::thread::available_parallelism().map_or(2, usize::from);
                run.args(["-k", KERNEL, "-s", &processors.clamp(2, 4).to_string()]);
                run
            }
            Guest::UserMode => Command::new(root.join("scripts/uml/run.sh")),
        }
    }
}

/// What the script printed.
fn guest(kind: Guest, settings: &Settings) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let objblk = Path::new(env!("CARGO_BIN_EXE_objblk"));
    let turn = settings.turn(3.0).as_secs_f64().ceil();
    let turns = (settings.rounds * WORK.len() * 2) as f64;
    // Starting fio takes seconds on an emulated processor.
    let limit = 300.0 + turns * (turn + 10.0);
    let mut run = kind.command(root);
    run.args(["-m", MEMORY, "-t", &limit.to_string()]);
    run.arg("-p").arg(objblk).arg("-p").arg(ram_disk(objblk));
    run.arg("-e").arg(format!("ROUNDS={}", settings.rounds)).arg("-e").arg(format!("TURN={turn}"));
    run.arg("-f").arg(root.join("tests/vm/ublk-bench.sh"));
    let output = run.stdin(Stdio::null()).output().expect("the guest's script can be run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the guest failed:\n{text}\n{errors}");
    text
}

fn parse(text: &str) -> Figures {
    let mut figures = Figures::new();
    for line in text.lines() {
        match *line.split_whitespace().collect::<Vec<_>>() {
            ["figure", work, who, value] => {
                let value: f64 = value.parse().unwrap_or(0.0);
                assert!(value > 0.0, "fio did nothing: {line}");
                let side = usize::from(who == "limit");
                figures.entry(work.to_owned()).or_default()[side].push(value);
            }
            _ => println!("{line}"),
        }
    }
    figures
}

pub fn emulated(settings: &Settings, report: &mut Report) {
    run(Guest::Emulated, settings, report);
}

pub fn user_mode(settings: &Settings, report: &mut Report) {
    run(Guest::UserMode, settings, report);
}

fn run(kind: Guest, settings: &Settings, report: &mut Report) {
    let mut figures = parse(&guest(kind, settings));
    for (name, work, unit, one) in WORK {
        let sides = figures.remove(name).unwrap_or_default();
        let complete = sides.iter().all(|side| side.len() == settings.rounds);
        assert!(complete, "turns of {name} are missing: {sides:?}");
        let scaled = sides.map(|side| side.into_iter().map(|value| value / one).collect());
        report.add(work, unit, LIMIT, scaled);
    }
}
