//! Requests that may take so long and no longer.

use crate::rig::{CHUNK, Rig, pattern, range, read, write};
use objblk::device::{BlockDevice, DeviceError, DeviceResult, WriteFlags};
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::store::{Op, StoreErrorKind};
use objblk::units::Sector;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::time::Duration;
use tokio::time::Instant;

const SIZE: u64 = 64 << 20;
const LIMIT: Duration = Duration::from_secs(3);

/// Fails if `request` does not fail by its time limit, saying what it waited for.
async fn times_out<T: std::fmt::Debug>(
    request: impl Future<Output = DeviceResult<T>>,
    cause: &str,
) {
    let begun = Instant::now();
    let error = request.await.unwrap_err();
    assert!((LIMIT..LIMIT * 2).contains(&begun.elapsed()), "{:?}: {error}", begun.elapsed());
    match &error {
        DeviceError::Io(why) => assert!(why.contains(cause) && why.contains("3s"), "{why}"),
        other => panic!("{other}"),
    }
    assert_eq!(error.errno(), nix::errno::Errno::EIO);
}

#[tokio::test(start_paused = true)]
async fn requests_time_out_and_the_device_heals_by_itself() {
    let mut rig = Rig::new(1, SIZE).await;
    rig.options.io_timeout = Some(LIMIT);
    rig.options.cache_bytes = 0;
    let volume = rig.open().await;
    let chunk = CHUNK / 512;
    write(&volume, 0, &pattern(0, 64, 1)).await.unwrap();
    volume.flush().await.unwrap();
    rig.faults.set_down(true);
    // Memory is served, and takes writes within the budget.
    write(&volume, 1000, &pattern(1000, 64, 2)).await.unwrap();
    assert_eq!(read(&volume, 1000, 64).await.unwrap(), pattern(1000, 64, 2));
    times_out(read(&volume, 0, 64), "a read has waited 3s for the store to answer").await;
    times_out(volume.flush(), "a flush has waited 3s for what was written to be stored").await;
    let fua = volume.write(Sector(8), &[7; 512], WriteFlags { fua: true });
    times_out(fua, "a flush has waited").await;
    assert_eq!(read(&volume, 8, 1).await.unwrap(), [7; 512], "it happened all the same");
    let mut at = 2000;
    while volume.status().dirty_bytes < rig.options.dirty_bytes {
        write(&volume, at, &pattern(at, chunk, 3)).await.unwrap();
        at += chunk;
    }
    let room = "for the store to make room";
    times_out(write(&volume, at, &pattern(at, chunk, 3)), room).await;
    times_out(volume.discard(range(0, 8)), room).await;
    assert!(volume.status().failure.is_none());

    rig.faults.set_down(false);
    volume.flush().await.unwrap();
    assert_eq!(volume.status().dirty_bytes, 0);
    assert_eq!(read(&volume, 16, 48).await.unwrap(), pattern(16, 48, 1));
    write(&volume, at, &pattern(at, chunk, 4)).await.unwrap();
    volume.close().await.unwrap();
    let again = rig.open().await;
    assert_eq!(read(&again, 1000, 64).await.unwrap(), pattern(1000, 64, 2));
    assert_eq!(read(&again, at, chunk).await.unwrap(), pattern(at, chunk, 4));
    assert_eq!(read(&again, 2000, chunk).await.unwrap(), pattern(2000, chunk, 3));
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_requests_wait_for_as_long_as_it_takes() {
    let rig = Rig::new(1, SIZE).await;
    let volume = rig.open().await;
    rig.faults.set_down(true);
    write(&volume, 0, &pattern(0, 64, 1)).await.unwrap();
    let begun = Instant::now();
    let day = Duration::from_secs(24 * 3600);
    let (flushed, ()) = tokio::join!(volume.flush(), async {
        tokio::time::sleep(day).await;
        rig.faults.set_down(false);
    });
    flushed.unwrap();
    assert!((day..day + LIMIT).contains(&begun.elapsed()));
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls a future on this thread, without any executor.
fn alone<T>(future: impl Future<Output = T>) -> T {
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(done) => return done,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Queue threads of frontends are none of tokio's.
#[test]
fn timers_need_no_tokio_of_their_own() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (rig, volume) = runtime.block_on(async {
        let mut rig = Rig::new(1, SIZE).await;
        rig.options.io_timeout = Some(Duration::from_millis(200));
        let volume = rig.open().await;
        (rig, volume)
    });
    rig.faults.set_down(true);
    let outcome = std::thread::spawn(move || {
        alone(async {
            write(&volume, 0, &pattern(0, 8, 1)).await.unwrap();
            let error = volume.flush().await.unwrap_err();
            rig.faults.set_down(false);
            volume.flush().await.unwrap_or_else(|_| panic!("it did not heal"));
            error
        })
    });
    let error = outcome.join().unwrap();
    assert!(error.to_string().contains("has waited 200ms"), "{error}");
}

/// What is refused while the map is loaded is tried again after a pause, which is a timer too.
#[test]
fn a_refused_map_load_needs_no_tokio_of_its_own() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (rig, volume) = runtime.block_on(async {
        let rig = Rig::new(1, SIZE).await;
        let volume = rig.open().await;
        write(&volume, 0, &pattern(0, 8, 1)).await.unwrap();
        volume.close().await.unwrap();
        let volume = rig.open().await;
        (rig, volume)
    });
    let refused = Fault::Fail(Moment::Before, StoreErrorKind::Denied);
    let refused = rig.faults.add(Rule::new(refused).on(&[Op::Get]).times(1));
    let reader = std::thread::spawn(move || alone(read(&volume, 0, 8)));
    assert_eq!(reader.join().unwrap().unwrap(), pattern(0, 8, 1));
    assert_eq!(refused.hits(), 1);
}
