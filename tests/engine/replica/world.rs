//! A source, its replica in another pool, and whoever ships: a process that may die at any request.

use super::*;

pub const SIZE: u64 = 2 << 20;
pub const BLOCK: u64 = 8;
pub const BLOCKS: u64 = SIZE / 512 / BLOCK;
pub const TAKE: Mode = Mode::ReadWrite { takeover: true };

/// What happens meanwhile, once.
pub type Meanwhile = Arc<Mutex<Option<BoxFuture<'static, ()>>>>;

/// A store as a process reaches it that dies after so many requests, before or after the last took effect; in the middle of
/// which something else may happen.
#[derive(Clone)]
pub struct Mortal {
    pub inner: Arc<dyn Store>,
    pub left: Arc<AtomicI64>,
    pub late: bool,
    pub meanwhile: Meanwhile,
}

impl fmt::Debug for Mortal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mortal({:?})", self.inner)
    }
}

impl Mortal {
    pub async fn pass<T>(
        &self,
        op: Op,
        request: impl Future<Output = StoreResult<T>>,
    ) -> StoreResult<T> {
        let dead = || StoreError::new(StoreErrorKind::Unavailable, op, "mem://", "dead");
        match self.left.fetch_sub(1, SeqCst) {
            1.. => request.await,
            0 if self.late => {
                let _ = request.await;
                Err(dead())
            }
            _ => Err(dead()),
        }
    }
}

