//! A least-recently-used cache bounded by the weight of its entries.

use lru::LruCache;
use std::hash::Hash;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Least-recently-used entries up to a total weight. Invariant: the weight of all entries is at
/// most the capacity after every call.
#[derive(Debug)]
pub struct WeightedCache<K: Hash + Eq, V> {
    capacity: u64,
    inner: Mutex<Inner<K, V>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

#[derive(Debug)]
struct Inner<K: Hash + Eq, V> {
    entries: LruCache<K, (V, u64)>,
    weight: u64,
}

impl<K: Hash + Eq, V: Clone> WeightedCache<K, V> {
    /// An empty cache of `capacity` (in the unit of the weights given to [`Self::insert`]).
    pub fn new(capacity: u64) -> WeightedCache<K, V> {
        let inner = Mutex::new(Inner { entries: LruCache::unbounded(), weight: 0 });
        WeightedCache { capacity, inner, hits: AtomicU64::new(0), misses: AtomicU64::new(0) }
    }

    /// The value of `key`, which becomes the most recently used.
    pub fn get(&self, key: &K) -> Option<V> {
        let found = self.lock().entries.get(key).map(|(value, _)| value.clone());
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// True where `key` is there; changes neither order nor counters.
    pub fn contains(&self, key: &K) -> bool {
        self.lock().entries.contains(key)
    }

    /// Puts an entry in, and as many old ones out as that takes. One that is heavier than the
    /// whole cache is not kept.
    pub fn insert(&self, key: K, value: V, weight: u64) {
        if weight > self.capacity {
            return;
        }
        let mut inner = self.lock();
        inner.weight += weight;
        if let Some((_, old)) = inner.entries.put(key, (value, weight)) {
            inner.weight -= old;
        }
        while inner.weight > self.capacity {
            match inner.entries.pop_lru() {
                Some((_, (_, old))) => inner.weight -= old,
                None => break,
            }
        }
    }

    /// Total weight of the entries.
    pub fn weight(&self) -> u64 {
        self.lock().weight
    }

    /// Lookups that found their key, and those that did not.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner<K, V>> {
        // No call leaves the list half changed, so a poisoned lock guards a sound cache.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evicts_by_weight_and_use() {
        let cache = WeightedCache::new(10);
        cache.insert("a", 1, 4);
        cache.insert("b", 2, 4);
        assert_eq!(cache.get(&"a"), Some(1));
        cache.insert("c", 3, 4);
        assert_eq!((cache.get(&"b"), cache.get(&"a"), cache.weight()), (None, Some(1), 8));
        cache.insert("a", 9, 10);
        assert_eq!((cache.get(&"a"), cache.weight()), (Some(9), 10));
        cache.insert("d", 4, 11);
        assert_eq!((cache.get(&"d"), cache.weight()), (None, 10));
        assert_eq!(cache.hits_and_misses(), (3, 2));
    }
}
