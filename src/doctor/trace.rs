//! Whom damage harms: sectors of each state that need what is damaged.

use super::chunk::Bad;
use super::flaw::{Affected, Damage, Flaw};
use super::runs::Runs;
use super::state::State;
use super::survey::load;
use super::walk::{Step, walk};
use crate::error::Result;
use crate::format::keys::ChunkId;
use crate::format::page::{ItemRef, Location};
use crate::map::Target;
use crate::store::Store;
use crate::units::{Sector, SectorRange};
use futures::stream::TryStreamExt;
use std::collections::{BTreeMap, BTreeSet};

/// Damaged chunks.
pub(super) type BadChunks = BTreeMap<ChunkId, Bad>;

/// What is harmed, and by what.
#[derive(Debug, Default)]
pub(super) struct Trace {
    pub affected: Vec<Affected>,
    pub damages: BTreeSet<Damage>,
    /// A part of a map was not there.
    pub missed: bool,
}

impl Trace {
    /// Follows `states`, which are in order of their position.
    ///
    /// # Errors
    /// Those of the store that tell nothing of an object.
    pub async fn of(store: &dyn Store, states: &[State], bad: &BadChunks) -> Result<Trace> {
        let mut trace = Trace::default();
        let mut before: Option<(&State, Runs)> = None;
        for state in states {
            let last = before.as_ref().map(|(state, runs)| (*state, runs));
            let mut tree = trace.follow(store, last, state, bad).await?;
            tree.settle();
            trace.look_at_accounts(store, last.map(|(state, _)| state), state).await?;
            trace.tell(state, &tree, bad);
            before = Some((state, tree));
        }
        Ok(trace)
    }

    /// What of the map's tree cannot be read, whether the log hides it or not.
    async fn follow(
        &mut self,
        store: &dyn Store,
        before: Option<(&State, &Runs)>,
        state: &State,
        bad: &BadChunks,
    ) -> Result<Runs> {
        let mut tree = Runs::default();
        let mut step = |step: Step<'_>| match step {
            Step::Same(range) => {
                let same = before.into_iter().flat_map(|(_, runs)| runs.within(range));
                same.for_each(|run| tree.add(run));
            }
            Step::Leaf { range, new, .. } => {
                for extent in new {
                    let start = Sector(range.start().0 + u64::from(extent.start()));
                    let run =
                        SectorRange::between(start, Sector(start.0 + u64::from(extent.len())));
                    self.harm(state, (run, extent.location()), bad, &mut tree);
                }
            }
            Step::Bad { range, item, what, flaw } => {
                self.note(state, item, (what, flaw));
                tree.add(range.intersect(state.all()));
            }
            Step::New(_) | Step::Gone(_) | Step::Unknown => {}
        };
        walk(store, before.map(|(state, _)| state), state, &mut step).await?;
        Ok(tree)
    }

    fn note(&mut self, state: &State, item: ItemRef, (what, flaw): (&str, &Flaw)) {
        let key = state.lineage.map_object(item.object);
        self.missed |= matches!(flaw, Flaw::Missing);
        let what = match flaw {
            Flaw::Missing => "a part of the map".into(),
            _ => format!("{what} at byte {}", item.offset),
        };
        self.damages.insert(Damage::of(&key, flaw, &what));
    }

    /// Adds to `runs` what of `run`, which is stored at `place`, cannot be read.
    fn harm(
        &mut self,
        state: &State,
        (run, place): (SectorRange, Location),
        bad: &BadChunks,
        runs: &mut Runs,
    ) {
        let id = state.chunk(place.seq);
        let Some(bad) = bad.get(&id) else { return };
        let first = u64::from(place.offset);
        for sectors in &bad.sectors {
            let lost =
                SectorRange::between(Sector(sectors.start.into()), Sector(sectors.end.into()));
            let stored = SectorRange::between(Sector(first), Sector(first + run.len().0));
            let lost = lost.intersect(stored);
            let at = Sector(run.start().0 + lost.start().0.saturating_sub(first));
            runs.add(SectorRange::between(at, Sector(at.0 + lost.len().0)));
        }
        self.damages.insert(Damage::of(&id.key(), &bad.flaw, "a chunk"));
    }

    async fn look_at_accounts(
        &mut self,
        store: &dyn Store,
        before: Option<&State>,
        state: &State,
    ) -> Result<()> {
        let is_new = |(page, item): &(&u64, &ItemRef)| {
            before.and_then(|before| before.chunk_root.get(page)) != Some(item)
        };
        let wanted: Vec<(u64, ItemRef)> =
            state.chunk_root.iter().filter(is_new).map(|(page, item)| (*page, *item)).collect();
        let mut pages = load(store, state, wanted);
        while let Some((page, found)) = pages.try_next().await? {
            if let (Err(flaw), Some(item)) = (found, state.chunk_root.get(&page)) {
                self.note(state, *item, ("a chunk page", &flaw));
            }
        }
        Ok(())
    }

    /// Adds what of the state cannot be read.
    fn tell(&mut self, state: &State, tree: &Runs, bad: &BadChunks) {
        let mut runs = Runs::default();
        tree.within(state.all()).for_each(|run| runs.add_visible(run, &state.changes));
        for (range, target) in state.changes.changes(state.all()) {
            if let Target::Data(place) = target {
                self.harm(state, (range, place), bad, &mut runs);
            }
        }
        let runs = runs.into_vec();
        if !runs.is_empty() {
            let sectors = runs.iter().map(|run| run.count).sum();
            self.affected.push(Affected { name: state.name.clone(), whole: false, sectors, runs });
        }
    }
}
