//! Small parts against naive ones: the cache, the commit point, the names of slots.

use objblk::cache::{FifoCache, Lighten};
use objblk::format::checkpoint::Term;
use objblk::log::{CommitPoint, Terms};
use objblk::units::{Epoch, Seq};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
enum Use {
    Get(u8, bool),
    Insert(u8),
}

fn uses() -> impl Strategy<Value = Vec<Use>> {
    let one = prop_oneof![
        1 => (0u8..40, any::<bool>()).prop_map(|(key, counts)| Use::Get(key, counts)),
        1 => (0u8..40).prop_map(Use::Insert),
    ];
    prop::collection::vec(one, 1..300)
}

/// What an entry weighs; some are as heavy as the cache, or heavier.
fn weight(key: u8) -> u64 {
    [0, 1, 3, 7, 8, 12, 20, CAPACITY, CAPACITY + 1][usize::from(key) % 9]
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

/// A value; those of odd keys may become light, and say nothing then.
#[derive(Debug)]
struct Value {
    of: u8,
    light: bool,
}

impl Value {
    fn new(of: u8) -> Value {
        Value { of, light: false }
    }

    fn weight(&self) -> u64 {
        if self.light { 1 } else { weight(self.of) }
    }

    fn whole(&mut self) -> Option<u8> {
        (!self.light).then_some(self.of)
    }
}

impl Lighten for Value {
    fn lighten(&mut self) -> Option<(u64, Value)> {
        let may = self.of % 2 == 1 && self.weight() > 1 && !self.light;
        may.then(|| (1, Value::new(std::mem::replace(self, Value { of: self.of, light: true }).of)))
    }
}

proptest! {
    #![proptest_config(crate::config(300))]

    /// Whatever a cache keeps: it is right, as heavy as it says, and nothing left without need.
    #[test]
    fn the_cache_keeps_what_fits(uses in uses()) {
        let cache: FifoCache<u8, Value> = FifoCache::new(CAPACITY);
        let is_whole = |key: u8| cache.peek(&key, |value| value.whole()).flatten().is_some();
        let (mut hits, mut inserted) = (0, BTreeSet::new());
        for one in uses {
            match one {
                Use::Get(key, counts) => {
                    let there = is_whole(key);
                    let found = cache.with(&key, counts, Value::whole);
                    prop_assert_eq!(found, there.then_some(key));
                    hits += u64::from(there);
                }
                Use::Insert(key) => {
                    cache.insert(key, Value::new(key), weight(key));
                    prop_assert_eq!(is_whole(key), weight(key) <= CAPACITY);
                    inserted.insert(key);
                }
            }
            let weights = (0..40).filter_map(|key| Some((key, cache.peek(&key, |v| v.weight())?)));
            let kept: BTreeMap<u8, u64> = weights.collect();
            let total: u64 = kept.values().sum();
            prop_assert_eq!(cache.weight(), total);
            prop_assert!(total <= CAPACITY && kept.keys().all(|key| inserted.contains(key)));
            let wanted: u64 = inserted.iter().map(|key| weight(*key)).sum();
            prop_assert!(wanted > CAPACITY || (kept.len() == inserted.len() && total == wanted));
            prop_assert_eq!(cache.hits_and_misses(), (hits, 0));
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
