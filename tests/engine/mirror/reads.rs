//! Which of two copies is read: the faster one, of what never changes, and none that is not complete.

use super::damaged::filled;
use super::*;
use objblk::store::Key;
use tokio::time::Instant;

/// Bytes from the middle of a chunk.
const PART: GetRange = GetRange::Part { offset: 8192, len: 4096 };

/// Reads the same part of the volume's chunks so often. How many of the reads each store was asked for, and the longest time
/// that one took.
async fn reads(process: &Process, chunks: &[Key], times: usize) -> ([u64; 2], Duration) {
    let store = process.mirror.store(Asker::Live);
    let count = || [HOME, FAR].map(|place| process.reach.reads[place].load(SeqCst));
    let (before, mut longest) = (count(), Duration::ZERO);
    for nth in 0..times {
        let begun = Instant::now();
        let bytes = store.get(&chunks[nth % chunks.len()], PART).await.unwrap();
        assert_eq!(bytes.len(), 4096);
        longest = longest.max(begun.elapsed());
    }
    // What was asked for twice is dropped only once there is an answer.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let now = count();
    ([HOME, FAR].map(|place| now[place] - before[place]), longest)
}

/// A volume with a process that reads it, and its chunks.
async fn read_by() -> (World, Process, Vec<Key>) {
    let world = filled().await;
    let process = world.now().await;
    let chunks = chunks_of(&world, &process).await;
    (world, process, chunks)
}

async fn chunks_of(world: &World, process: &Process) -> Vec<Key> {
    let store = process.mirror.store(Asker::Live);
    let all = list_all(&*store, &keys::log(world.id)).await.unwrap();
    let chunks: Vec<Key> =
        all.into_iter().filter(|object| object.size > 16 << 10).map(|object| object.key).collect();
    assert!(chunks.len() > 4, "{chunks:?}");
    chunks
}

fn slow(process: &Process, ms: [u64; 2]) {
    process.reach.slow[HOME].store(ms[0], SeqCst);
    process.reach.slow[FAR].store(ms[1], SeqCst);
}

#[tokio::test(start_paused = true)]
async fn the_faster_copy_is_read_and_one_that_recovers_is_used_again() {
    let (world, process, chunks) = read_by().await;
    slow(&process, [5, 6]);
    let ([home, far], _) = reads(&process, &chunks, 100).await;
    assert!(home >= 95 && far >= 1, "{home} and {far}");
    slow(&process, [400, 6]);
    let ([home, far], longest) = reads(&process, &chunks, 60).await;
    assert!(home <= 5 && far >= 58, "{home} and {far}");
    assert!(longest <= Duration::from_millis(60), "{longest:?}");
    // It is noticed that it is the faster one again.
    slow(&process, [5, 60]);
    reads(&process, &chunks, 80).await;
    let ([home, far], _) = reads(&process, &chunks, 60).await;
    assert!(home >= 58 && far <= 2, "{home} and {far}");
    let pace = process.mirror.pace(world.id).unwrap();
    assert!(pace.iter().all(|pace| pace.in_sync && pace.answered > 20), "{pace:?}");
    let mean = pace[HOME].small_ms.unwrap();
    assert!((4.0..10.0).contains(&mean) && pace[HOME].large_ms.is_none(), "{pace:?}");
    eprintln!("{pace:?}");
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_not_complete_is_never_read() {
    let (world, process, chunks) = read_by().await;
    // The far one is preferred, and is left out by somebody else.
    slow(&process, [300, 5]);
    let ([_, far], _) = reads(&process, &chunks, 30).await;
    assert!(far >= 28, "{far}");
    let other = world.now().await;
    let volume = other.open(world.id, 20).await.unwrap();
    other.reach.set(FAR, false);
    assert!(put(&volume, 0, 2, 60).await);
    assert_eq!(other.in_sync(world.id).await, [StoreId::HOME]);
    // It goes, and the store is never made complete.
    volume.abandon();
    other.reach.left.store(-1, SeqCst);
    assert_eq!(process.in_sync(world.id).await, [StoreId::HOME]);
    let chunks = chunks_of(&world, &process).await;
    let ([home, far], _) = reads(&process, &chunks, 70).await;
    assert_eq!((home, far), (70, 0));
    let pace = process.mirror.pace(world.id).unwrap();
    assert!(pace[HOME].in_sync && !pace[FAR].in_sync, "{pace:?}");
}

/// The one that decides has the last word about what the other one lacks, and the other one answers for one that is away.
#[tokio::test(start_paused = true)]
async fn a_read_whose_copy_fails_is_answered_by_the_other() {
    for away in [false, true] {
        let (world, process, chunks) = read_by().await;
        slow(&process, [100, 5]);
        let ([_, far], _) = reads(&process, &chunks, 20).await;
        assert!(far >= 18, "{far}");
        if away {
            process.reach.set(FAR, false);
        } else {
            let all = list_all(&world.places[FAR], &keys::mirror(world.id)).await.unwrap();
            let logs = all.into_iter().map(|object| object.key);
            let logs: Vec<Key> = logs.filter(|key| key.as_str().contains("/log/")).collect();
            assert!(logs.len() >= chunks.len());
            world.places[FAR].delete(&logs).await.unwrap();
        }
        let ([home, _], longest) = reads(&process, &chunks, 20).await;
        assert_eq!(home, 20, "away: {away}");
        assert!(longest < Duration::from_millis(250), "{longest:?}");
        // What is in neither is missing, whichever is asked.
        let store = process.mirror.store(Asker::Setup);
        let none = keys::slot(world.id, objblk::units::Seq(999_999), objblk::units::Epoch(1));
        process.reach.set(FAR, true);
        for _ in 0..3 {
            let missing = store.get(&none, PART).await.unwrap_err();
            assert_eq!(missing.kind, StoreErrorKind::NotFound);
        }
    }
}
