//! kill -9 under fio's own verification: every write that it knows to be durable is there.
//!
//! fio writes synchronously to a block device, so what has completed is durable. When its trigger
//! fires it first notes what has completed, then runs the trigger, which kills the server.

use crate::device::Device;
use crate::fault_proxy::STORM;
use crate::rough::through;
use crate::table::{print, row};
use crate::times::Times;
use crate::world::{World, arg, attempt, full, seed};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

fn rounds(world: &World, name: &str, rounds: u64) {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    world.run(&["create", "disk", "--size", "64M", "--chunk-size", "256K"]);
    let mut server = world.serve("disk", &[]);
    let mut table = vec![row(&[&"round", &"killed s", &"verified", &"ready ms"])];
    let (mut recovery, mut verified) = (Times::default(), 0);
    for round in 0..if full() { 10 * rounds } else { rounds } {
        let device = Device::begin(world, &server);
        let (life, random) = (rng.random_range(2..5), rng.random_range(0..1 << 30));
        let trigger = format!("--trigger=kill -9 {}", server.pid());
        let timeout = format!("--trigger-timeout={life}s");
        let args = ["--verify_state_save=1", "--do_verify=0", &timeout, &trigger];
        let fio = fio(world, &device, random, &args);
        let said = String::from_utf8_lossy(&fio.stdout).into_owned();
        assert!(said.contains("\"jobname\""), "fio did not get to its end: {said}");
        server.expect_killed();
        device.abandon();
        server = world.serve("disk", &["--takeover"]);
        let ready = server.first_read();
        recovery.add(ready);
        let device = Device::begin(world, &server);
        let fio = self::fio(world, &device, random, &["--verify_only", "--verify_state_load=1"]);
        let said = String::from_utf8_lossy(&[&fio.stdout[..], &fio.stderr].concat()).into_owned();
        assert!(
            fio.status.success(),
            "seed {seed}, round {round}: durable writes are gone: {said}"
        );
        let blocks = json(&fio.stdout)["jobs"][0]["read"]["total_ios"].as_u64().unwrap();
        verified += blocks;
        device.end();
        table.push(row(&[&round, &life, &blocks, &ready.as_millis()]));
    }
    print(&format!("fio and kill -9 on {name}, seed {seed}: first read after {recovery}"), &table);
    assert!(verified > 0, "fio verified nothing");
    server.stop();
    a_blank_disk_is_noticed(world);
}

fn fio(world: &World, device: &Device, random: u64, args: &[&str]) -> std::process::Output {
    let (file, aux) = (format!("--filename={}", device.name), world.path("fio"));
    std::fs::create_dir_all(&aux).unwrap();
    let (aux, random) = (format!("--aux-path={}", arg(&aux)), format!("--randseed={random}"));
    let all = ["--name=crash", "--ioengine=psync", "--rw=randwrite", "--bs=4k", "--size=48m"];
    let own = ["--verify=crc32c", "--sync=1", "--direct=1", "--output-format=json"];
    attempt("fio", "fio", &[&all[..], &own, &[&*file, &*aux, &*random], args].concat())
}

/// fio's document, behind what else it prints.
fn json(printed: &[u8]) -> Value {
    let text = String::from_utf8_lossy(printed);
    let begin = text.find('{').unwrap_or_else(|| panic!("fio prints no document: {text}"));
    let mut documents = serde_json::Deserializer::from_str(&text[begin..]).into_iter();
    documents.next().expect("a document").unwrap()
}

/// The check itself, on a disk that has lost everything.
fn a_blank_disk_is_noticed(world: &World) {
    world.run(&["create", "blank", "--size", "64M"]);
    let server = world.serve("blank", &[]);
    let device = Device::begin(world, &server);
    let fio = fio(world, &device, 1, &["--verify_only", "--verify_state_load=1"]);
    assert!(!fio.status.success(), "fio verifies a blank disk");
    device.end();
    server.stop();
}

#[test]
fn s3_kill_9_under_fio() {
    rounds(&World::s3(), "S3", 2);
}

#[test]
fn kill_9_under_fio_on_a_directory() {
    rounds(&World::directory(), "a directory", 2);
}

#[test]
fn s3_kill_9_under_fio_in_a_storm() {
    through(&STORM, |world| rounds(world, "S3 in a storm", 1));
}
