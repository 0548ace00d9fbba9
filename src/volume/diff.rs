//! What changed between two states: their map trees, compared.
//!
//! Pages and leaves that both share are skipped by their references, so the cost is that of what changed, not
//! of the volume. What has the same place in both is equal. What has not *may* differ: it was written, or the
//! collector has moved it. Only the bytes tell the two apart, and those are the reader's affair.
//!
//! The states may be of volumes that come from each other by clones: what they share is named alike.

use super::items::Items;
use super::look::{check_features, read_description};
use super::open::find_snapshot;
use super::options::{Env, Mode, Stores, VolumeOptions};
use super::past::View;
use super::{Volume, checkpoint};
use crate::device::BlockState;
use crate::error::{Error, ErrorKind, Result};
use crate::format::page::{Extent, ItemRef, LEAVES_PER_PAGE, Location, MapPage};
use crate::format::snapshot::SnapshotObject;
use crate::map::{Overlay, Target, base::leaf_range, diff};
use crate::units::{Sector, SectorRange};
use std::collections::VecDeque;
use std::sync::Arc;

/// Leaves of each state that are looked at together: at most 16 MiB of them.
const LEAVES: usize = 8;

/// Sectors that may differ between two states, and do not both lack data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The sectors.
    pub range: SectorRange,
    /// Whether they had data.
    pub was: BlockState,
    /// Whether they have data.
    pub is: BlockState,
}

/// What may differ between two states, in the order of sectors; of a moment of the past, what the log has behind
/// its point comes first. Holds one page and some leaves of each.
#[derive(Debug)]
pub struct Changes {
    old: Option<Tree>,
    new: Tree,
    pages: VecDeque<(u32, Option<ItemRef>, Option<ItemRef>)>,
    leaves: VecDeque<(u64, Option<ItemRef>, Option<ItemRef>)>,
    /// Size of the newer state: beyond it nothing is told.
    all: SectorRange,
    /// What hides the tree of the newer state, and has to be told.
    hiding: Option<Arc<Overlay>>,
    hidden: Vec<Changed>,
}

#[derive(Clone, Debug)]
struct Tree {
    items: Arc<Items>,
    root: Vec<(u32, ItemRef)>,
}

impl Volume {
    /// Opens exactly this snapshot, to be read, whoever owns its volume.
    ///
    /// # Errors
    /// NotFound: no such volume. Corrupt: its description is damaged. Unsupported: a newer objblk is needed. Store.
    pub async fn open_snapshot(
        env: Env,
        stores: Stores,
        snapshot: SnapshotObject,
        options: VolumeOptions,
    ) -> Result<Volume> {
        let id = snapshot.checkpoint.volume;
        let description = read_description(&*stores.setup, id).await?;
        check_features(&description, Mode::ReadOnly)?;
        Volume::open_view(env, stores, description, View::of(snapshot.checkpoint), options).await
    }

    /// The snapshot `name` of this volume, to be read: a volume of its own.
    ///
    /// # Errors
    /// NotFound: there is none. As [`Volume::open_snapshot`].
    pub async fn view(&self, name: &str) -> Result<Volume> {
        let shared = &self.shared;
        let found = find_snapshot(&*shared.stores.setup, shared.id, name).await?;
        let options = VolumeOptions { mirror: None, journal: None, ..shared.options.clone() };
        Volume::open_snapshot(shared.env.clone(), shared.stores.clone(), found, options).await
    }

