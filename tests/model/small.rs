//! Small parts against naive ones: the cache, the commit point, the names of slots.

use objblk::cache::WeightedCache;
use objblk::format::checkpoint::Term;
use objblk::log::{CommitPoint, Terms};
use objblk::units::{Epoch, Seq};
use proptest::prelude::*;
use std::collections::BTreeSet;

#[derive(Clone, Debug)]
enum Use {
    Get(u8),
    Contains(u8),
    Insert(u8, u64),
}

fn uses() -> impl Strategy<Value = Vec<Use>> {
    let one = prop_oneof![
        3 => (0u8..12).prop_map(Use::Get),
        1 => (0u8..12).prop_map(Use::Contains),
        4 => (0u8..12, prop_oneof![Just(0), 1u64..20, 90u64..110])
            .prop_map(|(key, weight)| Use::Insert(key, weight)),
    ];
    prop::collection::vec(one, 1..200)
}

/// A cache as a list, the least recently used first.
#[derive(Default)]
struct List {
    entries: Vec<(u8, usize, u64)>,
    hits: u64,
    misses: u64,
}

impl List {
    fn get(&mut self, key: u8) -> Option<usize> {
        let Some(at) = self.entries.iter().position(|e| e.0 == key) else {
            self.misses += 1;
            return None;
        };
        let entry = self.entries.remove(at);
        self.entries.push(entry);
        self.hits += 1;
        Some(entry.1)
    }

    fn insert(&mut self, key: u8, value: usize, weight: u64) {
        if weight > CAPACITY {
            return;
        }
        self.entries.retain(|e| e.0 != key);
        self.entries.push((key, value, weight));
        while self.weight() > CAPACITY {
            self.entries.remove(0);
        }
    }

    fn weight(&self) -> u64 {
        self.entries.iter().map(|e| e.2).sum()
    }
}

const CAPACITY: u64 = 100;

/// Slots that a run of uploads may complete, in some order, some twice, some of the past.
fn completions() -> impl Strategy<Value = (u64, Vec<u64>)> {
    let order = prop::collection::vec(0u64..60, 0..40).prop_flat_map(|twice| {
        let mut all: Vec<u64> = (0..60).collect();
        all.extend(twice);
        Just(all).prop_shuffle()
    });
    (prop_oneof![Just(0), 1u64..50, Just((1 << 47) - 30)], order)
}

proptest! {
    #![proptest_config(crate::config(300))]

    #[test]
    fn the_cache_equals_a_list(uses in uses()) {
        let cache = WeightedCache::new(CAPACITY);
        let mut list = List::default();
        for (value, one) in uses.into_iter().enumerate() {
            match one {
                Use::Get(key) => prop_assert_eq!(cache.get(&key), list.get(key)),
                Use::Contains(key) => {
                    let there = list.entries.iter().any(|e| e.0 == key);
                    prop_assert_eq!(cache.contains(&key), there);
                }
                Use::Insert(key, weight) => {
                    cache.insert(key, value, weight);
                    list.insert(key, value, weight);
                }
            }
            prop_assert_eq!(cache.weight(), list.weight());
            prop_assert_eq!(cache.hits_and_misses(), (list.hits, list.misses));
        }
    }

    #[test]
    fn the_commit_point_equals_a_set((first, order) in completions()) {
        let mut point = CommitPoint::new(Seq(first));
        let mut done: BTreeSet<u64> = (0..first.min(60)).map(|n| first - 1 - n).collect();
        for n in order {
            // From somewhat before the first slot on.
            let seq = (first + n).saturating_sub(10);
            let before = point.next();
            let now = point.complete(Seq(seq));
            done.insert(seq);
            let expected = (first..).find(|seq| !done.contains(seq)).unwrap();
            prop_assert_eq!(now, Seq(expected));
            prop_assert_eq!(point.next(), now);
            prop_assert!(now >= before);
        }
    }

    #[test]
    fn terms_name_every_slot_that_is_needed(
        lengths in prop::collection::vec((1u64..6, 1u64..4), 1..12),
        oldest in 0u64..60,
    ) {
        let mut names = Vec::new();
        let mut terms = Terms::new(vec![Term { first: Seq(0), epoch: Epoch(0) }]);
        let mut epoch = 0;
        for (slots, skipped) in lengths {
            if !names.is_empty() {
                epoch += skipped;
                terms.begin(Seq(names.len() as u64), Epoch(epoch));
            }
            names.extend(std::iter::repeat_n(epoch, slots as usize));
        }
        terms.forget_before(Seq(oldest));
        for (seq, epoch) in (0..).zip(names).skip(oldest as usize) {
            prop_assert_eq!(terms.epoch_of(Seq(seq)), Epoch(epoch), "slot {}", seq);
        }
        // Nothing is kept that is not needed.
        let unneeded = terms.as_slice().iter().filter(|t| t.first <= Seq(oldest)).count();
        prop_assert!(unneeded <= 1);
    }
}
