//! What storing takes of the machine: puts in a directory, beside a limit that keeps what is written in its
//! own memory alone.
//!
//! The directory lies on a disk. One in memory is no cheaper: of a machine that is itself a guest each page
//! of it may be fresh from the host, and half of what objblk took of the processors went there.
//!
//! With few processors the client, the server and whoever stores what was written want the same ones. A
//! limit that stores nothing tells what the frontend costs; with these puts beside it, at the rate at which
//! objblk wrote, it tells what any disk could do here whose bytes go on to a store.

use bytes::Bytes;
use objblk::store::dir::DirStore;
use objblk::store::{Key, Store};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Bytes of an object, as many as a chunk has.
const OBJECT: usize = 4 << 20;
/// Objects that are there at once: a collector deletes what was overwritten.
const ALIVE: usize = 64;

/// For a store.
pub fn folder() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Puts, until it is dropped.
pub struct Storing {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Storing {
    /// So many bytes in a second.
    pub fn begin(rate: f64) -> Storing {
        let over = Arc::new(AtomicBool::new(false));
        let ended = over.clone();
        let thread = std::thread::spawn(move || store(rate, &ended));
        Storing { over, thread: Some(thread) }
    }
}

impl Drop for Storing {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn store(rate: f64, over: &AtomicBool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = folder();
    let store = DirStore::open(folder.path()).unwrap();
    let body = Bytes::from(crate::disk::noise(OBJECT));
    let (begun, mut done, mut alive) = (Instant::now(), 0_u64, VecDeque::new());
    while !over.load(Ordering::Relaxed) {
        if (done * OBJECT as u64) as f64 > rate * begun.elapsed().as_secs_f64() {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        let key = Key::new(&format!("beside/{done}")).unwrap();
        runtime.block_on(store.put_if_absent(&key, body.clone())).unwrap();
        alive.push_back(key);
        if alive.len() > ALIVE {
            runtime.block_on(store.delete(&[alive.pop_front().unwrap()])).unwrap();
        }
        done += 1;
    }
}
