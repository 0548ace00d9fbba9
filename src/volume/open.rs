//! Opening a volume: who owns it, claiming an epoch, replay, and the fence.
//!
//! 1. Claim the next epoch (create-if-absent).
//! 2. Only then look for the newest checkpoint, and replay the log from its position.
//! 3. Put the fence into the first missing slot; where that is refused, put one ahead of the owner,
//!    who is at work, and read on: to the first missing slot again, or to the fence.
//! 4. Only then make sure that nobody claimed a newer epoch. Such a claimant may already own the
//!    volume and delete objects, and what was taken for the end of the log might have been one
//!    of those; so whoever finds a newer claim gives way.
//!
//! From the fence on the old owner can commit nothing: its next chunk has no slot.

use super::Volume;
use super::checkpoint::Checkpointer;
use super::collect;
use super::hydrate;
use super::items::Items;
use super::local::local_key;
use super::look::{
    Beginning, LOOKUPS, Ownership, check_beginning, check_features, is_newest, newest_checkpoint,
    only_newest_checkpoint, ownership, read_description, read_owner,
};
use super::mend;
use super::options::{Env, MAP_BYTES_MIN, Mode, Stores, VolumeOptions};
use super::past::{self, View};
use super::profile;
use super::recover::{self, Legacy};
use super::redo::{apply, rolled_back};
use super::replica;
use super::rollback;
use super::scrub;
use super::shared::{Parts, Shared};
use super::snapshots::{self, Snapshots};
use super::state::State;
use super::takeover::TakenOver;
use crate::error::{Error, ErrorKind, Result};
use crate::format::checkpoint::Checkpoint;
use crate::format::snapshot::{SnapshotEntry, SnapshotObject};
use crate::format::volume::{EpochObject, VolumeObject};
use crate::format::{VolumeId, keys, pool};
use crate::journal::mirror::{Header, Mirror};
use crate::log::replay::{LogEnd, Replay, superseded};
use crate::log::upload::Uploader;
use crate::log::{OpenChunk, SealedChunk, Terms};
use crate::map::Map;
use crate::mutant::{self, Mutant};
use crate::store::{Key, Store, StoreErrorKind};
use crate::units::{Epoch, SectorCount, Seq};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Slots that a successor replayed at which it begins with a checkpoint.
const REPLAY_LONG: u64 = 32;

impl Volume {
    /// Opens the volume `id`. `owner` describes this process; it is stored when an epoch is
    /// claimed.
    ///
    /// # Errors
    /// NotFound: no such volume. Busy: somebody owns it, or claimed it meanwhile. Corrupt: an
    /// object that is needed is damaged or missing. Unsupported: a newer objblk is needed. Store.
    ///
    /// Cancellation: dropping the future may leave an epoch claimed; the next attach then needs
    /// a takeover.
    pub async fn open(
        env: Env,
        stores: Stores,
        id: VolumeId,
        mut owner: EpochObject,
        mut options: VolumeOptions,
    ) -> Result<Volume> {
        let description = read_description(&*stores.setup, id).await?;
        check_features(&description, options.mode)?;
        let store = &*stores.setup;
        if let Some(view) = past::asked_for(store, &description, &mut options).await? {
            return Volume::open_view(env, stores, description, view, options).await;
        }
        replica::check_mode(store, &description, options.mode).await?;
        let mut ownership = ownership(store, id).await?;
        let mut claims = vec![(ownership.epoch, ownership.owner.clone())];
        let Legacy { mirror, journal, is_alone } =
            recover::prepare(store, &description, &mut ownership, &mut options, &mut owner).await?;
        let early = match mutant::on(Mutant::LookupBeforeClaim) {
            true => Some(newest_checkpoint(store, &description).await?),
            false => None,
        };
        // Who goes on from a journal takes nothing from anybody.
        let succeeds = journal.as_ref().is_some_and(|journal| journal.is_succession);
        let mode = if succeeds { Mode::Recover } else { options.mode };
        let claimed = claim(store, id, &ownership, &owner, mode).await?;
        let name = owner.owner();
        let term = claimed.map(|epoch| (epoch, &*name));
        let mut loaded = match load_newest(store, &description, early, term).await {
            // What looks like damage may be the work of an owner who came meanwhile.
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                give_way(store, id, claimed.unwrap_or(ownership.epoch)).await?;
                return Err(e);
            }
            loaded => loaded?,
        };
        let redo = match &mirror {
            Some(mirror) if journal.is_none() => {
                Some((mirror, recover::first_to_redo(mirror, &loaded.terms)?))
            }
            _ => None,
        };
        let taken = match (journal, claimed) {
            (Some(journal), Some(epoch)) => {
                let term = (epoch, loaded.first(), &*owner.nonce);
                let Loaded { map, size, terms, .. } = &mut loaded;
                let apply = |chunk: &SealedChunk| apply(chunk.seq, &chunk.records, map, size);
                let chunk_size = description.chunk_size;
                let from = (&options, mirror.as_ref());
                journal.take_over(from, term, (terms, chunk_size), apply).await?
            }
            _ => None,
        };
        let volume = start(env, stores, options, description, claimed, (loaded, taken))?;
        if let Some(disk) = &volume.shared.disk {
            claims.extend(claimed.map(|epoch| (epoch, Some(owner))));
            for (epoch, owner) in &claims {
                owner.iter().for_each(|owner| disk.claimed(id, *epoch, owner));
            }
        }
        let finished = async {
            recover::finish(&volume.shared, redo, is_alone).await?;
            opened(&volume.shared, claimed).await
        };
        match finished.await {
            Ok(()) => {
                collect::start(&volume.shared);
                profile::start(&volume.shared);
                scrub::start(&volume.shared);
                mend::start(&volume.shared);
                Ok(volume)
            }
            Err(e) => {
                volume.abandon();
                Err(e)
            }
        }
    }
}

