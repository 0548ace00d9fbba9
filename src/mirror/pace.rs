//! How quickly the two copies of a volume answer, and which of them is asked. Pure: durations are given, there is no clock.
//!
//! Each store has a mean of what its answers took, for small requests and for large ones. The faster is asked; the one that decides
//! where nothing tells them apart by a fifth. A store that was not asked for a while is looked at again by one request in
//! [`LOOK_AGAIN`], and by the next ones as well as long as it answers more quickly than the other one does on average, so that it
//! is used again soon after it has recovered. One that is late, or fails, counts as slower than the one that answered instead, whatever
//! it took before.
//!
//! Invariants: only stores that were offered are chosen; a look at the slower one costs its request what the faster one takes as
//! a rule, and no more.

use crate::format::stores::StoreId;
use crate::store::GetRange;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Up to so many bytes a request counts as a small one.
const SMALL: u64 = 256 << 10;
/// One request in so many looks whether the slower store has become the faster one.
const LOOK_AGAIN: u32 = 64;
/// How far one answer moves the mean of a store that is used.
const STEP: f64 = 0.125;
/// The same where it was not used for a while, so that what is known of it is old.
const STALE_STEP: f64 = 0.5;
/// What a store must take, in parts of what the one that decides takes, to be preferred.
const BETTER: f64 = 0.8;
/// After so many times what is usual the other one is asked as well.
const PATIENCE: u32 = 4;
/// The noise of a near store is not late.
const LATE_MIN: Duration = Duration::from_millis(20);
/// When the other one is asked at the latest, and where nothing is known.
pub(super) const LATE: Duration = Duration::from_millis(500);

/// What is known of one store for requests of about one size.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    /// What its answers take as a rule.
    usual: Option<Duration>,
    /// What it is taken to take now, by its answers and by what had none in time.
    guess: Option<Duration>,
}

/// The mean after one more.
fn moved(mean: Option<Duration>, took: Duration, step: f64) -> Duration {
    mean.map_or(took, |mean| mean.mul_f64(1.0 - step) + took.mul_f64(step))
}

/// One store.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    means: [Mean; 2],
    answered: u64,
}

/// Requests of about one size.
#[derive(Clone, Copy, Debug, Default)]
struct Turns {
    /// Since the store that is not used was asked last.
    since: u32,
    /// It has answered quickly: it is asked again at once.
    promising: bool,
    /// The one that was preferred last.
    used: Option<StoreId>,
}

/// Which copy to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub ask: StoreId,
    /// When the other one is asked as well.
    pub late: Duration,
}

/// What a store has done for the readers of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// The store.
    pub store: StoreId,
    /// Its copy is complete.
    pub in_sync: bool,
    /// Reads that it has answered.
    pub answered: u64,
    /// What small ones are taken to take, in milliseconds.
    pub small_ms: Option<f64>,
    /// What large ones are.
    pub large_ms: Option<f64>,
}

/// The stores of one volume.
#[derive(Debug, Default)]
pub(super) struct Paces {
    stores: BTreeMap<StoreId, Known>,
    turns: [Turns; 2],
}

/// Which mean a request counts for.
fn class(range: GetRange) -> usize {
    usize::from(range.max_len().is_none_or(|len| len > SMALL))
}

impl Paces {
    fn mean(&self, store: StoreId, class: usize) -> Mean {
        self.stores.get(&store).map(|known| known.means[class]).unwrap_or_default()
    }

    /// Chooses between the store that decides and the other one.
    pub fn choose(&mut self, decides: StoreId, other: StoreId, range: GetRange) -> Choice {
        let class = class(range);
        let (first, second) = (self.mean(decides, class).guess, self.mean(other, class).guess);
        let (used, spare) = match (first, second) {
            (Some(first), Some(second)) if second < first.mul_f64(BETTER) => (other, decides),
            _ => (decides, other),
        };
        let usual = self.mean(used, class).usual;
        let late = |times: u32| usual.map_or(LATE, |usual| (usual * times).clamp(LATE_MIN, LATE));
        let turns = &mut self.turns[class];
        if turns.used != Some(used) {
            *turns = Turns { used: Some(used), ..Turns::default() };
        }
        turns.since += 1;
        let is_unknown = first.is_some() && second.is_none();
        let looks = turns.since >= LOOK_AGAIN || std::mem::take(&mut turns.promising);
        if looks || is_unknown {
            turns.since = 0;
            return Choice { ask: spare, late: late(1) };
        }
        Choice { ask: used, late: late(PATIENCE) }
    }

