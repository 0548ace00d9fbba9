//! README.md and the examples, executed: every command of its blocks `sh` and `sh both`, by a user
//! whose home is empty, on a directory store and on a real S3 server.
//!
//! What needs a kernel with ublk is in `vm_readme`. Needs the programs of Debian's `libnbd-bin`,
//! `qemu-utils` and `qemu-system-x86`, and what `scripts/s3/ceph.sh` needs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "readme/blocks.rs"]
mod blocks;
#[path = "../examples/embed.rs"]
mod embed;
#[path = "support/s3.rs"]
mod s3;

use objblk::settings::Named;
use s3::S3Lab;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Whom root becomes for the commands: `nobody`.
const NOBODY: u32 = 65534;

/// QEMU as a user starts it, but for a machine that does not run: opens the drives, and ends.
const QEMU: &str = "#!/bin/bash\nPATH=/usr/local/bin:/usr/bin:/bin\n\
                    exec qemu-system-x86_64 -display none -S -monitor stdio \"$@\" <<<quit\n";

/// A user with an empty home, and programs of his own.
struct User {
    home: TempDir,
    env: Vec<(String, String)>,
}

impl User {
    fn new(lab: &S3Lab) -> User {
        let home = tempfile::tempdir().unwrap();
        for dir in ["bin", "run"] {
            fs::create_dir(home.path().join(dir)).unwrap();
        }
        fs::set_permissions(home.path().join("run"), PermissionsExt::from_mode(0o700)).unwrap();
        // Copied: not every user may look into root's directories.
        fs::copy(env!("CARGO_BIN_EXE_objblk"), home.path().join("bin/objblk")).unwrap();
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
        tool("cp", &["-r", scripts.to_str().unwrap(), home.path().to_str().unwrap()]);
        let qemu = home.path().join("bin/qemu-system-x86_64");
        fs::write(&qemu, QEMU).unwrap();
        fs::set_permissions(&qemu, PermissionsExt::from_mode(0o755)).unwrap();
        let path = |name: &str| home.path().join(name).display().to_string();
        let mut env = vec![
            ("HOME".to_owned(), path("")),
            ("XDG_RUNTIME_DIR".to_owned(), path("run")),
            ("PATH".to_owned(), format!("{}:/usr/local/bin:/usr/bin:/bin", path("bin"))),
        ];
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
            env.push((name.to_owned(), lab.var(name).to_owned()));
        }
        let user = User { home, env };
        user.owns_home();
        user
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn owns_home(&self) {
        if nix::unistd::geteuid().is_root() {
            let owner = format!("{NOBODY}:{NOBODY}");
            tool("chown", &["-R", &owner, self.home.path().to_str().unwrap()]);
        }
    }

    /// Runs a script to its end and ends what it left running. Returns what it printed.
    #[track_caller]
    fn run(&self, script: &str) -> String {
        let (out, err) = (self.path("out"), self.path("err"));
        let mut command = Command::new("bash");
        command.args(["-c", script]).env_clear().envs(self.env.clone());
        command.current_dir(self.home.path()).process_group(0).stdin(Stdio::null());
        command.stdout(fs::File::create(&out).unwrap()).stderr(fs::File::create(&err).unwrap());
        if nix::unistd::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let mut child = command.spawn().unwrap();
        let status = child.wait().unwrap();
        let group = nix::unistd::Pid::from_raw(child.id() as i32);
        // A server that was told to end has answered before it is gone.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(15);
        while nix::sys::signal::killpg(group, None).is_ok() && std::time::Instant::now() < deadline
        {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let left = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).is_ok();
        let said =
            format!("{}{}", fs::read_to_string(&out).unwrap(), fs::read_to_string(&err).unwrap());
        assert!(status.success(), "{status}: {said}");
        assert!(!left, "the commands leave processes behind: {said}");
        fs::read_to_string(&out).unwrap()
    }

    fn json(&self, command: &str) -> Value {
        serde_json::from_str(&self.run(command)).expect("one JSON document")
    }
}

fn tool(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| {
        panic!("{program} cannot be run ({e}): install libnbd-bin, qemu-utils and qemu-system-x86")
    });
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

/// The image of a disk that the page supposes a user to have.
fn make_image(path: &Path) {
    let path = path.to_str().unwrap();
    tool("qemu-img", &["create", "-q", "-f", "qcow2", path, "64M"]);
    tool("qemu-io", &["-c", "write -P 0x5a 1M 5M", "-c", "write -P 0xa5 40M 64k", path]);
}

#[test]
fn commands_on_a_directory_and_on_s3() {
    for program in ["nbdcopy", "nbdinfo", "qemu-system-x86_64"] {
        tool(program, &["--version"]);
    }
    let lab = S3Lab::get();
    let user = User::new(lab);
    make_image(&user.path("debian.qcow2"));
    user.owns_home();
    let bucket = format!("objblk-readme-{}", uuid::Uuid::new_v4());
    user.run(&blocks::script(&["sh", "sh both"], &bucket, &lab.endpoint));

    user.run("qemu-img compare -F raw debian.qcow2 backup.img");
    let volumes = user.json("objblk list --json");
    let volumes = volumes.as_array().unwrap();
    let names: Vec<&str> = volumes.iter().filter_map(|volume| volume["name"].as_str()).collect();
    assert_eq!(names, ["db", "logs", "media"]);
    let db = &volumes[0];
    assert_eq!(db["state"], "free");
    assert_eq!(db["size"], 200_u64 << 30);
    assert_eq!(user.json("objblk pool status --json")["store"], format!("s3://{bucket}/disks"));
    assert_eq!(user.json("objblk status --json"), Value::Array(Vec::new()));
    let default = format!("file://{}", user.path(".local/state/objblk/store").display());
    let elsewhere = user.json(&format!("objblk --store {default} list --json"));
    assert_eq!(elsewhere, Value::Array(Vec::new()), "the first volumes were not in a directory");
    let completion = user.path(".local/share/bash-completion/completions/objblk");
    assert!(fs::read_to_string(completion).unwrap().contains("complete -F"));
    user.run("objblk delete db --yes");
}

