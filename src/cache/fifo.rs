//! A cache bounded by the weight of its entries, in which a scan does not push out what is used
//! again and again.
//!
//! Replacement is S3-FIFO (Yang and others, "FIFO queues are all you need for cache eviction", SOSP
//! 2023): what is new waits in a *small* queue, a quarter of the cache, so that what was read ahead is
//! there when its reader comes; what was used there goes on
//! to the *main* queue, whose entries get another round for each use; what was not used leaves, and
//! only its hash is remembered, so that it goes to the main queue when it is soon asked for again. A
//! hit moves nothing: it counts up to three.
//!
//! Split into shards by hash, so that queues of a frontend seldom meet at one lock. Hashes have no
//! seed: the same calls have the same outcome, which simulated worlds need, and keys are our own
//! names.

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Capacity for which one more shard is made.
const SHARD_WEIGHT: u64 = 8 << 20;
/// Shards at most.
const SHARDS_MAX: u64 = 16;
/// The small queue's part of the capacity.
const SMALL_PART: u64 = 4;
/// Uses that are counted.
const USES_MAX: u8 = 3;

/// Entries up to a total weight. Invariant: the weight of all entries is at most the capacity after
/// every call.
#[derive(Debug)]
pub struct FifoCache<K, V> {
    shards: Box<[Mutex<Shard<K, V>>]>,
    hashing: FixedState,
    misses: AtomicU64,
}

#[derive(Debug)]
struct Shard<K, V> {
    capacity: u64,
    /// The slots by the hashes of their keys.
    index: HashTable<u32>,
    slots: Vec<Option<Entry<K, V>>>,
    unused: Vec<u32>,
    small: Queue,
    main: Queue,
    ghosts: Ghosts,
    hits: u64,
}

#[derive(Debug)]
struct Entry<K, V> {
    hash: u64,
    key: K,
    value: V,
    weight: u64,
    uses: u8,
    in_main: bool,
}

/// Slots in the order in which they are looked at.
#[derive(Debug, Default)]
struct Queue {
    order: VecDeque<u32>,
    weight: u64,
}

impl<K: Hash + Eq + Copy, V> FifoCache<K, V> {
    /// An empty cache of `capacity` (in the unit of the weights given to [`Self::insert`]).
    pub fn new(capacity: u64) -> FifoCache<K, V> {
        let shards = (capacity / SHARD_WEIGHT).clamp(1, SHARDS_MAX);
        let shard = |_| Mutex::new(Shard::new(capacity / shards));
        FifoCache {
            shards: (0..shards).map(shard).collect(),
            hashing: FixedState::default(),
            misses: AtomicU64::new(0),
        }
    }

    /// What `look` says of the value of `key`, while the entry is locked: be short. It counts as a
    /// use of it where `counts` says so: the parts of a scan are none.
    pub fn with<R>(&self, key: &K, counts: bool, look: impl FnOnce(&V) -> R) -> Option<R> {
        let hash = self.hashing.hash_one(key);
        let mut shard = self.shard(hash);
        let slot = shard.find(hash, key)?;
        shard.hits += 1;
        let entry = shard.slots[slot as usize].as_mut()?;
        if counts && entry.uses < USES_MAX {
            entry.uses += 1;
        }
        Some(look(&entry.value))
    }

    /// True where `key` is there; is no use of it, and is not counted.
    pub fn contains(&self, key: &K) -> bool {
        let hash = self.hashing.hash_one(key);
        self.shard(hash).find(hash, key).is_some()
    }

    /// Puts an entry in, and as many others out as that takes. One that is heavier than a shard is
    /// not kept; one that is there stays as it is, since a key names something immutable.
    pub fn insert(&self, key: K, value: V, weight: u64) {
        self.insert_made(key, weight, |_| value);
    }

    /// As [`Self::insert`] of what `make` makes, perhaps of a value that was put out. Nothing is
    /// locked meanwhile.
    pub fn insert_made(&self, key: K, weight: u64, make: impl FnOnce(Option<V>) -> V) {
        let hash = self.hashing.hash_one(key);
        let out = {
            let mut shard = self.shard(hash);
            if weight > shard.capacity || shard.find(hash, &key).is_some() {
                return;
            }
            shard.make_room(weight)
        };
        let value = make(out);
        let mut shard = self.shard(hash);
        // Somebody else may have put it in meanwhile: names are of immutable things.
        if shard.find(hash, &key).is_none() {
            drop(shard.make_room(weight));
            shard.insert(Entry { hash, key, value, weight, uses: 0, in_main: false });
        }
    }

    /// Total weight of the entries.
    pub fn weight(&self) -> u64 {
        self.shards.iter().map(|shard| lock(shard).weight()).sum()
    }

    /// What new entries may weigh before they push each other out: more than the small queue's part where the
    /// main queue is not full.
    pub fn room(&self) -> u64 {
        let room = |shard: &Mutex<Shard<K, V>>| {
            let shard = lock(shard);
            (shard.capacity / SMALL_PART).max(shard.capacity - shard.main.weight)
        };
        self.shards.iter().map(room).sum()
    }

    /// Counts something that was not there: callers may look twice before they know.
    pub fn count_miss(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
    }

    /// Lookups that found their key, and misses that were counted.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        let hits = self.shards.iter().map(|shard| lock(shard).hits).sum();
        (hits, self.misses.load(Ordering::Relaxed))
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard<K, V>> {
        // A table takes low bits and the highest seven of a hash; the shard comes from others.
        let at = (hash >> 40) as usize % self.shards.len();
        lock(&self.shards[at])
    }
}

