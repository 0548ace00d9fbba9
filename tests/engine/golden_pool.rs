//! `tests/golden/pool-v1` is a pool as the program before compression left it: an imported volume, a
//! snapshot of it, a clone of that, and a larger size since. Every later version opens it, reads what was written,
//! and goes on with it.

use crate::compressed::examined;
use crate::rig::{owner, pattern, read, write};
use objblk::clock::SystemClock;
use objblk::device::BlockDevice;
use objblk::format::frame::Compression;
use objblk::pool::Pool;
use objblk::store::Key;
use objblk::store::Store;
use objblk::store::memory::MemoryStore;
use objblk::units::SectorCount;
use objblk::volume::{Env, Mode, Stores, Volume, VolumeOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

async fn pool() -> (MemoryStore, Pool) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pool-v1");
    let (store, mut found) = (MemoryStore::new(), Vec::new());
    files(&root, &mut found);
    for path in found {
        let key = Key::new(path.strip_prefix(&root).unwrap().to_str().unwrap()).unwrap();
        store.put(&key, std::fs::read(&path).unwrap().into()).await.unwrap();
    }
    let pool = Pool::open(Arc::new(store.clone())).await.unwrap();
    (store, pool)
}

/// What was imported: 96 sectors, then zeros.
fn image() -> Vec<u8> {
    let word = |n: u64| (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    let mut image: Vec<u8> = (0..96).flat_map(|n| word(n).repeat(64)).collect();
    image.resize(1 << 20, 0);
    image
}

async fn open(store: &MemoryStore, pool: &Pool, name: &str, snapshot: Option<&str>) -> Volume {
    let (id, _) = pool.lookup(&name.parse().unwrap()).await.unwrap();
    let (runtime, clock) = (tokio::runtime::Handle::current(), Arc::new(SystemClock));
    let mode = match snapshot {
        Some(_) => Mode::ReadOnly,
        None => Mode::ReadWrite { takeover: false },
    };
    let options =
        VolumeOptions { mode, snapshot: snapshot.map(Into::into), ..VolumeOptions::default() };
    let stores = Stores::one(Arc::new(store.clone()));
    Volume::open(Env { runtime, clock }, stores, id, owner(1), options).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_pool_of_the_version_before_compression_is_read_and_gone_on_with() {
    let (store, pool) = pool().await;
    assert!(examined(&pool).await);
    for name in ["old", "young"] {
        let (_, volume) = pool.lookup(&name.parse().unwrap()).await.unwrap();
        assert_eq!(volume.features.compression(), Compression::None);
    }
    let mut expected = image();
    for round in 0..2u64 {
        let volume = open(&store, &pool, "old", None).await;
        assert_eq!(volume.geometry().size, SectorCount(4096));
        expected.resize(2 << 20, 0);
        assert!(read(&volume, 0, 4096).await.unwrap() == expected);
        let data = pattern(8 + round, 16, 1 + round);
        write(&volume, 8 + round, &data).await.unwrap();
        expected[(8 + round) as usize * 512..][..data.len()].copy_from_slice(&data);
        volume.flush().await.unwrap();
        volume.close().await.unwrap();
    }
    let snapshot = open(&store, &pool, "old", Some("first")).await;
    assert!(read(&snapshot, 0, 2048).await.unwrap() == image());
    let clone = open(&store, &pool, "young", None).await;
    assert!(read(&clone, 0, 2048).await.unwrap() == image());
    write(&clone, 0, &pattern(0, 8, 3)).await.unwrap();
    clone.close().await.unwrap();
    assert!(examined(&pool).await);
}
