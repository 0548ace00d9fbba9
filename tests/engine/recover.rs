//! The owner's process dies and its device lives on: the successor has every acknowledged change,
//! flushed or not, or refuses.

use crate::rig::{CHUNK, Rig, owner, pattern, range, read, write};
use bytes::Bytes;
use objblk::device::{BlockDevice, ZeroFlags};
use objblk::error::ErrorKind;
use objblk::format::{keys, pool};
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::store::{Op, Store, StoreErrorKind};
use objblk::units::{Epoch, SectorCount};
use objblk::volume::{Mode, Volume};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

pub const SECTORS: u64 = 4096;

pub struct Host {
    pub rig: Rig,
    pub mirror: PathBuf,
    _folder: TempDir,
}

impl Host {
    pub async fn new(seed: u64) -> Host {
        let folder = tempfile::tempdir().unwrap();
        let mut rig = Rig::any(seed, SECTORS * 512).await;
        let mirror = folder.path().join("mirror");
        rig.options.mirror = Some(mirror.clone());
        Host { rig, mirror, _folder: folder }
    }

    pub async fn recover(&self, pid: u32) -> objblk::error::Result<Volume> {
        self.rig.open_as(pid, Mode::Recover).await
    }

    /// Segments of the oldest epoch, in order.
    pub fn segments(&self) -> Vec<PathBuf> {
        let epoch = entries(&self.mirror).into_iter().find(|path| path.is_dir()).unwrap();
        let mut segments = entries(&epoch);
        segments.retain(|path| path.extension().is_none() && !path.ends_with("journaled"));
        segments
    }
}

/// Where the entries of a segment begin, and where the last one ends.
pub fn places(segment: &Path) -> Vec<usize> {
    let bytes = fs::read(segment).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    // Of a sealed one the header is longer.
    let mut places = vec![if word(8) & 0xffff == 5 { 96 } else { 64 }];
    while let Some(at) = places.last().copied().filter(|at| bytes[*at] != 0) {
        let behind = match bytes[at] {
            1 => 512 * word(at + 16),
            7 => word(at + 4),
            _ => 0,
        };
        places.push(at + 32 + behind);
    }
    places
}

pub fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    found.sort();
    found
}

/// Bytes of changes that a mirror has.
pub fn mirrored(host: &Host) -> u64 {
    let used = |path: &PathBuf| {
        let places = places(path);
        (places[places.len() - 1] - places[0]) as u64
    };
    host.segments().iter().map(used).sum()
}

/// One random change, made on the volume and on the model. Returns false for what changes nothing.
pub async fn step(volume: &Volume, model: &mut [u8], rng: &mut StdRng, stamp: u64) -> bool {
    let start = rng.random_range(0..SECTORS);
    // Small places are overwritten often, in the open chunk too.
    let (start, longest) = if rng.random_bool(0.5) { (start % 64, 16) } else { (start, 200) };
    let len = rng.random_range(1..=longest.min(SECTORS - start));
    let span = start as usize * 512..(start + len) as usize * 512;
    match rng.random_range(0..20) {
        0..14 => {
            let data = pattern(start, len, stamp);
            write(volume, start, &data).await.unwrap();
            model[span].copy_from_slice(&data);
        }
        14 => {
            volume.discard(range(start, len)).await.unwrap();
            model[span].fill(0);
        }
        15 => {
            let flags = ZeroFlags { may_unmap: true, fua: false };
            volume.write_zeroes(range(start, len), flags).await.unwrap();
            model[span].fill(0);
        }
        16 => {
            volume.flush().await.unwrap();
            return false;
        }
        _ => {
            tokio::time::sleep(Duration::from_millis(rng.random_range(1..900))).await;
            return false;
        }
    }
    true
}

pub async fn assert_image(volume: &Volume, model: &[u8], what: &str) {
    let found = read(volume, 0, SECTORS).await.unwrap();
    let wrong = (0..SECTORS as usize)
        .find(|s| found[s * 512..s * 512 + 512] != model[s * 512..s * 512 + 512]);
    assert_eq!(wrong, None, "{what}: the first sector that differs");
}

