//! Placement: which store of a pool an object lies in, and where it lay before. Pure.
//!
//! A pool's stores and their weights have a history: its **versions**, numbered from 0, at which everything
//! is in the home store. Under each version an object goes to one store, by weighted rendezvous hashing: the
//! store for which `-log2(h) / weight` is least, `h` being the first eight bytes, big-endian, of the MD5 of the store's id
//! (4 bytes, big-endian) and the object's key, over 2^64, and at least 2^-64. The logarithm is a fixed-point number
//! of 32 bits behind the point, rounded as `log2_of` does: all of it is whole numbers, and so the
//! same everywhere. A change of weights moves those objects only whose best store is another one, which is the least possible.
//!
//! **Stays.** Successive versions under which an object has the same store are one stay; its **generation**
//! is the first of them. An object lies below `at/<generation>/` of the store, in generation 0 without that. So an
//! object that comes back to a store has another name there than the first time, and a request to delete it
//! from there that comes late does no harm. Objects only move to stays of higher generations.

use super::stores::StoreId;
use crate::store::Key;
use md5::{Digest, Md5};

/// The most that a store may weigh.
pub const WEIGHT_MAX: u32 = 10_000;
/// What a store weighs where nothing is said.
pub const WEIGHT: u32 = 100;

/// Where an object lies under a run of versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stay {
    /// The first of the versions.
    pub generation: u32,
    /// The store.
    pub store: StoreId,
}

/// The stores of a pool and their weights, at all versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    stores: Vec<StoreId>,
    /// By version, the weights of the stores; those that are not there weigh nothing.
    weights: Vec<Vec<u32>>,
}

impl Default for Placement {
    fn default() -> Placement {
        Placement { stores: vec![StoreId::HOME], weights: vec![vec![WEIGHT]] }
    }
}

impl Placement {
    /// Of these stores and weights: at each version at least one store weighs something.
    pub(super) fn new(stores: Vec<StoreId>, weights: Vec<Vec<u32>>) -> Placement {
        Placement { stores, weights }
    }

    /// The newest version.
    pub fn version(&self) -> u32 {
        self.weights.len() as u32 - 1
    }

    /// What the store weighs at a version.
    pub fn weight(&self, version: u32, store: StoreId) -> u32 {
        let row = self.weights.get(version as usize);
        let at = self.stores.iter().position(|other| *other == store);
        row.zip(at).and_then(|(row, at)| row.get(at).copied()).unwrap_or_default()
    }

    /// Where the object lies under the version; `None` where that is not known here.
    pub fn stay(&self, version: u32, key: &Key) -> Option<Stay> {
        let places = self.places(version, key)?;
        let (generation, store) = *places.last()?;
        Some(Stay { generation, store: *self.stores.get(store)? })
    }

    /// Where the object lies or has lain, the newest stay first; never empty.
    pub fn stays(&self, key: &Key) -> Vec<Stay> {
        let places = self.places(self.version(), key).unwrap_or_default();
        let stay =
            |(generation, store): (u32, usize)| Stay { generation, store: self.stores[store] };
        places.into_iter().rev().map(stay).collect()
    }

    /// Every stay that an object may have, by generation.
    pub fn all_stays(&self) -> Vec<Stay> {
        let mut all = Vec::new();
        for version in 0..=self.version() {
            for store in &self.stores {
                if self.may_gain(version, *store) {
                    all.push(Stay { generation: version, store: *store });
                }
            }
        }
        all
    }

    /// Whether objects may go to the store at a version that were elsewhere before.
    fn may_gain(&self, version: u32, store: StoreId) -> bool {
        let weight = self.weight(version, store);
        let Some(before) = version.checked_sub(1) else { return weight > 0 };
        let lost = |other: &StoreId| {
            *other != store && self.weight(version, *other) < self.weight(before, *other)
        };
        weight > 0 && (weight > self.weight(before, store) || self.stores.iter().any(lost))
    }

    /// The generation and the place in `stores` of each stay until the version.
    fn places(&self, version: u32, key: &Key) -> Option<Vec<(u32, usize)>> {
        let rows = self.weights.get(..=version as usize)?;
        if version == 0 {
            return Some(vec![(0, 0)]);
        }
        let draws: Vec<u64> = self.stores.iter().map(|store| draw(*store, key)).collect();
        let mut places: Vec<(u32, usize)> = Vec::new();
        for (version, row) in rows.iter().enumerate() {
            let store = best(&draws, row)?;
            if places.last().is_none_or(|(_, last)| *last != store) {
                places.push((version as u32, store));
            }
        }
        Some(places)
    }
}

