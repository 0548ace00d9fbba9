//! The ublk frontend, and the whole product on it, in guests whose kernels have ublk.
//!
//! A volume is filled in one guest and verified in another with the other kernel: they share
//! nothing but the S3 server. What does not depend on the kernel is done on one of them. OBJBLK_FULL=1 does
//! everything on both, takes a larger tree and runs longer.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "doors/block_door.rs"]
mod block_door;
#[path = "doors/door.rs"]
mod door;
#[path = "doors/faults.rs"]
mod faults;
#[allow(dead_code, reason = "the rest of it is for tests/doors.rs")]
#[path = "doors/file_hand.rs"]
mod file_hand;
#[path = "doors/home.rs"]
mod home;
#[path = "doors/oracle.rs"]
mod oracle;
#[path = "support/s3.rs"]
mod s3;
#[path = "doors/suite.rs"]
mod suite;

use block_door::{LOOP, UBLK};
use home::Home;
use objblk::format::keys;
use objblk::store::{Store, list_all};
use s3::{Bucket, S3Lab};
use std::path::{Path, PathBuf};
use std::process::Command;

const KERNELS: [&str; 2] = ["6.12", "7.2"];
/// The host of forwarded ports, as the guest sees it.
const GATEWAY: &str = "10.0.2.100";