/// From now on it is at work.
async fn opened(shared: &Arc<Shared>, claimed: Option<Epoch>) -> Result<()> {
    hydrate::start(shared).await?;
    if let Some(epoch) = claimed {
        let claim = keys::epoch(shared.description.id, epoch);
        shared.stores.setup.opened(&claim).await?;
    }
    Ok(())
}

/// Claims an epoch, or checks that a read-only view is allowed (`None`).
async fn claim(
    store: &dyn Store,
    id: VolumeId,
    ownership: &Ownership,
    owner: &EpochObject,
    mode: Mode,
) -> Result<Option<Epoch>> {
    let takeover = match mode {
        Mode::ReadOnly | Mode::Recover => false,
        Mode::ReadWrite { takeover } => takeover,
    };
    if !ownership.closed && !takeover && mode != Mode::Recover {
        return Err(busy(ownership));
    }
    if mode == Mode::ReadOnly {
        return Ok(None);
    }
    let mut epoch = ownership.epoch.next();
    let body = Bytes::from(pool::encode_json(owner));
    loop {
        match store.put_if_absent(&keys::epoch(id, epoch), body.clone()).await {
            Ok(()) => return Ok(Some(epoch)),
            Err(_) if mutant::on(Mutant::EpochShared) => return Ok(Some(epoch)),
            Err(e) if e.kind == StoreErrorKind::AlreadyExists && takeover => epoch = epoch.next(),
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => {
                let owner = read_owner(store, id, epoch).await?;
                return Err(busy(&Ownership { epoch, owner, ..ownership.clone() }));
            }
            Err(e) => return Err(e.into()),
        }
    }
}

fn busy(ownership: &Ownership) -> Error {
    let owner = ownership.owner.as_ref().map_or("an unknown process".into(), EpochObject::owner);
    Error::new(ErrorKind::Busy, format!("the volume is in use by {owner}"))
        .hint("detach it there, or take it over with --takeover if that process is gone for good")
}

/// Whether the log has every slot before `first`, a slot of the term of `epoch`.
pub(super) async fn has_all_before(
    store: &dyn Store,
    description: &VolumeObject,
    (epoch, first): (Epoch, Seq),
) -> Result<bool> {
    let Loaded { terms, end, .. } = load_newest(store, description, None, None).await?;
    let ended = terms.end_of(epoch).or_else(|| (end.epoch == epoch).then_some(end.slot));
    Ok(ended.is_some_and(|end| first <= end))
}

/// What replay gives.
pub(super) struct Loaded {
    pub checkpoint: Checkpoint,
    obsolete: Vec<Key>,
    pub map: Map,
    pub size: SectorCount,
    pub terms: Terms,
    /// Sectors in the chunks that were read.
    payloads: BTreeMap<Seq, u32>,
    /// Slots read since the checkpoint.
    replayed: u64,
    pub end: LogEnd,
    pub snapshots: Snapshots,
}

impl Loaded {
    /// The first slot of the new term.
    fn first(&self) -> Seq {
        match mutant::on(Mutant::SlotReused) {
            true => self.end.slot,
            false => self.end.slot.next(),
        }
    }
}

impl From<View> for Loaded {
    fn from(view: View) -> Loaded {
        let View { checkpoint, mut map, size, terms, end } = view;
        // Nobody will change it any more.
        map.freeze();
        Loaded {
            obsolete: Vec::new(),
            map,
            size,
            terms,
            payloads: BTreeMap::new(),
            replayed: 0,
            end: LogEnd { slot: end, epoch: checkpoint.epoch, strays: Vec::new() },
            snapshots: Snapshots::default(),
            checkpoint,
        }
    }
}

