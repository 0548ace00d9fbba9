//! What the collector knows of a volume's chunks: a summary and the best candidates of each page of
//! live counts, so memory is bounded by the number of pages (4096 slots each), not of chunks. Pure.

use super::{Choice, Cost, Limits, Space};
use crate::format::page::{CHUNKS_PER_PAGE, ChunkUse, ItemRef};
use crate::units::Seq;
use std::collections::{BTreeMap, BTreeSet};

/// Candidates kept in all, if there are not very many pages.
const KEPT: usize = 8192;
/// Candidates kept of a page at least.
const KEPT_OF_PAGE: usize = 8;
/// Chunks with less than this share of the nominal size are small.
const SMALL: u32 = 8;
/// Small chunks that nobody minds.
const SMALL_ALLOWED: u64 = 256;

/// Victims that are chosen at once.
const CHOSEN: usize = 32;

/// A chunk that could be emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its slot.
    pub seq: Seq,
    /// Sectors in it.
    pub payload: u32,
    /// Sectors of them that were live as of the last checkpoint.
    pub live: u32,
}

impl Candidate {
    /// Sectors that are freed when it is emptied.
    pub fn dead(&self) -> u64 {
        self.payload.saturating_sub(self.live).into()
    }
}

#[derive(Debug)]
struct Page {
    item: ItemRef,
    payload: u64,
    /// Of the chunks that no snapshot keeps.
    free: Space,
    small: u64,
    /// Those with the highest scores, and the oldest of the small ones.
    best: Vec<Candidate>,
}

/// See the module.
#[derive(Debug)]
pub struct Knowledge {
    choice: Choice,
    /// Nominal sectors of a chunk.
    chunk: u32,
    pages: BTreeMap<u64, Page>,
    /// A snapshot or an ancestor keeps all before this one, emptied or not.
    kept_before: Seq,
    /// Chosen, and being emptied.
    begun: BTreeMap<Seq, Candidate>,
    /// Emptied, with their sectors; the next checkpoint finds them dead.
    taken: BTreeMap<Seq, u32>,
    /// What could not be read of these was left where it is.
    spared: BTreeSet<Seq>,
}

impl Knowledge {
    /// Of a volume with chunks of `chunk` sectors.
    pub fn new(choice: Choice, chunk: u32) -> Knowledge {
        let (taken, spared) = (BTreeMap::new(), BTreeSet::new());
        let pages = BTreeMap::new();
        let begun = BTreeMap::new();
        Knowledge { choice, chunk, pages, kept_before: Seq(0), begun, taken, spared }
    }

    /// The newest snapshot, or an ancestor, has every slot before `seq`. Where that has changed, all pages have to be
    /// learnt again.
    pub fn kept_before(&mut self, seq: Seq) {
        if std::mem::replace(&mut self.kept_before, seq) != seq {
            self.pages.clear();
        }
    }

    /// Forgets pages that are not in `root`, those of a checkpoint, any more. Returns those that
    /// have to be learnt.
    pub fn outdated(&mut self, root: &BTreeMap<u64, ItemRef>) -> Vec<(u64, ItemRef)> {
        self.pages.retain(|index, _| root.contains_key(index));
        self.taken.retain(|seq, _| root.contains_key(&(seq.0 / CHUNKS_PER_PAGE)));
        self.spared.retain(|seq| root.contains_key(&(seq.0 / CHUNKS_PER_PAGE)));
        let known = |index: &u64, item: &ItemRef| {
            self.pages.get(index).is_some_and(|page| page.item == *item)
        };
        root.iter()
            .filter(|(index, item)| !known(index, item))
            .map(|(i, item)| (*i, *item))
            .collect()
    }