    /// What may differ between `base` (without one: a volume that was never written) and this volume,
    /// as of all that completed before. An owner makes a checkpoint for that.
    ///
    /// # Errors
    /// Usage: neither comes from the other, nor both from a third; `base` is a moment between two checkpoints.
    /// Busy: one of the two lacks something of the
    /// image that it began as. Those of a checkpoint.
    pub async fn changes_since(&self, base: Option<&Volume>) -> Result<Changes> {
        for state in base.iter().chain([&self]) {
            if state.shared.hydration().is_some_and(|source| !source.is_complete()) {
                let text = "it lacks something of the image that it began as";
                return Err(Error::new(ErrorKind::Busy, text)
                    .hint("fetch all of that with `objblk flatten`, then make a snapshot"));
            }
        }
        let (new, hiding) = self.tree().await?;
        let old = match base {
            Some(base) => match base.tree().await? {
                (old, None) => Some(old),
                (_, Some(_)) => {
                    return Err(Error::usage("no changes can be told since that moment"));
                }
            },
            None => None,
        };
        let root = |tree: &Tree| tree.items.lineage().root();
        if old.as_ref().is_some_and(|old| root(old) != root(&new)) {
            let text = "the two have nothing in common that their maps could tell";
            return Err(Error::usage(text).hint("compare states of one volume, or of its clones"));
        }
        let none = Vec::new();
        let old_root = old.as_ref().map_or(&none, |old| &old.root);
        let same = same_item(old.as_ref(), &new);
        let pages = diff::differing(old_root, &new.root, same).into();
        let all = SectorRange::between(Sector(0), Sector(self.shared.state().size.0));
        let was = base.map_or(0, |base| base.shared.state().size.0);
        let hidden = hiding.iter().flat_map(|hiding| hidden(hiding, all, Sector(was))).collect();
        Ok(Changes { old, new, pages, leaves: VecDeque::new(), all, hiding, hidden })
    }

    /// What of the volume is in a tree, and what hides that.
    async fn tree(&self) -> Result<(Tree, Option<Arc<Overlay>>)> {
        let shared = &self.shared;
        if !shared.is_read_only() {
            checkpoint::run(shared, checkpoint::Kind::Running).await?;
        }
        let state = shared.state();
        let hiding = state.map.frozen().filter(|_| shared.is_read_only()).cloned();
        let hiding = hiding.filter(|hiding| !hiding.is_empty());
        let told = hiding.as_ref().map_or(0, |hiding| hiding.len());
        if shared.is_read_only() && state.map.changes() > told {
            let text = "its newest checkpoint is older than what was written";
            return Err(Error::new(ErrorKind::Busy, text).hint("attach and detach it once"));
        }
        let root = state.map.base().root.iter().map(|(page, item)| (*page, *item)).collect();
        Ok((Tree { items: shared.items.clone(), root }, hiding))
    }
}

/// Whether two references are of one item.
fn same_item<'a>(
    old: Option<&'a Tree>,
    new: &'a Tree,
) -> impl Fn(ItemRef, ItemRef) -> bool + use<'a> {
    move |a, b| {
        let volume = |tree: &Tree, item: ItemRef| tree.items.lineage().map_volume(item.object);
        a == b && old.is_none_or(|old| volume(old, a) == volume(new, b))
    }
}

impl Changes {
    /// The next of them; joined where they belong together, but for those of two calls.
    ///
    /// # Errors
    /// Corrupt: a part of a map is damaged, or missing: its snapshot was deleted meanwhile, perhaps.
    /// Store.
    pub async fn next(&mut self) -> Result<Option<Vec<Changed>>> {
        if !self.hidden.is_empty() {
            return Ok(Some(std::mem::take(&mut self.hidden)));
        }
        loop {
            while self.leaves.is_empty() {
                let Some((page, old, new)) = self.pages.pop_front() else { return Ok(None) };
                self.open_page(page, old, new).await?;
            }
            let taken = self.leaves.len().min(LEAVES);
            let batch: Vec<_> = self.leaves.drain(..taken).collect();
            let changed = self.compare(&batch).await?;
            if !changed.is_empty() {
                return Ok(Some(changed));
            }
        }
    }

    async fn open_page(
        &mut self,
        page: u32,
        old: Option<ItemRef>,
        new: Option<ItemRef>,
    ) -> Result<()> {
        let none = Arc::new(MapPage::new());
        let old = match (&self.old, old) {
            (Some(tree), Some(item)) => tree.items.map_page(item).await?,
            _ => none.clone(),
        };
        let new = match new {
            Some(item) => self.new.items.map_page(item).await?,
            None => none,
        };
        let first = u64::from(page) * LEAVES_PER_PAGE;
        let same = same_item(self.old.as_ref(), &self.new);
        let leaves = diff::differing(&old, &new, same);
        self.leaves = leaves.into_iter().map(|(n, a, b)| (first + u64::from(n), a, b)).collect();
        Ok(())
    }

