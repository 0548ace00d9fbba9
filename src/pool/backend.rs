//! From a store's address to a pool that is ready for use.
//!
//! ```text
//! base store -> (paths) -> (unfenced) -> metrics -> retry with a deadline          -> seal  setup: answers a user
//!                                               \-> retry for ever -> hedge        -> seal  live: serves a device
//!                                               \-> retry for ever, others first   -> seal  background
//! ```
//! What is sealed is sealed above all that repeats a request, once for each object that is put.
//! All three take turns by one limiter. A bucket is reached by all its paths, which is one path as a
//! rule; before it is used, they have to show that they lead to one pool.

use super::Pool;
use crate::error::{ErrorKind, Result};
use crate::format::keys;
use crate::seal::{KeyGiven, Keyring, SealStore};
use crate::store::Store;
use crate::store::hedge::HedgeStore;
use crate::store::limit::{Bounds, Class, Limiter};
use crate::store::metrics::{MetricsSnapshot, MetricsStore};
use crate::store::paths::s3::S3Paths;
use crate::store::retry::{RetryPolicy, RetryStore};
use crate::store::s3::S3Options;
use crate::store::unfenced::UnfencedStore;
use crate::store::url::{self, StoreUrl};
use crate::volume::Stores;
use rand::SeedableRng;
use rand::rngs::StdRng;
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
    metrics: Arc<MetricsStore>,
    paths: Option<S3Paths>,
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
        let (base, paths) = reach(url, s3, false).await?;
        let ring = Arc::new(Keyring::default());
        let (stores, metrics) = stack(Arc::clone(&base), &ring);
        let pool = Pool::open(Arc::clone(&stores.setup)).await?.with_ring(ring.clone());
        if pool.object().fencing {
            return Ok(Backend { pool, stores, metrics, paths });
        }
        tracing::warn!(
            "the pool {url} was made with --unsafe-no-fencing: two owners of one volume destroy it"
        );
        let (stores, metrics) = stack(Arc::new(UnfencedStore::new(base)), &ring);
        let pool = Pool::open(Arc::clone(&stores.setup)).await?.with_ring(ring);
        Ok(Backend { pool, stores, metrics, paths })
    }

    /// Makes a pool at `url`. Errors: as [`url::create`] and [`Pool::init`].
    pub async fn create(url: &StoreUrl, s3: &S3Options, how: Creation) -> Result<Backend> {
        let make = how.bucket || matches!(url, StoreUrl::Dir(_));
        let (base, paths) = reach(url, s3, make).await?;
        let base: Arc<dyn Store> = match how.unsafe_no_fencing {
            true => Arc::new(UnfencedStore::new(base)),
            false => base,
        };
        let ring = Arc::new(Keyring::default());
        let (stores, metrics) = stack(base, &ring);
        let pool = Pool::init(Arc::clone(&stores.setup), how.unsafe_no_fencing).await?;
        let pool = pool.with_ring(ring);
        if let Some(paths) = &paths {
            paths.store().verify().await?;
        }
        Ok(Backend { pool, stores, metrics, paths })
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
            let (stores, _) = stack(reach(url, s3, false).await?.0, &Arc::default());
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

/// The store at `url`, by all its paths, which lead to one pool or to none yet; made first if `make`.
async fn reach(
    url: &StoreUrl,
    s3: &S3Options,
    make: bool,
) -> Result<(Arc<dyn Store>, Option<S3Paths>)> {
    let StoreUrl::S3(location) = url else {
        let base = if make { url::create(url, s3).await? } else { url::open(url, s3).await? };
        return Ok((base, None));
    };
    let paths = S3Paths::open(location.clone(), s3, keys::pool()).await?;
    if make {
        paths.ensure_bucket(true).await?;
    }
    paths.store().verify().await?;
    Ok((Arc::new(paths.store().clone()), Some(paths)))
}

fn stack(base: Arc<dyn Store>, ring: &Arc<Keyring>) -> (Stores, Arc<MetricsStore>) {
    let limiter = Arc::new(Limiter::new(REQUESTS));
    let metrics = Arc::new(MetricsStore::new(base));
    let retry = |deadline, class| -> Arc<dyn Store> {
        let policy = RetryPolicy { deadline, ..RetryPolicy::default() };
        let retry = RetryStore::new(metrics.clone(), policy, StdRng::from_os_rng());
        Arc::new(retry.through(limiter.clone(), class))
    };
    let seal = |store| -> Arc<dyn Store> {
        Arc::new(SealStore::new(store, ring.clone(), StdRng::from_os_rng()))
    };
    let stores = Stores {
        setup: seal(retry(Some(PATIENCE), Class::Foreground)),
        live: seal(Arc::new(HedgeStore::new(retry(None, Class::Foreground)))),
        background: seal(retry(None, Class::Background)),
    };
    (stores, metrics.clone())
}
