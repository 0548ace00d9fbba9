//! Deleting without clocks: neither a late claimant nor a deposed owner destroys what is live.

use crate::rig::{Rig, pattern, read, write};
use bytes::Bytes;
use objblk::device::BlockDevice;
use objblk::error::ErrorKind;
use objblk::format::keys;
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::store::{Op, Store};
use objblk::units::Epoch;
use objblk::volume::Mode;
use std::sync::Arc;

const SIZE: u64 = 64 << 20;

/// A claimant stands still in its replay; a later one takes over, overwrites all and deletes the
/// slots that the first is about to read. What it takes for the end of the log is a hole.
#[tokio::test(start_paused = true)]
async fn a_claimant_that_comes_back_late_gives_way() {
    let mut rig = Rig::new(1, SIZE).await;
    (rig.options.checkpoint_slots, rig.options.checkpoint_extents) = (1000, 100_000);
    let first = rig.open().await;
    for i in 0..4 {
        write(&first, i * 8, &pattern(i * 8, 8, 1)).await.unwrap();
        first.flush().await.unwrap();
    }
    first.abandon();
    let rig = Arc::new(rig);
    let log = format!("{}log/", keys::volume_prefix(rig.id));
    let reads = Rule::new(Fault::Hold(Moment::Before)).on(&[Op::Get]).below(log).times(32);
    let held = rig.faults.add(reads);
    let late = {
        let rig = rig.clone();
        tokio::spawn(async move { rig.open_as(2, Mode::ReadWrite { takeover: true }).await })
    };
    held.held(32).await;
    let owner = rig.take_over(3).await;
    write(&owner, 0, &pattern(0, 32, 3)).await.unwrap();
    owner.close().await.unwrap();
    let owner = rig.open().await;
    write(&owner, 32, &pattern(32, 8, 4)).await.unwrap();
    owner.flush().await.unwrap();
    assert!(!late.is_finished());
    held.release();
    let refused = late.await.unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    write(&owner, 40, &pattern(40, 8, 5)).await.unwrap();
    owner.close().await.unwrap();
    let owner = rig.open().await;
    assert_eq!(read(&owner, 0, 32).await.unwrap(), pattern(0, 32, 3));
    assert_eq!(read(&owner, 32, 8).await.unwrap(), pattern(32, 8, 4));
    assert_eq!(read(&owner, 40, 8).await.unwrap(), pattern(40, 8, 5));
}

/// Once the next epoch is claimed, its claimant may be replaying from an older checkpoint: the
/// owner goes on, but deletes nothing more.
#[tokio::test(start_paused = true)]
async fn an_owner_with_a_rival_deletes_nothing() {
    for rival in [false, true] {
        let rig = Rig::new(1, SIZE).await;
        let volume = rig.open().await;
        write(&volume, 0, &pattern(0, 8, 1)).await.unwrap();
        volume.flush().await.unwrap();
        let slots = rig.objects("log/").await;
        if rival {
            let claim = keys::epoch(rig.id, Epoch(2));
            rig.memory.put_if_absent(&claim, Bytes::from_static(b"{}")).await.unwrap();
        }
        write(&volume, 0, &pattern(0, 8, 2)).await.unwrap();
        volume.flush().await.unwrap();
        tokio::time::sleep(rig.options.checkpoint_after * 3).await;
        assert!(!rig.objects("checkpoints/").await.is_empty());
        let left = rig.objects("log/").await;
        assert_eq!(slots.iter().all(|slot| left.contains(slot)), rival, "rival: {rival}");
    }
}
