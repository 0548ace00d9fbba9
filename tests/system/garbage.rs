//! What a disk no longer holds leaves the bucket, and what is deleted leaves nothing.

use crate::world::World;
use objblk::store::ObjectInfo;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

const SIZE: u64 = 256 << 20;
const PART: usize = 4 << 20;

fn bytes(objects: &[ObjectInfo]) -> u64 {
    objects.iter().map(|object| object.size).sum()
}

#[test]
fn s3_discarded_and_deleted_volumes_free_the_bucket() {
    let world = World::s3();
    world.run(&["create", "disk", "--size", "256M"]);
    world.run(&["create", "other", "--size", "1G"]);
    let prefix = format!("volumes/{}/", world.id("disk"));
    let server = world.serve("disk", &[]);
    let mut client = server.connect();
    let mut noise = vec![0; PART];
    StdRng::seed_from_u64(1).fill_bytes(&mut noise);
    for at in (0..SIZE).step_by(PART) {
        client.write(at, &noise).unwrap();
    }
    client.flush().unwrap();
    let filled = bytes(&world.objects(&prefix));
    assert!(filled > SIZE, "{filled} bytes hold {SIZE}");
    for at in (0..SIZE).step_by(64 << 20) {
        client.trim(at, 64 << 20).unwrap();
    }
    client.flush().unwrap();
    assert!(client.read(SIZE / 2, PART).unwrap().iter().all(|byte| *byte == 0));
    drop(client);
    server.stop();
    let left = world.objects(&prefix);
    println!("{filled} bytes filled; {} in {} objects discarded", bytes(&left), left.len());
    assert!(bytes(&left) < 64 << 10, "{left:?}");
    assert_eq!(world.json(&["info", "disk"])["used"], 0);

    // Half full again, it is deleted.
    let server = world.serve("disk", &[]);
    let mut client = server.connect();
    for at in (0..SIZE / 2).step_by(PART) {
        client.write(at, &noise).unwrap();
    }
    drop(client);
    server.stop();
    world.run(&["delete", "disk", "--now", "--yes"]);
    assert_eq!(world.objects(&prefix), []);
    let rest = world.objects("");
    let rest: Vec<&str> = rest.iter().map(|object| object.key.as_str()).collect();
    let other = format!("volumes/{}/volume.json", world.id("other"));
    assert_eq!(rest, ["names/other", "objblk.json", &other]);
}
