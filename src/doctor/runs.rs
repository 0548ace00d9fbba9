//! Runs of sectors: what damage reaches. Pure.

use crate::map::Overlay;
use crate::units::{Sector, SectorRange};
use serde::Serialize;

/// Runs that are kept apart; where there are more, those with the least between them become one.
const RUNS_MAX: usize = 4096;

/// A run of sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Run {
    /// Its first sector of 512 bytes.
    pub sector: u64,
    /// How many sectors.
    pub count: u64,
}

/// A set of sectors. It holds all that were added, and what lies between some of them where there are
/// too many runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Runs {
    /// Start and end; in order and apart, but for those that were added last.
    runs: Vec<(u64, u64)>,
}

impl Runs {
    /// Adds the sectors of `range`.
    pub fn add(&mut self, range: SectorRange) {
        if range.is_empty() {
            return;
        }
        self.runs.push((range.start().0, range.end().0));
        if self.runs.len() > 2 * RUNS_MAX {
            self.settle();
        }
    }

    /// Adds the sectors of `range` that `changes` do not hide.
    pub fn add_visible(&mut self, range: SectorRange, changes: &Overlay) {
        let mut at = range.start();
        while at < range.end() {
            let rest = SectorRange::between(at, range.end());
            let (len, target) = changes.first(rest);
            let run = SectorRange::between(at, Sector(at.0 + len.0));
            if target.is_none() {
                self.add(run);
            }
            at = run.end();
        }
    }

    /// Puts the runs in order, joins those that touch, and the nearest where there are too many.
    pub fn settle(&mut self) {
        self.runs.sort_unstable();
        let mut apart: Vec<(u64, u64)> = Vec::with_capacity(self.runs.len());
        for (start, end) in self.runs.drain(..) {
            match apart.last_mut().filter(|last| last.1 >= start) {
                Some(last) => last.1 = last.1.max(end),
                None => apart.push((start, end)),
            }
        }
        if apart.len() > RUNS_MAX {
            let mut gaps: Vec<u64> = apart.windows(2).map(|pair| pair[1].0 - pair[0].1).collect();
            gaps.sort_unstable();
            let bridged = gaps[apart.len() - RUNS_MAX - 1];
            apart.dedup_by(|next, last| {
                let near = next.0 - last.1 <= bridged;
                if near {
                    last.1 = next.1;
                }
                near
            });
        }
        self.runs = apart;
    }

    /// What of this set lies in `range`; the set is settled.
    pub fn within(&self, range: SectorRange) -> impl Iterator<Item = SectorRange> + '_ {
        let first = self.runs.partition_point(|run| run.1 <= range.start().0);
        self.runs[first..]
            .iter()
            .map(move |run| SectorRange::between(Sector(run.0), Sector(run.1)).intersect(range))
            .take_while(|run| !run.is_empty())
    }

    /// The runs, ascending and apart.
    pub fn into_vec(mut self) -> Vec<Run> {
        self.settle();
        self.runs.iter().map(|(start, end)| Run { sector: *start, count: end - start }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::Target;
    use proptest::prelude::*;

    fn range(start: u64, end: u64) -> SectorRange {
        SectorRange::between(Sector(start), Sector(end))
    }

    #[test]
    fn too_many_runs_become_fewer_and_lose_nothing() {
        let mut runs = Runs::default();
        for n in 0..3 * RUNS_MAX as u64 {
            runs.add(range(n * 10, n * 10 + 1 + n % 7));
        }
        let runs = runs.into_vec();
        assert!(runs.len() <= RUNS_MAX, "{}", runs.len());
        for n in 0..3 * RUNS_MAX as u64 {
            let (start, end) = (n * 10, n * 10 + 1 + n % 7);
            let holds = |run: &Run| run.sector <= start && end <= run.sector + run.count;
            assert!(runs.iter().any(holds), "{start}");
        }
    }

    proptest! {
        /// It equals a set of sectors.
        #[test]
        fn equals_a_set(
            added in prop::collection::vec((0u64..200, 0u64..20), 0..20),
            hidden in prop::collection::vec((0u64..200, 1u64..20), 0..10),
            look in (0u64..200, 0u64..50),
        ) {
            let mut changes = Overlay::default();
            hidden.iter().for_each(|(at, len)| changes.insert(range(*at, at + len), Target::Zero));
            let mut runs = Runs::default();
            added.iter().for_each(|(at, len)| runs.add_visible(range(*at, at + len), &changes));
            runs.settle();
            let has = |all: &[(u64, u64)], n: u64| all.iter().any(|(at, len)| (*at..at + len).contains(&n));
            let look = range(look.0, look.0 + look.1);
            let within: Vec<SectorRange> = runs.within(look).collect();
            let all = runs.into_vec();
            prop_assert!(all.windows(2).all(|pair| pair[0].sector + pair[0].count < pair[1].sector));
            for n in 0..256 {
                let expected = has(&added, n) && !has(&hidden, n);
                let found = all.iter().any(|run| (run.sector..run.sector + run.count).contains(&n));
                prop_assert_eq!(found, expected);
                let sees = within.iter().any(|run| run.start().0 <= n && n < run.end().0);
                prop_assert_eq!(sees, expected && look.start().0 <= n && n < look.end().0);
            }
        }
    }
}
