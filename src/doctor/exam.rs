//! The examination of one volume.

use super::Doctor;
use super::chunk;
use super::flaw::{Affected, Damage, Flaw, read};
use super::gather::{Gathered, PARALLEL, undescribed, with_stored};
use super::report::VolumeReport;
use super::space::Sorter;
use super::survey::Survey;
use super::trace::{BadChunks, Trace};
use super::used::Used;
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::features::Access;
use crate::format::keys::{self, ChunkId, MapObjectId};
use crate::format::lineage::Ancestor;
use crate::format::map_object::parse_directory;
use crate::format::volume::VolumeObject;
use crate::store::{KEY_HINT, Store};
use crate::volume::present::is_newest;
use futures::stream::{self, StreamExt, TryStreamExt};
use std::collections::BTreeSet;

/// How often a volume whose owner keeps changing it is looked at again.
const LOOKS: usize = 5;
/// Chunks that are verified at the same time, with 4 MiB of each in memory at most.
const CHUNKS: usize = 16;
/// Chunks that are taken up at once.
const BATCH: usize = 4096;

/// What is known of the chunks of volumes that come from one another.
#[derive(Debug, Default)]
pub(super) struct Family {
    pub used: Used,
    pub bad: BadChunks,
}

/// What a volume is, unless that cannot be told.
pub(super) async fn description(
    store: &dyn Store,
    id: VolumeId,
) -> Result<std::result::Result<VolumeObject, Damage>> {
    let key = keys::volume(id);
    let flaw = match read(store, &key, VolumeObject::parse).await? {
        Ok(description) if description.id == id => return Ok(Ok(description)),
        Ok(other) => Flaw::Inconsistent(format!("it describes volume {}", other.id)),
        Err(flaw) => flaw,
    };
    Ok(Err(Damage::of(&key, &flaw, "what the volume is")))
}

impl Doctor {
    /// Examines the volume `id`, called `name`.
    ///
    /// # Errors
    /// Busy: its owner is too quick. Unsupported. Those of the store that tell nothing of an object.
    pub(super) async fn examine(
        &self,
        (name, id): (&str, VolumeId),
        family: &mut Family,
    ) -> Result<VolumeReport> {
        let store = &*self.store;
        let mut report = VolumeReport::new(name, id);
        let description = match description(store, id).await? {
            Ok(description) => description,
            Err(damage) => {
                report.tell([damage]);
                report.affected = undescribed(store, (name, id)).await?;
                return Ok(report);
            }
        };
        if description.features.access() == Access::None {
            let text = format!("volume {name} uses features of a newer objblk");
            return Err(Error::new(ErrorKind::Unsupported, text).hint("upgrade objblk"));
        }
        self.pool.unlock(name, &description).await?;
        if !self.pool.is_open(&description) {
            let text = format!("volume {name} is encrypted, and its key was not given");
            return Err(Error::usage(text).hint(KEY_HINT));
        }
        self.progress.begin(format!("{name}: its map"), 0);
        let gathered = Gathered::of(store, name, &description).await?;
        let survey = Survey::of(store, &gathered.states, &mut family.used).await?;
        gathered.past.note(&mut family.used);
        let mut beyond = None;
        if let Some(sorter) = Sorter::new(id, &gathered, &survey.map_objects) {
            let (space, found) = sorter.sort(store, &mut family.used, self.data).await?;
            (report.space, beyond) = (Some(space), found);
        }
        report.chunks = self.verify_chunks(name, family).await?;
        report.map_items = survey.items;
        report.snapshots = gathered.snapshots.iter().filter(|entry| !entry.deleted).count() as u64;
        let directories = self.bad_directories(&description, &survey.map_objects).await?;
        let is_exposed = gathered.unknown_to_origin && family.used.has_foreign(id);
        let sound = !survey.suspicious
            && !is_exposed
            && beyond.is_none()
            && gathered.damages.is_empty()
            && family.bad.is_empty()
            && directories.is_empty();
        report.notes = gathered.notes.clone();
        report.tell(survey.damages);
        if !sound {
            let odd = (&*directories, beyond);
            self.look_again((name, &description), family, odd, &mut report).await?;
        }
        Ok(report)
    }

    /// Verifies the chunks that are named and were not verified yet. Returns how many.
    async fn verify_chunks(&self, name: &str, family: &mut Family) -> Result<u64> {
        let Family { used, bad } = family;
        let what = if self.data { "data" } else { "chunks" };
        self.progress.begin(format!("{name}: its {what}"), used.waiting());
        let mut count = 0;
        loop {
            let batch = used.take(BATCH);
            if batch.is_empty() {
                return Ok(count);
            }
            count += batch.len() as u64;
            let look = |known: super::used::Known| async move {
                let found = chunk::examine(&*self.store, known, self.data).await?;
                self.progress.step();
                Ok::<_, Error>((known.id, found))
            };
            let mut found = stream::iter(batch).map(look).buffer_unordered(CHUNKS).boxed();
            while let Some((id, found)) = found.try_next().await? {
                if let Some(found) = found {
                    bad.insert(id, found);
                }
            }
        }
    }

