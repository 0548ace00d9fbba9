//! Damage in the bucket: an error for exactly the blocks concerned, one sentence for the rest.

use crate::client::{Client, EIO, Trouble};
use crate::world::{CORRUPT, World};
use objblk::format::chunk::{ChunkHeader, FRAME_SECTORS};
use objblk::format::record::Record;
use objblk::store::{GetRange, Key, Store};
use std::collections::BTreeSet;

const MIB: usize = 1 << 20;
const DISK: u64 = 8 << 20;
const PAGE: u64 = 4096;

fn page(at: u64) -> Vec<u8> {
    (0..PAGE / 8)
        .flat_map(|word| (at + word).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes())
        .collect()
}

fn fill(client: &mut Client) {
    for at in (0..DISK).step_by(MIB) {
        let data: Vec<u8> = (at..at + MIB as u64).step_by(PAGE as usize).flat_map(page).collect();
        client.write(at, &data).unwrap();
    }
    client.flush().unwrap();
}

fn body(world: &World, key: &Key) -> Vec<u8> {
    world.wait(world.store().get(key, GetRange::All)).unwrap().to_vec()
}

/// The volume's objects whose name begins like that, in the order of their last part.
fn keys(world: &World, kind: &str) -> Vec<Key> {
    let objects = world.objects(&format!("volumes/{}/{kind}", world.id("disk")));
    let mut keys: Vec<Key> = objects.into_iter().map(|object| object.key).collect();
    keys.sort_by_key(|key| key.as_str().rsplit('/').next().unwrap().to_owned());
    keys
}

/// A chunk with data: its name, its bytes, and what its header says.
fn chunks(world: &World) -> Vec<(Key, Vec<u8>, ChunkHeader)> {
    let bodies = keys(world, "log/").into_iter().map(|key| (key.clone(), body(world, &key)));
    let parsed = bodies.filter_map(|(key, body)| {
        let header = ChunkHeader::parse(&body).ok()?;
        (header.payload_sectors() > 0).then_some((key, body, header))
    });
    parsed.collect()
}

/// Where on the volume the pages of these frames are.
fn pages(header: &ChunkHeader, frames: std::ops::Range<u32>) -> BTreeSet<u64> {
    let sectors = frames.start * FRAME_SECTORS..frames.end * FRAME_SECTORS;
    let data = header.records.iter().filter_map(|record| match record {
        Record::Data { range, offset } => Some((range.start().0, *offset, range.len().0 as u32)),
        _ => None,
    });
    let places = data.flat_map(|(start, offset, len)| {
        let inside = (0..len).filter(|at| sectors.contains(&(offset + at)));
        inside.map(move |at| (start + u64::from(at)) * 512 / PAGE * PAGE).collect::<Vec<_>>()
    });
    places.collect()
}

#[test]
fn s3_damaged_chunks_fail_exactly_their_blocks() {
    let world = World::s3();
    world.run(&["create", "disk", "--size", "8M", "--chunk-size", "1M"]);
    let server = world.serve("disk", &[]);
    fill(&mut server.connect());
    server.stop();
    let mut chunks = chunks(&world);
    assert!(chunks.len() >= 8, "{} chunks hold 8 MiB", chunks.len());
    // Three frames and a half are left of the first one.
    let (key, mut bytes, header) = chunks.swap_remove(0);
    let begin = |index: usize| header.header_len as usize + header.frames.before(index) as usize;
    bytes.truncate(begin(3) + (begin(4) - begin(3)) / 2);
    world.replace(&key, bytes);
    let mut bad = pages(&header, 3..header.frames.entries.len() as u32);
    // One bit of the fifth frame of another, and all of a third.
    let (key, mut bytes, header) = chunks.swap_remove(0);
    bytes[header.header_len as usize + header.frames.before(4) as usize + 1234] ^= 0x10;
    world.replace(&key, bytes);
    bad.extend(pages(&header, 4..5));
    let (key, _, header) = chunks.swap_remove(0);
    world.wait(world.store().delete(&[key])).unwrap();
    bad.extend(pages(&header, 0..header.frames.entries.len() as u32));

    let server = world.serve("disk", &[]);
    let mut client = server.connect();
    for _ in 0..2 {
        for at in (0..DISK).step_by(PAGE as usize) {
            match client.read(at, PAGE as usize) {
                Ok(data) => assert!(!bad.contains(&at) && data == page(at), "page at {at}"),
                Err(Trouble::Refused(EIO)) => assert!(bad.contains(&at), "page at {at} is intact"),
                Err(e) => panic!("page at {at}: {e:?}"),
            }
        }
    }
    println!("{} of {} pages are damaged and fail", bad.len(), DISK / PAGE);
    // What is written anew is whole again.
    let at = *bad.first().unwrap();
    client.write(at, &page(at)).unwrap();
    client.flush().unwrap();
    assert!(client.read(at, PAGE as usize).unwrap() == page(at));
    drop(client);
    server.stop();
}

/// `info` and `serve` refuse with one sentence that names the object.
fn is_refused(world: &World, key: &Key) {
    for verb in [&["info", "disk"][..], &["serve", "nbd", "disk"]] {
        let said = world.refused(CORRUPT, verb);
        assert!(said.contains(key.as_str()), "{verb:?} does not say which object: {said}");
    }
}

#[test]
fn s3_damaged_metadata_is_one_sentence() {
    let world = World::s3();
    world.run(&["create", "disk", "--size", "8M", "--chunk-size", "1M"]);
    let server = world.serve("disk", &[]);
    fill(&mut server.connect());
    server.stop();
    let description = keys(&world, "volume.json").remove(0);
    let checkpoint = keys(&world, "checkpoints/").remove(0);
    for key in [&description, &checkpoint] {
        let whole = body(&world, key);
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 0x80;
        let cut = whole[..whole.len() - 3].to_vec();
        for damaged in [flipped, cut, Vec::new()] {
            world.replace(key, damaged);
            is_refused(&world, key);
        }
        world.replace(key, whole);
    }
    let server = world.serve("disk", &[]);
    assert!(server.connect().read(0, PAGE as usize).unwrap() == page(0));
    server.stop();
}

/// A log that lost a committed chunk is not replayed as if it ended there.
#[test]
fn s3_lost_chunk_of_the_log_is_no_silent_end() {
    let world = World::s3();
    world.run(&["create", "disk", "--size", "8M", "--chunk-size", "1M"]);
    let server = world.serve("disk", &[]);
    let mut client = server.connect();
    fill(&mut client);
    // A chunk that was sealed after all of those were committed, and says so.
    client.write(0, &page(0)).unwrap();
    client.flush().unwrap();
    server.kill();
    let (key, whole, _) = chunks(&world).swap_remove(2);
    world.wait(world.store().delete(std::slice::from_ref(&key))).unwrap();
    // Whether that is the end is known only once the log is read: it comes after the takeover.
    let output = world.objblk(&["serve", "nbd", "disk"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(CORRUPT), "{said}");
    assert!(said.contains(key.as_str()) && said.contains("missing"), "{said}");
    world.wait(world.store().put_if_absent(&key, whole.into())).unwrap();
    let server = world.serve("disk", &[]);
    let mut client = server.connect();
    for at in (0..DISK).step_by(PAGE as usize) {
        assert!(client.read(at, PAGE as usize).unwrap() == page(at), "page at {at}");
    }
    drop(client);
    server.stop();
}