/// The store for which the draw by the weight is least; of equal ones the first.
fn best(draws: &[u64], weights: &[u32]) -> Option<usize> {
    let weighty = draws.iter().zip(weights).enumerate().filter(|(_, (_, weight))| **weight > 0);
    let least = weighty.min_by(|(_, (a, a_weighs)), (_, (b, b_weighs))| {
        let by = |draw: u64, weight: u32| u128::from(draw) * u128::from(weight);
        by(**a, **b_weighs).cmp(&by(**b, **a_weighs))
    });
    least.map(|(store, _)| store)
}

/// `-log2` of what the store draws for the object, in 2^-32.
fn draw(store: StoreId, key: &Key) -> u64 {
    let mut hash = Md5::new();
    hash.update(store.number().to_be_bytes());
    hash.update(key.as_str().as_bytes());
    let digest: [u8; 16] = hash.finalize().into();
    let first = digest.first_chunk::<8>().map_or(0, |first| u64::from_be_bytes(*first));
    (64 << 32) - log2_of(first.max(1))
}

/// The logarithm of a number that is not 0, in 2^-32, rounded down: the digits behind the point by
/// squaring, 64 bits of each square kept.
fn log2_of(number: u64) -> u64 {
    let whole = u64::from(number.ilog2());
    // From 1 to 2, with 63 bits behind the point.
    let mut rest = u128::from(number) << (63 - whole);
    let mut digits = 0;
    for _ in 0..32 {
        rest = (rest * rest) >> 63;
        let digit = (rest >> 64) as u64;
        rest >>= digit;
        digits = digits << 1 | digit;
    }
    whole << 32 | digits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Key {
        Key::new(&format!("volumes/v/log/{:02x}/{n:016x}", n & 255)).unwrap()
    }

    fn of(weights: &[&[u32]]) -> Placement {
        let stores =
            (0..weights.iter().map(|row| row.len()).max().unwrap() as u32).map(StoreId::of_number);
        let weights = weights.iter().map(|row| row.to_vec()).collect();
        Placement::new(stores.collect(), weights)
    }

    #[test]
    fn logarithms() {
        for (number, log) in [
            (1, 0.0),
            (2, 1.0),
            (3, 3f64.log2()),
            (u64::MAX, 64.0),
            (1 << 63, 63.0),
            (1_000_003, 1_000_003f64.log2()),
        ] {
            let ours = log2_of(number) as f64 / (1u64 << 32) as f64;
            assert!((ours - log).abs() < 1e-9, "{number}: {ours} {log}");
        }
    }

    #[test]
    fn shares_are_by_weight_and_moves_the_least_possible() {
        let placement = of(&[&[100], &[100, 100], &[100, 100, 200], &[100, 0, 200]]);
        let count = 20_000;
        let (mut gained, mut held) = ([0; 4], [[0f64; 3]; 4]);
        for key in (0..count).map(key) {
            let stays = placement.stays(&key);
            assert_eq!(stays.last(), Some(&Stay { generation: 0, store: StoreId::HOME }));
            for version in 0..4u32 {
                let stay = placement.stay(version, &key).unwrap();
                held[version as usize][stay.store.number() as usize] += 1.0;
                gained[version as usize] += u32::from(stay.generation == version);
                assert!(stays.contains(&stay));
                assert!(placement.all_stays().contains(&stay));
                // To what was added, from what was taken away.
                let new = [0, 1, 2, stay.store.number()][version as usize];
                assert!(stay.generation != version || stay.store.number() == new);
            }
        }
        for (version, shares) in
            [(1, [0.5, 0.5, 0.0]), (2, [0.25, 0.25, 0.5]), (3, [1.0 / 3.0, 0.0, 2.0 / 3.0])]
        {
            for (held, share) in held[version].iter().zip(shares) {
                assert!((held / f64::from(count) - share).abs() < 0.012, "{version}: {held}");
            }
        }
        for (version, share) in [(1, 0.5), (2, 0.5), (3, 0.25)] {
            assert!((f64::from(gained[version]) / f64::from(count) - share).abs() < 0.012);
        }
    }

    #[test]
    fn who_comes_back_has_another_name() {
        let placement = of(&[&[100], &[0, 100], &[100, 0]]);
        let stay = |generation, store| Stay { generation, store: StoreId::of_number(store) };
        assert_eq!(placement.stays(&key(1)), [stay(2, 0), stay(1, 1), stay(0, 0)]);
        assert_eq!(placement.all_stays(), [stay(0, 0), stay(1, 1), stay(2, 0)]);
        assert_eq!(placement.stay(3, &key(1)), None);
        let same = of(&[&[100], &[100, 50], &[100, 50], &[200, 100]]);
        assert!((0..100).all(|n| same.stays(&key(n)).len() <= 2));
    }
}
