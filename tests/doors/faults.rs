//! The same faults behind every door, and what its users are told.

use crate::door::{EIO, Kind};
use crate::home::{Home, arg};
use crate::oracle::noise;
use crate::suite::MIB;
use objblk::format::chunk::{ChunkHeader, FRAME_SECTORS};
use objblk::format::record::Record;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

const PAGE: usize = 4096;
/// Longer than anything takes that does not need the store.
const A_WHILE: Duration = Duration::from_millis(1500);

/// All that is in `range` of the pages of the disk.
fn pages(header: &ChunkHeader, frames: std::ops::Range<u32>) -> BTreeSet<usize> {
    let sectors = frames.start * FRAME_SECTORS..frames.end * FRAME_SECTORS;
    let data = header.records.iter().filter_map(|record| match record {
        Record::Data { range, offset } => Some((range.start().0, *offset, range.len().0 as u32)),
        _ => None,
    });
    let places = data.flat_map(|(start, offset, len)| {
        let inside = (0..len).filter(|at| sectors.contains(&(offset + at)));
        inside
            .map(move |at| (start + u64::from(at)) as usize * 512 / PAGE * PAGE)
            .collect::<Vec<_>>()
    });
    places.collect()
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

/// A chunk with a bit that flipped, and one that is gone: an error for exactly what was in them.
pub fn damage(kind: Kind, seed: u64) {
    const DISK: usize = 4 * MIB;
    let home = Home::directory();
    (kind.make)(&home, "disk", DISK as u64, 512);
    let data = noise(&mut StdRng::seed_from_u64(seed), DISK);
    let door = (kind.open)(&home, "disk");
    let mut hand = door.hand();
    for at in (0..DISK).step_by(MIB / 4) {
        hand.write(at as u64, &data[at..at + MIB / 4], false).unwrap();
    }
    hand.flush().unwrap();
    drop(hand);
    door.stop();
    let mut all = Vec::new();
    files(&home.store(), &mut all);
    all.retain(|path| path.components().any(|part| part.as_os_str() == "log"));
    let chunks = all.into_iter().filter_map(|path| {
        let bytes = fs::read(&path).unwrap();
        let header = ChunkHeader::parse(&bytes).ok()?;
        // Not the one with the first block, which a kernel looks at by itself.
        let held = pages(&header, 0..header.frames.entries.len() as u32);
        (!held.is_empty() && !held.contains(&0)).then_some((path, bytes, header))
    });
    let mut chunks: Vec<_> = chunks.collect();
    assert!(chunks.len() > 4, "{} chunks hold the disk", chunks.len());
    let (path, mut bytes, header) = chunks.swap_remove(1);
    bytes[header.header_len as usize + header.frames.before(1) as usize + 777] ^= 0x10;
    fs::write(path, bytes).unwrap();
    let mut bad = pages(&header, 1..2);
    let (path, _, header) = chunks.swap_remove(2);
    fs::remove_file(path).unwrap();
    bad.extend(pages(&header, 0..header.frames.entries.len() as u32));

    let door = (kind.open)(&home, "disk");
    let mut hand = door.hand();
    for at in (0..DISK).step_by(PAGE) {
        match hand.read(at as u64, PAGE) {
            Ok(found) => {
                assert!(!bad.contains(&at) && found == data[at..at + PAGE], "page at {at}")
            }
            Err(e) => assert!(e == EIO && bad.contains(&at), "{}: {e:?} at {at}", kind.name),
        }
    }
    println!("{}: {} of {} pages are damaged", kind.name, bad.len(), DISK / PAGE);
    // What is written anew is whole again.
    let at = *bad.first().unwrap();
    hand.write(at as u64, &data[..PAGE], true).unwrap();
    assert_eq!(hand.read(at as u64, PAGE).as_deref(), Ok(&data[..PAGE]));
    drop(hand);
    door.stop();
}

/// Another host takes the volume: nothing more is acknowledged, and nothing comes through.
pub fn fenced(kind: Kind) {
    let home = Home::directory();
    (kind.make)(&home, "disk", 2 * MIB as u64, 512);
    let door = (kind.open)(&home, "disk");
    let mut hand = door.hand();
    hand.write(0, &[1; PAGE], false).unwrap();
    hand.flush().unwrap();
    let (other, socket) = (home.elsewhere(), home.path("other.nbd"));
    let second = other.start(&["serve", "nbd", "disk", "--takeover", "--socket", arg(&socket)]);
    // It may not have noticed yet.
    let written = hand.write(0, &[2; PAGE], false);
    assert!(written.is_ok() || written == Err(EIO), "{written:?}");
    assert_eq!(hand.flush(), Err(EIO), "{}: a flush of a fenced owner", kind.name);
    assert_eq!(hand.write(8192, &[3; PAGE], true), Err(EIO));
    assert_eq!(hand.discard(0, PAGE as u64), Err(EIO));
    drop(hand);
    door.give_up();
    second.stop();
    let door = (kind.open)(&other, "disk");
    let mut hand = door.hand();
    assert_eq!(hand.read(0, PAGE).as_deref(), Ok(&[1; PAGE][..]));
    assert_eq!(hand.read(8192, PAGE).as_deref(), Ok(&[0; PAGE][..]));
    drop(hand);
    door.stop();
}

/// The store cannot be reached: whoever needs it waits, and then gets what he asked for. `cut` begins and
/// ends it; `reads`: what is asked for meanwhile is waited for, too.
pub fn outage(kind: Kind, home: &Home, cut: &dyn Fn(bool), reads: bool) {
    (kind.make)(home, kind.name, 8 * MIB as u64, 512);
    let data = noise(&mut StdRng::seed_from_u64(5), MIB / 4);
    let door = (kind.open)(home, kind.name);
    let mut hand = door.hand();
    hand.write(4 * MIB as u64, &data, true).unwrap();
    drop(hand);
    door.stop();
    let door = (kind.open)(home, kind.name);
    let (mut one, mut other) = (door.hand(), door.hand());
    let over = AtomicUsize::new(0);
    cut(true);
    one.write(0, &data, false).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(one.flush(), Ok(()));
            over.fetch_add(1, SeqCst);
        });
        let waiting = reads.then(|| {
            scope.spawn(|| {
                let found = other.read(4 * MIB as u64, data.len());
                over.fetch_add(1, SeqCst);
                found
            })
        });
        std::thread::sleep(A_WHILE);
        let early = over.load(SeqCst);
        cut(false);
        assert_eq!(early, 0, "{}: answered without a store", kind.name);
        if let Some(waiting) = waiting {
            assert!(waiting.join().unwrap().as_deref() == Ok(&data[..]), "{}", kind.name);
        }
    });
    assert!(one.read(0, data.len()).as_deref() == Ok(&data[..]));
    drop((one, other));
    door.stop();
}
