//! The stores of a pool, the processes that reach them, and what its volume has to hold.

use super::*;

/// Sectors of a write, and writes of an image.
pub const PIECE: u64 = 96;
pub const PIECES: u64 = 24;
pub const URLS: [&str; 3] = ["file:///home", "file:///b", "file:///c"];

/// Lets so many requests through; the next one fails, before or after it took effect, as do all later ones.
#[derive(Clone, Debug)]
pub struct Cut {
    pub left: Arc<AtomicI64>,
    pub late: bool,
}

impl Cut {
    pub fn never() -> Cut {
        Cut { left: Arc::new(AtomicI64::new(i64::MAX)), late: false }
    }

    pub fn allow(&self, requests: i64) {
        self.left.store(requests, SeqCst);
    }

    pub fn used(&self) -> i64 {
        i64::MAX - self.left.load(SeqCst)
    }
}

/// A store that a process reaches until it dies.
#[derive(Debug)]
pub struct Mortal {
    pub inner: MemoryStore,
    pub url: &'static str,
    pub cut: Cut,
}

impl Mortal {
    pub async fn pass<T>(
        &self,
        op: Op,
        request: impl Future<Output = StoreResult<T>>,
    ) -> StoreResult<T> {
        // Others go on meanwhile.
        tokio::task::yield_now().await;
        let left = self.cut.left.fetch_sub(1, SeqCst);
        let dead = || StoreError::new(StoreErrorKind::Unavailable, op, self.url, "dead");
        match left {
            1.. => request.await,
            0 if self.cut.late => {
                let _ = request.await;
                Err(dead())
            }
            _ => Err(dead()),
        }
    }
}

crate::gate::passes_on!(Mortal, |mortal| mortal.url);

/// The places where stores are, and what is in them.
#[derive(Clone)]
pub struct World {
    pub places: BTreeMap<&'static str, MemoryStore>,
    pub id: VolumeId,
}

pub struct Reach {
    pub world: World,
    pub cut: Cut,
}

#[async_trait]
impl Opener for Reach {
    async fn open(&self, entry: &StoreEntry, _make: bool) -> Result<Layers> {
        let url = URLS.into_iter().find(|url| *url == entry.url).expect("a place of the world");
        Ok(Layers::one(self.world.store(url, &self.cut)))
    }
}

/// A process.
pub struct Process {
    pub spread: Arc<Spread>,
    pub pool: Pool,
    pub several: Several,
}

impl World {
    pub async fn new() -> World {
        let places = URLS.into_iter().map(|url| (url, MemoryStore::new())).collect();
        let world = World { places, id: VolumeId::from_random([7; 16]) };
        let home = world.store(URLS[0], &Cut::never());
        Pool::init(home.clone(), false).await.unwrap();
        let description = VolumeObject {
            version: 1,
            id: world.id,
            size: 64 << 20,
            block_size: 512,
            chunk_size: 256 << 10,
            features: Features::default(),
            created_at_ms: 0,
            ancestors: Vec::new(),
            source: None,
            mac: None,
        };
        let body = Bytes::from(pool::encode_json(&description));
        home.put_if_absent(&keys::volume(world.id), body).await.unwrap();
        let name = Bytes::from(pool::encode_json(&pool::NameObject { volume: world.id }));
        home.put_if_absent(&keys::name("data").unwrap(), name).await.unwrap();
        world
    }

    pub fn store(&self, url: &'static str, cut: &Cut) -> Arc<dyn Store> {
        Arc::new(Mortal { inner: self.places[url].clone(), url, cut: cut.clone() })
    }

    /// The same, to be changed by itself.
    pub async fn fork(&self) -> World {
        let mut places = BTreeMap::new();
        for (url, place) in &self.places {
            let copy = MemoryStore::new();
            for object in list_all(place, "").await.unwrap() {
                let body = place.get(&object.key, GetRange::All).await.unwrap();
                copy.put(&object.key, body).await.unwrap();
            }
            places.insert(*url, copy);
        }
        World { places, id: self.id }
    }

