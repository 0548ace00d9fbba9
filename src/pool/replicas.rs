//! Replicas: volumes that are shipped from another pool.
//!
//! ```text
//! begin     volume.json of the same id, replica/<0>, then names/<name>    <- the name is the commit point
//! promote   replica/<n+1>, which says so                                  <- and that is all
//! ```
//!
//! The volume has its id in both pools, as all its objects have that in them. So no pool has a volume and its
//! replica, and none has two replicas of one volume.

use super::catalogue::name_taken;
use super::{Pool, VolumeName, get};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::features::Features;
use crate::format::keys;
use crate::format::pool::encode_json;
use crate::format::replica::{Promoted, ReplicaObject};
use crate::format::volume::VolumeObject;
use crate::store::{StoreErrorKind, list_all};
use crate::units::Epoch;
use crate::volume::{commit_replica_state, replica_state};

/// How often a state is tried that others make at the same time.
const TRIES: usize = 16;

impl Pool {
    /// Refuses volumes that cannot be shipped to another pool. Returns the epochs that it was promoted to so far.
    /// Errors: usage; busy, where it was promoted and nobody has had it since; corrupt.
    pub async fn can_replicate(
        &self,
        name: &VolumeName,
        volume: &VolumeObject,
    ) -> Result<Vec<Epoch>> {
        let refuse = |what: &str, hint: &str| {
            Err(Error::usage(format!("{name} {what}")).hint(hint.to_owned()))
        };
        let copy = "copy it with `objblk copy`, and replicate that";
        if let Some(origin) = volume.origin() {
            let mark = keys::child(origin.volume, origin.snapshot, volume.id);
            if get(&*self.store, &mark).await?.is_some() {
                let hint = "end that with `objblk flatten`, or copy it with `objblk copy` and replicate that";
                return refuse("is a clone, whose data is in part its origin's", hint);
            }
        }
        if volume.source.is_some() {
            return refuse("began as an image outside the pool, which is not replicated", copy);
        }
        if !volume.is_replica() {
            return Ok(Vec::new());
        }
        let state = replica_state(&*self.store, volume.id).await?;
        let promoted = state.and_then(|state| Some((state.promoted?.epoch, state.branches)));
        let Some((epoch, mut branches)) = promoted else {
            return refuse("is a replica", "replicate what it is one of, or promote it");
        };
        let listed = list_all(&*self.store, &keys::checkpoints(volume.id)).await?;
        let is_own = |key| keys::parse_checkpoint(volume.id, key).is_some_and(|(_, e)| e > epoch);
        if !listed.iter().any(|object| is_own(&object.key)) {
            let text = format!("{name} was promoted, and nobody has had it since");
            return Err(Error::new(ErrorKind::Busy, text).hint("attach it once, or serve it"));
        }
        branches.push(epoch);
        Ok(branches)
    }

    /// Makes the replica `name` of the `source`, a volume of the pool `of`, which is at `from` and was promoted to
    /// these epochs; or finds it. Returns whether it was made.
    ///
    /// Errors: exists, where that name is another volume's, or the volume is here already; busy, where it is in the trash.
    pub async fn begin_replica(
        &self,
        name: &VolumeName,
        source: &VolumeObject,
        (of, from, branches): (VolumeId, &str, &[Epoch]),
    ) -> Result<bool> {
        if self.object.id == of {
            return Err(Error::usage(format!(
                "{} is the pool that the volume is in",
                self.store.url()
            ))
            .hint("name another pool with --to"));
        }
        let id = source.id;
        let named = self.resolve(name).await?;
        if named.is_some_and(|named| named != id) {
            return Err(name_taken(name));
        }
        let mut replica = VolumeObject { source: None, ..source.clone() };
        replica.features.incompat &= !Features::MIRRORED;
        replica.features.incompat |= Features::REPLICA;
        match self.store.put_if_absent(&keys::volume(id), encode_json(&replica).into()).await {
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => {}
            put => put?,
        }
        let there = self.volume_object(name.as_str(), id).await?;
        if !there.is_replica() {
            let text =
                format!("{} has volume {id} already, and it is no replica", self.store.url());
            return Err(Error::new(ErrorKind::Exists, text).hint("name another pool with --to"));
        }
        // Of one that has a name, it would be lost.
        if named.is_none() && replica_state(&*self.store, id).await?.is_none() {
            let first = ReplicaObject::initial(id, of, from.into());
            let first = ReplicaObject { branches: branches.to_vec(), ..first };
            commit_replica_state(&*self.store, &first).await?;
        }
        if named.is_some() {
            return Ok(false);
        }
        let other = self.names().await?.into_iter().find(|(_, named)| *named == id);
        if let Some((other, _)) = other {
            let text = format!("the replica is there already, and called {other}");
            return Err(Error::new(ErrorKind::Exists, text).hint(format!("say --as {other}")));
        }
        if self.steps(id).await?.0.is_some() {
            let text = "the replica was deleted, and is in the trash";
            return Err(Error::new(ErrorKind::Busy, text)
                .hint("restore it, or remove it for good, with `objblk trash`"));
        }
        self.give_name(name, id).await?;
        Ok(true)
    }

