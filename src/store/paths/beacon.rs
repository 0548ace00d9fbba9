//! The object by which paths show that they lead to one store.

use super::spec::PathSpec;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{GetRange, Key, Store, StoreErrorKind};
use bytes::Bytes;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a path may take to show it.
const PATIENCE: Duration = Duration::from_secs(5);

/// A small object by which a store is known. Something of it never changes once it is there.
#[derive(Clone, Debug)]
pub struct Landmark {
    /// What it is called.
    pub key: Key,
    /// What of it never changes.
    pub mark: fn(&Bytes) -> Bytes,
}

impl From<Key> for Landmark {
    /// Of which nothing ever changes.
    fn from(key: Key) -> Landmark {
        Landmark { key, mark: Bytes::clone }
    }
}

#[derive(Debug)]
pub(super) struct Beacon {
    key: Key,
    mark: fn(&Bytes) -> Bytes,
    /// What it is, once that is known.
    known: Mutex<Option<Bytes>>,
}

/// What a path shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// What never changes of the object, or that there is none.
    Shown(Option<Bytes>),
    /// The store asks to slow down.
    Busy,
    /// Nothing, and why.
    Dark(String),
}

impl Beacon {
    pub(super) fn new(Landmark { key, mark }: Landmark) -> Beacon {
        Beacon { key, mark, known: Mutex::default() }
    }

    /// Looks at it through `store`.
    pub(super) async fn look(&self, store: &dyn Store) -> Sight {
        match tokio::time::timeout(PATIENCE, store.get(&self.key, GetRange::All)).await {
            Ok(Ok(bytes)) => Sight::Shown(Some((self.mark)(&bytes))),
            Ok(Err(e)) => match e.kind {
                StoreErrorKind::NotFound => Sight::Shown(None),
                StoreErrorKind::Throttled => Sight::Busy,
                _ => Sight::Dark(e.detail),
            },
            Err(_) => Sight::Dark(format!("no answer within {PATIENCE:?}")),
        }
    }

    /// What it is known to be.
    pub(super) fn known(&self) -> Option<Bytes> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It is this from now on.
    pub(super) fn learn(&self, bytes: Bytes) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
    }

    /// What is wrong with a path that shows this, if something is.
    pub(super) fn judge(&self, shown: &Option<Bytes>) -> Option<String> {
        let known = self.known()?;
        (shown.as_ref() != Some(&known)).then(|| self.strange(shown))
    }

    fn strange(&self, shown: &Option<Bytes>) -> String {
        let what = if shown.is_some() { "is another one there" } else { "is not there" };
        format!("it leads to another store: {} {what}", self.key)
    }

    /// Lets a new path by `store` in, which has to show what is shown by `all`.
    ///
    /// Errors: as those of [`super::MultipathStore::add`].
    pub(super) async fn admit(&self, all: &dyn Store, store: &dyn Store, name: &str) -> Result<()> {
        let refused = |kind| Error::new(kind, format!("the path {name} is not added"));
        let dark = |why: String| Err(refused(ErrorKind::Store).because(why));
        let known = match self.known() {
            Some(known) => Some(known),
            None => match self.look(all).await {
                Sight::Shown(shown) => shown,
                Sight::Busy => return dark("the store asks to slow down".to_owned()),
                Sight::Dark(why) => return dark(format!("the other paths do not work: {why}")),
            },
        };
        match self.look(store).await {
            Sight::Shown(shown) if shown == known => {
                known.into_iter().for_each(|bytes| self.learn(bytes));
                Ok(())
            }
            Sight::Shown(shown) => Err(refused(ErrorKind::Usage)
                .because(self.strange(&shown))
                .hint("all paths must lead to the same bucket of one store")),
            Sight::Busy => dark("it asks to slow down".to_owned()),
            Sight::Dark(why) => dark(why),
        }
    }

    /// Finds out what it is from what all paths that answer show.
    ///
    /// Errors: store, where two show different things.
    pub(super) fn compare(&self, sights: &[(&PathSpec, Sight)]) -> Result<()> {
        let mut shown = sights.iter().filter_map(|(spec, sight)| match sight {
            Sight::Shown(shown) => Some((*spec, shown)),
            _ => None,
        });
        let Some((first, seen)) = shown.next() else { return Ok(()) };
        let what = |shown: &Option<Bytes>| match shown {
            Some(_) => "has one",
            None => "has none",
        };
        if let Some((other, differs)) = shown.find(|(_, shown)| *shown != seen) {
            let message =
                format!("the paths {} and {} lead to two stores", first.name(), other.name());
            let (key, one, two) = (&self.key, what(seen), what(differs));
            let why = match one == two {
                true => format!("{key} differs"),
                false => format!("the first {one} {key}, the second {two}"),
            };
            return Err(Error::new(ErrorKind::Store, message)
                .because(why)
                .hint("give paths to the same bucket of one store only"));
        }
        if let Some(bytes) = seen {
            self.learn(bytes.clone());
        }
        Ok(())
    }
}
