//! Removing a volume and everything it owns, so that a crash anywhere leaves something that the
//! next `delete` finishes.

use super::catalogue::no_volume;
use super::claim::standing;
use super::{Pool, VolumeName, get};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::keys;
use crate::format::pool::{TombstoneObject, encode_json};
use crate::host::Host;
use crate::store::{Key, MAX_PAGE, StoreErrorKind};
use crate::volume::{Env, Mode, Stores, Volume, VolumeOptions, ownership};
use std::time::Duration;

/// How long an owner that was cut off has to notice: it looks after its volume this often, and
/// finds its fence. Were the fence gone before, the owner would write on into nowhere.
const NOTICE: Duration = Duration::from_secs(15);

/// Who deletes: what is needed to take a volume from its owner first.
#[derive(Clone, Debug)]
pub struct Executioner {
    /// Runs the volume while it is claimed.
    pub env: Env,
    /// The pool's store.
    pub stores: Stores,
    /// This host.
    pub host: Host,
    /// Delete also what has an owner that may be alive (it is fenced), has snapshots, or is damaged.
    pub force: bool,
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Deleted {
    /// Number of objects.
    pub objects: u64,
    /// Their size, in bytes.
    pub bytes: u64,
}

impl Pool {
    /// Deletes the volume called `name` with all its objects, or finishes such a deletion.
    ///
    /// The volume is claimed first: whoever owns it can commit nothing more. Errors: not found;
    /// busy, where it is owned or has snapshots; corrupt, where it cannot be claimed (all unless forced);
    /// busy, where clones need it, forced or not.
    pub async fn delete(&self, name: &VolumeName, by: Executioner) -> Result<Deleted> {
        if let Some(import) = self.import_of(name).await? {
            if self.resolve(name).await?.is_none() {
                return self.delete_import(name, import.volume, &by).await;
            }
            // It is complete, or another volume got the name: nobody will go on with it.
            self.forget_import(name).await?;
        }
        let Some(id) = self.resolve(name).await? else {
            let tombstones = self.tombstones().await?;
            let begun = tombstones.iter().find(|(_, t)| t.name == name.as_str());
            if let Some((id, _)) = begun {
                return self.remove(*id).await;
            }
            let Some(id) = self.nameless(name).await? else { return Err(no_volume(self, name)) };
            self.bury(name, id).await?;
            return self.remove(id).await;
        };
        if get(&*self.store, &keys::trash(id)).await?.is_none() {
            self.refuse_origin(name, id).await?;
            let claimed = self.claim(name, id, &by).await?;
            self.bury(name, id).await?;
            if let Err(e) = self.exhume_origin(name, id).await {
                if let Some(volume) = claimed {
                    volume.close().await?;
                }
                return Err(e);
            }
            self.store.delete(&[name.key()]).await?;
            // Nobody finds it any more. Closed and not abandoned: no late write may follow.
            if let Some(volume) = claimed
                && let Err(e) = volume.close().await
            {
                tracing::debug!("a volume that is deleted did not close: {e}");
                volume.abandon();
            }
        }
        self.exhume_origin(name, id).await?;
        self.store.delete(&[name.key()]).await?;
        self.remove(id).await
    }

    /// Deletes a volume that is being imported, or an import that has no volume yet.
    async fn delete_import(
        &self,
        name: &VolumeName,
        id: VolumeId,
        by: &Executioner,
    ) -> Result<Deleted> {
        if get(&*self.store, &keys::volume(id)).await?.is_none() {
            self.forget_import(name).await?;
            return Ok(Deleted::default());
        }
        let claimed = match get(&*self.store, &keys::trash(id)).await? {
            Some(_) => None,
            None => self.claim(name, id, by).await?,
        };
        self.bury(name, id).await?;
        // Before its own object goes, whoever fills it can still be told from here: it looks for the tombstone.
        if self.resolve(name).await? == Some(id) {
            self.store.delete(&[name.key()]).await?;
        }
        self.forget_import(name).await?;
        if let Some(volume) = claimed
            && volume.close().await.is_err()
        {
            volume.abandon();
        }
        self.remove(id).await
    }

    /// With the tombstone there, no more clones are made of the volume. Where one was made before, it is
    /// taken away again; errors as [`Pool::refuse_origin`].
    async fn exhume_origin(&self, name: &VolumeName, id: VolumeId) -> Result<()> {
        let refused = self.refuse_origin(name, id).await;
        if refused.as_ref().is_err_and(|e| e.kind() == ErrorKind::Busy) {
            self.store.delete(&[keys::trash(id)]).await?;
        }
        refused
    }