    /// The volume's map objects whose directory is damaged, which only collection would notice.
    async fn bad_directories(
        &self,
        description: &VolumeObject,
        objects: &BTreeSet<MapObjectId>,
    ) -> Result<Vec<(MapObjectId, Flaw)>> {
        if !self.data {
            return Ok(Vec::new());
        }
        let (id, lineage) = (description.id, description.lineage());
        let own: Vec<MapObjectId> =
            objects.iter().copied().filter(|object| lineage.owns_map_object(*object)).collect();
        let look = |object: MapObjectId| async move {
            let key = keys::map_object(id, object);
            let found =
                read(&*self.store, &key, |bytes| parse_directory(id, object, bytes)).await?;
            Ok::<_, Error>(found.err().map(|flaw| (object, flaw)))
        };
        let found = stream::iter(own).map(look).buffered(PARALLEL).boxed();
        let found: Vec<Option<(MapObjectId, Flaw)>> = found.try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Tells damage from what the volume's owner deleted meanwhile, and what the damage does.
    ///
    /// An object is damaged or missing only if a state names it that is the newest after that was seen.
    async fn look_again(
        &self,
        (name, description): (&str, &VolumeObject),
        family: &Family,
        (directories, beyond): (&[(MapObjectId, Flaw)], Option<ChunkId>),
        report: &mut VolumeReport,
    ) -> Result<()> {
        let store = &*self.store;
        for _ in 0..LOOKS {
            self.progress.begin(format!("{name}: what damage does"), 0);
            if self.is_deleted(name, description.id).await? {
                report.damages.clear();
                report.notes = vec!["it was deleted meanwhile".into()];
                return Ok(());
            }
            let fresh = Gathered::of(store, name, description).await?;
            let trace = Trace::of(store, &fresh.states, &family.bad).await?;
            let settled = match &fresh.checkpoint {
                Some(checkpoint) if trace.missed || !fresh.damages.is_empty() => {
                    is_newest(store, checkpoint).await? && fresh.past.is_there(store).await?
                }
                _ => true,
            };
            if !settled {
                continue;
            }
            let needed: BTreeSet<MapObjectId> =
                fresh.states.iter().flat_map(|s| s.map_objects.iter().map(|u| u.object)).collect();
            let still = directories.iter().filter(|(object, _)| needed.contains(object));
            let directory = |(object, flaw): &(MapObjectId, Flaw)| {
                let key = keys::map_object(description.id, *object);
                Damage::of(&key, flaw, "the directory of a map object")
            };
            report.tell(self.exposed((name, description), &fresh).await?);
            let cut_off = beyond.filter(|chunk| fresh.is_beyond(*chunk));
            report.tell(fresh.damages);
            report.tell(still.map(directory));
            let mut damages = trace.damages;
            damages.extend(fresh.past.damaged(&family.bad));
            report.tell(damages);
            report.notes = fresh.notes;
            report.affected = fresh.lost;
            if let (Some(chunk), Some(end)) = (cut_off, fresh.end) {
                let text = format!(
                    "{name} ends at log slot {end}, and a chunk lies behind: what leads there is lost"
                );
                report.tell([Damage {
                    object: Some(chunk.key().to_string()),
                    ..Damage::contradiction(text)
                }]);
                let all = with_stored(store, description.id, &fresh.snapshots).await?;
                let lost = all.iter().filter(|e| !fresh.snapshots.contains(e));
                let lost = lost.map(|e| Affected::all(format!("{name}@{}", e.name), e.size.0));
                report.affected.extend(lost);
                let sectors = fresh.states.last().map_or(0, |state| state.size.0);
                report.affected.push(Affected::all(name.into(), sectors));
            }
            let whole: BTreeSet<String> = report.affected.iter().map(|a| a.name.clone()).collect();
            let partly = trace.affected.into_iter().filter(|a| !whole.contains(&a.name));
            report.affected.extend(partly);
            return Ok(());
        }
        let text = format!("the checkpoints of volume {name} keep changing");
        Err(Error::new(ErrorKind::Busy, text).hint("try again"))
    }

    /// A clone that needs its origin, which does not know that.
    async fn exposed(
        &self,
        (name, description): (&str, &VolumeObject),
        fresh: &Gathered,
    ) -> Result<Option<Damage>> {
        let Some(state) = fresh.states.last().filter(|_| fresh.unknown_to_origin) else {
            return Ok(None);
        };
        let mut used = Used::default();
        Survey::of(&*self.store, &fresh.states, &mut used).await?;
        let own = state.chunk(state.lineage.first_slot()).volume;
        let text = format!(
            "{name} needs objects of its origin, which may delete them: it is no child of it"
        );
        let mark = |of: &Ancestor| keys::child(of.volume, of.snapshot, description.id).to_string();
        let object = description.origin().map(mark);
        let damage = Damage { object, ..Damage::contradiction(text) };
        Ok(used.has_foreign(own).then_some(damage))
    }

    async fn is_deleted(&self, name: &str, id: VolumeId) -> Result<bool> {
        let gone = super::gather::is_there(&*self.store, &keys::trash(id)).await?;
        let described = super::gather::is_there(&*self.store, &keys::volume(id)).await?;
        if gone || !described {
            tracing::debug!("volume {name} was deleted meanwhile");
        }
        Ok(gone || !described)
    }

    /// What the damaged chunks of `family` do to another volume, a clone.
    pub(super) async fn follow_clone(
        &self,
        (name, description): (&str, &VolumeObject),
        family: &Family,
        report: &mut VolumeReport,
    ) -> Result<()> {
        self.progress.begin(format!("{name}: what damage does"), 0);
        let fresh = Gathered::of(&*self.store, name, description).await?;
        let trace = Trace::of(&*self.store, &fresh.states, &family.bad).await?;
        report.affected.extend(fresh.lost);
        report.affected.extend(trace.affected);
        Ok(())
    }
}
