//! The store goes away while the disk is in use, and comes back, or does not.

use crate::client::{Client, EIO, Trouble};
use crate::proxy::Proxy;
use crate::s3::S3Lab;
use crate::world::{Served, World};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
/// A forced end may take this long, all in all.
const FORCED: Duration = Duration::from_secs(12);

/// A volume behind a proxy, with 8 MiB flushed.
fn behind_proxy() -> (World, Proxy, Served, Client) {
    let world = World::s3();
    let proxy = world.wait(Proxy::start(&S3Lab::get().endpoint));
    let world = world.by(proxy.endpoint());
    world.run(&["create", "disk", "--size", "256M"]);
    let server = world.serve("disk", &[]);
    let mut client = server.connect();
    for mib in 0..8 {
        client.write(mib * MIB as u64, &vec![mib as u8 + 1; MIB]).unwrap();
    }
    client.flush().unwrap();
    (world, proxy, server, client)
}

#[test]
fn s3_outage_is_ridden_out() {
    let (world, proxy, server, mut client) = behind_proxy();
    proxy.outage(true);
    let begun = Instant::now();
    for mib in 0..8 {
        assert_eq!(client.read(mib * MIB as u64, MIB).unwrap(), vec![mib as u8 + 1; MIB], "cached");
    }
    for mib in 8..40 {
        client.write(mib * MIB as u64, &vec![mib as u8 + 1; MIB]).unwrap();
        assert_eq!(client.read(mib * MIB as u64, MIB).unwrap()[0], mib as u8 + 1);
    }
    let quick = begun.elapsed();
    assert!(quick < Duration::from_secs(4), "the outage was felt: {quick:?}");
    let flushed = AtomicBool::new(false);
    let mut other = server.connect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            client.flush().unwrap();
            flushed.store(true, Ordering::SeqCst);
        });
        std::thread::sleep(Duration::from_secs(6));
        assert!(!flushed.load(Ordering::SeqCst), "a flush was acknowledged without a store");
        // Another client is served meanwhile.
        other.write(100 * MIB as u64, &[0xAB; 4096]).unwrap();
        assert_eq!(other.read(0, 4096).unwrap(), [1; 4096]);
        let status = world.json(&["status", "disk"]);
        assert!(status["dirty_bytes"].as_u64().unwrap() >= 32 << 20, "{status}");
        proxy.outage(false);
    });
    println!("{quick:?} for 8 MiB read and 32 MiB written; flushed after {:?}", begun.elapsed());
    other.flush().unwrap();
    assert_eq!(world.json(&["status", "disk"])["dirty_bytes"], 0);
    drop((client, other));
    server.stop();
    let server = world.serve("disk", &[]);
    let mut client = server.connect();
    for mib in 0..40 {
        assert_eq!(client.read(mib * MIB as u64, MIB).unwrap(), vec![mib as u8 + 1; MIB]);
    }
    assert_eq!(client.read(100 * MIB as u64, 4096).unwrap(), [0xAB; 4096]);
    drop(client);
    server.stop();
}

/// Beyond the dirty budget writers wait; nobody sees an error.
#[test]
fn s3_outage_holds_writers_back() {
    let (_world, proxy, server, mut client) = behind_proxy();
    proxy.outage(true);
    let written = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for mib in 8..168 {
                client.write(mib * MIB as u64, &vec![3; MIB]).unwrap();
                written.fetch_add(1, Ordering::SeqCst);
            }
            client.flush().unwrap();
        });
        std::thread::sleep(Duration::from_secs(4));
        let held = written.load(Ordering::SeqCst);
        println!("{held} MiB were taken during the outage, {} KiB at most", server.peak_kib());
        assert!((32..=80).contains(&held), "{held} MiB");
        proxy.outage(false);
    });
    assert_eq!(written.load(Ordering::SeqCst), 160);
    drop(client);
    server.stop();
}

/// 3 MiB that no store has.
fn write_in_vain(proxy: &Proxy, client: &mut Client) {
    proxy.outage(true);
    for mib in 8..11 {
        client.write(mib * MIB as u64, &vec![9; MIB]).unwrap();
    }
}

/// The records of the three MiB count as well, so they are a little more.
#[track_caller]
fn says_what_is_lost(said: &str) {
    assert!(said.contains("3.00 MiB were never stored"), "{said}");
}

/// The volume holds what was flushed, and what was lost is not there in part.
fn is_as_flushed(world: &World, proxy: &Proxy) {
    proxy.outage(false);
    let server = world.serve("disk", &[]);
    let mut client = server.connect();
    for mib in 0..8 {
        assert_eq!(client.read(mib * MIB as u64, MIB).unwrap(), vec![mib as u8 + 1; MIB]);
    }
    assert_eq!(client.read(8 * MIB as u64, 3 * MIB).unwrap(), vec![0; 3 * MIB]);
    drop(client);
    server.stop();
}

#[test]
fn s3_outage_ends_by_a_forced_detach() {
    let (world, proxy, server, mut client) = behind_proxy();
    write_in_vain(&proxy, &mut client);
    let begun = Instant::now();
    let waiting = std::thread::spawn(move || client.flush());
    let (_, said) = world.run(&["detach", "disk", "--force"]);
    let (code, log) = server.ended(FORCED);
    println!("forced in {:?}: {said}", begun.elapsed());
    assert!(begun.elapsed() < FORCED);
    says_what_is_lost(&said);
    assert_ne!(code, 0, "{log}");
    let flushed = waiting.join().unwrap();
    let refused = matches!(flushed, Err(Trouble::Refused(EIO) | Trouble::Gone(_)));
    assert!(refused || matches!(flushed, Err(Trouble::Refused(108))), "{flushed:?}");
    is_as_flushed(&world, &proxy);
}

#[test]
fn s3_outage_ends_by_a_second_signal() {
    let (world, proxy, server, mut client) = behind_proxy();
    write_in_vain(&proxy, &mut client);
    let begun = Instant::now();
    server.signal("TERM");
    std::thread::sleep(Duration::from_secs(2));
    // One signal alone gives nothing up: it still serves.
    assert_eq!(client.read(8 * MIB as u64, MIB).unwrap(), vec![9; MIB]);
    server.signal("TERM");
    let (code, said) = server.ended(FORCED);
    println!("forced in {:?}: {said}", begun.elapsed());
    assert!(begun.elapsed() < FORCED + Duration::from_secs(2));
    says_what_is_lost(&said);
    assert_ne!(code, 0);
    is_as_flushed(&world, &proxy);
}
