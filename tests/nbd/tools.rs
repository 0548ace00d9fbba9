//! Whole programs as clients: nbdinfo, nbdcopy, qemu-img, qemu-io, fio.

use crate::harness::{Ram, Running, attempt, pattern, ram, run, runtime, serve, text};
use objblk::device::Checked;
use objblk::device::ram::RamDisk;
use objblk::frontend::nbd::Limits;
use objblk::units::{BlockSize, SectorCount};
use serde_json::Value;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const DELAY: Option<Duration> = Some(Duration::from_micros(300));

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&run("libnbd-bin", "nbdinfo", args)).unwrap()
}

#[test]
fn nbdinfo_describes_exports() {
    let small: Ram = Arc::new(Checked::new(RamDisk::new(SectorCount(2048), BlockSize::B512)));
    let large = RamDisk::new(SectorCount(8192), BlockSize::B4096).read_only();
    let offers = vec![("small", small), ("vol@snap é", Arc::new(Checked::new(large)))];
    let server = serve(runtime(), false, Limits::default(), offers);
    let list = json(&["--list", "--json", &server.uris[0]]);
    assert_eq!(list["structured"], true);
    let (small, large) = (&list["exports"][0], &list["exports"][1]);
    assert_eq!(small["export-name"], "small");
    assert_eq!(small["description"], "about small");
    assert_eq!(small["export-size"], MIB);
    assert_eq!(small["contexts"], serde_json::json!(["base:allocation"]));
    for able in ["cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"] {
        assert_eq!(small[format!("can_{able}")], true, "{able}");
    }
    assert_eq!(small["is_read_only"], false);
    assert_eq!(small["block_size_minimum"], 512);
    assert_eq!(small["block_size_preferred"], 4096);
    assert_eq!(small["block_size_maximum"], 32 * MIB);
    assert_eq!(large["is_read_only"], true);
    assert_eq!(large["can_trim"], false);
    assert_eq!(large["block_size_minimum"], 4096);
    // The printed URI leads to the export, strange name and all.
    let named = json(&["--json", &server.uris[1]]);
    assert_eq!(named["exports"][0]["export-name"], "vol@snap é");
    // With two exports there is no default one.
    let socket = server.socket();
    let none = format!("nbd+unix:///?socket={}", socket.display());
    assert!(!attempt("libnbd-bin", "nbdinfo", &[&none]).status.success());
    server.stop().unwrap();
}

/// Copies an image in and out with nbdcopy, which uses several connections.
fn copy_both_ways(server: &Running, mib: u64) {
    let (image, back) = (server.dir.path().join("image"), server.dir.path().join("back"));
    fs::write(&image, pattern((mib * MIB) as usize)).unwrap();
    let (image_path, back_path) = (image.to_str().unwrap(), back.to_str().unwrap());
    run("libnbd-bin", "nbdcopy", &["--flush", image_path, server.uri()]);
    run("libnbd-bin", "nbdcopy", &[server.uri(), back_path]);
    assert!(fs::read(&image).unwrap() == fs::read(&back).unwrap(), "the copy differs");
    let status = server.status();
    assert_eq!(status.errors, 0);
    assert!(status.flushes >= 1 && status.connections_total >= 3, "{status:?}");
}

#[test]
fn nbdcopy_round_trip() {
    for (block_size, delay) in
        [(BlockSize::B512, None), (BlockSize::B4096, None), (BlockSize::B512, DELAY)]
    {
        let (server, _) = ram(24, block_size, delay);
        copy_both_ways(&server, 24);
        server.stop().unwrap();
    }
}

#[test]
fn nbdcopy_round_trip_over_tcp() {
    let disk = Arc::new(Checked::new(RamDisk::new(SectorCount(24 << 11), BlockSize::B512)));
    let server = serve(runtime(), true, Limits::default(), vec![("disk", disk)]);
    assert!(server.uri().starts_with("nbd://127.0.0.1:"), "{}", server.uri());
    copy_both_ways(&server, 24);
    server.stop().unwrap();
}