fn full() -> bool {
    std::env::var_os("OBJBLK_FULL").is_some()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs `script` in a guest and shows what it printed.
fn guest(kernel: &str, script: &str, options: &[String], steps: &[&str]) {
    let mut run = Command::new(root().join("scripts/vm/run.sh"));
    run.args(["-k", kernel, "-t", if full() { "1500" } else { "600" }]);
    run.args(options).arg("-f").arg(root().join("tests/vm").join(script)).arg("--").args(steps);
    let output = run.output().expect("scripts/vm/run.sh can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    let console = String::from_utf8_lossy(&output.stderr);
    println!("kernel {kernel}, {script} {steps:?}\n{text}{console}");
    assert!(output.status.success(), "kernel {kernel}: {script} failed:\n{text}\n{console}");
}

fn option(name: &str, value: impl Into<String>) -> [String; 2] {
    [name.to_owned(), value.into()]
}

fn frontend(kernel: &str) {
    let example = PathBuf::from(env!("CARGO_BIN_EXE_objblk"));
    let example = example.parent().unwrap().join("examples/ublk_ram");
    assert!(example.exists(), "{} is built with the tests", example.display());
    let mut options = option("-p", example.to_str().unwrap()).to_vec();
    options.extend(option("-e", if full() { "CYCLES=50" } else { "CYCLES=10" }));
    let parts: &[&str] = match full() {
        // All of them, and its speed.
        true => &[],
        false => &[
            "attributes",
            "file_systems",
            "verify",
            "discards",
            "durability",
            "two_queues",
            "detach",
            "kill_9",
            "recovery",
            "read_only",
            "large_blocks",
            "conflicts",
            "cycles",
        ],
    };
    guest(kernel, "ublk-frontend.sh", &options, parts);
}

#[test]
fn ublk_frontend_on_kernel_6_12() {
    frontend("6.12");
}

#[test]
fn ublk_frontend_on_kernel_7_2() {
    frontend("7.2");
}

/// A pool in a bucket of its own, and how a guest reaches it.
struct Pool {
    bucket: Bucket,
    options: Vec<String>,
    files: tempfile::TempDir,
}

impl Pool {
    async fn new() -> Pool {
        let lab = S3Lab::get();
        let bucket = lab.bucket().await;
        let port = lab.endpoint.rsplit(':').next().unwrap();
        let mut options = Vec::new();
        options.extend(option("-p", env!("CARGO_BIN_EXE_objblk")));
        options.extend(option("-F", port));
        for (name, value) in [
            ("OBJBLK_STORE", format!("s3://{}/pool", bucket.name)),
            ("AWS_ENDPOINT_URL", format!("http://{GATEWAY}:{port}")),
            ("AWS_ACCESS_KEY_ID", lab.var("AWS_ACCESS_KEY_ID").to_owned()),
            ("AWS_SECRET_ACCESS_KEY", lab.var("AWS_SECRET_ACCESS_KEY").to_owned()),
            ("AWS_REGION", lab.var("AWS_REGION").to_owned()),
            ("FIO_SECONDS", if full() { "120" } else { "4" }.to_owned()),
            ("FIO_AMOUNT", if full() { "24m" } else { "8m" }.to_owned()),
            ("KILL_ROUNDS", if full() { "10" } else { "1" }.to_owned()),
            // Each kills the target once with and once without its supervisor.
            ("CYCLES", if full() { "15" } else { "1" }.to_owned()),
        ] {
            options.extend(option("-e", format!("{name}={value}")));
        }
        let pool = Pool { bucket, options, files: tempfile::tempdir().unwrap() };
        pool.objblk(&["pool", "init"]);
        pool
    }

    /// A tree of files as an archive, for the guest as well.
    fn add_tree(&mut self) {
        let tree = self.files.path().join("tree.tar");
        make_tree(&tree);
        self.options.extend(option("-p", tree.to_str().unwrap()));
    }

    fn objblk(&self, arguments: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_objblk"))
            .args(arguments)
            .env("OBJBLK_STORE", format!("s3://{}/pool", self.bucket.name))
            .envs(&S3Lab::get().env)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "objblk {arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Source files of the crates that this one is built from: 24 MiB of them; or 500 with this host's
/// libraries and documents.
fn make_tree(archive: &Path) {
    let home = std::env::var("CARGO_HOME").map(PathBuf::from);
    let home = home.unwrap_or_else(|_| Path::new(&std::env::var("HOME").unwrap()).join(".cargo"));
    let (mib, more) = if full() { (500, "/usr/lib /usr/share") } else { (24, "") };
    let script = format!(
        "cd / && find '{}' {more} -xdev -type f -size -4096k -printf '%s %p\\0' | LC_ALL=C sort -z -k2 |
         awk -v RS='\\0' -v ORS='\\0' -v left=$(({mib} << 20)) \
             '$1 <= left {{ left -= $1; sub(/^[0-9]+ \\//, \"\"); print }}' |
         tar -cf '{}' --null -T -",
        home.join("registry/src").display(),
        archive.display()
    );
    let made = Command::new("bash").args(["-ec", &format!("set -o pipefail; {script}")]).status();
    assert!(made.unwrap().success(), "the tree can be packed");
    assert!(archive.metadata().unwrap().len() > (mib << 20) * 3 / 4, "there are enough sources");
}

/// The suite of `tests/doors.rs` on block devices. Here it is the kernel's own on a file, which shows that
/// what it expects of a disk is what disks do; in a guest (step `doors` of volume.sh), that of an attached
/// volume.
#[test]
fn a_block_device_is_a_disk() {
    let Ok(amount) = std::env::var("OBJBLK_DOORS_AMOUNT") else {
        return suite::conforms(LOOP, 1, 200);
    };
    let amount = amount.parse().unwrap();
    suite::conforms(UBLK, 1, amount);
    suite::kills(UBLK, 1, amount / 10);
    suite::read_only(UBLK, 1);
    suite::grows(UBLK, 1);
    faults::damage(UBLK, 1);
    faults::fenced(UBLK);
    let home = Home::directory();
    // Objects that are away would be lost to a read; a write waits for the store.
    let away = |down| {
        let (from, to) = if down { ("store", "away") } else { ("away", "store") };
        std::fs::rename(home.path(from), home.path(to)).unwrap();
    };
    faults::outage(UBLK, &home, &away, false);
}

/// What `scripts/vm/fetch.sh` has of `what`, for a guest.
fn fetched(what: &str) -> String {
    let output = Command::new(root().join("scripts/vm/fetch.sh")).arg(what).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Bytes of all objects of the volume `name`.
async fn stored(pool: &Pool, name: &str) -> u64 {
    let info: serde_json::Value =
        serde_json::from_str(&pool.objblk(&["info", name, "--json"])).unwrap();
    let id = info["id"].as_str().unwrap().parse().unwrap();
    let store = pool.bucket.store("pool").await;
    let objects = list_all(&store as &dyn Store, &keys::volume_prefix(id)).await.unwrap();
    objects.iter().map(|object| object.size).sum()
}

/// What is filled on one kernel is verified on the other.
#[test]
fn s3_volumes_go_from_kernel_to_kernel() {
    let [old, new] = KERNELS;
    let guests: [(&str, &[&str]); 3] = match full() {
        false => [
            (old, &["conduct", "fill:ext", "discard"]),
            (new, &["verify:ext", "fill:xfs", "fio", "doors"]),
            (old, &["verify:xfs", "kill", "udev"]),
        ],
        true => [
            (old, &["conduct", "fill:ext", "discard"]),
            (new, &["verify:ext", "fill:xfs", "discard", "conduct", "fio", "kill", "doors"]),
            (old, &["verify:xfs", "fio", "kill", "udev"]),
        ],
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut pool = runtime.block_on(Pool::new());
    pool.add_tree();
    let suite = std::env::current_exe().unwrap();
    let rules = root().join("examples/90-objblk.rules");
    for file in [suite.to_str().unwrap(), rules.to_str().unwrap(), &fetched("udevadm")] {
        pool.options.extend(option("-p", file));
    }
    let suite = suite.file_name().unwrap().to_str().unwrap();
    pool.options.extend(option("-e", format!("DOORS={suite}")));
    pool.options.extend(option("-e", format!("DOORS_AMOUNT={}", if full() { 1000 } else { 60 })));
    for (name, size) in
        [("ext", "2G"), ("xfs", "2G"), ("fio", "1G"), ("huge", "1T"), ("kill", "1G")]
    {
        pool.objblk(&["create", name, "--size", size]);
    }
    pool.objblk(&["create", "conduct", "--size", "1G"]);
    for (kernel, steps) in guests {
        guest(kernel, "volume.sh", &pool.options, steps);
        let left = runtime.block_on(stored(&pool, "huge"));
        println!("{left} bytes are left of the discarded volume");
        assert!(left < 64 << 10, "{left} bytes are left of a discarded volume");
    }
    runtime.block_on(pool.bucket.empty());
}

/// Targets die by kill -9 under mounted file systems, and nothing is lost or noticed: the steps `short`, or
/// all of them if there is time for it.
fn recovery(kernel: &str, short: &[&str]) {
    let all = [
        "cycles", "sealed", "journal", "refuse", "start", "table", "ending", "loop", "pressure",
        "grow", "growing",
    ];
    assert!(short.iter().all(|step| all.contains(step)));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let pool = runtime.block_on(Pool::new());
    guest(kernel, "recover.sh", &pool.options, if full() { &all } else { short });
    runtime.block_on(pool.bucket.empty());
}

#[test]
fn s3_volumes_outlive_their_targets_on_kernel_6_12() {
    recovery("6.12", &["sealed", "start", "table", "ending"]);
}

#[test]
fn s3_volumes_outlive_their_targets_on_kernel_7_2() {
    recovery("7.2", &["journal", "pressure", "refuse", "table", "loop", "grow", "growing"]);
}

/// By the units, rules and lines of examples/: the file system of a volume is there when the host is, and
/// when its network goes nothing is mounted and nobody has the volume.
#[test]
fn a_machine_mounts_a_volume_at_boot_and_ends_in_order() {
    let examples = root().join("examples");
    let files = [env!("CARGO_BIN_EXE_objblk"), &fetched("udevadm"), examples.to_str().unwrap()];
    let mut options: Vec<String> = files.map(|file| option("-p", file)).concat();
    options.extend(option("-m", "3G"));
    guest("6.12", "boots.sh", &options, &[]);
}
