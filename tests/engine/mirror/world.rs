//! Two stores, how each process reaches them, and what a volume in both has to hold.

use super::*;

pub const URLS: [&str; 3] = ["file:///home", "file:///b", "file:///c"];
pub const HOME: usize = 0;
pub const FAR: usize = 1;
/// Takes the place of the other one, in some tests.
pub const THIRD: usize = 2;
pub const PATIENCE: Duration = Duration::from_secs(10);
pub const TAKE: Mode = Mode::ReadWrite { takeover: true };
/// Sectors of a piece, and pieces of a volume.
pub const PIECE: u64 = 64;
pub const PIECES: u64 = 12;

/// How a process reaches the stores: links that may be cut one by one, and its own death after so many requests, before or after
/// the last of them took effect.
#[derive(Clone, Debug)]
pub struct Reach {
    pub up: [Arc<AtomicBool>; 3],
    /// How long a read takes, in milliseconds, and how many there were.
    pub slow: [Arc<AtomicU64>; 3],
    pub reads: [Arc<AtomicU64>; 3],
    pub left: Arc<AtomicI64>,
    pub late: bool,
    /// Seed of what comes late or twice, however long its sender has given it up.
    pub stray: Option<u64>,
}

impl Reach {
    pub fn new() -> Reach {
        let up = [(); 3].map(|()| Arc::new(AtomicBool::new(true)));
        let (slow, reads) = Default::default();
        Reach {
            up,
            slow,
            reads,
            left: Arc::new(AtomicI64::new(i64::MAX)),
            late: false,
            stray: None,
        }
    }

    pub fn set(&self, place: usize, up: bool) {
        self.up[place].store(up, SeqCst);
    }
}

#[derive(Debug)]
pub struct Link {
    pub inner: Arc<dyn Store>,
    pub place: usize,
    pub reach: Reach,
}

impl Link {
    pub async fn pass<T>(
        &self,
        op: Op,
        request: impl Future<Output = StoreResult<T>>,
    ) -> StoreResult<T> {
        tokio::task::yield_now().await;
        let error = |why| StoreError::new(StoreErrorKind::Unavailable, op, URLS[self.place], why);
        let slow = self.reach.slow[self.place].load(SeqCst);
        if op == Op::Get && slow > 0 {
            self.reach.reads[self.place].fetch_add(1, SeqCst);
            tokio::time::sleep(Duration::from_millis(slow)).await;
        }
        if !self.reach.up[self.place].load(SeqCst) {
            return Err(error("cut"));
        }
        match self.reach.left.fetch_sub(1, SeqCst) {
            1.. => request.await,
            0 if self.reach.late => {
                let _ = request.await;
                Err(error("dead"))
            }
            _ => Err(error("dead")),
        }
    }
}

crate::gate::passes_on!(Link, |link| URLS[link.place]);

#[derive(Clone)]
pub struct World {
    pub places: [MemoryStore; 3],
    pub id: VolumeId,
}

pub struct Opens {
    pub world: World,
    pub reach: Reach,
}

#[async_trait]
impl Opener for Opens {
    async fn open(&self, entry: &StoreEntry, _make: bool) -> Result<Layers> {
        let place = URLS.into_iter().position(|url| url == entry.url).expect("a place");
        Ok(Layers::one(self.world.link(place, &self.reach)))
    }
}

pub struct Process {
    pub mirror: Arc<Mirror>,
    pub pool: Pool,
    pub reach: Reach,
}

