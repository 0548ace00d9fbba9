//! One round: from what the source has now to a state of the replica that is complete.

use super::Way;
use super::copy::{Copied, Listing};
use crate::error::{Error, ErrorKind, Result};
use crate::format::keys;
use crate::format::replica::{Position, ReplicaObject, Shipped};
use crate::log::replay::Replay;
use crate::mutant::{self, Mutant};
use crate::store::{GetRange, Key, StoreErrorKind, list_all};
use crate::units::{Epoch, Seq};
use crate::volume::commit_replica_state;
use bytes::Bytes;
use serde::Serialize;
use std::collections::BTreeSet;

/// How often a round begins anew because the source has gone on.
const TRIES: usize = 16;

/// What a round has done.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// The state that is complete.
    pub state: ReplicaObject,
    /// Objects that were copied.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that were deleted.
    pub deleted: u64,
    /// Chunks that are damaged in the source.
    pub damaged: u64,
}

/// How far the replica is behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lag {
    /// Objects that are to be copied.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of what the source has now, nothing that is older than so many milliseconds is missing; 0: nothing is.
    pub age_ms: u64,
}

/// What was seen in the source: all that `from` needs is in `wanted`.
struct Seen {
    at_ms: u64,
    /// The newest checkpoint, and its bytes as they are stored.
    from: Option<(Position, Key, Bytes)>,
    wanted: Listing,
}

/// An attempt.
enum Attempt {
    Done(Box<Round>),
    /// The source has gone on.
    Again,
}

impl Way {
    /// Ships what the source has now.
    ///
    /// # Errors
    /// Those of [`Way::state`]. Busy: the source goes on faster than it can be shipped. Usage: it is a clone that
    /// needs its origin. Store.
    ///
    /// Cancellation, as any death: the replica stays what it was, or is what it was to be.
    pub async fn round(&self) -> Result<Round> {
        let mut copied = Copied::default();
        for _ in 0..TRIES {
            if let Attempt::Done(round) = self.attempt(&mut copied).await? {
                return Ok(*round);
            }
            tracing::debug!("the source has gone on: {} bytes were shipped so far", copied.bytes);
        }
        let text = format!(
            "the source goes on faster than it is shipped: {} bytes were copied, and no state is complete",
            copied.bytes
        );
        Err(Error::new(ErrorKind::Busy, text).hint(
            "try again; have the source keep its past for the time that takes (`objblk retain`)",
        ))
    }

    async fn attempt(&self, sum: &mut Copied) -> Result<Attempt> {
        let last = self.state().await?;
        let there = self.listing(&*self.target.raw).await?;
        let Some(seen) = self.look().await? else { return Ok(Attempt::Again) };
        if !self.check_alone(seen.from.as_ref().map(|(_, key, _)| key)).await? {
            return Ok(Attempt::Again);
        }
        self.check_same(&seen, (&last, &there))?;
        if mutant::on(Mutant::ShippedDeletesEarly) {
            self.delete_extra(&there, &seen.wanted).await?;
        }
        if mutant::on(Mutant::ShippedToldEarly) {
            self.tell(&last, self.told(&seen, &BTreeSet::new()).await?).await?;
        }
        let copied = self.copy_all(&seen.wanted, &there).await?;
        let after = self.checkpoints().await?;
        let from = seen.from.as_ref().map(|(_, key, _)| key);
        let is_whole = copied.is_all() || after.first() == from;
        let vanished = sum.add(copied);
        if !is_whole {
            return Ok(Attempt::Again);
        }
        self.put_checkpoints(&seen, &after, sum).await?;
        let told = self.told(&seen, &vanished).await?;
        let Some(state) = self.tell(&last, told).await? else { return Ok(Attempt::Again) };
        let mut deleted = 0;
        // A state that is not of now says nothing of what the source has lost by now.
        if state.shipped == told {
            deleted = self.delete_extra(&there, &seen.wanted).await?;
            self.forget_states(state.number).await?;
        }
        let (objects, bytes, damaged) = (sum.objects, sum.bytes, sum.damaged);
        Ok(Attempt::Done(Box::new(Round { state, objects, bytes, deleted, damaged })))
    }

