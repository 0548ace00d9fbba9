//! Checkpoints: the map's tree as of a slot of the log, then the deletion of what it freed.
//!
//! A checkpoint freezes the changes so far (in whole slots), waits until those slots are
//! committed, writes the changed leaves and pages, the live counts of chunks, and last the object
//! that names it all. Only then does the volume's map move on to the new tree. An attempt that
//! fails is made again with the same frozen changes.
//!
//! **Deleting safely without clocks.** Objects freed by a checkpoint are deleted only after
//! (1) it is durable and (2) the next epoch was looked for, after that, and not found. A new
//! owner claims its epoch first and looks for the newest checkpoint second, so it finds this one
//! or a newer one, which does not name what is deleted. Who claims later than a third owner that
//! may delete on its own sees that one's claim after placing its fence (see `open`).
//!
//! With a retention time all this comes later, and in an order of its own (see `retention`): what is deleted
//! then is still nothing that the last checkpoint needs, so both conditions are enough.
//!
//! Fences are never deleted: there is no time after which a deposed owner is known to be gone.

use super::census::{self, New};
use super::retention::{Doomed, Next, Retention};
use super::rollback;
use super::shared::Shared;
use super::state::Frozen;
use super::tree::{self, Deltas, MapWriter, Moves};
use crate::error::{Error, ErrorKind, Result};
use crate::format::checkpoint::{Checkpoint, Garbage};
use crate::format::keys;
use crate::format::page::CHUNKS_PER_PAGE;
use crate::map::Base;
use crate::mutant::{self, Mutant};
use crate::store::{GetRange, Key, Store, StoreErrorKind, get_parsed};
use crate::units::{SectorCount, Seq};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Keys deleted by one request.
const DELETE_BATCH: usize = 1000;
/// Batches a closing owner deletes; the rest is left to the next owner.
const CLOSE_BATCHES: usize = 16;
/// Wait after an attempt that failed.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(5);

/// When a checkpoint is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// While the volume is in use.
    Running,
    /// As the last act of an owner, after its close record.
    Close,
}

/// What the next checkpoint builds on.
#[derive(Debug)]
pub(super) struct Checkpointer {
    /// The last durable checkpoint.
    last: Checkpoint,
    /// What is kept of the past, and what may be deleted.
    pub(super) retention: Retention,
    /// Other checkpoints that may still be in the store, and what is to be deleted again.
    obsolete: Vec<Key>,
    /// Next unused number of a map object in this epoch.
    number: u32,
    /// Changes of an attempt that failed.
    frozen: Option<Frozen>,
    /// What earlier owners began and did not finish was looked for.
    swept: bool,
}

impl Checkpointer {
    /// Begins after `last`; `obsolete` are other checkpoints that were found.
    pub fn new(last: Checkpoint, mut obsolete: Vec<Key>) -> Checkpointer {
        let retention = Retention::of(&last, &mut obsolete);
        Checkpointer { last, retention, obsolete, number: 0, frozen: None, swept: false }
    }

    /// The last durable checkpoint.
    pub fn last(&self) -> &Checkpoint {
        &self.last
    }

    /// The next one begins with the contents of `to`.
    pub fn go_back(&mut self, to: &Checkpoint) {
        rollback::go_back(&mut self.last, to);
    }

    /// True where something may be deleted at this time.
    pub fn has_garbage(&self, now_ms: u64) -> bool {
        !self.obsolete.is_empty() || self.retention.is_due(&self.last, now_ms)
    }

    fn is_due(&self, shared: &Shared) -> bool {
        let state = shared.state();
        self.frozen.is_some() || state.map.changes() > 0 || state.open.seq() != self.last.next
    }
}