#[test]
fn qemu_img_converts_and_compares() {
    for (block_size, delay) in [(BlockSize::B512, DELAY), (BlockSize::B4096, None)] {
        let (server, _) = ram(24, block_size, delay);
        let path = |name: &str| server.dir.path().join(name).to_str().unwrap().to_owned();
        let (image, qcow) = (path("image"), path("image.qcow2"));
        fs::write(&image, pattern((24 * MIB) as usize)).unwrap();
        let qemu = |args: &[&str]| run("qemu-utils", "qemu-img", args);
        qemu(&["convert", "-n", "-f", "raw", "-O", "raw", &image, server.uri()]);
        qemu(&["compare", "-f", "raw", "-F", "raw", &image, server.uri()]);
        qemu(&["convert", "-f", "raw", "-O", "qcow2", server.uri(), &qcow]);
        qemu(&["compare", "-f", "raw", "-F", "qcow2", &image, &qcow]);
        let info = qemu(&["info", "--output=json", "-f", "raw", server.uri()]);
        let info: Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["virtual-size"], 24 * MIB);
        // The holes of the image are holes of the device.
        let map = qemu(&["map", "--output=json", "-f", "raw", server.uri()]);
        let map: Value = serde_json::from_str(&map).unwrap();
        let holes = map.as_array().unwrap().iter().filter(|run| run["data"] == false).count();
        assert_eq!(holes, 24 * 16 / 3);
        server.stop().unwrap();
    }
}

#[test]
fn qemu_io_checks_patterns() {
    let (server, disk) = ram(16, BlockSize::B512, DELAY);
    let commands = [
        "write -P 0x11 0 1M",
        "write -P 0x22 512 512",
        "read -P 0x22 512 512",
        "read -P 0x11 1024 64k",
        "write -z -u 64k 128k",
        "read -P 0 64k 128k",
        "write -z 256k 64k",
        "read -P 0 256k 64k",
        "write -f -P 0x33 2M 64k",
        "discard 2M 32k",
        "read -P 0 2M 32k",
        "read -P 0x33 2080k 32k",
        "aio_write -P 0x44 4M 2M",
        "aio_write -P 0x55 6M 2M",
        "aio_flush",
        "read -P 0x44 4M 2M",
        "read -P 0x55 6M 2M",
        "flush",
    ];
    let mut args = vec!["-f", "raw", "-t", "none", server.uri()];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    let out = run("qemu-utils", "qemu-io", &args);
    assert!(!out.contains("verification failed") && !out.contains("error"), "{out}");
    assert!(disk.inner().flushes() >= 2, "FUA and flush did not arrive");
    server.stop().unwrap();
}

/// With one block size, so that no two writes overlap: fio cannot tell in which order writes that
/// overlap in part took effect.
#[test]
fn fio_verifies() {
    for (block_size, delay, bytes) in [
        (BlockSize::B512, None, "512"),
        (BlockSize::B4096, None, "4k"),
        (BlockSize::B512, DELAY, "4k"),
        (BlockSize::B512, DELAY, "128k"),
    ] {
        let (server, _) = ram(16, block_size, delay);
        let uri = format!("--uri={}", server.uri());
        let bytes = format!("--bs={bytes}");
        let mut args = vec!["--name=verify", "--ioengine=nbd", &uri, &bytes, "--size=16m"];
        args.extend(["--rw=randrw", "--iodepth=32", "--randseed=42", "--output-format=terse"]);
        args.extend(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]);
        let fio = attempt("fio", "fio", &args);
        assert!(fio.status.success(), "{}{}", text(&fio.stdout), text(&fio.stderr));
        let status = server.status();
        assert!(status.errors == 0 && status.bytes_written >= 4 * MIB, "{status:?}");
        server.stop().unwrap();
    }
}
