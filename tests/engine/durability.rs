//! Ownership, fences, flushes, back-pressure, garbage.

use crate::rig::{CHUNK, Rig, pattern, range, read, write};
use objblk::device::{BlockDevice, DeviceError, WriteFlags};
use objblk::error::ErrorKind;
use objblk::store::Op;
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::units::{Sector, SectorCount};
use objblk::volume::Mode;
use std::time::Duration;

const SIZE: u64 = 64 << 20;

#[tokio::test(start_paused = true)]
async fn a_fenced_owner_acknowledges_nothing_and_says_who_has_it() {
    let rig = Rig::new(1, SIZE).await;
    let old = rig.open().await;
    write(&old, 0, &pattern(0, 8, 1)).await.unwrap();
    old.flush().await.unwrap();
    let refused = rig.open_as(2, Mode::ReadWrite { takeover: false }).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    let new = rig.take_over(2).await;
    write(&old, 0, &pattern(0, 8, 2)).await.unwrap();
    let error = old.flush().await.unwrap_err();
    assert!(
        matches!(&error, DeviceError::Io(why) if why.contains("process 2 on host rig")),
        "{error}"
    );
    assert!(read(&old, 0, 8).await.is_err(), "a fenced owner may not serve old data");
    assert_eq!(old.close().await.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(read(&new, 0, 8).await.unwrap(), pattern(0, 8, 1));
    new.close().await.unwrap();
    let again = rig.open().await;
    assert_eq!(read(&again, 0, 8).await.unwrap(), pattern(0, 8, 1));
}

#[tokio::test(start_paused = true)]
async fn a_quiet_owner_notices_that_it_was_fenced() {
    let rig = Rig::new(1, SIZE).await;
    let old = rig.open().await;
    let _new = rig.take_over(2).await;
    assert!(old.status().failure.is_none());
    tokio::time::sleep(rig.options.watch_every.unwrap() * 2).await;
    assert!(old.status().failure.unwrap().contains("taken over"));
}

#[tokio::test(start_paused = true)]
async fn a_claim_without_a_fence_harms_nobody() {
    let rig = Rig::new(1, SIZE).await;
    let old = rig.open().await;
    // A claimant that dies before its fence: its PUTs into the log never go through.
    let hold =
        rig.faults.add(Rule::new(Fault::Hold(Moment::Before)).on(&[Op::Put]).skip(1).times(1));
    let claim = tokio::time::timeout(Duration::from_secs(1), rig.take_over(2)).await;
    assert!(claim.is_err(), "the claimant hangs at its fence");
    tokio::time::sleep(rig.options.watch_every.unwrap() * 2).await;
    write(&old, 0, &pattern(0, 8, 3)).await.unwrap();
    old.flush().await.unwrap();
    // The fence of the dead claimant lands now: its slot is taken.
    hold.release();
    tokio::time::sleep(Duration::from_secs(1)).await;
    write(&old, 8, &pattern(8, 8, 4)).await.unwrap();
    old.flush().await.unwrap();
    old.abandon();
    let next = rig.take_over(3).await;
    assert_eq!(read(&next, 8, 8).await.unwrap(), pattern(8, 8, 4));
}

#[tokio::test(start_paused = true)]
async fn a_flush_waits_for_every_earlier_chunk() {
    let rig = Rig::new(1, SIZE).await;
    let volume = rig.open().await;
    let hold = rig.faults.add(Rule::new(Fault::Hold(Moment::Before)).on(&[Op::Put]).times(1));
    write(&volume, 0, &pattern(0, 512, 1)).await.unwrap();
    hold.held(1).await;
    write(&volume, 1024, &pattern(1024, 8, 2)).await.unwrap();
    let flush = volume.flush();
    tokio::pin!(flush);
    let early = tokio::time::timeout(Duration::from_secs(2), &mut flush).await;
    assert!(early.is_err(), "acknowledged although slot 1 is not stored");
    hold.release();
    flush.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn concurrent_flushes_share_chunks() {
    let rig = Rig::new(1, SIZE).await;
    let volume = rig.open().await;
    let (from, to) = (Duration::from_millis(20), Duration::from_millis(20));
    rig.faults.add(Rule::new(Fault::Delay { at: Moment::Before, from, to }).on(&[Op::Put]));
    let before = volume.status().next_seq;
    let writers = (0..64u64).map(|i| {
        let volume = volume.clone();
        async move {
            for round in 0..4 {
                let data = pattern(i * 8, 8, round);
                volume.write(Sector(i * 8), &data, WriteFlags { fua: true }).await.unwrap();
            }
        }
    });
    futures::future::join_all(writers).await;
    let chunks = volume.status().next_seq - before;
    assert!(chunks <= 64, "256 flushes took {chunks} chunks");
}

#[tokio::test(start_paused = true)]
async fn dirty_memory_is_bounded_and_an_outage_is_ridden_out() {
    let rig = Rig::new(1, SIZE).await;
    let volume = rig.open().await;
    rig.faults.set_down(true);
    let writer = {
        let volume = volume.clone();
        tokio::spawn(async move {
            for i in 0..64 {
                write(&volume, i * 512, &pattern(i * 512, 512, i)).await.unwrap();
            }
            volume.flush().await.unwrap();
        })
    };
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(!writer.is_finished(), "16 MiB fit a budget of 1 MiB");
    let dirty = volume.status().dirty_bytes;
    assert!(dirty <= rig.options.dirty_bytes + 2 * CHUNK, "{dirty} bytes are dirty");
    rig.faults.set_down(false);
    writer.await.unwrap();
    assert_eq!(read(&volume, 63 * 512, 512).await.unwrap(), pattern(63 * 512, 512, 63));
}

#[tokio::test(start_paused = true)]
async fn an_aged_chunk_is_stored_without_a_flush() {
    let rig = Rig::new(1, SIZE).await;
    let volume = rig.open().await;
    write(&volume, 0, &pattern(0, 1, 1)).await.unwrap();
    tokio::time::sleep(rig.options.seal_after * 3).await;
    assert_eq!(volume.status().dirty_bytes, 0);
    volume.abandon();
    let volume = rig.take_over(2).await;
    assert_eq!(read(&volume, 0, 1).await.unwrap(), pattern(0, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_idle_owner_sends_nothing_but_its_watch() {
    let rig = Rig::new(1, SIZE).await;
    let volume = rig.open().await;
    write(&volume, 0, &pattern(0, 64, 1)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
    let other = [Op::Get, Op::Put, Op::List, Op::Delete];
    let seen = rig.faults.add(Rule::new(Fault::Duplicate(Duration::ZERO)).on(&other));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(seen.hits(), 0, "requests of an idle volume");
    drop(volume);
}

#[tokio::test(start_paused = true)]
async fn discarding_everything_empties_the_bucket() {
    let rig = Rig::new(1, SIZE).await;
    let volume = rig.open().await;
    for i in 0..256u64 {
        write(&volume, i * 512, &pattern(i * 512, 500, i)).await.unwrap();
    }
    volume.close().await.unwrap();
    assert!(rig.memory.total_bytes() > 32 << 20);
    let volume = rig.open().await;
    let empty = objblk::volume::ownership(&*rig.store, rig.id).await.unwrap().live;
    assert_eq!(empty, SectorCount(256 * 500));
    volume.discard(range(0, SIZE / 512)).await.unwrap();
    assert_eq!(read(&volume, 512, 8).await.unwrap(), vec![0; 8 * 512]);
    volume.close().await.unwrap();
    let left = rig.memory.total_bytes();
    assert!(left < 8192, "{left} bytes are left: {:?}", rig.objects("").await);
    assert_eq!(rig.objects("checkpoints/").await.len(), 1);
    assert_eq!(rig.objects("map/").await, Vec::<String>::new());
    let volume = rig.open().await;
    assert_eq!(read(&volume, 0, 2048).await.unwrap(), vec![0; 2048 * 512]);
}

#[tokio::test(start_paused = true)]
async fn overwriting_the_same_place_keeps_the_bucket_small() {
    let rig = Rig::new(1, SIZE).await;
    let volume = rig.open().await;
    for round in 0..400u64 {
        write(&volume, 0, &pattern(0, 256, round)).await.unwrap();
        volume.flush().await.unwrap();
    }
    volume.close().await.unwrap();
    let left = rig.memory.total_bytes();
    assert!(left < 512 << 10, "{left} bytes are left: {:?}", rig.objects("").await);
    let volume = rig.open().await;
    assert_eq!(read(&volume, 0, 256).await.unwrap(), pattern(0, 256, 399));
}

/// Leaves that never change again are moved out of an object that is mostly dead.
#[tokio::test(start_paused = true)]
async fn map_objects_are_emptied_when_mostly_dead() {
    let rig = Rig::new(1, 8 << 30).await;
    let volume = rig.open().await;
    let mut first = Vec::new();
    for (round, leaves) in [(0, 0..100u64), (1, 0..80), (2, 0..1), (3, 0..1)] {
        for leaf in leaves {
            let at = leaf << 17 | round;
            write(&volume, at, &pattern(at, 1, round)).await.unwrap();
        }
        volume.flush().await.unwrap();
        tokio::time::sleep(rig.options.checkpoint_after * 3).await;
        if round == 0 {
            first = rig.objects("map/").await;
        }
    }
    let left = rig.objects("map/").await;
    assert!(!first.is_empty() && first.iter().all(|object| !left.contains(object)), "{left:?}");
    volume.close().await.unwrap();
    let volume = rig.open().await;
    for leaf in 0..100 {
        let expected = pattern(leaf << 17, 1, 0);
        assert_eq!(read(&volume, leaf << 17, 1).await.unwrap(), expected, "leaf {leaf}");
    }
}

#[tokio::test(start_paused = true)]
async fn resize_survives_and_shrinking_drops_what_lies_beyond() {
    let rig = Rig::new(1, SIZE).await;
    let volume = rig.open().await;
    write(&volume, 100_000, &pattern(100_000, 8, 1)).await.unwrap();
    volume.resize(SectorCount(4096)).await.unwrap();
    volume.abandon();
    let volume = rig.take_over(2).await;
    assert_eq!(volume.geometry().size, SectorCount(4096));
    volume.resize(SectorCount(SIZE / 512)).await.unwrap();
    assert_eq!(read(&volume, 100_000, 8).await.unwrap(), vec![0; 4096]);
    volume.close().await.unwrap();
    let volume = rig.open().await;
    assert_eq!(volume.geometry().size, SectorCount(SIZE / 512));
    assert_eq!(read(&volume, 100_000, 8).await.unwrap(), vec![0; 4096]);
    assert_eq!(volume.resize(SectorCount(0)).await.unwrap_err().kind(), ErrorKind::Usage);
}

#[tokio::test(start_paused = true)]
async fn abandoning_ends_everybody_who_waits() {
    let rig = Rig::new(1, SIZE).await;
    let volume = rig.open().await;
    rig.faults.set_down(true);
    write(&volume, 0, &pattern(0, 8, 1)).await.unwrap();
    let waiting = {
        let volume = volume.clone();
        tokio::spawn(async move { volume.close().await })
    };
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!waiting.is_finished());
    assert!(volume.abandon() >= 8 * 512);
    assert!(waiting.await.unwrap().is_err());
    assert!(write(&volume, 0, &pattern(0, 8, 1)).await.is_err());
}

/// A checkpoint that was stored although its owner was told it was not: the next attempt for the
/// same position finds it, and takes it.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_was_stored_against_the_reply_is_adopted() {
    let rig = Rig::new(1, SIZE).await;
    let volume = rig.open().await;
    write(&volume, 0, &pattern(0, 64, 1)).await.unwrap();
    volume.flush().await.unwrap();
    let prefix = format!("{}checkpoints/", objblk::format::keys::volume_prefix(rig.id));
    let denied = Fault::Fail(Moment::After, objblk::store::StoreErrorKind::Denied);
    let lie = rig.faults.add(Rule::new(denied).on(&[Op::Put]).below(&*prefix).times(1));
    tokio::time::sleep(rig.options.checkpoint_after * 2).await;
    assert_eq!(lie.hits(), 1);
    write(&volume, 64, &pattern(64, 64, 2)).await.unwrap();
    volume.close().await.unwrap();
    let volume = rig.open().await;
    assert_eq!(read(&volume, 0, 64).await.unwrap(), pattern(0, 64, 1));
    assert_eq!(read(&volume, 64, 64).await.unwrap(), pattern(64, 64, 2));
}

/// With the first slot stuck, no chunk may get further ahead of it than replay looks.
#[tokio::test(start_paused = true)]
async fn chunks_do_not_run_away_from_a_stuck_slot() {
    let mut rig = Rig::new(1, SIZE).await;
    rig.options.dirty_bytes = 1 << 30;
    let volume = rig.open().await;
    let stuck = rig.faults.add(Rule::new(Fault::Hold(Moment::Before)).on(&[Op::Put]).times(1));
    let writer = {
        let volume = volume.clone();
        tokio::spawn(async move {
            for i in 0..60 {
                write(&volume, i * 512, &pattern(i * 512, 512, i)).await.unwrap();
            }
        })
    };
    stuck.held(1).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let chunks = rig.objects("log/").await.len();
    assert!((10..=objblk::log::IN_FLIGHT_MAX + 1).contains(&chunks), "{chunks} chunks are stored");
    stuck.release();
    writer.await.unwrap();
}

/// What the store refuses for a while is waited for, not an error of the disk.
#[tokio::test(start_paused = true)]
async fn reads_outlast_expired_credentials() {
    let rig = Rig::new(1, SIZE).await;
    let volume = rig.open().await;
    for leaf in 0..3u64 {
        write(&volume, leaf << 17, &pattern(leaf << 17, 64, leaf)).await.unwrap();
    }
    volume.close().await.unwrap();
    let volume = rig.open().await;
    let denied = Fault::Fail(Moment::Before, objblk::store::StoreErrorKind::Denied);
    let denied = rig.faults.add(Rule::new(denied).times(9));
    let begun = tokio::time::Instant::now();
    for leaf in 0..3u64 {
        assert_eq!(read(&volume, leaf << 17, 64).await.unwrap(), pattern(leaf << 17, 64, leaf));
    }
    assert_eq!(denied.hits(), 9);
    assert!(begun.elapsed() > Duration::from_secs(10));
    volume.close().await.unwrap();
}

/// A read that waits for the store ends when its volume does, in the map or in the data.
#[tokio::test(start_paused = true)]
async fn waiting_reads_end_with_their_volume() {
    for cached_map in [false, true] {
        let rig = Rig::new(1, SIZE).await;
        let volume = rig.open().await;
        write(&volume, 0, &pattern(0, 64, 1)).await.unwrap();
        volume.close().await.unwrap();
        let volume = rig.open().await;
        if cached_map {
            volume.block_status(range(0, 64), 1).await.unwrap();
        }
        let denied = Fault::Fail(Moment::Before, objblk::store::StoreErrorKind::Denied);
        rig.faults.add(Rule::new(denied));
        let reader = volume.clone();
        let waiting = tokio::spawn(async move { read(&reader, 0, 64).await });
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!waiting.is_finished());
        volume.abandon();
        assert!(waiting.await.unwrap().is_err());
    }
}
