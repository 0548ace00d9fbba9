//! Everything that the states of a volume name: read, verified, counted.

use super::accounts::Accounts;
use super::flaw::{Damage, Found};
use super::state::State;
use super::used::Used;
use super::walk::{PARALLEL, Step, walk};
use crate::error::{Error, Result};
use crate::format::keys::MapObjectId;
use crate::format::page::{CHUNKS_PER_PAGE, ChunkPage, Extent, ItemRef, parse_chunk_page};
use crate::format::source::is_of_marks;
use crate::map::Target;
use crate::store::Store;
use crate::units::{Sector, SectorRange, Seq};
use futures::stream::{self, StreamExt, TryStreamExt};
use std::collections::BTreeSet;

/// What was found on the way.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Something could not be read, or says what cannot be: a second look tells what it means.
    pub suspicious: bool,
    /// What contradicts itself.
    pub damages: Vec<Damage>,
    /// Map objects that are needed.
    pub map_objects: BTreeSet<MapObjectId>,
    /// Items that were read.
    pub items: u64,
}

impl Survey {
    /// Follows `states`, which are in order of their position. What they name goes to `used`.
    ///
    /// # Errors
    /// Those of the store that tell nothing of an object.
    pub async fn of(store: &dyn Store, states: &[State], used: &mut Used) -> Result<Survey> {
        let mut survey = Survey::default();
        let mut accounts = Accounts::default();
        let mut before: Option<&State> = None;
        for state in states {
            survey.map_objects.extend(state.map_objects.iter().map(|used| used.object));
            let whole = survey.follow(store, (before, state), used, &mut accounts).await?;
            let whole = whole && survey.audit(store, (before, state), used, &mut accounts).await?;
            survey.note_changes(state, used);
            // Where a part of it is unknown, the next one is counted from the beginning.
            before = whole.then_some(state);
            match before {
                Some(_) => accounts.settle(),
                None => accounts = Accounts::default(),
            }
        }
        Ok(survey)
    }

    /// The map. Returns whether all of it could be read.
    async fn follow(
        &mut self,
        store: &dyn Store,
        (before, state): (Option<&State>, &State),
        used: &mut Used,
        accounts: &mut Accounts,
    ) -> Result<bool> {
        let mut whole = true;
        let mut step = |step: Step<'_>| match step {
            Step::Same(_) => {}
            Step::New(item) => {
                self.items += 1;
                accounts.refer(item, 1);
            }
            Step::Gone(item) => accounts.refer(item, -1),
            Step::Leaf { range, new, old } => {
                accounts.count(old, -1);
                accounts.count(new, 1);
                let told = note(state, range, new, used);
                self.damages.extend(told.map(|what| contradiction(state, what)));
            }
            Step::Bad { .. } => (whole, self.suspicious) = (false, true),
            Step::Unknown => whole = false,
        };
        walk(store, before, state, &mut step).await?;
        Ok(whole)
    }

    /// The chunk pages, and whether the accounts add up.
    async fn audit(
        &mut self,
        store: &dyn Store,
        (before, state): (Option<&State>, &State),
        used: &mut Used,
        accounts: &mut Accounts,
    ) -> Result<bool> {
        let before = before.map(|before| &before.chunk_root);
        for (page, item) in before.into_iter().flatten() {
            if state.chunk_root.get(page) != Some(item) {
                accounts.refer(*item, -1);
            }
        }
        let is_same =
            |page: &u64, item: &ItemRef| before.and_then(|root| root.get(page)) == Some(item);
        let mut wanted = Vec::new();
        for (page, item) in &state.chunk_root {
            let same = is_same(page, item);
            if !same {
                accounts.refer(*item, 1);
            }
            if !same || accounts.is_changed(*page) {
                wanted.push((*page, *item));
            }
        }
        self.items += wanted.len() as u64;
        let mut told = Vec::new();
        let mut pages = load(store, state, wanted);
        while let Some((page, entries)) = pages.try_next().await? {
            let Ok(entries) = entries else {
                self.suspicious = true;
                return Ok(false);
            };
            told.extend(accounts.contradictions(page, &entries));
            for (slot, chunk) in entries.iter().filter(|(_, chunk)| chunk.payload > 0) {
                let seq = Seq(page * CHUNKS_PER_PAGE + u64::from(*slot));
                used.note_payload(state.chunk(seq), chunk.payload);
            }
        }
        let unknown = accounts.pages().filter(|page| !state.chunk_root.contains_key(page));
        told.extend(
            unknown.map(|page| format!("there is no account of the slots of chunk page {page}")),
        );
        told.extend(accounts.contradictions_of(state));
        self.damages.extend(told.into_iter().map(|what| contradiction(state, what)));
        Ok(true)
    }

    /// What the log names.
    fn note_changes(&mut self, state: &State, used: &mut Used) {
        for (range, target) in state.changes.changes(state.all()) {
            if let Target::Data(place) = target {
                let end = u64::from(place.offset) + range.len().0;
                if !used.note(state.chunk(place.seq), end as u32) {
                    self.damages.push(contradiction(state, two_epochs(place.seq)));
                }
            }
        }
    }
}

fn contradiction(state: &State, what: String) -> Damage {
    Damage::contradiction(format!("{}: {what}", state.name))
}

fn two_epochs(seq: Seq) -> String {
    format!("log slot {seq} is said to be of two epochs")
}

/// Notes what a leaf names. Returns what it cannot name.
fn note(state: &State, range: SectorRange, extents: &[Extent], used: &mut Used) -> Option<String> {
    let mut told = None;
    for extent in extents {
        let place = extent.location();
        let end = range.start().0 + u64::from(extent.end());
        let all = SectorRange::between(Sector(end - u64::from(extent.len())), Sector(end));
        if end > state.tree_size.0 && !is_of_marks(all) {
            told = Some(format!("the map has sector {end}, beyond the end at {}", state.tree_size));
        }
        if place.seq >= state.next {
            told = Some(format!("the map names log slot {}, which it was made before", place.seq));
        }
        if !used.note(state.chunk(place.seq), place.offset + extent.len()) {
            told = Some(two_epochs(place.seq));
        }
    }
    told
}

/// Chunk pages, in order.
pub(super) fn load<'a>(
    store: &'a dyn Store,
    state: &'a State,
    pages: Vec<(u64, ItemRef)>,
) -> stream::BoxStream<'a, std::result::Result<(u64, Found<ChunkPage>), Error>> {
    let load = move |(page, item)| async move {
        Ok((page, state.item(store, item, parse_chunk_page).await?))
    };
    stream::iter(pages).map(load).buffered(PARALLEL).boxed()
}
