//! The pool as a directory: what ordinary programs make of it, who owns what, and how it ends.
//!
//! Needs FUSE and xfs in the kernel, root, fsx, and the programs of Debian's `e2fsprogs`, `fio`, `mount`, `xfsprogs` and
//! `qemu-utils`.

use crate::program::{BUSY, CORRUPT, Home, NOT_FOUND, USAGE, noise, tool, until};
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;
const EPERM: i32 = 1;
const EIO: i32 = 5;
const EBUSY: i32 = 16;
const EROFS: i32 = 30;
const ENOSPC: i32 = 28;
const ENOTCONN: i32 = 107;

/// A mounted directory; unmounted by force when dropped.
struct Mount<'a> {
    home: &'a Home,
    dir: PathBuf,
    pid: u64,
}

impl<'a> Mount<'a> {
    fn new(home: &'a Home, flags: &[&str]) -> Mount<'a> {
        let dir = home.path("mnt");
        // It may be there, and dead.
        let _ = fs::create_dir(&dir);
        let path = dir.to_str().unwrap().to_owned();
        let ready = home.run(&[&["mount", &path, "--json"], flags].concat()).json();
        assert_eq!(ready["dir"], Value::from(path));
        Mount { home, dir, pid: ready["pid"].as_u64().unwrap() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn kill(&self) {
        tool("kill", &["-9", &self.pid.to_string()]);
        // Whoever looks gets an error, at once: never a directory that hangs.
        until("the kernel knows", || {
            fs::read_dir(&self.dir).is_err_and(|e| e.raw_os_error() == Some(ENOTCONN))
        });
    }

    fn umount(&self, flags: &[&str]) -> crate::program::Done {
        self.home.run(&[&["umount", arg(&self.dir)], flags].concat())
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        // It may have ended long ago.
        self.umount(&["--force"]);
    }
}

fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn rw(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[track_caller]
fn refused<T>(outcome: std::io::Result<T>, errno: i32) {
    let error = outcome.err().expect("it is refused");
    assert_eq!(error.raw_os_error(), Some(errno), "{error}");
}

fn state(home: &Home, name: &str) -> String {
    home.run(&["info", name, "--json"]).json()["state"].as_str().unwrap().to_owned()
}

#[test]
fn a_pool_is_a_directory_of_files() {
    let home = Home::new();
    home.run(&["create", "a", "--size", "10486272"]).ok();
    home.run(&["create", "big", "--size", "1P", "--block-size", "4096"]).ok();
    let mount = Mount::new(&home, &[]);
    assert_eq!(mount.names(), [".snapshots", "a.raw", "big.raw"]);
    assert_eq!(fs::metadata(mount.file("a.raw")).unwrap().len(), 10_486_272);
    assert_eq!(fs::metadata(mount.file("big.raw")).unwrap().len(), 1 << 50);
    refused(fs::metadata(mount.file("b.raw")), 2);

    // What others make and delete comes and goes.
    home.run(&["create", "later", "--size", "1M"]).ok();
    assert_eq!(fs::metadata(mount.file("later.raw")).unwrap().len(), MIB);
    home.run(&["delete", "later", "--yes"]).ok();
    until("the file is gone", || fs::metadata(mount.file("later.raw")).is_err());
    assert_eq!(mount.names(), [".snapshots", "a.raw", "big.raw"]);

    // Names are for the verbs.
    refused(fs::remove_file(mount.file("a.raw")), EPERM);
    refused(fs::rename(mount.file("a.raw"), mount.file("b.raw")), EPERM);
    refused(File::create(mount.file("b.raw")), EPERM);
    refused(fs::create_dir(mount.file("dir")), EPERM);

    let file = rw(&mount.file("a.raw"));
    refused(file.set_len(512), EPERM);
    refused(file.set_len(10_486_273), EPERM);
    file.set_len(10_486_272).unwrap();
    assert_eq!(file.write_at(&[7; 1024], 10_486_272 - 100).unwrap(), 100, "up to the end");
    refused(file.write_at(&[7], 10_486_272), ENOSPC);
    let attribute = |name: &str| {
        let script = "import os, sys; print(os.getxattr(sys.argv[1], sys.argv[2]).decode())";
        let name = format!("user.objblk.{name}");
        tool("python3", &["-c", script, arg(&mount.file("a.raw")), &name]).trim().to_owned()
    };
    let info = home.run(&["info", "a", "--json"]).json();
    assert_eq!(attribute("id"), info["id"].as_str().unwrap());
    assert_eq!((attribute("epoch"), attribute("state")), ("1".into(), "open".into()));
    drop(file);
    mount.umount(&[]).ok();
    assert_eq!(fs::read_dir(&mount.dir).unwrap().count(), 0);
    assert_eq!(state(&home, "a"), "free", "it was closed in order");
    mount.umount(&[]).refuses(NOT_FOUND, "nothing is mounted on");
    let dir = arg(&mount.dir);
    home.run(&["mount", dir, "--takeover"]).refuses(USAGE, "does not take volumes from others");
    home.run(&["mount", "/nowhere/at/all"]).refuses(NOT_FOUND, "mkdir -p /nowhere/at/all");
    until("no trace is left", || home.run_files().is_empty());
}

#[test]
fn ordinary_programs_work_on_files_of_a_mount() {
    let home = Home::new();
    home.run(&["create", "disk", "--size", "48M"]).ok();
    let mount = Mount::new(&home, &[]);
    let (file, local) = (mount.file("disk.raw"), home.path("local"));
    let (path, model) = (arg(&file), arg(&local));
    File::create(&local).unwrap().set_len(48 * MIB).unwrap();
    fs::write(home.path("noise"), noise(3_333_333)).unwrap();
    let source = format!("if={}", arg(&home.path("noise")));
    for target in [path, model] {
        // Neither blocks nor sectors: pieces of 1000 bytes at odd places.
        let target = format!("of={target}");
        tool("dd", &[&source, &target, "bs=1000", "seek=777", "conv=notrunc,fsync"]);
        tool("dd", &[&source, &target, "bs=1M", "seek=33", "conv=notrunc"]);
    }
    let same = || tool("cmp", &[path, model]);
    same();
    let sum = |of: &str| tool("sha256sum", &[of]).split(' ').next().unwrap().to_owned();
    assert_eq!(sum(path), sum(model));

    // Out and in again, holes as holes.
    let out = home.path("out");
    tool("cp", &["--sparse=always", path, arg(&out)]);
    tool("cmp", &[arg(&out), model]);
    assert!(fs::metadata(&out).unwrap().blocks() * 512 < 12 * MIB, "holes were filled");
    tool("fallocate", &["--punch-hole", "--offset", "1000001", "--length", "999999", path]);
    rw(&local).write_all_at(&[0; 999_999], 1_000_001).unwrap();
    tool("fallocate", &["--zero-range", "--offset", "35000000", "--length", "100", path]);
    rw(&local).write_all_at(&[0; 100], 35_000_000).unwrap();
    same();
    let seek = "import os, sys\nf = os.open(sys.argv[1], os.O_RDONLY)\n\
                data = os.lseek(f, 0, os.SEEK_DATA)\nhole = os.lseek(f, data, os.SEEK_HOLE)\n\
                print(data, hole, os.lseek(f, hole, os.SEEK_DATA), os.lseek(f, 50331648 - 1, os.SEEK_HOLE))";
    let found = tool("python3", &["-c", seek, path]);
    // The first write began in the sector of 777000; the hole is the whole sectors of what was punched.
    assert_eq!(found.trim(), "776704 1000448 1999872 50331647");
    // Opening it anew gives up what was there: nothing shines through the holes of a copy.
    let image = home.path("image");
    File::create(&image).unwrap().set_len(48 * MIB).unwrap();
    rw(&image).write_all_at(&noise(123_456), 5 * MIB).unwrap();
    tool("cp", &["--sparse=always", arg(&image), path]);
    tool("cmp", &[path, arg(&image)]);

    let info = tool("qemu-img", &["info", "--output=json", "-f", "raw", path]);
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["virtual-size"], 48 * MIB);
    tool("qemu-img", &["convert", "-n", "-t", "none", "-f", "raw", "-O", "raw", model, path]);
    tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", path, model]);

    tool("mkfs.ext4", &["-q", "-F", path]);
    tool("e2fsck", &["-f", "-n", path]);
    let fio = format!("--filename={path}");
    let common = [
        "--name=verify",
        "--size=16M",
        "--rw=randwrite",
        "--verify=crc32c",
        "--bs=8k",
        "--verify_state_save=0",
    ];
    let direct = ["--ioengine=libaio", "--iodepth=16", "--direct=1", &fio];
    tool("fio", &[&common[..], &direct].concat());
    tool("fio", &[&common[..], &["--ioengine=mmap", &fio]].concat());
    // Several at once past the cache, each in a part of its own.
    let apart =
        ["--ioengine=psync", "--direct=1", "--thread", "--numjobs=3", "--offset_increment=16M"];
    tool("fio", &[&common[..], &apart, &[&fio]].concat());
    // What is past the cache can be mapped all the same, and both show the same.
    let mapped = "import mmap, os, sys\nf = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)\n\
                  m = mmap.mmap(f, 8192)\nm[4096:4101] = b'mine!'\nm.flush()\n\
                  b = mmap.mmap(-1, 4096)\nos.preadv(f, [b], 4096)\nassert b[:5] == b'mine!', b[:5]\n\
                  b[:5] = b'yours'\nos.pwritev(f, [b], 4096)\nprint(m[4096:4101].decode())";
    assert_eq!(tool("python3", &["-c", mapped, path]).trim(), "yours");
    mount.umount(&[]).ok();
}

#[test]
fn a_loop_device_on_a_file_carries_a_file_system() {
    let home = Home::new();
    home.run(&["create", "disk", "--size", "64M"]).ok();
    let mount = Mount::new(&home, &[]);
    let path = mount.file("disk.raw");
    tool("mkfs.ext4", &["-q", "-F", arg(&path)]);
    let (on, content) = (home.path("ext4"), noise(5_000_000));
    fs::create_dir(&on).unwrap();
    tool("mount", &["-o", "loop,discard", arg(&path), arg(&on)]);
    fs::write(on.join("file"), &content).unwrap();
    mount.umount(&[]).refuses(BUSY, "is in use");
    tool("umount", &[arg(&on)]);
    tool("e2fsck", &["-f", "-n", arg(&path)]);
    until("the loop device is gone", || mount.umount(&[]).code == 0);
    let mount = Mount::new(&home, &["--read-only"]);
    tool("mount", &["-o", "loop,ro,noload", arg(&mount.file("disk.raw")), arg(&on)]);
    assert!(fs::read(on.join("file")).unwrap() == content, "the file has changed");
    tool("umount", &[arg(&on)]);
    refused(OpenOptions::new().write(true).open(mount.file("disk.raw")), EROFS);
    assert_eq!(state(&home, "disk"), "free");
    until("the loop device is gone", || mount.umount(&[]).code == 0);
}

/// Operations of one run of the exerciser, at most: it never unmaps what it has read through a mapping, so that a
/// process can do with some 300,000, and each makes those after it slower.
const ONE_RUN: u64 = 50_000;

/// What the file system exerciser does to a file: it compares every read with its own record.
fn fsx(home: &Home, file: &Path, operations: u64) {
    let dir = home.path("");
    for (seed, done) in (7..).zip((0..operations).step_by(ONE_RUN as usize)) {
        let (seed, count) = (u64::to_string(&seed), (operations - done).min(ONE_RUN).to_string());
        tool("fsx", &["-q", "-S", &seed, "-N", &count, "-P", arg(&dir), arg(file)]);
    }
}

/// A file system on a loop device on a file: exercised, verified, and its server killed under load. Nothing
/// hangs, and what was synced is there. OBJBLK_FULL=1: a million operations.
fn file_system_on_a_file(kind: &str) {
    let full = std::env::var_os("OBJBLK_FULL").is_some();
    let home = Home::new();
    home.run(&["create", "disk", "--size", "512M"]).ok();
    let mount = Mount::new(&home, &[]);
    let (path, on) = (mount.file("disk.raw"), home.path(kind));
    fs::create_dir(&on).unwrap();
    tool(&format!("mkfs.{kind}"), &["-q", arg(&path)]);
    tool("mount", &["-o", "loop,discard", arg(&path), arg(&on)]);
    fsx(&home, &on.join("fsx"), if full { 1_000_000 } else { 3_000 });
    let amount = if full { "256m" } else { "24m" };
    let fio = |name: &str, more: &[&str]| {
        let (name, dir) = (format!("--name={name}"), format!("--directory={}", arg(&on)));
        let mut fio = std::process::Command::new("fio");
        fio.args([&name, &dir, "--ioengine=libaio", "--direct=1", "--iodepth=16", "--bs=4k"]);
        fio.args(["--rw=randwrite", "--size=64m", "--verify_state_save=0"]).args(more);
        fio
    };
    let verify = format!("--io_size={amount}");
    let verified = fio("v", &[&verify, "--verify=crc32c", "--fsync=64"]).output().unwrap();
    assert!(verified.status.success(), "{verified:?}");
    let synced = noise(3_000_000);
    let file = File::create(on.join("synced")).unwrap();
    file.write_all_at(&synced, 0).unwrap();
    file.sync_all().unwrap();
    File::open(&on).unwrap().sync_all().unwrap();
    drop(file);

    let mut load = fio("load", &["--time_based", "--runtime=600"]);
    let (log, null) = (File::create(home.path("load")).unwrap(), std::process::Stdio::null());
    let mut load = load.stdout(null).stderr(log).spawn().unwrap();
    until("there is load", || on.join("load.0.0").exists());
    std::thread::sleep(std::time::Duration::from_secs(2));
    mount.kill();
    until("who writes there gets an error", || load.try_wait().unwrap().is_some());
    tool("umount", &[arg(&on)]);
    until("the loop device is gone", || mount.umount(&[]).code == 0);

    let mount = Mount::new(&home, &[]);
    tool("mount", &["-o", "loop", arg(&path), arg(&on)]);
    assert!(fs::read(on.join("synced")).unwrap() == synced, "what was synced is lost");
    tool("umount", &[arg(&on)]);
    match kind {
        "ext4" => tool("e2fsck", &["-f", "-n", arg(&path)]),
        _ => tool("xfs_repair", &["-n", "-f", arg(&path)]),
    };
    until("the loop device is gone", || mount.umount(&[]).code == 0);
}

#[test]
fn ext4_on_a_file_withstands_fsx_fio_and_kill_9() {
    file_system_on_a_file("ext4");
}

#[test]
fn xfs_on_a_file_withstands_fsx_fio_and_kill_9() {
    file_system_on_a_file("xfs");
}

/// Of what cannot be read any more the files are named: those that lie there, and no others.
#[test]
fn the_files_that_damage_hits_are_named() {
    for kind in ["ext4", "xfs"] {
        let home = Home::new();
        home.run(&["create", "disk", "--size", "320M", "--chunk-size", "256K"]).ok();
        let mount = Mount::new(&home, &[]);
        let (path, on) = (mount.file("disk.raw"), home.path(kind));
        fs::create_dir(&on).unwrap();
        tool(&format!("mkfs.{kind}"), &["-q", arg(&path)]);
        tool("mount", &["-o", "loop", arg(&path), arg(&on)]);
        for name in ["whole", "hit", "whole too"] {
            fs::write(on.join(name), noise(3 << 20)).unwrap();
        }
        let extents = tool("filefrag", &["-e", "-s", "-b512", arg(&on.join("hit"))]);
        tool("umount", &[arg(&on)]);
        until("the loop device is gone", || mount.umount(&[]).code == 0);
        // `0:  0..  6143:  67584..  73727: ...`: the first sector of its first extent, and one of its middle.
        let first = extents.lines().find_map(|line| line.trim().strip_prefix("0:")).unwrap();
        let sector = first.split([':', '.']).filter_map(|n| n.trim().parse::<u64>().ok()).nth(2);
        let at = (sector.unwrap() + 2048).to_string();
        let found = home.run(&["locate", "disk", &at, "--json"]).json();
        let stored = &found["stored"];
        let object = home.store().join(stored["object"].as_str().unwrap());
        let mut body = fs::read(&object).unwrap();
        let byte = stored["offset"].as_u64().or(stored["frame_offset"].as_u64()).unwrap();
        body[byte as usize] ^= 1;
        fs::write(&object, body).unwrap();
        let report = home.run(&["check", "disk", "--data", "--json"]);
        assert_eq!(report.code, CORRUPT, "{report:?}");
        fs::write(home.path("report"), &report.out).unwrap();
        let mount = Mount::new(&home, &["--read-only"]);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/affected.py");
        let command = format!("{script} disk {} <{}", arg(&path), arg(&home.path("report")));
        let told = tool("sh", &["-c", &command]);
        let files: Vec<&str> =
            told.lines().filter_map(|line| line.trim().split_once("  ")).map(|f| f.1).collect();
        assert_eq!(files.first().map(|f| f.trim_start_matches('/')), Some("hit"), "{kind}: {told}");
        assert!(files[1..].iter().all(|file| file.starts_with('(')), "{kind}: {told}");
        until("nobody uses it", || mount.umount(&[]).code == 0);
    }
}

#[test]
fn a_killed_mount_has_what_was_synced_and_is_cleaned_up() {
    let home = Home::new();
    home.run(&["create", "a", "--size", "8M"]).ok();
    let data = noise(300_001);
    let mount = Mount::new(&home, &[]);
    let file = rw(&mount.file("a.raw"));
    file.write_all_at(&data, 12_345).unwrap();
    file.sync_all().unwrap();
    mount.kill();
    refused(file.sync_all(), ENOTCONN);
    drop(file);
    // The next one needs no hand.
    let again = Mount::new(&home, &[]);
    let file = rw(&again.file("a.raw"));
    let mut read = vec![0; data.len()];
    file.read_exact_at(&mut read, 12_345).unwrap();
    assert!(read == data, "what was synced is lost");
    // To close what was written is to sync it.
    file.write_all_at(&data, 4_000_000).unwrap();
    drop(file);
    again.kill();
    let ended = again.umount(&["--json"]).json();
    assert_eq!(ended["was_dead"], true);
    assert_eq!(fs::read_dir(&again.dir).unwrap().count(), 0);
    std::mem::forget(mount);
    let last = Mount::new(&home, &[]);
    File::open(last.file("a.raw")).unwrap().read_exact_at(&mut read, 4_000_000).unwrap();
    assert!(read == data, "what was closed is lost");
    last.umount(&[]).ok();
}

#[test]
fn a_file_in_use_is_owned_as_an_attached_volume_is() {
    let home = Home::new();
    home.run(&["create", "a", "--size", "8M"]).ok();
    let mount = Mount::new(&home, &[]);
    let elsewhere = home.other_host();
    let server = elsewhere.serve(&["a"]);
    refused(File::open(mount.file("a.raw")), EBUSY);
    server.signal("TERM");
    server.ended();

    let file = rw(&mount.file("a.raw"));
    file.write_all_at(b"before", 100).unwrap();
    assert_eq!(state(&home, "a"), "in-use");
    let status = home.run(&["status", "a", "--json"]).json();
    assert_eq!(status["device"], arg(&mount.file("a.raw")), "{status}");
    home.run(&["detach", "a"]).refuses(BUSY, "a.raw is open");
    home.run(&["snapshot", "create", "a@s"]).ok();
    file.write_all_at(b"after!", 100).unwrap();
    let snapshot = mount.file(".snapshots/a/s.raw");
    let mut read = [0; 6];
    File::open(&snapshot).unwrap().read_exact_at(&mut read, 100).unwrap();
    assert_eq!(&read, b"before");
    refused(OpenOptions::new().write(true).open(&snapshot), EROFS);
    assert_eq!(fs::read_dir(mount.file(".snapshots/a")).unwrap().count(), 1);

    mount.umount(&[]).refuses(BUSY, "is in use");
    file.read_exact_at(&mut read, 100).unwrap();
    assert_eq!(&read, b"after!", "the refusal has changed nothing");
    drop(file);
    until("it is closed after its last use", || state(&home, "a") == "free");
    // And may be had by others again.
    let server = elsewhere.serve(&["a"]);
    server.signal("TERM");
    server.ended();

    let file = rw(&mount.file("a.raw"));
    mount.umount(&["--force"]).ok();
    assert!(file.read_at(&mut read, 4 << 20).is_err(), "its volume is closed");
    assert_eq!(fs::read_dir(&mount.dir).unwrap().count(), 0);
    assert_eq!(state(&home, "a"), "free");
}

#[test]
fn umount_by_hand_and_signals_close_the_volumes_in_order() {
    let home = Home::new();
    home.run(&["create", "a", "--size", "8M"]).ok();
    let mount = Mount::new(&home, &[]);
    rw(&mount.file("a.raw")).write_all_at(b"1", 0).unwrap();
    tool("umount", &[arg(&mount.dir)]);
    until("the volume is closed", || home.run_files().is_empty() && state(&home, "a") == "free");
    let mount = Mount::new(&home, &[]);
    home.run(&["mount", arg(&mount.dir)]).refuses(BUSY, "is mounted already by process");
    let file = rw(&mount.file("a.raw"));
    tool("kill", &["-s", "TERM", &mount.pid.to_string()]);
    until("it has ended", || home.run_files().is_empty());
    refused(file.read_at(&mut [0], 1 << 20), ENOTCONN);
    assert_eq!(state(&home, "a"), "free");
}

#[test]
fn a_file_of_a_fenced_volume_fails_and_is_had_again_once_the_volume_is_free() {
    let home = Home::new();
    home.run(&["create", "a", "--size", "8M"]).ok();
    let mount = Mount::new(&home, &[]);
    let file = rw(&mount.file("a.raw"));
    file.write_all_at(b"mine", 0).unwrap();
    file.sync_all().unwrap();
    let elsewhere = home.other_host();
    let server = elsewhere.serve(&["a", "--takeover"]);
    // It reaches memory, or is refused already: only a flush has to tell.
    let _ = file.write_at(b"late", 0);
    refused(file.sync_all(), EIO);
    refused(File::open(mount.file("a.raw")), EBUSY);
    server.signal("TERM");
    server.ended();
    let anew = rw(&mount.file("a.raw"));
    let mut read = [0; 4];
    anew.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(&read, b"mine");
    anew.sync_all().unwrap();
    refused(file.sync_all(), EIO);
    drop((file, anew));
    mount.umount(&[]).ok();
}
