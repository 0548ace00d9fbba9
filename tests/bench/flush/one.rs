//! A flush of one write of 4 KiB, one at a time: with local durability against an append and
//! fdatasync, with object durability against one PUT.

use crate::disk::Appended;
use crate::engine::Engine;
use crate::local::Local;
use crate::times::{Times, print};
use crate::world::World;
use objblk::journal::disk::{Blocks, Disk};
use objblk::journal::uring::FileDisk;
use objblk::store::{Key, Store};
use rand::{Rng, RngCore};
use std::time::Duration;

const DISK: u64 = 256 << 20;
const PAGE: usize = 4096;
const JOURNAL: u64 = 64 << 20;

fn random_page() -> u64 {
    rand::rng().random_range(0..DISK / PAGE as u64) * PAGE as u64
}

pub fn local() {
    let (world, local) = (World::s3(), Local::new("64M"));
    world.run(&["create", "disk", "--size", "256M"]);
    let server = world.serve("disk", &local.args());
    let mut client = server.connect();
    let engine = Engine::new((DISK, JOURNAL), &local.folder().join("engine.journal"));
    let mut bare = Appended::new(&local.folder().join("bare"));
    let disk = FileDisk::create(&local.folder().join("disk.journal"), JOURNAL).unwrap();
    // Until the journals are filled; the figures are of such as have been in use for a while.
    std::thread::sleep(Duration::from_secs(20));
    let (mut appends, mut writes, mut alone, mut served) =
        <(Times, Times, Times, Times)>::default();
    let data = [1; PAGE];
    for round in 0..3000 {
        appends.of(|| bare.append());
        let place = round * 2 * PAGE as u64 % JOURNAL;
        writes.of(|| world.wait(disk.write(place, Blocks::zeroed(2 * PAGE)))).unwrap();
        alone.of(|| engine.write_and_flush(random_page() / 512, &data));
        served.of(|| {
            client.write(random_page(), &data).unwrap();
            client.flush().unwrap();
        });
    }
    print(
        "A write of 4 KiB and its flush, local durability",
        &[
            ("append of 4 KiB and fdatasync", &appends),
            ("durable write of 8 KiB by a journal's disk", &writes),
            ("write and flush, the engine alone", &alone),
            ("write and flush, over NBD", &served),
        ],
    );
    drop(client);
    server.stop();
}

pub fn object() {
    let world = World::s3();
    world.run(&["create", "disk", "--size", "256M"]);
    let server = world.serve("disk", &[]);
    let (mut client, store) = (server.connect(), world.store());
    let (mut puts, mut served) = <(Times, Times)>::default();
    let mut data = vec![0; 2 * PAGE];
    for number in 0..500 {
        rand::rng().fill_bytes(&mut data);
        let (key, body) = (Key::new(&format!("bench/{number}")).unwrap(), data.clone().into());
        puts.of(|| world.wait(store.put_if_absent(&key, body))).unwrap();
        served.of(|| {
            client.write(random_page(), &data[..PAGE]).unwrap();
            client.flush().unwrap();
        });
    }
    print(
        "A write of 4 KiB and its flush, object durability",
        &[("one PUT of 8 KiB", &puts), ("write and flush, over NBD", &served)],
    );
    drop(client);
    server.stop();
}
