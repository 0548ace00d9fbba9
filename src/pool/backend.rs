//! From a store's address to a pool that is ready for use.
//!
//! ```text
//! base store -> (paths) -> (unfenced) -> metrics -> retry with a deadline          setup: answers a user
//!                                               \-> retry for ever -> hedge        live: serves a device
//!                                               \-> retry for ever, others first   background
//! ```
//! All three take turns by one limiter; above them, what lies in other stores of the pool is looked for there
//! ([`spread`](crate::spread)), each of which has the same layers and a limiter of its own, and mirrored volumes are
//! put in two of them ([`mirror`]). Above all that is
//! what seals ([`seal`](crate::seal)): once for each object that is put, however often a request is repeated. A
//! bucket is reached by all its paths, which is one path as a rule; before it is used, they have to show that
//! they lead to one pool.

use super::several::{NewStore, Rescued, Several, rescue};
use super::{Pool, VolumeName};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::keys;
use crate::format::mirror::MirrorState;
use crate::format::pool::PoolObject;
use crate::format::stores::{StoreEntry, StoreId};
use crate::mirror::{self, Mirror};
pub use crate::mirror::{Asked, Pace};
use crate::seal::{KeyGiven, Keyring, SealStore};
use crate::spread::members::{Layers, Opener};
use crate::spread::{Asker, Spread};
use crate::store::Store;
use crate::store::hedge::HedgeStore;
use crate::store::limit::{Bounds, Class, Limiter};
use crate::store::metrics::{MetricsSnapshot, MetricsStore};
use crate::store::paths::Landmark;
use crate::store::paths::s3::S3Paths;
use crate::store::retry::{RetryPolicy, RetryStore};
use crate::store::s3::S3Options;
use crate::store::unfenced::UnfencedStore;
use crate::store::url::{self, StoreUrl};
use crate::volume::Stores;
use async_trait::async_trait;
use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long a user waits for an answer of the store before an error.
const PATIENCE: Duration = Duration::from_secs(15);

/// The most requests under way at once: enough to fill a 10 Gbit/s link with chunks of 4 MiB at
/// 100 ms each.
const REQUESTS: Bounds = Bounds { total: 64, writes: 32 };

/// An open pool with the stores its volumes use.
#[derive(Clone, Debug)]
pub struct Backend {
    /// The catalogue.
    pub pool: Pool,
    /// The layered store.
    pub stores: Stores,
    /// The same below what seals: objects as they are stored.
    pub raw: Arc<dyn Store>,
    metrics: Arc<MetricsStore>,
    paths: Option<S3Paths>,
    /// Not where the pool has to do without create-if-absent.
    spread: Option<Arc<Spread>>,
    mirror: Option<Arc<Mirror>>,
}

/// What [`Backend::create`] does where the store, or the pool in it, is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Creation {
    /// Make the bucket (a directory is always made).
    pub bucket: bool,
    /// Do without create-if-absent.
    pub unsafe_no_fencing: bool,
}

impl Backend {
    /// Opens the pool at `url`. Errors: as [`url::open`] and [`Pool::open`]; store, where its paths lead
    /// to several stores.
    pub async fn open(url: &StoreUrl, s3: &S3Options) -> Result<Backend> {
        let (base, paths) = reach(url, s3, pool_mark(), false).await?;
        let (stores, metrics) = stack(Arc::clone(&base));
        let pool = Pool::open(Arc::clone(&stores.setup)).await?;
        if pool.object().fencing {
            let backend = Backend::of_one(pool, stores, metrics, paths);
            return Ok(backend.spread(s3).await?.seal());
        }
        tracing::warn!(
            "the pool {url} was made with --unsafe-no-fencing: two owners of one volume destroy it"
        );
        let (stores, metrics) = stack(Arc::new(UnfencedStore::new(base)));
        let pool = Pool::open(Arc::clone(&stores.setup)).await?;
        Ok(Backend::of_one(pool, stores, metrics, paths).seal())
    }

    /// The pool in its home store alone.
    fn of_one(
        pool: Pool,
        stores: Stores,
        metrics: Arc<MetricsStore>,
        paths: Option<S3Paths>,
    ) -> Backend {
        let raw = stores.setup.clone();
        Backend { pool, raw, stores, metrics, paths, spread: None, mirror: None }
    }

