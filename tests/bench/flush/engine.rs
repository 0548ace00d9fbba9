//! The engine alone, in this process: a volume on a store in memory, with a journal on a real disk.

use bytes::Bytes;
use objblk::clock::SystemClock;
use objblk::device::{BlockDevice, WriteFlags};
use objblk::format::volume::{EpochObject, VolumeObject};
use objblk::format::{VolumeId, features::Features, keys, pool};
use objblk::journal::uring::FileDisk;
use objblk::store::Store;
use objblk::store::memory::MemoryStore;
use objblk::units::Sector;
use objblk::volume::{Env, JournalOptions, Stores, Volume, VolumeOptions};
use std::path::Path;
use std::sync::Arc;
use tokio::runtime::Runtime;

pub struct Engine {
    runtime: Runtime,
    volume: Volume,
}

impl Engine {
    /// A volume of `size` bytes whose journal is the new file `journal` of as many as are said.
    pub fn new((size, journal_size): (u64, u64), journal: &Path) -> Engine {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).enable_all().build().unwrap();
        let disk = Arc::new(FileDisk::create(journal, journal_size).unwrap());
        let handle = runtime.handle().clone();
        let volume = runtime.block_on(async {
            let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
            let id = VolumeId::from_random([7; 16]);
            let description = VolumeObject {
                version: 1,
                id,
                size,
                block_size: 512,
                chunk_size: 4 << 20,
                features: Features::default(),
                created_at_ms: 0,
                ancestors: Vec::new(),
                source: None,
                mac: None,
            };
            let body = Bytes::from(pool::encode_json(&description));
            store.put_if_absent(&keys::volume(id), body).await.unwrap();
            let env = Env { runtime: handle, clock: Arc::new(SystemClock) };
            let stores = Stores::one(store);
            let journal = Some(JournalOptions { disk, max_lag_bytes: None, max_lag: None });
            let options = VolumeOptions { journal, ..VolumeOptions::default() };
            Volume::open(env, stores, id, owner(), options).await.unwrap()
        });
        Engine { runtime, volume }
    }

    /// One write and a flush.
    pub fn write_and_flush(&self, sector: u64, data: &[u8]) {
        self.runtime.block_on(async {
            self.volume.write(Sector(sector), data, WriteFlags::default()).await.unwrap();
            self.volume.flush().await.unwrap();
        });
    }
}

fn owner() -> EpochObject {
    EpochObject {
        host: "bench".into(),
        boot_id: "boot".into(),
        pid: 1,
        pid_start: 0,
        claimed_at_ms: 0,
        nonce: "1".into(),
        journal: None,
    }
}
