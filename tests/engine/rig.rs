//! A pool of one volume on a memory store with faults, and the byte array it must equal.

use bytes::Bytes;
use objblk::clock::SystemClock;
use objblk::device::{BlockDevice, DeviceError, WriteFlags};
use objblk::error::Result;
use objblk::format::frame::Compression;
use objblk::format::key_slots::{KEY_SLOTS_UNSIGNED, KeySlots};
use objblk::format::volume::{EpochObject, VolumeObject};
use objblk::format::{VolumeId, features::Features, keys, pool};
use objblk::seal::{Cost, Keyring, Material, SealStore, Secret, VolumeKey, new_slot};
use objblk::store::fault::{FaultHandle, FaultStore};
use objblk::store::memory::MemoryStore;
use objblk::store::retry::{RetryPolicy, RetryStore};
use objblk::store::{GetRange, Store, list_all};
use objblk::units::{Sector, SectorCount, SectorRange};
use objblk::volume::{Env, Mode, Stores, Volume, VolumeOptions};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::sync::Arc;
use std::time::Duration;

pub const CHUNK: u64 = 256 << 10;

pub struct Rig {
    pub memory: MemoryStore,
    pub faults: FaultHandle,
    pub store: Arc<dyn Store>,
    pub id: VolumeId,
    pub options: VolumeOptions,
}

pub fn range(start: u64, len: u64) -> SectorRange {
    SectorRange::new(Sector(start), SectorCount(len)).unwrap()
}

pub fn owner(pid: u32) -> EpochObject {
    EpochObject {
        host: "rig".into(),
        boot_id: "boot".into(),
        pid,
        pid_start: 0,
        claimed_at_ms: 0,
        nonce: format!("{pid:x}"),
        journal: None,
    }
}

impl Rig {
    pub async fn new(seed: u64, size: u64) -> Rig {
        Rig::with(seed, size, Compression::None).await
    }

    /// As [`Rig::new`]; every other one is of a compressed volume, every third one of an encrypted one.
    pub async fn any(seed: u64, size: u64) -> Rig {
        let all = [Compression::None, Compression::Lz4, Compression::None, Compression::Zstd(1)];
        let compression = all[(seed % 4) as usize];
        match seed % 3 {
            1 => Rig::encrypted(seed, size, compression).await,
            _ => Rig::with(seed, size, compression).await,
        }
    }

    /// As [`Rig::with`], of an encrypted volume: the store seals, the memory below has what is sealed.
    pub async fn encrypted(seed: u64, size: u64, compression: Compression) -> Rig {
        let rig = Rig::with(seed, size, compression).await;
        let ring = Arc::new(Keyring::default());
        ring.add([rig.id], VolumeKey::new([3; 32]));
        let random = StdRng::seed_from_u64(seed + 1);
        let store = Arc::new(SealStore::new(rig.store.clone(), ring, random));
        let body = rig.object(keys::volume(rig.id).as_str()).await;
        let mut description = VolumeObject::parse(&body).unwrap();
        description.features.incompat |= Features::ENCRYPTED;
        rig.replace(keys::volume(rig.id).as_str(), pool::encode_json(&description)).await;
        let material = Material::Bytes(Secret::new(vec![5; 32]));
        let (key, cost) = (VolumeKey::new([3; 32]), Cost::default());
        let slot = new_slot(&key, [1; 16], (0, String::new(), 0), &material, cost).unwrap();
        let slots = KeySlots { version: KEY_SLOTS_UNSIGNED, key: [1; 16], slots: vec![slot] };
        rig.replace(keys::key_set(rig.id, 0).as_str(), pool::encode_json(&slots)).await;
        Rig { store, ..rig }
    }

