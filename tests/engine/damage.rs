//! Damage in the store: an error for exactly the sectors concerned, never a wrong byte.

use crate::rig::{Rig, pattern, read, write};
use objblk::device::{BlockDevice, DeviceError};
use objblk::error::ErrorKind;
use objblk::store::fault::{Fault, Rule};
use objblk::store::{Key, Op, Store};
use objblk::volume::{Mode, Volume};

const SIZE: u64 = 64 << 20;
/// Sectors of a full chunk of the rig.
const CHUNK: u64 = 512;
const CHUNKS: u64 = 8;

/// A closed volume of full chunks, and the names of their objects in order.
async fn filled() -> (Rig, Vec<String>) {
    let rig = Rig::new(1, SIZE).await;
    let volume = rig.open().await;
    for i in 0..CHUNKS {
        write(&volume, i * CHUNK, &pattern(i * CHUNK, CHUNK, i)).await.unwrap();
    }
    volume.close().await.unwrap();
    let mut chunks = rig.objects("log/").await;
    chunks.sort_by_key(|name| name.rsplit('/').next().map(str::to_owned));
    // The first is the fence with which the owner began: it stays for good.
    chunks.remove(0);
    assert_eq!(chunks.len() as u64, CHUNKS);
    (rig, chunks)
}

