//! Damage to one copy: it is read around, and mended with what the other one has.

use super::*;
use objblk::format::SnapshotId;
use objblk::store::Key;
use objblk::volume::{Mending, ScrubOptions};

/// Every object of one copy, by the name that it has in its store.
type Objects = BTreeMap<Key, Bytes>;

/// A closed volume with data in every piece, overwritten in parts, and a snapshot.
pub async fn filled() -> World {
    let world = World::new().await;
    let process = world.now().await;
    let volume = process.open(world.id, 1).await.unwrap();
    for piece in 0..PIECES {
        // The first ones are in one chunk.
        let data = pattern(piece * PIECE, PIECE, 1);
        write(&volume, piece * PIECE, &data).await.unwrap();
        if piece >= PIECES / 2 {
            volume.flush().await.unwrap();
        }
    }
    volume.make_snapshot(SnapshotId::from_bytes([9; 16]), "s").await.unwrap();
    for piece in (0..PIECES).step_by(2) {
        assert!(put(&volume, piece, 2, 5).await);
    }
    volume.close().await.unwrap();
    world
}

pub async fn is_right(volume: &Volume) {
    for piece in 0..PIECES {
        assert!(has(volume, piece, 1 + (piece + 1) % 2).await, "piece {piece}");
    }
}

/// Those in a store whose names have this in them.
async fn objects(world: &World, place: usize, part: &str) -> Objects {
    let mut found = Objects::new();
    for object in list_all(&world.places[place], &keys::mirror(world.id)).await.unwrap() {
        if object.key.as_str().contains(part) {
            let body = world.places[place].get(&object.key, GetRange::All).await.unwrap();
            found.insert(object.key, body);
        }
    }
    assert!(!found.is_empty(), "{part}");
    found
}

/// Another bit, at this part of each of them.
async fn damage(world: &World, place: usize, objects: &Objects, at: fn(usize) -> usize) {
    for (key, body) in objects {
        let mut bytes = body.to_vec();
        let at = at(bytes.len());
        bytes[at] ^= 4;
        world.places[place].put(key, bytes.into()).await.unwrap();
    }
}

/// How many of them are what they were.
async fn again(world: &World, place: usize, wanted: &Objects) -> usize {
    let mut count = 0;
    for (key, body) in wanted {
        let there = world.places[place].get(key, GetRange::All).await;
        count += usize::from(there.is_ok_and(|there| there == *body));
    }
    count
}

async fn settled(world: &World, place: usize, wanted: &Objects) -> bool {
    again(world, place, wanted).await == wanted.len()
}

