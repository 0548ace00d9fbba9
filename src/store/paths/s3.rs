//! Paths to a bucket: from what a user names to connections.
//!
//! The name of a server that has several addresses is as many paths, each pinned to its address; the
//! name stays what requests and certificates say. Such a name is asked for again every minute: addresses
//! that are new become paths, and paths that failed go once the name stands for them no more.

use super::policy::PathPolicy;
use super::spec::PathSpec;
use super::state::Condition;
use super::{Landmark, MultipathStore, NewPath};
use crate::error::{Error, Result};
use crate::store::s3::{S3Location, S3Options, S3Store};
use crate::store::{StoreError, StoreErrorKind};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::net::{UdpSocket, lookup_host};
use tokio::time::{sleep, timeout};

/// How long a name may take to be looked up.
const LOOKUP: Duration = Duration::from_secs(5);

/// How often a name is looked up again.
const LOOKUP_EVERY: Duration = Duration::from_secs(60);

/// The most addresses of one name that are paths: some names stand for hundreds.
const ADDRESSES_MAX: usize = 16;

/// The paths of a bucket, as a user wants them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathOptions {
    /// The paths; without any, there is one by the options' own endpoint.
    pub specs: Vec<PathSpec>,
    /// How they are used.
    pub policy: PathPolicy,
}

/// A bucket by all its paths. Clones are one.
#[derive(Clone, Debug)]
pub struct S3Paths {
    location: S3Location,
    options: S3Options,
    store: MultipathStore,
    /// As users named them: names before their addresses were looked up.
    named: Arc<Mutex<Vec<PathSpec>>>,
}

impl S3Paths {
    /// The bucket at `location`. `beacon` tells whether all paths lead to it; see
    /// [`MultipathStore::verify`]. Names are looked up; the store gets no request.
    ///
    /// Errors: usage, where an endpoint is no URL or is named twice; failed, where this host has none of the
    /// addresses that paths are to go from.
    pub async fn open(
        location: S3Location,
        options: &S3Options,
        beacon: impl Into<Landmark>,
    ) -> Result<S3Paths> {
        let PathOptions { mut specs, policy } = options.paths.clone();
        if specs.is_empty() {
            specs.push(PathSpec::to(options.endpoint_url.clone()));
        }
        let mut names = BTreeSet::new();
        let mut paths = Vec::new();
        let mut lame = Vec::new();
        for spec in &specs {
            if !names.insert(spec.name()) {
                return Err(Error::usage(format!("the path {} is named twice", spec.name())));
            }
            lame.extend(can_go(spec).await.err());
            for one in expand(spec).await {
                let known = paths.iter().any(|path: &NewPath| path.spec.name() == one.name());
                if !known {
                    paths.push(connect(&location, options, one).await?);
                }
            }
        }
        // As where a cable is out: the others do meanwhile.
        let all_are_lame = lame.len() == specs.len();
        for e in lame {
            if all_are_lame {
                return Err(e);
            }
            tracing::warn!("{e}");
        }
        let expanded: Vec<PathSpec> = specs
            .iter()
            .filter(|spec| paths.iter().any(|path| is_address_of(&path.spec, spec)))
            .cloned()
            .collect();
        let store = MultipathStore::new(location.to_string(), paths, policy, beacon);
        let options = options.clone();
        let opened = S3Paths { location, options, store, named: Arc::new(Mutex::new(specs)) };
        expanded.into_iter().for_each(|spec| opened.follow(spec));
        Ok(opened)
    }

    /// The store over all paths.
    pub fn store(&self) -> &MultipathStore {
        &self.store
    }

    /// Verifies that the bucket is there, or makes it if `create`, by the first path that answers.
    ///
    /// Errors: as [`S3Store::ensure_bucket`].
    pub async fn ensure_bucket(&self, create: bool) -> Result<()> {
        let mut error: Option<StoreError> = None;
        for spec in self.store.specs() {
            let by = S3Store::connect(self.location.clone(), &by(&self.options, &spec)).await?;
            match by.ensure_bucket(create).await {
                Ok(_) => return Ok(()),
                Err(e) if e.kind == StoreErrorKind::Unavailable => error = Some(e),
                Err(e) => return Err(e.into()),
            }
        }
        Err(error.map_or_else(|| Error::failed("there is no path"), Error::from))
    }

    /// Adds what a user names: one path, or one for each address. Returns their names.
    ///
    /// Errors: as [`MultipathStore::add`]; where some of several addresses lead to the store, these are
    /// added and nothing is wrong; failed, where this host has not the address that it is to go from.
    pub async fn add(&self, spec: PathSpec) -> Result<Vec<String>> {
        can_go(&spec).await?;
        let (mut added, mut refused) = (Vec::new(), None);
        let mut expanded = false;
        for one in expand(&spec).await {
            expanded |= is_address_of(&one, &spec);
            let name = one.name();
            let path = connect(&self.location, &self.options, one).await?;
            match self.store.add(path).await {
                Ok(_) => added.push(name),
                Err(e) => refused = Some(e),
            }
        }
        if let Some(error) = refused.filter(|_| added.is_empty()) {
            return Err(error);
        }
        self.named().push(spec.clone());
        if expanded {
            self.follow(spec);
        }
        added.iter().for_each(|name| tracing::info!("path {name} is added"));
        Ok(added)
    }

