//! Many clients, bad clients, slow devices, and the end.

use crate::harness::{Ram, Running, libnbd, ram, runtime, serve};
use crate::moody::{STUCK, moody};
use crate::raw::*;
use objblk::device::ram::RamDisk;
use objblk::device::{BlockDevice, Checked};
use objblk::frontend::nbd::Limits;
use objblk::units::{BlockSize, Sector, SectorCount};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A good client is served.
fn assert_serves(server: &Running) {
    libnbd(
        server.uri(),
        "h = connect(); h.pwrite(bytearray(b'k' * 512), 0); assert h.pread(512, 0) == b'k' * 512",
    );
}

#[test]
fn random_bytes_do_no_harm() {
    let (server, _) = ram(1, BlockSize::B512, None);
    let mut random = StdRng::seed_from_u64(7);
    for round in 0..300 {
        let mut raw = match round % 4 {
            0 => Raw::silent(&server.socket()),
            1 => Raw::connect(&server.socket()),
            _ => Raw::transmission(&server.socket()),
        };
        let mut bytes = vec![0u8; random.random_range(1..4000)];
        random.fill(&mut bytes[..]);
        match round % 4 {
            // A known option with a short length, and garbage in it.
            1 => {
                let len = random.random_range(0..bytes.len()) as u32;
                raw.send(b"IHAVEOPT");
                raw.send(&random.random_range(1u32..12).to_be_bytes());
                raw.send(&len.to_be_bytes());
            }
            // Known commands with wild flags, offsets and lengths.
            2 => {
                let mut wild = request(
                    random.random_range(0..9),
                    random.random(),
                    random.random(),
                    random.random_range(0..100_000),
                );
                wild[4..6].copy_from_slice(&random.random::<u16>().to_be_bytes());
                raw.send(&wild);
            }
            _ => {}
        }
        // The server may have closed it already.
        let _ = raw.0.write_all(&bytes);
        let _ = raw.0.shutdown(Shutdown::Write);
        let _ = raw.0.read_to_end(&mut Vec::new());
    }
    server.wait_until("all garbage connections closed", |status| status.connections == 0);
    assert_serves(&server);
    server.stop().unwrap();
}

#[test]
fn two_hundred_connections_come_and_go() {
    let (server, _) = ram(1, BlockSize::B512, None);
    // Sockets bound to the server's path: its listener, and its end of each connection.
    let path = server.socket().to_str().unwrap().to_owned();
    let sockets = || {
        let table = std::fs::read_to_string("/proc/net/unix").unwrap();
        table.lines().filter(|line| line.ends_with(&path)).count()
    };
    let mut open: Vec<Raw> = (0..200).map(|_| Raw::transmission(&server.socket())).collect();
    server.wait_until("200 connections", |status| status.connections == 200);
    assert_eq!(sockets(), 201);
    for (cookie, raw) in open.iter_mut().enumerate() {
        raw.request(CMD_READ, cookie as u64, 0, 512);
    }
    for (cookie, raw) in open.iter_mut().enumerate() {
        assert_eq!(raw.reply(), (cookie as u64, 0));
        let _: [u8; 512] = raw.take();
    }
    for (index, mut raw) in open.into_iter().enumerate() {
        match index % 3 {
            0 => raw.request(CMD_DISC, 0, 0, 0),
            1 => raw.send(&[0x25, 0x60]),
            _ => {}
        }
    }
    server.wait_until("all closed", |status| status.connections == 0);
    assert_eq!(server.status().connections_total, 200);
    let deadline = Instant::now() + Duration::from_secs(5);
    while sockets() > 1 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(sockets(), 1, "sockets are left open");
    assert_serves(&server);
    server.stop().unwrap();
}

#[test]
fn a_client_that_dies_inside_a_request() {
    let (server, disk) = ram(1, BlockSize::B512, Some(Duration::from_millis(50)));
    let mut half = Raw::transmission(&server.socket());
    half.request(CMD_WRITE, 1, 0, 1024);
    half.send(&[1; 700]);
    let mut gone = Raw::transmission(&server.socket());
    gone.request(CMD_WRITE, 1, 512, 512);
    gone.send(&[2; 512]);
    server.wait_until("the whole write began", |status| status.requests == 1);
    drop((half, gone));
    server.wait_until("both closed", |status| status.connections == 0);
    let mut sectors = [9; 1024];
    server.runtime.block_on(disk.read(Sector(0), &mut sectors)).unwrap();
    assert!(sectors[..512] == [0; 512], "half a payload was written");
    assert!(sectors[512..] == [2; 512], "a whole request was dropped");
    assert_serves(&server);
    server.stop().unwrap();
}

