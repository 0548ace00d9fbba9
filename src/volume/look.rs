//! What the store says of a volume, without owning it.

use super::options::Mode;
use super::replica::{Worth, worth};
use super::snapshots;
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::checkpoint::{Checkpoint, Term};
use crate::format::features::Access;
use crate::format::keys::{self, ChunkId};
use crate::format::replica::ReplicaObject;
use crate::format::volume::{EpochObject, VolumeObject};
use crate::log::fetch::{FetchError, fetch_header};
use crate::log::replay::LogEnd;
use crate::store::{KEY_HINT, Key, Store, StoreErrorKind, get_parsed, list_all};
use crate::units::{Epoch, SectorCount, Seq};

/// How often the newest checkpoint is looked for again when it vanishes under the reader.
pub(super) const LOOKUPS: usize = 5;

/// Who owns a volume, and the summary of its newest checkpoint.
#[derive(Clone, Debug)]
pub struct Ownership {
    /// Newest epoch that was claimed (0: never attached).
    pub epoch: Epoch,
    /// Its owner has left in order: nobody owns the volume.
    pub closed: bool,
    /// Who claimed the newest epoch.
    pub owner: Option<EpochObject>,
    /// Size as of the newest checkpoint.
    pub size: SectorCount,
    /// Sectors that hold data, as of the newest checkpoint.
    pub live: SectorCount,
    /// How many snapshots there are, as of the newest checkpoint.
    pub snapshots: usize,
    /// When the newest checkpoint was made, in ms since 1970 (0: none yet).
    pub checkpoint_at_ms: u64,
    /// How long the past is kept, as of the newest checkpoint, in ms (0: not at all).
    pub retention_ms: u64,
    /// What is complete of it, if it is shipped from another pool, or was.
    pub replica: Option<ReplicaObject>,
}

/// Reads who owns the volume.
///
/// # Errors
/// NotFound: no such volume. Corrupt: one of its objects is damaged. Store.
pub async fn ownership(store: &dyn Store, id: VolumeId) -> Result<Ownership> {
    let description = read_description(store, id).await?;
    let replica = worth(store, &description).await?.map(|worth| worth.state);
    // A replica nobody has, and the epoch it is promoted to nobody claims.
    let unowned = match &replica {
        None => Some(description.lineage().first_epoch()),
        Some(state) => state.promoted.as_ref().map(|promoted| promoted.epoch),
    };
    let epoch = match (&replica, unowned) {
        (Some(state), None) => state.shipped.end.epoch,
        (_, first) => newest_epoch(store, &description).await?.max(first.unwrap_or_default()),
    };
    let owner = match unowned {
        Some(first) if epoch > first => read_owner(store, id, epoch).await?,
        _ => None,
    };
    let checkpoint = only_newest_checkpoint(store, &description).await?;
    let is_free = replica.is_some() && unowned.is_none_or(|first| epoch == first);
    Ok(Ownership {
        epoch,
        closed: is_free || checkpoint.closed && checkpoint.epoch == epoch,
        owner,
        size: checkpoint.size,
        live: checkpoint.live,
        snapshots: checkpoint.snapshots.iter().filter(|snapshot| !snapshot.deleted).count(),
        checkpoint_at_ms: checkpoint.made_at_ms,
        retention_ms: checkpoint.retention_ms,
        replica,
    })
}

/// How far the log of a volume is decided for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The newest checkpoint has every slot before this one.
    pub before: Seq,
    /// After that was known, nobody had claimed an epoch after the checkpoint's: whoever does finds this checkpoint, or a newer
    /// one, and replays nothing before it.
    pub is_current: bool,
    /// Nobody has the volume.
    pub is_closed: bool,
    /// The epochs that were claimed, from the checkpoint's on: in others, nobody writes any more.
    pub epochs: Vec<Epoch>,
}

