//! The names of one copy. Slots and map objects are called the same in every copy of a store, everything else has the generation in
//! its name, as has what had to be put anew under the name of another one ([`Copy::shadows`]).

use crate::format::VolumeId;
use crate::format::keys;
use crate::format::mirror::Twin;
use crate::store::merge::Merge;
use crate::store::{
    Key, ListPage, MAX_PAGE, Op, Store, StoreError, StoreErrorKind, StoreResult, list_all,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What keeps its name, below a volume's prefix.
const BULK: [&str; 2] = ["log/", "map/"];

/// One copy of a volume, as its names go.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    pub volume: VolumeId,
    pub twin: Twin,
    /// Slots that are read under their name in this generation.
    pub shadows: Arc<BTreeSet<Key>>,
}

/// The part of a name that is the volume's own.
fn rest(volume: VolumeId, key: &Key) -> &str {
    key.as_str().strip_prefix(&keys::volume_prefix(volume)).unwrap_or_default()
}

/// Whether copies of one store share the object.
pub(super) fn is_bulk(volume: VolumeId, key: &Key) -> bool {
    BULK.iter().any(|bulk| rest(volume, key).starts_with(bulk))
}

fn named(name: String) -> StoreResult<Key> {
    Key::new(&name).ok_or_else(|| {
        StoreError::new(StoreErrorKind::Invalid, Op::Get, name, "this is no name of an object")
    })
}

impl Copy {
    /// The copy, of which nothing is known to have a name of its own.
    pub fn new(volume: VolumeId, twin: Twin) -> Copy {
        Copy { volume, twin, shadows: Arc::default() }
    }

    /// The copy, once it is known what it has under names of its own.
    pub async fn open(store: &dyn Store, volume: VolumeId, twin: Twin) -> StoreResult<Copy> {
        let mut copy = Copy::new(volume, twin);
        let mut shadows = BTreeSet::new();
        for bulk in BULK {
            let below = copy.below();
            for object in list_all(store, &format!("{below}{bulk}")).await? {
                shadows.extend(copy.plain(&below, &object.key));
            }
        }
        copy.shadows = Arc::new(shadows);
        Ok(copy)
    }

    fn below(&self) -> String {
        keys::mirror_generation(self.volume, self.twin.generation)
    }

    fn plain(&self, below: &str, name: &Key) -> Option<Key> {
        let rest = name.as_str().strip_prefix(below)?;
        Key::new(&format!("{}{rest}", keys::volume_prefix(self.volume)))
    }

    /// Its name in this generation alone.
    pub fn own(&self, key: &Key) -> StoreResult<Key> {
        named(format!("{}{}", self.below(), rest(self.volume, key)))
    }

    /// The name that it is created by.
    pub fn created(&self, key: &Key) -> StoreResult<Key> {
        match is_bulk(self.volume, key) {
            true => named(format!("{}{}", keys::mirror(self.volume), rest(self.volume, key))),
            false => self.own(key),
        }
    }

    /// The name that it is read by.
    pub fn read(&self, key: &Key) -> StoreResult<Key> {
        if self.shadows.contains(key) { self.own(key) } else { self.created(key) }
    }

    /// All names that it may have.
    pub fn all(&self, key: &Key) -> StoreResult<Vec<Key>> {
        let mut names = vec![self.created(key)?];
        if is_bulk(self.volume, key) {
            names.push(self.own(key)?);
        }
        Ok(names)
    }

    /// One page of the objects whose keys begin with `prefix`, which is that of the volume or longer.
    pub async fn list(
        &self,
        store: &dyn Store,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> StoreResult<ListPage> {
        let volume = keys::volume_prefix(self.volume);
        let (limit, wanted) =
            (limit.clamp(1, MAX_PAGE), prefix.strip_prefix(&volume).unwrap_or_default());
        let after = match after {
            Some(after) if after.as_str() > volume.as_str() => {
                match after.as_str().strip_prefix(&volume) {
                    Some(rest) => Some(rest),
                    None => return Ok(ListPage::default()),
                }
            }
            _ => None,
        };
        let (base, own) = (keys::mirror(self.volume), self.below());
        let bulk = BULK.iter().filter_map(|bulk| match bulk.starts_with(wanted) {
            true => Some((base.clone(), *bulk)),
            false => wanted.starts_with(bulk).then(|| (base.clone(), wanted)),
        });
        let mut merge = Merge::default();
        for (below, wanted) in bulk.chain([(own.clone(), wanted)]) {
            let after = after.map(|after| named(format!("{below}{after}"))).transpose()?;
            let page = store.list(&format!("{below}{wanted}"), after.as_ref(), limit).await?;
            merge.add(page, |key| self.plain(&below, key));
        }
        Ok(merge.page(limit))
    }

    /// All of its objects.
    pub async fn list_all(&self, store: &dyn Store) -> StoreResult<BTreeMap<Key, u64>> {
        let (prefix, mut all) = (keys::volume_prefix(self.volume), BTreeMap::new());
        loop {
            let after = all.last_key_value().map(|(key, _)| key);
            let page = self.list(store, &prefix, after, MAX_PAGE).await?;
            let is_last = !page.more || page.objects.is_empty();
            all.extend(page.objects.into_iter().map(|object| (object.key, object.size)));
            if is_last {
                return Ok(all);
            }
        }
    }
}