#[tokio::test(start_paused = true)]
async fn what_reads_meet_comes_from_the_other_copy_and_is_put_right() {
    for part in ["/log/", "/map/", "/checkpoints/"] {
        let ats: [fn(usize) -> usize; 3] = [|_| 40, |len| len / 2, |len| len - 1];
        for at in ats {
            let world = filled().await;
            let whole = objects(&world, HOME, part).await;
            damage(&world, HOME, &whole, at).await;
            let process = world.now().await;
            let volume = process.open(world.id, 2).await.unwrap();
            is_right(&volume).await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            volume.abandon();
            if part == "/log/" {
                assert!(again(&world, HOME, &whole).await > 3, "nothing is put right");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_that_one_store_has_lost_is_put_there_again() {
    let world = filled().await;
    let chunks = objects(&world, HOME, "/log/").await;
    // The first slots hold data, some of which only the snapshot needs; the log ends with what closed it.
    let lost: Objects = chunks.into_iter().take(3).collect();
    let names: Vec<Key> = lost.keys().cloned().collect();
    world.places[HOME].delete(&names).await.unwrap();
    let process = world.now().await;
    let volume = process.open(world.id, 2).await.unwrap();
    is_right(&volume).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(again(&world, HOME, &lost).await > 0);
    let keys: Vec<Key> = lost.keys().map(|name| logical(&world, name)).collect();
    volume.mend(&keys).await.unwrap();
    assert!(settled(&world, HOME, &lost).await);
    volume.close().await.unwrap();
    world.is_twice(&world.now().await).await;
}

/// Reads ask the first copy; a scrub reads both.
#[tokio::test(start_paused = true)]
async fn a_scrub_finds_damage_in_either_copy() {
    for place in [HOME, FAR] {
        let world = filled().await;
        let whole = objects(&world, place, "/log/").await;
        let data: Objects = whole.into_iter().filter(|(_, body)| body.len() > 20_000).collect();
        assert!(data.len() > 3);
        damage(&world, place, &data, |len| len / 2).await;
        let process = world.now().await;
        let scrub = ScrubOptions { rate: 64 << 20, every: Duration::from_secs(3600) };
        let volume = process.open_with(world.id, 2, Some(scrub)).await.unwrap();
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if volume.status().scrub.is_some_and(|scrub| scrub.last.is_some()) {
                break;
            }
        }
        let pass = volume.status().scrub.unwrap().last.unwrap();
        assert_eq!((pass.damaged, pass.mended), (data.len() as u64, data.len() as u64), "{place}");
        assert!(settled(&world, place, &data).await, "{place}");
        volume.abandon();
    }
}

/// Each copy of a chunk lacks another frame: together they are whole.
#[tokio::test(start_paused = true)]
async fn a_chunk_is_put_together_from_both_copies() {
    let world = filled().await;
    let chunks = objects(&world, HOME, "/log/").await;
    let large: Objects =
        chunks.into_iter().filter(|(_, body)| body.len() > 140_000).take(1).collect();
    assert_eq!(large.len(), 1, "no chunk has several frames");
    damage(&world, HOME, &large, |len| len - 1).await;
    damage(&world, FAR, &large, |len| len / 2).await;
    let process = world.now().await;
    let volume = process.open(world.id, 2).await.unwrap();
    is_right(&volume).await;
    let key = logical(&world, large.keys().next().unwrap());
    let mended = volume.mend(&[key]).await.unwrap();
    assert_eq!(mended[0].how, Mending::PutBack);
    for place in [HOME, FAR] {
        assert!(settled(&world, place, &large).await, "{place}");
    }
    volume.close().await.unwrap();
    world.is_twice(&world.now().await).await;
}

fn logical(world: &World, name: &Key) -> Key {
    let rest = name.as_str().strip_prefix(&keys::mirror(world.id)).unwrap();
    Key::new(&format!("{}{rest}", keys::volume_prefix(world.id))).unwrap()
}

/// Every kind of object, damaged in either store.
async fn mended_as_asked() {
    for place in [HOME, FAR] {
        for part in ["/log/", "/map/", "/checkpoints/", "/snapshots/"] {
            let world = filled().await;
            let whole = objects(&world, place, part).await;
            damage(&world, place, &whole, |len| len / 2).await;
            let process = world.now().await;
            let volume = process.open(world.id, 2).await.unwrap();
            let below = keys::mirror(world.id);
            for name in whole.keys() {
                let rest = name.as_str().strip_prefix(&below).unwrap();
                let rest = rest.find(&part[1..]).map(|at| &rest[at..]).unwrap();
                let key = Key::new(&format!("{}{rest}", keys::volume_prefix(world.id))).unwrap();
                volume.mend(&[key]).await.unwrap();
            }
            assert!(settled(&world, place, &whole).await, "{part} in {place}");
            is_right(&volume).await;
            volume.abandon();
            let report =
                Doctor::new(&world.now().await.pool, true, None).check_all().await.unwrap();
            assert!(report.clean, "{part} in {place}: {report:?}");
        }
    }
}

#[test]
fn every_kind_of_object_is_mended_from_the_other_store() {
    paused(mended_as_asked());
}

#[test]
fn a_copy_that_is_not_whole_takes_no_place() {
    let mistaken = mutant::with(Some(Mutant::CopyUnproved), || {
        catch_unwind(AssertUnwindSafe(|| paused(mended_as_asked()))).is_err()
    });
    assert!(mistaken, "the mistake is not noticed");
}