/// Every group of 8 sectors reads right, but those in `bad`, which are an error.
async fn expect_bad(volume: &Volume, bad: std::ops::Range<u64>) {
    for start in (0..CHUNKS * CHUNK).step_by(8) {
        let got = read(volume, start, 8).await;
        if bad.contains(&start) {
            assert!(matches!(got, Err(DeviceError::Io(_))), "sectors {start}.. are not readable");
        } else {
            let expected = pattern(start, 8, start / CHUNK);
            assert!(got.unwrap() == expected, "sectors {start}.. are intact");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_hurts_one_frame() {
    let (rig, chunks) = filled().await;
    let mut body = rig.object(&chunks[3]).await.to_vec();
    let frame_two = body.len() - 2 * (64 << 10);
    body[frame_two + 77] ^= 1;
    rig.replace(&chunks[3], body).await;
    let volume = rig.open().await;
    expect_bad(&volume, 3 * CHUNK + 256..3 * CHUNK + 384).await;
}

#[tokio::test(start_paused = true)]
async fn a_truncated_chunk_hurts_what_was_cut_off() {
    let (rig, chunks) = filled().await;
    let mut body = rig.object(&chunks[0]).await.to_vec();
    body.truncate(body.len() - (64 << 10) - 1);
    rig.replace(&chunks[0], body).await;
    let volume = rig.open().await;
    expect_bad(&volume, 256..512).await;
}

/// Of an object without bytes no range can be read: that is no refusal that would pass.
#[tokio::test(start_paused = true)]
async fn an_emptied_chunk_hurts_its_sectors() {
    let (rig, chunks) = filled().await;
    rig.replace(&chunks[4], Vec::new()).await;
    let volume = rig.open().await;
    let read = expect_bad(&volume, 4 * CHUNK..5 * CHUNK);
    let read = tokio::time::timeout(std::time::Duration::from_secs(60), read).await;
    assert!(read.is_ok(), "the read hangs");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_chunk_hurts_its_sectors() {
    let (rig, chunks) = filled().await;
    rig.memory.delete(&[Key::new(&chunks[5]).unwrap()]).await.unwrap();
    let volume = rig.open().await;
    expect_bad(&volume, 5 * CHUNK..6 * CHUNK).await;
}

/// It is not taken for a volume to which hardly anything was written: what shows that is behind the first slot
/// that the collector or a checkpoint has deleted, far behind it in its term or in a later one.
#[tokio::test(start_paused = true)]
async fn a_lost_checkpoint_is_no_new_volume() {
    for (rounds, terms) in [(80, 1), (10, 3)] {
        let rig = Rig::new(1, SIZE).await;
        for term in 0..terms {
            let volume = rig.open().await;
            for i in 0..rounds {
                write(&volume, 0, &pattern(0, CHUNK, term * rounds + i)).await.unwrap();
                volume.flush().await.unwrap();
            }
            volume.close().await.unwrap();
        }
        for name in rig.objects("checkpoints/").await {
            rig.memory.delete(&[Key::new(&name).unwrap()]).await.unwrap();
        }
        let before = rig.objects("log/").await;
        let mode = Mode::ReadWrite { takeover: true };
        let error = rig.open_as(2, mode).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains("has lost its checkpoint"), "{error}");
        assert_eq!(rig.objects("log/").await, before, "no fence was put into it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_swapped_chunk_is_recognised() {
    let (rig, chunks) = filled().await;
    let other = rig.object(&chunks[2]).await.to_vec();
    rig.replace(&chunks[1], other).await;
    let volume = rig.open().await;
    expect_bad(&volume, CHUNK..2 * CHUNK).await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_checkpoint_refuses_the_volume() {
    let (rig, _) = filled().await;
    let name = rig.objects("checkpoints/").await.remove(0);
    for at in [0, 9, 40, 100] {
        let intact = rig.object(&name).await.to_vec();
        let mut body = intact.clone();
        body[at] ^= 0x10;
        rig.replace(&name, body).await;
        let error = rig.open_as(1, Mode::ReadWrite { takeover: false }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains(&name), "{error}");
        let error = objblk::volume::ownership(&*rig.store, rig.id).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        rig.replace(&name, intact).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_leaf_is_an_error_for_its_span() {
    let (rig, _) = filled().await;
    let name = rig.objects("map/").await.remove(0);
    let mut body = rig.object(&name).await.to_vec();
    body[60] ^= 1;
    rig.replace(&name, body).await;
    let volume = rig.open().await;
    expect_bad(&volume, 0..CHUNKS * CHUNK).await;
    assert_eq!(read(&volume, 1 << 17, 8).await.unwrap(), vec![0; 4096]);
}

/// What the store has is whole: one answer that is not changes nothing, for a read and for a checkpoint.
#[tokio::test(start_paused = true)]
async fn a_leaf_damaged_on_its_way_is_read_again() {
    let (rig, _) = filled().await;
    for fault in [Fault::FlipBit, Fault::Truncate] {
        let volume = rig.open().await;
        let flip = || {
            let rule = Rule::new(fault.clone()).on(&[Op::Get]).times(1);
            rig.faults.add(rule.below(format!("volumes/{}/map/", rig.id)))
        };
        // The map page; then the leaf, for the read and for the checkpoint.
        let first = flip();
        let found = read(&volume, 0, 8).await.unwrap();
        assert_eq!((first.hits(), found.len()), (1, 4096));
        volume.close().await.unwrap();
        let volume = rig.open().await;
        write(&volume, 0, &found).await.unwrap();
        let second = flip();
        volume.close().await.unwrap();
        assert_eq!(second.hits(), 1);
        rig.faults.clear();
    }
}

/// A committed chunk that vanished from the tail of the log is damage, not the log's end.
#[tokio::test(start_paused = true)]
async fn a_slot_lost_from_the_tail_is_noticed() {
    let mut rig = Rig::new(1, SIZE).await;
    rig.options.checkpoint_slots = 1000;
    rig.options.checkpoint_extents = 100_000;
    let volume = rig.open().await;
    for i in 0..CHUNKS {
        write(&volume, i * CHUNK, &pattern(i * CHUNK, 8, i)).await.unwrap();
        objblk::device::BlockDevice::flush(&volume).await.unwrap();
    }
    volume.abandon();
    let mut chunks = rig.objects("log/").await;
    chunks.sort_by_key(|name| name.rsplit('/').next().map(str::to_owned));
    // The first is the fence of the first owner.
    rig.memory.delete(&[Key::new(&chunks[4]).unwrap()]).await.unwrap();
    let error = rig.open_as(2, Mode::ReadWrite { takeover: true }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains(&chunks[4]), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_damaged_slot_in_the_tail_refuses_the_volume() {
    let mut rig = Rig::new(1, SIZE).await;
    rig.options.checkpoint_slots = 1000;
    let volume = rig.open().await;
    write(&volume, 0, &pattern(0, 8, 1)).await.unwrap();
    objblk::device::BlockDevice::flush(&volume).await.unwrap();
    volume.abandon();
    for name in rig.objects("log/").await {
        let intact = rig.object(&name).await.to_vec();
        for cut in [0, 7, 20, 63] {
            rig.replace(&name, intact[..cut].to_vec()).await;
            let error = rig.open_as(2, Mode::ReadWrite { takeover: true }).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{name} cut at {cut}: {error}");
        }
        rig.replace(&name, intact).await;
    }
    let volume = rig.take_over(3).await;
    assert_eq!(read(&volume, 0, 8).await.unwrap(), pattern(0, 8, 1));
}
