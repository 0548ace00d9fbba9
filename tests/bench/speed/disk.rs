//! A volume in this process, on any store.

use bytes::Bytes;
use objblk::clock::SystemClock;
use objblk::format::frame::Compression;
use objblk::format::volume::{EpochObject, VolumeObject};
use objblk::format::{VolumeId, features::Features, keys, pool};
use objblk::store::Store;
use objblk::volume::{Env, Stores, Volume, VolumeOptions};
use rand::RngCore;
use std::sync::Arc;
use tokio::runtime::{Handle, Runtime};

pub const PAGE: usize = 4096;
pub const MIB: u64 = 1 << 20;

/// A store and what runs on it.
pub struct Ground {
    pub runtime: Runtime,
    pub store: Arc<dyn Store>,
}

impl Ground {
    /// As many threads as objblk itself has.
    pub fn runtime() -> Runtime {
        tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
    }

    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Makes a volume of `size` bytes.
    pub fn create(&self, size: u64) -> VolumeId {
        self.create_with(size, Compression::None)
    }

    pub fn create_with(&self, size: u64, compression: Compression) -> VolumeId {
        let id = VolumeId::from_random(rand::random());
        let description = VolumeObject {
            version: 1,
            id,
            size,
            block_size: 512,
            chunk_size: 4 * MIB,
            features: Features::default().compressed(compression),
            created_at_ms: 0,
            ancestors: Vec::new(),
            source: None,
            mac: None,
        };
        let body = Bytes::from(pool::encode_json(&description));
        self.wait(self.store.put_if_absent(&keys::volume(id), body)).unwrap();
        id
    }

    /// Opens it with these settings.
    pub fn open(&self, id: VolumeId, options: VolumeOptions) -> Volume {
        let handle: Handle = self.runtime.handle().clone();
        let env = Env { runtime: handle, clock: Arc::new(SystemClock) };
        let owner = EpochObject {
            host: "bench".into(),
            boot_id: "boot".into(),
            pid: 1,
            pid_start: 0,
            claimed_at_ms: 0,
            nonce: format!("{}", rand::random::<u64>()),
            journal: None,
        };
        let opened = Volume::open(env, Stores::one(self.store.clone()), id, owner, options);
        self.wait(opened).unwrap()
    }
}

/// Numbers that cost next to nothing, with the same beginning each time.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        // Knuth's; the high half of it is random enough for addresses.
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 32) * end) >> 32
    }

    /// Every number below `end` once, in random order.
    pub fn shuffled(&mut self, end: u64) -> Vec<u64> {
        let mut all: Vec<u64> = (0..end).collect();
        for at in (1..all.len()).rev() {
            all.swap(at, self.below(at as u64 + 1) as usize);
        }
        all
    }
}

/// Bytes that nobody compresses.
pub fn noise(len: usize) -> Vec<u8> {
    let mut noise = vec![0; len];
    rand::rng().fill_bytes(&mut noise);
    noise
}