fn add_faults(rig: &Rig) {
    let ms = Duration::from_millis;
    let delay = |at| Fault::Delay { at, from: ms(1), to: ms(700) };
    let fail = |at| Fault::Fail(at, StoreErrorKind::Unavailable);
    for (fault, ops, p) in [
        (delay(Moment::Before), &[Op::Put][..], 0.7),
        (delay(Moment::After), &Op::ALL[..], 0.2),
        (fail(Moment::Before), &Op::ALL[..], 0.1),
        (fail(Moment::After), &Op::ALL[..], 0.1),
        (Fault::Duplicate(ms(700)), &[Op::Put][..], 0.1),
    ] {
        rig.faults.add(Rule::new(fault).on(ops).with_probability(p));
    }
}

#[tokio::test(start_paused = true)]
async fn every_acknowledged_change_survives_the_process() {
    let seeds = match std::env::var("OBJBLK_SEED") {
        Ok(seed) => seed.parse().map(|s: u64| s..s + 1).expect("OBJBLK_SEED is a number"),
        Err(_) => 0..40,
    };
    for seed in seeds {
        eprintln!("replay: OBJBLK_SEED={seed} cargo test --test engine every_acknowledged_change");
        let mut rng = StdRng::seed_from_u64(seed);
        let host = Host::new(seed).await;
        add_faults(&host.rig);
        let mut model = vec![0; SECTORS as usize * 512];
        let mut volume = host.rig.open().await;
        let mut stamp = 0;
        for life in 0..8 {
            for _ in 0..rng.random_range(0..80) {
                stamp += 1;
                step(&volume, &mut model, &mut rng, stamp).await;
            }
            volume.abandon();
            volume = host.recover(life + 2).await.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            assert_image(&volume, &model, &format!("seed {seed} life {life}")).await;
        }
        volume.close().await.unwrap();
        let volume = host.rig.open().await;
        assert_image(&volume, &model, &format!("seed {seed} closed")).await;
    }
}

/// The same few changes, and the process dies after each of them, in the middle of each of them,
/// and in the middle of the end of each segment.
#[tokio::test(start_paused = true)]
async fn a_death_at_every_record() {
    for deaths in 0..60 {
        // An encrypted volume and a plain one.
        for (seed, torn) in [(1, false), (1, true), (2, false), (2, true)] {
            let host = Host::new(seed).await;
            let mut rng = StdRng::seed_from_u64(99);
            let mut model = vec![0; SECTORS as usize * 512];
            let volume = host.rig.open().await;
            // Nothing is committed: the mirror alone has it.
            let hold = host.rig.faults.add(Rule::new(Fault::Hold(Moment::Before)).on(&[Op::Put]));
            let mut before = model.clone();
            let mut made = 0;
            let mut stamp = 0;
            while made < deaths {
                stamp += 1;
                before.copy_from_slice(&model);
                made += u32::from(small_step(&volume, &mut model, &mut rng, stamp).await);
            }
            volume.abandon();
            let last = host.segments().pop().unwrap();
            let places = places(&last);
            let cut = torn && places.len() > 1;
            if cut {
                // The first word of an entry is what is stored last.
                let file = fs::File::options().write(true).open(&last).unwrap();
                file.write_all_at(b"\0nothing", places[places.len() - 2] as u64).unwrap();
            }
            hold.release();
            let volume = host.recover(2).await.unwrap();
            let expected = if cut { &before } else { &model };
            assert_image(&volume, expected, &format!("{deaths} changes, torn: {cut}")).await;
            volume.abandon();
        }
    }
}

