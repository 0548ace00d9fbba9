//! Programs that others wrote, on a volume in S3.

use crate::table::{print, row};
use crate::world::{World, arg, attempt, full, seed, tool};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

const MIB: u64 = 1 << 20;

/// An image of `mib` MiB with data and holes: of every 16 MiB a part of 5 MiB and one of 100 KiB.
fn image(path: &Path, mib: u64) -> u64 {
    let file = File::create(path).unwrap();
    file.set_len(mib * MIB).unwrap();
    let mut rng = StdRng::seed_from_u64(mib);
    let mut noise = vec![0; 5 * MIB as usize];
    let mut data = 0;
    for at in (0..mib * MIB).step_by(16 << 20) {
        rng.fill_bytes(&mut noise);
        file.write_all_at(&noise, at).unwrap();
        file.write_all_at(&noise[..100 << 10], at + 9 * MIB + 4096).unwrap();
        data += noise.len() as u64 + (100 << 10);
    }
    data
}

fn sha256(path: &Path) -> String {
    let line = tool("coreutils", "sha256sum", &[arg(path)]);
    line.split(' ').next().unwrap().to_owned()
}

fn info(uri: &str) -> Value {
    serde_json::from_str(&tool("libnbd-bin", "nbdinfo", &["--json", uri])).unwrap()
}

#[test]
fn s3_nbdinfo_and_nbdcopy() {
    let mib = if full() { 1024 } else { 256 };
    let world = World::s3();
    let size = format!("{mib}M");
    world.run(&["create", "disk", "--size", &size, "--block-size", "4096"]);
    let server = world.serve("disk", &[]);
    let told = info(&server.uri);
    let export = &told["exports"][0];
    assert_eq!(
        (&export["export-name"], &export["export-size"]),
        (&"disk".into(), &(mib * MIB).into())
    );
    for can in ["is_rotational", "is_read_only"] {
        assert_eq!(export[can], false, "{can}");
    }
    for can in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"] {
        assert_eq!(export[can], true, "{can}");
    }
    assert_eq!(export["block_size_minimum"], 4096);
    let (from, back) = (world.path("image"), world.path("back"));
    let data = image(&from, mib);
    let copy = |what: &str, args: &[&str]| {
        let begun = Instant::now();
        tool("libnbd-bin", "nbdcopy", args);
        let took = begun.elapsed();
        let rate = |bytes: u64| format!("{:.0}", bytes as f64 / 1e6 / took.as_secs_f64());
        row(&[&what, &took.as_millis(), &rate(data), &rate(mib * MIB)])
    };
    let mut table = vec![row(&[&"nbdcopy", &"ms", &"MB/s of data", &"MB/s of the image"])];
    table.push(copy("in, flushed", &["--flush", arg(&from), &server.uri]));
    table.push(copy("out, same server", &[&server.uri, arg(&back)]));
    assert_eq!(sha256(&from), sha256(&back));
    let used = world.json(&["status", "disk"]);
    assert_eq!(used["dirty_bytes"], 0);
    server.stop();
    let used = world.json(&["info", "disk"])["used"].as_u64().unwrap();
    assert!((data..=data + MIB).contains(&used), "{used} bytes used by {data} bytes of data");
    std::fs::remove_file(&back).unwrap();
    let server = world.serve("disk", &["--read-only"]);
    assert_eq!(info(&server.uri)["exports"][0]["is_read_only"], true);
    table.push(copy("out, cold", &[&server.uri, arg(&back)]));
    assert_eq!(sha256(&from), sha256(&back));
    print(&format!("{mib} MiB image with {} MiB of data", data / MIB), &table);
    server.stop();
}

#[test]
fn s3_qemu_img() {
    let world = World::s3();
    world.run(&["create", "disk", "--size", "64M"]);
    let (raw, qcow) = (world.path("image"), world.path("image.qcow2"));
    image(&raw, 64);
    let qemu = |args: &[&str]| tool("qemu-utils", "qemu-img", args);
    let server = world.serve("disk", &[]);
    qemu(&["convert", "-n", "-f", "raw", "-O", "raw", arg(&raw), &server.uri]);
    qemu(&["compare", "-f", "raw", "-F", "raw", arg(&raw), &server.uri]);
    server.stop();
    let server = world.serve("disk", &[]);
    qemu(&["convert", "-f", "raw", "-O", "qcow2", &server.uri, arg(&qcow)]);
    qemu(&["compare", "-f", "raw", "-F", "qcow2", arg(&raw), arg(&qcow)]);
    let map = qemu(&["map", "--output=json", "-f", "raw", &server.uri]);
    let map: Value = serde_json::from_str(&map).unwrap();
    let runs = map.as_array().unwrap().iter().filter(|run| run["data"] == true);
    let data: u64 = runs.map(|run| run["length"].as_u64().unwrap()).sum();
    assert_eq!(data, 4 * (5 * MIB + (100 << 10)), "holes stay holes");
    server.stop();
}

/// One size of blocks a run: fio does not know in which order writes took effect that overlap in
/// part. With trims every block is trimmed right before it is written: fio has both in flight at
/// once unless it serializes what overlaps (the first trims what the second has written, and fio
/// then misses its own data).
#[test]
fn s3_fio_verifies() {
    let world = World::s3();
    let seed = seed() % (1 << 31);
    let mut table = vec![row(&[&"work", &"block", &"MiB", &"ms", &"flushes"])];
    let mib = if full() { 192 } else { 48 };
    for (work, block) in [
        ("randwrite", "512"),
        ("randwrite", "4k"),
        ("randtrimwrite", "4k"),
        ("randtrimwrite", "64k"),
        ("write", "1m"),
    ] {
        let mib = if block == "512" { mib / 16 } else { mib };
        let name = format!("disk-{work}-{block}");
        world.run(&["create", &name, "--size", &format!("{mib}M"), "--chunk-size", "1M"]);
        let server = world.serve(&name, &["--mem-cache", "8M"]);
        let uri = format!("--uri={}", server.uri);
        let (size, bs) = (format!("--size={mib}m"), format!("--bs={block}"));
        let (rw, random) = (format!("--rw={work}"), format!("--randseed={seed}"));
        let mut args = vec!["--name=verify", "--ioengine=nbd", "--iodepth=16", &rw, &uri, &size];
        args.extend([&*bs, &*random, "--fsync=64", "--output-format=terse"]);
        args.extend(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]);
        args.push("--serialize_overlap=1");
        let begun = Instant::now();
        let fio = attempt("fio", "fio", &args);
        let took = begun.elapsed().as_millis();
        let said = String::from_utf8_lossy(&[fio.stdout, fio.stderr].concat()).into_owned();
        assert!(fio.status.success(), "seed {seed}, {args:?}: {said}");
        let requests = &world.json(&["status", &name])["requests"];
        assert_eq!(requests["errors"], 0, "{requests}");
        assert_eq!(requests["bytes_written"], mib * MIB, "{requests}");
        table.push(row(&[&work, &block, &mib, &took, &requests["flushes"]]));
        server.stop();
    }
    print("fio --verify=crc32c, 16 in flight", &table);
}
