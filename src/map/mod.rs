//! The map: where each sector of a volume is stored. Pure; it asks for leaves, never fetches.
//!
//! Three layers, the newest first:
//! * **active** overlay: what the log did since the last freeze;
//! * **frozen** overlay: what a checkpoint under way is writing out;
//! * **base**: the tree of the last checkpoint, immutable objects (root, pages, leaves) that are
//!   loaded on demand and may be forgotten at any time.
//!
//! So a write never waits for the map, replay loads no leaf, and memory is bounded by the two
//! overlays (which trigger checkpoints) and by the cache of the base's items, whatever the size
//! of the volume. Cached items are keyed by their reference to an immutable object: never stale.
//!
//! Invariant: the pieces of a lookup cover the range exactly, in order, without overlap.

pub mod base;
pub mod diff;
pub mod leaf;
pub mod overlay;
mod recent;

pub use base::{Base, ItemSource, Missing};
pub use overlay::{Overlay, Target};

use base::{leaf_index, leaf_range};
use recent::Recent;

use crate::format::page::{Extent, Location};
use crate::format::record::Record;
use crate::units::{Sector, SectorCount, SectorRange, Seq};

/// Where a run of sectors is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: it reads as zeros.
    Hole,
    /// In a chunk.
    Data(Location),
}

/// A run of sectors and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The sectors.
    pub range: SectorRange,
    /// Where they are.
    pub source: Source,
}

/// Tells the base of a map from those before and after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BaseVersion(u64);

/// The map of a volume. See the module.
#[derive(Debug, Default)]
pub struct Map {
    active: Overlay,
    frozen: Option<std::sync::Arc<Overlay>>,
    base: Base,
    version: BaseVersion,
    /// Of the base.
    recent: Recent,
}

impl Map {
    /// A map that begins with the tree of a checkpoint.
    pub fn new(base: Base) -> Map {
        Map { base, ..Map::default() }
    }

    /// `range` now has its contents at `target`.
    pub fn insert(&mut self, range: SectorRange, target: Target) {
        self.active.insert(range, target);
    }

    /// The data of these records, all of which the active overlay has in the chunk `seq`, is at their places from
    /// now on.
    pub fn moved(&mut self, seq: Seq, records: &[Record]) {
        for record in records {
            if let Record::Data { range, offset } = *record {
                self.active.replace(range, Target::Data(Location { seq, offset }));
            }
        }
    }

    /// Where the whole of `range` is stored contiguously by changes since the last freeze.
    pub fn covering(&self, range: SectorRange) -> Option<Location> {
        self.active.covering(range)
    }

    /// Number of changed extents that no checkpoint has taken yet.
    pub fn changes(&self) -> usize {
        self.active.len()
    }

    /// Appends the pieces of `range` to `pieces`, at most `max` in all.
    ///
    /// # Errors
    /// [`Missing`]: load that item of the base, then ask again (from the end of the pieces).
    pub fn lookup(
        &self,
        range: SectorRange,
        items: &dyn ItemSource,
        max: usize,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Missing> {
        let mut at = range.start();
        while at < range.end() && pieces.len() < max {
            let rest = SectorRange::between(at, range.end());
            let (len, target) = self.newest(rest);
            let run = SectorRange::between(at, Sector(at.0 + len.0));
            match target {
                Some(target) => push(pieces, run, target.into()),
                None => self.base.lookup(run, items, &mut |range, source| {
                    push(pieces, range, source);
                })?,
            }
            at = run.end();
        }
        Ok(())
    }

    /// Where `range` is, if it is one run by what one of the layers knows; otherwise it takes a
    /// [`Map::lookup`].
    ///
    /// # Errors
    /// [`Missing`]: as [`Map::lookup`].
    pub fn single(
        &mut self,
        range: SectorRange,
        items: &dyn ItemSource,
    ) -> Result<Option<Source>, Missing> {
        let (len, target) = self.newest(range);
        if len < range.len() {
            return Ok(None);
        }
        if let Some(target) = target {
            return Ok(Some(target.into()));
        }
        let index = leaf_index(range.start());
        let span = leaf_range(index);
        if range.end() > span.end() {
            return Ok(None);
        }
        let (start, end) = (range.start().0 - span.start().0, range.end().0 - span.start().0);
        let find = |leaf: &[Extent]| leaf::single(leaf, start as u32, end as u32);
        if let Some(leaf) = self.recent.leaf(index) {
            return Ok(find(leaf));
        }
        let Some(leaf) = self.base.leaf(index, items)? else { return Ok(Some(Source::Hole)) };
        self.recent.note(index, &leaf);
        Ok(find(&leaf))
    }

    /// The first run of `range` of which an overlay knows, or does not know, as a whole. Of what none
    /// knows, the base decides.
    pub fn newest(&self, range: SectorRange) -> (SectorCount, Option<Target>) {
        let (len, target) = self.active.first(range);
        match (&self.frozen, target) {
            (Some(frozen), None) => {
                frozen.first(SectorRange::between(range.start(), Sector(range.start().0 + len.0)))
            }
            _ => (len, target),
        }
    }

    /// Begins a checkpoint: later changes go to a new overlay.
    ///
    /// # Panics
    /// Where a freeze is under way already.
    pub fn freeze(&mut self) -> std::sync::Arc<Overlay> {
        assert!(self.frozen.is_none(), "one checkpoint at a time");
        let frozen = std::sync::Arc::new(std::mem::take(&mut self.active));
        self.frozen = Some(frozen.clone());
        frozen
    }

    /// What was frozen and is in no tree yet.
    pub fn frozen(&self) -> Option<&std::sync::Arc<Overlay>> {
        self.frozen.as_ref()
    }

    /// Ends a checkpoint: `base` holds all that was frozen.
    pub fn install(&mut self, base: Base) {
        self.base = base;
        self.version.0 += 1;
        self.recent = Recent::default();
        self.frozen = None;
    }

    /// Changes when what overlays knew goes over to the base, and only then: while it stays, they
    /// forget nothing.
    pub fn version(&self) -> BaseVersion {
        self.version
    }

    /// The tree of the last checkpoint.
    pub fn base(&self) -> &Base {
        &self.base
    }
}

fn push(pieces: &mut Vec<Piece>, range: SectorRange, source: Source) {
    if let Some(last) = pieces.last_mut().filter(|last| last.range.end() == range.start()) {
        let joins = match (last.source, source) {
            (Source::Hole, Source::Hole) => true,
            (Source::Data(a), Source::Data(b)) => a.advance(last.range.len().0) == b,
            _ => false,
        };
        if joins {
            last.range = SectorRange::between(last.range.start(), range.end());
            return;
        }
    }
    pieces.push(Piece { range, source });
}

impl From<Target> for Source {
    fn from(target: Target) -> Source {
        match target {
            Target::Zero => Source::Hole,
            Target::Data(location) => Source::Data(location),
        }
    }
}