impl World {
    pub async fn new() -> World {
        let places = [(); 3].map(|()| MemoryStore::new());
        let mut world = World { places, id: VolumeId::from_random([7; 16]) };
        let home = world.link(HOME, &Reach::new());
        let pool = Pool::init(home.clone(), false).await.unwrap();
        let opener = Arc::new(Opens { world: world.clone(), reach: Reach::new() });
        let spread = Spread::open(pool.object().id, Layers::one(home), opener).await.unwrap();
        let url = URLS[FAR].to_owned();
        let new = NewStore { url, endpoints: Vec::new(), region: None, weight: 100 };
        Several::new(pool, spread).add(&new).await.unwrap();
        let new = NewVolume {
            chunk_size: 256 << 10,
            compression: Compression::None,
            mirrored: true,
            ..NewVolume::of_size(16 << 20)
        };
        let process = world.process(&Reach::new()).await.unwrap();
        world.id = process.pool.create(&"data".parse().unwrap(), new).await.unwrap();
        world
    }

    pub fn link(&self, place: usize, reach: &Reach) -> Arc<dyn Store> {
        let memory: Arc<dyn Store> = Arc::new(self.places[place].clone());
        let inner = match reach.stray {
            None => memory,
            Some(seed) => {
                let store = FaultStore::new(memory, seed + place as u64);
                let (from, to) = (Duration::from_secs(1), Duration::from_secs(90));
                let writes = [Op::Put, Op::Delete];
                let late = Fault::Delay { at: Moment::Before, from, to };
                store.handle().add(Rule::new(late).on(&writes).with_probability(0.03));
                let twice = Fault::Duplicate(Duration::from_secs(45));
                store.handle().add(Rule::new(twice).on(&writes).with_probability(0.03));
                Arc::new(store)
            }
        };
        Arc::new(Link { inner, place, reach: reach.clone() })
    }

    pub async fn process(&self, reach: &Reach) -> Result<Process> {
        let home = self.link(HOME, reach);
        let pool = Pool::open(home.clone()).await?;
        let opener = Arc::new(Opens { world: self.clone(), reach: reach.clone() });
        let spread = Spread::open(pool.object().id, Layers::one(home), opener).await?;
        let mirror = Mirror::new(spread, PATIENCE);
        let pool = Pool::open(mirror.store(Asker::Setup)).await?;
        Ok(Process { mirror, pool, reach: reach.clone() })
    }

    pub async fn now(&self) -> Process {
        self.process(&Reach::new()).await.unwrap()
    }

    pub async fn fork(&self) -> World {
        let mut places = Vec::new();
        for place in &self.places {
            let copy = MemoryStore::new();
            for object in list_all(place, "").await.unwrap() {
                let body = place.get(&object.key, GetRange::All).await.unwrap();
                copy.put(&object.key, body).await.unwrap();
            }
            places.push(copy);
        }
        World { places: places.try_into().unwrap(), id: self.id }
    }

    /// Everything of the volume in one store, by the names that it is read by there.
    pub async fn copy(
        &self,
        state: &MirrorState,
        place: usize,
        store: StoreId,
    ) -> BTreeMap<String, Bytes> {
        let twin = state.in_sync.iter().find(|twin| twin.store == store).unwrap();
        let (all, own) = (keys::mirror(self.id), keys::mirror_generation(self.id, twin.generation));
        let place = &self.places[place];
        let mut found = BTreeMap::new();
        for below in [all, own] {
            for object in list_all(place, &below).await.unwrap() {
                let rest = object.key.as_str().strip_prefix(&below).unwrap().to_owned();
                let is_bulk = rest.starts_with("log/") || rest.starts_with("map/");
                if is_bulk || below.len() > keys::mirror(self.id).len() {
                    found.insert(rest, place.get(&object.key, GetRange::All).await.unwrap());
                }
            }
        }
        found
    }

    /// Both copies are complete, and the same to the last byte.
    pub async fn is_twice(&self, process: &Process) {
        self.is_twice_in(process, FAR).await;
    }

