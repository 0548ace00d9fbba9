//! Deleting a volume: it loses its name and is in the trash, with all of its data.
//!
//! ```text
//! delete    claim, the step `deleted` in the trash, names/<name> goes      <- the commit point
//! ```

use super::catalogue::deletion_begun;
use super::claim::{Standing, standing};
use super::purge::Deleted;
use super::trash::{self, Trashed};
use super::{Pool, VolumeName};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::pool::{TrashEntry, TrashStep};
use crate::host::Host;
use crate::volume::{Env, Mode, Stores, Volume, VolumeOptions, ownership};
use std::time::Duration;

/// How long an owner that was cut off has to notice: it looks after its volume this often, and
/// finds its fence. Were the fence gone before, the owner would write on into nowhere.
pub(super) const NOTICE: Duration = Duration::from_secs(15);

/// Who deletes: what is needed to take a volume from its owner first.
#[derive(Clone, Debug)]
pub struct Executioner {
    /// Runs the volume while it is claimed.
    pub env: Env,
    /// The pool's store.
    pub stores: Stores,
    /// This host.
    pub host: Host,
    /// Delete also what has an owner that may be alive (it is fenced), or is damaged; and, where nothing
    /// could bring them back, what has snapshots.
    pub force: bool,
}

/// What was put into the trash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discarded {
    /// The volume.
    pub id: VolumeId,
    /// Until when it is to be kept, in milliseconds since 1970.
    pub expires_at_ms: u64,
}

/// A volume that nobody else can commit anything to.
pub(super) struct Claimed {
    /// `None` where it is damaged beyond that.
    volume: Option<Volume>,
    /// Its owner may have been alive.
    pub(super) cut_off: bool,
}

impl Claimed {
    /// Of what nobody can have.
    pub(super) fn nothing() -> Claimed {
        Claimed { volume: None, cut_off: false }
    }

    /// Closes it. Whatever comes of that, no late write follows.
    pub(super) async fn release(self) {
        if let Some(volume) = self.volume
            && let Err(e) = volume.close().await
        {
            tracing::debug!("a volume that is deleted did not close: {e}");
            volume.abandon();
        }
    }
}

impl Pool {
    /// Puts the volume called `name` into the trash, with its snapshots, to be kept for at least the time
    /// `keep`.
    ///
    /// It is claimed first: whoever owns it can commit nothing more. Errors: not found; busy, where it is owned
    /// (unless forced), or its removal was begun; corrupt, where it cannot be claimed (unless forced). After
    /// an error it has its name still, except that after one of the store it may have lost it and then is in
    /// the trash.
    pub async fn delete(
        &self,
        name: &VolumeName,
        keep: Duration,
        by: &Executioner,
    ) -> Result<Discarded> {
        let id = self.deletable(name).await?;
        let claimed = self.claim(name, id, by).await?;
        self.discard(name, id, keep, claimed).await
    }

    /// Deletes the volume called `name` at once, with all its objects.
    ///
    /// Errors: as [`Pool::delete`]; busy also where clones need it, forced or not, or where it has snapshots
    /// (unless forced). Where it stops half way, it is in the trash, or is being removed.
    pub async fn delete_now(&self, name: &VolumeName, by: &Executioner) -> Result<Deleted> {
        let id = self.deletable(name).await?;
        self.refuse_origin(name, id).await?;
        let claimed = self.claim(name, id, by).await?;
        let count = claimed.volume.as_ref().map_or(0, |volume| volume.snapshots().len());
        if count > 0 && !by.force {
            claimed.release().await;
            let message = format!("volume {name} has snapshots ({count})");
            return Err(Error::new(ErrorKind::Busy, message)
                .hint("delete them first, or all of it with --force, or put it into the trash without --now"));
        }
        let discarded = self.discard(name, id, Duration::ZERO, claimed).await?;
        let expires_at_ms = Some(discarded.expires_at_ms);
        let trashed = Trashed { expires_at_ms, ..trash::bare(id, trash::TrashState::Kept) };
        self.purge(&trashed, by).await
    }

    async fn deletable(&self, name: &VolumeName) -> Result<VolumeId> {
        let Some(id) = self.resolve(name).await? else { return Err(self.no_volume(name).await) };
        if self.removal_is_decided(id).await? {
            return Err(deletion_begun(name));
        }
        Ok(id)
    }

    async fn discard(
        &self,
        name: &VolumeName,
        id: VolumeId,
        keep: Duration,
        claimed: Claimed,
    ) -> Result<Discarded> {
        let entry = trash::entry(TrashStep::Deleted, Some(name), keep);
        let entry = TrashEntry { cut_off: claimed.cut_off, ..entry };
        let discarded = async {
            loop {
                let (newest, _) = self.steps(id).await?;
                if matches!(&newest, Some((_, Ok(last))) if last.step == TrashStep::Removing) {
                    return Err(deletion_begun(name));
                }
                if self.step(id, trash::next(newest.as_ref()), &entry).await? {
                    break;
                }
            }
            self.drop_name(name, id).await
        };
        let discarded = discarded.await;
        // Closed when nobody finds it any more, so that nobody opens it in between.
        claimed.release().await;
        discarded.map(|()| Discarded { id, expires_at_ms: entry.expires_at_ms })
    }

    /// Takes the volume, so that its owner is fenced.
    pub(super) async fn claim(
        &self,
        name: impl std::fmt::Display,
        id: VolumeId,
        by: &Executioner,
    ) -> Result<Claimed> {
        let mut cut_off = false;
        if self.is_held_as_replica(id).await? {
            return Ok(Claimed::nothing());
        }
        self.unlock_id(&name.to_string(), id).await?;
        let opened = async {
            let standing = standing(&ownership(&*self.store, id).await?, &by.host);
            cut_off = standing.is_held();
            if cut_off && !by.force {
                return Err(standing.refusal(&name, "delete it with --force"));
            }
            // Who comes meanwhile is not cut off.
            let mode = Mode::ReadWrite { takeover: by.force || standing != Standing::Free };
            let options = VolumeOptions { mode, ..VolumeOptions::default() };
            let (env, stores, owner) = (by.env.clone(), by.stores.clone(), by.host.owner());
            Volume::open(env, stores, id, owner, options).await
        };
        let opened = opened.await;
        match opened {
            Ok(volume) => Ok(Claimed { volume: Some(volume), cut_off }),
            // Its key may be lost. Nobody can be fenced without.
            Err(e) if e.kind() == ErrorKind::Usage && by.force => {
                tracing::warn!("volume {name} is deleted without its key, and without a claim");
                Ok(Claimed { volume: None, cut_off: true })
            }
            Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
                if by.force {
                    tracing::warn!("volume {name} is deleted without a claim: {e}");
                    return Ok(Claimed { volume: None, cut_off });
                }
                let e = Error::corrupt(format!("volume {name} is damaged")).because(e);
                Err(e.hint("delete it all the same with --force"))
            }
            Err(e) => Err(e),
        }
    }
}
