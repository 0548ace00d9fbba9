//! A host with a journal is lost, or loses its volume to another: what was only in the journal is
//! gone or stays where it is, and whoever has to decide is told.

use crate::client::Client;
use crate::device::Device;
use crate::local::{Lag, Local, behind_proxy, caught_up, lag};
use crate::world::{BUSY, Served, World, arg, tool};
use std::fs;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;

/// Page `number` as it is written.
fn page(number: usize) -> Vec<u8> {
    (number as u64 + 1).to_le_bytes().repeat(PAGE / 8)
}

/// Writes and flushes pages one by one: when each was acknowledged.
fn diary(client: &mut Client, numbers: std::ops::Range<usize>) -> Vec<Instant> {
    let one = |number: usize| {
        client.write((number * PAGE) as u64, &page(number)).unwrap();
        client.flush().unwrap();
        Instant::now()
    };
    numbers.map(one).collect()
}

/// How many pages the disk has of a diary of `total`: the first ones, and nothing of the others.
#[track_caller]
fn prefix(server: &Served, total: usize) -> usize {
    let disk = server.connect().read(0, total * PAGE).unwrap();
    let pages: Vec<&[u8]> = disk.chunks(PAGE).collect();
    let kept = (0..total).take_while(|number| pages[*number] == page(*number)).count();
    let blank = |number: &usize| pages[*number].iter().all(|byte| *byte == 0);
    assert!((kept..total).all(|number| blank(&number)), "no prefix: {kept} pages, then others");
    kept
}

/// Half of a diary is in the store, all of it in the journal; then the server is killed. Returns
/// when pages were acknowledged, when the lag was asked for, and what it was.
fn half_stored(
    world: &World,
    local: &Local,
    proxy: &crate::proxy::Proxy,
) -> (Vec<Instant>, Instant, Lag) {
    world.run(&["create", "disk", "--size", "64M", "--chunk-size", "256K"]);
    let server = world.serve("disk", &local.args());
    let mut client = server.connect();
    let mut written = diary(&mut client, 0..100);
    caught_up(world, Duration::from_secs(60));
    proxy.outage(true);
    written.extend(diary(&mut client, 100..200));
    let asked = Instant::now();
    let lag = lag(world);
    drop(client);
    server.kill();
    (written, asked, lag)
}

#[test]
fn s3_a_lost_journal_leaves_an_older_state_no_older_than_was_shown() {
    let (world, _direct, proxy) = behind_proxy();
    let local = Local::new("64M");
    let (written, asked, lag) = half_stored(&world, &local, &proxy);
    let journal = local.file(&world.id_of(&local));
    local.lose();
    proxy.outage(false);
    for args in [local.args(), vec![]] {
        let said = world.refused(BUSY, &[&["serve", "nbd", "disk"], &args[..]].concat());
        assert!(said.contains(arg(&journal)) && said.contains("--takeover"), "{said}");
    }
    let server = world.serve("disk", &local.and(&["--takeover"]));
    let kept = prefix(&server, written.len());
    let lost = ((written.len() - kept) * PAGE) as u64;
    println!("{kept} pages are kept, {lost} bytes are lost; it showed {lag:?}");
    assert!((100..200).contains(&kept), "the store has the first half only");
    assert!(lost <= lag.bytes, "{lost} bytes are lost, {lag:?} was shown");
    let promised = written.iter().filter(|at| **at + lag.time < asked).count();
    assert!(promised <= kept, "{promised} pages were older than {lag:?}, {kept} are there");
    server.stop();
}

#[test]
fn s3_ext4_of_a_lost_host_is_whole() {
    let (world, _direct, proxy) = behind_proxy();
    let local = Local::new("256M");
    world.run(&["create", "disk", "--size", "256M", "--chunk-size", "1M"]);
    let server = world.serve("disk", &local.args());
    let device = Device::begin(&world, &server);
    tool("e2fsprogs", "mkfs.ext4", &["-q", &device.name]);
    let mounted = device.mount("noatime").to_owned();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    let copy = |name: &str| {
        tool("coreutils", "cp", &["-a", source, arg(&mounted.join(name))]);
        tool("coreutils", "sync", &["-f", arg(&mounted)]);
    };
    copy("stored");
    caught_up(&world, Duration::from_secs(60));
    proxy.outage(true);
    copy("lost");
    server.kill();
    device.abandon();
    local.lose();
    proxy.outage(false);
    let server = world.serve("disk", &["--takeover"]);
    let device = Device::begin(&world, &server);
    let mounted = device.mount("noatime").to_owned();
    tool("diffutils", "diff", &["-r", source, arg(&mounted.join("stored"))]);
    assert!(!mounted.join("lost").exists(), "it was never stored");
    device.unmount();
    tool("e2fsprogs", "fsck.ext4", &["-fn", &device.name]);
    device.end();
    server.stop();
}

#[test]
fn s3_a_journal_that_was_superseded_is_kept_and_never_replayed() {
    let (world, direct, proxy) = behind_proxy();
    let local = Local::new("64M");
    half_stored(&world, &local, &proxy);
    let journal = local.file(&world.id_of(&local));
    let before = fs::read(&journal).unwrap();
    proxy.outage(false);
    let there = direct.elsewhere();
    let said = there.refused(BUSY, &["serve", "nbd", "disk"]);
    assert!(said.contains(arg(&journal)) && said.contains("--takeover"), "{said}");
    let server = there.serve("disk", &["--takeover"]);
    assert_eq!(prefix(&server, 200), 100);
    let mut client = server.connect();
    client.write((150 * PAGE) as u64, &page(150)).unwrap();
    client.flush().unwrap();
    drop(client);
    server.stop();
    // Nobody has the volume now, and still the journal is not what it goes on from.
    for more in [&[][..], &["--takeover"]] {
        let args = [&["serve", "nbd", "disk"], &local.and(more)[..]].concat();
        let said = world.refused(BUSY, &args);
        assert!(said.contains(arg(&journal)) && said.contains("objblk journal"), "{said}");
    }
    assert!(fs::read(&journal).unwrap() == before, "the journal is kept as it was");
    let folder = ["--journal", arg(local.folder())];
    let list = [&["journal", "list"][..], &folder].concat();
    let listed = world.json(&list).to_string();
    assert!(listed.contains(arg(&journal)), "{listed}");
    let discard = [&["journal", "discard", "disk"][..], &folder].concat();
    world.refused(2, &discard);
    assert!(journal.exists());
    world.run(&[&discard[..], &["--yes"]].concat());
    assert!(!journal.exists());
    let server = world.serve("disk", &local.args());
    let disk = server.connect().read(0, 200 * PAGE).unwrap();
    assert!(disk[150 * PAGE..151 * PAGE] == page(150), "the other host's write");
    assert!(disk[120 * PAGE..121 * PAGE].iter().all(|byte| *byte == 0), "nothing of the journal");
    server.stop();
}

impl World {
    /// The id of the only volume whose journal is there.
    fn id_of(&self, local: &Local) -> String {
        let mut names = fs::read_dir(local.folder()).unwrap();
        let name = names.next().expect("a journal").unwrap().file_name().into_string().unwrap();
        name.strip_suffix(".journal").expect("the name of a journal").to_owned()
    }
}