    /// Whether the volume is called `name`. Errors: the store's.
    pub async fn is_called(&self, name: &VolumeName, id: VolumeId) -> Result<bool> {
        Ok(self.resolve(name).await? == Some(id))
    }

    /// Has the replica `name` be a volume of its own from now on, on the host `by`; or finds that it is. Returns
    /// what it is of and whether it was promoted just now.
    ///
    /// Errors: not found; usage, where it never was a replica; busy, where nothing was shipped yet, or others
    /// ship at the same time, again and again.
    pub async fn promote(&self, name: &VolumeName, by: &str) -> Result<(ReplicaObject, bool)> {
        let Some(id) = self.resolve(name).await? else { return Err(self.no_volume(name).await) };
        let volume = self.volume_object(name.as_str(), id).await?;
        if !volume.is_replica() {
            return Err(Error::usage(format!("{name} is no replica"))
                .hint("replicas are made by `objblk replicate`"));
        }
        for _ in 0..TRIES {
            let state = replica_state(&*self.store, id).await?.ok_or_else(|| {
                Error::corrupt(format!("what of the replica {name} is complete is lost"))
            })?;
            if state.promoted.is_some() {
                return Ok((state, false));
            }
            if state.shipped.seen_at_ms == 0 {
                let text = format!("nothing of {name} was shipped yet");
                return Err(Error::new(ErrorKind::Busy, text)
                    .hint("let `objblk replicate` come to the end of a round first"));
            }
            let epoch = state.promoted_epoch(rand::random());
            let epoch = epoch.ok_or_else(|| Error::failed("there are no epochs left"))?;
            let promoted = Promoted { epoch, at_ms: SystemClock.now_ms(), by: by.into() };
            let number = state.number.saturating_add(1);
            let next = ReplicaObject { number, promoted: Some(promoted), ..state };
            if commit_replica_state(&*self.store, &next).await? {
                return Ok((next, true));
            }
        }
        let text = format!("states of {name} are shipped again and again");
        Err(Error::new(ErrorKind::Busy, text).hint("end `objblk replicate`, and try again"))
    }

    /// Refuses what only a volume of its own can do. Errors: busy, where it is a replica.
    pub(super) async fn refuse_replica(
        &self,
        name: &VolumeName,
        volume: &VolumeObject,
    ) -> Result<()> {
        if !self.is_held_as_replica(volume.id).await? {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Busy, format!("{name} is a replica"))
            .hint("make it a volume of its own with `objblk promote`"))
    }

    /// Whether it is a replica that was not promoted, of which nobody ever is the owner. Errors: the store's.
    pub(super) async fn is_held_as_replica(&self, id: VolumeId) -> Result<bool> {
        let Some(bytes) = get(&*self.store, &keys::volume(id)).await? else { return Ok(false) };
        if !VolumeObject::parse(&bytes).is_ok_and(|volume| volume.is_replica()) {
            return Ok(false);
        }
        match replica_state(&*self.store, id).await {
            Ok(state) => Ok(state.is_none_or(|state| state.promoted.is_none())),
            Err(e) if e.kind() == ErrorKind::Corrupt => Ok(true),
            Err(e) => Err(e),
        }
    }
}
