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
//! An entry whose time is up may go on in the main queue as something lighter ([`Lighten`]): of what is
//! used again and again in small parts, nearly as many parts find a place as if they had come alone.
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

/// What an entry does before it is put out.
pub trait Lighten: Sized {
    /// Keeps what was used of it, if that is much less than all: its new weight, and what is left over.
    fn lighten(&mut self) -> Option<(u64, Self)> {
        None
    }

    /// It takes the place of `before`, which was lighter.
    fn succeed(&mut self, _before: &Self) {}
}

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

impl<K: Hash + Eq + Copy, V: Lighten> FifoCache<K, V> {
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

    /// What `look` says of the value of `key`, while the entry is locked: be short. Where it says something,
    /// that counts as a use of the entry if `counts` says so: the parts of a scan are none.
    pub fn with<R>(
        &self,
        key: &K,
        counts: bool,
        look: impl FnOnce(&mut V) -> Option<R>,
    ) -> Option<R> {
        let hash = self.hashing.hash_one(key);
        let mut shard = self.shard(hash);
        let slot = shard.find(hash, key)?;
        let entry = shard.slots[slot as usize].as_mut()?;
        let said = look(&mut entry.value)?;
        if counts && entry.uses < USES_MAX {
            entry.uses += 1;
        }
        shard.hits += 1;
        Some(said)
    }

    /// What `look` says of the value of `key`; is no use of it, and is not counted.
    pub fn peek<R>(&self, key: &K, look: impl FnOnce(&mut V) -> R) -> Option<R> {
        let hash = self.hashing.hash_one(key);
        let mut shard = self.shard(hash);
        let slot = shard.find(hash, key)?;
        shard.slots[slot as usize].as_mut().map(|entry| look(&mut entry.value))
    }

    /// Puts an entry in, and as many others out as that takes. One that is heavier than a shard is
    /// not kept; one that is there stays as it is, since a key names something immutable, unless it has
    /// become lighter.
    pub fn insert(&self, key: K, value: V, weight: u64) {
        self.insert_made(key, weight, |_| value);
    }