    /// Learns a page; `now` is the end of the log, `pages` how many there are.
    pub fn learn(
        &mut self,
        (index, item): (u64, ItemRef),
        entries: &[(u32, ChunkUse)],
        now: Seq,
        pages: usize,
    ) {
        let first = index * CHUNKS_PER_PAGE;
        let there: BTreeSet<u64> =
            entries.iter().map(|(slot, _)| first + u64::from(*slot)).collect();
        let is_left = |seq: &Seq| seq.0 / CHUNKS_PER_PAGE != index || there.contains(&seq.0);
        self.taken.retain(|seq, _| is_left(seq));
        self.spared.retain(is_left);
        let all = entries.iter().map(|(slot, used)| {
            let seq = Seq(first + u64::from(*slot));
            // Of old volumes, the sectors of a chunk are not known.
            let payload = if used.payload == 0 { self.chunk } else { used.payload };
            Candidate { seq, payload: payload.max(used.live), live: used.live }
        });
        let all: Vec<Candidate> = all.collect();
        let free: Vec<Candidate> =
            all.iter().filter(|c| c.seq >= self.kept_before).copied().collect();
        let kept = free.iter().map(|c| u64::from(c.payload)).sum();
        let space = Space { kept, live: free.iter().map(|c| u64::from(c.live)).sum() };
        let (small, mut rest): (Vec<Candidate>, Vec<Candidate>) =
            free.into_iter().partition(|c| self.is_small(c));
        let kept = (KEPT / pages.max(1)).max(KEPT_OF_PAGE);
        rest.retain(|c| c.dead() > 0);
        rest.sort_by_key(|c| (std::cmp::Reverse(self.choice.score(c, now)), c.seq));
        rest.truncate(kept);
        rest.extend(small.iter().copied().take(kept));
        let payload = all.iter().map(|c| u64::from(c.payload)).sum();
        let small = small.len() as u64;
        let page = Page { item, payload, free: space, small, best: rest };
        self.pages.insert(index, page);
    }

    fn is_small(&self, chunk: &Candidate) -> bool {
        chunk.payload <= self.chunk / SMALL
    }

    /// The chunks that are known and that no snapshot keeps, but for what was emptied since or is
    /// about to be freed.
    pub fn space(&self) -> Space {
        let taken: u64 = self.taken.values().map(|n| u64::from(*n)).sum();
        let begun = self.begun.values().filter(|chunk| !self.taken.contains_key(&chunk.seq));
        let taken = taken + begun.map(Candidate::dead).sum::<u64>();
        let kept: u64 = self.pages.values().map(|page| page.free.kept).sum();
        let live = self.pages.values().map(|page| page.free.live).sum();
        Space { kept: kept.saturating_sub(taken), live }
    }

    /// Sectors in the chunks of all pages that are known.
    pub fn stored(&self) -> u64 {
        self.pages.values().map(|page| page.payload).sum()
    }

    /// Small chunks that are more than a volume with `live` sectors may have: flushes leave them.
    pub fn small_excess(&self, live: u64) -> u64 {
        let small: u64 = self.pages.values().map(|page| page.small).sum();
        let is_small = |payload: u32| payload <= self.chunk / SMALL;
        let taken = self.taken.values().filter(|payload| is_small(**payload)).count() as u64;
        let allowed = SMALL_ALLOWED + live / u64::from(self.chunk.max(1)) / 4;
        small.saturating_sub(taken).saturating_sub(allowed)
    }

    /// The best victims that free `excess` sectors, with at most `room` sectors to be moved (but one
    /// victim at least, and 32 at most), and what they cost.
    pub fn choose(
        &self,
        limits: &Limits,
        excess: u64,
        room: u64,
        now: Seq,
    ) -> (Vec<Candidate>, Cost) {
        let mut all: Vec<&Candidate> = self.candidates().filter(|c| limits.is_worth(c)).collect();
        all.sort_by_key(|c| (std::cmp::Reverse(self.choice.score(c, now)), c.seq));
        let (mut chosen, mut cost) = (Vec::new(), Cost::default());
        for chunk in all {
            let is_full = cost.moved + u64::from(chunk.live) > room || chosen.len() == CHOSEN;
            if cost.freed >= excess || !chosen.is_empty() && is_full {
                break;
            }
            cost.moved += u64::from(chunk.live);
            cost.freed += chunk.dead();
            chosen.push(*chunk);
        }
        (chosen, cost)
    }

    /// The oldest small chunks, which become one; none where that would be a small one again.
    pub fn choose_small(&self, room: u64) -> (Vec<Candidate>, Cost) {
        let mut all: Vec<Candidate> =
            self.candidates().filter(|c| self.is_small(c)).copied().collect();
        all.sort_by_key(|c| c.seq);
        let (mut chosen, mut cost) = (Vec::new(), Cost::default());
        let room = room.min(u64::from(self.chunk) / 2);
        for chunk in all {
            if cost.moved + u64::from(chunk.live) > room {
                break;
            }
            cost.moved += u64::from(chunk.live);
            cost.freed += u64::from(chunk.payload);
            chosen.push(chunk);
        }
        match cost.moved > u64::from(self.chunk / SMALL) {
            true => (chosen, cost),
            false => Default::default(),
        }
    }

    fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        let all = self.pages.values().flat_map(|page| &page.best);
        all.filter(|c| {
            let [taken, begun] = [self.taken.contains_key(&c.seq), self.begun.contains_key(&c.seq)];
            !taken && !begun && !self.spared.contains(&c.seq)
        })
    }

    /// These, and no others, are being emptied.
    pub fn begin(&mut self, chosen: &[Candidate]) {
        self.begun = chosen.iter().map(|chunk| (chunk.seq, *chunk)).collect();
    }

    /// Nothing of this chunk is live any more.
    pub fn take(&mut self, chunk: &Candidate) {
        self.taken.insert(chunk.seq, chunk.payload);
    }

    /// Something of this chunk cannot be moved: it is left alone.
    pub fn spare(&mut self, chunk: &Candidate) {
        self.spared.insert(chunk.seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::keys::MapObjectId;
    use crate::gc::Space;
    use crate::units::Epoch;
    use proptest::prelude::*;

    const CHUNK: u32 = 8192;

    fn item(number: u32) -> ItemRef {
        let object = MapObjectId { epoch: Epoch(1), number };
        ItemRef { object, offset: 0, len: 0, crc: 0 }
    }

    fn page() -> impl Strategy<Value = Vec<(u32, ChunkUse)>> {
        let used = (1..=CHUNK, 0..=CHUNK)
            .prop_map(|(payload, live)| ChunkUse { live: live.min(payload), payload });
        prop::collection::btree_map(0..CHUNKS_PER_PAGE as u32, used, 0..200)
            .prop_map(|page| page.into_iter().collect())
    }

    fn choice() -> impl Strategy<Value = Choice> {
        prop_oneof![Just(Choice::Greedy), Just(Choice::CostBenefit)]
    }

    fn learnt(pages: &[Vec<(u32, ChunkUse)>], choice: Choice, now: Seq) -> Knowledge {
        let mut knowledge = Knowledge::new(choice, CHUNK);
        for (index, page) in (0..).zip(pages) {
            knowledge.learn((index, item(0)), page, now, pages.len());
        }
        knowledge
    }

    #[test]
    fn age_counts_where_it_should() {
        let chunk = |seq, live| Candidate { seq: Seq(seq), payload: 100, live };
        let (young, old) = (chunk(90, 40), chunk(10, 50));
        let now = Seq(100);
        assert!(Choice::Greedy.score(&young, now) > Choice::Greedy.score(&old, now));
        assert!(Choice::CostBenefit.score(&young, now) < Choice::CostBenefit.score(&old, now));
        assert_eq!(Choice::CostBenefit.score(&chunk(1, 100), now), 0, "nothing is gained");
    }

    #[test]
    fn the_rate_follows_need() {
        let limits = Limits { bound_percent: 140, ..Limits::default() };
        let space = |kept| Space { kept, live: 1000 };
        assert_eq!((limits.excess(space(1400)), limits.excess(space(1500))), (0, 100));
        let half = Cost { moved: 500, freed: 500 };
        let (near, far) =
            (limits.rate_percent(space(1410), half), limits.rate_percent(space(2000), half));
        assert!((100..200).contains(&near), "{near}");
        assert!(far > 2 * near, "{far}");
        let all = Cost { moved: u64::MAX, freed: 0 };
        assert_eq!(limits.rate_percent(space(u64::MAX), all), crate::gc::RATE_MAX);
        assert!(limits.excess(Space { kept: u64::MAX, live: u64::MAX }) == 0);
    }

    #[test]
    fn what_a_snapshot_keeps_is_left_alone() {
        let used = |live| ChunkUse { live, payload: 100 };
        let page = vec![(1, used(10)), (2, used(20)), (3, used(30))];
        let mut knowledge = learnt(std::slice::from_ref(&page), Choice::Greedy, Seq(9));
        knowledge.kept_before(Seq(2));
        let root = BTreeMap::from([(0, item(0))]);
        assert_eq!(knowledge.outdated(&root).len(), 1, "it has to be learnt again");
        knowledge.learn((0, item(0)), &page, Seq(9), 1);
        assert_eq!(knowledge.space(), Space { kept: 200, live: 50 });
        assert_eq!(knowledge.stored(), 300);
        let (chosen, _) = knowledge.choose(&Limits::default(), u64::MAX, u64::MAX, Seq(9));
        assert_eq!(chosen.iter().map(|c| c.seq.0).collect::<Vec<_>>(), [2, 3]);
        knowledge.kept_before(Seq(2));
        assert!(knowledge.outdated(&root).is_empty());
    }

    proptest! {
        /// Who is chosen is the best there is, fits, frees what it should, and is not chosen twice.
        #[test]
        fn choices_are_the_best(
            pages in prop::collection::vec(page(), 1..4),
            choice in choice(),
            bound_percent in 100u32..200,
            excess in 1u64..1 << 20,
            room in 1u64..1 << 20,
        ) {
            let now = Seq(pages.len() as u64 * CHUNKS_PER_PAGE);
            let mut knowledge = learnt(&pages, choice, now);
            let limits = Limits { bound_percent, ..Limits::default() };
            let mut last = u64::MAX;
            let mut seen = BTreeSet::new();
            let stored = knowledge.stored();
            let sum: u64 = pages.iter().flatten().map(|(_, used)| u64::from(used.payload)).sum();
            prop_assert_eq!(stored, sum);
            let mut taken = 0;
            loop {
                let (chosen, cost) = knowledge.choose(&limits, excess, room, now);
                let Some(worst) = chosen.last() else { break };
                let sectors: u64 = chosen.iter().map(|c| u64::from(c.payload)).sum();
                prop_assert!(cost.moved <= room || chosen.len() == 1);
                prop_assert!(chosen.len() <= CHOSEN);
                prop_assert_eq!(cost.moved + cost.freed, sectors);
                prop_assert!(cost.freed - worst.dead() < excess, "more than is needed");
                for chunk in &chosen {
                    let score = choice.score(chunk, now);
                    prop_assert!(score > 0 && score <= last);
                    last = score;
                    prop_assert!(seen.insert(chunk.seq), "twice");
                    knowledge.take(chunk);
                    taken += u64::from(chunk.payload);
                }
                prop_assert_eq!(knowledge.space().kept, stored - taken);
            }
            // A chunk with nothing live does not exist; one that is full is worth nothing.
            let least = (1.0 - 100.0 / f64::from(bound_percent)) / 2.0;
            let is_worth = |used: &ChunkUse| {
                let dead = f64::from(used.payload - used.live);
                dead > 0.0 && dead / f64::from(used.payload) > least + 1e-9
            };
            let worth = pages.iter().flatten().filter(|(_, used)| is_worth(used)).count();
            prop_assert!(seen.len() >= worth, "{} of {worth}", seen.len());
        }

        /// A page that is learnt again stands for itself only, and what died is forgotten.
        #[test]
        fn learning_replaces(first in page(), second in page(), other in page()) {
            let now = Seq(2 * CHUNKS_PER_PAGE);
            let mut knowledge = learnt(&[first, other.clone()], Choice::Greedy, now);
            let (chosen, _) = knowledge.choose(&Limits::default(), u64::MAX, u64::MAX, now);
            chosen.iter().for_each(|c| knowledge.take(c));
            knowledge.learn((0, item(1)), &second, now, 2);
            let fresh = learnt(&[second.clone(), other], Choice::Greedy, now);
            prop_assert_eq!(knowledge.stored(), fresh.stored());
            let there = |seq: &Seq| {
                seq.0 >= CHUNKS_PER_PAGE || second.iter().any(|(slot, _)| u64::from(*slot) == seq.0)
            };
            prop_assert!(knowledge.taken.keys().all(there));
            let root = BTreeMap::from([(0, item(1)), (1, item(0))]);
            prop_assert!(knowledge.outdated(&root).is_empty());
            let root = BTreeMap::from([(1, item(7))]);
            prop_assert_eq!(knowledge.outdated(&root), vec![(1, item(7))]);
            prop_assert!(knowledge.taken.keys().all(|seq| seq.0 >= CHUNKS_PER_PAGE));
        }

        /// Small chunks are merged into what is none, the oldest first, until too few are left.
        #[test]
        fn small_chunks_have_an_end(count in 0u32..1000, size in 1u32..=CHUNK / SMALL, room in 0u64..1 << 20) {
            let used = ChunkUse { live: size, payload: size };
            let page: Vec<_> = (0..count).map(|slot| (slot, used)).collect();
            let mut knowledge = learnt(&[page], Choice::Greedy, Seq(5000));
            prop_assert_eq!(knowledge.small_excess(0), u64::from(count).saturating_sub(SMALL_ALLOWED));
            let mut next = 0;
            loop {
                let (chosen, cost) = knowledge.choose_small(room);
                if chosen.is_empty() {
                    break;
                }
                prop_assert!(cost.moved <= room && cost.moved > u64::from(CHUNK / SMALL));
                for chunk in &chosen {
                    prop_assert_eq!(chunk.seq, Seq(next));
                    next += 1;
                    knowledge.take(chunk);
                }
            }
            let left = (u64::from(count) - next) * u64::from(size);
            let too_little = room <= u64::from(CHUNK / SMALL + size);
            prop_assert!(left <= u64::from(CHUNK / SMALL) || too_little, "{left} sectors are left");
        }
    }
}
