//! What is read first, recorded once and fetched ahead the next time.

use crate::rig::{Rig, pattern, read, write};
use objblk::format::keys;
use objblk::format::profile::Profile;
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::store::{GetRange, Op, Store};
use objblk::volume::{ProfileUse, RECORD_FOR, Volume};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const SIZE: u64 = 64 << 20;
const CHUNKS: u64 = 24;
/// Sectors of a full chunk of the rig.
const CHUNK: u64 = 512;

/// A volume with something in it.
async fn filled() -> Rig {
    let mut rig = Rig::new(1, SIZE).await;
    rig.options.cache_bytes = 16 << 20;
    let volume = rig.open().await;
    for i in 0..CHUNKS {
        write(&volume, i * CHUNK, &pattern(i * CHUNK, CHUNK, 1)).await.unwrap();
    }
    volume.close().await.unwrap();
    rig
}

/// A boot: small reads all over the volume, one after the other, the same each time.
async fn boot(volume: &Volume) {
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..60 {
        let at = rng.random_range(0..CHUNKS * CHUNK / 8) * 8;
        assert!(read(volume, at, 8).await.unwrap() == pattern(at, 8, 1), "sectors {at}..");
    }
}

async fn profile(rig: &Rig) -> Option<Profile> {
    let bytes = rig.memory.get(&keys::profile(rig.id), GetRange::All).await.ok()?;
    Some(Profile::parse(&bytes).unwrap())
}

/// Every GET of the log takes 30 ms.
fn far(rig: &Rig) -> objblk::store::fault::ActiveRule {
    let trip = Duration::from_millis(30);
    let rule = Rule::new(Fault::Delay { at: Moment::After, from: trip, to: trip }).on(&[Op::Get]);
    rig.faults.add(rule.below(format!("volumes/{}/log/", rig.id)))
}

#[tokio::test(start_paused = true)]
async fn a_recorded_boot_is_fetched_ahead() {
    let mut rig = filled().await;
    rig.options.profile = Some(ProfileUse::Record);
    let volume = rig.open().await;
    let gets = far(&rig);
    let begun = Instant::now();
    boot(&volume).await;
    let (cold, cold_gets) = (begun.elapsed(), gets.hits());
    volume.close().await.unwrap();
    let recorded = profile(&rig).await.expect("a profile was stored").blocks().count();

    rig.faults.clear();
    rig.options.profile = Some(ProfileUse::Replay);
    let volume = rig.open().await;
    let gets = far(&rig);
    // What a machine does between the attach and the first read of its boot.
    sleep(Duration::from_secs(1)).await;
    let (begun, ahead) = (Instant::now(), gets.hits());
    boot(&volume).await;
    let warm = begun.elapsed();
    println!(
        "{recorded} blocks: cold {cold:?} and {cold_gets} GETs, then {warm:?} and {ahead} before"
    );
    assert_eq!(gets.hits(), ahead, "the boot had to ask the store");
    assert!(ahead <= cold_gets && warm * 10 < cold, "{warm:?} against {cold:?}");
    volume.close().await.unwrap();
}

/// Without one, with a damaged one and with that of another volume: the volume is as it is without.
#[tokio::test(start_paused = true)]
async fn a_profile_is_a_hint() {
    let mut rig = filled().await;
    rig.options.profile = Some(ProfileUse::Replay);
    let other = Profile::new(objblk::format::VolumeId::from_random([8; 16]), &[0, 1, 2]);
    let far_off = Profile::new(rig.id, &[SIZE, SIZE + 1, 1 << 33]);
    let bodies = [None, Some(b"none".to_vec()), Some(other.encode()), Some(far_off.encode())];
    for body in bodies {
        if let Some(body) = body {
            rig.memory.put(&keys::profile(rig.id), body.into()).await.unwrap();
        }
        let volume = rig.open().await;
        sleep(Duration::from_secs(1)).await;
        boot(&volume).await;
        volume.close().await.unwrap();
    }
}

/// What is read later than a boot is no part of it, and a recording is stored by itself.
#[tokio::test(start_paused = true)]
async fn a_recording_ends() {
    let mut rig = filled().await;
    rig.options.profile = Some(ProfileUse::Record);
    let volume = rig.open().await;
    read(&volume, 0, 8).await.unwrap();
    sleep(RECORD_FOR + Duration::from_secs(1)).await;
    read(&volume, 4 * CHUNK, 8).await.unwrap();
    let expected = Profile::new(rig.id, &[0]);
    assert_eq!(profile(&rig).await, Some(expected.clone()));
    volume.close().await.unwrap();
    assert_eq!(profile(&rig).await, Some(expected));
}