/// Makes checkpoints when they are due, for the life of the volume.
pub(super) async fn task(shared: Arc<Shared>) {
    loop {
        let after = shared.options.checkpoint_after;
        let _ = tokio::time::timeout(after, shared.checkpoint_due.notified()).await;
        if let Err(why) = run(&shared, Kind::Running).await {
            if why.kind() == ErrorKind::Fenced {
                return;
            }
            tracing::warn!(volume = %shared.id, "checkpoint failed, will be tried again: {why}");
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }
}

/// Makes a checkpoint of all there is (if there is anything new), then deletes garbage.
///
/// Cancellation: it goes on without its caller.
pub(super) async fn run(shared: &Arc<Shared>, kind: Kind) -> Result<()> {
    let task = shared.clone();
    shared.to_its_end(async move { make(&task, kind).await }).await
}

/// Brings to its end a checkpoint that failed.
pub(super) async fn settle(shared: &Shared, checkpointer: &mut Checkpointer) -> Result<()> {
    match checkpointer.frozen.is_some() {
        true => attempt(shared, checkpointer).await,
        false => Ok(()),
    }
}

/// Makes a checkpoint of all there is, if there is anything new.
pub(super) async fn complete(shared: &Shared, checkpointer: &mut Checkpointer) -> Result<()> {
    settle(shared, checkpointer).await?;
    match checkpointer.is_due(shared) {
        true => attempt(shared, checkpointer).await,
        false => Ok(()),
    }
}

async fn make(shared: &Arc<Shared>, kind: Kind) -> Result<()> {
    let mut checkpointer = shared.checkpointer.lock().await;
    if kind == Kind::Close {
        settle(shared, &mut checkpointer).await?;
    }
    if checkpointer.is_due(shared) {
        attempt(shared, &mut checkpointer).await?;
    } else {
        // Nothing was written for long.
        shared.give_back();
    }
    // Of a deleted snapshot the past may have need, and what is kept of it is not known here.
    if !checkpointer.swept && !checkpointer.retention.has_points() {
        sweep(shared, &mut checkpointer).await;
    }
    let batches = if kind == Kind::Close { CLOSE_BATCHES } else { usize::MAX };
    if let Err(why) = delete_garbage(shared, &mut checkpointer, batches).await {
        tracing::warn!(volume = %shared.id, "garbage is left for later: {why}");
    }
    Ok(())
}

/// Looks for snapshots that an earlier owner had stored when it died, and whose records are not in the log.
/// Whoever finds one of a later owner finds that one's claim before anything is deleted. Nobody makes one
/// meanwhile: that takes the checkpointer.
async fn sweep(shared: &Shared, checkpointer: &mut Checkpointer) {
    match shared.unfinished_snapshots().await {
        Ok(unfinished) => {
            checkpointer.obsolete.extend(unfinished);
            checkpointer.swept = true;
        }
        Err(why) => {
            tracing::debug!(volume = %shared.id, "snapshots are not looked for now: {why}");
        }
    }
}

async fn attempt(shared: &Shared, checkpointer: &mut Checkpointer) -> Result<()> {
    let frozen = match checkpointer.frozen.take() {
        Some(frozen) => frozen,
        None => {
            let mut state = shared.state();
            // What a checkpoint had frozen that was cut off with its volume is nobody's.
            state.check_failure()?;
            state.freeze()
        }
    };
    let outcome = write(shared, checkpointer, &frozen).await;
    match outcome {
        Ok((checkpoint, base)) => {
            let mut state = shared.state();
            state.map.install(base);
            state.terms.forget_before(oldest_needed(&checkpoint));
            state.payloads = state.payloads.split_off(&checkpoint.next);
            drop(state);
            shared.settle_snapshots(&checkpoint);
            shared.collection.look_at(shared, &checkpoint, frozen.appended);
            let last = std::mem::replace(&mut checkpointer.last, checkpoint);
            let Checkpointer { last: made, retention, obsolete, .. } = checkpointer;
            obsolete.extend(retention.advance(&last, made));
            Ok(())
        }
        Err(why) => {
            checkpointer.frozen = Some(frozen);
            if mutant::on(Mutant::FailedCheckpointForgotten) {
                checkpointer.frozen = None;
                let mut state = shared.state();
                let base = state.map.base().clone();
                state.map.install(base);
            }
            Err(why)
        }
    }
}

async fn write(
    shared: &Shared,
    checkpointer: &mut Checkpointer,
    frozen: &Frozen,
) -> Result<(Checkpoint, Base)> {
    if !mutant::on(Mutant::CheckpointBeforeCommit) {
        shared.wait_committed(frozen.next).await?;
    }
    let store = &*shared.stores.background;
    let last = &checkpointer.last;
    let who = (shared.id, shared.epoch);
    let number = &mut checkpointer.number;
    let mut writer = MapWriter::new(who, store, &shared.items, number, &last.map_objects);
    let keeps = shared.kept().await?;
    let moves = Moves::choose(&writer, &keeps).await;
    let mut deltas = Deltas::new();
    let old = shared.state().map.base().clone();
    let base = tree::rewrite(&old, &frozen.changes, &moves, &mut writer, &mut deltas).await?;
    let chunk_root: BTreeMap<_, _> = last.chunk_root.iter().copied().collect();
    let new = New {
        slots: last.next.0..frozen.next.0,
        payloads: shared.state().payloads.range(..frozen.next).map(|(seq, n)| (*seq, *n)).collect(),
    };
    let fences = frozen.terms.fences();
    let kept = (&fences, &keeps);
    let census = census::update(&chunk_root, new, kept, &deltas, &moves, &mut writer).await?;
    let (map_objects, dead_objects) = writer.finish().await?;
    let delta: i64 = deltas.values().sum();
    let next = checkpointer.retention.next(last);
    let mut garbage = match &next {
        Next::Replaces(garbage) => garbage.clone(),
        Next::Follows => Vec::new(),
    };
    garbage.extend(census.garbage);
    let dead_objects = dead_objects.into_iter().filter(|object| !keeps.map_object(*object));
    garbage.extend(dead_objects.map(Garbage::Map));
    let mut checkpoint = Checkpoint {
        volume: shared.id,
        epoch: shared.epoch,
        next: frozen.next,
        closed: frozen.closed,
        size: frozen.size,
        live: SectorCount(last.live.0.checked_add_signed(delta).ok_or_else(bad_account)?),
        made_at_ms: shared.env.clock.now_ms(),
        terms: Vec::new(),
        map_objects,
        map_root: base.root.iter().map(|(page, item)| (*page, *item)).collect(),
        chunk_root: census.root.into_iter().collect(),
        garbage,
        snapshots: Vec::new(),
        retention_ms: checkpointer.retention.time_ms,
        points: checkpointer.retention.points_after(last, &next),
    };
    shared.name_snapshots(&mut checkpoint).await?;
    let mut terms = frozen.terms.clone();
    terms.forget_before(oldest_needed(&checkpoint));
    checkpoint.terms = terms.as_slice().to_vec();
    if mutant::on(Mutant::DeleteBeforeCheckpoint) {
        let mut early = Doomed::of(&checkpoint);
        store.delete(&take_batch(shared, &mut Vec::new(), &mut early)).await?;
    }
    let key = keys::checkpoint(shared.id, checkpoint.next, checkpoint.epoch);
    let body = Bytes::from(checkpoint.encode());
    shared.items.count_written(body.len());
    match store.put_if_absent(&key, body).await {
        Ok(()) => Ok((checkpoint, base)),
        // Nobody else writes for this epoch: it is that of an earlier attempt, which was stored
        // although the attempt was told otherwise.
        Err(e) if e.kind == StoreErrorKind::AlreadyExists => adopt(store, &key).await,
        Err(e) => Err(e.into()),
    }
}

async fn adopt(store: &dyn Store, key: &Key) -> Result<(Checkpoint, Base)> {
    let bytes = store.get(key, GetRange::All).await?;
    let damaged = |e| Error::corrupt(format!("checkpoint {key} is damaged")).because(e);
    let checkpoint = Checkpoint::parse(&bytes).map_err(damaged)?;
    let base = Base { root: checkpoint.map_root.iter().copied().collect() };
    Ok((checkpoint, base))
}

fn bad_account() -> Error {
    Error::corrupt("the checkpoint's count of live sectors does not add up")
}

/// The oldest slot whose name may still be needed.
fn oldest_needed(checkpoint: &Checkpoint) -> Seq {
    let live = checkpoint.chunk_root.first().map(|(page, _)| page * CHUNKS_PER_PAGE);
    let garbage = checkpoint.garbage.iter().filter_map(|g| match g {
        Garbage::Slots { first, .. } => Some(first.0),
        Garbage::Map(_) | Garbage::Snapshot(_) => None,
    });
    let snapshots = checkpoint.snapshots.iter().map(|snapshot| snapshot.oldest.0);
    Seq(live.into_iter().chain(garbage).chain(snapshots).fold(checkpoint.next.0, u64::min))
}

/// Deletes what the last checkpoint has no use for and what is not kept of the past, at most `batches`
/// requests of it.
async fn delete_garbage(
    shared: &Shared,
    checkpointer: &mut Checkpointer,
    batches: usize,
) -> Result<()> {
    let now = shared.env.clock.now_ms();
    if !checkpointer.has_garbage(now) {
        return Ok(());
    }
    let store = &*shared.stores.background;
    match store.head(&keys::epoch(shared.id, shared.epoch.next())).await {
        Err(e) if e.kind == StoreErrorKind::NotFound => {}
        Ok(_) if mutant::on(Mutant::DeleteWithoutLook) => {}
        Ok(_) => return Err(Error::failed("a newer epoch was claimed")),
        Err(e) => return Err(e.into()),
    }
    let Checkpointer { last, retention, obsolete, .. } = checkpointer;
    let mut left = batches;
    while left > 0 {
        left -= 1;
        read_doomed(shared, last, retention).await?;
        let Some(doomed) = &mut retention.doomed else { continue };
        let keys = take_batch(shared, obsolete, doomed);
        if keys.is_empty() {
            let Some(oldest) = retention.expired(last, now) else { break };
            let oldest = keys::checkpoint(shared.id, oldest.next, oldest.epoch);
            if !mutant::on(Mutant::PointOutlivesGarbage) {
                // Known to be gone before anything is that it needs.
                store.delete(&[oldest]).await?;
            }
            retention.expire(last);
        } else if let Err(e) = store.delete(&keys).await {
            // Not deleted, or not surely: kept for the next time by name.
            obsolete.extend(keys);
            return Err(e.into());
        }
    }
    Ok(())
}

/// Reads what the oldest point freed, unless that is known.
async fn read_doomed(shared: &Shared, last: &Checkpoint, retention: &mut Retention) -> Result<()> {
    let Some(oldest) = retention.unread(shared.id) else { return Ok(()) };
    match get_parsed(&*shared.stores.background, &oldest, Checkpoint::parse).await {
        Ok(Ok(checkpoint)) => retention.doomed = Some(Doomed::of(&checkpoint)),
        Ok(Err(e)) => {
            tracing::error!("{oldest} is damaged, and what it freed stays in the store: {e}");
            retention.doomed = Some(Doomed::none());
        }
        // An earlier owner's request to delete it was on its way.
        Err(e) if e.kind == StoreErrorKind::NotFound => retention.expire(last),
        Err(e) => return Err(e.into()),
    }
    Ok(())
}

fn take_batch(shared: &Shared, obsolete: &mut Vec<Key>, doomed: &mut Doomed) -> Vec<Key> {
    let mut batch = Vec::new();
    while batch.len() < DELETE_BATCH {
        if let Some(key) = obsolete.pop() {
            batch.push(key);
            continue;
        }
        match doomed.garbage.last_mut() {
            None => break,
            Some(Garbage::Slots { first, count }) if *count > 0 => {
                *count -= 1;
                batch.push(doomed.terms.slot_key(shared.id, Seq(first.0 + *count)));
            }
            Some(Garbage::Slots { .. }) => {
                doomed.garbage.pop();
            }
            Some(Garbage::Map(object)) => {
                batch.push(keys::map_object(shared.id, *object));
                doomed.garbage.pop();
            }
            Some(Garbage::Snapshot(id)) => {
                batch.push(keys::snapshot(shared.id, *id));
                doomed.garbage.pop();
            }
        }
    }
    batch
}