    /// Refuses a source that is not what it was: one that was put back to an older state writes other objects under names
    /// that are in the replica already.
    ///
    /// # Errors
    /// Corrupt: it is another one, as far as that can be told by names and sizes.
    fn check_same(&self, seen: &Seen, (last, there): (&ReplicaObject, &Listing)) -> Result<()> {
        let id = self.id();
        let other = |key: &Key, size: u64| {
            let never_changes =
                keys::parse_slot(id, key).is_some() || keys::parse_map_object(id, key).is_some();
            never_changes && there.get(key).is_some_and(|known| *known != size)
        };
        let other = seen.wanted.iter().find(|(key, size)| other(key, **size)).map(|(key, _)| key);
        let from = seen.from.as_ref().map(|(position, ..)| position.next);
        let is_back = from < last.shipped.checkpoint.map(|from| from.next);
        if other.is_none() && !is_back {
            return Ok(());
        }
        let what = match other {
            Some(key) => format!("{key} is another object there"),
            None => "its newest checkpoint is older than what was shipped".to_owned(),
        };
        Err(Error::corrupt("the source is not what it was when it was shipped")
            .because(what)
            .hint("was it restored from a copy? Then delete the replica, and replicate anew"))
    }

    /// Looks at the source. `None`: a newer checkpoint was made meanwhile.
    async fn look(&self) -> Result<Option<Seen>> {
        let at_ms = self.clock.now_ms();
        let before = self.checkpoints().await?;
        let from = match before.first() {
            None => None,
            Some(key) => match self.source.raw.get(key, GetRange::All).await {
                Ok(body) => Some((self.position(key), key.clone(), body)),
                Err(e) if e.kind == StoreErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e.into()),
            },
        };
        let wanted = self.listing(&*self.source.raw).await?;
        let after = self.checkpoints().await?;
        let is_same = after.first() == before.first();
        Ok(is_same.then_some(Seen { at_ms, from, wanted }))
    }

    /// The checkpoints of the source, the newest first.
    async fn checkpoints(&self) -> Result<Vec<Key>> {
        let id = self.id();
        let listed = list_all(&*self.source.raw, &keys::checkpoints(id)).await?;
        let keys = listed.into_iter().map(|object| object.key);
        let is_own = |key: &Key| {
            let epoch = keys::parse_checkpoint(id, key).map(|(_, epoch)| epoch);
            epoch.is_some_and(|epoch| self.floor.is_none_or(|floor| epoch > floor))
        };
        Ok(keys.filter(is_own).collect())
    }

    fn position(&self, key: &Key) -> Position {
        let parsed = keys::parse_checkpoint(self.id(), key);
        let (next, epoch) = parsed.unwrap_or((Seq(0), Epoch(0)));
        Position { next, epoch }
    }

    /// Puts the checkpoint, after those that are kept for the past and are there still.
    async fn put_checkpoints(&self, seen: &Seen, after: &[Key], sum: &mut Copied) -> Result<()> {
        let Some((_, newest, body)) = &seen.from else { return Ok(()) };
        // They go before what they need: one that is there is whole. Older ones than one that is gone, are gone.
        let points = after.iter().filter(|key| *key > newest && seen.wanted.contains_key(*key));
        for point in points {
            if !self.copy_if_there(point, sum).await? {
                break;
            }
        }
        self.put(newest, body.clone()).await
    }

    /// The state that is complete now: the checkpoint, and the log behind it as far as it was copied.
    async fn told(&self, seen: &Seen, vanished: &BTreeSet<Key>) -> Result<Shipped> {
        let beginning = Position { next: Seq(0), epoch: Epoch(0) };
        let checkpoint = seen.from.as_ref().map(|(position, ..)| *position);
        let mut end = checkpoint.unwrap_or(beginning);
        let shipped = |end| Ok(Shipped { checkpoint, end, seen_at_ms: seen.at_ms });
        let (id, plain) = (self.id(), &*self.source.plain);
        if self.volume.is_encrypted() && !plain.unseals(&keys::volume(id)) {
            return shipped(end);
        }
        let is_copied = |at: Position| {
            let key = keys::slot(id, at.next, at.epoch);
            seen.wanted.contains_key(&key) && !vanished.contains(&key)
        };
        let mut replay = Replay::new(plain, id, end.next, end.epoch);
        while is_copied(Position { next: replay.next_slot(), epoch: replay.epoch() }) {
            let mut terms = Vec::new();
            let found = replay.next_chunk(&mut |first, epoch| terms.push((first, epoch))).await;
            // Damaged, or its owner has deleted it since: what is before it is complete.
            let chunk = match found {
                Err(e) if e.kind() == ErrorKind::Corrupt => None,
                found => found?,
            };
            for (first, epoch) in terms {
                let fence = Position { next: Seq(first.0.saturating_sub(1)), epoch: end.epoch };
                if fence.next != end.next || !is_copied(fence) {
                    return shipped(end);
                }
                end = Position { next: first, epoch };
            }
            match chunk.map(|chunk| Position { next: chunk.seq, epoch: chunk.epoch }) {
                Some(at) if at == end && is_copied(at) => end.next = at.next.next(),
                _ => break,
            }
        }
        shipped(end)
    }

    /// Says that `shipped` is complete, unless `last` is further. `None`: somebody else has made a state.
    async fn tell(&self, last: &ReplicaObject, shipped: Shipped) -> Result<Option<ReplicaObject>> {
        let is_older = |new: Shipped, old: Shipped| {
            new.end.next < old.end.next
                || new.checkpoint.map(|from| from.next) < old.checkpoint.map(|from| from.next)
        };
        if is_older(shipped, last.shipped) {
            return Ok(Some(last.clone()));
        }
        let number = last.number.saturating_add(1);
        let state = ReplicaObject { number, shipped, promoted: None, ..last.clone() };
        let is_newest = commit_replica_state(&*self.target.raw, &state).await?;
        Ok(is_newest.then_some(state))
    }

    /// Deletes the states before `number`.
    async fn forget_states(&self, number: u64) -> Result<()> {
        let id = self.id();
        let listed = list_all(&*self.target.raw, &keys::replica_states(id)).await?;
        let is_older = |key: &Key| keys::parse_replica_state(id, key).is_some_and(|n| n < number);
        let older: Vec<Key> = listed.into_iter().map(|o| o.key).filter(is_older).collect();
        match older.is_empty() {
            true => Ok(()),
            false => Ok(self.target.raw.delete(&older).await?),
        }
    }

    /// How far the replica is behind what the source has now, and its newest state.
    ///
    /// # Errors
    /// NotFound, Exists: as [`Way::state`]. Store.
    pub async fn lag(&self) -> Result<(ReplicaObject, Lag)> {
        let state = self.any_state().await?;
        let there = self.listing(&*self.target.raw).await?;
        let wanted = self.listing(&*self.source.raw).await?;
        let end = state.shipped.end;
        let is_behind = |key: &Key| {
            let slot = keys::parse_slot(self.id(), key);
            slot.is_some_and(|(seq, epoch)| seq >= end.next && epoch >= end.epoch)
        };
        let lacks = |key: &Key| !there.contains_key(key) || is_behind(key);
        let lacks = wanted.iter().filter(|(key, _)| lacks(key));
        let (objects, bytes) = lacks.fold((0, 0), |(n, sum), (_, size)| (n + 1, sum + size));
        let age = self.clock.now_ms().saturating_sub(state.shipped.seen_at_ms);
        Ok((state, Lag { objects, bytes, age_ms: if objects == 0 { 0 } else { age } }))
    }
}

impl Copied {
    /// What one more attempt has copied. Returns what vanished in it.
    fn add(&mut self, more: Copied) -> BTreeSet<Key> {
        self.objects += more.objects;
        self.bytes += more.bytes;
        self.damaged += more.damaged;
        more.vanished
    }
}