    /// True where something of that name is left that is no volume: its deletion was begun and not finished,
    /// or the name is the id of a volume that never got one.
    pub async fn has_left_over(&self, name: &VolumeName) -> Result<bool> {
        let tombstones = self.tombstones().await?;
        Ok(tombstones.iter().any(|(_, tombstone)| tombstone.name == name.as_str())
            || self.import_of(name).await?.is_some()
            || self.nameless(name).await?.is_some())
    }

    /// The volume that has this id and no name: whoever was making it died.
    async fn nameless(&self, name: &VolumeName) -> Result<Option<VolumeId>> {
        let Ok(id) = name.as_str().parse::<VolumeId>() else { return Ok(None) };
        let is_there = get(&*self.store, &keys::volume(id)).await?.is_some();
        let is_named = is_there
            && (self.names().await?.iter().any(|(_, named)| *named == id)
                || self.imports().await?.iter().any(|(_, import)| import.volume == id));
        Ok((is_there && !is_named).then_some(id))
    }

    /// Takes the volume, so that its owner is fenced; `None` where it is beyond that.
    async fn claim(
        &self,
        name: &VolumeName,
        id: VolumeId,
        by: &Executioner,
    ) -> Result<Option<Volume>> {
        let opened = async {
            let standing = standing(&ownership(&*self.store, id).await?, &by.host);
            let held = standing.is_held();
            if held && !by.force {
                return Err(standing.refusal(name, "delete it with --force"));
            }
            let mode = Mode::ReadWrite { takeover: true };
            let options = VolumeOptions { mode, ..VolumeOptions::default() };
            let owner = by.host.owner();
            let opened =
                Volume::open(by.env.clone(), by.stores.clone(), id, owner, options).await?;
            if held {
                tracing::warn!("{name} was in use: its owner gets {NOTICE:?} to notice its end");
                tokio::time::sleep(NOTICE).await;
            }
            Ok(opened)
        };
        match opened.await {
            Ok(volume) => match volume.snapshots().len() {
                0 => Ok(Some(volume)),
                _ if by.force => Ok(Some(volume)),
                count => {
                    volume.close().await?;
                    let message = format!("volume {name} has snapshots ({count})");
                    Err(Error::new(ErrorKind::Busy, message)
                        .hint("delete them first, or all of it with --force"))
                }
            },
            Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
                if by.force {
                    tracing::warn!("volume {name} is removed without a claim: {e}");
                    return Ok(None);
                }
                let e = Error::corrupt(format!("volume {name} is damaged")).because(e);
                Err(e.hint("remove it all the same with --force"))
            }
            Err(e) => Err(e),
        }
    }

    /// Writes the tombstone.
    async fn bury(&self, name: &VolumeName, id: VolumeId) -> Result<()> {
        let tombstone =
            TombstoneObject { name: name.to_string(), deleted_at_ms: SystemClock.now_ms() };
        match self.store.put_if_absent(&keys::trash(id), encode_json(&tombstone).into()).await {
            Err(e) if e.kind != StoreErrorKind::AlreadyExists => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Removes every object of the volume, its description last, then its tombstone.
    async fn remove(&self, id: VolumeId) -> Result<Deleted> {
        let (prefix, last) = (keys::volume_prefix(id), keys::volume(id));
        let mut deleted = Deleted::default();
        let mut after: Option<Key> = None;
        loop {
            let page = self.store.list(&prefix, after.as_ref(), MAX_PAGE).await?;
            let rest = page.objects.iter().filter(|object| object.key != last);
            deleted.objects += page.objects.len() as u64;
            deleted.bytes += page.objects.iter().map(|object| object.size).sum::<u64>();
            let keys: Vec<Key> = rest.map(|object| object.key.clone()).collect();
            if !keys.is_empty() {
                self.store.delete(&keys).await?;
            }
            after = page.objects.last().map(|object| object.key.clone());
            if !page.more || after.is_none() {
                break;
            }
        }
        if let Err(e) = self.leave_origin(id).await {
            match e.kind() {
                ErrorKind::Store => return Err(e),
                _ => {
                    tracing::warn!("the origin of volume {id} goes on to keep what it needed: {e}")
                }
            }
        }
        self.store.delete(&[last]).await?;
        self.store.delete(&[keys::trash(id)]).await?;
        Ok(deleted)
    }
}