    /// As [`Self::insert`] of what `make` makes, perhaps of a value that was put out. Nothing is
    /// locked meanwhile.
    pub fn insert_made(&self, key: K, weight: u64, make: impl FnOnce(Option<V>) -> V) {
        let hash = self.hashing.hash_one(key);
        let out = {
            let mut shard = self.shard(hash);
            if weight > shard.capacity || shard.holds(hash, &key, weight) {
                return;
            }
            shard.make_room(weight)
        };
        let value = make(out);
        let mut shard = self.shard(hash);
        // Somebody else may have put it in meanwhile: names are of immutable things.
        if !shard.holds(hash, &key, weight) {
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

impl<K: Hash + Eq + Copy, V: Lighten> Shard<K, V> {
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

    /// True where the entry is there, and not lighter.
    fn holds(&self, hash: u64, key: &K, weight: u64) -> bool {
        let entry = self.find(hash, key).and_then(|slot| self.slots[slot as usize].as_ref());
        entry.is_some_and(|entry| entry.weight >= weight)
    }

    /// Puts entries out until `weight` fits. Returns the last that was put out.
    fn make_room(&mut self, weight: u64) -> Option<V> {
        let mut out = None;
        while self.weight() + weight > self.capacity {
            let Some(value) = self.evict() else { break };
            out = Some(value);
        }
        out
    }

    /// Takes out what is least worth keeping: an entry, or what it does without.
    fn evict(&mut self) -> Option<V> {
        loop {
            let from_small =
                self.small.weight > self.capacity / SMALL_PART || self.main.order.is_empty();
            let queue = if from_small { &mut self.small } else { &mut self.main };
            let slot = queue.order.pop_front()?;
            let place = &mut self.slots[slot as usize];
            let Some(entry) = place else { continue };
            queue.weight -= entry.weight;
            let stays = entry.uses > 0;
            // What goes on from the small queue has not been there for long enough to tell.
            let left_over = if from_small && stays { None } else { entry.value.lighten() };
            let left_over = left_over.map(|(weight, value)| {
                entry.weight = weight;
                value
            });
            if stays || left_over.is_some() {
                // In the small queue one use is enough, and starts anew.
                entry.uses = if from_small { 0 } else { entry.uses.saturating_sub(1) };
                entry.in_main = true;
                self.main.weight += entry.weight;
                self.main.order.push_back(slot);
                match left_over {
                    Some(value) => return Some(value),
                    None => continue,
                }
            }
            self.unused.push(slot);
            let entry = place.take()?;
            if let Ok(found) = self.index.find_entry(entry.hash, |at| *at == slot) {
                found.remove();
            }
            if !entry.in_main {
                let remembered = self.index.len();
                self.ghosts.add(entry.hash, remembered);
            }
            return Some(entry.value);
        }
    }

    fn insert(&mut self, mut entry: Entry<K, V>) {
        let (hash, weight) = (entry.hash, entry.weight);
        if let Some(slot) = self.find(hash, &entry.key)
            && let Some(lighter) = self.slots[slot as usize].as_mut()
        {
            let queue = if lighter.in_main { &mut self.main } else { &mut self.small };
            queue.weight += weight - lighter.weight;
            entry.value.succeed(&lighter.value);
            (lighter.value, lighter.weight) = (entry.value, weight);
            lighter.uses = USES_MAX.min(lighter.uses + 1);
            return;
        }
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

    impl Lighten for u32 {}
    impl Lighten for Vec<u8> {}

    fn get(cache: &FifoCache<u32, u32>, key: u32) -> Option<u32> {
        cache.with(&key, true, |value| Some(*value))
    }

    fn is_there(cache: &FifoCache<u32, u32>, key: u32) -> bool {
        cache.peek(&key, |_| ()).is_some()
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
            cache.with(&key, false, |_| Some(()));
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
        assert_eq!((0..500).filter(|key| is_there(&cache, *key)).count(), 0);
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
        assert!(reused && cache.peek(&9, |_| ()).is_some() && cache.weight() == 3 * 64);
        cache.insert(10, vec![0; 200], 200);
        assert!(cache.peek(&10, |_| ()).is_none());
    }

    /// Weighs 16; 1 once it is lighter.
    #[derive(Debug)]
    struct Large {
        light: bool,
    }

    impl Lighten for Large {
        fn lighten(&mut self) -> Option<(u64, Large)> {
            let left_over = Large { light: false };
            (!std::mem::replace(&mut self.light, true)).then_some((1, left_over))
        }
    }

    #[test]
    fn what_becomes_lighter_stays_as_long_as_it_is_used() {
        let cache = FifoCache::new(160);
        let whole = |key: &u32| cache.with(key, true, |l: &mut Large| (!l.light).then_some(()));
        let part = |key: &u32| cache.with(key, true, |_| Some(()));
        for _ in 0..20 {
            for key in 0..50 {
                if part(&key).is_none() {
                    cache.insert(key, Large { light: false }, 16);
                }
                assert!(cache.weight() <= 160);
            }
        }
        let before = cache.hits_and_misses().0;
        assert_eq!((0..50).filter(|key| part(key).is_some()).count(), 50);
        assert_eq!(cache.hits_and_misses().0, before + 50);
        // All of it is asked for: it is whole again, and what says nothing is no use of it.
        let light = (0..50).find(|key| whole(key).is_none()).unwrap();
        let weight = cache.weight();
        cache.insert(light, Large { light: false }, 16);
        assert!(whole(&light).is_some() && cache.weight() > weight.min(160 - 16));
        for key in 100..1000 {
            cache.insert(key, Large { light: false }, 16);
            assert!(cache.weight() <= 160);
        }
    }
}