/// Reads how far the log of a volume is decided for good, whoever owns it.
///
/// # Errors
/// As [`ownership`].
pub async fn settled(store: &dyn Store, id: VolumeId) -> Result<Settled> {
    let description = read_any_description(store, id).await?;
    let last = newest_end(store, &description).await?;
    let claimed = list_all(store, &keys::epochs(id)).await?;
    let claimed = claimed.iter().filter_map(|object| keys::parse_epoch(id, &object.key));
    let epochs: Vec<Epoch> = claimed.filter(|epoch| *epoch >= last.epoch).collect();
    let is_current = epochs.iter().all(|epoch| *epoch == last.epoch);
    let is_closed = is_current && (last.closed || epochs.is_empty());
    Ok(Settled { before: last.next, is_current, is_closed, epochs })
}

/// What the newest checkpoint says of where it was made.
struct End {
    next: Seq,
    epoch: Epoch,
    /// Not known of one that is sealed.
    closed: bool,
}

/// The end of the newest checkpoint; of one that is sealed, what its name says.
async fn newest_end(store: &dyn Store, description: &VolumeObject) -> Result<End> {
    let id = description.id;
    if !description.is_encrypted() || store.unseals(&keys::volume(id)) {
        let newest = only_newest_checkpoint(store, description).await?;
        return Ok(End { next: newest.next, epoch: newest.epoch, closed: newest.closed });
    }
    let worth = worth(store, description).await?;
    let newest = newest_of(&listed_checkpoints(store, id).await?, worth.as_ref())
        .and_then(|(_, key)| keys::parse_checkpoint(id, key));
    let lineage = description.lineage();
    let (next, epoch) = newest.unwrap_or((lineage.first_slot(), lineage.first_epoch()));
    Ok(End { next, epoch, closed: false })
}

/// The description of a volume whose objects can be read.
pub(super) async fn read_description(store: &dyn Store, id: VolumeId) -> Result<VolumeObject> {
    let description = read_any_description(store, id).await?;
    // Before anything else is read, and long before anything is written.
    if description.is_encrypted() && !store.unseals(&keys::volume(id)) {
        let text = format!("volume {id} is encrypted, and its key was not given");
        return Err(Error::usage(text).hint(KEY_HINT));
    }
    Ok(description)
}

async fn read_any_description(store: &dyn Store, id: VolumeId) -> Result<VolumeObject> {
    let key = keys::volume(id);
    let parsed = match get_parsed(store, &key, VolumeObject::parse).await {
        Ok(parsed) => parsed,
        Err(e) if e.kind == StoreErrorKind::NotFound => {
            return Err(Error::corrupt(format!("volume {id} has no description ({key})")));
        }
        Err(e) => return Err(e.into()),
    };
    let damaged = |e| Error::corrupt(format!("object {key} is damaged")).because(e);
    let description = parsed.map_err(damaged)?;
    if description.id != id {
        return Err(Error::corrupt(format!("object {key} describes volume {}", description.id)));
    }
    Ok(description)
}

async fn newest_epoch(store: &dyn Store, description: &VolumeObject) -> Result<Epoch> {
    let id = description.id;
    let epochs = list_all(store, &keys::epochs(id)).await?;
    let epochs = epochs.iter().filter_map(|o| keys::parse_epoch(id, &o.key));
    Ok(epochs.max().unwrap_or(description.lineage().first_epoch()))
}