/// As [`step`], of changes that are one record each and need no room.
async fn small_step(volume: &Volume, model: &mut [u8], rng: &mut StdRng, stamp: u64) -> bool {
    let start = rng.random_range(0..64);
    let len = rng.random_range(1..=8);
    let span = start as usize * 512..(start + len) as usize * 512;
    if rng.random_bool(0.2) {
        volume.discard(range(start, len)).await.unwrap();
        model[span].fill(0);
    } else {
        let data = pattern(start, len, stamp);
        write(volume, start, &data).await.unwrap();
        model[span].copy_from_slice(&data);
    }
    true
}

/// The successor dies as well, before it has taken over all of the mirror; and its successor.
#[tokio::test(start_paused = true)]
async fn recovering_can_be_cut_off_anywhere() {
    let host = Host::new(3).await;
    let volume = host.rig.open().await;
    let mut model = vec![0; SECTORS as usize * 512];
    let data = pattern(0, SECTORS, 1);
    // One chunk short of the dirty budget, which the recovery then waits for.
    host.rig.faults.set_down(true);
    for at in (0..1536).step_by(64) {
        let span = at as usize * 512..(at + 64) as usize * 512;
        write(&volume, at, &data[span.clone()]).await.unwrap();
        model[span.clone()].copy_from_slice(&data[span]);
    }
    write(&volume, 0, &pattern(0, 8, 2)).await.unwrap();
    model[..4096].copy_from_slice(&pattern(0, 8, 2));
    volume.abandon();
    host.rig.faults.set_down(false);
    for (pid, puts) in (2..).zip([0, 1, 2, 3, 4, 5]) {
        // Its claim and its fence, then a few chunks, go through.
        let hold =
            host.rig.faults.add(Rule::new(Fault::Hold(Moment::Before)).on(&[Op::Put]).skip(puts));
        let mut small = Rig { options: host.rig.options.clone(), ..host.rig_again() };
        small.options.dirty_bytes = 128 << 10;
        let cut = small.open_as(pid, Mode::Recover);
        assert!(tokio::time::timeout(Duration::from_secs(30), cut).await.is_err(), "{puts}");
        hold.release();
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    let volume = host.recover(20).await.unwrap();
    assert_image(&volume, &model, "recovered at last").await;
    volume.close().await.unwrap();
}

impl Host {
    /// Another handle of the same store.
    fn rig_again(&self) -> Rig {
        let Rig { memory, faults, store, id, options } = &self.rig;
        Rig {
            memory: memory.clone(),
            faults: faults.clone(),
            store: store.clone(),
            id: *id,
            options: options.clone(),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_size_that_changes_is_recovered_too() {
    let host = Host::new(5).await;
    let volume = host.rig.open().await;
    write(&volume, 4000, &pattern(4000, 8, 1)).await.unwrap();
    volume.resize(SectorCount(2048)).await.unwrap();
    volume.resize(SectorCount(8192)).await.unwrap();
    write(&volume, 8000, &pattern(8000, 8, 2)).await.unwrap();
    volume.abandon();
    let volume = host.recover(2).await.unwrap();
    assert_eq!(volume.geometry().size, SectorCount(8192));
    assert_eq!(read(&volume, 4000, 8).await.unwrap(), vec![0; 4096]);
    assert_eq!(read(&volume, 8000, 8).await.unwrap(), pattern(8000, 8, 2));
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_is_not_whole_is_refused() {
    type Damage = fn(&Host);
    let damages: [(&str, Damage); 6] = [
        ("gone", |host| fs::remove_dir_all(&host.mirror).unwrap()),
        ("without claims", |host| fs::remove_file(host.mirror.join("claims")).unwrap()),
        ("without its first segment", |host| fs::remove_file(&host.segments()[0]).unwrap()),
        ("without one in the middle", |host| fs::remove_file(&host.segments()[1]).unwrap()),
        ("without its last segment", |host| {
            fs::remove_file(host.segments().last().unwrap()).unwrap();
        }),
        ("with a flipped bit", |host| {
            let path = &host.segments()[0];
            let mut bytes = fs::read(path).unwrap();
            bytes[200] ^= 1;
            fs::write(path, bytes).unwrap();
        }),
    ];
    for (what, damage) in damages {
        let host = Host::new(7).await;
        let volume = host.rig.open().await;
        host.rig.faults.set_down(true);
        for i in 0..3 {
            let at = i * CHUNK / 512;
            write(&volume, at, &pattern(at, CHUNK / 512, i)).await.unwrap();
        }
        write(&volume, 0, &pattern(0, 8, 9)).await.unwrap();
        volume.abandon();
        host.rig.faults.set_down(false);
        let epochs = host.rig.objects("epochs/").await.len();
        damage(&host);
        let refused = host.recover(2).await;
        let error = refused.map(drop).expect_err(what);
        let kinds = [ErrorKind::Failed, ErrorKind::Corrupt];
        assert!(kinds.contains(&error.kind()), "{what}: {error}");
        if what != "without its first segment" {
            assert_eq!(host.rig.objects("epochs/").await.len(), epochs, "{what}: it claimed first");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_somebody_else_has_had_is_refused() {
    for fenced in [true, false] {
        let host = Host::new(8).await;
        let volume = host.rig.open().await;
        write(&volume, 0, &pattern(0, 8, 1)).await.unwrap();
        volume.abandon();
        let mut elsewhere = host.rig_again();
        elsewhere.options.mirror = None;
        if fenced {
            let other = elsewhere.take_over(77).await;
            other.close().await.unwrap();
        } else {
            // A claim whose owner has not fenced yet is a claim: it may do so at any moment.
            let body = Bytes::from(pool::encode_json(&owner(77)));
            let key = keys::epoch(host.rig.id, Epoch(2));
            host.rig.memory.put_if_absent(&key, body).await.unwrap();
        }
        let error = host.recover(2).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
        assert!(error.to_string().contains("process 77 on host rig"), "{error}");
    }
}

/// Overwriting one place for ever fills the mirror and not the chunk: it is bounded all the same.
#[tokio::test(start_paused = true)]
async fn the_mirror_is_bounded_and_emptied() {
    let host = Host::new(9).await;
    let volume = host.rig.open().await;
    let budget = host.rig.options.dirty_bytes;
    let files = |host: &Host| -> u64 {
        let folder = host.segments()[0].with_file_name("");
        entries(&folder).iter().map(|path| fs::metadata(path).unwrap().len()).sum()
    };
    for i in 0..2000 {
        write(&volume, 0, &pattern(0, 64, i)).await.unwrap();
        let bytes = mirrored(&host);
        assert!(bytes <= budget + (64 << 10), "{bytes} bytes after {i}");
        // A file is twice as long as what is in it at most, and some wait to be used again.
        assert!(files(&host) <= 3 * budget, "{} bytes of files after {i}", files(&host));
    }
    volume.flush().await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(mirrored(&host) < 1024, "{} bytes after a flush", mirrored(&host));
    assert!(files(&host) <= 3 * budget);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(files(&host), fs::metadata(&host.segments()[0]).unwrap().len(), "it is idle");
    assert!(volume.status().recoverable);
    volume.abandon();
    let volume = host.recover(2).await.unwrap();
    assert_eq!(read(&volume, 0, 64).await.unwrap(), pattern(0, 64, 1999));
}

/// A file of a segment becomes another one: what it had in its former life counts no more.
#[tokio::test(start_paused = true)]
async fn a_file_that_is_used_again_has_nothing_of_its_former_life() {
    for seed in [1, 2] {
        let mut host = Host::new(seed).await;
        host.rig.options.dirty_bytes = 16 << 20;
        let mut volume = host.rig.open().await;
        let mut model = vec![0; SECTORS as usize * 512];
        let (mut names, mut again) = (HashMap::new(), 0);
        for turn in 0..40 {
            // Of several lengths, so that there is something behind the end now and then.
            let len = 8 * (1 + turn * 7 % 40);
            let data = pattern(turn * 16, len, turn);
            write(&volume, turn * 16, &data).await.unwrap();
            model[turn as usize * 16 * 512..][..data.len()].copy_from_slice(&data);
            volume.flush().await.unwrap();
            let last = host.segments().pop().unwrap();
            let before = names.insert(fs::metadata(&last).unwrap().ino(), last.clone());
            again += u32::from(before.is_some_and(|before| before != last));
            if turn % 8 == 7 {
                let small = pattern(0, 8, turn);
                write(&volume, 0, &small).await.unwrap();
                model[..small.len()].copy_from_slice(&small);
                volume.abandon();
                volume = host.recover(turn as u32 + 2).await.unwrap();
                assert_image(&volume, &model, &format!("seed {seed} turn {turn}")).await;
                names.clear();
            }
        }
        assert!(again > 10, "files were used again {again} times");
    }
}

/// A mirror that cannot be written is gone before anything more is acknowledged.
#[tokio::test(start_paused = true)]
async fn a_mirror_that_cannot_be_written_is_given_up() {
    let host = Host::new(10).await;
    let volume = host.rig.open().await;
    write(&volume, 0, &pattern(0, 8, 1)).await.unwrap();
    assert!(volume.status().recoverable);
    // The next slot's segment cannot be made: its place is taken.
    let next = host.segments()[0].with_file_name("0000000000000002.new");
    fs::create_dir(next).unwrap();
    volume.flush().await.unwrap();
    write(&volume, 8, &pattern(8, 8, 2)).await.unwrap();
    volume.flush().await.unwrap();
    assert!(!volume.status().recoverable);
    volume.abandon();
    let error = host.recover(2).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed, "{error}");
    let volume = host.rig.take_over(3).await;
    assert_eq!(read(&volume, 8, 8).await.unwrap(), pattern(8, 8, 2));
}

/// However often and soon owners die, there is not more and more to replay.
#[tokio::test(start_paused = true)]
async fn deaths_in_quick_succession_do_not_pile_up() {
    let mut host = Host::new(11).await;
    host.rig.options.checkpoint_slots = 1 << 20;
    let mut volume = host.rig.open().await;
    for life in 0..10 {
        for i in 0..20 {
            write(&volume, i * 8, &pattern(i * 8, 8, life)).await.unwrap();
            volume.flush().await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        volume.abandon();
        volume = host.recover(life as u32 + 2).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!host.rig.objects("checkpoints/").await.is_empty(), "nobody lived to make one");
    assert_eq!(read(&volume, 0, 8).await.unwrap(), pattern(0, 8, 9));
}

/// The last slots were stored and nobody lived to know: their changes must not be made again. Once
/// an older one is back, alone, a host that takes over would find it.
#[tokio::test(start_paused = true)]
async fn what_the_log_has_is_not_made_again() {
    let mut host = Host::new(6).await;
    host.rig.options.dirty_bytes = 16 << 20;
    let volume = host.rig.open().await;
    let log = format!("{}log/", keys::volume_prefix(host.rig.id));
    let replies = Rule::new(Fault::Hold(Moment::After)).on(&[Op::Put]).below(log);
    let held = host.rig.faults.add(replies);
    write(&volume, 0, &pattern(0, 8, 1)).await.unwrap();
    write(&volume, 1000, &pattern(1000, CHUNK / 512 - 8, 1)).await.unwrap();
    write(&volume, 0, &pattern(0, 8, 2)).await.unwrap();
    let flush = tokio::time::timeout(Duration::from_secs(1), volume.flush()).await;
    assert!(flush.is_err(), "it waits for replies");
    held.held(2).await;
    volume.abandon();
    host.rig.faults.clear();
    let volume = host.recover(2).await.unwrap();
    assert_eq!(read(&volume, 0, 8).await.unwrap(), pattern(0, 8, 2));
    // Full chunks are on their way at once, the last one is still open.
    tokio::time::sleep(Duration::from_millis(100)).await;
    volume.abandon();
    host.rig.options.mirror = None;
    let other = host.rig.take_over(3).await;
    assert_eq!(read(&other, 0, 8).await.unwrap(), pattern(0, 8, 2));
}
