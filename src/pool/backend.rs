//! From a store's address to a pool that is ready for use.
//!
//! ```text
//! base store -> (unfenced) -> metrics -> retry with a deadline          setup: answers a user
//!                                    \-> retry for ever -> hedge        live: serves a device
//!                                    \-> retry for ever, others first   background
//! ```
//! All three take turns by one limiter.

use super::Pool;
use crate::error::{ErrorKind, Result};
use crate::store::Store;
use crate::store::hedge::HedgeStore;
use crate::store::limit::{Bounds, Class, Limiter};
use crate::store::metrics::{MetricsSnapshot, MetricsStore};
use crate::store::retry::{RetryPolicy, RetryStore};
use crate::store::s3::S3Options;
use crate::store::unfenced::UnfencedStore;
use crate::store::url::{self, StoreUrl};
use crate::volume::Stores;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::sync::Arc;
use std::time::Duration;

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
    /// Opens the pool at `url`. Errors: as [`url::open`] and [`Pool::open`].
    pub async fn open(url: &StoreUrl, s3: &S3Options) -> Result<Backend> {
        let base = url::open(url, s3).await?;
        let (stores, metrics) = stack(Arc::clone(&base));
        let pool = Pool::open(Arc::clone(&stores.setup)).await?;
        if pool.object().fencing {
            return Ok(Backend { pool, stores, metrics });
        }
        tracing::warn!(
            "the pool {url} was made with --unsafe-no-fencing: two owners of one volume destroy it"
        );
        let (stores, metrics) = stack(Arc::new(UnfencedStore::new(base)));
        let pool = Pool::open(Arc::clone(&stores.setup)).await?;
        Ok(Backend { pool, stores, metrics })
    }

    /// Makes a pool at `url`. Errors: as [`url::create`] and [`Pool::init`].
    pub async fn create(url: &StoreUrl, s3: &S3Options, how: Creation) -> Result<Backend> {
        let make = how.bucket || matches!(url, StoreUrl::Dir(_));
        let base = if make { url::create(url, s3).await? } else { url::open(url, s3).await? };
        let base: Arc<dyn Store> = match how.unsafe_no_fencing {
            true => Arc::new(UnfencedStore::new(base)),
            false => base,
        };
        let (stores, metrics) = stack(base);
        let pool = Pool::init(Arc::clone(&stores.setup), how.unsafe_no_fencing).await?;
        Ok(Backend { pool, stores, metrics })
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
            let (stores, _) = stack(url::open(url, s3).await?);
            if stores.setup.list("", None, 1).await.is_err() {
                return Err(missing);
            }
        }
        match Backend::create(url, s3, Creation::default()).await {
            Err(e) if e.kind() == ErrorKind::Exists => Ok((Backend::open(url, s3).await?, false)),
            made => Ok((made?, true)),
        }
    }

    /// What the store was asked so far.
    pub fn metrics(&self) -> MetricsSnapshot {
        self.metrics.snapshot()
    }
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