/// The snapshots of a volume, by position, whoever owns it.
///
/// # Errors
/// Corrupt: an object that is needed is damaged or missing. Busy: its owner is too quick. Store.
pub async fn list_snapshots(store: &dyn Store, id: VolumeId) -> Result<Vec<SnapshotEntry>> {
    let description = read_description(store, id).await?;
    let mut looks = 0;
    loop {
        let loaded = load_newest(store, &description, None, None).await;
        looks += 1;
        match loaded {
            Ok(loaded) => return Ok(loaded.snapshots.entries().cloned().collect()),
            // Its owner may have deleted what was being read.
            Err(e) if e.kind() == ErrorKind::Corrupt && looks < LOOKUPS => {}
            Err(e) => return Err(e),
        }
    }
}

/// The snapshot `name` of a volume, whoever owns it.
///
/// # Errors
/// NotFound: there is none. Corrupt: its object is damaged or missing. As [`list_snapshots`].
pub async fn find_snapshot(store: &dyn Store, id: VolumeId, name: &str) -> Result<SnapshotObject> {
    let entries = list_snapshots(store, id).await?;
    let entry = entries.iter().find(|entry| entry.name == name).ok_or_else(|| {
        Error::not_found(format!("there is no snapshot {name}"))
            .hint("`objblk snapshot list` shows those there are")
    })?;
    snapshots::read(store, id, entry.id).await.map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::corrupt("an object of it is missing").because(e),
        _ => e,
    })
}

/// Reads the state of the volume: of its newest checkpoint, or of one that was `found` before, and
/// of the log behind it. `claimed`: the epoch and the owner of the new term.
pub(super) async fn load_newest(
    store: &dyn Store,
    description: &VolumeObject,
    mut found: Option<(Checkpoint, Vec<Key>)>,
    claimed: Option<(Epoch, &str)>,
) -> Result<Loaded> {
    for _ in 0..LOOKUPS {
        let newest = match found.take() {
            Some(found) => found,
            None if claimed.is_none() => {
                (only_newest_checkpoint(store, description).await?, Vec::new())
            }
            None => newest_checkpoint(store, description).await?,
        };
        let Some(loaded) = load(store, description, newest, claimed).await? else { continue };
        // Its owner may have deleted slots that a newer checkpoint has no need of: the log then seemed
        // to end there.
        if claimed.is_some() || is_newest(store, &loaded.checkpoint).await? {
            return Ok(loaded);
        }
    }
    let id = description.id;
    Err(Error::new(ErrorKind::Busy, format!("the checkpoints of volume {id} keep changing"))
        .hint("try again"))
}

/// `None`: a newer checkpoint was made meanwhile.
async fn load(
    store: &dyn Store,
    description: &VolumeObject,
    (mut checkpoint, obsolete): (Checkpoint, Vec<Key>),
    claimed: Option<(Epoch, &str)>,
) -> Result<Option<Loaded>> {
    let (claimed, owner) = (claimed.map(|(epoch, _)| epoch), claimed.map_or("", |(_, name)| name));
    let id = description.id;
    // No owner has that epoch.
    let is_first = checkpoint.epoch == description.lineage().first_epoch();
    let (is_newest, cut) = replica::log_behind(store, description, &checkpoint).await?;
    if !is_newest {
        return Ok(None);
    }
    let mut map = rollback::map_of(&checkpoint);
    let mut size = checkpoint.size;
    let mut terms = Terms::new(checkpoint.terms.clone());
    let (mut payloads, mut changes) = (BTreeMap::new(), Vec::new());
    let mut replay = Replay::new(store, id, checkpoint.next, checkpoint.epoch).cut(cut);
    let end = loop {
        while let Some(chunk) =
            replay.next_chunk(&mut |first, epoch| terms.begin(first, epoch)).await?
        {
            let mut records = &*chunk.records;
            if let Some((to, later)) = rolled_back(records) {
                replay.restart();
                let to = rollback::state_of(store, id, to).await?;
                rollback::go_back(&mut checkpoint, &to);
                (map, size, records) = (rollback::map_of(&to), to.size, later);
            }
            apply(chunk.seq, records, &mut map, &mut size)?;
            payloads.insert(chunk.seq, chunk.payload_sectors());
            changes.extend(chunk.records.iter().copied().filter(snapshots::is_change));
            if let Some(claimed) = claimed.filter(|_| replay.is_long()) {
                replay.bar(claimed, owner).await?;
            }
        }
        match claimed {
            Some(claimed) if replay.epoch() > claimed => {
                return Err(superseded(id, replay.epoch()));
            }
            // Nobody else's fence names this epoch.
            Some(claimed) if replay.epoch() == claimed => {
                if let Some(end) = replay.own_end().await? {
                    break end;
                }
            }
            _ => {}
        }
        let Some(end) = replay.verify_end().await? else { continue };
        // The state of a replica says where its log begins and ends.
        if is_first && cut.is_none() {
            match check_beginning(store, &checkpoint, &end).await? {
                Beginning::Ends => {}
                Beginning::GoesOn => continue,
                Beginning::Checkpointed => return Ok(None),
            }
        }
        match claimed {
            None => break end,
            Some(claimed) if replay.place(claimed, owner).await? => {
                terms.begin(end.slot.next(), claimed);
                break end;
            }
            Some(claimed) => replay.bar(claimed, owner).await?,
        }
    };
    if let Some(claimed) = claimed {
        give_way(store, id, claimed).await?;
        delete_strays(store, id, &end, replay.bars_behind(&end)).await;
    }
    let Some(snapshots) = snapshots::replay(store, &checkpoint, &changes).await? else {
        return Ok(None);
    };
    let replayed = end.slot.0 - checkpoint.next.0;
    Ok(Some(Loaded { checkpoint, obsolete, map, size, terms, payloads, replayed, end, snapshots }))
}