    /// Removes a path; of a name with several addresses, the others stay.
    ///
    /// Errors: not found; busy, where no other is enabled.
    pub fn remove(&self, what: &str) -> Result<()> {
        let id = self.store.find(what)?;
        let named = |specs: &[PathSpec], spec: &PathSpec| {
            specs.iter().any(|one| one.name() == spec.name() || is_address_of(one, spec))
        };
        let before = self.store.specs();
        self.store.remove(id)?;
        let after = self.store.specs();
        self.named().retain(|spec| named(&after, spec) || !named(&before, spec));
        Ok(())
    }

    /// The paths as users named them, with what was added and removed since.
    pub fn specs(&self) -> Vec<PathSpec> {
        self.named().clone()
    }

    fn named(&self) -> std::sync::MutexGuard<'_, Vec<PathSpec>> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the paths to the addresses of a name up to date for as long as the store is in use.
    fn follow(&self, spec: PathSpec) {
        let store = Arc::downgrade(&self.store.inner);
        let (location, options) = (self.location.clone(), self.options.clone());
        tokio::spawn(async move {
            loop {
                sleep(LOOKUP_EVERY).await;
                let Some(found) = look_up(&spec).await else { continue };
                let Some(store) = Weak::upgrade(&store) else { return };
                let store = MultipathStore { inner: store };
                update(&store, &spec, &found, (&location, &options)).await;
            }
        });
    }
}

/// Adds paths to the addresses that are new, removes those that failed and that the name has no more.
async fn update(
    store: &MultipathStore,
    spec: &PathSpec,
    found: &[IpAddr],
    (location, options): (&S3Location, &S3Options),
) {
    let mine: Vec<PathSpec> =
        store.specs().into_iter().filter(|one| is_address_of(one, spec)).collect();
    let gone = mine.iter().filter(|one| !one.address.is_some_and(|at| found.contains(&at)));
    let failed = gone.filter_map(|one| store.inner.find(&one.name())).filter(|id| {
        let state = store.inner.state();
        let member = state.switch.members().find(|(other, _)| other == id);
        member.is_some_and(|(_, member)| member.health.condition() == Condition::Failed)
    });
    for id in failed.collect::<Vec<_>>() {
        // It may be the last one that is enabled.
        let _ = store.remove(id);
    }
    let new = found.iter().filter(|at| !mine.iter().any(|one| one.address == Some(**at)));
    for address in new.take(ADDRESSES_MAX.saturating_sub(mine.len())) {
        let one = PathSpec { address: Some(*address), ..spec.clone() };
        let name = one.name();
        let added = match connect(location, options, one).await {
            Ok(path) => store.add(path).await.map(drop),
            Err(e) => Err(e),
        };
        match added {
            Ok(()) => tracing::info!("path {name} is new"),
            Err(e) => tracing::debug!("path {name}: {e}"),
        }
    }
}

fn is_address_of(one: &PathSpec, spec: &PathSpec) -> bool {
    one.address.is_some() && PathSpec { address: None, ..one.clone() }.name() == spec.name()
}

fn by(options: &S3Options, spec: &PathSpec) -> S3Options {
    S3Options {
        endpoint_url: spec.endpoint.clone(),
        address: spec.address,
        source: spec.source,
        interface: spec.interface.clone(),
        ..options.clone()
    }
}

async fn connect(location: &S3Location, options: &S3Options, spec: PathSpec) -> Result<NewPath> {
    let store = S3Store::connect(location.clone(), &by(options, &spec)).await?;
    Ok(NewPath { spec, store: Arc::new(store) })
}

/// Finds out whether this host has the address that the path is to go from.
///
/// Errors: failed, where it has not.
async fn can_go(spec: &PathSpec) -> Result<()> {
    let Some(source) = spec.source else { return Ok(()) };
    // Sends nothing.
    let bound = UdpSocket::bind((source, 0)).await.map(drop);
    bound.map_err(|e| {
        Error::failed(format!("the path {} cannot go from {source}", spec.name()))
            .because(e)
            .hint("name an address that this host has, as `ip address` shows them")
    })
}

/// The path, or one for each of the addresses that its name has.
async fn expand(spec: &PathSpec) -> Vec<PathSpec> {
    let found = match spec.expand {
        true => look_up(spec).await.unwrap_or_default(),
        false => Vec::new(),
    };
    match found.len() {
        // The name is looked up for each connection, as ever.
        0 | 1 => vec![spec.clone()],
        _ => {
            let pinned = |address| PathSpec { address: Some(address), ..spec.clone() };
            found.into_iter().take(ADDRESSES_MAX).map(pinned).collect()
        }
    }
}

/// The addresses of a path's server that this host has a route to, if it is named and is found.
async fn look_up(spec: &PathSpec) -> Option<Vec<IpAddr>> {
    let host = spec.host()?;
    let found: Vec<SocketAddr> = timeout(LOOKUP, lookup_host(host)).await.ok()?.ok()?.collect();
    // Without the address to go from there is no telling.
    can_go(spec).await.ok()?;
    let mut addresses = BTreeSet::new();
    for at in found {
        let any = match at {
            SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        let from = spec.source.unwrap_or(any);
        let Ok(socket) = UdpSocket::bind((from, 0)).await else { continue };
        // Sends nothing: fails where there is no way.
        if socket.connect(at).await.is_ok() {
            addresses.insert(at.ip());
        }
    }
    Some(addresses.into_iter().collect())
}