    pub async fn with(seed: u64, size: u64, compression: Compression) -> Rig {
        let memory = MemoryStore::new();
        let faulty = FaultStore::new(Arc::new(memory.clone()), seed);
        let faults = faulty.handle();
        let policy = RetryPolicy {
            first_delay: Duration::from_millis(10),
            max_delay: Duration::from_millis(200),
            deadline: None,
            attempt_timeout: Duration::from_secs(5),
        };
        let rng = StdRng::seed_from_u64(seed);
        let store = Arc::new(RetryStore::new(Arc::new(faulty), policy, rng));
        let id = VolumeId::from_random([7; 16]);
        let description = VolumeObject {
            version: 1,
            id,
            size,
            block_size: 512,
            chunk_size: CHUNK,
            features: Features::default().compressed(compression),
            created_at_ms: 0,
            ancestors: Vec::new(),
            source: None,
            mac: None,
        };
        let body = Bytes::from(pool::encode_json(&description));
        memory.put_if_absent(&keys::volume(id), body).await.unwrap();
        let options = VolumeOptions {
            cache_bytes: 1 << 20,
            dirty_bytes: 1 << 20,
            checkpoint_extents: 64,
            checkpoint_slots: 16,
            ..VolumeOptions::default()
        };
        Rig { memory, faults, store, id, options }
    }

    pub async fn open_as(&self, pid: u32, mode: Mode) -> Result<Volume> {
        self.open_with(pid, VolumeOptions { mode, ..self.options.clone() }).await
    }

    pub async fn open_with(&self, pid: u32, options: VolumeOptions) -> Result<Volume> {
        let clock = Arc::new(SystemClock);
        let env = Env { runtime: tokio::runtime::Handle::current(), clock };
        let stores = Stores::one(self.store.clone());
        Volume::open(env, stores, self.id, owner(pid), options).await
    }

    pub async fn open(&self) -> Volume {
        self.open_as(1, Mode::ReadWrite { takeover: false }).await.unwrap()
    }

    pub async fn take_over(&self, pid: u32) -> Volume {
        self.open_as(pid, Mode::ReadWrite { takeover: true }).await.unwrap()
    }

    /// The same pool on a host without journal and mirror.
    pub fn memory_only(&self) -> Rig {
        let options = VolumeOptions { journal: None, mirror: None, ..self.options.clone() };
        let (memory, faults) = (self.memory.clone(), self.faults.clone());
        Rig { memory, faults, store: self.store.clone(), id: self.id, options }
    }

    /// Names of the objects below `part` of the volume.
    pub async fn objects(&self, part: &str) -> Vec<String> {
        let prefix = format!("{}{part}", keys::volume_prefix(self.id));
        let all = list_all(&self.memory, &prefix).await.unwrap();
        all.into_iter().map(|o| o.key.as_str().to_owned()).collect()
    }

    pub async fn object(&self, name: &str) -> Bytes {
        let key = objblk::store::Key::new(name).unwrap();
        self.memory.get(&key, GetRange::All).await.unwrap()
    }

    pub async fn replace(&self, name: &str, body: Vec<u8>) {
        let key = objblk::store::Key::new(name).unwrap();
        self.memory.put(&key, body.into()).await.unwrap();
    }
}

pub async fn write(
    volume: &Volume,
    start: u64,
    data: &[u8],
) -> std::result::Result<(), DeviceError> {
    volume.write(Sector(start), data, WriteFlags::default()).await
}

pub async fn read(
    volume: &Volume,
    start: u64,
    sectors: u64,
) -> std::result::Result<Vec<u8>, DeviceError> {
    let mut buf = vec![0xee; sectors as usize * 512];
    volume.read(Sector(start), &mut buf).await?;
    Ok(buf)
}

/// `sectors` of data that tell their position and `stamp`.
pub fn pattern(start: u64, sectors: u64, stamp: u64) -> Vec<u8> {
    let mut data = Vec::with_capacity(sectors as usize * 512);
    for sector in start..start + sectors {
        for word in 0..32u64 {
            data.extend_from_slice(
                &(stamp << 32 | word << 24 | (sector & 0xff_ffff)).to_le_bytes(),
            );
            data.extend_from_slice(&stamp.to_le_bytes());
        }
    }
    data
}