fn lock<T>(shard: &Mutex<T>) -> MutexGuard<'_, T> {
    // No call leaves a shard half changed, so a poisoned lock guards a sound one.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Hash + Eq + Copy, V> Shard<K, V> {
    fn new(capacity: u64) -> Shard<K, V> {
        Shard {
            capacity,
            index: HashTable::new(),
            slots: Vec::new(),
            unused: Vec::new(),
            small: Queue::default(),
            main: Queue::default(),
            ghosts: Ghosts::default(),
            hits: 0,
        }
    }

    fn weight(&self) -> u64 {
        self.small.weight + self.main.weight
    }

    fn find(&self, hash: u64, key: &K) -> Option<u32> {
        let is_it = |slot: &u32| self.slots[*slot as usize].as_ref().is_some_and(|e| e.key == *key);
        self.index.find(hash, is_it).copied()
    }

    /// Puts entries out until `weight` fits. Returns the last of them.
    fn make_room(&mut self, weight: u64) -> Option<V> {
        let mut out = None;
        while self.weight() + weight > self.capacity {
            let Some(entry) = self.evict() else { break };
            if !entry.in_main {
                let remembered = self.index.len();
                self.ghosts.add(entry.hash, remembered);
            }
            out = Some(entry.value);
        }
        out
    }

    /// Takes out what is least worth keeping.
    fn evict(&mut self) -> Option<Entry<K, V>> {
        loop {
            let from_small =
                self.small.weight > self.capacity / SMALL_PART || self.main.order.is_empty();
            let queue = if from_small { &mut self.small } else { &mut self.main };
            let slot = queue.order.pop_front()?;
            let place = &mut self.slots[slot as usize];
            let Some(entry) = place else { continue };
            queue.weight -= entry.weight;
            if entry.uses > 0 {
                // In the small queue one use is enough, and starts anew.
                entry.uses = if from_small { 0 } else { entry.uses - 1 };
                entry.in_main = true;
                self.main.weight += entry.weight;
                self.main.order.push_back(slot);
                continue;
            }
            self.unused.push(slot);
            let entry = place.take()?;
            if let Ok(found) = self.index.find_entry(entry.hash, |at| *at == slot) {
                found.remove();
            }
            return Some(entry);
        }
    }

    fn insert(&mut self, mut entry: Entry<K, V>) {
        let (hash, weight) = (entry.hash, entry.weight);
        entry.in_main = self.ghosts.remove(hash);
        let queue = if entry.in_main { &mut self.main } else { &mut self.small };
        let slot = self.unused.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.slots[slot as usize] = Some(entry);
        queue.weight += weight;
        queue.order.push_back(slot);
        let slots = &self.slots;
        let hash_of = |slot: &u32| slots[*slot as usize].as_ref().map_or(0, |entry| entry.hash);
        self.index.insert_unique(hash, slot, hash_of);
    }
}

/// Hashes of what left the small queue unused, as many as there are entries.
#[derive(Debug, Default)]
struct Ghosts {
    order: VecDeque<u64>,
    there: HashSet<u64, FixedState>,
}

impl Ghosts {
    fn add(&mut self, hash: u64, most: usize) {
        if self.there.insert(hash) {
            self.order.push_back(hash);
        }
        while self.order.len() > most {
            // One that was asked for again is no longer in the set.
            self.order.pop_front().map(|old| self.there.remove(&old));
        }
    }

    fn remove(&mut self, hash: u64) -> bool {
        self.there.remove(&hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(cache: &FifoCache<u32, u32>, key: u32) -> Option<u32> {
        cache.with(&key, true, |value| *value)
    }

    #[test]
    fn a_scan_does_not_push_out_what_is_used() {
        let cache = FifoCache::new(100);
        for key in 0..50 {
            cache.insert(key, key * 2, 1);
            assert_eq!(get(&cache, key), Some(key * 2));
        }
        for key in 1000..9000 {
            cache.insert(key, key, 1);
            cache.with(&key, false, |_| ());
            assert!(cache.weight() <= 100);
        }
        assert!((0..50).all(|key| get(&cache, key) == Some(key * 2)));
        // The scan had what they left.
        assert_eq!(cache.room(), 50);
        assert_eq!(FifoCache::<u32, u32>::new(100).room(), 100);
    }

    #[test]
    fn what_is_asked_for_again_soon_stays() {
        let cache = FifoCache::new(100);
        for key in 0..150 {
            cache.insert(key, key, 1);
        }
        assert_eq!(get(&cache, 40), None);
        cache.insert(40, 40, 1);
        for key in 1000..1500 {
            cache.insert(key, key, 1);
        }
        assert_eq!(get(&cache, 40), Some(40));
        assert_eq!(cache.hits_and_misses(), (1, 0));
    }

    #[test]
    fn what_is_no_longer_used_leaves() {
        let cache = FifoCache::new(100);
        for round in 0..10 {
            for key in 0..100 {
                let key = round * 100 + key;
                cache.insert(key, key, 1);
                assert!((0..9).all(|_| get(&cache, key).is_some()));
            }
        }
        assert_eq!((0..500).filter(|key| cache.contains(key)).count(), 0);
        assert!(cache.weight() > 90);
    }

    #[test]
    fn values_that_leave_are_used_again() {
        let cache = FifoCache::new(3 * 64);
        for key in 0..3 {
            cache.insert(key, vec![0_u8; 64], 64);
        }
        let mut reused = false;
        cache.insert_made(9, 64, |out| {
            reused = out.is_some();
            out.unwrap_or_default()
        });
        assert!(reused && cache.contains(&9) && cache.weight() == 3 * 64);
        cache.insert(10, vec![0; 200], 200);
        assert!(!cache.contains(&10));
    }
}