pub(super) async fn read_owner(
    store: &dyn Store,
    id: VolumeId,
    epoch: Epoch,
) -> Result<Option<EpochObject>> {
    match get_parsed(store, &keys::epoch(id, epoch), EpochObject::parse).await {
        // Who it was is for people: a damaged description does not keep anybody from attaching.
        Ok(parsed) => Ok(parsed.ok()),
        Err(e) if e.kind == StoreErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The newest checkpoint, and the names of all others.
pub(super) async fn newest_checkpoint(
    store: &dyn Store,
    description: &VolumeObject,
) -> Result<(Checkpoint, Vec<Key>)> {
    let id = description.id;
    let mut lost = false;
    for _ in 0..LOOKUPS {
        // What counts is known before: of a replica, the checkpoint that does is there then, or a newer state.
        let worth = worth(store, description).await?;
        let mut found = listed_checkpoints(store, id).await?;
        let Some((at, _)) = newest_of(&found, worth.as_ref()) else {
            if worth.is_some_and(|worth| !worth.begins_empty()) {
                lost = true;
                continue;
            }
            return Ok((first_checkpoint(store, description).await?, found));
        };
        let key = found.remove(at);
        if let Some(checkpoint) = read_checkpoint(store, id, &key).await? {
            return Ok((checkpoint, found));
        }
    }
    if lost {
        let text = format!("volume {id} has lost the checkpoint that it was shipped with");
        return Err(Error::corrupt(text).hint("restore the objects from a copy of the bucket"));
    }
    Err(Error::new(ErrorKind::Busy, format!("the checkpoints of volume {id} keep changing")))
}

/// The names of all checkpoints, the newest first.
async fn listed_checkpoints(store: &dyn Store, id: VolumeId) -> Result<Vec<Key>> {
    let found = list_all(store, &keys::checkpoints(id)).await?.into_iter().map(|object| object.key);
    Ok(found.filter(|key| keys::parse_checkpoint(id, key).is_some()).collect())
}

/// The newest one of these that counts, and its place among them.
fn newest_of<'a>(found: &'a [Key], worth: Option<&Worth>) -> Option<(usize, &'a Key)> {
    let at = worth.map_or(Some(0), |worth| worth.newest(found))?;
    Some((at, found.get(at)?))
}

/// The newest checkpoint, for who has no use for the names of others: what was deleted of late comes behind it in
/// a listing, and some stores take long to pass that over.
pub(super) async fn only_newest_checkpoint(
    store: &dyn Store,
    description: &VolumeObject,
) -> Result<Checkpoint> {
    let id = description.id;
    if description.is_replica() {
        return newest_checkpoint(store, description).await.map(|(checkpoint, _)| checkpoint);
    }
    let first = store.list(&keys::checkpoints(id), None, 1).await?.objects;
    let Some(first) = first.first().map(|object| &object.key) else {
        return first_checkpoint(store, description).await;
    };
    if let Some(key) = Some(first).filter(|key| keys::parse_checkpoint(id, key).is_some())
        && let Some(checkpoint) = read_checkpoint(store, id, key).await?
    {
        return Ok(checkpoint);
    }
    newest_checkpoint(store, description).await.map(|(checkpoint, _)| checkpoint)
}

/// `None`: its owner has made a newer one since it was listed.
pub(super) async fn read_checkpoint(
    store: &dyn Store,
    id: VolumeId,
    key: &Key,
) -> Result<Option<Checkpoint>> {
    match get_parsed(store, key, |bytes| parse_checkpoint(id, key, bytes)).await {
        Ok(parsed) => parsed.map(Some),
        Err(e) if e.kind == StoreErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Whether no newer checkpoint than this one is there.
pub(super) async fn is_newest(store: &dyn Store, checkpoint: &Checkpoint) -> Result<bool> {
    let first = store.list(&keys::checkpoints(checkpoint.volume), None, 1).await?.objects;
    let own = keys::checkpoint(checkpoint.volume, checkpoint.next, checkpoint.epoch);
    if first.first().is_none_or(|first| first.key >= own) {
        return Ok(true);
    }
    // Beside a replica's, there may be one of its source that came early or late.
    let description = read_any_description(store, checkpoint.volume).await?;
    let Some(worth) = worth(store, &description).await? else { return Ok(false) };
    let found = listed_checkpoints(store, checkpoint.volume).await?;
    Ok(match newest_of(&found, Some(&worth)) {
        Some((_, newest)) => *newest >= own,
        None => worth.begins_empty(),
    })
}

/// What the log of a volume that has no checkpoint is, where it seems to end.
pub(super) enum Beginning {
    /// It ends there.
    Ends,
    /// The slot was filled since: it goes on.
    GoesOn,
    /// There is a checkpoint by now.
    Checkpointed,
}

/// Makes sure that a volume whose log is read from its very beginning has not lost its checkpoint: it would be
/// taken for one to which hardly anything was written.
///
/// Nothing of a log is deleted before there is a checkpoint. So what lies behind the `end` and can only be
/// there after that slot was filled shows that the slot was deleted since.
///
/// # Errors
/// Corrupt: it has. Store.
pub(super) async fn check_beginning(
    store: &dyn Store,
    first: &Checkpoint,
    end: &LogEnd,
) -> Result<Beginning> {
    let id = first.volume;
    let Some(proof) = proof_behind(store, id, end).await? else { return Ok(Beginning::Ends) };
    let slot = keys::slot(id, end.slot, end.epoch);
    match store.head(&slot).await {
        Ok(_) => return Ok(Beginning::GoesOn),
        Err(e) if e.kind == StoreErrorKind::NotFound => {}
        Err(e) => return Err(e.into()),
    }
    if !is_newest(store, first).await? {
        return Ok(Beginning::Checkpointed);
    }
    let lost = keys::checkpoints(id);
    let text = format!(
        "volume {id} has lost its checkpoint: nothing is below {lost} and {slot} is gone, although {proof} is there"
    );
    Err(Error::corrupt(text).hint("restore the objects from a copy of the bucket"))
}

/// A slot behind the end that was filled when the end was filled.
async fn proof_behind(store: &dyn Store, id: VolumeId, end: &LogEnd) -> Result<Option<Key>> {
    let mut same_term: Vec<Seq> = Vec::new();
    for object in list_all(store, &keys::log(id)).await? {
        match keys::parse_slot(id, &object.key) {
            Some((seq, epoch)) if seq > end.slot && epoch > end.epoch => {
                return Ok(Some(object.key));
            }
            Some((seq, epoch)) if seq > end.slot && epoch == end.epoch => same_term.push(seq),
            _ => {}
        }
    }
    same_term.sort_unstable();
    // The last chunk knows most; fences that were put ahead, and chunks that are damaged, know nothing.
    for seq in same_term.into_iter().rev() {
        let chunk = ChunkId { volume: id, epoch: end.epoch, seq };
        match fetch_header(store, chunk).await {
            Ok(header) => return Ok((header.committed > end.slot).then(|| chunk.key())),
            Err(FetchError::Store(e)) => return Err(e.into()),
            Err(_) => {}
        }
    }
    Ok(None)
}

/// The state that a volume begins with, which no object of its own has: nothing, or what a clone was
/// made of.
async fn first_checkpoint(store: &dyn Store, description: &VolumeObject) -> Result<Checkpoint> {
    let id = description.id;
    let Some(origin) = description.origin() else {
        return Ok(Checkpoint::initial(id, description.sectors()));
    };
    let object = snapshots::read(store, origin.volume, origin.snapshot).await.map_err(|e| {
        let text = format!("volume {id} is a clone, and what it was made of cannot be read");
        match e.kind() {
            ErrorKind::NotFound | ErrorKind::Corrupt => Error::corrupt(text).because(e),
            _ => e.context(text),
        }
    })?;
    let origins = object.checkpoint;
    if (origins.next, origins.epoch) != (origin.next, origin.epoch) {
        return Err(Error::corrupt(format!(
            "volume {id} is a clone of another state than it says"
        )));
    }
    let epoch = description.lineage().first_epoch();
    let mut terms = origins.terms.clone();
    terms.retain(|term| term.first < origin.next);
    terms.push(Term { first: origin.next, epoch });
    Ok(Checkpoint { volume: id, epoch, closed: true, made_at_ms: 0, terms, ..origins })
}

fn parse_checkpoint(id: VolumeId, key: &Key, bytes: &[u8]) -> Result<Checkpoint> {
    let damaged = |e| Error::corrupt(format!("checkpoint {key} is damaged")).because(e);
    let checkpoint = Checkpoint::parse(bytes).map_err(damaged)?;
    if keys::checkpoint(checkpoint.volume, checkpoint.next, checkpoint.epoch) == *key {
        return Ok(checkpoint);
    }
    Err(Error::corrupt(format!("checkpoint {key} is another one than its name says"))
        .context(format!("volume {id}")))
}

/// Refuses a volume that needs features of a newer objblk.
pub(super) fn check_features(description: &VolumeObject, mode: Mode) -> Result<()> {
    let needs = |what: &str| {
        let text = format!("volume {} {what} features of a newer objblk", description.id);
        Err(Error::new(ErrorKind::Unsupported, text).hint("update objblk"))
    };
    match (description.features.access(), mode) {
        (Access::None, _) => needs("needs"),
        (Access::ReadOnly, Mode::ReadWrite { .. } | Mode::Recover) => {
            needs("can only be read: it has")
        }
        _ => Ok(()),
    }
}