/// Step 4 of opening.
async fn give_way(store: &dyn Store, id: VolumeId, claimed: Epoch) -> Result<()> {
    if mutant::on(Mutant::NewerClaimIgnored) {
        return Ok(());
    }
    match store.head(&keys::epoch(id, claimed.next())).await {
        Err(e) if e.kind == StoreErrorKind::NotFound => Ok(()),
        Ok(_) => Err(superseded(id, claimed.next())),
        Err(e) => Err(e.into()),
    }
}

/// Chunks behind the fence were never committed, and fences there end nothing; nobody will ever
/// read them.
async fn delete_strays(store: &dyn Store, id: VolumeId, end: &LogEnd, mut keys: Vec<Key>) {
    keys.extend(end.strays.iter().map(|seq| keys::slot(id, *seq, end.epoch)));
    if !keys.is_empty()
        && let Err(e) = store.delete(&keys).await
    {
        tracing::warn!("{} objects behind the fence are left in the store: {e}", keys.len());
    }
}

pub(super) fn start(
    env: Env,
    stores: Stores,
    options: VolumeOptions,
    description: VolumeObject,
    claimed: Option<Epoch>,
    (loaded, taken): (Loaded, Option<TakenOver>),
) -> Result<Volume> {
    let first = loaded.first();
    let open = OpenChunk::first_of_term(first, description.chunk_size);
    let (sender, sealed) = mpsc::unbounded_channel();
    let uploads = claimed.map(|_| sender);
    let mut state = State::new(loaded.size, loaded.map, open, loaded.terms, uploads);
    if let Some(taken) = taken {
        state.go_on(taken, description.chunk_size);
    }
    state.slots_since_checkpoint = loaded.replayed;
    state.payloads = loaded.payloads;
    if let Some(limits) = &options.collection {
        state.traffic.interval = limits.interval(loaded.checkpoint.live.0);
    }
    let map_bytes = options.map_bytes.max(MAP_BYTES_MIN);
    let items = Arc::new(Items::new(description.lineage(), &stores, map_bytes));
    let epoch = claimed.unwrap_or(Epoch(0));
    if let (Some(root), Some(epoch)) = (&options.mirror, claimed) {
        // Behind the slots that a journal had.
        let header = Header { volume: description.id, epoch, seq: state.open.seq() };
        let run = local_key(&*stores.setup, description.id).map(|key| key.begin_mirror());
        state.mirror = match Mirror::begin(root, header, state.journal.is_some(), run) {
            Err(e) if options.mode == Mode::Recover => {
                tracing::error!("this device could not be recovered once more: {e}");
                None
            }
            begun => Some(begun?),
        };
    }
    let uploader = Uploader {
        volume: description.id,
        epoch,
        store: stores.live.clone(),
        parallel: options.uploads.clamp(1, 16),
        clock: env.clock.clone(),
        spares: Arc::default(),
        compression: description.features.compression(),
        sampling: Arc::default(),
    };
    let checkpointer = Checkpointer::new(loaded.checkpoint, loaded.obsolete);
    // Deaths in quick succession must not make the log to be replayed longer each time.
    let long = if options.mode == Mode::Recover { REPLAY_LONG } else { options.checkpoint_slots };
    let due = checkpointer.has_garbage(env.clock.now_ms()) || loaded.replayed >= long;
    let snapshots = loaded.snapshots;
    let parts =
        Parts { description, epoch, env, stores, options, state, items, checkpointer, snapshots };
    let shared = Arc::new(Shared::new(parts));
    if claimed.is_some() {
        shared.start_tasks(uploader.run(sealed, shared.clone()));
        if due {
            shared.checkpoint_due.notify_one();
        }
    }
    Ok(Volume { shared })
}