#[test]
fn every_make_target_is_there() {
    let makefile = blocks::file("Makefile");
    let lines = blocks::blocks(&["sh"]).concat();
    let targets: Vec<&str> = lines
        .lines()
        .filter_map(|line| line.strip_prefix("make ")?.split_whitespace().next())
        .collect();
    assert!(targets.contains(&"demo") && targets.contains(&"test"), "{targets:?}");
    for target in targets {
        assert!(makefile.contains(&format!("\n{target}:")), "the Makefile has no {target}");
    }
}

#[test]
fn every_block_is_run_or_plain_text() {
    let text = blocks::file("README.md");
    let fences: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("```")).collect();
    for pair in fences.chunks(2) {
        let known = ["sh", "sh ublk", "sh both", "text", "rust"].contains(&pair[0]);
        assert!(known && pair[1].is_empty(), "no such kind of block: {pair:?}");
    }
}

#[test]
fn every_link_leads_somewhere() {
    let text = blocks::file("README.md");
    let anchor = |title: &str| -> String {
        let kept = |c: char| c.is_ascii_alphanumeric() || c == ' ' || c == '-';
        title.to_lowercase().chars().filter(|c| kept(*c)).collect::<String>().replace(' ', "-")
    };
    let titles = text.lines().filter(|line| line.starts_with('#'));
    let anchors: Vec<String> =
        titles.map(|line| anchor(line.trim_start_matches('#').trim())).collect();
    for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
        match link.strip_prefix('#') {
            Some(section) => assert!(anchors.iter().any(|a| a == section), "no section {link}"),
            None => {
                let there = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(link).exists();
                assert!(there, "nothing is at {link}");
            }
        }
    }
}

#[test]
fn the_example_of_embedding_is_the_one_shown() {
    let source = blocks::file("examples/embed.rs");
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    for line in blocks::blocks(&["rust"]).concat().lines() {
        assert!(lines.contains(&line.trim()), "not in examples/embed.rs: {line}");
    }
    embed::main().unwrap();
}

#[test]
fn the_units_are_understood_by_systemd() {
    let dir = tempfile::tempdir().unwrap();
    let program = format!("={} ", env!("CARGO_BIN_EXE_objblk"));
    for name in [
        "objblk@.service",
        "objblk-vm@.service",
        "objblk-nbd.service",
        "objblk-nbd@.service",
        "objblk-nbd@.socket",
    ] {
        let unit = blocks::file(&format!("examples/{name}")).replace("=objblk ", &program);
        fs::write(dir.path().join(name), unit).unwrap();
    }
    for name in
        ["objblk@db.service", "objblk-vm@db.service", "objblk-nbd.service", "objblk-nbd@db.socket"]
    {
        is_understood(&dir.path().join(name));
    }
}

#[track_caller]
fn is_understood(unit: &Path) {
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no", unit.to_str().unwrap()]);
    let output = verify.output().expect("systemd-analyze runs: install systemd");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.is_empty(), "{}: {said}", unit.display());
}

/// What systemd makes of the line: mounted after the volume is attached and with the network, unmounted
/// before (units are stopped in the reverse order).
#[test]
fn a_file_system_in_fstab_waits_for_its_volume() {
    let dir = tempfile::tempdir().unwrap();
    let fstab = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/fstab");
    let generator = "/usr/lib/systemd/system-generators/systemd-fstab-generator";
    let made = Command::new(generator).env("SYSTEMD_FSTAB", fstab).args([dir.path(); 3]).status();
    assert!(made.expect("the generator runs: install systemd").success());
    let program = format!("={} ", env!("CARGO_BIN_EXE_objblk"));
    let service = blocks::file("examples/objblk@.service").replace("=objblk ", &program);
    fs::write(dir.path().join("objblk@.service"), service).unwrap();
    let mount = fs::read_to_string(dir.path().join("srv-data.mount")).unwrap();
    for line in
        ["What=/dev/objblk/data", "After=objblk@data.service", "Requires=objblk@data.service"]
    {
        assert!(mount.lines().any(|l| l == line), "{line} is not in {mount}");
    }
    assert!(dir.path().join("remote-fs.target.wants/srv-data.mount").exists());
    let waits = dir.path().join("dev-objblk-data.device.d/50-device-timeout.conf");
    assert!(fs::read_to_string(waits).unwrap().contains("TimeoutSec=infinity"));
    is_understood(&dir.path().join("srv-data.mount"));
    assert!(blocks::file("examples/objblk@.service").contains("After=network-online.target"));
}

#[test]
fn the_example_of_a_configuration_is_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/objblk.toml");
    let named = Named::from_file(Some(&path)).unwrap();
    assert!(named.store.is_some_and(|store| store.starts_with("s3://")));
}