    async fn compare(
        &self,
        batch: &[(u64, Option<ItemRef>, Option<ItemRef>)],
    ) -> Result<Vec<Changed>> {
        let olds: Vec<Option<ItemRef>> = batch.iter().map(|leaf| leaf.1).collect();
        let news: Vec<Option<ItemRef>> = batch.iter().map(|leaf| leaf.2).collect();
        let (olds, news) =
            futures::try_join!(load(self.old.as_ref(), &olds), load(Some(&self.new), &news))?;
        let lineages = self.old.as_ref().map(|old| (old.items.lineage(), self.new.items.lineage()));
        let same = |place: Location| {
            lineages.is_none_or(|(a, b)| a.slot_volume(place.seq) == b.slot_volume(place.seq))
        };
        let mut changed = Vec::new();
        for (((leaf, ..), old), new) in batch.iter().zip(&olds).zip(&news) {
            let origin = leaf_range(*leaf).start().0;
            diff::leaves(old, new, &same, &mut |start, len, was, is| {
                let start = Sector(origin + u64::from(start));
                let range = SectorRange::between(start, Sector(start.0 + u64::from(len)));
                let (was, is) = (state(was), state(is));
                self.visible(range.intersect(self.all), |range| {
                    push(&mut changed, Changed { range, was, is });
                });
            });
        }
        Ok(changed)
    }

    /// The parts of `range` that nothing hides.
    fn visible(&self, mut range: SectorRange, mut tell: impl FnMut(SectorRange)) {
        let Some(hiding) = &self.hiding else { return tell(range) };
        while !range.is_empty() {
            let (len, hidden) = hiding.first(range);
            let at = Sector(range.start().0 + len.0);
            if hidden.is_none() {
                tell(SectorRange::between(range.start(), at));
            }
            range = SectorRange::between(at, range.end());
        }
    }
}

/// What `hiding` has within `all`. It may differ everywhere; before `was` there may have been data.
fn hidden(hiding: &Overlay, all: SectorRange, was: Sector) -> Vec<Changed> {
    let mut found = Vec::new();
    for (range, target) in hiding.changes(all) {
        let is = match target {
            Target::Data(_) => BlockState::Data,
            Target::Zero => BlockState::Hole,
        };
        let before = SectorRange::between(range.start(), range.end().min(was).max(range.start()));
        push(&mut found, Changed { range: before, was: BlockState::Data, is });
        let behind = SectorRange::between(before.end(), range.end());
        if is == BlockState::Data {
            push(&mut found, Changed { range: behind, was: BlockState::Hole, is });
        }
    }
    found
}

/// The leaves; an empty one where there is none.
async fn load(tree: Option<&Tree>, wanted: &[Option<ItemRef>]) -> Result<Vec<Arc<Vec<Extent>>>> {
    let there: Vec<ItemRef> = wanted.iter().copied().flatten().collect();
    let loaded = match tree {
        Some(tree) => tree.items.leaves(&there).await,
        None => Vec::new(),
    };
    let mut loaded = loaded.into_iter();
    let leaf = |item: &Option<ItemRef>| match item {
        Some(_) => loaded.next().unwrap_or_else(|| Ok(Arc::default())),
        None => Ok(Arc::default()),
    };
    wanted.iter().map(leaf).collect()
}

fn state(place: Option<Location>) -> BlockState {
    match place {
        Some(_) => BlockState::Data,
        None => BlockState::Hole,
    }
}

fn push(changed: &mut Vec<Changed>, next: Changed) {
    if next.range.is_empty() {
        return;
    }
    match changed.last_mut() {
        Some(last)
            if last.range.end() == next.range.start()
                && (last.was, last.is) == (next.was, next.is) =>
        {
            last.range = SectorRange::between(last.range.start(), next.range.end());
        }
        _ => changed.push(next),
    }
}
