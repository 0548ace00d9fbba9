//! Two owners of one volume: the second one's fence is final, whatever the first one is doing.

use crate::client::{Client, EIO, Trouble};
use crate::world::{BUSY, Served, World, until};
use std::time::Duration;

const BLOCK: usize = 64 << 10;
const FLUSHED: u64 = 64;

fn block(number: u64, of: u8) -> Vec<u8> {
    (0..BLOCK).map(|at| of ^ number as u8 ^ (at / 512) as u8).collect()
}

fn at(number: u64) -> u64 {
    number * BLOCK as u64
}

/// A volume whose first owner has flushed blocks, and more on the way.
fn owned(world: &World) -> (Served, Client) {
    // There may be one, of a test before this one in the same world; and where requests are repeated
    // late, the name of one that was deleted may come back once more.
    let made = (0..5).any(|_| {
        world.objblk(&["delete", "disk", "--force", "--yes"]).output().unwrap();
        let create = ["create", "disk", "--size", "64M", "--chunk-size", "1M"];
        world.objblk(&create).output().unwrap().status.success()
    });
    assert!(made, "the volume cannot be made");
    let first = world.serve("disk", &[]);
    let mut client = first.connect();
    for number in 0..FLUSHED {
        client.write(at(number), &block(number, 1)).unwrap();
    }
    client.flush().unwrap();
    for number in FLUSHED..FLUSHED + 40 {
        client.write(at(number), &block(number, 2)).unwrap();
    }
    (first, client)
}

fn has_all_that_was_flushed(client: &mut Client) {
    for number in 0..FLUSHED {
        assert!(client.read(at(number), BLOCK).unwrap() == block(number, 1), "block {number}");
    }
    for number in FLUSHED..FLUSHED + 40 {
        let now = client.read(at(number), BLOCK).unwrap();
        let either = now == block(number, 2) || now.iter().all(|byte| *byte == 0);
        assert!(either, "block {number} was never written like that");
    }
}

#[track_caller]
fn is_eio<T: std::fmt::Debug>(answer: Result<T, Trouble>) {
    assert!(matches!(answer, Err(Trouble::Refused(EIO))), "{answer:?}");
}

/// The first owner does nothing more, and says why.
fn is_fenced(world: &World, first: Served, client: &mut Client, by: &Served) {
    for _ in 0..3 {
        is_eio(client.flush());
        is_eio(client.write(at(0), &block(0, 9)));
        is_eio(client.read(at(0), BLOCK));
    }
    let status = world.json(&["status", "disk"]);
    assert_eq!(status["state"], "failed", "{status}");
    let who = format!("process {}", by.pid());
    let failure = status["failure"].as_str().unwrap();
    assert!(failure.contains(&who) && failure.contains("taken over"), "{failure}");
    let (_, said) = world.run(&["detach", "disk"]);
    assert!(said.contains(&who), "{said}");
    let (code, said) = first.ended(Duration::from_secs(20));
    assert_eq!(code, 5, "a fenced server says so by its exit code: {said}");
    assert!(said.contains(&who), "{said}");
}

#[test]
fn s3_second_owner_fences_the_first() {
    second_owner_fences_the_first(&World::s3());
}

pub fn second_owner_fences_the_first(here: &World) {
    let there = here.elsewhere();
    let (first, mut one) = owned(here);
    let refusal = there.refused(BUSY, &["serve", "nbd", "disk"]);
    assert!(refusal.contains("--takeover"), "{refusal}");
    let second = there.serve("disk", &["--takeover"]);
    let mut two = second.connect();
    has_all_that_was_flushed(&mut two);
    two.write(at(1), &block(1, 7)).unwrap();
    two.flush().unwrap();
    // It may have learnt of the fence by itself, or learns of it now.
    let written = one.write(at(1), &block(1, 8));
    assert!(matches!(written, Ok(()) | Err(Trouble::Refused(EIO))), "{written:?}");
    is_eio(one.flush());
    is_fenced(here, first, &mut one, &second);
    assert!(two.read(at(1), BLOCK).unwrap() == block(1, 7));
    drop(two);
    second.stop();
    let third = here.serve("disk", &[]);
    assert!(third.connect().read(at(1), BLOCK).unwrap() == block(1, 7));
    third.stop();
}

#[test]
fn s3_stopped_owner_finds_itself_fenced() {
    stopped_owner_finds_itself_fenced(&World::s3());
}

pub fn stopped_owner_finds_itself_fenced(here: &World) {
    let (first, mut one) = owned(here);
    first.signal("STOP");
    let second = here.elsewhere().serve("disk", &["--takeover"]);
    let mut two = second.connect();
    two.write(at(0), &block(0, 1)).unwrap();
    two.flush().unwrap();
    has_all_that_was_flushed(&mut two);
    // Asked while it does not know, answered when it does.
    let asked = std::thread::spawn(move || {
        let written = one.write(at(0), &block(0, 3));
        (written, one.flush(), one)
    });
    std::thread::sleep(Duration::from_millis(200));
    first.signal("CONT");
    let (written, flushed, mut one) = asked.join().unwrap();
    assert!(matches!(written, Ok(()) | Err(Trouble::Refused(EIO))), "{written:?}");
    is_eio(flushed);
    is_fenced(here, first, &mut one, &second);
    has_all_that_was_flushed(&mut two);
    drop(two);
    second.stop();
}

/// Without a single request the first owner finds out as well, and says so in its status.
#[test]
fn s3_quiet_owner_notices_the_fence() {
    let here = World::s3();
    here.run(&["create", "disk", "--size", "64M"]);
    let first = here.serve("disk", &[]);
    let mut client = first.connect();
    let second = here.elsewhere().serve("disk", &["--takeover"]);
    until("it is fenced", || here.json(&["status", "disk"])["state"] == "failed");
    is_fenced(&here, first, &mut client, &second);
    second.stop();
}
