//! The map (overlays, leaves, pages) as a state machine against a range map.
//!
//! Positions crowd around the limits of leaves and of pages. Items of the base can be forgotten at
//! any time; a lookup that misses one loads it. A checkpoint's tree is written here by a naive
//! writer that looks at every leaf, out of the same parts as the engine's (overlay changes, leaf
//! merge, page search).

use crate::extents::{Extents, Place, live, pieces, sectors};
use objblk::format::keys::MapObjectId;
use objblk::format::page::{
    Extent, ItemRef, LEAF_SECTORS, LEAVES_PER_PAGE, Location, MapPage, encode_leaf,
    encode_map_page, parse_leaf, parse_map_page,
};
use objblk::map::base::{find_leaf, leaf_range, page_of};
use objblk::map::leaf::{Change, merge};
use objblk::map::{Base, ItemSource, Map, Missing, Overlay, Target};
use objblk::units::{Epoch, Sector, Seq};
use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use rangemap::RangeMap;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

const PAGE: u64 = LEAF_SECTORS * LEAVES_PER_PAGE;
/// Leaves that the tests touch: two at the start, some around the end of the first page.
const END: u64 = PAGE + 3 * LEAF_SECTORS;
/// Payload of a chunk, in sectors.
const CHUNK: u32 = 1 << 17;

/// What was changed since the last freeze; `None` is zeroed.
type Changes = RangeMap<u64, Option<Place>>;

#[derive(Clone, Debug, Default)]
struct Reference {
    extents: Extents,
    /// What the base holds.
    base: Extents,
    /// What the base will hold when the checkpoint that has begun is done.
    frozen: Option<Extents>,
    active: Changes,
    /// Where the next write goes.
    next: (u64, u32),
    /// Where the last write went.
    last: (u64, u32),
}

#[derive(Clone, Debug)]
enum Step {
    Write(Range<u64>),
    /// The next write goes to a new chunk.
    Seal,
    Zero(Range<u64>),
    Lookup(Range<u64>, usize),
    Covering(Range<u64>),
    Freeze,
    Install,
    /// Forgets some of the items that are in memory.
    Forget(u64),
}

fn position() -> impl Strategy<Value = u64> {
    let limit = prop::sample::select(vec![
        0,
        LEAF_SECTORS,
        2 * LEAF_SECTORS,
        PAGE - LEAF_SECTORS,
        PAGE,
        PAGE + LEAF_SECTORS,
    ]);
    (limit, -24i64..24).prop_map(|(at, by)| at.saturating_add_signed(by))
}

fn run(longest: u64) -> impl Strategy<Value = Range<u64>> {
    let len = prop_oneof![4 => 1u64..24, 1 => 1..=longest];
    (position(), len).prop_map(|(at, len)| at..(at + len).min(END))
}

impl ReferenceStateMachine for Reference {
    type State = Reference;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Reference> {
        Just(Reference::default()).boxed()
    }

    fn transitions(state: &Reference) -> BoxedStrategy<Step> {
        let checkpoint = if state.frozen.is_some() { Step::Install } else { Step::Freeze };
        let rest = u64::from(CHUNK - state.next.1);
        prop_oneof![
            12 => run(rest).prop_map(Step::Write),
            2 => Just(Step::Seal),
            4 => run(END).prop_map(Step::Zero),
            4 => (run(END), 1usize..6).prop_map(|(range, max)| Step::Lookup(range, max)),
            2 => run(64).prop_map(Step::Covering),
            2 => Just(checkpoint),
            2 => any::<u64>().prop_map(Step::Forget),
        ]
        .boxed()
    }

    fn preconditions(state: &Reference, step: &Step) -> bool {
        match step {
            Step::Write(run) => run.end - run.start <= u64::from(CHUNK - state.next.1),
            Step::Freeze => state.frozen.is_none(),
            Step::Install => state.frozen.is_some(),
            _ => true,
        }
    }