    /// A store has answered.
    pub fn answered(&mut self, store: StoreId, range: GetRange, took: Duration) {
        let class = class(range);
        let used = self.turns[class].used.filter(|used| *used != store);
        let usual = used.and_then(|used| self.mean(used, class).guess);
        let known = self.stores.entry(store).or_default();
        known.answered += 1;
        let mean = &mut known.means[class];
        let step = if used.is_some() { STALE_STEP } else { STEP };
        mean.guess = Some(moved(mean.guess, took, step));
        mean.usual = Some(moved(mean.usual, took, step));
        self.turns[class].promising |= usual.is_some_and(|usual| took < usual.mul_f64(BETTER));
    }

    /// A store has not answered for so long, or has failed after that; the other one has answered instead.
    pub fn outlasted(&mut self, store: StoreId, range: GetRange, waited: Duration) {
        let mean = &mut self.stores.entry(store).or_default().means[class(range)];
        let guess = waited.div_f64(BETTER);
        mean.guess = Some(mean.guess.map_or(guess, |known| known.max(guess)));
    }

    /// What is known of a store, whose copy is complete or is not.
    pub fn of(&self, store: StoreId, in_sync: bool) -> Pace {
        let Known { means, answered } = self.stores.get(&store).copied().unwrap_or_default();
        let ms = |mean: Mean| mean.guess.map(|took| took.as_secs_f64() * 1000.0);
        Pace { store, in_sync, answered, small_ms: ms(means[0]), large_ms: ms(means[1]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: StoreId = StoreId::HOME;
    const PART: GetRange = GetRange::Part { offset: 4096, len: 4096 };

    fn b() -> StoreId {
        StoreId::of_number(7)
    }

    /// Answers `requests` as stores that take so many milliseconds do; which were asked, and the times the readers waited.
    fn run(paces: &mut Paces, requests: usize, took: [u64; 2]) -> ([usize; 2], Duration) {
        let (mut asked, mut longest) = ([0; 2], Duration::ZERO);
        for _ in 0..requests {
            let Choice { ask, late } = paces.choose(A, b(), PART);
            let (at, other) = if ask == A { (0, b()) } else { (1, A) };
            let [this, that] = [took[at], took[1 - at]].map(Duration::from_millis);
            asked[at] += 1;
            if late + that < this {
                paces.answered(other, PART, that);
                paces.outlasted(ask, PART, late + that);
                longest = longest.max(late + that);
            } else {
                paces.answered(ask, PART, this);
                longest = longest.max(this);
            }
        }
        (asked, longest)
    }

    #[test]
    fn the_faster_one_is_asked_and_the_other_one_now_and_then() {
        for (took, fast) in [([50, 5], 1), ([5, 50], 0), ([300, 30], 1)] {
            let mut paces = Paces::default();
            let (asked, _) = run(&mut paces, 10, took);
            assert!(asked[1 - fast] <= 2, "{took:?}: {asked:?}");
            let (asked, _) = run(&mut paces, 640, took);
            assert_eq!(asked[1 - fast], 10, "{took:?}: {asked:?}");
        }
    }

    #[test]
    fn one_that_gets_slow_is_left_and_one_that_recovers_is_used_again() {
        let mut paces = Paces::default();
        run(&mut paces, 100, [2, 8]);
        let (asked, longest) = run(&mut paces, 100, [400, 8]);
        assert!(asked[0] <= 6, "{asked:?}");
        assert!(longest <= Duration::from_millis(8) * (PATIENCE + 1), "{longest:?}");
        // It is looked at within so many requests, and is the faster one again after a few more.
        run(&mut paces, LOOK_AGAIN as usize + 16, [2, 8]);
        let (asked, _) = run(&mut paces, 63, [2, 8]);
        assert!(asked[0] >= 62, "{asked:?}");
    }

    #[test]
    fn the_one_that_decides_is_asked_where_they_are_alike() {
        let mut paces = Paces::default();
        for took in [[10, 10], [10, 9], [9, 10]] {
            run(&mut paces, 2, took);
            let (asked, _) = run(&mut paces, 64, took);
            assert!(asked[1] <= 2, "{took:?}: {asked:?}");
        }
    }

    #[test]
    fn sizes_are_apart_and_unknown_ones_are_not_waited_for_long() {
        let mut paces = Paces::default();
        assert_eq!(paces.choose(A, b(), GetRange::All), Choice { ask: A, late: LATE });
        run(&mut paces, 20, [50, 5]);
        assert_eq!(paces.choose(A, b(), PART).ask, b());
        assert_eq!(paces.choose(A, b(), GetRange::All), Choice { ask: A, late: LATE });
        let known = paces.of(b(), true);
        assert!(known.answered > 10 && known.large_ms.is_none());
        assert_eq!(known.small_ms, Some(5.0));
        // A mean of minutes does not keep readers waiting.
        paces.answered(A, GetRange::All, Duration::from_secs(90));
        paces.answered(b(), GetRange::All, Duration::from_secs(99));
        assert_eq!(paces.choose(A, b(), GetRange::All), Choice { ask: A, late: LATE });
    }
}
