//! Nothing grows with the size of the volume.

use crate::rig::{Rig, pattern, range, read, write};
use objblk::device::BlockDevice;
use objblk::store::Op;
use objblk::store::fault::{Fault, Rule};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

/// Requests that one attach of a volume of `size` with 1,000 scattered writes takes.
async fn attach_requests(size: u64) -> u64 {
    let rig = Rig::new(1, size).await;
    let volume = rig.open().await;
    let mut rng = StdRng::seed_from_u64(1);
    let places: Vec<u64> = (0..1000).map(|_| rng.random_range(0..size / 4096) * 8).collect();
    for at in &places {
        write(&volume, *at, &pattern(*at, 8, 1)).await.unwrap();
    }
    volume.close().await.unwrap();
    let counter = rig.faults.add(Rule::new(Fault::Duplicate(Duration::ZERO)).on(&Op::ALL));
    let volume = rig.open().await;
    let requests = counter.hits();
    rig.faults.clear();
    for at in places {
        assert_eq!(read(&volume, at, 8).await.unwrap(), pattern(at, 8, 1));
    }
    volume.discard(range(0, size / 512)).await.unwrap();
    volume.close().await.unwrap();
    assert!(rig.memory.total_bytes() < 8192, "{:?}", rig.objects("").await);
    requests
}

#[tokio::test(start_paused = true)]
async fn attach_takes_as_many_requests_for_64_tib_as_for_1_gib() {
    let small = attach_requests(1 << 30).await;
    let large = attach_requests(64 << 40).await;
    assert!(large <= small + 2 && large < 50, "{small} requests for 1 GiB, {large} for 64 TiB");
}