    /// Has what belongs to encrypted volumes opened and sealed, wherever it lies.
    fn seal(self) -> Backend {
        let ring = Arc::new(Keyring::default());
        let seal = |store| -> Arc<dyn Store> {
            Arc::new(SealStore::new(store, ring.clone(), StdRng::from_os_rng()))
        };
        let Stores { setup, live, background } = self.stores;
        let raw = setup.clone();
        let stores = Stores { setup: seal(setup), live: seal(live), background: seal(background) };
        let pool = self.pool.through(stores.setup.clone()).with_ring(ring);
        Backend { pool, stores, raw, ..self }
    }

    /// Has the pool reach all its stores.
    async fn spread(self, s3: &S3Options) -> Result<Backend> {
        let Stores { setup, live, background } = self.stores;
        let home = Layers { setup, live, background };
        let opener = Arc::new(Others { s3: s3.clone() });
        let spread = Spread::open(self.pool.object().id, home, opener).await?;
        for away in spread.verify().await? {
            let (id, url) = (away.id, away.url);
            tracing::warn!("store {id} of the pool, {url}, is away: what lies there has to wait");
        }
        let mirror = Mirror::new(spread.clone(), mirror::PATIENCE);
        let stores = Stores {
            setup: mirror.store(Asker::Setup),
            live: mirror.store(Asker::Live),
            background: mirror.store(Asker::Background),
        };
        let pool = self.pool.through(stores.setup.clone());
        Ok(Backend { pool, stores, spread: Some(spread), mirror: Some(mirror), ..self })
    }

    /// Makes a pool at `url`. Errors: as [`url::create`] and [`Pool::init`].
    pub async fn create(url: &StoreUrl, s3: &S3Options, how: Creation) -> Result<Backend> {
        let make = how.bucket || matches!(url, StoreUrl::Dir(_));
        let (base, paths) = reach(url, s3, pool_mark(), make).await?;
        let base: Arc<dyn Store> = match how.unsafe_no_fencing {
            true => Arc::new(UnfencedStore::new(base)),
            false => base,
        };
        let (stores, metrics) = stack(base);
        let pool = Pool::init(Arc::clone(&stores.setup), how.unsafe_no_fencing).await?;
        if let Some(paths) = &paths {
            paths.store().verify().await?;
        }
        let backend = Backend::of_one(pool, stores, metrics, paths);
        let backend = if how.unsafe_no_fencing { backend } else { backend.spread(s3).await? };
        Ok(backend.seal())
    }

    /// Makes the empty store at `url` the home store of a new pool, with the mirrored volumes that are `left` in a store of
    /// another one, whose home store is gone. Errors: as [`rescue`]; those of the stores.
    pub async fn rescue(
        url: &StoreUrl,
        s3: &S3Options,
        left: &NewStore,
        names: &BTreeMap<VolumeId, VolumeName>,
    ) -> Result<Vec<Rescued>> {
        let make = matches!(url, StoreUrl::Dir(_));
        let (home, _) = stack(reach(url, s3, pool_mark(), make).await?.0);
        let others = Others { s3: s3.clone() };
        let there = others.open(&left.entry(StoreId::of_number(1)), false).await?;
        rescue(&home.setup, &there.setup, left, names).await
    }

    /// Opens the pool at `url`, or makes one where the store (or the directory for it) is there
    /// without one; the flag says that it was made. Errors: as [`Backend::open`] and
    /// [`Backend::create`]; not found, where the bucket does not exist.
    pub async fn open_or_create(url: &StoreUrl, s3: &S3Options) -> Result<(Backend, bool)> {
        let missing = match Backend::open(url, s3).await {
            Ok(backend) => return Ok((backend, false)),
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            Err(e) => e,
        };
        if let StoreUrl::S3(_) = url {
            let (stores, _) = stack(reach(url, s3, pool_mark(), false).await?.0);
            if stores.setup.list("", None, 1).await.is_err() {
                return Err(missing);
            }
        }
        match Backend::create(url, s3, Creation::default()).await {
            Err(e) if e.kind() == ErrorKind::Exists => Ok((Backend::open(url, s3).await?, false)),
            made => Ok((made?, true)),
        }
    }

    /// The same, whose encrypted volumes are opened by what is `given`.
    pub fn with_key(self, given: Option<KeyGiven>) -> Backend {
        Backend { pool: self.pool.with_given(given), ..self }
    }

    /// The stores of the pool. Errors: usage, where it can have one only.
    pub fn several(&self) -> Result<Several> {
        let spread = self.spread.clone().ok_or_else(|| {
            Error::usage("a pool made with --unsafe-no-fencing has one store only")
                .hint("make a pool in a store that can do without that")
        })?;
        Ok(Several::new(self.pool.clone(), spread))
    }

