//! Clones: volumes that begin as what a snapshot of another one is.
//!
//! ```text
//! clone     volume.json under a new id, then children/<snapshot>/<id> of the origin, then a look whether
//!           the snapshot still is there, then names/<name>     <- the name is the commit point
//! purge     ... the objects go, then children/<snapshot>/<id> of the origin, then volume.json
//! ```
//!
//! No data is copied, and nothing of the origin's size is written. Who deletes the snapshot closes it to
//! clones first and looks for children second; who clones does it the other way round, so one of the two
//! notices the other. A child whose description is gone is none.

use super::catalogue::{name_taken, put_description};
use super::{PARALLEL, Pool, VolumeName, get};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};
use crate::format::features::Features;
use crate::format::keys;
use crate::format::lineage::{ANCESTORS_MAX, Ancestor};
use crate::format::snapshot::SnapshotObject;
use crate::format::volume::{VOLUME_VERSION, VolumeObject};
use crate::format::{SnapshotId, VolumeId};
use crate::store::{Key, StoreErrorKind, list_all};
use crate::volume::{find_snapshot, list_snapshots};
use futures::stream::{self, StreamExt, TryStreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A clone of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Child {
    /// The snapshot's name.
    pub snapshot: String,
    /// The clone.
    pub id: VolumeId,
    /// Its name; a clone that was begun and not finished, or is in the trash, has none.
    pub name: Option<String>,
    /// The name it had before it was put into the trash.
    pub trashed: Option<String>,
}

/// A clone without a name.
#[derive(Debug)]
pub struct BegunClone {
    /// The volume.
    pub id: VolumeId,
    child: Key,
}

impl Child {
    /// Its name, with where it is, or its id.
    pub fn label(&self) -> String {
        match (&self.name, &self.trashed) {
            (Some(name), _) => name.clone(),
            (None, Some(name)) => format!("{name} in the trash"),
            (None, None) => self.id.to_string(),
        }
    }
}

impl Pool {
    /// Makes a volume called `name` that begins as what `snapshot` of the volume `of` is. Returns its id.
    ///
    /// Errors: not found; exists; usage, where the chain of clones is too long; busy, where the snapshot is
    /// being deleted. After these nothing is left behind.
    pub async fn clone_volume(
        &self,
        of: &VolumeName,
        snapshot: &str,
        name: &VolumeName,
    ) -> Result<VolumeId> {
        let begun = self.begin_clone(of, snapshot, name).await?;
        let named = self.name_clone(&begun, name).await;
        // After an error of the store the name may be there, or may come yet: it needs its volume.
        if named.as_ref().is_err_and(|e| e.kind() != ErrorKind::Store) {
            self.discard_clone(&begun).await;
        }
        named.map(|()| begun.id)
    }

    /// A clone that has no name yet: until it gets that it is none, and can be deleted by its id.
    /// Errors: as [`Pool::clone_volume`].
    pub async fn begin_clone(
        &self,
        of: &VolumeName,
        snapshot: &str,
        name: &VolumeName,
    ) -> Result<BegunClone> {
        let (origin, description) = self.lookup(of).await?;
        self.refuse_replica(of, &description).await?;
        if get(&*self.store, &name.key()).await?.is_some() {
            return Err(name_taken(name));
        }
        if description.ancestors.len() >= ANCESTORS_MAX {
            let text =
                format!("{of} is a clone of a clone, {ANCESTORS_MAX} times: that is the most");
            return Err(Error::usage(text).hint("copy it instead"));
        }
        let found = find_snapshot(&*self.store, origin, snapshot).await?;
        let volume = clone_of(&description, &found);
        let (id, child) = (volume.id, keys::child(origin, found.entry.id, volume.id));
        self.share_key(&description, id).await?;
        put_description(&*self.store, &volume).await?;
        self.store.put_if_absent(&child, bytes::Bytes::new()).await?;
        let begun = BegunClone { id, child };
        match self.is_open_to_clones(origin, of, &found).await {
            Ok(()) => Ok(begun),
            Err(e) => {
                // After an error of the store nobody knows, and nobody names it either.
                if e.kind() != ErrorKind::Store {
                    self.discard_clone(&begun).await;
                }
                Err(e)
            }
        }
    }

    /// A clone that was begun gets its name. Errors: exists; busy; the store's.
    pub async fn name_clone(&self, begun: &BegunClone, name: &VolumeName) -> Result<()> {
        self.give_name(name, begun.id).await.map(drop)
    }

    /// Looks, once the child is there, whether it was in time.
    async fn is_open_to_clones(
        &self,
        origin: VolumeId,
        of: &VolumeName,
        found: &SnapshotObject,
    ) -> Result<()> {
        let entry = &found.entry;
        let text = format!("{of}@{} is being deleted", entry.name);
        let going = || Error::new(ErrorKind::Busy, text.clone());
        let there = list_all(&*self.store, &keys::children_of(origin, entry.id)).await?;
        if there.iter().any(|object| keys::is_closed(origin, entry.id, &object.key)) {
            let hint = format!("finish that with `objblk snapshot delete {of}@{}`", entry.name);
            return Err(going().hint(hint));
        }
        if self.is_doomed(origin).await? {
            return Err(going());
        }
        let there = list_snapshots(&*self.store, origin).await?;
        match there.iter().any(|there| there.id == entry.id) {
            true => Ok(()),
            false => Err(Error::not_found(format!("{of}@{} was deleted meanwhile", entry.name))),
        }
    }

    async fn discard_clone(&self, begun: &BegunClone) {
        let done = async {
            self.store.delete(std::slice::from_ref(&begun.child)).await?;
            self.store.delete(&[keys::key_set(begun.id, 0), keys::volume(begun.id)]).await
        };
        if let Err(e) = done.await {
            tracing::warn!("volume {} stays behind, without a name: {e}", begun.id);
        }
    }

    /// The clones of all snapshots of a volume, by name.
    ///
    /// Errors: the store's; those of the list of snapshots.
    pub async fn children(&self, of: VolumeId) -> Result<Vec<Child>> {
        let found = self.child_ids(of).await?;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let snapshots = list_snapshots(&*self.store, of).await?;
        let (names, trash) = (self.names().await?, self.trash().await?);
        let name_of = |snapshot: SnapshotId| {
            let entry = snapshots.iter().find(|entry| entry.id == snapshot);
            entry.map_or_else(|| snapshot.to_string(), |entry| entry.name.clone())
        };
        let child = |(snapshot, id): (SnapshotId, VolumeId)| Child {
            snapshot: name_of(snapshot),
            id,
            name: names.iter().find(|(_, volume)| *volume == id).map(|(name, _)| name.clone()),
            trashed: trash.iter().find(|t| t.id == id).and_then(|trashed| trashed.name.clone()),
        };
        let mut children: Vec<Child> = found.into_iter().map(child).collect();
        children.sort_by(|a, b| (&a.snapshot, &a.name, a.id).cmp(&(&b.snapshot, &b.name, b.id)));
        Ok(children)
    }

    /// Clones that still are there; names of those that are gone are removed.
    async fn child_ids(&self, of: VolumeId) -> Result<Vec<(SnapshotId, VolumeId)>> {
        let mut found = Vec::new();
        for object in list_all(&*self.store, &keys::children(of)).await? {
            let Some((snapshot, child)) = keys::parse_child(of, &object.key) else { continue };
            match self.store.head(&keys::volume(child)).await {
                Ok(_) => found.push((snapshot, child)),
                Err(e) if e.kind == StoreErrorKind::NotFound => {
                    self.store.delete(&[object.key]).await?;
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(found)
    }

    /// Refuses to go on where clones need snapshots of the volume.
    ///
    /// Errors: busy; as [`Pool::children`].
    pub(super) async fn refuse_origin(&self, name: impl fmt::Display, id: VolumeId) -> Result<()> {
        let children = match self.children(id).await {
            Ok(children) => children,
            // Its snapshots cannot be listed; that there are clones can be told all the same.
            Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Usage) => {
                let plain = |(snapshot, id): (SnapshotId, VolumeId)| Child {
                    snapshot: snapshot.to_string(),
                    id,
                    name: None,
                    trashed: None,
                };
                self.child_ids(id).await?.into_iter().map(plain).collect()
            }
            Err(e) => return Err(e),
        };
        if children.is_empty() {
            return Ok(());
        }
        let clones: Vec<String> = children.iter().map(Child::label).collect();
        let text = format!("clones need volume {name}: {}", clones.join(", "));
        let hint = match children.iter().any(|child| child.trashed.is_some()) {
            true => "delete or flatten them first, and empty the trash of them",
            false => "delete or flatten them first",
        };
        Err(Error::new(ErrorKind::Busy, text).hint(hint))
    }

    /// The volume needs its origin no more: it is none of its children any longer. Nothing happens where it
    /// is no clone.
    ///
    /// Errors: the store's; corrupt, where its description is damaged.
    pub async fn leave_origin(&self, id: VolumeId) -> Result<()> {
        let key = keys::volume(id);
        let Some(bytes) = get(&*self.store, &key).await? else { return Ok(()) };
        let volume =
            VolumeObject::parse(&bytes).map_err(|e| super::damaged(&*self.store, &key, e))?;
        if let Some(origin) = volume.origin() {
            let child = keys::child(origin.volume, origin.snapshot, id);
            self.store.delete(&[child]).await?;
        }
        Ok(())
    }

    /// What the clones among `volumes` were made of, as NAME@SNAP. What has no name in `names` is shown by its
    /// id.
    ///
    /// Errors: the store's.
    pub async fn origins(
        &self,
        volumes: impl Iterator<Item = &VolumeObject>,
        names: &[(String, VolumeId)],
    ) -> Result<BTreeMap<VolumeId, String>> {
        let clones: Vec<(VolumeId, Ancestor)> =
            volumes.filter_map(|volume| Some((volume.id, *volume.origin()?))).collect();
        let wanted: BTreeSet<(VolumeId, SnapshotId)> =
            clones.iter().map(|(_, origin)| (origin.volume, origin.snapshot)).collect();
        let look = |(volume, snapshot)| async move {
            let object = get(&*self.store, &keys::snapshot(volume, snapshot)).await?;
            let object = object.and_then(|bytes| SnapshotObject::parse(&bytes).ok());
            let called = object.map_or_else(|| snapshot.to_string(), |o| o.entry.name);
            Ok::<_, Error>(((volume, snapshot), called))
        };
        let snapshots = stream::iter(wanted).map(look).buffered(PARALLEL);
        let snapshots: BTreeMap<_, String> = snapshots.try_collect().await?;
        let name = |id: VolumeId| {
            let named = names.iter().find(|(_, named)| *named == id);
            named.map_or_else(|| id.to_string(), |(name, _)| name.clone())
        };
        let shown = clones.into_iter().map(|(clone, origin)| {
            let snapshot = &snapshots[&(origin.volume, origin.snapshot)];
            (clone, format!("{}@{snapshot}", name(origin.volume)))
        });
        Ok(shown.collect())
    }

    /// Every name and what it stands for, those left out that cannot be read.
    ///
    /// Errors: the store's.
    pub async fn names(&self) -> Result<Vec<(String, VolumeId)>> {
        let found = self.read_names().await?;
        Ok(found.into_iter().filter_map(|(name, id)| Some((name, id.ok()?))).collect())
    }

    /// Every name and what it stands for. Errors: the store's; that of one is in its place.
    pub(super) async fn read_names(&self) -> Result<Vec<(String, Result<VolumeId>)>> {
        let names = list_all(&*self.store, keys::NAMES).await?;
        let names = names.iter().filter_map(|o| o.key.as_str().strip_prefix(keys::NAMES));
        let names: Vec<VolumeName> = names.filter_map(|name| name.parse().ok()).collect();
        let look = |name: VolumeName| async move {
            let id = match self.resolve(&name).await {
                Err(e) if e.kind() == ErrorKind::Store => return Err(e),
                found => found.transpose(),
            };
            Ok::<_, Error>(id.map(|id| (name.to_string(), id)))
        };
        let found = stream::iter(names).map(look).buffered(PARALLEL);
        let found: Vec<Option<(String, Result<VolumeId>)>> = found.try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }
}

fn clone_of(origin: &VolumeObject, found: &SnapshotObject) -> VolumeObject {
    let (entry, checkpoint) = (&found.entry, &found.checkpoint);
    let mut ancestors = origin.ancestors.clone();
    ancestors.push(Ancestor {
        volume: origin.id,
        snapshot: entry.id,
        next: checkpoint.next,
        epoch: checkpoint.epoch,
    });
    VolumeObject {
        version: VOLUME_VERSION,
        id: VolumeId::from_random(rand::random()),
        size: entry.size.bytes(),
        block_size: origin.block_size,
        chunk_size: origin.chunk_size,
        features: Features {
            // What it shares is mirrored where its origin is, or was shipped; its own is not. It is signed by itself.
            incompat: origin.features.incompat
                & !(Features::MIRRORED | Features::SIGNED | Features::REPLICA)
                | Features::CLONE,
            ..origin.features
        },
        created_at_ms: SystemClock.now_ms(),
        ancestors,
        source: origin.source.clone(),
        mac: None,
    }
}