    fn apply(mut state: Reference, step: &Step) -> Reference {
        match step {
            Step::Write(run) => {
                let (seq, offset) = state.next;
                let place = Place::new(run.start, Location { seq: Seq(seq), offset });
                state.extents.insert(run.clone(), place);
                state.active.insert(run.clone(), Some(place));
                state.last = state.next;
                state.next.1 += (run.end - run.start) as u32;
                if state.next.1 == CHUNK {
                    state.next = (seq + 1, 0);
                }
            }
            Step::Seal => state.next = (state.next.0 + 1, 0),
            Step::Zero(run) => {
                state.extents.remove(run.clone());
                state.active.insert(run.clone(), None);
            }
            Step::Freeze => {
                state.frozen = Some(state.extents.clone());
                state.active.clear();
            }
            Step::Install => state.base = state.frozen.take().unwrap(),
            Step::Lookup(..) | Step::Covering(_) | Step::Forget(_) => {}
        }
        state
    }
}

/// Items of the base: all as they are stored, some in memory.
#[derive(Default)]
struct Items {
    stored: BTreeMap<ItemRef, Vec<u8>>,
    pages: BTreeMap<ItemRef, Arc<MapPage>>,
    leaves: BTreeMap<ItemRef, Arc<Vec<Extent>>>,
}

impl Items {
    fn store(&mut self, bytes: Vec<u8>) -> ItemRef {
        let number = self.stored.len() as u32;
        let object = MapObjectId { epoch: Epoch(1), number };
        let crc = crc32c::crc32c(&bytes);
        let item = ItemRef { object, offset: 48, len: bytes.len() as u32, crc };
        self.stored.insert(item, bytes);
        item
    }

    fn load(&mut self, missing: Missing) {
        match missing {
            Missing::MapPage(item) => {
                let page = parse_map_page(&self.stored[&item]).unwrap();
                assert!(self.pages.insert(item, Arc::new(page)).is_none(), "it was there");
            }
            Missing::Leaf(item) => {
                let leaf = parse_leaf(&self.stored[&item]).unwrap();
                assert!(self.leaves.insert(item, Arc::new(leaf)).is_none(), "it was there");
            }
        }
    }

    /// Forgets items by the bits of `which`.
    fn forget(&mut self, which: u64) {
        let mut bits = (0..64).cycle().map(|bit| which >> bit & 1 == 0);
        self.pages.retain(|_, _| bits.next().unwrap());
        self.leaves.retain(|_, _| bits.next().unwrap());
    }
}

impl ItemSource for Items {
    fn map_page(&self, item: ItemRef) -> Option<Arc<MapPage>> {
        self.pages.get(&item).cloned()
    }

    fn leaf(&self, item: ItemRef) -> Option<Arc<Vec<Extent>>> {
        self.leaves.get(&item).cloned()
    }
}

#[derive(Default)]
struct UnderTest {
    map: Map,
    items: RefCell<Items>,
    frozen: Option<Arc<Overlay>>,
    /// Live sectors by slot, as the merges counted them.
    live: BTreeMap<u64, i64>,
}

impl UnderTest {
    /// All pieces of `range`, asked for at most `max` more at a time.
    fn lookup(&self, range: &Range<u64>, max: usize) -> Vec<objblk::map::Piece> {
        let mut pieces: Vec<objblk::map::Piece> = Vec::new();
        loop {
            let at = pieces.last().map_or(range.start, |piece| piece.range.end().0);
            if at == range.end {
                return pieces;
            }
            let (most, mut items) = (pieces.len() + max, self.items.borrow_mut());
            let found = self.map.lookup(sectors(&(at..range.end)), &*items, most, &mut pieces);
            if let Err(missing) = found {
                items.load(missing);
            }
        }
    }

