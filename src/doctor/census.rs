//! Which volumes there are, and what the pool says of them.

use super::Doctor;
use super::exam::{Family, description};
use super::flaw::{Damage, Flaw, Found, Kind, read};
use super::report::{Nameless, Report, VolumeReport};
use super::space::Amount;
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::keys;
use crate::format::pool::{NameObject, TombstoneObject, parse_json};
use crate::format::volume::VolumeObject;
use crate::pool::VolumeName;
use crate::store::{Key, MAX_PAGE, Store, list_all};
use std::collections::BTreeMap;

/// Names by volume.
type Names = BTreeMap<VolumeId, Vec<String>>;

impl Doctor {
    /// Examines the volume called `name` with its snapshots, and what its damage does to clones.
    ///
    /// # Errors
    /// NotFound. Busy: its owner is too quick, or it is being deleted. Unsupported. Those of the store that
    /// tell nothing of an object. What is damaged is no error.
    pub async fn check(&self, name: &VolumeName) -> Result<Report> {
        let mut report = self.report();
        let id = match self.pool.lookup(name).await {
            Ok((id, _)) => id,
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                return self.undescribed(name, report).await;
            }
            Err(e) => return Err(e),
        };
        let mut family = Family::default();
        let mut volume = self.examine((name.as_str(), id), &mut family).await?;
        if !volume.is_sound() {
            self.follow_clones(id, &family, &mut volume).await?;
        }
        report.volumes.push(volume);
        Ok(self.end(report))
    }

    /// A name that leads nowhere.
    async fn undescribed(&self, name: &VolumeName, mut report: Report) -> Result<Report> {
        let key = keys::name(name.as_str()).ok_or_else(|| Error::usage("no name"))?;
        match self.named(&key).await? {
            Ok(id) => {
                let volume = self.examine((name.as_str(), id), &mut Family::default()).await?;
                report.volumes.push(volume);
            }
            Err(flaw) => report.damages.push(Damage::of(&key, &flaw, "the name of a volume")),
        }
        Ok(self.end(report))
    }

    async fn follow_clones(
        &self,
        of: VolumeId,
        family: &Family,
        report: &mut VolumeReport,
    ) -> Result<()> {
        let names = self.names(&mut self.report()).await?;
        for id in self.volumes().await? {
            let Ok(found) = description(&*self.store, id).await? else { continue };
            if !found.ancestors.iter().any(|ancestor| ancestor.volume == of) {
                continue;
            }
            let name = shown(&names, id);
            self.follow_clone((&name, &found), family, report).await?;
        }
        Ok(())
    }

    /// Examines the whole pool.
    ///
    /// # Errors
    /// Those of the store that tell nothing of an object. What is damaged is no error, nor is what keeps one
    /// volume from being examined.
    pub async fn check_all(&self) -> Result<Report> {
        let mut report = self.report();
        self.progress.begin("the names", 0);
        let names = self.names(&mut report).await?;
        let tombstones = self.tombstones(&mut report).await?;
        let stored = self.volumes().await?;
        for id in names.keys().filter(|id| !stored.contains(id) && !tombstones.contains_key(id)) {
            let volume = self.examine((&shown(&names, *id), *id), &mut Family::default()).await?;
            self.add(&names, volume, &mut report).await?;
        }
        let mut families: BTreeMap<VolumeId, Vec<(VolumeId, usize)>> = BTreeMap::new();
        for id in stored {
            let is_deleting = tombstones.contains_key(&id);
            if is_deleting || !names.contains_key(&id) {
                let (stored, deleting) = (self.stored(id).await?, tombstones.get(&id).cloned());
                report.nameless.push(Nameless { id, deleting, stored });
            }
            if is_deleting {
                continue;
            }
            let found: Option<VolumeObject> = description(&*self.store, id).await?.ok();
            let ancestors = found.map(|found| found.ancestors).unwrap_or_default();
            let root = ancestors.first().map_or(id, |root| root.volume);
            families.entry(root).or_default().push((id, ancestors.len()));
        }
        for members in families.values_mut() {
            members.sort_by_key(|(_, ancestors)| *ancestors);
            let mut family = Family::default();
            for (id, _) in members {
                let volume = self.try_examine((&shown(&names, *id), *id), &mut family).await?;
                self.add(&names, volume, &mut report).await?;
            }
        }
        report.volumes.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        Ok(self.end(report))
    }

    /// Adds what was found of a volume, unless it was deleted meanwhile.
    async fn add(&self, names: &Names, volume: VolumeReport, report: &mut Report) -> Result<()> {
        let key = keys::volume(volume.id).to_string();
        let is_it = |damage: &Damage| {
            damage.kind == Kind::Missing && damage.object.as_deref() == Some(key.as_str())
        };
        let is_unknown = volume.damages.iter().any(is_it);
        if !is_unknown || self.is_named(names, volume.id).await? {
            report.volumes.push(volume);
        }
        Ok(())
    }

    /// Whether one of the names still is that of the volume.
    async fn is_named(&self, names: &Names, id: VolumeId) -> Result<bool> {
        for name in names.get(&id).into_iter().flatten() {
            let Some(key) = keys::name(name) else { continue };
            if matches!(self.named(&key).await?, Ok(now) if now == id) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn try_examine(
        &self,
        (name, id): (&str, VolumeId),
        family: &mut Family,
    ) -> Result<VolumeReport> {
        use ErrorKind::{Busy, Failed, Unsupported, Usage};
        match self.examine((name, id), family).await {
            Err(e) if matches!(e.kind(), Busy | Unsupported | Usage | Failed) => {
                let mut report = VolumeReport::new(name, id);
                report.error = Some(e.to_string());
                Ok(report)
            }
            examined => examined,
        }
    }

    async fn named(&self, key: &Key) -> Result<Found<VolumeId>> {
        let found =
            read(&*self.store, key, |bytes| parse_json::<NameObject>("name", bytes)).await?;
        Ok(found.map(|name| name.volume))
    }

    async fn names(&self, report: &mut Report) -> Result<Names> {
        let mut names = Names::new();
        for object in list_all(&*self.store, keys::NAMES).await? {
            let Some(name) = object.key.as_str().strip_prefix(keys::NAMES) else { continue };
            if !keys::is_valid_name(name) {
                report.notes.push(format!("{} is no name of a volume", object.key));
                continue;
            }
            match self.named(&object.key).await? {
                Ok(id) => names.entry(id).or_default().push(name.to_owned()),
                // It was removed meanwhile.
                Err(Flaw::Missing) => {}
                Err(flaw) => {
                    report.damages.push(Damage::of(&object.key, &flaw, "the name of a volume"));
                }
            }
        }
        for (id, all) in names.iter().filter(|(_, all)| all.len() > 1) {
            let names = all.join(", ");
            report
                .notes
                .push(format!("volume {id} has several names: {names}; rename it to one of them"));
        }
        Ok(names)
    }

    async fn tombstones(&self, report: &mut Report) -> Result<BTreeMap<VolumeId, String>> {
        let mut found = BTreeMap::new();
        for object in list_all(&*self.store, keys::TRASH).await? {
            let name = object.key.as_str().strip_prefix(keys::TRASH);
            let id: Option<VolumeId> = name.and_then(|id| id.parse().ok());
            let Some(id) = id else { continue };
            let parse = |bytes: &[u8]| parse_json::<TombstoneObject>("tombstone", bytes);
            match read(&*self.store, &object.key, parse).await? {
                Ok(tombstone) => {
                    found.insert(id, tombstone.name);
                }
                Err(Flaw::Missing) => {}
                Err(flaw) => {
                    found.insert(id, id.to_string());
                    report.damages.push(Damage::of(&object.key, &flaw, "the mark of a deletion"));
                }
            }
        }
        Ok(found)
    }

    /// Every volume of which there is an object: a listing of one object each.
    async fn volumes(&self) -> Result<Vec<VolumeId>> {
        let mut found: Vec<VolumeId> = Vec::new();
        let mut after: Option<Key> = None;
        loop {
            let page = self.store.list("volumes/", after.as_ref(), 1).await?;
            let Some(object) = page.objects.into_iter().next() else { return Ok(found) };
            let mut parts = object.key.as_str().split('/').skip(1);
            let id: Option<VolumeId> = parts.next().and_then(|id| id.parse().ok());
            // Behind all that a volume may have: the last of its objects' names begins with `volume`.
            let end = id.and_then(|id| Key::new(&format!("{}zzzz", keys::volume_prefix(id))));
            found.extend(id);
            after = end.or(Some(object.key));
        }
    }

    async fn stored(&self, id: VolumeId) -> Result<Amount> {
        let (mut amount, mut after) = (Amount::default(), None::<Key>);
        loop {
            let page = self.store.list(&keys::volume_prefix(id), after.as_ref(), MAX_PAGE).await?;
            page.objects.iter().for_each(|object| amount.add(object));
            after = page.objects.last().map(|object| object.key.clone());
            if !page.more || after.is_none() {
                return Ok(amount);
            }
        }
    }
}

fn shown(names: &Names, id: VolumeId) -> String {
    names.get(&id).and_then(|names| names.first()).cloned().unwrap_or_else(|| id.to_string())
}