    /// The same where the other store is at another place.
    pub async fn is_twice_in(&self, process: &Process, place: usize) {
        let state = process.mirror.state(self.id).await.unwrap().unwrap();
        assert_eq!(state.in_sync.len(), 2, "{state:?}");
        let home = self.copy(&state, HOME, state.replicas[HOME]).await;
        let far = self.copy(&state, place, state.replicas[FAR]).await;
        assert!(home.len() > 4, "{:?}", home.keys());
        let differ = |name: &&String| home.get(*name) != far.get(*name);
        let different: Vec<&String> = home.keys().chain(far.keys()).filter(differ).collect();
        assert!(different.is_empty(), "{different:?}, {state:?}");
    }
}

impl World {
    /// Each of the two copies is enough: `check` sees the volume when only that one is in sync.
    pub async fn each_alone(&self, check: impl AsyncFn(&Volume)) {
        self.each_alone_in(FAR, check).await;
    }

    pub async fn each_alone_in(&self, other: usize, check: impl AsyncFn(&Volume)) {
        let state = self.now().await.mirror.state(self.id).await.unwrap().unwrap();
        assert_eq!(state.in_sync.len(), 2, "{state:?}");
        for (place, lost) in [(other, state.replicas[HOME]), (HOME, state.replicas[FAR])] {
            let world = self.fork().await;
            let alone = state.without(lost, uuid::Uuid::new_v4()).unwrap();
            let key = keys::mirror_state(self.id, alone.number);
            world.places[place].put(&key, pool::encode_json(&alone).into()).await.unwrap();
            let process = world.now().await;
            let report = Doctor::new(&process.pool, true, None).check_all().await.unwrap();
            assert!(report.clean, "without {lost}: {report:?}");
            let volume = process.open(self.id, 77).await.unwrap();
            check(&volume).await;
            volume.abandon();
        }
    }
}

impl Process {
    pub async fn open(&self, id: VolumeId, pid: u32) -> Result<Volume> {
        self.open_with(id, pid, None).await
    }

    pub async fn open_with(
        &self,
        id: VolumeId,
        pid: u32,
        scrub: Option<ScrubOptions>,
    ) -> Result<Volume> {
        let env = Env { runtime: tokio::runtime::Handle::current(), clock: Arc::new(SystemClock) };
        let stores = Stores {
            setup: self.mirror.store(Asker::Setup),
            live: self.mirror.store(Asker::Live),
            background: self.mirror.store(Asker::Background),
        };
        let options = VolumeOptions {
            mode: TAKE,
            cache_bytes: 1 << 20,
            dirty_bytes: 1 << 20,
            checkpoint_slots: 16,
            collection: None,
            scrub,
            ..VolumeOptions::default()
        };
        let opened =
            timeout(Duration::from_secs(200), Volume::open(env, stores, id, owner(pid), options));
        opened.await.unwrap_or_else(|_| Err(Error::failed("it takes too long")))
    }

    pub async fn in_sync(&self, id: VolumeId) -> Vec<StoreId> {
        let state = self.mirror.state(id).await.unwrap().unwrap();
        state.in_sync.iter().map(|twin| twin.store).collect()
    }

    /// Waits until both copies are complete.
    pub async fn resynced(&self, id: VolumeId) {
        for _ in 0..100 {
            if self.in_sync(id).await.len() == 2 {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        panic!("{:?} only", self.in_sync(id).await);
    }
}

/// Writes a piece; true: it was flushed in time.
pub async fn put(volume: &Volume, piece: u64, stamp: u64, patience: u64) -> bool {
    let data = pattern(piece * PIECE, PIECE, stamp);
    let done =
        async { write(volume, piece * PIECE, &data).await.is_ok() && volume.flush().await.is_ok() };
    timeout(Duration::from_secs(patience), done).await.unwrap_or(false)
}

pub async fn has(volume: &Volume, piece: u64, stamp: u64) -> bool {
    let there = read(volume, piece * PIECE, PIECE).await.unwrap();
    match stamp {
        0 => there.iter().all(|byte| *byte == 0),
        _ => there == pattern(piece * PIECE, PIECE, stamp),
    }
}