#[test]
fn requests_run_side_by_side() {
    let (server, _) = ram(1, BlockSize::B512, Some(Duration::from_millis(100)));
    let mut raw = Raw::transmission(&server.socket());
    let began = Instant::now();
    let batch: Vec<u8> = (0..128).flat_map(|cookie| request(CMD_READ, cookie, 0, 512)).collect();
    raw.send(&batch);
    let mut cookies: Vec<u64> = (0..128)
        .map(|_| {
            let (cookie, error) = raw.reply();
            assert_eq!(error, 0);
            let _: [u8; 512] = raw.take();
            cookie
        })
        .collect();
    let took = began.elapsed();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..128).collect::<Vec<u64>>());
    assert!(took < Duration::from_secs(2), "128 requests of 100 ms took {took:?}");
    server.stop().unwrap();
}

#[test]
fn replies_come_in_the_order_of_completion() {
    let server = serve(runtime(), false, Limits::default(), vec![("disk", moody())]);
    let mut raw = Raw::transmission(&server.socket());
    raw.request(CMD_READ, 1, STUCK.bytes(), 512);
    raw.request(CMD_READ, 2, 0, 512);
    assert_eq!(raw.reply(), (2, 0));
    let _: [u8; 512] = raw.take();
    let (runtime, task) = server.begin_stop();
    task.abort();
    assert!(runtime.block_on(task).is_err());
}

#[test]
fn a_client_that_does_not_read_is_bounded() {
    for delay in [None, Some(Duration::from_millis(1))] {
        let runtime = runtime();
        let mut disk = RamDisk::new(SectorCount(8 << 11), BlockSize::B512);
        if let Some(delay) = delay {
            disk = disk.delayed(runtime.handle().clone(), delay);
        }
        let limits = Limits { bytes: 4 << 20, ..Limits::default() };
        let offers: Vec<(&str, Ram)> = vec![("disk", Arc::new(Checked::new(disk)))];
        let server = serve(runtime, false, limits, offers);
        let mut raw = Raw::transmission(&server.socket());
        let batch: Vec<u8> =
            (0..100).flat_map(|cookie| request(CMD_READ, cookie, 0, 1 << 20)).collect();
        raw.send(&batch);
        std::thread::sleep(Duration::from_millis(400));
        let begun = server.status().requests;
        assert!((1..=6).contains(&begun), "{begun} reads of 1 MiB with 4 MiB of memory");
        let mut data = vec![0; 1 << 20];
        for _ in 0..100 {
            assert_eq!(raw.reply().1, 0);
            raw.0.read_exact(&mut data).unwrap();
        }
        server.stop().unwrap();
    }
}

#[test]
fn a_request_may_be_larger_than_the_limit() {
    let disk: Ram = Arc::new(Checked::new(RamDisk::new(SectorCount(64 << 11), BlockSize::B512)));
    let limits = Limits { bytes: 1 << 20, requests: 1, ..Limits::default() };
    let server = serve(runtime(), false, limits, vec![("disk", disk)]);
    libnbd(
        server.uri(),
        r#"
h = connect()
data = bytearray(bytes(range(255)) * 512 * 257)
data = data[:32 << 20] + bytearray((32 << 20) - len(data[:32 << 20]))
for i in range(2):
    h.aio_pwrite(nbd.Buffer.from_bytearray(data), i * (32 << 20))
while h.aio_in_flight():
    h.poll(-1)
assert h.pread(32 << 20, 32 << 20) == data
"#,
    );
    server.stop().unwrap();
}

#[test]
fn shutdown_finishes_requests_in_flight() {
    let (server, disk) = ram(1, BlockSize::B512, Some(Duration::from_millis(300)));
    let socket = server.socket();
    let mut idle = Raw::transmission(&socket);
    let mut greeting = Raw::connect(&socket);
    let mut raw = Raw::transmission(&socket);
    raw.request(CMD_WRITE, 1, 0, 512);
    raw.send(&[5; 512]);
    server.wait_until("the write began", |status| status.requests == 1);
    let (runtime, task) = server.begin_stop();
    assert_eq!(raw.reply(), (1, 0));
    assert!(raw.is_closed() && idle.is_closed() && greeting.is_closed());
    runtime.block_on(task).unwrap().unwrap();
    assert_eq!(disk.inner().flushes(), 1);
    assert!(!socket.exists(), "the socket file is left behind");
}

#[test]
fn shutdown_does_not_wait_for_ever() {
    let limits = Limits { drain: Duration::from_millis(200), ..Limits::default() };
    let server = serve(runtime(), false, limits, vec![("disk", moody())]);
    let mut raw = Raw::transmission(&server.socket());
    raw.request(CMD_READ, 1, STUCK.bytes(), 512);
    server.wait_until("the read began", |status| status.requests == 1);
    let began = Instant::now();
    server.stop().unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(raw.is_closed());
}