    /// The same pool in another store, for who only looks.
    pub fn supposing(&self, store: &Arc<dyn Store>) -> Pool {
        let ring = Arc::new(Keyring::default());
        let seal = SealStore::new(store.clone(), ring.clone(), StdRng::from_os_rng());
        self.pool.clone().through(Arc::new(seal)).with_ring(ring)
    }

    /// Which copies of a mirrored volume are complete; `None` where it is not mirrored. Errors: the stores'.
    pub async fn mirror_state(&self, id: VolumeId) -> Result<Option<Arc<MirrorState>>> {
        match &self.mirror {
            Some(mirror) => Ok(mirror.state(id).await?),
            None => Ok(None),
        }
    }

    /// How the copies of a mirrored volume have answered this process; `None` where it is not mirrored.
    pub fn pace(&self, id: VolumeId) -> Option<Vec<Pace>> {
        self.mirror.as_ref()?.pace(id)
    }

    /// From now on, reads of mirrored volumes ask these copies.
    pub fn ask_copies(&self, asked: Asked) {
        self.mirror.iter().for_each(|mirror| mirror.ask(asked));
    }

    /// The paths to a bucket.
    pub fn paths(&self) -> Option<&S3Paths> {
        self.paths.as_ref()
    }

    /// True while requests of a device are to fail because no path works; `None` where they wait.
    pub fn hopeless(&self) -> Option<watch::Receiver<bool>> {
        let store = self.paths.as_ref()?.store();
        store.gives_up().then(|| store.hopeless())
    }

    /// What the store was asked so far.
    pub fn metrics(&self) -> MetricsSnapshot {
        self.metrics.snapshot()
    }
}

/// Opens the stores of a pool besides its home store.
struct Others {
    /// How the home store is reached, or would be if it were a bucket.
    s3: S3Options,
}

#[async_trait]
impl Opener for Others {
    async fn open(&self, entry: &StoreEntry, make: bool) -> Result<Layers> {
        let url: StoreUrl = entry.url.parse()?;
        let mut s3 = self.s3.clone();
        if !entry.endpoints.is_empty() {
            let specs = entry.endpoints.iter().map(|text| text.parse());
            s3.paths.specs = specs.collect::<Result<_>>()?;
        }
        s3.region = entry.region.clone().or(s3.region);
        // A bucket that is missing is more likely a mistake.
        let make = make && matches!(url, StoreUrl::Dir(_));
        let (base, _) = reach(&url, &s3, keys::store(), make).await?;
        let (Stores { setup, live, background }, _) = stack(base);
        Ok(Layers { setup, live, background })
    }
}

/// What a pool is known by: its id. Features may come to its object.
fn pool_mark() -> Landmark {
    let mark = |bytes: &Bytes| match PoolObject::parse(bytes) {
        Ok(pool) => Bytes::copy_from_slice(pool.id.to_string().as_bytes()),
        Err(_) => bytes.clone(),
    };
    Landmark { key: keys::pool(), mark }
}

/// The store at `url`, by all its paths, which lead to one `beacon` or to none yet; made first if `make`.
async fn reach(
    url: &StoreUrl,
    s3: &S3Options,
    beacon: impl Into<Landmark>,
    make: bool,
) -> Result<(Arc<dyn Store>, Option<S3Paths>)> {
    let StoreUrl::S3(location) = url else {
        let base = if make { url::create(url, s3).await? } else { url::open(url, s3).await? };
        return Ok((base, None));
    };
    let paths = S3Paths::open(location.clone(), s3, beacon).await?;
    if make {
        paths.ensure_bucket(true).await?;
    }
    paths.store().verify().await?;
    Ok((Arc::new(paths.store().clone()), Some(paths)))
}

fn stack(base: Arc<dyn Store>) -> (Stores, Arc<MetricsStore>) {
    let limiter = Arc::new(Limiter::new(REQUESTS));
    let metrics = Arc::new(MetricsStore::new(base));
    let retry = |deadline, class| -> Arc<dyn Store> {
        let policy = RetryPolicy { deadline, ..RetryPolicy::default() };
        let retry = RetryStore::new(metrics.clone(), policy, StdRng::from_os_rng());
        Arc::new(retry.through(limiter.clone(), class))
    };
    let stores = Stores {
        setup: retry(Some(PATIENCE), Class::Foreground),
        live: Arc::new(HedgeStore::new(retry(None, Class::Foreground))),
        background: retry(None, Class::Background),
    };
    (stores, metrics.clone())
}