    pub async fn process(&self, cut: &Cut) -> Process {
        let home = self.store(URLS[0], cut);
        let pool = Pool::open(home.clone()).await.unwrap();
        let opener = Arc::new(Reach { world: self.clone(), cut: cut.clone() });
        let spread = Spread::open(pool.object().id, Layers::one(home), opener).await.unwrap();
        let pool = Pool::open(spread.store(Asker::Setup)).await.unwrap();
        let several = Several::new(pool.clone(), spread.clone()).impatient();
        Process { spread, pool, several }
    }

    pub async fn now(&self) -> Process {
        self.process(&Cut::never()).await
    }

    /// Where the pool has several stores, or had, an objblk that knows of one only refuses it; everybody else does not.
    pub async fn keeps_out_older(&self) {
        let home = &self.places[URLS[0]];
        let object = home.get(&keys::pool(), GetRange::All).await.unwrap();
        let PoolObject { features, .. } = PoolObject::parse(&object).unwrap();
        let incompat = Features::KNOWN.incompat & !Features::SEVERAL;
        let older = Features { incompat, ..Features::KNOWN };
        if !list_all(home, keys::STORES).await.unwrap().is_empty() {
            assert_eq!(features.access_by(&older), Access::None);
        }
        assert_eq!(features.access(), Access::Full);
    }

    /// The volume holds this, and the doctor finds nothing wrong.
    pub async fn holds(&self, image: &[u8]) {
        self.keeps_out_older().await;
        let process = self.now().await;
        let copy = self.fork().await;
        let volume = copy.now().await.open(self.id, 90, TAKE).await.unwrap();
        assert!(read(&volume, 0, image.len() as u64 / 512).await.unwrap() == image);
        volume.abandon();
        let report = Doctor::new(&process.pool, true, None).check_all().await.unwrap();
        assert!(report.clean, "{report:?}");
    }

    /// Slots that are in two stays.
    pub async fn copies(&self) -> usize {
        let mut slots: BTreeMap<String, u64> = BTreeMap::new();
        for place in self.places.values() {
            for object in list_all(place, "").await.unwrap() {
                if let Some((_, slot)) = object.key.as_str().split_once("/log/") {
                    // Fences are where they were as well.
                    *slots.entry(slot.to_owned()).or_default() += u64::from(object.size > 1024);
                }
            }
        }
        slots.values().filter(|count| **count > 1).count()
    }
}

impl Process {
    pub async fn open(&self, id: VolumeId, pid: u32, mode: Mode) -> Result<Volume> {
        let env = Env { runtime: tokio::runtime::Handle::current(), clock: Arc::new(SystemClock) };
        let stores = Stores {
            setup: self.spread.store(Asker::Setup),
            live: self.spread.store(Asker::Live),
            background: self.spread.store(Asker::Background),
        };
        let options = VolumeOptions {
            mode,
            cache_bytes: 1 << 20,
            dirty_bytes: 1 << 20,
            checkpoint_slots: 16,
            collection: None,
            ..VolumeOptions::default()
        };
        Volume::open(env, stores, id, owner(pid), options).await
    }

    /// Owns the volume for a moment, unless this process dies.
    pub async fn renew(&self, id: VolumeId) -> Result<()> {
        let dead = || objblk::error::Error::failed("dead");
        let long = Duration::from_secs(100);
        let opened = tokio::time::timeout(long, self.open(id, 5, TAKE)).await;
        let volume = opened.map_err(|_| dead())??;
        match tokio::time::timeout(long, volume.close()).await {
            Ok(closed) => closed,
            Err(_) => {
                volume.abandon();
                Err(dead())
            }
        }
    }

    pub async fn add(&self, place: usize) -> Result<StoreEntry> {
        let url = URLS[place].to_owned();
        self.several.add(&NewStore { url, endpoints: Vec::new(), region: None, weight: 100 }).await
    }

    pub async fn rebalance(&self) -> Result<Moved> {
        self.several.rebalance(&Host::local().unwrap().owner(), None, &Progress::default()).await
    }

    pub async fn held(&self, id: StoreId) -> Held {
        let census = self.several.census().await.unwrap();
        census.into_iter().find(|held| held.entry.id == id).unwrap()
    }
}

pub const TAKE: Mode = Mode::ReadWrite { takeover: true };
