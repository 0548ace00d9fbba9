//! The scripts of examples/vm: machines that boot from volumes, lose their power, are cloned and moved.
//!
//! A machine tells what it has synced; after its power was cut, or it was moved, that must be there, and its
//! file system whole. The short version cuts the power twice and boots two clones; `OBJBLK_FULL=1` does it
//! twenty and ten times.
//!
//! Needs root, the programs of Debian's `e2fsprogs` and `mount`, and what `scripts/vm/run.sh` needs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// For anything that a machine does between two lines, on a busy host.
const PATIENCE: Duration = Duration::from_secs(120);

fn full() -> bool {
    std::env::var("OBJBLK_FULL").is_ok_and(|value| value == "1")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A pool in a directory, the golden image, and what boots it.
struct Lab {
    folder: TempDir,
}

impl Lab {
    fn new() -> Lab {
        let lab = Lab { folder: tempfile::tempdir().unwrap() };
        lab.ok(lab.script("image.sh").args([&fetched("6.12"), arg(&lab.path("vm"))]));
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        let bin = Path::new(env!("CARGO_BIN_EXE_objblk")).parent().unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        command
            .current_dir(self.folder.path())
            .env("PATH", path)
            .env("OBJBLK_STORE", format!("file://{}", self.path("store").display()))
            .env("OBJBLK_RUN_DIR", self.path("run"))
            .env("VM_KERNEL", self.path("vm/kernel"))
            .env("VM_INITRD", self.path("vm/initrd"))
            .stdin(Stdio::null());
        command
    }

    fn script(&self, name: &str) -> Command {
        self.command(&root().join("examples/vm").join(name))
    }

    #[track_caller]
    fn ok(&self, command: &mut Command) -> String {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn objblk(&self, args: &[&str]) {
        self.ok(self.command(Path::new(env!("CARGO_BIN_EXE_objblk"))).args(args));
    }

    /// The volume as a host finds it after a crash: its journal is replayed, then nothing at all may be
    /// wrong with it. Returns the number that the machine had got to.
    fn count_after_a_crash(&self, volume: &str) -> u64 {
        let (image, mounted) = (self.path("crashed.img"), self.path("mounted"));
        let _ = fs::create_dir(&mounted);
        self.objblk(&["export", volume, arg(&image), "--force"]);
        tool("mount", &["-o", "loop", arg(&image), arg(&mounted)]);
        let count = fs::read_to_string(mounted.join("count"));
        tool("umount", &[arg(&mounted)]);
        tool("e2fsck", &["-fn", arg(&image)]);
        count.unwrap().trim().parse().unwrap()
    }
}

/// Where `scripts/vm/fetch.sh` has it.
fn fetched(what: &str) -> String {
    let state = std::env::var("OBJBLK_LAB").unwrap_or_else(|_| "/tmp/objblk-lab".into());
    let state = Path::new(&state).join("vm");
    fs::create_dir_all(&state).unwrap();
    let fetch = root().join("scripts/vm/fetch.sh");
    tool("flock", &[arg(&state.join("lock")), arg(&fetch), what]).trim().to_owned()
}

fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{program} cannot be run: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A script that runs machines, heard line by line. Ended, with its machines, when dropped.
struct Machine {
    script: Child,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Machine {
    fn start(command: &mut Command) -> Machine {
        let mut script = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(script.stdout.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || {
            let mut line = Vec::new();
            while let Ok(1..) = output.read_until(b'\n', &mut line) {
                // Half a line, cut off, says nothing.
                let whole =
                    line.strip_suffix(b"\n").map(|l| String::from_utf8_lossy(l).into_owned());
                if whole.is_none_or(|line| send.send(line.trim_end().to_owned()).is_err()) {
                    return;
                }
                line.clear();
            }
        });
        Machine { script, lines, said: Vec::new() }
    }

    /// The next line, unless it says nothing until then or has ended.
    fn line_before(&mut self, deadline: Instant) -> Option<String> {
        let line =
            self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?;
        self.said.push(line.clone());
        assert!(!line.contains("broken"), "{:?}", self.said);
        Some(line)
    }

    /// The rest of the next line that has these words.
    #[track_caller]
    fn hear(&mut self, words: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        while let Some(line) = self.line_before(deadline) {
            if let Some((_, rest)) = line.split_once(words) {
                return rest.to_owned();
            }
        }
        panic!("never said {words:?}: {:?}", self.said);
    }

    fn number_after(&mut self, words: &str) -> u64 {
        self.hear(words).parse().unwrap()
    }

    /// Pulls the plug. Returns the last number that it had said to be synced.
    fn cut(mut self) -> u64 {
        tool("kill", &["-s", "TERM", &self.script.id().to_string()]);
        while self.line_before(Instant::now() + PATIENCE).is_some() {}
        let code = self.script.wait().unwrap().code();
        assert_eq!(code, Some(143), "{:?}", self.said);
        let synced = self.said.iter().filter_map(|line| line.split_once("synced ")?.1.parse().ok());
        synced.max().unwrap_or(0)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Ok(None) = self.script.try_wait() {
            let _ = Command::new("kill").arg(self.script.id().to_string()).status();
            let _ = self.script.wait();
        }
    }
}

/// Over vhost-user and over NBD in turns: it is the same disk.
#[test]
fn a_machine_boots_from_a_volume_after_every_power_cut() {
    let lab = Lab::new();
    lab.objblk(&["import", arg(&lab.path("vm/disk.img")), "vm"]);
    let cuts = if full() { 20 } else { 2 };
    let mut synced = 0;
    for cut in 0..=cuts {
        let door = ["vhost-user", "nbd"][cut % 2];
        let work = if cut < cuts { "work" } else { "visit" };
        let mut machine = Machine::start(lab.script("boot.sh").args([door, "vm", "me=vm", work]));
        if cut == 0 {
            machine.hear("installed");
        }
        machine.hear("intact");
        let found = machine.number_after("vm here, installed as vm, found ");
        assert!(found >= synced, "cut {cut}: {found} is there, {synced} was synced");
        if cut == cuts {
            machine.hear("ended");
            assert!(machine.script.wait().unwrap().success());
            break;
        }
        machine.hear("synced ");
        let deadline = Instant::now() + Duration::from_millis(rand::random_range(0..2000));
        while machine.line_before(deadline).is_some() {}
        synced = machine.cut();
        let kept = lab.count_after_a_crash("vm");
        println!("cut {cut} over {door}: {found} found, {synced} synced, {kept} kept");
        assert!(synced > found && kept >= synced, "{kept} is there, {synced} was synced");
    }
    // It ended in order: there is nothing to replay.
    let image = lab.path("ended.img");
    lab.objblk(&["export", "vm", arg(&image)]);
    tool("e2fsck", &["-fn", arg(&image)]);
}

#[test]
fn clones_of_a_golden_image_are_machines_of_their_own() {
    let lab = Lab::new();
    let count = if full() { 10 } else { 2 };
    let golden = lab.path("vm/disk.img");
    println!("{}", lab.ok(lab.script("clones.sh").args([arg(&golden), &count.to_string()])));
    for n in 1..=count {
        let said = fs::read_to_string(lab.path(&format!("vm{n}.log"))).unwrap();
        let wanted =
            ["installed", "intact", &format!("vm{n} here, installed as vm{n}, found 0"), "ended"];
        let lines: Vec<&str> = said.lines().map(str::trim_end).collect();
        assert!(wanted.iter().all(|wanted| lines.contains(wanted)), "vm{n}: {said}");
    }
    // What they wrote is theirs: the image is what it was.
    let image = lab.path("golden.img");
    lab.objblk(&["export", "golden@image", arg(&image)]);
    assert!(fs::read(image).unwrap() == fs::read(golden).unwrap());
}

#[test]
fn a_running_machine_moves_to_another_qemu() {
    let lab = Lab::new();
    lab.objblk(&["import", arg(&lab.path("vm/disk.img")), "vm"]);
    let mut machine = Machine::start(lab.script("move.sh").args(["vm", "me=vm", "work"]));
    machine.hear("1: intact");
    machine.hear("1: synced ");
    machine.script.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    machine.hear("moved");
    let number = |line: &String, of: &str| line.strip_prefix(of)?.parse().ok();
    let before: Option<u64> =
        machine.said.iter().filter_map(|line| number(line, "1: synced ")).max();
    let next = (0..3).map(|_| machine.number_after("2: synced ")).max().unwrap();
    println!("{before:?} synced in the first QEMU, {next} in the second");
    // It went on, and did not boot again.
    assert!(next > before.unwrap());
    assert!(!machine.said.iter().any(|line| line.starts_with("2: ") && line.contains("found")));
    let synced = machine.cut();
    let kept = lab.count_after_a_crash("vm");
    assert!(synced >= next && kept >= synced, "{kept} is there, {synced} was synced");
}

/// By the schemas of the libvirt that Debian 12 has; and its sockets are those that the units make.
#[test]
fn the_machine_for_libvirt_is_understood() {
    let libvirt = PathBuf::from(fetched("libvirt"));
    let (xmllint, schema) =
        (libvirt.join("usr/bin/xmllint"), libvirt.join("usr/share/libvirt/schemas/domain.rng"));
    let machine = root().join("examples/vm/libvirt.xml");
    tool(arg(&xmllint), &["--noout", "--nonet", "--relaxng", arg(&schema), arg(&machine)]);
    let value = |path: &str| {
        let path = format!("string({path})");
        tool(arg(&xmllint), &["--nonet", "--xpath", &path, arg(&machine)]).trim().to_owned()
    };
    assert_eq!(value("//memoryBacking/access/@mode"), "shared");
    let unit = |name: &str| fs::read_to_string(root().join("examples").join(name)).unwrap();
    let disk = |socket: String, volume: &str| socket.replace(&format!("/{volume}."), "/%i.");
    let vhost = disk(value("//disk[@type='vhostuser']/source/@path"), "db");
    assert!(unit("objblk-vm@.service").contains(&format!("--socket {vhost}\n")), "{vhost}");
    let nbd = disk(value("//disk[@type='network']/source/host/@socket"), "logs");
    assert!(unit("objblk-nbd@.socket").contains(&format!("ListenStream={nbd}\n")), "{nbd}");
    assert_eq!(value("//disk[@type='network']/source/@name"), "logs");
}