    /// The tree of the base with the frozen changes in it.
    fn write_tree(&mut self) -> Base {
        let changes = self.frozen.take().unwrap();
        let mut root = BTreeMap::new();
        let items = &mut *self.items.borrow_mut();
        let mut pages: BTreeMap<u32, MapPage> = BTreeMap::new();
        let leaves: BTreeSet<u64> =
            (0..3).chain(LEAVES_PER_PAGE - 2..LEAVES_PER_PAGE + 3).collect();
        for index in leaves {
            let (page, slot) = page_of(index);
            let old = self.map.base().root.get(&page);
            let old = old.map(|item| parse_map_page(&items.stored[item]).unwrap());
            let old = old.and_then(|page| find_leaf(&page, slot));
            let old = old.map(|item| parse_leaf(&items.stored[&item]).unwrap());
            let span = leaf_range(index);
            let list: Vec<Change> = changes
                .changes(span)
                .map(|(range, target)| Change {
                    start: (range.start().0 - span.start().0) as u32,
                    len: range.len().0 as u32,
                    target,
                })
                .collect();
            let new = merge(&old.unwrap_or_default(), &list, &mut |seq, n| {
                *self.live.entry(seq.0).or_default() += n;
            });
            if !new.is_empty() {
                let leaf = items.store(encode_leaf(&new));
                pages.entry(page).or_default().push((slot, leaf));
            }
        }
        for (index, page) in pages {
            root.insert(index, items.store(encode_map_page(&page)));
        }
        Base { root }
    }
}

impl StateMachineTest for UnderTest {
    type SystemUnderTest = UnderTest;
    type Reference = Reference;

    fn init_test(_: &Reference) -> UnderTest {
        UnderTest::default()
    }

    fn apply(mut state: UnderTest, reference: &Reference, step: Step) -> UnderTest {
        match step {
            Step::Write(run) => {
                let (seq, offset) = reference.last;
                let target = Target::Data(Location { seq: Seq(seq), offset });
                state.map.insert(sectors(&run), target);
                // The log knows an extent as one run where it went through in one.
                let found = state.map.covering(sectors(&run));
                assert_eq!(found, Some(Location { seq: Seq(seq), offset }));
            }
            Step::Zero(run) => state.map.insert(sectors(&run), Target::Zero),
            Step::Lookup(run, max) => {
                let found = state.lookup(&run, max);
                // A lookup that was cut short may have cut an extent.
                let covered: u64 = found.iter().map(|piece| piece.range.len().0).sum();
                assert_eq!(covered, run.end - run.start);
                for piece in found {
                    let run = piece.range.start().0..piece.range.end().0;
                    assert_eq!(vec![piece], pieces(&reference.extents, run));
                }
            }
            Step::Covering(run) => {
                let mut over = reference.active.overlapping(&run);
                let expected = match (over.next(), over.next()) {
                    (Some((there, Some(place))), None)
                        if there.start <= run.start && run.end <= there.end =>
                    {
                        Some(place.location(run.start))
                    }
                    _ => None,
                };
                assert_eq!(state.map.covering(sectors(&run)), expected);
            }
            Step::Freeze => state.frozen = Some(state.map.freeze()),
            Step::Install => {
                let base = state.write_tree();
                state.map.install(base);
                state.live.retain(|_, n| *n != 0);
                let live = live(&reference.base).into_iter().map(|(seq, n)| (seq, n as i64));
                assert_eq!(state.live, live.collect());
            }
            Step::Forget(which) => state.items.borrow_mut().forget(which),
            Step::Seal => {}
        }
        state
    }

    fn check_invariants(state: &UnderTest, reference: &Reference) {
        assert_eq!(state.map.changes(), reference.active.iter().count());
        assert_eq!(state.lookup(&(0..END), usize::MAX >> 1), pieces(&reference.extents, 0..END));
        if let Some(frozen) = &state.frozen {
            let next = frozen.next_change(Sector(LEAF_SECTORS));
            let first = frozen.changes(sectors(&(LEAF_SECTORS..END))).next();
            assert_eq!(next, first.map(|(range, _)| range.start()).filter(|at| at.0 < END));
        }
    }
}

prop_state_machine! {
    #![proptest_config(crate::config(300))]

    #[test]
    fn the_map_equals_a_range_map(sequential 1..120 => UnderTest);
}
