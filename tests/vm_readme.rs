//! README.md, executed in a guest whose kernel has ublk: every command of its blocks `sh ublk`
//! and `sh both`, the takeover from a host that is really dead included: this one.
//!
//! Needs root, the programs of Debian's `qemu-utils`, and what `scripts/vm/run.sh` and
//! `scripts/s3/ceph.sh` need.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "readme/blocks.rs"]
mod blocks;
#[path = "support/s3.rs"]
mod s3;

use s3::S3Lab;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// The kernel of the guest.
const KERNEL: &str = "6.12";

/// What the guest does before the page's commands.
const BEFORE: &str = "export PATH=/tmp/payload:$PATH HOME=/tmp/home\nmkdir $HOME\n";

/// Before the takeover: without the flag it is refused, as the page says.
const REFUSED: &str = "refused=0; objblk attach db || refused=$?; [ $refused = 5 ]";

/// What it verifies after them: the volumes hold what was put in, and nothing is left behind.
const AFTER: &str = r#"
objblk attach db --read-only
cmp <(head -c 4M /dev/objblk/db) <(head -c 4M /dev/zero | tr '\0' '\132')
objblk detach db
eval "${UNIT_START//%i/db}"
[ -b /dev/objblk/db ]
eval "${UNIT_STOP//%i/db}"
export OBJBLK_STORE=file:///var/lib/objblk/store
objblk attach data
mount -o ro /dev/objblk/data /mnt/data
cmp /etc/passwd /mnt/data/passwd
umount /mnt/data
objblk detach data
[ "$(objblk status --json)" = "[]" ]
[ -z "$(ls -d /dev/ublk[bc]* /dev/objblk/* 2>/dev/null)" ]
echo "every command worked"
"#;

/// The program on this host, for the pool `s3://bucket/disks`.
fn objblk(lab: &S3Lab, home: &TempDir, bucket: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_objblk"));
    command
        .env("OBJBLK_STORE", format!("s3://{bucket}/disks"))
        .env("OBJBLK_ENDPOINT_URL", &lab.endpoint)
        .env("OBJBLK_RUN_DIR", home.path().join("run"))
        .env("AWS_ACCESS_KEY_ID", lab.var("AWS_ACCESS_KEY_ID"))
        .env("AWS_SECRET_ACCESS_KEY", lab.var("AWS_SECRET_ACCESS_KEY"));
    command
}

#[track_caller]
fn succeeds(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?} cannot be run: {e}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// The volume `db`, written and flushed by an owner that was then killed.
fn leave_a_volume_behind(lab: &S3Lab, bucket: &str) {
    let home = tempfile::tempdir().unwrap();
    let objblk = || objblk(lab, &home, bucket);
    succeeds(objblk().args(["pool", "init", "--create-bucket"]));
    succeeds(objblk().args(["create", "db", "--size", "1G"]));
    let mut owner = objblk().args(["serve", "nbd", "db"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut uri = String::new();
    BufReader::new(owner.stdout.take().unwrap()).read_line(&mut uri).unwrap();
    let write = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write -P 0x5a 0 4M", "-c", "flush", uri.trim()])
        .output();
    owner.kill().unwrap();
    owner.wait().unwrap();
    let write = write.unwrap_or_else(|e| panic!("qemu-io cannot be run ({e}): install qemu-utils"));
    assert!(write.status.success(), "{write:?}");
}

/// The command of the setting `name` in the systemd unit.
fn unit(name: &str) -> String {
    let unit = blocks::file("examples/objblk@.service");
    let mut lines = unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    lines.next().unwrap_or_else(|| panic!("the unit has no {name}")).to_owned()
}

#[test]
fn commands_with_a_block_device() {
    let lab = S3Lab::get();
    let port = lab.endpoint.rsplit(':').next().unwrap().trim_end_matches('/');
    let bucket = format!("objblk-readme-{}", uuid::Uuid::new_v4());
    leave_a_volume_behind(lab, &bucket);

    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("readme.sh");
    let endpoint = format!("http://$VM_HOST:{port}");
    let commands = blocks::script(&["sh ublk", "sh both"], &bucket, &endpoint);
    // The endpoint is known to the guest only.
    let commands = commands.replace("<<'END'", "<<END");
    let takeover = "\nobjblk attach db --takeover\n";
    assert!(commands.contains(takeover), "README.md does not take db over");
    let commands = commands.replace(takeover, &format!("\n{REFUSED}{takeover}"));
    fs::write(&script, format!("#!/bin/bash\n{BEFORE}{commands}{AFTER}")).unwrap();

    let mut vm = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/vm/run.sh"));
    vm.args(["-k", KERNEL, "-t", "240", "-F", port, "-p", env!("CARGO_BIN_EXE_objblk")]);
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        vm.arg("-e").arg(format!("{name}={}", lab.var(name)));
    }
    for (name, setting) in [("UNIT_START", "ExecStart"), ("UNIT_STOP", "ExecStop")] {
        vm.arg("-e").arg(format!("{name}={}", unit(setting)));
    }
    let output = vm.arg("-f").arg(&script).output().unwrap_or_else(|e| panic!("{vm:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}:\n{said}\n{complained}", output.status);
    assert!(said.contains("every command worked"), "{said}");

    let home = tempfile::tempdir().unwrap();
    succeeds(objblk(lab, &home, &bucket).args(["delete", "db", "--yes"]));
}
