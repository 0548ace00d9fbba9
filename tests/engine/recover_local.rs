//! A device whose volume has a journal outlives its server: what was acknowledged is in the log, in
//! the journal or in the mirror, and the successor has all of it, flushed or not.

use crate::disk::MemoryDisk;
use crate::local::{JOURNAL, outage, settled, with_journal};
use crate::recover::{Host, SECTORS, assert_image, mirrored, step};
use crate::rig::{CHUNK, Rig, pattern, read, write};
use objblk::device::BlockDevice;
use objblk::error::ErrorKind;
use objblk::journal::mirror;
use objblk::store::Op;
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::volume::{Durability, Mode, Volume};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs;
use std::time::Duration;

async fn host(seed: u64, disk: &MemoryDisk) -> Host {
    let mut host = Host::new(seed).await;
    with_journal(&mut host.rig, disk);
    host
}

/// The power of the host fails: what was in memory, the mirror too, is gone.
async fn after_power_cut(host: &Host, disk: &MemoryDisk, pid: u32) -> Volume {
    fs::remove_dir_all(&host.mirror).unwrap();
    let mut rig = host.rig.memory_only();
    with_journal(&mut rig, disk);
    rig.open_as(pid, Mode::ReadWrite { takeover: false }).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_device_with_a_journal_has_everything_that_was_acknowledged() {
    let seeds = match std::env::var("OBJBLK_SEED") {
        Ok(seed) => seed.parse().map(|s: u64| s..s + 1).expect("OBJBLK_SEED is a number"),
        Err(_) => 0..20,
    };
    for seed in seeds {
        eprintln!("replay: OBJBLK_SEED={seed} cargo test --test engine a_device_with_a_journal");
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = MemoryDisk::new(JOURNAL);
        let host = host(seed, &disk).await;
        let mut model = vec![0; SECTORS as usize * 512];
        let mut volume = host.rig.open().await;
        let mut stamp = 0;
        for life in 0..8 {
            if rng.random_bool(0.6) {
                outage(&host.rig);
            }
            for _ in 0..rng.random_range(0..40) {
                stamp += 1;
                step(&volume, &mut model, &mut rng, stamp).await;
            }
            volume.abandon();
            host.rig.faults.clear();
            if rng.random_bool(0.5) {
                let ms = Duration::from_millis;
                let slow = Fault::Delay { at: Moment::Before, from: ms(1), to: ms(700) };
                host.rig.faults.add(Rule::new(slow).on(&[Op::Put]));
            }
            volume = host.recover(life + 2).await.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            assert_eq!(volume.status().durability, Durability::Local);
            assert!(volume.status().recoverable);
            assert_image(&volume, &model, &format!("seed {seed} life {life}")).await;
        }
        volume.flush().await.unwrap();
        volume.abandon();
        let volume = after_power_cut(&host, &disk, 90).await;
        assert_image(&volume, &model, &format!("seed {seed} without its mirror")).await;
        volume.close().await.unwrap();
    }
}

/// Changes that a dying owner made, one a place: so many were flushed.
const CHANGES: u64 = 14;
const FLUSHED: u64 = 3;
/// Sectors of each.
const LEN: u64 = 100;

/// A device whose server died in an outage, with a tail of several slots that only the mirror has.
async fn left_with_a_tail(disk: &MemoryDisk) -> Host {
    let host = host(1, disk).await;
    let volume = host.rig.open().await;
    outage(&host.rig);
    for at in 0..CHANGES {
        write(&volume, at * LEN, &pattern(at * LEN, LEN, at + 1)).await.unwrap();
        if at + 1 == FLUSHED {
            volume.flush().await.unwrap();
            // From here on no write of the disk comes to an end.
            disk.hang();
        }
    }
    volume.abandon();
    host.rig.faults.clear();
    host
}

/// How many of the changes are there, of which there may only be the first ones.
async fn changes(volume: &Volume) -> u64 {
    let mut there = CHANGES;
    for at in 0..CHANGES {
        let found = read(volume, at * LEN, LEN).await.unwrap();
        if found == pattern(at * LEN, LEN, at + 1) {
            assert!(there == CHANGES, "change {at} is there, {there} is not");
        } else {
            there = there.min(at);
            let torn = found.chunks(512).skip_while(|sector| sector[8] != 0);
            assert!(torn.flatten().all(|byte| *byte == 0), "change {at} is there in part");
        }
    }
    there
}

/// The successor dies at each of the disk's writes. The next one has everything; or, when power was
/// lost besides, the first changes, with those that were flushed.
#[tokio::test(start_paused = true)]
async fn recovering_with_a_journal_can_be_cut_off_at_every_write() {
    let (mut cut, mut between) = (0, 0);
    for writes in 0.. {
        let mut done = false;
        for power in [false, true] {
            let dying = MemoryDisk::new(JOURNAL);
            let mut host = left_with_a_tail(&dying).await;
            let disk = MemoryDisk::with(dying.bytes());
            disk.fail_after(writes);
            with_journal(&mut host.rig, &disk);
            let recovered = host.recover(2).await;
            let durability = recovered.as_ref().ok().map(|volume| volume.status().durability);
            done = durability == Some(Durability::Local);
            // Not even its claim could be noted: it did without the journal.
            let alone = durability == Some(Durability::Object);
            assert_eq!(alone, writes == 0);
            if let Ok(volume) = &recovered {
                volume.abandon();
            }
            let disk = MemoryDisk::with(disk.bytes());
            with_journal(&mut host.rig, &disk);
            let volume = match (power, alone) {
                (false, _) => host.recover(3).await.unwrap(),
                (true, false) => after_power_cut(&host, &disk, 3).await,
                (true, true) => host.rig.memory_only().take_over(3).await,
            };
            let there = changes(&volume).await;
            let least = if power && durability.is_none() { FLUSHED } else { CHANGES };
            assert!(there >= least, "{there} of {CHANGES} changes after {writes} writes");
            between += u32::from(there > FLUSHED && there < CHANGES);
            volume.close().await.unwrap();
        }
        if done {
            break;
        }
        cut = writes;
    }
    // Claim, tail, term, settled: and the tail takes more than one.
    assert!(cut >= 4 && between > 0, "{cut} writes, {between} times in the middle of the tail");
}

/// The store may be ahead of the journal: what it has is not put into it once more.
#[tokio::test(start_paused = true)]
async fn slots_that_the_journal_never_had_are_no_gap() {
    let dying = MemoryDisk::new(JOURNAL);
    let mut host = host(2, &dying).await;
    let volume = host.rig.open().await;
    dying.hang();
    for at in 0..12 {
        write(&volume, at * LEN, &pattern(at * LEN, LEN, at + 1)).await.unwrap();
    }
    settled_but_for(&volume, CHUNK).await;
    outage(&host.rig);
    for at in 12..CHANGES {
        write(&volume, at * LEN, &pattern(at * LEN, LEN, at + 1)).await.unwrap();
    }
    volume.abandon();
    host.rig.faults.clear();
    with_journal(&mut host.rig, &MemoryDisk::with(dying.bytes()));
    let volume = host.recover(2).await.unwrap();
    assert_eq!(changes(&volume).await, CHANGES);
    assert_eq!(volume.status().durability, Durability::Local);
    volume.close().await.unwrap();
}

async fn settled_but_for(volume: &Volume, bytes: u64) {
    while volume.status().dirty_bytes > bytes {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// In an outage the mirror stays small: the journal has the rest.
#[tokio::test(start_paused = true)]
async fn the_mirror_forgets_what_the_journal_has() {
    let disk = MemoryDisk::new(JOURNAL);
    let host = host(3, &disk).await;
    let most = host.rig.options.dirty_bytes.max(4 * CHUNK);
    let volume = host.rig.open().await;
    outage(&host.rig);
    let mut model = vec![0; SECTORS as usize * 512];
    for turn in 0..60 {
        let at = turn % 8 * 512;
        let data = pattern(at, 512, turn);
        write(&volume, at, &data).await.unwrap();
        model[at as usize * 512..(at + 512) as usize * 512].copy_from_slice(&data);
        assert!(mirrored(&host) <= most + CHUNK, "{} bytes after {turn}", mirrored(&host));
        if turn == 30 {
            // One place again and again fills the mirror and not the chunk.
            for stamp in 0..100 {
                write(&volume, at, &pattern(at, 64, stamp)).await.unwrap();
            }
            write(&volume, at, &data).await.unwrap();
        }
        if volume.status().dirty_bytes > 3 * most {
            break;
        }
    }
    assert!(volume.status().dirty_bytes > 2 * most, "{:?}", volume.status());
    volume.abandon();
    host.rig.faults.clear();
    let volume = host.recover(2).await.unwrap();
    assert_image(&volume, &model, "recovered").await;
    settled(&volume).await;
    volume.close().await.unwrap();
}

/// From a journal that has failed nobody goes on: the mirror keeps everything from then on.
#[tokio::test(start_paused = true)]
async fn a_journal_that_had_failed_is_left_alone() {
    let disk = MemoryDisk::new(JOURNAL);
    let host = host(4, &disk).await;
    let volume = host.rig.open().await;
    write(&volume, 0, &pattern(0, 8, 1)).await.unwrap();
    volume.flush().await.unwrap();
    assert!(mirror::is_journaled(&host.mirror).unwrap());
    disk.fail_after(0);
    write(&volume, 8, &pattern(8, 8, 2)).await.unwrap();
    volume.flush().await.unwrap();
    assert!(!mirror::is_journaled(&host.mirror).unwrap());
    outage(&host.rig);
    write(&volume, 16, &pattern(16, 8, 3)).await.unwrap();
    volume.abandon();
    host.rig.faults.clear();
    let before = disk.bytes();
    for pid in 2..5 {
        let volume = host.recover(pid).await.unwrap();
        let data = [pattern(0, 8, 1), pattern(8, 8, 2), pattern(16, 8, 3)].concat();
        assert_eq!(read(&volume, 0, 24).await.unwrap(), data);
        assert_eq!(volume.status().durability, Durability::Object);
        volume.abandon();
    }
    assert!(disk.bytes() == before, "a journal that had failed was written");
}

/// A journal fails while the store takes nothing: only the journal has what the mirror forgot. So
/// writers wait, and a successor needs the journal.
#[tokio::test(start_paused = true)]
async fn a_journal_that_fails_in_an_outage_is_needed_still() {
    let disk = MemoryDisk::new(JOURNAL);
    let mut host = host(5, &disk).await;
    let volume = host.rig.open().await;
    outage(&host.rig);
    for at in [0, 512] {
        write(&volume, at, &pattern(at, 512, 1)).await.unwrap();
        volume.flush().await.unwrap();
    }
    assert!(mirrored(&host) < 1024, "the journal has it");
    disk.fail_after(0);
    write(&volume, 1024, &pattern(1024, 8, 2)).await.unwrap();
    let flush = tokio::time::timeout(Duration::from_secs(5), volume.flush());
    assert!(flush.await.is_err(), "neither the journal nor the store has it");
    let late = [1; 512];
    let late = tokio::time::timeout(Duration::from_secs(60), write(&volume, 2000, &late));
    assert!(late.await.is_err(), "a successor could not tell what was last");
    volume.abandon();
    host.rig.faults.clear();
    let epochs = host.rig.objects("epochs/").await;
    let lost = MemoryDisk::new(JOURNAL);
    let (lost, left) = (lost, MemoryDisk::with(disk.bytes()));
    with_journal(&mut host.rig, &lost);
    for rig in [&host.rig, &without_journal(&host)] {
        let error = rig.open_as(2, Mode::Recover).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Failed, "{error}");
        assert!(error.to_string().contains("journal"), "{error}");
    }
    assert_eq!(host.rig.objects("epochs/").await, epochs, "it claimed first");
    with_journal(&mut host.rig, &left);
    // A claim that comes damaged, to who asks for the journal's sake, says nothing of who had the
    // volume: not that the device is lost.
    let damage = Rule::new(Fault::Truncate).on(&[Op::Get]).skip(3).times(2);
    let damaged = host.rig.faults.add(damage.below(objblk::format::keys::epochs(host.rig.id)));
    let error = host.rig.open_as(2, Mode::Recover).await.map(drop).unwrap_err();
    assert_eq!((damaged.hits(), error.kind()), (2, ErrorKind::Failed), "{error}");
    host.rig.faults.clear();
    let volume = host.recover(3).await.unwrap();
    assert_eq!(read(&volume, 0, 1024).await.unwrap(), pattern(0, 1024, 1));
    assert_eq!(read(&volume, 1024, 8).await.unwrap(), pattern(1024, 8, 2));
    assert_eq!(volume.status().durability, Durability::Local);
}

fn without_journal(host: &Host) -> Rig {
    let mut rig = host.rig.memory_only();
    rig.options.mirror = Some(host.mirror.clone());
    rig
}

/// The store has all that the mirror forgot: it does without the journal, and so do all successors.
#[tokio::test(start_paused = true)]
async fn a_lost_journal_is_done_without_where_the_store_has_all_of_it() {
    let disk = MemoryDisk::new(JOURNAL);
    let mut host = host(6, &disk).await;
    let volume = host.rig.open().await;
    write(&volume, 0, &pattern(0, 512, 1)).await.unwrap();
    volume.flush().await.unwrap();
    settled(&volume).await;
    outage(&host.rig);
    write(&volume, 512, &pattern(512, 8, 2)).await.unwrap();
    volume.abandon();
    host.rig.faults.clear();
    let alone = without_journal(&host);
    let volume = alone.open_as(2, Mode::Recover).await.unwrap();
    assert_eq!(volume.status().durability, Durability::Object);
    assert_eq!(read(&volume, 512, 8).await.unwrap(), pattern(512, 8, 2));
    write(&volume, 600, &pattern(600, 8, 3)).await.unwrap();
    volume.abandon();
    // The journal is back, and does not know of those.
    with_journal(&mut host.rig, &MemoryDisk::with(disk.bytes()));
    let volume = host.recover(3).await.unwrap();
    assert_eq!(volume.status().durability, Durability::Object);
    assert_eq!(read(&volume, 512, 8).await.unwrap(), pattern(512, 8, 2));
    assert_eq!(read(&volume, 600, 8).await.unwrap(), pattern(600, 8, 3));
    volume.abandon();
    let mut journal_only = host.rig.memory_only();
    with_journal(&mut journal_only, &MemoryDisk::with(disk.bytes()));
    match journal_only.open_as(4, Mode::ReadWrite { takeover: false }).await {
        Ok(volume) => panic!("an old journal is gone on from: {:?}", volume.status()),
        Err(e) => assert!([ErrorKind::Fenced, ErrorKind::Busy].contains(&e.kind()), "{e}"),
    }
}
