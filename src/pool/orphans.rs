//! Volumes that nothing leads to: without a name, and not in the trash.

use super::trash::{TrashState, Trashed, bare};
use super::{PARALLEL, Pool, VolumeName, get};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::keys;
use crate::format::volume::VolumeObject;
use crate::store::Key;
use futures::stream::{self, StreamExt, TryStreamExt};
use std::collections::BTreeSet;

impl Pool {
    /// Volumes that nothing leads to, by id: those whose making was cut off, those that lost their name, and
    /// objects without a volume. Of the first, `deleted_at_ms` is when they were made.
    ///
    /// A volume that is being made right now is among them. One request for each volume of the pool, one after the
    /// other. Errors: the store's.
    pub async fn orphans(&self) -> Result<Vec<Trashed>> {
        // Names come after volumes when one is made, and the trash before them when it is deleted.
        let mut ids = self.volume_ids().await?;
        for (_, named) in self.names().await? {
            ids.remove(&named);
        }
        for trashed in self.trash().await? {
            ids.remove(&trashed.id);
        }
        let found = stream::iter(ids).map(|id| async move {
            match self.orphan(id).await {
                Err(e) if e.kind() == ErrorKind::Store => Err(e),
                Err(e) => Ok(Some(bare(id, TrashState::Damaged(e)))),
                found => found,
            }
        });
        let found: Vec<Option<Trashed>> = found.buffered(PARALLEL).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// What the volume is, which has no name. `None` where it is in the trash, or there is nothing.
    async fn orphan(&self, id: VolumeId) -> Result<Option<Trashed>> {
        let (newest, buried) = self.steps(id).await?;
        let is_import =
            async || Ok::<_, Error>(self.imports().await?.iter().any(|(_, i)| i.volume == id));
        if buried || newest.is_some() || is_import().await? {
            return Ok(None);
        }
        let key = keys::volume(id);
        let Some(bytes) = get(&*self.store, &key).await? else {
            let rest = self.store.list(&keys::volume_prefix(id), None, 1).await?;
            return Ok((!rest.objects.is_empty()).then(|| bare(id, TrashState::Remains)));
        };
        let volume =
            VolumeObject::parse(&bytes).map_err(|e| super::damaged(&*self.store, &key, e))?;
        // Whoever opens a volume claims an epoch first.
        let used = self.store.list(&keys::epochs(id), None, 1).await?;
        Ok(Some(match used.objects.is_empty() {
            true => Trashed {
                deleted_at_ms: Some(volume.created_at_ms),
                ..bare(id, TrashState::Unfinished)
            },
            false => bare(id, TrashState::Lost),
        }))
    }

    /// The volume whose removal `delete` of this name finishes: it was begun under that name and not finished,
    /// or the name is the id of a volume whose making was cut off.
    ///
    /// Errors: the store's; those of a damaged name.
    pub async fn left_over(&self, name: &VolumeName) -> Result<Option<Trashed>> {
        if let Some(id) = self.resolve(name).await? {
            let decided = self.removal_is_decided(id).await?;
            return Ok(decided.then(|| bare(id, TrashState::Removing)));
        }
        let is_begun = |t: &Trashed| {
            matches!(t.state, TrashState::Removing) && t.name.as_deref() == Some(name.as_str())
        };
        if let Some(found) = self.trash().await?.into_iter().find(is_begun) {
            return Ok(Some(found));
        }
        let Ok(id) = name.as_str().parse::<VolumeId>() else { return Ok(None) };
        if self.names().await?.iter().any(|(_, named)| *named == id) {
            return Ok(None);
        }
        let orphan = self.orphan(id).await?;
        Ok(orphan.filter(|o| matches!(o.state, TrashState::Unfinished)))
    }

    /// What a user means who names something in the trash: a volume's id, or the name it had; of what is
    /// called by its id, orphans too.
    ///
    /// Errors: not found; usage, where several had that name; the store's.
    pub async fn find_in_trash(&self, what: &str) -> Result<Trashed> {
        let mut trash = self.trash().await?;
        if let Ok(id) = what.parse::<VolumeId>() {
            if let Some(at) = trash.iter().position(|trashed| trashed.id == id) {
                return Ok(trash.swap_remove(at));
            }
            let named = self.names().await?.iter().any(|(_, named)| *named == id);
            if !named && let Some(orphan) = self.orphan(id).await? {
                return Ok(orphan);
            }
        }
        trash.retain(|trashed| trashed.name.as_deref() == Some(what));
        match (trash.pop(), &*trash) {
            (Some(only), []) => Ok(only),
            (Some(last), others) => {
                let ids = others.iter().chain([&last]).map(|trashed| trashed.id.to_string());
                let ids = ids.collect::<Vec<_>>().join(", ");
                Err(Error::usage(format!("several volumes in the trash were called {what}: {ids}"))
                    .hint("name one by its id; `objblk trash list` shows when they were deleted"))
            }
            (None, _) => Err(Error::not_found(format!("there is no {what} in the trash"))
                .hint("`objblk trash list` shows what there is")),
        }
    }

    /// Every volume that has an object.
    pub(super) async fn volume_ids(&self) -> Result<BTreeSet<VolumeId>> {
        let (mut ids, mut after): (_, Option<Key>) = (BTreeSet::new(), None);
        loop {
            let page = self.store.list(keys::VOLUMES, after.as_ref(), 1).await?;
            let Some(object) = page.objects.first() else { return Ok::<_, Error>(ids) };
            after = Some(match keys::parse_volume(&object.key) {
                Some(id) => {
                    ids.insert(id);
                    keys::behind_volume(id)
                }
                None => object.key.clone(),
            });
        }
    }
}