#[async_trait]
impl Store for Mortal {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        if key.as_str().contains("/log/") {
            // Others wait for its end.
            let mut meanwhile = self.meanwhile.lock().await;
            if let Some(meanwhile) = meanwhile.take() {
                meanwhile.await;
            }
        }
        self.pass(Op::Get, self.inner.get(key, range)).await
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        self.pass(Op::Put, self.inner.put_if_absent(key, body)).await
    }

    async fn put(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        self.pass(Op::Put, self.inner.put(key, body)).await
    }

    async fn delete(&self, keys: &[Key]) -> StoreResult<()> {
        self.pass(Op::Delete, self.inner.delete(keys)).await
    }

    async fn head(&self, key: &Key) -> StoreResult<ObjectInfo> {
        self.pass(Op::Head, self.inner.head(key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> StoreResult<ListPage> {
        self.pass(Op::List, self.inner.list(prefix, after, limit)).await
    }

    fn unseals(&self, key: &Key) -> bool {
        self.inner.unseals(key)
    }
}

/// A process that ships.
pub struct Shipper {
    pub left: i64,
    pub late: bool,
    pub with_key: bool,
    pub meanwhile: Meanwhile,
}

impl Shipper {
    pub fn immortal() -> Shipper {
        Shipper { left: i64::MAX, late: false, with_key: true, meanwhile: Meanwhile::default() }
    }
}

/// A source, its replica, and what the source held after each write.
pub struct World {
    pub rig: Rig,
    pub target: MemoryStore,
    pub pool: VolumeId,
    pub rng: StdRng,
    /// The block of the write of each stamp; the first is of stamp 1.
    pub writes: Vec<u64>,
    /// The stamp that is flushed.
    pub flushed: u64,
    pub snapshots: BTreeMap<String, u64>,
    pub made: u64,
}

impl World {
    pub async fn new(seed: u64) -> World {
        let world = World::unshipped(seed).await;
        world.begin().await;
        world
    }

    /// Of a clone that does without its origin, which is gone for every other seed. What the origin held is what it
    /// began with.
    pub async fn of_clone(seed: u64) -> World {
        let mut world = World::unshipped(seed).await;
        let pool = Pool::init(world.rig.store.clone(), false).await.unwrap();
        let (origin, clone) = ("origin".parse().unwrap(), "clone".parse().unwrap());
        let named = encode_json(&NameObject { volume: world.rig.id });
        world.rig.replace(keys::name("origin").unwrap().as_str(), named).await;
        let volume = world.rig.open().await;
        world.change(&volume, 120).await;
        world.snapshot(&volume).await;
        volume.close().await.unwrap();
        let id = pool.clone_volume(&origin, "s1", &clone).await.unwrap();
        (world.made, world.snapshots) = (0, BTreeMap::new());
        let family = [std::mem::replace(&mut world.rig.id, id), id];
        if world.description().await.is_encrypted() {
            let ring = Arc::new(Keyring::default());
            ring.add(family, VolumeKey::new([3; 32]));
            let (below, random) = (Arc::new(world.rig.memory.clone()), StdRng::seed_from_u64(seed));
            world.rig.store = Arc::new(SealStore::new(below, ring, random));
        }
        let volume = world.rig.open().await;
        world.change(&volume, 20).await;
        world.flush(&volume).await;
        let refused = pool.can_replicate(&clone, &world.description().await).await.unwrap_err();
        assert!(refused.to_string().contains("objblk flatten"), "{refused}");
        world.begin().await;
        assert_eq!(world.ship_refused().await, ErrorKind::Usage, "it needs its origin");
        let mark = world.rig.memory.list(&keys::children(family[0]), None, 1).await.unwrap();
        world.rig.memory.delete(&[mark.objects[0].key.clone()]).await.unwrap();
        assert_eq!(world.ship_refused().await, ErrorKind::Usage, "whatever is known of it");
        let flattened = volume.flatten(&mut |_| ()).await.unwrap();
        assert!(flattened.done && flattened.moved_bytes > 0, "{flattened:?}");
        volume.close().await.unwrap();
        assert!(pool.can_replicate(&clone, &world.description().await).await.unwrap().is_empty());
        if seed.is_multiple_of(2) {
            let all = list_all(&world.rig.memory, &keys::volume_prefix(family[0])).await.unwrap();
            let all: Vec<Key> = all.into_iter().map(|object| object.key).collect();
            world.rig.memory.delete(&all).await.unwrap();
        }
        world.flushed = world.writes.len() as u64;
        world
    }

    pub async fn unshipped(seed: u64) -> World {
        let rig = Rig::any(seed, SIZE).await;
        let target = MemoryStore::new();
        World {
            rig,
            target,
            pool: VolumeId::from_bytes([9; 16]),
            rng: StdRng::seed_from_u64(seed),
            writes: Vec::new(),
            flushed: 0,
            snapshots: BTreeMap::new(),
            made: 0,
        }
    }

    pub async fn begin(&self) {
        Pool::init(Arc::new(self.target.clone()), false).await.unwrap();
        let (pool, volume) = (self.pool_there().await, self.description().await);
        assert!(pool.begin_replica(&name(), &volume, (self.pool, "there", &[])).await.unwrap());
    }

    pub async fn description(&self) -> VolumeObject {
        let body = self.rig.object(keys::volume(self.rig.id).as_str()).await;
        VolumeObject::parse(&body).unwrap()
    }

    /// The same with another replica.
    pub async fn fork(&self) -> World {
        let target = MemoryStore::new();
        for object in list_all(&self.target, "").await.unwrap() {
            let body = self.target.get(&object.key, GetRange::All).await.unwrap();
            target.put(&object.key, body).await.unwrap();
        }
        World {
            rig: self.rig.memory_only(),
            target,
            pool: self.pool,
            rng: self.rng.clone(),
            writes: self.writes.clone(),
            flushed: self.flushed,
            snapshots: self.snapshots.clone(),
            made: self.made,
        }
    }

    /// The replica's pool, with the key if there is one.
    pub fn there(&self) -> Arc<dyn Store> {
        let ring = Arc::new(Keyring::default());
        if self.rig.store.unseals(&keys::volume(self.rig.id)) {
            ring.add([self.rig.id], VolumeKey::new([3; 32]));
        }
        let random = StdRng::seed_from_u64(self.writes.len() as u64);
        Arc::new(SealStore::new(Arc::new(self.target.clone()), ring, random))
    }

    pub async fn pool_there(&self) -> Pool {
        Pool::open(self.there()).await.unwrap()
    }

    pub async fn state(&self) -> ReplicaObject {
        replica_state(&self.target, self.rig.id).await.unwrap().unwrap()
    }

    pub async fn way(&self, shipper: &Shipper) -> Way {
        let left = Arc::new(AtomicI64::new(shipper.left));
        let mortal = |inner: Arc<dyn Store>, meanwhile: Meanwhile| -> Arc<dyn Store> {
            Arc::new(Mortal { inner, left: left.clone(), late: shipper.late, meanwhile })
        };
        let raw = mortal(Arc::new(self.rig.memory.clone()), shipper.meanwhile.clone());
        let plain = match shipper.with_key {
            true => mortal(self.rig.store.clone(), Meanwhile::default()),
            false => raw.clone(),
        };
        let target = mortal(Arc::new(self.target.clone()), Meanwhile::default());
        let target = Place { raw: target.clone(), plain: target };
        let source = Place { raw, plain };
        let of = (self.description().await, self.pool, None);
        Way::new(of, (source, target), Arc::new(SystemClock), None)
    }

    pub async fn round(&self, shipper: &Shipper) -> Result<Round> {
        self.way(shipper).await.round().await
    }

    pub async fn ship(&self) -> Round {
        self.round(&Shipper::immortal()).await.unwrap()
    }

    pub async fn ship_refused(&self) -> ErrorKind {
        self.round(&Shipper::immortal()).await.unwrap_err().kind()
    }

    pub async fn change(&mut self, volume: &Volume, times: u64) {
        for _ in 0..times {
            let block = self.rng.random_range(0..BLOCKS);
            self.writes.push(block);
            let stamp = self.writes.len() as u64;
            let start = block * BLOCK;
            write(volume, start, &pattern(start, BLOCK, stamp)).await.unwrap();
        }
    }

    pub async fn flush(&mut self, volume: &Volume) {
        volume.flush().await.unwrap();
        self.flushed = self.writes.len() as u64;
    }

    pub async fn snapshot(&mut self, volume: &Volume) {
        self.made += 1;
        let (id, name) = (SnapshotId::from_bytes([self.made as u8; 16]), format!("s{}", self.made));
        volume.make_snapshot(id, &name).await.unwrap();
        self.flushed = self.writes.len() as u64;
        self.snapshots.insert(name, self.flushed);
    }

    pub async fn open_there(&self, options: VolumeOptions) -> Result<Volume> {
        let env = Env { runtime: tokio::runtime::Handle::current(), clock: Arc::new(SystemClock) };
        Volume::open(env, Stores::one(self.there()), self.rig.id, owner(7), options).await
    }

    pub async fn read_there(&self, snapshot: Option<String>) -> u64 {
        let options = VolumeOptions { mode: Mode::ReadOnly, snapshot, ..self.rig.options.clone() };
        let volume = self.open_there(options).await.unwrap();
        self.stamp(&volume).await
    }

    /// After which write the source held what `volume` does; it must have.
    pub async fn stamp(&self, volume: &Volume) -> u64 {
        let image = read(volume, 0, SIZE / 512).await.unwrap();
        let blocks: Vec<&[u8]> = image.chunks((BLOCK * 512) as usize).collect();
        let stamp_of = |block: &&[u8]| u64::from_le_bytes(block[8..16].try_into().unwrap());
        let newest = blocks.iter().map(stamp_of).max().unwrap();
        let mut expected = vec![0; BLOCKS as usize];
        for (block, stamp) in self.writes.iter().zip(1..=newest) {
            expected[*block as usize] = stamp;
        }
        for (number, (block, stamp)) in blocks.iter().zip(expected).enumerate() {
            let wanted = match stamp {
                0 => vec![0; (BLOCK * 512) as usize],
                stamp => pattern(number as u64 * BLOCK, BLOCK, stamp),
            };
            assert!(**block == *wanted, "block {number} of the state after write {newest}");
        }
        newest
    }

    /// The replica is whole, and is what the source was after some write, as are its snapshots.
    pub async fn check(&self) -> u64 {
        // Before that, a clone is what its origin has.
        let is_clone = self.description().await.origin().is_some();
        if is_clone && self.state().await.shipped.seen_at_ms == 0 {
            return 0;
        }
        let stamp = self.read_there(None).await;
        for entry in list_snapshots(&*self.there(), self.rig.id).await.unwrap() {
            assert_eq!(
                self.read_there(Some(entry.name.clone())).await,
                self.snapshots[&entry.name]
            );
        }
        // Key slots come with the first round.
        if self.state().await.shipped.seen_at_ms == 0 {
            return stamp;
        }
        let report = Doctor::new(&self.pool_there().await, true, None).check_all().await.unwrap();
        assert!(report.clean, "{report:?}");
        stamp
    }

    pub async fn promote(&self) -> ReplicaObject {
        let (state, is_new) = self.pool_there().await.promote(&name(), "far").await.unwrap();
        assert!(is_new);
        state
    }

    /// Everything that a sender may still have on its way.
    pub async fn put_everything_late(&self) {
        for object in list_all(&self.rig.memory, &keys::volume_prefix(self.rig.id)).await.unwrap() {
            let body = self.rig.memory.get(&object.key, GetRange::All).await.unwrap();
            let _ = self.target.put_if_absent(&object.key, body).await;
        }
    }

    /// What a sender would delete that listed both now.
    pub async fn extra(&self) -> Vec<Key> {
        let prefix = keys::volume_prefix(self.rig.id);
        let there = list_all(&self.target, &prefix).await.unwrap();
        let here = list_all(&self.rig.memory, &prefix).await.unwrap();
        let here: BTreeSet<Key> = here.into_iter().map(|object| object.key).collect();
        let own = [keys::replica_states(self.rig.id), keys::volume(self.rig.id).to_string()];
        let is_own = |key: &Key| own.iter().any(|own| key.as_str().starts_with(own));
        let there = there.into_iter().map(|object| object.key);
        there.filter(|key| !here.contains(key) && !is_own(key)).collect()
    }
}

pub fn name() -> objblk::pool::VolumeName {
    "copy".parse().unwrap()
}

pub fn block_on(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work);
}
