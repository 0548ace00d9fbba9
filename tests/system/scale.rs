//! A volume of 64 TiB costs what its data costs, not what its size could.

use crate::table::{print, row};
use crate::world::World;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::time::Duration;

const WRITES: usize = 1000;

/// What a volume needed.
struct Needs {
    wrote: Duration,
    wrote_kib: u64,
    ready: Duration,
    ready_kib: u64,
    read_kib: u64,
}

fn needs(world: &World, name: &str, size: &str, bytes: u64) -> Needs {
    world.run(&["create", name, "--size", size]);
    let mut rng = StdRng::seed_from_u64(bytes);
    let mut places = BTreeSet::new();
    while places.len() < WRITES {
        places.insert(rng.random_range(0..bytes / 4096) * 4096);
    }
    let places: Vec<u64> = places.into_iter().collect();
    let content = |place: u64| [(place / 4096 % 255 + 1) as u8; 4096];
    let server = world.serve(name, &[]);
    let begun = std::time::Instant::now();
    let mut client = server.connect();
    for place in &places {
        client.write(*place, &content(*place)).unwrap();
    }
    client.flush().unwrap();
    let wrote = begun.elapsed();
    drop(client);
    let wrote_kib = server.peak_kib();
    server.stop();

    let server = world.serve(name, &[]);
    let ready_kib = server.peak_kib();
    let mut client = server.connect();
    for place in places.iter().step_by(5) {
        assert!(client.read(*place, 4096).unwrap() == content(*place), "{name} at {place}");
    }
    let needs =
        Needs { wrote, wrote_kib, ready: server.took, ready_kib, read_kib: server.peak_kib() };
    drop(client);
    server.stop();
    needs
}

#[test]
fn s3_size_costs_nothing() {
    let world = World::s3();
    let small = needs(&world, "small", "1G", 1 << 30);
    let large = needs(&world, "large", "64T", 64 << 40);
    let line = |what: &str, small: u128, large: u128| row(&[&what, &small, &large]);
    let kib = |what: &str, small: u64, large: u64| line(what, small.into(), large.into());
    let ms = |what: &str, small: Duration, large: Duration| {
        line(what, small.as_millis(), large.as_millis())
    };
    print(
        &format!("{WRITES} scattered writes of 4 KiB, then served again"),
        &[
            row(&[&"volume", &"1 GiB", &"64 TiB"]),
            ms("writes and flush, ms", small.wrote, large.wrote),
            kib("peak memory while writing, KiB", small.wrote_kib, large.wrote_kib),
            ms("served again: ready after, ms", small.ready, large.ready),
            kib("peak memory when ready, KiB", small.ready_kib, large.ready_kib),
            kib("peak memory after 200 reads, KiB", small.read_kib, large.read_kib),
        ],
    );
    let ready = small.ready * 2 + Duration::from_millis(500);
    assert!(large.ready < ready, "{:?} against {:?}", large.ready, small.ready);
    assert!(large.ready_kib * 2 < small.ready_kib * 3);
    assert!(large.ready_kib.max(large.read_kib).max(large.wrote_kib) < 256 << 10);
}
